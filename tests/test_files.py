"""Reading files of this project: any damage becomes a message that names the file."""

import pytest

from common.files import parse_json, read_json, reading, write_json_atomic


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
