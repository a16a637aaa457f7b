"""The user's class folders: every format and mixture reads, and what is wrong is said by name."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import datasets
from pipelines.config import Failure, UsageError
from pipelines.transforms import images


def write(path: Path, mode: str = "RGB", size: tuple[int, int] = (12, 9), value: int = 100, **options) -> Path:
    """An image file of one value, made by Pillow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, tuple([value] * len(mode)) if len(mode) > 1 and ";" not in mode else value).save(
        path, **options
    )
    return path


def fill(root: Path, counts: dict[str, int], **options) -> Path:
    """Class folders of PNG files; the value of the pixels tells the file."""
    for kind, count in counts.items():
        for i in range(count):
            write(root / kind / f"{i:03}.png", value=i, **options)
    return root


def names(data) -> list[tuple[int, int]]:
    """(label, value of the first pixel) of each example."""
    return [(int(e["label"]), int(images.decode(e["image"])[0, 0, 0])) for e in data]


def test_every_format_mode_and_size_reads_as_rgb(tmp_path):
    for kind in ("cat", "dog"):
        here = tmp_path / kind
        write(here / "a.jpg", size=(20, 10))
        write(here / "B.JPEG", "L")
        write(here / "c.PNG", "RGBA")
        write(here / "d.png", "LA")
        write(here / "e.png", "P")
        write(here / "f.png", "I;16", value=100 * 257)
        write(here / "g.png", "1", value=1)
        write(here / "h.bmp", "RGB")
        write(here / "i.bmp", "L")
        write(here / "deep" / "j.gif", "L", save_all=True, append_images=[Image.new("L", (12, 9), 7)] * 2)
        write(here / "k.jpg", "CMYK")
        (here / ".hidden.png").write_bytes(b"not an image")
        (here / "notes.txt").write_text("not an image")
    (tmp_path / ".git" / "x").mkdir(parents=True)
    raw = datasets.load(data_dir=str(tmp_path))
    assert raw.classes == ("cat", "dog") and raw.image_shape == (None, None, 3)
    assert raw.counts == {"train": 18, "validation": 2, "test": 2}
    for split in raw.counts:
        for example in getattr(raw, split):
            assert images.pixels(example["image"], (8, 8, 3)).shape == (8, 8, 3)


def test_all_grey_stays_grey_and_one_size_is_known(tmp_path):
    raw = datasets.load(data_dir=str(fill(tmp_path, {"a": 10, "b": 10}, mode="L")))
    assert raw.image_shape == (9, 12, 1)
    write(tmp_path / "a" / "colour.png", "RGB")
    assert datasets.load(data_dir=str(tmp_path)).image_shape == (9, 12, 3)


def test_carved_splits_are_stratified_disjoint_complete_and_decided_by_the_seed(tmp_path):
    fill(tmp_path, {"a": 30, "b": 60, "c": 10})
    raw, again, other = (datasets.load(data_dir=str(tmp_path), seed=seed) for seed in (0, 0, 1))
    assert raw.counts == {"train": 80, "validation": 10, "test": 10}
    found = {split: names(getattr(raw, split)) for split in raw.counts}
    assert sorted(chain(*found.values())) == [(k, i) for k, n in enumerate((30, 60, 10)) for i in range(n)]
    assert [[label for label, _ in found["test"]].count(k) for k in range(3)] == [3, 6, 1]
    assert found == {split: names(getattr(again, split)) for split in raw.counts}
    assert sorted(found["test"]) != sorted(names(other.test))


def test_the_first_examples_are_a_mixture(tmp_path):
    raw = datasets.load(data_dir=str(fill(tmp_path, {"a": 40, "b": 40})), limit=10)
    assert {label for label, _ in names(raw.train)} == {0, 1}


def test_folders_of_splits_are_kept_apart(tmp_path):
    fill(tmp_path / "train", {"a": 20, "b": 20})
    fill(tmp_path / "Val", {"a": 3, "b": 2})
    fill(tmp_path / "test", {"a": 1, "b": 4})
    raw = datasets.load(data_dir=str(tmp_path))
    assert raw.counts == {"train": 40, "validation": 5, "test": 5} and raw.classes == ("a", "b")
    assert sorted(names(raw.test)) == [(0, 0), (1, 0), (1, 1), (1, 2), (1, 3)]


def test_validation_is_carved_from_train_where_only_test_is_given(tmp_path):
    fill(tmp_path / "train", {"a": 20, "b": 20})
    fill(tmp_path / "test", {"a": 6, "b": 6})
    assert datasets.load(data_dir=str(tmp_path)).counts == {"train": 36, "validation": 4, "test": 12}


