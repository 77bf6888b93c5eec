"""A server of the part of Google Cloud Storage's JSON API that gcsfs, its own client and TensorStore use.

gcp-storage-emulator does not do: it ignores preconditions, and does not give the generation of what is read, both of
which TensorStore needs.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit


class Stored(NamedTuple):
    content: bytes
    generation: int


class StorageServer:
    """A context manager: the server, at `url`, of one bucket called "bucket".

    objects  what is stored, by name
    refuse   the status to refuse a request with, given its method and the object or the prefix that it is about; None
             to answer it
    """

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.refuse: Callable[[str, str], int | None] = lambda method, name: None
        self.requests: list[tuple[str, str]] = []
        self.uploads: dict[str, tuple[str, bytes]] = {}
        self.lock = threading.RLock()
        self.generations = count(1)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"storage": self}))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # a client that no longer waits for its answer
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "StorageServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """What tells the libraries to use this server, without credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "GOOGLE_CLOUD_PROJECT": "project",
            "NO_GCE_CHECK": "true",
        }

    def under(self, prefix: str) -> list[str]:
        """The names of the objects that begin with `prefix`, without it."""
        with self.lock:
            return sorted(name.removeprefix(prefix) for name in self.objects if name.startswith(prefix))

    def put(self, name: str, content: bytes) -> Stored:
        with self.lock:
            self.objects[name] = Stored(content, next(self.generations))
            return self.objects[name]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    storage: StorageServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_PUT = do_DELETE = do_GET

    def _handle(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        self.body = self._body()
        path = url.path.replace("/storage/v1/", "/").lstrip("/")
        if path.startswith("batch"):
            self._batch()
            return
        parts = path.removeprefix("upload/").removeprefix("download/").split("/", 3)
        if len(parts) < 2 or parts[0] != "b":
            self._reply(404)
            return
        name = unquote(parts[3]) if len(parts) == 4 else self.query.get("name", self.query.get("prefix", ""))
        if self.query.get("uploadType") == "multipart":  # gcsfs: a part with the name, a part with the content
            _, about, content = self.body.split(b"\n\n", 2)
            name = json.loads(about.splitlines()[0])["name"]
            self.body = content.removesuffix(b"\n--==0==--")
        status = self.storage.refuse(self.command, name)
        with self.storage.lock:
            self.storage.requests.append((self.command, name))
            if status is not None:
                self._error(status)
            elif unquote(parts[1]) != "bucket":
                self._error(404)
            elif len(parts) == 2:
                self._json({"kind": "storage#bucket", "name": "bucket", "id": "bucket"})
            elif self.command == "GET" and len(parts) == 3:
                self._list()
            elif self.command == "GET":
                self._get(name)
            elif self.command == "DELETE":
                self._reply(self._delete(name))
            else:
                self._upload(name)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _list(self) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        names = [name for name in sorted(self.storage.objects) if name.startswith(prefix)]
        names = [name for name in names if name >= self.query.get("startOffset", "")]
        names = [name for name in names if "endOffset" not in self.query or name < self.query["endOffset"]]
        folders = set()
        if delimiter:
            folders = {
                prefix + name.removeprefix(prefix).split(delimiter)[0] + delimiter
                for name in names
                if delimiter in name.removeprefix(prefix)
            }
            names = [name for name in names if delimiter not in name.removeprefix(prefix)]
        self._json({"items": [self._about(name) for name in names], "prefixes": sorted(folders)})

    def _about(self, name: str) -> dict[str, str]:
        stored = self.storage.objects[name]
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": "bucket",
            "size": str(len(stored.content)),
            "generation": str(stored.generation),
            "metageneration": "1",
            "md5Hash": base64.b64encode(hashlib.md5(stored.content).digest()).decode(),
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "mediaLink": f"{self.storage.url}/download/storage/v1/b/bucket/o/{name}?alt=media",
        }

    def _get(self, name: str) -> None:
        stored = self.storage.objects.get(name)
        generation = stored.generation if stored else 0
        if self.query.get("ifGenerationNotMatch") == str(generation):
            self._reply(304)
        elif self.query.get("ifGenerationMatch", str(generation)) != str(generation):
            self._reply(412)
        elif stored is None:
            self._error(404)
        elif self.query.get("alt") != "media":
            self._json(self._about(name))
        else:
            self._media(stored)

    def _media(self, stored: Stored) -> None:
        content, size = stored.content, len(stored.content)
        headers = {"x-goog-generation": str(stored.generation)}
        wanted = self.headers.get("Range")
        if wanted is None:
            self._reply(200, content, headers)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(size - int(last), 0)
        end = min(int(last) + 1 if first and last else size, size)
        if start >= size:
            self._reply(416)
            return
        self._reply(206, content[start:end], {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"})

    def _delete(self, name: str) -> int:
        if name not in self.storage.objects:
            return 404
        if self.query.get("ifGenerationMatch", str(self.storage.objects[name].generation)) != str(
            self.storage.objects[name].generation
        ):
            return 412
        del self.storage.objects[name]
        return 204

    def _upload(self, name: str) -> None:
        """In one request, or begun by one and continued by others that give the range (gcsfs, from 50 MiB on)."""
        if self.query.get("uploadType") == "resumable" and "upload_id" not in self.query:
            identity = str(next(self.storage.generations))
            self.storage.uploads[identity] = (json.loads(self.body)["name"], b"")
            self._reply(200, b"", {"Location": f"{self.storage.url}{self.path}&upload_id={identity}"})
            return
        if (identity := self.query.get("upload_id")) is None:
            content = self.body
        else:
            name, before = self.storage.uploads[identity]
            content = before + self.body
            self.storage.uploads[identity] = (name, content)
            if self.headers["Content-Range"].endswith("/*"):
                self._reply(308, b"", {"Range": f"bytes=0-{len(content) - 1}"})
                return
        generation = self.storage.objects[name].generation if name in self.storage.objects else 0
        if self.query.get("ifGenerationMatch", str(generation)) != str(generation):
            self._reply(412)
            return
        self.storage.put(name, content)
        self._json(self._about(name))

    def _batch(self) -> None:
        """Deletions, each a part with a request of its own."""
        boundary = self.headers["Content-Type"].split("boundary=")[1].strip('"')
        replies = b""
        for part in self.body.split(f"--{boundary}".encode())[1:-1]:
            line = next(line for line in part.decode().splitlines() if line.startswith("DELETE "))
            name = unquote(line.split()[1].split("/o/", 1)[1].split("?")[0])
            with self.storage.lock:
                status = self.storage.refuse("DELETE", name) or self._delete(name)
            replies += f"--{boundary}\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status} X\r\n\r\n\r\n".encode()
        self._reply(
            200, replies + f"--{boundary}--".encode(), {"Content-Type": f"multipart/mixed; boundary={boundary}"}
        )

    def _error(self, status: int) -> None:
        self._json({"error": {"code": status, "message": f"status {status}"}}, status)

    def _json(self, value: object, status: int = 200) -> None:
        self._reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _reply(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
