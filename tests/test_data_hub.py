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
from hub_server import COMMIT, REPO, HubServer

import data.hub as data_hub
from architecture.tokenizer import get_tokenizer
from data.documents import is_validation_document
from data.hub import HubSource, HubUnreachable, open_hub
from data.loader import TrainLoader
from data.sources import choose_dataset, open_dataset

REPO_ROOT = Path(__file__).resolve().parent.parent
STORIES = [f"{n} went home. " + "It rained again. " * (n % 9) + "The end." for n in range(400)]


def jsonl(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def write_files(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


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


@pytest.fixture(autouse=True)
def nothing_asked_before():
    data_hub.current_revision.cache_clear()


STREAM = """
    import json, sys, torch
    from pathlib import Path
    import data.hub as data_hub
    from architecture.tokenizer import get_tokenizer
    from data.loader import TrainLoader
    from data.packing import validation_batches
    from data.sources import open_dataset

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

    # a copy of that revision in the cache continues what the stream began
    from huggingface_hub import constants
    copy = Path(constants.HF_HUB_CACHE, "datasets--roneneldan--TinyStories/snapshots", sys.argv[4])
    (copy / "data").mkdir(parents=True)
    for path in Path(sys.argv[1]).parent.glob("data/*"):
        (copy / "data" / path.name).symlink_to(path)
    source = open_dataset("tinystories", split="train")
    print(source.name)
    with TrainLoader(source, tokenizer, state=state, **size) as loader:
        for batch in expected:
            assert torch.equal(next(loader)["input_ids"], batch), "not the same in the cache"
"""


def test_tinystories_streams_and_resumes_from_a_server_with_the_hubs_layout(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(STORIES[:300]))
    files = {
        "data/train-00000-of-00002.jsonl": jsonl([STORIES[0], "", *STORIES[1:120]]),
        "data/train-00001-of-00002.jsonl": jsonl(STORIES[120:300]),
        "data/validation-00000-of-00001.jsonl": jsonl(STORIES[300:]),
    }
    write_files(tmp_path, files)
    with HubServer(files) as server:
        arguments = tmp_path / "train.json", 150, tmp_path / "state.pt", COMMIT
        done = hub_process(server.url, tmp_path, STREAM, *arguments)
    assert done.returncode == 0, done.stderr
    tokenizer = get_tokenizer("stories4k")
    targets = sum(len(tokenizer.encode_ordinary(text)) + 1 for text in STORIES[300:])
    first, second, column, absent, cached = done.stdout.splitlines()
    assert int(first) == int(second) == targets
    assert column == f"{REPO} has no column 'story'; it has text: choose with --text_column"
    assert absent.startswith("dataset 'nobody/nothing' is no file or folder here")
    assert cached == f"{REPO} (copy in the local cache)"


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
        monkeypatch.setattr(data_hub, "current_revision", lambda name: "abc")
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
    monkeypatch.setattr(data_hub, "current_revision", lambda name: "newer")
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


# ---- out of reach


@pytest.fixture
def hub_at(monkeypatch, tmp_path):
    """hub_at(url) is the Hub of this process, with an empty cache; hub_at(None) is offline mode."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(data_hub, "PROBE_SECONDS", 0.5)  # 3 s otherwise

    def point(url):
        monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", url is None)
        monkeypatch.setattr(hub.constants, "ENDPOINT", url or "http://127.0.0.1:9")
        monkeypatch.setattr(hub, "HfApi", functools.partial(hub.HfApi, endpoint=url))

    return point


def test_a_hub_that_does_not_answer_is_noticed_soon(hub_at):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and says nothing
        hub_at(f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(HubUnreachable, match="does not answer.*--dataset bundled") as caught:
            source_of()
    assert time.monotonic() - began < 3 and "\n" not in str(caught.value)
    assert caught.value.reason == "the Hub does not answer (within 0.5 s)"


def test_a_host_that_never_takes_the_connection_is_noticed_without_the_hub_s_library(
    hub_at, monkeypatch
):
    hub_at("https://hub.example")
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: time.sleep(30))
    monkeypatch.setitem(sys.modules, "huggingface_hub.hf_api", None)  # importing it would fail
    began = time.monotonic()
    with pytest.raises(HubUnreachable, match="does not answer"):
        source_of()
    assert time.monotonic() - began < 2


def test_a_hub_that_refuses_the_connection_is_noticed_at_once(hub_at):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        hub_at(f"http://127.0.0.1:{closed.getsockname()[1]}")
    began = time.monotonic()
    with pytest.raises(HubUnreachable, match="cannot be reached .Connection refused."):
        source_of()
    assert time.monotonic() - began < 3


def test_a_hub_behind_a_proxy_is_looked_for_at_the_proxy(hub_at, monkeypatch):
    asked = []
    hub_at("https://hub.example")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr(
        socket, "create_connection", lambda address, **_: asked.append(address) or socket.socket()
    )
    data_hub._connect("https://hub.example")
    monkeypatch.setenv("no_proxy", "hub.example")
    data_hub._connect("https://hub.example")
    assert asked == [("proxy.example", 3128), ("hub.example", 443)]


def test_offline_mode_is_respected_without_a_connection(hub_at, monkeypatch):
    hub_at(None)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE is set, and org/name is not in its"):
        source_of()


@pytest.fixture
def cached(tmp_path):
    """cached(names) puts files into the cache of hub_at as hf download does."""

    def put(*names):
        folder = tmp_path / "hub" / "datasets--roneneldan--TinyStories"
        contents = {n: jsonl(STORIES[:300] if "train" in n else STORIES[300:]) for n in names}
        write_files(folder / "snapshots" / COMMIT, contents)
        write_files(folder, {"refs/main": COMMIT.encode()})

    return put


def test_a_copy_in_the_cache_is_read_where_the_hub_is_out_of_reach(hub_at, cached):
    cached("README.md", "data/train-00000-of-00001.jsonl", "data/validation-00000-of-00001.jsonl")
    hub_at(None)
    source = open_dataset("tinystories", split="train")
    assert list(source.documents()) == STORIES[:300]
    assert source.name == f"{REPO} (copy in the local cache)"
    assert list(open_dataset("tinystories", split="validation").documents()) == STORIES[300:]


@pytest.mark.parametrize(
    "names",
    [
        ["README.md"],  # what streaming leaves there
        ["data/train-00000-of-00002.jsonl", "data/validation-00000-of-00001.jsonl"],
        ["data/train-00000-of-00001.jsonl"],
        ["TinyStories-train.txt", "TinyStories-valid.txt"],  # a line would be a document
    ],
)
def test_part_of_a_dataset_in_the_cache_does_not_count(hub_at, cached, names):
    cached(*names)
    hub_at(None)
    with pytest.raises(HubUnreachable, match="is not in its local cache"):
        open_dataset("tinystories", split="train")


# ---- what auto becomes


def chosen(dataset="auto"):
    told = []
    return choose_dataset(dataset, told.append), told


def test_auto_is_the_bundled_stories_where_the_hub_is_out_of_reach(hub_at):
    hub_at(None)
    assert chosen() == (
        "bundled",
        ["dataset auto: HF_HUB_OFFLINE is set; using the bundled stories"],
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub_at(f"http://127.0.0.1:{silent.getsockname()[1]}")
        told = "the Hub does not answer (within 0.5 s); using the bundled stories"
        assert chosen() == ("bundled", [f"dataset auto: {told}"])


def test_auto_is_tinystories_where_the_cache_has_it(hub_at, cached):
    cached("data/train-00000-of-00001.jsonl", "data/validation-00000-of-00001.jsonl")
    hub_at(None)
    told = "dataset auto: reading TinyStories from the Hub's local cache"
    assert chosen() == ("tinystories", [told])


def test_auto_is_tinystories_where_the_hub_answers_and_asks_it_once(hub_at, monkeypatch):
    asked = []
    hub_at("http://127.0.0.1:9")
    monkeypatch.setattr(data_hub, "_newest_revision", lambda name: asked.append(name) or "abc")
    told = "dataset auto: streaming TinyStories from the Hub"
    assert chosen() == chosen() == ("tinystories", [told]) and asked == [REPO]


def test_only_an_unreachable_hub_leads_to_the_bundled_stories(monkeypatch):
    def fail(name):
        raise ValueError("no public dataset of that name")

    monkeypatch.setattr(data_hub, "_newest_revision", fail)
    with pytest.raises(ValueError, match="no public dataset"):
        chosen()


def test_a_named_dataset_stays_what_it_is(monkeypatch):
    monkeypatch.setattr(data_hub, "_newest_revision", lambda name: pytest.fail("asked"))
    for name in ("tinystories", "bundled", "stories.txt", "org/name"):
        assert chosen(name) == (name, [])
    with pytest.raises(ValueError, match="auto chooses a --dataset only"):
        open_dataset("bundled", split="validation", val_dataset="auto")


def test_the_bundled_stories_are_a_dataset_like_any_other():
    train, validation = (open_dataset("bundled", split=split) for split in ("train", "validation"))
    documents = train.shuffled(seed=0)
    texts = take(documents, 5)
    assert take(train.shuffled(0, documents.state_dict()), 3) == take(documents, 3)
    assert len(set(texts)) == 5 and all(isinstance(text, str) and text for text in texts)
    assert len(validation) >= 100 and validation[0] not in texts
