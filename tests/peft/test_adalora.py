"""AdaLoRA: what it adds, what its schedule and its choice of triplets are, and what `peft` makes of its folders."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxft import adapters, build, exporting, scoring, sharding, state, verify
from jaxft.hf import folder as hf_folder
from jaxft.hf import save
from jaxft.models import gpt2, llama
from jaxft.peft.adalora import AdaLora
from jaxft.peft.pruning import Schedule, highest, pruned
from jaxft.registry import UserError
from tests import tiny

STEPS = 6
SMALL = AdaLora(init_rank=4, target_rank=2, tinit="1 steps", tfinal="2 steps", delta_t="1 steps")


@pytest.fixture(scope="module")
def on():
    return tiny.mesh(devices=1)


def bert(on, method):
    return build.network(
        tiny.bert,
        tiny.bert.TINY,
        head="sequence",
        outputs=3,
        model=tiny.config().model,
        rules=tiny.config().sharding,
        mesh=on,
        peft=method,
    )


def moved(params, by=0.1):
    """Adapters that have learned something, a part of their triplets pruned."""
    rng, flat = np.random.default_rng(0), flatten_dict(params, sep="/")
    for path in sorted(path for path in flat if "/adapter/" in path):
        flat[path] = flat[path] + by * rng.standard_normal(flat[path].shape).astype(np.float32)
        if path.endswith("/e"):
            flat[path] = 10 * flat[path] * (rng.random(flat[path].shape) < 0.5)
    return unflatten_dict(flat, sep="/")


# ---- what it computes ----


def test_a_new_adapter_changes_no_output(on):
    net, plain = bert(on, SMALL), bert(on, None)
    params, _ = build.parameters(net, None, 0, False)
    bare = {p: leaf for p, leaf in flatten_dict(params, sep="/").items() if "/adapter/" not in p}
    batch = tiny.batch()
    with_adapter = jax.jit(net.forward)(params, batch)
    np.testing.assert_array_equal(with_adapter, jax.jit(plain.forward)(unflatten_dict(bare, sep="/"), batch))


def test_the_loss_is_the_mean_distance_from_orthonormal_vectors():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5, 3), np.float32), rng.standard_normal((2, 3, 7), np.float32)
    total, count = SMALL.losses({"x/adapter/a": jnp.array(a), "x/adapter/b": jnp.array(b)})["orthogonality"]
    norms = [np.linalg.norm(m.T @ m - np.eye(3)) for m in a] + [np.linalg.norm(m @ m.T - np.eye(3)) for m in b]
    np.testing.assert_allclose(total / count, SMALL.orth * np.mean(norms), rtol=1e-6)


def test_orthonormal_vectors_have_no_loss_and_no_gradient():
    eye = jnp.eye(3)
    grads = jax.grad(lambda a: SMALL.losses({"x/adapter/a": a, "x/adapter/b": eye})["orthogonality"][0])(eye)
    np.testing.assert_array_equal(grads, np.zeros((3, 3)))


# ---- when it prunes, and what ----


def test_the_budget_falls_from_all_triplets_to_the_last_one():
    budgets = Schedule(total=100, tinit=10, tfinal=30, delta_t=5).budgets(96, 40)
    assert len(budgets) == 71 and (budgets[:11] == 96).all() and budgets[70] == 40
    assert (np.diff(budgets) <= 0).all() and budgets[40] == int(56 * 0.5**3 + 40)


def test_exactly_as_many_as_the_budget_stay_among_equal_scores():
    kept = highest({"x": jnp.zeros((2, 3)), "y": jnp.array([0.0, 1.0])}, jnp.int32(3))
    assert sum(int(k.sum()) for k in kept.values()) == 3 and bool(kept["y"][1])


def trained(on, method, steps, resumed=None, first=0):
    """(parameters, state) after some steps of the step that runs take."""
    net = bert(on, method)
    config = tiny.config(clip=1.0)
    plan = state.plan(net, config, lambda step: 1.0)
    step = state.training_step(net, tiny.TASK, plan, config)
    params, _ = build.parameters(net, None, 0, False)
    now = plan.make(params) if resumed is None else resumed
    where = sharding.batch_sharding(on, net.activations)
    counts = []
    for i in range(first, first + steps):
        now, _ = step(now, scoring.to_device(tiny.batch(seed=i), where), {})
        counts.append(left(now))
    return now, counts


def left(now):
    flat = flatten_dict(now.params, sep="/")
    return sum(int((leaf != 0).sum()) for path, leaf in flat.items() if path.endswith("/adapter/e"))


def test_a_run_ends_with_its_budget_and_resumes_bit_for_bit(on):
    method = SMALL.for_run(STEPS)
    layers = 4 * tiny.bert.TINY.layers
    whole, counts = trained(on, method, STEPS)
    budgets = method.schedule(STEPS).budgets(4 * layers, 2 * layers)
    assert counts == [*map(int, budgets[1:]), 2 * layers, 2 * layers]
    half, _ = trained(on, method, 3)
    half = jax.tree.map(lambda leaf: jnp.array(jax.device_get(leaf)), half)
    again, _ = trained(on, method, STEPS - 3, resumed=half, first=3)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(init_rank=2, target_rank=3), "peft.target_rank=3"),
        (dict(target_rank=0), "peft.target_rank=0"),
        (dict(beta1=1.0), "peft.beta1=1.0"),
        (dict(orth=-1.0), "peft.orth=-1.0"),
        (dict(alpha=0.0), "peft.alpha=0.0"),
        (dict(dropout=1.0), "peft.dropout=1.0"),
        (dict(tinit="1 epoch"), "peft.tinit='1 epoch'"),
        (dict(delta_t="often"), "peft.delta_t='often'"),
        (dict(tinit=1.5), "peft.tinit=1.5: write"),
    ],
)
def test_an_option_out_of_range_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        AdaLora(**options)


def test_a_schedule_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match=r"longer than the run: peft.tinit='60%' \(60 steps\) .*'40' .*none of 100"):
        AdaLora(tinit="60%", tfinal="40").for_run(100)
    with pytest.raises(UserError, match=r"longer than the run: peft.delta_t='50' \(50 steps\) is more than the 40"):
        AdaLora(tinit="30%", tfinal="30%", delta_t="50").for_run(100)


def test_a_rank_above_a_dimension_is_refused(on):
    with pytest.raises(UserError, match=r"peft\.init_rank=99 is above a dimension of blocks/attn/k"):
        bert(on, AdaLora(init_rank=99))


def test_a_frozen_part_of_the_triplets_is_refused(on):
    net = bert(on, SMALL)
    with pytest.raises(UserError, match=r"train\.freeze keeps blocks/attn/k/adapter/e"):
        state.plan(net, tiny.config(freeze=(".*/adapter/e",)), None)


# ---- the peft library ----


def random_triplets(rng):
    """Two stacked layers, and a third by itself: their parameters, nested as a run has them."""
    sizes = {"blocks/q/adapter": (2,), "conv/adapter": ()}
    shapes = {"a": (6, 4), "b": (4, 5), "e": (4,)}
    flat = {
        f"{layer}/{name}": rng.standard_normal((*lead, *shape), np.float32)
        for layer, lead in sizes.items()
        for name, shape in shapes.items()
    }
    return unflatten_dict({path: jnp.array(leaf) for path, leaf in flat.items()}, sep="/")


def as_peft(tree):
    """Name in peft -> torch array of the same numbers."""
    named = {}
    letters = {"a": ("lora_A", lambda x: x.T), "b": ("lora_B", lambda x: x.T), "e": ("lora_E", lambda x: x[:, None])}
    for path, leaf in flatten_dict(tree, sep="/").items():
        layer, letter = path.rsplit("/", 1)
        word, turned = letters[letter]
        for i, one in enumerate(leaf if layer.startswith("blocks") else leaf[None]):
            named[f"{layer.replace('/', '_')}.{i}.{word}.default"] = np.ascontiguousarray(turned(np.asarray(one)))
    return named


class Theirs:
    """Torch's parameters under the allocator of `peft`, asked as AdaLoraModel.update_and_allocate asks it."""

    def __init__(self, params, **options):
        self.torch, library = pytest.importorskip("torch"), pytest.importorskip("peft")
        from peft.tuners.adalora.layer import RankAllocator

        self.held = {name: self.torch.nn.Parameter(self.torch.tensor(x)) for name, x in as_peft(params).items()}
        self.end = options["total_step"] - options["tfinal"]
        self.allocator = RankAllocator(self, library.AdaLoraConfig(init_r=4, target_r=2, **options), "default")

    def named_parameters(self):
        return iter(self.held.items())

    def descend(self, grads, step):
        """One step of plain gradient descent, and what follows; gives the budget."""
        for name, grad in as_peft(grads).items():
            self.held[name].grad = self.torch.tensor(grad)
            self.held[name].data -= 0.1 * self.held[name].grad
        if step > self.end:
            self.allocator.mask_using_rank_pattern(self, self.pattern)
            return self.allocator.target_bgt
        budget, self.pattern = self.allocator.update_and_allocate(self, step, force_mask=step == self.end)
        return budget

    def numbers(self):
        return {name: leaf.detach().numpy() for name, leaf in self.held.items()}


