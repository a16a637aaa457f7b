"""Images from bytes or pixels to what a model takes: the same TensorFlow functions in training and in the served graph.

`pixels` takes encoded images (JPEG, PNG, BMP, the first frame of a GIF; any size, 1 to 4 channels, 8 or 16 bits) or
uint8 arrays, one or a batch, and answers uint8 of one shape; `standardize` makes the floats of the model from them.
EXIF orientation is not read: a photograph that relies on it arrives as the sensor stored it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from pipelines.config import one_of

RESIZES = ("stretch", "crop", "pad")
LUMA = (0.299, 0.587, 0.114)


def decode(contents: tf.Tensor) -> tf.Tensor:
    """One encoded image as pixels.

    Args:
        contents: a scalar string, the bytes of a JPEG, PNG, BMP or GIF file. 16-bit PNG keeps its high byte. Of a BMP
            with a palette of colours TensorFlow gives the palette's indices, as grey: send such pictures as PNG.

    Returns:
        uint8 pixels (h, w, c), `c` as stored: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are none of these formats, or are damaged.
    """
    image = tf.io.decode_image(contents, channels=0, expand_animations=False)
    return tf.ensure_shape(image, (None, None, None))  # (h, w, c)


def convert(image: tf.Tensor, channels: int) -> tf.Tensor:
    """Grey to RGB, RGB to grey (luma of ITU-R BT.601), and alpha dropped; nothing else changes.

    Args:
        image: uint8 (..., h, w, c) with 1 to 4 channels.
        channels: 1 or 3.

    Returns:
        uint8 (..., h, w, channels).

    Raises:
        ValueError: `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"Expected 1 (grey) or 3 (RGB) channels. Received: {channels}")
    if image.shape[-1] == channels:
        return image
    colour = tf.shape(image)[-1] >= 3
    rgb = tf.gather(image, tf.where(colour, [0, 1, 2], [0, 0, 0]), axis=-1)  # (..., h, w, 3)
    if channels == 3:
        return rgb
    grey = tf.reduce_sum(tf.cast(rgb, "float32") * LUMA, axis=-1, keepdims=True)  # (..., h, w, 1)
    return tf.cast(tf.round(grey), "uint8")


def fit(image: tf.Tensor, image_shape: Sequence[int], resize: str = "stretch") -> tf.Tensor:
    """Pixels of any size and channels as pixels of one shape, bilinear with antialiasing.

    Args:
        image: uint8 (h, w, c) or (b, h, w, c).
        image_shape: the shape wanted, (height, width, 1 or 3).
        resize: `stretch` ignores the aspect ratio; `crop` fills the shape and cuts the longer side around the centre;
            `pad` fits inside the shape and adds black borders.

    Returns:
        uint8 (height, width, channels), with the leading `b` where there was one.
    """
    one_of(resize, RESIZES, "a way to resize")
    height, width, channels = image_shape
    image = convert(image, channels)
    if image.shape[-3] == height and image.shape[-2] == width:
        return image
    size = tf.constant([height, width])
    if resize == "stretch":
        image = tf.image.resize(image, size, antialias=True)  # (…, height, width, c)
    else:
        found = tf.shape(image)[-3:-1]
        ratios = tf.cast(size, "float32") / tf.cast(found, "float32")
        ratio = tf.reduce_max(ratios) if resize == "crop" else tf.reduce_min(ratios)
        scaled = tf.maximum(1, tf.cast(tf.round(ratio * tf.cast(found, "float32")), "int32"))
        image = tf.image.resize(image, scaled, antialias=True)  # one side as wanted
        image = tf.image.resize_with_crop_or_pad(image, height, width)  # (…, height, width, c)
    image = tf.cast(tf.round(tf.clip_by_value(image, 0, 255)), "uint8")
    return tf.ensure_shape(image, (*image.shape[:-3], height, width, channels))


def pixels(images: tf.Tensor, image_shape: Sequence[int], resize: str = "stretch") -> tf.Tensor:
    """Encoded or decoded images, one or a batch, as pixels of one shape.

    Args:
        images: strings () or (b,) of encoded images, or uint8 (h, w, c) or (b, h, w, c).
        image_shape: the shape wanted, (height, width, 1 or 3).
        resize: see `fit`.

    Returns:
        uint8 (height, width, channels) or (b, height, width, channels).

    Raises:
        ValueError: neither strings nor uint8, or of another rank.
    """
    images = tf.convert_to_tensor(images)
    if images.dtype == tf.string and images.shape.rank == 0:
        return fit(decode(images), image_shape, resize)  # (height, width, channels)
    if images.dtype == tf.string and images.shape.rank == 1:
        spec = tf.TensorSpec(tuple(image_shape), "uint8")
        return tf.map_fn(lambda one: fit(decode(one), image_shape, resize), images, fn_output_signature=spec)
    if images.dtype == tf.uint8 and images.shape.rank in (3, 4):
        return fit(images, image_shape, resize)
    raise ValueError(
        "Expected strings () or (b,) of encoded images, or uint8 pixels (h, w, c) or (b, h, w, c). "
        f"Received: {images.dtype.name} {images.shape}"
    )


def standardize(images: tf.Tensor, normalization: Mapping) -> tf.Tensor:
    """Pixels 0..255 as the floats of a model: `(pixels - mean) / std`, channel by channel.

    Args:
        images: (..., h, w, c), any number type.
        normalization: {"mean": [...], "std": [...], "order": "rgb" or "bgr"}; mean and std in RGB order and in units
            of pixel values, one number or one for each channel; `bgr` reverses the channels at the end.

    Returns:
        float32 (..., h, w, c).
    """
    mean = tf.constant(normalization["mean"], "float32")
    std = tf.constant(normalization["std"], "float32")
    images = (tf.cast(images, "float32") - mean) / std
    return images[..., ::-1] if normalization.get("order", "rgb") == "bgr" else images


def restore(images: tf.Tensor, normalization: Mapping) -> tf.Tensor:
    """The inverse of `standardize`: floats of a model as uint8 pixels, for pictures."""
    images = images[..., ::-1] if normalization.get("order", "rgb") == "bgr" else images
    pixels = tf.cast(images, "float32") * normalization["std"] + normalization["mean"]
    return tf.cast(tf.round(tf.clip_by_value(pixels, 0, 255)), "uint8")
