"""A multilayer perceptron: the pixels laid in a row, dense layers, and a linear answer.

    python -m pipelines.image_classification --model mlp

Expect at least 97 % on the 8x8 digits in seconds: the network sees no neighbourhoods. Deviations from Cireşan et al.
2010 (whose sizes are `SIZES`): rectified units instead of scaled tanh, and no deformed training images.
"""

import keras

from models.layers.classification import check_choice, check_sizes, image_input, logits
from models.layers.regularization import check_rate

# Cireşan et al. 2010, "Deep, big, simple neural nets excel on handwritten digit recognition", table 1 (its numbers).
SIZES: dict[str, dict] = {
    "1": {"hidden_dims": (1000, 500)},
    "2": {"hidden_dims": (1500, 1000, 500)},
    "3": {"hidden_dims": (2000, 1500, 1000, 500)},
    "4": {"hidden_dims": (2500, 2000, 1500, 1000, 500)},
    "5": {"hidden_dims": (1000,) * 9},
}


def mlp(
    input_shape,
    num_classes: int,
    *,
    hidden_dims: tuple[int, ...] = (256, 128),
    activation: str = "relu",
    normalization: str = "none",
    momentum: float = 0.9,
    dropout: float = 0.0,
    name: str = "mlp",
) -> keras.Model:
    """Builds a multilayer perceptron for images.

    Args:
        input_shape: (h, w, c), pixels; all three must be known.
        num_classes: number of answers.
        hidden_dims: width of each hidden layer; the last one is `features`.
        activation: name of the activation after each hidden layer.
        normalization: "none", "batch" or "layer", before each activation.
        momentum: share of the old moving mean and variance that batch normalization keeps.
        dropout: share of the units dropped after each hidden layer, in training.
        name: name of the model.

    Returns:
        A model from `image` (b, h, w, c) to logits (b, num_classes).

    Raises:
        ValueError: a shape, a width, a rate or the normalization is not as described.

    Reference: Rumelhart, Hinton and Williams 1986, "Learning representations by back-propagating errors"; Cireşan et
        al. 2010, table 1.
    """
    widths = check_sizes("hidden_dims", hidden_dims)
    check_choice("normalization", normalization, ("none", "batch", "layer"))
    check_rate("dropout", dropout)
    image = image_input(input_shape, fixed=True, builder="mlp")
    x = keras.layers.Flatten(name="flatten")(image)  # (b, h * w * c)
    for index, width in enumerate(widths, start=1):
        last = index == len(widths)
        x = keras.layers.Dense(
            width, use_bias=normalization == "none", kernel_initializer="he_normal", name=f"hidden{index}_dense"
        )(x)  # (b, width)
        if normalization == "batch":
            x = keras.layers.BatchNormalization(momentum=momentum, name=f"hidden{index}_bn")(x)
        if normalization == "layer":
            x = keras.layers.LayerNormalization(name=f"hidden{index}_norm")(x)
        x = keras.layers.Activation(activation, name="features" if last else f"hidden{index}_{activation}")(x)
        if dropout and not last:
            x = keras.layers.Dropout(dropout, name=f"hidden{index}_dropout")(x)
    return keras.Model(image, logits(x, num_classes, dropout=dropout), name=name)
