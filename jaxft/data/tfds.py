"""TensorFlow Datasets without TensorFlow: array_record files, read at random."""

import contextlib
import re
import socket
from collections.abc import Collection, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from jaxft import disk
from jaxft.data.source import Dataset, Rows, Split, fingerprint, plain
from jaxft.registry import UserError, nearest

# TFDS finds its older text builders (GLUE among them) through a list of imports that ends silently at the first module
# that needs TensorFlow, before it gets to these. Importing them registers the builders.
TEXT_MODULES = ("text", "summarization", "translate", "question_answering")


def tfds(*, builder: str, data_dir: str, train: str, validation: str, test: str) -> Dataset:
    """A TFDS builder by name, downloaded and prepared on first use.

    builder: "glue/sst2", "imdb_reviews", "name/config:1.0.0".
    data_dir: folder of the prepared data sets; "" = TFDS's own (~/tensorflow_datasets, or $TFDS_DATA_DIR).
    train, validation, test: split expressions such as "train[:90%]"; "" = none.
    Raises UserError for an unknown builder, config, version or split, and when a download is needed and fails.
    """
    library = library_with_text()
    try:
        made = library.builder(builder, data_dir=data_dir or None, file_format="array_record")
    except library.core.DatasetNotFoundError as error:
        wanted = builder.split("/")[0].split(":")[0]
        known = library.core.registered.list_imported_builders()
        raise UserError(f"data.builder={builder!r} is not a TFDS data set{nearest(wanted, known)}") from error
    # An unknown config is a ValueError, an unknown version an AssertionError, an option of the builder a TypeError.
    except (ValueError, AssertionError, TypeError) as error:
        raise UserError(f"data.builder={builder!r}: {_first_line(error)}{_nearest_config(library, builder)}") from error
    prepare(made, builder)
    given = {"train": train, "validation": validation, "test": test}
    return dataset(f"tfds:{builder}", made, {name: expression for name, expression in given.items() if expression})


def library_with_text() -> ModuleType:
    """tensorflow_datasets with its text builders registered; imports neither TensorFlow nor jax."""
    for module in TEXT_MODULES:
        import_module(f"tensorflow_datasets.{module}")
    return import_module("tensorflow_datasets")


def prepare(builder: Any, name: str) -> None:
    """Downloads and prepares `builder` unless it is prepared. Raises UserError, at once where there is no network."""
    if builder.is_prepared():
        return
    try:
        _check_network(builder.url_infos or ())  # None: no checksums are registered
        builder.download_and_prepare()
    except (OSError, ImportError) as error:  # errors of `requests` are OSErrors
        if disk.is_full(error):
            raise
        raise UserError(
            f"data.builder={name!r} is not prepared in {builder.data_path} and could not be downloaded: "
            f"{_first_line(error)}. Connect to the network once, or copy a folder prepared elsewhere "
            f"(file_format='array_record') to data.data_dir"
        ) from error


def _check_network(urls: Iterable[str]) -> None:
    """Raises OSError when no server of `urls` can be reached: TFDS itself tries ten times, for three minutes."""
    servers = {(u.hostname, u.port or (80 if u.scheme == "http" else 443)) for u in map(urlsplit, urls) if u.hostname}
    if not servers or getproxies():
        return
    for server in sorted(servers):
        with contextlib.suppress(OSError):
            socket.create_connection(server, timeout=3).close()
            return
    raise OSError(f"cannot reach {', '.join(host for host, _ in sorted(servers))}")


def dataset(name: str, builder: Any, expressions: Mapping[str, str]) -> Dataset:
    """The splits of a prepared builder; `expressions` maps our split names to TFDS split expressions."""
    features = builder.info.features
    label_names = {column: tuple(f.names) for column, f in features.items() if getattr(f, "names", None)}
    splits = {split: _split(builder, split, expression) for split, expression in expressions.items()}
    return Dataset(name, splits, label_names)


def _split(builder: Any, split: str, expression: str) -> Split:
    known = builder.info.splits
    library = import_module("tensorflow_datasets")
    # Images stay the bytes of their files: who only looks at the labels need not decode them.
    images = {name for name, f in builder.info.features.items() if isinstance(f, library.features.Image)}
    undecoded = dict.fromkeys(images, library.decode.SkipDecoding())
    try:
        source = builder.as_data_source(split=expression, decoders=undecoded)
    except (ValueError, KeyError) as error:
        base = re.split(r"[\[+]", expression)[0]
        raise UserError(
            f"data.{split}={expression!r} is not a split of {builder.info.full_name}; splits: "
            f"{', '.join(sorted(known))}{nearest(base, known)}"
        ) from error
    except NotImplementedError as error:
        raise UserError(
            f"{builder.data_path} holds {builder.info.file_format} files, which need TensorFlow; prepare it again with "
            f"file_format='array_record' (move the folder away and jaxft does)"
        ) from error
    # The metadata hold sizes of the shards: a builder of one's own may change its data under the same version.
    facts = {file: (Path(builder.data_path) / file).read_text() for file in ("dataset_info.json", "features.json")}
    identity = fingerprint(name=builder.info.full_name, split=expression, **facts)
    return Split(TfdsRows(source, images), identity, lambda index: f"{builder.info.full_name} {expression}:{index}")


class TfdsRows(Rows):
    """Rows of a TFDS data source as plain Python values; those of the columns `images` as they are."""

    def __init__(self, source: Any, images: Collection[str] = ()):
        self._source, self._images = source, images

    def __len__(self) -> int:
        return len(self._source)

    def row(self, index: int) -> dict[str, Any]:
        row = self._source[index]
        return {name: value if name in self._images else plain(value) for name, value in row.items()}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _nearest_config(library: ModuleType, builder: str) -> str:
    name, _, config = builder.partition("/")
    configs = [c.name for c in library.builder_cls(name.split(":")[0]).BUILDER_CONFIGS]
    return nearest(config.split(":")[0], configs) if config and configs else ""
