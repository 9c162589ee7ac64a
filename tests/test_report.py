"""The report: a table, a page and a verdict from what runs have written; the runs here are made up."""

import json
import math
import random
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from architecture.registry import build_config
from benchmarks import make_bands
from evaluation.report import __main__ as report
from evaluation.report import bands as report_bands
from evaluation.report import read as report_runs
from evaluation.report import table as report_table
from evaluation.report.look import Look
from evaluation.report.page import draw_page, in_rows, page_png, panels
from training.command_line import parse_command_line
from training.train_command import model_fields

REPO_ROOT = Path(__file__).resolve().parent.parent
TRAIN = {
    "model": "gptoss", "model_size": "toy", "dataset": "/data/stories/train.jsonl",
    "val_dataset": "/data/stories/valid.jsonl", "tokenizer": "stories4k", "batch_size": 8, "block_size": 256,
    "grad_accum": 1, "max_iters": 3000, "max_minutes": None, "lr": 0.008, "schedule": "wsd", "grad_clip": 1.0,
    "optimizer": "muon", "balance": "aux", "eval_every": 100, "eval_tokens": 65536, "out_dir": "model", "seed": 1,
    "device": "cpu", "dtype": "float32",
}  # fmt: skip
KINDS = ("attention", "sinks", "router", "experts", "embedding", "head", "norms", "biases")
TOKEN_KINDS = (
    "end of text",
    "line break",
    "punctuation",
    "number",
    "verb",
    "name",
    "other word",
    "word piece",
)
STORY = "Once upon a time there was a fox who had $5 and a \u2603.\nHe bought a red ball. " * 4


def falling(start, end, pace, step):
    return end + (start - end) * math.exp(-step / pace)


