"""Download the official gpt-oss weights from the Hugging Face Hub.

    python architecture/open_gpt_oss/download_weights.py --output_dir gpt_oss_weights
    python -m architecture.open_gpt_oss download --output_dir gpt_oss_hf --layout hf --model gpt-oss-120b

The folder is directly what a reader of its layout expects:

    original    config.json, dtypes.json, *.safetensors; the Hub has them below original/
    hf          config.json, *.safetensors and their index, tokenizer, chat template

and a download.json with the revision, and the size and hash of each file. Files arrive in a folder .download inside
and move out together when each has the size and the hash that the Hub states. After Ctrl-C, a lost connection
or a full disk, the same command goes on at the byte where it stopped.
"""

if __name__ == "__main__":  # started by its path: Python looks for modules in this folder
    import os
    import sys

    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

import common.begin  # noqa: F401  # isort: skip  first: Ctrl-C during the imports below

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tqdm import tqdm

from common.files import CannotWrite, lock_file, read_json, reading, write_json_atomic, writing
from common.hub import COMMIT, call_within, is_of_the_network, status_of, why_unreachable
from common.script import Parser, exit_code, first_line, say, shown

MODELS = {"gpt-oss-20b": "openai/gpt-oss-20b", "gpt-oss-120b": "openai/gpt-oss-120b"}
# The paths on the Hub that a layout takes, with the name in the folder as their group. No such name has a slash or
# begins with a dot, so that nothing leaves the folder; metal/, pickles (.bin) and code (.py) match neither.
LAYOUTS = {
    "original": re.compile(r"original/(\w[\w.-]*\.(?:safetensors|json))", re.ASCII),
    "hf": re.compile(r"(\w[\w.-]*\.(?:safetensors|json|jinja))", re.ASCII),
}
RECORD = "download.json"
ARRIVING = ".download"
ANSWER_SECONDS = 5.0  # for the list of files
READ_SECONDS = 20.0  # for the next bytes of a file
WAITS = (1, 2, 4, 8, 16, 30)  # seconds before each new try of a connection that brings nothing
LINE_SECONDS = 60  # between two lines about progress where there is no terminal
CHUNK = 1 << 20
HASH = re.compile("sha256 [0-9a-f]{64}|git [0-9a-f]{40}")
NO_NETWORK = (
    "the download needs a network; run it on a machine with one and copy the folder here, or set HF_ENDPOINT to a "
    "mirror"
)


class HubFile(NamedTuple):
    """hash: "sha256 <hex>" of the content, or "git <hex>", the sha1 of git's header and the content."""

    name: str
    path: str
    size: int
    hash: str

    def hasher(self) -> Any:
        if self.hash.startswith("sha256"):
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)

    def told(self, hasher: Any) -> str:
        return f"{self.hash.split()[0]} {hasher.hexdigest()}"

    def read(self, content: BinaryIO) -> Any:
        """The hasher after it has read an open file."""
        hasher = self.hasher()
        while chunk := content.read(CHUNK):
            hasher.update(chunk)
        return hasher

    @property
    def arriving(self) -> str:
        """The name while it is loaded. It holds the hash, so that the bytes of another revision are not continued."""
        return f"{self.name}.{self.hash.split()[1][:12]}"


