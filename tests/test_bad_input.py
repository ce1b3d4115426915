"""Bad input to the real program: one message that names field, value and fix, exit code 2, nothing lost."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxft import runfolder
from jaxft.config import parse
from jaxft.registry import UserError
from jaxft.run import Run
from jaxft.signals import StopSignals
from tests import program

pytestmark = pytest.mark.slow

LISTED = "checkpoint, data, evaluate, input, log, mesh, model, optim, peft, profile, schedule, seed, sharding, spikes, "
LISTED += "task, tokenizer, train"


def refused(workdir: Path, *flags: str, code: int = 2, says: tuple[str, ...], **options) -> None:
    """Runs the program and checks that it leaves with one message that holds all of `says`, and no run behind it."""
    done = program.run(workdir, *flags, **options)
    assert done.code == code, done
    assert done.err.startswith("jaxft: ") and "Traceback" not in done.err + done.out, done.err
    for part in says:
        assert part in done.err, done.err
    # A run that never began is not in the way of the same folder with a mended config.
    assert not (workdir / "config.json").exists() and not list(workdir.glob("checkpoints/*"))
    assert program.leftovers(workdir) == []
    assert "compiled in" not in done.out


# Flags -> what the message says. None of these needs jax, data or a folder.
FLAGS = {
    "--config=configs/bert_cls.pyy": ("--config=configs/bert_cls.pyy: no such file in", 'did you mean "bert_cls.py"?'),
    "--config=confgs/bert_cls.py": ("no folder confgs in", "configs/ is part of the source checkout"),
    "--config=configs/bert_cls.py:sst": ("configs/bert_cls.py:sst: variant 'sst' is not known; variants: sst2, files",),
    "--config.trian.batch=3": (f"config has no key 'trian'; keys: {LISTED}; did you mean \"train\"?",),
    "--config.train.bach=3": ("--config.train.bach: config.train has no key 'bach'", 'did you mean "batch"?'),
    "--config.train.batch.x=3": ("config.train.batch is a value (16) and has no keys",),
    "--config.x=None": ("--config.x: config has no key 'x'",),
    "--config.optim.lr=abc": ("--config.optim.lr=abc: could not convert string to float: 'abc'",),
    "--config.train.batch=1.5": ("--config.train.batch=1.5", "invalid literal for int()"),
    "--config.sharding.params=3": ("--config.sharding.params=3", "not a dict"),
    "--wrokdir=x": ("'wrokdir'", "workdir"),
    "extra": ("'extra': no such argument; what is set is written --flag=value",),
    "--config.model.name=brt": ("model.name='brt' is not known; known: bart, bert", 'did you mean "bert"?'),
    "--config.task.name=clss": ("task.name='clss' is not known; known: ", 'did you mean "cls"?'),
    "--config.data.name=file": ("data.name='file' is not known", 'did you mean "files"?'),
    "--config.optim.name=adam": ("optim.name='adam' is not known", 'did you mean "adamw"?'),
    "--config.schedule.name=liner": ("schedule.name='liner' is not known", 'did you mean "linear"?'),
    "--config.model.dtype=float16": ("model.dtype='float16' must be one of: auto, float32, bfloat16",),
    "--config.train.duration=3 weeks": ("train.duration='3 weeks' is not a duration; write \"500 steps\"",),
    "--config.checkpoint.every=0 steps": ("checkpoint.every='0 steps' is never",),
    "--config.train.freeze=3": ("train.freeze=(3,) must be a tuple of texts",),
    "--config.train.accumulate=3": ("train.batch=8 is not divisible by train.accumulate=3",),
    "--config.seed=-1": ("seed=-1 must be at least 0",),
}


@pytest.mark.parametrize("flag", FLAGS)
def test_a_mistake_in_the_flags(tmp_path, flag):
    refused(tmp_path / "run", flag, says=FLAGS[flag])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], "--config is missing; for example --config=configs/bert_cls.py"),
        (["--config.train.batch=3"], "--config is missing; for example --config=configs/bert_cls.py"),
        (["--config.train.batch=3", "--config=configs/bert_cls.py"], "put --config=FILE first"),
    ],
)
def test_overrides_need_a_config_before_them(arguments, says):
    done = program.wait(program.start(arguments))
    assert done.code == 2 and says in done.err and len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    "text, says",
    [
        ("def get_config(:\n", "config.py:1: invalid syntax"),
        ("import nosuchmodule\n", "No module named 'nosuchmodule'"),
        ("def get_config():\n    pass\n", "returned None"),
    ],
)
def test_a_config_file_that_cannot_be_used(tmp_path, text, says):
    (tmp_path / "config.py").write_text(text)
    done = program.wait(program.start([f"--config={tmp_path / 'config.py'}"]))
    assert done.code == 2 and says in done.err and "Traceback" not in done.err


# Options -> what the message says. These need jax, or the network, and are refused before the data are read.
OPTIONS = {
    "mesh__tensor=3": ("tensor=3", "the product 3 must divide the number of devices, 2"),
    "train__batch=7": ("train.batch=7 rows are not divisible by the 2 devices that share the batch", "use 8"),
    "evaluate__batch=3": ("evaluate.batch=3 rows are not divisible by the 2 devices", "use 4"),
    "optim__lr=0.0": ("optim.lr=0.0 must be above 0",),
    "optim__b1=2.0": ("optim.b1=2.0",),
    "schedule__warmup=50 steps": ("schedule.warmup=50 steps", "total=12 steps"),
    "model__scratch__heads=3": ("model: d_model=16 is not divisible by heads=3",),
    "model__scratch__layers=0": ("model: layers=0 must be 1 or more",),
    "model__scratch={'layer': 1}": ("model.scratch.layer is not an option here", 'did you mean "layers"?'),
    "model__scratch__positions=8": ("input.length=16 exceeds the model's 8 positions",),
    "train__freeze=('hed/.*',)": ("train.freeze: 'hed/.*' matches no parameter",),
    "task__metric=acc": ("task.metric='acc' is not known here; known: accuracy",),
    "model__hf=nobody/nothing": ("model.hf='nobody/nothing' is neither a folder here nor", "HF_HUB_OFFLINE is set"),
    "model__hf=./nothing": ("model.hf='./nothing'",),
    "sharding__params={'D': 'fdsp'}": ("sharding.params.D='fdsp': no mesh axis 'fdsp'; axes: data, fsdp",),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_cannot_be_is_refused_before_the_data_are_read(tmp_path, option):
    name, _, value = option.partition("=")
    if value.startswith("{"):  # a whole section, of which the keys that follow would be overridden
        kept = {key: v for key, v in program.OPTIONS.items() if not key.startswith(name.replace("__", "."))}
        options = program.command(tmp_path / "run", data__train="no/such/file.tsv", **{name: value})
        arguments = [one for one in options if one.partition("=")[0].removeprefix("--config.") in {*kept, "data.train"}]
        arguments = [options[0], *arguments, f"--config.{name.replace('__', '.')}={value}", options[-1]]
        done = program.wait(program.start(arguments, devices=2))
    else:
        done = program.run(tmp_path / "run", devices=2, data__train="no/such/file.tsv", **{name: value})
    assert done.code == 2 and done.err.startswith("jaxft: "), done
    for part in OPTIONS[option]:
        assert part in done.err, done.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            dict(input__length=15),
            "input.length=15 tokens are not divisible by the 2 devices that share a row (mesh context=2); use 16",
        ),
        (dict(model__attention="splash"), 'model.attention="splash" needs '),
        (dict(sharding__activations__L="tensor"), "mesh.context=2, but no rule of sharding.params or sharding."),
    ],
    ids=["length", "kernel", "rule"],
)
def test_rows_that_cannot_be_cut_are_refused_before_the_data_are_read(tmp_path, options, says):
    done = program.run(tmp_path / "run", devices=2, data__train="no/such/file.tsv", mesh__context=2, **options)
    assert done.code == 2 and says in done.err, done


def test_an_option_of_a_model_from_scratch_is_said_to_have_no_effect_on_another(tmp_path):
    done = program.run(tmp_path / "run", model__hf="nobody/nothing")
    for name in ("model.scratch.layers", "tokenizer.vocab"):
        assert f"--config.{name} has no effect: model.hf='nobody/nothing' brings" in done.out
    done = program.run(tmp_path / "run", data__train="no/such/file.tsv")
    assert done.code == 2 and "has no effect" not in done.out


@pytest.mark.parametrize("duration", ["1000 epochs", "12 steps"])
@pytest.mark.parametrize("warmup", ["10%", "1 epoch", "10 steps"])
@pytest.mark.parametrize("schedule", [dict(name="linear"), dict(name="inverse_sqrt", timescale=0)], ids=str)
def test_what_only_the_data_can_tell_is_left_to_them(tmp_path, duration, warmup, schedule):
    folder = runfolder.RunFolder(tmp_path)
    raw = program.config(data__train="no/such/file.tsv", train__duration=duration)
    raw["schedule"] = schedule | {"warmup": warmup, "floor": 0.0}
    with pytest.raises(UserError, match=r"data\.train='no/such/file\.tsv'.* does not exist"):
        Run(parse(raw), folder, (), print, StopSignals())


def rows(*lines: str | bytes) -> bytes:
    """A train.jsonl with two good rows and `lines`."""
    good = [json.dumps({"text": f"a text {label}", "label": label}) for label in ("red", "blue")]
    return b"\n".join(line if isinstance(line, bytes) else line.encode() for line in [*good, *lines]) + b"\n"


DATA = {  # train.jsonl, options, what the message says
    "no JSON": (
        rows("{red}"),
        {},
        ("1 of 3 rows cannot be used", "train.jsonl:3:", "JSON", "--config.input.on_bad=skip"),
    ),
    "no UTF-8": (rows(b'{"text": "\xff\xfe", "label": "red"}'), {}, ("train.jsonl:3:", "UTF-8")),
    "a label missing": (rows('{"text": "x"}'), {}, ("train.jsonl:3:", "label")),
    "an empty text": (rows('{"text": "", "label": "red"}'), {}, ("train.jsonl:3:", "'text' is empty")),
    "no such column": (rows(), {"task__text": "txt"}, ("task.text='txt'", "columns: text, label", '"text"?')),
    "no such label column": (rows(), {"task__label": "lable"}, ("task.label='lable'", 'did you mean "label"?')),
    "empty": (b"", {}, ("train.jsonl", "empty")),
    "no row": (
        b'[\n{"text": "x", "label": "red"},\n]\n',
        {},
        ("data.train='", "none of its 3 rows can be read", "train.jsonl:1: not JSON", "train.jsonl:3: not JSON"),
    ),
    "one class": (rows().splitlines()[0] + b"\n", {}, ("task.label='label'", "a single class; two are the least")),
    "absent": (None, {}, ("does not exist", 'did you mean "train.json"?')),
}


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_used_are_named_with_file_and_line(tmp_path, case):
    content, options, says = DATA[case]
    (tmp_path / "train.json").touch()  # what may have been meant
    if content is not None:
        (tmp_path / "train.jsonl").write_bytes(content)
    given = {"data__train": tmp_path / "train.jsonl", "data__validation": tmp_path / "train.jsonl", **options}
    refused(tmp_path / "run", says=says, **given)


def test_labels_that_train_never_had_are_named_and_the_mended_file_runs_in_the_same_folder(tmp_path):
    validation = program.write_rows(tmp_path / "validation.tsv", count=15, seed=1)
    good = validation.read_text()
    validation.write_text(good + "a text\tpurple\n")
    says = ("'purple'", f"{validation}:17", "train")
    refused(tmp_path / "run", says=says, data__validation=validation)
    validation.write_text(good + "\tred\n")
    says = (f"{validation}:17: 'text' is empty", "--config.input.on_bad=skip")
    refused(tmp_path / "run", says=says, data__validation=validation, tokenizer__vocab=100)
    assert (tmp_path / "run" / "tokenizer").exists()  # of 100 entries; not to be taken over
    validation.write_text(good)
    done = program.run(tmp_path / "run", data__validation=validation)
    assert done.code == 0, done.err
    ours, other = (folder / "hf" / "tokenizer.json" for folder in (tmp_path / "run", program.unbroken()))
    assert ours.read_bytes() == other.read_bytes()


@pytest.fixture
def hub(tmp_path):
    """A copy of a hub folder that loads."""
    return shutil.copytree(program.unbroken() / "hf", tmp_path / "hub")


def tensors(hub, **changes):
    """Changes tensors of a hub folder by name ("." written "__"); None removes one."""
    held = load_file(hub / "model.safetensors")
    for name, array in changes.items():
        name = name.replace("__", ".")
        held.pop(name, None)
        if array is not None:
            held[name] = array
    save_file(held, hub / "model.safetensors", {"format": "pt"})


def set_config(hub, **values):
    config = json.loads((hub / "config.json").read_text())
    (hub / "config.json").write_text(json.dumps(config | values))


def bigger_tokenizer(hub):
    tokenizer = json.loads((hub / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zyzzyva"] = len(tokenizer["model"]["vocab"])
    (hub / "tokenizer.json").write_text(json.dumps(tokenizer))


def template(hub, special):
    """The tokenizer's post-processor puts a token of `special` (ids, type) in front."""
    tokenizer = json.loads((hub / "tokenizer.json").read_text())
    ids, kind = special
    pieces = [{"SpecialToken": {"id": "X", "type_id": kind}}, {"Sequence": {"id": "A", "type_id": 0}}]
    given = {"X": {"id": "X", "ids": ids, "tokens": ["X"] * len(ids)}}
    both = [*pieces, {"Sequence": {"id": "B", "type_id": 0}}]
    tokenizer["post_processor"] = dict(type="TemplateProcessing", single=pieces, pair=both, special_tokens=given)
    (hub / "tokenizer.json").write_text(json.dumps(tokenizer))


