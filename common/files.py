"""Files that are whole or not there, whatever happens while they are written; JSON in one reader."""

import contextlib
import errno
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)


class CannotWrite(OSError):
    """A file that could not be written; the message says which, why and what to do."""

    def __init__(self, path: str | Path, error: OSError, then: str = ""):
        """then: what to do once there is room again; see and_then."""
        self.path, self.error = path, error
        if error.errno in _NO_ROOM:
            do = "make room on its disk"
        elif error.errno in _NOT_ALLOWED:
            do = "choose a folder that may be written to, or make this one so"
        else:
            do = "look after its disk, or choose another folder"
        then = f", then {then}" if then else ""
        super().__init__(f"{path} cannot be written ({error.strerror or error}); {do}{then}")
        self.errno = error.errno

    def and_then(self, then: str) -> "CannotWrite":
        """The same with what to do after that."""
        return CannotWrite(self.path, self.error, then)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """For a body that does nothing but write: where that fails, CannotWrite names `path`."""
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        raise CannotWrite(path, error) from error
    except RuntimeError as error:  # torch.save hides what the file said behind one of its own
        if isinstance(error.__context__, OSError):
            raise CannotWrite(path, error.__context__) from error
        raise


@contextlib.contextmanager
def reading(path: str | Path, what: str, *, way_out: str = "move it away") -> Iterator[None]:
    """For a body that reads what this project wrote: whatever goes wrong in it is one sentence.

    A ValueError that begins with the path is such a sentence already. A file that is not there or may
    not be read, and a lack of memory, are not the fault of its content: they stay what they are.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        reason = f"it is damaged: {type(error).__name__}"
        if isinstance(error, KeyError):
            reason = f"{error} is missing"
        elif isinstance(error, (ValueError, OSError)):
            reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{path} cannot be read as {what} ({reason}); {way_out}") from error


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A file that becomes `path` only when whole and on the disk; an error leaves no trace.

    Raises CannotWrite where the disk is full or may not be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # a read-only disk refuses this, too
                temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)  # the new name is an entry of the folder: sync that too
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def append_line(file: BinaryIO, line: str) -> None:
    """Add a line to a file that is open for appending and unbuffered: all of it, or CannotWrite and
    nothing.
    """
    end, left = os.fstat(file.fileno()).st_size, (line + "\n").encode()
    with writing(file.name):
        try:
            while left:
                left = left[file.write(left) :]  # a full disk takes a part
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def write_json_atomic(path: str | Path, value: dict[str, Any]) -> None:
    """A JSON object that any reader takes, sealed by a checksum of its content; NaN and infinity raise ValueError."""
    text = json.dumps(sealed(value), indent=2, allow_nan=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode())


def read_json(path: str | Path) -> dict[str, Any]:
    """What write_json_atomic wrote; ValueError, a reason in a few words, for content that is not as it was written.

    A file without a seal, older than seals are, is read as it is.
    """
    data = Path(path).read_bytes()
    value = parse_json(data)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    seal = value.pop("seal", None)
    if seal != _seal(value) and (seal is not None or SEAL.encode() in data):
        raise ValueError("it was changed after it was written")
    return value


SEAL = "crc32 of the rest: "


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """The value with a checksum of its content in front, as read_json looks for it."""
    return {"seal": _seal(value), **value}


def _seal(value: dict[str, Any]) -> str:
    return f"{SEAL}{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; bytes are UTF-8.

    Raises ValueError whose message is the reason, to be put behind the name of the file.
    """
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(error.msg) from None
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None
    except ValueError:  # Python's limit, told in words for programmers
        raise ValueError("a number has too many digits") from None


def read_json_object(path: str | Path) -> dict[str, Any]:
    """A JSON object that somebody else may have written; ValueError, in one sentence, for anything else."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}; use a folder that is whole")
    try:
        value = parse_json(path.read_bytes())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object; use another copy of it")
    return value
