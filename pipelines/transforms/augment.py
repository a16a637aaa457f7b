"""Augmentation by name, as a function of the seed and the step: step 17 gets the same bits whatever ran before it.

    augmentation(["crop", "flip", "mixup:0.4"], seed=0, num_classes=10)(step, images, labels)

Keras's own layers do the work where they fit; the random numbers that they draw come from `Draws`, which derives them
from (seed, step) instead of a counter. Two are different: `crop`, since `RandomCrop` takes one place for a whole batch,
and `randaugment` (see `pipelines.transforms.randaugment`). `flip` and `vflip` are wrong where the direction matters: a
mirrored digit is no digit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import tensorflow as tf

from pipelines.config import UsageError, one_of
from pipelines.transforms.randaugment import MAX_MAGNITUDE, rand_augment

Change = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class Draws(keras.random.SeedGenerator):
    """A seed generator without a state: its n-th seed after `begin(seed)` is a function of `seed` and n alone."""

    def begin(self, seed: tf.Tensor) -> None:
        self._seed, self._drawn = seed, 0

    def next(self, ordered: bool = True) -> tf.Tensor:
        self._drawn += 1
        return tf.random.experimental.stateless_fold_in(self._seed, self._drawn)


@dataclass(frozen=True)
class Name:
    """An augmentation: how it is made from its amount, the amount's default, its range, and what it does."""

    make: Callable[[float], keras.layers.Layer | Callable]
    default: float
    low: float
    high: float
    help: str


def crop(images: tf.Tensor, seed: tf.Tensor, share: float) -> tf.Tensor:
    """Each image cut back to its size at a random place of itself with reflected borders of `share` of its sides.

    Args:
        images: float32 (b, h, w, c).
        seed: int (2,).
        share: border on each side, as a share of the side; at least one pixel.

    Returns:
        float32 (b, h, w, c).
    """
    count, height, width = (tf.shape(images)[axis] for axis in range(3))
    sides = tf.cast(tf.stack([height, width]), "float32")
    rows, columns = tf.unstack(tf.maximum(1, tf.cast(tf.round(share * sides), "int32")))
    seeds = tf.random.experimental.stateless_split(seed, 2)
    top = tf.random.stateless_uniform([count], seeds[0], -rows, rows + 1, "int32")  # (b,)
    left = tf.random.stateless_uniform([count], seeds[1], -columns, columns + 1, "int32")
    return tf.gather(
        tf.gather(images, mirrored(top[:, None] + tf.range(height), height), axis=1, batch_dims=1),  # (b, h, w, c)
        mirrored(left[:, None] + tf.range(width), width),
        axis=2,
        batch_dims=1,
    )


