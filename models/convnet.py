"""A plain convolutional network: stages of 3x3 convolutions with batch normalization, pooling between, mean at the end.

    python -m pipelines.image_classification --model convnet

The default model of the pipeline: 66,218 parameters for ten classes of grey images, and at least 98.5 % on the 8x8
digits in under 90 seconds of two cores. There is no single paper; the parts are named below.
"""

import keras

from models.layers.classification import check_choice, check_sizes, image_input, logits
from models.layers.convolution import conv_norm
from models.layers.regularization import check_rate

SIZES: dict[str, dict] = {
    "tiny": {"widths": (16, 32), "depth": 1},
    "small": {"widths": (32, 64, 128), "depth": 2},
}


def convnet(
    input_shape,
    num_classes: int,
    *,
    widths: tuple[int, ...] = (32, 64),
    depth: int = 2,
    kernel_size: int = 3,
    pooling: str = "max",
    activation: str = "relu",
    momentum: float = 0.9,
    dropout: float = 0.3,
    name: str = "convnet",
) -> keras.Model:
    """Builds a plain convolutional network.

    Args:
        input_shape: (h, w, c), pixels; h and w may be unknown (None).
        num_classes: number of answers.
        widths: channels of each stage; every stage after the first works at half the size of the one before.
        depth: convolutions in each stage.
        kernel_size: side of the kernels, in pixels.
        pooling: "max" or "average", between stages.
        activation: name of the activation.
        momentum: share of the old moving mean and variance that batch normalization keeps.
        dropout: share dropped in training: of whole channels between stages (half of it), and of the features.
        name: name of the model.

    Returns:
        A model from `image` (b, h, w, c) to logits (b, num_classes).

    Raises:
        ValueError: an argument is not as described, or the image is smaller than 2 ** (len(widths) - 1) pixels.

    Reference: Simonyan and Zisserman 2015 (arXiv:1409.1556, section 2.3) for stacks of 3x3 kernels; Ioffe and Szegedy
        2015, alg. 1, for the normalization; Lin et al. 2014, "Network in network", section 3.2, for the final mean.
    """
    widths = check_sizes("widths", widths)
    check_sizes("depth", depth)
    check_choice("pooling", pooling, ("max", "average"))
    check_rate("dropout", dropout)
    image = image_input(input_shape, minimum=2 ** (len(widths) - 1), builder="convnet")
    pool = keras.layers.MaxPooling2D if pooling == "max" else keras.layers.AveragePooling2D

    x = image
    for stage, width in enumerate(widths, start=1):
        if stage > 1:
            x = pool(2, name=f"stage{stage}_pool")(x)  # (b, h / 2, w / 2, c)
            if dropout:
                x = keras.layers.SpatialDropout2D(dropout / 2, name=f"stage{stage}_dropout")(x)
        for index in range(1, depth + 1):
            x = conv_norm(
                x, width, kernel_size, activation=activation, momentum=momentum, name=f"stage{stage}_{index}"
            )  # (b, h, w, width)
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)  # (b, width)
    return keras.Model(image, logits(x, num_classes, dropout=dropout), name=name)
