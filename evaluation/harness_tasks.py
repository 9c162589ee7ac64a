"""The tasks of lm-evaluation-harness: where their YAML is, where their documents come from, chance and interval.

lm-eval is imported where it is used. Its tasks have no data: a task reads a data set of the Hugging Face Hub, or
the file FOLDER/NAME.jsonl with the same columns, which takes its place.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common.hub import PROBE_SECONDS, call_within, is_of_the_network, why_unreachable
from common.script import did_you_mean, first_line

BUILDERS = ("arrow", "csv", "json", "pandas", "parquet", "text", "xml")  # data sets of local files
CODE = (
    "humaneval",
    "mbpp",
)  # whose programs go through the metric code_eval, and so through code_execution.py
UNLIKELY = -1e4  # nats of a choice that a model does not take
Z = 1.959964  # quantile of the normal distribution for a 95 % interval


def require_lm_eval() -> None:
    """ImportError with the line that installs it, if lm-eval is missing."""
    try:
        importlib.import_module("lm_eval")
    except ImportError as error:
        raise ImportError(
            f"evaluation.lm_eval needs lm-eval ({error}); run pip install -r requirements-eval.txt"
        ) from error


# ------------------------------------------------------------------------------------------------ the YAML
def find_tasks(names: Sequence[str], folder: Path | None) -> tuple[Any, dict[str, list[str]]]:
    """lm-eval's TaskManager, and for each name the tasks that it stands for: itself, or those of a group or tag.

    folder: its YAML files come before those of lm-eval. Raises ValueError for an unknown name.
    Reading all 14,000 tasks takes long, so the folders whose names the asked ones begin with are tried first.
    """
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    home = Path(lm_eval.tasks.__file__).parent
    near = [
        path
        for path in sorted(home.iterdir())
        if path.is_dir() and any(n.startswith(path.name) for n in names)
    ]
    own = [folder] if folder else []
    for paths in ([*near, *own], [home, *own]):
        manager = TaskManager(include_path=paths, include_defaults=False)
        index, whole = manager.task_index, home in paths
        with contextlib.suppress(KeyError):
            return manager, {name: list(dict.fromkeys(leaves(index, name, whole))) for name in names}
    unknown = next(name for name in names if name not in index)
    raise ValueError(
        f"--tasks has no task, group or tag {unknown!r}{did_you_mean(unknown, index)}; lm-eval ls tasks prints all"
    )


def leaves(index: dict[str, Any], name: str, whole: bool) -> Iterator[str]:
    """The names of the tasks that a name stands for. KeyError if one is not in the index.

    whole: the index has all tasks. A member that it lacks is written inside its group, and is left out.
    """
    entry = index[name]
    members = sorted(entry.tags) if entry.kind.name == "TAG" else []
    if entry.kind.name == "GROUP":
        given = entry.cfg["task"]
        members = [
            one if isinstance(one, str) else one.get("task", one.get("group"))
            for one in ([given] if isinstance(given, str) else given)
        ]
    if not members:
        yield name
    for member in members:
        if member in index or not whole:
            yield from leaves(index, member, whole)


def require_allowed(index: dict[str, Any], tasks: Sequence[str], allow_code: bool) -> bool:
    """Whether one of the tasks runs code that the model writes. ValueError if that is not allowed."""
    unsafe = [name for name in tasks if (index[name].cfg or {}).get("unsafe_code")]
    if unsafe and not allow_code:
        raise ValueError(
            f"{unsafe[0]} runs programs that the model writes; --allow_code_execution runs them, each in a process "
            "with limits of time and memory; or leave the task out"
        )
    if other := [name for name in unsafe if not name.startswith(CODE)]:
        raise ValueError(
            f"{other[0]} runs programs in this process, where nothing limits them; only tasks that begin with "
            f"{' or '.join(CODE)} are run, in processes of their own; leave it out"
        )
    return bool(unsafe)


# ------------------------------------------------------------------------------------------------ the data
@contextlib.contextmanager
def local_data(index: dict[str, Any], tasks: Sequence[str], folder: Path | None) -> Iterator[list[str]]:
    """Within this, the tasks with a file FOLDER/NAME.jsonl read it in place of their data set. Yields their names.

    NAME.fewshot.jsonl has the examples of a prompt. Without it, the examples would be the asked documents.
    """
    import yaml

    found = [name for name in tasks if folder and (folder / f"{name}.jsonl").is_file()]
    with tempfile.TemporaryDirectory() as place:
        before = {name: index[name].yaml_path for name in found}
        for name in found:
            cfg = index[name].cfg
            asked = cfg.get("test_split") or cfg.get("validation_split")
            splits = {asked, cfg.get("training_split"), cfg.get("validation_split"), cfg.get("fewshot_split")}
            examples = folder / f"{name}.fewshot.jsonl"
            rest = examples if examples.is_file() else folder / f"{name}.jsonl"
            files = {split: str(rest.resolve()) for split in splits - {None, asked}}
            changed = {
                "include": str(Path(before[name]).resolve()),
                "task": name,
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": files | {asked: str((folder / f"{name}.jsonl").resolve())}},
            }
            path = Path(place) / f"{name}.yaml"
            path.write_text(yaml.safe_dump(changed), encoding="utf-8")
            index[name].yaml_path = path
        try:
            yield found
        finally:
            for name in found:
                index[name].yaml_path = before[name]


def load(manager: Any, name: str, tasks: Sequence[str], local: Sequence[str], folder: Path | None) -> Any:
    """What lm-eval's TaskManager loads for a name. ValueError, within seconds, for data that cannot be had.

    A data set that is in the local cache needs no Hub.
    """
    remote = {
        one: cfg["dataset_path"]
        for one in tasks
        if one not in local
        and (cfg := manager.task_index[one].cfg or {}).get("dataset_path") not in (None, *BUILDERS)
        and not Path(cfg["dataset_path"]).exists()
    }
    reason = unreachable(next(iter(remote.values()))) if remote else ""
    try:
        with offline() if reason else contextlib.nullcontext():
            return manager.load([name])
    except ImportError as error:  # such as langdetect for ifeval
        raise ValueError(
            f"{name} needs a package that is missing ({error}); install it, or leave the task out"
        ) from error
    except Exception as error:  # every library below raises its own kinds
        own = [one for one in tasks if one in local]
        if not remote and (own or isinstance(error, (ValueError, OSError))):
            place = folder / f"{own[0]}.jsonl" if own else "its file"
            raise ValueError(
                f"{name} cannot be loaded ({first_line(error)}); {place} must hold one JSON object a line, with the "
                "columns of the task's data set"
            ) from error
        if not remote:
            raise
        task, data = next(iter(remote.items()))
        others = f" and {len(remote) - 1} more" if len(remote) > 1 else ""
        place = folder or "DIR"
        reason = reason or f"it cannot be read: {first_line(error)}"
        raise ValueError(
            f"{name} needs the data set {data} ({task}{others}), which is not in the local cache, and {reason}; run "
            f"this where the Hub is, or write its rows to {place}/{task}.jsonl, with --task_folder {place}"
        ) from error


def unreachable(dataset: str) -> str:
    """Why the Hub does not answer a question about a data set, within PROBE_SECONDS; "" if it answers anything."""
    from huggingface_hub import HfApi

    try:
        call_within(PROBE_SECONDS, HfApi().dataset_info, dataset, timeout=PROBE_SECONDS)
    except Exception as error:
        return why_unreachable(error, PROBE_SECONDS) if is_of_the_network(error) else ""
    return ""


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Within this, the libraries read their caches only, as with HF_HUB_OFFLINE=1: else they retry for minutes."""
    import datasets
    import huggingface_hub.constants

    places = datasets.config, huggingface_hub.constants
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before):
            place.HF_HUB_OFFLINE = value


