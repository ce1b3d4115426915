"""Where the checkpoints of a run stand, each whole or not there: in a folder here, or below a URL (bucket.py).

A step is written as `<step>.tmp` and renamed when sealed, so a kill at any instant leaves whole steps and leftovers,
nothing between.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from jaxft import bucket, manifest, remote
from jaxft.registry import UserError

BEST = "best"  # marks a step: an empty file


class Shelf(Protocol):
    """What Checkpoints asks of a place. Numbers are steps; what fails raises OSError or UserError."""

    def prepare(self) -> None: ...  # removes what dead writers left; raises UserError where nothing can be written
    def steps(self) -> list[int]: ...  # the committed ones, ascending
    def begin(self, step: int, files: Mapping[str, str]) -> None: ...  # an empty draft but for `files`
    def draft(self, step: int) -> str: ...  # where a step that was begun is written
    def commit(self, step: int) -> None: ...  # from now on the step counts, whatever stood in its place
    def abandon(self, step: int) -> None: ...  # removes what was begun, if it can
    def remove(self, step: int) -> None: ...
    def damage(self, step: int) -> str: ...  # what is not as it was committed; "" when all is
    def place(self, step: int) -> str: ...
    def read(self, step: int, name: str) -> str: ...
    def mark(self, step: int) -> None: ...  # a committed step as best
    def marked(self) -> list[int]: ...
    def free(self) -> int | None: ...  # bytes; None: as many as one pays for


def of(folder: str | Path) -> Shelf:
    """`folder` is a path or a URL."""
    return bucket.Shelf(str(folder)) if remote.is_remote(str(folder)) else Folder(Path(folder).absolute())


class Folder:
    """Steps in a folder of this machine, or of one that it has mounted."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def prepare(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.iterdir():
                if path.suffix in (".tmp", ".old") and path.stem.isdecimal():
                    shutil.rmtree(path)
        except OSError as error:
            raise UserError(
                f"checkpoints cannot be kept in {self.folder}: {error.strerror} ({error.filename}); choose another "
                "--workdir, or make this one a folder that you can write"
            ) from error

    def steps(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir() if path.name.isdecimal() and manifest.is_sealed(path))
        return sorted(int(name) for name in names)

    def begin(self, step: int, files: Mapping[str, str]) -> None:
        draft = self._draft(step)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        for name, text in files.items():
            (draft / name).write_text(text, encoding="utf-8")

    def draft(self, step: int) -> str:
        return str(self._draft(step))

    def commit(self, step: int) -> None:
        manifest.seal(self._draft(step))
        manifest.publish(self._draft(step), self.folder / str(step))

    def abandon(self, step: int) -> None:
        shutil.rmtree(self._draft(step), ignore_errors=True)

    def remove(self, step: int) -> None:
        manifest.remove(self.folder / str(step))

    def damage(self, step: int) -> str:
        return manifest.damage(self.folder / str(step))

    def place(self, step: int) -> str:
        return str(self.folder / str(step))

    def read(self, step: int, name: str) -> str:
        return (self.folder / str(step) / name).read_text(encoding="utf-8")

    def mark(self, step: int) -> None:
        # Outside the manifest: a committed step may turn out to be the best later, and its files stay as sealed.
        (self.folder / str(step) / BEST).touch()

    def marked(self) -> list[int]:
        return [step for step in self.steps() if (self.folder / str(step) / BEST).exists()]

    def free(self) -> int:
        return shutil.disk_usage(self.folder).free

    def _draft(self, step: int) -> Path:
        return self.folder / f"{step}.tmp"
