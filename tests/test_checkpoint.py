import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxft import shelf
from jaxft.checkpoint import Checkpoints
from jaxft.registry import UserError


class Moments(NamedTuple):
    mu: dict
    count: jax.Array


def mesh_of(*shape: int) -> jax.sharding.Mesh:
    names = ("data", "tensor", "fsdp")[: len(shape)]
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))


def make_state(value: float, mesh: jax.sharding.Mesh | None = None, width: int = 64):
    mesh = mesh or mesh_of(8)
    sharded = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    whole = NamedSharding(mesh, PartitionSpec())
    w = jax.device_put(np.arange(16 * width, dtype=np.float32).reshape(16, width) * value, sharded)
    b = jax.device_put(np.linspace(0, value, 7).astype(jnp.bfloat16), whole)
    count = jax.device_put(np.int32(round(value * 10)), whole)
    return {"params": {"blocks/attn.q": {"kernel": w}, "bias": b}, "opt": (Moments({"kernel": w * 2}, count), None)}


def abstract_like(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(left, right) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def open_checkpoints(tmp_path: Path, said: list[str]):
    opened = []

    def open_one(keep: int = 2, folder: Path = tmp_path / "checkpoints", **options) -> Checkpoints:
        opened.append(Checkpoints(folder, keep=keep, say=said.append, **options))
        return opened[-1]

    yield open_one
    for checkpoints in opened:
        checkpoints.close()


def saved(open_checkpoints: Callable[..., Checkpoints], *steps: int, keep: int = 9, **marks: bool) -> Checkpoints:
    checkpoints = open_checkpoints(keep=keep)
    for step in steps:
        checkpoints.save(step, make_state(step), {"loss": step / 2}, wait=True)
    return checkpoints


def test_an_empty_folder_has_no_newest(open_checkpoints):
    assert open_checkpoints().newest() is None


def test_state_and_meta_come_back_bit_for_bit(open_checkpoints):
    saved(open_checkpoints, 10)
    again = open_checkpoints()
    assert again.newest() == 10
    state = make_state(10)
    restored = again.restore(10, abstract_like(state))
    assert_same(restored, state)
    assert restored["params"]["blocks/attn.q"]["kernel"].sharding == state["params"]["blocks/attn.q"]["kernel"].sharding
    assert again.meta(10) == {"loss": 5.0}


@pytest.mark.parametrize("shape", [(4, 2), (2, 2, 2), (1,)])
def test_another_mesh_reads_the_same_bits(open_checkpoints, shape):
    checkpoints = saved(open_checkpoints, 3)
    devices = jax.devices()[: int(np.prod(shape))]
    names = ("data", "tensor", "fsdp")[: len(shape)]
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape), devices=devices)
    abstract = abstract_like(make_state(3, mesh))
    restored = checkpoints.restore(3, abstract)
    assert_same(restored, make_state(3))
    assert restored["params"]["bias"].sharding.mesh.shape == mesh.shape


def test_donating_the_state_right_after_an_async_save_does_not_change_what_is_saved(open_checkpoints):
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    checkpoints = open_checkpoints(keep=9)
    state = make_state(1, width=65_536)
    expected = {}
    for number in range(1, 4):
        expected[number] = jax.tree.map(lambda x: np.array(x), state)
        checkpoints.save(number, state, {})
        for _ in range(3):
            state = step(state)
    checkpoints.wait()
    for number, values in expected.items():
        assert_same(checkpoints.restore(number, abstract_like(state)), values)


def test_the_newest_ones_and_the_best_are_kept(open_checkpoints):
    checkpoints = open_checkpoints(keep=2)
    for step in range(1, 7):
        checkpoints.save(step, make_state(step), {}, best=step in (1, 3))
    checkpoints.wait()
    assert checkpoints.steps() == [3, 5, 6]
    assert checkpoints.best() == 3


