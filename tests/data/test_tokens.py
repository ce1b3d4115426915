import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from jaxft.data import tokens
from jaxft.data.source import Split
from jaxft.data.token_writer import LeftOut
from jaxft.registry import BadRow, UserError


class Example(NamedTuple):
    text: str
    pair: str | None
    label: object


def example(row):
    if row.get("reject"):
        raise BadRow("rejected")
    return Example(row["text"], row.get("pair"), row.get("label"))


def encode(texts, calls=None):
    """One id per word ("w7" -> 7), the pair with type 1; at most 8 tokens."""
    if calls is not None:
        calls.append(len(texts))
    result = []
    for text, pair in texts:
        ids = [int(word[1:]) for word in f"{text} {pair or ''}".split()]
        types = [0] * len(text.split()) + [1] * len((pair or "").split())
        result.append((ids[:8], types[:8], len(ids) > 8))
    return result


def split_of(rows, bad=(), name="a"):
    return Split(rows, name, lambda i: f"x.jsonl:{i + 1}", bad)


def build(rows, folder, *, on_bad="stop", bad=(), encode=encode, **key):
    return tokens.build(split_of(rows, bad), example, encode, key=key, folder=str(folder), on_bad=on_bad)


def numbered(count):
    rng = np.random.default_rng(0)
    return [
        {"text": " ".join(f"w{i}" for i in rng.integers(0, 900, rng.integers(1, 8))), "label": n % 3}
        for n in range(count)
    ]


def test_the_cache_holds_what_the_tokenizer_said(tmp_path):
    rows = numbered(10_000)  # several chunks
    cache = build(rows, tmp_path)
    expected = encode([(row["text"], None) for row in rows])
    assert len(cache.lengths) == 10_000
    for x in (0, 1, 4095, 4096, 9_999):
        span = slice(cache.offsets[x], cache.offsets[x + 1])
        assert cache.ids[span].tolist() == expected[x][0] and cache.types[span].tolist() == expected[x][1]
    assert np.array_equal(cache.ids, np.concatenate([ids for ids, _, _ in expected]))
    assert cache.ids.dtype == np.uint16 and cache.max_id == cache.ids.max()
    assert cache.labels.dtype == np.int32 and cache.labels.tolist() == [row["label"] for row in rows]
    assert cache.row.tolist() == list(range(10_000))
    assert cache.counts == {
        "rows": 10_000,
        "kept": 10_000,
        "bad": 0,
        "dropped": 0,
        "truncated": 0,
        "empty": 0,
        "lost": 0,
    }


def test_pairs_truncation_and_wide_ids(tmp_path):
    cache = build([{"text": "w1 w70000", "pair": "w3", "label": 0}, {"text": "w1 " * 9, "label": 1}], tmp_path)
    assert cache.ids.dtype == np.uint32 and cache.ids[:3].tolist() == [1, 70000, 3]
    assert cache.types[:3].tolist() == [0, 0, 1]
    assert cache.counts["truncated"] == 1 and cache.lengths.tolist() == [3, 8]


@pytest.mark.parametrize(
    ("labels", "dtype", "shape"),
    [
        ([1, -100], np.int32, (2,)),
        ([1, 0.5], np.float32, (2,)),
        ([[1.0, 0.0, 1.0], [0, 1, 0]], np.float32, (2, 3)),
        ([None, None], np.int32, (2,)),
    ],
)
def test_labels_keep_their_kind(tmp_path, labels, dtype, shape):
    cache = build([{"text": "w1", "label": label} for label in labels], tmp_path)
    assert cache.labels.dtype == dtype and cache.labels.shape == shape
    assert np.array_equal(cache.labels, np.array([-100, -100] if labels[0] is None else labels, dtype))


@pytest.mark.parametrize("labels", [[1, None], [1, [1.0]], [[1.0], [1.0, 2.0]]])
def test_labels_of_two_kinds_are_an_error(tmp_path, labels):
    with pytest.raises(UserError, match="same"):
        build([{"text": "w1", "label": label} for label in labels], tmp_path)


@pytest.mark.parametrize("label", [float("nan"), float("inf"), "one", 2**40, [1.0, float("nan")]])
def test_a_label_that_is_no_number_is_a_bad_row(tmp_path, label):
    with pytest.raises(UserError, match=r"x\.jsonl:2: label"):
        build([{"text": "w1", "label": 1}, {"text": "w1", "label": label}], tmp_path)


