"""Replaced-token detection: what two networks compute together, against transformers' two; and whole runs of both."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from jaxft import build, companions, sharding, state
from jaxft.data.corpus import Draws
from jaxft.hf import folder as hf_folder
from jaxft.hf import save as hf_save
from jaxft.layers.loss import combined
from jaxft.layers.vocab import VocabLogits
from jaxft.models import electra
from jaxft.registry import UserError
from jaxft.tasks.detection import Detection
from tests import tiny
from tests.hf.test_every_export import random_parameters
from tests.tasks.test_language_models import SMALL
from tests.verbs_run import READER, here, program, reviews, write_rows

pytestmark = pytest.mark.slow

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # float32; never loosened
LENGTH, ROWS, MASK = 32, 8, 4
EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}


def task(**options):
    narrow = {"d_model": 16, "d_ff": 32, "heads": 2}
    given = {"text": "text", "metric": "", "rate": 0.2, "whole_words": False, "weight": 50.0}
    return Detection(**given | {"generator": narrow, "generator_hf": ""} | options)


def networks(on=None, config=None, cfg=electra.TINY, **options):
    """(task, network with its generator, parameters of both)."""
    c = config or tiny.config()
    made = task(**options)
    sections = dict(model=c.model, rules=c.sharding, mesh=on or tiny.mesh(devices=1))
    net = build.network(electra, cfg, head="detection", outputs=1, **sections)
    net = companions.attach(net, made, {"generator": None}, c)
    beside = net.companions["generator"]
    return made, net, random_parameters(net) | {"generator": beside.apart(random_parameters(beside.net))}


def batch():
    rng = np.random.default_rng(0)
    words = electra.TINY.vocab
    special_V = np.arange(words) <= MASK
    vocabulary = SimpleNamespace(mask_id=MASK, special_V=special_V, begins_V=np.ones(words, bool))
    length_B = rng.integers(LENGTH // 2, LENGTH + 1, ROWS)
    segment = (np.arange(LENGTH) < length_B[:, None]).astype(np.int32)
    ids = rng.integers(MASK + 1, words, (ROWS, LENGTH)).astype(np.int32) * segment
    position = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ids.shape)
    rows = {"ids": ids, "type": 0 * ids, "segment": segment, "position": position}
    rows["example"] = np.arange(ROWS, dtype=np.int32)[:, None]
    return task().change(vocabulary, None, None)(rows, Draws((0,), ROWS, np.arange(ROWS)))


def loss_of(made, net, params, batch, key=None):
    with net.tracing():
        answers, _ = made.forward(net, params, {}, jax.tree.map(jnp.asarray, batch), key)
        return composed(made, made.loss(answers, batch), batch)


def composed(made, sums, batch):
    return sums | {"loss": combined(sums, made.shares, made.weights(batch))}


def test_hidden_tokens_become_the_mask_or_stay_and_are_told_as_they_were():
    rows = batch()
    changed = rows["ids"] != rows["original"]
    assert (rows["ids"][changed] == MASK).all() and 0 < changed.sum() < rows["weight"].sum()
    at = rows["at"][rows["weight"] > 0], np.nonzero(rows["weight"])[0]
    np.testing.assert_array_equal(rows["original"][at[1], at[0]], rows["label"][rows["weight"] > 0])


def opened(net, params, folder):
    """The model that transformers makes of a network."""
    import transformers

    hf_save.save(folder, params, net.table, dtype="float32", shapes=net.stored)
    (folder / "config.json").write_text(json.dumps(hf_folder.config_of(net, {}, "float32")))
    name = electra.HF_ARCHITECTURES[net.head]
    return getattr(transformers, name).from_pretrained(folder, attn_implementation="eager").eval()


def test_both_networks_and_the_loss_are_those_of_transformers_with_one_embedding_for_both(tmp_path):
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    (made, net, params), rows = networks(), batch()
    beside = net.companions["generator"]
    assert set(beside.shared) == {path for path in beside.net.abstract if path.startswith("embed/text/")}
    guesser = opened(beside.net, beside.whole(params["generator"], params), tmp_path / "generator")
    judge = opened(net, net.own(params), tmp_path / "discriminator")

    def computed(params, batch):
        answers, _ = made.forward(net, params, {}, batch, None)
        drawn = answers.guesses.sample(jax.random.fold_in(jax.random.key(0), batch["example"][0, 0]))
        return (
            answers.guesses.array(),
            answers.logits_BL,
            answers.replaced_BL,
            drawn,
            composed(made, made.loss(answers, batch), batch),
        )

    guesses, logits, replaced, drawn, sums = jax.jit(computed)(params, rows)
    counts, real = rows["weight"] > 0, rows["segment"] > 0
    place = np.nonzero(counts)[0], rows["at"][counts]
    shown = rows["original"].copy()
    shown[place] = np.asarray(drawn)[counts]
    np.testing.assert_array_equal(replaced, shown != rows["original"])
    assert 0 < np.asarray(replaced).sum() < counts.sum() + 1
    mask = torch.tensor(rows["segment"]).long()
    with torch.no_grad():
        theirs = guesser(input_ids=torch.tensor(rows["ids"]).long(), attention_mask=mask).logits
        found = judge(input_ids=torch.tensor(shown).long(), attention_mask=mask).logits
    np.testing.assert_allclose(np.asarray(guesses)[counts], theirs.numpy()[place], **TOLERANCE)
    np.testing.assert_allclose(np.asarray(logits)[real], found.numpy()[real], **TOLERANCE)
    wrong = torch.nn.functional.binary_cross_entropy_with_logits(
        found[real], torch.tensor(shown != rows["original"])[real].float()
    )
    surprise = torch.nn.functional.cross_entropy(theirs[place], torch.tensor(rows["label"][counts]).long())
    total, weight = sums["loss"]
    np.testing.assert_allclose(total / weight, (surprise + 50 * wrong).item(), **TOLERANCE)
    np.testing.assert_allclose(sums["detection_loss"][0] / weight, wrong.item(), **TOLERANCE)
    right = ((found > 0).numpy() == (shown != rows["original"]))[real]
    assert float(sums["accuracy"][0]) == right.sum() and float(weight) == real.sum()
    assert float(sums["recall"][1]) == (shown != rows["original"]).sum()
    said = (found > 0).numpy() & real
    assert float(sums["marked"][0]) == said.sum()
    assert float(sums["recall"][0]) == (said & (shown != rows["original"])).sum()


def test_the_generator_learns_from_its_guesses_alone_and_both_move_what_they_share():
    (made, net, params), rows = networks(), batch()

    def part(name):
        gradient = jax.jit(jax.grad(lambda params: loss_of(made, net, params, rows)[name][0]))(params)
        return {path: np.abs(leaf).max() for path, leaf in flatten_dict(gradient, sep="/").items()}

    judging, guessing = part("detection_loss"), part("generator_loss")
    table = "embed/text/word/table"
    assert all(size == 0 for path, size in judging.items() if path.startswith("generator/"))
    assert all(size == 0 for path, size in guessing.items() if not path.startswith(("generator/", "embed/text/")))
    assert judging[table] > 0 and guessing[table] > 0 and guessing["generator/blocks/mlp/up/kernel"] > 0


def test_on_a_mesh_both_compute_what_one_device_computes():
    results, rows = [], batch()
    for sizes in ({}, EIGHT):
        made, net, params = networks(tiny.mesh(**sizes) if sizes else None)
        held = jax.device_put(rows, sharding.batch_sharding(net.mesh, net.activations))

        def loss(params, batch, made=made, net=net):
            total, weight = loss_of(made, net, params, batch, jax.random.key(1))["loss"]
            return total / weight

        value, grads = jax.jit(jax.value_and_grad(loss))(params, held)
        results.append((value, flatten_dict(grads, sep="/")))
    cut = [path for path, leaf in flatten_dict(net.tree, sep="/").items() if not leaf.sharding.is_fully_replicated]
    assert [path for path in cut if path.startswith("generator/blocks")], "its matrices are sharded, too"
    np.testing.assert_allclose(results[1][0], results[0][0], **TOLERANCE)
    for path, expected in results[0][1].items():
        np.testing.assert_allclose(results[1][1][path], expected, rtol=1e-4, atol=1e-4, err_msg=path)


def test_micro_batches_add_up_to_the_loss_and_the_gradient_of_the_whole_batch(monkeypatch):
    """Of each micro-batch the hidden tokens are another share; what is drawn would differ as dropout does."""
    monkeypatch.setattr(VocabLogits, "sample", lambda self, key: jnp.argmax(self.array(), -1).astype(jnp.int32))
    made, net, params = networks(cfg=dataclasses.replace(electra.TINY, dropout=0.0, attention_dropout=0.0))
    rows = batch()
    shares = rows["weight"].sum(1) / rows["segment"].sum(1)
    assert shares.max() > 1.1 * shares.min()
    (whole, once), (parts, four) = (tiny.descended(net, made, params, rows, accumulate=n) for n in (1, 4))
    assert parts == pytest.approx(whole, rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), four, once)


def test_the_loss_of_a_split_does_not_depend_on_its_batches():
    made, net, params = networks()
    rows, meters = batch(), [made.meter(), made.meter()]
    with net.tracing():
        answers, _ = made.forward(net, params, {}, jax.tree.map(jnp.asarray, rows), None)
        for meter, pieces in zip(meters, (1, 4), strict=True):
            for piece in range(pieces):
                guesses = dataclasses.replace(answers.guesses, x_BLD=answers.guesses.x_BLD[piece::pieces])
                part = type(answers)(guesses, *(x[piece::pieces] for x in answers[1:]))
                held = {name: x[piece::pieces] for name, x in rows.items()}
                meter.update(jax.device_get(made.loss(part, held)), {"example": held["example"]})
    assert meters[1].result() == pytest.approx(meters[0].result(), rel=1e-6)


def test_decay_freezing_and_averages_know_the_generators_parameters():
    c = tiny.config(freeze=("generator/head/.*",), ema=0.9)
    _, net, params = networks(config=c)
    plan = state.plan(net, c, None)
    assert set(plan.abstract.frozen) == {"generator"} and "generator" in plan.abstract.ema
    whole = flatten_dict(state.weights(plan.make(jax.tree.map(jnp.copy, params))), sep="/")
    assert whole.keys() == flatten_dict(params, sep="/").keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 0.0}, r"task.weight=0.0 .* 50 is ELECTRA's"),
        ({"generator_hf": "x"}, "leave one"),
        ({"generator": {"d_modle": 8}}, r'task.generator.d_modle is not an option here.*"d_model"'),
        ({"generator": {"d_embed": 8}}, "embed/text/word/table.* another shape"),
        ({"generator": {"positions": 8}}, "embed/text/position/table.* another shape"),
    ],
)
def test_options_that_make_no_pair_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        networks(**options)


FLAGS = (
    *SMALL,
    f"--config.model.scratch.positions={LENGTH}",
    "--config.model.scratch.d_embed=16",
    "--config.tokenizer.vocab=200",
    "--config.task.generator_hf=",
    "--config.task.generator={'d_model': 16, 'd_ff': 32}",
    "--config.optim.lr=3e-3",
    "--config.train.ema=0.9",
    "--config.train.freeze=('generator/head/transform/norm/.*',)",
    "--config.optim.no_decay=('generator/blocks/mlp/.*',)",
)


def train(source, workdir, *flags):
    options = (*FLAGS, *flags, f"--config.data.train={source}", f"--workdir={workdir}")
    done = program("main", "--config=configs/electra.py:files", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detection")
    said = train(write_rows(folder / "x.jsonl", reviews(150, 0)), folder / "run")
    assert "generator: " in said and "which train along" in said
    return folder / "run"


def weights(run):
    return {name: load_file(run / name / "model.safetensors") for name in ("hf", "hf-generator")}


def test_a_run_leaves_both_networks_as_transformers_opens_them_with_equal_embeddings(run):
    found = weights(run)
    table = "electra.embeddings.word_embeddings.weight"
    np.testing.assert_array_equal(found["hf"][table], found["hf-generator"][table])
    assert found["hf"]["electra.embeddings_project.weight"].shape == (32, 16)
    assert "generator_predictions.dense.weight" in found["hf-generator"]
    pytest.importorskip("torch", reason="the reference needs torch")
    from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

    for name, cls in (("hf", AutoModelForPreTraining), ("hf-generator", AutoModelForMaskedLM)):
        model, report = cls.from_pretrained(run / name, output_loading_info=True)
        assert (
            not any(report.values())
            and type(model).__name__ == electra.HF_ARCHITECTURES["detection" if name == "hf" else "masked_lm"]
        )
        assert AutoTokenizer.from_pretrained(run / name).mask_token == "[MASK]"


def test_the_report_and_the_log_tell_of_both(run):
    report = json.loads((run / "report.json").read_text())
    assert {"loss", "f1", "accuracy", "perplexity"} <= report.keys()
    details = report["details"]
    assert 0 < details["replaced"] < 0.2 and details["recall"] <= 1
    parts = 50 * details["detection_loss"] + details["generator_loss"]
    assert report["loss"] == pytest.approx(parts, rel=1e-6)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["generator_loss"] for line in lines if "generator_loss" in line]
    assert losses[-1] < losses[0]


def test_a_killed_run_ends_bit_for_bit_in_the_same_two_networks(run, tmp_path):
    again = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(again / "checkpoints" / "40")
    (again / "report.json").unlink()
    train(run.parent / "x.jsonl", again)
    for name, expected in weights(run).items():
        found = weights(again)[name]
        assert all(found[key].tobytes() == expected[key].tobytes() for key in expected), name


def test_export_writes_both_networks_of_any_checkpoint_and_verifies_them(run, tmp_path, capsys):
    """Also where options name parameters of the generator, as FLAGS do."""
    here("export", f"--run={run}", f"--out={tmp_path / 'hf'}", "--verify", "--step=last")
    assert capsys.readouterr().out.count(f"read by {READER}") == 2
    for name, expected in weights(run).items():
        found = load_file(tmp_path / name / "model.safetensors")
        assert found.keys() == expected.keys()
        assert all(found[key].tobytes() == expected[key].tobytes() for key in expected), name
        assert {file.name for file in (tmp_path / name).iterdir()} == {file.name for file in (run / name).iterdir()}


def test_both_go_on_from_folders(run, tmp_path):
    source = run.parent / "x.jsonl"
    both = (f"--config.model.hf={run / 'hf'}", f"--config.task.generator_hf={run / 'hf-generator'}")
    short = ("--config.task.generator={}", "--config.train.duration=2 steps", "--config.schedule.warmup=1")
    said = train(source, tmp_path / "run", *both, *short)
    assert "new, not in the checkpoint" not in said and "its own are others" not in said
