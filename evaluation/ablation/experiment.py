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
from architecture.tokenizer import get_tokenizer
from common.begin import STARTED
from common.device import choose_device
from common.provenance import git_commit
from common.script import say
from common.threads import set_threads
from data.documents import Source, common_documents
from data.sources import AUTO, choose_dataset, open_dataset
from data.test_split import read_test_set
from evaluation.ablation import contracts, matching, plan_file, write_up
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
from evaluation.ablation.matching import PlannedArm
from evaluation.ablation.plan_file import Plan
from evaluation.ablation.plan_text import plan_text
from evaluation.ablation.rates import means, next_rates, optimum, scores_of, tidy
from evaluation.ablation.results import Results, test_outcome, training_outcome, written_outcome
from evaluation.ablation.segments import reading_options, segments_outcome
from evaluation.ablation.spec import Spec, read_spec
from evaluation.ablation.verdict import Ablation, unresolved, verdicts
from training.monitor.metrics import new_run_dir
from training.state.checkpoint import latest_checkpoint

REPORTS = Path("runs") / "ablations"
PACE_ROUNDS = 3
PACE_RATE = 1e-6  # a learning rate with which no run diverges; the pace does not depend on it


@dataclass(frozen=True)
class Experiment(Ablation):
    """Shared by all phases. Its arms are those under the first contract."""

    plan: Plan
    content: str  # plan_file.content_sha256 of the plan, in every line of the results
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
    stored = plan_file.read(path if path.suffix == ".json" else None)
    if stored and stored.older:
        raise ValueError(
            f"{path} is of an earlier version of ablate.py, whose runs had no test set; its results can be judged "
            "again, but to repeat its runs start from the specification"
        )
    if stored and stored.sha256 != spec.sha256:
        changed = ", ".join(f"--{name}" for name in over_base) or "its specification was edited"
        raise ValueError(
            f"{path} repeats the runs of an earlier report, and their settings must not change ({changed}); start "
            "from the specification instead"
        )
    folder = _earlier(spec, out_dir) if resume else None
    stored = _stored(folder, spec, path) if folder else stored
    whole = stored.plan if stored else contracts.planned(spec)
    for arm in whole.every.values() if stored else ():
        plan_file.require_same_model(arm, folder or path)
    print(plan_text(spec, whole), flush=True)
    if plan:
        return
    _require_trainable(whole.every)
    whole, lines = _with_data(whole)
    folder = folder or _new_folder(spec, out_dir)
    for line in lines:
        say(line)
    threads = (stored and stored.threads) or threads_of_runs(whole.arms, jobs)
    with as_interrupt(), Results(folder / "results.jsonl") as results:
        try:
            x = Experiment(spec, whole.arms, folder, results, whole, "", threads, launch, jobs)
            if contracts.is_unmeasured(spec, whole):
                whole = _with_lengths(x)
            if not (folder / plan_file.NAME).exists():
                plan_file.write(folder / plan_file.NAME, spec, whole, threads)
            x = replace(x, arms=whole.arms, plan=whole, content=_settled(folder, results))
            forget_untested(x)
            judge(x)
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


def _stored(folder: Path, spec: Spec, path: Path) -> plan_file.StoredPlan | None:
    """The plan of an earlier start in the folder; None if that start was killed before it wrote one."""
    stored, results = plan_file.read(folder / plan_file.NAME), folder / "results.jsonl"
    if stored is None and not (results.is_file() and results.stat().st_size == 0):
        raise ValueError(
            f"--resume needs the folder of an earlier start, and {folder} has no {plan_file.NAME}; give "
            "another folder with --out_dir, or start without --resume"
        )
    if stored and stored.older:
        raise ValueError(
            f"{folder} holds results of an earlier version of ablate.py, whose runs had no test set; start a new "
            "report without --resume"
        )
    if stored and stored.sha256 != spec.sha256:
        changed = ", ".join(plan_file.changed_keys(folder / plan_file.NAME, spec))
        raise ValueError(
            f"{folder} holds results of another specification than {path} with these flags (different: {changed}); "
            "resume with what it was started with, or start a new report without --resume"
        )
    return stored


