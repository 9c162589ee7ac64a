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
import functools
import itertools
import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.script import Parser, exit_code, say
from evaluation import from_checkpoint
from evaluation.story_scores import judge as judging
from evaluation.story_scores import minimal_pairs, tables
from evaluation.story_scores.generations import COPIED, WORDS, Lexicon, measures
from evaluation.story_scores.intervals import difference, ratio, share
from evaluation.story_scores.likelihood import Reader, open_reader
from evaluation.story_scores.references import Bigram, halves, joined, openings, shuffled
from evaluation.story_scores.splitting import sentences, whole_sentences
from evaluation.story_scores.work import Work, content_hash

REFERENCES = ("real", "shuffled", "joined", "bigram")
BIGRAM_PIECES = 250  # more than WORDS words


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
    hashes = [content_hash(path) for path, _, _ in opened]
    if len(set(hashes)) < len(hashes):
        raise ValueError("two of the checkpoints are the same file content; name each once")
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
    bigram = Bigram(training)
    pairs = all_pairs(held_out, args)
    found["pairs"] = {"sha256": minimal_pairs.fingerprint(pairs["real"])}
    scored = {"bigram": preferences(pairs, bigram_nats(bigram))}
    texts = reference_texts(held_out, groups, bigram, args)
    found["empty"] = {}
    for (path, saved, settings), hash_ in zip(opened, hashes):
        reader, name = open_reader(path, saved, settings, args.device, args.batch_size), str(path)
        scored[name] = preferences(pairs, reader_nats(reader, work, hash_))
        texts[name] = completions(reader, [words for words, _ in groups], args, work, hash_)
        empty = sum(text == words for (words, _), group in zip(groups, texts[name]) for text in group)
        found["empty"][name] = empty
        if empty:
            total = args.prompts * args.completions
            say(f"{name}: {empty} of {total} completions are empty, and no measure counts them")
        del reader
    found["pairs"]["scores"] = {name: pair_table(pairs, score) for name, score in scored.items()}
    found["pairs"]["context"] = {
        name: context_table(score) for name, score in scored.items() if name != "bigram"
    }
    sums = text_sums(texts, groups, Lexicon(training), training)
    if args.second:
        second = open_second(args, hashes, opened)
        found["second"] = second[1]
        for name, group in second_sums(*second, texts, groups, work).items():
            for number, more in enumerate(group):
                sums[name][number] |= more
    found["texts"] = {
        name: {measure: ratio([one[measure] for one in groups_]) for measure in groups_[0]}
        for name, groups_ in sums.items()
    }
    found["separation"] = separation(sums)
    if judge is not None:
        found["judge"] = judging.measure(judge, texts, groups, args, work)
    found |= {"words": WORDS, "copied_words": COPIED, **provenance()}
    say(tables.as_text(found))
    if args.out:
        write_json_atomic(args.out, found)
    else:
        print(json.dumps(found, indent=1))


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


# ---------------------------------------------------------------------------------------------- minimal pairs

Nats = Callable[[Sequence[str], str], list[float]]
Pairs = dict[str, list[minimal_pairs.Pair]]


def all_pairs(held_out: Sequence[str], args: argparse.Namespace) -> Pairs:
    """The pairs with their real context, and those of consistency with a shuffled and a joined one."""
    sorter = minimal_pairs.Sorter(held_out)
    consistency = minimal_pairs.consistency_pairs(held_out, args.pairs, args.seed, sorter)
    others = {
        how: minimal_pairs.with_other_context(consistency, held_out, how, args.seed)
        for how in ("shuffled", "joined")
    }
    return {
        "real": minimal_pairs.grammar_pairs(held_out, args.pairs, args.seed, sorter) + consistency,
        **others,
    }


