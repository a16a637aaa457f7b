"""Inception v3: every module looks at several scales at once and lays the answers side by side.

    python -m pipelines.image_classification --model inception

The default is a narrow network for small images; size "v3" is
the published one for 299x299 images. Deviations from the paper: no auxiliary classifier, and a linear answer straight
after the mean, as in Keras's published weights.
"""

import keras

from models.layers.classification import check_choice, check_sizes, image_input, logits
from models.layers.convolution import conv_norm

# Szegedy et al. 2016, table 1; the channels are those of the authors' released code.
SIZES: dict[str, dict] = {
    "v3": {
        "pool_widths": (32, 64, 64),
        "factorized_widths": (128, 160, 160, 192),
        "expanded_blocks": 2,
        "factorized_size": 7,
        "width_coefficient": 1.0,
        "stem": "large",
        "momentum": 0.99,
    },
}
RESOLUTION = {"v3": 299}  # pixels


def inception(
    input_shape,
    num_classes: int,
    *,
    pool_widths: tuple[int, ...] = (32,),
    factorized_widths: tuple[int, ...] = (128,),
    expanded_blocks: int = 1,
    factorized_size: int = 3,
    width_coefficient: float = 0.125,
    stem: str = "small",
    momentum: float = 0.9,
    epsilon: float = 1e-3,
    dropout: float = 0.0,
    name: str = "inception",
) -> keras.Model:
    """Builds an Inception v3 network.

    Args:
        input_shape: (h, w, c), pixels; h and w may be unknown (None).
        num_classes: number of answers.
        pool_widths: one entry for each module of the first kind: channels of its pooled branch.
        factorized_widths: one entry for each module of the second kind: channels inside of its long branches.
        expanded_blocks: number of modules of the third kind.
        factorized_size: length of the kernels of the second kind, n in 1 x n and n x 1, in pixels.
        width_coefficient: factor on all channels, those of the arguments above included.
        stem: "small" is two 3x3 convolutions that keep the size and modules are joined without losing edges; "large" is
            the paper's, which reduces the image eightfold and more.
        momentum: share of the old moving mean and variance that batch normalization keeps.
        epsilon: added to the variance.
        dropout: share of the features dropped in training (0.2 in the paper, section 8).
        name: name of the model.

    Returns:
        A model from `image` (b, h, w, c) to logits (b, num_classes).

    Raises:
        ValueError: an argument is not as described, or the image is smaller than 75 ("large") or 4 ("small") pixels.

    Reference: Szegedy, Vanhoucke, Ioffe, Shlens and Wojna 2016, "Rethinking the Inception architecture for computer
        vision", table 1 and figs. 5, 6, 7 and 10.
    """
    check_sizes("pool_widths", pool_widths)
    check_sizes("factorized_widths", factorized_widths)
    check_sizes("expanded_blocks", expanded_blocks)
    check_sizes("factorized_size", factorized_size)
    check_choice("stem", stem, ("small", "large"))
    if width_coefficient <= 0:
        raise ValueError(f"width_coefficient must be above 0. Received: {width_coefficient}")
    image = image_input(input_shape, minimum=75 if stem == "large" else 4, builder="inception")
    edges = "valid" if stem == "large" else "same"

    def conv(x, filters, kernel_size, title, **kwargs):
        """A convolution of this network: scaled channels, and a normalization without scale."""
        filters = max(1, round(filters * width_coefficient))
        kwargs |= {"momentum": momentum, "epsilon": epsilon, "scale": False}
        return conv_norm(x, filters, kernel_size, **kwargs, name=title)  # (b, h, w, filters)

    x = _large_stem(image, conv) if stem == "large" else _small_stem(image, conv)
    count = 0
    for pool_width in pool_widths:
        x = _multiscale(x, pool_width, conv, f"mixed{count}")
        count += 1
    x = _first_reduction(x, conv, edges, f"mixed{count}")
    count += 1
    for inner_width in factorized_widths:
        x = _factorized(x, inner_width, factorized_size, conv, f"mixed{count}")
        count += 1
    x = _second_reduction(x, factorized_size, conv, edges, f"mixed{count}")
    count += 1
    for _ in range(expanded_blocks):
        x = _expanded(x, conv, f"mixed{count}")
        count += 1
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)  # (b, d)
    return keras.Model(image, logits(x, num_classes, dropout=dropout), name=name)


def _small_stem(x, conv):
    """Two convolutions that keep the size."""
    x = conv(x, 64, 3, "stem1")
    return conv(x, 192, 3, "stem2")


