"""Generate text with a checkpoint, from the command line.

    python sample.py --checkpoint model --prompt "Once upon a time"
    python sample.py --checkpoint model --best --prompts prompts.txt --num_samples 3 --seed 7
    python sample.py --checkpoint gpt_oss_weights --weights mxfp4 --chat
    python sample.py --checkpoint model --image photo.png --prompt "Question: What is this?" --temperature 0

The text goes to stdout, everything else to stderr. One sample is printed while it is generated; several are
generated in one batch and printed at the end. torch is imported after the flags are parsed: --help is quick.
"""

from __future__ import annotations

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import argparse
import contextlib
import itertools
import json
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.files import atomic_write, decode_text
from common.script import Parser, exit_code, say
from common.threads import set_threads, set_threads_for_texts

SEPARATOR = "<|endoftext|>"  # between the texts of a .txt file, as data/files.py reads it
MOST_SAMPLES = 1_000_000  # per prompt
MAX_TOKENS = 256  # the default of --max_tokens, unless the context limit leaves room for fewer


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="sample.py", description="Generate text with a checkpoint.", allow_abbrev=False)
    add, whole, number = parser.add_argument, dict(type=int, metavar="N"), dict(type=float, metavar="X")
    told = "checkpoint_<step>.pt, a run's folder for its newest, or a folder of gpt-oss or GPT-2"
    add("--checkpoint", required=True, metavar="CKPT", help=told)
    add("--weights", choices=["mxfp4"], help="keep the experts of a gpt-oss folder packed in four bits")
    add("--best", action="store_true", help="with a run's folder: its checkpoint of lowest validation loss")
    prompts = parser.add_mutually_exclusive_group()
    told = "one or more texts to continue (default: start a new text)"
    prompts.add_argument("--prompt", nargs="+", action="extend", metavar="TEXT", help=told)
    prompts.add_argument("--prompts", metavar="FILE", help="a UTF-8 file with one prompt per line")
    told = "write in turns: your lines come from stdin; gpt-oss answers in its harmony format"
    prompts.add_argument("--chat", action="store_true", help=told)
    told = "for a model that reads images: in front of the prompt, or where it has <|image|>; repeatable"
    add("--image", nargs="+", action="extend", default=[], metavar="FILE", help=told)
    add("--instructions", metavar="TEXT", help="with --chat and gpt-oss: of the developer")
    add("--reasoning", choices=("low", "medium", "high"), help="with --chat and gpt-oss (default: medium)")
    add("--num_samples", **whole, default=1, help="samples per prompt (default: 1)")
    add("--max_tokens", **whole, help=f"most new tokens per sample (default: {MAX_TOKENS}, or what fits)")
    add("--temperature", **number, default=0.8, help="0: greedy, 1: the model's distribution (default: 0.8)")
    add("--top_k", **whole, help="only the N most probable tokens (default: all)")
    add("--top_p", **number, help="only the most probable tokens that together reach X (default: all)")
    add("--min_p", **number, help="only tokens at least X times as probable as the best one (default: all)")
    add("--seed", **whole, help="same seed, same text (default: drawn and printed)")
    add(
        "--threads",
        **whole,
        help="CPU threads (default: one for a small model, else one for each core that is free)",
    )
    add("--device", default="auto", metavar="D", help="auto, cpu, mps, cuda or cuda:N (default: auto)")
    told = f"write .jsonl, or .txt with {SEPARATOR} after each text and in none (default: print)"
    add("--out", metavar="FILE", help=told)
    args = parser.parse_args(argv)
    if args.best and not Path(args.checkpoint).is_dir():
        raise ValueError(f"--best needs a run's folder as --checkpoint, got {args.checkpoint}")
    if args.chat and (args.out is not None or args.num_samples != 1):
        raise ValueError("--chat prints one answer at a time; leave --out and --num_samples out")
    if args.image and (args.prompts is not None or len(args.prompt or [""]) > 1):
        raise ValueError(
            "--image is for one prompt; give --prompt once, and run again for each of the others"
        )
    if not args.chat and (args.instructions is not None or args.reasoning is not None):
        raise ValueError("--instructions and --reasoning are for --chat; add it, or leave them out")
    if args.out is not None and Path(args.out).suffix not in (".jsonl", ".txt"):
        raise ValueError(f"--out must end in .jsonl or .txt, got {args.out}; choose one of them")
    if args.out is not None and not Path(args.out).absolute().parent.is_dir():
        raise ValueError(f"--out {args.out} is in a folder that does not exist; make it first")
    if not 1 <= args.num_samples <= MOST_SAMPLES:
        raise ValueError(f"--num_samples must be from 1 to {MOST_SAMPLES:,}, got {args.num_samples}")
    return args


