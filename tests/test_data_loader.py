"""Batches: what each packing yields, exact resume, reading ahead, validation windows."""

import threading
import time

import numpy as np
import pytest
import torch

from architecture.tokenizer import get_tokenizer
from data.documents import IndexedSource
from data.loader import TrainLoader
from data.packing import validation_batches

EOT = 4095
STORIES = [f"{n} went home. " + "It rained again. " * (n % 9) + "The end." for n in range(60)]
SIZE = {"batch_size": 3, "block_size": 7}


class Stories(IndexedSource):
    """Documents in memory; `wait` is asked before each is read."""

    name = "stories"

    def __init__(self, texts=STORIES, wait=lambda: None):
        self.texts, self.wait = texts, wait

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        self.wait()
        return self.texts[index]


@pytest.fixture(scope="module")
def tokenizer():
    return get_tokenizer("stories4k")


def loader(tokenizer, source=None, **options):
    return TrainLoader(source or Stories(), tokenizer, **{**SIZE, **options})


def take(batches, count):
    return [next(batches) for _ in range(count)]


def equal(left, right):
    return len(left) == len(right) and all(
        torch.equal(a[key], b[key]) for a, b in zip(left, right) for key in ("input_ids", "targets")
    )


def stream_of(tokenizer, documents):
    """EOT d1 EOT d2 ... EOT"""
    ids = [EOT]
    for text in documents:
        ids += [*tokenizer.encode_ordinary(text), EOT]
    return ids


def test_packed_rows_are_the_shuffled_documents_one_after_another(tokenizer):
    shuffled = Stories().shuffled(seed=4)
    expected = stream_of(tokenizer, [next(shuffled) for _ in range(100)])
    with loader(tokenizer, seed=4) as batches:
        got = take(batches, 40)
        assert batches.progress.targets == SIZE["batch_size"] * SIZE["block_size"]
    inputs = torch.cat([batch["input_ids"].flatten() for batch in got]).tolist()
    targets = torch.cat([batch["targets"].flatten() for batch in got]).tolist()
    assert inputs == expected[: len(inputs)] and targets == expected[1 : len(inputs) + 1]


def test_batches_copied_ahead_are_the_same_at_the_same_positions(tokenizer):
    with loader(tokenizer) as plain, loader(tokenizer, device=torch.device("cpu"), ahead=5) as ahead:
        for number in range(12):
            assert equal([next(plain)], [next(ahead)])
            assert plain.state_dict()["documents"] == ahead.state_dict()["documents"]
            assert plain.progress == ahead.progress, number
            deadline = time.monotonic() + 10
            while ahead._queue.qsize() < 5 and time.monotonic() < deadline:
                time.sleep(0.001)  # so that the next call finds batches to copy
    assert len(ahead._copies) == 5


def test_a_batch_of_four_times_the_rows_is_four_batches(tokenizer):
    with loader(tokenizer) as small, loader(tokenizer, batch_size=12) as large:
        for batch in take(large, 6):
            four = take(small, 4)
            for key in ("input_ids", "targets"):
                assert torch.equal(batch[key], torch.cat([part[key] for part in four]))


def test_batches_are_int64_and_their_own_memory(tokenizer):
    with loader(tokenizer) as batches:
        batch = next(batches)
        before = batch["targets"].clone()
        batch["input_ids"].zero_()
        assert torch.equal(batch["targets"], before)
    assert all(t.dtype == torch.int64 and t.shape == (3, 7) for t in batch.values())


def test_each_lane_walks_through_whole_documents_and_never_mixes_two(tokenizer):
    known = {tuple(stream_of(tokenizer, [text])) for text in STORIES}
    with loader(tokenizer, packing="lanes", batch_size=4) as batches:
        got = take(batches, 60)
    documents = 0
    for row in range(4):
        current = []
        for batch in got:
            inputs, targets = batch["input_ids"][row].tolist(), batch["targets"][row].tolist()
            length = sum(target != -100 for target in targets)
            assert length >= 1 and targets[length:] == [-100] * (7 - length)
            assert inputs[length:] == [EOT] * (7 - length)
            assert (inputs[0] == EOT) == (not current)  # a segment begins a document or continues one
            assert EOT not in inputs[1:length] and EOT not in targets[: length - 1]
            assert current in ([], current[:-1] + inputs[:1])
            current = (current or inputs[:1]) + targets[:length]
            if current[-1] == EOT and len(current) > 1:
                assert tuple(current) in known
                current, documents = [], documents + 1
            else:
                assert length == 7  # only the last segment of a document is padded
    assert documents > 20


