"""A loopback server with the Hub's layout for one dataset repository of jsonl or parquet files.

Enough of the Hub for `datasets.load_dataset(REPO, streaming=True)` (datasets 5.2, huggingface_hub
2.4): repository info, tree listing, and `resolve` with HEAD and Range. As a script it
prints its address, for a process that runs with HF_ENDPOINT set to it:

    python tests/hub_server.py train.jsonl valid.jsonl            # http://127.0.0.1:PORT
    HF_ENDPOINT=http://127.0.0.1:PORT HF_HOME=/tmp/hf python train.py --dataset tinystories
"""

import argparse
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPO = "roneneldan/TinyStories"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TIME = "2024-01-01T00:00:00.000Z"
OTHER_SHAPES = (b"null", b"5", b"[]", b"[5]", b'"x"', b"{}", b"[" * 100_000, b"<html>", b"")


class LoopbackServer(ThreadingHTTPServer):
    """A server on this machine, which runs in a thread while it is used as a context manager."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler], port: int = 0):
        super().__init__(("127.0.0.1", port), handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class HubServer(LoopbackServer):
    """Serves `files` (name -> bytes) as the dataset repository `repo`.

    answers: {a part of a path: (body, headers)} that is sent in place of the right answer.
    """

    def __init__(self, files: dict[str, bytes], *, repo: str = REPO, port: int = 0):
        super().__init__(_Handler, port)
        self.files = files
        self.repo = repo
        self.answers: dict[str, tuple[bytes, dict]] = {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._route()

    def do_HEAD(self):
        self._route()

    def _route(self):
        path = unquote(urlsplit(self.path).path)
        api, content = f"/api/datasets/{self.server.repo}", f"/datasets/{self.server.repo}/resolve/"
        for part, (body, headers) in self.server.answers.items():
            if part in path:
                return self._send(200, body, "application/json", headers)
        if path == api or path.startswith(f"{api}/revision/"):
            self._send_json(self._repository_info())
        elif path.startswith(f"{api}/tree/"):
            folder = "/".join(path.removeprefix(f"{api}/tree/").split("/")[1:])
            entries = self._tree(folder, deep="recursive=true" in self.path.lower())
            if entries is None:
                return self._send_error(404, "EntryNotFound")
            self._send_json(entries)
        elif path.startswith(content):
            self._send_file(path.removeprefix(content).split("/", 1)[1])
        else:
            self._send_error(404, "RepoNotFound")

    def _repository_info(self):
        siblings = [{"rfilename": name} for name in self.server.files]
        return {"id": self.server.repo, "sha": COMMIT, "lastModified": TIME, "siblings": siblings}

    def _tree(self, folder, deep):
        """The files and subfolders of one folder, and below it if `deep`; None if there is no such folder."""
        prefix = f"{folder}/" if folder else ""
        inside = [name for name in self.server.files if name.startswith(prefix)]
        entries = {}
        for name in inside:
            child, below, _ = name.removeprefix(prefix).partition("/")
            path = prefix + child
            entries[path] = _folder(path) if below else _entry(path, self.server.files[path])
            if deep:
                entries[name] = _entry(name, self.server.files[name])
        return list(entries.values()) if inside else None

    def _send_file(self, name):
        if name not in self.server.files:
            return self._send_error(404, "EntryNotFound")
        data = self.server.files[name]
        first, last, status = 0, len(data) - 1, 200
        if self.headers.get("Range"):
            start, end = self.headers["Range"].removeprefix("bytes=").split("-")
            first, last, status = int(start), min(int(end or last), last), 206
        headers = {"ETag": f'"{_sha1(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if status == 206:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._send(status, data[first : last + 1], "application/octet-stream", headers)

    def _send_json(self, value):
        self._send(200, json.dumps(value).encode(), "application/json", {})

    def _send_error(self, status, code):
        self._send(status, b"{}", "application/json", {"X-Error-Code": code})

    def _send(self, status, body, kind, headers):
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": len(body), **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


LAST_COMMIT = {"id": COMMIT, "title": "data", "date": TIME}


def _entry(path, data):
    return {"type": "file", "path": path, "size": len(data), "oid": _sha1(data), "lastCommit": LAST_COMMIT}


def _folder(path):
    return {"type": "directory", "path": path, "size": 0, "oid": COMMIT, "lastCommit": LAST_COMMIT}


def _sha1(data):
    return hashlib.sha1(data).hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("validation")
    parser.add_argument("--port", type=int, default=0, help="0: any free port (default: 0)")
    args = parser.parse_args()
    files = {}
    for split in ("train", "validation"):
        with open(getattr(args, split), "rb") as file:
            files[f"data/{split}.jsonl"] = file.read()
    server = HubServer(files, port=args.port)
    print(server.url, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