def preferences(pairs: Pairs, nats: Nats) -> dict[str, list[tuple[minimal_pairs.Pair, bool]]]:
    """Whether each true text has the larger probability. Equal ones count as no."""
    found = {}
    for context, some in pairs.items():
        values = nats(
            [text for p in some for text in (p.context + p.good, p.context + p.bad)],
            f"pairs, {context} context",
        )
        found[context] = [(pair, good < bad) for pair, good, bad in zip(some, values[::2], values[1::2])]
    return found


def bigram_nats(bigram: Bigram) -> Nats:
    return lambda texts, what: [bigram.nats(text) for text in texts]


def reader_nats(reader: Reader, work: Work, hash_: str, piece: int = 400) -> Nats:
    """Scores in pieces, each of which is kept when it is done."""

    def nats(texts: Sequence[str], what: str) -> list[float]:
        found: list[float] = []
        with tqdm(
            total=len(texts), desc=f"{reader.name}: {what}", unit=" texts", leave=False, disable=None
        ) as bar:
            for start in range(0, len(texts), piece):
                some = texts[start : start + piece]
                score = functools.partial(reader.nats, some)
                found += work.once(score, "nats", hash_, reader.window, some)
                bar.update(len(some))
        return found

    return nats


def pair_table(pairs: Pairs, scored: dict[str, list[tuple[minimal_pairs.Pair, bool]]]) -> dict[str, Any]:
    """The share that is right of each kind, of all kinds of grammar and of consistency, and by distance."""
    rows = {
        kind: [right for pair, right in scored["real"] if pair.kind == kind] for kind in minimal_pairs.GRAMMAR
    }
    rows["grammar"] = [right for pair, right in scored["real"] if not pair.distance]
    for kind in minimal_pairs.CONSISTENCY:
        rows[kind] = [right for pair, right in scored["real"] if pair.kind == kind]
    for first, _ in minimal_pairs.DISTANCES:
        distance = minimal_pairs.bin_of(first)
        rows[f"distance {distance}"] = [
            right
            for pair, right in scored["real"]
            if pair.distance and minimal_pairs.bin_of(pair.distance) == distance
        ]
    rows["consistency"] = [right for pair, right in scored["real"] if pair.distance]
    for context in ("shuffled", "joined"):
        rows[f"consistency, {context} context"] = [right for _, right in scored[context]]
    return {name: share(sum(rights), len(rights)) for name, rights in rows.items()}


def context_table(scored: dict[str, list[tuple[minimal_pairs.Pair, bool]]]) -> dict[str, Any]:
    """How much of the share a shuffled and a joined context take away, over the same pairs."""
    real = {(pair.story, pair.good, pair.bad): right for pair, right in scored["real"]}
    found = {}
    for context in ("shuffled", "joined"):
        both = [(real[pair.story, pair.good, pair.bad], right) for pair, right in scored[context]]
        found[context] = difference([(a, 1) for a, _ in both], [(b, 1) for _, b in both])
    return found


# ------------------------------------------------------------------------------------------------------ texts

Groups = list[tuple[str, list[int]]]
Texts = dict[str, list[list[str]]]  # who wrote them: the texts of each prompt


def reference_texts(
    held_out: Sequence[str], groups: Groups, bigram: Bigram, args: argparse.Namespace
) -> Texts:
    """The four texts to compare with, for each opening."""
    draw = random.Random(f"references {args.seed}")
    real = [[held_out[number] for number in numbers] for _, numbers in groups]
    long = [text for text in held_out if len(sentences(text)) > 1]
    return {
        "real": real,
        "shuffled": [[shuffled(text, draw) or text for text in group] for group in real],
        "joined": [[joined(text, draw.choice(long)) or text for text in group] for group in real],
        "bigram": [
            [bigram.continuation(words, BIGRAM_PIECES, draw) for _ in numbers] for words, numbers in groups
        ],
    }