def _settled(folder: Path, results: Results) -> str:
    """The hash of the plan in the folder. Raises ValueError if results were made under another one."""
    content = plan_file.read(folder / plan_file.NAME).content
    if others := {line.get("plan") for line in results.lines.values()} - {content}:
        raise ValueError(
            f"{folder / plan_file.NAME} was changed after the first run: its hash is {content[:12]}, and results.jsonl "
            f"has runs under {', '.join(sorted(str(other)[:12] for other in others))}; restore the plan, or start a "
            "new report without --resume"
        )
    say(f"plan sha256 {content}, commit {git_commit()}; fixed before the first run")
    return content


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


def _with_data(plan: Plan) -> tuple[Plan, list[str]]:
    """The plan with `auto` resolved once, because the Hub may become unreachable while the arms train; and
    remarks on the data. Raises ValueError now for data that is missing, and for a test set that is too small.
    """
    if any(arm.settings.get("dataset", AUTO) == AUTO for arm in plan.every.values()):
        chosen = choose_dataset(AUTO, say)
        plan = plan.with_each(lambda arm: arm.with_dataset(chosen))
    lines = []
    for name, arm in plan.arms.items():
        with matching.naming(name):
            both = train, validation = [open_data(arm, split) for split in ("train", "validation")]
            for line in common_documents(*both):
                lines.append(f"arm {name}: {line}")
            if name == next(iter(plan.arms)):  # all arms are scored on the same validation data
                tokenizer = get_tokenizer(matching.resolve(name, arm.settings)[0].tokenizer)
                _, test_set = read_test_set(validation, tokenizer)
                lines.append(f"test set, for the verdicts only: {test_set} of {validation.name}")
    return plan, lines


def open_data(arm: PlannedArm, split: str) -> Source:
    cfg, _ = matching.resolve(arm.name, arm.settings)
    return open_dataset(cfg.dataset, split=split, val_dataset=cfg.val_dataset, text_column=cfg.text_column)


def _with_lengths(x: Experiment) -> Plan:
    """The plan with its lengths, which follow from measured tokens per step and measured paces."""
    plan = x.plan.with_each(_with_tokens)
    pace = _paces(x, contracts.paced(x.spec, plan)) if matching.needs_pace(x.spec) else {}
    plan = contracts.with_lengths(x.spec, plan, pace)
    print(plan_text(x.spec, plan), flush=True)
    return plan


def _with_tokens(arm: PlannedArm) -> PlannedArm:
    if arm.tokens_per_step is not None:
        return arm
    cfg, _ = matching.resolve(arm.name, arm.settings)
    return replace(arm, tokens_per_step=matching.tokens_per_step_of_lanes(cfg, open_data(arm, "train")))


def _paces(x: Experiment, arms: list[PlannedArm]) -> dict[str, float]:
    """Seconds per token of each arm: the median of rounds in which all arms take turns, because the speed of
    a machine drifts.
    """
    pace, never = {arm.name: [] for arm in arms}, 10**9
    for turn in range(PACE_ROUNDS):
        for arm in arms:
            say(f"{arm.name}: measuring the pace, round {turn + 1} of {PACE_ROUNDS}")
            folder, settings = (
                x.folder / "pace",
                {"lr": PACE_RATE, "seed": x.spec.search_seeds[0], "log_every": 1},
            )
            settings |= {"max_minutes": 10, "eval_every": never, "save_every": never}
            words = command(arm, folder, x.threads, **settings)
            with matching.naming(arm.name):
                pace[arm.name].append(seconds_per_token(words, folder, x.launch))
    return {name: statistics.median(rounds) for name, rounds in pace.items()}


# ------------------------------------------------------------------------------------ the runs


def command(arm: PlannedArm, out_dir: Path, threads: int | None, **settings) -> list[str]:
    """The words after `python` that train an arm."""
    script = str(ROOT / matching.config_class(arm.settings).program)
    defaults = {"keep": 1, "threads": threads}
    if arm.settings.get("final_eval_tokens") in (None, "none"):
        settings["final_eval_tokens"] = "all"  # arms of other lengths are scored on the same text
    ours = {"recipe": "none", "use_tensorboard": False, "out_dir": str(out_dir.resolve())}
    ours |= {"hold_out_test": True}  # in the search, too: only verdicts look at the test set
    return [script, *matching.flags(defaults | arm.settings | settings | ours)]


