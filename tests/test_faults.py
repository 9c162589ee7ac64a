"""Faults around a run: full and read-only disks, a Hub that fails half-way, numbers that are not finite,
kills between two files, two trainers for one folder.

tests/stress/kill_resume.py kills at random moments. Broken input is in the tests of its readers.
"""

import builtins
import contextlib
import errno
import io
import json
import multiprocessing
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import hub_server
import pytest
import torch
from hub_server import COMMIT
from toy_corpus import documents
from toy_run import TINY, at_step, differences, load, run_here

from architecture.gptoss import ModelConfig, Transformer
from architecture.tokenizer import get_tokenizer
from common.files import CannotWrite, append_line, atomic_write
from data import hub
from data.hub import HubUnreachable
from data.prepare import main as prepare_main
from data.tokens import TokenFolderWriter
from training.monitor.metrics import read_metrics
from training.monitor.non_finite import first_non_finite
from training.state import checkpoint
from training.state.out_dir import claim_out_dir

ROOT = Path(__file__).resolve().parent.parent
QUIET = [*TINY, "--no-use_tensorboard", "--save_every", "4", "--eval_every", "50"]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def told(capsys) -> str:
    """Return the sentence of the error that a command ended with."""
    err = capsys.readouterr().err
    assert "Traceback" not in err and "Exception" not in err, err
    program, kind, sentence = err.splitlines()[-1].split(": ", 2)
    assert program in ("train.py", "data.prepare") and kind == "error"
    return sentence


# ----------------------------------------------------------------------------------------- disks


class SmallDisk:
    """A real disk of 24 MB in memory, which can be filled and can be made read-only."""

    def __init__(self, path: Path):
        self.path, self._filler = path, path / "filler"
        path.mkdir()
        options = ["-t", "tmpfs", "-o", "size=24m", "none", str(path)]
        if shutil.which("mount") is None or os.geteuid() != 0:
            pytest.skip("a disk of a few megabytes is mounted by root alone")
        if subprocess.run(["mount", *options], capture_output=True).returncode:
            pytest.skip("this machine lets nobody mount a disk")

    def fill(self, left: int) -> None:
        """Leave about that many bytes, rounded to a page."""
        state = os.statvfs(self.path)
        with open(self._filler, "wb") as file:
            file.truncate(0)
            file.write(bytes(max(0, state.f_bavail * state.f_bsize - left)))

    def make_room(self) -> None:
        self._filler.unlink()

    def make_read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(self.path)], check=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=False, capture_output=True)


class PretendedDisk:
    """A folder whose files Python opens with a limit on what all of them take together."""

    def __init__(self, path: Path, monkeypatch):
        self.path, self.room, self._read_only, self._open = path, 10**9, False, builtins.open
        path.mkdir()
        for module in (builtins, io):
            monkeypatch.setattr(module, "open", self._opened)
        for name in ("mkdir", "replace", "unlink"):
            monkeypatch.setattr(os, name, self._refused(getattr(os, name)))

    def fill(self, left: int) -> None:
        self.room = left

    def make_room(self) -> None:
        self.room = 10**9

    def make_read_only(self) -> None:
        self._read_only = True

    def close(self) -> None:
        pass

    def _refuse(self, path) -> None:
        if self._read_only and self._holds(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def _holds(self, path) -> bool:
        named = isinstance(path, str | bytes | os.PathLike)
        return named and Path(os.path.abspath(os.fsdecode(path))).is_relative_to(self.path)

    def _refused(self, function):
        def call(path, *args, **kwargs):
            self._refuse(path)
            return function(path, *args, **kwargs)

        return call

    def _opened(self, file, mode="r", buffering=-1, encoding=None, *args, **kwargs):
        if not set(mode) & set("wax+") or not self._holds(file):
            return self._open(file, mode, buffering, encoding, *args, **kwargs)
        self._refuse(file)
        raw = LimitedFile(self, file, mode.replace("b", ""))
        if buffering == 0:
            return raw
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding or "utf-8")


