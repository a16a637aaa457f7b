"""Residual networks: every block adds to what it was given, so that a hundred layers train as easily as ten.

    python -m pipelines.image_classification --model resnet

The default is a small network for small images. The published sizes are "20" to "110" for 32x32 images, "18" to "152"
for 224x224, and "50v2" to "152v2" with the activation before the convolution. Deviations from the papers, both
shared with Keras's published weights: the convolutions of "50" to "152" have biases, and "50v2" to "152v2" step in the
last block of a stage instead of the first.
"""

import keras

from models.layers.classification import check_choice, check_sizes, image_input, logits
from models.layers.convolution import centred_padding, conv_norm
from models.layers.regularization import check_rate, stochastic_depth

_LARGE = {"width": 64, "stem": "7x7", "shortcut": "projection", "momentum": 0.99, "epsilon": 1.001e-5}
_BOTTLENECK = {**_LARGE, "bottleneck": True, "conv_bias": True}
_V2 = {**_LARGE, "bottleneck": True, "preactivation": True}
_SMALL = {"width": 16, "stem": "3x3", "shortcut": "padding"}

SIZES: dict[str, dict] = {
    # He et al. 2015, table 6 (depth 6n + 2, for 32x32 images)
    "20": {**_SMALL, "depths": (3, 3, 3)},
    "56": {**_SMALL, "depths": (9, 9, 9)},
    "110": {**_SMALL, "depths": (18, 18, 18)},
    # He et al. 2015, table 1
    "18": {**_LARGE, "depths": (2, 2, 2, 2)},
    "34": {**_LARGE, "depths": (3, 4, 6, 3)},
    "50": {**_BOTTLENECK, "depths": (3, 4, 6, 3)},
    "101": {**_BOTTLENECK, "depths": (3, 4, 23, 3)},
    "152": {**_BOTTLENECK, "depths": (3, 8, 36, 3)},
    # He et al. 2016, table 5
    "50v2": {**_V2, "depths": (3, 4, 6, 3)},
    "101v2": {**_V2, "depths": (3, 4, 23, 3)},
    "152v2": {**_V2, "depths": (3, 8, 36, 3)},
}
RESOLUTION = dict.fromkeys(("50", "101", "152", "50v2", "101v2", "152v2"), 224)  # pixels; those with published weights


@keras.saving.register_keras_serializable("dl_essentials")
class PadChannels(keras.layers.Layer):
    """Appends channels of zeros: the shortcut without parameters (He et al. 2015, section 3.3, option A).

    Args:
        channels: how many channels to append.

    Input shape: (b, h, w, c)
    Output shape: (b, h, w, c + channels)
    """

    def __init__(self, channels: int, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels

    def call(self, x):
        return keras.ops.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.channels)))  # (b, h, w, c + channels)

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}


def resnet(
    input_shape,
    num_classes: int,
    *,
    depths: tuple[int, ...] = (2, 2, 2),
    width: int = 16,
    bottleneck: bool = False,
    preactivation: bool = False,
    stem: str = "3x3",
    shortcut: str = "projection",
    conv_bias: bool = False,
    zero_init_residual: bool = False,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    name: str = "resnet",
) -> keras.Model:
    """Builds a residual network.

    Args:
        input_shape: (h, w, c), pixels; h and w may be unknown (None).
        num_classes: number of answers.
        depths: blocks in each stage; every stage after the first works at half the size, with twice the channels.
        width: channels of the stem and of the first stage.
        bottleneck: 1x1, 3x3, 1x1 convolutions that give four times the width, instead of two 3x3 convolutions.
        preactivation: normalization and activation before the convolutions (v2) instead of after them (v1).
        stem: "3x3" keeps the size of small images, "7x7" steps by two and pools.
        shortcut: how a block whose shape changes passes its input on: "projection" (a 1x1 convolution, option B) or
            "padding" (every second pixel and zero channels, option A).
        conv_bias: whether convolutions before a normalization have a bias. Only for v1.
        zero_init_residual: whether every block starts as the identity: its last scale (v1) or kernel (v2) is zero.
        momentum: share of the old moving mean and variance that batch normalization keeps.
        epsilon: added to the variance.
        dropout: share of the features dropped in training.
        stochastic_depth: rate at which the last block is dropped in training; the rates before it grow linearly.
        name: name of the model.

    Returns:
        A model from `image` (b, h, w, c) to logits (b, num_classes).

    Raises:
        ValueError: an argument is not as described, or the image is too small for the number of stages.

    Reference: He, Zhang, Ren and Sun 2015, "Deep residual learning for image recognition", figs. 2 and 5, sections 3.3
        and 4.2; He et al. 2016, "Identity mappings in deep residual networks", fig. 1b; Goyal et al. 2017, "Accurate,
        large minibatch SGD", section 5.1, for the zero scale; Huang et al. 2016, section 3, for stochastic depth.
    """
    depths = check_sizes("depths", depths)
    check_sizes("width", width)
    check_choice("stem", stem, ("3x3", "7x7"))
    check_choice("shortcut", shortcut, ("projection", "padding"))
    check_rate("stochastic_depth", stochastic_depth)
    if preactivation and conv_bias:
        raise ValueError("conv_bias belongs to v1. Received: preactivation=True and conv_bias=True")
    smallest = 2 ** (len(depths) - 1) * (4 if stem == "7x7" else 1)
    image = image_input(input_shape, minimum=smallest, builder="resnet")
    norm = {"momentum": momentum, "epsilon": epsilon}
    shared = {"preactivation": preactivation, "shortcut": shortcut, "zero_init": zero_init_residual, **norm}

    x = _stem(image, width, large=stem == "7x7", preactivation=preactivation, use_bias=conv_bias, **norm)
    index = 0
    for stage, depth in enumerate(depths):
        for block in range(depth):
            stepping = depth - 1 if preactivation else 0  # the block of the stage that halves the size
            halving_stage = stage < len(depths) - 1 if preactivation else stage > 0
            x = _block(
                x,
                _convolutions(width * 2**stage, bottleneck),
                strides=2 if halving_stage and block == stepping else 1,
                conv_bias=conv_bias,
                drop=stochastic_depth * index / sum(depths),
                name=f"conv{stage + 2}_block{block + 1}",
                **shared,
            )  # (b, h / 2**stage, w / 2**stage, width * 2**stage * (4 if bottleneck else 1))
            index += 1
    if preactivation:
        x = _norm_relu(x, **norm, name="post")
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)  # (b, d)
    return keras.Model(image, logits(x, num_classes, dropout=dropout), name=name)


