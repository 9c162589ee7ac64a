"""Streaming from the Hub: its layout over loopback, the shuffle buffer, bad connections."""

import functools
import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from hub_server import REPO, HubServer

import training.data_hub as data_hub
from architecture.tokenizer import get_tokenizer
from training.data_documents import is_validation_document
from training.data_hub import HubSource, HubUnreachable, open_hub
from training.data_loader import TrainLoader

REPO_ROOT = Path(__file__).resolve().parent.parent
STORIES = [f"{n} went home. " + "It rained again. " * (n % 9) + "The end." for n in range(400)]


def jsonl(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def hub_process(server_url, folder, program, *arguments):
    """Run a program with that hub; huggingface_hub reads HF_ENDPOINT when it is imported."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": server_url,
        "HF_HOME": str(folder / "hf"),
        "PYTHONPATH": str(REPO_ROOT),
    }
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


STREAM = """
    import json, sys, torch
    import training.data_hub as data_hub
    from architecture.tokenizer import get_tokenizer
    from training.data_loader import TrainLoader, validation_batches
    from training.data_sources import open_dataset

    data_hub.BUFFER_DOCUMENTS, data_hub.SNAPSHOT_EVERY = 50, 64
    tokenizer, size = get_tokenizer("stories4k"), {"batch_size": 2, "block_size": 64}
    source = open_dataset("tinystories", split="train")
    assert list(source.documents()) == json.load(open(sys.argv[1])), "not the training split"
    with TrainLoader(source, tokenizer, **size) as loader:
        for _ in range(int(sys.argv[2])):
            next(loader)
        torch.save(loader.state_dict(), sys.argv[3])
        expected = [next(loader)["input_ids"] for _ in range(30)]
    state = torch.load(sys.argv[3], weights_only=True)
    source = open_dataset("tinystories", split="train")
    with TrainLoader(source, tokenizer, state=state, **size) as loader:
        for batch in expected:
            assert torch.equal(next(loader)["input_ids"], batch), "not resumed"
    validation = open_dataset("tinystories", split="validation")
    for _ in range(2):
        batches = validation_batches(validation, tokenizer, **size)
        print(sum(int((batch["targets"] != -100).sum()) for batch in batches))
    for name, column in (("tinystories", "story"), ("nobody/nothing", "text")):
        try:
            open_dataset(name, split="train", text_column=column)
        except ValueError as error:
            print(error)
"""


def test_tinystories_streams_and_resumes_from_a_server_with_the_hubs_layout(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(STORIES[:300]))
    files = {
        "data/train.jsonl": jsonl([STORIES[0], "", *STORIES[1:300]]),
        "data/validation.jsonl": jsonl(STORIES[300:]),
    }
    with HubServer(files) as server:
        arguments = tmp_path / "train.json", 150, tmp_path / "state.pt"
        done = hub_process(server.url, tmp_path, STREAM, *arguments)
    assert done.returncode == 0, done.stderr
    tokenizer = get_tokenizer("stories4k")
    targets = sum(len(tokenizer.encode_ordinary(text)) + 1 for text in STORIES[300:])
    first, second, column, absent = done.stdout.splitlines()
    assert int(first) == int(second) == targets
    assert column == f"{REPO} has no column 'story'; it has text: choose with --text_column"
    assert absent.startswith("dataset 'nobody/nothing' is no file or folder here")


# ---- the same without a server: any IterableDataset of datasets


@pytest.fixture
def local_hub(monkeypatch):
    """local_hub(train=[...], ...) makes these texts the splits of every dataset on the Hub."""
    datasets = pytest.importorskip("datasets")

    def publish(**splits):
        def examples(texts):
            for text in texts:
                yield {"text": text}

        made = {
            name: datasets.IterableDataset.from_generator(examples, gen_kwargs={"texts": texts})
            for name, texts in splits.items()
        }
        monkeypatch.setattr(data_hub, "_current_revision", lambda name: "abc")
        monkeypatch.setattr(data_hub, "_load", lambda name, revision: made)

    return publish


def source_of(split="train", whole=False):
    return open_hub("org/name", split=split, whole=whole, text_column="text")


def take(documents, count):
    return [next(documents) for _ in range(count)]


@pytest.mark.parametrize("buffer_documents", [1, 30, 10_000])
@pytest.mark.parametrize("characters", [2_000, 10**9])
def test_a_buffered_shuffle_resumes_exactly_at_any_cut(
    local_hub, monkeypatch, buffer_documents, characters
):
    monkeypatch.setattr(data_hub, "BUFFER_DOCUMENTS", buffer_documents)
    monkeypatch.setattr(data_hub, "BUFFER_CHARACTERS", characters)
    monkeypatch.setattr(data_hub, "SNAPSHOT_EVERY", 7)
    texts = [*STORIES[:50], "", *STORIES[50:100]]
    local_hub(train=texts, validation=STORIES[100:])
    shuffled, states, documents = source_of().shuffled(seed=1), [], []
    for _ in range(320):
        states.append(json.dumps(shuffled.state_dict()))
        documents.append(next(shuffled))
    for epoch in range(3):  # every epoch has every document once
        assert sorted(documents[100 * epoch :][:100]) == sorted(STORIES[:100])
    assert shuffled.epoch == 3
    if buffer_documents > 1:
        assert documents[:100] != documents[100:200] and documents[:100] != STORIES[:100]
    sizes = [len(json.loads(state)["buffer"]) for state in states]
    assert max(sizes) < max(2, min(buffer_documents, 51)) and 0 in sizes
    for cut in (0, 1, 5, 13, 49, 60, 98, 99, 100, 101, 150, 199, 200, 270):
        resumed = source_of().shuffled(seed=1, state=json.loads(states[cut]))
        assert take(resumed, 40) == documents[cut : cut + 40]


def test_the_first_document_needs_two_of_the_stream(local_hub):
    local_hub(train=STORIES, validation=STORIES)
    shuffled = source_of().shuffled(seed=0)
    next(shuffled)
    state = shuffled.state_dict()
    assert len(state["buffer"]) == 1 and state["position"]["since"] == 2


@pytest.mark.parametrize("packing", ["packed", "lanes"])
def test_a_streamed_loader_resumes_over_epochs_through_a_checkpoint(
    local_hub, monkeypatch, tmp_path, packing
):
    monkeypatch.setattr(data_hub, "BUFFER_DOCUMENTS", 40)
    local_hub(train=STORIES[:100], validation=STORIES[100:])
    tokenizer, states, batches = get_tokenizer("stories4k"), [], []
    options = {"batch_size": 4, "block_size": 32, "packing": packing}
    with TrainLoader(source_of(), tokenizer, **options) as loader:
        for _ in range(90):
            states.append(loader.state_dict())
            batches.append(next(loader)["targets"])
        assert loader.progress.epoch > 0
    full = [state["source"]["buffer"] for state in states]
    for cut in (1, 4, 20, 40, 80):
        torch.save(states[cut], tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        with TrainLoader(source_of(), tokenizer, state=state, **options) as loader:
            assert all(
                torch.equal(next(loader)["targets"], batch) for batch in batches[cut : cut + 5]
            )
    assert any(len(buffer) == 39 for buffer in full) and any(
        0 < len(buffer) < 39 for buffer in full
    )


def test_a_run_goes_on_at_the_revision_that_it_began_with(local_hub, monkeypatch):
    local_hub(train=STORIES, validation=STORIES)
    state = source_of().shuffled(seed=0).state_dict()
    loaded, load = [], data_hub._load
    monkeypatch.setattr(
        data_hub, "_load", lambda name, revision: loaded.append(revision) or load(name, revision)
    )
    monkeypatch.setattr(data_hub, "_current_revision", lambda name: "newer")
    next(source_of().shuffled(seed=0, state=state))
    assert loaded == ["newer", "abc"]


def test_without_a_validation_split_the_hash_decides_within_a_bounded_part(local_hub, monkeypatch):
    monkeypatch.setattr(data_hub, "VALIDATION_DOCUMENTS", 105)
    texts = [f"Document number {n}." for n in range(13_000)]
    ours = [text for text in texts if is_validation_document(text)]
    local_hub(train=texts)
    assert list(source_of("validation").documents()) == ours[:105]
    assert not set(source_of("train").documents()) & set(ours)
    assert next(source_of("train", whole=True).documents()) == texts[0]
    monkeypatch.setattr(data_hub, "VALIDATION_SCAN", 5_000)
    with pytest.raises(ValueError, match="of its first 5,.*--val_dataset"):
        source_of("validation")


class Flaky:
    """An IterableDataset whose connection breaks when `failures` says so."""

    column_names = None

    def __init__(self, failures):
        self.failures, self.start, self.read = failures, 0, 0

    def shard(self, **_):
        return Flaky(self.failures)

    def state_dict(self):
        return {"read": self.read}

    def load_state_dict(self, state):
        self.start = self.read = state["read"]

    def __iter__(self):
        for text in STORIES[self.start :]:
            self.read += 1
            if self.read in self.failures:
                self.failures.remove(self.read)
                raise ConnectionError("Server Disconnected")
            yield {"text": text}


def flaky_source(monkeypatch, failures):
    monkeypatch.setattr(data_hub, "RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(data_hub, "SNAPSHOT_EVERY", 16)
    return HubSource("org/name", "train", Flaky(failures), revision="abc", text_column="text")


def test_a_broken_connection_is_taken_up_where_it_broke(monkeypatch):
    source = flaky_source(monkeypatch, [1, 1, 16, 17, 40, 40, 333])
    assert list(source.documents()) == STORIES


def test_a_connection_that_stays_broken_is_one_sentence(monkeypatch):
    with pytest.raises(
        HubUnreachable, match="failed 3 times .*Server Disconnected.*check the network"
    ):
        list(flaky_source(monkeypatch, [40] * 3).documents())


def test_a_hub_that_does_not_answer_is_noticed_soon(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(data_hub, "PROBE_SECONDS", 0.5)  # 3 s otherwise
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(hub, "HfApi", functools.partial(hub.HfApi, endpoint=url))
        began = time.monotonic()
        with pytest.raises(HubUnreachable, match="cannot be reached.*--dataset DIR/data") as caught:
            source_of()
    assert time.monotonic() - began < 3 and "\n" not in str(caught.value)


def test_a_hub_that_refuses_the_connection_is_noticed_at_once(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr(hub, "HfApi", functools.partial(hub.HfApi, endpoint=url))
    began = time.monotonic()
    with pytest.raises(HubUnreachable, match="cannot be reached"):
        source_of()
    assert time.monotonic() - began < 3
