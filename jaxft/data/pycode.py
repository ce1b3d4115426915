"""The embedded data set of tagged words: lines of Python's own library, each token with the part that it plays.

What a name is depends on what stands around it, as in a sentence: `def f`, `x.f()`, `f(x=1)`, `import f`. Every machine
has these lines; another version of Python is another data set.
"""

import hashlib
import io
import json
import keyword
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from jaxft.data.files import point
from jaxft.data.source import Dataset, Split, fingerprint

MODULES = (
    *("abc", "argparse", "ast", "base64", "bisect", "calendar", "cmd", "code", "codecs", "configparser", "contextlib"),
    *("copy", "csv", "dataclasses", "datetime", "difflib", "doctest", "enum", "fileinput", "fnmatch", "fractions"),
    *("ftplib", "functools", "getpass", "glob", "gzip", "hashlib", "heapq", "hmac", "inspect", "io", "ipaddress"),
    *("linecache", "locale", "mailbox", "mimetypes", "numbers", "operator", "optparse", "os", "pathlib", "pdb"),
    *("pickle", "platform", "pprint", "profile", "queue", "random", "sched", "selectors", "shelve", "shlex", "shutil"),
    *("signal", "smtplib", "socket", "socketserver", "ssl", "statistics", "string", "subprocess", "tarfile"),
    *("tempfile", "textwrap", "threading", "timeit", "tokenize", "trace", "traceback", "types", "typing", "uuid"),
    *("warnings", "wave", "weakref", "zipfile"),
)
SHARES = {"test": 0.1, "validation": 0.1}  # of all lines; the others are for training
LENGTHS = range(4, 41)  # tokens of a line
LONGEST = 40  # characters of a token
WORDS = {tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP}
ENDS = {tokenize.NEWLINE, tokenize.ENDMARKER}
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}


def pycode() -> Dataset:
    """Rows {"tokens": [...], "tags": [...]} of distinct logical lines, split by a hash of the line."""
    library = Path(sysconfig.get_path("stdlib"))
    splits: dict[str, dict[str, list[str]]] = {"train": {}, "validation": {}, "test": {}}
    for module in MODULES:
        path = library / f"{module}.py"
        source = path.read_text(encoding="utf-8") if path.exists() else ""  # a package in another version
        for words in lines(source):
            text = json.dumps(words)
            splits[_split_of(text)].setdefault(text, words)
    made = {name: _split(name, list(rows.values())) for name, rows in splits.items()}
    return Dataset("pycode", made, {})


def lines(source: str) -> Iterator[list[str]]:
    """The tokens of each logical line, of lines that are neither short nor long and hold no long text."""
    line: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in ENDS:
            line += [token] if token.type not in LAYOUT else []
            continue
        if len(line) in LENGTHS and all(map(_is_word, line)):
            yield [one.string for one in line]
        line = []


def _is_word(token: tokenize.TokenInfo) -> bool:
    """Not so the pieces of f-strings, which only newer versions of Python have."""
    return token.type in WORDS and len(token.string) <= LONGEST and "\n" not in token.string


def tags(words: list[str]) -> list[str]:
    """The part that each token of a logical line plays."""
    kinds, depth = [], 0
    for i, word in enumerate(words):
        before, after = words[i - 1] if i else "", words[i + 1] if i + 1 < len(words) else ""
        depth += (word in ("(", "[", "{")) - (word in (")", "]", "}"))
        kinds.append(_kind(word, before, after, depth, imports=words[0] in ("import", "from")))
    return kinds


def _kind(word: str, before: str, after: str, depth: int, *, imports: bool) -> str:
    if not word.isidentifier():
        if word[-1] in "'\"":
            return "string"
        return "number" if any(map(str.isdigit, word)) else "operator"
    if keyword.iskeyword(word):
        return "keyword"
    if imports:
        return "module"
    if before in ("def", "class"):
        return {"def": "function", "class": "class"}[before]
    if before == ".":
        return "method" if after == "(" else "attribute"
    if after == "(":
        return "call"
    return "argument" if depth and after == "=" else "variable"


def _split_of(text: str) -> str:
    place = point(text.encode())
    for name, share in SHARES.items():
        if place < share:
            return name
        place -= share
    return "train"


def _split(name: str, sentences: list[list[str]]) -> Split:
    rows = [{"tokens": words, "tags": tags(words)} for words in sentences]
    content = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    identity = fingerprint(split=name, content=content, python=platform.python_version())
    return Split(rows, identity, lambda i: f"pycode {name}:{i}")
