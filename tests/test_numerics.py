import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxft import numerics
from jaxft.registry import UserError

# The fusions that are on by default in the wheels that compute wrongly.
HARMFUL = f"{numerics.FLAG}LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
OLD = numerics.release(numerics.jaxlib_version()) < (0, 11, 0)


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("version", "flags", "expected"),
    [
        ("0.10.2", None, numerics.FLAG),
        ("0.11.0", "--xla_a=1", f"--xla_a=1 {numerics.FLAG}"),
        ("0.10.2", HARMFUL, HARMFUL),
        ("0.11.1", None, None),
        ("0.12.0.1", "--xla_a=1", "--xla_a=1"),
    ],
)
def test_old_wheels_get_the_flag_unless_the_user_chose_it(monkeypatch, version, flags, expected):
    monkeypatch.setattr(numerics, "jaxlib_version", lambda: version)
    monkeypatch.setattr(numerics, "_too_late", False)
    environ = {} if flags is None else {"XLA_FLAGS": flags}
    numerics.prepare(environ)
    assert environ.get("XLA_FLAGS") == expected


@pytest.mark.parametrize(
    ("text", "numbers"), [("0.12.0.1", (0, 12, 0)), ("0.11.1rc2", (0, 11, 1)), ("0.10.2.dev20260101", (0, 10, 2))]
)
def test_release_reads_the_first_three_numbers(text, numbers):
    assert numerics.release(text) == numbers


def run_python(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **environ}
    command = [sys.executable, "-W", "error", "-c", code]
    root = Path(__file__).parents[1]
    return subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=120, check=False)


def test_importing_jaxft_imports_neither_jax_nor_numpy():
    result = run_python("import jaxft, sys; sys.exit(bool({'jax', 'numpy'} & set(sys.modules)))")
    assert result.returncode == 0, result.stderr


def test_this_machine_passes_and_is_asked_once(monkeypatch):
    numerics.self_check()
    monkeypatch.setattr(numerics, "_run_apart", lambda _timeout: pytest.fail("asked again"))
    numerics.self_check()


def test_other_flags_are_another_question(monkeypatch):
    asked = []
    monkeypatch.setattr(numerics, "_run_apart", lambda _timeout: asked.append(1) or "")
    numerics.self_check()
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    numerics.self_check()
    assert len(asked) == 2


@pytest.mark.skipif(not OLD, reason="only jaxlib 0.10.2 computes wrongly")
def test_the_wheel_that_computes_wrongly_is_refused(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", HARMFUL)
    with pytest.raises(UserError, match=r"jaxlib 0\.10\..*jax#39103.*off by.*upgrade"):
        numerics.self_check()
    with pytest.raises(UserError):  # a failure is not remembered as a pass
        numerics.self_check()


@pytest.mark.skipif(not OLD, reason="only jaxlib 0.10.2 needs the flag before jax starts")
def test_using_jax_before_importing_jaxft_is_refused():
    code = "import jax; {}; import jaxft; jaxft.numerics.self_check()"
    assert run_python(code.format("pass")).returncode == 0
    result = run_python(code.format("jax.devices()"))
    assert "used jax before it imported jaxft" in result.stderr


def test_a_crash_is_refused_by_the_name_of_its_case(monkeypatch):
    code = "import os, signal; print('layer norm', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    monkeypatch.setattr(numerics.subprocess, "run", lambda *_arguments, **_options: result)
    with pytest.raises(UserError, match="case 'layer norm' crashed with signal 11"):
        numerics.self_check()


def test_a_check_that_hangs_is_refused(monkeypatch):
    def hang(command, timeout, **_options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(numerics.subprocess, "run", hang)
    with pytest.raises(UserError, match="did not finish in 120 s"):
        numerics.self_check()


def test_a_wrong_answer_fails_a_case():
    def off_by_a_percent(xp, x):
        return x if xp.__name__ == "numpy" else x * 1.01

    import numpy as np

    with pytest.raises(AssertionError, match=r"off by 1\.00%"):
        numerics._check(off_by_a_percent, (np.ones(3, np.float32),), 1e-5)
    with pytest.raises(AssertionError, match="off by nan%"):
        numerics._check(lambda xp, x: x if xp.__name__ == "numpy" else x * xp.nan, (np.ones(3, np.float32),), 1e-5)