@pytest.mark.parametrize("packing", ["packed", "lanes", "rows"])
def test_a_resumed_loader_continues_bit_for_bit(tokenizer, tmp_path, packing):
    with loader(tokenizer, packing=packing) as batches:
        states, expected = [batches.state_dict()], []
        for _ in range(200):
            expected.append(next(batches))
            states.append(batches.state_dict())
        assert batches.progress.epoch >= 1
    for cut in (0, 1, 2, 33, 90, 150, 195):
        torch.save(states[cut], tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        with loader(tokenizer, packing=packing, state=state) as resumed:
            assert equal(take(resumed, 5), expected[cut : cut + 5])


def test_the_position_is_that_of_the_batch_returned_and_not_of_the_ones_read_ahead(tokenizer):
    with loader(tokenizer, prefetch=16) as batches:
        before = batches.state_dict()
        time.sleep(0.1)
        assert batches.state_dict().keys() == before.keys()
        assert (before["documents"], before["source"]["index"]) == (0, 0)
        next(batches)
        assert 0 < batches.state_dict()["documents"] == batches.progress.documents < 10


@pytest.mark.parametrize("tokens, told", [(slice(None), r"\(4\) must be 3, the"), (slice(0), r"must be 0")])
def test_a_resumed_loader_refuses_another_number_of_lanes(tokenizer, tokens, told):
    with loader(tokenizer, packing="lanes") as batches:
        state = batches.state_dict()
    state["tokens"] = state["tokens"][tokens]
    with pytest.raises(ValueError, match=told):
        loader(tokenizer, state=state, packing="lanes", batch_size=4)


@pytest.mark.parametrize("packing", ["packed", "lanes"])
def test_fewer_tokens_than_one_batch_are_refused_at_once(tokenizer, packing):
    size = len(stream_of(tokenizer, STORIES[:5])) - 2  # one EOT per document, one target more
    enough = {"batch_size": 1, "block_size": size, "packing": packing}
    loader(tokenizer, Stories(STORIES[:5]), **enough).close()
    with pytest.raises(ValueError, match=f"{size + 1} tokens in all, but one batch needs"):
        loader(tokenizer, Stories(STORIES[:5]), **{**enough, "block_size": size + 1})


def test_an_exception_of_the_reader_reaches_the_consumer_as_itself_after_all_batches_before_it(tokenizer):
    class DiskOnFire(Exception):
        pass

    def batches_before_the_error(ahead):
        reads = iter(range(1000))

        def wait():
            if next(reads) == 90:
                raise DiskOnFire

        threads, taken = threading.active_count(), 0
        with loader(tokenizer, Stories(wait=wait), ahead=ahead) as batches:
            with pytest.raises(DiskOnFire):
                while True:
                    next(batches)
                    taken += 1
            assert threading.active_count() == threads
        return taken

    assert batches_before_the_error(0) == batches_before_the_error(5) > 20


def test_close_ends_a_reader_that_is_blocked(tokenizer):
    threads = threading.active_count()
    batches = loader(tokenizer, prefetch=1)
    time.sleep(0.05)  # the queue is full now
    began = time.monotonic()
    batches.close()
    assert time.monotonic() - began < 1 and threading.active_count() == threads
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)


def test_reading_goes_on_while_the_model_computes(tokenizer):
    with loader(tokenizer, Stories(wait=lambda: time.sleep(0.001)), prefetch=8) as batches:
        take(batches, 2)
        time.sleep(0.3)
        began = time.monotonic()
        take(batches, 8)
        assert time.monotonic() - began < 0.2


# ---- validation


def targets_of(batches):
    return np.concatenate([batch["targets"].numpy().flatten() for batch in batches])


@pytest.mark.parametrize("batch_size, block_size", [(1, 5), (3, 7), (4, 64), (2, 100_000)])
def test_every_validation_token_is_scored_once_in_order(tokenizer, batch_size, block_size):
    size = {"batch_size": batch_size, "block_size": block_size}
    batches = list(validation_batches(Stories(), tokenizer, **size))
    expected = stream_of(tokenizer, STORIES)
    targets = targets_of(batches)
    assert targets[targets != -100].tolist() == expected[1:]
    inputs = torch.cat([batch["input_ids"].flatten() for batch in batches]).numpy()
    assert inputs[targets != -100].tolist() == expected[:-1]
    assert (inputs[targets == -100] == EOT).all()
    assert all(batch["input_ids"].shape == (batch_size, block_size) for batch in batches[:-1])
    assert all((batch["targets"] != -100).any(dim=1).all() for batch in batches)  # no row of padding


@pytest.mark.parametrize("max_tokens", [1, 20, 21, 22, 63, 10**9])
def test_max_tokens_bounds_what_is_scored_and_what_is_read(tokenizer, max_tokens):
    reads = []
    source = Stories(wait=lambda: reads.append(None))
    targets = targets_of(validation_batches(source, tokenizer, max_tokens=max_tokens, **SIZE))
    expected = stream_of(tokenizer, STORIES)[1:][:max_tokens]
    assert targets[targets != -100].tolist() == expected
    assert len(reads) <= max_tokens // 4 + 2