@pytest.mark.parametrize(("tinit", "tfinal", "delta_t"), [(2, 3, 1), (1, 4, 3), (0, 0, 4)])
def test_the_same_gradients_prune_the_same_triplets_as_in_peft(tinit, tfinal, delta_t):
    total, rng = 12, np.random.default_rng(3)
    params = random_triplets(rng)
    theirs = Theirs(params, tinit=tinit, tfinal=tfinal, deltaT=delta_t, total_step=total, beta1=0.8, beta2=0.7)
    schedule = Schedule(total, tinit, tfinal, delta_t)
    descent = optax.with_extra_args_support(optax.sgd(0.1))
    tx = pruned(descent, schedule, target_rank=2, beta1=0.8, beta2=0.7)
    update, now = jax.jit(tx.update), tx.init(params)
    for step in range(total):
        grads = jax.tree.map(lambda leaf: jnp.array(rng.standard_normal(leaf.shape, np.float32)), params)
        moves, now = update(grads, now, params, step=jnp.int32(step))
        params = optax.apply_updates(params, moves)
        assert theirs.descend(grads, step + 1) == schedule.budget(step + 1, 12, 6)
        for name, array in as_peft(params).items():
            np.testing.assert_array_equal(array == 0, theirs.numbers()[name] == 0)
            np.testing.assert_allclose(array, theirs.numbers()[name], atol=2e-6)
        for ours, of_peft in ((now.sensitivity, "exp_avg_ipt"), (now.uncertainty, "exp_avg_unc")):
            for name, array in as_peft(ours).items() if step + 1 < theirs.end else ():
                np.testing.assert_allclose(array, getattr(theirs.allocator, of_peft)[name], rtol=1e-4, atol=1e-6)
    assert sum(int((leaf != 0).sum()) for name, leaf in as_peft(params).items() if "lora_E" in name) == 6


