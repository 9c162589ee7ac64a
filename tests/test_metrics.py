"""One record in three places: metrics.jsonl, TensorBoard and the progress line."""

import io
import json
import math
import re
import sys

import numpy as np
import pytest
import torch
from conftest import REPO_ROOT

from training.monitor.metrics import COMPARED, MetricsWriter, new_run_dir, read_metrics
from training.monitor.page_layout import TASKS, page_layout
from training.monitor.routing import MARGINS


class Terminal(io.StringIO):
    def isatty(self):
        return True


def writer(out_dir, tensorboard_dir=None, **arguments):
    return MetricsWriter(out_dir, tensorboard_dir=tensorboard_dir, **arguments)


def tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


# metrics.jsonl


def test_a_record_is_one_line_with_its_step_and_is_written_at_once(tmp_path):
    w = writer(tmp_path)
    w.log(10, {"train/loss": torch.tensor(2.5), "optim/lr": 1e-3, "data/epoch": 2})
    w.log(20, {"train/loss": 2.25})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 10, "train/loss": 2.5, "optim/lr": 0.001, "data/epoch": 2},
        {"step": 20, "train/loss": 2.25},
    ]
    w.close()


def test_a_number_that_is_not_finite_is_null_in_the_file_and_nan_when_read(tmp_path):
    w = writer(tmp_path)
    w.log(1, {"train/loss": math.nan, "optim/grad_norm": math.inf})
    w.close()
    path = tmp_path / "metrics.jsonl"
    assert path.read_text() == '{"step": 1, "train/loss": null, "optim/grad_norm": null}\n'
    (record,) = read_metrics(path)
    assert math.isnan(record["train/loss"]) and record["step"] == 1


def test_resume_drops_the_records_past_its_step_and_a_line_that_a_kill_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "train/loss": 0.5}\n{"step": 2}\n{"step": 3}\n{"step": 4, "train/lo')
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3]
    w = writer(tmp_path, resume_step=2)
    w.log(3, {"train/loss": 9.0})
    w.close()
    assert read_metrics(path) == [{"step": 1, "train/loss": 0.5}, {"step": 2}, {"step": 3, "train/loss": 9.0}]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\noops\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2 is 'oops'"):
        read_metrics(path)


# TensorBoard


def test_tensorboard_holds_the_numbers_of_the_file(tmp_path):
    w = writer(tmp_path, tensorboard_dir=tmp_path / "run")
    w.log(10, {"train/loss": 2.5, "optim/lr": 0.5})
    w.log(20, {"train/loss": 2.25})
    w.text(20, "samples", "Once upon a **time**")
    pictures = {"moe/load": np.zeros((5, 7, 3), dtype=np.uint8)}
    w.show(20, "moe/load", [[0.0, 1.0], [4.0, 1.0]], pictures=lambda: pictures, markdown=lambda: "| a |")
    figures = dict.fromkeys(COMPARED, 2.0) | {"steps": 20}
    w.final(20, {"lr": 0.5, "keep": None, "optimizer": "muon"}, figures, {})
    w.close()
    events = tensorboard(tmp_path / "run")
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(10, 2.5), (20, 2.25)]
    assert [(e.step, e.value) for e in events.Scalars("optim/lr")] == [(10, 0.5)]
    assert [e.value for e in events.Scalars("hparam/loss")] == [2.0]
    assert not any(tag.startswith("final/") for tag in events.Tags()["scalars"])
    (image,) = events.Images("moe/load")
    assert (image.height, image.width) == (5, 7)
    assert "moe/load/text_summary" in events.Tags()["tensors"]
    assert "samples/text_summary" in events.Tags()["tensors"]
    assert "_hparams_/session_start_info" in events.summary_metadata
    text, heat, final = read_metrics(tmp_path / "metrics.jsonl")[2:]
    assert final == {"step": 20} | {f"final/{name}": number for name, number in figures.items()}
    assert text == {"step": 20, "samples": "Once upon a **time**"}
    assert heat == {"step": 20, "moe/load": [[0.0, 1.0], [4.0, 1.0]]}


def test_the_closing_line_is_written_after_everything_else(tmp_path, monkeypatch):
    w = writer(tmp_path, tensorboard_dir=str(tmp_path / "tb"))
    monkeypatch.setattr(w.tensorboard, "flush", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    figures = dict.fromkeys(COMPARED, 2.0)
    with pytest.raises(KeyboardInterrupt):  # as a kill would, at the last moment
        w.final(20, {}, figures, {})
    assert not read_metrics(tmp_path / "metrics.jsonl")
    monkeypatch.undo()
    w.final(20, {}, figures, {})
    w.close()
    assert "final/loss" in read_metrics(tmp_path / "metrics.jsonl")[-1]


def test_the_page_holds_its_groups_in_order_and_only_charts_with_data(tmp_path):
    from tensorboard.plugins.custom_scalar import layout_pb2

    w = writer(tmp_path, tensorboard_dir=tmp_path / "run")
    charts = page_layout(routed=True, capacity=True, sinks=True, utilisation=True)
    w.layout(charts)
    w.close()
    (event,) = tensorboard(tmp_path / "run").Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == list(charts)
    tags = [tag for c in layout.category for chart in c.chart for tag in chart.multiline.tag]
    assert tags == [tag for group in charts.values() for tags in group.values() for tag in tags]
    assert len(set(tags)) == len(tags) and all(re.compile(tag) for tag in tags)
    dense = page_layout(routed=False, capacity=False, sinks=False, utilisation=False)
    assert [title[0] for title in dense] == ["1", "2"] and "moe/" not in str(dense)


def test_every_chart_of_the_page_is_explained_in_the_table_of_tags():
    explained = (REPO_ROOT / "docs/tags.md").read_text(encoding="utf-8")
    charts = page_layout(routed=True, capacity=True, sinks=True, utilisation=True, carries=True, images=True)
    groups = (*charts.values(), *TASKS.values())
    tags = [tag for within in groups for patterns in within.values() for tag in patterns]
    names = [re.sub(r"\\|\$$", "", tag).rstrip("/_") for tag in tags]
    for bound in MARGINS[1:]:  # in one row, which spells the first one out
        names.remove(f"moe/choice_margin_under_{bound}")
        assert f"`_{bound}`" in explained
    assert [name for name in names if f"`{name}" not in explained] == ["moe/update_to_weight/mlp2"]
    assert "the same for `mlp2`" in explained


def test_without_tensorboard_no_picture_is_drawn(tmp_path):
    w = writer(tmp_path)
    w.show(1, "moe/load", [1], pictures=lambda: 1 / 0, markdown=lambda: 1 / 0)
    w.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "moe/load": [1]}]


