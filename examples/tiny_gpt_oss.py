"""Train a tiny gpt-oss and write it in every format, with golden results for the tests of other programs.

    make tiny-gpt-oss                       no network
    python examples/tiny_gpt_oss.py --out_dir tiny_gpt_oss

The model has all of gpt-oss (alternating windows, sinks, YaRN, clamped SwiGLU) in 0.9 M parameters, and it
tells stories. Its experts are rounded to MXFP4 after the training, so that all formats hold the same numbers:

    original/ hf/ mxfp4/ gguf/ mlx/
    golden.json          greedy texts, and the log-probability of each token of a text that is longer than the
                         windows and than YaRN's initial context: "exact" for original, hf and mxfp4, and one set for
                         each of gguf and mlx, whose programs round YaRN's limits

Training, and so every file, is the same to the bit wherever PyTorch adds in the same order; SHA256SUMS tells whether
two machines made the same files. A call that was interrupted goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import hashlib
import shutil
from typing import Any

import torch

import train
from architecture.checkpoint import checkpoints, find_checkpoint, read_checkpoint
from architecture.generation.text import encode_prompt, generate_text
from architecture.open_gpt_oss.export import write_folder
from architecture.open_gpt_oss.verify_engines import round_yarn
from architecture.open_gpt_oss.weights import read_folder
from architecture.registry import load_model
from common.files import as_json, atomic_write
from common.script import Parser, exit_code, say
from data.stories import TRAIN_STORIES, story

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "tiny_gpt_oss.yaml"
LAYOUTS = ("original", "hf", "gguf", "mlx")
PROMPTS = ("Once upon a time", "The dog was", "Anna looked for her")
NEW_TOKENS = 60
LONG = 400  # tokens of the text that is scored: more than 16 windows of 24, and more than 256 before YaRN


def trained(folder: Path, steps: int | None) -> Path:
    """The checkpoint of the finished run in a folder, which is trained or continued if needed."""
    flags = (
        ["--config", str(CONFIG)] if steps is None else ["--config", str(CONFIG), "--max_iters", str(steps)]
    )
    if checkpoints(folder):
        saved = read_checkpoint(find_checkpoint(folder))
        if saved["step"] == saved["train_config"]["max_iters"]:
            return find_checkpoint(folder)
        flags = ["--resume"]
    code = train.main([*flags, "--out_dir", str(folder), "--threads", "1", "--no-use_tensorboard"])
    if code:
        raise SystemExit(code)
    return find_checkpoint(folder)


def long_text() -> str:
    """Stories that the training has not seen, one behind the other."""
    return "\n\n".join(story(TRAIN_STORIES + number).text for number in range(8))


@torch.no_grad()
def golden(model: Any) -> dict[str, Any]:
    """Greedy continuations of PROMPTS, and the log-probability of each token of the long text but the first."""
    ids = torch.tensor([encode_prompt(model.tokenizer, long_text())[:LONG]])
    log_probabilities = model(ids).logits[:, :-1].double().log_softmax(-1)
    scored = log_probabilities.gather(-1, ids[:, 1:, None]).flatten()
    return {
        "greedy": {prompt: generate_text(model, prompt, NEW_TOKENS, 0.0) for prompt in PROMPTS},
        "ids": ids.flatten().tolist(),
        "log_probabilities": [round(value, 6) for value in scored.tolist()],
    }


def run(argv: list[str] | None) -> None:
    parser = Parser(prog="tiny_gpt_oss.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out_dir", default="tiny_gpt_oss", metavar="DIR", help="(default: tiny_gpt_oss)")
    parser.add_argument(
        "--max_iters", type=int, metavar="N", help="steps of the training (default: the recipe's)"
    )
    args = parser.parse_args(argv)
    out = Path(args.out_dir)
    path = trained(out / "run", args.max_iters)
    for name in ("mxfp4", *LAYOUTS):
        shutil.rmtree(out / name, ignore_errors=True)
    card = dict(path=path, changes=[], watts=None)
    saved = read_checkpoint(path)
    write_folder(saved, out / "mxfp4", layout="hf", pack=True, card=card)
    rounded = {**saved, "model": read_folder(out / "mxfp4")["model"]}  # the same numbers, in float32
    card["changes"] = ["The experts were rounded to MXFP4, so that all formats hold the same numbers."]
    for layout in LAYOUTS:
        write_folder(rounded, out / layout, layout=layout, card=card)
    sets = {}
    for name in ("exact", "gguf", "mlx"):
        model = load_model(out / "hf")
        if name != "exact":
            round_yarn(model, name)
        sets[name] = golden(model)
    with atomic_write(out / "golden.json") as file:
        file.write(as_json(sets))
    files = sorted(
        p for p in out.rglob("*") if p.suffix in (".safetensors", ".gguf") or p.name == "golden.json"
    )
    sums = "".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(out)}\n" for p in files)
    with atomic_write(out / "SHA256SUMS") as file:
        file.write(sums.encode())
    say(f"wrote {', '.join(('mxfp4', *LAYOUTS))}, golden.json and SHA256SUMS to {out}")
    print(sets["exact"]["greedy"][PROMPTS[0]])


if __name__ == "__main__":
    sys.exit(exit_code("tiny_gpt_oss.py", lambda: run(None)))
