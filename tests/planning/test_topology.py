import pytest

from jaxft.planning import topology
from jaxft.registry import UserError


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("v5e:2x4", "v5e:2x4"),
        ("v5p:4x4x12", "v5p:4x4x12"),
        ("v5litepod-8", "v5e:2x4"),
        ("v5e-256", "v5e:16x16"),
        ("v5p-64", "v5p:2x4x4"),
        ("v6e-1", "v6e:1x1"),
    ],
)
def test_a_slice_is_named_by_its_shape_or_by_its_machine_type(name, meant):
    assert topology.named(name) == meant


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("v5e:3x5", 'did you mean "v5e:4x4"'),
        ("v5e-12", 'did you mean "v5e:'),
        ("v5p:4x4", 'did you mean "v5p:2x2x4"'),
        ("v5p:4x12x4", 'did you mean "v5p:4x'),
        ("v5p-60", 'did you mean "v5p:2x4x4"'),
        ("v5e:32x32", 'did you mean "v5e:16x16"'),
        ("v9:2x2", "kinds: v5e, v5p, v6e, tpu7x"),
        ("h100", "kinds: v5e"),
        ("v5e", 'did you mean "v5e:'),
    ],
)
def test_one_that_there_is_not_is_answered_with_the_nearest(name, near):
    with pytest.raises(UserError, match="--topology=") as error:
        topology.named(name)
    assert near in str(error.value)


def test_what_libraries_write_to_stderr_is_kept_from_the_screen(capfd):
    import os

    with topology.silent() as said:
        os.write(2, b"noise\nmore\n")
    os.write(2, b"heard\n")
    assert said == ["noise", "more"]
    assert capfd.readouterr().err == "heard\n"
