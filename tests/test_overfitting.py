"""When a run says that it overfits."""

import pytest
from toy_corpus import documents, write_jsonl
from toy_run import TINY, run_here

from training.monitor.metrics import read_metrics
from training.reporting import overfitting


@pytest.mark.parametrize(
    "val, train, epoch, told",
    [
        (
            2.97,
            (1.7, 1.6),
            10,
            "in pass 11 over the data, validation loss is 2.9700, and training loss 1.6500",
        ),
        (2.97, (1.7, 1.6), 1, ""),  # the validation text may be harder
        (2.0, (1.9,), 10, ""),
        (2.0, (), 10, ""),  # no record since the evaluation before
    ],
)
def test_overfitting_is_said_when_it_is_plain(val, train, epoch, told):
    line = overfitting(val, train, epoch)
    assert told in line and bool(told) == bool(line) and "\n" not in line


def test_a_run_counts_its_passes_and_says_that_it_overfits(tmp_path, capsys):
    texts = documents(40)
    data = ["--dataset", write_jsonl(tmp_path / "few.jsonl", texts[:2])]
    data += ["--val_dataset", write_jsonl(tmp_path / "others.jsonl", texts[2:])]
    flags = [*TINY, "--max_iters", 24, "--eval_every", 8, "--lr", 0.03, "--no-use_tensorboard"]
    assert run_here(tmp_path, *flags, *data) == 0
    err = capsys.readouterr().err
    epoch = [r for r in read_metrics(tmp_path / "model/metrics.jsonl") if "data/epoch" in r][-1]["data/epoch"]
    assert epoch >= 2 and f"pass {epoch + 1:.0f}" in err and "pass 1" in err
    assert f"overfitting: in pass {epoch + 1:.0f} over the data, validation loss is " in err
    assert f"tokens/s), in pass {epoch + 1:.0f} over the data\n" in err
