"""Every family that writes texts, against transformers' generate, token by token."""

import dataclasses

import pytest

from jaxft.generation import settings
from jaxft.hf import files
from tests.generation import hub

pytestmark = pytest.mark.slow
CASES = [(name, "") for name in hub.FAMILIES]
# What a variant computes otherwise where a text goes on: positions and windows.
CASES += [
    ("gpt2", "tied-scaled-by-layer"),
    ("llama", "rope-llama3"),
    ("llama", "rope-longrope"),
    ("mistral", "tied"),
    ("phi3", "window-tied"),
    ("phi3", "partial"),
    ("t5", "1.0"),
]
CASES = [(name, variant) for name, variant in CASES if not variant or variant in hub.FAMILIES[name].VARIANTS]


def named(case):
    return "-".join(filter(None, case))


@pytest.fixture(scope="module", params=CASES, ids=named)
def case(request, tmp_path_factory):
    pytest.importorskip("torch", reason="live parity needs torch")
    name, variant = request.param
    family = hub.FAMILIES[name]
    cfg = family.VARIANTS[variant] if variant else family.TINY
    if family.KIND == "encdec":  # what transformers keeps of a text has as many layers as the encoder
        cfg = dataclasses.replace(cfg, decoder_layers=cfg.layers)
    folder = tmp_path_factory.mktemp(name)
    model = hub.model_of(name, cfg, folder)
    return model, *hub.network(name, folder), folder


def wanted(case, **flags):
    """Settings of the folder's file under flags; among many ends one is met early."""
    _, net, _, folder = case
    decoder = net.family.KIND == "decoder"
    file = files.read_json(folder, "generation_config.json") | {"eos_token_id": [7, 20, 21, 55]}
    if not decoder:  # else a random one says one word again and again, whatever its position
        file["no_repeat_ngram_size"] = 1
    return settings.read(file, {"max_new_tokens": 10, **flags}, pad=hub.PAD, decoder=decoder)[0]


def equal(case, **flags):
    model, net, params, _ = case
    texts, want = hub.prompts(net.cfg.vocab), wanted(case, **flags)
    if want.no_repeat_ngram_size > 1:  # alone: of a padded prompt transformers counts pairs of padding, too
        texts = texts[:1]
    assert hub.ours(net, params, texts, want) == hub.theirs(model, texts, want)


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_equal_those_of_transformers_token_by_token(case, beams):
    equal(case, num_beams=beams)


@pytest.mark.parametrize("case", [("llama", ""), ("gemma2", ""), ("t5", ""), ("bart", "")], indirect=True, ids=named)
def test_texts_are_the_same_where_rows_are_cut_over_devices(case):
    """Prompts that two devices share, and those that they do not; then tokens that ask for what both keep."""
    _, net, params, folder = case
    there, theirs = hub.network(net.family.MODEL_TYPE, folder, devices=2, context=2)
    for length in (6, 7):
        texts = hub.prompts(net.cfg.vocab, (length, length - 2))
        assert hub.ours(there, theirs, texts, wanted(case)) == hub.ours(net, params, texts, wanted(case))


# Of these no family computes another way; and BART and Marian show their positions only here.
SEARCHES = {
    "penalised": {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
    "long": {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
    "renormalised": {"num_beams": 3, "renormalize_logits": True, "length_penalty": 0.5},
    "short": {"num_beams": 2, "length_penalty": -1.0, "early_stopping": "never"},
}


@pytest.mark.parametrize("case", [("llama", ""), ("t5", ""), ("bart", ""), ("marian", "")], indirect=True, ids=named)
@pytest.mark.parametrize("search", SEARCHES)
def test_searches_equal_those_of_transformers(case, search):
    equal(case, **SEARCHES[search])


ALONE = ("gpt2", "gemma2", "mixtral", "t5", "marian")


@pytest.mark.parametrize("case", [(name, "") for name in ALONE], indirect=True, ids=named)
def test_a_text_does_not_depend_on_its_company(case):
    _, net, params, _ = case
    texts, want = hub.prompts(net.cfg.vocab), wanted(case)
    alone = hub.ours(net, params, texts[1:2], want, length=len(texts[1]))
    assert hub.ours(net, params, texts, want, length=16)[1:2] == alone
