"""Conversations as text and as what is learned of it, against transformers, for the dialects of well-known models."""

import functools
import json

import numpy as np
import pytest

from jaxft.hf import tokenizer, trainers, turns
from jaxft.hf.chat import FILE, Template
from jaxft.registry import BadRow, UserError

# Written for this test, each in the manner of a model; [[ and ]] stand where it may have {% generation %} blocks.
CHATML = """\
{%- if tools %}{{ '<|im_start|>system\\nTools:\\n' + tools | tojson + '<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' %}[[{{ m.content or '' }}
{%- for call in m.tool_calls or [] %}{{ '<tool_call>' + call.function | tojson + '</tool_call>' }}{% endfor %}
{{- '<|im_end|>' }}]]{{ '\\n' }}
{%- else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
LLAMA = """\
{{- bos_token }}
{%- for m in messages %}
{{- '<|start|>' + m.role + '<|stop|>\\n\\n' }}
{%- if m.role == 'assistant' %}[[{{ m.content | trim + '<|eot|>' }}]]
{%- else %}{{ m.content | trim + '<|eot|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\\n\\n' }}{% endif %}"""
GEMMA = """\
{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}
{% for m in messages %}
{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}
{% if m.role == 'assistant' %}<turn>model
[[{{ m.content }}</turn>]]{{ '\\n' }}
{%- else %}<turn>user
{{ m.content }}</turn>
{% endif %}{% endfor %}
{% if add_generation_prompt %}<turn>model
{% endif %}"""
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %}[[ {{ m.content }}{{ eos_token }}]]{% endif %}{% endfor %}"
)
DIALECTS = {"chatml": CHATML, "llama": LLAMA, "gemma": GEMMA, "mistral": MISTRAL, "jaxft": trainers.CHAT}
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|start|>", "<|stop|>", "<|eot|>", "<turn>", "</turn>", "<tool_call>")

PLAIN = [
    {"role": "user", "content": "How far is it?"},
    {"role": "assistant", "content": "Two miles, or three.\n"},
    {"role": "user", "content": "And back — é?"},
    {"role": "assistant", "content": "The same; \n\nnothing else."},
]
CALL = {"type": "function", "function": {"name": "far", "arguments": {"from": "here"}}}
WITH_TOOLS = [
    {"role": "system", "content": "Be <b>brief</b>."},
    *PLAIN[:3],
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Thanks"},
]
TOOLS = [{"type": "function", "function": {"name": "far", "parameters": {"type": "object", "properties": {}}}}]
CASES = [(name, PLAIN, None) for name in DIALECTS]
CASES += [("chatml", WITH_TOOLS, TOOLS), ("jaxft", WITH_TOOLS, TOOLS), ("llama", WITH_TOOLS[:4], None)]


def with_blocks(source):
    return source.replace("[[", "{% generation %}").replace("]]", "{% endgeneration %}")


def without_blocks(source):
    plain = source.replace("[[", "").replace("]]", "")
    return plain.replace("{%- generation %}", "").replace("{% generation %}", "").replace("{% endgeneration %}", "")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder with a tokenizer that knows the special tokens of all dialects, and a bos_token."""
    from tokenizers import Tokenizer

    folder = tmp_path_factory.mktemp("chat") / "tokenizer"
    trainers.chat(["How far is it? Two miles, the same, nothing else."], vocab=400, lowercase=False, folder=folder)
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.add_special_tokens(["<s>", *SPECIAL])
    made.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<s>"}))
    return folder


@functools.cache
def encoder_of(folder):
    return tokenizer.load(folder)


def pieces(folder, source, messages=PLAIN, tools=None, last=False):
    (folder / FILE).write_text(source)
    return Template(folder).pieces(messages, tools, last=last, ends=[*SPECIAL, "</s>", "<|end|>"])


def ours(folder, source, messages=PLAIN, tools=None, *, length=10**6, last=False):
    (made,) = turns.encode(encoder_of(folder), [pieces(folder, source, messages, tools, last)], length)
    return made


def theirs(folder, source, messages, tools, **options):
    from transformers import PreTrainedTokenizerFast

    read = PreTrainedTokenizerFast.from_pretrained(folder)
    return read.apply_chat_template(messages, tools=tools, chat_template=source, return_dict=True, **options)


@pytest.mark.parametrize("name, messages, tools", CASES)
@pytest.mark.parametrize("blocks", [with_blocks, without_blocks])
def test_ids_are_those_of_transformers(name, messages, tools, blocks, bare):
    source = blocks(DIALECTS[name])
    wanted = theirs(bare, source, messages, tools)["input_ids"]
    assert ours(bare, source, messages, tools).ids.tolist() == wanted
    assert len(wanted) == ours(bare, source, messages, tools).whole > 40


