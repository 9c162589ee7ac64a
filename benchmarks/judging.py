"""Record the tables of docs/judging.md: what each story score tells apart, models over seeds, a scoreboard, noise.

    python -m benchmarks.judging --runs light=RUN,RUN,... toy=RUN,... gpt2=RUN,... gptoss=RUN,... --second RUN
        [--data valid.jsonl --training_data train.jsonl]
    python -m benchmarks.judging --quickstart RUN RUN RUN

The runs of a name are finished seeds of one recipe, and all names with several runs have the same seeds. --second is
a run on other stories. Writes to benchmarks/results, each when it is done:

  judging_noise.json       of each name with three seeds or more: bits per byte, and its noise (ruler_noise.py)
  judging_stories.json     evaluation.stories of all runs, beside real, shuffled, joined and bigram texts
  judging_seeds.json       grammar, consistency and creativity over the seeds of each name, and all differences
  judging_scoreboard.json  evaluation.scoreboard of the first run of each name, and of the very first one, exported for
                           transformers and llama.cpp: exit code 1 if these have other bits per byte by over 1e-5
  judging_quickstart.json  with --quickstart: the stories that evaluation.check passes, of these runs and of the floors

Finished pieces are kept in --folder, so the same command goes on after a stop.
"""

from __future__ import annotations

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import functools
import itertools
import json
import math
import random
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from architecture.checkpoint import find_checkpoint, read_checkpoint
from architecture.generation.text import generate_texts
from architecture.open_gpt_oss.export import write_folder
from architecture.registry import load_model
from benchmarks import ruler_noise, story_edits
from benchmarks.context_stories import MAX_TOKENS, PASSES, TEMPERATURE
from benchmarks.publish import judge, publish, require_clean_commits
from benchmarks.record_run import figures, over_seeds
from common.device import choose_device
from common.files import content_sha256, read_json, write_json_atomic
from common.script import Parser, exit_code
from common.threads import set_threads
from data.stories import TRAIN_STORIES, story
from evaluation import ruler, scoreboard, stories
from evaluation.ablation.contrasts import Cell, Model, errors, intervals, resolutions
from evaluation.ablation.statistics import ALPHA, Summary, summary, table, with_interval
from evaluation.check import examine, training_text
from evaluation.check import summary as counts
from evaluation.story_scores.intervals import share
from evaluation.story_scores.references import Bigram
from evaluation.story_scores.work import Work

# What a judge would grade: in minimal pairs, which a model knows, and in texts, which it writes.
COLUMNS = {
    "grammar": ("grammar", "well_formed"),
    "consistency": ("consistency", "references"),
    "creativity": ("distinct_3", "self_bleu", "copied_8"),
}
MEASURES = [measure for column in COLUMNS.values() for measure in column]
EQUAL = 1e-5  # bits per byte
DOCUMENTS = 1000  # of the ruler
TOLD, TOLD_SEED = 200, 7  # stories of each --quickstart run, and the seed of their sampling
QUICK = "--pairs 4 --prompts 3 --completions 2 --max_tokens 30 --stories 400 --training_stories 400".split()
Models = dict[str, dict[int, Path]]  # name: seed: folder


