"""A run folder in a bucket: what counts, what is sent, who holds it; and the program, killed again and again."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxft import lease
from jaxft.bucket import Mirror
from jaxft.checkpoint import Checkpoints
from jaxft.lease import Lease
from jaxft.registry import UserError
from tests import program
from tests.bucket import Bucket, opened

URL = "gs://bucket/runs/a"


@pytest.fixture
def bucket(monkeypatch):
    with opened(monkeypatch) as bucket:
        yield bucket


@pytest.fixture
def checkpoints(bucket):
    with Checkpoints(f"{URL}/checkpoints", keep=2, say=said.append) as checkpoints:
        yield checkpoints


said: list[str] = []
STATE = {"w": jnp.arange(6.0).reshape(2, 3), "step": jnp.int32(7)}


def restored(checkpoints, step):
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), STATE)
    return checkpoints.restore(step, abstract)


def test_a_checkpoint_comes_back_bit_for_bit_and_old_ones_go(bucket, checkpoints):
    for step in (1, 2, 3, 4):
        checkpoints.save(step, STATE, {"loss": step}, best=step == 1, wait=True)
    assert checkpoints.steps() == [1, 3, 4] and checkpoints.best() == 1 and checkpoints.newest() == 4
    assert checkpoints.meta(3) == {"loss": 3} and not bucket.names("runs/a/checkpoints/2/")
    np.testing.assert_array_equal(restored(checkpoints, 4)["w"], STATE["w"])


def test_the_manifest_is_the_last_to_be_written_and_the_first_to_go(bucket, checkpoints):
    changes = []
    bucket.before = lambda method, name: changes.append((method, name.removeprefix("runs/a/checkpoints/")))
    checkpoints.save(1, STATE, {}, wait=True)
    assert changes[-1] == ("PUT", "1/manifest.json")
    changes.clear()
    checkpoints.shelf.remove(1)
    assert changes[0] == ("DELETE", "1/manifest.json") and len(changes) > 5


def test_what_a_killed_save_left_does_not_count_and_is_removed(bucket, checkpoints):
    checkpoints.save(1, STATE, {}, wait=True)
    bucket["runs/a/checkpoints/2/state/part"] = b"x"
    assert checkpoints.steps() == [1]
    Checkpoints(f"{URL}/checkpoints", keep=2, say=said.append, read_only=True).close()
    assert bucket.names("runs/a/checkpoints/2/")  # it may be somebody's who is alive
    Checkpoints(f"{URL}/checkpoints", keep=2, say=said.append).close()
    assert not bucket.names("runs/a/checkpoints/2/") and checkpoints.steps() == [1]


@pytest.mark.parametrize("harm", ["flip", "remove", "cut"])
def test_a_damaged_checkpoint_is_named_and_passed_over(bucket, checkpoints, harm):
    for step in (1, 2):
        checkpoints.save(step, STATE, {}, wait=True)
    name = next(name for name in bucket.names("runs/a/checkpoints/2/state/state/d/"))
    content = bucket[name]
    if harm == "remove":
        del bucket.objects[name]
    else:
        bucket[name] = content[:-1] + (bytes([content[-1] ^ 1]) if harm == "flip" else b"")
    said.clear()
    assert checkpoints.newest() == 1 and name in said[0]
    checkpoints.save(2, STATE, {}, wait=True)  # the run comes by again
    assert checkpoints.newest() == 2


def copy(bucket, prefix, target):
    """What `gcloud storage cp -r` does."""
    for name in bucket.names(f"{prefix}/"):
        path = target / name.removeprefix(f"{prefix}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bucket[name])


def test_checkpoints_may_be_copied_to_a_disk_and_back_and_are_still_checked(bucket, checkpoints, tmp_path):
    checkpoints.save(1, STATE, {}, wait=True)
    copy(bucket, "runs/a/checkpoints", tmp_path)
    with Checkpoints(tmp_path, keep=2, say=said.append) as here:
        assert here.newest() == 1
        np.testing.assert_array_equal(restored(here, 1)["w"], STATE["w"])
        here.save(2, STATE, {}, wait=True)
    for path in (tmp_path / "2").rglob("*"):
        if path.is_file():
            bucket[f"runs/a/checkpoints/{path.relative_to(tmp_path)}"] = path.read_bytes()
    assert checkpoints.newest() == 2
    for name in ("1/meta.json", "2/meta.json"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes().replace(b"1", b"3").replace(b"2", b"3"))
        bucket[f"runs/a/checkpoints/{name}"] = (tmp_path / name).read_bytes()
        assert "meta.json has changed" in checkpoints.shelf.damage(int(name[0]))
    with Checkpoints(tmp_path, keep=2, say=said.append) as here, pytest.raises(UserError, match="every checkpoint"):
        here.newest()


def test_the_logs_are_sent_before_the_checkpoint_that_they_belong_to_counts(bucket, tmp_path):
    mirror = Mirror(URL, tmp_path)
    (tmp_path / "metrics.jsonl").write_text("one\n")
    order = []
    bucket.before = lambda method, name: order.append(name.removeprefix("runs/a/"))
    with Checkpoints(f"{URL}/checkpoints", keep=2, say=print, before_commit=mirror.send) as checkpoints:
        checkpoints.save(1, STATE, {}, wait=True)
    assert order[-2:] == ["metrics.jsonl", "checkpoints/1/manifest.json"]


def test_what_has_changed_is_sent_and_the_report_last(bucket, tmp_path):
    mirror, sent = Mirror(URL, tmp_path), []
    bucket.before = lambda method, name: sent.append((method, name.removeprefix("runs/a/")))
    for name in ("report.json", "tokenizer/a.json", "hf/model.safetensors", "zzz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    mirror.send()
    assert sent[-1] == ("PUT", "report.json") and len(sent) == 4
    sent.clear()
    (tmp_path / "zzz").write_text("more")
    (tmp_path / "tokenizer" / "a.json").unlink()
    mirror.send()
    assert sent == [("DELETE", "tokenizer/a.json"), ("PUT", "zzz")]


def test_of_what_lies_in_the_bucket_only_files_of_a_run_are_fetched_or_removed(bucket, tmp_path):
    ours = {"config.json", "tokenizer/vocab.txt", "tensorboard/events"}
    for name in [*ours, "checkpoints/1/x", "hf/old", "theirs/data", "lock/00000001.json"]:
        bucket[f"runs/a/{name}"] = name.encode()
    bucket["runs/ab/config.json"] = b"of another run"
    mirror = Mirror(URL, tmp_path)
    mirror.fetch()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == ours
    mirror.send()
    assert "runs/a/hf/old" not in bucket.objects  # of an end that was not reached
    assert len(bucket.objects) == len(ours) + 4


def test_other_stores_than_google_are_refused_as_run_folders():
    for url in ("s3://bucket/runs/a", "memory://runs/a"):
        with pytest.raises(UserError, match="a run can live in a folder or below gs://; mount other stores"):
            Mirror(url, None)


def test_a_bucket_that_cannot_be_read_is_one_clear_error(bucket, tmp_path):
    with pytest.raises(UserError, match="run folder='gs://bucket/secret' may not be read by this account") as caught:
        Mirror("gs://bucket/secret", tmp_path).fetch()
    assert caught.value.code == 2


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.1)
    monkeypatch.setattr(lease, "LEASE", 1.0)


HOLDER = {"pid": 7, "host": "gone", "started": "then", "beat": 3}


def test_one_at_a_time_and_the_next_one_need_not_wait(bucket, quick):
    refused = pytest.raises(UserError, match=rf"in use by pid {os.getpid()} on host .*; wait for it, stop it")
    with Lease(URL, say=said.append), refused:
        Lease(URL, say=said.append).__enter__()
    said.clear()
    with Lease(URL, say=said.append) as held:
        held.check()
    assert said == [] and bucket.names("runs/a/lock/") == ["runs/a/lock/00000002.json"]


def test_a_holder_without_a_sign_of_life_is_taken_over_aloud(bucket, quick):
    bucket["runs/a/lock/00000004.json"] = json.dumps(HOLDER).encode()
    said.clear()
    with Lease(URL, say=said.append):
        assert bucket.names("runs/a/lock/") == ["runs/a/lock/00000005.json"]
    assert "waiting 1 s" in said[0] and "pid 7 on host gone" in said[1] and "taken over" in said[1]


def test_of_several_that_take_over_at_once_one_gets_it(bucket, quick):
    bucket["runs/a/lock/00000004.json"] = json.dumps(HOLDER).encode()
    together, held, refused = threading.Barrier(4), [], []

    def take():
        one = Lease(URL, say=lambda _text: None)
        together.wait()
        try:
            held.append(one.__enter__())
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1 and len(refused) == 3 and all("in use by" in text for text in refused)
    held[0].__exit__()


def test_who_was_taken_over_does_not_commit_and_ends(bucket, quick):
    code = f"""
