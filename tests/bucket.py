"""A bucket of Google Cloud Storage, played by a small server on this machine: what gcsfs and TensorStore ask of one.

Objects have generations and their preconditions hold, as in the real one; everything is in memory. Names that begin
with "secret" may not be read. `before` is called with (method, name) just before each change of an object.

    with Bucket() as bucket:
        environment = bucket.environment  # of a program that is to see it as gs://bucket
"""

import base64
import contextlib
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

PAGE = 50  # names in an answer: few enough that a test sees a second page


class Bucket:
    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}  # name -> content, generation
        self.before: Callable[[str, str], None] = lambda _method, _name: None
        self.lock = threading.RLock()
        self.uploads: dict[str, tuple[dict, bytearray]] = {}
        self._count = 0
        self._server = _Server(("localhost", 0), type("Bound", (_Handler,), {"bucket": self}))
        address = f"http://localhost:{self._server.server_address[1]}"
        self.environment = {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address}
        self.environment |= {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}

    def __enter__(self) -> "Bucket":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __getitem__(self, name: str) -> bytes:
        return self.objects[name][0]

    def __setitem__(self, name: str, content: bytes) -> None:
        with self.lock:
            self._count += 1
            self.objects[name] = content, self._count

    def names(self, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def number(self) -> int:
        self._count += 1
        return self._count


@contextlib.contextmanager
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket that this process sees as gs://bucket; the test is skipped, visibly, without gcsfs."""
    with Bucket() as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        pytest.importorskip("gcsfs").GCSFileSystem.clear_instance_cache()
        yield bucket


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_request: object) -> None:
        """A client that went away, as one that was killed does; a mistake in here shows as a failed request."""