def linked(run: Path, folder: Path) -> Path:
    """A folder with links to the newest checkpoint of a run and to the scores of all models, where the scoreboard
    looks for them. So nothing is written into the runs, and the tables have short names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    checkpoint = find_checkpoint(run).resolve()
    (folder / checkpoint.name).symlink_to(checkpoint)
    (folder / scoreboard.SCORES).symlink_to(folder.parent.parent / scoreboard.SCORES)
    return folder


def exported(model: Path) -> dict[str, Path]:
    """{layout: the model in a folder of transformers, and of llama.cpp}."""
    found = {layout: model.with_name(f"{model.name}_{layout}") for layout in ("hf", "gguf")}
    for layout, folder in found.items():
        if not folder.exists():
            write_folder(read_checkpoint(find_checkpoint(model)), folder, layout=layout)
    return found


def over_the_seeds(found: dict[str, Any], models: Models) -> dict[str, Any]:
    """The scores of each run with their intervals over stories, mean and spread over seeds, and the differences.

    found: the content of stories.json.  Differences are those of all pairs of names in the arm and seed model of an
    ablation. Their intervals hold together for all pairs and all measures, and are over seeds alone.
    """

    def score(model: Path, measure: str) -> dict[str, Any]:
        part = found["texts"] if measure in found["texts"]["real"] else found["pairs"]["scores"]
        return part[str(find_checkpoint(model))][measure]

    several = {name: seeds for name, seeds in models.items() if len(seeds) > 1}
    scores = {
        name: {
            seed: {measure: score(model, measure) for measure in MEASURES} for seed, model in seeds.items()
        }
        for name, seeds in several.items()
    }
    means, different = {name: {} for name in several}, {}
    for measure in MEASURES:
        values = {
            (name, seed): one[measure]["mean"] for name in several for seed, one in scores[name].items()
        }
        if None in values.values():  # such as no pairs, or empty texts only
            continue
        for name in several:
            means[name][measure] = summary([values[name, seed] for seed in several[name]])._asdict()
        if len(several) > 1:
            different[measure] = differences(values, ALPHA / len(MEASURES))
    return {
        "columns": COLUMNS,
        "level": ALPHA,
        "scores": scores,
        "over_seeds": means,
        "differences": different,
    }


def differences(values: dict[Cell, float], level: float) -> list[dict[str, Any]]:
    """first - second of all pairs of names, with intervals that hold together, and what they would resolve.

    values: {(name, seed): score}.  resolves: None if the runs have no spread.
    """
    model, scores = Model(list(values)), np.array(list(values.values()))
    pairs = list(itertools.combinations(model.arms, 2))
    at, by = intervals(model, pairs, scores, level), errors(model, pairs, scores)
    smallest = resolutions(model, pairs, by.deviation.tolist(), by.deviation_df.tolist(), level)
    return [
        {"first": first, "second": second, "difference": value, "half_width": half, "resolved": abs(value) > half,
         "resolves": None if math.isnan(least.value) else least.value}
        for (first, second), value, half, least in zip(pairs, *map(np.ndarray.tolist, at), smallest)
    ]  # fmt: skip


def as_text(found: dict[str, Any]) -> str:
    """Mean +- half of the 95 % interval over seeds, and the differences."""
    rows = [
        [name, *(with_interval(Summary(**one[measure])) if measure in one else "-" for measure in MEASURES)]
        for name, one in found["over_seeds"].items()
    ]
    return f"{table(['model', *MEASURES], rows)}\n\n{differences_table(found['differences'])}"


def differences_table(found: dict[str, list[dict[str, Any]]]) -> str:
    """A row for each measure and pair. found: {measure: what differences() returns}"""
    rows = [
        [f"{measure}: {one['first']} - {one['second']}", f"{one['difference']:+.4f} +- {one['half_width']:.4f}",
         "yes" if one["resolved"] else "no"]
        for measure, some in found.items() for one in some
    ]  # fmt: skip
    return table(["difference", "95 % together", "resolved"], rows)


def written(path: Path, told: int, filters: dict[str, float]) -> list[str]:
    """Stories of a model, as sample.py --num_samples writes them."""
    options = {"seed": TOLD_SEED, **filters}
    return generate_texts(load_model(path).eval(), [""] * told, MAX_TOKENS, TEMPERATURE, **options)


def checked(runs: list[Path], told: int, work: Work) -> dict[str, Any]:
    """How many stories the checker passes: of the models, of real held-out stories, and of the floors."""
    training = training_text([])
    bigram, draw = Bigram(story(index).text for index in range(TRAIN_STORIES)), random.Random(0)
    texts = {"real": [story(index).text for index in story_edits.HELD_OUT[:told]]}
    texts |= {name: some[:told] for name, some in story_edits.floors().items()}
    texts["bigram"] = [bigram.continuation("", MAX_TOKENS, draw) for _ in range(told)]
    for run in runs:
        path = find_checkpoint(run)
        for name, filters in ((run.name, {}), (f"{run.name}, top_p 0.95", {"top_p": 0.95})):
            write = functools.partial(written, path, told, filters)
            texts[name] = work.once(write, "told", content_sha256(path), told, filters)
    found = {name: counts([examine(text, training) for text in some]) for name, some in texts.items()}
    return {name: one | {PASSES: share(one[PASSES], told)} for name, one in found.items()}


def named_runs(words: list[str]) -> dict[str, list[Path]]:
    """{name: its runs} of NAME=RUN,RUN,..."""
    found = {}
    for word in words:
        name, _, runs = word.partition("=")
        if not name or not runs or "/" in name or name in found:
            raise ValueError(
                f"--runs takes NAME=RUN,RUN,... with each name once, got {word!r}; write toy=model_toy"
            )
        found[name] = [Path(run) for run in runs.split(",")]
    return found


def parse(argv: list[str] | None) -> Namespace:
    title, _, rest = __doc__.partition("\n")
    parser = Parser(
        prog="python -m benchmarks.judging", description=title, epilog=rest, allow_abbrev=False,
        formatter_class=RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--runs", nargs="+", default=[], metavar="NAME=RUN,RUN,...", help="runs of one recipe, by its name")
    add("--second", metavar="RUN", help="a run on other stories, which reads what the others write")
    add(
        "--data",
        type=Path,
        metavar="FILE",
        help="held-out stories (default: bundled, and those of the first run)",
    )
    add("--training_data", metavar="FILE", help="training stories (default: those of the first run)")
    add("--quickstart", nargs="+", type=Path, default=[], metavar="RUN", help="runs for the checker")
    add("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")
    add(
        "--folder", type=Path, default=Path("runs/judging"), help="of finished pieces (default: runs/judging)"
    )
    add("--quick", action="store_true", help="few stories, no speed, JSON into --folder: to try the path")
    args = parser.parse_args(argv)
    if not args.runs and not args.quickstart:
        parser.error("nothing to judge: give --runs NAME=RUN,RUN,... or --quickstart RUN RUN RUN")
    return args


def models_of(named: dict[str, list[Path]], facts: dict[str, list[dict]], folder: Path) -> Models:
    """A folder of links for each run. ValueError for runs of a name that differ in more than the seed, and for names
    with several runs whose seeds differ, because differences are judged at the same seeds.
    """
    models: Models = {}
    for name, runs in named.items():
        over_seeds(facts[name])  # ValueError for runs of several recipes
        seeds = [one["train"]["seed"] for one in facts[name]]
        models[name] = {seed: linked(run, folder / f"{name}_{seed}") for seed, run in zip(seeds, runs)}
    if len({tuple(sorted(seeds)) for seeds in models.values() if len(seeds) > 1}) > 1:
        told = "; ".join(f"{name} {sorted(seeds)}" for name, seeds in models.items())
        raise ValueError(
            f"names with several runs must have the same seeds, got {told}; train the missing ones"
        )
    return models


def noise(measured: dict[str, Any], models: Models) -> dict[str, Any]:
    """The noise of the ruler for each name with three seeds or more.  measured: the content of ruler.json."""
    found = {}
    for name, seeds in models.items():
        mine = [one for one in measured["models"] if Path(one["model"]) in seeds.values()]
        if len(mine) > 2:
            found[name] = ruler_noise.noise(measured | {"models": mine})
            print(f"{name}: {ruler_noise.as_text(found[name])}")
    return {key: measured[key] for key in ("ruler_sha256", "data")} | {"noise": found}


def board_of(first: list[Path], flags: list[str], folder: Path) -> dict[str, Any]:
    """The scoreboard of some models and of the exports of the first, and how far these are from it."""
    copies = exported(first[0])
    scoreboard.run([*map(str, [*first, *copies.values()]), *flags, "--out", str(folder)])
    board = read_json(folder / "scoreboard.json")
    score = {row["model"]: row["bits_per_byte"] for row in board["models"]}
    board["exports"] = {
        layout: {"of": str(first[0]), "difference": score[str(copy)] - score[str(first[0])]}
        for layout, copy in copies.items()
    }
    return board


def run(args: Namespace) -> int:
    named, folder = named_runs(args.runs), args.folder.resolve()
    facts = {name: [figures(one) for one in runs] for name, runs in named.items()}
    set_threads(args.threads, None)

    second = [Path(args.second)] if args.second else []
    every_run = [*itertools.chain(*facts.values()), *map(figures, (*args.quickstart, *second))]
    commits = sorted({start["commit"] for one in every_run for start in one["starts"]})
    own = [folder / "models" / "any", *itertools.chain(*named.values()), *args.quickstart, *second]
    data_of_runs = (one["train"][key] for one in every_run for key in ("dataset", "val_dataset"))
    own += [Path(path) for path in (args.data, args.training_data, *data_of_runs) if path]

    def write(name: str, found: dict[str, Any]) -> None:
        found = {"commits_of_runs": commits} | found
        if args.quick:
            return write_json_atomic(folder / f"judging_{name}.json", found)
        require_clean_commits(json.dumps(commits), Path(f"judging_{name}.json"))
        publish(f"judging_{name}", found, own)

    if args.quickstart:
        folder.mkdir(parents=True, exist_ok=True)
        passed = checked(args.quickstart, 4 if args.quick else TOLD, Work(folder / "told.jsonl"))
        print(*(f"{name}: {one}" for name, one in passed.items()), sep="\n")
        write("quickstart", {"temperature": TEMPERATURE, "seed": TOLD_SEED, "stories": passed})
    return compare(args, facts, named, folder, write) if named else 0


def compare(
    args: Namespace, facts: dict[str, list[dict]], named: dict[str, list[Path]], folder: Path, write: Callable
) -> int:
    """Noise, story scores, their differences, and the scoreboard. 1 if an export scores otherwise than its checkpoint."""
    models = models_of(named, facts, folder / "models")
    every = [model for seeds in models.values() for model in seeds.values()]
    flags = ["--threads", str(args.threads), *(["--data", str(args.data)] if args.data else [])]
    documents = 20 if args.quick else DOCUMENTS

    data, device = ruler.read_data(args.data, documents), choose_device("auto")
    measured, failed = ruler.measure(every, data, device, folder / "ruler.json")
    if failed:
        raise ValueError("; ".join(failed))
    write("noise", noise(measured, models))

    words = [*map(str, every), *flags, *(QUICK if args.quick else ())]
    words += ["--training_data", args.training_data] if args.training_data else []
    words += ["--second", args.second] if args.second else []
    stories.run(stories.parse([*words, "--out", str(folder / scoreboard.SCORES)]))
    told = read_json(folder / scoreboard.SCORES)
    write("stories", told)

    found = over_the_seeds(told, models)
    print(as_text(found))
    write("seeds", found | {"recipes": {name: some[0]["train"] for name, some in facts.items()}})

    flags += ["--stories", str(documents), *(["--no_speed"] if args.quick else [])]
    board = board_of([next(iter(seeds.values())) for seeds in models.values()], flags, folder)
    write("scoreboard", board)
    equal = {layout: abs(one["difference"]) <= EQUAL for layout, one in board["exports"].items()}
    return judge(
        {f"{layout}: bits per byte of its checkpoint to {EQUAL}": met for layout, met in equal.items()}
    )


if __name__ == "__main__":
    stopped = "interrupted; finished pieces are kept, and the same command goes on"
    sys.exit(exit_code("benchmarks.judging", lambda: run(parse(None)), interrupted=stopped))