import time
from jaxft import lease
lease.BEAT, lease.LEASE = 1.0, 9.0
with lease.Lease({URL!r}, say=print) as held:
    print("held", flush=True)
    input()
    try:
        held.check()
    except Exception as error:
        print(error, flush=True)
    time.sleep(60)
"""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    child = subprocess.Popen([sys.executable, "-c", code], text=True, env=program.environment(), **pipes)
    assert child.stdout.readline() == "held\n"
    bucket["runs/a/lock/00000002.json"] = json.dumps(HOLDER).encode()
    out, err = child.communicate("\n", timeout=30)
    assert "was taken over by another process" in out and "was taken over by another process" in err
    assert child.returncode == 1


KILLS = (  # where in a run it is killed, just before the nth change of an object whose name holds the text
    ("checkpoints/4/state/", 3),
    ("checkpoints/6/manifest.json", 1),  # whole, and does not count
    ("report.json", 1),  # all is there but the word that it is
)


@pytest.mark.slow
def test_a_run_killed_at_any_upload_ends_bit_for_bit_like_an_unbroken_one_on_a_disk(tmp_path):
    pytest.importorskip("gcsfs")
    where = {f"data__{split}": f"gs://bucket/rows/{split}.tsv" for split in ("train", "validation")}
    with Bucket() as bucket:
        for split in ("train", "validation"):
            bucket[f"rows/{split}.tsv"] = (program.data() / f"{split}.tsv").read_bytes()
        for i, (text, nth) in enumerate(KILLS):
            # The third start is on a machine that has never seen the run, not even its data.
            cache = {"JAXFT_CACHE_DIR": str(tmp_path / "cache")} if i == 2 else {}
            child = program.start(program.command(URL, **where), **bucket.environment, **cache)
            left = itertools.count(nth, -1)

            def kill(method, name, text=text, left=left, child=child):
                if text in name and next(left) == 1:
                    child.kill()
                    child.wait()
                    raise ConnectionAbortedError  # it never came

            bucket.before = kill
            assert program.wait(child).code == -signal.SIGKILL, text
            bucket.before = lambda _method, _name: None
            for name in bucket.names("runs/a/lock/"):  # by hand, for those who do not want to wait
                del bucket.objects[name]
        done = program.run(URL, env=bucket.environment, **where)
        assert done.code == 0 and f"written to {URL}" in done.out, done.err
        copy(bucket, "runs/a", tmp_path / "copy")
        program.assert_same_end(tmp_path / "copy", program.unbroken())
        again = program.run(URL, env=bucket.environment, **where)
        assert again.code == 0 and "is finished" in again.out
        verbs(bucket, tmp_path)


def verbs(bucket, tmp_path):
    """What reads a run reads one in a bucket."""
    rows = "--data=gs://bucket/rows/validation.tsv"
    evaluate = program.start([f"--run={URL}", rows], program=("-m", "jaxft.evaluate"), **bucket.environment)
    done = program.wait(evaluate)
    assert done.code == 0 and "accuracy" in done.out, done.err
    out = tmp_path / "out"
    export = program.start([f"--run={URL}", f"--out={out}"], program=("-m", "jaxft.export"), **bucket.environment)
    assert program.wait(export).code == 0
    assert (out / "model.safetensors").read_bytes() == bucket["runs/a/hf/model.safetensors"]


@pytest.mark.slow
def test_processes_on_machines_without_a_common_disk_train_what_one_does(tmp_path):
    """Two on one machine, each with a cache of its own: nothing but the bucket is common to them."""
    pytest.importorskip("gcsfs")
    alone = program.unbroken()
    with Bucket() as bucket:
        for stop in (True, False):
            done = together(bucket, tmp_path, stop)
            assert [one.code for one in done] == ([143, 143] if stop else [0, 0]), [one.err for one in done]
        assert "resuming from the checkpoint" in done[0].out
        copy(bucket, "runs/a", tmp_path / "copy")
    ours, theirs = (load_file(folder / "hf" / "model.safetensors") for folder in (tmp_path / "copy", alone))
    for name in theirs:  # a bias of all keys has no gradient but rounding, of which Adam makes steps
        assert name.endswith("key.bias") or abs(ours[name] - theirs[name]).max() < 1e-6, name
    ours, theirs = (json.loads((folder / "report.json").read_text()) for folder in (tmp_path / "copy", alone))
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6) and ours["step"] == theirs["step"]


def together(bucket, tmp_path, stop):
    """What became of two processes; with `stop` they get a SIGTERM before their second checkpoint."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(2):
        among = (f"--coordinator=localhost:{port}", "--processes=2", f"--rank={rank}")
        cache = {"JAXFT_CACHE_DIR": str(tmp_path / f"cache{rank}")}
        children.append(program.start(program.command(URL, *among, mesh__data=2), **bucket.environment, **cache))

    def terminate(method, name):
        if stop and name.endswith("checkpoints/4/manifest.json"):
            children[1].send_signal(signal.SIGTERM)
            time.sleep(6)  # a step takes milliseconds; the processes agree within seconds

    bucket.before = terminate
    done = [program.wait(child) for child in children]
    bucket.before = lambda _method, _name: None
    return done
