"""A prepared corpus is trained on as it is: its tokens, its tokenizer."""

import json

import pytest

from jaxft.hf import trainers
from jaxft.inputs import corpus as inputs
from jaxft.registry import UserError
from tests.corpora import made
from tests.verbs_run import program

pytestmark = pytest.mark.slow

TINY = (
    "--config.input.length=32",
    "--config.model.scratch={'layers': 1, 'd_model': 16, 'd_ff': 32, 'heads': 2, 'positions': 32, "
    "'embed_dropout': 0.0, "
    "'dropout': 0.0, 'attention_dropout': 0.0}",
    "--config.train.duration=4 steps",
    "--config.schedule.warmup=1",
    "--config.evaluate.every=4",
    "--config.checkpoint.every=4",
    "--config.train.log_every=2",
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    names = made.write(folder)
    done = made.run(names, folder / "corpus")
    assert done.returncode == 0, done.stderr
    return folder / "corpus"


def test_a_run_learns_from_the_tokens_and_exports_the_tokenizer(prepared, tmp_path):
    folder = f"--config.data.folder={prepared}"
    done = program("main", "--config=configs/gpt_clm.py:prepared", folder, *TINY, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stdout + done.stderr
    made_of = json.loads((prepared / "report.json").read_text())["splits"]
    for split, counts in made_of.items():
        assert f"{split}: {counts['documents']:,} of {counts['documents']:,} rows" in done.stdout
        assert f"documents of {counts['tokens']:,} tokens" in done.stdout
    assert "training a" not in done.stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["details"]["bytes"] == pytest.approx(made_of["test"]["bytes"], rel=1e-6)
    assert report["bits_per_byte"] > 0
    for folder in ("tokenizer", "hf"):
        name = f"{folder}/tokenizer.json"
        assert (tmp_path / "run" / name).read_bytes() == (prepared / "tokenizer" / "tokenizer.json").read_bytes()


def test_another_tokenizer_than_that_of_the_corpus_is_refused(prepared, tmp_path):
    other = tmp_path / "other"
    trainers.bpe(["some other text"], vocab=270, lowercase=False, folder=other)
    config = type("Config", (), {"data": {"folder": "corpus"}, "model": type("Model", (), {"hf": "org/name"})})
    with pytest.raises(UserError, match=r"prepare the corpus with --config.tokenizer.hf=org/name"):
        inputs._tokenizer_of(prepared / "tokenizer", config, tmp_path / "run", other)
    with pytest.raises(UserError, match="use another --workdir"):
        inputs._tokenizer_of(prepared / "tokenizer", config, other, None)
