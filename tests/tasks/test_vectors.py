"""Vectors of texts: losses and ranks by hand, the real program against sentence-transformers."""

import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from jaxft import build, scoring, sharding
from jaxft.data import pack, pipeline, tokens
from jaxft.hf import sentence
from jaxft.metrics import retrieval as metrics
from jaxft.models import bert
from jaxft.registry import BadRow, UserError
from jaxft.tasks.retrieval import Retrieval
from jaxft.tasks.similarity import Similarity
from tests import tiny
from tests.verbs_run import LENGTH, TINY, here, program, read_rows, write_rows

TOLERANCE = 1e-5  # of a mean loss in float32; never loosened
OPTIONS = dict(text="q", pair="p", pooling="mean", metric="")
SEARCH = Retrieval(**OPTIONS, negatives="", scale=20.0, symmetric=False)
SCORED = Similarity(**OPTIONS, label="score", most=5.0)
D = 8


def test_a_row_is_a_query_its_passage_and_what_does_not_belong():
    task = Retrieval(**OPTIONS, negatives="no", scale=20.0, symmetric=False)
    made = task.example({"q": "a", "p": "b", "no": ["c", "b2"]})
    assert [one.text for one in made] == ["a", "b", "c", "b2"]
    again = task.example({"q": "x", "p": "c", "no": "a"})
    assert again[1].label == made[2].label and again[2].label == made[0].label  # equal texts are known by it
    assert [one.text for one in task.example({"q": "a", "p": "b"}, labelled=False)] == ["a", "b"]
    assert [one.text for one in task.example({"q": "a"}, labelled=False)] == ["a"]
    with pytest.raises(BadRow, match="right and wrong"):
        task.example({"q": "a", "p": "b", "no": ["b"]})
    with pytest.raises(BadRow, match="'p' is empty"):
        task.example({"q": "a", "p": " ", "no": ["b"]})


