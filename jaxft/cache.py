"""Folders that only their owner can write: what is read back from them is trusted, compiled programs even run.

"Anyone who can write to the compile cache can run code on your machine" is JAX's own warning, so such a folder is
created 0700, refused when others can write it, and never lies in a run folder, which people share and copy.
"""

import os
import stat
from pathlib import Path

from jaxft.registry import UserError


def private_dir(name: str) -> Path:
    """The per-user folder `name` in $JAXFT_CACHE_DIR, $XDG_CACHE_HOME/jaxft or ~/.cache/jaxft; made if absent.

    Raises UserError when somebody else owns it or can write it, or when it cannot be made.
    """
    root = _root()
    for folder in (root, root / name):
        make_private(folder)
    return root / name


def _root() -> Path:
    chosen = os.environ.get("JAXFT_CACHE_DIR", "")
    if chosen:
        return Path(chosen).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # A relative XDG path must be ignored (XDG Base Directory Specification, "Basics").
    return (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "jaxft"


def make_private(folder: Path) -> None:
    """Creates `folder` with mode 0700 (its missing parents too) or checks that it is private."""
    try:
        for parent in reversed([folder, *folder.parents]):
            if not parent.exists():
                parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot create the cache folder {folder}: {error.strerror}; set JAXFT_CACHE_DIR to a folder you can write"
        ) from error
    check_private(folder)


def check_private(folder: Path) -> None:
    """Raises UserError unless `folder` is a directory of this user that nobody else can write."""
    status = folder.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise UserError(f"cache folder {folder} is a file; remove it or set JAXFT_CACHE_DIR to a private folder")
    if not hasattr(os, "getuid"):  # Windows: the mode bits say nothing about other users
        return
    if status.st_uid != os.getuid():
        raise UserError(
            f"cache folder {folder} belongs to user {status.st_uid}, who could run code as you; "
            f"set JAXFT_CACHE_DIR to a folder of your own, such as {_suggestion()}"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(
            f"cache folder {folder} can be written by others (mode {stat.S_IMODE(status.st_mode):04o}), who could run "
            f"code as you; run `chmod go-w {folder}` or set JAXFT_CACHE_DIR to a private folder such as {_suggestion()}"
        )


def _suggestion() -> Path:
    return Path.home() / ".cache" / "jaxft"


def compile_cache(run_folder: str | os.PathLike[str]) -> Path:
    """Turns on JAX's persistent compile cache in a private folder; call before the first compile. Returns the folder.

    A JAX_COMPILATION_CACHE_DIR of the user is kept if it is private and outside `run_folder`, else UserError.
    """
    import jax

    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if chosen:
        folder = Path(chosen).expanduser()
        make_private(folder)
    else:
        folder = private_dir("compiled")
    if folder.resolve().is_relative_to(Path(run_folder).resolve()):
        field = "JAX_COMPILATION_CACHE_DIR" if chosen else "JAXFT_CACHE_DIR"
        raise UserError(
            f"{field}: the compile cache {folder} lies inside the run folder {run_folder}, and whoever can write it "
            f"can run code as you; choose a private folder such as {_suggestion()}"
        )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Half a second: the many tiny programs of start-up would fill the folder and save nothing.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder
