"""Lanes: resets, every document once, long and short ones, exact resume, how much is padding."""

import itertools

import numpy as np
import pytest
import torch
from test_data_loader import EOT, STORIES, Stories, stream_of, take

from architecture.tokenizer import get_tokenizer
from data.documents import IndexedSource
from data.loader import TrainLoader
from data.packing import validation_lanes
from data.sources import open_dataset
from training.validation import NumberedSums


class Ids(IndexedSource):
    """Documents that are token ids already."""

    name = "ids"

    def __init__(self, lengths):
        draw = np.random.default_rng(0)
        self.ids = [draw.integers(0, 4000, length) for length in lengths]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return self.ids[index]


@pytest.fixture(scope="module")
def tokenizer():
    return get_tokenizer("stories4k")


def documents_of(batches) -> list[list[int]]:
    """What each lane walked through between two resets, without its padding: [EOT, ids, EOT] each."""
    found, open_ones = [], {}
    for batch in batches:
        for row, begins in enumerate(batch["reset"].tolist()):
            inputs, targets = (batch[name][row].tolist() for name in ("input_ids", "targets"))
            count = sum(target != -100 for target in targets)
            assert targets[count:] == [-100] * (len(targets) - count)
            assert inputs[count:] == [EOT] * (len(targets) - count)
            if begins and row in open_ones:
                found.append(open_ones.pop(row))
            if count:
                open_ones.setdefault(row, inputs[:1])
                assert begins == (len(open_ones[row]) == 1)
                assert open_ones[row][-1] == inputs[0]  # goes on where the segment before ended
                open_ones[row] += targets[:count]
                assert open_ones[row][-count - 1 : -1] == inputs[:count]
    return found + list(open_ones.values())


def test_training_lanes_say_where_documents_begin(tokenizer):
    size = {"batch_size": 4, "block_size": 7, "packing": "lanes"}
    with TrainLoader(Stories(), tokenizer, resets=True, **size) as lanes:
        batches = take(lanes, 80)
    assert batches[0]["reset"].all() and batches[0]["reset"].dtype == torch.bool
    known = [stream_of(tokenizer, [text]) for text in STORIES]
    found = documents_of(batches)
    assert sum(document in known for document in found) >= len(found) - 4 > 30
    with TrainLoader(Stories(), tokenizer, **size) as plain:
        assert next(plain).keys() == {"input_ids", "targets"}  # what the trunk takes


def test_a_resumed_loader_has_the_same_resets(tokenizer):
    size = {"batch_size": 4, "block_size": 7, "packing": "lanes", "resets": True}
    with TrainLoader(Stories(), tokenizer, **size) as lanes:
        take(lanes, 13)
        state = lanes.state_dict()
        expected = [batch["reset"].tolist() for batch in take(lanes, 20)]
    assert len(set(map(tuple, expected))) > 4
    with TrainLoader(Stories(), tokenizer, state=state, **size) as resumed:
        assert [batch["reset"].tolist() for batch in take(resumed, 20)] == expected


def test_more_lanes_than_documents_repeat_them_in_training(tokenizer):
    size = {"batch_size": 9, "block_size": 7, "packing": "lanes", "resets": True}
    with TrainLoader(Ids([30, 1, 44]), tokenizer, **size) as lanes:
        batches = take(lanes, 12)
        assert lanes.progress.epoch >= 2
    assert all((batch["targets"] != -100).any(1).all() for batch in batches)


@pytest.mark.parametrize("batch_size", [1, 3, 9])
@pytest.mark.parametrize(
    "lengths", [[20, 3, 41, 7, 6], [1, 1, 1, 1], [5, 5, 400, 5, 5], [0, 12], [6, 13, 20]]
)
def test_every_validation_document_is_in_the_lanes_once(tokenizer, lengths, batch_size):
    source = Ids(lengths)
    size = {"batch_size": batch_size, "block_size": 7, "resets": True}
    batches = list(validation_lanes(source, tokenizer, **size))
    assert all(batch["input_ids"].shape == (batch_size, 7) for batch in batches)
    assert all((batch["targets"] != -100).any() for batch in batches)
    found = documents_of(batches)
    assert sorted(found) == sorted([EOT, *ids.tolist(), EOT] for ids in source.ids)
    plain = list(validation_lanes(source, tokenizer, **{**size, "resets": False}))
    assert plain[0].keys() == {"input_ids", "targets"} and len(plain) == len(batches)


@pytest.mark.parametrize("max_tokens", [1, 20, 62, 63, 10**9])
def test_max_tokens_takes_the_first_tokens_for_any_number_of_lanes(tokenizer, max_tokens):
    ids = Ids([20, 3, 41, 7, 6]).ids
    stream = list(itertools.chain.from_iterable([*document.tolist(), EOT] for document in ids))
    for batch_size in (1, 3, 9):
        size = {"batch_size": batch_size, "block_size": 7, "max_tokens": max_tokens}
        targets = torch.cat(
            [b["targets"].flatten() for b in validation_lanes(Ids([20, 3, 41, 7, 6]), tokenizer, **size)]
        )
        assert sorted(targets[targets != -100].tolist()) == sorted(stream[:max_tokens])


def test_losses_are_summed_by_the_number_of_their_segment():
    sums, segment = NumberedSums(), 0
    for reset, losses in (
        ([1, 1, 1], [[2.0, 4.0], [1.0, 0.0], [3.0, 3.0]]),
        ([0, 1, 0], [[5.0, 5.0], [7.0, 0.0], [6.0, 8.0]]),
        ([0, 0, 1], [[9.0, 0.0], [1.0, 1.0], [0.0, 0.0]]),
    ):
        losses = torch.tensor(losses)
        segment = torch.where(torch.tensor(reset).bool(), 0, segment + 1)
        sums.add(segment, losses.sum(1), (losses > 0).sum(1))
    first = [2.0, 4.0, 1.0, 3.0, 3.0, 7.0]  # the third lane's last segment is padding
    second = [5.0, 5.0, 6.0, 8.0, 1.0, 1.0]
    nats, tokens = sums.result().T
    assert (nats / tokens).tolist() == pytest.approx([sum(first) / 6, sum(second) / 6, 9.0])


def test_at_segments_of_64_at_most_15_percent_of_tinystories_is_padding(tokenizer, shared_data):
    path = str(shared_data / "tinystories" / "valid.jsonl")
    source = open_dataset(path, split="train", val_dataset=path)
    shares = []
    with TrainLoader(source, tokenizer, batch_size=8, block_size=64, packing="lanes") as lanes:
        for _ in range(400):
            next(lanes)
            shares.append(1 - lanes.progress.targets / (8 * 64))
    assert 0.05 < sum(shares) / len(shares) < 0.15
