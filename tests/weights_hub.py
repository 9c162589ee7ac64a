"""A loopback server with the Hub's layout for a repository of model files, and with faults to order.

Enough of the Hub for architecture/open_gpt_oss/download_weights.py: the repository's information with sizes and
hashes, and `resolve`, which redirects large files to another path as the Hub does to its store, with Range.
"""

import hashlib
import json
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from hub_server import LoopbackServer

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


class WeightsHub(LoopbackServer):
    """Serves `files` (path -> bytes) as the model repository `repo`.

    .safetensors files are LFS files. `asked` lists (path, first byte) of every request of a file.
    `info` replaces the repository's information; `listed` (path -> entries) changes what is listed of a file.
    faults: {path: [fault, ...]}, one for each request of the path, the last one for all that follow:
        None, ("drop", n): n bytes and then a closed connection; ("send", bytes): other content;
        ("whole",): the whole file whatever was asked; ("status", n)
    """

    def __init__(self, files: dict[str, bytes], repo: str = "openai/gpt-oss-20b"):
        super().__init__(_Handler)
        self.files, self.repo = files, repo
        self.asked: list[tuple[str, int]] = []
        self.faults: dict[str, list[tuple | None]] = {}
        self.listed: dict[str, dict] = {}
        self.info: bytes | None = None
        self.status = 200

    def handle_error(self, *_):
        """A client that closes its connection early is no error."""

    def information(self) -> bytes:
        entries = [_entry(path, data) | self.listed.get(path, {}) for path, data in self.files.items()]
        return json.dumps({"id": self.repo, "sha": COMMIT, "siblings": entries}).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        hub, path = self.server, unquote(urlsplit(self.path).path)
        if path == f"/api/models/{hub.repo}":
            return self._send(hub.status, hub.information() if hub.info is None else hub.info)
        resolve = f"/{hub.repo}/resolve/{COMMIT}/"
        if path.startswith(resolve) and path.endswith(".safetensors"):
            return self._send(302, b"", {"Location": path.replace(resolve, "/store/")})
        name = path.removeprefix(resolve).removeprefix("/store/")
        if name not in hub.files:
            return self._send(
                404, b"", {"X-Error-Code": "RepoNotFound" if "/api/" in path else "EntryNotFound"}
            )
        self._send_file(name, hub.files[name])

    def _send_file(self, name, data):
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.server.asked.append((name, start))
        faults = self.server.faults.get(name, [None])
        kind, *value = (faults.pop(0) if len(faults) > 1 else faults[0]) or (None,)
        if kind == "status":
            return self._send(value[0], b"")
        if kind == "send":
            data = value[0]
        if kind == "whole" or not start:
            status, headers, body = 200, {}, data
        elif start >= len(data):
            return self._send(416, b"")
        else:
            status, body = 206, data[start:]
            headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        self._send(status, body, headers, sent=value[0] if kind == "drop" else None)

    def _send(self, status, body, headers=(), sent=None):
        self.send_response(status)
        for key, value in {"Content-Length": len(body), **dict(headers)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(body[:sent])
        if sent is not None:
            self.close_connection = True

    def log_message(self, *_):
        pass


def _entry(path, data):
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry = {"rfilename": path, "size": len(data), "blobId": blob}
    if path.endswith(".safetensors"):
        digest = hashlib.sha256(data).hexdigest()
        entry |= {"lfs": {"sha256": digest, "size": len(data), "pointerSize": 130}, "blobId": "0" * 40}
    return entry
