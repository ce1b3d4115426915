"""Rows of preferences: which conversations they stand for, what makes one a bad row, and the loss of a packed batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.dpo import get_config
from jaxft.config import parse
from jaxft.data.files import read_split
from jaxft.data.pipeline import WHOLE
from jaxft.data.source import Split
from jaxft.inputs import responses
from jaxft.layers.vocab import VocabLogits
from jaxft.registry import BadRow, UserError, call
from jaxft.tasks import TASKS
from tests.verbs_run import write_rows

ASKED = {"role": "user", "content": "How far?"}
NEAR, FAR = ({"role": "assistant", "content": text} for text in ("Two miles.", "Far."))
SINGLE = {"text": ("prompt", "completion"), "label": "label", "objective": "kto"}
SHARED = {"dialect": "sharegpt", "text": ("conversations", "chosen", "rejected")}


def task(**options):
    return call(TASKS, {**get_config().to_dict()["task"], **options}, "task")


@pytest.mark.parametrize(
    "options, row",
    [
        ({}, {"prompt": "How far?", "chosen": "Two miles.", "rejected": "Far."}),
        ({"dialect": "messages"}, {"prompt": [ASKED], "chosen": [NEAR], "rejected": FAR}),
        ({"dialect": "messages"}, {"prompt": "How far?", "chosen": "Two miles.", "rejected": [FAR]}),
        (
            {"dialect": "messages", "text": ("chosen", "rejected")},
            {"prompt": "How far?", "chosen": [ASKED, NEAR], "rejected": [ASKED, FAR]},
        ),
        (
            SHARED,
            {
                "conversations": [{"from": "human", "value": "How far?"}],
                "chosen": {"from": "gpt", "value": "Two miles."},
                "rejected": {"from": "gpt", "value": "Far."},
            },
        ),
    ],
)
def test_every_dialect_says_the_same_two_conversations(options, row):
    made = task(**options).fit({"train": Split([row], "x", lambda i: "x:1")}, {})
    assert made.responses(row) == [([ASKED, NEAR], 1), ([ASKED, FAR], 0)]
    assert [example.text for example in made.example(row)] == [["How far?", "Two miles."], ["How far?", "Far."]]


@pytest.mark.parametrize("label, kind", [(True, 1), (0, 0), ("True", 1), ("0", 0)])
def test_a_single_response_is_good_or_not(label, kind):
    row = {"prompt": "How far?", "completion": "Far.", "label": label}
    assert task(**SINGLE).responses(row) == [([ASKED, FAR], kind)]


@pytest.mark.parametrize(
    "options, row, reason",
    [
        ({}, {"prompt": "a", "chosen": "b", "rejected": "b"}, "the chosen and the rejected response are equal"),
        ({}, {"prompt": "a", "chosen": " ", "rejected": "b"}, "'chosen' is empty"),
        ({}, {"prompt": [], "chosen": "c", "rejected": "b"}, "'prompt' must be a list"),
        ({"dialect": "messages"}, {"prompt": "a", "chosen": [NEAR, NEAR], "rejected": [FAR]}, "one turn of the assist"),
        ({"dialect": "messages"}, {"prompt": "a", "chosen": [ASKED], "rejected": [FAR]}, "it has: user"),
        ({"dialect": "messages"}, {"prompt": "a", "chosen": {"role": "bot"}, "rejected": "b"}, "has the role 'bot'"),
        (
            {"dialect": "messages", "text": ("chosen", "rejected")},
            {"chosen": [ASKED, NEAR], "rejected": [ASKED, ASKED, FAR]},
            "differ in more than their last turn",
        ),
        ({"dialect": "messages", "text": ("chosen", "rejected")}, {"chosen": [NEAR], "rejected": [FAR]}, "no prompt"),
        (SINGLE, {"prompt": "a", "completion": "b", "label": "yes"}, "'label' is 'yes'; it must be true or false"),
    ],
)
def test_a_row_that_prefers_nothing_is_a_bad_one(options, row, reason):
    with pytest.raises(BadRow, match=reason):
        task(**options).responses(row)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"objective": "ppo"}, r"task\.objective='ppo' must be one of: dpo, ipo, orpo, kto"),
        ({"dialect": "alpaca"}, r"task\.dialect='alpaca' must be one of"),
        ({"label": "label"}, r"single responses are for task\.objective='kto' alone"),
        ({"text": ("chosen", "rejected")}, r"task\.text=\('chosen', 'rejected'\) must name the columns"),
        ({"beta": 0.0}, r"task\.beta=0\.0 must be above 0"),
        ({"objective": "ipo", "smoothing": 0.1}, r"task\.smoothing=0\.1 must be .* for 'dpo' alone"),
        ({"desirable": 2.0}, r"task\.desirable=2\.0, task\.undesirable=1\.0 are weights of 'kto'"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        task(**options)


ROWS = [
    {"prompt": "How far is it?", "chosen": "Two miles.", "rejected": "Far."},
    {"prompt": "How old?", "chosen": "Ten.", "rejected": "I do not know, and who does?"},
    {"prompt": "Why?", "chosen": "So.", "rejected": "Ask."},
]
SINGLES = [{"prompt": row["prompt"], "completion": row["chosen"], "label": i != 1} for i, row in enumerate(ROWS)]


def prepared(folder, rows=ROWS, say=lambda text: None, **options):
    raw = get_config("files").to_dict()
    source = write_rows(folder / "x.jsonl", rows)
    raw["data"].update(train=str(source), validation=str(source), holdout=0.0)
    raw["input"].update(length=40, pack=2)
    raw["tokenizer"]["vocab"] = 300
    raw["task"].update(options)
    cfg = type("Cfg", (), {"positions": 40})
    return responses.prepare(parse(raw), cfg, folder / "tokenizer", None, say)


D = 8


def scored(inputs, rows):
    """((sums, seen) of a batch of random vectors, the loss's gradient, the vectors and a table, the batch)."""
    reference = {name: np.linspace(-9, -3, len(held.lengths), dtype=np.float32) for name, held in inputs.caches.items()}
    batch = next(iter(type(inputs)(**{**vars(inputs), "reference": reference}).eval_batches("train", rows, WHOLE)))
    rng = np.random.default_rng(0)
    vocab = inputs.encoder.vocab_size
    x_BLD = jnp.asarray(rng.normal(size=(*batch["ids"].shape, D)), jnp.float32)
    table_VD = jnp.asarray(rng.normal(size=(vocab, D)), jnp.float32)

    def loss(x_BLD):
        logits = VocabLogits(x_BLD, table_VD, None, 0.0, vocab)
        sums = inputs.task.loss(logits, batch)
        return sums["loss"][0], (sums, inputs.task.seen(logits, batch))

    gradient, (sums, seen) = jax.jit(jax.grad(loss, has_aux=True))(x_BLD)
    return jax.device_get((sums, seen)), gradient, (x_BLD, table_VD), batch


def by_hand(given, batch):
    """kind -> [(log-likelihood, its reference, tokens)] of each response, in the order of the batch; torch tensors."""
    import torch

    x_BLD, table_VD = given
    log_BLV = torch.log_softmax(x_BLD @ table_VD.T, -1)
    found = {}
    for row, slot in zip(*np.nonzero(batch["example"] >= 0), strict=True):
        at = np.flatnonzero((batch["segment"][row] == slot + 1) & (batch["label"][row] != -100))
        total = log_BLV[row, at, torch.tensor(batch["label"][row, at]).long()].sum()
        item = (total, float(batch["reference"][row, slot]), len(at))
        found.setdefault(int(batch["kind"][row, slot]), []).append(item)
    return found


def in_torch(objective, found, torch):
    sigmoid = torch.nn.functional.logsigmoid
    if objective == "kto":
        kl = torch.stack([p - r for p, r, _ in found[2]]).mean().clamp(min=0).detach()
        good = [1 - torch.sigmoid(0.1 * (p - r - kl)) for p, r, _ in found[1]]
        return sum(good) * 2.0 + sum(1 - torch.sigmoid(0.1 * (kl - p + r)) for p, r, _ in found[0])
    losses = []
    for (pc, rc, nc), (pr, rr, nr) in zip(found[1], found[0], strict=True):
        if objective == "dpo":
            losses.append(-sigmoid(0.1 * ((pc - rc) - (pr - rr))))
        elif objective == "ipo":
            losses.append(((pc - rc) / nc - (pr - rr) / nr - 1 / 0.2) ** 2)
        else:
            a, b = pc / nc, pr / nr
            odds = a - b - torch.log1p(-torch.exp(a)) + torch.log1p(-torch.exp(b))
            losses.append(-a - 0.1 * sigmoid(odds))
    return sum(losses)


@pytest.mark.parametrize("options", [{}, {"objective": "ipo"}, {"objective": "orpo"}, {"objective": "kto"}, SINGLE])
def test_the_loss_of_a_packed_batch_and_its_gradient_are_those_of_torch(options, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is the reference here")
    weights = {"desirable": 2.0} if options.get("objective") == "kto" else {}
    inputs = prepared(tmp_path, SINGLES if "label" in options else ROWS, **options, **weights)
    (sums, seen), gradient, given, batch = scored(inputs, rows=3)
    tensors = [torch.tensor(np.asarray(x)) for x in given]
    tensors[0].requires_grad_(True)
    found = by_hand(tensors, batch)
    count = {"kto": sum(len(found[kind]) for kind in (0, 1))}.get(inputs.task.objective, 3)
    expected = in_torch(inputs.task.objective, found, torch)
    expected.backward()
    np.testing.assert_allclose(sums["loss"][0], expected.item(), rtol=2e-5)
    assert sums["loss"][1] == count == sums["accuracy"][1]
    np.testing.assert_allclose(gradient, tensors[0].grad.numpy(), rtol=1e-4, atol=1e-5)
    free = inputs.task.objective == "orpo"
    scale = [[n if inputs.task.objective in ("ipo", "orpo") else 1 for *_, n in found[kind]] for kind in (0, 1)]
    rewards = [
        np.mean(
            [0.1 * (p.item() - (0 if free else r)) / n for (p, r, _), n in zip(found[kind], scale[kind], strict=True)]
        )
        for kind in (0, 1)
    ]
    assert [float(sums[name][0] / sums[name][1]) for name in ("rejected_reward", "chosen_reward")] == pytest.approx(
        rewards, rel=1e-4
    )
    meter = inputs.task.meter()
    meter.update(sums, seen)
    assert meter.result()["margin"] == pytest.approx(rewards[1] - rewards[0], rel=1e-3)
    assert meter.result()["loss"] == pytest.approx(float(sums["loss"][0]) / count)


def test_the_scores_of_kto_are_those_of_a_split_however_many_batches_it_comes_in(tmp_path):
    """Whose baselines differ."""
    inputs = prepared(tmp_path, SINGLES, **SINGLE)
    (_, seen), *_ = scored(inputs, rows=3)
    seen["ratio"] = seen["ratio"] - seen["ratio"][seen["kind"] == 2].mean()  # one baseline is above 0 and one below
    whole, parts = inputs.task.meter(), inputs.task.meter()
    whole.update({}, seen)
    used = [row for row in range(3) if (seen["kind"][row] >= 0).any()]
    for row in used:
        parts.update({}, {name: array[row : row + 1] for name, array in seen.items()})
    assert parts.report() == pytest.approx(whole.report()) and whole.report()["responses"] == 3
    others = [seen["ratio"][row][seen["kind"][row] == 2].mean() for row in used]
    assert len({max(other, 0) for other in others}) > 1, "else it would prove nothing"


def test_only_the_response_is_scored_and_a_group_shares_a_row(tmp_path):
    inputs = prepared(tmp_path)
    *_, batch = scored(inputs, rows=3)
    assert batch["ids"].shape == (3, 80) and sorted(batch["kind"][batch["example"] >= 0]) == [0] * 3 + [1] * 3
    seen = set()
    for row, slot in zip(*np.nonzero(batch["example"] >= 0), strict=True):
        inside = batch["segment"][row] == slot + 1
        said = batch["label"][row][inside & (batch["label"][row] != -100)]
        seen.add(inputs.encoder.tokenizer.decode(said.tolist(), skip_special_tokens=False))
    assert seen == {f"{row[name]}<|end|>" for row in ROWS for name in ("chosen", "rejected")}


def test_kto_sees_an_answer_to_another_prompt(tmp_path):
    inputs = prepared(tmp_path, [*SINGLES, {**SINGLES[2], "completion": "Never."}], **SINGLE)
    held, kinds = inputs.caches["train"], inputs.kinds["train"]
    assert kinds.tolist() == [1, 2, 0, 2, 1, 2, 1, 2]
    texts = [inputs.encoder.text(held.ids[a:b].tolist()) for a, b in zip(held.offsets, held.offsets[1:], strict=False)]
    assert texts[1] == "How far is it?Ten." and texts[5] == "Why?Two miles." and texts[7] == "Why?Two miles."
    with pytest.raises(UserError, match="no other row has another prompt"):
        prepared(tmp_path, SINGLES[:1], **SINGLE)


@pytest.mark.parametrize("prompts, answers", [(1, 3), (2, 2), (2, 9), (9, 2), (3, 3), (9, 9)])
def test_the_row_whose_answer_is_taken_is_the_next_that_differs_in_both(prompts, answers):
    rng = np.random.default_rng(0)
    for count in (*range(1, 9), 40):
        keys = [(b"%d" % p, b"%d" % a) for p, a in rng.integers(0, [prompts, answers], (count, 2))]
        for i, found in enumerate(responses.following(keys)):
            later = ((i + step) % count for step in range(1, count))
            assert found == next((j for j in later if all(np.not_equal(keys[i], keys[j]))), None), (keys, i)


def test_a_row_without_an_answer_to_another_prompt_does_not_cost_a_search_of_all():
    class Counted(list):
        read = 0

        def __getitem__(self, index):
            self.read += 1
            return super().__getitem__(index)

    rows = Counted({"prompt": "Why?", "completion": f"So {i}.", "label": True} for i in range(100))
    rows[50] = {"prompt": " ", "completion": "So.", "label": True}
    with_another = responses.WithAnother(Split(rows, "x", str), task(**SINGLE))
    for i in range(100):
        with pytest.raises(BadRow, match="'prompt' is empty" if i == 50 else "no other row has another prompt"):
            with_another[i]
    assert rows.read <= 3 * len(rows)


def test_every_pair_of_a_published_set_is_read(shared_data):
    made = task(**SHARED)
    for language in ("en", "zh"):
        split = read_split(str(shared_data / "preference-dpo-demo" / f"dpo_{language}.jsonl"))
        pairs = [made.responses(row) for row in split.rows]
        assert len(pairs) == 300 and not split.bad and max(len(chosen) for (chosen, _), _ in pairs) > 2


def test_equal_responses_are_told_with_file_and_line(tmp_path):
    with pytest.raises(UserError, match=r"1 of 2 rows cannot be used:\n.*x\.jsonl:2: the chosen and the rejected"):
        prepared(tmp_path, [ROWS[0], {"prompt": "a", "chosen": "b", "rejected": "b"}])


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_pairs_that_are_equal_where_they_are_cut_are_left_out_and_told_with_file_and_line(objective, tmp_path):
    long = {"prompt": "Why?", "chosen": "so " * 40, "rejected": "so " * 39 + "what"}
    said = []
    inputs = prepared(tmp_path, [ROWS[0], long, *ROWS[1:]], said.append, objective=objective)
    group = {"dpo": 2, "kto": 3}[objective]
    assert inputs.caches["train"].row.tolist() == np.repeat([0, 2, 3], group).tolist()
    assert len(inputs.kinds["train"]) == 3 * group
    told = "\n".join(said)
    assert "train: 1 of 4 rows left out (listed in" in told
    assert "x.jsonl:2: the chosen and the rejected response have equal tokens in the first 40" in told