def only_a_pickle(hub):
    (hub / "model.safetensors").rename(hub / "pytorch_model.bin")


QUERY = "bert__encoder__layer__0__attention__self__query__weight"
HUB = {
    "tensors missing, extra and misshapen": (
        lambda hub: tensors(
            hub,
            **{
                QUERY: None,
                "bert__pooler__dense__bias": np.zeros(3, np.float32),
                "odd__weight": np.zeros(1, np.float32),
            },
        ),
        (QUERY.replace("__", "."), "bert.pooler.dense.bias", "odd.weight"),
    ),
    "only a pickle": (only_a_pickle, ("pytorch_model.bin", "safetensors", "save_pretrained")),
    "an unsupported config field": (lambda hub: set_config(hub, is_decoder=True), ("is_decoder",)),
    "another family": (
        lambda hub: set_config(hub, model_type="mamba"),
        ("model_type='mamba' is not known; known: bart, bert",),
    ),
    "code of its own": (lambda hub: set_config(hub, auto_map={"AutoModel": "x.Y"}), ("auto_map",)),
    "a post-processor with an id of its own": (
        lambda hub: template(hub, ([4321], 0)),
        ("train.tsv:2 has a token of id 4321, but the embedding of ids has",),
    ),
    "a post-processor with a type of its own": (
        lambda hub: template(hub, ([2], 2)),
        ("train.tsv:2 has a token of type 2, but the embedding of types has 2 rows",),
    ),
    "a tokenizer larger than the embedding": (bigger_tokenizer, ("tokenizer has", "embedding", "rows")),
}


