"""Folders from strangers: every malformed file ends in one message, quickly, in little memory."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxft.hf import files
from jaxft.registry import UserError

GOOD = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "BF16", "shape": [3, 1], "data_offsets": [8, 14]},
}


def write(file: Path, header: object, data: bytes = b"\0" * 14, length: int | None = None) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)


def entry(**changes: object) -> dict:
    return {**GOOD, "b": {**GOOD["b"], **changes}}


def test_a_file_of_the_safetensors_library_is_read(tmp_path):
    tensors = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "empty": np.zeros((0, 4), np.float16),
        "y": np.ones(5, np.int64),
    }
    save_file(tensors, tmp_path / files.SINGLE, metadata={"format": "pt"})
    found = files.index(tmp_path)
    assert {name: (stored.dtype, stored.shape) for name, stored in found.items()} == {
        "x": ("F32", (2, 3)),
        "empty": ("F16", (0, 4)),
        "y": ("I64", (5,)),
    }
    raw = found["x"].file.read_bytes()[found["x"].offset :][:24]
    np.testing.assert_array_equal(np.frombuffer(raw, np.float32).reshape(2, 3), tensors["x"])


MALFORMED = {
    "empty file": (b"", b"", 0, "not valid JSON"),
    "length of 2^63": (GOOD, b"\0" * 14, 2**63, "truncated, or not a safetensors file"),
    "length beyond the file": (GOOD, b"\0" * 14, 10_000, "truncated, or not a safetensors file"),
    "length above the limit": (b"{}", b"\0" * (files.JSON_BYTES + 9), files.JSON_BYTES + 1, "refused"),
    "not JSON": (b"\x80\x04K\x01.", b"", None, "not valid JSON"),
    "not an object": (b"[1]", b"", None, "not a JSON object"),
    "deep nesting": (b'{"a":' * 100_000, b"", None, "not valid JSON"),
    "integer of a million digits": (b'{"a":' + b"9" * 1_000_000 + b"}", b"", None, "not valid JSON"),
    "duplicate key": (b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{}}', b"", None, "stands twice"),
    "trailing bytes": (GOOD, b"\0" * 15, None, "truncated or padded"),
    "truncated data": (GOOD, b"\0" * 13, None, "truncated or padded"),
    "overlap": (entry(data_offsets=[4, 10]), b"\0" * 14, None, "overlap or leave a hole"),
    "hole": (entry(data_offsets=[10, 16]), b"\0" * 16, None, "overlap or leave a hole"),
    "negative offset": (entry(data_offsets=[-6, 0]), b"\0" * 14, None, "data_offsets"),
    "end before begin": (entry(data_offsets=[14, 8]), b"\0" * 14, None, "cannot be BF16"),
    "size against shape": (entry(shape=[4, 1]), b"\0" * 14, None, "cannot be BF16"),
    "negative size": (entry(shape=[-3, -1]), b"\0" * 14, None, "shape"),
    "huge size": (entry(shape=[2**60, 0]), b"\0" * 14, None, "shape"),
    "size that is a bool": (entry(shape=[3, True]), b"\0" * 14, None, "shape"),
    "unknown dtype": (entry(dtype="OBJECT"), b"\0" * 14, None, "dtype 'OBJECT' is not known"),
    "dtype that is a list": (entry(dtype=["F32"]), b"\0" * 14, None, "is not known"),
    "extra field": (entry(pickle="x"), b"\0" * 14, None, "exactly"),
    "metadata that is a list": ({**GOOD, "__metadata__": [1]}, b"\0" * 14, None, "__metadata__"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_header_is_refused(tmp_path, case):
    header, data, length, message = MALFORMED[case]
    write(tmp_path / files.SINGLE, header, data, length)
    with pytest.raises(UserError, match=message) as error:
        files.index(tmp_path)
    assert files.SINGLE in str(error.value)


@pytest.mark.parametrize(
    "bomb",
    [
        'b"{\\"a\\":[" + b"[]," * 3_300_000 + b"[]]}"',
        'b"{" + b",".join(b\'"%d":0\' % i for i in range(900_000)) + b"}"',
        'b"{" + b",".join(b\'"%d":0\' % i for i in range(290_000)) + b"}"',
        'b"{\\"a\\":\\"" + b"x" * 9_900_000 + b"\\"}"',
        'b" " * 120_000_000 + b"{}"',
    ],
    ids=["lists", "too many keys", "keys below the limit", "one string", "120 MB"],
)
def test_a_header_bomb_costs_less_than_200_megabytes_and_a_second(tmp_path, bomb):
    program = f"""