def mirrored(places: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Places before 0 and from `size` on, reflected into the range without repeating the edge."""
    period = tf.maximum(2 * size - 2, 1)
    places = places % period
    return tf.minimum(places, period - places)


F32 = {"dtype": "float32"}  # the pictures stay float32 under every precision policy
layers = keras.layers

NAMES = {
    "flip": Name(lambda _: layers.RandomFlip("horizontal", **F32), 0.5, 0.5, 0.5, "mirror left and right"),
    "vflip": Name(lambda _: layers.RandomFlip("vertical", **F32), 0.5, 0.5, 0.5, "mirror top and bottom"),
    "crop": Name(lambda share: lambda images, seed: crop(images, seed, share), 0.125, 0.01, 0.5, "shift, reflected"),
    "translate": Name(
        lambda share: layers.RandomTranslation(share, share, "constant", **F32), 0.1, 0, 1, "shift, black border"
    ),
    "rotate": Name(lambda angle: layers.RandomRotation(angle / 360, "constant", **F32), 15, 0, 180, "turn, in degrees"),
    "zoom": Name(lambda share: layers.RandomZoom(share, fill_mode="constant", **F32), 0.15, 0, 0.9, "in and out"),
    "brightness": Name(lambda share: layers.RandomBrightness(share, **F32), 0.2, 0, 1, "lighter and darker"),
    "contrast": Name(lambda share: layers.RandomContrast((share, share), **F32), 0.3, 0, 1, "more and less contrast"),
    "randaugment": Name(
        lambda level: lambda images, seed: rand_augment(images, seed, magnitude=level),
        5, 0, MAX_MAGNITUDE, "two operations of fourteen",
    ),
    "mixup": Name(lambda alpha: layers.MixUp(alpha, **F32), 0.2, 0.1, 10, "blend two images and their labels"),
    "cutmix": Name(lambda chance: layers.CutMix((1.0, 1.0), **F32), 1, 1, 1, "paste a box of another image"),
    "erasing": Name(lambda chance: layers.RandomErasing((chance, chance), **F32), 0.5, 0, 1, "noise in a box"),
}  # fmt: skip
MIXING = ("mixup", "cutmix")


def parse(name: str) -> tuple[str, float]:
    """`rotate:10` as ("rotate", 10.0), `rotate` with its default.

    Raises:
        UsageError: an unknown name (the nearest is suggested) or an amount out of range.
    """
    kind, colon, amount = name.partition(":")
    one_of(kind, NAMES, "an augmentation")
    entry = NAMES[kind]
    try:
        value = float(amount) if colon else float(entry.default)
    except ValueError:
        value = float("nan")
    if not entry.low <= value <= entry.high:
        raise UsageError(f"Expected {kind}:AMOUNT from {entry.low} to {entry.high}. Received: {name!r}")
    return kind, value


def augmentation(names: Sequence[str], seed: int, num_classes: int) -> Change:
    """The augmentations `names`, in that order, as one function.

    Args:
        names: keys of `NAMES`, each with an amount of its own if wanted: `["crop", "rotate:10"]`.
        seed: the same seed and step give the same bits.
        num_classes: k.

    Returns:
        `change(step, images, labels) -> (images, labels)`: step an integer scalar, the global number of the batch;
        images (b, h, w, c) of 0 to 255, any number type, 1 or 3 channels; labels (b, k), one-hot or soft. Images come
        back as float32 of 0 to 255; labels as float32, mixed as the images were.

    Raises:
        UsageError: an unknown name or an amount out of range.
        ValueError: from `change`, where the labels are not (b, k).
    """
    steps = []
    for name in names:
        kind, amount = parse(name)
        made = NAMES[kind].make(amount)
        draws = Draws(0)
        if isinstance(made, keras.layers.Layer):
            made.generator = draws
        steps.append((kind, made, draws))

    def change(step: tf.Tensor, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images, labels = tf.cast(images, "float32"), tf.cast(labels, "float32")
        if labels.shape.rank != 2 or labels.shape[-1] != num_classes:
            raise ValueError(f"Expected one-hot labels (b, {num_classes}). Received: {labels.shape}")
        shape = images.shape
        start = tf.stack([tf.constant(seed, "int64"), tf.cast(step, "int64")])
        for place, (kind, made, draws) in enumerate(steps):
            own = tf.random.experimental.stateless_fold_in(start, place)
            if not isinstance(made, keras.layers.Layer):
                images = made(images, own)
                continue
            draws.begin(own)
            if kind in MIXING:
                images, labels = mix(made, images, labels)
            else:
                images = made(images, training=True)
            images = tf.ensure_shape(tf.clip_by_value(images, 0.0, 255.0), shape)
        return images, labels

    return change


def mix(layer: keras.layers.Layer, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """MixUp or CutMix of a batch with itself in another order.

    Keras's CutMix weighs the labels with the area of a box of real numbers; on small images the pixels that the box
    covers are another share. Here the weight is the share of pixels.

    Reference: Zhang et al., "mixup" (2018), section 2; Yun et al., "CutMix" (2019), equation 1.
    """
    how = layer.get_random_transformation(images, training=True)
    if "batch_masks" in how:
        covered = tf.reduce_mean(tf.cast(how["batch_masks"], "float32"), (1, 2, 3))  # (b,)
        how["mix_weight"] = 1.0 - covered
    return layer.transform_images(images, how), layer.transform_labels(labels, how)
