"""Files behind a URL (gs://, s3://, https://, memory://, ...): a version is fetched once, then read from its copy.

What lies behind "://" is fsspec's: any of its file systems whose package is installed. A copy lies in the private cache
under the URL and what the store says of the version (size, ETag, generation, time), and is whole or not there,
however many processes fetch it at a time. Within one process a URL stays what it was when it was first asked for.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxft import atomic, cache, disk
from jaxft.registry import UserError, nearest

# What stores tell of the version of a file, whoever has which.
VERSION = ("generation", "etag", "ETag", "md5Hash", "Content-MD5", "blob_id", "sha", "mtime", "created")
VERSION += ("Last-Modified", "LastModified", "last_modified")
GOOGLE = ("gs", "gcs")
WEB = "fsspec[http]"
INSTALL = {"gs": "jaxft[gcs]", "gcs": "jaxft[gcs]", "s3": "jaxft[s3]", "s3a": "jaxft[s3]", "http": WEB, "https": WEB}
OURS = (TypeError, AttributeError, NameError, AssertionError)  # mistakes of a program, not of a store


def is_remote(path: str) -> bool:
    return "://" in path


def place(path: str | Path) -> str | Path:
    """A URL as it is, anything else as a Path, which would make one slash of two."""
    return str(path) if is_remote(str(path)) else Path(path)


def file(path: str, field: str) -> str:
    """`path` itself, or the local copy of the file behind a URL, which has its name. `field` is named in messages.

    Raises UserError for a file that is not there, may not be read or cannot be fetched, and for a missing package.
    """
    if not is_remote(path):
        return path
    return str(_guarded(path, field, lambda: _file(path)))


def check(url: str, field: str) -> None:
    """Raises UserError unless there is a file behind `url`; fetches nothing."""
    _guarded(url, field, lambda: _info(url))


def folder(path: str, field: str, wanted: Callable[[str], bool] = lambda _name: True) -> Path:
    """The folder `path` itself, or a local copy of the files below a URL whose path there is `wanted`.

    Raises UserError, as `file`, and where there are none.
    """
    if not is_remote(path):
        return Path(path).expanduser()
    return _guarded(path, field, lambda: _folder(path, wanted))


def file_system(url: str, **options: Any) -> tuple[Any, str]:
    """(fsspec's file system, the path in it). Raises ImportError and ValueError where there is none of that name."""
    import fsspec

    fs, path = fsspec.core.url_to_fs(url, **options)
    return fs, path.rstrip("/")


@contextlib.contextmanager
def talking(url: str, field: str, code: int = 2) -> Iterator[None]:
    """Inside, what file systems and the clients below them raise becomes a UserError; what is our mistake stays."""
    try:
        yield
    except (UserError, *OURS):
        raise
    except Exception as error:  # aiohttp, google.auth, gcsfs, the system: each has errors of its own
        if disk.is_full(error):
            raise
        raise UserError(explained(url, field, error), code) from error


def _guarded(url: str, field: str, action: Callable[[], Any]) -> Any:
    with talking(url, field):
        return action()


def explained(url: str, field: str, error: Exception) -> str:
    """One line about `error`, which came of reading `url`, and what to do about it."""
    said = f"{field}={url!r}"
    scheme = url.partition("://")[0]
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, ImportError):
        fix = f"; pip install '{INSTALL[scheme]}'" if scheme in INSTALL else f": {reason}"
        return f"{said}: a package for {scheme}:// is missing{fix}"
    if isinstance(error, ValueError) and "Protocol not known" in reason:
        import fsspec

        return f"{said}: {scheme}:// is no file system that is known{nearest(scheme, fsspec.available_protocols())}"
    if isinstance(error, FileNotFoundError):
        return f"{said} does not exist{_near(url)}"
    if isinstance(error, IsADirectoryError):
        return f"{said} is a folder, not a file"
    status = getattr(error, "status", getattr(error, "code", None))
    if isinstance(error, PermissionError) or status in (401, 403) or reason.startswith("Forbidden"):
        login = "; log in with `gcloud auth application-default login`, or" if scheme in GOOGLE else ";"
        return f"{said} may not be read by this account ({reason}){login} ask its owner for access"
    return f"{said} cannot be used: {reason}"


def _near(url: str) -> str:
    """A name like that of `url` among its neighbours, where these can be listed."""
    try:
        fs, path = file_system(url)
        names = [one.rstrip("/").rpartition("/")[2] for one in fs.ls(path.rpartition("/")[0], detail=False)]
    except Exception:  # a hint only; the first error is the one to tell
        return ""
    return nearest(path.rpartition("/")[2], names)


def _info(url: str) -> Mapping[str, Any]:
    fs, path = file_system(url)
    info = fs.info(path)
    if info["type"] != "file":
        raise IsADirectoryError(url)
    return info


@functools.cache
def _file(url: str) -> Path:
    fs, path = file_system(url)
    name = path.partition("?")[0].rpartition("/")[2]
    return _fetched(url, fs, {name: (path, _info(url))}) / name


def _folder(url: str, wanted: Callable[[str], bool]) -> Path:
    fs, root = file_system(url)
    found = {path[len(root) :].lstrip("/"): (path, info) for path, info in fs.find(root, detail=True).items()}
    for name in filter(None, found):
        if {"", ".", ".."} & set(name.split("/")):
            raise UserError(f"{url}: the name {name!r} leads out of the folder")
    files = {name: one for name, one in found.items() if name and wanted(name)}
    if not files:
        raise FileNotFoundError(url)
    return _fetched(url.rstrip("/"), fs, files)


def _fetched(url: str, fs: Any, files: Mapping[str, tuple[str, Mapping[str, Any]]]) -> Path:
    """The folder in the cache that holds `files`: name there -> (path in the store, what the store says of it)."""
    facts = {name: (info["size"], _version(path, info)) for name, (path, info) in files.items()}
    key = hashlib.sha256(json.dumps([url, facts], sort_keys=True, default=str).encode()).hexdigest()[:32]
    target = cache.private_dir("remote") / key
    if not target.exists():
        with atomic.folder(target) as made:
            fs.get([path for path, _ in files.values()], [str(made / name) for name in files])
            for name, (size, _) in facts.items():
                if (made / name).stat().st_size != size:
                    raise OSError(f"{name} came with {(made / name).stat().st_size:,} bytes instead of {size:,}")
    return target


def _version(path: str, info: Mapping[str, Any]) -> dict[str, Any]:
    told = {key: info[key] for key in VERSION if info.get(key)}
    if not told or info["size"] is None:
        raise OSError(f"the server of {path} tells neither ETag nor Last-Modified nor size; download it by other means")
    return told
