"""An ablation from specification to report: plan, search, verdict, costs. After a kill it can be resumed."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from architecture import registry
from architecture.checkpoint import without_values
from common.begin import STARTED
from common.device import choose_device
from common.provenance import git_commit
from common.script import say
from common.threads import set_threads
from data.documents import Source, common_documents
from data.sources import AUTO, choose_dataset, open_dataset
from evaluation.ablation import matching, write_up
from evaluation.ablation.launch import (
    ROOT,
    Job,
    Launch,
    as_interrupt,
    gpus,
    launch,
    run_jobs,
    seconds_per_token,
)
from evaluation.ablation.matching import PlannedArm, best_rate, next_rates, tidy
from evaluation.ablation.results import Results, training_outcome, written_outcome
from evaluation.ablation.segments import reading_options, segments_outcome
from evaluation.ablation.spec import FIRST_SEEDS, Spec, read_spec
from evaluation.ablation.verdict import Ablation, unresolved, verdicts
from training.monitor.metrics import new_run_dir
from training.state.checkpoint import latest_checkpoint

REPORTS = Path("runs") / "ablations"
PACE_ROUNDS = 3


@dataclass(frozen=True)
class Experiment(Ablation):
    """Shared by all phases."""

    threads: int | None  # per run, for arms that do not set it; None: each run decides
    launch: Launch
    workers: int  # number of runs at the same time


def run(
    path: Path,
    *,
    over_base: dict[str, str],
    plan: bool,
    jobs: int,
    resume: bool,
    out_dir: Path | None,
    launch: Launch = launch,
) -> None:
    """Do the work of ablate.py.

    over_base: settings that replace those of the specification's base.  Raises ValueError for bad input
    before anything runs, and KeyboardInterrupt after Ctrl-C or SIGTERM, when all runs have saved and stopped.
    """
    if jobs < 1 or (gpus() and jobs > len(gpus())):
        most = f" and at most {len(gpus())}, the number of GPUs" if gpus() else ""
        raise ValueError(f"--jobs must be at least 1{most}, got {jobs}")
    spec = read_spec(path, over_base)
    stored = matching.read(path if path.suffix == ".json" else None)
    if stored and stored.sha256 != spec.sha256:
        changed = ", ".join(f"--{name}" for name in over_base) or "its specification was edited"
        raise ValueError(
            f"{path} repeats the runs of an earlier report, and their settings must not change ({changed}); start "
            "from the specification instead"
        )
    folder = _earlier(spec, out_dir) if resume else None
    stored = _stored(folder, spec, path) if folder else stored
    arms = stored.arms if stored else matching.plan(spec)
    for arm in stored.arms.values() if stored else ():
        matching.require_same_model(arm, folder or path)
    print(write_up.plan_text(spec, arms), flush=True)
    if plan:
        return
    _require_trainable(arms)
    arms = _with_data(arms)
    folder = folder or _new_folder(spec, out_dir)
    threads = (stored and stored.threads) or threads_of_runs(arms, jobs)
    with as_interrupt(), Results(folder / "results.jsonl") as results:
        try:
            x = Experiment(spec, arms, folder, results, threads, launch, jobs)
            if any(arm.steps is None for arm in arms.values()):
                x = replace(x, arms=_with_lengths(x))
            if not (folder / matching.NAME).exists():
                matching.write(folder / matching.NAME, spec, x.arms, threads)
            judge(x, search(x))
            measure_inference(x)
            write_up.write(x)
        except KeyboardInterrupt:
            names = " --resume --out_dir ".join(quote(str(p)) for p in (path, folder))
            flags = "".join(f" --{key} {quote(value)}" for key, value in over_base.items())
            several = f" --jobs {jobs}" if jobs > 1 else ""
            say(f"continue with: python ablate.py {names}{several}{flags}")
            raise
    say(f"wrote {folder / 'report.md'}")


# ------------------------------------------------------------------------------------ before the runs


def threads_of_runs(arms: dict[str, PlannedArm], jobs: int) -> int | None:
    """One number for every run, so that seconds compare; None with GPUs, or if all arms set their own."""
    if gpus() or all("threads" in arm.settings for arm in arms.values()):
        return None
    if jobs > 1:
        return max(1, (os.cpu_count() or 1) // jobs)
    if line := set_threads(None, STARTED):
        say(f"in every run {line}")
    return torch.get_num_threads()


def _earlier(spec: Spec, out_dir: Path | None) -> Path:
    """The folder to continue in: the given one, or the newest report under this specification's name."""
    named = re.compile(re.escape(spec.name) + r"-\d{8}-\d{6}(-\d+)?")
    found = sorted(path for path in REPORTS.glob("*") if named.fullmatch(path.name))
    return out_dir or (found[-1] if found else REPORTS)


def _stored(folder: Path, spec: Spec, path: Path) -> matching.StoredPlan | None:
    """The plan of an earlier start in the folder; None if that start was killed before it wrote one."""
    stored, results = matching.read(folder / matching.NAME), folder / "results.jsonl"
    if stored is None and not (results.is_file() and results.stat().st_size == 0):
        raise ValueError(
            f"--resume needs the folder of an earlier start, and {folder} has no {matching.NAME}; give "
            "another folder with --out_dir, or start without --resume"
        )
    if stored and stored.sha256 != spec.sha256:
        raise ValueError(
            f"{folder} holds results of another specification; {path} or the flags have changed since. "
            "Resume with what it was started with, or start a new report without --resume"
        )
    return stored


def _new_folder(spec: Spec, out_dir: Path | None) -> Path:
    if out_dir is None:
        return new_run_dir(spec.name, REPORTS)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ValueError(
            f"--out_dir must be new or empty, and {out_dir} is not; choose another, or continue with --resume"
        )
    out_dir.mkdir(parents=True, exist_ok=True)
    return out_dir


def _require_trainable(arms: dict[str, PlannedArm]) -> None:
    """Raise ValueError now for what train.py would refuse on this machine in every run."""
    for name, arm in arms.items():
        cfg, config = matching.resolve(name, arm.settings)
        with matching.naming(name):
            choose_device(cfg.device)
            without_values(
                registry.model_class(cfg.model), config, attention=cfg.attention, experts=cfg.experts
            )


def _with_data(arms: dict[str, PlannedArm]) -> dict[str, PlannedArm]:
    """The arms with `auto` resolved once, because the Hub may become unreachable while they train. Raises
    ValueError now for data that is missing.
    """
    if any(arm.settings.get("dataset", AUTO) == AUTO for arm in arms.values()):
        chosen = choose_dataset(AUTO, say)
        arms = {name: arm.with_dataset(chosen) for name, arm in arms.items()}
    for name, arm in arms.items():
        with matching.naming(name):
            for line in common_documents(*(open_data(arm, split) for split in ("train", "validation"))):
                say(f"arm {name}: {line}")
    return arms


def open_data(arm: PlannedArm, split: str) -> Source:
    cfg, _ = matching.resolve(arm.name, arm.settings)
    return open_dataset(cfg.dataset, split=split, val_dataset=cfg.val_dataset, text_column=cfg.text_column)


def _with_lengths(x: Experiment) -> dict[str, PlannedArm]:
    """The arms with their lengths, which follow from measured tokens per step and measured paces."""
    arms = {name: _with_tokens(arm) for name, arm in x.arms.items()}
    pace = _paces(x, arms) if matching.needs_pace(x.spec) else {}
    arms = matching.with_lengths(x.spec, arms, pace)
    print(write_up.plan_text(x.spec, arms), flush=True)
    return arms


def _with_tokens(arm: PlannedArm) -> PlannedArm:
    if arm.tokens_per_step is not None:
        return arm
    cfg, _ = matching.resolve(arm.name, arm.settings)
    return replace(arm, tokens_per_step=matching.tokens_per_step_of_lanes(cfg, open_data(arm, "train")))


