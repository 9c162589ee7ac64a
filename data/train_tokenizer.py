"""Train a byte-pair encoding on documents and save it as a tiktoken rank file.

    python -m data.train_tokenizer --dataset $TINYSTORIES/train.jsonl --vocab_size 4096 \\
        --out data/tokenizers/stories4k.tiktoken

writes that file (a base64 token and its rank per line) and stories4k.json beside it (split pattern, special
tokens, sha256, provenance). Use it with `--tokenizer PATH`. vocab_size includes <|endoftext|>, the last id.
The 256 bytes are always tokens, so every text can be encoded without loss.
"""

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import argparse
import itertools
import sys
from importlib.metadata import version
from pathlib import Path

import tiktoken

from architecture.tokenizer import END_OF_TEXT, for_long_texts, save_rank_file
from common.script import Parser, exit_code, say
from data.defaults import TEXT_COLUMN
from data.sources import choose_dataset, open_dataset, say_left_out

MOST_IDS = 2**20  # five times the largest vocabulary in use, so a larger number is a typing error
# GPT-4's split pattern, but with numbers of at most two digits instead of three, since a thousand numbers
# would be too large a part of a small vocabulary.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,2}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


def train_tokenizer(texts, vocab_size: int, name: str, pattern: str = PATTERN) -> tiktoken.Encoding:
    """Train a byte-pair encoding on `texts` with vocab_size ids, of which END_OF_TEXT is the last."""
    try:
        import rustbpe
    except ImportError as error:
        raise ImportError("training a tokenizer needs rustbpe: pip install rustbpe") from error
    if not 257 <= vocab_size <= MOST_IDS:
        raise ValueError(
            f"vocab_size ({vocab_size}) must be from 257 (256 bytes and {END_OF_TEXT}) to {MOST_IDS:,}"
        )
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), vocab_size - 1, pattern=for_long_texts(pattern))
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    if len(ranks) < vocab_size - 1:
        raise ValueError(
            f"vocab_size ({vocab_size}) is too large for this text, which gives only {len(ranks) + 1} "
            f"tokens; use more text or --vocab_size {len(ranks) + 1}"
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
    add("--dataset", required=True, help="dataset to learn from, as for train.py --dataset")
    add("--text_column", default=TEXT_COLUMN, help="column that has the text (default: %(default)s)")
    add(
        "--vocab_size",
        type=int,
        default=4096,
        help=f"number of ids, {END_OF_TEXT} included (default: %(default)s)",
    )
    add("--max_documents", type=int, help="number of documents to learn from, the first ones (default: all)")
    add("--out", required=True, type=Path, help="rank file to write, named NAME.tiktoken")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    if args.out.suffix != ".tiktoken":
        raise ValueError(f"--out ({args.out}) must end in .tiktoken")
    if args.max_documents is not None and args.max_documents < 1:
        raise ValueError(f"--max_documents must be at least 1, got {args.max_documents}")
    dataset = choose_dataset(args.dataset, say)
    source = open_dataset(dataset, split="train", text_column=args.text_column)
    say_left_out(say, source)
    seen = {"documents": 0, "bytes": 0}

    def texts():
        for text in itertools.islice(source.documents(), args.max_documents):
            if not isinstance(text, str):
                raise ValueError(
                    f"--dataset {args.dataset} has token ids, but a tokenizer learns from text; use the "
                    "dataset from which they were prepared"
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
    return exit_code("data.train_tokenizer", lambda: run(parse_command_line(argv)))


if __name__ == "__main__":
    sys.exit(main())