def require_examples(
    tasks: dict[str, Any], local: Sequence[str], folder: Path | None, asked: int | None
) -> None:
    """ValueError if prompts are to have examples, and a task with local data has no file of them."""
    for name in local:
        own = tasks[name].get_config("num_fewshot") if name in tasks else 0
        number = own if asked is None or own == 0 else asked  # lm-eval leaves a 0 of the task as it is
        given = (tasks[name].get_config("fewshot_config") or {}) if name in tasks else {}
        samples = given.get("samples") if isinstance(given, dict) else getattr(given, "samples", None)
        if number and not samples and not (folder / f"{name}.fewshot.jsonl").is_file():
            raise ValueError(
                f"{name} has {number} examples in its prompts, and {folder / name}.fewshot.jsonl, which would hold "
                "them, does not exist; write it, or use --num_fewshot 0 where the task allows it"
            )


def prepare(tasks: Iterable[Any], num_fewshot: int | None) -> None:
    """Set the number of examples and the seeds, as lm_eval.simple_evaluate does by default."""
    import random

    import numpy as np
    import torch
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    for task in tasks:
        own = task.get_config("num_fewshot")
        if own is None or (own and num_fewshot is not None):  # a 0 of the task stays
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


# ---------------------------------------------------------------------------------------------- the figures
def chance_of(task: Any, doc: dict[str, Any], choices: int, metric: str) -> float | None:
    """The mean score on a document of a model that picks one of the choices blindly; None if that is not defined.

    It is the mean over the choices of the metric of a model that is certain of this one. So it is right for two
    right answers of five, and for the probability of the right ones (truthfulqa_mc2).
    choices: number of requests of the document.
    """
    values = []
    for taken in range(choices):
        results = [(0.0, True) if one == taken else (UNLIKELY, False) for one in range(choices)]
        value = task.process_results(doc, results).get(metric)
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            return None
        values.append(float(value))
    return math.fsum(values) / choices