def _paces(x: Experiment, arms: dict[str, PlannedArm]) -> dict[str, float]:
    """Seconds per token of each arm: the median of rounds in which all arms take turns, because the speed of
    a machine drifts.
    """
    pace, never = {name: [] for name in arms}, 10**9
    for turn in range(PACE_ROUNDS):
        for name, arm in arms.items():
            say(f"{name}: measuring the pace, round {turn + 1} of {PACE_ROUNDS}")
            folder, settings = x.folder / "pace", {"lr": arm.lr, "seed": x.spec.search_seed, "log_every": 1}
            settings |= {"max_minutes": 10, "eval_every": never, "save_every": never}
            words = command(arm, folder, x.threads, **settings)
            with matching.naming(name):
                pace[name].append(seconds_per_token(words, folder, x.launch))
    return {name: statistics.median(rounds) for name, rounds in pace.items()}


# ------------------------------------------------------------------------------------ the runs


def command(arm: PlannedArm, out_dir: Path, threads: int | None, **settings) -> list[str]:
    """The words after `python` that train an arm."""
    script = str(ROOT / matching.config_class(arm.settings).program)
    defaults = {"keep": 1, "threads": threads}
    if arm.settings.get("final_eval_tokens") in (None, "none"):
        settings["final_eval_tokens"] = "all"  # arms of other lengths are scored on the same text
    ours = {"recipe": "none", "use_tensorboard": False, "out_dir": str(out_dir.resolve())}
    return [script, *matching.flags(defaults | arm.settings | settings | ours)]


