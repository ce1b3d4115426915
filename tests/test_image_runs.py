"""A classifier of images by the real program: trained on a folder, resumed, exported, read by transformers, scored."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from configs.vit_cls import get_config
from jaxft.config import parse
from jaxft.registry import UserError
from jaxft.train import train
from tests import program
from tests.hf import version4
from tests.verbs_run import READER, here, read_rows

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5  # float32; never loosened
COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}
SIDE = 12
STEPS = 12


def paint(folder, count, seed):
    """Noisy pictures of three colours, of several sizes and modes."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        name = list(COLOURS)[i % 3]
        path = folder / name / f"{i:02}.{'jpg' if i % 4 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows, columns = rng.integers(9, 30, 2)
        pixels = np.clip(np.array(COLOURS[name]) + rng.normal(0, 40, (rows, columns, 3)), 0, 255).astype(np.uint8)
        image = Image.fromarray(pixels)
        (image.convert("RGBA") if i % 8 == 0 else image).save(path)


def config(folder, **options):
    raw = get_config("folder").to_dict()
    raw["data"].update(folder=str(folder), validation="dev", holdout=0.0)
    raw["input"].update(length=10)
    raw["model"].update(hf="", dtype="float32")
    raw["model"]["scratch"] = dict(image_size=SIDE, patch_size=4, layers=2, d_model=32, d_ff=64, heads=2, dropout=0.1)
    raw["optim"].update(lr=3e-3)
    raw["train"].update(batch=8, duration=f"{STEPS} steps", log_every="5 steps", ema=0.9)
    raw["evaluate"].update(every="6 steps", batch=8)
    raw["checkpoint"].update(every="4 steps", keep=9, export="last")
    raw["log"].update(tensorboard=False)
    for name, value in options.items():
        section, key = name.split("__")
        raw[section][key] = value
    return raw


def run(raw, workdir):
    said: list[str] = []
    train(raw, parse(raw), workdir, (), said.append)
    return "\n".join(said)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder of pictures, run folder)."""
    folder = tmp_path_factory.mktemp("images")
    paint(folder / "pictures" / "train", 60, 0)
    paint(folder / "pictures" / "dev", 21, 1)
    run(config(folder / "pictures"), folder / "run")
    return folder / "pictures", folder / "run"


def logits_of(hf, files):
    torch = pytest.importorskip("torch", reason="live logits need torch")
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(hf).eval()
    processor = AutoImageProcessor.from_pretrained(hf, backend="pil")
    with torch.no_grad():
        return model(**processor([Image.open(file) for file in files], return_tensors="pt")).logits.numpy()


def test_the_export_gives_transformers_the_logits_that_predict_uses(finished, tmp_path, capsys):
    pictures, done = finished
    here("export", f"--run={done}", f"--out={tmp_path / 'hf'}", "--verify")
    assert f"verified: logits read by {READER}" in capsys.readouterr().out
    source = pictures / "dev" / "red"
    here("predict", f"--hf={tmp_path / 'hf'}", f"--input={source}", f"--output={tmp_path / 'out'}")
    rows = read_rows(tmp_path / "out")
    assert [row["image"] for row in rows] == sorted(map(str, source.iterdir()))
    found = np.array([list(row["predicted_probabilities"].values()) for row in rows])
    wanted = np.exp(logits_of(tmp_path / "hf", [row["image"] for row in rows]))
    np.testing.assert_allclose(found, wanted / wanted.sum(-1, keepdims=True), rtol=0, atol=TOLERANCE)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card and "AutoImageProcessor.from_pretrained" in card


VERSION4 = """
import json, sys
import numpy as np, torch, transformers
from PIL import Image
hf, *files = sys.argv[1:]
processor = transformers.AutoImageProcessor.from_pretrained(hf, use_fast=False)
model = transformers.AutoModelForImageClassification.from_pretrained(hf).eval()
with torch.no_grad():
    logits = model(**processor([Image.open(file) for file in files], return_tensors="pt")).logits
