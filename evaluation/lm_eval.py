"""Score a checkpoint on the tasks of lm-evaluation-harness, with chance and interval beside every figure.

    python -m evaluation.lm_eval --checkpoint model --tasks hellaswag,truthfulqa_mc2,mmlu --out scores.json
    python -m evaluation.lm_eval --checkpoint model --tasks humaneval --allow_code_execution
    python -m evaluation.lm_eval --checkpoint model --tasks hellaswag --task_folder DIR

The last one reads DIR/hellaswag.jsonl and needs no Hub.

The tasks and their scoring are those of lm-eval; only the model is ours. The columns:

figure   with its 95 % interval over documents: Wilson's for shares of right answers, Student's t for other means
chance   what picking a choice blindly scores on these documents; 0 for right or wrong without choices, - for neither
cut      share of the requests whose prompt was too long for the model and lost its beginning

"includes chance" marks a figure whose interval has the chance in it: it does not show that the model knows anything.
A task that cannot be loaded is told, and the others go on; the exit code is then 2.
"""

from __future__ import annotations

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import argparse
import contextlib
import logging
import sys
from pathlib import Path
from typing import Any

from common.script import Parser, exit_code, one_line, say
from common.threads import set_threads
from evaluation.from_checkpoint import require_at_least

HEAD = ("task", "metric", "figure", "95 %", "chance", "documents", "cut")
PROBE_ROWS, PROBE_TOKENS = 4, 256  # of the causality probe


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m evaluation.lm_eval",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    told = "checkpoint_<step>.pt, RUN for its newest, RUN/best.json, or a folder of gpt-oss or GPT-2"
    add("--checkpoint", required=True, metavar="CKPT", help=told)
    add(
        "--tasks",
        required=True,
        metavar="NAME,...",
        help="tasks, groups and tags of lm-eval, run one after another",
    )
    add("--limit", type=int, metavar="N", help="the first N documents of each task (default: all)")
    told = "examples in each prompt (default: those of the task, mostly 0)"
    add("--num_fewshot", type=int, metavar="N", help=told)
    told = (
        "DIR/NAME.jsonl has the rows of the task NAME, in its columns, in place of its data set, and "
        "DIR/NAME.fewshot.jsonl those of its examples; YAML files in DIR are further tasks"
    )
    add("--task_folder", type=Path, metavar="DIR", help=told)
    told = (
        "run the programs that the model writes (humaneval, mbpp), each in a process with limits of time and "
        "memory, and without a network where the system allows that; they can read your files"
    )
    add("--allow_code_execution", action="store_true", help=told)
    add("--batch_size", type=int, default=8, metavar="N", help="texts at once (default: 8)")
    add("--seed", type=int, default=1, metavar="N", help="of tasks that sample (default: 1)")
    add("--out", type=Path, metavar="FILE", help="file for the figures (JSON), written after each task")
    add("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N (default: auto)")
    threads = "CPU threads (default: one for each core that is free at the start)"
    add("--threads", type=int, metavar="N", help=threads)
    args = parser.parse_args(argv)
    require_at_least(args, limit=1, num_fewshot=0, batch_size=1, threads=1)
    args.tasks = list(dict.fromkeys(filter(None, map(str.strip, args.tasks.split(",")))))
    if not args.tasks:
        raise ValueError("--tasks must name at least one task, got none; for example --tasks hellaswag")
    if args.task_folder and not args.task_folder.is_dir():
        raise ValueError(
            f"--task_folder must be a folder, got {args.task_folder}; create it, or leave it out"
        )
    if args.out and not args.out.absolute().parent.is_dir():
        raise ValueError(f"--out is in a folder that does not exist, {args.out.parent}; create that first")
    return args


def run(args: argparse.Namespace) -> int:
    from evaluation import harness_tasks

    harness_tasks.require_lm_eval()
    import datasets

    from evaluation.harness_model import generation_arguments

    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every group, option and example
    manager, members = harness_tasks.find_tasks(args.tasks, args.task_folder)
    index, every = manager.task_index, sorted({one for some in members.values() for one in some})
    code = harness_tasks.require_allowed(index, every, args.allow_code_execution)
    model = read_model(args)
    found: dict[str, Any] = {"tasks": {}, "failed": {}, **origin(args)}
    with contextlib.ExitStack() as stack:
        local = stack.enter_context(harness_tasks.local_data(index, every, args.task_folder))
        code_eval = None
        if code:
            from evaluation.code_execution import CodeEval, instead_of_code_eval

            code_eval = CodeEval()
            stack.enter_context(instead_of_code_eval(code_eval))
        for name, tasks in members.items():
            try:
                loaded = harness_tasks.load(manager, name, tasks, local, args.task_folder)
                harness_tasks.require_examples(loaded["tasks"], local, args.task_folder, args.num_fewshot)
                for task in loaded["tasks"].values():
                    if task.OUTPUT_TYPE == "generate_until":
                        generation_arguments(task.get_config("generation_kwargs") or {})
            except ValueError as error:
                found["failed"][name] = one_line(error)
                say(f"evaluation.lm_eval: {name} left out: {found['failed'][name]}")
            else:
                scored = score(args, model, loaded, [one for one in tasks if one in local])
                found["tasks"][name] = scored
                if len(found["tasks"]) == 1:
                    print(line_of(HEAD), flush=True)
                print(as_text(name, scored), flush=True)
            if code_eval is not None and code_eval.network is not None:
                found["network_of_programs"] = code_eval.network
                found["programs_without"] = sorted(code_eval.unlimited)
            if args.out:
                from common.files import write_json_atomic

                write_json_atomic(args.out, found)
    if found.get("network_of_programs"):
        say("the programs had a network: this system makes no network namespace for this user")
    if found.get("programs_without"):
        say(
            f"the programs ran without {', '.join(found['programs_without'])}, which this system does not set"
        )
    return 2 if found["failed"] else 0