def _large_stem(x, conv):
    """The stem of table 1, which leaves 35x35 cells of a 299x299 image."""
    x = conv(x, 32, 3, "stem1", strides=2, padding="valid")  # (b, h / 2, w / 2, 32)
    x = conv(x, 32, 3, "stem2", padding="valid")
    x = conv(x, 64, 3, "stem3")
    x = keras.layers.MaxPooling2D(3, strides=2, name="stem3_pool")(x)  # (b, h / 4, w / 4, 64)
    x = conv(x, 80, 1, "stem4", padding="valid")
    x = conv(x, 192, 3, "stem5", padding="valid")
    return keras.layers.MaxPooling2D(3, strides=2, name="stem5_pool")(x)  # (b, h / 8, w / 8, 192)


def _multiscale(x, pool_width, conv, name):
    """The first kind of module: 1x1, 5x5, two 3x3, and a pooled branch (fig. 5)."""
    single = conv(x, 64, 1, f"{name}_single")
    five = conv(x, 48, 1, f"{name}_five1")
    five = conv(five, 64, 5, f"{name}_five2")
    double = conv(x, 64, 1, f"{name}_double1")
    double = conv(double, 96, 3, f"{name}_double2")
    double = conv(double, 96, 3, f"{name}_double3")
    pooled = conv(_mean(x, name), pool_width, 1, f"{name}_pooled")
    return _join([single, five, double, pooled], name)  # (b, h, w, 224 + pool_width)


def _first_reduction(x, conv, edges, name):
    """Halves the size: 3x3, two 3x3, and a maximum side by side (fig. 10)."""
    three = conv(x, 384, 3, f"{name}_three", strides=2, padding=edges)
    double = conv(x, 64, 1, f"{name}_double1")
    double = conv(double, 96, 3, f"{name}_double2")
    double = conv(double, 96, 3, f"{name}_double3", strides=2, padding=edges)
    return _join([three, double, _maximum(x, edges, name)], name)  # (b, h / 2, w / 2, 480 + c)


def _factorized(x, inner, n, conv, name):
    """The second kind of module: n x n kernels as 1 x n after n x 1 (fig. 6)."""
    single = conv(x, 192, 1, f"{name}_single")
    once = conv(x, inner, 1, f"{name}_once1")
    once = conv(once, inner, (1, n), f"{name}_once2")
    once = conv(once, 192, (n, 1), f"{name}_once3")
    twice = conv(x, inner, 1, f"{name}_twice1")
    twice = conv(twice, inner, (n, 1), f"{name}_twice2")
    twice = conv(twice, inner, (1, n), f"{name}_twice3")
    twice = conv(twice, inner, (n, 1), f"{name}_twice4")
    twice = conv(twice, 192, (1, n), f"{name}_twice5")
    pooled = conv(_mean(x, name), 192, 1, f"{name}_pooled")
    return _join([single, once, twice, pooled], name)  # (b, h, w, 768)


def _second_reduction(x, n, conv, edges, name):
    """Halves the size again: 3x3, n x n and 3x3, and a maximum side by side."""
    three = conv(x, 192, 1, f"{name}_three1")
    three = conv(three, 320, 3, f"{name}_three2", strides=2, padding=edges)
    long = conv(x, 192, 1, f"{name}_long1")
    long = conv(long, 192, (1, n), f"{name}_long2")
    long = conv(long, 192, (n, 1), f"{name}_long3")
    long = conv(long, 192, 3, f"{name}_long4", strides=2, padding=edges)
    return _join([three, long, _maximum(x, edges, name)], name)  # (b, h / 2, w / 2, 512 + c)


def _expanded(x, conv, name):
    """The third kind of module: the last kernels side by side instead of one after the other (fig. 7)."""
    single = conv(x, 320, 1, f"{name}_single")
    three = conv(x, 384, 1, f"{name}_three1")
    wide = conv(three, 384, (1, 3), f"{name}_three2_wide")
    tall = conv(three, 384, (3, 1), f"{name}_three2_tall")
    three = _join([wide, tall], f"{name}_three2")  # (b, h, w, 768)
    double = conv(x, 448, 1, f"{name}_double1")
    double = conv(double, 384, 3, f"{name}_double2")
    wide = conv(double, 384, (1, 3), f"{name}_double3_wide")
    tall = conv(double, 384, (3, 1), f"{name}_double3_tall")
    double = _join([wide, tall], f"{name}_double3")  # (b, h, w, 768)
    pooled = conv(_mean(x, name), 192, 1, f"{name}_pooled")
    return _join([single, three, double, pooled], name)  # (b, h, w, 2048)


def _mean(x, name):
    """The mean of every 3x3 neighbourhood."""
    return keras.layers.AveragePooling2D(3, strides=1, padding="same", name=f"{name}_mean")(x)


def _maximum(x, edges, name):
    """The maximum of every second 3x3 neighbourhood."""
    return keras.layers.MaxPooling2D(3, strides=2, padding=edges, name=f"{name}_maximum")(x)  # (b, h / 2, w / 2, c)


def _join(branches, name):
    """Branches side by side in the channels."""
    return keras.layers.Concatenate(name=name)(branches)
