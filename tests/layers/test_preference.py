"""Losses of preferences and their gradients against torch, written as trl has them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.layers import preference

BETA = 0.3
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}  # float32; never loosened
rng = np.random.default_rng(0)
# Logarithms of policy and reference, of chosen and rejected responses, or of a response and one to another prompt.
GIVEN = tuple(jnp.asarray(-rng.uniform(0.05, 4, 6), jnp.float32) for _ in range(4))
GOOD = jnp.asarray([True, False, True, True, False, False])


def dpo(smoothing, torch, pc, pr, rc, rr):
    logits = (pc - pr) - (rc - rr)
    sigmoid = torch.nn.functional.logsigmoid
    return -sigmoid(BETA * logits) * (1 - smoothing) - sigmoid(-BETA * logits) * smoothing


def ipo(torch, pc, pr, rc, rr):
    return ((pc - pr) - (rc - rr) - 1 / (2 * BETA)) ** 2


def orpo(torch, pc, pr, rc, rr):
    log_odds = (pc - pr) - (torch.log1p(-torch.exp(pc)) - torch.log1p(-torch.exp(pr)))
    return -pc - BETA * torch.nn.functional.logsigmoid(log_odds)


def kto(torch, p, other, r, reference_of_other):
    kl = (other - reference_of_other).mean().clamp(min=0).detach()
    good = torch.tensor(np.asarray(GOOD))
    return torch.where(good, 1 - torch.sigmoid(BETA * ((p - r) - kl)), 1 - torch.sigmoid(BETA * (kl - (p - r))))


def our_kto(p, other, r, reference_of_other):
    baseline = preference.kto_baseline(other - reference_of_other, jnp.ones(6, bool))
    return preference.kto(p - r, baseline, GOOD, beta=BETA)


CASES = {
    "dpo": (
        lambda pc, pr, rc, rr: preference.dpo(pc - rc - pr + rr, beta=BETA, smoothing=0.0),
        functools.partial(dpo, 0),
    ),
    "conservative": (
        lambda pc, pr, rc, rr: preference.dpo(pc - rc - pr + rr, beta=BETA, smoothing=0.2),
        functools.partial(dpo, 0.2),
    ),
    "ipo": (lambda pc, pr, rc, rr: preference.ipo(pc - rc - pr + rr, beta=BETA), ipo),
    "orpo": (lambda pc, pr, rc, rr: preference.orpo(pc, pr, beta=BETA), orpo),
    "kto": (our_kto, kto),
    "kto below": (lambda p, o, r, s: our_kto(p, s, r, o), lambda torch, p, o, r, s: kto(torch, p, s, r, o)),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_the_formulas_in_torch(name):
    torch = pytest.importorskip("torch", reason="torch is the reference here")
    ours, theirs = CASES[name]
    tensors = [torch.tensor(np.asarray(x), requires_grad=True) for x in GIVEN]
    expected = theirs(torch, *tensors)
    expected.sum().backward()
    np.testing.assert_allclose(ours(*GIVEN), expected.detach().numpy(), **TOLERANCE)
    found = jax.grad(lambda given: ours(*given).sum())(GIVEN)
    for gradient, tensor in zip(found, tensors, strict=True):
        wanted = np.zeros(6) if tensor.grad is None else tensor.grad.numpy()
        np.testing.assert_allclose(gradient, wanted, **TOLERANCE)


def test_a_response_that_is_certain_has_a_finite_loss():
    value, gradient = jax.value_and_grad(lambda x: preference.orpo(x, jnp.float32(-1.0), beta=BETA))(jnp.float32(0.0))
    assert np.isfinite(value) and np.isfinite(gradient)


def test_the_baseline_is_of_what_counts_and_not_below_zero():
    ratio, counts = jnp.asarray([1.0, jnp.nan, 3.0, -9.0]), jnp.asarray([True, False, True, False])
    assert preference.kto_baseline(ratio, counts) == 2
    assert preference.kto_baseline(-ratio, counts) == 0
    assert preference.kto_baseline(ratio, jnp.zeros(4, bool)) == 0