def test_equal_content_in_another_place_reports_bad_rows_where_they_are(tmp_path):
    for path in ("old/x.jsonl", "new/x.jsonl"):
        split = Split([{"text": "w1", "reject": True}], "a", lambda i, path=path: f"{path}:{i + 1}")
        with pytest.raises(UserError, match=f"  {path}:1: rejected"):
            tokens.build(split, example, encode, key={}, folder=str(tmp_path), on_bad="stop")


def test_bad_rows_stop_the_run_or_are_skipped_and_reported(tmp_path):
    rows = [
        {"text": "w1", "label": 0},
        {"text": "w1", "reject": True},
        {"text": "", "label": 1},
        {"text": "w2", "label": 1},
    ]
    unreadable = [("x.jsonl:9", "not JSON")]
    with pytest.raises(UserError, match="3 of 5 rows") as caught:
        build(rows, tmp_path, bad=unreadable)
    for quoted in ("x.jsonl:9: not JSON", "x.jsonl:2: rejected", "x.jsonl:3: has no tokens"):
        assert quoted in str(caught.value)
    cache = build(rows, tmp_path, bad=unreadable, on_bad="skip")
    assert cache.counts == {"rows": 5, "kept": 2, "bad": 3, "dropped": 0, "truncated": 0, "empty": 0, "lost": 0}
    assert cache.row.tolist() == [0, 3] and cache.labels.tolist() == [0, 1]
    assert len(json.loads((Path(cache.folder) / "bad_rows.json").read_text())) == 3
    with pytest.raises(UserError, match="3 of 5"):  # from the cache as well
        build(rows, tmp_path, bad=unreadable)


def test_no_usable_row_is_an_error(tmp_path):
    with pytest.raises(UserError, match="none of the 1 rows"):
        build([{"text": "w1", "reject": True}], tmp_path, on_bad="skip")


def test_a_cache_is_built_once_for_each_key(tmp_path):
    calls = []

    def counted(texts):
        return encode(texts, calls)

    first = build(numbered(10), tmp_path, encode=counted, task="a")
    again = build(numbered(10), tmp_path, encode=counted, task="a")
    assert calls == [10] and again.fingerprint == first.fingerprint and np.array_equal(again.ids, first.ids)
    other = build(numbered(10), tmp_path, encode=counted, task="b")
    assert calls == [10, 10] and other.fingerprint != first.fingerprint
    assert set(tmp_path.iterdir()) == {first.folder, other.folder}


def test_another_release_of_the_tokenizers_reads_the_texts_anew_and_goes_on_with_a_run(tmp_path, monkeypatch):
    first = build(numbered(10), tmp_path)
    monkeypatch.setattr(tokens, "version", {"tokenizers": "99.0"}.__getitem__)
    calls = []
    other = build(numbered(10), tmp_path, encode=lambda texts: encode(texts, calls))
    assert calls == [10] and other.folder != first.folder and other.fingerprint == first.fingerprint


