"""Eight virtual CPU devices, strict ranks, one private compile cache for the whole suite."""

import os
import pathlib
import signal
import tempfile

# Before jax is imported anywhere. What is compiled within a test runs once or twice: optimising it takes longer than
# running it. Tests that start the program give it the flags of a user's shell, so that it is optimised there.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"
).strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Never the user's own caches; the same folder for every test, so that a program is compiled once a suite.
os.environ.setdefault("JAXFT_CACHE_DIR", str(pathlib.Path(tempfile.gettempdir()) / f"jaxft-tests-{os.getuid()}"))

import jax
import pytest

import jaxft  # noqa: F401  (sets the flag that old jaxlib wheels need)
from jaxft import cache

# A shell starts what runs in the background with SIGINT ignored, and children inherit that; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_numpy_rank_promotion", "raise")
cache.compile_cache(pathlib.Path(tempfile.gettempdir()) / "no-run-folder")


@pytest.fixture
def shared_data() -> pathlib.Path:
    """The project's data sets for tests; the test is skipped, visibly, where the folder is missing."""
    folder = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared/data")
    return folder