def read_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts of the command line; "" starts a new text."""
    if args.prompts is None:
        prompts = [""] if args.prompt is None else args.prompt
        for prompt in prompts:
            if any("\ud800" <= character <= "\udfff" for character in prompt):
                raise ValueError(f"--prompt must be UTF-8 text, got {prompt!r}")
        return prompts
    text = decode_text(Path(args.prompts).read_bytes(), lambda at: f"--prompts {args.prompts}, byte {at}")
    prompts = [line for line in text.split("\n") if line.strip()]
    if not prompts:
        raise ValueError(f"--prompts {args.prompts} contains no prompt; write one per line")
    return prompts


def finish(texts: list[str], pieces: Iterator[tuple[int, str]]) -> list[str]:
    """The texts with their continuations. A progress bar counts the pieces."""
    told = list(texts)
    for row, piece in tqdm(pieces, desc="tokens", unit="", leave=False, disable=None):
        told[row] += piece
    return told


def require_separable(out: str | None, texts: list[str]) -> None:
    """Raise ValueError if --out is a .txt file and a text holds the separator of its texts."""
    if out is not None and out.endswith(".txt") and any(SEPARATOR in text for text in texts):
        raise ValueError(
            f"--out {out} cannot hold a text with {SEPARATOR} in it, which would end it in a .txt file; nothing was "
            f"written; use --out {out.removesuffix('.txt')}.jsonl with the same --seed for the same texts"
        )


def write_texts(path: str, texts: list[str]) -> None:
    """Write the texts to a .jsonl or .txt file, whole or not at all."""
    if path.endswith(".jsonl"):
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    else:
        lines = [f"{text}\n{SEPARATOR}" for text in texts]
    with atomic_write(path) as file:
        file.write("".join(line + "\n" for line in lines).encode())
    say(f"wrote {len(texts):,} texts to {path}")


def read_images(args: argparse.Namespace, model: Any) -> list:
    """The images of the command line, as the model reads them."""
    from architecture.generation.text import image_format
    from architecture.images import read_image

    form = image_format(model)
    if args.image and form is None:
        raise ValueError(
            f"--image needs a model that reads images, and this {model.name} model reads none; leave it out, or use "
            "a checkpoint of --model gptoss_vision"
        )
    return [read_image(file, form.size, file) for file in args.image]


def chat(args: argparse.Namespace, model: Any, images: list, seed: int) -> None:
    """Answer the lines of stdin until it ends. Ctrl-C stops an answer, and in front of a line ends the chat.

    images: stand in front of the first line of a text.
    """
    from architecture.generation.chat import MODEL, TEXT, USER, Answer, Memory, prompt_of, stream_answer
    from architecture.open_gpt_oss.harmony import Harmony
    from architecture.tokenizer import HARMONY

    filters = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    form, max_tokens = None, args.max_tokens or MAX_TOKENS
    if model.tokenizer.name == HARMONY:
        asked = dict(instructions=args.instructions or "", reasoning=args.reasoning or "medium")
        form, max_tokens = Harmony(model.tokenizer, **asked), args.max_tokens or model.config.context_limit
    elif args.instructions is not None or args.reasoning is not None:
        raise ValueError(
            f"--instructions and --reasoning need the tokenizer {HARMONY} of gpt-oss, and this model has "
            f"{model.tokenizer.name}, without turns; leave them out"
        )
    turns, memory = [], Memory()
    for number in itertools.count():
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if not (text := line.rstrip("\n")).strip():
            continue
        said, answer, channel = {"role": USER, "text": text}, Answer(), TEXT
        if not turns:
            said["images"] = images
        try:
            prompt = prompt_of(model, [*turns, said], max_tokens, form)
            if prompt.unread:
                say(f"the first {prompt.unread:,} tokens no longer fit into the context, and are not read")
            pieces = stream_answer(model, prompt, answer, memory, seed=seed + number, **filters)
            with contextlib.closing(pieces):
                for piece in pieces:
                    if piece and answer.channel != channel:
                        channel = answer.channel
                        print(f"\n[{channel}] ", end="")
                    print(piece, end="", flush=True)
        except KeyboardInterrupt:
            say("\nstopped; what was written stays")
        except ValueError as error:
            say(f"sample.py: {error}")
            continue
        print(flush=True)
        turns += [said, {"role": MODEL, "text": answer.text}]
        if form is None and answer.end == "ended":  # the next line begins a new text
            turns = []


def run(args: argparse.Namespace) -> None:
    prompts = [""] if args.chat else read_prompts(args)
    require_separable(args.out, prompts)
    from architecture.checkpoint import BEST, find_checkpoint
    from architecture.generation.cache import require_memory
    from architecture.generation.decode import length_limit
    from architecture.generation.text import encode_prompt, image_format
    from common import device as machine
    from inference import load_model, stream_text
    from training.state.checkpoint import naming_a_good_one

    device, given = machine.choose_device(args.device), Path(args.checkpoint)
    if line := set_threads(args.threads, common.begin.STARTED):
        say(line)
    path = find_checkpoint(given / BEST if args.best else given, say)
    with naming_a_good_one(path):
        model = load_model(path, device=device, weights=args.weights)
    size = model.config.parameter_counts()["total"]
    set_threads_for_texts(args.threads, size, len(prompts) * args.num_samples)
    images = read_images(args, model)
    seed = secrets.randbits(31) if args.seed is None else args.seed
    if args.chat:
        say(f"{path}, {device}, seed {seed}; an empty line is ignored, Ctrl-D ends")
        return chat(args, model, images, seed)
    limit = length_limit(model)
    form = image_format(model)
    longest = max(len(encode_prompt(model.tokenizer, prompt, form, len(images))) for prompt in prompts)
    max_tokens = args.max_tokens
    if max_tokens is None:
        max_tokens = max(1, min(MAX_TOKENS, limit - longest))
    texts = [prompt for prompt in prompts for _ in range(args.num_samples)]
    filters = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    if longest + max_tokens <= limit:  # otherwise stream_text raises an error
        require_memory(model, len(texts), longest + max_tokens, machine.available_memory(device))
    filters["images"] = [images] * len(texts)
    pieces = stream_text(model, texts, max_tokens=max_tokens, seed=seed, **filters)
    say(f"{path}, {device}, seed {seed}")
    if args.max_tokens is None and max_tokens < MAX_TOKENS:
        say(f"at most {max_tokens} new tokens fit behind a prompt of {longest} (context limit {limit})")
    if args.out is not None:
        texts = finish(texts, pieces)
        require_separable(args.out, texts)
        write_texts(args.out, texts)
        return
    if len(texts) == 1:
        print(texts[0], end="", flush=True)
        try:
            for _, piece in pieces:
                print(piece, end="", flush=True)
        finally:  # also after Ctrl-C
            print(flush=True)
        return
    for row, text in enumerate(finish(texts, pieces)):
        prompt, sample = row // args.num_samples + 1, row % args.num_samples + 1
        print(f"=== prompt {prompt} of {len(prompts)}, sample {sample} of {args.num_samples} ===")
        print(text, end="\n\n", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Return the exit code; see common/script.py."""
    return exit_code("sample.py", lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