def test_a_committed_step_can_become_the_best_without_being_written_again(open_checkpoints, tmp_path):
    checkpoints = saved(open_checkpoints, 1, keep=1)
    before = (tmp_path / "checkpoints" / "1" / "manifest.json").stat().st_mtime_ns
    checkpoints.save(1, make_state(99), {"loss": 99}, best=True, wait=True)
    assert checkpoints.meta(1) == {"loss": 0.5}
    assert (tmp_path / "checkpoints" / "1" / "manifest.json").stat().st_mtime_ns == before
    assert checkpoints.best() == 1
    checkpoints.save(2, make_state(2), {}, wait=True)
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.newest() == 2
    assert_same(checkpoints.restore(1, abstract_like(make_state(1))), make_state(1))


def every_file(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "best")


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_harm_to_any_file_is_named_and_the_checkpoint_before_is_used(open_checkpoints, said, tmp_path, harm):
    checkpoints = saved(open_checkpoints, 1, 2)
    for path in every_file(tmp_path / "checkpoints" / "2"):
        whole = path.read_bytes()
        if harm == "flip" and whole:
            middle = len(whole) // 2
            path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        elif harm == "truncate" and whole:
            path.write_bytes(whole[:-1])
        elif harm == "remove" and path.name != "manifest.json":  # without a manifest it was never committed
            path.unlink()
        else:
            continue
        said.clear()
        assert checkpoints.newest() == 1, path
        assert len(said) == 1 and "step 2" in said[0] and str(path) in said[0]
        with pytest.raises(UserError, match="step 2 is damaged"):
            checkpoints.newest(fallback=False)
        path.write_bytes(whole)
    assert checkpoints.newest() == 2


def test_restoring_a_damaged_step_is_refused(open_checkpoints, tmp_path):
    saved(open_checkpoints, 1)
    meta = tmp_path / "checkpoints" / "1" / "meta.json"
    meta.write_text(meta.read_text().replace("0.5", "0.6"))
    with pytest.raises(UserError, match=r"meta\.json has changed"):
        open_checkpoints().restore(1, abstract_like(make_state(1)))


def test_only_damaged_checkpoints_are_an_error_not_a_fresh_start(open_checkpoints, tmp_path):
    checkpoints = saved(open_checkpoints, 1, 2)
    for step in "12":
        (tmp_path / "checkpoints" / step / "meta.json").write_text("{}")
    with pytest.raises(UserError, match=r"every checkpoint .* is damaged"):
        checkpoints.newest()


def test_a_damaged_step_is_written_anew_when_the_run_reaches_it_again(open_checkpoints, tmp_path):
    saved(open_checkpoints, 1, 2, 3)
    for step in "23":
        (tmp_path / "checkpoints" / step / "meta.json").write_text("{}")
    checkpoints = open_checkpoints(keep=2)
    assert checkpoints.newest() == 1
    checkpoints.save(2, make_state(2), {"again": True}, wait=True)
    assert checkpoints.steps() == [1, 2], "a damaged newer step must not push a good one out"
    assert checkpoints.newest(fallback=False) == 2
    assert checkpoints.meta(2) == {"again": True}


def test_leftovers_of_dead_saves_go_on_opening_but_not_for_a_reader(open_checkpoints, tmp_path):
    saved(open_checkpoints, 1)
    folder = tmp_path / "checkpoints"
    for name in ("2.tmp", "7.old"):
        (folder / name / "state").mkdir(parents=True)
    (folder / "notes.tmp").mkdir()
    (folder / "4").mkdir()  # a copy that was interrupted: no manifest
    assert open_checkpoints(read_only=True).steps() == [1]
    assert (folder / "2.tmp").exists()
    checkpoints = open_checkpoints()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "4", "notes.tmp"]
    checkpoints.save(4, make_state(4), {}, wait=True)
    assert checkpoints.newest() == 4


