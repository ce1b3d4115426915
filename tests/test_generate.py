"""python -m jaxft.generate as a user runs it."""

import io
import json

import pytest

from jaxft.generator import Generator
from jaxft.hf import folder as hf_folder
from jaxft.hf import tokenizer
from jaxft.hf.chat import Template
from jaxft.registry import UserError
from tests.generation import writer
from tests.verbs_run import here, program, read_rows, write_rows

NEW = "--max_new_tokens=8"
SAID = {"role": "user", "content": "a"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return writer.make(tmp_path_factory.mktemp("llama"))


def texts(folder, prompts, *, special=True):
    made = Generator(str(folder), {"max_new_tokens": 8}, dtype="float32", batch=2, tensor=1, seed=0)
    return made.write(made.ids(prompts, prompts, special=special))


def test_the_rows_of_a_file_get_their_texts_in_order(folder, tmp_path):
    rows = [{"id": i, "prompt": "word " * (i * 7 % 5 + 1)} for i in range(7)]
    source, output = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    done = program("generate", f"--model={folder}", f"--input={source}", f"--output={output}", "--batch=3", NEW)
    assert done.returncode == 0, done.stderr
    assert "7 texts written" in done.stdout
    wanted = texts(folder, [row["prompt"] for row in rows])
    assert read_rows(output) == [row | {"generated": text} for row, text in zip(rows, wanted, strict=True)]


def test_a_conversation_goes_on_until_it_is_quit(folder, monkeypatch, capsys):
    said, known = ["hello", "and then?"], [{"role": "system", "content": "be kind"}]
    for line in said:
        known.append({"role": "user", "content": line})
        known.append(
            {"role": "assistant", "content": texts(folder, [Template(folder).prompt(known)], special=False)[0]}
        )
    for end in ("/quit\nnot read\n", ""):  # or Ctrl-D
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*said, "", end])))
        here("generate", f"--model={folder}", "--chat", "--system=be kind", NEW)
        answers = "".join(f"> {message['content']}\n" for message in known if message["role"] == "assistant")
        assert capsys.readouterr().out.startswith(answers + "> ")


def test_conversations_of_a_file_are_put_into_the_template(folder, tmp_path):
    talks = [[{"role": "user", "content": "hello"}], [{"role": "system", "content": "be kind"}, SAID]]
    source = write_rows(tmp_path / "in.jsonl", [{"messages": talk} for talk in talks])
    here("generate", f"--model={folder}", f"--input={source}", f"--output={tmp_path / 'out.jsonl'}", NEW)
    wanted = [texts(folder, [Template(folder).prompt(talk)], special=False)[0] for talk in talks]
    assert [row["generated"] for row in read_rows(tmp_path / "out.jsonl")] == wanted
    for talk, message in (([SAID, {"role": "assistant", "content": "b"}], "ends with no question"), ([7], "a role")):
        write_rows(source, [{"messages": talk}])
        with pytest.raises(UserError, match=rf"in.jsonl:1: .*{message}"):
            here("generate", f"--model={folder}", f"--input={source}", f"--output={tmp_path / 'x.jsonl'}", NEW)


def test_a_prompt_is_answered_at_once_or_in_pieces(folder, capsys):
    (wanted,) = texts(folder, ["a prompt"])
    for flag in ("--stream", "--no-stream"):
        here("generate", f"--model={folder}", "--prompt=a prompt", NEW, flag)
        assert capsys.readouterr().out == wanted + "\n"


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "name one of --prompt=TEXT, --input=FILE with --output=FILE, and --chat"),
        (["--prompt=a", "--chat"], "name one of"),
        (["--input=x.jsonl"], "--input and --output go together"),
        (["--prompt=a", "--system=b"], "--system is what a conversation begins with"),
        (["--prompt=a", "--batch=0"], "--batch=0 must be at least 1"),
        (["--prompt=a", "--top_p=2"], "top_p=2.0 must be a number, between"),
        (["--prompt=a", "--tensor=3"], "--tensor=3 does not divide the 8 devices; use one of: 1, 2, 4, 8"),
        (["--prompt=a", "--beams=2", "--top_k=2"], "beams=2 with sampling is not supported"),
        (["--input=none.jsonl", "--output=x.jsonl"], "none.jsonl"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, message, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        here("generate", f"--model={folder}", *flags)
    assert message in str(error.value) and error.value.code == 2


@pytest.mark.parametrize(
    "row, message", [({"words": "a"}, "no column called prompt or text or messages; the row has: words")]
)
def test_a_row_without_a_prompt_is_refused_and_nothing_is_written(row, message, folder, tmp_path):
    source = write_rows(tmp_path / "in.jsonl", [{"prompt": "a"}, row])
    with pytest.raises(UserError, match=rf"in.jsonl:2: {message}"):
        here("generate", f"--model={folder}", f"--input={source}", f"--output={tmp_path / 'out.jsonl'}", NEW)
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


def test_an_export_says_how_its_texts_end(folder, tmp_path):
    net = writer.network(writer.TINY)
    for source, wanted in ((folder, writer.SAYS), (None, {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2})):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        hf_folder.write(
            out,
            net,
            writer.parameters(net),
            task={},
            beside=lambda target: tokenizer.copy_files(folder, target, 100),
            source=source,
            dtype="float32",
            card="",
        )
        assert json.loads((out / "generation_config.json").read_text()) == wanted
    assert len(texts(out, ["a"])[0])