def damaged(root: Path) -> list[str]:
    """Five files that are not the images they say they are."""
    good = write(root / "a" / "good.jpg", size=(64, 64)).read_bytes()
    files = {
        "a/empty.png": b"",
        "a/text.jpg": b"hello",
        "b/cut.jpg": good[: len(good) // 2],
        "b/cut.png": write(root / "b" / "whole.png", size=(64, 64)).read_bytes()[:-40],
        "b/tiff.png": b"II*\0" + bytes(40),
    }
    for name, content in files.items():
        (root / name).write_bytes(content)
    return sorted(files)


def test_damaged_files_are_named_and_left_out_only_when_asked(tmp_path):
    fill(tmp_path, {"a": 10, "b": 10})
    bad = damaged(tmp_path)
    with pytest.raises(Failure, match=r"--skip_bad leaves others out.*Received 5 of 27 that do not: ") as caught:
        datasets.load(data_dir=str(tmp_path))
    assert all(name in str(caught.value) for name in bad) and "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match="left out 5 of 27 images that do not decode: " + ", ".join(bad)):
        raw = datasets.load(data_dir=str(tmp_path), skip_bad=True)
    assert sum(raw.counts.values()) == 22
    assert len([names(getattr(raw, split)) for split in raw.counts]) == 3


def test_at_most_ten_damaged_files_are_named(tmp_path):
    fill(tmp_path, {"a": 3, "b": 3})
    for i in range(13):
        (tmp_path / "a" / f"bad{i:02}.png").write_bytes(b"?")
    with pytest.raises(Failure, match=r"bad09.png and 3 more$"):
        datasets.load(data_dir=str(tmp_path))


def test_a_bmp_whose_palette_is_not_grey_is_named_with_the_reason(tmp_path):
    """TensorFlow would answer the palette's indices as shades of grey."""
    fill(tmp_path, {"a": 10, "b": 10})
    ramp = [value for i in range(256) for value in (i, i, i)]
    palettes = {"grey": ramp, "short": ramp[:300], "colours": [*ramp[3:], 255, 0, 0], "inverted": ramp[::-1]}
    for name, palette in palettes.items():
        picture = Image.new("P", (12, 9), 7)
        picture.putpalette(palette)
        picture.save(tmp_path / "a" / f"{name}.bmp")
    (tmp_path / "b" / "called.png").write_bytes((tmp_path / "a" / "colours.bmp").read_bytes())
    with pytest.raises(Failure, match="Received 3 of 25 that do not: ") as caught:
        datasets.load(data_dir=str(tmp_path))
    for name in ("a/colours.bmp", "a/inverted.bmp", "b/called.png"):
        assert f"{name} (a BMP with a palette: save it as PNG)" in str(caught.value)
    with pytest.warns(UserWarning, match="left out 3 of 25"):
        raw = datasets.load(data_dir=str(tmp_path), skip_bad=True)
    assert sum(raw.counts.values()) == 22


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path, {"bus": 10, "train": 10, "test": 10})
    raw = datasets.load(data_dir=str(tmp_path))
    assert raw.classes == ("bus", "test", "train") and sum(raw.counts.values()) == 30


def test_splits_without_class_folders_are_no_classes(tmp_path):
    with pytest.raises(Failure, match="Expected folders of images, one for each class.*Received: test, train"):
        datasets.load(data_dir=str(fill(tmp_path, {"train": 10, "test": 10})))


def test_a_stray_image_beside_the_classes_of_train_changes_nothing(tmp_path):
    fill(tmp_path / "train", {"a": 20, "b": 20})
    fill(tmp_path / "test", {"a": 5, "b": 5})
    write(tmp_path / "train" / "overview.png")
    raw = datasets.load(data_dir=str(tmp_path))
    assert raw.classes == ("a", "b") and raw.counts["test"] == 10


def test_what_is_not_class_folders_is_told_with_what_was_found(tmp_path):
    with pytest.raises(UsageError, match="to be a folder. Received: '.*nowhere'"):
        datasets.load(data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(Failure, match=r"jpg, jpeg, png, bmp, gif\)\. Received: an empty folder"):
        datasets.load(data_dir=str(tmp_path))
    write(tmp_path / "loose.png")
    with pytest.raises(Failure, match="Received: 1 images outside of class folders"):
        datasets.load(data_dir=str(tmp_path))
    (tmp_path / "loose.png").unlink()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "scan.tif").write_bytes(b"II*")
    with pytest.raises(Failure, match="Received: a$"):
        datasets.load(data_dir=str(tmp_path))
    fill(tmp_path, {"a": 5})
    with pytest.raises(Failure, match=r"at least two class folders.*Received: \['a'\]"):
        datasets.load(data_dir=str(tmp_path))


def test_unreadable_classes_splits_without_train_classes_and_too_few_images_are_refused(tmp_path):
    fill(tmp_path / "one", {"a": 5})
    (tmp_path / "one" / "b").mkdir()
    (tmp_path / "one" / "b" / "x.png").write_bytes(b"?")
    with pytest.warns(UserWarning), pytest.raises(Failure, match="readable training images of at least two classes"):
        datasets.load(data_dir=str(tmp_path / "one"), skip_bad=True)
    fill(tmp_path / "two" / "train", {"a": 5, "b": 5})
    fill(tmp_path / "two" / "test", {"a": 5, "c": 5})
    with pytest.raises(Failure, match=r"Received, in addition: \['c'\]"):
        datasets.load(data_dir=str(tmp_path / "two"))
    with pytest.raises(Failure, match=r"enough images.*'validation': 0"):
        datasets.load(data_dir=str(fill(tmp_path / "three", {"a": 2, "b": 2})))


def test_larger_folders_stream_from_their_files(tmp_path):
    raw = datasets.load(data_dir=str(fill(tmp_path, {"a": 20, "b": 20})))

    def prepare(example):
        return example | {"image": images.pixels(example["image"], (4, 4, 3))}

    data = datasets.stream(raw.train, count=raw.counts["train"], batch_size=8, seed=0, prepare=prepare)
    batch = next(iter(data))
    assert batch["image"].shape == (8, 4, 4, 3) and set(np.unique(batch["label"])) <= {0, 1}
