"""Rows of conversations in every dialect, what makes one a bad row, and what becomes of those that are too long."""

import json

import pytest

from configs.chat_sft import get_config
from jaxft.config import parse
from jaxft.data.source import Split
from jaxft.inputs import chat
from jaxft.registry import BadRow, UserError, call
from jaxft.tasks import TASKS
from tests.verbs_run import write_rows

ASKED, SAID = {"role": "user", "content": "How far?"}, {"role": "assistant", "content": "Two miles."}
BRIEF = {"role": "system", "content": "Be brief."}


def task(**options):
    return call(TASKS, {**get_config().to_dict()["task"], **options}, "task")


DIALECTS = [
    ({}, {"messages": [BRIEF, ASKED, SAID]}),
    ({}, {"messages": {"role": ["system", "user", "assistant"], "content": ["Be brief.", "How far?", "Two miles."]}}),
    ({"system": "s"}, {"messages": [ASKED, SAID], "s": "Be brief."}),
    (
        {"dialect": "sharegpt", "text": ("c",), "system": "s"},
        {"c": [{"from": "human", "value": "How far?"}, {"from": "gpt", "value": "Two miles."}], "s": "Be brief."},
    ),
    ({"dialect": "prompt", "text": ("q", "a"), "system": "s"}, {"q": "How far?", "a": "Two miles.", "s": "Be brief."}),
    (
        {"dialect": "alpaca", "text": ("i", "x", "o"), "system": "s"},
        {"i": "How far?", "x": "", "o": "Two miles.", "s": "Be brief."},
    ),
]


@pytest.mark.parametrize("options, row", DIALECTS)
def test_every_dialect_says_the_same_conversation(options, row):
    made = task(**options).fit({"train": Split([row], "x", lambda i: "x:1")}, {})
    assert made.messages(row) == [BRIEF, ASKED, SAID] and made.tools_of(row) is None
    assert made.example(row).text == ["Be brief.", "How far?", "Two miles."]


def test_an_input_of_an_instruction_follows_it():
    row = {"instruction": "Add them.", "input": "1 2", "output": "3"}
    made = task(dialect="alpaca", text=("instruction", "input", "output"))
    assert made.messages(row)[0] == {"role": "user", "content": "Add them.\n1 2"}


def test_tools_and_calls_pass_through():
    """Also those of a column that holds JSON, and of rows that give every key to every message."""
    call = {"type": "function", "function": {"name": "far", "arguments": {"to": "x"}}}
    tool = {"type": "function", "function": {"name": "far"}}
    messages = [ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": ""}]
    row = {"messages": [{"tool_calls": None, **message} for message in messages], "tools": json.dumps([tool])}
    made = task(tools="tools")
    assert made.tools_of(row) == made.tools_of({**row, "tools": [{**tool, "x": None}]}) == [tool]
    assert made.messages(row) == [ASKED, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": ""}]
    shared = [
        {"from": "human", "value": "How far?"},
        {"from": "function_call", "value": '{"name": "far", "arguments": {"to": "x"}}'},
        {"from": "observation", "value": ""},
    ]
    assert task(dialect="sharegpt", text=("c",)).messages({"c": shared}) == [
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": ""},
    ]


MESSAGES, SHARED, PROMPT = {}, {"dialect": "sharegpt", "text": ("c",)}, {"dialect": "prompt", "text": ("q", "a")}


@pytest.mark.parametrize(
    "options, row, reason",
    [
        (MESSAGES, [ASKED, {"role": "asistant", "content": "x"}], "turn 2 has the role 'asistant'.*mean \"assistant\""),
        (MESSAGES, [ASKED, {"role": "assistant", "content": " "}], r"turn 2 \(assistant\) is empty"),
        (MESSAGES, [ASKED, {"role": "assistant"}], r"turn 2 \(assistant\) is empty"),
        (MESSAGES, [{"role": "user", "content": ["x"]}, SAID], "content that is a list, not text"),
        (MESSAGES, [ASKED, "Two miles."], "turn 2 is no {role, content}: 'Two miles.'"),
        (MESSAGES, [ASKED], "says nothing, so there is nothing to learn"),
        (MESSAGES, [], "must be a list of {role, content}, with one at least"),
        (MESSAGES, "How far?", "must be a list of"),
        (MESSAGES, {"role": ["user", "assistant"], "content": ["x"]}, "lists of several lengths"),
        (SHARED, {"c": [{"from": "bot", "value": "x"}]}, "turn 1 is from 'bot'; known: .*function_call"),
        (SHARED, {"c": [{"from": "function_call", "value": "x"}]}, "turn 1 is not JSON"),
        (SHARED, {"c": [{"from": "function_call", "value": "{}"}]}, "must say {name, arguments}"),
        (PROMPT, {"q": "x", "a": ""}, "'a' is empty"),
        (PROMPT, {"q": 7, "a": "x"}, "'q' is a int"),
        ({"tools": "t"}, {"messages": [ASKED, SAID], "t": "x"}, "'t' is not JSON"),
        ({"tools": "t"}, {"messages": [ASKED, SAID], "t": ["x"]}, "'t' must be a list of JSON schemas"),
    ],
)
def test_a_row_that_holds_no_conversation_is_a_bad_one(options, row, reason):
    made = task(**options)
    with pytest.raises(BadRow, match=reason):
        row = row if isinstance(row, dict) and "role" not in row else {"messages": row}
        made.tools_of(row) or made.messages(row)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dialect": "chatml"}, r"task\.dialect='chatml' must be one of: messages"),
        ({"text": ("q", "a")}, "dialect 'messages' has 1 columns"),
        ({"turns": "first"}, r"task\.turns='first' must be one of: all, last"),
        ({"too_long": "skip"}, r"task\.too_long='skip' must be one of: cut, drop, stop"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        task(**options)


ROWS = [
    {"messages": [ASKED, SAID]},
    {"messages": [{"role": "user", "content": "x " * 60}, SAID]},  # the answer begins behind the end
    {"messages": [ASKED, {"role": "assistant", "content": "x " * 60}]},
    {"messages": [ASKED, SAID, ASKED, SAID]},
]


def config(folder, rows, on_bad="stop", **options):
    raw = get_config("files").to_dict()
    source = write_rows(folder / "x.jsonl", rows)
    raw["data"].update(train=str(source), validation=str(write_rows(folder / "y.jsonl", ROWS[:1])), holdout=0.0)
    raw["input"].update(length=40, pack=4, on_bad=on_bad)
    raw["tokenizer"]["vocab"] = 300
    raw["task"].update(options)
    return parse(raw)


def prepared(folder, rows, say=lambda text: None, **options):
    cfg = type("Cfg", (), {"positions": 40})
    return chat.prepare(config(folder, rows, **options), cfg, folder / "tokenizer", None, say)


def test_conversations_that_are_too_long_are_cut_dropped_or_bad_and_always_told(tmp_path):
    said = []
    cut = prepared(tmp_path, ROWS, said.append, too_long="cut")
    assert cut.caches["train"].row.tolist() == [0, 2, 3] and cut.caches["train"].lengths.max() == 40
    told = "\n".join(said)
    assert "train: 3 of 4 rows, 1 cut to 40 tokens" in told and "tokens of the assistant lost" in told
    assert "1 of 4 rows left out" in told
    assert "x.jsonl:2: has 69 tokens, and the assistant says nothing in the first 40" in told

    said.clear()
    dropped = prepared(tmp_path, ROWS, said.append, too_long="drop")
    assert dropped.caches["train"].row.tolist() == [0, 3] and "2 of 4 rows left out" in "\n".join(said)
    assert "x.jsonl:2: has 69 tokens, more than input.length=40" in "\n".join(said)

    with pytest.raises(UserError, match=r"2 of 4 rows cannot be used:\n.*x\.jsonl:2: has \d+ tokens, more than input"):
        prepared(tmp_path, ROWS, too_long="stop")
    said.clear()
    skipped = prepared(tmp_path, ROWS, said.append, too_long="stop", on_bad="skip")
    told = next(
        line for line in said if line.startswith("train: 2 of 4 rows cannot be used and are skipped (listed in ")
    )
    assert "x.jsonl:2: has 69 tokens" in told and "x.jsonl:3: has" in told
    assert skipped.caches["train"].row.tolist() == [0, 3] and skipped.caches["train"].counts["bad"] == 2


def test_bad_rows_and_refusals_of_the_template_are_told_with_file_and_line(tmp_path):
    rows = [ROWS[0], {"messages": [{"role": "bot", "content": "x"}]}, {"messages": [ASKED, BRIEF, SAID]}]
    picky = tmp_path / "picky.jinja"
    picky.write_text(
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('late') }}{% endif %}"
        "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    with pytest.raises(UserError) as error:
        prepared(tmp_path, rows, template=str(picky))
    assert "2 of 3 rows cannot be used" in str(error.value)
    assert "x.jsonl:2: 'messages': turn 1 has the role 'bot'; known: system" in str(error.value)
    assert "x.jsonl:3: the chat template refuses a conversation of user, system, assistant: late" in str(error.value)


def test_the_day_that_a_template_asks_for_is_that_of_the_config(tmp_path):
    dated = tmp_path / "dated.jinja"
    dated.write_text("{{ strftime_now('%d %b %Y') }}{% for m in messages %}|{{ m.content }}{% endfor %}")
    held = [prepared(tmp_path, ROWS[:1], template=str(dated), date=day) for day in ("2026-01-31", "2026-02-01")]
    texts = [inputs.encoder.text(inputs.caches["train"].ids.tolist()) for inputs in held]
    assert texts == ["31 Jan 2026|How far?|Two miles.", "01 Feb 2026|How far?|Two miles."]
    assert held[0].identity() != held[1].identity()
    with pytest.raises(UserError, match=r"task\.date='today' must be a day"):
        prepared(tmp_path, ROWS[:1], date="today")


def test_a_template_whose_turns_no_token_ends_is_told(tmp_path):
    endless, said = tmp_path / "endless.jinja", []
    endless.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    prepared(tmp_path, ROWS[:1], said.append, template=str(endless))
    assert any("x.jsonl:1: what the assistant says does not end with a special token" in text for text in said)
    other = tmp_path / "other.jinja"
    other.write_text("{% for m in messages %}<|user|>{{ m.content }}<|call|>{% endfor %}")
    (tmp_path / "another run").mkdir()
    prepared(tmp_path / "another run", ROWS[:1], said.append, template=str(other))
    assert any("ends with <|call|>, which is neither the tokenizer's eos_token nor" in text for text in said)
    said.clear()
    prepared(tmp_path, ROWS[:1], said.append)
    assert not any("special token" in text or "neither" in text for text in said)


def test_a_run_and_its_exports_read_the_template_that_it_began_with(tmp_path):
    named, said = tmp_path / "named.jinja", []
    options = {"rows": ROWS[:1], "template": str(named)}
    named.write_text("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}")
    first = prepared(tmp_path, **options)
    named.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}")
    assert prepared(tmp_path, say=said.append, **options).identity() == first.identity()
    assert any("named.jinja' has changed since this run began" in text for text in said)
    named.unlink()
    assert prepared(tmp_path, **options).identity() == first.identity()
    (tmp_path / "hf").mkdir()
    chat.beside(config(tmp_path, **options), None, tmp_path / "tokenizer", None)(tmp_path / "hf")
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert read.apply_chat_template([ASKED], tokenize=False) == ASKED["content"]


def test_a_tokenizer_without_a_chat_template_is_refused_with_what_to_do(tmp_path):
    from jaxft.hf import trainers

    trainers.bpe(["x"], vocab=300, lowercase=False, folder=tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"has no chat template.*task\.template"):
        prepared(tmp_path, ROWS[:1])
