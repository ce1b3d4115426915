"""An exported folder in transformers 4.57, in a process of its own: this one has version 5.

What version 4 needs otherwise than 5 is installed once into a private cache folder that goes before the installed
packages; JAXFT_TEST_VENV457 may name an environment that has it all instead.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from jaxft import build, cache
from jaxft.classifier import Classifier
from jaxft.hf import folder as hf_folder
from jaxft.hf import tokenizer
from jaxft.tasks import Example
from tests import tiny
from tests.verbs_run import ROOT, reviews

PINNED = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface-hub==0.36.0")
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
def version4():
    """(python, environment) in which transformers is 4.57."""
    if os.environ.get("JAXFT_TEST_VENV457"):
        return str(Path(os.environ["JAXFT_TEST_VENV457"]) / "bin" / "python"), dict(os.environ)
    pytest.importorskip("torch", reason="transformers' models need torch")
    target = cache.private_dir("tests") / f"transformers-4.57-py{sys.version_info[0]}{sys.version_info[1]}"
    if not target.exists():
        draft = target.with_name(f"{target.name}.{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={draft}", *PINNED]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            shutil.rmtree(draft, ignore_errors=True)
            pytest.skip(f"pip cannot install {PINNED[0]}: {done.stderr.strip().splitlines()[-1]}")
        draft.rename(target)
    return sys.executable, {**os.environ, "PYTHONPATH": str(target)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder as every export writes it: random weights, a tokenizer trained here, three labels."""
    folder = tmp_path_factory.mktemp("export")
    texts = [row["text"] for row in reviews(100, 0)] + ["Café déjà vu, naïve!", "中文 字符"]
    encoder = tokenizer.train_wordpiece(
        texts, vocab=200, lowercase=True, folder=folder / "tokenizer", positions=tiny.bert.TINY.positions
    )
    cfg = tiny.dataclasses.replace(tiny.bert.TINY, vocab=encoder.vocab_size, init_std=0.2)
    net = tiny.network(tiny.mesh(devices=1), cfg=cfg)
    params = unflatten_dict(build.initialise(net, seed=0), sep="/")
    task = tiny.TASK.hf_config()
    options = dict(task=task, tokenizer_folder=folder / "tokenizer", dtype="float32", card="")
    hf_folder.write(folder / "hf", net, params, length=cfg.positions, **options)
    return folder / "hf"


def test_an_export_has_the_same_ids_labels_and_logits(exported, version4):
    python, environ = version4
    texts = [row["text"] for row in reviews(20, 7)]
    texts += ["Café DÉJÀ vu, naïve!", "中文字符", "a [SEP] b [MASK]", "it's 3.14%\tdone\u00a0\u200b", "unseen ŵörđs 🙂"]
    done = subprocess.run(
        [python, "-c", READ, str(exported)],
        input=json.dumps(texts),
        env=environ,
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["version"].startswith("4.57."), "the wrong transformers was read"
    assert "newly initialized" not in done.stderr and "were not used" not in done.stderr
    ours = Classifier(str(exported), task={"text": "text", "pair": "", "label": "label"}, length=0, dtype="float32")
    encoded = ours.encoder.encode([(text, None) for text in texts], ours.length)
    assert [one.ids.tolist() for one in encoded] == found["ids"]
    assert any(one.truncated for one in encoded)
    assert found["labels"] == list(tiny.TASK.classes)
    logits_XC = ours.logits([Example(text, None, None) for text in texts], texts)
    assert np.ptp(logits_XC, axis=0).min() > 0.1
    np.testing.assert_allclose(logits_XC, found["logits"], rtol=0, atol=TOLERANCE)
