"""Rotary positions: every scaling against transformers' own functions, the turn against complex numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.layers.rope import OPTIONS, Rope, attention_factor
from jaxft.registry import UserError

HEAD, POSITIONS, ORIGINAL = 16, 128, 32
SHORT, LONG = [1 + 0.1 * i for i in range(HEAD // 2)], [2 + 0.5 * i for i in range(HEAD // 2)]
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=ORIGINAL)
YARN = dict(factor=4.0, original_max_position_embeddings=ORIGINAL)
LONGROPE = dict(short_factor=SHORT, long_factor=LONG, original_max_position_embeddings=ORIGINAL)
CASES = {
    "default": dict(),
    "linear": dict(factor=3.0),
    "dynamic": dict(factor=2.5),
    "llama3": LLAMA3,
    "llama3-narrow": LLAMA3 | dict(factor=32.0, high_freq_factor=2.0),
    "yarn": YARN,
    "yarn-attention-factor": YARN | dict(attention_factor=1.7),
    "yarn-ramp": YARN | dict(beta_fast=8, beta_slow=0.5, truncate=False),
    "yarn-point": YARN | dict(beta_fast=1, beta_slow=1, truncate=False),
    "yarn-mscale": YARN | dict(factor=40.0, mscale=0.8, mscale_all_dim=0.5),
    "yarn-mscale-alone": YARN | dict(mscale=0.8),
    "longrope": LONGROPE,
    "longrope-factor": LONGROPE | dict(factor=9.0),
    "longrope-small-factor": LONGROPE | dict(factor=0.5),
    "longrope-attention-factor": LONGROPE | dict(attention_factor=1.3),
}


def test_every_type_is_among_the_cases():
    assert {name.split("-")[0] for name in CASES} == set(OPTIONS)


def parameters(name, theta):
    options = {key: value for key, value in CASES[name].items()}
    return {"rope_type": name.split("-")[0], "rope_theta": theta, **options}


def theirs(rope, length, head_dim):
    """(frequencies, factor of cosines and sines) of transformers for a batch whose longest text has `length` tokens."""
    torch = pytest.importorskip("torch", reason="live parity needs torch")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    sizes = dict(hidden_size=4 * head_dim, num_attention_heads=4, head_dim=head_dim, max_position_embeddings=POSITIONS)
    config = LlamaConfig(**sizes, rope_parameters=dict(rope))
    if rope["rope_type"] == "default":
        frequency_K, scale = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        make = ROPE_INIT_FUNCTIONS[rope["rope_type"]]
        frequency_K, scale = make(config, torch.device("cpu"), seq_len=torch.tensor(length))
    return frequency_K.numpy(), scale


@pytest.mark.parametrize("theta", [1e4, 500.0], ids="theta{:g}".format)
@pytest.mark.parametrize("length", [20, ORIGINAL, ORIGINAL + 1, POSITIONS, 3 * POSITIONS], ids="length{}".format)
@pytest.mark.parametrize("name", CASES)
def test_angles_and_their_factor_are_those_of_transformers(name, length, theta):
    rope = parameters(name, theta)
    frequency_K, scale = theirs(rope, length, HEAD)
    ours = Rope.of(rope, head_dim=HEAD, positions=POSITIONS)
    assert attention_factor(dict(ours.options), POSITIONS) == pytest.approx(scale, rel=1e-12)
    rotary = ours.rotary(jnp.arange(length)[None])
    first_K = np.arctan2(rotary.sin_BLK[0, 1], rotary.cos_BLK[0, 1])  # of position 1: the frequency, below pi
    np.testing.assert_allclose(first_K, frequency_K, rtol=1e-5)
    # An angle of n turns has n times the rounding of its frequency.
    angle_LK = np.arange(length, dtype=np.float64)[:, None] * frequency_K.astype(np.float64)
    np.testing.assert_allclose(rotary.cos_BLK[0], np.cos(angle_LK) * scale, rtol=0, atol=2e-7 * max(length, 20))
    np.testing.assert_allclose(rotary.sin_BLK[0], np.sin(angle_LK) * scale, rtol=0, atol=2e-7 * max(length, 20))


@pytest.mark.parametrize("name", ["linear", "dynamic", "llama3", "yarn"])
def test_larger_heads_of_which_a_part_is_turned_have_the_angles_of_transformers(name):
    rope = parameters(name, 1e6) | {"partial_rotary_factor": 0.75}
    frequency_K, _ = theirs(rope, POSITIONS + 7, 64)
    ours = Rope.of(rope, head_dim=64, positions=POSITIONS)
    assert ours.dim == 48
    rotary = ours.rotary(jnp.arange(POSITIONS + 7)[None])
    np.testing.assert_allclose(np.arctan2(rotary.sin_BLK[0, 1], rotary.cos_BLK[0, 1]), frequency_K, rtol=1e-5)


def complex_turn(pairs_LHK, position_L, theta, dim):
    """z exp(i angle) of pairs z = a + i b in float64."""
    angle_LK = position_L[:, None] * theta ** (-np.arange(0, dim, 2) / dim)
    return pairs_LHK * np.exp(1j * angle_LK)[:, None]


@pytest.mark.parametrize("interleaved", [True, False], ids=["interleaved", "halves"])
@pytest.mark.parametrize("partial", [1.0, 0.5], ids="partial{}".format)
def test_a_turn_is_a_product_of_complex_numbers(interleaved, partial):
    dim, rng = int(HEAD * partial), np.random.default_rng(0)
    x_BLHK = rng.standard_normal((2, 30, 3, HEAD), np.float32)
    position_BL = np.stack([np.arange(30), np.arange(30)[::-1]])
    rope = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": partial}
    turned = Rope.of(rope, head_dim=HEAD, positions=POSITIONS, interleaved=interleaved).rotary(jnp.asarray(position_BL))
    found = np.asarray(turned(jnp.asarray(x_BLHK)))
    real, imaginary = (
        (slice(0, dim, 2), slice(1, dim, 2)) if interleaved else (slice(0, dim // 2), slice(dim // 2, dim))
    )
    for row in range(2):
        pairs = x_BLHK[row, ..., real] + 1j * x_BLHK[row, ..., imaginary]
        expected = complex_turn(pairs.astype(np.complex128), position_BL[row], 100.0, dim)
        np.testing.assert_allclose(found[row, ..., real], expected.real, atol=1e-5)
        np.testing.assert_allclose(found[row, ..., imaginary], expected.imag, atol=1e-5)
    np.testing.assert_array_equal(found[..., dim:], x_BLHK[..., dim:])


def test_a_turn_keeps_the_dtype_and_chosen_places_are_turned_alike():
    position_BL = jnp.asarray([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]])
    rotary = Rope.of(parameters("default", 1e4), head_dim=HEAD, positions=POSITIONS).rotary(position_BL)
    x_BLHK = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 3, HEAD)), jnp.bfloat16)
    at_BS = jnp.asarray([[4, 2], [0, 3]])
    assert rotary(x_BLHK).dtype == jnp.bfloat16
    chosen = jnp.take_along_axis(x_BLHK, at_BS[:, :, None, None], axis=1)
    expected = jnp.take_along_axis(rotary(x_BLHK), at_BS[:, :, None, None], axis=1)
    np.testing.assert_array_equal(rotary.at(at_BS)(chosen), expected)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        (
            dict(rope_type="yarm"),
            r'rope_type=.yarm. is not supported; supported: default, linear.*did you mean "yarn"\?$',
        ),
        (dict(rope_type="linear"), r"rope_type='linear' needs factor$"),
        (dict(rope_type="llama3", factor=8.0), r"needs low_freq_factor, high_freq_factor, original_max_position_emb"),
        (dict(rope_type="linear", factor=None), r"rope_type='linear' needs factor$"),
        (dict(rope_type="default", factor=2.0), r"rope_type='default' does not know factor=2.0$"),
        (dict(rope_type="yarn", short_factor=3, **YARN), r"rope_type='yarn' does not know short_factor=3$"),
        (
            dict(rope_type="longrope", **LONGROPE | dict(long_factor=LONG[:-1])),
            r"rope long_factor has 7 numbers; for 16 turned dimensions it needs 8$",
        ),
        (
            dict(rope_type="longrope", partial_rotary_factor=0.5, **LONGROPE),
            r"rope short_factor has 8 numbers; for 8 turned dimensions it needs 4$",
        ),
    ],
    ids=["unknown", "missing", "several-missing", "null", "default-option", "strange", "long", "short"],
)
def test_what_cannot_be_is_refused_by_name(rope, message):
    with pytest.raises(UserError, match=message):
        Rope.of({"rope_theta": 1e4, **rope}, head_dim=HEAD, positions=POSITIONS)