@pytest.mark.parametrize("name, messages, tools", CASES)
@pytest.mark.parametrize("blocks", [with_blocks, without_blocks])
def test_what_is_learned_is_what_generation_blocks_mark_even_in_a_template_without_them(
    name, messages, tools, blocks, bare
):
    """transformers finds nothing in such a template; the blocks of the same one tell what is right."""
    wanted = theirs(bare, with_blocks(DIALECTS[name]), messages, tools, return_assistant_tokens_mask=True)
    learned = np.array(wanted["assistant_masks"])[1:] > 0
    label_T = ours(bare, blocks(DIALECTS[name]), messages, tools).labels
    assert label_T[:-1].tolist() == np.where(learned, wanted["input_ids"][1:], -100).tolist()
    assert label_T[-1] == -100 and learned.any()


@pytest.mark.parametrize("blocks", [with_blocks, without_blocks])
def test_a_turn_is_learned_with_the_token_that_ends_it(blocks, bare):
    assert pieces(bare, blocks(CHATML))[1::2] == [f"{PLAIN[i]['content']}<|im_end|>" for i in (1, 3)]
    assert pieces(bare, blocks(CHATML), last=True)[1::2] == [f"{PLAIN[3]['content']}<|im_end|>"]
    assert "".join(pieces(bare, blocks(CHATML))) == "".join(pieces(bare, blocks(CHATML), last=True))


def test_a_call_and_what_follows_its_result_are_turns_of_their_own(bare):
    said = pieces(bare, without_blocks(CHATML), WITH_TOOLS, TOOLS)[1::2]
    assert len(said) == 3 and said[1].startswith('<tool_call>{"name": "far"') and said[2] == "Two.<|im_end|>"
    assert len(pieces(bare, with_blocks(CHATML), WITH_TOOLS, TOOLS, last=True)[1::2]) == 1


# Thoughts are written of the last answer alone, as in the templates of reasoning models.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think></think>"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_rewrites_earlier_turns_is_no_ground_for_guesses(bare):
    with pytest.raises(BadRow, match=r"writes the first 2 turns otherwise when more follow.*task\.turns='last'"):
        pieces(bare, FORGETFUL)
    assert pieces(bare, FORGETFUL, last=True)[1::2] == ["<think></think>The same; \n\nnothing else.<|im_end|>"]
    assert pieces(bare, FORGETFUL, PLAIN[:2])[1::2] == ["<think></think>Two miles, or three.\n<|im_end|>"]


@pytest.mark.parametrize(
    "source, reason",
    [
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "writes nothing for turn 2"),
        ("{{ messages[0].content }}{% generation %}{% endgeneration %}", "writes nothing that the assistant says"),
        ("{% set x %}{% generation %}a{% endgeneration %}{% endset %}{{ x | length }}", "changes what stands in its"),
        ("{{ raise_exception('no') }}", "refuses a conversation of user, assistant, user, assistant: no"),
        ("{{ messages[9].content.x }}", "refuses a conversation"),
    ],
)
def test_templates_that_do_not_tell_who_says_what_are_refused(source, reason, bare):
    with pytest.raises(BadRow, match=reason):
        pieces(bare, source)


def test_a_template_writes_the_same_with_its_blocks_and_without(bare):
    for name, messages, tools in CASES:
        texts = {
            "".join(pieces(bare, blocks(DIALECTS[name]), messages, tools)) for blocks in (with_blocks, without_blocks)
        }
        assert len(texts) == 1
    (bare / FILE).write_text(with_blocks(LLAMA))
    assert (
        Template(bare).prompt(PLAIN[:1])
        == "<s><|start|>user<|stop|>\n\nHow far is it?<|eot|><|start|>assistant<|stop|>\n\n"
    )


def test_what_is_cut_off_is_not_learned_and_counted(bare):
    whole = ours(bare, with_blocks(CHATML))
    for length in (1, 20, whole.whole - 3, whole.whole):
        cut = ours(bare, with_blocks(CHATML), length=length)
        assert cut.ids.tolist() == whole.ids[:length].tolist() and cut.truncated == (length < whole.whole)
        assert cut.labels[:-1].tolist() == whole.labels[: length - 1].tolist() and cut.labels[-1] == -100
        assert cut.lost + (cut.labels != -100).sum() == (whole.labels != -100).sum()
    assert cut.lost == 0 and ours(bare, with_blocks(CHATML), length=20).lost > 0


def test_a_template_of_ones_own_may_stand_in(bare, tmp_path):
    other = tmp_path / "other.jinja"
    other.write_text(with_blocks(MISTRAL))
    (bare / FILE).write_text(with_blocks(CHATML))
    assert Template(bare, str(other)).prompt(PLAIN[:1]) == "<s>[INST] How far is it? [/INST]"
    assert Template(bare, str(other)).identity != Template(bare).identity
    with pytest.raises(UserError, match=r"task\.template='none\.jinja': no such file"):
        Template(bare, "none.jinja")