class LimitedFile(io.FileIO):
    def __init__(self, disk: PretendedDisk, *args):
        super().__init__(*args)
        self._disk = disk

    def write(self, data) -> int:
        data = memoryview(data).cast("B")
        taken = min(len(data), self._disk.room)
        if len(data) and not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._disk.room -= taken
        return super().write(data[:taken])


@pytest.fixture(params=["a pretended disk", pytest.param("a real disk", marks=pytest.mark.slow)])
def disk(request, tmp_path, monkeypatch):
    path = tmp_path / "disk"
    made = SmallDisk(path) if "real" in request.param else PretendedDisk(path, monkeypatch)
    yield made
    made.close()


FULL, READ_ONLY = os.strerror(errno.ENOSPC), os.strerror(errno.EROFS)
GO_ON = "continue from model/checkpoint_4.pt with: python train.py --resume --out_dir model"


def test_a_disk_that_is_full_at_a_checkpoint_keeps_the_last_one_and_the_run_resumes_from_it(
    disk, corpus, capsys, monkeypatch
):
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: disk.fill(left=200_000))
        assert run_here(disk.path, *QUIET, *corpus, "--max_iters", 10, "--out_dir", "model") == 2
    assert told(capsys) == (
        f"model/checkpoint_8.pt cannot be written ({FULL}); make room on its disk, then {GO_ON}"
    )
    there = {".lock", "config.json", "metrics.jsonl", "checkpoint_4.pt"}
    assert names(disk.path / "model") == there
    disk.make_room()
    assert run_here(disk.path, "--resume", "--out_dir", "model") == 0
    steps = [record["step"] for record in read_metrics(disk.path / "model/metrics.jsonl")]
    assert sorted(set(steps)) == list(range(1, 11))
    assert load(disk.path / "model/checkpoint_10.pt")["progress"]["step"] == 10


def test_a_disk_that_is_full_for_the_records_leaves_whole_lines(disk, corpus, capsys, monkeypatch):
    at_step(monkeypatch, 6, lambda: disk.fill(left=2000))
    assert run_here(disk.path, *QUIET, *corpus, "--save_every", 50, "--out_dir", "model") == 2
    assert told(capsys) == (
        f"model/metrics.jsonl cannot be written ({FULL}); make room on its disk, "
        "then rm -r model and start again"
    )
    lines = (disk.path / "model/metrics.jsonl").read_text()
    steps = [json.loads(line)["step"] for line in lines.splitlines()]
    assert lines.endswith("}\n") and steps == list(range(1, len(steps) + 1)) and len(steps) >= 6


def test_a_disk_that_is_full_for_tensorboard_ends_the_run_in_one_sentence(
    disk, tmp_path, corpus, capsys, monkeypatch
):
    elsewhere = tmp_path / "elsewhere"
    flags = [*QUIET, *corpus, "--use_tensorboard", "--out_dir", elsewhere]
    at_step(monkeypatch, 6, lambda: disk.fill(left=0))
    assert run_here(disk.path, *flags) == 2
    sentence = told(capsys)
    assert sentence.startswith("runs/elsewhere-") and f"cannot be written ({FULL}); " in sentence
    assert f"then continue from {elsewhere}/checkpoint_" in sentence
    assert all(load(path)["step"] in (4, 8, 12) for path in checkpoint.checkpoints(elsewhere))


def test_a_disk_that_is_full_for_prepared_data_leaves_nothing(disk, corpus, capsys):
    data = ["--dataset", corpus[1], "--val_dataset", corpus[3]]
    disk.fill(left=20_000)
    before = names(disk.path)
    assert prepare_main([*data, "--out_dir", str(disk.path / "tokens")]) == 2
    sentence = told(capsys)
    assert "tokens.tokens-partial/train_00000.tokens.npy cannot be written" in sentence
    assert sentence.endswith(f"({FULL}); make room on its disk")
    assert names(disk.path) == before