def write_run(folder, *, seed=1, steps=3000, experts=8, finished=True, shift=0.0, config=True, **train):
    """What a run of `steps` steps leaves behind.  experts=0: dense.  shift: added to every loss, in nats."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    train = TRAIN | {"seed": seed, "out_dir": str(folder), "max_iters": steps} | train
    layers, sha = 4, "5bdc50d4" if train["tokenizer"] == "stories4k" else "ff"
    model = {"num_hidden_layers": layers, "num_attention_heads": 4, "hidden_size": 128}
    model |= {"num_experts": experts, "experts_per_token": 2} if experts else {}
    command = f"python train.py --dataset {TRAIN['dataset']} --val_dataset=/mnt/v.jsonl --seed {seed} --out_dir 'a b'"
    start = {"step": 0, "command": command, "commit": "0123456789ab", "torch": "2.13.0"}
    facts = {"train": train, "model": model, "tokenizer": {"name": train["tokenizer"], "sha256": sha}}
    facts |= {"parameters": {"total": 3627696, "active": 1321648}, "starts": [start]}
    if config:
        (folder / "config.json").write_text(json.dumps(facts))
    per_step = train["batch_size"] * train["block_size"]
    routed = [f"layer_{n:02d}" for n in range(layers if experts else 0)]
    last = steps if finished else steps * 2 // 3

    def loss(step):
        return falling(7.5, 2.4, 200, step) + shift + 0.01 * math.sin(step / 300 + seed)

    def share(layer):
        weights = [rng.uniform(0.4, 1.6) + (e == layer % experts) for e in range(experts)]
        return [w / sum(weights) for w in weights]

    records = []
    for step in sorted({*range(20, last, 20), last}):
        norm = falling(1.9, 0.4, 60, step) + rng.uniform(0, 0.08)
        record = {"step": step, "optim/lr": train["lr"], "optim/grad_norm": norm}
        record |= {"train/loss": loss(step) + rng.gauss(0, 0.1), "data/tokens": step * per_step}
        record |= {"perf/tokens_per_second": rng.uniform(5700, 6300), "perf/seconds": step * per_step / 6000}
        even = {of: falling(2.5, 0.25, 150, step) + 0.1 * n for n, of in enumerate(routed)}
        record |= {f"moe/max_violation/{of}": value * rng.uniform(0.8, 1.5) for of, value in even.items()}
        for n, kind in enumerate(KINDS):
            record[f"optim/grad_norm/{kind}"] = norm * 0.5**n * rng.uniform(0.9, 1.1)
        records.append(record)
        if step % train["eval_every"] and step != last:
            continue
        found = {"step": step, "val/loss": loss(step), "val/bits_per_byte": loss(step) / 2.79}
        for n, of in enumerate(routed):
            entropy = falling(1, 0.6, 300, step) - 0.05 * n
            found |= {f"moe/entropy/{of}": entropy, f"moe/dead_experts/{of}": int(step < 400)}
            found |= {f"moe/max_violation_since_eval/{of}": even[of], f"moe/margin/{of}": 0.9 - entropy}
            found[f"moe/flip_rate/{of}"] = falling(0.6, 0.05, 500, step) * (1 + 0.1 * n)
        for first in (0, *(2**n for n in range(8))):
            found[f"val/loss_by_position/from_{first:04d}"] = loss(step) + 2.5 / (1 + first) ** 0.6
        if experts:
            shares = [[share(k) for k in range(8)] for _ in routed]
            table = {"kinds": TOKEN_KINDS, "tokens": [10 ** (1 + n % 4) for n in range(8)]}
            table |= {"layers": list(range(layers)), "share": shares}
            records.append({"step": step, "moe/load": list(map(share, range(layers)))})
            records.append({"step": step, "moe/token_kinds": table})
        mass = {f"layer_{n:02d}": [0.5 * rng.random() ** 2 for _ in range(4)] for n in range(layers)}
        records += [{"step": step, "attention/sink_mass": mass, "samples/story": STORY}, found]
    if finished:
        end = {"loss": loss(last), "loss_half_width": 0.0024, "bits_per_byte": loss(last) / 2.79}
        end |= {"steps": last, "validation_tokens": 1014819, "tokens": last * per_step}
        end |= {"seconds": last * per_step / 6000, "tokens_per_second": 6000.0}
        final = {f"final/{name}": value for name, value in end.items()}
        records.append({"step": last, "samples/final_1": STORY} | final)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Four seeds of one recipe, and a band of three of them."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [write_run(folder / f"seed{n}", seed=n) for n in (1, 2, 3, 4)]
    band = folder / "toy.json"
    words = [*runs[:3], "--recipe", "toy", "--out", band, "--tinystories", "/data/stories/"]
    assert make_bands.main(list(map(str, words))) == 0
    return runs, band


def read(*folders):
    return report_runs.read_runs(folders)


def look(*folders, axis="tokens", band=None):
    runs = read(*folders)
    return Look(runs, axis, band, runs if band else [])


def titles(some):
    return [panel.title for panel in panels(some)]


def failure(capsys, *argv):
    """The one line on stderr of a command that must end with exit code 2."""
    assert report.main([str(word) for word in argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


# reading


def test_a_run_is_its_folder_or_its_metrics_file(tmp_path):
    folder = write_run(tmp_path / "model", steps=300)
    by_folder, by_file = map(report_runs.read_run, (folder, folder / "metrics.jsonl"))
    assert by_folder.entries == by_file.entries and by_folder.config == by_file.config
    assert by_folder.name == by_file.name == "model"


def test_runs_of_one_name_are_told_apart_by_the_folders_above(tmp_path):
    runs = read(*(write_run(tmp_path / name / "model", steps=60) for name in "ab"))
    assert [run.name for run in runs] == ["a/model", "b/model"]


def test_tokens_and_minutes_are_interpolated_and_continue_at_the_mean_pace(tmp_path):
    rows = [(10, 100, 60), (20, 400, 90)]
    records = [{"step": s, "data/tokens": n, "perf/seconds": t} for s, n, t in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    run = report_runs.read_run(tmp_path)
    np.testing.assert_allclose(run.at([0, 5, 10, 15, 40], "tokens"), [0, 50, 100, 250, 800])
    np.testing.assert_allclose(run.at([5, 20, 40], "minutes"), [0.5, 1.5, 3.0])


def test_smoothing_is_the_mean_of_the_finite_values_in_the_window_before():
    series = report_runs.Series(np.array([1.0, 2, 3, 4]), np.array([1.0, math.nan, 5, 7]))
    np.testing.assert_allclose(report_runs.smooth(series, 2).values, [1, 1, 5, 6])


# the table


def test_the_table_has_a_row_per_figure_and_a_column_per_run(tmp_path):
    runs = read(
        write_run(tmp_path / "moe", steps=600),
        write_run(tmp_path / "dense", steps=600, experts=0, finished=False, lr=0.004),
    )
    table = report_table.figures_table(runs, 200).splitlines()
    row = {line[:34].strip(): line[34:].split("  ") for line in table}
    cells = {name: [cell.strip() for cell in found if cell.strip()] for name, found in row.items()}
    assert cells[""] == ["moe", "dense"]
    assert cells["status"] == ["finished", "not finished: step 400 of 600"]
    assert cells["parameters"] == ["3,627,696", "3,627,696"]
    assert cells["training tokens"] == ["1,228,800", "819,200"]
    assert cells["dead experts"] == ["0 of 32", "-"]
    assert cells["lr"] == ["0.008", "0.004"]
    assert cells["validation loss, nats/token"][0].endswith("+- 0.0024")
    assert cells["validation loss, nats/token"][1].endswith("so far")
    assert len({len(line) for line in table}) == 1  # columns end together


def test_a_table_that_is_too_wide_continues_below(tmp_path):
    runs = read(*(write_run(tmp_path / f"run_{n}", steps=60) for n in range(4)))
    table = report_table.figures_table(runs, 70)
    assert all(len(line) <= 70 for line in table.splitlines())
    assert table.count("validation loss") == 2


def test_runs_that_cannot_be_compared_are_reported_with_the_reason(tmp_path):
    first = write_run(tmp_path / "first", steps=60)
    assert report_table.comparability(read(first, write_run(tmp_path / "same", steps=60))) == []

    def warnings(**changes):
        other = write_run(tmp_path / "_".join(changes), steps=60, **changes)
        return " ".join(report_table.comparability(read(first, other)))

    assert "losses cannot be compared, bits per byte can" in warnings(tokenizer="gpt2")
    assert "neither losses nor bits per byte can be compared" in warnings(val_dataset="other.jsonl")
    assert "neither losses nor bits per byte can be compared" in warnings(val_dataset=None)
    assert "the curves are from different validation tokens" in warnings(eval_tokens=4096)
    assert "training data differ" in warnings(dataset="more.jsonl")
    assert "no config.json" in warnings(config=False)
    assert warnings(dataset="/elsewhere/train.jsonl") == ""  # the same file on another machine


# bands


def test_a_band_holds_seeds_and_settings_but_no_path_of_a_machine(made):
    band = json.loads(made[1].read_text())
    assert [run["seed"] for run in band["runs"]] == [1, 2, 3]
    told = "python train.py --dataset $TINYSTORIES/train.jsonl --val_dataset=v.jsonl --seed 1 --out_dir 'a b'"
    assert band["runs"][0]["command"] == told and "/data" not in made[1].read_text()
    assert band["settings"]["train"]["dataset"] == "train.jsonl"
    assert not {"seed", "out_dir", "device", "eval_every"} & band["settings"]["train"].keys()
    curve = band["tags"]["val/bits_per_byte"]
    assert curve["tokens"][-1] == 3000 * 2048
    finals = [report_runs.read_run(run).last("final/bits_per_byte") for run in made[0][:3]]
    assert curve["mean"][-1] == pytest.approx(np.mean(finals), rel=1e-4)
    assert curve["min"][-1] == pytest.approx(min(finals), rel=1e-4)
    assert curve["max"][-1] == pytest.approx(max(finals), rel=1e-4)


BAD_THIRD_RUNS = [
    (dict(steps=300, lr=0.004), "only in seed and out_dir; other has "),
    (dict(finished=False), "finished runs; other is not finished"),
    (dict(seed=2), "each of another seed; got 3 runs of 2 seeds"),
    (dict(config=False), "has no config.json"),
    (dict(max_iters=None, max_minutes=20.0), "ended by max_minutes"),
]


@pytest.mark.parametrize("changes, words", BAD_THIRD_RUNS)
def test_a_band_is_refused_unless_finished_runs_differ_in_their_seed_alone(
    made, tmp_path, capsys, changes, words
):
    other, out = write_run(tmp_path / "other", **{"seed": 9} | changes), tmp_path / "band.json"
    argv = [*map(str, (*made[0][:2], other)), "--recipe", "toy", "--out", str(out)]
    assert make_bands.main(argv) == 2 and not out.exists()
    assert words in capsys.readouterr().err
    assert make_bands.main(argv[:2] + argv[3:]) == 2
    assert "at least 3 runs" in capsys.readouterr().err


def test_the_band_is_as_wide_as_the_seeds_and_never_under_two_percent():
    columns = {"tokens": [1, 2], "mean": [2.0, 2.0], "sd": [0.1, 0.001]}
    tokens, low, mean, high = report_bands.edges("val/loss", columns)
    np.testing.assert_allclose(low, [1.7, 1.96])
    np.testing.assert_allclose(high, [2.3, 2.04])


@pytest.mark.parametrize(
    "recipe, band", [("light", "light_tinystories"), ("quickstart", "quickstart_bundled")]
)
def test_a_run_of_a_shipped_recipe_finds_its_band(recipe, band, tmp_path):
    """Settings that came after the band was made count as their defaults."""
    command = parse_command_line(["--config", f"configs/{recipe}.yaml"], model_fields)
    shipped = report_bands.read_band(report_bands.FOLDER / f"{band}.json")
    data = {name: shipped.settings["train"][name] for name in report_bands.DATA}
    vocabulary = {"vocab_size": shipped.settings["model"]["vocab_size"]}
    model = asdict(build_config("gptoss", "toy", command.model_overrides | vocabulary))
    layers = model["layer_types"] and list(model["layer_types"])  # as JSON keeps them
    config = {"train": asdict(command.config) | data, "model": model | {"layer_types": layers}}
    config["tokenizer"] = {"sha256": shipped.settings["tokenizer"]}
    mine = report_bands.settings(replace(report_runs.read_run(write_run(tmp_path)), config=config))
    assert report_bands.differences(mine, shipped.settings) == []


def test_a_run_finds_the_band_of_its_settings_wherever_its_data_lies(made, tmp_path):
    bands = [report_bands.read_band(made[1])]
    free = dict(seed=77, device="cuda", dtype="bfloat16", eval_every=250, dataset="~/x/train.jsonl")
    same = report_runs.read_run(write_run(tmp_path / "same", **free))
    assert report_bands.match(same, bands) == (bands[0], "")
    other = report_runs.read_run(write_run(tmp_path / "other", lr=0.004))
    told = "no reference for other: it differs from the nearest, toy, in lr 0.004 (not 0.008)"
    assert report_bands.match(other, bands) == (None, told)
    forced = report_bands.match(other, bands, str(made[1]))
    assert forced.band is bands[0] and "although other differs in lr 0.004" in forced.line
    bare = report_runs.read_run(write_run(tmp_path / "bare", config=False))
    assert report_bands.match(bare, bands, str(made[1])) == (bands[0], "")
    longer = report_runs.read_run(write_run(tmp_path / "longer", steps=600))
    assert "max_iters 600 (not 3000)" in report_bands.match(longer, bands).line


def test_a_setting_that_neither_side_uses_does_not_differ():
    one, other = (
        {"train": {"balance": "aux", "bias_rate": x}, "model": {}, "tokenizer": None} for x in (1, 2)
    )
    assert report_bands.differences(one, other) == []
    other["train"]["balance"] = "bias"
    assert report_bands.differences(one, other) == ["balance aux (not bias)", "bias_rate 1 (not 2)"]


def test_a_setting_that_is_newer_than_the_band_agrees_at_its_default():
    old = {"train": {"lr": 0.1}, "model": {}, "tokenizer": "a"}
    new = {"train": {"lr": 0.1, "decay": 0.4}, "model": {"gate": False}, "tokenizer": "a"}
    assert report_bands.differences(new, old) == report_bands.differences(old, new) == []
    new = {"train": {"lr": 0.1, "decay": 0.5}, "model": {"gate": True}, "tokenizer": "a"}
    assert report_bands.differences(new, old) == ["decay 0.5 (not 0.4)", "gate true (not none)"]
    new = {"train": {"lr": 0.1, "model": "gptoss"}, "model": {"router": "topk_softmax"}, "tokenizer": "a"}
    assert report_bands.differences(new, old) == report_bands.differences(old, new) == []
    new["model"]["router"] = "topk_sigmoid"
    assert report_bands.differences(new, old) == ["router topk_sigmoid (not topk_softmax)"]


def test_a_usual_run_is_called_normal_and_a_worse_one_above_its_band(made, tmp_path):
    band = report_bands.read_band(made[1])
    fourth = report_runs.read_run(made[0][3])
    found = {tag: report_bands.verdict(fourth, band, tag) for tag in report_bands.TAGS}
    assert {tag: v.place for tag, v in found.items()} == dict.fromkeys(report_bands.TAGS, "normal")
    for told in (" at 6.14 M tokens: ", "over 3 seeds"):
        assert told in found["val/loss"].line
    forced = report_runs.read_run(write_run(tmp_path / "forced", seed=5, shift=0.4, lr=0.1))
    assert "look at" not in report_bands.verdict(forced, band, "val/loss").line  # at lr, of course
    worse = report_runs.read_run(write_run(tmp_path / "worse", seed=5, shift=0.4, finished=False))
    above = report_bands.verdict(worse, band, "val/bits_per_byte")
    assert above.place == "above" and "at 4.1 M tokens" in above.line and "look at lr" in above.line
    better = report_runs.read_run(write_run(tmp_path / "better", seed=5, shift=-0.4))
    assert report_bands.verdict(better, band, "val/loss").place == "below"
    dense = report_runs.read_run(write_run(tmp_path / "dense", experts=0))
    assert report_bands.verdict(dense, band, "moe/entropy") is None


def test_the_shipped_bands_are_of_shipped_recipes():
    for band in report_bands.known_bands(None):
        recipe = json.loads((report_bands.FOLDER / f"{band.name}.json").read_text())["recipe"]
        assert (REPO_ROOT / "configs" / f"{recipe}.yaml").exists(), band.name
        assert band.seeds >= report_bands.FEWEST_SEEDS
        assert "val/bits_per_byte" in band.curves


# the page


def texts(figure):
    """(text, bounding box) of all that stands on the page itself, not in a panel's axes."""
    renderer = figure.canvas.get_renderer()
    return [(t.get_text(), t.get_window_extent(renderer)) for t in figure.texts]


