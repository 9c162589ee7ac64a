"""Reading files of this project: any damage becomes a message that names the file."""

import os

import pytest

from common.files import new_folder, parse_json, read_json, reading, write_json_atomic


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"{", "Expecting property name enclosed in double quotes"),
        (b"\xff{}", "byte 0 is not UTF-8"),
        (b"{}", "'tags' is missing"),
        (b'{"tags": []}', "it is damaged: TypeError"),
        (b'{"tags": {"loss": {}}}', "it is damaged: AttributeError"),
        (b'{"tags": {"loss": "0"}}', "it is damaged: ZeroDivisionError"),
    ],
)
def test_whatever_goes_wrong_names_the_file_the_reason_and_the_way_out(tmp_path, content, reason):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as told, reading(path, "a run", way_out="use another"):
        1 / int(parse_json(path.read_bytes())["tags"]["loss"].strip())
    assert str(told.value) == f"{path} cannot be read as a run ({reason}); use another"


def test_a_message_that_names_the_file_stays_and_another_one_gets_its_name(tmp_path):
    path = tmp_path / "run.json"
    with pytest.raises(ValueError, match=r"run\.json has no record yet$"), reading(path, "a run"):
        raise ValueError(f"{path} has no record yet")
    rule = r"run\.json cannot be read as a run \(lr must be above 0\); move it away$"
    with pytest.raises(ValueError, match=rule), reading(path, "a run"):
        raise ValueError("lr must be above 0")


def test_a_missing_file_a_missing_permission_and_a_lack_of_memory_are_not_called_damage(tmp_path):
    with pytest.raises(FileNotFoundError), reading(tmp_path / "none", "a run"):
        (tmp_path / "none").read_bytes()
    for error in (PermissionError(13, "Permission denied"), MemoryError(), KeyboardInterrupt()):
        with pytest.raises(type(error)), reading(tmp_path / "closed", "a run"):
            raise error
    with pytest.raises(ValueError, match=r"\(Is a directory\)"), reading(tmp_path, "a run"):
        tmp_path.read_bytes()


# ------------------------------------------------------------------------------------- sealed JSON
SEALED = {"name": "a \u00e9 run", "loss": 1.25e-7, "steps": [1, 2, {"deep": None}], "on": True}


def test_no_flip_of_a_bit_in_a_sealed_file_reads_as_another_content(tmp_path):
    path = tmp_path / "a.json"
    write_json_atomic(path, SEALED)
    assert read_json(path) == SEALED
    whole, refused = path.read_bytes(), 0
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            assert read_json(path) == SEALED  # white space, or another way to write the same
        except ValueError:
            refused += 1
    assert refused > 0.8 * len(whole)


def test_a_file_without_a_seal_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"val_loss": 2}')
    assert read_json(tmp_path / "a.json") == {"val_loss": 2}


@pytest.mark.parametrize("content", ["[1]", "7", "", '{"a": 1, "seal": 3}'])
def test_content_that_is_not_a_sealed_object_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError):
        read_json(tmp_path / "a.json")


# ------------------------------------------------------------------------------------------ new folders
def test_a_new_folder_appears_when_it_is_complete_and_a_link_to_it_stays(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / ".empty.tmp").mkdir()
    (tmp_path / ".empty.tmp/half").write_text("left by a process that was killed")
    with new_folder(tmp_path / "link") as folder:
        (folder / "file").write_text("content")
        assert list((tmp_path / "empty").iterdir()) == []
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["file"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_new_folder_that_is_not_completed_leaves_nothing(tmp_path, error):
    with pytest.raises(error), new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("content")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_new_folder_do_not_mix(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("first")
        with pytest.raises(ValueError, match=rf"process {os.getpid()} is writing .*out; wait for it"):
            with new_folder(tmp_path / "out"):
                raise AssertionError
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["first"]
    with pytest.raises(
        ValueError, match="out must be a new or an empty folder, and holds file; choose another name"
    ):
        with new_folder(tmp_path / "out"):
            raise AssertionError