def test_a_folder_that_cannot_be_written_is_one_clear_error(open_checkpoints, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be kept in .*file"):
        open_checkpoints(folder=tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot be kept in .*file"):
        open_checkpoints(folder=tmp_path / "file" / "below")

    def refuse(*_arguments, **_options):
        raise OSError(30, "Read-only file system", "somewhere")

    checkpoints = saved(open_checkpoints, 1)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"step 2 could not be written.*Read-only.*stand: 1"):
        checkpoints.save(2, make_state(2), {})


def test_a_state_of_other_arrays_is_refused_with_every_difference(open_checkpoints):
    checkpoints = saved(open_checkpoints, 1)
    other = make_state(1, width=32)
    other["params"]["new"] = other["params"].pop("bias")
    with pytest.raises(UserError) as caught:
        checkpoints.restore(1, abstract_like(other))
    for part in ("params/new is missing", "params/bias is not part", "float32[16,64], not float32[16,32]"):
        assert part in str(caught.value)
    with pytest.raises(UserError, match="no checkpoint of step 5; it has: 1"):
        checkpoints.restore(5, abstract_like(other))


def test_another_dtype_is_refused_instead_of_cast(open_checkpoints):
    checkpoints = saved(open_checkpoints, 1)
    cast = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float16, sharding=x.sharding), make_state(1))
    with pytest.raises(UserError, match=r"bfloat16\[7\], not float16\[7\]"):
        checkpoints.restore(1, cast)


@pytest.mark.parametrize("keep, standing, more", [(2, 0, 4), (3, 0, 5), (2, 3, 1), (2, 2, 2), (1, 6, 1)])
def test_preflight_wants_room_for_all_that_may_stand_less_what_does(
    open_checkpoints, monkeypatch, keep, standing, more
):
    saved(open_checkpoints, *range(1, standing + 1))
    checkpoints = open_checkpoints(keep=keep)
    usage = type("Usage", (), {"free": more * 1_500_000})
    monkeypatch.setattr(shelf.shutil, "disk_usage", lambda _path: usage)
    checkpoints.preflight(1_500_000)
    numbers = rf"{more * 1.5:.1f} MB free, and {more * 1.6:.1f} MB are needed: {more} more checkpoints of 1\.6 MB"
    with pytest.raises(UserError, match=rf"{numbers} \(checkpoint\.keep={keep}, .*; {standing} stand already\)"):
        checkpoints.preflight(1_600_000)


def test_a_run_never_holds_more_than_preflight_counts(open_checkpoints, monkeypatch):
    """keep=2: the two newest, the best and the draft."""
    checkpoints, most = open_checkpoints(keep=2), []
    publish = shelf.manifest.publish

    def counted(draft, target):
        publish(draft, target)
        most.append(len(list(checkpoints.shelf.folder.iterdir())))

    monkeypatch.setattr(shelf.manifest, "publish", counted)
    for step in range(1, 7):
        checkpoints.save(step, make_state(step), {}, best=step == 1, wait=True)
    assert max(most) == 4


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from tests.test_checkpoint import Checkpoints, UserError, make_state
# A limit on the size of a file stands in for a full disk where no small file system can be mounted.
folder = Path(sys.argv[1])
checkpoints = Checkpoints(folder, keep=3, say=print)
checkpoints.save(1, make_state(1), {}, wait=True)
if sys.argv[2] == "limit":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
checkpoints.save(2, make_state(2, width=200_000), {})
try:
    checkpoints.close()
except UserError as error:
    print("REFUSED", error.code, error)