def assert_nothing_overlaps(figure):
    page = figure.bbox
    boxes = texts(figure)
    for text, box in boxes:
        assert page.x0 <= box.x0 and box.x1 <= page.x1, f"{text!r} leaves the page"
    for n, (text, box) in enumerate(boxes):
        for other, other_box in boxes[:n]:
            assert not box.overlaps(other_box), f"{text!r} lies on {other!r}"
    renderer = figure.canvas.get_renderer()
    panels_ = [(ax, ax.get_tightbbox(renderer)) for ax in figure.axes]
    for n, (ax, box) in enumerate(panels_):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 + 1, f"{ax.get_ylabel()!r} leaves the page"
        for other, other_box in panels_[:n]:
            same = other_box.shrunk(0.999, 0.999)
            assert not box.overlaps(same), f"{ax.get_ylabel()!r} lies on {other.get_ylabel()!r}"


def test_the_page_of_a_run_shows_every_instrument_and_nothing_overlaps(made):
    band = report_bands.read_band(made[1])
    some = look(made[0][3], band=band)
    assert titles(some) == [
        "Validation bits per byte", "Train and validation loss", "Learning rate", "Gradient norm",
        "Speed", "Max violation of even load", "Router entropy", "Router margin", "Flip rate",
        "Dead experts", "Load of the experts", "Which experts take which kind of token",
        "Attention on the sink", "Validation loss by position", "Gradient norm by kind of parameter",
    ]  # fmt: skip
    assert next(panels(some)).note.endswith("inside the reference")
    figure = draw_page(some)
    for ax in figure.axes:
        assert ax.get_ylabel() and ax.get_xlabel() or not ax.axison, "an axis without a label"
    assert_nothing_overlaps(figure)
    assert "A story" in [text for text, _ in texts(figure)]


