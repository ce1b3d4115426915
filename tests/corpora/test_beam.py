"""The Beam pipelines give the documents that one machine gives: the same splits, the same tokens, the same that went.

Apache Beam is no part of the extra `test`: it holds other libraries back. To run: pip install -e '.[test,beam]'
"""

import json

import pytest

from tests.corpora import made
from tests.corpora.test_prepare import documents


def test_without_beam_the_extra_is_named(tmp_path, monkeypatch):
    from jaxft.corpora import folder
    from jaxft.registry import UserError

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jaxft\[prepare,beam\]'"):
        folder.check_beam()


def test_beam_gives_the_documents_and_counts_of_one_machine(tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra beam")
    names = made.write(tmp_path)
    runner = "--runner=DirectRunner"
    local, beam = made.run(names, tmp_path / "local"), made.run(names, tmp_path / "beam", beam=runner)
    assert local.returncode == 0 and beam.returncode == 0, local.stderr + beam.stderr
    assert sorted(documents(tmp_path / "local")) == sorted(documents(tmp_path / "beam"))
    tokenizers = [(tmp_path / one / "tokenizer" / "tokenizer.json").read_bytes() for one in ("local", "beam")]
    assert tokenizers[0] == tokenizers[1]
    gone, reports = [], []
    for one in ("local", "beam"):
        gone.append(sorted((tmp_path / one / "removed.jsonl").read_text().splitlines()))
        report = json.loads((tmp_path / one / "report.json").read_text())
        reports.append([report["tally"]["records"], report["tally"]["kept"], *_counts(report)])
    assert gone[0] == gone[1] and reports[0] == reports[1]
    again = made.run(names, tmp_path / "beam", beam=runner)
    assert "the corpus is finished" in again.stdout


def _counts(report):
    for name, rule in report["tally"]["rules"].items():
        yield name, rule["seen"], rule["changed"], {reason: one["count"] for reason, one in rule["removed"].items()}
    for kind, found in report["duplicates"].items():
        yield kind, found["count"]
