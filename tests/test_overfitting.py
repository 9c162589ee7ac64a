"""When a run says that it overfits."""

import pytest
from toy_corpus import documents, write_jsonl
from toy_run import TINY, run_here

from training.monitor.metrics import read_metrics
from training.monitor.overfitting import Overfitting


def watched(val, train) -> Overfitting:
    """After evaluations with these losses, and two records of each training loss before each of them."""
    records = []
    for v, t in zip(val, train):
        records += [{"train/loss": t + 0.1}, {"train/loss": t - 0.1}, {"val/loss": v}]
    return Overfitting(records)


@pytest.mark.parametrize(
    "val, train, epoch, told",
    [
        (
            (2.0, 2.1, 2.2),
            (2.5, 2.4, 2.3),
            1,
            "in pass 2 over the data, validation loss rose to 2.2000 over two",
        ),
        ((2.0, 2.1, 2.2), (2.5, 2.4, 2.3), 0, ""),  # new text cannot be learnt by heart
        ((2.0, 2.1, 2.2), (2.5, 2.6, 2.3), 1, ""),  # a learning rate that is too high
        ((2.0, 2.004, 2.008), (2.5, 2.4, 2.3), 1, ""),  # noise
        ((2.2, 2.0, 2.1), (2.5, 2.4, 2.3), 1, ""),
        ((2.0, 2.2), (2.5, 2.4), 1, ""),
        (
            (2.97,),
            (1.65,),
            10,
            "in pass 11 over the data, validation loss is 2.9700, and training loss 1.6500",
        ),
        ((2.97,), (1.65,), 1, ""),  # the validation text may be harder
        ((2.0,), (1.9,), 10, ""),
        ((), (), 5, ""),
    ],
)
def test_overfitting_is_said_when_it_is_plain(val, train, epoch, told):
    line = watched(val, train).line(epoch)
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
