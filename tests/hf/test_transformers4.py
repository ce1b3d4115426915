"""What we export, in transformers 4.57: a whole folder with its tokenizer, and every family with every head."""

import json

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from jaxft import build
from jaxft.classifier import Classifier
from jaxft.hf import folder as hf_folder
from jaxft.hf import tokenizer, trainers
from jaxft.tasks import Example
from tests import tiny
from tests.hf import version4
from tests.verbs_run import reviews

TOLERANCE = 1e-5  # float32; never loosened
READ = """
import json, sys
import torch, transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, texts = sys.argv[1], json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
inputs = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits.tolist()
ids = tokenizer(texts, truncation=True)["input_ids"]
labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
print(json.dumps(dict(version=transformers.__version__, ids=ids, logits=logits, labels=labels)))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder as every export writes it: random weights, a tokenizer trained here, three labels."""
    folder = tmp_path_factory.mktemp("export")
    texts = [row["text"] for row in reviews(100, 0)] + ["Café déjà vu, naïve!", "中文 字符"]
    encoder = trainers.wordpiece(
        texts, vocab=200, lowercase=True, folder=folder / "tokenizer", positions=tiny.bert.TINY.positions
    )
    cfg = tiny.dataclasses.replace(tiny.bert.TINY, vocab=encoder.vocab_size, init_std=0.2)
    net = tiny.network(tiny.mesh(devices=1), cfg=cfg)
    params = unflatten_dict(build.initialise(net, seed=0), sep="/")
    task = tiny.TASK.hf_config()

    def beside(target):
        tokenizer.copy_files(folder / "tokenizer", target, cfg.positions)

    hf_folder.write(folder / "hf", net, params, task=task, beside=beside, source=None, dtype="float32", card="")
    return folder / "hf"


def test_an_export_has_the_same_ids_labels_and_logits(exported):
    texts = [row["text"] for row in reviews(20, 7)]
    texts += ["Café DÉJÀ vu, naïve!", "中文字符", "a [SEP] b [MASK]", "it's 3.14%\tdone\u00a0\u200b", "unseen ŵörđs 🙂"]
    found, said = version4.run(READ, str(exported), given=json.dumps(texts))
    assert found["version"].startswith("4.57."), "the wrong transformers was read"
    assert "newly initialized" not in said and "were not used" not in said
    ours = Classifier(str(exported), task={"text": "text", "pair": "", "label": "label"}, length=0, dtype="float32")
    encoded = ours.reader.encode([(text, None) for text in texts])
    assert [one.ids.tolist() for one in encoded] == found["ids"]
    assert any(one.truncated for one in encoded)
    assert found["labels"] == list(tiny.TASK.classes)
    logits_XC = ours.logits([Example(text, None, None) for text in texts], texts)
    assert np.ptp(logits_XC, axis=0).min() > 0.1
    np.testing.assert_allclose(logits_XC, found["logits"], rtol=0, atol=TOLERANCE)
