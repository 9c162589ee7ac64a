"""Measure the memory of the host that each of two ranks takes until its first step.

    python -m benchmarks.host_memory     writes benchmarks/results/host_memory.json

A model of about 300 MB in float32, with Adam's averages of 600 MB, starts on two CPU ranks with --parallel fsdp+ep: new,
from the weights of another run (plain, sharded, and exported in two ways), and as the continuation of a run of one
rank (plain and sharded). Figures are the larger of both ranks, less what a rank takes before the start. On a CPU the
parts that a rank keeps are in the memory of the host, and on a GPU they are not.

peak_gb        peak resident memory, with the pages of mapped files, which all ranks of a machine share
anonymous_gb   the same without those pages; a thread looks every millisecond
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.publish import publish

ROOT = Path(__file__).resolve().parents[1]
MODEL = (
    "--model_size toy --num_experts 24 --hidden_size 256 --intermediate_size 1024 --tokenizer bundled1536 "
    "--optimizer adamw --batch_size 2 --block_size 32 --device cpu --threads 1 --max_iters 3 --save_every 1 --eval_every 3 "
    "--eval_tokens 64 --final_eval_tokens 64 --no-use_tensorboard --dataset bundled"
).split()
STARTS = {
    "new": [],
    "init_from plain": ["--init_from", "plain/checkpoint_1.pt"],
    "init_from sharded": ["--init_from", "sharded/checkpoint_1.pt"],
    "init_from hf": ["--init_from", "hf"],
    "init_from mxfp4": ["--init_from", "mxfp4"],
    "resume plain": ["--resume_from", "plain/checkpoint_1.pt", "--grad_accum", "1"],
    "resume sharded": ["--resume_from", "sharded/checkpoint_1.pt", "--grad_accum", "1"],
}


def status(name: str) -> float:
    """A line of /proc/self/status in GB."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e9


class Peak:
    """The peaks of this process from the moment this is made on."""

    def __init__(self):
        self.before, self.anonymous, self.ended = (status("VmRSS"), status("RssAnon")), 0.0, False
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()

    def look(self) -> None:
        while not self.ended:
            self.anonymous = max(self.anonymous, status("RssAnon"))
            time.sleep(0.001)

    def figures(self) -> dict[str, float]:
        self.ended = True
        self.thread.join()
        resident, anonymous = self.before
        return {"peak_gb": status("VmHWM") - resident, "anonymous_gb": self.anonymous - anonymous}


class Ended(Exception):
    """The first step begins."""


def rank(flags: list[str]) -> None:
    """Start a run, and print the peaks of all ranks when its first step begins."""
    from training import trainer
    from training.command_line import parse_command_line
    from training.config import TrainConfig
    from training.distributed.mesh import joined_ranks
    from training.train_command import model_fields, run_on

    def stop(*_, **__):
        raise Ended

    trainer.train_step = stop
    command = parse_command_line(flags, model_fields, config_class=TrainConfig)
    with joined_ranks() as ranks:
        # imports are not counted
        import architecture.gptoss  # noqa: F401
        import training.distributed.shard  # noqa: F401
        import training.distributed.sharded_checkpoint  # noqa: F401

        peak = Peak()
        with contextlib.suppress(Ended):
            run_on(ranks, command)
        found = ranks.gather(peak.figures())
        if ranks.writes:
            print(json.dumps({name: max(one[name] for one in found) for name in found[0]}), flush=True)


def measure(folder: Path, flags: list[str]) -> dict[str, float]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "memory"}
    command = [sys.executable, "-m", "benchmarks.host_memory", "--rank", *flags]
    processes = [
        subprocess.Popen(
            command, cwd=folder, env=environment | {"RANK": str(n), "LOCAL_RANK": str(n)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for n in range(2)
    ]  # fmt: skip
    told = [process.communicate() for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("".join(err for _, err in told))
    return json.loads(told[0][0].splitlines()[-1])


def call(folder: Path, *words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)


def main() -> int:
    if sys.argv[1:2] == ["--rank"]:
        rank(sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-write", action="store_true", help="print the figures only")
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        call(folder, str(ROOT / "train.py"), *MODEL, "--grad_accum", "2", "--keep", "3", "--out_dir", "plain")
        plain = folder / "plain/checkpoint_1.pt"
        (folder / "sharded").mkdir()
        convert = "training.distributed.sharded_checkpoint"
        call(folder, "-m", convert, "--checkpoint", str(plain), "--output", "sharded/checkpoint_1.pt")
        export = "-m", "architecture.open_gpt_oss", "export", "--checkpoint", str(plain), "--format", "hf"
        call(folder, *export, "--output_dir", "hf", "--drop_selection_bias")
        call(folder, *export, "--output_dir", "mxfp4", "--mxfp4", "--drop_selection_bias")
        for other in (folder / "plain").glob("checkpoint_[23].pt"):
            other.unlink()
        (folder / "plain/best.json").unlink(missing_ok=True)
        (folder / "plain/metrics.jsonl").unlink()
        for start, flags in STARTS.items():
            flags = [*flags, "--parallel", "fsdp+ep"]
            if not start.startswith("resume"):
                own = [flag for flag in MODEL] if start == "new" else MODEL[8:]
                flags = [*own, *flags, "--out_dir", start.replace(" ", "_")]
            found[start] = measure(folder, flags)
            print(
                f"{start:18} peak {found[start]['peak_gb']:.3f} GB, anonymous {found[start]['anonymous_gb']:.3f} GB"
            )
    if not arguments.no_write:
        publish("host_memory", {"flags": " ".join(MODEL), "ranks": 2, "starts": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