def completions(
    reader: Reader, prompts: Sequence[str], args: argparse.Namespace, work: Work, hash_: str
) -> list[list[str]]:
    """The completions of each opening. Each opening has its own seed, so the texts do not depend on the others."""
    from architecture.generation.text import generate_texts

    found = []
    for number, words in enumerate(
        tqdm(prompts, desc=f"{reader.name}: writing", unit=" prompts", leave=False, disable=None)
    ):
        options = {
            "max_tokens": args.max_tokens,
            "temperature": args.temperature,
            "seed": args.seed * 1000 + number,
        }
        write = functools.partial(generate_texts, reader.model, [words] * args.completions, **options)
        found.append(work.once(write, "texts", hash_, words, args.completions, options))
    return found


def text_sums(
    texts: Texts, groups: Groups, lexicon: Lexicon, training: Sequence[str]
) -> dict[str, list[dict[str, tuple[float, float]]]]:
    """{who wrote the texts: the sums of each measure for each prompt}."""
    from data.stories.copies import RunIndex

    copies = RunIndex(training, COPIED)
    found = {}
    for name, by_prompt in texts.items():
        cut = [
            [whole_sentences(text, WORDS) for text in group if text != words]
            for (words, _), group in zip(groups, by_prompt)
        ]
        found[name] = [measures(lexicon, copies, group) for group in cut]
    return found


def separation(sums: dict[str, list[dict[str, tuple[float, float]]]]) -> dict[str, dict[str, Any]]:
    """{measure: {reference: real - reference}}, over the same prompts."""
    return {
        measure: {
            other: difference([one[measure] for one in sums["real"]], [one[measure] for one in sums[other]])
            for other in REFERENCES[1:]
        }
        for measure in sums["real"][0]
    }


# ----------------------------------------------------------------------------------------------- second model


def open_second(
    args: argparse.Namespace, hashes: list[str], opened: list[tuple]
) -> tuple[Reader, dict[str, Any]]:
    """The second model, and what is known of it."""
    from training.state.checkpoint import saved_identity

    path, saved, settings = open_checkpoint(args.second)
    hash_ = content_hash(path)
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


def second_sums(
    reader: Reader, about: dict[str, Any], texts: Texts, groups: Groups, work: Work
) -> dict[str, list[dict[str, tuple[float, float]]]]:
    """bits_per_byte and context_gain of each prompt, in bits and bytes.

    The opening is not scored. The gain: bits of the second half alone, less its bits behind the first half.
    """
    nats = reader_nats(reader, work, about["sha256"])
    found: dict[str, list[dict[str, tuple[float, float]]]] = {}
    for name, by_prompt in texts.items():
        cut = [
            (n, words, whole_sentences(t, WORDS))
            for n, ((words, _), g) in enumerate(zip(groups, by_prompt))
            for t in g
        ]
        # A shuffled story does not begin with the opening: then nothing is left out.
        rows = [
            (n, words if text.startswith(words) else "", text)
            for n, words, text in cut
            if len(sentences(text)) > 1
        ]
        split = [(begin, end.lstrip()) for begin, end in (halves(text) for _, _, text in rows)]
        parts = [(words, text, begin, end) for (_, words, text), (begin, end) in zip(rows, split)]
        bits = [
            value / 0.6931471805599453
            for value in nats([part for row in parts for part in row], f"{name} texts")
        ]
        sums = [{"bits_per_byte": (0.0, 0.0), "context_gain": (0.0, 0.0)} for _ in groups]
        for place, (number, words, text) in enumerate(rows):
            opening, whole, first, second = bits[4 * place : 4 * place + 4]
            size, half = len(text.encode()) - len(words.encode()), len(split[place][1].encode())
            for measure, value, by in (
                ("bits_per_byte", whole - opening, size),
                ("context_gain", second - (whole - first), half),
            ):
                before = sums[number][measure]
                sums[number][measure] = before[0] + value, before[1] + by
        found[name] = sums
    return found


def main(argv: list[str] | None = None) -> int:
    stopped = "interrupted; with --out, the same command continues from the finished pieces"
    return exit_code("evaluation.stories", lambda: run(parse(argv)), interrupted=stopped)


if __name__ == "__main__":
    sys.exit(main())