# ----------------------------------------------------------------------------------------------- the Hub
def list_files(repository: str, layout: str) -> tuple[str, list[HubFile]]:
    """The newest revision, a commit, and its files of a layout, small ones first. Raises ValueError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    hub, seconds = HfApi(), ANSWER_SECONDS
    try:
        info = call_within(seconds, hub.model_info, repository, files_metadata=True, timeout=seconds)
        matches = ((entry, LAYOUTS[layout].fullmatch(entry.rfilename)) for entry in info.siblings)
        files = [_hub_file(entry, found[1]) for entry, found in matches if found and found[1] != RECORD]
        if not COMMIT.fullmatch(info.sha):
            raise ValueError(f"its revision is {info.sha!r:.60}")
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"there is no {repository} on {hub.endpoint}, or it is not open to your token; check HF_ENDPOINT and "
            "HF_TOKEN, or log in with hf auth login"
        ) from error
    except Exception as error:  # every library below raises its own kinds
        silent = is_of_the_network(error) and not status_of(error)
        advice = NO_NETWORK if silent else "check HF_ENDPOINT, or try again later"
        raise ValueError(f"{why_unreachable(error, seconds)}; {advice}") from error
    names = {file.name for file in files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise ValueError(
            f"{repository} on {hub.endpoint} has no config.json with weights in layout {layout}; use another "
            "--layout, or check HF_ENDPOINT"
        )
    return info.sha, sorted(files, key=lambda file: file.size)


def _hub_file(entry, name):
    size = entry.lfs.size if entry.lfs else entry.size
    known = f"sha256 {entry.lfs.sha256}" if entry.lfs else f"git {entry.blob_id}"
    if type(size) is not int or size < 0 or not HASH.fullmatch(known):
        raise ValueError(f"{entry.rfilename} has size {shown(size)} and hash {shown(known)}")
    return HubFile(name, entry.rfilename, size, known)


@contextlib.contextmanager
def _answer(url: str, start: int) -> Iterator[Any]:
    """The answer of the Hub to a request of a file from byte `start` on."""
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

    headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # positions count bytes of the file
    if start:
        headers["Range"] = f"bytes={start}-"
    once = dict(max_retries=0, retry_on_exceptions=(), retry_on_status_codes=())
    with http_stream_backoff("GET", url, headers=headers, timeout=READ_SECONDS, **once) as response:
        hf_raise_for_status(response)
        yield response


# ----------------------------------------------------------------------------------------------- one file
class Progress:
    """Bytes of all files, speed and time left: a bar in a terminal, else a line each LINE_SECONDS."""

    def __init__(self, total: int, here: int):
        self.terminal = terminal = sys.stderr is not None and sys.stderr.isatty()
        form = "{percentage:3.0f} %|{bar}| " if terminal else "{percentage:.0f} %, "
        often = dict(mininterval=0.2) if terminal else dict(mininterval=LINE_SECONDS, delay=LINE_SECONDS)
        form += "{n_fmt}B of {total_fmt}B, {rate_fmt}, {remaining} left"
        self.bar = tqdm(
            total=total, initial=here, unit="B", unit_scale=True, leave=False, miniters=0, bar_format=form,
            file=sys.stderr if terminal else self, **often,
        )  # fmt: skip

    def write(self, text: str) -> None:
        if text.strip():
            say(text.strip())

    def flush(self) -> None:
        pass

    def add(self, count: int) -> None:
        self.bar.update(count)

    def say(self, text: str) -> None:
        if self.terminal:
            self.bar.clear()
        say(text)

    def close(self) -> None:
        self.bar.close()


class WrongFile(ValueError):
    """The content that came is not that of the Hub's list. The message says how it differs."""


class Part:
    """The bytes of a file that have arrived: on the disk, in the hash and in the progress."""

    def __init__(self, out: BinaryIO, file: HubFile, progress: Progress):
        """out: open for reading and appending; what it holds already is hashed."""
        self.out, self.file, self.progress = out, file, progress
        out.seek(0)
        self.hasher, self.size = file.read(out), out.tell()

    def append(self, chunk: bytes) -> None:
        self.out.write(chunk)
        self.hasher.update(chunk)
        self.size += len(chunk)
        self.progress.add(len(chunk))
        if self.size > self.file.size:
            raise WrongFile(f"more than the {self.file.size:,} bytes that the Hub states")

    def start_again(self) -> None:
        self.out.truncate(0)
        self.progress.add(-self.size)
        self.size, self.hasher = 0, self.file.hasher()


def load_file(url: str, file: HubFile, target: Path, progress: Progress) -> None:
    """Load a file to `target`, from where an earlier call stopped. A wrong file is loaded again once.

    Raises CannotWrite, and ValueError; what has arrived is then kept, unless it is wrong.
    """
    path = target.with_name(f"{target.name}.part")
    with writing(path), open(path, "a+b") as out:
        if out.tell() > file.size:
            out.truncate(0)
        part = Part(out, file, progress)
        for last in (False, True):
            try:
                _receive(url, part)
                break
            except WrongFile as wrong:
                part.start_again()
                if last:
                    raise ValueError(
                        f"{file.path} came twice with wrong content, {wrong}; nothing of it was kept; look for a "
                        "proxy or mirror (HF_ENDPOINT) that changes files, or try again later"
                    ) from wrong
                progress.say(f"{file.path} is wrong, {wrong}; it is loaded again")
        out.flush()
        os.fsync(out.fileno())
        path.replace(target)


