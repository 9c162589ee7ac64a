"""Publish the report, plan, results and test scores of an ablation, without its runs.

    python -m benchmarks.record_ablation REPORT_DIR [--tinystories FOLDER]
        writes benchmarks/results/ablations/NAME/

Paths that begin with FOLDER are written as $TINYSTORIES, and the report's folder by its last name. An
ablation that has not ended has no report yet; its finished runs are published, and ablate.py --resume can
continue from a copy of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from benchmarks.publish import RESULTS, public_text, require_clean_commits
from common.files import write_json_atomic

TEXTS = ("report.md", "plan.json", "results.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, metavar="REPORT_DIR")
    parser.add_argument("--tinystories", help="the folder that is written as $TINYSTORIES")
    args = parser.parse_args()
    report = args.report.resolve()
    name = json.loads((report / "plan.json").read_text(encoding="utf-8"))["spec"]["name"]
    folder = RESULTS / "ablations" / name
    for path in filter(Path.exists, (report / text for text in TEXTS)):
        require_clean_commits(path.read_text(encoding="utf-8"), folder / path.name)
    shutil.rmtree(folder, ignore_errors=True)  # removes an earlier one, which is in git
    folder.mkdir(parents=True)
    for path in filter(Path.exists, (report / text for text in TEXTS)):
        text = public_text(path.read_text(encoding="utf-8"), [report], args.tinystories)
        if path.suffix == ".json":  # its seal is that of the text with the paths
            values = json.loads(text)
            values.pop("seal", None)
            write_json_atomic(folder / path.name, values)
        else:
            (folder / path.name).write_text(text, encoding="utf-8")
    for path in report.glob("*.png"):
        shutil.copyfile(path, folder / path.name)
    for path in report.glob("test/*.npz"):  # the sums of each test document, a few kB for each run
        (folder / "test").mkdir(exist_ok=True)
        shutil.copyfile(path, folder / "test" / path.name)
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
