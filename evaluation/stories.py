"""Score the stories of models without a judge: grammar, consistency and variety, each beside a floor and a ceiling.

    python -m evaluation.stories model --out stories.json
    python -m evaluation.stories model_a model_b --second other_model --out stories.json
    python -m evaluation.stories model --data valid.jsonl --training_data train.jsonl --out stories.json

Minimal pairs (what a model knows): a held-out story up to some sentence, against the same text with one edit that
makes it wrong. Half of the pairs of each kind are such that a bigram model prefers the wrong text, so 50 % is chance.
Grammar: agreement, article, tense, word_order, pronoun_case, pronoun_gender. Consistency: a name, an animal or an object
of another story in the place of that which the story introduced, by the distance in sentences.

Texts (what a model writes): --completions of each of --prompts openings that held-out stories share, beside the real
stories with these openings, the same with shuffled sentences, joined halves of two stories, and a bigram model.

  well_formed   share of sentences that pass a rule which the training stories give; the real stories show how often it
                is wrong
  references    share of names, of "the dog" and of he and she that the text so far has introduced; its parts are
                names_kept, introduced and pronouns_fit
  distinct_3    different runs of three words in the completions of a prompt, by all of them: 1 is the most varied
  self_bleu     BLEU-4 of each completion against the others of its prompt: 0 is the most varied
  copied_8      share of runs of eight words that are in the training stories
  bits_per_byte, context_gain   with --second: bits per byte of the completions under a second model, which should have
                been trained on other stories, and the bits per byte that the first half saves in the second half

With --judge, an OpenAI-compatible server also grades them; see docs/judging.md. Its key comes from an environment variable.

Intervals are 95 %: exact for pairs, by bootstrap over prompts for texts. The tables go to stderr, and the JSON goes to
stdout or, with --out, to a file; then finished pieces are kept in FILE.work.jsonl, and the same command continues.
"""

from __future__ import annotations

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import argparse
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.files import content_sha256
from common.script import Parser, exit_code, say
from evaluation import from_checkpoint
from evaluation.story_scores import judge as judging
from evaluation.story_scores import minimal_pairs, tables
from evaluation.story_scores.generations import COPIED, WORDS, Lexicon
from evaluation.story_scores.intervals import ratio
from evaluation.story_scores.likelihood import Reader, open_reader
from evaluation.story_scores.references import Bigram, openings
from evaluation.story_scores.scored_pairs import (
    all_pairs,
    bigram_nats,
    context_table,
    pair_table,
    preferences,
    reader_nats,
)
from evaluation.story_scores.work import Work
from evaluation.story_scores.written import (
    REFERENCES,
    completions,
    reference_texts,
    second_sums,
    separation,
    text_sums,
)


def parse(argv: list[str] | None) -> argparse.Namespace:
    title, _, rest = __doc__.partition("\n")
    parser = Parser(
        prog="python -m evaluation.stories",
        allow_abbrev=False,
        description=title,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "checkpoints",
        metavar="CKPT",
        nargs="+",
        help="checkpoint_<step>.pt, RUN for its newest, or RUN/best.json",
    )
    add(
        "--data",
        metavar="DATA",
        help="held-out stories, as --val_dataset in training (default: those of the first CKPT)",
    )
    add(
        "--training_data",
        metavar="DATA",
        help="training stories, as --dataset in training (default: those of the first CKPT)",
    )
    add("--text_column", help="column of the text (default: text, or that of the first CKPT with its data)")
    add("--second", metavar="CKPT", help="a second model, which reads what the others write")
    add("--pairs", type=int, default=200, metavar="N", help="most minimal pairs of each kind (default: 200)")
    add("--prompts", type=int, default=16, metavar="N", help="openings to continue (default: 16)")
    add("--completions", type=int, default=10, metavar="N", help="texts for each opening (default: 10)")
    add("--max_tokens", type=int, default=200, metavar="N", help="most new tokens of a text (default: 200)")
    add("--temperature", type=float, default=1.0, metavar="X", help="of the sampling (default: 1)")
    add(
        "--stories", type=int, default=5000, metavar="N", help="most held-out stories to read (default: 5000)"
    )
    most = (
        "most training stories for the bigram model, the rule of sentences and copied runs (default: 20000)"
    )
    add("--training_stories", type=int, default=20_000, metavar="N", help=most)
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the pairs, the references and the sampling (default: 0)",
    )
    add(
        "--batch_size",
        type=int,
        default=32,
        metavar="N",
        help="texts that a model reads at once (default: 32)",
    )
    add("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N (default: auto)")
    add(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads (default: one for each core that is free at the start)",
    )
    add("--out", type=Path, metavar="FILE", help="file for the JSON (default: stdout)")
    judging.add_flags(parser)
    args = parser.parse_args(argv)
    least = dict(
        pairs=2,
        prompts=3,
        completions=2,
        max_tokens=1,
        stories=10,
        training_stories=10,
        batch_size=1,
        threads=1,
    )
    from_checkpoint.require_at_least(args, **least)
    if args.out is not None and not args.out.parent.is_dir():
        raise ValueError(
            f"--out {args.out} is in a folder that does not exist; create {args.out.parent} first"
        )
    judging.require_flags(args)
    return args