def training_job(x: Experiment, arm: PlannedArm, phase: str, seed: int, lr: float) -> Job:
    place = f"seed-{seed}" if phase == "verdict" else f"search-lr-{lr:g}-seed-{seed}"
    folder = x.folder / "runs" / _folder_name(x, arm.name) / place
    steps = arm.steps if phase == "verdict" else arm.search_steps
    settings = {"seed": seed, "lr": lr, "max_iters": steps}
    if phase == "search":
        settings["eval_every"] = steps  # a search needs only the final score
    elif "eval_every" not in arm.settings:
        settings["eval_every"] = max(1, steps // matching.EVALUATIONS)
    record = {"id": f"{phase} {arm.name} seed {seed} lr {lr:g}", "phase": phase, "arm": arm.name}
    record |= {"seed": seed, "lr": lr, "folder": str(folder.relative_to(x.folder))}
    record |= {"commit": git_commit(), "plan": x.content, "at_once": 1 if gpus() else x.workers}
    outcome = partial(training_outcome, parameters=arm.axes["total"])
    return Job(record, command(arm, folder, x.threads, **settings), folder, outcome)


def search(x: Experiment, arms: list[PlannedArm]) -> dict[str, float | None]:
    """{arm: learning rate of its verdict}; without a search the arm's own, and None if every rate failed."""
    if not x.spec.learning_rates:
        return {arm.name: arm.lr for arm in arms}
    while True:
        jobs, rates = [], {}
        for arm in arms:
            given = [tidy(r * arm.lr) if x.spec.factors else r for r in x.spec.learning_rates]
            scores = scores_of(x.results.of("search", arm.name), x.spec.run_measure, x.spec.search_seeds)
            rates[arm.name] = optimum(scores).rate
            for lr in next_rates(given, means(scores)):
                jobs += [training_job(x, arm, "search", seed, lr) for seed in x.spec.search_seeds]
        if not jobs:
            break
        run_jobs(jobs, x.results, x.launch, x.workers)
    for name in [name for name, lr in rates.items() if lr is None]:
        say(f"{name}: every learning rate of the search failed, so there are no further runs of this arm")
    return rates


def judge(x: Experiment) -> None:
    """The runs of the verdicts: all arms under the first contract, then what the other contracts need."""
    rates = search(x, list(x.arms.values()))
    run_pairs(x, x, rates)
    if len(x.spec.contracts) == 1 and not x.plan.shares:
        return
    if (best := choose(x)) is None:
        say("no other arm ended well, so the other contracts are not run")
        return
    versions = contracts.versions_of(x.plan, best)
    own = search(x, [x.plan.further[name] for name in versions])
    shares = dict.fromkeys(x.plan.shares, rates[x.spec.reference])
    run_pairs(x, contracts.family(x, x.plan, versions), rates | own, shares)


def choose(x: Experiment) -> str | None:
    """The best other arm, recorded once, so that it stays the same."""
    if (best := contracts.chosen(x)) is None and (best := contracts.best_other(x)) is not None:
        record = {"id": "choice", "phase": "choice", "arm": best, "status": "ok", "message": ""}
        x.results.add(record | {"commit": git_commit(), "plan": x.content})
        say(f"{best}: the best mean validation score of the other arms, so the other contracts are for it")
    return best


def run_pairs(
    x: Experiment,
    family: Ablation,
    rates: dict[str, float | None],
    shares: dict[str, float | None] | None = None,
) -> None:
    """Train the arms of a family at the first seeds, and those of its unresolved pairs at the others.

    shares: arms without a pair, with their rates, which are trained at every seed of the reference.
    """
    trained = {name: lr for name in family.arms if (lr := rates.get(name)) is not None}
    shares = {name: lr for name, lr in (shares or {}).items() if lr is not None}

    def run_seeds(arms: dict[str, float], seeds: tuple[int, ...]) -> None:
        # Seed by seed, so that the arms can be compared at any time.
        jobs = [training_job(x, x.plan.every[n], "verdict", s, lr) for s in seeds for n, lr in arms.items()]
        run_jobs(jobs, x.results, x.launch, x.workers, then=lambda record: test_jobs(x, record))
        score_test_set(x)
        if x.spec.segments:
            score_by_segment(x)

    number = x.spec.first_seeds
    first, rest = x.spec.seeds[:number], x.spec.seeds[number:]
    run_seeds(trained | shares, first)
    if rest:
        found = verdicts(family, first)
        more = unresolved([v for v in found if {v.first, v.second} <= trained.keys()])
        if more:
            say(f"{number} seeds do not resolve all pairs; {len(rest)} more seeds for {', '.join(more)}")
        run_seeds({name: trained[name] for name in more}, rest)
        ran = {line["seed"] for line in x.results.of("verdict", x.spec.reference)}
        run_seeds(shares, tuple(seed for seed in rest if seed in ran))


def test_jobs(x: Experiment, line: dict[str, Any]) -> list[Job]:
    """The job that scores the checkpoint of a run of the verdict on the test set; [] if it did not end well."""
    if line["phase"] != "verdict" or line["status"] != "ok":
        return []
    name, seed = line["arm"], line["seed"]
    record = {"id": f"test {name} seed {seed}", "phase": "test", "arm": name, "seed": seed}
    outcome = partial(test_outcome, report=x.folder)
    place = x.folder / "test" / f"{_folder_name(x, name)}-seed-{seed}"
    return checkpoint_job(x, line, record, "evaluation.test_set", {}, outcome, place)


def score_test_set(x: Experiment) -> None:
    """Score the runs that ended well and whose scores are missing, because a kill came between the two."""
    jobs = [job for line in x.results.of("verdict") for job in test_jobs(x, line)]
    run_jobs(jobs, x.results, x.launch, x.workers)


def forget_untested(x: Experiment) -> None:
    """Train a run again if it has no test score and its checkpoint is gone, as in a copy of a report."""
    for line in x.results.of("verdict"):
        scored = f"test {line['arm']} seed {line['seed']}" in x.results.lines
        if line["status"] == "ok" and not scored and not test_jobs(x, line):
            say(f"{line['id']}: its checkpoint is gone, and it has no test score yet; it is trained again")
            del x.results.lines[line["id"]]


def score_by_segment(x: Experiment) -> None:
    """Score every run that ended well."""
    jobs = []
    for name in x.plan.every:
        for seed, line in x.ended_well(name).items():
            record = {"id": f"segments {name} seed {seed}", "phase": "segments", "arm": name, "seed": seed}
            options = reading_options(x.spec, x.plan.every[name]) | {"test_set": None}
            jobs += checkpoint_job(x, line, record, "evaluation.context", options, segments_outcome)
    run_jobs(jobs, x.results, x.launch, x.workers)


def measure_inference(x: Experiment) -> None:
    """Measure one run of each arm, in turn in one process, each with one row of the longest block_size.

    Arms on other devices or with other threads take turns in a process of their own.
    """
    module = "evaluation.inference_cost"
    options = {"tokens": max(arm.block_size for arm in x.arms.values())}
    together: dict[tuple[str, ...], dict[str, Job]] = {}
    for name in [name for name in x.plan.every if name not in x.plan.shares]:
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
    place: Path | None = None,
) -> list[Job]:
    """A job in which `module` evaluates the newest checkpoint of the run of `line` and writes --out FILE; []
    if the run's folder was deleted.

    options: flags of the module; None for a flag without a value.  place: the file, without its ending.
    """
    name, checkpoint = line["arm"], latest_checkpoint(x.folder / line["folder"])
    if checkpoint is None:
        return []
    arm, record = x.plan.every[name], record | {"commit": git_commit(), "plan": x.content}
    stem = record["phase"] + (f"-seed-{record['seed']}" if "seed" in record else "")
    place = place or x.folder / "runs" / _folder_name(x, name) / stem
    options = options | {
        "out": place.with_name(place.name + ".json").resolve(),
        "device": arm.settings.get("device", "auto"),
    }
    if threads := arm.settings.get("threads", x.threads):
        options["threads"] = threads
    flags = [f"--{key}" if value is None else f"--{key}={value}" for key, value in options.items()]
    return [Job(record, ["-m", module, str(checkpoint.resolve()), *flags], place, outcome)]


def _folder_name(x: Experiment, name: str) -> str:
    """A folder name that no other arm has, whatever the values of a grid are."""
    return f"{list(x.plan.every).index(name):02d}-{re.sub(r'[^A-Za-z0-9.=+@-]', '_', name)[:60]}"