def _receive(url, part):
    """Append what a file lacks, over as many connections as it takes. Raises WrongFile and ValueError."""
    file, furthest, waits = part.file, part.size, iter(WAITS)
    while part.size < file.size:
        reason = _one_connection(url, part)
        if part.size > furthest:
            furthest, waits = part.size, iter(WAITS)
        elif part.size < file.size:
            seconds = next(waits, None)
            if seconds is None:
                raise ValueError(
                    f"the Hub sent no more of {file.path} after {furthest:,} of {file.size:,} bytes, in "
                    f"{len(WAITS) + 1} tries ({reason}); what has arrived is kept; check the network and run "
                    "the same command again, which goes on from there"
                )
            part.progress.say(f"{file.path}: {reason}; next try in {seconds} s")
            time.sleep(seconds)
    found = file.told(part.hasher)
    if found != file.hash:
        raise WrongFile(f"it has the hash {found}, and the Hub states {file.hash}")


def _one_connection(url, part):
    """Append what one connection brings. Returns in a few words why it ended."""
    try:
        with _answer(url, part.size) as response:
            if part.size and response.status_code != 206:  # it sends the file from the start
                part.start_again()
            elif part.size and not response.headers.get("Content-Range", "").startswith(
                f"bytes {part.size}-"
            ):
                return f"other bytes came than those from {part.size:,} on"
            for chunk in response.iter_bytes():
                part.append(chunk)
    except Exception as error:  # every library below raises its own kinds
        if status_of(error) == 416:
            had, whole = part.size, part.file.size
            raise WrongFile(f"at most {had:,} of the {whole:,} bytes that the Hub states") from error
        if is_of_the_network(error):
            return first_line(error)
        if status_of(error):
            raise ValueError(
                f"the Hub refuses to send {part.file.path} ({first_line(error).rstrip('.')}); check "
                "HF_ENDPOINT and HF_TOKEN, or try again later"
            ) from error
        raise
    return "the connection ended"


# ----------------------------------------------------------------------------------------------- the folder
def download(repository: str, layout: str, folder: Path) -> str:
    """Fill a folder with the files of one layout of a repository. Returns a sentence that says what is there.

    Raises ValueError and CannotWrite. What has arrived is kept for the next call.
    """
    record = _read_record(folder, repository, layout)
    if record and all(_size(folder / name) == file["size"] for name, file in record["files"].items()):
        return f"{folder} already holds {_summary(record)}, of the right sizes; no hash was computed again"
    revision, files = list_files(repository, layout)
    _require_own(folder, files, record)
    arriving = folder / ARRIVING
    missing = [file for file in files if not _is_here(folder / file.name, file, record)]
    here = sum(
        min(_size(arriving / name) or 0, file.size)
        for file in missing
        for name in (file.arriving, f"{file.arriving}.part")
    )
    total = sum(file.size for file in missing)
    _require_room(folder, total - here)
    old = record["files"] if record else {}
    files_of = {file.name: {"size": file.size, "hash": file.hash} for file in files}
    record = {"repository": repository, "revision": revision, "layout": layout, "files": files_of}
    arrived = f"; {_gb(here)} of {_gb(total)} have arrived" if here else ""
    say(f"{_summary(record)}, into {folder}{arrived}")
    with _arriving(folder):
        _load(repository, revision, missing, arriving, Progress(total, here))
        with writing(folder):  # config.json last: without it nothing reads the folder
            for file in sorted(missing, key=lambda file: file.name == "config.json"):
                (arriving / file.arriving).replace(folder / file.name)
            for name in (
                old.keys() - files_of
            ):  # an older revision had it, and a reader would take it for a shard
                (folder / name).unlink(missing_ok=True)
        write_json_atomic(folder / RECORD, record)
        shutil.rmtree(arriving, ignore_errors=True)
    return f"{folder} holds {_summary(record)}; the size and the hash of each are right"