def test_runs_side_by_side_of_different_kinds_share_a_page(made, tmp_path):
    name = "a_very_long_name_that_someone_gave_to_a_run_of_theirs_with_every_setting_in_it"
    some = look(
        made[0][0],
        write_run(tmp_path / name, experts=32, finished=False, lr=0.004),
        write_run(tmp_path / "dense", experts=0, steps=900, tokenizer="gpt2"),
    )
    names = titles(some)
    assert sum(title.startswith("Load of the experts: ") for title in names) == 2
    assert {some.style(run)["color"] for run in some.runs} == {"#0072B2", "#D55E00", "#009E73"}
    maps = [row for row in in_rows(list(panels(some))) if row[0].new_row]
    assert [panel.title[:10] for panel in maps[0]] == ["Load of th"] * 2
    figure = draw_page(some)
    assert_nothing_overlaps(figure)
    (curves,) = (ax for ax in figure.axes if ax.get_ylabel() == "bits per byte")
    named = [text.get_text()[:6] for text in curves.get_legend().get_texts()]
    assert named == ["seed1:", "a_very", "dense:"]


def test_a_panel_without_data_is_left_out(tmp_path):
    dense = titles(look(write_run(tmp_path / "dense", experts=0, steps=300)))
    assert not [title for title in dense if "xpert" in title or "outer" in title or title == "Flip rate"]
    assert "Speed" in dense and "Utilisation" not in dense