def interval(values: Sequence[Any], metric: str) -> tuple[float, float] | None:
    """The 95 % interval of a figure over its documents; None for fewer than three, or for values of other kinds.

    values: of each document: numbers, of which the figure is the mean; or (log-likelihood, size).
    Shares of right answers have Wilson's interval, other means Student's t, and (log-likelihood, size) that of
    a ratio.
    """
    import torch

    from common.intervals import wilson_interval
    from training.validation import ratio_interval

    if len(values) < 3:
        return None
    pairs = all(isinstance(value, (tuple, list)) and len(value) == 2 for value in values)
    if pairs and metric in RATIOS:
        sums, sizes = torch.tensor([[-float(a), float(b)] for a, b in values], dtype=torch.float64).T
    elif all(hasattr(value, "__float__") for value in values):
        sums = torch.tensor([float(value) for value in values], dtype=torch.float64)
        if all(value in (0.0, 1.0) for value in sums.tolist()):
            return wilson_interval(round(float(sums.sum())), len(values))
        sizes = torch.ones_like(sums)
    else:
        return None
    middle, half = float(sums.sum() / sizes.sum()), ratio_interval(sums, sizes)[1]
    scale = RATIOS.get(metric, float) if pairs else float
    return scale(middle - half), scale(middle + half)


RATIOS = {  # nats of each unit -> the figure
    "bits_per_byte": lambda nats: nats / math.log(2),
    "byte_perplexity": math.exp,
    "word_perplexity": math.exp,
}


def figures(results: dict[str, Any], tasks: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{task or group: {"documents": n, "figures": [{metric, filter, value, interval, chance}]}} of lm-eval's results.

    tasks: {name: task object}.  A group whose figure is the mean over all of its documents has their interval
    and chance; for other groups the interval is that of lm-eval's standard error, and the chance the mean of those of
    its tasks.
    """
    found, documents = {}, {}
    for name, task in tasks.items():
        rows = results["samples"].get(name, [])
        documents[name] = {}
        for key, value, error in named_figures(results["results"].get(name, {})):
            metric, filter_name = key
            own = [row for row in rows if row["filter"] == filter_name and metric in row]
            values = [row[metric] for row in own]
            chances: list[float | None] = [None]
            if task.OUTPUT_TYPE == "multiple_choice":
                chances = [chance_of(task, row["doc"], len(row["arguments"]), metric) for row in own]
            elif values and all(hasattr(one, "__float__") and float(one) in (0.0, 1.0) for one in values):
                chances = [0.0] * len(own)  # without choices nothing is right by chance
            documents[name][key] = values, chances
            found.setdefault(name, {"documents": len({row["doc_id"] for row in rows}), "figures": []})
            found[name]["figures"].append(figure(key, value, error, values, chances))
    for name, given in results.get("groups", {}).items():
        members = [one for one in members_of(results, name) if one in documents]
        for key, value, error in named_figures(given):
            parts = [documents[one][key] for one in members if key in documents[one]]
            values = list(itertools.chain.from_iterable(values for values, _ in parts))
            chances = list(itertools.chain.from_iterable(chances for _, chances in parts))
            pooled = bool(values) and all(hasattr(one, "__float__") for one in values)
            if not pooled or not math.isclose(
                math.fsum(map(float, values)) / len(values), value, abs_tol=1e-9
            ):
                values = []
                chances = [mean_or_none(chances) for _, chances in parts]
            number = sum(found[one]["documents"] for one in members)
            found.setdefault(name, {"documents": number, "tasks": members, "figures": []})
            found[name]["figures"].append(figure(key, value, error, values, chances))
    return found


def figure(
    key: tuple[str, str],
    value: float,
    error: float | None,
    values: Sequence[Any],
    chances: Sequence[float | None],
) -> dict[str, Any]:
    """One figure with its interval and chance, None where there is none."""
    metric, filter_name = key
    limits = interval(values, metric)
    if limits is None and len(values) not in (1, 2) and error is not None:
        limits = value - Z * error, value + Z * error
    chance = mean_or_none(chances)
    if limits is not None and chance is not None:  # a share, and Student's t does not know its bounds
        limits = max(0.0, limits[0]), min(1.0, limits[1])
    return {
        "metric": metric,
        "filter": filter_name,
        "value": value if math.isfinite(value) else None,
        "interval": limits if limits and all(map(math.isfinite, limits)) else None,
        "chance": chance,
    }


def named_figures(given: dict[str, Any]) -> Iterator[tuple[tuple[str, str], float, float | None]]:
    """((metric, filter), value, standard error or None) of each figure in lm-eval's results of a task."""
    for name, value in given.items():
        metric, comma, filter_name = name.partition(",")
        if comma and not metric.endswith("_stderr") and hasattr(value, "__float__"):
            error = given.get(f"{metric}_stderr,{filter_name}")
            yield (metric, filter_name), float(value), float(error) if hasattr(error, "__float__") else None


def members_of(results: dict[str, Any], group: str) -> list[str]:
    """The names of all tasks below a group."""
    below = results.get("group_subtasks", {})
    parts = below.get(group, [])
    return [one for part in parts for one in (members_of(results, part) if below.get(part) else [part])]


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """The mean; None if a value is None or there are none."""
    if not values or any(value is None for value in values):
        return None
    return math.fsum(values) / len(values)
