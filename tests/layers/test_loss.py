"""Losses against optax and torch, and what must add exactly nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.labels import NO_LABEL
from jaxft.layers.loss import sigmoid_binary_cross_entropy, softmax_cross_entropy, squared_error

SMOOTHINGS = (0.0, 0.1)
rng = np.random.default_rng(0)


def example(dtype=np.float32):
    logits_BSC = rng.normal(size=(4, 3, 5)).astype(dtype) * 3
    return logits_BSC, rng.integers(0, 5, (4, 3)).astype(np.int32), rng.uniform(0.5, 2, (4, 3)).astype(np.float32)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_softmax_cross_entropy_equals_optax(smoothing):
    logits_BSC, labels_BS, weights_BS = example()
    total, weight = softmax_cross_entropy(logits_BSC, labels_BS, weights_BS, smoothing)
    target_BSC = optax.smooth_labels(jax.nn.one_hot(labels_BS, 5), smoothing)
    expected_BS = optax.softmax_cross_entropy(logits_BSC, target_BSC)
    np.testing.assert_allclose(total, (expected_BS * weights_BS).sum(), rtol=1e-5)
    np.testing.assert_allclose(weight, weights_BS.sum(), rtol=1e-6)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_softmax_cross_entropy_and_gradient_equal_torch_with_ignored_labels(smoothing):
    torch = pytest.importorskip("torch", reason="torch is the reference here")
    logits_BSC, labels_BS, _ = example()
    labels_BS[0, 0] = labels_BS[2, 1] = NO_LABEL

    def mean(logits_BSC):
        total, weight = softmax_cross_entropy(logits_BSC, labels_BS, jnp.ones(labels_BS.shape), smoothing)
        return total / weight

    loss, gradient = jax.value_and_grad(mean)(logits_BSC)
    reference = torch.tensor(logits_BSC, requires_grad=True)
    expected = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(
        reference.reshape(-1, 5), torch.tensor(labels_BS).long().reshape(-1)
    )
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, reference.grad.numpy(), atol=1e-6)
    assert (gradient[0, 0] == 0).all() and (gradient[2, 1] == 0).all()


@pytest.mark.parametrize("label", [NO_LABEL, -1, 5, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_a_label_outside_the_classes_neither_wraps_nor_counts(label, smoothing):
    logits_BSC, _, weights_BS = example()
    labels_BS = np.full(weights_BS.shape, label, np.int32)

    def total(logits_BSC):
        return softmax_cross_entropy(logits_BSC, labels_BS, weights_BS, smoothing)

    (loss, weight), gradient = total(logits_BSC), jax.grad(lambda x: total(x)[0])(logits_BSC)
    assert loss == 0 and weight == 0
    assert (np.asarray(gradient) == 0).all()


def test_another_label_can_be_ignored():
    logits_BSC, labels_BS, weights_BS = example()
    total, weight = softmax_cross_entropy(logits_BSC, labels_BS, weights_BS, ignore=0)
    without = softmax_cross_entropy(logits_BSC, np.where(labels_BS == 0, NO_LABEL, labels_BS), weights_BS)
    np.testing.assert_array_equal((total, weight), without)
    assert weight == pytest.approx(weights_BS[labels_BS != 0].sum())


def losses(logits_BSC, weights_BS):
    """Each loss on the same logits, with labels that fit it."""
    shape = weights_BS.shape
    return {
        "softmax": softmax_cross_entropy(logits_BSC, jnp.zeros(shape, jnp.int32), weights_BS, 0.1),
        "sigmoid": sigmoid_binary_cross_entropy(logits_BSC, jnp.ones(logits_BSC.shape), weights_BS, 0.1),
        "square": squared_error(logits_BSC[..., 0], jnp.ones(shape), weights_BS),
    }


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "square"])
@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e30])
def test_a_slot_of_weight_zero_adds_exactly_nothing_whatever_it_holds(name, junk):
    logits_BSC, _, weights_BS = example()
    weights_BS[1, 2] = 0
    dirty_BSC = logits_BSC.copy()
    dirty_BSC[1, 2] = junk
    clean, dirty = (losses(x, weights_BS)[name] for x in (logits_BSC, dirty_BSC))
    np.testing.assert_array_equal(clean, dirty)
    gradient_BSC = jax.grad(lambda x: losses(x, weights_BS)[name][0])(dirty_BSC)
    assert np.isfinite(gradient_BSC).all() and (gradient_BSC[1, 2] == 0).all()
    assert (np.asarray(gradient_BSC)[0, 0] != 0).any()


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "square"])
def test_an_empty_batch_has_loss_and_gradient_zero(name):
    logits_BSC, _, weights_BS = example()
    total, weight = losses(logits_BSC, weights_BS * 0)[name]
    assert total == 0 and weight == 0
    assert (jax.grad(lambda x: losses(x, weights_BS * 0)[name][0])(jnp.asarray(logits_BSC)) == 0).all()


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "square"])
def test_bfloat16_logits_are_reduced_in_float32(name):
    logits_BSC, _, weights_BS = example()
    low_BSC = jnp.asarray(logits_BSC, jnp.bfloat16)
    low, high = losses(low_BSC, weights_BS)[name], losses(low_BSC.astype(jnp.float32), weights_BS)[name]
    assert low[0].dtype == low[1].dtype == jnp.float32
    np.testing.assert_array_equal(low, high)


def test_large_logits_stay_finite():
    logits_BSC = np.full((1, 1, 3), 1e4, np.float32) * np.array([-1, 0, 1], np.float32)
    for total, _ in losses(logits_BSC, np.ones((1, 1), np.float32)).values():
        assert np.isfinite(total)


def test_binary_cross_entropy_and_gradient_equal_torch():
    torch = pytest.importorskip("torch", reason="torch is the reference here")
    logits_BSC, _, _ = example()
    labels_BSC = rng.integers(0, 2, logits_BSC.shape).astype(np.float32)

    def mean(logits_BSC):
        total, weight = sigmoid_binary_cross_entropy(logits_BSC, labels_BSC, jnp.ones(logits_BSC.shape[:-1]))
        return total / weight

    loss, gradient_BSC = jax.value_and_grad(mean)(logits_BSC)
    reference = torch.tensor(logits_BSC, requires_grad=True)
    expected = torch.nn.BCEWithLogitsLoss()(reference, torch.tensor(labels_BSC))
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient_BSC, reference.grad.numpy(), atol=1e-7)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_binary_cross_entropy_equals_optax_over_the_elements_that_count(smoothing):
    logits_BSC, _, weights_BS = example()
    labels_BSC = rng.integers(0, 2, logits_BSC.shape).astype(np.float32)
    element_BSC = optax.sigmoid_binary_cross_entropy(logits_BSC, labels_BSC * (1 - smoothing) + smoothing / 2)
    labels_BSC[0, 1, 2] = labels_BSC[3, 0, 0] = NO_LABEL
    weights_BSC = np.where(labels_BSC == NO_LABEL, 0, weights_BS[..., None])
    total, weight = sigmoid_binary_cross_entropy(logits_BSC, labels_BSC, weights_BS, smoothing)
    np.testing.assert_allclose(weight, weights_BSC.sum() / 5, rtol=1e-6)
    np.testing.assert_allclose(total / weight, (element_BSC * weights_BSC).sum() / weights_BSC.sum(), rtol=1e-5)


def test_squared_error_equals_torch():
    torch = pytest.importorskip("torch", reason="torch is the reference here")
    predictions_X, targets_X = rng.normal(size=(2, 7)).astype(np.float32)
    total, weight = squared_error(predictions_X, targets_X, np.ones(7, np.float32))
    expected = torch.nn.MSELoss()(torch.tensor(predictions_X), torch.tensor(targets_X))
    np.testing.assert_allclose(total / weight, expected.item(), rtol=1e-6)
