import dataclasses
import json

import pytest

from jaxft.inputs.base import with_labels_of
from tests import tiny


@pytest.mark.parametrize(
    ("names", "reset", "order", "says"),
    [
        (["c", "a", "b"], False, ("c", "a", "b"), "the checkpoint's order: c, a, b"),
        (["c", "a", "b"], True, ("a", "b", "c"), ""),
        (["x", "y", "z"], False, ("a", "b", "c"), "reset_head=True"),
        (["LABEL_0", "LABEL_1"], False, ("a", "b", "c"), ""),
    ],
)
def test_a_trained_head_keeps_the_order_of_its_labels(tmp_path, names, reset, order, says):
    config = {"model_type": "bert", "id2label": {str(i): name for i, name in enumerate(names)}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    said: list[str] = []
    task = with_labels_of(dataclasses.replace(tiny.TASK), tmp_path, reset, said.append)
    assert task.classes == order
    assert says in "".join(said) and bool(said) == bool(says)
