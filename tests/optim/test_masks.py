"""Parameters addressed by path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.optim import masks
from jaxft.registry import UserError

N = 3


def params():
    return {
        "blocks": {
            "attn": {"q": {"bias": jnp.ones((N, 4)), "kernel": jnp.ones((N, 4, 4))}},
            "norm": {"scale": jnp.ones((N, 4))},
        },
        "embed": {"norm": {"bias": jnp.ones(4), "scale": jnp.ones(4)}, "word": {"table": jnp.ones((9, 4))}},
        "head": {"classifier": {"bias": jnp.ones(2), "kernel": jnp.ones((4, 2))}},
    }


def by_path(tree):
    return dict(zip(masks.paths(tree), jax.tree.leaves(tree), strict=True))


def test_paths_name_every_leaf_in_tree_order():
    assert masks.paths(params())[:3] == ["blocks/attn/q/bias", "blocks/attn/q/kernel", "blocks/norm/scale"]
    assert len(masks.paths(params())) == 8


def test_the_first_rule_that_matches_the_whole_path_wins():
    rules = [(r".*/kernel", 1), (r"(blocks/)?norm/scale", 2), (r"blocks/.*", 3)]
    values = by_path(masks.match(params(), rules, default=0))
    assert values["blocks/attn/q/kernel"] == values["head/classifier/kernel"] == 1
    assert values["blocks/norm/scale"] == 2
    assert values["blocks/attn/q/bias"] == 3
    assert values["embed/norm/scale"] == values["embed/word/table"] == 0


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [("embed/wrod/table", 1)],
            r"freeze: 'embed/wrod/table' matches no parameter; did you mean \"embed/word/table\"",
        ),
        ([("embed", 1)], r"write 'embed/\.\*'"),
        ([("embed/word/", 1)], r"write 'embed/word/\.\*'"),
        ([("zzz", 1)], r"parameters: blocks/attn/q/\.\*, blocks/norm/\.\*"),
        ([("(", 1)], r"freeze: '\(' is not a regular expression"),
        ([("blocks/.*", 1)], r"freeze: no pattern matches: embed/norm/bias, .*head/classifier/kernel; add one"),
    ],
)
def test_a_useless_pattern_or_an_uncovered_parameter_is_an_error(rules, message):
    with pytest.raises(UserError, match=message):
        masks.match(params(), rules, field="freeze")


def test_split_leaves_no_empty_branch_and_join_undoes_it():
    trainable, frozen = masks.split(params(), masks.trainable(params(), ("embed/.*", "blocks/norm/.*")))
    assert set(trainable) == {"blocks", "head"} and set(frozen) == {"blocks", "embed"}
    assert set(trainable["blocks"]) == {"attn"} and set(frozen["blocks"]) == {"norm"}
    joined = masks.join(trainable, frozen)
    assert jax.tree.structure(joined) == jax.tree.structure(params())
    assert masks.paths(joined) == masks.paths(params())
    with pytest.raises(ValueError, match="both trees"):
        masks.join(params(), frozen)


def test_split_works_on_shapes_and_keeps_everything_without_a_pattern():
    abstract = jax.eval_shape(params)
    trainable, frozen = masks.split(abstract, masks.trainable(abstract, ()))
    assert frozen == {} and masks.paths(trainable) == masks.paths(abstract)


def test_freezing_everything_is_an_error():
    with pytest.raises(UserError, match="freezes every parameter"):
        masks.trainable(params(), (".*",))


def test_decay_spares_biases_and_norm_scales_also_stacked_ones():
    decayed = {path for path, decay in by_path(masks.decay_mask(params())).items() if decay}
    assert decayed == {"blocks/attn/q/kernel", "embed/word/table", "head/classifier/kernel"}


def test_exempt_takes_further_paths_out():
    mask = masks.exempt(masks.decay_mask(params()), ("embed/.*",), field="optim.no_decay")
    assert {path for path, decay in by_path(mask).items() if decay} == {
        "blocks/attn/q/kernel",
        "head/classifier/kernel",
    }
    assert masks.exempt(mask, "", field="optim.no_decay") == mask
    with pytest.raises(UserError, match=r"optim\.no_decay: 'emb' matches no parameter"):
        masks.exempt(mask, "emb", field="optim.no_decay")


def test_layerwise_rates_shrink_from_the_head_down():
    rates = by_path(masks.layerwise(params(), 0.5))
    assert rates["head/classifier/kernel"] == 1
    np.testing.assert_allclose(rates["blocks/attn/q/kernel"], np.reshape([0.125, 0.25, 0.5], (N, 1, 1)))
    assert rates["blocks/norm/scale"].shape == (N, 1) and rates["blocks/norm/scale"].dtype == np.float32
    assert rates["embed/word/table"] == rates["embed/norm/bias"] == 0.5**4


def test_layerwise_counts_the_blocks_of_an_encoder_and_a_decoder_apart():
    block = {"attn": {"kernel": jnp.ones((2, 4, 4))}}
    sides = {
        "encoder": {
            "blocks": block,
            "norm": {"scale": jnp.ones(4)},
            "embed": {"position": {"table": jnp.ones((9, 4))}},
        },
        "decoder": {"blocks": jax.tree.map(lambda x: x[:1], block)},
        "embed": {"word": {"table": jnp.ones((9, 4))}},
    }
    rates = dict(zip(masks.paths(sides), jax.tree.leaves(masks.layerwise(sides, 0.5)), strict=True))
    np.testing.assert_allclose(rates["encoder/blocks/attn/kernel"].ravel(), [0.25, 0.5])
    np.testing.assert_allclose(rates["decoder/blocks/attn/kernel"].ravel(), [0.5])
    assert rates["encoder/norm/scale"] == 1
    assert rates["encoder/embed/position/table"] == rates["embed/word/table"] == 0.5**3


def test_the_first_block_is_the_lowest_layer_where_it_is_not_one_of_the_equal_ones():
    tree = params()
    rates = by_path(masks.layerwise({**tree, "first": {"attn": tree["head"]["classifier"]}}, 0.5))
    np.testing.assert_allclose(rates["blocks/attn/q/kernel"], np.reshape([0.125, 0.25, 0.5], (N, 1, 1)))
    assert rates["first/attn/kernel"] == 0.5**4
    assert rates["embed/word/table"] == 0.5**5
    assert rates["head/classifier/kernel"] == 1


def test_layerwise_one_is_off_and_needs_blocks_otherwise():
    assert set(jax.tree.leaves(masks.layerwise(params(), 1.0))) == {1.0}
    with pytest.raises(UserError, match="no trainable blocks"):
        masks.layerwise({"head": params()["head"]}, 0.9)
    with pytest.raises(UserError, match=r"layer_decay=1\.5"):
        masks.layerwise(params(), 1.5)
