"""transformers 4.57 in a process of its own: the one of the tests has version 5.

What version 4 needs otherwise than 5 is installed once into a private cache folder that goes before the installed
packages; JAXFT_TEST_VENV457 may name an environment that has it all instead.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxft import cache
from tests.verbs_run import ROOT

PINNED = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface-hub==0.36.0")


def environment():
    """(python, environment) in which transformers is 4.57; the test is skipped, visibly, where there can be none."""
    if os.environ.get("JAXFT_TEST_VENV457"):
        return str(Path(os.environ["JAXFT_TEST_VENV457"]) / "bin" / "python"), dict(os.environ)
    pytest.importorskip("torch", reason="transformers' models need torch")
    target = cache.private_dir("tests") / f"transformers-4.57-py{sys.version_info[0]}{sys.version_info[1]}"
    if not target.exists():
        draft = target.with_name(f"{target.name}.{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={draft}", *PINNED]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            shutil.rmtree(draft, ignore_errors=True)
            pytest.skip(f"pip cannot install {PINNED[0]}: {done.stderr.strip().splitlines()[-1]}")
        draft.rename(target)
    return sys.executable, {**os.environ, "PYTHONPATH": str(target)}


def run(code, *arguments, given=""):
    """What `code` prints as JSON when version 4 runs it, and its stderr."""
    python, environ = environment()
    done = subprocess.run(
        [python, "-c", code, *arguments], input=given, env=environ, cwd=ROOT, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr
