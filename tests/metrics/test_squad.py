"""The scores of answers: by hand, and those that are published for predictions of two systems."""

import gzip
import json

import pytest

from jaxft.metrics import squad


def load(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def questions(data):
    return [qa for article in data["data"] for paragraph in article["paragraphs"] for qa in paragraph["qas"]]


@pytest.mark.parametrize(
    ("file", "exact", "f1", "missing"),
    [("predictions-bert-ensemble", 86.21, 92.20, 0), ("predictions-logistic-regression", 40.14, 50.98, 13)],
)
def test_published_predictions_have_their_published_scores(shared_data, file, exact, f1, missing):
    folder = shared_data / "squad-v1.1-dev"
    predictions, asked = load(folder / f"{file}.json.gz"), questions(load(folder / "dev-v1.1.json.gz"))
    assert sum(qa["id"] not in predictions for qa in asked) == missing
    # An answer that is not there is wrong: no answer of the set is these signs.
    said = [predictions.get(qa["id"], "@@@") for qa in asked]
    answers = [[answer["text"] for answer in qa["answers"]] for qa in asked]
    assert round(100 * squad.exact_match(said, answers), 2) == exact
    assert round(100 * squad.f1(said, answers), 2) == f1


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("The  Eiffel-Tower!", ["eiffeltower"], 1, 1),
        ("an apple a day", ["apple day"], 1, 1),
        ("theory", ["ory"], 0, 0),
        ("in Paris in May", ["Paris in in", "May"], 0, 6 / 7),
        ("cat", ["dog", "cat"], 1, 1),
        ("May in Paris", ["Paris in May"], 0, 1),
        ("", [], 1, 1),
        ("something", [], 0, 0),
        ("", ["something"], 0, 0),
        ("", ["the", "something"], 0, 0),
        ("The", ["a"], 1, 1),
    ],
)
def test_the_rules_of_squad(prediction, answers, exact, f1):
    assert squad.score(prediction, answers) == (exact, pytest.approx(f1))


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("《战国无双3》", ["战国无双3"], 1, 1),
        ("光荣和ω-Force。", ["光荣和ω-force"], 1, 1),
        ("村雨城", ["任天堂游戏谜之村雨城"], 0, 6 / 13),
        # The longest piece in common, not all that is: 大雨 or 北京.
        ("北京有大雨", ["大雨在北京"], 0, 4 / 10),
        ("1995年10月", ["10月1995年"], 0, 4 / 8),
        ("2,500 只", ["2,500只"], 0, 1),
        ("39648.0", ["2008年"], 0, 0),
        ("", [], 1, 1),
    ],
)
def test_the_rules_of_cmrc_are_of_characters_and_of_the_longest_piece(prediction, answers, exact, f1):
    assert squad.score(prediction, answers, "cmrc") == (exact, pytest.approx(f1))


def test_chinese_words_are_found_by_the_rules_of_cmrc_alone():
    both = ("在北京大学", ["北京大学"])
    assert squad.score(*both, "squad")[1] == 0 and squad.score(*both, "cmrc")[1] == pytest.approx(8 / 9)


def test_human_answers_of_cmrc_score_as_by_the_official_rules(shared_data):
    """Each question's last answer against its first. The two numbers are of the official rules with words of NLTK."""
    asked = questions(load(shared_data / "cmrc2018" / "dev.json.gz"))
    texts = [[answer["text"] for answer in qa["answers"]] for qa in asked]
    said, answers = [one[-1] for one in texts], [one[:1] for one in texts]
    assert round(100 * squad.exact_match(said, answers, "cmrc"), 2) == 77.79
    assert 100 * squad.f1(said, answers, "cmrc") == pytest.approx(93.44, abs=0.01)
