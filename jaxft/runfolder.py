"""The folder of a run: its resolved config, what may change when it is started again, and whether it is finished."""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxft import atomic, bucket, cache, remote, shelf
from jaxft.config import difference
from jaxft.lease import Lease
from jaxft.lock import RunLock
from jaxft.registry import UserError

# Sections that do not change what is computed, only where and how it is shown.
FREE = ("mesh", "sharding", "log", "profile")
# What a change of config changes among the inputs that a checkpoint is tied to (Inputs.identity): who allows the one
# has to allow the other.
FOLLOWS = {"data": ("data",), "input.length": ("data",), "task": ("data",), "model.hf": ("data", "tokenizer")}
# Those that decide about bits, and others that are worth knowing.
COMPUTING = ("jax", "jaxlib", "flax", "optax")
# The run's own copy of the chat template that task.template names; beside the tokenizer.
TEMPLATE = "chat_template.jinja"
PACKAGES = ("jaxft", *COMPUTING, "orbax-checkpoint", "grain", "transformers", "tokenizers")


class RunFolder:
    """Paths and promises of one run folder.

    One in a bucket has a `mirror`: `path` is then a folder of this machine that stands for it while the process runs.
    """

    def __init__(self, path: Path, mirror: bucket.Mirror | None = None):
        self.path, self.mirror = path, mirror
        self.place = mirror.url if mirror else str(path)  # as people know it
        self._lease: Lease | None = None
        self.config = path / "config.json"
        self.report = path / "report.json"
        self.checkpoints = f"{self.place}/checkpoints" if mirror else path / "checkpoints"
        self.tokenizer = path / "tokenizer"
        self.reference = path / "reference.npz"  # of preferences: reference.py
        self.goodput = path / "goodput.json"  # observe/goodput.py
        self.rollbacks = path / "rollbacks.json"  # observe/spikes.py
        self.profile = path / "profile"
        self.hf = path / "hf"

    def create(self) -> None:
        """Raises UserError when the folder cannot be made or written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            file = next(path for path in (self.path, *self.path.parents) if path.exists())
            raise UserError(f"--workdir={self.place}: {file} is a file; name a folder") from error
        except OSError as error:
            raise UserError(
                f"--workdir={self.place}: cannot be created ({error.strerror}); name another folder"
            ) from error
        if not os.access(self.path, os.W_OK):
            raise UserError(f"--workdir={self.place}: the folder cannot be written; name another one")

    def check_shared(self) -> None:
        """Raises UserError in a process that does not see the folder that the first one has made."""
        self.fetch()
        if not self.path.is_dir():
            raise UserError(f"--workdir={self.place} is not there; all processes need one folder that they share")

    def lock(self, say: Callable[[str], None]) -> contextlib.AbstractContextManager[Any]:
        """Keeps a second run out of the folder. Raises UserError where there is one."""
        self._lease = Lease(self.place, say=say) if self.mirror else None
        return self._lease or RunLock(self.path, say=say)

    def fetch(self) -> None:
        """Of a run in a bucket: brings what is there to `path`, but for checkpoints and the export."""
        if self.mirror:
            self.mirror.fetch()

    def send(self) -> None:
        """Of a run in a bucket: sends what is new in `path`. Raises UserError when another process has taken over."""
        if self.mirror and self._lease:
            self._lease.check()
            self.mirror.send()

    def sharing(self, first: bool, action: Callable[[], Any]) -> Any:
        """What `action` returns, which finds in the folder what it left there in the `first` process."""
        if not first:
            self.fetch()
        result = action()
        if first:
            self.send()
        return result

    def claim(self, raw: Mapping[str, Any], allow: Sequence[str], say: Callable[[str], None]) -> None:
        """Checks that a run which is there has the same config; call it with the lock held.

        `allow` names config keys (`train.batch`, or a section) that may differ. Raises UserError listing every other.
        """
        if self.config.exists():
            self._compare(raw, allow, say)
        if not self.started() and not self.finished():
            # Of other data, another vocabulary or other weights, perhaps: only a checkpoint ties a run to these.
            shutil.rmtree(self.tokenizer, ignore_errors=True)
            for path in (self.reference, self.tokenizer.with_name(TEMPLATE)):
                path.unlink(missing_ok=True)

    def record(self, raw: Mapping[str, Any]) -> None:
        """Writes the config: from now on this is a run of it. Not before its first step, when all mistakes are out.

        Under "earlier" stand the versions and commits of the same run before, the oldest first.
        """
        made = {"versions": versions(), "git": git_commit()}
        earlier: list[Any] = []
        if self.started() and self.config.exists():
            before = read_json(self.config)
            last = {key: before[key] for key in made}
            earlier = before["earlier"] + ([last] if last != made else [])
        write_json(self.config, {"config": raw, **made, "earlier": earlier})

    def _compare(self, raw: Mapping[str, Any], allow: Sequence[str], say: Callable[[str], None]) -> None:
        saved = read_json(self.config)
        if not isinstance(saved, dict) or not {"config", "versions", "git", "earlier"} <= saved.keys():
            raise UserError(f"--workdir={self.place} holds a config.json that is not of a run; name another folder")
        old = saved["config"]
        changed = difference(old, json.loads(json.dumps(raw)))
        other = [line for line in changed if not covered(line.split(":")[0], FREE)]
        if other and self.finished():
            raise UserError(
                f"--workdir={self.place} holds a finished run of another config:\n  "
                + "\n  ".join(other)
                + "\nUse another --workdir; to train its model further, start that one with "
                + f"--config.model.hf={self.place}/hf"
            )
        fatal = [line for line in other if not covered(line.split(":")[0], allow)]
        if fatal:
            keys = [line.split(":")[0] for line in fatal]
            keys += [more for key in keys for name in FOLLOWS if covered(key, [name]) for more in FOLLOWS[name]]
            keys = [key for key in dict.fromkeys(keys) if not covered(key, allow)]
            raise UserError(
                f"--workdir={self.place} holds a run of another config:\n  "
                + "\n  ".join(fatal)
                + f"\nUse another --workdir, or continue with the change by --allow_change={','.join([*allow, *keys])}"
            )
        for line in changed:
            say(f"changed since this run began: {line}")
        if self.started():
            self._compare_versions(saved["versions"], say)

    def _compare_versions(self, before: Mapping[str, str], say: Callable[[str], None]) -> None:
        now = versions()
        changed = [f"{name} {before[name]} -> {now[name]}" for name in COMPUTING if before[name] != now[name]]
        if changed:
            say(
                f"other versions than this run had before: {', '.join(changed)}. It goes on, but to end bit for bit "
                "like an unbroken run is promised under the same versions only"
            )

    def started(self) -> bool:
        """Whether there is a checkpoint."""
        return bool(shelf.of(self.checkpoints).steps())

    def finished(self) -> bool:
        return self.report.exists()


@contextlib.contextmanager
def opened(place: str | Path) -> Iterator[RunFolder]:
    """The run folder of that path or URL. For a URL nothing is fetched yet; what stands for it is gone at the end."""
    if re.match(r"[a-z0-9]{2,}:/(?!/)", str(place)):
        raise UserError(f"--workdir={place}: a URL has two slashes; write {str(place).replace(':/', '://', 1)}")
    if not remote.is_remote(str(place)):
        yield RunFolder(Path(place))
        return
    url = str(place).rstrip("/")
    bucket.store(url)  # what is wrong with it is said first
    with atomic.building(cache.private_dir("runs")) as aside:
        folder = aside / url.rpartition("/")[2]
        folder.mkdir()
        yield RunFolder(folder, bucket.Mirror(url, folder))


def covered(path: str, keys: Sequence[str]) -> bool:
    """Whether one of `keys` is the dotted `path` or a section around it."""
    return any(path == key or path.startswith(f"{key}.") for key in keys)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_commit() -> str:
    """Commit of the source tree that runs, with "+changes" when it is not clean; "" outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(here), *args], capture_output=True, text=True, timeout=10)
            for args in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if commit.returncode else commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error


def read_own(path: Path, fits: Callable[[Any], bool], fix: str) -> Any:
    """What a run keeps in `path` for itself. Raises UserError with the `fix` where it is nothing that `fits`."""
    try:
        value = read_json(path)
    except UserError as error:
        raise UserError(f"{error}; {fix}") from error
    if not fits(value):
        raise UserError(f"{path}: is JSON, but not what a run writes there; {fix}")
    return value


def write_json(path: Path, value: Any) -> None:
    """Atomically: a reader sees the old file or the whole new one. What a killed writer left is written over."""
    atomic.write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