@pytest.fixture
def in_order(monkeypatch):
    """Event files of one second are read in the order of the text of a number, in which 10 is before 9."""
    from tensorboard.summary.writer import event_file_writer as events

    monkeypatch.setattr(events, "_global_uid", events.AtomicCounter(0))


def test_a_resumed_run_replaces_what_tensorboard_holds_past_its_step(tmp_path, in_order):
    w = writer(tmp_path, tensorboard_dir=tmp_path / "run")
    for step in (1, 2, 3, 4):
        w.log(step, {"train/loss": step})
    w.close()
    w = writer(tmp_path, tensorboard_dir=tmp_path / "run", resume_step=2)
    w.log(3, {"train/loss": 9.0})
    w.close()
    scalars = tensorboard(tmp_path / "run").Scalars("train/loss")
    assert [(e.step, e.value) for e in scalars] == [(1, 1.0), (2, 2.0), (3, 9.0)]


def drawn(folder, tag="train/loss"):
    return [(event.step, event.value) for event in tensorboard(folder).Scalars(tag)]


def test_a_new_tensorboard_folder_gets_the_page_and_the_earlier_records(tmp_path, capsys, in_order):
    charts = page_layout(routed=False, capacity=False, sinks=False, utilisation=False)

    def part(steps, board=None, **arguments):
        w = writer(tmp_path, tensorboard_dir=board and tmp_path / board, **arguments)
        w.layout(charts)
        for step in steps:
            w.log(step, {"train/loss": step, "train/grad": math.nan})
            w.text(step, "samples/story", f"story {step}")
        w.close()

    part((1, 2))
    part((3, 4), "a", resume_step=2)  # switched on
    assert f"wrote the earlier records to {tmp_path}/a/, without pictures" in capsys.readouterr().err
    part((5, 6, 7), resume_step=4)
    part((7, 8), "b", resume_step=6)  # off in between: run.py gives it a new folder
    capsys.readouterr()
    part((9,), "b", resume_step=8)
    assert "earlier" not in capsys.readouterr().err
    for board, end in (("a", 4), ("b", 9)):
        assert drawn(tmp_path / board) == [(step, float(step)) for step in range(1, end + 1)]
        assert len(tensorboard(tmp_path / board).Tensors("samples/story/text_summary")) == end
        assert len(tensorboard(tmp_path / board).Tensors("custom_scalars__config__")) == 1


def test_a_checkpoint_has_its_records_in_the_files_of_tensorboard(tmp_path):
    w = writer(tmp_path, tensorboard_dir=tmp_path / "run")
    w.log(1, {"train/loss": 1})
    w.sync()  # a kill after this moment loses none of them
    assert drawn(tmp_path / "run") == [(1, 1.0)]
    w.close()


def test_a_missing_tensorboard_is_named_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard, or pass --no-use_tensorboard"):
        writer(tmp_path, tensorboard_dir=tmp_path / "run")


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("training.monitor.metrics.time.strftime", lambda form: "20250102-030405")
    made = [new_run_dir("some/where/model", root=tmp_path) for _ in range(3)]
    assert [path.name for path in made] == [f"model-20250102-030405{end}" for end in ("", "-2", "-3")]
    assert all(path.is_dir() for path in made)


# the progress line


def test_without_a_terminal_progress_is_one_clean_line_per_record(tmp_path, monkeypatch, capsys):
    clock = iter([100.0, 130.0])
    monkeypatch.setattr("training.monitor.metrics.time.monotonic", lambda: next(clock))
    w = writer(tmp_path)
    w.log(5, {"val/bits_per_byte": 1.5, "val/loss": 3.0})  # no progress, no line
    w.log(10, {"train/loss": 2.5, "perf/tokens_per_second": 12345.6}, progress=0.1)
    w.log(20, {"train/loss": 2.25}, progress=0.2)
    w.say("Once upon a time")
    w.close()
    assert capsys.readouterr().err.splitlines() == [
        "step 10   10%  loss 2.5000  val 1.500 bits/byte  12,346 tokens/s",
        "step 20   20%  loss 2.2500  val 1.500 bits/byte  12,346 tokens/s  04:00 left",
        "Once upon a time",
    ]


def test_on_a_terminal_progress_is_one_bar(tmp_path, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    w = writer(tmp_path)
    w.log(10, {"train/loss": 2.5}, progress=0.25)
    w.log(20, {"train/loss": 2.25}, progress=0.5)
    w.close()
    frames = stream.getvalue().split("\r")
    assert any("50%|##########" in f.replace("\u2588", "#") and "loss 2.2500" in f for f in frames)
    assert stream.getvalue().count("\n") <= 1
