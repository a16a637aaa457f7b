"""LeNet-5: two convolutions, two poolings, three dense layers; the first network that read cheques.

    python -m pipelines.image_classification --model lenet

Expect at least 92 % on the 8x8 digits in seconds, less than logistic regression: on so few pixels the augmentation
that the pipeline does by default is much for so small a network (94 % and more with `--augment none`). Deviations from
LeCun et al. 1998: S2 and S4 have no trained scale and bias, C3 sees all six maps (the paper's table I drops some), the
squashing is a plain tanh, and the answer is a linear layer instead of radial basis functions. With these usual changes
the 32x32 network has 61,706 parameters.
"""

import keras

from models.layers.classification import check_choice, check_sizes, image_input, logits

# LeCun et al. 1998, fig. 2 and section II-B; images are 32x32x1.
SIZES: dict[str, dict] = {
    "5": {"filters": (6, 16), "hidden_dims": (120, 84), "kernel_size": 5, "padding": "valid", "activation": "tanh"},
}


def lenet(
    input_shape,
    num_classes: int,
    *,
    filters: tuple[int, int] = (6, 16),
    hidden_dims: tuple[int, int] = (120, 84),
    kernel_size: int = 5,
    padding: str = "same",
    activation: str = "tanh",
    pooling: str = "average",
    dropout: float = 0.0,
    name: str = "lenet",
) -> keras.Model:
    """Builds LeNet-5, with the paper's names of the layers.

    Args:
        input_shape: (h, w, c), pixels; all three must be known.
        num_classes: number of answers.
        filters: channels of C1 and C3.
        hidden_dims: widths of C5 and F6; F6 is `features`.
        kernel_size: side of the kernels, in pixels.
        padding: "same" keeps the size, so that 8x8 images suffice; the paper's "valid" needs 16x16 with 5x5 kernels.
        activation: name of the activation.
        pooling: "average" as in the paper, or "max".
        dropout: share of the features dropped in training.
        name: name of the model.

    Returns:
        A model from `image` (b, h, w, c) to logits (b, num_classes).

    Raises:
        ValueError: an argument is not as described, or the image is too small.

    Reference: LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition",
        fig. 2.
    """
    c1, c3 = check_sizes("filters", filters)
    c5, f6 = check_sizes("hidden_dims", hidden_dims)
    check_choice("padding", padding, ("same", "valid"))
    check_choice("pooling", pooling, ("average", "max"))
    lost = 0 if padding == "same" else kernel_size - 1  # pixels that one convolution takes from each side length
    image = image_input(input_shape, minimum=2 * (2 + lost) + lost, fixed=True, builder="lenet")
    pool = keras.layers.AveragePooling2D if pooling == "average" else keras.layers.MaxPooling2D

    x = keras.layers.Conv2D(c1, kernel_size, padding=padding, activation=activation, name="c1_conv")(image)
    x = pool(2, name="s2_pool")(x)  # (b, h / 2, w / 2, c1)
    x = keras.layers.Conv2D(c3, kernel_size, padding=padding, activation=activation, name="c3_conv")(x)
    x = pool(2, name="s4_pool")(x)  # (b, h / 4, w / 4, c3)
    x = keras.layers.Flatten(name="flatten")(x)  # (b, h / 4 * w / 4 * c3)
    x = keras.layers.Dense(c5, activation=activation, name="c5_dense")(x)  # (b, c5)
    x = keras.layers.Dense(f6, activation=activation, name="features")(x)  # (b, f6)
    return keras.Model(image, logits(x, num_classes, dropout=dropout), name=name)
