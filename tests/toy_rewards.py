"""What the tests of GRPO and PPO share: a base, prompts of unequal lengths, and a reward that can be learned."""

import json
from pathlib import Path

from toy_run import TINY, run_here, write_corpus

EASY = "first half"  # the share of letters up to m
FLAGS = (
    "--dataset tasks.jsonl --val_dataset held.jsonl --story_dataset bundled --init_from base --no-use_tensorboard "
    "--threads 1 --max_response 8 --block_size 16 --eval_tokens 64 --final_eval_tokens 64 --warmup 0"
).split()


def easy(response) -> float:
    letters = [c for c in response.text.lower() if c.isalpha()]
    return sum(c <= "m" for c in letters) / max(1, len(letters))


def write_start(folder: Path) -> None:
    """Write base, a model of two steps, and 40 prompts, of which tasks.jsonl has 30 and held.jsonl 10."""
    flags = [*TINY, *write_corpus(folder), "--initial_context_length", 32, "--no-use_tensorboard"]
    assert run_here(folder, *flags, "--max_iters", 2, "--out_dir", "base") == 0
    lines = [{"prompt": f"{'Once ' * (n % 3)}{n} ", "response": "yes", "words": ["yes"]} for n in range(40)]
    for name, some in (("tasks", lines[:30]), ("held", lines[30:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in some))
