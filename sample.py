"""Sample a checkpoint from the command line.

    python sample.py --checkpoint model --prompt "Once upon a time"
    python sample.py --checkpoint model/checkpoint_500.pt --prompts prompts.txt --num_samples 3 --seed 7

The text goes to stdout, everything else to stderr. A single sample appears as it is written; several
run in one batch and are printed when all have ended. torch is imported after the flags are read.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from common.files import atomic_write
from common.script import Parser, exit_code, say

MOST_SAMPLES = 1_000_000  # of a prompt
MAX_TOKENS = 256  # unless --max_tokens says otherwise, or the context limit leaves less


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="sample.py", description="Sample a checkpoint.", allow_abbrev=False)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="CKPT",
        help="a checkpoint_<step>.pt, or a run's folder: its newest")  # fmt: skip
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", nargs="+", action="extend", metavar="TEXT",
                         help="one or more texts to continue (default: start a new text)")  # fmt: skip
    prompts.add_argument(
        "--prompts", metavar="FILE", help="a UTF-8 file with one prompt per line; blank lines are skipped"
    )
    add("--num_samples", type=int, default=1, metavar="N", help="samples per prompt (default: 1)")
    add("--max_tokens", type=int, metavar="N",
        help=f"most new tokens per sample (default: {MAX_TOKENS}, or what the context limit leaves)")  # fmt: skip
    add("--temperature", type=float, default=0.8, metavar="X",
        help="0 = always the most probable token, 1 = the model's own distribution (default: 0.8)")  # fmt: skip
    add("--top_k", type=int, metavar="N", help="only the N most probable tokens (default: all)")
    add("--top_p", type=float, metavar="X",
        help="only the most probable tokens that together reach X (default: all)")  # fmt: skip
    add("--min_p", type=float, metavar="X",
        help="only tokens at least X times as probable as the most probable (default: all)")  # fmt: skip
    add("--seed", type=int, metavar="N", help="same seed, same text (default: drawn and printed)")
    add("--device", default="auto", metavar="D", help="auto, cpu, mps, cuda or cuda:N (default: auto)")
    add("--out", metavar="FILE",
        help="write the texts to FILE: .jsonl, or .txt with <|endoftext|> after each (default: print)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.out is not None and Path(args.out).suffix not in (".jsonl", ".txt"):
        raise ValueError(f"--out must end in .jsonl or .txt, got {args.out}; choose one of them")
    if args.out is not None and not Path(args.out).absolute().parent.is_dir():
        raise ValueError(f"--out {args.out} is in a folder that does not exist; make it first")
    if not 1 <= args.num_samples <= MOST_SAMPLES:
        raise ValueError(
            f"--num_samples must be at least 1 and at most {MOST_SAMPLES:,}, got {args.num_samples}"
        )
    return args


def read_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts that were asked for; "" starts a new text."""
    if args.prompts is None:
        prompts = [""] if args.prompt is None else args.prompt
        for prompt in prompts:
            if any("\ud800" <= character <= "\udfff" for character in prompt):
                raise ValueError(f"--prompt must be UTF-8 text, got {prompt!r}")
        return prompts
    try:
        text = Path(args.prompts).read_text(encoding="utf-8-sig")  # Windows puts a mark in front
    except OSError as error:
        raise ValueError(f"--prompts {args.prompts} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--prompts {args.prompts} must be UTF-8 text, and byte {error.start} is not; "
            "save the file as UTF-8"
        ) from None
    prompts = [line for line in text.split("\n") if line.strip()]
    if not prompts:
        raise ValueError(f"--prompts {args.prompts} has no prompt; write one per line")
    return prompts


def room(model, prompts: list[str]) -> tuple[int, int]:
    """The longest prompt in tokens, and how many more the context limit allows."""
    from architecture.generation.decode import length_limit
    from architecture.generation.text import encode_prompt

    longest = max(len(encode_prompt(model.tokenizer, prompt)) for prompt in prompts)
    return longest, length_limit(model) - longest


def finish(texts: list[str], pieces: Iterator[tuple[int, str]]) -> list[str]:
    """The texts with all that comes to them; many are counted meanwhile."""
    told = list(texts)
    bar = tqdm(pieces, desc="tokens", unit="", leave=False, disable=None)
    for row, piece in bar:
        told[row] += piece
    return told


def write_texts(path: str, texts: list[str]) -> None:
    """One whole file, or none."""
    if path.endswith(".jsonl"):
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    else:
        lines = [f"{text}\n<|endoftext|>" for text in texts]
    with atomic_write(path) as file:
        file.write("".join(line + "\n" for line in lines).encode())
    say(f"wrote {len(texts):,} texts to {path}")


def run(args: argparse.Namespace) -> None:
    prompts = read_prompts(args)
    from architecture.generation.cache import require_memory
    from common import device as machine
    from inference import load_model, stream_text
    from training.state.checkpoint import find_checkpoint, naming_a_good_one

    device, path = machine.choose_device(args.device), find_checkpoint(args.checkpoint, say)
    seed = secrets.randbits(31) if args.seed is None else args.seed
    with naming_a_good_one(path):
        model = load_model(path, device=device)
    max_tokens, (longest, left) = args.max_tokens, room(model, prompts)
    bounded = max_tokens is None and 0 < left < MAX_TOKENS
    if max_tokens is None:
        max_tokens = left if bounded else MAX_TOKENS

    if max_tokens <= left:  # else it is refused anyway
        rows = len(prompts) * args.num_samples
        require_memory(model, rows, longest + max_tokens, machine.available_memory(device))
    texts = [prompt for prompt in prompts for _ in range(args.num_samples)]
    pieces = stream_text(  # raises here, before anything is printed
        model,
        texts,
        max_tokens=max_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        seed=seed,
    )
    say(f"{path}, {device}, seed {seed}")
    if bounded:
        say(f"at most {left} new tokens fit behind a prompt of {longest} (context limit {longest + left})")
    if args.out is not None:
        write_texts(args.out, finish(texts, pieces))
        return
    if len(texts) == 1:
        print(texts[0], end="", flush=True)
        try:
            for _, piece in pieces:
                print(piece, end="", flush=True)
        finally:  # Ctrl-C, too, leaves a whole line
            print(flush=True)
        return
    for row, text in enumerate(finish(texts, pieces)):
        prompt, sample = row // args.num_samples + 1, row % args.num_samples + 1
        print(f"=== prompt {prompt} of {len(prompts)}, sample {sample} of {args.num_samples} ===")
        print(text, end="\n\n", flush=True)


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0, or as common/script.py says for bad input and Ctrl-C."""
    return exit_code("sample.py", lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
