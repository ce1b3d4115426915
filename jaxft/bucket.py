"""A run folder in a bucket: its checkpoints, written there at once, and the small files, kept here and sent along.

A bucket knows whole objects only: none is renamed and none grows. So a step counts when its manifest.json is there,
which is written last; and files that grow, such as metrics.jsonl, are sent again before a checkpoint counts.
"""

import contextlib
import functools
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxft import manifest, remote
from jaxft.registry import UserError

# Of a run that goes on, what it reads again; and what it writes at its end, of which an older one is of no use.
KEPT = ("config.json", "report.json", "reference.npz", "metrics.jsonl", "batches.log", "wandb_run_id", "tensorboard")
KEPT += ("tokenizer", "chat_template.jinja", "goodput.json", "rollbacks.json")
FIELD = "run folder"  # of --workdir or --run
EXPORT = "hf"  # hf, and hf-<companion>
LAST = "report.json"  # says that the run is finished


def store(url: str) -> tuple[Any, str]:
    """(fsspec's file system, the path in it), which looks anew each time. Raises UserError where there is no way to it.

    Only gs://, for Orbax writes to it, and its objects can be made on the condition that they are not there.
    """
    if url.partition("://")[0] != "gs":
        raise UserError(
            f"{FIELD}={url!r}: a run can live in a folder or below gs://; mount other stores as a folder, or train "
            "in a local one and copy it"
        )
    try:
        return remote.file_system(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise UserError(remote.explained(url, FIELD, error)) from error


@contextlib.contextmanager
def talking(url: str, code: int = 1) -> Iterator[None]:
    """Inside, what the clients of a bucket raise becomes a UserError of that exit code."""
    with remote.talking(url, FIELD, code):
        yield


def asking(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that talks to the bucket at `self.url`."""

    @functools.wraps(method)
    def wrapped(self: Any, *arguments: Any, **more: Any) -> Any:
        with talking(self.url):
            return method(self, *arguments, **more)

    return wrapped


class Shelf:
    """Steps below `url`. The manifest has the checksums that the bucket itself has made of what came to it (CRC32C).

    So nothing is read back to be hashed; the bucket checks by the same sums what it keeps.
    """

    def __init__(self, url: str):
        self.url = url
        self._fs, self._root = store(url)

    def __str__(self) -> str:
        return self.url

    @asking
    def prepare(self) -> None:
        committed = set(self.steps())
        for step in self._numbers():
            if step not in committed:
                self.remove(step)

    @asking
    def steps(self) -> list[int]:
        return [step for step in self._numbers() if self._fs.exists(self._path(step, manifest.NAME))]

    @asking
    def begin(self, step: int, files: Mapping[str, str]) -> None:
        self.remove(step)
        for name, text in files.items():
            self._write(step, name, text)

    def draft(self, step: int) -> str:
        return self.place(step)

    @asking
    def commit(self, step: int) -> None:
        self._write(step, manifest.NAME, manifest.text(self._entries(step)))

    def abandon(self, step: int) -> None:
        with contextlib.suppress(UserError):
            self.remove(step)

    @asking
    def remove(self, step: int) -> None:
        files = self._fs.find(self._path(step))
        sealed = [path for path in files if path == self._path(step, manifest.NAME)]
        for some in (sealed, [path for path in files if path not in sealed]):  # first that which makes it count
            if some:
                self._fs.rm(some)

    @asking
    def damage(self, step: int) -> str:
        where = f"{self.place(step)}/{manifest.NAME}"
        try:
            listed = manifest.listed(self.read(step, manifest.NAME))
        except ValueError as error:
            return f"{where} cannot be read ({error})"
        if listed is None:
            return f"{where} was changed after it was written"
        found = self._entries(step)
        for name, entry in listed.items():
            if name not in found:
                return f"{self.place(step)}/{name} is missing"
            if "sha256" in entry:  # of a checkpoint that was copied from a disk
                with self._fs.open(self._path(step, name)) as file:
                    found[name] = {"bytes": file.size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
            if found[name] != entry:
                return f"{self.place(step)}/{name} has changed: {found[name]} instead of {entry}"
        return ""

    def place(self, step: int) -> str:
        return f"{self.url}/{step}"

    @asking
    def read(self, step: int, name: str) -> str:
        return self._fs.cat_file(self._path(step, name)).decode()

    @asking
    def mark(self, step: int) -> None:
        self._write(step, "best", "")

    @asking
    def marked(self) -> list[int]:
        return [step for step in self.steps() if self._fs.exists(self._path(step, "best"))]

    def free(self) -> None:
        return None

    def _numbers(self) -> list[int]:
        try:
            names = (path.rstrip("/").rpartition("/")[2] for path in self._fs.ls(self._root, detail=False))
            return sorted(int(name) for name in names if name.isdecimal())
        except FileNotFoundError:
            return []

    def _path(self, *parts: str | int) -> str:
        return "/".join(map(str, (self._root, *parts)))

    def _write(self, step: int, name: str, text: str) -> None:
        self._fs.pipe_file(self._path(step, name), text.encode())

    def _entries(self, step: int) -> dict[str, Any]:
        begin = len(self._path(step)) + 1
        found = self._fs.find(self._path(step), detail=True)
        entries = {path[begin:]: {"bytes": info["size"], "crc32c": info["crc32c"]} for path, info in found.items()}
        return {name: entry for name, entry in entries.items() if name != manifest.NAME}


class Mirror:
    """The files of a run but its checkpoints: `folder`, of this machine, stands for `url`.

    One process sends; it holds the lease of the run (lease.py).
    """

    def __init__(self, url: str, folder: Path):
        self.url, self.folder = url, folder
        self._fs, self._root = store(url)
        self._there: dict[str, tuple[int, int] | None] = {}  # name in the bucket -> size and time of that file here
        self._busy = threading.Lock()

    def fetch(self) -> None:
        """Fills the folder with what the bucket has of KEPT. Raises UserError where that cannot be read."""
        with talking(self.url, code=2):
            self._fetch()

    def _fetch(self) -> None:
        try:
            tops = {path.rstrip("/").rpartition("/")[2]: path for path in self._fs.ls(self._root, detail=False)}
        except FileNotFoundError:
            return
        for top, path in tops.items():
            if top not in KEPT and top.partition("-")[0] != EXPORT:
                continue
            for file in self._fs.find(path):
                name = file[len(self._root) + 1 :]
                self._there[name] = None
                if top in KEPT:
                    self._fs.get_file(file, str(self._at(name)))
                    self._there[name] = _state(self.folder / name)

    @asking
    def send(self) -> None:
        """Brings the bucket to what the folder holds; LAST, when all else is there."""
        with self._busy:
            here = {str(path.relative_to(self.folder)): path for path in self.folder.rglob("*") if path.is_file()}
            if gone := [f"{self._root}/{name}" for name in self._there if name not in here]:
                self._fs.rm(gone)
            self._there = {name: state for name, state in self._there.items() if name in here}
            for name in sorted(here, key=lambda name: name == LAST):
                self._send(name, here[name])

    def _send(self, name: str, path: Path) -> None:
        target, large = f"{self._root}/{name}", name.partition("/")[0].partition("-")[0] == EXPORT
        try:
            state = _state(path)
            content = path.read_bytes() if not large and self._there.get(name) != state else b""
        except FileNotFoundError:  # some come and go, such as files of W&B
            return
        if self._there.get(name) == state:
            return
        if large:
            self._fs.put_file(str(path), target)
        else:
            self._fs.pipe_file(target, content)  # the file may grow meanwhile: what was read is sent
        self._there[name] = state

    def _at(self, name: str) -> Path:
        path = self.folder / name
        if ".." in path.parts:
            raise UserError(f"{self.url}: the name {name!r} leads out of the folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