def read_model(args: argparse.Namespace) -> Any:
    """The model as lm-eval takes it, after the causality probe."""
    from architecture.checkpoint import find_checkpoint
    from architecture.registry import load_model
    from common.device import choose_device
    from evaluation.harness_model import harness_class
    from training.causality import require_causal

    if line := set_threads(args.threads, common.begin.STARTED):
        say(line)
    device = choose_device(args.device)
    model = load_model(find_checkpoint(args.checkpoint, say), device=device)
    asked = harness_class()(model, batch_size=args.batch_size, seed=args.seed)  # raises before the probe
    tokens = min(PROBE_TOKENS, asked.limit)
    for probe in require_causal(model, PROBE_ROWS, tokens, device=device, autocast=contextlib.nullcontext):
        say(probe.line)
    return asked


def origin(args: argparse.Namespace) -> dict[str, Any]:
    """What is stored with the figures."""
    from importlib.metadata import version

    from common.provenance import provenance

    kept = {name: getattr(args, name) for name in ("limit", "num_fewshot", "seed", "batch_size")}
    return {"checkpoint": args.checkpoint, "lm_eval": version("lm-eval"), **kept, **provenance()}


def score(args: argparse.Namespace, model: Any, loaded: dict[str, Any], local: list[str]) -> dict[str, Any]:
    """The figures of what was loaded for one name, and what had to be cut."""
    import lm_eval

    from evaluation import harness_tasks
    from evaluation.harness_model import Counts

    model.counts = Counts()
    harness_tasks.prepare(loaded["tasks"].values(), args.num_fewshot)
    # simple_evaluate would also list the packages and devices of the machine each time, which takes long
    results = lm_eval.evaluate(
        lm=model,
        task_dict=loaded,
        limit=args.limit,
        bootstrap_iters=1000,
        log_samples=True,
        confirm_run_unsafe_code=args.allow_code_execution,
    )
    counts = model.counts
    return {
        "scores": harness_tasks.figures(results, loaded["tasks"]),
        "requests": counts.requests,
        "prompts_cut": counts.cut,
        "share_cut": counts.cut / max(1, counts.requests),
        "answers_shortened": counts.shortened,
        "context": model.limit,
        "versions": {name: str(version) for name, version in results.get("versions", {}).items()},
        "local_data": local,
    }


def as_text(name: str, scored: dict[str, Any]) -> str:
    """The lines of one name: a group's own figures and those of its groups, or those of its tasks."""
    scores = scored["scores"]
    groups = [one for one in scores if "tasks" in scores[one]]
    lines = []
    for one in groups or scores:
        for row in scores[one]["figures"]:
            value, limits, chance = row["value"], row["interval"], row["chance"]
            share = chance is not None
            shown = as_share if share else as_number
            several = len({other["filter"] for other in scores[one]["figures"]}) > 1
            metric = f"{row['metric']},{row['filter']}" if several else row["metric"]
            words = (
                one,
                metric,
                "-" if value is None else shown(value),
                "-" if limits is None else f"{shown(limits[0])} to {shown(limits[1])}",
                as_share(chance) if share else "-",
                f"{scores[one]['documents']:,}",
                f"{scored['share_cut']:.1%}",
            )
            at_chance = share and limits is not None and limits[0] <= chance <= limits[1]
            lines.append(line_of(words) + ("   includes chance" if at_chance else ""))
    if scored["prompts_cut"]:
        lines.append(
            f"{name}: {scored['prompts_cut']:,} of {scored['requests']:,} prompts lost their beginning, because the "
            f"model reads {scored['context']:,} tokens"
        )
    if scored["answers_shortened"]:
        lines.append(
            f"{name}: {scored['answers_shortened']:,} answers may have {scored['context'] // 2:,} tokens, half of "
            "the context, because the task allows as many as the context or more"
        )
    return "\n".join(lines)


def as_share(value: float) -> str:
    return f"{value:.1%}"


def as_number(value: float) -> str:
    return f"{value:.4f}"


def line_of(words: tuple[str, ...]) -> str:
    task, metric, *rest = words
    return f"{task:<24} {metric:<14} " + " ".join(
        f"{word:>{width}}" for word, width in zip(rest, (10, 18, 8, 10, 7))
    )


def main(argv: list[str] | None = None) -> int:
    return exit_code("evaluation.lm_eval", lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
