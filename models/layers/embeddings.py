"""Tokens and their places as vectors: token embeddings with a tied output, sinusoidal, learned and rotary positions.

Deviation from Su et al. 2021: rotary positions turn the pairs (i, i + d / 2) and not (2i, 2i + 1), which is the same up
to the order of the columns of the projections before it, and faster.
"""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from models.layers.classification import check_choice, check_sizes
from models.layers.decoding import PAD
from models.layers.rotary_scaling import scaled_rates

POSITIONS = ("sinusoidal", "learned", "rotary", "none")


def initializer(stddev: float | None):
    """What a kernel begins with: normal numbers, cut at two deviations, or Glorot and Bengio's without a deviation."""
    return "glorot_uniform" if stddev is None else keras.initializers.TruncatedNormal(stddev=stddev)


@keras.saving.register_keras_serializable("dl_essentials")
class PaddingMask(keras.layers.Layer):
    """Where a sequence of token ids is no padding.

    Args:
        pad_id: the id of padding.

    Input shape: (b, t) int
    Output shape: (b, t) bool
    """

    def __init__(self, pad_id: int = PAD, **kwargs):
        super().__init__(**kwargs)
        self.pad_id = pad_id

    def call(self, token_ids):
        return ops.not_equal(token_ids, self.pad_id)

    def get_config(self):
        return super().get_config() | {"pad_id": self.pad_id}


@keras.saving.register_keras_serializable("dl_essentials")
class TokenEmbedding(keras.layers.Layer):
    """A learned vector for each token; with `reverse=True` the scores of all tokens for each vector.

    Args:
        vocab_size: number of tokens, v.
        width: length of a vector, d.
        scale: whether vectors are multiplied by sqrt(d), so that they have variance 1 at first.
        stddev: of the normal distribution that the vectors begin with; None for 1 / sqrt(d).

    Input shape: (b, t) int, each in [0, v); of the reverse (b, t, d).
    Output shape: (b, t, d); of the reverse (b, t, v), in float32 under every precision policy.

    Raises:
        ValueError: a size is not a positive whole number.

    Reference: Vaswani et al. 2017, section 3.4; Press and Wolf 2017, "Using the output embedding to improve language
        models", section 3, for the tied output, which has no bias.
    """

    def __init__(self, vocab_size: int, width: int, *, scale: bool = False, stddev: float | None = None, **kwargs):
        super().__init__(**kwargs)
        self.vocab_size, self.width = check_sizes("vocab_size", vocab_size)[0], check_sizes("width", width)[0]
        self.scale, self.stddev = scale, stddev

    def build(self, input_shape):
        start = keras.initializers.RandomNormal(stddev=self.stddev or self.width**-0.5)
        shape = (self.vocab_size, self.width)
        self.embeddings = self.add_weight(shape=shape, initializer=start, autocast=False, name="embeddings")

    def call(self, x, reverse=False):
        if reverse:
            return ops.einsum("btd,vd->btv", ops.cast(x, "float32"), self.embeddings)
        vectors = ops.cast(ops.take(self.embeddings, x, axis=0), self.compute_dtype)  # (b, t, d)
        return vectors * self.width**0.5 if self.scale else vectors

    def get_config(self):
        names = ("vocab_size", "width", "scale", "stddev")
        return super().get_config() | {name: getattr(self, name) for name in names}


