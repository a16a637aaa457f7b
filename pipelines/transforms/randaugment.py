"""RandAugment for a batch: every image gets its own operations, drawn from the fourteen of the paper.

Keras has a `RandAugment` layer, which is not used here: it draws its operations once for the whole batch, computes all
of them for every image, turns by a share of a full circle (its default reaches 180°), and posterizes more the *smaller*
the magnitude. The operations below are those of AutoAugment's table 6 and equal Pillow's; where Pillow truncates to
whole pixel values, these keep the fraction.

Reference: Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space" (2019),
section 3; Cubuk et al., "AutoAugment" (2018), table 6 for the ranges.
"""

from __future__ import annotations

import math

import tensorflow as tf

from pipelines.transforms.images import LUMA

MAX_MAGNITUDE = 10
GREY = 128.0
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
POINTWISE = (
    "identity auto_contrast equalize solarize posterize colour contrast brightness sharpness".split()  # of pixel values
)
OPERATIONS = (*POINTWISE, *GEOMETRIC)


def rand_augment(images: tf.Tensor, seed: tf.Tensor, *, magnitude: float, num_ops: int = 2) -> tf.Tensor:
    """`num_ops` operations, drawn for each image by itself and applied one after the other at one magnitude.

    Args:
        images: float32 (b, h, w, c), 0 to 255, 1 or 3 channels.
        seed: int (2,); the same seed gives the same bits.
        magnitude: 0 to 10, the paper's M on AutoAugment's linear scale.
        num_ops: the paper's N.

    Returns:
        float32 (b, h, w, c), 0 to 255.
    """
    count = tf.shape(images)[0]
    for turn in range(num_ops):
        seeds = tf.random.experimental.stateless_split(tf.random.experimental.stateless_fold_in(seed, turn), 2)
        chosen = tf.random.stateless_uniform([count], seeds[0], 0, len(OPERATIONS), "int32")  # (b,)
        heads = tf.random.stateless_uniform([count], seeds[1]) < 0.5
        signs = tf.where(heads, -1.0, 1.0)  # (b,)
        images = operate(images, chosen, signs * (magnitude / MAX_MAGNITUDE))
    return images


def operate(images: tf.Tensor, chosen: tf.Tensor, strengths: tf.Tensor) -> tf.Tensor:
    """One operation for each image.

    Args:
        images: float32 (b, h, w, c), 0 to 255.
        chosen: int32 (b,), places in `OPERATIONS`.
        strengths: float32 (b,), -1 to 1: the share of the operation's range, and its direction where it has two.

    Returns:
        float32 (b, h, w, c), 0 to 255.
    """
    groups = tf.minimum(chosen, len(POINTWISE))  # the geometric operations are one group: one transformation
    places = tf.dynamic_partition(tf.range(tf.shape(images)[0]), groups, len(POINTWISE) + 1)
    results = []
    for name, place in zip(POINTWISE, places, strict=False):
        strength = tf.gather(strengths, place)[:, None, None, None]  # (g, 1, 1, 1), g images drew this operation
        mine = tf.gather(images, place)  # (g, h, w, c)
        results.append(mine if name == "identity" else pointwise(name, mine, strength))
    mine, drawn, strength = (tf.gather(values, places[-1]) for values in (images, chosen, strengths))
    results.append(move(mine, drawn, strength))
    return tf.clip_by_value(tf.dynamic_stitch(places, results), 0.0, 255.0)  # (b, h, w, c)