class _Handler(http.server.BaseHTTPRequestHandler):
    bucket: Bucket
    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        path, query = self._asked()
        name = _object(path)
        if (name or query.get("prefix", "")).startswith("secret"):
            self._json({"error": {"message": "no access"}}, 403)
        elif name is None:
            self._json(self._listing(query) if path.endswith("/o") else {"name": "bucket", "id": "bucket"})
        elif name not in self.bucket.objects:
            self._json({"error": {"code": 404, "message": "Not Found"}}, 404)
        elif query.get("ifGenerationNotMatch") == str(self.bucket.objects[name][1]):
            self._send(b"", 304)
        elif query.get("alt") == "media":
            self._media(name)
        else:
            self._json(self._facts(name))

    def do_POST(self) -> None:
        path, query = self._asked()
        body = self._body()
        if path.startswith("/batch"):
            self._batch(body)
        elif "upload_id" in query:
            self._piece(query["upload_id"], body)
        elif query["uploadType"] == "multipart":
            mark = b"--" + re.search("boundary=['\"]?([^'\";]+)", self.headers["Content-Type"])[1].encode()
            about, content = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in body.split(mark)[1:3])
            self._store(json.loads(about)["name"], re.sub(rb"\r?\n\Z", b"", content), query)
        elif query["uploadType"] == "resumable":
            number = str(self.bucket.number())
            name = query.get("name") or json.loads(body)["name"]
            self.bucket.uploads[number] = ({**query, "name": name}, bytearray())
            here = self.bucket.environment["STORAGE_EMULATOR_HOST"]
            self._send(b"{}", 200, {"Location": f"{here}{path}?uploadType=resumable&upload_id={number}"})
        else:
            self._store(query["name"], body, query)

    def do_PUT(self) -> None:
        self._piece(self._asked()[1]["upload_id"], self._body())

    def _piece(self, number: str, body: bytes) -> None:
        query, so_far = self.bucket.uploads[number]
        so_far += body
        if self.headers["Content-Range"].endswith((f"/{len(so_far)}", "bytes */0")):
            self._store(query["name"], bytes(so_far), query)
        else:
            self._send(b"", 308, {"Range": f"bytes=0-{len(so_far) - 1}"})

    def do_DELETE(self) -> None:
        path, _ = self._asked()
        self._send(b"", self._delete(_object(path)))

    def _delete(self, name: str) -> int:
        self.bucket.before("DELETE", name)
        with self.bucket.lock:
            return 404 if self.bucket.objects.pop(name, None) is None else 204

    def _store(self, name: str, content: bytes, query: dict[str, str]) -> None:
        self.bucket.before("PUT", name)
        with self.bucket.lock:
            generation = self.bucket.objects[name][1] if name in self.bucket.objects else 0
            if query.get("ifGenerationMatch", str(generation)) != str(generation):
                return self._json({"error": {"code": 412, "message": "conditionNotMet"}}, 412)
            self.bucket[name] = content
        self._json(self._facts(name))

    def _batch(self, body: bytes) -> None:
        """Deletions only."""
        asked = re.findall(rb"DELETE \S*/o/(\S+) HTTP", body)
        answers = [f"HTTP/1.1 {self._delete(unquote(name.decode()))} \r\n\r\n" for name in asked]
        parts = [f"--x\r\nContent-Type: application/http\r\n\r\n{answer}\r\n" for answer in answers]
        self._send("".join([*parts, "--x--"]).encode(), 200, {"Content-Type": "multipart/mixed; boundary=x"})

    def _listing(self, query: dict[str, str]) -> dict:
        prefix, mark = query.get("prefix", ""), query.get("delimiter", "")
        names = [name for name in self.bucket.names(prefix) if name >= query.get("startOffset", "")]
        names = [name for name in names if not query.get("endOffset") or name < query["endOffset"]]
        cut = {name: name.find(mark, len(prefix)) if mark else -1 for name in names}
        entries = sorted({name if cut[name] < 0 else name[: cut[name] + 1] for name in names})
        begin = int(query.get("pageToken", "0"))
        page, more = entries[begin : begin + PAGE], begin + PAGE < len(entries)
        items = [self._facts(name) for name in page if name in cut and cut[name] < 0]
        folders = [name for name in page if name not in cut or cut[name] >= 0]
        found = {"kind": "storage#objects", "items": items, "prefixes": folders}
        return {key: value for key, value in found.items() if value} | (
            {"nextPageToken": str(begin + PAGE)} if more else {}
        )

    def _facts(self, name: str) -> dict:
        import google_crc32c

        content, generation = self.bucket.objects[name]
        checksum = base64.b64encode(google_crc32c.Checksum(content).digest()).decode()
        facts = {"kind": "storage#object", "name": name, "bucket": "bucket", "size": str(len(content))}
        when = {"timeCreated": "2026-01-01T00:00:00.000Z", "updated": "2026-01-01T00:00:00.000Z"}
        return {**facts, **when, "crc32c": checksum, "etag": f"e{generation}", "generation": str(generation)}

    def _media(self, name: str) -> None:
        content, generation = self.bucket.objects[name]
        headers = {"x-goog-generation": str(generation), "Content-Type": "application/octet-stream"}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self._send(content, 200, headers)
        begin = int(wanted[1]) if wanted[1] else max(0, len(content) - int(wanted[2]))
        end = min(int(wanted[2]) + 1 if wanted[1] and wanted[2] else len(content), len(content))
        if begin >= len(content):
            return self._send(b"", 416, headers | {"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
        return self._send(content[begin:end], 206, headers)

    def _asked(self) -> tuple[str, dict[str, str]]:
        url = urlsplit(self.path)
        return url.path, {key: values[-1] for key, values in parse_qs(url.query).items()}

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _json(self, value: dict, code: int = 200) -> None:
        self._send(json.dumps(value).encode(), code, {"Content-Type": "application/json"})

    def _send(self, body: bytes, code: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _object(path: str) -> str | None:
    found = re.search(r"/b/bucket/o/(.+)", path)
    return unquote(found[1]) if found else None