# The file of the vision transformer has registered a layer of the same name.
@keras.saving.register_keras_serializable("dl_essentials", name="TokenPositionEmbedding")
class PositionEmbedding(keras.layers.Layer):
    """Adds a vector for each place of a sequence.

    Args:
        kind: "sinusoidal", for any length, or "learned".
        max_length: number of learned vectors; places after them get the last one. Sinusoids need none.

    Input shape: (b, t, d); `position`, a scalar, is the place of the first token, or `places`, (t,) or (b, t), are
        those of all.
    Output shape: (b, t, d)

    Raises:
        ValueError: an unknown kind, or learned vectors without a `max_length`.

    Reference: Vaswani et al. 2017, section 3.5; Gehring et al. 2017, "Convolutional sequence to sequence learning",
        section 3.1, for the learned ones.
    """

    def __init__(self, kind: str = "sinusoidal", max_length: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.kind = check_choice("kind", kind, ("sinusoidal", "learned"))
        self.max_length = check_sizes("max_length", max_length)[0] if kind == "learned" else None

    def build(self, input_shape):
        if self.kind == "learned":
            start = keras.initializers.RandomNormal(stddev=0.02)
            shape = (self.max_length, input_shape[-1])
            self.positions = self.add_weight(shape=shape, initializer=start, name="positions")

    def call(self, x, position=0, places=None):
        if places is None:
            places = ops.arange(x.shape[1] or ops.shape(x)[1], dtype="int32") + position  # (t,)
        if self.kind == "learned":
            vectors = ops.take(self.positions, ops.minimum(places, self.positions.shape[0] - 1), axis=0)  # (t, d)
        else:
            vectors = sinusoids(places, x.shape[-1])  # (t, d)
        return x + ops.cast(vectors, x.dtype)

    def get_config(self):
        return super().get_config() | {"kind": self.kind, "max_length": self.max_length}


def sinusoidal_positions(length, width: int):
    """Sines and cosines of wavelengths from 2 pi to 10,000 * 2 pi, for the places 0 to `length` - 1.

    PE(pos, 2i) = sin(pos / 10000^(2i / d)) and PE(pos, 2i + 1) = cos(pos / 10000^(2i / d)).

    Args:
        length: t, a number or a scalar tensor.
        width: d, an even number.

    Returns:
        (t, d) float32.

    Raises:
        ValueError: `width` is odd.

    Reference: Vaswani et al. 2017, section 3.5.
    """
    return sinusoids(ops.arange(length, dtype="int32"), width)


def sinusoids(places, width: int):
    """`sinusoidal_positions` of any places: (...,) to (..., width) float32."""
    angles = _angles(places, width, 10000.0)  # (t, d / 2)
    pairs = ops.stack([ops.sin(angles), ops.cos(angles)], axis=-1)  # (..., d / 2, 2)
    return ops.reshape(pairs, (*ops.shape(pairs)[:-2], width))  # (..., d)


def rotary(x, positions, base: float = 10000.0, scaling: Mapping[str, Any] | None = None):
    """Turns queries or keys by angles that grow with their places, so that their products depend on distances alone.

    Args:
        x: (b, t, n, d), d even.
        positions: (t,) or (b, t), the place of each token.
        base: longest wavelength over 2 pi.
        scaling: for longer texts than a model was trained on, see `models.layers.rotary_scaling`.

    Returns:
        (b, t, n, d), of the dtype of `x`.

    Raises:
        ValueError: d is odd, or the scaling is not as described.

    Reference: Su et al. 2021, "RoFormer: enhanced transformer with rotary position embedding", eq. 14, 15 and 34.
    """
    angles = ops.expand_dims(_angles(positions, x.shape[-1], base, scaling), axis=-2)  # (t, 1, d / 2)
    sine, cosine = ops.sin(angles), ops.cos(angles)
    first, second = ops.split(ops.cast(x, "float32"), 2, axis=-1)  # each (b, t, n, d / 2)
    turned = ops.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return ops.cast(turned, x.dtype)  # (b, t, n, d)


def _angles(places, width: int, base: float, scaling: Mapping[str, Any] | None = None):
    """place / base^(2i / d) for i below d / 2: (...,) to (..., d / 2) float32."""
    if width % 2:
        raise ValueError(f"Positions by sines and cosines need an even width. Received: {width}")
    rates = base ** (-ops.arange(0, width, 2, dtype="float32") / width)  # (d / 2,)
    rates = scaled_rates(rates, scaling) if scaling else rates
    return ops.expand_dims(ops.cast(places, "float32"), axis=-1) * rates
