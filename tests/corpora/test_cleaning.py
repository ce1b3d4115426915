"""A record through the rules: what an error of a rule tells."""

import pickle

import pytest

from jaxft.corpora.cleaning import Cleaner
from jaxft.corpora.sources import Record
from jaxft.registry import UserError


@pytest.mark.parametrize("error", [ZeroDivisionError("ours"), MemoryError(), UserError("a model is missing")])
def test_an_error_in_a_rule_stays_what_it_is_and_tells_the_record_and_the_rule(error):
    def broken(document):
        raise error

    cleaner = Cleaner(order=(), rules={}, near=None, column="text", names=["a.jsonl"], formats=["jsonl"])
    cleaner.rules["broken"] = broken
    with pytest.raises(type(error)) as caught:
        cleaner.clean([Record(0, 7, b'{"text": "a text"}')])
    assert caught.value is error and str(error) == str(caught.value)
    # A worker sends it to the process that reports it.
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["a.jsonl:7: in the rule broken"]
