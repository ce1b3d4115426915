import subprocess
import sys

import pytest

from jaxft import heap

# A block as large as a step's temporaries, taken and freed in a thread as XLA does, then taken again.
FAULTS = """
import ctypes, resource, sys, threading
if sys.argv[1] == "keep":
    from jaxft import heap
    if not heap.keep({"JAX_PLATFORMS": "cpu"}):
        sys.exit("left alone")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def step():
    block = libc.malloc(ctypes.c_size_t(128 << 20))
    ctypes.memset(block, 1, 128 << 20)
    libc.free(block)
def run():
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


def faults(mode):
    child = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=False)
    if "left alone" in child.stderr:
        pytest.skip("the C library is not glibc")
    assert child.returncode == 0, child.stderr
    return int(child.stdout)


def test_a_freed_block_is_there_for_the_next_step():
    assert faults("keep") < 100 < faults("as it is")


@pytest.mark.parametrize("environ", [{"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}], ids=str)
def test_a_users_own_settings_stand(environ):
    assert heap.keep({"JAX_PLATFORMS": "cpu", **environ}) is False


@pytest.mark.parametrize(
    "platforms, device, plugin, kept",
    [
        ("cpu", True, True, True),
        ("cpu,cuda", True, True, True),
        ("cuda,cpu", False, True, False),
        ("tpu", True, True, False),
        ("", True, True, False),
        ("", False, True, True),
        ("", True, False, True),
    ],
)
def test_it_is_for_the_cpu_alone(monkeypatch, platforms, device, plugin, kept):
    monkeypatch.setattr(heap.glob, "glob", lambda pattern: [pattern] if device and pattern == "/dev/accel*" else [])
    monkeypatch.setattr(heap.metadata, "entry_points", lambda group: [])
    monkeypatch.setattr(heap.importlib.util, "find_spec", lambda name: object() if plugin else None)
    assert heap.on_cpu({"JAX_PLATFORMS": platforms}) is kept
    if not kept:
        monkeypatch.setattr(heap.ctypes, "CDLL", pytest.fail)
        assert heap.keep({"JAX_PLATFORMS": platforms}) is False
