"""VGG: stacks of 3x3 convolutions that double in width as the image halves, then two wide dense layers.

    python -m pipelines.image_classification --model vgg

The default is a small network for small images. Sizes "11" to "19" are the paper's columns A, B, D and E; their dense
layers fix the image at 224x224. Deviation from the paper: He's initial kernels instead of training the deeper networks
from the shallower ones, and batch normalization on request.
"""

import keras

from models.layers.classification import check_choice, check_sizes, image_input, logits
from models.layers.convolution import conv_norm
from models.layers.regularization import check_rate

_IMAGENET = {"width": 64, "hidden_dims": (4096, 4096), "dropout": 0.5}

# Simonyan and Zisserman 2015, table 1, columns A, B, D and E.
SIZES: dict[str, dict] = {
    "11": {**_IMAGENET, "depths": (1, 1, 2, 2, 2)},
    "13": {**_IMAGENET, "depths": (2, 2, 2, 2, 2)},
    "16": {**_IMAGENET, "depths": (2, 2, 3, 3, 3)},
    "19": {**_IMAGENET, "depths": (2, 2, 4, 4, 4)},
}
RESOLUTION = {"16": 224, "19": 224}  # pixels; the sizes with published weights


def vgg(
    input_shape,
    num_classes: int,
    *,
    depths: tuple[int, ...] = (1, 1, 2),
    width: int = 32,
    hidden_dims: tuple[int, ...] = (128, 128),
    normalization: str = "none",
    momentum: float = 0.9,
    dropout: float = 0.0,
    name: str = "vgg",
) -> keras.Model:
    """Builds a VGG network.

    Args:
        input_shape: (h, w, c), pixels; all three must be known.
        num_classes: number of answers.
        depths: convolutions in each block; every block ends in a pooling that halves the size.
        width: channels of the first block; they double from block to block, up to eight times this.
        hidden_dims: widths of the dense layers; the last one is `features`.
        normalization: "none" as in the paper, or "batch" after every convolution.
        momentum: share of the old moving mean and variance that batch normalization keeps.
        dropout: share dropped after every dense layer in training (0.5 in the paper, section 3.1).
        name: name of the model.

    Returns:
        A model from `image` (b, h, w, c) to logits (b, num_classes).

    Raises:
        ValueError: an argument is not as described, or the image is smaller than 2 ** len(depths) pixels.

    Reference: Simonyan and Zisserman 2015, "Very deep convolutional networks for large-scale image recognition", table
        1 and section 2.1.
    """
    depths = check_sizes("depths", depths)
    hidden_dims = check_sizes("hidden_dims", hidden_dims)
    check_sizes("width", width)
    check_choice("normalization", normalization, ("none", "batch"))
    check_rate("dropout", dropout)
    image = image_input(input_shape, minimum=2 ** len(depths), fixed=True, builder="vgg")

    x = image
    for block, depth in enumerate(depths, start=1):
        filters = width * min(2 ** (block - 1), 8)
        for index in range(1, depth + 1):
            title = f"block{block}_conv{index}"
            if normalization == "batch":
                x = conv_norm(x, filters, 3, momentum=momentum, name=title)
            else:
                x = keras.layers.Conv2D(
                    filters, 3, padding="same", activation="relu", kernel_initializer="he_normal", name=title
                )(x)  # (b, h, w, filters)
        x = keras.layers.MaxPooling2D(2, name=f"block{block}_pool")(x)  # (b, h / 2, w / 2, filters)
    x = keras.layers.Flatten(name="flatten")(x)  # (b, h / 2**blocks * w / 2**blocks * filters)
    for index, hidden_dim in enumerate(hidden_dims, start=1):
        last = index == len(hidden_dims)
        x = keras.layers.Dense(hidden_dim, kernel_initializer="he_normal", name=f"fc{index}")(x)  # (b, hidden_dim)
        x = keras.layers.Activation("relu", name="features" if last else f"fc{index}_relu")(x)
        if dropout and not last:
            x = keras.layers.Dropout(dropout, name=f"fc{index}_dropout")(x)
    return keras.Model(image, logits(x, num_classes, dropout=dropout), name=name)
