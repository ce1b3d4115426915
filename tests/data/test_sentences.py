"""Tagged sentences in the formats of CoNLL, whole and broken."""

import gzip

import pytest

from jaxft.data.files import read_rows, read_split
from jaxft.registry import BadRow, UserError

CONLL = """-DOCSTART- -X- O O

EU NNP I-NP B-ORG
rejects VBZ I-VP O

# id 7 domain=news of-the-day
Peter NNP I-NP B-PER
# NN I-NP O

"""
CONLLU = """# sent_id = 1
# text = don't go
1-2\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tdo\tdo\tAUX\tVBP\t_\t0\troot\t_\t_
2\tn't\tnot\tPART\t_\t_\t1\tadvmod\t_\t_
2.1\tgo\tgo\tVERB\tVB\t_\t_\t_\t_\t_
3\t_\t_\tSYM\tNFP\t_\t1\tdep\t_\t_

"""


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(path)


def faults(path):
    return [(where.rpartition(":")[2], str(row)) for where, row in read_rows(path) if isinstance(row, BadRow)]


@pytest.mark.parametrize("name", ["x.conll", "x.bio", "x.iob2", "x.iob", "x.conll.gz"])
def test_conll_has_words_first_and_tags_last_and_a_comment_has_other_columns(tmp_path, name):
    path = write(tmp_path, name, CONLL)
    split = read_split(path)
    assert list(split.rows) == [
        {"tokens": ["EU", "rejects"], "column2": ["NNP", "VBZ"], "column3": ["I-NP", "I-VP"], "tags": ["B-ORG", "O"]},
        {"tokens": ["Peter", "#"], "column2": ["NNP", "NN"], "column3": ["I-NP", "I-NP"], "tags": ["B-PER", "O"]},
    ]
    assert [split.where(i) for i in range(2)] == [f"{path}:3", f"{path}:6"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_blanks_and_the_last_line_do_not_matter(tmp_path, end):
    text = end.join(["\ufeffa\tO", "\u00a0\tB-x", " \t ", "", "# a comment", "#\tO", "#\tO"])
    rows = list(read_split(write(tmp_path, "x.conll", text)).rows)
    assert rows == [{"tokens": ["a", "\u00a0"], "tags": ["O", "B-x"]}, {"tokens": ["#", "#"], "tags": ["O", "O"]}]


def test_one_column_is_words_without_tags(tmp_path):
    assert list(read_split(write(tmp_path, "x.conll", "a\nb\n\nc\n")).rows) == [
        {"tokens": ["a", "b"]},
        {"tokens": ["c"]},
    ]


def test_conllu_reads_the_parts_of_a_word_and_no_empty_node(tmp_path):
    (row,) = read_split(write(tmp_path, "x.conllu.gz", CONLLU + "# only = a comment\n")).rows
    assert row["tokens"] == ["do", "n't", "_"] and row["upos"] == ["AUX", "PART", "SYM"]
    assert row["xpos"] == ["VBP", None, "NFP"] and row["lemma"] == ["do", "not", None]
    assert row["deprel"] == ["root", "advmod", "dep"]


@pytest.mark.parametrize(
    ("name", "text", "line", "reason"),
    [
        ("x.conll", "a O\n\nb\n", "3", "line 1 of the sentence has 1 columns; the file's first has 2"),
        ("x.conll", "a O\n\nb O\nc O O\n", "3", "line 2 of the sentence has 3 columns; the file's first has 2"),
        ("x.conll", "a\tO\n\n\tO\n", "3", "line 1 of the sentence has no word"),
        ("x.conllu", CONLLU + "1\ta\n", "9", "line 1 of the sentence has 2 columns; CoNLL-U has 10"),
        ("x.conllu", CONLLU + CONLLU.replace("3\t_", "x\t_"), "9", "has the id 'x', which is no number"),
    ],
)
def test_a_broken_sentence_is_a_bad_row_with_its_place(tmp_path, name, text, line, reason):
    (fault,) = faults(write(tmp_path, name, text))
    assert fault[0] == line and reason in fault[1]


def test_a_file_of_broken_sentences_alone_is_refused(tmp_path):
    with pytest.raises(UserError, match="none of its 1 rows can be read"):
        read_split(write(tmp_path, "x.conllu", "1\ta\n"))