def test_a_read_only_folder_is_refused_before_anything_is_lost(disk, corpus, capsys):
    flags = [*QUIET, *corpus, "--max_iters", 4]
    assert run_here(disk.path, *flags, "--save_every", 2, "--out_dir", "model") == 0
    metrics = disk.path / "model/metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))  # not finished
    there = {path: path.stat().st_mtime_ns for path in disk.path.rglob("*")}
    disk.make_read_only()
    capsys.readouterr()
    instead = f"({READ_ONLY}); allow writing to its folder, or choose another folder"
    for given, path in (
        ([*flags, "--out_dir", "new"], "new"),
        ([*flags, "--use_tensorboard", "--out_dir", disk.path.parent / "elsewhere"], "runs/else"),
        (["--resume", "--out_dir", "model"], "model"),
    ):
        assert run_here(disk.path, *given) == 2
        sentence = told(capsys)
        assert sentence.startswith(path) and f" cannot be written {instead}" in sentence
    tokens = str(disk.path / "tokens")
    data = ["--dataset", corpus[1], "--val_dataset", corpus[3]]
    assert prepare_main([*data, "--out_dir", tokens]) == 2
    assert told(capsys) == f"{tokens}.tokens-partial cannot be written {instead}"
    assert {path: path.stat().st_mtime_ns for path in disk.path.rglob("*")} == there


def test_a_file_or_a_line_that_does_not_fit_leaves_nothing_behind(disk):
    path = disk.path / "file"
    with atomic_write(path) as file:
        file.write(b"old")
    disk.fill(left=8192)
    with pytest.raises(CannotWrite, match=f"file cannot be written .{FULL}.; make room on its disk"):
        with atomic_write(path) as file:
            file.write(bytes(100_000))
    assert path.read_bytes() == b"old" and not (disk.path / ".file.tmp").exists()
    disk.make_room()
    with open(disk.path / "lines", "ab", buffering=0) as lines:
        append_line(lines, "first")
        disk.fill(left=8192)
        with pytest.raises(CannotWrite, match="lines cannot be written"):
            append_line(lines, "x" * 100_000)
        disk.make_room()
        append_line(lines, "second")
    assert (disk.path / "lines").read_text() == "first\nsecond\n"


def test_tokens_that_cannot_be_read_to_their_end_leave_nothing(tmp_path):
    def broken():
        yield [1, 2, 3]
        raise ValueError("line 2 is not JSON")

    writer = TokenFolderWriter(tmp_path / "tokens", get_tokenizer("stories4k"), shard_tokens=2)
    with pytest.raises(ValueError, match="line 2"), writer.removed_if_it_fails():
        writer.write_split("train", broken())
    assert names(tmp_path) == set()


# ----------------------------------------------------------------------------------- between two files


class Killed(BaseException):
    """Stands for a kill -9 at one exact place."""


def killed_at(place: str):
    def kill(*_, **__):
        raise Killed(place)

    return kill


@pytest.fixture(scope="module")
def scored_twice(tmp_path_factory, corpus):
    """Flags of a run that evaluates and saves at steps 4 and 8, and the folder of that run, uninterrupted."""
    flags = [*QUIET, *corpus, *"--eval_every 4 --max_iters 8 --keep 1 --out_dir model".split()]
    folder = tmp_path_factory.mktemp("straight")
    assert run_here(folder, *flags) == 0
    return flags, folder / "model"


@pytest.mark.parametrize("step", [4, 8])
def test_resume_completes_best_json_after_a_kill_between_a_checkpoint_and_best_json(
    tmp_path, scored_twice, monkeypatch, step
):
    flags, straight = scored_twice
    best = json.loads((straight / "best.json").read_text())
    assert best["step"] == 8  # so that each kill comes before a better model is named
    update_best = checkpoint.update_best

    def update_or_die(out_dir, now, *args, **more):
        return killed_at("best.json")() if now == step else update_best(out_dir, now, *args, **more)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, "update_best", update_or_die)
        run_here(tmp_path, *flags)
    named = checkpoint.best_checkpoint(tmp_path / "model")
    assert (named and named["step"]) == (None if step == 4 else 4)
    assert run_here(tmp_path, "--resume", "--out_dir", "model") == 0
    assert json.loads((tmp_path / "model/best.json").read_text()) == best
    assert names(tmp_path / "model") == names(straight)  # and --keep has removed the older one


