"""Train a byte-pair encoding on documents and save it as a tiktoken rank file.

    python -m data.train_tokenizer --dataset $TINYSTORIES/train.jsonl --vocab_size 4096 \\
        --out data/tokenizers/stories4k.tiktoken

writes that file (a base64 token and its rank per line) and stories4k.json beside it (pattern,
special tokens, sha256, where it comes from); `--tokenizer PATH` uses it. vocab_size counts
<|endoftext|>, the last id. The 256 bytes are always tokens, so every text encodes without loss.
"""

import argparse
import itertools
import sys
from importlib.metadata import version
from pathlib import Path

import tiktoken

from architecture.tokenizer import END_OF_TEXT, save_rank_file
from common.script import Parser, exit_code, say
from data.defaults import TEXT_COLUMN
from data.sources import choose_dataset, open_dataset

MOST_IDS = 2**20  # five times the largest vocabulary in use; a larger number is a slip
# GPT-4's split pattern with numbers of at most two digits: a small vocabulary has no room for a
# thousand numbers.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,2}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


def train_tokenizer(texts, vocab_size: int, name: str, pattern: str = PATTERN) -> tiktoken.Encoding:
    """Byte-pair encoding of `texts` with vocab_size ids in all, END_OF_TEXT being the last."""
    try:
        import rustbpe
    except ImportError as error:
        raise ImportError("training a tokenizer needs rustbpe: pip install rustbpe") from error
    if not 257 <= vocab_size <= MOST_IDS:
        raise ValueError(
            f"vocab_size ({vocab_size}) must be at least 257 (256 bytes and {END_OF_TEXT}) and at most "
            f"{MOST_IDS:,}"
        )
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), vocab_size - 1, pattern=pattern)
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    if len(ranks) < vocab_size - 1:
        raise ValueError(
            f"vocab_size ({vocab_size}) is too large for this text, which gives only {len(ranks) + 1} tokens; "
            f"use more text or --vocab_size {len(ranks) + 1}"
        )
    return tiktoken.Encoding(
        name,
        pat_str=pattern,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: vocab_size - 1},
        explicit_n_vocab=vocab_size,
    )


def parse_command_line(argv=None) -> argparse.Namespace:
    parser = Parser(prog="python -m data.train_tokenizer", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--dataset", required=True, help="documents to learn from: whatever train.py --dataset takes")
    add("--text_column", default=TEXT_COLUMN, help="column of the text (default: %(default)s)")
    add("--vocab_size", type=int, default=4096, help=f"ids, {END_OF_TEXT} included (default: 4096)")
    add("--max_documents", type=int, help="learn from the first N documents only (default: all)")
    add("--out", required=True, type=Path, help="rank file to write, NAME.tiktoken")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    if args.out.suffix != ".tiktoken":
        raise ValueError(f"--out ({args.out}) must end in .tiktoken")
    if args.max_documents is not None and args.max_documents < 1:
        raise ValueError(f"--max_documents must be at least 1, got {args.max_documents}")
    dataset = choose_dataset(args.dataset, say)
    source = open_dataset(dataset, split="train", text_column=args.text_column)
    seen = {"documents": 0, "bytes": 0}

    def texts():
        for text in itertools.islice(source.documents(), args.max_documents):
            if not isinstance(text, str):
                raise ValueError(
                    f"--dataset {args.dataset} holds token ids, and a tokenizer learns from text; name the "
                    "text that it was made from"
                )
            seen["documents"] += 1
            seen["bytes"] += len(text.encode())
            yield text

    encoding = train_tokenizer(texts(), args.vocab_size, args.out.stem)
    provenance = {"dataset": source.name, **seen, "trainer": f"rustbpe {version('rustbpe')}"}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_rank_file(encoding, args.out, provenance)
    print(f"{args.out}: {encoding.n_vocab} tokens from {seen['documents']:,} documents")


def main(argv=None) -> int:
    return exit_code("data/train_tokenizer.py", lambda: run(parse_command_line(argv)))


if __name__ == "__main__":
    sys.exit(main())
