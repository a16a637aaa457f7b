"""The ends that classifiers share: a checked input called `image` or `token_ids`, and a head that answers logits."""

from collections.abc import Collection

import keras

from models.layers.regularization import check_rate


def image_input(input_shape, *, minimum: int = 1, fixed: bool = False, builder: str):
    """Checks a shape and returns the input called `image`.

    Args:
        input_shape: (h, w, c); `None` stands for any height or width.
        minimum: smallest height and width that the architecture can reduce to one cell or more, in pixels.
        fixed: whether height and width must be known, as they must where the pixels are flattened.
        builder: name of the architecture, for the error.

    Returns:
        A symbolic tensor. # (b, h, w, c)

    Raises:
        ValueError: the shape has not three entries, a size is unknown or not a positive whole number, or the image is
            smaller than `minimum`.
    """
    shape = tuple(input_shape) if isinstance(input_shape, (tuple, list)) else ()
    sizes = [size for size in shape if size is not None]
    if len(shape) != 3 or shape[2] is None or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"{builder} expects input_shape=(height, width, channels) in pixels. Received: {input_shape}")
    if fixed and len(sizes) != 3:
        raise ValueError(f"{builder} needs a known height and width. Received: input_shape={input_shape}")
    if any(size is not None and size < minimum for size in shape[:2]):
        raise ValueError(f"{builder} needs images of at least {minimum}x{minimum} pixels. Received: {input_shape}")
    return keras.Input(shape, name="image")  # (b, h, w, c)


def token_input(vocab_size: int, *, builder: str):
    """Checks the size of a vocabulary and returns the input called `token_ids`, for texts of any length.

    Args:
        vocab_size: number of tokens, the special ids counted.
        builder: name of the architecture, for the error.

    Returns:
        A symbolic tensor of int32. # (b, t)

    Raises:
        ValueError: `vocab_size` is not a positive whole number.
    """
    if not isinstance(vocab_size, int) or vocab_size < 1:
        raise ValueError(f"{builder} expects vocab_size as a positive whole number. Received: {vocab_size!r}")
    return keras.Input((None,), dtype="int32", name="token_ids")  # (b, t)


def logits(features, num_classes: int, *, dropout: float = 0.0, max_norm: float | None = None):
    """The head: dropout, then a linear layer that computes in float32 under every precision policy.

    Args:
        features: (b, d)
        num_classes: number of answers.
        dropout: share of the features dropped in training.
        max_norm: longest weight vector of an answer, to which longer ones are cut after each update; None for no bound.

    Returns:
        (b, num_classes)

    Raises:
        ValueError: `num_classes` is not a positive whole number, `dropout` is not in [0, 1), or `max_norm` is not
            above 0.
    """
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes must be a positive whole number. Received: {num_classes!r}")
    if check_rate("dropout", dropout):
        features = keras.layers.Dropout(dropout, name="dropout")(features)
    if max_norm is not None and max_norm <= 0:
        raise ValueError(f"max_norm must be above 0 or None. Received: {max_norm}")
    bound = keras.constraints.MaxNorm(max_norm, axis=0) if max_norm else None
    return keras.layers.Dense(num_classes, kernel_constraint=bound, dtype="float32", name="logits")(features)  # (b, k)


def check_choice(name: str, value, choices: Collection):
    """Returns `value`, or raises a `ValueError` that lists the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}. Received: {value!r}")
    return value


def check_sizes(name: str, sizes) -> tuple[int, ...]:
    """Returns a tuple of positive whole numbers, or raises a `ValueError`."""
    values = tuple(sizes) if isinstance(sizes, (tuple, list)) else (sizes,)
    if not values or not all(isinstance(size, int) and size > 0 for size in values):
        raise ValueError(f"{name} must hold positive whole numbers. Received: {sizes!r}")
    return values
