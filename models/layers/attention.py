"""Attention: every place of one sequence reads from all places of another, by weights that sum to one.

Scaled dot-product attention, and attention with several heads: to itself or to a memory, causal, padded, grouped
queries, rotary positions, a cache for generation, and the variants for long input of `models.layers.long_attention` by
the argument `kind`. Additive and multiplicative scores come from `models.layers.alignment`. Masks are true where a
query may look. Deviation from all papers: a query that may look nowhere gets zeros, so that an empty text is answered
alike whatever its padding.
"""

from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

import keras
from keras import ops

from models.layers import long_attention
from models.layers.alignment import AdditiveAttention, MultiplicativeAttention, attention, normalized
from models.layers.caches import continued, linear_step
from models.layers.classification import check_choice, check_sizes
from models.layers.dot_product import answers, dot_product, fused, products, turned
from models.layers.embeddings import initializer, rotary
from models.layers.regularization import check_rate
from models.layers.rotary_scaling import check_scaling

__all__ = [
    "KINDS",
    "AdditiveAttention",
    "MultiHeadAttention",
    "MultiplicativeAttention",
    "attention",
    "attention_maps",
    "dot_product",
]
KINDS = ("full", "window", "block_sparse", "linear", "chunked")


@keras.saving.register_keras_serializable("dl_essentials")
class MultiHeadAttention(keras.layers.Layer):
    """Attention of several heads, to the queries themselves or to a memory.

    Args:
        num_heads: n.
        head_dim: length of a query, key and value of one head.
        num_kv_heads: heads of keys and values, m, which divides n; None for as many as there are queries.
        dropout: share of the weights dropped in training; of `kind="full"` only.
        rotary: whether queries and keys are turned by their places.
        kind: "full"; "window", near places; "block_sparse", near blocks and global places; "linear", products of
            features in place of the softmax; "chunked", equal to "full" in less memory.
        window: a query of "window" sees keys less than that many places away.
        block_size: places in a block of "block_sparse" and of "chunked".
        window_blocks: blocks on each side that a block of "block_sparse" sees beside its own.
        num_global: first places that all see and that see all, of "block_sparse".
        use_bias: whether the four projections have a bias. Vaswani et al. write none.
        scale: what products of queries and keys are multiplied by; None for 1 / sqrt(head_dim).
        rotary_base: of rotary positions, the longest wavelength over 2 pi.
        rotary_scaling: of rotary positions, see `models.layers.rotary_scaling`; None for none.
        stddev, output_stddev: of the normal distribution (cut at two of them) that the kernels begin with, and that of
            the output projection; None for Glorot and Bengio's uniform one.

    Call arguments:
        query: (b, t, d)
        memory: (b, s, e) to read from; None for the queries.
        query_mask: (b, t) bool; padded queries get zeros, and are not looked at where there is no memory.
        memory_mask: (b, s) bool, false for places that must not be looked at.
        causal: whether a query sees places up to its own only.
        bias: (1 or b, n, t, s) float, added to the scaled products; of `kind="full"` only.
        places: (t,) or (b, t), where rotary positions take the queries, and keys of the same sequence, to be; None
            for their order.
        cache: with `position`, of `empty_cache`, what was said so far; without it, of `memory_cache`, the whole memory.
        position: scalar, the place of the first query; what it sees is the cache up to its own place.
        return_weights: whether the weights are returned, too.

    Output shape: (b, t, d); after it, if wanted, the weights (b, n, t, s); after them, with `position`, the new cache.

    Raises:
        ValueError: an argument is not as described.

    Reference: Vaswani et al. 2017, section 3.2.2; the papers of the variants are named in `long_attention`.
    """

    listener: Callable | None = None

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        *,
        num_kv_heads: int | None = None,
        dropout: float = 0.0,
        rotary: bool = False,
        kind: str = "full",
        window: int = 128,
        block_size: int = 64,
        window_blocks: int = 1,
        num_global: int = 1,
        use_bias: bool = True,
        scale: float | None = None,
        rotary_base: float = 10000.0,
        rotary_scaling: Mapping[str, Any] | None = None,
        stddev: float | None = None,
        output_stddev: float | None = None,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)  # a cache keeps its float32; the projections cast what they get
        check_choice("kind", kind, KINDS)
        for name, size in (("window", window), ("block_size", block_size), ("num_heads", num_heads)):
            check_sizes(name, size)
        self.num_heads, self.head_dim = num_heads, check_sizes("head_dim", head_dim)[0]
        self.num_kv_heads = check_sizes("num_kv_heads", num_kv_heads or num_heads)[0]
        if num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads must divide num_heads. Received: {num_kv_heads} and {num_heads}")
        if min(window_blocks, num_global) < 0:
            raise ValueError(
                f"window_blocks and num_global must be at least 0. Received: {window_blocks} and {num_global}"
            )
        if check_rate("dropout", dropout) and kind != "full":
            raise ValueError(f'dropout of attention weights needs kind="full". Received: {dropout} and {kind!r}')
        self.kind, self.rotary, self.dropout_rate, self.use_bias = kind, rotary, dropout, use_bias
        self.window, self.block_size = window, block_size
        self.window_blocks, self.num_global = window_blocks, num_global
        self.scale, self.rotary_base, self.rotary_scaling = scale, rotary_base, check_scaling(rotary_scaling)
        self.stddev, self.output_stddev = stddev, output_stddev
        if scale is not None and kind == "linear":
            raise ValueError(f"Linear attention has no scale. Received: {scale}")
        self.dropout = keras.layers.Dropout(dropout, name="dropout", dtype="float32") if dropout else None
        heads = {"query": num_heads, "key": self.num_kv_heads, "value": self.num_kv_heads}
        for name, count in heads.items():
            start = {"kernel_initializer": initializer(stddev), "dtype": self.dtype_policy}
            dense = keras.layers.Dense(count * head_dim, use_bias=use_bias, name=name, **start)
            setattr(self, f"{name}_dense", dense)

    def build(self, query_shape, memory_shape=None):
        memory_shape = memory_shape or query_shape
        self.query_dense.build(query_shape)
        self.key_dense.build(memory_shape)
        self.value_dense.build(memory_shape)
        start = {"kernel_initializer": initializer(self.output_stddev), "dtype": self.dtype_policy}
        self.output_dense = keras.layers.Dense(query_shape[-1], use_bias=self.use_bias, name="output", **start)
        self.output_dense.build((*query_shape[:-1], self.num_heads * self.head_dim))

    def call(
        self,
        query,
        memory=None,
        *,
        query_mask=None,
        memory_mask=None,
        causal=False,
        bias=None,
        places=None,
        cache=None,
        position=None,
        return_weights=False,
        training=None,
    ):
        if bias is not None and self.kind != "full":
            raise ValueError(f'A bias needs kind="full". Received: {self.kind!r}')
        if memory is not None and self.kind in ("window", "block_sparse"):
            raise ValueError(f"{self.kind} attention is of a sequence to itself. Received: a memory")
        if memory is None and memory_mask is None and cache is None:
            memory_mask = query_mask
        weights = None
        if places is None or not self.rotary:
            places = self._order(query, 0 if position is None else position)
        queries = self._heads(self.query_dense(query), query, self.num_heads, places)  # (b, t, n, d)
        if self.scale is not None:
            queries = queries * (self.scale * self.head_dim**0.5)  # what divides them again is the same for all
        if cache is None:
            read = (query, places) if memory is None else (memory, self._order(memory))
            keys, values = self._keys_and_values(*read)  # (b, s, m, d)
            out, weights = self._attend(queries, keys, values, memory_mask, causal, bias, return_weights, training)
        elif position is None:
            allowed = self._allowed(ops.shape(queries)[1], ops.shape(cache["key"])[2], memory_mask, causal)
            out, weights = self._plain(turned(queries), cache["key"], cache["value"], allowed, bias)
        elif self.kind == "linear":
            keys, values = self._keys_and_values(query, places)
            here = ops.arange(ops.shape(query)[1], dtype="int32") + position  # (t,)
            mask = None if memory_mask is None else ops.take(memory_mask, here, axis=1)  # (b, t)
            out, cache = linear_step(turned(queries), turned(keys), turned(values), cache, mask)
        else:
            cache = continued(cache, self._keys_and_values(query, places), position)
            allowed = self._allowed(ops.shape(queries)[1], ops.shape(cache["key"])[2], memory_mask, True, position)
            out, weights = self._plain(turned(queries), cache["key"], cache["value"], allowed, bias)
        if weights is not None and self.listener:
            self.listener(self.name, weights)
        if cache is not None:
            out = turned(out)  # (b, t, n, d)
        out = ops.reshape(out, (*ops.shape(out)[:2], self.num_heads * self.head_dim))  # (b, t, n * d)
        out = self.output_dense(out)  # (b, t, width)
        if query_mask is not None:
            out = out * ops.cast(query_mask, out.dtype)[:, :, None]
        results = (out,) + (weights,) * return_weights + (cache,) * (position is not None)
        return results if len(results) > 1 else out

    def compute_output_spec(self, query, memory=None, *, cache=None, position=None, return_weights=False, **others):
        if position is not None:
            known = {"cache": cache, "position": position, "return_weights": return_weights}
            return super().compute_output_spec(query, memory, **known, **others)
        out = keras.KerasTensor(query.shape, dtype=self.compute_dtype)
        if not return_weights:
            return out
        batch, times = query.shape[:2]
        length = cache["key"].shape[2] if cache else (query if memory is None else memory).shape[1]
        return out, keras.KerasTensor((batch, self.num_heads, times, length), dtype="float32")

    def memory_cache(self, memory):
        """Keys and values of a memory (b, s, e), to ask it step by step: (b, m, s, d) each."""
        keys, values = self._keys_and_values(memory, self._order(memory))
        return {"key": turned(keys), "value": turned(values)}

    def empty_cache(self, batch, length: int):
        """What is known before the first of `length` steps: keys and values (b, m, t, d), or their sums ("linear")."""
        heads, width = self.num_kv_heads, self.head_dim
        if self.kind == "linear":
            shapes = {"sum": (batch, heads, width, width), "norm": (batch, heads, width)}
            return {name: ops.zeros(shape, "float32") for name, shape in shapes.items()}
        return {name: ops.zeros((batch, heads, length, width), self.compute_dtype) for name in ("key", "value")}

    def _order(self, x, first=0):
        """Places (t,) of the tokens of x (b, t, d), where rotary positions need them; else None."""
        return ops.arange(ops.shape(x)[1], dtype="int32") + first if self.rotary else None

    def _heads(self, x, read, count, places=None):
        """Heads apart, and turned by their places if there are any: (b, t, n * d) to (b, t, n, d).

        The shape comes from what was `read` (b, t, e): onnxruntime 1.32 mistakes that of x for the shape of its rows.
        """
        x = ops.reshape(x, (*ops.shape(read)[:2], count, self.head_dim))
        return x if places is None else rotary(x, places, self.rotary_base, self.rotary_scaling)

    def _keys_and_values(self, memory, places):
        """(b, s, m, d) each."""
        keys = self._heads(self.key_dense(memory), memory, self.num_kv_heads, places)
        return keys, self._heads(self.value_dense(memory), memory, self.num_kv_heads)

    def _attend(self, queries, keys, values, mask, causal, bias, wanted, training):
        """Answers (b, t, n, d) and, if wanted or at hand, weights, from (b, t, n, d) and (b, s, m, d) twice."""
        wanted = wanted or self.listener is not None
        variant = None if wanted else self._variant()
        if variant is not None:
            return turned(variant(turned(queries), turned(keys), turned(values), mask=mask, causal=causal)), None
        allowed = self._allowed(ops.shape(queries)[1], ops.shape(keys)[1], mask, causal)
        # Keras's own attention takes a mask and a bias in the dtype of the queries: -1e9 is infinite in float16, and
        # a bias is rounded in bfloat16.
        half = self.compute_dtype == "float16" or (self.compute_dtype == "bfloat16" and bias is not None)
        whole = self.num_heads == self.num_kv_heads and not half
        if self.kind == "full" and whole and not wanted and not (self.dropout and training):
            return fused(queries, keys, values, allowed, mask is not None, bias), None
        out, weights = self._plain(turned(queries), turned(keys), turned(values), allowed, bias, training)
        return turned(out), weights

    def _variant(self):
        """The function for long input of this kind, or None."""
        if self.kind == "window":
            return partial(long_attention.window_attention, window=self.window)
        if self.kind == "block_sparse":
            return partial(
                long_attention.block_sparse_attention,
                block_size=self.block_size,
                window_blocks=self.window_blocks,
                num_global=self.num_global,
            )
        if self.kind == "linear":
            return long_attention.linear_attention
        if self.kind == "chunked":
            return partial(long_attention.chunked_attention, chunk=self.block_size)
        return None

    def _plain(self, query, key, value, allowed, bias=None, training=False):
        """Answers (b, n, t, d) and weights (b, n, t, s), all of them."""
        if self.kind == "linear":
            weights = products(long_attention.features(query), long_attention.features(key))
            weights = weights if allowed is None else ops.where(allowed, weights, 0.0)
            weights = weights / ops.maximum(ops.sum(weights, axis=-1, keepdims=True), 1e-9)
        else:
            scores = products(query, key) * self.head_dim**-0.5  # (b, n, t, s)
            weights = normalized(scores if bias is None else scores + ops.cast(bias, "float32"), allowed)
        dropped = self.dropout(weights, training=training) if self.dropout else weights
        return answers(dropped, value), weights

    def _allowed(self, times, length, mask, causal, position=0):
        """Where each of t queries from `position` on may look among s keys: (b or 1, 1, t or 1, s), None for all."""
        rows = ops.arange(times, dtype="int32")[:, None] + position  # (t, 1)
        columns = ops.arange(length, dtype="int32")  # (s,)
        parts = [] if mask is None else [mask[:, None, None, :]]
        if causal:
            parts.append((rows >= columns)[None, None])
        if self.kind == "window":
            parts.append((ops.abs(rows - columns) < self.window)[None, None])
        if self.kind == "block_sparse":
            near = ops.abs(rows // self.block_size - columns // self.block_size) <= self.window_blocks
            everywhere = ops.logical_or(rows < self.num_global, columns < self.num_global)
            parts.append(ops.logical_or(near, everywhere)[None, None])
        return reduce(ops.logical_and, parts) if parts else None

    def get_config(self):
        names: tuple[str, ...] = (
            "num_heads",
            "head_dim",
            "num_kv_heads",
            "rotary",
            "kind",
            "window",
            "block_size",
            "window_blocks",
        )
        names += ("num_global", "use_bias", "scale", "rotary_base", "stddev", "output_stddev")
        config = {name: getattr(self, name) for name in names}
        config |= {"dropout": self.dropout_rate}
        config |= {"rotary_scaling": dict(self.rotary_scaling)} if self.rotary_scaling else {}
        return super().get_config() | config


def attention_maps(model: keras.Model, inputs) -> dict:
    """The weights of every attention of a model, by the names of the layers.

    Args:
        model: a model with layers of this file, also inside of other layers.
        inputs: as the model takes them.

    Returns:
        {name: (b, n, t, s)} of `MultiHeadAttention`, {name: (b, t, s)} of the other attentions. Of a layer that was
        called several times, the last call's.
    """
    kinds = (MultiHeadAttention, AdditiveAttention, MultiplicativeAttention)
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, kinds)]
    found: dict = {}
    for layer in layers:
        layer.listener = found.__setitem__
    try:
        model(inputs, training=False)
    finally:
        for layer in layers:
            layer.listener = None
    return found
