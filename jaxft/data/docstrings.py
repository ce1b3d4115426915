"""The embedded data set: docstrings of the Python standard library and of jaxft's own dependencies, label = library.

Every installation has these texts, so classification and language modelling run on real English without a network. They
are read with `ast` (nothing is imported), cleaned, de-duplicated, split by a hash of the text, and kept as an ordinary
TFDS builder in array_record files. The versions of the libraries are part of the builder's identity: another
installation is another data set, and a prepared one is reused.
"""

import contextlib
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata, util
from pathlib import Path
from typing import Any

from jaxft import atomic, disk
from jaxft.cache import private_dir
from jaxft.data import docstring_reader
from jaxft.data.source import Dataset
from jaxft.registry import UserError

RELEASE = "1.0.0"
PYTHON = "python"
# Class -> its distribution and the packages that hold its docstrings. The core dependencies (and scipy, which they all
# need) with 200 docstrings or more: with fewer a class could be neither learnt nor measured. They differ much in size
# (transformers has a third of all), and stay so: that is what macro averages are for.
LIBRARIES = {
    "absl": ("absl-py", ("absl",)),
    "flax": ("flax", ("flax",)),
    "grain": ("grain", ("grain",)),
    "huggingface_hub": ("huggingface-hub", ("huggingface_hub",)),
    "jax": ("jax", ("jax",)),
    "jinja2": ("jinja2", ("jinja2",)),
    "numpy": ("numpy", ("numpy",)),
    "optax": ("optax", ("optax",)),
    "orbax": ("orbax-checkpoint", ("orbax",)),
    PYTHON: ("", ()),
    "rich": ("rich", ("rich",)),
    "scipy": ("scipy", ("scipy",)),
    "sklearn": ("scikit-learn", ("sklearn",)),
    "tensorflow_datasets": ("tensorflow-datasets", ("tensorflow_datasets",)),
    "transformers": ("transformers", ("transformers",)),
}
# Tests say little of their library. Vendored copies (and distutils, which setuptools ships again) are somebody else's
# text under this label.
SKIPPED_FOLDERS = {
    *("tests", "test", "testing", "_vendor", "vendored", "externals", "third_party", "__pycache__"),
    *("site-packages", "dist-packages", "distutils", "ensurepip", "idlelib", "lib2to3", "turtledemo"),
}
SHARES = {"train": 80, "validation": 10, "test": 10}  # percent


def docstrings(*, data_dir: str) -> Dataset:
    """Splits train, validation and test (80, 10 and 10 percent); columns text, label, name.

    data_dir: where the prepared builder is kept; "" = the private per-user cache folder.
    Raises UserError when a library of the list is not installed.
    """
    from jaxft.data import tfds

    versions = installed_versions()
    root = Path(data_dir or private_dir("docstrings")).expanduser()
    code = hashlib.sha256(Path(docstring_reader.__file__).read_bytes() + Path(__file__).read_bytes()).hexdigest()
    config = hashlib.sha256(json.dumps([versions, code], sort_keys=True).encode()).hexdigest()[:16]
    builder = make_builder(root, config, versions)
    if not builder.data_path.exists():
        _prepare(root, config, versions)
        builder = make_builder(root, config, versions)
    return tfds.dataset("docstrings", builder, {name: name for name in SHARES})


def installed_versions() -> dict[str, str]:
    """Class -> version of the installed library. Raises UserError with the pip command for those that are missing."""
    versions, missing = {PYTHON: platform.python_version()}, []
    for library, (distribution, _) in LIBRARIES.items():
        if library == PYTHON:
            continue
        try:
            versions[library] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            missing.append(distribution)
    if missing:
        raise UserError(
            f"data.name='docstrings' reads the docstrings of {', '.join(missing)}, not installed here; "
            f"run: pip install {' '.join(missing)}"
        )
    return versions


def python_files(library: str) -> list[tuple[str, str]]:
    """(path, module name) of the library's own source files, sorted; finds the packages without importing them."""
    if library == PYTHON:
        return _files_below(Path(sysconfig.get_path("stdlib")), "")
    files = []
    for package in LIBRARIES[library][1]:
        spec = util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            files += _files_below(Path(folder), package)
    return files