# peft takes the rank_pattern of AdaLoRA, also one that it has saved itself, for that of LoRA as well.
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("family", [llama, gpt2], ids=["llama", "gpt2"])
def test_peft_computes_the_same_and_what_it_saves_is_read(family, on, tmp_path):
    """GPT-2 has three layers in one there, so that its triplets are joined."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    c = tiny.config()
    make = functools.partial(
        build.network, family, family.TINY, head="causal_lm", outputs=0, model=c.model, rules=c.sharding, mesh=on
    )
    method = dataclasses.replace(SMALL, target="all-linear").for_run(100)
    plain, net = make(), make(peft=method)
    params, _ = build.parameters(net, None, 0, False)
    params = moved(params)
    base, given = tmp_path / "base", tmp_path / "adapter"
    bare = unflatten_dict(
        {path: leaf for path, leaf in flatten_dict(params, sep="/").items() if "/adapter/" not in path}, sep="/"
    )
    base.mkdir()
    save.save(base, bare, plain.table, dtype="float32", shapes=plain.stored)
    save.save_json(base, "config.json", hf_folder.config_of(plain, {}, "float32"))
    exporting.write(given, net, params, base=str(base), task={}, beside=lambda path: None, card="")
    batch, inputs = verify._texts(net)
    ours, seen = verify._ours(net, params, batch), batch["segment"] > 0
    loaded = getattr(transformers, family.HF_ARCHITECTURES["causal_lm"]).from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(loaded, given).eval()
    with torch.no_grad():
        logits = theirs(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy()
    np.testing.assert_allclose(logits[seen], ours[seen], atol=1e-5)
    theirs.save_pretrained(tmp_path / "again")
    for folder in (given, tmp_path / "again"):
        again, adapter = adapters.network(make, folder)
        start, _ = build.parameters(again, base, 0, False)
        np.testing.assert_array_equal(verify._ours(again, adapters.applied(again, start, adapter), batch), ours)
    np.testing.assert_allclose(verify._ours(plain, adapters.merged(net, params), batch)[seen], ours[seen], atol=1e-5)


def test_a_rank_pattern_that_does_not_fit_is_refused(on, tmp_path):
    net = bert(on, SMALL)
    params, _ = build.parameters(net, None, 0, False)
    exporting.write(tmp_path / "a", net, moved(params), base="x", task={}, beside=lambda path: None, card="")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    name = next(iter(config["rank_pattern"]))
    config["rank_pattern"][name] = [True] * 5
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="rank_pattern has 5 of 5 triplets"):
        adapters.read(tmp_path / "a", bert(on, None))
