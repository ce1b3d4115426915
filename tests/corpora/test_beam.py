"""The Beam pipelines give the documents that one machine gives: the same splits, the same tokens, the same that went.

Apache Beam is no part of the extra `test`: it holds other libraries back. To run: pip install -e '.[test,beam]'
"""

import json
import shutil

import pytest

from configs.prepare import get_config
from jaxft.corpora import options
from jaxft.registry import UserError
from tests.corpora import made
from tests.corpora.test_prepare import documents

RUNNER = "--runner=DirectRunner"


def test_without_beam_the_extra_is_named(tmp_path, monkeypatch):
    from jaxft.corpora import folder

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jaxft\[prepare,beam\]'"):
        folder.check_beam()


def test_beam_gives_the_documents_and_counts_of_one_machine(tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra beam")
    names = made.write(tmp_path)
    local, beam = made.run(names, tmp_path / "local"), made.run(names, tmp_path / "beam", beam=RUNNER)
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
    again = made.run(names, tmp_path / "beam", beam=RUNNER)
    assert "the corpus is finished" in again.stdout


def test_all_who_work_read_the_files_that_were_found_first(tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra beam")
    from jaxft.corpora import beam

    raw = get_config("files").to_dict()
    raw["source"]["paths"] = (f"{tmp_path}/*.txt",)
    raw["tokenizer"]["vocab"] = 300
    raw["beam"] = RUNNER
    made.write(tmp_path)
    config = options.parse(raw)
    source = options.source_of(config)
    shutil.copy(tmp_path / "b.txt", tmp_path / "a.txt")  # all of them duplicates, were it read; it would be the first
    (tmp_path / "corpus").mkdir()
    beam.prepare(raw, config, source, tmp_path / "corpus", lambda text: None)
    places = {place.rpartition(":")[0] for _, place, _, _ in documents(tmp_path / "corpus")}
    assert source.names == [f"{tmp_path}/b.txt"] and places == {"b.txt"}


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ("--runner=DirectRunnr", "Unexpected pipeline runner: DirectRunnr"),
        ("--runner=some.where.Runner", "No module named 'some'"),
        ("--direct_num_workers=many", "argument --direct_num_workers: invalid int value: 'many'"),
    ],
)
def test_options_that_beam_refuses_are_one_message_before_anything_is_written(tmp_path, flags, why):
    pytest.importorskip("apache_beam", reason="needs the extra beam")
    done = made.run(made.write(tmp_path), tmp_path / "corpus", beam=flags)
    assert done.returncode == 2 and f"beam='{flags}': {why}" in done.stderr and "Traceback" not in done.stderr
    assert "usage:" not in done.stderr and not (tmp_path / "corpus").exists()


@pytest.mark.parametrize("how", ["in_memory", "multi_processing"])
def test_what_a_worker_finds_wrong_is_the_message_of_all(how, caplog):
    beam = pytest.importorskip("apache_beam", reason="needs the extra beam")
    from jaxft.corpora import pipelines

    flags = f"{RUNNER} --direct_running_mode={how} --direct_num_workers=2"
    with pytest.raises(UserError) as caught, pipelines.pipeline(flags) as pipeline:
        _ = pipeline | beam.Create(range(4)) | "clean" >> beam.Map(refuse)
    assert str(caught.value) == "field=2: must be 3\n  in x.txt:7"
    assert how == "multi_processing" or "Traceback" not in caplog.text, "what other processes log is theirs"


def refuse(number):
    if number == 2:
        raise UserError("field=2: must be 3\n  in x.txt:7")


def test_a_fault_in_a_worker_stays_an_exception():
    beam = pytest.importorskip("apache_beam", reason="needs the extra beam")
    from jaxft.corpora import pipelines

    with pytest.raises(ZeroDivisionError), pipelines.pipeline(RUNNER) as pipeline:
        _ = pipeline | beam.Create([0]) | beam.Map(lambda number: 1 / number)


def _counts(report):
    for name, rule in report["tally"]["rules"].items():
        yield name, rule["seen"], rule["changed"], {reason: one["count"] for reason, one in rule["removed"].items()}
    for kind, found in report["duplicates"].items():
        yield kind, found["count"], found["bytes"]