def run(args: argparse.Namespace) -> None:
    from common.files import write_json_atomic
    from common.provenance import provenance
    from common.threads import set_threads

    judge = judging.from_flags(args, os.environ)  # first: a missing key should not cost an hour
    if line := set_threads(args.threads, common.begin.STARTED):
        say(line)
    opened = [open_checkpoint(name) for name in args.checkpoints]
    hashes = [content_sha256(path) for path, _, _ in opened]
    if len(set(hashes)) < len(hashes):
        raise ValueError("two of the checkpoints are the same file content; name each once")
    second = open_second(args, hashes, opened) if args.second else None
    say("reading held-out and training stories ...")
    held_out, training, names = read_data(args, opened[0])
    work = Work(args.out and args.out.with_name(f"{args.out.name}.work.jsonl"))
    say(f"{len(held_out):,} held-out stories of {names[0]}; {len(training):,} training stories of {names[1]}")
    found: dict[str, Any] = {
        "held_out": {"data": names[0], "stories": len(held_out)},
        "training": {"data": names[1], "stories": len(training)},
        "settings": {
            name: getattr(args, name)
            for name in ("pairs", "prompts", "completions", "max_tokens", "temperature", "seed")
        },
    }
    groups = openings(held_out, args.prompts, args.completions)
    bigram = Bigram(tqdm(training, desc="a bigram model", unit=" stories", leave=False, disable=None))
    pairs = all_pairs(held_out, args.pairs, args.seed)
    found["pairs"] = {"sha256": minimal_pairs.fingerprint(pairs["real"])}
    scored = {"bigram": preferences(pairs, bigram_nats(bigram))}
    texts = reference_texts(held_out, groups, bigram, args)
    found["empty"] = {}
    for (path, saved, settings), hash_ in zip(opened, hashes):
        reader = open_reader(path, saved, settings, args.device, args.batch_size)
        name = f"./{path}" if str(path) in REFERENCES else str(path)
        say(f"{name}: {args.prompts * args.completions:,} texts to write, then pairs to read ...")
        texts[name] = completions(reader, [words for words, _ in groups], args, work, hash_)
        empty = sum(text == words for (words, _), group in zip(groups, texts[name]) for text in group)
        found["empty"][name] = empty
        if empty:
            total = args.prompts * args.completions
            say(f"{name}: {empty} of {total} completions are empty, and no measure counts them")
        scored[name] = preferences(pairs, reader_nats(reader, work, hash_))
        del reader
    found["pairs"]["scores"] = {name: pair_table(pairs, score) for name, score in scored.items()}
    found["pairs"]["context"] = {
        name: context_table(score) for name, score in scored.items() if name != "bigram"
    }
    lexicon = Lexicon(tqdm(training, desc="words of the training stories", leave=False, disable=None))
    sums = text_sums(texts, groups, lexicon, training)
    if second is not None:
        found["second"] = second[1]
        for name, group in second_sums(*second, texts, groups, work).items():
            for number, more in enumerate(group):
                sums[name][number] |= more
    found["texts"] = {
        name: {measure: ratio([one[measure] for one in prompts]) for measure in prompts[0]}
        for name, prompts in sums.items()
    }
    found["separation"] = separation(sums)
    failure = None
    if judge is not None:
        try:
            found["judge"] = judging.measure(judge, texts, groups, args, work)
        except ValueError as error:  # the other scores are finished, and are written
            failure, found["judge"] = error, {"unfinished": str(error)}
    found |= {"words": WORDS, "copied_words": COPIED, **provenance()}
    say(tables.as_text(found))
    if args.out:
        write_json_atomic(args.out, found)
    else:
        print(json.dumps(found, indent=1))
    if failure is not None:
        raise failure


