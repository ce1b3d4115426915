"""A small corpus with one of everything that the rules remove, and the verb that prepares it."""

import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

from tests.verbs_run import ROOT

NOUNS = [
    "ship",
    "harbour",
    "captain",
    "letter",
    "winter",
    "garden",
    "river",
    "window",
    "village",
    "teacher",
    "doctor",
    "engine",
    "bridge",
    "market",
]
VERBS = [
    "watched",
    "carried",
    "found",
    "opened",
    "followed",
    "painted",
    "remembered",
    "repaired",
    "described",
    "visited",
]
SMALL = ["the", "of", "and", "to", "that", "with", "in", "by"]

# Runs jaxft.prepare and kills itself just before the nth opening or renaming of a file whose path holds a pattern.
KILLED = """
import os, runpy, signal, sys
pattern, left = os.environ["PATTERN"], int(os.environ["NTH"])
def hook(event, args):
    global left
    if event in ("open", "os.rename") and pattern in str(args[1] if event == "os.rename" else args[0]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
runpy.run_module("jaxft.prepare", run_name="__main__", alter_sys=True)
"""


def sentence(rng):
    words = [rng.choice(SMALL if i % 2 else NOUNS + VERBS) for i in range(rng.randint(8, 16))]
    return " ".join(words).capitalize() + "."


def document(rng):
    return " ".join(sentence(rng) for _ in range(rng.randint(6, 14)))


def write(folder: Path, count: int = 160, seed: int = 0) -> list[str]:
    """Three files in `folder`; their names. Of the last one the end is cut off."""
    rng = random.Random(seed)
    texts = [document(rng) for _ in range(count)]
    texts[20] = texts[3]  # exact
    texts[21] = "But " + texts[4]  # near
    texts[22] = texts[5].replace(".", " ...")
    texts[23] = "zu kurz"
    texts[24] = "Der Mann mit dem Hut ging langsam über die Brücke und sah in den Fluss, der viel Wasser hatte. " * 3
    texts[25] = (texts[6].split(".")[0] + ".\n") * 12
    texts[26] = "\x01\x02\x03\x04" * 10 + texts[7]
    texts[27] = "SchÃ¶n: " + texts[27] + " Write to jane@example.com."
    texts[28] = "".join(rng.choice("0123456789 ") for _ in range(600))
    third = count // 3
    rows = [json.dumps({"text": text}) for text in texts[:third]]
    rows[10:10] = ["\x00\x01 binary junk", '{"text": 7}', '{"text": "cut']
    (folder / "a.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "b.txt").write_text("\n".join(texts[third : 2 * third]) + "\n", encoding="utf-8")
    whole = gzip.compress("\n".join([*texts[2 * third :], texts[0]]).encode(), mtime=0)
    (folder / "c.txt.gz").write_bytes(whole[:-200])
    return [str(folder / name) for name in ("a.jsonl", "b.txt", "c.txt.gz")]


def flags(names: list[str], workdir: Path, **changed: object) -> list[str]:
    options = {
        "source.paths": repr(tuple(names)),
        "tokenizer.vocab": 300,
        "split.validation": 0.1,
        "split.test": 0.1,
        "work.chunk": 8000,
        "work.shard": 30_000,
        "work.workers": 1,
        **{name.replace("__", "."): value for name, value in changed.items()},
    }
    settings = [f"--config.{name}={value}" for name, value in options.items()]
    return ["--config=configs/prepare.py:files", *settings, f"--workdir={workdir}"]


def run(names, workdir, *, pattern: str = "", nth: int = 1, **changed) -> subprocess.CompletedProcess[str]:
    """The verb in a process of its own, which may kill itself."""
    program = ["-c", KILLED] if pattern else ["-m", "jaxft.prepare"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATTERN": pattern, "NTH": str(nth)}
    command = [sys.executable, *program, *flags(names, workdir, **changed)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)


def content(workdir: Path) -> dict[str, str]:
    """Every file of a corpus but those that tell the time, hashed."""
    files = (path for path in workdir.rglob("*") if path.is_file())
    skipped = ("report.json", "report.html", "run.lock", "config.json")
    return {
        str(path.relative_to(workdir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name not in skipped
    }
