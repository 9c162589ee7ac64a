"""The download of the official weights, from a Hub on this machine that also fails, lies and falls silent."""

import errno
import hashlib
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest
from weights_hub import COMMIT, WeightsHub

import architecture.open_gpt_oss.download_weights as program
from architecture.open_gpt_oss.__main__ import main as command
from architecture.open_gpt_oss.download_weights import main

ROOT = Path(__file__).resolve().parent.parent
SIZE = 300_000
WEIGHTS = "original/model.safetensors"


def content(seed, size=SIZE):
    return random.Random(seed).randbytes(size)


FILES = {
    ".gitattributes": b"*.safetensors filter=lfs",
    "README.md": b"# card",
    "config.json": b'{"model_type": "gpt_oss"}',
    "generation_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model-00000-of-00001.safetensors": content(0),
    "model-00001-of-00001.safetensors": content(1),
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "tokenizer.json": b'{"version": "1.0"}',
    "pytorch_model.bin": b"a pickle",
    "modeling.py": b"raise SystemExit('ran')",
    "metal/model.bin": content(2),
    "metal/model.safetensors": content(3),
    "original/config.json": b'{"num_hidden_layers": 1}',
    "original/dtypes.json": b"{}",
    WEIGHTS: content(4),
}
ORIGINAL = {path.removeprefix("original/"): data for path, data in FILES.items() if "original/" in path}
HF = [name for name in FILES if name.endswith((".json", ".jinja", ".safetensors")) and "/" not in name]


@pytest.fixture
def hub(monkeypatch):
    package = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(program, "WAITS", (0, 0))
    with WeightsHub(dict(FILES)) as server:
        package.close_session()
        point_to(server.url, monkeypatch)
        yield server
    package.close_session()


def point_to(url, monkeypatch, offline=False):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def load(folder, *flags):
    return main(["--output_dir", str(folder), *flags])


def inside(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "download.json"}


def refused(capsys, folder, *flags):
    """The one sentence of a call that fails."""
    capsys.readouterr()
    assert load(folder, *flags) == 2
    err = capsys.readouterr().err
    sentence = err.splitlines()[-1]
    assert sentence.startswith("download_weights.py: error: ") and "Traceback" not in err
    return sentence.removeprefix("download_weights.py: error: ")


# ---- a whole download


def test_original_is_the_files_below_original_directly_in_the_folder(hub, tmp_path, capsys):
    folder = tmp_path / "new" / "weights"
    assert load(folder) == 0
    assert inside(folder) == ORIGINAL
    record = json.loads((folder / "download.json").read_text())
    assert record["revision"] == COMMIT and record["layout"] == "original"
    digest = hashlib.sha256(FILES[WEIGHTS]).hexdigest()
    assert record["files"]["model.safetensors"] == {"size": SIZE, "hash": f"sha256 {digest}"}
    out, err = capsys.readouterr()
    assert "holds openai/gpt-oss-20b, layout original, revision 89abcde: 3 files, 0.3 MB" in out
    assert f"{WEIGHTS}: 0.3 MB, size and hash right" in err


def test_hf_is_the_root_without_pickles_code_and_metal(hub, tmp_path):
    assert load(tmp_path / "w", "--layout", "hf") == 0
    assert inside(tmp_path / "w") == {name: FILES[name] for name in HF}


def test_the_other_model_comes_from_its_own_repository(hub, tmp_path):
    hub.repo = "openai/gpt-oss-120b"
    assert load(tmp_path / "w", "--model", "gpt-oss-120b") == 0
    assert inside(tmp_path / "w") == ORIGINAL


def test_a_finished_download_is_told_in_one_line_without_a_network(hub, tmp_path, capsys):
    load(tmp_path / "w")
    hub.asked.clear()
    hub.status = 500
    capsys.readouterr()
    assert load(tmp_path / "w") == 0
    out, err = capsys.readouterr()
    assert "already holds openai/gpt-oss-20b, layout original" in out and out.count("\n") == 1 and err == ""
    assert hub.asked == []


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"short")])
def test_a_file_of_a_finished_download_that_is_lost_or_cut_is_loaded_again(hub, tmp_path, damage):
    load(tmp_path / "w")
    damage(tmp_path / "w" / "model.safetensors")
    hub.asked.clear()
    assert load(tmp_path / "w") == 0
    assert inside(tmp_path / "w") == ORIGINAL and hub.asked == [(WEIGHTS, 0)]