print("LEFT", sorted(path.name for path in folder.iterdir()), checkpoints.newest())
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` with the repository root as its folder, in the environment of the tests (8 devices)."""
    root = Path(__file__).parents[1]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=120, check=False)


def check_full_disk(result: subprocess.CompletedProcess[str], reason: str) -> None:
    refused = next((line for line in result.stdout.splitlines() if line.startswith("REFUSED")), result.stderr)
    assert "REFUSED 1 the checkpoint of step 2 could not be written" in refused
    assert reason in refused and refused.endswith("Checkpoints that stand: 1")
    assert "LEFT ['1'] 1" in result.stdout
    assert result.stderr == "", "one sentence, not the tracebacks of a library"


def test_a_file_that_cannot_grow_leaves_the_previous_checkpoint(tmp_path):
    check_full_disk(run_python(FULL_DISK, str(tmp_path / "c"), "limit"), "File too large")


def test_a_full_disk_names_what_is_needed_and_free(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        result = run_python(FULL_DISK, str(disk / "c"), "full")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    check_full_disk(result, "no space: it needs 25.6 MB, ")


TRAIN = """
import sys
from pathlib import Path
from tests.test_checkpoint import Checkpoints, make_state
checkpoints = Checkpoints(Path(sys.argv[1]), keep=2, say=print)
start = checkpoints.newest() or 0
print("started", start, flush=True)
for step in range(start + 1, start + 1000):
    checkpoints.save(step, make_state(step, width=4096), {"step": step})
"""


def test_a_kill_during_a_save_leaves_only_whole_checkpoints(tmp_path, said):
    folder = tmp_path / "checkpoints"
    root = Path(__file__).parents[1]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    newest = 0
    for round_ in range(3):
        command = [sys.executable, "-c", TRAIN, str(folder)]
        child = subprocess.Popen(command, cwd=root, env=environ, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == f"started {newest}\n"
        time.sleep(0.7 + 0.13 * round_)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        with Checkpoints(folder, keep=2, say=said.append, read_only=True) as checkpoints:
            newest = checkpoints.newest(fallback=False) or 0
            assert newest > 0
            state = make_state(newest, width=4096)
            assert_same(checkpoints.restore(newest, abstract_like(state)), state)
            assert checkpoints.meta(newest) == {"step": newest}
    Checkpoints(folder, keep=2, say=said.append).close()
    assert not [path for path in folder.iterdir() if not path.name.isdecimal()]


PROCESS = """
import os, sys
import jaxft, jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
index, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
def bytes_read():
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])
jax.distributed.initialize(f"localhost:{port}", 2, index)
from jaxft.checkpoint import Checkpoints
mesh = jax.make_mesh((16,), ("data",), axis_types=(AxisType.Auto,))
where = NamedSharding(mesh, PartitionSpec("data"))
whole = np.random.default_rng(0).random(2**20, np.float32)
state = {"w": jax.make_array_from_callback(whole.shape, where, lambda at: whole[at])}
said = []
with Checkpoints(folder, keep=2, say=said.append) as checkpoints:
    assert checkpoints.newest() is None
    for step in (1, 2, 3):
        checkpoints.save(step, state, {"step": step})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3], checkpoints.steps()
    from jax.experimental import multihost_utils
    if index == 0:
        with open(f"{folder}/3/meta.json", "a") as file:
            file.write(" ")
    multihost_utils.sync_global_devices("damaged")
    assert checkpoints.newest() == 2
    assert len(said) == (index == 0)
    checkpoints.save(3, state, {}, wait=True)
    assert checkpoints.newest() == 3
    before = bytes_read()
    back = checkpoints.restore(3, {"w": jax.ShapeDtypeStruct(whole.shape, np.float32, sharding=where)})
    assert bytes_read() - before < 0.6 * whole.nbytes, "a process reads the half that its devices hold"
    for shard in back["w"].addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), whole[shard.index])
print("FINE", index)
jax.distributed.shutdown()
"""


def test_two_processes_commit_and_fall_back_as_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    root = Path(__file__).parents[1]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(index), port, str(tmp_path / "c")],
            cwd=root,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [child.communicate(timeout=120)[0] for child in children]
    for index, output in enumerate(outputs):
        assert f"FINE {index}" in output, output


def test_the_manifest_lists_every_file(open_checkpoints, tmp_path):
    saved(open_checkpoints, 1)
    folder = tmp_path / "checkpoints" / "1"
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert {str(path.relative_to(folder)) for path in every_file(folder)} == {*listed, "manifest.json"}
