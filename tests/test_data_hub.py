"""Streaming from the Hub: positions, hostile answers, and a Hub that cannot be reached."""

import functools
import json
import socket
import time
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, OTHER_SHAPES, REPO, HubServer

import data.documents as data_documents
import data.hub as data_hub
from architecture.tokenizer import get_tokenizer
from data.documents import is_validation_document
from data.hub import HubUnreachable, open_hub
from data.loader import TrainLoader
from data.sources import choose_dataset, open_dataset

STORIES = [f"{n} went home. " + "It rained again. " * (n % 9) + "The end." for n in range(400)]


def jsonl(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def write_files(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.fixture(autouse=True)
def nothing_asked_before():
    data_hub.current_revision.cache_clear()
    data_hub._load.cache_clear()


@pytest.fixture
def hub_at(monkeypatch, tmp_path):
    """hub_at(url) is the Hub of this process, with an empty cache; hub_at(None) is offline mode.

    silent: the Hub will not answer, and is given up after 0.5 s.
    """
    datasets, hub = pytest.importorskip("datasets"), pytest.importorskip("huggingface_hub")
    hub.close_session()  # it has read the proxies
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def point(url, silent=False):
        monkeypatch.setattr(data_hub, "PROBE_SECONDS", 0.5 if silent else 10.0)
        endpoint = url or "http://127.0.0.1:9"
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", url is None)
        monkeypatch.setattr(hub.constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", url is None)
        monkeypatch.setattr(hub, "HfApi", functools.partial(hub.HfApi, endpoint=url))

    return point


def test_tinystories_streams_and_resumes_from_a_server_and_from_a_copy_in_the_cache(
    hub_at, monkeypatch, tmp_path
):
    monkeypatch.setattr(data_documents, "WINDOW_DOCUMENTS", 50)
    tokenizer, size = get_tokenizer("stories4k"), {"batch_size": 2, "block_size": 64}
    files = {
        "data/train-00000-of-00002.jsonl": jsonl([STORIES[0], "", *STORIES[1:120]]),
        "data/train-00001-of-00002.jsonl": jsonl(STORIES[120:300]),
        "data/validation-00000-of-00001.jsonl": jsonl(STORIES[300:]),
    }

    def resumed(state):
        source = open_dataset("tinystories", split="train")
        with TrainLoader(source, tokenizer, state=state, **size) as loader:
            return source.name, [next(loader)["input_ids"].tolist() for _ in range(30)]

    with HubServer(files) as server:
        hub_at(server.url)
        source = open_dataset("tinystories", split="train")
        assert list(source.documents()) == STORIES[:300]
        with TrainLoader(source, tokenizer, **size) as loader:
            take(loader, 150)
            torch.save(loader.state_dict(), tmp_path / "state.pt")
            expected = [next(loader)["input_ids"].tolist() for _ in range(30)]
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        assert resumed(state) == (REPO, expected)
        assert list(open_dataset("tinystories", split="validation").documents()) == STORIES[300:]
        with pytest.raises(ValueError, match=f"{REPO} has no column 'story', only text; choose with"):
            open_dataset("tinystories", split="train", text_column="story")
        with pytest.raises(
            ValueError, match="dataset 'nobody/nothing': no such file or folder, and no public"
        ):
            open_dataset("nobody/nothing", split="train")
        write_files(tmp_path / "hub" / "datasets--roneneldan--TinyStories" / "snapshots" / COMMIT, files)
        assert resumed(state) == (f"{REPO} (copy in the local cache)", expected)


# ---- the same without a server: any IterableDataset of datasets


@pytest.fixture
def local_hub(monkeypatch):
    """local_hub(train=[...], ...) makes these texts the splits of every dataset on the Hub, in `files`."""
    datasets = pytest.importorskip("datasets")

    def publish(files=1, **splits):
        def examples(parts):
            for part in parts:
                yield from ({"text": text} for text in part)

        def made(texts):
            size = -(-len(texts) // files)
            parts = [tuple(texts[start : start + size]) for start in range(0, len(texts), size)]
            return datasets.IterableDataset.from_generator(examples, gen_kwargs={"parts": parts})

        stored = {name: made(texts) for name, texts in splits.items()}
        monkeypatch.setattr(data_hub, "current_revision", lambda name: COMMIT)
        monkeypatch.setattr(data_hub, "_load", lambda name, revision: stored)

    return publish


def source_of(split="train", whole=False):
    return open_hub("org/name", split=split, whole=whole, text_column="text")


def take(documents, count):
    return [next(documents) for _ in range(count)]


@pytest.mark.parametrize("documents", [1, 30, 30_000])
@pytest.mark.parametrize("characters", [2_000, 10**9])
def test_a_shuffled_stream_resumes_exactly_at_any_cut(local_hub, monkeypatch, documents, characters):
    monkeypatch.setattr(data_documents, "WINDOW_DOCUMENTS", documents)
    monkeypatch.setattr(data_documents, "WINDOW_CHARACTERS", characters)
    local_hub(files=3, train=[*STORIES[:50], "", *STORIES[50:100]], validation=STORIES[100:])
    shuffled, states, texts = source_of().shuffled(seed=1), [], []
    for _ in range(320):
        states.append(json.dumps(shuffled.state_dict()))
        texts.append(next(shuffled))
    for epoch in range(3):  # every epoch has every document once
        assert sorted(texts[100 * epoch :][:100]) == sorted(STORIES[:100])
    assert shuffled.epoch == 3 and max(map(len, states)) < 200
    if documents > 1:
        assert texts[:100] != texts[100:200] and texts[:100] != STORIES[:100]
    for cut in (0, 1, 5, 13, 33, 49, 60, 98, 99, 100, 101, 150, 199, 200, 270):
        resumed = source_of().shuffled(seed=1, state=json.loads(states[cut]))
        assert take(resumed, 40) == texts[cut : cut + 40]
        assert json.dumps(resumed.state_dict()) == states[cut + 40]


def test_a_document_travels_within_the_window_and_the_window_bounds_what_is_read_ahead(
    local_hub, monkeypatch
):
    monkeypatch.setattr(data_documents, "WINDOW_DOCUMENTS", 40)
    monkeypatch.setattr(data_documents, "WINDOW_CHARACTERS", 40 * 400)  # no story is so long
    local_hub(train=STORIES, validation=STORIES[:100])
    shuffled = source_of().shuffled(seed=0)
    order, read = [], []
    for _ in range(400):
        order.append(int(next(shuffled).split()[0]))
        read.append(shuffled._number)
    travel = [abs(place - number) for place, number in enumerate(order)]
    assert 8 < sum(travel) / 400 < 20 and max(travel) <= 40  # a third of a window is even mixing
    assert max(n - place for place, n in enumerate(read)) <= 41
    assert read[0] < 20 and read[1] < 30  # the first come before the window is full

    monkeypatch.setattr(data_documents, "WINDOW_DOCUMENTS", 400)  # few, for they are long
    monkeypatch.setattr(data_documents, "WINDOW_CHARACTERS", 2_000)
    shuffled = source_of().shuffled(seed=0)
    for _ in range(400):
        next(shuffled)
        assert sum(len(text) for _, _, text in shuffled._window) < 2_000 + 200


def test_the_files_come_in_a_new_order_each_epoch(local_hub, monkeypatch):
    monkeypatch.setattr(data_documents, "WINDOW_DOCUMENTS", 1)
    monkeypatch.setattr(data_documents, "WINDOW_CHARACTERS", 1)  # as they are read
    local_hub(files=5, train=STORIES[:50], validation=STORIES[100:])
    shuffled = source_of().shuffled(seed=0)
    epochs = [[int(text.split()[0]) // 10 for text in take(shuffled, 50)] for _ in range(4)]
    assert all(epoch == sorted(epoch, key=epoch.index) for epoch in epochs)
    assert len({tuple(dict.fromkeys(epoch)) for epoch in epochs}) > 2
    assert list(source_of().documents()) == STORIES[:50]


def test_a_resumed_run_reads_the_revision_with_which_it_began(local_hub, monkeypatch):
    local_hub(train=STORIES, validation=STORIES)
    state = source_of().shuffled(seed=0).state_dict()
    loaded, load = [], data_hub._load
    monkeypatch.setattr(
        data_hub, "_load", lambda name, revision: loaded.append(revision) or load(name, revision)
    )
    monkeypatch.setattr(data_hub, "current_revision", lambda name: "f" * 40)
    resumed = source_of().shuffled(seed=0, state=state)
    next(resumed)
    assert loaded[-1] == resumed.state_dict()["revision"] == COMMIT
    with pytest.raises(ValueError, match="the revision of org/name must be a commit.*got '../here'"):
        source_of().shuffled(seed=0, state=state | {"revision": "../here"})


def test_a_position_of_an_older_version_continues_with_the_next_epoch(local_hub, caplog):
    local_hub(train=STORIES, validation=STORIES)
    older = {"revision": COMMIT, "epoch": 2, "draws": 900, "ended": False, "buffer": STORIES[:9]}
    resumed = source_of().shuffled(0, older | {"position": {"snapshot": None, "since": 109}})
    assert "org/name: the checkpoint is from a version that read the files in another order" in caplog.text
    assert sorted(take(resumed, 400)) == sorted(STORIES) and resumed.epoch == 3


def test_a_file_that_is_shorter_than_the_saved_position_is_refused(local_hub):
    local_hub(train=STORIES[:2], validation=STORIES)
    state = {"revision": COMMIT, "epoch": 0, "place": [0, 5], "number": 5, "size": 5000}
    with pytest.raises(ValueError, match="a file ends before row 5, the saved position"):
        next(source_of().shuffled(seed=0, state=state))


def test_without_a_validation_split_the_hash_rule_makes_one_from_the_first_rows(local_hub, monkeypatch):
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


# ---- wrong and hostile answers


def test_a_revision_that_is_no_commit_is_refused_before_it_is_a_path(hub_at, monkeypatch):
    monkeypatch.setattr(Path, "rglob", lambda *_: pytest.fail("walked a folder"))
    with HubServer({}, repo="org/name") as server:
        hub_at(server.url)
        for sha in (None, 5, [], "/", "../../x", "main", COMMIT[1:], COMMIT + "\n"):
            server.answers["/api/"] = json.dumps({"id": "org/name", "sha": sha}).encode(), {}
            with pytest.raises(ValueError, match="the revision of org/name must be a commit") as caught:
                source_of()
            assert f"40 hex digits, got {sha!r}; use other data" in str(caught.value)


def test_a_description_of_another_shape_counts_as_unreachable(hub_at):
    with HubServer({}, repo="org/name") as server:
        hub_at(server.url)
        for body in OTHER_SHAPES:
            server.answers["/api/"] = body, {}
            with pytest.raises(HubUnreachable, match="^the Hub's answer cannot be read .*Error"):
                source_of()


def test_text_of_the_hub_follows_the_rule_for_files(local_hub):
    local_hub(train=["\ufeffone\r\ntwo\r", "\ufeff\r\n", "three\ufeff"])
    source = source_of(whole=True)
    assert list(source.documents()) == ["one\ntwo\r", "three"] and source.skipped == 1


def test_splits_that_no_run_reads_are_named(local_hub):
    local_hub(train=STORIES[:300], eval=STORIES[300:350], test=STORIES[350:], extra=STORIES[350:])
    source = source_of()
    assert len(list(source.documents())) == 300
    assert source.left_out() == " (not read: 'split test', 'split extra')"
    assert len(list(source_of(split="validation").documents())) == 50


def hostile_answers(outside):
    """{case: (files of the Hub, what it sends in place of the right answers)}"""
    lines = b"".join(b'{"text": "Tom went home %d times."}\n' % n for n in range(9))
    train, validation = "data/train-0.jsonl", "data/validation-0.jsonl"
    good = {train: lines, validation: lines}
    cases = {"fine": (good, {}), "script": ({"stories.py": b"open('outside/ran', 'w')"}, {})}
    for part, shapes in {"/revision/": OTHER_SHAPES, "/tree/": OTHER_SHAPES[::2]}.items():
        cases |= {f"answer {part} {shape[:9]}": (good, {part: (shape, {})}) for shape in shapes}
    for shape in (b"5", b"<html>"):  # at null pyarrow 26 ends the process
        cases[f"file {shape[:9]}"] = good | {train: shape}, {}
    entry = {"type": "file", "path": train, "size": 9, "oid": "0"}
    for name, value in {"path": 5, "size": "x", "lastCommit": 5, "type": None}.items():
        cases[f"answer {name}"] = good, {"/tree/": (json.dumps([entry | {name: value}]).encode(), {})}
    cards = {
        path: f"configs: [{{config_name: default, data_files: '{path}'}}]"
        for path in (f"{outside}/train.jsonl", f"file://{outside}/train.jsonl", f"{outside}/**")
    }
    cards["image"] = "dataset_info: {features: [{name: text, dtype: image}]}"
    cards["deep"] = "a: " + "[" * 500
    cards["tag"] = "!!python/object/apply:os.mkdir ['outside/ran']"
    for name, text in cards.items():
        cases[f"card {name}"] = good | {"README.md": f"---\n{text}\n---".encode()}, {}
    return cases


def test_a_hostile_hub_gives_data_or_one_sentence_and_runs_nothing(hub_at, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outside = tmp_path / "outside"
    write_files(outside, {"train.jsonl": b'{"text": "SECRET"}'})
    told = {}
    with HubServer({}) as server:
        hub_at(server.url)
        for number, (case, (files, answers)) in enumerate(hostile_answers(outside).items()):
            server.repo, server.answers = f"org/name{number}", answers
            server.files = {name.replace("stories", f"name{number}"): body for name, body in files.items()}
            try:
                told[case] = next(open_dataset(server.repo, split="train").shuffled(0))
            except ValueError as error:
                told[case] = str(error).replace(server.repo, "org/name")
    assert told.pop("fine").startswith("Tom went home")
    assert [path.name for path in outside.iterdir()] == ["train.jsonl"]  # nothing ran, nothing was written
    assert "RuntimeError: Dataset scripts are no longer supported" in told["script"]
    assert told["script"].endswith(f"; {data_hub.SCRIPT_ADVICE}, or use other data with --dataset")
    assert told.pop("card image") == "org/name: column 'text' must hold text, got dict"
    for case, sentence in told.items():
        assert "org/name" in sentence and "\n" not in sentence and "SECRET" not in sentence, case
        if not case.startswith("file"):
            assert sentence.startswith("datasets cannot read org/name ("), sentence
            assert sentence.endswith("use other data with --dataset"), sentence


# ---- a Hub that cannot be reached


def test_a_hub_that_does_not_answer_is_noticed_soon(hub_at):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and says nothing
        hub_at(f"http://127.0.0.1:{silent.getsockname()[1]}", silent=True)
        began = time.monotonic()
        with pytest.raises(HubUnreachable, match="does not answer.*--dataset bundled") as caught:
            source_of()
    assert time.monotonic() - began < 3 and "\n" not in str(caught.value)
    assert caught.value.reason == "the Hub does not answer within 0.5 s"


def test_a_host_that_never_takes_the_connection_is_noticed_soon(hub_at, monkeypatch):
    hub_at("https://hub.example", silent=True)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: time.sleep(30))
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


def test_a_hub_behind_a_proxy_is_asked_through_the_proxy(hub_at, monkeypatch):
    hub_at("http://hub.example")
    with HubServer({}, repo="org/name") as proxy:  # asked for a whole URL, of which it takes the path
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        assert data_hub.current_revision("org/name") == COMMIT


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


def test_a_copy_in_the_cache_is_read_if_the_hub_cannot_be_reached(hub_at, cached):
    cached("README.md", "data/train-00000-of-00001.jsonl", "data/validation-00000-of-00001.jsonl")
    hub_at(None)
    source = open_dataset("tinystories", split="train")
    assert list(source.documents()) == STORIES[:300]
    assert source.name == f"{REPO} (copy in the local cache)"
    assert list(open_dataset("tinystories", split="validation").documents()) == STORIES[300:]
    assert chosen() == ("tinystories", ["dataset auto: reading TinyStories from the Hub's local cache"])


@pytest.mark.parametrize(
    "names",
    [
        ["README.md"],  # streaming leaves only this file
        ["data/train-00000-of-00002.jsonl", "data/validation-00000-of-00001.jsonl"],
        ["data/train-00000-of-00001.jsonl"],
        ["TinyStories-train.txt", "TinyStories-valid.txt"],  # datasets would read each line as a document
    ],
)
def test_an_incomplete_copy_in_the_cache_is_not_used(hub_at, cached, names):
    cached(*names)
    hub_at(None)
    with pytest.raises(HubUnreachable, match="is not in its local cache"):
        open_dataset("tinystories", split="train")


def test_the_newest_commit_in_the_cache_must_not_be_a_path(hub_at, cached, tmp_path):
    cached("data/train-00000-of-00001.jsonl", "data/validation-00000-of-00001.jsonl")
    folder = tmp_path / "hub" / "datasets--roneneldan--TinyStories"
    (folder / "refs" / "main").write_text(f"../snapshots/{COMMIT}")  # a header that huggingface_hub copied
    hub_at(None)
    with pytest.raises(HubUnreachable, match="is not in its local cache"):
        open_dataset("tinystories", split="train")


# ---- auto


def chosen(dataset="auto"):
    told = []
    return choose_dataset(dataset, told.append), told


def test_auto_is_bundled_if_the_hub_cannot_be_reached(hub_at):
    hub_at(None)
    assert chosen() == ("bundled", ["dataset auto: HF_HUB_OFFLINE is set; using the bundled stories"])


def test_auto_is_tinystories_if_the_hub_answers_and_asks_once(hub_at, monkeypatch):
    asked = []
    hub_at("http://127.0.0.1:9")
    monkeypatch.setattr(data_hub, "_newest_revision", lambda name: asked.append(name) or COMMIT)
    told = "dataset auto: streaming TinyStories from the Hub"
    assert chosen() == chosen() == ("tinystories", [told]) and asked == [REPO]


def test_auto_is_not_bundled_if_the_hub_has_no_tinystories(hub_at):
    with HubServer({}, repo="org/name") as server:
        hub_at(server.url)
        with pytest.raises(ValueError, match="no public dataset of that name on the Hub"):
            chosen()


def test_a_named_dataset_is_not_replaced(monkeypatch):
    monkeypatch.setattr(data_hub, "_newest_revision", lambda name: pytest.fail("asked"))
    for name in ("tinystories", "bundled", "stories.txt", "org/name"):
        assert chosen(name) == (name, [])
    with pytest.raises(ValueError, match="dataset 'auto': no such file or folder; use"):
        open_dataset("bundled", split="validation", val_dataset="auto")
