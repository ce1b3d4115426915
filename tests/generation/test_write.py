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


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(filter(None, case)))
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


SEARCHES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "penalised": {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
    "beams-long": {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
}
FEW = ("llama", "t5", "bart", "marian")  # the others compute no other way; the last two show positions here only


@pytest.mark.parametrize("search", SEARCHES)
def test_texts_equal_those_of_transformers_token_by_token(case, search):
    model, net, params, _ = case
    if search in ("penalised", "beams-long") and net.family.MODEL_TYPE not in FEW:
        pytest.skip("tried with other families")
    texts, want = hub.prompts(net.cfg.vocab), wanted(case, **SEARCHES[search])
    ours = hub.ours(net, params, texts, want)
    if search == "penalised":  # alone: of a padded prompt transformers counts pairs of padding, too
        texts, ours = texts[:1], ours[:1]
    assert ours == hub.theirs(model, texts, want)


def test_a_text_does_not_depend_on_its_company(case):
    _, net, params, _ = case
    texts, want = hub.prompts(net.cfg.vocab), wanted(case)
    alone = hub.ours(net, params, texts[1:2], want, length=len(texts[1]))
    assert hub.ours(net, params, texts, want, length=16)[1:2] == alone
