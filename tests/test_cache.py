import os
import stat

import jax
import pytest

from jaxft import cache
from jaxft.registry import UserError


@pytest.fixture(autouse=True)
def no_choice_of_the_user(monkeypatch):
    for name in ("JAXFT_CACHE_DIR", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def jax_settings():
    """Puts back the compile cache of the suite."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("JAXFT_CACHE_DIR", "mine", "mine/tokens"),
        ("XDG_CACHE_HOME", "xdg", "xdg/jaxft/tokens"),
        ("HOME", "home", "home/.cache/jaxft/tokens"),
    ],
)
def test_the_folder_follows_the_environment_and_is_private(tmp_path, monkeypatch, variable, value, expected):
    monkeypatch.setenv(variable, str(tmp_path / value))
    old = os.umask(0)
    try:
        folder = cache.private_dir("tokens")
    finally:
        os.umask(old)
    assert folder == tmp_path / expected
    assert mode(folder) == mode(folder.parent) == 0o700
    assert cache.private_dir("tokens") == folder


def test_a_relative_xdg_path_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.private_dir("x") == tmp_path / ".cache/jaxft/x"


@pytest.mark.parametrize("bits", [0o770, 0o702])
@pytest.mark.parametrize("level", ["", "tokens"])
def test_a_folder_that_others_can_write_is_refused(tmp_path, monkeypatch, bits, level):
    monkeypatch.setenv("JAXFT_CACHE_DIR", str(tmp_path / "c"))
    cache.private_dir("tokens")
    (tmp_path / "c" / level).chmod(bits)
    with pytest.raises(UserError, match=rf"written by others \(mode {bits:04o}\).*chmod go-w"):
        cache.private_dir("tokens")


def test_a_folder_of_somebody_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFT_CACHE_DIR", str(tmp_path / "c"))
    cache.private_dir("tokens")
    somebody = os.getuid() + 1
    monkeypatch.setattr(cache.os, "getuid", lambda: somebody)
    with pytest.raises(UserError, match=r"belongs to user \d+.*of your own"):
        cache.private_dir("tokens")


def test_a_file_in_the_way_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXFT_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match="file is a file"):
        cache.private_dir("tokens")
    monkeypatch.setenv("JAXFT_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match=r"cannot create .*below.*JAXFT_CACHE_DIR"):
        cache.private_dir("tokens")


def test_compiled_programs_are_kept_in_the_private_folder(tmp_path, monkeypatch, jax_settings):
    monkeypatch.setenv("JAXFT_CACHE_DIR", str(tmp_path / "c"))
    folder = cache.compile_cache(tmp_path / "run")
    assert folder == tmp_path / "c" / "compiled" and mode(folder) == 0o700
    assert jax.config.jax_compilation_cache_dir == str(folder)


@pytest.mark.parametrize("variable", ["JAXFT_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR"])
def test_a_compile_cache_inside_the_run_folder_is_refused(tmp_path, monkeypatch, jax_settings, variable):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    monkeypatch.setenv(variable, str(tmp_path / "link" / "cache"))
    with pytest.raises(UserError, match=f"{variable}.*inside the run folder"):
        cache.compile_cache(tmp_path / "run")


def test_a_compile_cache_chosen_by_the_user_is_kept_if_it_is_private(tmp_path, monkeypatch, jax_settings):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "chosen"))
    assert cache.compile_cache(tmp_path / "run") == tmp_path / "chosen"
    (tmp_path / "chosen").chmod(0o777)
    with pytest.raises(UserError, match="written by others"):
        cache.compile_cache(tmp_path / "run")
