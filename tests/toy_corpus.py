"""Small distinct documents for tests and for the short real run of CI; no model is judged on them.

python -m tests.toy_corpus --documents 3000 --out stories.jsonl
"""

import argparse
import json
import random
from pathlib import Path

NAMES = ("Lily", "Tom", "Mia", "Ben", "Sue", "Max", "Amy", "Sam")
THINGS = ("ball", "kite", "box", "hat", "boat", "drum", "cake", "leaf")
PLACES = ("park", "garden", "forest", "kitchen", "river", "school")
DEEDS = ("found", "lost", "painted", "shared", "hid", "carried")


def documents(number: int, seed: int = 0) -> list[str]:
    """That many different texts of 3 to 8 sentences, the same ones for the same seed."""
    draw = random.Random(seed)
    texts = []
    for index in range(number):
        name = draw.choice(NAMES)
        lines = [f"Once upon a time, {name} had {index} stones."]
        for _ in range(draw.randint(2, 7)):
            deed, thing, place = draw.choice(DEEDS), draw.choice(THINGS), draw.choice(PLACES)
            lines.append(f"{name} {deed} a {thing} in the {place}.")
        texts.append(" ".join(lines))
    return texts


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=3000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_jsonl(args.out, documents(args.documents, args.seed))
