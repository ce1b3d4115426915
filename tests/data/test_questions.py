"""Files in the format of SQuAD, whole and broken."""

import gzip
import json

import pytest

from jaxft.data.files import files, read_rows, read_split
from jaxft.registry import BadRow, UserError


def question(number, **fields):
    answers = [{"text": "blue", "answer_start": 11}, {"text": "is blue", "answer_start": 8}]
    return {"id": f"q{number}", "question": f"which colour {number}?", "answers": answers, **fields}


def article(title, *contexts, questions=2):
    paragraphs = [
        {"context": context, "qas": [question(f"{context}{i}") for i in range(questions)]} for context in contexts
    ]
    return {"title": title, "paragraphs": paragraphs}


def write(tmp_path, content, name="x.json"):
    text = content if isinstance(content, str) else json.dumps({"version": "1.1", "data": content})
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(path)


@pytest.mark.parametrize("name", ["x.json", "x.json.gz"])
def test_a_question_is_a_row_as_flat_files_have_it(tmp_path, name):
    path = write(tmp_path, [article("A", "the sky is blue", "é"), article("B", "c")], name)
    split = read_split(path)
    assert len(split.rows) == 6 and split.where(3) == f"{path}: question 4"
    assert split.rows[0] == {
        "id": "qthe sky is blue0",
        "title": "A",
        "context": "the sky is blue",
        "question": "which colour the sky is blue0?",
        "answers": {"text": ["blue", "is blue"], "answer_start": [11, 8]},
    }
    assert [row["context"] for row in split.rows] == ["the sky is blue"] * 2 + ["é"] * 2 + ["c"] * 2


def test_questions_without_an_answer_say_so_and_unlabelled_ones_have_none(tmp_path):
    made = article("A", "c")
    made["paragraphs"][0]["qas"] = [question(0, answers=[], is_impossible=True), {"id": "q", "question": "w?"}]
    impossible, unlabelled = (row for _, row in read_rows(write(tmp_path, [made])))
    assert impossible["is_impossible"] is True and impossible["answers"] == {"text": [], "answer_start": []}
    assert "answers" not in unlabelled


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"answers": [{"text": "blue"}]}, "they must be a list of {text, answer_start}"),
        ({"answers": "blue"}, "they must be a list of {text, answer_start}"),
        ({"question": "\ud800"}, "half of a surrogate pair"),
    ],
)
def test_a_broken_question_is_a_bad_row_with_its_number(tmp_path, fields, reason):
    made = article("A", "c", questions=3)
    made["paragraphs"][0]["qas"][1] |= fields
    split = read_split(path := write(tmp_path, [made]))
    ((where, why),) = split.bad
    assert where == f"{path}: question 2" and reason in why and len(split.rows) == 2
    made["paragraphs"][0]["qas"][1] = "what?"
    assert isinstance(list(read_rows(write(tmp_path, [made])))[1][1], BadRow)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "is not JSON"),
        ('{"a": 1}\n{"a": 2}', r"is not JSON.*ends in \.jsonl"),
        ('[{"text": "a"}]', "has not the form SQuAD's"),
        ('{"data": [{"paragraphs": [{"context": "c"}]}]}', "has not the form SQuAD's"),
        ('{"data": []}', "has no rows"),
    ],
)
def test_another_file_is_one_message(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read_split(write(tmp_path, content))


def test_questions_about_one_context_are_held_out_together(tmp_path):
    path = write(tmp_path, [article("A", *(f"context {i}" for i in range(40)), questions=3)])
    splits = files(train=path, validation="", test="", holdout=0.3).splits
    train, held = ({row["context"] for row in splits[name].rows} for name in ("train", "validation"))
    assert not train & held and len(train | held) == 40 and 4 < len(held) < 20
    assert len(splits["validation"].rows) == 3 * len(held)
