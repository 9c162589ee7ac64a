"""Print hashes of 20 toy steps. A change that alters no number leaves them the same.

    python -m benchmarks.same_bits

Prints a sha256 for train.py, for train_context.py, and for train.py killed after step 10 and resumed, which
must be the same as for train.py. A hash covers weights, optimizer state, random state, data position, and
every logged number but those of NOT_HASHED. Compare two commits on the same machine: another CPU
rounds differently.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
FLAGS = (
    "--dataset bundled --threads 1 --device cpu --max_iters 20 --save_every 10 --eval_every 10 --log_every 1 "
    "--eval_tokens 2048 --final_eval_tokens 2048 --no-use_tensorboard --out_dir model"
).split()
HASHED = ("model", "optimizers", "rng", "data")
NOT_HASHED = (
    *("perf/", "final/seconds", "final/tokens_per_second"),  # from the clock
    # logged since after hashes were written down; they change no other number
    *("moe/choice_margin", "moe/router_logit_grad_rms", "moe/update_to_weight"),
)


def update(digest: Any, value: Any) -> None:
    """Add a value to the digest: a tensor's bytes, a container's items, the repr of anything else."""
    if isinstance(value, torch.Tensor):
        digest.update(value.contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for name, item in value.items():
            digest.update(str(name).encode())
            update(digest, item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            update(digest, item)
    else:
        digest.update(repr(value).encode())


def bits(out_dir: Path) -> str:
    """The hash of a run at step 20."""
    state, digest = torch.load(out_dir / "checkpoint_20.pt", weights_only=True), hashlib.sha256()
    for name in HASHED:
        update(digest, state[name])
    for line in (out_dir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        update(digest, {k: v for k, v in sorted(record.items()) if not k.startswith(NOT_HASHED)})
    return digest.hexdigest()


def start(folder: Path, script: str, *flags: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / script), *flags]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )


def main() -> int:
    for name, script in (("train", "train.py"), ("train_context", "train_context.py")):
        with tempfile.TemporaryDirectory() as folder:
            if start(Path(folder), script, *FLAGS).wait():
                raise SystemExit(f"{script} failed; run it by hand to see its message")
            print(f"{name:<14} {bits(Path(folder) / 'model')}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        process = start(Path(folder), "train.py", *FLAGS)
        while not (Path(folder) / "model/checkpoint_10.pt").exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (Path(folder) / "model/checkpoint_20.pt").exists():
            raise SystemExit("the run ended before it could be killed; try again")
        if start(Path(folder), "train.py", "--resume", "--out_dir", "model").wait():
            raise SystemExit("the resumed run failed")
        print(f"{'resumed':<14} {bits(Path(folder) / 'model')}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
