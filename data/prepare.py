"""Write a dataset as token files, which training reads instead of tokenizing text.

    python -m data.prepare --dataset tinystories --out_dir data/prepared/tinystories
    python train.py --dataset data/prepared/tinystories

Memory use is one shard, whatever the size of the dataset. The folder is written under a temporary name and
renamed when it is complete. After an interruption, run the same command again.
"""

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from architecture.tokenizer import get_tokenizer
from common.script import Parser, exit_code, say
from data.defaults import TEXT_COLUMN, TOKENIZER
from data.documents import common_documents
from data.packing import encode
from data.sources import choose_dataset, open_dataset, say_left_out
from data.tokens import TokenFolderWriter


def prepare(
    dataset, out_dir: Path, tokenizer, *, val_dataset=None, text_column=TEXT_COLUMN
) -> dict[str, dict]:
    """Write both splits as ids of `tokenizer`. Returns {split: {"documents": ..., "tokens": ..., ...}}."""
    options = {"val_dataset": val_dataset, "text_column": text_column}
    totals, writer = {}, TokenFolderWriter(out_dir, tokenizer)  # its lock refuses a second process at once
    with writer.removed_if_it_fails():
        sources = {split: open_dataset(dataset, split=split, **options) for split in ("validation", "train")}
        say_left_out(say, *sources.values())
        for source in sources.values():
            source.check_tokenizer(tokenizer)
        for line in common_documents(sources["train"], sources["validation"]):
            say(line)
        for split, source in sources.items():
            total = len(source) if hasattr(source, "__len__") else None
            texts = tqdm(source.documents(), desc=split, total=total, unit=" documents")
            ids = (encode(tokenizer, text) for text in texts)
            totals[split] = writer.write_split(split, ids, source.identity)
        writer.finish()
    return totals


def parse_command_line(argv=None) -> argparse.Namespace:
    parser = Parser(prog="python -m data.prepare", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--dataset", required=True, help="dataset to write, as for train.py --dataset")
    add("--val_dataset", help="validation dataset (default: the dataset's own split, or by hash of the text)")
    add("--text_column", default=TEXT_COLUMN, help="column that has the text (default: %(default)s)")
    add("--tokenizer", default=TOKENIZER, help="name, or path of a rank file (default: %(default)s)")
    add("--out_dir", required=True, type=Path, help="folder to write, which must not exist")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    totals = prepare(
        choose_dataset(args.dataset, say),
        args.out_dir,
        get_tokenizer(args.tokenizer),
        val_dataset=args.val_dataset,
        text_column=args.text_column,
    )
    for split, total in totals.items():
        print(f"{split}: {total['documents']:,} documents, {total['tokens']:,} tokens")


def main(argv=None) -> int:
    return exit_code(
        "data.prepare",
        lambda: run(parse_command_line(argv)),
        interrupted="interrupted before the folder was complete; run the same command again",
    )


if __name__ == "__main__":
    sys.exit(main())
