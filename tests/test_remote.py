"""Files behind URLs: fetched once, whole, and said plainly when they cannot be."""

import functools
import sys
import threading

import fsspec
import pytest

from jaxft import remote
from jaxft.data import folders, parallel
from jaxft.data.files import files, read_split
from jaxft.hf import hub
from jaxft.registry import UserError
from tests.bucket import opened

ROWS = b'{"text": "one"}\n{"text": "two"}\n'


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty memory:// with an empty cache, as a process finds it that has just begun."""
    monkeypatch.setenv("JAXFT_CACHE_DIR", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    remote._file.cache_clear()
    yield memory
    remote._file.cache_clear()


@pytest.fixture
def fetched(store, monkeypatch):
    """The paths that were fetched, in order."""
    paths = []
    get = type(store).get_file
    monkeypatch.setattr(
        type(store), "get_file", lambda self, path, *a, **k: (paths.append(path), get(self, path, *a, **k))
    )
    return paths


def test_a_file_of_rows_is_fetched_once_and_again_when_it_has_changed(store, fetched):
    store.pipe("/b/train.jsonl", ROWS)
    for _ in range(2):
        split = read_split("memory://b/train.jsonl")
        assert [row["text"] for row in split.rows] == ["one", "two"] and split.where(1) == "memory://b/train.jsonl:2"
        remote._file.cache_clear()  # another process
    assert fetched == ["/b/train.jsonl"]
    store.pipe("/b/train.jsonl", ROWS.replace(b"two", b"six"))  # of the same size
    assert read_split("memory://b/train.jsonl").rows[1]["text"] == "six"


def test_a_file_is_the_same_wherever_it_lies(store, tmp_path):
    store.pipe("/b/train.jsonl", ROWS)
    (tmp_path / "train.jsonl").write_bytes(ROWS)
    assert read_split("memory://b/train.jsonl").fingerprint == read_split(str(tmp_path / "train.jsonl")).fingerprint


def test_a_file_that_changes_meanwhile_stays_what_it_was_for_this_process(store):
    store.pipe("/b/train.jsonl", ROWS)
    first = remote.file("memory://b/train.jsonl", "data.train")
    store.pipe("/b/train.jsonl", ROWS + ROWS)
    assert remote.file("memory://b/train.jsonl", "data.train") == first


def test_a_fetch_that_ends_too_early_leaves_nothing_that_counts(store, monkeypatch, tmp_path):
    store.pipe("/b/train.jsonl", ROWS)
    get = type(store).get_file

    def half(self, path, local, **more):
        get(self, path, local, **more)
        with open(local, "r+b") as file:
            file.truncate(5)

    with monkeypatch.context() as patched:
        patched.setattr(type(store), "get_file", half)
        with pytest.raises(
            UserError, match=r"^data.train='memory://b/train.jsonl' cannot be used: .* 5 bytes instead of 32"
        ):
            remote.file("memory://b/train.jsonl", "data.train")
    assert list((tmp_path / "cache" / "remote").iterdir()) == []
    assert len(read_split("memory://b/train.jsonl").rows) == 2


def test_two_processes_that_fetch_at_a_time_find_one_whole_copy(store, monkeypatch):
    store.pipe("/b/train.jsonl", ROWS)
    together, get = threading.Barrier(2), type(store).get_file
    monkeypatch.setattr(type(store), "get_file", lambda *a, **k: (get(*a, **k), together.wait(10)))
    found = []
    fetch = functools.partial(remote._file.__wrapped__, "memory://b/train.jsonl")
    threads = [threading.Thread(target=lambda: found.append(fetch())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and found[0] == found[1] and found[0].read_bytes() == ROWS


def message(action, *arguments, **more):
    with pytest.raises(UserError) as caught:
        action(*arguments, **more)
    assert caught.value.code == 2 and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_file_is_refused_before_anything_is_fetched(store, fetched):
    store.pipe({"/b/train.jsonl": ROWS, "/b/dev.jsonl": ROWS})
    given = dict(train="memory://b/train.jsonl", validation="memory://b/deev.jsonl", test="", holdout=0.0)
    said = message(files, **given)
    assert said == "data.validation='memory://b/deev.jsonl' does not exist; did you mean \"dev.jsonl\"?"
    assert fetched == []
    store.pipe("/b/parts.jsonl/0", ROWS)
    assert "is a folder" in message(files, **given | {"train": "memory://b/parts.jsonl"})


def test_a_missing_package_is_named_with_the_command_that_installs_it(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "gs", raising=False)
    said = message(remote.check, "gs://b/train.jsonl", "data.train")
    assert said == "data.train='gs://b/train.jsonl': a package for gs:// is missing; pip install 'jaxft[gcs]'"


def test_an_unknown_kind_of_url_is_refused(store):
    said = message(remote.check, "memry://b/train.jsonl", "data.train")
    assert said.endswith('memry:// is no file system that is known; did you mean "memory"?')


def test_a_file_that_may_not_be_read_says_who_can_help(store, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "no access")

    monkeypatch.setattr(type(store), "info", refuse)
    said = message(remote.check, "memory://b/train.jsonl", "data.train")
    assert "may not be read by this account" in said and "ask its owner" in said


def test_parallel_texts_are_two_urls_in_one(store):
    store.pipe({"/b/train.de": b"eins\nzwei\n", "/b/train.en": b"one\ntwo\n"})
    store.pipe({"/b/t.de.txt": b"eins\nzwei\n", "/b/t.en.txt": b"one\ntwo\n"})
    rows = parallel.read_split("memory://b/t.{de,en}.txt").rows
    assert len(rows) == 2 and "zwei" in rows[1].values() and "two" in rows[1].values()


def test_a_folder_of_images_is_fetched_whole(store):
    store.pipe({f"/b/p/train/{kind}/{i}.png": kind.encode() + b"%d" % i for kind in ("cat", "dog") for i in range(2)})
    split = folders.images(folder="memory://b/p", train="train", validation="", test="", holdout=0.0).splits["train"]
    assert [row["label"] for row in split.rows] == ["cat", "cat", "dog", "dog"]


def test_of_a_model_folder_only_what_is_read_is_fetched(store, fetched):
    names = ("config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json")
    others = ("pytorch_model.bin", "onnx/config.json", "modeling_evil.py")
    store.pipe({f"/b/m/{name}": name.encode() for name in names + others})
    folder = hub.resolve("memory://b/m")
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == set(names)
    assert hub.resolve("memory://b/m/") == folder and len(fetched) == len(names)
    assert message(hub.resolve, "memory://b/n").startswith("model.hf='memory://b/n' does not exist")


def test_a_name_that_leads_out_of_the_folder_is_refused(store, monkeypatch):
    store.pipe("/b/m/config.json", b"{}")
    found = {"/b/m/../../config.json": store.info("/b/m/config.json")}
    monkeypatch.setattr(type(store), "find", lambda *_, **__: found)
    assert "leads out of the folder" in message(hub.resolve, "memory://b/m")


@pytest.fixture
def bucket(store, monkeypatch):
    with opened(monkeypatch) as bucket:
        yield bucket


def test_a_bucket_of_google_is_read_like_any_other_store(bucket):
    bucket["rows/train.jsonl"] = ROWS
    assert read_split("gs://bucket/rows/train.jsonl").rows[1]["text"] == "two"
    for name in ("config.json", "model.safetensors", "onnx/config.json"):
        bucket[f"m/{name}"] = b"{}"
    assert sorted(path.name for path in hub.resolve("gs://bucket/m").iterdir()) == ["config.json", "model.safetensors"]


def test_what_a_bucket_refuses_is_said_with_a_way_out(bucket):
    bucket["rows/train.jsonl"] = ROWS
    said = message(remote.check, "gs://bucket/rows/tain.jsonl", "data.train")
    assert said == "data.train='gs://bucket/rows/tain.jsonl' does not exist; did you mean \"train.jsonl\"?"
    assert "gcloud auth application-default login" in message(remote.check, "gs://bucket/secret.jsonl", "data.train")
