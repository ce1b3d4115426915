"""Distillation: losses against torch, two networks against transformers', layers compared, and whole runs."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from jaxft import build, companions, sharding
from jaxft.data.source import Split
from jaxft.hf import folder as hf_folder
from jaxft.hf import save as hf_save
from jaxft.layers.loss import combined
from jaxft.models import bert, distilbert, gpt2
from jaxft.peft.prompt import Prompt
from jaxft.registry import UserError
from jaxft.tasks.distill import Distill
from tests import tiny
from tests.hf.test_every_export import random_parameters
from tests.verbs_run import READER, TINY, here, program, reviews, write_rows

pytestmark = pytest.mark.slow

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # float32; never loosened
CLS = {"name": "cls", "text": "text", "pair": "", "label": "label", "smoothing": 0.0, "metric": ""}
CLASSES = ("a", "b", "c")
CAUSAL = {"name": "causal_lm", "text": "text", "metric": "", "z": 0.0}


def task(**options):
    given = {"of": CLS, "teacher": "somewhere", "temperature": 2.0, "alpha": 0.3, "hidden": 0.0, "match": "mse"}
    return Distill(**given | {"layers": (), "classes": CLASSES if options.get("of", CLS) is CLS else ()} | options)


def opened(net, params, folder, labels=CLASSES):
    """The model that transformers makes of a network, whose folder is `folder`."""
    import transformers

    hf_save.save(folder, params, net.table, dtype="float32", shapes=net.stored)
    named = {"id2label": {str(i): name for i, name in enumerate(labels)}} if net.head == "sequence" else {}
    (folder / "config.json").write_text(json.dumps(hf_folder.config_of(net, named, "float32")))
    name = net.family.HF_ARCHITECTURES[net.head]
    return getattr(transformers, name).from_pretrained(folder, attn_implementation="eager").eval()


def plain(family, cfg, made, on=None):
    c = tiny.config()
    sections = dict(model=c.model, rules=c.sharding, mesh=on or tiny.mesh(devices=1))
    return build.network(family, cfg, head=made.head, outputs=made.outputs, **sections)


def pair(folder, made, student, teacher, on=None, labels=CLASSES):
    """(student's network with its teacher's, all parameters, both in transformers)."""
    net, other = (plain(*one, made, on) for one in (student, teacher))
    theirs = random_parameters(other)
    judge = opened(other, theirs, folder / "teacher", labels)
    net = companions.attach(net, made, {"teacher": folder / "teacher", "projection": None}, tiny.config())
    params = random_parameters(net)
    learner = opened(net, params, folder / "student")
    for name, beside in net.companions.items():
        if beside.wish.trained:
            params |= {name: random_parameters(beside.net)}
    return net, params, companions.given(net, 0), learner, judge


def loss_of(made, net, params, given, batch, key=None):
    with net.tracing():
        lesson, _ = made.forward(net, params, given, batch, key)
        sums = made.loss(lesson, batch)
        return sums | {"loss": combined(sums, made.shares, made.weights(batch))}


def whole(batch):
    """What transformers takes for a batch of one text a row."""
    import torch

    given = {"input_ids": batch["ids"], "attention_mask": batch["segment"], "token_type_ids": batch["type"]}
    return {name: torch.tensor(array).long() for name, array in given.items()}


def softened(student, teacher, temperature):
    """T^2 KL of the rows of torch logits, in their mean."""
    import torch

    ours, theirs = (torch.log_softmax(logits / temperature, -1) for logits in (student, teacher))
    return temperature**2 * torch.nn.functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")


def compared(made, net, params, given, batch, learner, expected):
    """The loss and its gradients by name are those of torch, which `expected` is."""
    value, grads = jax.jit(
        jax.value_and_grad(
            lambda params: (lambda sums: sums["loss"][0] / sums["loss"][1])(loss_of(made, net, params, given, batch))
        )
    )(params)
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), **TOLERANCE)
    from jaxft.hf.layout import rows

    flat, named = flatten_dict(net.own(grads), sep="/"), dict(learner.named_parameters())
    for path, row in rows(net.table).items():
        if any(letter in row.name for letter in "{="):
            continue  # layers stand behind the others: what holds for embeddings holds through them
        found = row.layout.to_disk(np.asarray(flat[path])[tuple(map(slice, net.stored[path]))])
        np.testing.assert_allclose(found, named[row.name].grad.numpy(), err_msg=path, **TOLERANCE)


@pytest.fixture(scope="module")
def rows():
    return tiny.unpacked(tiny.batch(4)) | {}


def test_a_classifier_of_another_family_teaches_by_its_own_order_of_classes(tmp_path, rows):
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    made, order = task(), ("c", "a", "b")
    cfg = distilbert.Config(**{**vars(distilbert.TINY), "vocab": bert.TINY.vocab, "d_model": 48, "d_ff": 96})
    net, params, given, learner, judge = pair(tmp_path, made, (bert, bert.TINY), (distilbert, cfg), labels=order)
    inputs = whole(rows)
    with torch.no_grad():
        teacher = judge(inputs["input_ids"], inputs["attention_mask"]).logits
    student = learner(**inputs).logits
    lesson, _ = jax.jit(lambda params, given: made.forward(net, params, given, rows, None))(params, given)
    place = [order.index(name) for name in CLASSES]
    np.testing.assert_allclose(lesson.teacher[:, 0], teacher.numpy()[:, place], **TOLERANCE)
    hard = torch.nn.functional.cross_entropy(student, torch.tensor(rows["label"][:, 0]).long())
    compared(made, net, params, given, rows, learner, 0.7 * hard + 0.3 * softened(student, teacher[:, place], 2.0))


def test_a_teacher_without_names_has_the_datas_order_of_classes_and_not_that_of_the_student(tmp_path, rows):
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    data = Split([{"text": "x", "label": name} for name in CLASSES], "x", str)
    fitted = task(classes=()).fit({"train": data, "validation": data}, {})
    made = dataclasses.replace(fitted, classes=("c", "a", "b"))  # as inputs do where the student's checkpoint says so
    nameless = [f"LABEL_{i}" for i in range(3)]
    net, params, given, _, judge = pair(tmp_path, made, (bert, bert.TINY), (bert, bert.TINY), labels=nameless)
    with torch.no_grad():
        teacher = judge(**whole(rows)).logits.numpy()
    lesson, _ = jax.jit(lambda params, given: made.forward(net, params, given, rows, None))(params, given)
    np.testing.assert_allclose(lesson.teacher[:, 0], teacher[:, [2, 0, 1]], **TOLERANCE)
    assert "taken to be in the data's order: a, b, c" in companions.described(net, made)[-1]


@pytest.mark.parametrize("match", ["mse", "cosine"])
def test_layers_are_compared_as_torch_compares_hidden_states_through_a_projection(tmp_path, rows, match):
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    made = task(alpha=0.0, hidden=3.0, match=match, layers=("0:0", "2:3"))
    cfg = bert.Config(**{**vars(bert.TINY), "d_model": 48, "layers": 3})
    net, params, given, learner, judge = pair(tmp_path, made, (bert, bert.TINY), (bert, cfg))
    assert params["projection"]["kernel"].shape == (2, 32, 48)
    inputs = whole(rows)
    with torch.no_grad():
        theirs = judge(**inputs, output_hidden_states=True).hidden_states
    out = learner(**inputs, output_hidden_states=True)
    real, distance = inputs["attention_mask"] > 0, 0
    for kernel, (one, other) in zip(np.asarray(params["projection"]["kernel"]), made.pairs, strict=True):
        x, y = (out.hidden_states[one] @ torch.tensor(kernel))[real], theirs[other][real]
        if match == "mse":
            distance = distance + torch.nn.functional.mse_loss(x, y)
        else:
            distance = distance + torch.nn.functional.cosine_embedding_loss(x, y, torch.ones(len(x)))
    hard = torch.nn.functional.cross_entropy(out.logits, torch.tensor(rows["label"][:, 0]).long())
    compared(made, net, params, given, rows, learner, hard + 3.0 * distance)


def test_a_language_model_is_taught_over_the_words_that_both_have(tmp_path, rows):
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    made = task(of=CAUSAL, alpha=1.0, hidden=1.0, layers=("2:2",))
    words = gpt2.TINY.vocab
    cfg = gpt2.Config(**{**vars(gpt2.TINY), "vocab": words + 9})  # rows that fill up, of which no word is
    net, params, given, learner, judge = pair(tmp_path, made, (gpt2, gpt2.TINY), (gpt2, cfg))
    assert "projection" not in net.companions, "widths are equal"
    counts = (np.roll(rows["segment"], -1, 1) > 0) & (np.arange(rows["ids"].shape[1]) < rows["ids"].shape[1] - 1)
    batch = rows | {"label": np.where(counts, np.roll(rows["ids"], -1, 1), -100).astype(np.int32)}
    batch["weight"] = counts.astype(np.float32)
    inputs = {name: x for name, x in whole(rows).items() if name != "token_type_ids"}
    with torch.no_grad():
        theirs = judge(**inputs, output_hidden_states=True)
    ours, real = learner(**inputs, output_hidden_states=True), inputs["attention_mask"] > 0
    soft = softened(ours.logits[torch.tensor(counts)], theirs.logits[torch.tensor(counts)][:, :words], 2.0)
    distance = torch.nn.functional.mse_loss(ours.hidden_states[-1][real], theirs.hidden_states[-1][real])
    compared(made, net, params, given, batch, learner, soft + distance)


def test_multilabel_and_regression_have_soft_targets_of_their_own():
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(size=(2, 3, 4)).astype(np.float32) for _ in range(2))
    weights = np.ones((2, 3), np.float32)
    weights[1, 2] = 0
    dirty = jnp.asarray(teacher).at[1, 2].set(jnp.nan)
    many = {"name": "multilabel", "text": "t", "pair": "", "label": "l", "metric": "", "separator": ""}
    many |= {"threshold": 0.5, "smoothing": 0.0}
    made = task(of=many, classes=("a", "b", "c", "d"), temperature=3.0)
    total, weight = made._soft(jnp.asarray(student), dirty, jnp.asarray(weights))
    p, q = (torch.sigmoid(torch.tensor(x)[torch.tensor(weights) > 0] / 3) for x in (teacher, student))
    expected = 9 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    np.testing.assert_allclose(total / weight, expected.item(), **TOLERANCE)
    number = {"name": "regression", "text": "t", "pair": "", "label": "l", "metric": ""}
    total, weight = task(of=number)._soft(jnp.asarray(student[..., :1]), dirty[..., :1], jnp.asarray(weights))
    np.testing.assert_allclose(total / weight, np.square(student - teacher)[..., 0][weights > 0].mean(), **TOLERANCE)


def test_micro_batches_add_up_to_the_loss_and_the_gradient_of_the_whole_batch(tmp_path):
    """Of each micro-batch the labels are another share of the tokens."""
    pytest.importorskip("torch", reason="the folder is made with transformers")
    made, batch = task(hidden=1.0, layers=("1:1",)), tiny.batch(8)
    still = {"dropout": 0.0, "attention_dropout": 0.0}
    ours, theirs = (bert.Config(**{**vars(bert.TINY), **still, "d_model": width}) for width in (32, 48))
    net, params, given, *_ = pair(tmp_path, made, (bert, ours), (bert, theirs))
    shares = batch["weight"].sum(1) / (batch["segment"] > 0).sum(1)
    assert shares.max() > 1.1 * shares.min()
    (whole, once), (parts, four) = (tiny.descended(net, made, params, batch, given, accumulate=n) for n in (1, 4))
    assert parts == pytest.approx(whole, rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), four, once)


def test_on_a_mesh_it_is_what_one_device_computes(tmp_path):
    made, results, batch = task(hidden=1.0, layers=("1:1",)), [], tiny.batch(8)
    cfg = bert.Config(**{**vars(bert.TINY), "d_model": 48})
    for i, sizes in enumerate(({}, {"data": 2, "fsdp": 2, "tensor": 2})):
        on = tiny.mesh(**sizes) if sizes else tiny.mesh(devices=1)
        net, params, given, *_ = pair(tmp_path / str(i), made, (bert, bert.TINY), (bert, cfg), on)
        held = jax.device_put(batch, sharding.batch_sharding(net.mesh, net.activations))

        def loss(params, batch, net=net, given=given):
            total, weight = loss_of(made, net, params, given, batch)["loss"]
            return total / weight

        value, grads = jax.jit(jax.value_and_grad(loss))(params, held)
        results.append((value, flatten_dict(grads, sep="/")))
    np.testing.assert_allclose(results[1][0], results[0][0], **TOLERANCE)
    for path, expected in results[0][1].items():
        np.testing.assert_allclose(results[1][1][path], expected, err_msg=path, **TOLERANCE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": ""}, "task.teacher='' must name"),
        ({"of": {"name": "image_cls"}}, "task.of.name='image_cls' is not known"),
        ({"of": {**CLS, "metric": "accurracy"}}, 'did you mean "accuracy"'),
        ({"temperature": 0.0}, "task.temperature=0.0 must be above 0"),
        ({"alpha": 1.5}, "task.alpha=1.5 must be 0 to 1"),
        ({"alpha": 0.0}, "nothing is learned from the teacher"),
        ({"hidden": 1.0}, "set both"),
        ({"hidden": 1.0, "layers": ("1-2",)}, "'1-2' is no pair"),
        ({"match": "l1", "hidden": 1.0, "layers": ("1:1",)}, "task.match='l1' is not known"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        task(**options)


@pytest.mark.parametrize(
    ("options", "labels", "message"),
    [
        ({}, ("a", "b", "x"), "has the classes a, b, x, the data a, b, c"),
        ({"hidden": 1.0, "layers": ("1:9",)}, CLASSES, "the teacher has layers 0 .embeddings. to 2, and no 9"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(tmp_path, options, labels, message):
    pytest.importorskip("torch", reason="the folder is made with transformers")
    with pytest.raises(UserError, match=message):
        pair(tmp_path, task(**options), (bert, bert.TINY), (bert, bert.TINY), labels=labels)


def test_layers_are_not_compared_with_those_of_a_prompt(tmp_path):
    pytest.importorskip("torch", reason="the folder is made with transformers")
    made, c = task(hidden=1.0, layers=("1:1",)), tiny.config()
    other = plain(bert, bert.TINY, made)
    opened(other, random_parameters(other), tmp_path / "teacher")
    sections = dict(head=made.head, outputs=made.outputs, model=c.model, rules=c.sharding, mesh=tiny.mesh(devices=1))
    net = build.network(bert, bert.TINY, peft=Prompt(tokens=3), **sections)
    with pytest.raises(UserError, match=r"task\.layers: the model has a prompt before its texts"):
        companions.attach(net, made, {"teacher": tmp_path / "teacher", "projection": None}, c)


# ---- whole runs ----


def run(config, workdir, source, *flags):
    where = (f"--config.data.train={source}", f"--workdir={workdir}")
    return program("main", f"--config=configs/{config}", *flags, *where)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Folder with x.jsonl, a teacher's run, and that of a student half as wide from random weights."""
    folder = tmp_path_factory.mktemp("distill")
    source = write_rows(folder / "x.jsonl", reviews(160, 0))
    done = run("bert_cls.py:files", folder / "teacher", source, *TINY, HOLDOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    done = student(folder, folder / "student")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "training a wordpiece tokenizer" not in done.stdout, "it reads as its teacher does"
    return folder


HOLDOUT = "--config.data.holdout=0.3"
STUDENT = (
    HOLDOUT,
    "--config.model.scratch.d_model=16",
    "--config.model.scratch.layers=1",
    "--config.task.hidden=1.0",
    "--config.task.layers=('1:2',)",
    "--config.train.ema=0.9",
)


def student(folder, workdir, *flags):
    teacher = f"--config.task.teacher={folder / 'teacher' / 'hf'}"
    return run("distill.py:files", workdir, folder / "x.jsonl", *TINY, *STUDENT, teacher, *flags)


def test_the_student_is_an_ordinary_model_that_every_verb_takes(taught, tmp_path, capsys):
    here("export", f"--run={taught / 'student'}", f"--out={tmp_path / 'hf'}", "--verify", "--step=last")
    assert f"read by {READER}" in capsys.readouterr().out
    here("evaluate", f"--run={taught / 'student'}", f"--output={tmp_path / 'scores.json'}")
    files = (tmp_path / "scores.json", taught / "student/report.json")
    scores, report = (json.loads(file.read_text()) for file in files)
    assert scores["accuracy"] == report["accuracy"] and scores["loss"] == pytest.approx(report["loss"], abs=1e-5)
    assert not any("projection" in name for name in load_file(taught / "student/hf/model.safetensors"))
    lines = [json.loads(line) for line in (taught / "student/metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "soft_loss" in line]
    assert logged[-1]["soft_loss"] < logged[0]["soft_loss"] and logged[-1]["hidden_loss"] < logged[0]["hidden_loss"]


def test_the_teacher_is_in_no_checkpoint_and_a_killed_run_ends_bit_for_bit_the_same(taught, tmp_path):
    meta = json.loads((taught / "student/checkpoints/15/meta.json").read_text())
    assert not any("teacher" in name for name in meta["state"]) and "params/projection/kernel" in meta["state"]
    again = shutil.copytree(taught / "student", tmp_path / "run")
    shutil.rmtree(again / "checkpoints" / "15")
    (again / "report.json").unlink()
    done = student(taught, again)
    assert done.returncode == 0 and "resuming from the checkpoint of step 10" in done.stdout, done.stderr
    found, expected = (load_file(one / "hf/model.safetensors") for one in (again, taught / "student"))
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def test_another_teacher_in_its_place_is_noticed_on_resume(taught, tmp_path):
    again, weights = shutil.copytree(taught / "student", tmp_path / "run"), taught / "teacher/hf/model.safetensors"
    shutil.rmtree(again / "checkpoints" / "15")
    (again / "report.json").unlink()
    before = weights.read_bytes()
    try:
        weights.write_bytes(before[:-4] + b"\0\0\0\0")
        done = student(taught, again)
    finally:
        weights.write_bytes(before)
    assert done.returncode == 2 and "made from other inputs: task.teacher changed" in done.stderr


def test_a_teacher_with_another_tokenizer_is_refused_before_any_step(taught, tmp_path):
    other = shutil.copytree(taught / "teacher/hf", tmp_path / "hf")
    strange = json.loads((other / "tokenizer.json").read_text())
    strange["normalizer"]["lowercase"] = not strange["normalizer"]["lowercase"]
    (other / "tokenizer.json").write_text(json.dumps(strange))
    # The student goes on from the teacher's own folder, and so reads as that does.
    begun = f"--config.model.hf={taught / 'teacher/hf'}"
    done = student(taught, tmp_path / "run", f"--config.task.teacher={other}", begun)
    assert done.returncode == 2 and "its tokenizer is not the model's: the normalizer is another" in done.stderr
