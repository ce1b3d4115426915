"""The loss over a vocabulary piece by piece: numbers and gradients of all logits at once, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import sharding
from jaxft.labels import NO_LABEL
from jaxft.layers import pieces as cutting
from jaxft.layers.loss import softmax_cross_entropy
from jaxft.layers.vocab import VocabLogits
from jaxft.planning import hlo, traffic
from tests import tiny

B, L, D, ROWS, WORDS = 4, 7, 16, 40, 37
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}  # float32; never loosened
RULES = {"B": ("data", "fsdp"), "L": "context", "V": "tensor"}


@pytest.fixture
def pieces(monkeypatch):
    """Two tokens of a row at a time, the last piece filled up."""
    monkeypatch.setattr(cutting, "PIECE", B * ROWS * 2)


def given(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x, table, bias = (jnp.asarray(rng.normal(size=size), dtype) for size in ((B, L, D), (ROWS, D), (ROWS,)))
    labels = rng.integers(0, WORDS, (B, L)).astype(np.int32)
    labels[0, :3], labels[1, 2], labels[2, 1] = NO_LABEL, WORDS, -1  # none of these counts
    return x, table, bias, jnp.asarray(labels), jnp.asarray(rng.uniform(0.5, 2, (B, L)), jnp.float32)


def whole(x, table, bias, labels, weights, softcap, smoothing, z):
    logits = x @ table.T + (0 if bias is None else bias[None, None])
    logits = (softcap * jnp.tanh(logits / softcap) if softcap else logits)[..., :WORDS]
    loss, weight = softmax_cross_entropy(logits, labels, weights, smoothing)
    counts = jnp.where((labels >= 0) & (labels < WORDS), weights, 0)
    return loss + z * (counts * jnp.square(jax.nn.logsumexp(logits, -1))).sum(), weight


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("softcap", "smoothing", "z"), [(0.0, 0.0, 0.0), (3.0, 0.0, 0.0), (0.0, 0.1, 0.01)])
def test_loss_and_gradients_are_those_of_all_logits_at_once(pieces, softcap, smoothing, z, bias):
    x, table, bias_V, labels, weights = given()
    bias_V = bias_V if bias else None

    def ours(x, table, bias_V):
        logits = VocabLogits(x, table, bias_V, softcap, WORDS)
        return 3.0 * logits.cross_entropy(labels, weights, smoothing=smoothing, z=z)["loss"][0]

    def theirs(x, table, bias_V):
        return 3.0 * whole(x, table, bias_V, labels, weights, softcap, smoothing, z)[0]

    found = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(x, table, bias_V)
    expected = jax.jit(jax.value_and_grad(theirs, (0, 1, 2)))(x, table, bias_V)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), found, expected)


def test_weights_hits_and_logits_are_those_of_the_words_alone(pieces):
    x, table, bias, labels, weights = given()
    logits = VocabLogits(x, table.at[WORDS:].set(100.0), bias, 0.0, WORDS)  # rows that fill up win nothing
    sums, all_BLV = logits.cross_entropy(labels, weights), logits.array()
    counts = jnp.where((labels >= 0) & (labels < WORDS), weights, 0)
    assert all_BLV.shape == (B, L, WORDS)
    np.testing.assert_allclose(sums["loss"][1], counts.sum(), **TOLERANCE)
    np.testing.assert_allclose(sums["accuracy"][0], ((all_BLV.argmax(-1) == labels) * counts).sum(), **TOLERANCE)


def test_a_token_that_does_not_count_leaves_no_trace_even_if_it_is_not_finite(pieces):
    x, table, bias, labels, weights = given()

    def loss(x, table, bias):
        return VocabLogits(x, table, bias, 0.0, WORDS).cross_entropy(labels, weights)["loss"][0]

    clean, dirty = (jax.value_and_grad(loss, (0, 1, 2))(one, table, bias) for one in (x, x.at[0, 0].set(jnp.nan)))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    assert (dirty[1][0][0, 0] == 0).all()


@pytest.mark.parametrize(
    ("sizes", "length"), [(dict(data=2, fsdp=2, tensor=2), L), (dict(context=2, data=2, tensor=2), L - 1)], ids=str
)
def test_over_a_mesh_it_is_what_one_device_computes(monkeypatch, sizes, length):
    monkeypatch.setattr(cutting, "PIECE", B * ROWS * 2 // 8)
    x, table, bias, labels, weights = given()
    x, labels, weights = (array[:, :length] for array in (x, labels, weights))

    def loss(x, table, bias):
        return VocabLogits(x, table, bias, 0.0, WORDS).cross_entropy(labels, weights)["loss"][0]

    def sharded(*arrays):
        with sharding.activations(mesh, RULES):
            return loss(*arrays)

    mesh = tiny.mesh(**sizes)
    found = jax.jit(jax.value_and_grad(sharded, (0, 1, 2)))(x, table, bias)
    expected = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(x, table, bias)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), found, expected)


def test_devices_that_rows_are_cut_over_give_their_own_tokens_to_every_piece(monkeypatch):
    """Two of three tokens, then the third."""
    monkeypatch.setattr(cutting, "PIECE", B * ROWS * 4 // 8)
    x_BLD = given()[0][:, :6]
    mesh = tiny.mesh(context=2, data=4)

    def there(x_BLD):
        with sharding.activations(mesh, RULES):
            assert cutting.cut(ROWS, x_BLD)[0].shape == (2, B, 4, D)
            return sharding.constrain(cutting.joined(2 * cutting.cut(ROWS, x_BLD)[0], 6), "BLD")

    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data", "context"))
    compiled = jax.jit(there).lower(jax.ShapeDtypeStruct(x_BLD.shape, x_BLD.dtype, sharding=where)).compile()
    assert not any(name in compiled.as_text() for name in ("all-gather", "all-to-all", "collective-permute"))
    np.testing.assert_array_equal(compiled(jax.device_put(x_BLD, where)), 2 * x_BLD)


def test_the_gradient_of_the_table_crosses_the_mesh_once_however_many_pieces_there_are(monkeypatch):
    monkeypatch.setattr(cutting, "PIECE", B * ROWS * 2 // 8)
    x, table, bias, labels, weights = (array[:, : L - 1] if array.shape[:2] == (B, L) else array for array in given())
    mesh = tiny.mesh(context=2, data=2, tensor=2)

    def learn(x, table, bias):
        with sharding.activations(mesh, RULES):
            return VocabLogits(x, table, bias, 0.0, WORDS).cross_entropy(labels, weights)["loss"][0]

    def placed(array, *axes):
        where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where)

    step = jax.jit(jax.grad(learn, (0, 1, 2)))
    text = step.lower(placed(x, "data", "context"), placed(table, "tensor"), placed(bias)).compile().as_text()
    module = hlo.read(text)
    assert max(module.runs.values()) >= 3, "pieces"
    tables = [one for one in traffic.collectives(module, 8) if one.shape[-2:] == (ROWS // 2, D)]
    assert [one.times for one in tables] == [1] and tables[0].size == 4


def test_memory_is_that_of_a_piece_and_products_are_in_the_dtype_of_the_model():
    tokens, words = 2048, 32_000

    def loss(x, table, labels):
        return VocabLogits(x, table, None, 0.0, words).cross_entropy(labels, jnp.ones(labels.shape))["loss"][0]

    shapes = [((1, tokens, D), jnp.bfloat16), ((words, D), jnp.float32), ((1, tokens), jnp.int32)]
    lowered = jax.jit(jax.grad(loss, (0, 1))).lower(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    used = lowered.compile().memory_analysis().temp_size_in_bytes
    assert used < tokens * words * 4 / 2, f"{used:,} bytes, of which all logits would be {tokens * words * 4:,}"
    products = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
    assert products and all("bf16" in line.split(":")[-1].split("->")[0] for line in products)


def test_words_are_drawn_by_their_probability_whatever_the_pieces_and_the_mesh(monkeypatch):
    x, table, bias, _, _ = given()
    many = VocabLogits(jnp.tile(0.3 * x[:1, :1], (1, 4000, 1)), table, bias.at[WORDS:].set(100.0), 0.0, WORDS)
    drawn = np.asarray(jax.jit(lambda key: many.sample(key))(jax.random.key(0)))
    assert drawn.max() < WORDS, "rows that fill up name no word"
    share = np.bincount(drawn[0], minlength=WORDS) / 4000
    np.testing.assert_allclose(share, jax.nn.softmax(many.array()[0, 0]), atol=4 * 0.5 / 4000**0.5)
    few = VocabLogits(x, table, bias, 0.0, WORDS)
    alike = [few.sample(jax.random.key(1))]
    monkeypatch.setattr(cutting, "PIECE", B * ROWS * 2)
    alike.append(few.sample(jax.random.key(1)))
    with sharding.activations(tiny.mesh(data=2, fsdp=2, tensor=2), RULES):
        alike.append(jax.jit(few.sample)(jax.random.key(1)))
    assert (np.asarray(alike) == np.asarray(alike[0])).all() and len(np.unique(alike[0])) > 3
    assert (few.sample(jax.random.key(2)) != alike[0]).any()


@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_log_probabilities_and_their_gradients_are_those_of_each_token(pieces, softcap):
    x, table, bias, labels, weights = given()
    pull_BL = jnp.asarray(np.random.default_rng(1).normal(size=(B, L)), jnp.float32)

    def ours(x, table, bias):
        return VocabLogits(x, table, bias, softcap, WORDS).log_probabilities(labels, weights)

    def theirs(x, table, bias):
        logits = x @ table.T + bias[None, None]
        logits = (softcap * jnp.tanh(logits / softcap) if softcap else logits)[..., :WORDS]
        counts = (labels >= 0) & (labels < WORDS)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.where(counts, labels, 0)[..., None], -1)[..., 0]
        return jnp.where(counts, picked * weights, 0)

    np.testing.assert_allclose(jax.jit(ours)(x, table, bias), theirs(x, table, bias), **TOLERANCE)
    found, expected = (
        jax.jit(jax.grad(lambda *args, f=f: (f(*args) * pull_BL).sum(), (0, 1, 2)))(x, table, bias)
        for f in (ours, theirs)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), found, expected)