def _load(repository, revision, missing, arriving, progress):
    from huggingface_hub import HfApi, hf_hub_url

    endpoint = HfApi().endpoint
    with contextlib.closing(progress):
        for file in missing:
            if not (arriving / file.arriving).exists():
                url = hf_hub_url(repository, file.path, revision=revision, endpoint=endpoint)
                try:
                    load_file(url, file, arriving / file.arriving, progress)
                except CannotWrite as error:
                    raise error.and_then("run the same command again, which goes on from there") from error
                progress.say(f"{file.path}: {_gb(file.size)}, size and hash right")


@contextlib.contextmanager
def _arriving(folder):
    """Locks the folder of arriving files, and removes folders that are still empty at the end."""
    arriving, lock, new = folder / ARRIVING, folder / ARRIVING / "lock", not folder.exists()

    def in_use(owner):
        return ValueError(
            f"{folder} is in use by another download (process {owner}); wait for it, or choose another --output_dir"
        )

    with writing(folder):
        held = lock_file(lock, in_use)
    with held:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if all(path == lock or not path.stat().st_size for path in arriving.iterdir()):
                    shutil.rmtree(arriving)
                    if new:
                        folder.rmdir()


def _read_record(folder, repository, layout):
    path = folder / RECORD
    if not path.exists():
        return None
    with reading(path, "the record of a download", way_out="delete it; the files are then compared by hash"):
        record = read_json(path)
        for name, file in record["files"].items():
            if "/" in name or not HASH.fullmatch(file["hash"]) or type(file["size"]) is not int:
                raise ValueError(f"its entry {shown(name)} is wrong")
        if (record["repository"], record["layout"]) == (repository, layout):
            return record
        there = _summary(record)
    raise ValueError(f"{folder} holds {there}; choose another --output_dir")


def _require_own(folder, files, record):
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} must be a folder, and is a file; choose another name")
    if record or (folder / ARRIVING).is_dir() or not folder.exists():
        return
    ours = {file.name for file in files}
    others = sorted(p.name for p in folder.iterdir() if p.name not in ours and not p.name.startswith("."))
    if others:
        raise ValueError(
            f"--output_dir {folder} must be a new or an empty folder or hold this model, and holds "
            f"{others[0]}; choose another name"
        )


def _is_here(path, file, record):
    """Whether a right file is at its place. Raises ValueError for a file that this program did not write."""
    recorded = record["files"].get(file.name) if record else None
    if recorded is not None:  # ours: anything else at its place is replaced
        return recorded["hash"] == file.hash and _size(path) == file.size
    if not path.exists():
        return False
    if _size(path) == file.size:
        with open(path, "rb") as content:
            if file.told(file.read(content)) == file.hash:
                return True
    told = "move it, or choose another --output_dir"
    raise ValueError(f"{path} exists and is not {file.path} of the Hub; {told}")


def _require_room(folder, needed):
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ValueError(
            f"{folder} needs {_gb(needed)} more, and its disk has {_gb(free)} free; make room, or choose an "
            "--output_dir on another disk"
        )


def _size(path):
    return path.stat().st_size if path.is_file() else None


def _gb(size):
    for unit, bytes_of in (("GB", 1e9), ("MB", 1e6)):
        if size >= bytes_of / 20:
            return f"{size / bytes_of:,.1f} {unit}"
    return f"{size:,} bytes"


def _summary(record):
    files = record["files"].values()
    return (
        f"{record['repository']}, layout {record['layout']}, revision {record['revision'][:7]}: {len(files)} files, "
        f"{_gb(sum(file['size'] for file in files))}"
    )


# ----------------------------------------------------------------------------------------------- command
def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    told = "the folder to fill; a new one, or this download's"
    add("--output_dir", required=True, metavar="DIR", help=told)
    add("--model", choices=MODELS, default="gpt-oss-20b", help="13.8 or 65.2 GB (default: gpt-oss-20b)")
    told = "OpenAI's files or those of transformers (default: original)"
    add("--layout", choices=LAYOUTS, default="original", help=told)


def run(args: argparse.Namespace) -> None:
    try:
        print(download(MODELS[args.model], args.layout, Path(args.output_dir)))
    except KeyboardInterrupt:
        say("what has arrived is kept; the same command goes on from there")
        raise


def main(argv: list[str] | None = None) -> int:
    """Return the exit code; see common/script.py."""
    parser = Parser(prog="download_weights.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    add_arguments(parser)
    return exit_code("download_weights.py", lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
