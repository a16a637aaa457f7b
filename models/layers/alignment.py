"""Alignment: which places of a memory answer a query, by a small network (Bahdanau) or by products (Luong).

Masks are true where a query may look; one that may look nowhere gets zeros. Deviation from Luong et al. 2015: only
their global attention, and the context is returned as it is: the tanh layer of their eq. 5 is the decoder's affair.
"""

from collections.abc import Callable

import keras
from keras import ops

from models.layers.classification import check_choice, check_sizes

LEAST = -1e9  # the score of what must not be looked at
SCORES = ("additive", "dot", "general", "concat")


def normalized(scores, mask):
    """The softmax of scores (..., s) where the mask is true, and 0 elsewhere."""
    if mask is None:
        return ops.softmax(scores, axis=-1)
    return ops.where(mask, ops.softmax(ops.where(mask, scores, LEAST), axis=-1), 0.0)


def _read(layer, scores, memory, mask):
    """Context (b, t, e) and weights (b, t, s) from scores (b, t, s), a memory (b, s, e) and its mask (b, s) or None."""
    weights = normalized(ops.cast(scores, "float32"), None if mask is None else mask[:, None, :])
    if layer.listener:
        layer.listener(layer.name, weights)
    return ops.einsum("bts,bse->bte", ops.cast(weights, memory.dtype), memory), weights


@keras.saving.register_keras_serializable("dl_essentials")
class AdditiveAttention(keras.layers.Layer):
    """Attention by a small network: the score of query q and memory k is v^T tanh(W q + U k).

    Args:
        units: length of the hidden layer.

    Input shape: query (b, t, d), memory (b, s, e), mask (b, s) bool; `keys`, of the method of that name, saves
        computing U k again where the memory is asked step by step.
    Output shape: context (b, t, e) and weights (b, t, s).

    Raises:
        ValueError: `units` is not a positive whole number.

    Reference: Bahdanau et al. 2015, "Neural machine translation by jointly learning to align and translate", eq. 5, 6
        and appendix A.1.2.
    """

    listener: Callable | None = None

    def __init__(self, units: int, **kwargs):
        super().__init__(**kwargs)
        self.units = check_sizes("units", units)[0]
        self.query_dense = keras.layers.Dense(units, use_bias=False, name="query", dtype=self.dtype_policy)
        self.key_dense = keras.layers.Dense(units, use_bias=False, name="key", dtype=self.dtype_policy)

    def build(self, query_shape, memory_shape):
        self.query_dense.build(query_shape)
        self.key_dense.build(memory_shape)
        self.score = self.add_weight(shape=(self.units,), initializer=_vector(self.units), name="score")

    def keys(self, memory):
        """The memory's half of the hidden layer, (b, s, units)."""
        return self.key_dense(memory)

    def call(self, query, memory, mask=None, keys=None):
        keys = self.keys(memory) if keys is None else keys
        hidden = ops.tanh(self.query_dense(query)[:, :, None] + keys[:, None])  # (b, t, s, units)
        return _read(self, ops.einsum("btsu,u->bts", hidden, self.score), memory, mask)

    def compute_output_shape(self, query_shape, memory_shape):
        return (*query_shape[:2], memory_shape[-1]), (*query_shape[:2], memory_shape[1])

    def get_config(self):
        return super().get_config() | {"units": self.units}


@keras.saving.register_keras_serializable("dl_essentials")
class MultiplicativeAttention(keras.layers.Layer):
    """Attention by products: the score of query q and memory k is q^T k, q^T W k or v^T tanh(W [q; k]).

    Args:
        score: "dot" (q and k must be of equal length), "general" or "concat".
        units: length of the hidden layer of "concat"; None stands for that of a query.

    Input shape: query (b, t, d), memory (b, s, e), mask (b, s) bool; `keys`, of the method of that name, saves
        computing the memory's part again where the memory is asked step by step.
    Output shape: context (b, t, e) and weights (b, t, s).

    Raises:
        ValueError: an unknown score, or "dot" of unequal lengths.

    Reference: Luong et al. 2015, "Effective approaches to attention-based neural machine translation", eq. 7 and 8.
    """

    listener: Callable | None = None

    def __init__(self, score: str = "dot", units: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.kind, self.units = check_choice("score", score, SCORES[1:]), units

    def build(self, query_shape, memory_shape):
        width = query_shape[-1]
        if self.kind == "dot" and width != memory_shape[-1]:
            raise ValueError(
                f'score="dot" needs queries and memory of equal length. Received: {width} and {memory_shape[-1]}'
            )
        units = self.units or width
        parts = {"general": {"key": width}, "concat": {"query": units, "key": units}}.get(self.kind, {})
        for name, size in parts.items():
            dense = keras.layers.Dense(size, use_bias=False, name=name, dtype=self.dtype_policy)
            dense.build(query_shape if name == "query" else memory_shape)
            setattr(self, f"{name}_dense", dense)
        if self.kind == "concat":
            self.score = self.add_weight(shape=(units,), initializer=_vector(units), name="score")

    def keys(self, memory):
        """W k, of (b, s, d) or, for "concat", (b, s, units); for "dot" the memory itself."""
        return memory if self.kind == "dot" else self.key_dense(memory)

    def call(self, query, memory, mask=None, keys=None):
        keys = self.keys(memory) if keys is None else keys
        if self.kind == "concat":  # W [q; k] is the sum of two products
            hidden = ops.tanh(self.query_dense(query)[:, :, None] + keys[:, None])  # (b, t, s, units)
            scores = ops.einsum("btsu,u->bts", hidden, self.score)
        else:
            scores = ops.einsum("btd,bsd->bts", query, keys)
        return _read(self, scores, memory, mask)

    def compute_output_shape(self, query_shape, memory_shape):
        return (*query_shape[:2], memory_shape[-1]), (*query_shape[:2], memory_shape[1])

    def get_config(self):
        return super().get_config() | {"score": self.kind, "units": self.units}


def attention(kind: str, units: int, **kwargs) -> keras.layers.Layer:
    """An attention layer by name.

    Args:
        kind: "additive", "dot", "general" or "concat".
        units: length of the hidden layer of "additive" and "concat".
        **kwargs: of the layer, such as its name.

    Raises:
        ValueError: an unknown kind.
    """
    check_choice("attention", kind, SCORES)
    if kind == "additive":
        return AdditiveAttention(units, **kwargs)
    return MultiplicativeAttention(kind, units if kind == "concat" else None, **kwargs)


def _vector(units: int):
    """A start for a vector that `units` values are weighted by."""
    return keras.initializers.RandomNormal(stddev=units**-0.5)