def test_a_run_that_has_just_begun_or_met_a_nan_is_drawn(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"train": TRAIN, "model": {}}))
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "train/loss": null, "optim/grad_norm": null, "moe/max_violation/layer_03": 0.5, '
        '"data/tokens": 9}\n{"step": 2, "tr'
    )
    png = page_png(look(tmp_path))
    assert png.startswith(b"\x89PNG")
    assert "not finished: step 1 of 3,000" in report_table.figures_table(read(tmp_path), 80)


# the command


def test_the_command_prints_the_table_and_the_verdict_and_writes_the_page(made, tmp_path, capsys):
    folder = write_run(tmp_path / "model", seed=6)
    assert report.main([str(folder), "--reference", str(made[1]), "--x", "minutes"]) == 0
    out, err = capsys.readouterr()
    assert "bits per byte" in out and "reference 0." in out and out.count(": normal") >= 5
    assert err == f"wrote {folder / 'report.png'}\n"
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in folder.glob(".*")] == []


def test_without_a_reference_one_line_says_why(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("evaluation.report.page.page_png", lambda look: b"png")
    monkeypatch.chdir(tmp_path)
    assert report.main([str(made[0][0])]) == 0
    assert capsys.readouterr().out.count("no reference") == 1
    assert report.main([*map(str, made[0][:2]), "--reference", "none"]) == 0
    assert "reference" not in capsys.readouterr().out
    (page,) = (tmp_path / "runs").iterdir()  # of several runs
    assert page.name.startswith("report-") and page.read_bytes() == b"png"


NO_RUNS = [
    ("", "has no record yet"),
    ("[1]\n", "must be a JSON object"),
    ('{"loss": 1}\n', "must be a JSON object with a step"),
    ('{"step": 10, "train/loss": 2.5}\n', "add --x step"),
]


@pytest.mark.parametrize("content, words", NO_RUNS)
def test_a_path_that_is_not_a_run_is_refused_in_one_sentence(tmp_path, capsys, content, words):
    assert "must be the folder of a training run" in failure(capsys, tmp_path)
    assert "is neither" in failure(capsys, tmp_path / "nowhere")
    (tmp_path / "metrics.jsonl").write_text(content)
    assert words in failure(capsys, tmp_path)
    assert "is given twice" in failure(capsys, *2 * [write_run(tmp_path / "model", steps=60)])
    assert not list(tmp_path.rglob("*.png"))


STEP = '{"step": 1, "data/tokens": 9, '
DAMAGED = {  # file: what stands in it in place of what was written
    "config.json": ["{", "[1]", '{"train": 3}', '{"train": {"max_iters": "many"}}', '{"starts": {"0": 1}}',
                    '{"tokenizer": ["a"]}', '{"parameters": 5}'],
    "metrics.jsonl": [STEP + '"train/loss": [1]}\n{"step": 2, "train/loss": 2}\n', STEP + '"train/loss": 1e99}\n',
                      STEP + '"moe/load": [[1], [1, 2]]}\n', STEP + '"moe/token_kinds": {"kinds": 1}}\n',
                      STEP + '"attention/sink_mass": {"layer_a": [1]}}\n', STEP + '"samples/story": 7}\n',
                      f'{{"step": 1{"0" * 400}, "train/loss": 2}}\n'],
    "band.json": ["{", "[]", '{"settings": {}, "tags": {}, "runs": []}',
                  '{"settings": {"train": {}, "model": {}, "tokenizer": "a"}, "runs": [1], "tags": {"val/loss": '
                  '{"tokens": [2, 1], "mean": [1, 1], "sd": [1, 1]}}}'],
}  # fmt: skip


@pytest.mark.parametrize("name, content", [(n, c) for n, found in DAMAGED.items() for c in found])
def test_a_damaged_file_is_refused_in_one_sentence_with_its_name_and_a_remedy(
    tmp_path, capsys, name, content
):
    folder = write_run(tmp_path / "model", steps=60)
    (folder / name).write_bytes(content.encode("latin-1"))
    words = ("--reference", folder / name) if name == "band.json" else ()
    told = failure(capsys, folder, *words)
    assert f"error: {folder}" in told and "cannot be read as" in told and "; " in told
    assert not list(tmp_path.rglob("*.png"))


WRONG_FLAGS = [
    (("--out", "page.pdf"), "must end in .png"),
    (("--out", "no/page.png"), "create it first"),
    (("--reference", "model/config.json"), "make_bands wrote"),
    (("--reference", "none.json"), "none.json: No such file"),
    (("--x", "hours"), "invalid choice"),
]


@pytest.mark.parametrize("flags, words", WRONG_FLAGS)
def test_a_wrong_flag_is_refused_before_the_work(tmp_path, capsys, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    assert words in failure(capsys, write_run(tmp_path / "model", steps=60), *flags)
    assert not list(tmp_path.rglob("*.png"))


def test_help_imports_neither_torch_nor_matplotlib():
    code = (
        "import sys, evaluation.report.__main__ as report\n"
        "try: report.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'matplotlib', 'numpy') if m in sys.modules])"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=REPO_ROOT, capture_output=True, text=True)
    assert "--reference" in done.stdout and done.stdout.endswith("[]\n"), done.stderr