def pointwise(name: str, images: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """One of `POINTWISE` for some images, at `strength` (b, 1, 1, 1); float32 (b, h, w, c) in and out."""
    if name == "auto_contrast":
        low = tf.reduce_min(images, (1, 2), keepdims=True)  # (b, 1, 1, c)
        high = tf.reduce_max(images, (1, 2), keepdims=True)
        return tf.where(high > low, (images - low) * 255.0 / tf.maximum(high - low, 1e-6), images)
    if name == "equalize":
        return equalize(images)
    if name == "solarize":
        return tf.where(images >= 256.0 * (1.0 - tf.abs(strength)), 255.0 - images, images)
    if name == "posterize":
        step = 2.0 ** tf.round(4.0 * tf.abs(strength))  # 8 to 4 bits are kept
        return tf.floor(images / step) * step
    factor = 1.0 + 0.9 * strength  # 0 is the plainest picture, 1 the image itself, 1.9 the strongest
    plain = {"colour": grey, "contrast": mean_grey, "brightness": tf.zeros_like, "sharpness": smooth}[name](images)
    return tf.clip_by_value(plain + factor * (images - plain), 0.0, 255.0)


def grey(images: tf.Tensor) -> tf.Tensor:
    """The luma in every channel; grey images as they are."""
    if images.shape[-1] == 1:
        return images
    luma = tf.reduce_sum(images * LUMA, axis=-1, keepdims=True)  # (b, h, w, 1)
    return tf.broadcast_to(luma, tf.shape(images))


def mean_grey(images: tf.Tensor) -> tf.Tensor:
    """The mean luma of each image, everywhere."""
    mean = tf.reduce_mean(grey(images), (1, 2, 3), keepdims=True)  # (b, 1, 1, 1)
    return tf.broadcast_to(mean, tf.shape(images))


def smooth(images: tf.Tensor) -> tf.Tensor:
    """Each pixel averaged with its eight neighbours, itself five times; the border stays."""
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    wide = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")  # (b, h + 2, w + 2, c)
    total = 4.0 * images
    for row in range(3):
        for column in range(3):
            total += wide[:, row : row + height, column : column + width]
    rows, columns = tf.range(height)[:, None], tf.range(width)[None, :]
    border = (rows == 0) | (rows == height - 1) | (columns == 0) | (columns == width - 1)  # (h, w)
    return tf.where(border[None, :, :, None], images, total / 13.0)


def equalize(images: tf.Tensor) -> tf.Tensor:
    """Pixel values replaced so that each channel's histogram becomes flat, by Pillow's integer rule."""
    shape = tf.shape(images)
    size, groups = shape[1] * shape[2], shape[0] * shape[3]
    values = tf.cast(tf.transpose(images, (0, 3, 1, 2)), "int32")  # (b, c, h, w)
    slots = tf.reshape(values, (groups, size)) + 256 * tf.range(groups)[:, None]  # (b·c, h·w)
    histogram = tf.math.unsorted_segment_sum(tf.ones(tf.size(slots), "int32"), tf.reshape(slots, [-1]), groups * 256)
    histogram = tf.reshape(histogram, (groups, 256))
    filled = tf.cast(histogram > 0, "int32") * tf.range(1, 257)
    last = tf.gather(histogram, tf.reduce_max(filled, axis=1) - 1, batch_dims=1)  # (b·c,) pixels of the largest value
    step = (size - last)[:, None] // 255
    table = (tf.cumsum(histogram, axis=1, exclusive=True) + step // 2) // tf.maximum(step, 1)
    table = tf.where(step > 0, tf.minimum(table, 255), tf.range(256)[None, :])  # (b·c, 256)
    found = tf.gather(tf.reshape(table, [-1]), slots)  # (b·c, h·w)
    found = tf.reshape(found, (shape[0], shape[3], shape[1], shape[2]))
    return tf.cast(tf.transpose(found, (0, 2, 3, 1)), "float32")  # (b, h, w, c)


def move(images: tf.Tensor, chosen: tf.Tensor, strengths: tf.Tensor) -> tf.Tensor:
    """The geometric operation of each image, all in one affine transformation; grey where nothing was."""
    height, width = (tf.cast(size, "float32") for size in (tf.shape(images)[1], tf.shape(images)[2]))

    def by(name: str, amount: float | tf.Tensor) -> tf.Tensor:
        return tf.where(chosen == OPERATIONS.index(name), strengths * amount, 0.0)  # (b,)

    shear_x, shear_y = by("shear_x", 0.3), by("shear_y", 0.3)
    shift_x, shift_y = by("translate_x", 0.45 * width), by("translate_y", 0.45 * height)
    angle = by("rotate", math.radians(30))
    cosine, sine, zero = tf.cos(angle), tf.sin(angle), tf.zeros_like(angle)
    a0, a1, b0, b1 = cosine, shear_x - sine, shear_y + sine, cosine
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    a2 = middle_x - a0 * middle_x - a1 * middle_y + shift_x
    b2 = middle_y - b0 * middle_x - b1 * middle_y + shift_y
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([a0, a1, a2, b0, b1, b2, zero, zero], axis=1),  # (b, 8)
        output_shape=tf.shape(images)[1:3],
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
        fill_value=GREY,
    )
