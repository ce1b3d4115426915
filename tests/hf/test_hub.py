"""The hub, played by a small server on this machine: what arrives, and what is said when nothing does."""

import contextlib
import fnmatch
import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from jaxft.hf import hub, sentence, tokenizer
from jaxft.registry import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTENT = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": b"\x02\0\0\0\0\0\0\0{}",
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"unsafe",
    "modeling_evil.py": b"raise SystemExit",
    "onnx/config.json": b"of another format",
    "modules.json": json.dumps([{"type": kind, "path": path} for kind, path in sentence.KINDS.items()]).encode(),
    "1_Pooling/config.json": b'{"pooling_mode": "cls"}',
}
REPOSITORIES = {
    "org/tiny": CONTENT,
    "org/pickled": {name: content for name, content in CONTENT.items() if not name.endswith("safetensors")},
}
TOKEN = "hf_topsecrettoken"

# Seconds. Ours to give up is one; the hub's own client takes ten and more for each file. Between the two, since a busy
# machine adds some.
PATIENCE = 5

# Runs in its own process: the hub's client reads its settings when it is imported. The clock starts after its import.
CLIENT = """
import sys, time
from huggingface_hub import constants, errors, snapshot_download
from jaxft.hf import hub
from jaxft.registry import UserError
began = time.perf_counter()
try:
    print("folder", hub.resolve(sys.argv[1]))
except UserError as error:
    print("error", error)
print("seconds", time.perf_counter() - began)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """REPOSITORIES, `org/gated` behind terms, `org/broken` with an error, and nothing else."""

    seen: ClassVar[list[tuple[str, str]]] = []

    def log_message(self, format, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0]
        Hub.seen.append((self.command, path))
        if path.startswith("/api/models/org/gated"):
            return self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="accept the terms")
        if path.startswith("/api/models/org/broken"):
            return self.answer(400, b"{}")
        for repository, content in REPOSITORIES.items():
            if path.startswith(f"/api/models/{repository}/revision/"):
                files = [{"rfilename": name} for name in content]
                return self.answer(200, json.dumps({"id": repository, "sha": COMMIT, "siblings": files}).encode())
            if path.startswith(f"/api/models/{repository}/tree/"):
                entries = [
                    {"type": "file", "path": name, "size": len(file), "oid": hashlib.sha1(file).hexdigest()}
                    for name, file in content.items()
                ]
                return self.answer(200, json.dumps(entries).encode())
            name = path.removeprefix(f"/{repository}/resolve/{COMMIT}/")
            if name in content:
                etag = hashlib.sha1(content[name]).hexdigest()
                return self.answer(200, content[name], ETag=f'"{etag}"', X_Repo_Commit=COMMIT)
        return self.answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")

    do_HEAD = do_GET


@pytest.fixture
def endpoint():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.seen.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(name: str, home: Path, endpoint: str, **environment: str) -> tuple[dict[str, str], str]:
    """The client's answers by their first word, and all that it printed anywhere."""
    proxies = {key for key in os.environ if key.lower().endswith("_proxy")}
    inherited = {key: value for key, value in os.environ.items() if key not in proxies and not key.startswith("HF_")}
    settings = {
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    run = subprocess.run(
        [sys.executable, "-c", CLIENT, name], env=inherited | settings | environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    answers = dict(line.split(" ", 1) for line in run.stdout.splitlines() if " " in line)
    return answers, run.stdout + run.stderr


def closed_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def silent_port():
    """An address that neither accepts nor refuses, like one behind a firewall: its queue of connections is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_hub_id_brings_weights_config_and_tokenizer_and_nothing_that_can_run(endpoint, tmp_path):
    answers, _ = ask("org/tiny", tmp_path, endpoint)
    folder = Path(answers["folder"])
    files = ["1_Pooling", "config.json", "model.safetensors", "modules.json", "tokenizer.json"]
    assert sorted(file.name for file in folder.iterdir()) == files
    assert sentence.pooling(folder) == "first"
    assert (folder / "config.json").read_bytes() == CONTENT["config.json"]


def test_every_file_of_a_tokenizer_is_asked_for():
    assert all(any(fnmatch.fnmatch(name, wanted) for wanted in hub.WANTED) for name in tokenizer.FILES)


def test_the_cache_serves_when_the_hub_is_gone(endpoint, tmp_path):
    online, _ = ask("org/tiny", tmp_path, endpoint)
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        gone, _ = ask("org/tiny", tmp_path, closed_port(), **environment)
        assert gone["folder"] == online["folder"] and float(gone["seconds"]) < PATIENCE


def test_a_cached_copy_without_weights_is_not_taken_for_the_whole_when_the_hub_is_gone(endpoint, tmp_path):
    online, _ = ask("org/tiny", tmp_path, endpoint)
    (Path(online["folder"]) / "model.safetensors").unlink()
    gone, _ = ask("org/tiny", tmp_path, closed_port())
    assert "nor complete in the hub cache" in gone["error"] and "does not answer" in gone["error"]


def test_offline_mode_asks_nobody(endpoint, tmp_path):
    answers, _ = ask("org/tiny", tmp_path, endpoint, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in answers["error"] and not Hub.seen


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/tinny", "neither a folder here nor a model on"),
        ("org/gated", "is gated: accept its terms"),
        ("org/broken", "answered 400"),
        ("org/pickled", "has no safetensors weights, only other formats at most, such as pytorch_model.bin"),
    ],
)
def test_a_refusal_says_why_at_once_and_keeps_the_token(endpoint, tmp_path, name, message):
    answers, printed = ask(name, tmp_path, endpoint)
    assert message in answers["error"] and name in answers["error"]
    assert float(answers["seconds"]) < PATIENCE
    assert TOKEN not in printed


# Names under .invalid never resolve (RFC 2606).
@pytest.mark.parametrize("nobody", ["closed port", "silent port", "https://hub.invalid"])
def test_a_hub_that_does_not_answer_is_given_up_soon(tmp_path, silent_port, nobody):
    address = {"closed port": closed_port(), "silent port": silent_port}.get(nobody, nobody)
    answers, printed = ask("org/tiny", tmp_path, address)
    assert "does not answer" in answers["error"] and float(answers["seconds"]) < PATIENCE
    assert TOKEN not in printed


def test_a_cache_that_cannot_be_written_is_named(endpoint, tmp_path):
    (tmp_path / "file").write_text("")
    answers, _ = ask("org/tiny", tmp_path / "file", endpoint)
    assert answers["error"].endswith("failed: Not a directory") and str(tmp_path / "file") in answers["error"]


def test_an_existing_folder_is_taken_as_it_is(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="has no model"):
        hub.resolve(str(tmp_path))
    assert hub.resolve(str(tmp_path), weights=False) == tmp_path
    (tmp_path / "model.safetensors").touch()
    assert hub.resolve(str(tmp_path)) == tmp_path
    monkeypatch.chdir(tmp_path)
    Path("org/name").mkdir(parents=True)
    assert hub.resolve("org/name", weights=False) == Path("org/name")  # a folder wins over a hub id


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "runs/x/hf", "~/no-such-model", "a b", "org/", "-x/y"])
def test_a_missing_path_is_not_looked_up_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(hub, "_snapshot", lambda *_: pytest.fail("looked up"))
    with pytest.raises(UserError, match="no such folder"):
        hub.resolve(name)


def test_a_file_is_not_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model").write_text("")
    with pytest.raises(UserError, match="no such folder"):
        hub.resolve("model")
