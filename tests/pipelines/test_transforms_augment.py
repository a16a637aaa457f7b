"""Augmentation is a function of the seed and the step, keeps the range of pixels, and mixes labels as images."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from pipelines.config import UsageError
from pipelines.transforms import augment, randaugment
from pipelines.transforms.augment import NAMES, augmentation

RNG = np.random.default_rng(0)
CLASSES = 5
ALL = list(NAMES)


def batch(size: int = 16, height: int = 9, width: int = 7, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    labels = np.eye(CLASSES, dtype="float32")[RNG.integers(0, CLASSES, size)]
    return RNG.integers(0, 256, (size, height, width, channels), "uint8"), labels


@pytest.mark.parametrize("name", ALL)
def test_a_step_gives_the_same_bits_whatever_ran_before_and_in_parallel_tf_data(name):
    images, labels = batch()
    change = augmentation([name], 3, CLASSES)
    first = change(17, images, labels)
    other = change(18, images, labels)
    again = augmentation([name], 3, CLASSES)(tf.constant(17, tf.int64), images, labels)
    data = tf.data.Dataset.range(14, 20).map(
        lambda step: (step, change(step, images, labels)), num_parallel_calls=4, deterministic=False
    )
    parallel = {int(step): result for step, result in data}
    for result in (again, parallel[17]):
        assert np.array_equal(result[0], first[0]) and np.array_equal(result[1], first[1])
    assert np.array_equal(parallel[18][0], other[0])
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0], augmentation([name], 4, CLASSES)(17, images, labels)[0])


@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (3, 5, 9, 1), (4, 32, 32, 3), (2, 1, 1, 3)])
def test_every_augmentation_keeps_shape_and_range(shape):
    images, labels = batch(*shape)
    for name in ALL:
        found, mixed = augmentation([name], 0, CLASSES)(5, images, labels)
        assert found.shape == shape and found.dtype == tf.float32, name
        assert np.isfinite(found).all() and np.min(found) >= 0 and np.max(found) <= 255, name
        assert np.allclose(np.sum(mixed, 1), 1, atol=1e-5) and np.min(mixed) >= 0, name


def test_the_batch_size_may_be_unknown_when_the_graph_is_made():
    images, labels = batch(6)
    change = augmentation(ALL, 0, CLASSES)
    spec = [tf.TensorSpec([], "int64"), tf.TensorSpec([None, 9, 7, 3], "uint8"), tf.TensorSpec([None, CLASSES])]
    found, mixed = tf.function(change, spec)(2, images, labels)
    expected = change(2, images, labels)
    assert np.allclose(found, expected[0], atol=1e-3) and np.allclose(mixed, expected[1], atol=1e-6)


def test_pictures_stay_float32_under_mixed_precision():
    images, labels = batch(2)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = augmentation(ALL, 0, CLASSES)(1, images, labels)
    finally:
        keras.config.set_dtype_policy("float32")
    full = augmentation(ALL, 0, CLASSES)(1, images, labels)
    assert half[0].dtype == tf.float32 and np.array_equal(half[0], full[0])


def test_no_names_change_nothing():
    images, labels = batch()
    found, same = augmentation([], 0, CLASSES)(0, images, labels)
    assert np.array_equal(found, images) and np.array_equal(same, labels)


def test_flips_mirror_about_half_of_the_images_and_twice_is_nothing():
    images, labels = batch(400)
    for name, axis in (("flip", 2), ("vflip", 1)):
        change = augmentation([name], 0, CLASSES)
        once = change(3, images, labels)[0].numpy()
        turned = np.flip(images, axis)
        mirrored = [np.array_equal(found, other) for found, other in zip(once, turned, strict=True)]
        kept = [np.array_equal(found, image) for found, image in zip(once, images, strict=True)]
        assert all(m or k for m, k in zip(mirrored, kept, strict=True)) and 150 < sum(mirrored) < 250
        assert np.array_equal(change(3, once, labels)[0], images)


def test_each_image_is_cropped_at_its_own_place_of_its_reflected_self():
    images, labels = batch(60, 8, 8, 1)
    found = augmentation(["crop:0.25"], 0, CLASSES)(1, images, labels)[0].numpy()
    wide = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    places = []
    for i, image in enumerate(found):
        hits = [(y, x) for y in range(5) for x in range(5) if np.array_equal(wide[i, y : y + 8, x : x + 8], image)]
        assert len(hits) == 1
        places += hits
    assert len(set(places)) > 15


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_labels_are_mixed_exactly_as_the_pixels_are(name):
    """Image i is plain with value i: what the picture holds of each image can be read off it."""
    size = 12
    images = np.arange(size, dtype="float32")[:, None, None, None] * np.ones((1, 6, 5, 1), "float32")
    found, mixed = augmentation([name], 0, size)(4, images, np.eye(size))
    assert len(np.unique(np.round(mixed, 4))) > 4
    assert np.allclose(np.mean(found, (1, 2, 3)), mixed.numpy() @ np.arange(size), atol=1e-4)
    assert ((mixed.numpy() > 1e-6).sum(1) <= 2).all()


def test_cutmix_boxes_have_the_papers_uniform_weights():
    """λ ~ U(0, 1) for α = 1: mean 1/2, variance 1/12, within three standard errors; boxes are rectangles."""
    size = 2000
    images = np.zeros((size, 32, 32, 1), "float32")
    images[: size // 2] = 1
    labels = np.eye(2, dtype="float32")[(np.arange(size) < size // 2).astype(int)]
    found, mixed = augmentation(["cutmix"], 0, 2)(0, images, labels)
    changed = np.abs(mixed.numpy() - labels).sum(1) > 0
    kept = 1 - np.abs(mixed.numpy() - labels).sum(1)[changed] / 2
    assert 0.45 < changed.mean() < 0.55  # the other half met an image of their own class
    assert abs(kept.mean() - 0.5) < 3 * np.sqrt(1 / 12 / len(kept)) + 0.01
    assert abs(kept.var() - 1 / 12) < 0.01
    for image, own in zip(found.numpy()[changed][:50, ..., 0], labels[changed][:50, 1], strict=True):
        box = image != own
        assert box.sum() == box.any(1).sum() * box.any(0).sum()


def test_amounts_mean_what_they_say():
    images, labels = batch(300, 8, 8, 1)
    darker = augmentation(["brightness:0.1"], 0, CLASSES)(0, np.full_like(images, 128), labels)[0].numpy() - 128
    assert 20 < np.abs(darker).max() <= 25.5 and darker.min() < 0 < darker.max()
    board = np.tile(np.array([[96, 160]], "uint8"), (8, 4))[None, :, :, None].repeat(300, 0)
    spread = np.ptp(augmentation(["contrast:0.5"], 0, CLASSES)(0, board, labels)[0].numpy(), axis=(1, 2, 3)) / 64
    assert 0.5 <= spread.min() < 0.6 and 1.4 < spread.max() <= 1.5
    erased = augmentation(["erasing:0.3"], 0, CLASSES)(0, images, labels)[0].numpy() != images
    assert 0.2 < erased.any((1, 2, 3)).mean() < 0.36
    assert 0.0 < erased.mean((1, 2, 3)).max() <= 0.45
    assert np.array_equal(augmentation(["rotate:0", "translate:0", "zoom:0"], 0, CLASSES)(0, images, labels)[0], images)


def test_rotation_stays_within_its_degrees():
    """A bright spot on the edge of a disc: its angle after the rotation is the angle of the rotation."""
    images = np.zeros((200, 65, 65, 1), "uint8")
    images[:, 31:34, 60:63] = 255
    found = augmentation(["rotate:30"], 0, CLASSES)(0, images, np.eye(CLASSES)[np.zeros(200, int)])[0].numpy()[..., 0]
    y, x = (np.tensordot(found, np.indices((65, 65))[axis] - 32.0, 2) / found.sum((1, 2)) for axis in (0, 1))
    degrees = np.degrees(np.arctan2(y, x))
    assert -30.5 < degrees.min() < -25 and 25 < degrees.max() < 30.5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flipp", "Did you mean 'flip'"),
        ("rotate:400", "rotate:AMOUNT from 0 to 180. Received: 'rotate:400'"),
        ("mixup:none", "Received: 'mixup:none'"),
        ("crop:", "Received: 'crop:'"),
    ],
)
def test_wrong_names_and_amounts_are_refused(name, message):
    with pytest.raises(UsageError, match=message):
        augmentation([name], 0, CLASSES)


def test_labels_that_are_not_one_hot_are_refused():
    images, _ = batch(3)
    with pytest.raises(ValueError, match=r"one-hot labels \(b, 5\). Received: \(3,\)"):
        augmentation(["flip"], 0, CLASSES)(0, images, np.zeros(3))


def operated(name: str, image: np.ndarray, strength: float) -> np.ndarray:
    place = randaugment.OPERATIONS.index(name)
    pixels = tf.constant(image[None].astype("float32"))
    return randaugment.operate(pixels, tf.constant([place]), tf.constant([strength], tf.float32))[0].numpy()


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.AFFINE, matrix, Image.BILINEAR)


ORACLES = {
    "identity": lambda image, s: image,
    "auto_contrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
    "solarize": lambda image, s: ImageOps.solarize(image, 256 * (1 - abs(s))),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * abs(s))),
    "colour": lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.9 * s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.9 * s),
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.9 * s),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * s),
    "rotate": lambda image, s: image.rotate(30 * s, Image.BILINEAR),
    "translate_x": lambda image, s: affine(image, 1, 0, 0.45 * s * image.width, 0, 1, 0),
    "translate_y": lambda image, s: affine(image, 1, 0, 0, 0, 1, 0.45 * s * image.height),
    "shear_x": lambda image, s: affine(image, 1, 0.3 * s, -0.15 * s * image.height, 0, 1, 0),
    "shear_y": lambda image, s: affine(image, 1, 0, 0, 0.3 * s, 1, -0.15 * s * image.width),
}


@pytest.mark.parametrize("strength", [-1.0, -0.4, 0.4, 1.0])
@pytest.mark.parametrize("name", ORACLES)
def test_randaugments_operations_are_pillows(name, strength):
    smooth = np.indices((20, 20)).astype("float32")
    image = np.stack([smooth[0] * 9 + 30, smooth[1] * 7 + 60, smooth.sum(0) * 4 + 10], -1).astype("uint8")
    if name in randaugment.POINTWISE:
        image = (image // 2 + RNG.integers(0, 60, image.shape)).astype("uint8")
    expected = np.array(ORACLES[name](Image.fromarray(image), strength)).astype("float32")
    found = operated(name, image, strength)
    inside = operated(name, np.full_like(image, 255), strength) == 255
    if name in randaugment.POINTWISE:
        inside[:] = True
    assert inside.mean() > 0.4
    assert np.abs(found - expected)[inside].max() <= 2.0


def test_all_fourteen_operations_are_drawn_for_single_images_in_both_directions():
    assert len(randaugment.OPERATIONS) == 14
    images = tf.constant(batch(1, 16, 16, 3)[0].repeat(400, 0), tf.float32)
    found = randaugment.rand_augment(images, tf.constant([0, 1]), magnitude=9, num_ops=1).numpy()
    distinct = {image.tobytes() for image in found}
    two_sided = 4 + 5
    assert len(distinct) == 5 + 2 * two_sided


def test_magnitude_zero_leaves_geometry_and_enhancement_alone():
    image = batch(1, 12, 12, 3)[0][0]
    for name in (*randaugment.GEOMETRIC, "colour", "contrast", "brightness", "sharpness", "posterize", "solarize"):
        assert np.allclose(operated(name, image, 0.0), image, atol=1e-3), name


def test_the_catalogue_of_names_says_what_each_does():
    assert all(entry.low <= entry.default <= entry.high and entry.help for entry in NAMES.values())
    assert set(augment.MIXING) <= set(NAMES)
