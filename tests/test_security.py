"""Nothing in the package can run code that came with a file: static checks, and canaries that would be seen if run."""

import ast
import pickle
from pathlib import Path

import pytest

import jaxft
from jaxft.hf import files, hub, tokenizer
from jaxft.registry import UserError

PACKAGE = Path(jaxft.__file__).parent
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch", "tensorflow"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
METHODS = {("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("os", "system")}
KEYWORDS = {"allow_pickle", "trust_remote_code", "shell"}
# The one place that runs torch: `export --verify` compares an export of ours with what transformers makes of it.
EXCEPTIONS = {("verify.py", "torch")}


def offences(source: str) -> list[str]:
    """What in `source` could run foreign code, by syntax alone; mentions in text do not count."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [alias.name.split(".")[0] for alias in names if alias.name.split(".")[0] in MODULES]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in MODULES:
                found.append(module.split(".")[0])
            case ast.Call(func=ast.Name(id=name)) if name in BUILTINS:
                found.append(name)
            case ast.Attribute(value=ast.Name(id=owner), attr=attribute) if (owner, attribute) in METHODS:
                found.append(f"{owner}.{attribute}")
            case ast.keyword(arg=str(argument), value=value) if argument in KEYWORDS:
                if not (isinstance(value, ast.Constant) and value.value is False):
                    found.append(argument)
    return found


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from pickle import loads", "import torch.nn", "eval('1')", "exec(x)", "__import__('os')"),
        *("np.load(f, allow_pickle=True)", "yaml.load(f)", "AutoModel.from_pretrained(x, trust_remote_code=flag)"),
        *("import torch\ntorch.load(f)", "subprocess.run(c, shell=True)"),
    ],
)
def test_the_check_sees(source):
    assert offences(source)


def test_no_file_of_the_package_can_run_foreign_code():
    found = [
        (str(file.relative_to(PACKAGE)), offence)
        for file in sorted(PACKAGE.rglob("*.py"))
        for offence in offences(file.read_text(encoding="utf-8"))
    ]
    assert set(found) <= EXCEPTIONS


NAMES = ["config.json", files.SINGLE, files.INDEX, *tokenizer.FILES, "pytorch_model.bin", "model.pt", "model.pkl"]


@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_under_any_name_is_refused_and_never_run(tmp_path, name):
    canary = tmp_path / "canary"

    class Canary:
        def __reduce__(self):
            return (Path.touch, (canary,))

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / name).write_bytes(pickle.dumps(Canary()))
    with pytest.raises(UserError):
        files.read_config(hub.resolve(str(folder), weights=False))
        tokenizer.load(folder)
    with pytest.raises(UserError):
        files.read_config(folder)
        files.index(folder)
    assert not canary.exists()
    pickle.loads((folder / name).read_bytes())
    assert canary.exists()  # the canary does sing
