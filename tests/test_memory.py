import re
import resource
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxft import memory
from jaxft.registry import UserError
from tests import tiny

GIB = 2**30


def compiled(*, arguments=0, temporaries=0):
    stats = SimpleNamespace(argument_size_in_bytes=arguments, temp_size_in_bytes=temporaries)
    return SimpleNamespace(memory_analysis=lambda: stats)


def accelerator(limit):
    device = SimpleNamespace(process_index=0, platform="gpu", memory_stats=lambda: limit and {"bytes_limit": limit})
    return SimpleNamespace(devices=SimpleNamespace(flat=[device]))


def test_a_compiled_step_says_what_it_needs():
    step = jax.jit(lambda x: jnp.tanh(x @ x).sum()).lower(jnp.zeros((2048, 2048))).compile()
    said = memory.describe(step, 1.25)  # jax 0.10 has 0.02 GiB of temporaries, 0.12 none
    assert re.fullmatch(
        r"compiled in 1\.2 s: 0\.02 GiB of state and batch, 0\.0\d GiB of temporaries, 1\.7\d*e\+10 FLOPs .*",
        said,
    )


def test_an_accelerator_must_hold_state_and_temporaries():
    memory.check(compiled(arguments=3 * GIB, temporaries=4 * GIB), accelerator(7 * GIB))
    with pytest.raises(
        UserError, match=r"needs 8.00 GiB, 7.00 GiB are available; .* 4.00 GiB of state and batch, 4.00 .* of temp"
    ) as caught:
        memory.check(compiled(arguments=4 * GIB, temporaries=4 * GIB), accelerator(7 * GIB))
    assert caught.value.code == 1


def test_an_accelerator_that_does_not_say_its_limit_is_not_second_guessed():
    memory.check(compiled(arguments=2**60), accelerator(None))


def test_devices_of_one_host_share_its_memory(monkeypatch):
    monkeypatch.setattr(memory, "_host_memory", lambda: 8 * GIB)
    memory.check(compiled(temporaries=GIB), tiny.mesh(data=8))
    with pytest.raises(UserError, match=r"needs 16.00 GiB, 8.00 GiB are available"):
        memory.check(compiled(temporaries=2 * GIB), tiny.mesh(data=8))


def test_a_limit_of_the_address_space_counts(monkeypatch):
    free = memory._host_memory()
    assert GIB // 8 < free < 2**50
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1, 1))
    assert memory._host_memory() == 0


GROUP_FILES = {
    2: ("0::/job/task", "", "memory.max", "memory.current", "active_file 3\ninactive_file 4\nanon 90"),
    1: (
        "5:cpu,memory:/job/task",
        "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_active_file 3\ntotal_inactive_file 4",
    ),
}


@pytest.mark.parametrize("version", GROUP_FILES)
@pytest.mark.parametrize(
    "limits, room",
    [
        ({"job/task": 1000}, 907),
        ({"job": 500, "job/task": 1000}, 407),
        ({"job": "max", "job/task": 1000}, 907),
        ({"": 800}, 707),
        ({"job/task": "max"}, None),
        ({}, None),
        ({"other": 10}, None),
    ],
    ids=str,
)
def test_the_limit_of_a_container_counts_without_the_file_cache(tmp_path, monkeypatch, version, limits, room):
    line, below, limit, use, stat = GROUP_FILES[version]
    for group, value in limits.items():
        folder = tmp_path / below / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in {limit: f"{value}\n", use: "100\n", "memory.stat": stat}.items():
            (folder / name).write_text(text)
    (tmp_path / "listed").write_text(f"9:freezer:/other\n{line}\n")
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    assert min(memory._room_in_groups(tmp_path / "listed"), default=None) == room
    assert not list(memory._room_in_groups(tmp_path / "absent"))


def test_the_room_of_a_container_is_all_there_is(monkeypatch):
    monkeypatch.setattr(memory, "_room_in_groups", lambda: iter([5 * GIB, 1234]))
    assert memory._host_memory() == 1234


def test_the_message_has_three_settings_to_change():
    message = str(memory.out_of_memory("a step needs 9 GiB", memory.TRAINING_FIX))
    fixes = ("train.batch", "train.accumulate", "model.remat=full", "mesh.fsdp")
    assert all(f"--config.{fix}" in message for fix in fixes) and len(message.splitlines()) == 1
