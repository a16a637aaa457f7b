"""EfficientNet: inverted bottlenecks with squeeze and excitation, whose width, depth and resolution grow together.

    python -m pipelines.image_classification --model efficientnet

The default is a small network for small images. Sizes "b0" to "b7" are Keras's layout, which scales raw pixels
inside of the model (`rescaling`); `RESOLUTION` holds the image size that each was made for. Deviation from the paper:
the first block's drop rate is zero, as in Keras.
"""

import math

import keras

from models.layers.classification import check_sizes, image_input, logits
from models.layers.convolution import conv_norm
from models.layers.regularization import check_rate, stochastic_depth

# Tan and Le 2019, table 1: kernel size, blocks, channels, expansion, strides.
STAGES = (
    (3, 1, 16, 1, 1),
    (3, 2, 24, 6, 2),
    (5, 2, 40, 6, 2),
    (3, 3, 80, 6, 2),
    (5, 3, 112, 6, 1),
    (5, 4, 192, 6, 2),
    (3, 1, 320, 6, 1),
)
# For images of 8x8 to 64x64 pixels.
SMALL_STAGES = ((3, 1, 16, 1, 1), (3, 2, 24, 4, 2), (3, 2, 40, 4, 2))


def _size(width, depth, dropout):
    """A published size: coefficients of table 1's network, and Keras's momentum and scaling of pixels."""
    return {
        "width_coefficient": width,
        "depth_coefficient": depth,
        "dropout": dropout,
        "stochastic_depth": 0.2,
        "stages": STAGES,
        "stem_width": 32,
        "stem_strides": 2,
        "head_width": 1280,
        "momentum": 0.99,
        "rescaling": True,
    }


# Coefficients of the authors' released code (section 3.3 gives alpha = 1.2 for depth and beta = 1.1 for width).
SIZES: dict[str, dict] = {
    "b0": _size(1.0, 1.0, 0.2),
    "b1": _size(1.0, 1.1, 0.2),
    "b2": _size(1.1, 1.2, 0.3),
    "b3": _size(1.2, 1.4, 0.3),
    "b4": _size(1.4, 1.8, 0.4),
    "b5": _size(1.6, 2.2, 0.4),
    "b6": _size(1.8, 2.6, 0.5),
    "b7": _size(2.0, 3.1, 0.5),
}
RESOLUTION = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600}  # pixels


def scaled_width(channels: int, coefficient: float, divisor: int = 8) -> int:
    """Channels times the coefficient, rounded to a multiple of `divisor` and never more than a tenth below.

    Reference: Tan and Le 2019, eq. 3; Sandler et al. 2018 ("MobileNetV2"), whose released code gives the rounding.
    """
    wanted = channels * coefficient
    rounded = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * wanted else rounded


def scaled_depth(blocks: int, coefficient: float) -> int:
    """Blocks times the coefficient, rounded up (Tan and Le 2019, eq. 3)."""
    return math.ceil(blocks * coefficient)


