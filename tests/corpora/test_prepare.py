"""`python -m jaxft.prepare` as users run it: what comes out, whoever works on it and however often it is killed."""

import json
import os
import re
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jaxft.corpora.shards import splits_of
from jaxft.data.prepared import prepared
from jaxft.hf import tokenizer
from jaxft.registry import UserError
from tests.corpora import made


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    return made.write(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def corpus(names, tmp_path_factory):
    """(folder, what was said) of a corpus that one process prepared."""
    workdir = tmp_path_factory.mktemp("corpus") / "one"
    done = made.run(names, workdir)
    assert done.returncode == 0, done.stdout + done.stderr
    return workdir, done.stdout


def documents(workdir):
    """[(split, place, ids, bytes)]."""
    out = []
    for name, split in prepared(folder=str(workdir)).splits.items():
        for i, row in enumerate(split.rows):
            out.append((name, split.where(i).rpartition("/")[2], row["ids"].tolist(), row["bytes"]))
    return out


def test_every_record_is_either_in_the_corpus_or_in_the_list_of_what_went(corpus):
    workdir, _ = corpus
    gone = [json.loads(line) for line in (workdir / "removed.jsonl").read_text().splitlines()]
    report = json.loads((workdir / "report.json").read_text())
    stay = documents(workdir)
    places = Counter(place for _, place, _, _ in stay) + Counter(one["where"].rpartition("/")[2] for one in gone)
    assert max(places.values()) == 1 and sum(places.values()) == report["tally"]["records"]
    rules = Counter(one["rule"] for one in gone)
    counted = Counter()
    for name, counts in report["tally"]["rules"].items():
        counted[name] = sum(one["count"] for one in counts["removed"].values())
    for kind, found in report["duplicates"].items():
        counted[f"{kind} duplicate"] = found["count"]
    assert rules == +counted
    assert len(stay) == sum(split["documents"] for split in report["splits"].values())


def test_each_kind_of_junk_went_by_its_rule_with_file_and_line(corpus):
    workdir, said = corpus
    gone = [json.loads(line) for line in (workdir / "removed.jsonl").read_text().splitlines()]
    found = {one["where"].rpartition("/")[2]: (one["rule"], one["reason"]) for one in gone}
    # Three lines of junk stand before the eleventh document of a.jsonl.
    expected = {
        "a.jsonl:11": ("reading", "holds a NUL byte"),
        "a.jsonl:12": ("reading", "'text' is a int, not text"),
        "a.jsonl:13": ("reading", "not JSON"),
        "a.jsonl:24": ("exact duplicate", "a.jsonl:4"),
        "a.jsonl:25": ("near duplicate", "a.jsonl:5"),
        "a.jsonl:26": ("quality", "lines that break off"),
        "a.jsonl:27": ("length", "too short: 7 characters"),
        "a.jsonl:28": ("language", "language de"),
        "a.jsonl:29": ("repetition", "repeated lines"),
        "a.jsonl:30": ("control", "control characters"),
        "a.jsonl:32": ("language", ""),
    }
    for place, (rule, reason) in expected.items():
        assert found.pop(place)[0] == rule, place
        assert reason in next(one["reason"] for one in gone if one["where"].endswith(place))
    (broken,) = [place for place, (_, reason) in found.items() if "cannot be unpacked" in reason]
    assert broken.startswith("c.txt.gz:") and found[broken][0] == "reading"
    assert "not readable" in said and "exact duplicates" in said and "bytes a token" in said
    page = (workdir / "report.html").read_text()
    assert "holds a NUL byte" in page and "a.jsonl:25" in page and "\x01" not in page


def test_rows_are_the_tokens_of_the_cleaned_texts(corpus, names):
    workdir, _ = corpus
    encoder = tokenizer.load(workdir / "tokenizer")
    by_place = {place: (ids, size) for _, place, ids, size in documents(workdir)}
    lines = Path(names[1]).read_text(encoding="utf-8").splitlines()
    found = 0
    for number, text in enumerate(lines, 1):
        if f"b.txt:{number}" in by_place:
            ids, size = by_place[f"b.txt:{number}"]
            assert encoder.encode_documents([(text, None)])[0].ids.tolist() == ids and size == len(text.encode())
            found += 1
    assert found > 40
    mended = encoder.text(by_place["a.jsonl:31"][0])
    assert mended.startswith("Schön:") and "jane@example.com" in mended, "personal data stay unless asked for"


def test_splits_are_shares_by_the_text_alone(corpus):
    stay = documents(corpus[0])
    counts = Counter(split for split, *_ in stay)
    assert set(counts) == {"train", "validation", "test"} and counts["train"] > 0.7 * len(stay)
    digests = np.random.default_rng(0).integers(0, 2**64, (20_000, 2), np.uint64)
    drawn = splits_of(digests, {"validation": 0.1, "test": 0.0})
    assert abs((drawn == "validation").mean() - 0.1) < 0.01 and set(drawn) == {"train", "validation"}
    assert (splits_of(digests[:100], {"validation": 0.1, "test": 0.0}) == drawn[:100]).all()


@pytest.mark.parametrize("workers", [2, 3])
def test_the_same_bytes_from_any_number_of_workers(corpus, names, tmp_path, workers):
    done = made.run(names, tmp_path / "many", work__workers=workers)
    assert done.returncode == 0, done.stderr
    assert made.content(tmp_path / "many") == made.content(corpus[0])
    assert len([name for name in made.content(corpus[0]) if name.startswith("train-")]) > 1


def test_the_same_bytes_after_kills_at_every_stage(corpus, names, tmp_path):
    workdir = tmp_path / "killed"
    stages = [
        ("clean/00002.npz", 1, 2),  # the third chunk is written, and has no name yet
        ("clean/00004.npz", 2, 2),  # while two workers clean
        ("signatures.bin", 1, 1),
        (str(workdir / "tokenizer"), 1, 1),
        ("train-00001.array_record", 1, 2),
        ("shards/00001.json", 1, 2),
        ("removed.jsonl", 2, 2),
        ("corpus.json", 2, 2),
    ]
    written = set()
    for pattern, workers, nth in stages:
        done = made.run(names, workdir, pattern=pattern, nth=nth, work__workers=workers)
        assert done.returncode == -signal.SIGKILL, (pattern, done.stdout, done.stderr)
        written.add((workdir / "work" / "clean" / "00000.npz").stat().st_mtime_ns)
    assert len(written) == 1, "what is finished is not done again"
    done = made.run(names, workdir)
    assert done.returncode == 0, done.stderr
    assert made.content(workdir) == made.content(corpus[0])
    again = made.run(names, workdir)
    assert again.returncode == 0 and "the corpus is finished" in again.stdout


def test_a_corpus_of_something_else_is_never_mixed_in(corpus, names, tmp_path):
    workdir, _ = corpus
    before = made.content(workdir)
    for changed, told in (
        ({"rules__length__min_characters": 100}, "rules.length.min_characters: 200 -> 100"),
        ({"order": "('unicode',)"}, "order"),
        ({"work__chunk": 9000}, "work.chunk: 8000 -> 9000"),
        ({"source__paths": repr(tuple(names[:2]))}, "c.txt.gz: is gone"),
    ):
        done = made.run(names, workdir, **changed)
        assert done.returncode == 2 and told in done.stderr and "Use another --workdir" in done.stderr
    path = Path(names[1])
    text, stat = path.read_text(), path.stat()
    try:
        path.write_text(text.replace("the", "teh", 1))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same size and time
        done = made.run(names, workdir)
    finally:
        path.write_text(text)
    assert done.returncode == 2 and "b.txt: its content has changed" in done.stderr
    assert made.content(workdir) == before


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"order": "('unicode', 'lenght')"}, "order names 'lenght'"),
        ({"rules__unicode__form": "NFX"}, "NFX"),
        ({"rules__length__name": "lenght"}, 'did you mean "length"'),
        ({"split__validation": 1.0}, "sum is below 1"),
        ({"duplicates__bands": 0}, "duplicates.bands=0"),
        ({"tokenizer__name": "bbpe"}, "tokenizer.name='bbpe'"),
        ({"text__on_bad": "stop"}, "a.jsonl:11: holds a NUL byte"),
        ({"rules__length__min_characters": 10**6}, "no document is left"),
        ({"work__workers": -1}, "work.workers=-1"),
    ],
)
def test_mistakes_are_one_message(names, tmp_path, changed, told):
    done = made.run(names, tmp_path / "none", **changed)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_folder_that_is_no_finished_corpus_is_refused(corpus, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        prepared(folder=str(tmp_path / "none"))
    (tmp_path / "work").mkdir()
    with pytest.raises(UserError, match="not finished"):
        prepared(folder=str(tmp_path))
    copy = copied(corpus[0], tmp_path / "copy")
    shard = next(copy.glob("train-00000*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train-00000.array_record has [0-9,]+ bytes instead of"):
        prepared(folder=str(copy))


def copied(corpus, copy):
    copy.mkdir()
    for path in corpus.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    return copy


def test_a_shard_of_the_right_size_and_another_content_is_named_when_it_is_read(corpus, tmp_path):
    copy = copied(corpus[0], tmp_path / "copy")
    shard = next(copy.glob("train-00001*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    rows = prepared(folder=str(copy)).splits["train"].rows
    assert rows[0]["bytes"] > 0, "the first shard is whole"
    with pytest.raises(UserError, match=r"train-00001.array_record has changed: sha256 .*; copy or prepare the corpus"):
        rows[:]


@pytest.mark.parametrize("name", ["../outside.array_record", "/outside.array_record", "inner/one.array_record"])
def test_a_shard_outside_the_folder_is_refused(corpus, tmp_path, name):
    copy = copied(corpus[0], tmp_path / "copy")
    index = json.loads((copy / "corpus.json").read_text())
    index["splits"]["train"][0]["file"] = name
    (copy / "corpus.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=rf"corpus.json .*{re.escape(name)}' is no file of the folder"):
        prepared(folder=str(copy))
