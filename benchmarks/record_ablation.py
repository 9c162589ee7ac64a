"""Keep a comparison's report, plan and results: everything of it but the runs themselves.

    python -m benchmarks.record_ablation REPORT_DIR [--tinystories FOLDER]
        writes benchmarks/results/ablations/NAME/

Paths that begin with FOLDER are written as $TINYSTORIES, and the report's folder by its last name. Before it
has ended, there is no report yet: what has ended is kept, and ablate.py --resume goes on from a copy of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from benchmarks.public_text import public_text

RESULTS = Path(__file__).parent / "results" / "ablations"
TEXTS, PICTURES = ("report.md", "plan.json", "results.jsonl"), "*.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, metavar="REPORT_DIR")
    parser.add_argument("--tinystories", help="folder to be written as $TINYSTORIES")
    args = parser.parse_args()
    report = args.report.resolve()
    name = json.loads((report / "plan.json").read_text(encoding="utf-8"))["spec"]["name"]
    folder = RESULTS / name
    shutil.rmtree(folder, ignore_errors=True)  # an earlier one, which git has
    folder.mkdir(parents=True)
    for path in filter(Path.exists, (report / text for text in TEXTS)):
        text = public_text(path.read_text(encoding="utf-8"), args.tinystories, [report])
        (folder / path.name).write_text(text, encoding="utf-8")
    for path in report.glob(PICTURES):
        shutil.copyfile(path, folder / path.name)
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
