"""Data sets by name: the built-in ones, the catalogue by TFDS's own mocks, and a real download in MNIST's format."""

from __future__ import annotations

import gzip
import http.server
import struct
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import requests
import tensorflow as tf
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits
from tensorflow_datasets.core.utils import tqdm_utils
from tensorflow_datasets.image_classification import mnist

from pipelines import datasets
from pipelines.config import Failure, UsageError
from pipelines.datasets import catalogue
from pipelines.transforms import images

ROOT = Path(__file__).parents[2]


def arrays(raw: datasets.Raw, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Decoded images and labels of a split, at the size of the data set."""

    def prepare(example):
        return example | {"image": images.pixels(example["image"], raw.image_shape)}

    held = datasets.in_memory(getattr(raw, split), raw.counts[split], prepare)
    return held.examples["image"].numpy(), held.examples["label"].numpy()


def test_tiny_digits_are_scikit_learns_digits_split_once():
    raw = datasets.load("tiny_digits")
    assert raw.counts == {"train": 1293, "validation": 144, "test": 360}
    assert raw.image_shape == (8, 8, 1) and raw.classes == tuple("0123456789")
    pixels, labels = (np.concatenate(parts) for parts in zip(*(arrays(raw, s) for s in raw.counts), strict=True))
    found = sorted((image.tobytes(), int(label)) for image, label in zip(pixels, labels, strict=True))
    true_pixels, true_labels = load_digits(return_X_y=True)
    true = np.round(true_pixels * 255 / 16).astype("uint8")
    assert found == sorted((image.tobytes(), int(label)) for image, label in zip(true, true_labels, strict=True))


def test_built_in_splits_are_balanced():
    for name in ("tiny_digits", "tiny_photos"):
        raw = datasets.load(name, seed=3)
        counts = {split: np.bincount(arrays(raw, split)[1], minlength=len(raw.classes)) for split in raw.counts}
        shares = sum(counts.values()) / sum(raw.counts.values())
        for split, found in counts.items():
            assert np.abs(found - shares * raw.counts[split]).max() <= 2, (name, split)


def test_tiny_photos_test_patches_come_from_regions_that_train_never_saw():
    raw = datasets.load("tiny_photos")
    assert raw.counts == {"train": 351, "validation": 39, "test": 130}
    from sklearn.datasets import load_sample_image

    photos = [load_sample_image(f"{name}.jpg") for name in raw.classes]
    for split, (first, last) in {"train": (0, 480), "validation": (0, 480), "test": (480, 640)}.items():
        for patch, label in zip(*arrays(raw, split), strict=True):
            places = [
                (y, x)
                for y in range(0, 416, 32)
                for x in range(0, 640, 32)
                if np.array_equal(photos[label][y : y + 32, x : x + 32], patch)
            ]
            assert places and all(first <= x < last for _, x in places)


def test_the_seed_moves_validation_and_never_touches_test():
    first, again, other = (datasets.load("tiny_digits", seed=seed) for seed in (0, 0, 1))
    labels = [[int(e["label"]) for e in raw.validation] for raw in (first, again, other)]
    assert labels[0] == labels[1] != labels[2]
    assert np.array_equal(arrays(first, "test")[0], arrays(other, "test")[0])
    for raw in (first, other):
        train, held = (arrays(raw, split)[0].tobytes() for split in ("train", "validation"))
        assert len(train) + len(held) == 1437 * 64


def test_limit_cuts_train_exactly_and_the_rest_in_proportion():
    raw = datasets.load("tiny_digits", limit=500)
    assert raw.counts == {"train": 500, "validation": 56, "test": 139}
    assert all(len(list(getattr(raw, split))) == count for split, count in raw.counts.items())
    assert datasets.load("tiny_digits", limit=20).counts == {"train": 20, "validation": 32, "test": 32}
    assert datasets.load("tiny_digits", limit=10**6).counts["train"] == 1293


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("mnist", (28, 28, 1), 10), ("cifar10", (32, 32, 3), 10), ("imagenet2012", (None, None, 3), 1000)],
)
def test_the_catalogue_takes_the_same_road(name, shape, classes):
    with tfds.testing.mock_data(num_examples=6, policy=tfds.testing.MockPolicy.USE_CODE):
        raw = datasets.load(name)
        assert raw.image_shape == shape and len(raw.classes) == classes
        for split in ("train", "validation", "test"):
            assert raw.counts[split] == 6
            for example in getattr(raw, split):
                assert example["image"].dtype == tf.string and 0 <= int(example["label"]) < classes
                assert images.pixels(example["image"], (16, 16, shape[2])).shape == (16, 16, shape[2])


class FakeSplits(tfds.core.GeneratorBasedBuilder):
    """Twelve black images and two classes, under split names that a test chooses."""

    VERSION = tfds.core.Version("1.0.0")
    names: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    classes = ("a", "b")

    def _info(self):
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=list(self.classes))}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.names}

    def _generate_examples(self, split):
        label = -1 if split in self.unlabelled else 0
        for i in range(100):
            yield i, {"image": np.full((4 + i % 3, 5, 3), len(split), "uint8"), "label": label}


def loaded(monkeypatch, tmp_path, **changes) -> datasets.Raw:
    for attribute, value in changes.items():
        monkeypatch.setattr(FakeSplits, attribute, value)
    builder = FakeSplits(data_dir=str(tmp_path))
    monkeypatch.setattr(catalogue.tfds, "builder", lambda name: builder)
    return datasets.load("fake_splits")


def test_without_test_labelled_validation_is_the_test_set(monkeypatch, tmp_path):
    raw = loaded(monkeypatch, tmp_path, names=("train", "validation"))
    assert raw.counts == {"train": 90, "validation": 10, "test": 100}
    seen = {split: {int(images.decode(e["image"])[0, 0, 0]) for e in getattr(raw, split)} for split in raw.counts}
    assert seen == {"train": {5}, "validation": {5}, "test": {10}}


@pytest.mark.parametrize("names", [("train", "validation", "test"), ("train", "test")])
def test_a_test_split_whose_labels_are_secret_is_left_alone(monkeypatch, tmp_path, names):
    """As the data set of ImageNet has it, where its archive of test images is at hand."""
    raw = loaded(monkeypatch, tmp_path, names=names, unlabelled=("test",))
    carved = {"train": 81, "validation": 9, "test": 10}
    assert raw.counts == ({"train": 90, "validation": 10, "test": 100} if "validation" in names else carved)
    assert all(int(e["label"]) == 0 for split in raw.counts for e in getattr(raw, split))
    pixels = {int(images.decode(e["image"])[0, 0, 0]) for e in raw.test}
    assert pixels == {len("validation" if "validation" in names else "train")}


def test_without_other_splits_all_three_are_carved_from_train(monkeypatch, tmp_path):
    raw = loaded(monkeypatch, tmp_path, names=("train",))
    assert raw.counts == {"train": 81, "validation": 9, "test": 10} and raw.image_shape == (None, None, 3)


def test_one_class_or_no_train_split_is_refused(monkeypatch, tmp_path):
    with pytest.raises(Failure, match="at least two classes. Received: fake_splits with 1"):
        loaded(monkeypatch, tmp_path / "one", names=("train",), classes=("only",))
    with pytest.raises(UsageError, match="`train` split. Received: 'fake_splits' with test"):
        loaded(monkeypatch, tmp_path / "two", names=("test",), classes=("a", "b"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnits", "Did you mean 'mnist'"),
        ("tiny_digitz", "Did you mean 'tiny_digits'"),
        ("mnist/nope", "configurations: none; version 3.0.1"),
        ("glue/sst2", "an image `image` and a class `label`. Received: glue with sentence"),
        ("", "Expected the name"),
    ],
)
def test_a_wrong_name_is_one_line_that_helps(name, message):
    with pytest.raises(UsageError, match=message) as caught:
        datasets.load(name)
    assert "\n" not in str(caught.value) and "Received: " in str(caught.value)


@pytest.mark.parametrize("shown", [True, False])
def test_without_a_network_the_stand_in_is_named_at_once_and_nothing_else_changes(monkeypatch, tmp_path, capfd, shown):
    monkeypatch.setattr(tqdm_utils, "_active", shown)
    other, prepare = requests.Session.get, tfds.core.DatasetBuilder.download_and_prepare

    def watched(builder):
        assert requests.Session.get is other, "requests of other threads go on"
        prepare(builder)

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", watched)
    monkeypatch.setattr(catalogue, "answers", lambda address: False)
    builder = partial(tfds.builder, data_dir=str(tmp_path))
    monkeypatch.setattr(catalogue.tfds, "builder", builder)
    with pytest.raises(Failure, match=r"storage.googleapis.com does not answer\). 'tiny_digits' is built in") as caught:
        datasets.load("mnist")
    assert "\n" not in str(caught.value)
    assert "Traceback" not in "".join(capfd.readouterr())
    assert tqdm_utils._active == shown


def idx(values: np.ndarray) -> bytes:
    """An array of bytes in the format of MNIST's files."""
    header = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    return gzip.compress(header + values.astype("uint8").tobytes())


def test_a_real_download_of_mnists_format_arrives_pixel_for_pixel(monkeypatch, tmp_path):
    generator = np.random.default_rng(0)
    truth = {}
    served = tmp_path / "served"
    served.mkdir()
    for split, prefix, count in (("train", "train", 40), ("test", "t10k", 10)):
        pixels = generator.integers(0, 256, (count, 28, 28), "uint8")
        truth[split] = sorted((image.tobytes(), i % 10) for i, image in enumerate(pixels))
        (served / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(pixels))
        (served / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(count) % 10))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            """Nothing on stderr."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr(mnist.MNIST, "URL", address)
    monkeypatch.setattr(mnist.MNIST, "url_infos", {address: None})
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", 40)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", 10)
    builder = partial(tfds.builder, data_dir=str(tmp_path / "prepared"))
    monkeypatch.setattr(catalogue.tfds, "builder", builder)
    monkeypatch.setattr(tfds.download.DownloadConfig, "__init__", register(tfds.download.DownloadConfig.__init__))
    try:
        raw = datasets.load("mnist")
    finally:
        server.shutdown()
        server.server_close()
    assert raw.counts == {"train": 36, "validation": 4, "test": 10}
    parts = {split: arrays(raw, split) for split in raw.counts}
    found = {"test": [parts["test"]], "train": [parts["train"], parts["validation"]]}
    for split, pieces in found.items():
        pairs = [(image.tobytes(), int(label)) for piece in pieces for image, label in zip(*piece, strict=True)]
        assert sorted(pairs) == truth[split]


def register(make):
    """Accept files whose checksums TFDS does not know: these are made by the test."""

    def changed(self, *args, **kwargs):
        make(self, *args, **{**kwargs, "force_checksums_validation": False})

    return changed


def test_two_processes_prepare_one_data_set_in_an_empty_cache_at_the_same_time(tmp_path):
    code = "from pipelines import datasets; print(datasets.load('tiny_digits').counts['train'])"
    environment = {"TFDS_DATA_DIR": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3", "PATH": "", "HOME": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[0].split()[-1] for process in processes] == ["1293", "1293"]
    assert [path.name for path in (tmp_path / "tiny_digits").iterdir()] == ["1.0.0"]


def test_the_process_that_comes_second_uses_what_the_first_one_put_in_place(monkeypatch, tmp_path):
    builder = tfds.builder("tiny_digits", data_dir=str(tmp_path))

    def overtaken(self, *args, **kwargs):
        monkeypatch.undo()
        tfds.builder("tiny_digits", data_dir=str(tmp_path)).download_and_prepare()
        raise OSError("Directory not empty")

    monkeypatch.setattr(type(builder), "download_and_prepare", overtaken)
    find = catalogue.find
    try:
        catalogue.find = lambda name: tfds.builder(name, data_dir=str(tmp_path))
        assert catalogue.prepare("tiny_digits").info.splits["train"].num_examples == 1437
    finally:
        catalogue.find = find