def efficientnet(
    input_shape,
    num_classes: int,
    *,
    width_coefficient: float = 1.0,
    depth_coefficient: float = 1.0,
    stages: tuple[tuple[int, int, int, int, int], ...] = SMALL_STAGES,
    stem_width: int = 16,
    stem_strides: int = 1,
    head_width: int = 160,
    rescaling: bool = False,
    momentum: float = 0.9,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    name: str = "efficientnet",
) -> keras.Model:
    """Builds an EfficientNet.

    Args:
        input_shape: (h, w, c), pixels; h and w may be unknown (None).
        num_classes: number of answers.
        width_coefficient: factor on all channels.
        depth_coefficient: factor on the blocks of every stage.
        stages: rows of kernel size, blocks, channels, expansion and strides.
        stem_width: channels of the first convolution.
        stem_strides: step of the first convolution, in pixels.
        head_width: channels of the last convolution, before the mean.
        rescaling: whether the model takes pixels of 0 to 255 and scales them itself.
        momentum: share of the old moving mean and variance that batch normalization keeps.
        dropout: share of the features dropped in training.
        stochastic_depth: rate at which the last block is dropped in training; the rates before it grow linearly.
        name: name of the model.

    Returns:
        A model from `image` (b, h, w, c) to logits (b, num_classes).

    Raises:
        ValueError: an argument is not as described, or the image is smaller than the product of all strides.

    Reference: Tan and Le 2019, "EfficientNet: Rethinking model scaling for convolutional neural networks", table 1 and
        eq. 3; Hu et al. 2018, "Squeeze-and-excitation networks", section 3.
    """
    for row in stages:
        if len(check_sizes("a row of stages", row)) != 5:
            raise ValueError(f"stages needs rows of kernel size, blocks, channels, expansion, strides. Received: {row}")
    if min(width_coefficient, depth_coefficient) <= 0:
        raise ValueError(f"The coefficients must be above 0. Received: {width_coefficient}, {depth_coefficient}")
    check_rate("stochastic_depth", stochastic_depth)
    smallest = stem_strides * math.prod(row[4] for row in stages)
    image = image_input(input_shape, minimum=smallest, builder="efficientnet")

    x = image
    if rescaling:
        x = keras.layers.Rescaling(1 / 255, name="rescaling")(x)
        x = keras.layers.Normalization(name="normalization")(x)
    stem = scaled_width(stem_width, width_coefficient)
    x = conv_norm(
        x, stem, 3, strides=stem_strides, activation="silu", momentum=momentum, initializer=_kernel(), name="stem"
    )  # (b, h / stem_strides, w / stem_strides, stem)
    total = sum(scaled_depth(row[1], depth_coefficient) for row in stages)
    index = 0
    for stage, (kernel_size, blocks, channels, expansion, strides) in enumerate(stages, start=1):
        for block in range(scaled_depth(blocks, depth_coefficient)):
            x = _block(
                x,
                scaled_width(channels, width_coefficient),
                kernel_size,
                expansion=expansion,
                strides=strides if block == 0 else 1,
                drop=stochastic_depth * index / total,
                momentum=momentum,
                name=f"block{stage}{chr(ord('a') + block)}",
            )  # (b, h / strides, w / strides, channels)
            index += 1
    head = scaled_width(head_width, width_coefficient)
    x = conv_norm(x, head, 1, activation="silu", momentum=momentum, initializer=_kernel(), name="top")
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)  # (b, head)
    return keras.Model(image, logits(x, num_classes, dropout=dropout), name=name)


def _block(x, channels, kernel_size, *, expansion, strides, drop, momentum, name):
    """An inverted bottleneck: widen, filter each channel, weigh the channels, narrow, add (Tan and Le, section 4)."""
    entry, entry_channels = x, x.shape[-1]
    norm = {"momentum": momentum, "initializer": _kernel()}
    if expansion > 1:
        x = conv_norm(x, entry_channels * expansion, 1, activation="silu", **norm, name=f"{name}_expand")
    x = keras.layers.DepthwiseConv2D(
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        depthwise_initializer=_kernel(),
        name=f"{name}_dwconv",
    )(x)  # (b, h / strides, w / strides, c)
    x = keras.layers.BatchNormalization(momentum=momentum, name=f"{name}_bn")(x)
    x = keras.layers.Activation("silu", name=f"{name}_silu")(x)
    x = _squeeze_excite(x, max(1, entry_channels // 4), name=f"{name}_se")
    x = conv_norm(x, channels, 1, activation=None, **norm, name=f"{name}_project")  # (b, h, w, channels)
    if strides > 1 or channels != entry_channels:
        return x
    x = stochastic_depth(x, drop, name=f"{name}_drop")
    return keras.layers.Add(name=f"{name}_add")([x, entry])


def _squeeze_excite(x, width, *, name):
    """Weighs every channel by a number in (0, 1) that depends on all of them (Hu et al. 2018, eq. 2 to 4)."""
    channels = x.shape[-1]
    weights = keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)  # (b, 1, 1, c)
    for filters, activation, step in ((width, "silu", "reduce"), (channels, "sigmoid", "expand")):
        weights = keras.layers.Conv2D(
            filters, 1, activation=activation, kernel_initializer=_kernel(), name=f"{name}_{step}"
        )(weights)  # (b, 1, 1, filters)
    return keras.layers.Multiply(name=f"{name}_excite")([x, weights])  # (b, h, w, c)


def _kernel():
    """The initializer of all kernels, with a seed of its own (He et al. 2015, eq. 14: by the outgoing connections)."""
    return keras.initializers.VarianceScaling(2.0, mode="fan_out", distribution="truncated_normal")
