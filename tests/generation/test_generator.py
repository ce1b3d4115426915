"""A hub folder that writes: prompts of a file in any company, streams, conversations, draws, many devices."""

import dataclasses
import shutil

import jax
import pytest

from jaxft.generator import Generator
from jaxft.hf.chat import Template
from jaxft.registry import UserError
from tests.generation import writer

pytestmark = pytest.mark.slow

PROMPTS = ["the café", "a cat sat on the mat; and then a dog", "x", "日本語", "of all the words"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return writer.make(tmp_path_factory.mktemp("llama"))


def generator(folder, seed=0, batch=4, tensor=1, **flags):
    flags = {"max_new_tokens": 12, **flags}
    return Generator(str(folder), flags, dtype="float32", batch=batch, tensor=tensor, seed=seed)


def texts(made, prompts=PROMPTS, first=0):
    return made.write(made.ids(prompts, prompts), first)


@pytest.mark.parametrize("flags", [{}, {"temperature": 1.5}, {"num_beams": 3}], ids=["greedy", "drawn", "search"])
def test_texts_come_in_order_and_depend_neither_on_company_nor_on_the_mesh(folder, flags):
    together = texts(generator(folder, **flags))
    assert len(set(together)) == len(PROMPTS)
    assert texts(generator(folder, tensor=2, batch=8, **flags)) == together
    one = generator(folder, **flags)
    assert [texts(one, [prompt], i)[0] for i, prompt in enumerate(PROMPTS)] == together


def test_beyond_the_length_that_the_model_was_made_for_it_says_so_once(folder, capsys):
    made = generator(folder, max_new_tokens=4)
    longest = made.net.cfg.positions
    made.ids(["x"], ["a.txt:1"])
    assert not capsys.readouterr().err
    made.ids(["x " * longest] * 2, ["a.txt:2", "a.txt:3"])
    told = capsys.readouterr().err
    assert told.startswith("jaxft: a.txt:2: ") and f"may pass the {longest} tokens" in told and "a.txt:3" not in told


def test_tensor_parallel_keeps_a_piece_of_every_layer_on_each_device(folder):
    kernels = generator(folder, tensor=2).params["blocks"]["attn"]["q"]["kernel"]
    assert [tuple(kernel.sharding.spec) for kernel in kernels] == [(None, "tensor")] * writer.TINY.layers


def test_a_seed_gives_the_same_texts_and_another_seed_others(folder):
    draws = [texts(generator(folder, seed=seed, top_k=20)) for seed in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("flags", [{}, {"temperature": 2.0}, {"num_beams": 2}], ids=["greedy", "drawn", "search"])
def test_a_stream_is_the_text_in_pieces_of_whole_letters(folder, flags):
    made = generator(folder, max_new_tokens=40, **flags)
    ids = made.ids(PROMPTS[:2], PROMPTS[:2])
    for number, whole in enumerate(made.write(ids)):
        pieces = list(made.stream(ids[number], number))
        assert "".join(pieces) == whole
        assert "num_beams" in flags or len(pieces) > 5


def test_a_second_stream_compiles_nothing(folder):
    made, compiled = generator(folder), []
    ids, other = made.ids(["some words", "others"], ["", ""])
    list(made.stream(ids))
    jax.monitoring.register_event_duration_secs_listener(lambda name, seconds, **_: compiled.append(name))
    try:
        assert list(made.stream(other))
        assert not compiled
        list(
            made.stream(made.ids(["a prompt longer than sixteen tokens"], [""])[0])
        )  # of which there is no program yet
        assert compiled
    finally:
        jax.monitoring.clear_event_listeners()


def test_a_letter_of_several_tokens_comes_whole(folder, monkeypatch):
    made = generator(folder, max_new_tokens=5)
    ids = made.encoder.whole(["é日"], special=False)[0]
    monkeypatch.setattr(made.texts, "ended", lambda written: ids[: len(written)].tolist())
    assert list(made.stream(made.encoder.whole(["x"])[0])) == ["é", "日"]


def test_a_conversation_is_what_the_template_makes_of_it(folder):
    transformers = pytest.importorskip("transformers")
    said = [{"role": "system", "content": "é"}, {"role": "user", "content": "a <b>"}]
    said += [{"role": "assistant", "content": "c"}, {"role": "user", "content": "d"}]
    theirs = transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(
        said, add_generation_prompt=True, tokenize=False
    )
    assert (
        Template(folder).prompt(said)
        == theirs
        == "<s><|system|>é</s><|user|>a <b></s><|assistant|>c</s><|user|>d</s><|assistant|>"
    )
    ids = generator(folder).ids([theirs], ["here"], special=False)[0]
    assert ids[0] == 0 and (ids == 0).sum() == 1


def test_a_folder_without_a_template_or_with_a_bad_one_is_refused(folder, tmp_path):
    shutil.copy(folder / "tokenizer.json", tmp_path)
    with pytest.raises(UserError, match=r"has no chat template: neither chat_template\.jinja nor"):
        Template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(UserError, match="the chat template cannot be read"):
        Template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match="refuses a conversation of user, user: roles must alternate"):
        Template(tmp_path).prompt([{"role": "user", "content": "a"}] * 2)


@pytest.mark.parametrize("code", ["{{ messages.append(1) }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}"])
def test_a_template_runs_in_a_sandbox(code, folder, tmp_path):
    (tmp_path / "chat_template.jinja").write_text(code)
    with pytest.raises(UserError, match="the chat template refuses"):
        Template(tmp_path).prompt([{"role": "user", "content": "a"}])


ROPES = {
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, (10,), (11, 40)),
    "longrope": (
        {
            "rope_type": "longrope",
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 20,
        },
        (10, 21, 60),
        (11, 20),
    ),
}


@pytest.mark.parametrize("kind", ROPES)
def test_a_text_that_would_turn_the_angles_of_its_beginning_is_refused(kind, tmp_path):
    rope, good, bad = ROPES[kind]
    cfg = dataclasses.replace(writer.TINY, positions=20, rope={"rope_theta": 500.0, **rope})
    made = generator(writer.make(tmp_path, cfg), max_new_tokens=11)
    prompts = ["x" * (n - 1) for n in good]  # a token comes before
    together = made.write(made.ids(prompts, prompts))
    assert together == [made.write(made.ids([prompt], [""]))[0] for prompt in prompts]
    for n in bad:
        with pytest.raises(UserError, match=f"here: a prompt of {n} tokens .* passes 20 tokens, .* rope_type={kind}"):
            made.ids(["x" * (n - 1)], ["here"])