import pathlib, sys, time
from jaxft.hf import files
from jaxft.registry import UserError
if sys.argv[1] == "write":
    raw = {bomb}
    pathlib.Path("model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
else:
    began = time.process_time()
    try:
        files.index(pathlib.Path("."))
    except UserError:
        # Not ru_maxrss: a child process inherits that from the parent that forked it.
        peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        print(time.process_time() - began, int(peak.split()[1]) / 1024)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for step in ("write", "read"):
        run = subprocess.run(
            [sys.executable, "-c", program, step],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    seconds, megabytes = map(float, run.stdout.split())
    assert seconds < 1 and megabytes < 200


def shards(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / files.INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_read_through_their_index(tmp_path):
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "one.safetensors")
    save_file({"b": np.zeros(3, np.float32)}, tmp_path / "two.safetensors")
    shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    assert {name: stored.file.name for name, stored in files.index(tmp_path).items()} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }


def test_every_absent_shard_is_named(tmp_path):
    shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(UserError, match=r"not there: one.safetensors, two.safetensors"):
        files.index(tmp_path)


def test_an_index_that_disagrees_with_its_shard_is_refused(tmp_path):
    save_file({"a": np.zeros(2, np.float32), "hidden": np.zeros(1, np.float32)}, tmp_path / "one.safetensors")
    shards(tmp_path, {"a": "one.safetensors", "absent": "one.safetensors"})
    with pytest.raises(UserError, match="disagree about: absent, hidden"):
        files.index(tmp_path)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", "a\\b", "a\0b"]
)
def test_an_index_may_not_name_files_outside_the_folder(tmp_path, name):
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "outside.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    shards(folder, {"a": name})
    with pytest.raises(UserError, match=r"plain file name|not there"):
        files.index(folder)


@pytest.mark.parametrize("name", ["config.json", files.SINGLE, "tokenizer.json"])
def test_a_link_out_of_the_folder_is_refused(tmp_path, name):
    (tmp_path / "secret").write_text("{}")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / name).symlink_to("../secret")
    with pytest.raises(UserError, match="leaves the folder"):
        files.inside(folder, name)


def test_links_of_the_hub_cache_are_followed_to_its_blobs_only(tmp_path):
    snapshot = tmp_path / "models--x--y" / "snapshots" / "0123"
    blobs = tmp_path / "models--x--y" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"a": np.zeros(2, np.float32)}, blobs / "beef")
    (snapshot / files.SINGLE).symlink_to("../../blobs/beef")
    assert list(files.index(snapshot)) == ["a"]
    (tmp_path / "models--x--y" / "secret").write_text("{}")
    (snapshot / "config.json").symlink_to("../../secret")
    with pytest.raises(UserError, match="leaves the folder"):
        files.read_config(snapshot)


def test_what_is_no_regular_file_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UserError, match="not a regular file"):
        files.read_config(tmp_path)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pkl", ".h5", ".msgpack"])
def test_a_folder_of_unsafe_weights_is_told_how_to_convert(tmp_path, suffix):
    (tmp_path / f"pytorch_model{suffix}").write_bytes(b"anything")
    with pytest.raises(UserError, match=rf"only pytorch_model{re.escape(suffix)}, which jaxft never opens") as error:
        files.index(tmp_path)
    assert "save_pretrained" in str(error.value)


def test_a_folder_without_weights_is_said_to_be_one(tmp_path):
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        files.index(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "bert", "trust_remote_code": true}', "trust_remote_code asks for Python code"),
        ('{"model_type": "bert", "model_type": "gpt2"}', "stands twice"),
        ('{"model_type": "bert"', "not valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "no model_type"),
    ],
)
def test_a_config_that_cannot_be_trusted_is_refused(tmp_path, config, message):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=message):
        files.read_config(tmp_path)


def test_a_folder_that_holds_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        files.read_config(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        files.read_config(tmp_path / "nowhere")