def test_the_closing_figures_and_stories_are_one_line_that_a_kill_cannot_split(scored_twice):
    *_, last = read_metrics(scored_twice[1] / "metrics.jsonl")
    assert {"final/loss", "samples/final_1", "samples/final_3"} <= last.keys()


# --------------------------------------------------------------------------------- one trainer per folder


def test_a_trainer_is_refused_and_leaves_nothing_when_another_one_claims_the_folder_first(
    tmp_path, corpus, capsys, monkeypatch
):
    with contextlib.ExitStack() as other:

        def claimed_late(out_dir, resume):  # the other one claims the folder between our check and our claim
            other.enter_context(claim_out_dir(out_dir, resume))
            return claim_out_dir(out_dir, resume)

        monkeypatch.setattr("training.state.run.claim_out_dir", claimed_late)
        assert run_here(tmp_path, *TINY, *corpus, "--out_dir", "model") == 2
    assert f"process {os.getpid()} is writing to model" in told(capsys)
    assert names(tmp_path) == {"model"} and names(tmp_path / "model") == {".lock"}  # no TensorBoard folder


def test_resume_is_refused_when_another_process_saved_a_checkpoint_meanwhile(
    tmp_path, corpus, capsys, monkeypatch
):
    flags = [*QUIET, *corpus, "--save_every", 2, "--max_iters", 6, "--out_dir", "model"]
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run_here(tmp_path, *flags) == 128 + signal.SIGTERM

    def claimed_late(out_dir, resume):  # the other one saves between our reading and our claim
        checkpoint.save_checkpoint(out_dir, 5, {})
        return claim_out_dir(out_dir, resume)

    monkeypatch.setattr("training.state.run.claim_out_dir", claimed_late)
    before = (tmp_path / "model/metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert run_here(tmp_path, "--resume", "--out_dir", "model") == 2
    assert told(capsys) == (
        "checkpoint_4.pt is no longer the newest of model: another process wrote there while "
        "this one started; run the same command again"
    )
    assert (tmp_path / "model/metrics.jsonl").read_bytes() == before


# ---------------------------------------------------------------------------------- numbers not finite

# The steps of a run that meet such numbers are in test_trainer.py.


@pytest.fixture
def broken_model():
    """A tiny model after a step, and what first_non_finite says of it."""
    shape = dict(
        hidden_size=16, head_dim=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=12
    )
    shape |= dict(num_hidden_layers=2, num_experts=5, vocab_size=37, initial_context_length=16)
    model = Transformer(ModelConfig(**shape, rope_scaling_factor=1.0))
    ids = torch.arange(18).view(2, 9)
    batch = {"input_ids": ids, "targets": ids + 1}
    model(**batch).loss_sum.backward()
    return model, lambda: first_non_finite(model, [batch], contextlib.nullcontext)


def test_a_parameter_that_is_not_finite_is_named(broken_model):
    model, found = broken_model
    for name, parameter in model.named_parameters():
        kept = parameter.detach().clone()
        parameter.data.view(-1)[-1] = torch.nan  # the batch does not use the last experts and words
        assert found() == f"the parameter {name}"
        parameter.data.copy_(kept)


def test_a_gradient_that_is_not_finite_is_named(broken_model):
    model, found = broken_model
    for name in ("embedding.weight", "block.1.attn.sinks", "block.1.mlp.mlp1_weight"):
        gradient = model.get_parameter(name).grad
        gradient.view(-1)[-1] = torch.nan
        assert found() == f"the gradient of {name}"
        gradient.zero_()


def test_a_layer_whose_output_is_not_finite_is_named(broken_model):
    model, found = broken_model

    def overflowed(module, inputs, output):
        first, *rest = output if isinstance(output, tuple) else (output,)
        return (first * torch.inf, *rest) if rest else first * torch.inf

    block = ("attn.norm", "attn.qkv", "attn.out", "attn", "mlp.norm", "mlp")
    for name in ("embedding", *(f"block.1.{part}" for part in block), "norm"):
        with model.get_submodule(name).register_forward_hook(overflowed):
            assert found() == f"the output of {name}"


# ------------------------------------------------------------------------------------------- the Hub


def network_errors() -> list[Exception]:
    import http.client
    import ssl

    import requests

    httpx = pytest.importorskip("httpx2")
    request = httpx.Request("GET", "http://hub.example")
    wrapped = ValueError("a reader's own")
    wrapped.__cause__ = ConnectionError("behind it")
    return [
        ConnectionResetError(errno.ECONNRESET, "reset"),
        TimeoutError("timed out"),
        socket.gaierror(-3, "no name server"),
        ssl.SSLEOFError(8, "cut off"),
        http.client.IncompleteRead(b"half"),
        requests.exceptions.ChunkedEncodingError("half"),
        httpx.ReadTimeout("stalled", request=request),
        httpx.RemoteProtocolError("peer closed connection", request=request),
        wrapped,
        *(answered_with(status) for status in (408, 429, 500, 503, 504)),
    ]


def answered_with(status: int) -> Exception:
    from huggingface_hub.errors import HfHubHTTPError

    httpx = pytest.importorskip("httpx2")
    request = httpx.Request("GET", "http://hub.example/file")
    return HfHubHTTPError(f"{status} for url", response=httpx.Response(status, request=request))


def data_errors() -> list[Exception]:
    import pyarrow
    from datasets.exceptions import DatasetGenerationError

    return [
        pyarrow.ArrowInvalid("Parquet magic bytes not found in footer"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        json.JSONDecodeError("Expecting value", "{", 1),
        DatasetGenerationError("An error occurred while generating the dataset"),
        EOFError("Compressed file ended before the end-of-stream marker"),
        OSError(errno.ENOSPC, "No space left on device"),
        FileNotFoundError(errno.ENOENT, "gone"),
        TypeError("'NoneType' object is not iterable"),  # the answer has another shape
        StopIteration(),
    ]


def test_whatever_fails_in_a_library_below_is_one_sentence_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(hub, "current_revision", lambda name: COMMIT)
    script = [RuntimeError("Dataset scripts are no longer supported, but found stories.py")]
    refusals = [answered_with(status) for status in (401, 403, 404, 416)]
    for errors, kind, told in (
        (network_errors(), HubUnreachable, "opening org/name on the Hub failed ({}); check the net"),
        (data_errors(), ValueError, "datasets cannot read org/name ({}); try again in case"),
        (script, ValueError, "datasets cannot read org/name ({}); its script was not run; download"),
        (refusals, ValueError, "the Hub refuses to send org/name ({}); log in with hf auth login"),
    ):
        for error in errors:

            def fail(*_, error=error):
                raise error

            monkeypatch.setattr(hub, "_load", fail)
            with pytest.raises(ValueError) as caught:
                hub.open_hub("org/name", split="train", whole=False, text_column="text")
            said = f"{type(error).__name__}: {error}".removesuffix(": ")
            assert type(caught.value) is kind and "\n" not in str(caught.value)
            assert str(caught.value).startswith(told.format(said)) and caught.value.__cause__ is error


def test_a_file_that_breaks_after_its_first_rows_ends_the_stream_with_the_same_sentence(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def rows():
        yield {"text": "first"}
        raise ConnectionError("Server Disconnected")

    split = {"train": datasets.IterableDataset.from_generator(rows)}
    monkeypatch.setattr(hub, "_load", lambda name, revision: split)
    options = {"revision": COMMIT, "text_column": "text"}
    documents = hub.HubSource("org/name", "train", **options).documents()
    assert next(documents) == "first"
    with pytest.raises(HubUnreachable, match="reading org/name from the Hub failed .*Server Disc"):
        next(documents)


class FailingHandler(hub_server._Handler):
    """Sends half of a file of training data once `good` of them were sent, `failures` times."""

    def _send(self, status, body, kind, headers):
        server = self.server
        wanted = self.command == "GET" and "train" in self.path and "octet-stream" in kind
        server.asked += wanted
        if not wanted or server.asked <= server.good or server.failures == 0:
            return super()._send(status, body, kind, headers)
        server.failures -= 1
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        if server.fault == "reset":  # an abrupt end of the connection
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if server.fault == "stall":
            server.over.wait(60)
        self.close_connection = True


def train_on_a_hub_that_fails(folder: Path, fault: str) -> None:
    """Write to found.json what runs came to.

    It needs a process of its own, as the Hub's address is read when its library is imported.
    """
    os.chdir(folder)
    texts = [json.dumps({"text": text}) + "\n" for text in documents(18)]
    files = {
        "data/train.jsonl": "".join(texts[8:]).encode(),
        "data/validation.jsonl": "".join(texts[:8]).encode(),
    }
    server = hub_server.HubServer(files)
    server.RequestHandlerClass, server.over, server.fault = FailingHandler, threading.Event(), fault
    server.asked, server.good, server.failures = 0, 10**9, 0
    os.environ |= {"HF_ENDPOINT": server.url, "HF_HOME": f"{folder}/hf", "HF_HUB_OFFLINE": "0"}
    from huggingface_hub import constants

    constants.HF_HUB_DOWNLOAD_TIMEOUT = 0.2 if fault == "stall" else 5.0  # in place of 10 seconds
    waited, sleep = [], time.sleep

    def short(seconds):
        waited.append(seconds)
        sleep(min(seconds, 0.01))

    time.sleep = short
    flags = [*TINY, "--no-use_tensorboard", "--dataset", "tinystories", "--eval_every", "50"]

    def train(*flags):
        server.asked = 0
        with contextlib.redirect_stderr(io.StringIO()) as err:
            code = run_here(folder, *flags)
        return code, err.getvalue().splitlines()[-1]

    def same(out_dir):
        ours, theirs = (load(folder / name / "checkpoint_20.pt") for name in (out_dir, "straight"))
        return not any(differences(ours[k], theirs[k]) for k in ("model", "optimizers", "rng", "data"))

    with server:
        found = {"straight": train(*flags, "--out_dir", "straight")}
        # each of the last requests starts an epoch, and one or two of these epochs are only read ahead
        server.good, server.failures = server.asked - 3, 9
        code, _ = train(*flags, "--out_dir", "passes")
        found["passes"] = [code, server.failures, same("passes")]
        server.failures = -1
        waited.clear()
        found["stays"] = train(*flags, "--out_dir", "stays")
        found |= {"waited": sum(waited), "asked": server.asked - server.good}
        server.failures = 0
        code, _ = train("--resume", "--out_dir", "stays")
        found["resumed"] = [code, same("stays")]
        server.over.set()
    (folder / "found.json").write_text(json.dumps(found))


@pytest.mark.slow  # slow because of its many retries
@pytest.mark.parametrize("fault", ["reset", "half", "stall"])
def test_a_hub_that_fails_is_waited_for_and_then_the_position_is_saved(tmp_path, fault):
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=train_on_a_hub_that_fails, args=(tmp_path, fault))
    process.start()
    process.join()
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["straight"][0] == 0
    assert found["passes"] == [0, 0, True]  # nine failures, and the bits of a run without one
    code, sentence = found["stays"]
    assert code == 2
    assert "reading roneneldan/TinyStories from the Hub failed (" in sentence
    assert "); check the network and try again; the run was saved as " in sentence
    assert sentence.endswith(".pt, continue it with --resume")
    assert 20 < found["waited"] < 180 and found["asked"] <= 30  # seconds, requests
    assert found["resumed"] == [0, True]


def test_a_hub_that_never_lists_the_files_of_a_dataset_is_given_up(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(hub, "OPEN_SECONDS", 0.2)
    monkeypatch.setattr(hub, "current_revision", lambda name: COMMIT)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: time.sleep(10))
    began = time.monotonic()
    with pytest.raises(HubUnreachable, match="opening org/name on the Hub failed .*no answer within"):
        hub.open_hub("org/name", split="train", whole=False, text_column="text")
    assert time.monotonic() - began < 5


# ------------------------------------------------------------------------------------ all of it together


@pytest.mark.slow
def test_runs_killed_at_random_end_as_if_nothing_had_happened(tmp_path):
    out = tmp_path / "kill_resume.json"
    command = [sys.executable, "-m", "tests.stress.kill_resume", "--runs", "12", "--out", str(out)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(out.read_text())
    assert found["failures"] == 0 and found["runs"] == 12 and found["events"] >= 12