def test_a_newer_revision_replaces_the_files_of_a_damaged_older_one(hub, tmp_path):
    load(tmp_path / "w")
    (tmp_path / "w" / "model.safetensors").unlink()
    hub.files |= {"original/model-2.safetensors": content(9)}
    del hub.files[WEIGHTS]
    assert load(tmp_path / "w") == 0
    assert sorted(inside(tmp_path / "w")) == ["config.json", "dtypes.json", "model-2.safetensors"]


def test_files_that_another_program_loaded_are_taken_if_their_hash_is_right(hub, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(FILES[WEIGHTS])
    assert load(tmp_path) == 0
    assert (WEIGHTS, 0) not in hub.asked and inside(tmp_path) == ORIGINAL


def test_an_empty_file_is_a_file(hub, tmp_path):
    hub.files["original/empty.json"] = b""
    assert load(tmp_path) == 0
    assert inside(tmp_path)["empty.json"] == b""


# ---- the three ways of calling it, from any folder


@pytest.mark.parametrize(
    "words, where",
    [
        (["architecture/open_gpt_oss/download_weights.py"], "elsewhere"),
        (["architecture/open-gpt-oss/download_weights.py"], "elsewhere"),
        (["-m", "architecture.open_gpt_oss", "download"], ROOT),
    ],
)
def test_each_way_of_calling_it_loads_the_files(hub, tmp_path, words, where):
    if where == "elsewhere":
        where, words = tmp_path, [str(ROOT / words[0])]
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, *words, "--output_dir", str(tmp_path / "w")],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert inside(tmp_path / "w") == ORIGINAL


def test_model_of_the_hyphenated_folder_is_that_of_gptoss(monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(ROOT)])
    found = runpy.run_path(str(ROOT / "architecture" / "open-gpt-oss" / "model.py"))
    assert str(ROOT) in sys.path
    from architecture.gptoss import ModelConfig, Transformer

    assert (found["Transformer"], found["ModelConfig"]) == (Transformer, ModelConfig)


@pytest.mark.parametrize(
    "words, told",
    [
        ([], "the following arguments are required: COMMAND"),
        (["upload"], "invalid choice: 'upload'"),
        (["download"], "required: --output_dir"),
        (["download", "--output_dir", "w", "--model", "gpt-oss-30b"], "invalid choice: 'gpt-oss-30b'"),
        (["download", "--output_dir", "w", "--layout", "metal"], "invalid choice: 'metal'"),
    ],
)
def test_wrong_words_are_one_sentence(capsys, words, told):
    assert command(words) == 2
    assert told in (err := capsys.readouterr().err) and err.count("\n") == 1


# ---- broken connections


def test_a_dropped_connection_goes_on_at_the_next_byte(hub, tmp_path, capsys):
    hub.faults[WEIGHTS] = [("drop", 200_000), ("drop", 0), None]
    assert load(tmp_path / "w") == 0
    first, again, last = hub.asked[-3:]
    assert (first, again) == ((WEIGHTS, 0), last) and 0 < last[1] <= 200_000
    assert inside(tmp_path / "w") == ORIGINAL
    assert "next try in" in capsys.readouterr().err


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(hub, tmp_path, capsys):
    hub.faults[WEIGHTS] = [("drop", 150_000), ("drop", 0)]
    sentence = refused(capsys, tmp_path / "w")
    assert (
        "sent no more of original/model.safetensors after " in sentence and "same command again" in sentence
    )
    assert list(inside_visible(tmp_path / "w")) == []  # nothing that a reader takes for a model
    hub.faults.clear()
    hub.asked.clear()
    assert load(tmp_path / "w") == 0
    assert hub.asked == [(WEIGHTS, hub.asked[0][1])] and hub.asked[0][1] > 0
    assert "have arrived" in capsys.readouterr().err and inside(tmp_path / "w") == ORIGINAL


