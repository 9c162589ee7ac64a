"""Atomic writing of files and folders, errors that name the file, and JSON with a checksum."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from common.script import is_out_of_memory

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)


class CannotWrite(OSError):
    """A file could not be written. The message names the file, the reason and what to do."""

    def __init__(self, path: str | Path, error: OSError, then: str = ""):
        """then: what to do after the cause is removed; see and_then."""
        self.path, self.error = path, error
        if error.errno in _NO_ROOM:
            do = "make room on its disk"
        elif error.errno in _NOT_ALLOWED:
            do = "allow writing to its folder, or choose another folder"
        else:
            do = "check its disk, or choose another folder"
        then = f", then {then}" if then else ""
        super().__init__(f"{path} cannot be written ({error.strerror or error}); {do}{then}")
        self.errno = error.errno

    def and_then(self, then: str) -> "CannotWrite":
        """The same error, whose message also says what to do after the cause is removed."""
        return CannotWrite(self.path, self.error, then)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Wraps code that only writes: an OSError in it becomes CannotWrite, which names `path`."""
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        raise CannotWrite(path, error) from error
    except RuntimeError as error:  # torch.save raises this when writing to its file fails
        if isinstance(error.__context__, OSError):
            raise CannotWrite(path, error.__context__) from error
        raise


@contextlib.contextmanager
def reading(path: str | Path, what: str, *, way_out: str = "move it away") -> Iterator[None]:
    """Wraps code that reads a file of this project: any error in it becomes a ValueError of one sentence.

    The sentence names the path, what was read, the reason and the way out. A ValueError that begins with the
    path passes unchanged. FileNotFoundError and PermissionError also pass, because they do not come from the
    content of the file; nor does a lack of memory, which becomes a MemoryError that names the path.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(f"there is not enough memory to read {path}") from error
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
    """A temporary file that replaces `path` once it is complete and on the disk. An error deletes it.

    Raises CannotWrite, for example if the disk is full or read-only.
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
            with contextlib.suppress(OSError):  # deleting also fails on a read-only disk
                temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)  # the new name is stored in the folder
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def lock_file(path: Path, in_use: Callable[[str], ValueError]) -> TextIO:
    """Make a file, and its folder if needed, and lock it for as long as the returned file stays open.

    The file holds the number of this process. The operating system releases the lock when the process ends, so a
    crash leaves no lock behind.
    in_use: makes the error for the number of the process that holds the lock.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A process that ends may delete the lock or its folder just now, and a deleted lock is useless: try again.
        with contextlib.suppress(FileNotFoundError):
            lock = open(path, "a+")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                raise in_use(path.read_text().strip()) from None
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(path)):
                with contextlib.suppress(OSError):  # on a full disk the message lacks the number
                    os.truncate(lock.fileno(), 0)
                    os.write(lock.fileno(), f"{os.getpid()}\n".encode())
                return lock


def require_new_folder(path: str | Path) -> None:
    """Raise ValueError unless the folder can be made, or is there and empty."""
    folder = Path(os.path.realpath(path))
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if held or (folder.exists() and not folder.is_dir()):
        found = f"holds {held[0]}" if held else "is a file"
        raise ValueError(f"{path} must be a new or an empty folder, and {found}; choose another name")
    if not folder.parent.is_dir():
        raise ValueError(f"{path} is in a folder that does not exist; create that first")


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` once its files are complete. An error or Ctrl-C deletes it.

    Raises ValueError if `path` is not a new or an empty folder or if another process writes it, and CannotWrite.
    """
    require_new_folder(path)
    folder = Path(os.path.realpath(path))  # a link to an empty folder stays a link
    temporary = folder.with_name(f".{folder.name}.tmp")
    lock = temporary / ".lock"

    def in_use(owner: str) -> ValueError:
        return ValueError(f"process {owner} is writing {path}; wait for it, or choose another name")

    with writing(path), lock_file(lock, in_use):
        try:
            for left in temporary.iterdir():  # by a process that was killed
                if left != lock:
                    left.unlink()
            yield temporary
            os.replace(temporary, folder)  # replaces an empty folder
            (folder / lock.name).unlink()
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def decode_text(data: bytes, where: Callable[[int], str]) -> str:
    """The text of UTF-8 bytes from a user's file, after plain_text. where(n) names byte n in the message.

    Raises ValueError for other encodings. A zero byte shows UTF-16 without a mark, which is often valid UTF-8.
    """
    at, reason = data.find(b"\0"), "a zero byte, as UTF-16 has"
    if at < 0:
        try:
            return plain_text(data.decode())
        except UnicodeDecodeError as error:
            at, reason = error.start, f"{error.reason}, {data[error.start]:#04x}"
    raise ValueError(f"{where(at)} is not UTF-8 ({reason}); convert the file to UTF-8")


def plain_text(text: str) -> str:
    """The text without byte order marks, which joined files have inside, and with "\n" for "\r\n"."""
    if "\ufeff" not in text and "\r" not in text:  # a search takes a tenth of the time of replace
        return text
    return text.replace("\ufeff", "").replace("\r\n", "\n")


def without_surrogates(text: str) -> str:
    """The text with each lone surrogate, which UTF-8 cannot hold and JSON escapes can make, replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def append_line(file: BinaryIO, line: str) -> None:
    """Append a line to a file that is open for appending without a buffer.

    Raises CannotWrite if the line cannot be written; the file is then as before.
    """
    end, left = os.fstat(file.fileno()).st_size, (line + "\n").encode()
    with writing(file.name):
        try:
            while left:
                left = left[file.write(left) :]  # a write may be partial if the disk is full
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def write_json_atomic(path: str | Path, value: dict[str, Any]) -> None:
    """Write a JSON object with a checksum of its content. NaN and infinity raise ValueError."""
    text = json.dumps(sealed(value), indent=2, allow_nan=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode())


def as_json(value: Any) -> bytes:
    """The content of a JSON file that other programs read."""
    return (json.dumps(value, indent=2) + "\n").encode()


def read_json(path: str | Path) -> dict[str, Any]:
    """The object that write_json_atomic wrote. Raises ValueError, with the reason, if the file has changed.

    A file without a seal is read without this check: it was written before seals existed.
    """
    data = Path(path).read_bytes()
    value = parse_json(data)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    seal = value.pop("seal", None)
    if seal != _seal(value) and (seal is not None or SEAL.encode() in data):
        raise ValueError("it was changed after it was written")
    return value


SEAL = "crc32 of the rest: "


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """The value with the checksum of its content as the first entry, which read_json verifies."""
    return {"seal": _seal(value), **value}


def _seal(value: dict[str, Any]) -> str:
    return f"{SEAL}{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text or of its UTF-8 bytes. Raises ValueError, with the reason in a few words."""
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(error.msg) from None
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None
    except ValueError:  # the limit of Python on the digits of a number
        raise ValueError("a number has too many digits") from None


def content_sha256(path: Path) -> str:
    """The sha256 of a file, or of the names and sha256 sums of all files below a folder."""
    if path.is_file():
        with open(path, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listed = "".join(f"{file.relative_to(path)}\0{content_sha256(file)}\n" for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()


def read_json_object(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file of another program. Raises ValueError if there is no such object."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}; use a complete folder")
    try:
        value = parse_json(path.read_bytes())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not contain a JSON object; use another copy of it")
    return value