def test_scores_are_shares_of_the_highest_and_others_are_bad_rows():
    assert [one.label for one in SCORED.example({"q": "a", "p": "b", "score": "2.5"})] == [0.5, 0.5]
    for score, message in (
        (5.1, "from 0 to task.most=5"),
        (-1, "from 0 to"),
        (None, "label is empty"),
        ("x", "number"),
    ):
        with pytest.raises(BadRow, match=message):
            SCORED.example({"q": "a", "p": "b", "score": score})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(pooling="max"), r"task\.pooling='max' is not known; known: mean"),
        (dict(pair=""), r"task\.pair=''"),
        (dict(scale=0.0), r"task\.scale=0"),
        (dict(metric="accuracy"), r"task\.metric='accuracy'"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Retrieval(**{**OPTIONS, "negatives": "", "scale": 20.0, "symmetric": False, **options})


def packed(groups, length=12, most=2, seed=0):
    """(vectors of all tokens, batch): each text of a group has one to three tokens; rows hold up to `most` groups."""
    rng = np.random.default_rng(seed)
    sizes = {}

    def encode(texts):
        sizes.update({text: int(rng.integers(1, 4)) for text, _ in texts if text not in sizes})
        return [([1] * sizes[text], [0] * sizes[text], False) for text, _ in texts]

    held = tokens.in_memory(groups, encode)
    plan = pack.plan_groups(held.lengths, held.begins, row_length=length, max_groups=most, seed=0)
    (batch,) = pipeline.eval_batches(held, plan, batch=plan.rows + 1, row_length=length, share=pipeline.WHOLE)
    return rng.normal(size=(*batch["ids"].shape, D)).astype(np.float32), batch


def texts_of(vectors_BLD, batch, pooling):
    """{example: vector of length 1}, one by one."""
    found = {}
    for row, slot in zip(*np.nonzero(batch["example"] >= 0), strict=True):
        of_text = vectors_BLD[row, batch["segment"][row] == slot + 1]
        x_D = {"mean": of_text.mean(0), "first": of_text[0], "last": of_text[-1]}[pooling]
        found[int(batch["example"][row, slot])] = x_D / np.linalg.norm(x_D)
    return found


ALIKE = ((0, 2), (1, 4))  # "A" belongs to two queries, "b" asks for two passages
GROUPS = [SEARCH.example({"q": q, "p": p}) for q, p in (("a", "A"), ("b", "B"), ("c", "A"), ("d", "D"), ("b", "E"))]


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_a_query_finds_its_passage_among_those_of_all_rows_and_no_other_right_one_is_wrong(pooling):
    task = Retrieval(**OPTIONS | {"pooling": pooling}, negatives="", scale=20.0, symmetric=False)
    vectors_BLD, batch = packed(GROUPS)
    x = texts_of(vectors_BLD, batch, pooling)
    queries, passages = np.stack([x[2 * i] for i in range(5)]), np.stack([x[2 * i + 1] for i in range(5)])
    scores_QP = 20 * queries @ passages.T
    for one, other in ALIKE:
        scores_QP[one, other] = scores_QP[other, one] = -np.inf
    hits = (scores_QP.argmax(1) == np.arange(5)).sum()
    losses = np.log(np.exp(scores_QP).sum(1)) - np.diag(scores_QP)
    total, weight = task.loss(jnp.asarray(vectors_BLD), batch)["loss"]
    np.testing.assert_allclose((total, weight), (losses.sum(), 5), rtol=1e-5)
    assert float(task.loss(jnp.asarray(vectors_BLD), batch)["accuracy"][0]) == hits


def test_the_symmetric_loss_asks_the_passages_too():
    task = Retrieval(**OPTIONS, negatives="", scale=20.0, symmetric=True)
    vectors_BLD, batch = packed(GROUPS)
    x = texts_of(vectors_BLD, batch, "mean")
    scores_QP = 20 * np.stack([x[2 * i] for i in range(5)]) @ np.stack([x[2 * i + 1] for i in range(5)]).T
    own = np.diag(scores_QP).copy()
    for one, other in ALIKE:
        scores_QP[one, other] = scores_QP[other, one] = -np.inf
    losses = [np.log(np.exp(side).sum(1)) - own for side in (scores_QP, scores_QP.T)]
    np.testing.assert_allclose(
        task.loss(jnp.asarray(vectors_BLD), batch)["loss"][0], np.mean(losses, 0).sum(), rtol=1e-5
    )


def test_negatives_of_any_row_are_wrong_for_every_query():
    task = Retrieval(**OPTIONS, negatives="no", scale=20.0, symmetric=False)
    groups = [task.example(row) for row in ({"q": "a", "p": "A", "no": ["x", "y"]}, {"q": "b", "p": "B", "no": "z"})]
    vectors_BLD, batch = packed(groups)
    x = texts_of(vectors_BLD, batch, "mean")
    passages = np.stack([x[i] for i in (1, 2, 3, 5, 6)])
    losses = []
    for query, own in ((0, 0), (4, 3)):
        scores_P = 20 * passages @ x[query]
        losses.append(np.log(np.exp(scores_P).sum()) - scores_P[own])
    np.testing.assert_allclose(task.loss(jnp.asarray(vectors_BLD), batch)["loss"][0], sum(losses), rtol=1e-5)


def test_the_loss_of_similarity_is_the_squared_error_of_the_cosine():
    groups = [SCORED.example({"q": q, "p": p, "score": s}) for q, p, s in (("a", "b", 5), ("c", "d", 1), ("e", "f", 0))]
    vectors_BLD, batch = packed(groups)
    x = texts_of(vectors_BLD, batch, "mean")
    errors = [(x[2 * i] @ x[2 * i + 1] - score) ** 2 for i, score in enumerate((1.0, 0.2, 0.0))]
    total, weight = SCORED.loss(jnp.asarray(vectors_BLD), batch)["loss"]
    np.testing.assert_allclose((total, weight), (sum(errors), 3), rtol=1e-5)


@pytest.mark.parametrize("task", [SEARCH, SCORED], ids=["retrieval", "similarity"])
def test_padding_and_empty_slots_change_neither_loss_nor_gradient(task):
    groups = GROUPS if task is SEARCH else [SCORED.example({"q": "a", "p": "b", "score": 3})]
    vectors_BLD, batch = packed(groups)
    clean = jnp.asarray(vectors_BLD)
    dirty = jnp.where((batch["segment"] > 0)[..., None], clean, 1e9)
    assert (batch["segment"] == 0).any() and (batch["example"] == -1).any()
    for x in (clean, dirty):
        gradient = jax.grad(lambda x: task.loss(x, batch)["loss"][0])(x)
        assert np.isfinite(gradient).all() and (gradient[batch["segment"] == 0] == 0).all()
    np.testing.assert_allclose(task.loss(dirty, batch)["loss"][0], task.loss(clean, batch)["loss"][0], rtol=1e-5)


def test_ranks_are_those_of_a_search_among_all_passages_and_ties_are_not_won():
    rng = np.random.default_rng(0)
    queries, passages = rng.normal(size=(7, D)), rng.normal(size=(30, D))
    own = [rng.permutation(30)[: 1 + i % 2] for i in range(7)]
    expected = []
    for q, mine in zip(queries, own, strict=True):
        order = [i for i in np.argsort(-(passages @ q)).tolist()]
        expected.append(min(map(order.index, mine)) + 1)  # those before the first of its own are others
    assert metrics.ranks(queries, passages, own).tolist() == expected
    assert metrics.ranks(queries, np.ones((30, D)), own).tolist() == [31 - len(mine) for mine in own]
    assert metrics.ranks(queries * np.nan, passages, own).tolist() == [31] * 7
    found = np.array([1, 2, 11, 4])
    assert metrics.mrr_10(found) == (1 + 1 / 2 + 1 / 4) / 4 and metrics.recall_1(found) == 0.25
    assert metrics.recall_10(found) == 0.75
    assert metrics.ndcg_10(found) == pytest.approx((1 + 1 / np.log2(3) + 1 / np.log2(5)) / 4)


def test_the_passages_of_all_devices_are_the_choice_of_each_query():
    """The loss, and the gradients, of one device and of eight that share the batch."""
    groups = [SEARCH.example({"q": f"q{i}", "p": f"p{i}"}) for i in range(20)]
    _, batch = packed(groups, most=3)
    batch = {name: np.resize(array, (8, *array.shape[1:])) for name, array in batch.items()}
    batch["ids"] = np.random.default_rng(0).integers(1, bert.TINY.vocab, batch["ids"].shape).astype(np.int32)
    found = []
    for devices, sizes in ((1, {}), (8, dict(data=2, fsdp=2, tensor=2))):
        mesh, c = tiny.mesh(devices, **sizes), tiny.config()
        net = build.network(bert, bert.TINY, head="vectors", outputs=0, model=c.model, rules=c.sharding, mesh=mesh)
        params = unflatten_dict(build.initialise(net, seed=0), sep="/")
        where = sharding.batch_sharding(mesh, c.sharding.activations)

        def loss(params, batch, net=net):
            with net.tracing():
                vectors, _ = net.forward_with_losses(params, batch, None)
                total, weight = SEARCH.loss(vectors, batch)["loss"]
                return total / weight

        value, gradient = jax.jit(jax.value_and_grad(loss))(params, scoring.to_device(batch, where))
        found.append((float(value), np.asarray(gradient["embed"]["word"]["table"])))
    (one, gradient_of_one), (eight, gradient_of_eight) = found
    assert one > 1 and eight == pytest.approx(one, rel=1e-5)
    np.testing.assert_allclose(gradient_of_eight, gradient_of_one, atol=1e-5)


def pairs(n, seed):
    """Two texts about the same thing in other words, and how much they have in common."""
    rng = random.Random(seed)
    things = [
        ("cat", "kitten"),
        ("car", "vehicle"),
        ("sea", "ocean"),
        ("tree", "oak"),
        ("house", "home"),
        ("king", "ruler"),
    ]
    rows = []
    for i in range(n):
        chosen = rng.sample(things, 2)
        other = chosen if i % 2 else [chosen[0], rng.choice([x for x in things if x not in chosen])]
        words = [" ".join(rng.choices(("so", "then"), k=rng.choice((0, 2, 40)))) for _ in range(2)]
        text = " ".join(thing[0] for thing in chosen) + f" {i} " + words[0]
        pair = f"{i} " + " ".join(thing[1] for thing in other) + " " + words[1]
        rows.append({"id": i, "text": text, "pair": pair, "score": 4.0 if i % 2 else 2.0})
    return rows


@pytest.fixture(scope="module", params=["retrieval", "similarity"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    files = {name: write_rows(folder / f"{name}.jsonl", pairs(n, n)) for name, n in (("train", 160), ("test", 40))}
    flags = [f"--config.data.train={files['train']}", f"--config.data.validation={files['test']}"]
    flags += ["--config.optim.lr=3e-3", "--config.train.duration=20 steps", "--config.evaluate.every=10"]
    if request.param == "similarity":
        section = dict(name="similarity", text="text", pair="pair", label="score", most=4.0, pooling="first", metric="")
        flags.append(f"--config.task={section}")
    done = program("main", "--config=configs/retrieval.py:files", *TINY, *flags, f"--workdir={folder / 'run'}")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


def test_sentence_transformers_gives_the_vectors_that_were_scored(run, tmp_path):
    theirs = pytest.importorskip("sentence_transformers", reason="the reference of vectors")
    rows = pairs(40, 40)
    model = theirs.SentenceTransformer(str(run / "hf"), device="cpu")
    assert model.max_seq_length == LENGTH
    texts, others = (model.encode([row[name] for row in rows]) for name in ("text", "pair"))
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, rtol=1e-5)
    report, cosines = json.loads((run / "report.json").read_text()), (texts * others).sum(1)
    if "mrr_10" in report:
        index = {text: i for i, text in enumerate(dict.fromkeys(row["pair"] for row in rows))}
        passages = others[[next(i for i, row in enumerate(rows) if row["pair"] == text) for text in index]]
        order = np.argsort(-(texts @ passages.T), axis=1)
        ranks = [list(found).index(index[row["pair"]]) + 1 for found, row in zip(order, rows, strict=True)]
        assert report["mrr_10"] == pytest.approx(np.mean([1 / r if r <= 10 else 0 for r in ranks]), abs=1e-6)
        assert report["details"]["passages"] == len(index) and report["mrr_10"] > 0.2  # 0.08 by chance
    else:
        from scipy.stats import spearmanr

        scores = [row["score"] / 4 for row in rows]
        assert report["loss"] == pytest.approx(np.mean((cosines - scores) ** 2), abs=TOLERANCE)
        assert report["spearman"] == pytest.approx(spearmanr(cosines, scores)[0], abs=1e-6)
    source = write_rows(tmp_path / "x.jsonl", [{"text": row["text"], "pair": row["pair"]} for row in rows[:9]])
    here("predict", f"--run={run}", f"--input={source}", f"--output={tmp_path / 'y.jsonl'}")
    found = [row["predicted_similarity"] for row in read_rows(tmp_path / "y.jsonl")]
    np.testing.assert_allclose(found, cosines[:9], atol=1e-5)
    source = write_rows(tmp_path / "z.jsonl", [{"text": row["text"]} for row in rows[:9]])
    here("predict", f"--hf={run / 'hf'}", f"--input={source}", f"--output={tmp_path / 'z_out.jsonl'}")
    found = [row["predicted_vector"] for row in read_rows(tmp_path / "z_out.jsonl")]
    np.testing.assert_allclose(found, texts[:9], atol=1e-5)


def test_evaluate_and_export_agree_with_the_report(run, tmp_path, capsys):
    report = json.loads((run / "report.json").read_text())
    here("evaluate", f"--run={run}", f"--data={run.parent / 'test.jsonl'}", f"--output={tmp_path / 'x.json'}")
    again = json.loads((tmp_path / "x.json").read_text())
    names = (
        ("mrr_10", "recall_1", "recall_10", "ndcg_10") if "mrr_10" in report else ("spearman", "pearson", "mse", "loss")
    )
    for name in names:
        assert again[name] == pytest.approx(report[name], abs=TOLERANCE)
    for _ in range(2):  # the second replaces the first
        here("export", f"--run={run}", f"--out={tmp_path / 'out'}", "--verify")
    assert capsys.readouterr().out.count("verified") == 2
    assert sentence.pooling(tmp_path / "out") == ("mean" if "mrr_10" in report else "first")
    (tmp_path / "out" / "1_Pooling" / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match=r"not an earlier export of jaxft: 1_Pooling/mine\.txt"):
        here("export", f"--run={run}", f"--out={tmp_path / 'out'}")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first"),
        ({"pooling_mode": "mean", "embedding_dimension": 8}, "mean"),
        ({"pooling_mode": ["cls", "mean"]}, "first and mean is not supported"),
        ({"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens is not supported"),
    ],
)
def test_pooling_is_read_in_both_dialects_and_others_are_refused(tmp_path, config, expected):
    sentence.write(tmp_path, pooling="mean", d_model=8, length=9)
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    if expected in ("first", "mean"):
        assert sentence.pooling(tmp_path) == expected
    else:
        with pytest.raises(UserError, match=expected):
            sentence.pooling(tmp_path)


def test_further_layers_are_refused_and_a_folder_without_modules_says_nothing(tmp_path):
    assert sentence.pooling(tmp_path) is None
    modules = [{"idx": i, "path": "", "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate("TPD")]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match="the modules T in '', P in '', D in '' are not supported"):
        sentence.pooling(tmp_path)


@pytest.mark.parametrize("path", ["../out", "/etc", None])
def test_no_path_leads_out_of_the_folder(tmp_path, path):
    sentence.write(tmp_path, pooling="mean", d_model=8, length=9)
    assert sentence.pooling(tmp_path) == "mean" and sentence.max_length(tmp_path) == 9
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[1]["path"] = path
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match="are not supported"):
        sentence.pooling(tmp_path)