def inside_visible(folder):
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def test_a_server_without_ranges_sends_the_file_from_the_start(hub, tmp_path):
    hub.faults[WEIGHTS] = [("drop", 200_000), ("whole",)]
    assert load(tmp_path / "w") == 0
    assert inside(tmp_path / "w") == ORIGINAL


def test_a_server_without_ranges_that_never_sends_all_is_given_up(hub, tmp_path, capsys):
    hub.listed[WEIGHTS] = listing(content(4))
    hub.files[WEIGHTS] = content(4)[:200_000]
    hub.faults[WEIGHTS] = [("whole",)]
    assert "sent no more of" in refused(capsys, tmp_path / "w")
    assert len(hub.asked) < 10


def listing(data):
    return {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(hub, tmp_path, status):
    hub.faults[WEIGHTS] = [("status", status), None]
    assert load(tmp_path / "w") == 0


@pytest.mark.parametrize("status", [401, 403, 404, 451])
def test_a_server_that_refuses_a_file_is_one_sentence_at_once(hub, tmp_path, capsys, status):
    hub.faults[WEIGHTS] = [("status", status)]
    assert f"the Hub refuses to send {WEIGHTS} (" in refused(capsys, tmp_path / "w")
    assert hub.asked.count((WEIGHTS, 0)) == 1


def test_a_silent_connection_is_given_up(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "READ_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        _, files = program.list_files(hub.repo, "original")
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(ValueError, match="sent no more of .*ReadTimeout"):
            program.load_file(url, files[0], tmp_path / "x", program.Progress(9, 0))


# ---- wrong content


def test_a_wrong_file_is_named_and_loaded_again_once(hub, tmp_path, capsys):
    hub.faults[WEIGHTS] = [("send", content(5)), None]
    assert load(tmp_path / "w") == 0
    assert f"{WEIGHTS} is wrong, it has the hash sha256 " in capsys.readouterr().err
    assert inside(tmp_path / "w") == ORIGINAL


@pytest.mark.parametrize(
    "path, data, told",
    [
        (WEIGHTS, content(5), "it has the hash sha256 "),
        ("original/config.json", b'{"num_hidden_layers": 2}', "it has the hash git "),
        (WEIGHTS, content(4) + b"more", "more than the 300,000 bytes"),
        (WEIGHTS, content(4)[:-1], "at most 299,999 of the 300,000"),
    ],
)
def test_a_file_that_comes_wrong_twice_is_refused_and_not_kept(hub, tmp_path, capsys, path, data, told):
    hub.faults[path] = [("send", data)]
    sentence = refused(capsys, tmp_path / "w")
    assert sentence.startswith(f"{path} came twice with wrong content, ") and told in sentence
    assert not any(part.stat().st_size for part in tmp_path.rglob("*.part"))
    hub.faults.clear()
    assert load(tmp_path / "w") == 0 and inside(tmp_path / "w") == ORIGINAL


@pytest.mark.parametrize("size", [None, SIZE + 1], ids=["damaged", "too long"])
def test_a_half_file_that_is_wrong_is_loaded_again(hub, tmp_path, capsys, size):
    hub.faults[WEIGHTS] = [("drop", 150_000), ("drop", 0)]
    refused(capsys, tmp_path / "w")
    [part] = tmp_path.rglob("*.part")
    part.write_bytes(b"\0" * (size or part.stat().st_size))
    hub.faults.clear()
    assert load(tmp_path / "w") == 0 and inside(tmp_path / "w") == ORIGINAL


# ---- a Hub that is not there, or answers something else


def test_a_repository_that_does_not_exist_is_one_sentence(hub, tmp_path, capsys):
    hub.repo = "someone/else"
    sentence = refused(capsys, tmp_path / "w")
    assert sentence.startswith(
        f"there is no openai/gpt-oss-20b on {hub.url}, or it is not open to your token"
    )
    assert not (tmp_path / "w").exists()


def test_a_layout_that_the_repository_lacks_is_one_sentence(hub, tmp_path, capsys):
    hub.files = {"config.json": b"{}", "original/model.bin": b"pickle"}
    for layout in ("original", "hf"):
        told = f"has no config.json with weights in layout {layout}"
        assert told in refused(capsys, tmp_path / "w", "--layout", layout)


@pytest.mark.parametrize("info", [b"", b"null", b"5", b"[]", b"{}", b"<html>", b"[" * 100_000, b'{"id": 1}'])
def test_an_answer_of_another_shape_is_one_sentence(hub, tmp_path, capsys, info):
    hub.info = info
    assert refused(capsys, tmp_path / "w").startswith("the Hub's answer cannot be read (")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    "entry",
    [
        {"lfs": None, "size": -1},
        {"lfs": None, "size": True},
        {"lfs": None, "blobId": "main"},
        {"lfs": {"sha256": "../../x", "size": 5, "pointerSize": 1}},
        {"lfs": {"sha256": "0" * 64, "size": "5", "pointerSize": 1}},
        {"lfs": 5},
    ],
)
def test_a_size_or_hash_of_another_shape_is_one_sentence(hub, tmp_path, capsys, entry):
    hub.listed[WEIGHTS] = entry
    assert refused(capsys, tmp_path / "w").startswith("the Hub's answer cannot be read (")


@pytest.mark.parametrize("revision", ["main", "../x", None, 5, COMMIT + "\n"])
def test_a_revision_that_is_no_commit_is_refused(hub, tmp_path, capsys, revision):
    hub.info = json.dumps(json.loads(hub.information()) | {"sha": revision}).encode()
    assert refused(capsys, tmp_path / "w").startswith("the Hub's answer cannot be read (")


HOSTILE = [
    "../x.json",
    "..",
    "/x.json",
    "a/../../x.json",
    ".x.json",
    "a\\..\\x.json",
    "a\n.json",
    "\u00e9.json",
    "x/",
]


@pytest.mark.parametrize("layout, below", [("original", "original/"), ("hf", "")])
def test_no_name_of_the_list_leaves_the_folder(hub, tmp_path, layout, below):
    hub.files |= {below + name: b"{}" for name in HOSTILE} | {below + "download.json": b"{}"}
    assert load(tmp_path / "a" / "w", "--layout", layout) == 0
    assert sorted(inside(tmp_path / "a" / "w")) == (sorted(ORIGINAL) if below else sorted(HF))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["w"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_hub_that_refuses_the_connection_is_told_at_once(hub, tmp_path, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    point_to(url, monkeypatch)
    sentence = refused(capsys, tmp_path / "w")
    assert sentence.startswith("the Hub cannot be reached (Connection refused); the download needs a network")
    assert not (tmp_path / "w").exists()


def test_a_name_look_up_that_hangs_is_given_up_soon(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(program, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: time.sleep(30))
    point_to("https://hub.example", monkeypatch)
    began = time.monotonic()
    assert refused(capsys, tmp_path / "w").startswith(
        "the Hub does not answer within 0.3 s; the download needs"
    )
    assert time.monotonic() - began < 2


def test_offline_mode_is_respected(hub, tmp_path, capsys, monkeypatch):
    point_to(hub.url, monkeypatch, offline=True)
    assert refused(capsys, tmp_path / "w").startswith("HF_HUB_OFFLINE is set; the download needs a network")


def test_a_hub_that_is_busy_from_the_start_is_one_sentence(hub, tmp_path, capsys):
    hub.status = 503
    assert refused(capsys, tmp_path / "w").startswith("the Hub refuses to answer (")


# ---- disks and folders


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(hub, tmp_path, capsys, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(200_000) if path == tmp_path else None)
    sentence = refused(capsys, tmp_path / "a" / "w")
    assert "needs 0.3 MB more, and its disk has 0.2 MB free; make room" in sentence
    assert hub.asked == [] and not (tmp_path / "a").exists()


def test_only_what_is_missing_needs_room(hub, tmp_path, capsys, monkeypatch):
    hub.faults[WEIGHTS] = [("drop", 250_000), ("drop", 0)]
    refused(capsys, tmp_path / "w")
    hub.faults.clear()
    monkeypatch.setattr("shutil.disk_usage", lambda path: namedtuple("usage", "free")(200_000))
    assert load(tmp_path / "w") == 0


def test_a_disk_that_is_full_in_mid_download_keeps_what_has_arrived(hub, tmp_path, capsys, monkeypatch):
    real = open

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            if self.file.tell() > 100_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

    full = lambda path, mode: Full(real(path, mode)) if mode == "a+b" else real(path, mode)  # noqa: E731
    monkeypatch.setattr(program, "open", full, raising=False)
    sentence = refused(capsys, tmp_path / "w")
    assert "No space left on device" in sentence and "then run the same command again" in sentence
    monkeypatch.undo()
    from huggingface_hub import close_session

    close_session()
    point_to(hub.url, monkeypatch)
    hub.asked.clear()
    assert load(tmp_path / "w") == 0 and hub.asked[0][1] > 0
    assert inside(tmp_path / "w") == ORIGINAL


@pytest.mark.parametrize(
    "name, told",
    [
        ("notes.txt", "must be a new or an empty folder or hold this model, and holds notes.txt"),
        ("config.json", "exists and is not original/config.json of the Hub"),
        ("model.safetensors", "exists and is not original/model.safetensors of the Hub"),
    ],
)
def test_a_folder_with_other_files_is_refused_and_left_as_it_was(hub, tmp_path, capsys, name, told):
    (tmp_path / name).write_bytes(b"mine")
    assert told in refused(capsys, tmp_path)
    assert inside(tmp_path) == {name: b"mine"} and hub.asked == []


def test_a_folder_of_another_download_is_refused(hub, tmp_path, capsys):
    load(tmp_path)
    for flags in (["--layout", "hf"], ["--model", "gpt-oss-120b"]):
        assert "holds openai/gpt-oss-20b, layout original, " in refused(capsys, tmp_path, *flags)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": {"../x": {"size": 1, "hash": "x"}}}'])
def test_a_damaged_record_is_one_sentence(hub, tmp_path, capsys, text):
    load(tmp_path)
    (tmp_path / "download.json").write_text(text)
    assert "cannot be read as the record of a download" in refused(capsys, tmp_path)
    (tmp_path / "download.json").unlink()
    hub.asked.clear()
    assert load(tmp_path) == 0 and hub.asked == []  # the hashes of the files are right


def test_an_output_folder_that_is_a_file_is_refused(hub, tmp_path, capsys):
    (tmp_path / "w").write_text("x")
    assert "must be a folder, and is a file" in refused(capsys, tmp_path / "w")
    assert "w/deeper cannot be written (" in refused(capsys, tmp_path / "w" / "deeper")


def test_two_downloads_into_one_folder_are_refused(hub, tmp_path, capsys):
    (tmp_path / "w").mkdir()
    with program._arriving(tmp_path / "w"):
        assert f"is in use by another download (process {os.getpid()})" in refused(capsys, tmp_path / "w")
    assert load(tmp_path / "w") == 0


def test_a_failure_leaves_no_empty_folder(hub, tmp_path, capsys):
    hub.faults["original/dtypes.json"] = [("status", 404)]
    refused(capsys, tmp_path / "w")
    assert not (tmp_path / "w").exists()


# ---- Ctrl-C


def test_ctrl_c_ends_with_130_and_the_next_call_goes_on(hub, tmp_path):
    hub.faults[WEIGHTS] = [("drop", 200_000), ("drop", 0)]
    code = (
        f"import common.begin, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import architecture.open_gpt_oss.download_weights as program\n"
        "program.WAITS = (60,)\n"
        f"sys.exit(program.main(['--output_dir', {str(tmp_path / 'w')!r}]))"
    )
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
    options = dict(cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", code], **options) as process:
        lines, stop = [], threading.Timer(30, process.kill)
        stop.start()
        for line in process.stderr:
            lines.append(line)
            if "next try in 60 s" in line:
                time.sleep(0.1)  # the line has been written, and the program waits
                process.send_signal(signal.SIGINT)
        stop.cancel()
    assert process.returncode == 130 and lines[-1] == "download_weights.py: interrupted\n", lines
    assert "the same command goes on from there" in lines[-2]
    hub.faults.clear()
    hub.asked.clear()
    assert load(tmp_path / "w") == 0
    assert hub.asked[0][1] > 0 and inside(tmp_path / "w") == ORIGINAL