def _files_below(root: Path, package: str) -> list[tuple[str, str]]:
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in SKIPPED_FOLDERS)
        for name in sorted(names):
            # transformers generates modeling_x.py from modular_x.py, docstrings included: read one of the two.
            if name.endswith(".py") and not name.endswith("_test.py") and not name.startswith(("test_", "modular_")):
                parts = [package, *Path(folder).relative_to(root).parts, name.removesuffix(".py")]
                files.append((os.path.join(folder, name), ".".join(p for p in parts if p and p != "__init__")))
    return files


def read_library_docstrings() -> dict[str, list[tuple[str, str]]]:
    """Library -> its (dotted name, text), read on all cores."""
    tasks = []
    for library in LIBRARIES:
        files = python_files(library)
        tasks += [(library, files[start : start + 200]) for start in range(0, len(files), 200)]
    found = defaultdict(list)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (library, _), rows in zip(tasks, pool.map(_read_files, [files for _, files in tasks]), strict=True):
            found[library] += rows
    return found


def _read_files(files: list[tuple[str, str]]) -> list[tuple[str, str]]:
    command = [sys.executable, "-I", "-S", "-W", "ignore", docstring_reader.__file__]
    done = subprocess.run(command, input=json.dumps(files), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"reading docstrings failed (exit {done.returncode}):\n{done.stderr}")
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def select(found: dict[str, list[tuple[str, str]]]) -> Iterator[dict[str, str]]:
    """The rows of the data set: {"text", "label", "name", "key"}, each text once.

    A text found in two libraries has no right label and is left out.
    """
    owners, names = defaultdict(set), {}
    for library in sorted(found):
        for name, text in found[library]:
            owners[text].add(library)
            names.setdefault(text, name)
    for text, libraries in owners.items():
        if len(libraries) == 1:
            key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
            yield {"text": text, "label": libraries.pop(), "name": names[text], "key": key}


def split_of(key: str) -> str:
    """The split of a text by its hash: it stays there when other texts come or go."""
    point = int(key, 16) % 100
    for split, share in SHARES.items():
        if point < share:
            return split
        point -= share
    raise AssertionError("SHARES must add up to 100")


def make_builder(root: Path, config: str, versions: dict[str, str]) -> Any:
    """The TFDS builder over `root`/docstrings/<config>; nothing is prepared."""
    import tensorflow_datasets as tfds

    class Docstrings(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Docstrings of Python libraries; the label is the library."""

        VERSION = tfds.core.Version(RELEASE)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version=RELEASE)]  # noqa: RUF012
        name = "docstrings"
        url_infos = {}  # noqa: RUF012 - nothing is downloaded, so TFDS need not look for a file of checksums

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=__doc__,
                metadata=tfds.core.MetadataDict(versions=versions),
                supervised_keys=("text", "label"),
                features=tfds.features.FeaturesDict(
                    {
                        "text": tfds.features.Text(),
                        "label": tfds.features.ClassLabel(names=sorted(LIBRARIES)),
                        "name": tfds.features.Text(doc="dotted name of what the docstring documents"),
                    }
                ),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            rows = defaultdict(list)
            for row in select(read_library_docstrings()):
                rows[split_of(row["key"])].append(row)
            return {split: self._generate_examples(rows[split]) for split in SHARES}

        def _generate_examples(self, rows: list[dict[str, str]]) -> Iterator[tuple[str, dict[str, str]]]:
            for row in rows:
                yield row["key"], {column: row[column] for column in ("text", "label", "name")}

    return Docstrings(data_dir=root, config=config, file_format="array_record")


def _prepare(root: Path, config: str, versions: dict[str, str]) -> None:
    """Builds aside and renames, so that a half-built folder is never seen and the first of two processes wins."""
    import tensorflow_datasets as tfds

    print(f"jaxft: reading the docstrings of {len(LIBRARIES)} libraries (once; kept in {root})", file=sys.stderr)
    with disk.writing(root), atomic.building(root) as aside:
        built = make_builder(aside, config, versions)
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS would name the folder that is about to be renamed
            built.download_and_prepare()
        tfds.enable_progress_bar()
        final = make_builder(root, config, versions).data_path
        final.parent.mkdir(parents=True, exist_ok=True)
        atomic.publish(Path(built.data_path), final)