@pytest.mark.parametrize("case", HUB)
def test_a_hub_folder_that_does_not_fit(tmp_path, hub, case):
    harm, says = HUB[case]
    harm(hub)
    config = [*[f"--config.{name}={value}" for name, value in program.OPTIONS.items() if "model.scratch" not in name]]
    config += [f"--config.data.{split}={program.data() / split}.tsv" for split in ("train", "validation")]
    arguments = ["--config=configs/bert_cls.py:files", *config, f"--config.model.hf={hub}"]
    done = program.wait(program.start([*arguments, f"--workdir={tmp_path / 'run'}"]))
    assert done.code == 2 and done.err.startswith("jaxft: "), done
    for part in says:
        assert part in done.err, done.err
    assert not (tmp_path / "run" / "config.json").exists() and "compiled in" not in done.out
    if case == "only a pickle":
        assert "train: " not in done.out, "said before the data are read"


@pytest.mark.parametrize("kind", ["a file", "below a file"])
def test_a_run_folder_that_cannot_be_made(tmp_path, kind):
    (tmp_path / "file").touch()
    workdir = tmp_path / "file" / ("x" if kind == "below a file" else "")
    done = program.run(workdir)
    assert done.code == 2 and f"--workdir={workdir}: {tmp_path / 'file'} is a file; name a folder" in done.err


def test_a_step_that_does_not_fit_the_memory_is_refused_on_one_screen(tmp_path):
    # 6.5 GiB of temporaries; without a step the program takes 1.7 GiB of addresses.
    done = program.run(tmp_path / "run", memory=6 * 2**30, train__batch=600_000)
    assert done.code == 1, done
    assert "out of memory: a step needs" in done.err and "are available" in done.err, done.err
    for fix in ("train.batch lower", "train.accumulate higher", "model.remat=full"):
        assert fix in done.err
    assert len(done.err) < 1000 and "Traceback" not in done.err
