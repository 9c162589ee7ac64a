"""Data of a killed run in every format, and what may happen to it before a resume or while a run reads it."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from tests.stress.processes import Broken, start, wait
from tests.toy_corpus import documents, write_jsonl

FORMATS = ("jsonl", "txt", "parquet", "folder", "tokens")
SAME = ("moved", "copied", "spelled otherwise")  # a resume goes on, equal to the bit
OTHER = ("reversed", "one text", "one more", "validation")  # a resume is refused
WAYS = ("renamed over", "written over", "cut")  # how a file changes while a run reads it
PREPARE = "--dataset train.jsonl --val_dataset valid.jsonl --out_dir tokens".split()


def flags(form: str, place: str = "data") -> list[str]:
    """The flags that name the data of a format in the folder `place`."""
    if form in ("folder", "tokens"):
        return ["--dataset", f"{place}/{form}"]
    return ["--dataset", f"{place}/train.{form}", "--val_dataset", f"{place}/valid.{form}"]


def make(work: Path) -> None:
    """Write the original data and its OTHER variants into WORK/<format>/<variant>."""
    texts = documents(308)
    train, valid = texts[8:], texts[:8]
    one, late = list(train), list(valid)
    one[150] = one[150].replace("stones", "pebble")  # as many characters
    late[-1] = late[-1].replace("stones", "pebble")
    variants = {
        "original": (train, valid),
        "reversed": (train[::-1], valid),
        "one text": (one, valid),
        "one more": ([*train, "The end."], valid),
        "validation": (train, late),
    }
    for form in FORMATS:
        for name, pair in variants.items():
            folder = work / form / name
            folder.mkdir(parents=True)
            write(folder, form, *pair)


def write(folder: Path, form: str, train: list[str], valid: list[str]) -> None:
    for name, texts in (("train", train), ("valid", valid)):
        if form == "txt":
            text = "\n<|endoftext|>\n".join(texts) + "\n"
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
        elif form == "parquet":
            import pyarrow
            import pyarrow.parquet

            table = pyarrow.table({"text": texts})
            pyarrow.parquet.write_table(table, folder / f"{name}.parquet", row_group_size=8)
        elif form == "folder":
            (folder / form).mkdir(exist_ok=True)
            half = len(texts) // 2
            write_jsonl(folder / form / f"{name}_0.jsonl", texts[:half])
            write_jsonl(folder / form / f"{name}_1.jsonl", texts[half:])
        else:
            write_jsonl(folder / f"{name}.jsonl", texts)
    if form == "tokens":
        if (ended := wait(start(folder, PREPARE, program="data.prepare"), folder)).code:
            raise Broken(f"data.prepare ended with {ended.code}: {ended.line}")
        for name in ("train.jsonl", "valid.jsonl", "log"):
            (folder / name).unlink()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


class Data:
    """The data of one run, in FOLDER/<place>."""

    def __init__(self, work: Path, form: str, folder: Path):
        self.variants, self.form, self.folder, self.place = work / form, form, folder, "data"
        self.put("original")

    def put(self, variant: str) -> None:
        """Have a variant under the name of the data."""
        shutil.rmtree(self.folder / self.place, ignore_errors=True)
        shutil.copytree(self.variants / variant, self.folder / self.place, copy_function=shutil.copyfile)

    def flags(self) -> list[str]:
        return flags(self.form, self.place)

    def rename(self, how: str, number: int) -> list[str]:
        """Change the name of the data in one of the ways SAME; return the flags for a resume."""
        if how == "copied":
            self.put("original")
            return self.flags() if self.place != "data" else []
        if how == "moved":
            place = f"moved_{number}"
            (self.folder / self.place).rename(self.folder / place)
            self.place = place
            return self.flags()
        return flags(self.form, f"../{self.folder.name}/./{self.place}")

    def change_while_read(self, how: str, draw: random.Random) -> None:
        """Replace the files by those of a variant with other texts, or cut them."""
        other = self.variants / draw.choice(("reversed", "one more"))
        for path in files(self.folder / self.place):
            new = other / path.relative_to(self.folder / self.place)
            if how == "cut":
                os.truncate(path, path.stat().st_size // 2)
            elif how == "written over":
                path.write_bytes(new.read_bytes())
            else:
                shutil.copyfile(new, aside := path.with_name(f"{path.name}.new"))
                aside.rename(path)