def _stem(x, width, *, large, preactivation, use_bias, momentum, epsilon):
    """The layers before the first stage. The v2 stem has no normalization: the first block brings it."""
    kernel_size, strides = (7, 2) if large else (3, 1)
    if preactivation:
        x = centred_padding(x, kernel_size, name="conv1_pad")
        x = keras.layers.Conv2D(width, kernel_size, strides=strides, kernel_initializer="he_normal", name="conv1_conv")(
            x
        )  # (b, h / strides, w / strides, width)
    else:
        norm = {"use_bias": use_bias, "momentum": momentum, "epsilon": epsilon}
        x = conv_norm(x, width, kernel_size, strides=strides, padding="centred", **norm, name="conv1")
    if not large:
        return x
    x = keras.layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return keras.layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)  # (b, h / 4, w / 4, width)


def _convolutions(width, bottleneck):
    """The convolutions of a block: pairs of channels and kernel size."""
    return [(width, 1), (width, 3), (4 * width, 1)] if bottleneck else [(width, 3), (width, 3)]


def _block(x, convolutions, *, strides, preactivation, shortcut, zero_init, conv_bias, drop, momentum, epsilon, name):
    """One residual block: shortcut plus branch (He et al. 2015, eq. 1 and 2; 2016, eq. 1 and 2)."""
    norm = {"momentum": momentum, "epsilon": epsilon}
    last_kernel, last_scale = ("zeros", "zeros") if zero_init else ("he_normal", "ones")
    entry = _norm_relu(x, **norm, name=f"{name}_preact") if preactivation else x
    changes = x.shape[-1] != convolutions[-1][0]
    if changes and shortcut == "projection":
        passed = keras.layers.Conv2D(
            convolutions[-1][0],
            1,
            strides=strides,
            use_bias=preactivation or conv_bias,
            kernel_initializer="he_normal",
            name=f"{name}_0_conv",
        )(entry)
        if not preactivation:
            passed = keras.layers.BatchNormalization(**norm, name=f"{name}_0_bn")(passed)
    else:
        passed = _shortcut(x, strides, convolutions[-1][0] - x.shape[-1], name)

    branch = entry
    stepping = 1 if preactivation and len(convolutions) == 3 else 0  # the convolution that steps
    for index, (filters, kernel_size) in enumerate(convolutions):
        last = index == len(convolutions) - 1
        step = strides if index == stepping else 1
        title = f"{name}_{index + 1}"
        if preactivation and last:
            branch = centred_padding(branch, kernel_size, name=f"{title}_pad")
            branch = keras.layers.Conv2D(
                filters, kernel_size, strides=step, kernel_initializer=last_kernel, name=f"{title}_conv"
            )(branch)
        else:
            branch = conv_norm(
                branch,
                filters,
                kernel_size,
                strides=step,
                padding="centred",
                use_bias=conv_bias,
                activation=None if last else "relu",
                gamma=last_scale if last else "ones",
                **norm,
                name=title,
            )
    branch = stochastic_depth(branch, drop, name=f"{name}_drop")
    x = keras.layers.Add(name=f"{name}_add")([passed, branch])  # (b, h / strides, w / strides, filters)
    return x if preactivation else keras.layers.Activation("relu", name=f"{name}_out")(x)


def _shortcut(x, strides, channels, name):
    """The shortcut without parameters: every `strides`-th pixel, and zeros in the new channels."""
    if strides > 1:
        x = keras.layers.MaxPooling2D(1, strides=strides, name=f"{name}_0_pool")(x)  # (b, h / 2, w / 2, c)
    return PadChannels(channels, name=f"{name}_0_channels")(x) if channels else x


def _norm_relu(x, *, momentum, epsilon, name):
    """Batch normalization and ReLU, before a convolution."""
    x = keras.layers.BatchNormalization(momentum=momentum, epsilon=epsilon, name=f"{name}_bn")(x)
    return keras.layers.Activation("relu", name=f"{name}_relu")(x)