print(json.dumps([transformers.__version__, logits.tolist()]))
"""


def test_transformers_4_reads_the_export_alike(finished):
    pictures, done = finished
    version4.environment()
    files = sorted(str(file) for file in (pictures / "dev" / "red").glob("*.jpg"))
    (version, logits), _ = version4.run(VERSION4, str(done / "hf"), *files)
    assert version.startswith("4.57.")
    np.testing.assert_allclose(logits, logits_of(done / "hf", files), rtol=0, atol=TOLERANCE)


def test_the_run_scores_as_it_said_by_its_own_data_and_by_a_folder(finished, tmp_path):
    pictures, done = finished
    report = json.loads((done / "report.json").read_text())
    for flag in ((), (f"--data={pictures / 'dev'}",)):
        here("evaluate", f"--run={done}", *flag, f"--output={tmp_path / 'scores.json'}")
        found = json.loads((tmp_path / "scores.json").read_text())
        assert found["details"]["examples"] == 21
        assert found["loss"] == pytest.approx(report["loss"], abs=TOLERANCE)
        assert found["accuracy"] == report["accuracy"]


def test_a_resumed_run_ends_in_the_same_bits(finished, tmp_path):
    """Random crops, flips and dropout among them."""
    pictures, done = finished
    again = tmp_path / "run"
    shutil.copytree(done, again)
    (again / "report.json").unlink()
    for step in program.steps(done):
        if step > 4:
            shutil.rmtree(again / "checkpoints" / str(step))
    assert "resuming from the checkpoint of step 4" in run(config(pictures), again)
    here_, there = (program.arrays(one, STEPS) for one in (again, done))
    assert here_.keys() == there.keys()
    assert all(here_[name].tobytes() == there[name].tobytes() for name in there)
    for name in ("batches.log", "hf/model.safetensors", "hf/preprocessor_config.json", "report.json"):
        assert (again / name).read_bytes() == (done / name).read_bytes(), name


def test_a_checkpoint_brings_its_processor_and_gets_a_new_head(finished, tmp_path):
    pictures, done = finished
    hub = tmp_path / "hub"
    shutil.copytree(done / "hf", hub)
    fields = json.loads((hub / "preprocessor_config.json").read_text()) | {"image_mean": [0.4, 0.5, 0.6]}
    (hub / "preprocessor_config.json").write_text(json.dumps(fields))
    raw = config(pictures, model__hf=str(hub), model__scratch={}, model__reset_head=True, train__duration="1 steps")
    assert "new, not in the checkpoint: head/classifier" in run(raw, tmp_path / "run")
    written = json.loads((tmp_path / "run" / "hf" / "preprocessor_config.json").read_text())
    assert written["image_mean"] == [0.4, 0.5, 0.6]
    raw = config(pictures, model__hf=str(hub), model__override={"image_size": 16}, input__length=17)
    with pytest.raises(UserError, match=r"size=.*12.*, and the model reads 16 x 16 pixels.*positions are not interpol"):
        run(raw, tmp_path / "other")


def test_broken_images_stop_the_run_or_are_left_out_and_counted(finished, tmp_path):
    pictures, _ = finished
    shutil.copytree(pictures, tmp_path / "pictures")
    broken = tmp_path / "pictures" / "train" / "red" / "02.jpg"
    broken.write_bytes(broken.read_bytes()[:150])
    with pytest.raises(UserError, match=rf"1 of 60 rows cannot be used:\n  {broken}: not an image that can be read"):
        run(config(tmp_path / "pictures"), tmp_path / "run")
    raw = config(tmp_path / "pictures", input__on_bad="skip", train__duration="1 steps")
    said = run(raw, tmp_path / "run")
    assert "train: 59 of 60 rows (1 bad rows skipped), 12 x 12 pixels" in said
    assert "train: 1 of 60 rows cannot be used and are skipped (listed in " in said
    assert f"\n  {broken}: not an image" in said
    for verb, source in (("predict", f"--input={broken.parent}"), ("evaluate", f"--data={broken.parent.parent}")):
        flags = (f"--run={tmp_path / 'run'}", source, f"--output={tmp_path / 'out'}")
        with pytest.raises(UserError, match=rf"{broken}: not an image that can be read"):
            here(verb, *flags)
        here(verb, *flags, "--on_bad=skip")
        if verb == "predict":
            wrong = [row for row in read_rows(tmp_path / "out") if "error" in row]
            assert [row["image"] for row in wrong] == [str(broken)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input__length": 11}, r"input\.length=11, input\.pack=1: .*12 x 12.*set input\.length=10"),
        ({"input__pack": 2}, r"input\.pack=2: .*set input\.length=10, input\.pack=1"),
        ({"task__crop": 0.0}, r"task\.crop=0\.0 must be above 0"),
        ({"task__image": "img"}, r"task\.image='img': the train split has no such column; columns: image, label"),
        ({"model__name": "bert", "model__scratch": {}}, "the task reads image, and a bert model reads text"),
    ],
)
def test_a_config_that_does_not_fit_images_is_refused(finished, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run(config(finished[0], **options), tmp_path / "run")


def test_a_class_that_only_validation_has_is_refused(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "pictures")
    (tmp_path / "pictures" / "train" / "red").rename(tmp_path / "pictures" / "train" / "rde")
    with pytest.raises(
        UserError, match=r"the validation split has labels that the train split never had: 'red' \(.*/dev/red/"
    ):
        run(config(tmp_path / "pictures"), tmp_path / "run")


def test_a_text_task_with_a_model_of_images_is_refused_and_so_is_a_missing_tokenizer(tmp_path):
    raw = program.config(model__name="vit")
    raw["model"]["scratch"] = {}
    with pytest.raises(UserError, match="the task reads text, and a vit model reads image"):
        run(raw, tmp_path / "run")
    raw = program.config()
    raw["tokenizer"] = None
    with pytest.raises(UserError, match="tokenizer=None, but the task reads text"):
        run(raw, tmp_path / "run")