def open_checkpoint(name: str) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The path of a checkpoint, its content, and the settings of its run."""
    from architecture import checkpoint
    from training.state.checkpoint import saved_settings

    path = checkpoint.find_checkpoint(name, say)
    saved = checkpoint.read_checkpoint(path)
    return path, saved, saved_settings(saved, path)


def read_data(
    args: argparse.Namespace, first: tuple[Path, dict, dict]
) -> tuple[list[str], list[str], tuple[str, str]]:
    """Held-out and training stories, without held-out stories that are in training; and the names of both sources."""
    from data.sources import open_dataset, say_left_out

    path, saved, before = first
    args.dataset, args.val_dataset = args.training_data, args.data
    given = args.data is not None and args.training_data is not None
    known = from_checkpoint.data_to_read(
        argparse.Namespace(dataset=None, val_dataset=None, text_column=None), saved, before
    )
    dataset = args.training_data or known[0]
    val_dataset = args.data or (None if args.training_data else known[1])
    column = args.text_column or ("text" if given else known[2])
    if dataset is None:
        raise ValueError(
            f"{path} does not say which data it was trained on; give --training_data, and --data"
        )
    sources = [
        open_dataset(dataset, split=split, val_dataset=val_dataset, text_column=column)
        for split in ("validation", "train")
    ]
    say_left_out(say, *sources)
    texts: list[list[str]] = []
    for source, most in zip(sources, (args.stories, args.training_stories)):
        documents = tqdm(
            itertools.islice(source.documents(), most),
            desc=f"reading {source.name}",
            leave=False,
            disable=None,
        )
        texts.append([document for document in documents if isinstance(document, str) and document.strip()])
        if not texts[-1]:
            raise ValueError(
                f"{source.name} has no {'held-out' if source is sources[0] else 'training'} stories as text; give "
                f"{'--data' if source is sources[0] else '--training_data'} a file of texts"
            )
    seen = set(texts[1])
    held_out = [text for text in texts[0] if text not in seen]
    if len(held_out) < len(texts[0]):
        say(
            f"{len(texts[0]) - len(held_out):,} held-out stories are in the training stories, and are left out"
        )
    if not held_out:
        raise ValueError(
            f"all held-out stories of {sources[0].name} are in the training stories; give others with --data"
        )
    return held_out, texts[1], (sources[0].name, sources[1].name)


def open_second(
    args: argparse.Namespace, hashes: list[str], opened: list[tuple]
) -> tuple[Reader, dict[str, Any]]:
    """The second model, and what is known of it."""
    from training.state.checkpoint import saved_identity

    path, saved, settings = open_checkpoint(args.second)
    hash_ = content_sha256(path)
    if hash_ in hashes:
        raise ValueError(
            f"--second {path} is one of the models to score, and would read its own stories; give another"
        )
    own = saved_identity(saved).get("training data")
    same = [str(other[0]) for other in opened if own and saved_identity(other[1]).get("training data") == own]
    if same:
        say(f"--second was trained on the same stories as {', '.join(same)}: it likes what they copy")
    about = {"checkpoint": str(path), "sha256": hash_, "same_training_data_as": same}
    return open_reader(path, saved, settings, args.device, args.batch_size), about


def main(argv: list[str] | None = None) -> int:
    stopped = "interrupted; with --out, the same command continues from the finished pieces"
    return exit_code("evaluation.stories", lambda: run(parse(argv)), interrupted=stopped)


if __name__ == "__main__":
    sys.exit(main())