@pytest.mark.parametrize("name", ["ids.bin", "labels.npy", "report.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_damaged_cache_is_said_aloud_and_rebuilt(tmp_path, capsys, name, harm):
    before = build(numbered(50), tmp_path)
    expected, file = np.array(before.ids), Path(before.folder) / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes(data if harm == "flip" else data[: len(data) // 2])
    after = build(numbered(50), tmp_path)
    assert "damaged" in capsys.readouterr().err
    assert np.array_equal(after.ids, expected)
    build(numbered(50), tmp_path)
    assert capsys.readouterr().err == ""


def test_of_two_builders_at_once_one_wins_and_both_read_it(tmp_path):
    def encode_while_another_finishes(texts):
        if not any(len(entry.name) == 32 for entry in tmp_path.iterdir()):
            build(numbered(20), tmp_path)
        return encode(texts)

    cache = build(numbered(20), tmp_path, encode=encode_while_another_finishes)
    assert cache.counts["kept"] == 20
    assert list(tmp_path.iterdir()) == [cache.folder]


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def broken(texts):
        raise RuntimeError("tokenizer")

    with pytest.raises(RuntimeError, match="tokenizer"):
        build(numbered(20), tmp_path, encode=broken)
    assert not list(tmp_path.iterdir())


def test_ids_without_an_embedding_are_named(tmp_path):
    cache = build([{"text": "w1", "label": 0}, {"text": "w2 w30 w4", "label": 0}], tmp_path)
    cache.check_ids(31, 1, split_of([]).where)
    with pytest.raises(
        UserError, match=r"x.jsonl:2 has a token of id 30, but the embedding of ids has 30 rows: the tokenizer does"
    ):
        cache.check_ids(30, 1, split_of([]).where)


@pytest.mark.parametrize("kept", [True, False])
def test_token_types_without_an_embedding_are_named(tmp_path, kept):
    rows = [{"text": "w1", "label": 0}, {"text": "w2 w30", "label": 0, "pair": "w5"}]
    cache = build(rows, tmp_path) if kept else tokens.in_memory([example(row) for row in rows], encode)
    cache.check_ids(31, 2, split_of([]).where)
    with pytest.raises(
        UserError, match=r"x.jsonl:2 has a token of type 1, but the embedding of types has 1 rows: .* single ones"
    ):
        cache.check_ids(31, 1, split_of([]).where)


def test_ids_and_types_that_no_tokenizer_has_are_an_error(tmp_path):
    with pytest.raises(UserError, match=r"x\.jsonl:2 has a token of id -4 and type 0"):
        build([{"text": "w1", "label": 0}, {"text": "w2 w-4", "label": 0}], tmp_path)
    with pytest.raises(UserError, match=r"x\.jsonl:1 has a token of id 7 and type 256"):
        build([{"text": "w7", "label": 0}], tmp_path, encode=lambda texts: [([7], [256], False) for _ in texts])


def test_a_cache_in_memory_is_the_same(tmp_path):
    rows = numbered(30)
    kept, held = build(rows, tmp_path), tokens.in_memory([example(row) for row in rows], encode)
    for name in ("ids", "types", "offsets", "labels", "row"):
        assert np.array_equal(getattr(kept, name), getattr(held, name))
    assert kept.counts == held.counts


def test_what_the_encoder_leaves_out_is_counted_with_its_place_and_is_bad_only_where_it_says_so(tmp_path):
    left = {"w1": LeftOut((), (), False, "is too long", bad=False), "w2": LeftOut((), (), False, "is odd", bad=True)}
    rows = [{"text": f"w{i}", "label": 0} for i in range(4)]

    def some(texts):
        return [left.get(text) or one for (text, _), one in zip(texts, encode(texts), strict=True)]

    cache = build(rows, tmp_path, encode=some, on_bad="skip")
    assert cache.dropped == (("x.jsonl:2", "is too long"),) and cache.bad == (("x.jsonl:3", "is odd"),)
    assert (cache.counts["kept"], cache.counts["dropped"], cache.counts["bad"]) == (2, 1, 1)
    assert cache.row.tolist() == [0, 3] and cache.ids.tolist() == [0, 3]
    with pytest.raises(UserError, match=r"x\.jsonl:3: is odd"):
        build(rows, tmp_path, encode=some)
    with pytest.raises(UserError, match=r"none of the 1 rows can be used:\n  x\.jsonl:1: is too long"):
        build(rows[1:2], tmp_path, encode=some, other="key")


def test_a_row_may_become_several_examples_that_come_and_go_together(tmp_path):
    def several(row):
        return [Example(text, None, label) for label, text in enumerate(row["texts"])]

    rows = [{"texts": ["w1", "w2 w3"]}, {"texts": ["w4", "", "w5"]}, {"texts": ["w6", "w7", "w8"]}]
    made = tokens.build(split_of(rows), several, encode, key={}, folder=str(tmp_path), on_bad="skip")
    assert made.ids.tolist() == [1, 2, 3, 6, 7, 8] and made.labels.tolist() == [0, 1, 0, 1, 2]
    assert made.row.tolist() == [0, 0, 2, 2, 2] and made.begins.tolist() == [0, 2, 5]
    assert made.bad == (("x.jsonl:2", "has no tokens"),)
    assert (made.counts["rows"], made.counts["kept"], made.counts["bad"]) == (3, 2, 1)
    held = tokens.in_memory([several(rows[0]), several(rows[2])], encode)
    assert held.ids.tolist() == made.ids.tolist() and held.row.tolist() == [0, 0, 1, 1, 1]