def training_job(x: Experiment, arm: PlannedArm, phase: str, seed: int, lr: float) -> Job:
    place = f"seed-{seed}" if phase == "verdict" else f"search-lr-{lr:g}"
    folder = x.folder / "runs" / _folder_name(x, arm) / place
    steps = arm.steps if phase == "verdict" else arm.search_steps
    settings = {"seed": seed, "lr": lr, "max_iters": steps}
    if phase == "search":
        settings["eval_every"] = steps  # a search needs only the final score
    elif "eval_every" not in arm.settings:
        settings["eval_every"] = max(1, steps // matching.EVALUATIONS)
    record = {"id": f"{phase} {arm.name} seed {seed} lr {lr:g}", "phase": phase, "arm": arm.name}
    record |= {"seed": seed, "lr": lr, "folder": str(folder.relative_to(x.folder))}
    record |= {"commit": git_commit(), "at_once": 1 if gpus() else x.workers}
    outcome = partial(training_outcome, parameters=arm.axes["total"])
    return Job(record, command(arm, folder, x.threads, **settings), folder, outcome)


def search(x: Experiment) -> dict[str, float | None]:
    """{arm: best learning rate}; without a search the arm's own rate, and None if every rate failed."""
    if not x.spec.learning_rates:
        return {name: arm.lr for name, arm in x.arms.items()}
    while True:
        jobs, rates = [], {}
        for name, arm in x.arms.items():
            given = [tidy(r * arm.lr) if x.spec.factors else r for r in x.spec.learning_rates]
            lines = x.results.of("search", name)
            tried = {line["lr"]: line[x.spec.run_measure] for line in lines}
            rates[name] = best_rate(tried)
            new = next_rates(given, tried)
            jobs += [training_job(x, arm, "search", x.spec.search_seed, lr) for lr in new]
        if not jobs:
            return rates
        run_jobs(jobs, x.results, x.launch, x.workers)


def judge(x: Experiment, rates: dict[str, float | None]) -> None:
    """The runs of the verdict: the first seeds for all arms, the others for pairs not resolved by them."""
    trained = [name for name, lr in rates.items() if lr is not None]
    for name in rates.keys() - trained:
        say(f"{name}: every learning rate of the search failed, so there are no further runs of this arm")

    def run_seeds(names: list[str], seeds: tuple[int, ...]) -> None:
        # Seed by seed, so that the arms can be compared at any time.
        jobs = [training_job(x, x.arms[n], "verdict", s, rates[n]) for s in seeds for n in names]
        run_jobs(jobs, x.results, x.launch, x.workers)
        if x.spec.segments:
            score_by_segment(x)

    run_seeds(trained, x.spec.seeds[:FIRST_SEEDS])
    if rest := x.spec.seeds[FIRST_SEEDS:]:
        found = verdicts(x, x.spec.seeds[:FIRST_SEEDS])
        more = unresolved([v for v in found if {v.first, v.second}.issubset(trained)])
        if more:
            say(f"{FIRST_SEEDS} seeds do not resolve all pairs; {len(rest)} more seeds for {', '.join(more)}")
            run_seeds(more, rest)


def score_by_segment(x: Experiment) -> None:
    """Score every run that ended well."""
    jobs = []
    for name in x.arms:
        for seed, line in x.ended_well(name).items():
            record = {"id": f"segments {name} seed {seed}", "phase": "segments", "arm": name, "seed": seed}
            options = reading_options(x.spec, x.arms[name])
            jobs += checkpoint_job(x, line, record, "evaluation.context", options, segments_outcome)
    run_jobs(jobs, x.results, x.launch, x.workers)


def measure_inference(x: Experiment) -> None:
    """Measure one run of each arm, in turn in one process, each with one row of the longest block_size.

    Arms on other devices or with other threads take turns in a process of their own.
    """
    module = "evaluation.inference_cost"
    options = {"tokens": max(arm.block_size for arm in x.arms.values())}
    together: dict[tuple[str, ...], dict[str, Job]] = {}
    for name in x.arms:
        for line in x.ended_well(name).values():
            record = {"id": f"inference {name}", "phase": "inference", "arm": name}
            if found := checkpoint_job(x, line, record, module, options, written_outcome):
                if record["id"] not in x.results.lines:
                    place = tuple(w for w in found[0].words if w.startswith(("--device=", "--threads=")))
                    together.setdefault(place, {})[name] = found[0]
                break
    for jobs in together.values():
        first = next(iter(jobs.values()))
        words = [*first.words[:2], *(job.words[2] for job in jobs.values()), *first.words[3:]]
        run_jobs([first._replace(words=words)], OfSeveralArms(x.results, list(jobs)), x.launch, workers=1)


class OfSeveralArms:
    """The results, as run_jobs writes them, for a process that measured several arms: one line for each arm."""

    def __init__(self, results: Results, arms: list[str]):
        self.results, self.arms, self.lines = results, arms, {}

    def add(self, record: dict[str, Any]) -> None:
        costs = record.pop("checkpoints", [{} for _ in self.arms])
        for arm, cost in zip(self.arms, costs, strict=True):
            figures = {name: value for name, value in cost.items() if name != "checkpoint"}
            self.results.add(record | {"id": f"inference {arm}", "arm": arm} | figures)


def checkpoint_job(
    x: Experiment,
    line: dict[str, Any],
    record: dict[str, Any],
    module: str,
    options: dict[str, Any],
    outcome: Callable[[Path, int], dict[str, Any]],
) -> list[Job]:
    """A job in which `module` evaluates the newest checkpoint of the run of `line` and writes --out FILE; []
    if the run's folder was deleted.
    """
    arm, checkpoint = x.arms[line["arm"]], latest_checkpoint(x.folder / line["folder"])
    if checkpoint is None:
        return []
    place = record["phase"] + (f"-seed-{record['seed']}" if "seed" in record else "")
    folder = x.folder / "runs" / _folder_name(x, arm) / place
    options = options | {
        "out": folder.with_suffix(".json").resolve(),
        "device": arm.settings.get("device", "auto"),
    }
    if threads := arm.settings.get("threads", x.threads):
        options["threads"] = threads
    words = ["-m", module, str(checkpoint.resolve()), *(f"--{k}={v}" for k, v in options.items())]
    return [Job(record, words, folder, outcome)]


def _folder_name(x: Experiment, arm: PlannedArm) -> str:
    """A folder name that no other arm has, whatever the values of a grid are."""
    return f"{list(x.arms).index(arm.name):02d}-{re.sub(r'[^A-Za-z0-9.=+@-]', '_', arm.name)[:60]}"
