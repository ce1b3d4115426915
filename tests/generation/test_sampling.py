"""What is forbidden, made less likely and drawn from, against transformers' logits processors on random scores."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.generation import sampling, settings
from jaxft.generation.sampling import Text
from jaxft.generation.settings import Settings
from jaxft.registry import UserError

B, V, M, END = 4, 50, 12, 9
OFF = Settings(new=20, pad=0, eos=(3, 5))
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 6, (B, M)).astype(np.int32)  # few words, so that pairs come again
SCORES = RNG.normal(size=(B, V)).astype(np.float32) * 3


@pytest.fixture
def process():
    return pytest.importorskip("transformers.generation.logits_process", reason="needs transformers with torch")


def text(begin=0, count=4):
    place = np.arange(M)[None]
    real = np.broadcast_to((place >= begin) & (place < END), IDS.shape)
    return Text(jnp.asarray(IDS), jnp.asarray(real), jnp.asarray(END), jnp.asarray(count))


def theirs(processor, ids=IDS[:, :END]):
    import torch

    return processor(torch.tensor(ids).long(), torch.tensor(SCORES)).numpy()


def of(**given):
    return dataclasses.replace(OFF, **given)


PROCESSED = {
    "repetition": (of(repetition_penalty=1.3), lambda p: p.RepetitionPenaltyLogitsProcessor(1.3)),
    "repetition-below-1": (of(repetition_penalty=0.7), lambda p: p.RepetitionPenaltyLogitsProcessor(0.7)),
    "ngram-1": (of(no_repeat_ngram_size=1), lambda p: p.NoRepeatNGramLogitsProcessor(1)),
    "ngram-2": (of(no_repeat_ngram_size=2), lambda p: p.NoRepeatNGramLogitsProcessor(2)),
    "ngram-longer-than-the-text": (of(no_repeat_ngram_size=30), lambda p: p.NoRepeatNGramLogitsProcessor(30)),
    "bad-words": (of(never=(8, 9)), lambda p: p.NoBadWordsLogitsProcessor([[8], [9], [3]], [3, 5])),
    "suppressed": (of(suppressed=(4, 49)), lambda p: p.SuppressTokensLogitsProcessor([4, 49])),
    "short": (of(min_length=END + 1), lambda p: p.MinLengthLogitsProcessor(END + 1, [3, 5])),
    "long-enough": (of(min_length=END), lambda p: p.MinLengthLogitsProcessor(END, [3, 5])),
    "few-new": (of(min_new_tokens=5), lambda p: p.MinNewTokensLengthLogitsProcessor(END - 4, 5, [3, 5])),
    "enough-new": (of(min_new_tokens=4), lambda p: p.MinNewTokensLengthLogitsProcessor(END - 4, 4, [3, 5])),
    "forced-last": (of(new=5, forced_last=(5,)), lambda p: p.ForcedEOSTokenLogitsProcessor(END + 1, 5)),
    "not-last": (of(new=6, forced_last=(5,)), lambda p: p.ForcedEOSTokenLogitsProcessor(END + 2, 5)),
}


@pytest.mark.parametrize("name", PROCESSED)
def test_scores_equal_those_of_transformers(name, process):
    want, make = PROCESSED[name]
    np.testing.assert_allclose(sampling.processed(jnp.asarray(SCORES), text(), want), theirs(make(process)), rtol=1e-6)


def test_the_first_token_is_forced_or_suppressed(process):
    first = dataclasses.replace(text(), count=jnp.asarray(0))
    ours = sampling.processed(jnp.asarray(SCORES), first, of(forced_first=(7,)))
    np.testing.assert_array_equal(ours, theirs(process.ForcedBOSTokenLogitsProcessor(7), IDS[:, :1]))
    ours = sampling.processed(jnp.asarray(SCORES), first, of(suppressed_first=(7,)))
    np.testing.assert_array_equal(ours, theirs(process.SuppressTokensAtBeginLogitsProcessor([7], END)))


def test_padding_before_a_text_is_none_of_its_words(process):
    ours = sampling.processed(jnp.asarray(SCORES), text(begin=4), of(repetition_penalty=2.0, no_repeat_ngram_size=2))
    short = IDS[:, 4:END]
    both = [process.RepetitionPenaltyLogitsProcessor(2.0), process.NoRepeatNGramLogitsProcessor(2)]
    np.testing.assert_allclose(ours, theirs(process.LogitsProcessorList(both), short), rtol=1e-6)


NARROWED = {
    "temperature": (dict(temperature=0.7), lambda p: [p.TemperatureLogitsWarper(0.7)]),
    "top-k": (dict(top_k=5), lambda p: [p.TopKLogitsWarper(5)]),
    "top-k-of-more-than-all": (dict(top_k=99), lambda p: [p.TopKLogitsWarper(99)]),
    "top-p": (dict(top_p=0.8), lambda p: [p.TopPLogitsWarper(0.8)]),
    "top-p-of-one": (dict(top_p=1e-3), lambda p: [p.TopPLogitsWarper(1e-3)]),
    "min-p": (dict(min_p=0.1), lambda p: [p.MinPLogitsWarper(0.1)]),
    "all": (
        dict(temperature=1.4, top_k=20, top_p=0.7, min_p=0.05),
        lambda p: [
            p.TemperatureLogitsWarper(1.4),
            p.TopKLogitsWarper(20),
            p.TopPLogitsWarper(0.7),
            p.MinPLogitsWarper(0.05),
        ],
    ),
}


@pytest.mark.parametrize("name", NARROWED)
def test_what_is_drawn_from_equals_that_of_transformers(name, process):
    given, make = NARROWED[name]
    wanted = theirs(process.LogitsProcessorList(make(process)))
    ours = np.asarray(sampling.narrowed(jnp.asarray(SCORES), of(sample=True, **given)))
    np.testing.assert_array_equal(np.isinf(ours), np.isinf(wanted))
    np.testing.assert_allclose(ours, wanted, rtol=1e-6)


def test_draws_come_as_often_as_the_scores_say():
    rows, shares = 4000, np.array([0.5, 0.3, 0.15, 0.05])
    scores = jnp.broadcast_to(jnp.log(jnp.asarray(shares, jnp.float32))[None], (rows, 4))
    one = Text(jnp.zeros((rows, 2), jnp.int32), jnp.zeros((rows, 2), bool), jnp.asarray(0), jnp.asarray(0))
    keys = jax.vmap(jax.random.key)(jnp.arange(rows))
    drawn = sampling.chosen(scores, one, Settings(new=2, pad=0, sample=True), keys)
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / rows, shares, atol=0.025)


def read(hub=None, decoder=True, **flags):
    return settings.read(hub or {}, flags, pad=0, eos=(9,), decoder=decoder)[0]


def test_flags_stand_over_the_file_and_the_file_over_the_tokenizer():
    file = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 2], "max_new_tokens": 7}
    assert read(file) == Settings(new=7, pad=0, eos=(1, 2), sample=True, temperature=0.6, top_p=0.9, top_k=50)
    assert read(file, temperature=0) == Settings(new=7, pad=0, eos=(1, 2))
    assert read(file, num_beams=2) == Settings(new=7, pad=0, eos=(1, 2), beams=2)
    assert read(top_k=3, max_new_tokens=4) == Settings(new=4, pad=0, eos=(9,), sample=True, top_k=3)
    assert read({"max_length": 20, "forced_bos_token_id": 4}, decoder=False).new == 19
    assert read({"max_length": 20, "forced_bos_token_id": 4}).forced_first == ()


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(top_p=1.5), "top_p=1.5 must be a number, between"),
        (dict(temperature=-1.0), "temperature=-1.0 must be a number, at least"),
        (dict(max_new_tokens=0), "max_new_tokens=0 must be a number, at least 1"),
        (dict(num_beams=3, top_k=2), "beams=3 with sampling is not supported; set --beams=1, or --temperature=0"),
        (dict(hub={"penalty_alpha": 0.6}), "generation_config.json: not supported: penalty_alpha=0.6; remove it"),
        (dict(hub={"eos_token_id": "x"}), "eos_token_id='x' must be a token id, or a list of them"),
        (dict(hub={"bad_words_ids": [[1, 2]]}), "words of several tokens are not supported"),
        (dict(hub={"early_stopping": "often"}), "early_stopping='often' must be true, false or \"never\""),
    ],
)
def test_a_bad_value_is_refused_by_name(given, message):
    with pytest.raises(UserError, match="^" + re.escape(message) if "words" not in message else message):
        read(**given)


def test_a_field_that_nobody_knows_is_said():
    said = settings.read({"top_q": 3, "num_return_sequences": 4}, {}, pad=0, decoder=True)[1]
    assert said == [
        'generation_config.json: not read: top_q; did you mean "top_p"?',
        "num_return_sequences=4: only the best text is given",
    ]
