"""Images in folders of classes: every way in which such a folder can be wrong has one message."""

import pytest
from PIL import Image

from jaxft.data.folders import images, read_rows
from jaxft.registry import BadRow, UserError

OPTIONS = {"train": "train", "validation": "", "test": "", "holdout": 0.0}


def paint(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), (shade, 0, 0)).save(path)


@pytest.fixture
def folder(tmp_path):
    for i in range(40):
        paint(tmp_path / "train" / ("cat" if i % 2 else "dog") / f"{i:02}.png", i)
    return tmp_path


def read(folder, **options):
    return images(folder=str(folder), **OPTIONS | options)


def test_the_class_folder_is_the_label_and_the_order_is_that_of_the_names(folder):
    split = read(folder).splits["train"]
    assert [row["label"] for row in split.rows] == ["cat"] * 20 + ["dog"] * 20
    assert split.rows[0]["image"] == split.where(0) == str(folder / "train" / "cat" / "01.png")


def test_equal_images_are_held_out_together_and_a_moved_folder_is_the_same_data(folder, tmp_path_factory):
    for i in range(40):
        paint(folder / "train" / "cat" / f"again{i:02}.png", i)
    splits = read(folder, holdout=0.3).splits
    shades = {name: {Image.open(r["image"]).getpixel((0, 0)) for r in s.rows} for name, s in splits.items()}
    assert not shades["train"] & shades["validation"] and len(shades["train"] | shades["validation"]) == 40
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "x")
    assert read(moved, holdout=0.3).splits["train"].fingerprint == splits["train"].fingerprint
    paint(moved / "train" / "cat" / "01.png", 99)
    assert read(moved).splits["train"].fingerprint != splits["train"].fingerprint


def test_what_is_no_image_is_a_bad_row_and_hidden_files_are_nothing(folder):
    (folder / "train" / "cat" / "notes.txt").write_text("x")
    (folder / "train" / "cat" / ".DS_Store").write_text("x")
    paint(folder / "train" / "stray.png")
    split = read(folder).splits["train"]
    reasons = {where.rpartition("/")[2]: reason for where, reason in split.bad}
    assert len(split.rows) == 40 and set(reasons) == {"notes.txt", "stray.png"}
    assert "no class folder" in reasons["stray.png"] and "not an image by its name" in reasons["notes.txt"]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda f: (f / "train" / "bird").mkdir(), {}, r"data\.train: the class folder .*/train/bird has no image"),
        (
            lambda f: None,
            {"validation": "valid"},
            r"data\.validation='valid': .* has no such sub-folder; it has: train",
        ),
        (lambda f: None, {"train": "trian"}, r"it has: train; did you mean \"train\"\?"),
        (lambda f: (f / "test").mkdir(), {"test": "test"}, r"data\.test: .*/test has no class folders"),
        (lambda f: None, {"holdout": 1.0}, r"data\.holdout=1\.0 must be"),
        (lambda f: None, {"holdout": 1e-9}, "leaves validation without one"),
    ],
)
def test_every_mistake_in_a_folder_has_one_message(folder, change, options, message):
    change(folder)
    with pytest.raises(UserError, match=message):
        read(folder, **options)


def test_a_folder_without_splits_and_one_that_is_not_there_are_refused(folder):
    with pytest.raises(UserError, match=r"data\.train='train': .* it has: cat, dog.*A split is a folder of class fold"):
        read(folder / "train")
    with pytest.raises(UserError, match=r"data\.folder='.*/nowhere' is not a folder"):
        read(folder / "nowhere")


def test_the_files_of_a_folder_are_rows_in_the_order_of_their_names(folder):
    (folder / "train" / "cat" / "notes.txt").write_text("x")
    found = list(read_rows(folder / "train" / "cat"))
    assert found[0] == (str(folder / "train" / "cat" / "01.png"), {"image": str(folder / "train" / "cat" / "01.png")})
    assert isinstance(found[-1][1], BadRow) and len(found) == 21
