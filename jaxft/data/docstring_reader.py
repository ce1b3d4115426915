"""Reads the docstrings of Python files without importing them. A script of the standard library alone.

    python -I docstring_reader.py < files.json > docstrings.jsonl

in: [[path, module name], ...] as JSON; out: [qualified name, text] as one JSON line each. docstrings.py runs several of
these side by side: unlike worker processes of `multiprocessing`, they do not import the caller's __main__ (and jax with
it) again, and work alike from a program, a notebook and a test.
"""

import ast
import inspect
import json
import sys
from collections.abc import Iterator

# Characters. A shorter docstring ("Returns the current state.") could stand in any library: TF-IDF with a linear
# classifier puts 75 % of the texts of 20 to 60 characters into the right one, and 94 % of those above 400.
SHORTEST = 60


def read_file(path: str, module: str) -> Iterator[tuple[str, str]]:
    """(dotted name, cleaned docstring) of the module and of every class and function in it, in file order.

    A file that does not parse on this Python (a template, a fixture) has none.
    """
    with open(path, "rb") as file:
        source = file.read()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last: nested too deep for the parser
        return
    for name, raw in _walk(tree, module):
        text = inspect.cleandoc(raw).strip()
        # A docstring may hold half of a surrogate pair ("\\ud800"), which no UTF-8 file can.
        if len(text) >= SHORTEST and text == text.encode("utf-8", "ignore").decode("utf-8"):
            yield name, text


def _walk(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """(name, docstring) of `node` and of the definitions below it; descends into statements only."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
        match node.body[0]:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield name, text
    for part in ("body", "handlers", "orelse", "finalbody"):
        for child in getattr(node, part, ()):
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _walk(child, f"{name}.{child.name}")
            elif isinstance(child, (ast.If, ast.Try, ast.With, ast.For, ast.While, ast.ExceptHandler)):
                yield from _walk(child, name)


def main() -> None:
    for path, module in json.load(sys.stdin):
        for row in read_file(path, module):
            print(json.dumps(row))


if __name__ == "__main__":
    main()
