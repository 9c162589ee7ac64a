"""How a run goes on by itself after torchrun has started its processes again (torchrun --max-restarts)."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from common.files import read_json, reading
from common.script import say
from training.command_line import CommandLine
from training.config import CHANGES_BITS, DATA, RESUMABLE_CHANGES
from training.distributed.mesh import Ranks, job
from training.state import checkpoint, out_dir
from training.state.run import closing_step


def after_restart(ranks: Ranks, command: CommandLine) -> CommandLine | None:
    """The command of a process that torchrun started again after a failure; None if the run is finished.

    A run of this job goes on from its newest checkpoint, or begins anew if it has none. A run of another job is
    not touched: the command then fails as it did at first.
    """
    # torchrun counts the restarts of each node by its own failures
    if {*ranks.gather(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))} == {"0"}:
        return command
    cfg = command.config
    if cfg.eval_only or cfg.dry_run:
        return command
    folder = Path(cfg.out_dir)
    if cfg.resume_from and "out_dir" not in command.given:
        folder = Path(cfg.resume_from).parent
    # config.json has the name of the first rank; without --rdzv_id, other nodes have other names
    name = ranks.gather(job())[0]
    with ranks.together():
        owner, length = last_start(folder, name)
        if owner != name:
            return command
        saved, begun = checkpoint.latest_checkpoint(folder), out_dir.is_without_checkpoint(folder)
        last = closing_step(folder)
    if begun:
        with ranks.together():
            if ranks.writes:
                out_dir.forget(folder)
    if not saved:
        return command
    if last is not None and last >= length:
        if ranks.writes:
            say(f"the run in {folder} is finished")
        return None
    # What the checkpoint decides is not asked for again: a flag may name a file that has changed since.
    free = RESUMABLE_CHANGES | CHANGES_BITS | {*DATA}
    cfg = replace(cfg, out_dir=str(folder), resume=True, resume_from=None, extend=None, init_from=None)
    if ranks.writes:
        say(f"torchrun started this run again; it goes on from {saved}")
    return command._replace(config=cfg, model_overrides={}, given=command.given & free | {"out_dir"})


def last_start(folder: Path, name: str | None) -> tuple[str | None, int]:
    """The job that last started the run in a folder, and the steps of that run, 0 for a run by minutes.

    name: that of this job. A folder without config.json and without a checkpoint may be of this job, which failed
    before it wrote them.
    """
    path = folder / "config.json"
    if not path.exists():
        return None if checkpoint.latest_checkpoint(folder) else name, 0
    with reading(path, "the settings and starts of a run"):
        facts = read_json(path)
        return facts["starts"][-1].get("job"), facts["train"]["max_iters"] or 0
