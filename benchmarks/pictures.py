"""Draw the pictures of README and docs from the records in benchmarks/results and configs/reference.

python -m benchmarks.pictures        # writes docs/pictures/*.png
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from evaluation.report.look import COLOURS
from evaluation.report.page import STYLE

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PICTURES = ROOT / "benchmarks" / "results", ROOT / "docs" / "pictures"


def record(name: str, folder: Path = RESULTS):
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def curve(ax) -> None:
    """Validation bits per byte over tokens: the band of three seeds of `light`, and two longer runs."""
    band = record("light_tinystories", ROOT / "configs" / "reference")["tags"]["val/bits_per_byte"]
    millions = np.array(band["tokens"]) / 1e6
    ax.fill_between(millions, band["min"], band["max"], color=COLOURS[2], alpha=0.5, lw=0)
    ax.plot(millions, band["mean"], color=COLOURS[2], lw=1.6, label="light, 1,600 steps: range of 3 seeds")
    runs = {"light, 4,800 steps": "light_15_minutes", "toy, 3,082 steps": "tinystories_20_minutes"}
    for (label, name), colour in zip(runs.items(), COLOURS):
        steps, values = np.array(record(name)["curve"]["val/bits_per_byte"]).T
        ax.plot(steps * 2048 / 1e6, values, color=colour, lw=1.6, label=label)
    ax.set(
        title="Validation on TinyStories",
        xlabel="million training tokens",
        ylabel="bits per byte",
        ylim=(0.75, 1.3),
    )
    ax.legend(fontsize=7)


def ladder(ax) -> None:
    """Closing score of every run of the ladder, by arm, with the mean over its seeds."""
    scores = defaultdict(list)
    lines = (RESULTS / "ablations" / "ladder" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    for line in map(json.loads, lines):
        if line["phase"] == "verdict":
            scores[line["arm"]].append(line["bits_per_byte"])
    arms = [
        arm
        for arm in json.loads((RESULTS / "ablations/ladder/plan.json").read_text())["arms"]
        if arm in scores
    ]
    for place, arm in enumerate(arms):
        ax.plot(scores[arm], [place] * len(scores[arm]), "o", ms=3, color=COLOURS[0], alpha=0.6)
        ax.plot(np.mean(scores[arm]), place, "|", ms=11, mew=2, color=COLOURS[1])
    names = [arms[0], *(f"+ {arm.replace('_', ' ')}" for arm in arms[1:])]
    ax.set_yticks(range(len(arms)), names)
    ax.invert_yaxis()
    ax.set(title="From GPT-2 to GPT-OSS, step by step", xlabel="bits per byte (dot: a seed, bar: their mean)")


def load(ax) -> None:
    """Load of every expert on the validation tokens at the end of the quickstart."""
    table = np.array(record("quickstart")["load"][0])
    table = table / table.mean(1, keepdims=True)
    image = ax.imshow(table, cmap="RdBu_r", vmin=0, vmax=2, aspect="auto")
    for (layer, expert), value in np.ndenumerate(table):
        ax.text(expert, layer, f"{value:.2f}", ha="center", va="center", fontsize=8)
    ax.set_xticks(range(table.shape[1]))
    ax.set_yticks(range(table.shape[0]))
    ax.grid(False)
    ax.set(title="Expert load after the quickstart", xlabel="expert", ylabel="layer")
    ax.figure.colorbar(image, ax=ax, label="load / even load", fraction=0.05)


def captions(ax) -> None:
    """Share of exact texts on held-out pictures over the steps, with the encoder and without."""
    lines = map(json.loads, (RESULTS / "vision.jsonl").read_text(encoding="utf-8").splitlines())
    curves = {line["arm"]: line["curve"] for line in lines}
    for (arm, label), colour in zip({"toy": "the encoder", "floor": "one linear map"}.items(), COLOURS):
        points = [(p["step"], 100 * p["val/exact_match"]) for p in curves[arm] if "val/exact_match" in p]
        ax.plot(*np.array(points).T, color=colour, lw=1.4, label=label)
    ax.set(title="Captions and answers, held-out combinations", xlabel="step", ylabel="% exact of 100")
    ax.legend(fontsize=7)


def taught(ax, kind: str, measure: str, label: str, percent: bool = False) -> None:
    """A held-out measure of post-training (teaching.py) over its steps: thin lines are seeds, the thick ones their mean."""
    for (name, run), colour in zip(record(f"teaching_{kind}")["runs"].items(), COLOURS):
        curves = np.array([tags[measure] for tags in run["curves"].values()]) * (1, 100 if percent else 1)
        for steps, values in (*(one.T for one in curves), curves.mean(0).T):
            ax.plot(steps, values, color=colour, lw=0.6, alpha=0.5)
        ax.lines[-1].set(lw=1.8, alpha=1, label=name)
    ax.set(title=label, xlabel="step", ylabel="%" if percent else "")
    ax.legend(fontsize=7)


def fine_tuned(ax) -> None:
    taught(ax, "sft", "val/all_words", "stories with all three words", percent=True)


def preferred(ax) -> None:
    taught(ax, "dpo", "val/reward_margin", "reward of the good story minus the other's")


def rewarded(ax) -> None:
    taught(ax, "rewards", "val/reward", "mean reward, held-out prompts")


def forgotten(ax) -> None:
    taught(ax, "rewards", "val/bits_per_byte", "bits per byte of stories")


def exploited(ax) -> None:
    """One reward alone rises, and what it does not measure falls."""
    (curves,) = record("teaching_hacking")["runs"]["words_alone"]["curves"].values()
    shown = {
        "val/words": "words used: the reward",
        "val/feature": "feature",
        "val/passes": "the checker passes",
    }
    for (measure, label), colour in zip(shown.items(), COLOURS):
        ax.plot(*(np.array(curves[measure]) * (1, 100)).T, color=colour, lw=1.8, label=label)
    ax.set(
        title="GRPO with the reward words alone", xlabel="step", ylabel="% of held-out prompts", ylim=(0, 100)
    )
    ax.legend(fontsize=7)


def save(name: str, *panels: Callable, width: float) -> None:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(width, 3.1), layout="constrained", squeeze=False)
        for draw, ax in zip(panels, axes[0]):
            draw(ax)
        figure.savefig(PICTURES / f"{name}.png", dpi=110, metadata={"Software": None})
        plt.close(figure)


def main() -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    save("curve", curve, width=5.5)
    save("ladder", ladder, width=5.5)
    save("load", load, width=4.5)
    save("vision", captions, width=5.5)
    save("teaching", fine_tuned, preferred, width=7.5)
    save("rewards", rewarded, forgotten, exploited, width=11)
    save("overview", curve, ladder, load, width=13)


if __name__ == "__main__":
    main()
