"""Relative attention: a query knows how far away a key is, and whether it is in the same segment, but not where it is.

The attention of Transformer-XL, with the two streams and the relative segments of XLNet. Masks are true where a query
may look. Deviations: a query that may look nowhere gets zeros, where the papers' code gives it the mean of all values,
its own token's too; and the dropped parts of the encodings of distances are the same for all rows of a batch.
"""

from typing import Any

import keras
from keras import ops

from models.layers import activations
from models.layers.alignment import normalized
from models.layers.classification import check_sizes
from models.layers.dot_product import answers, turned
from models.layers.embeddings import initializer, sinusoids
from models.layers.regularization import check_rate


@keras.saving.register_keras_serializable("dl_essentials")
class RelativeAttention(keras.layers.Layer):
    """Attention of two streams to one content, by contents, distances and segments.

    The score of query q and key k at distance r is ((q + u) k + (q + v) W r + (q + w) s) / sqrt(h), where s is one of
    two vectors: the first within a segment, the second between segments.

    Args:
        num_heads: n.
        head_dim: length of a query, key and value of one head, h.
        dropout: share of the weights dropped in training.
        stddev: of the normal distribution that all weights begin with; None for Glorot's uniform one.

    Call arguments:
        streams: (b, t, d), the content stream; with a target mapping (b, t + k, d), and after it the query stream. Both
            read the content and the memory.
        views: of `Views`.
        memory: (b, m, d), content before the first place; None for none.
        target_mapping: (b, k, t), with 1 at the place of each query, no place twice; None for no query stream.

    Output shape: that of the streams.

    Raises:
        ValueError: a size is not a positive whole number, or `dropout` is not in [0, 1).

    Reference: Dai et al. 2019, "Transformer-XL", section 3.3 and appendix B; Yang et al. 2019, "XLNet", section 2.3 to
        2.5 and appendix A.2.
    """

    def __init__(self, num_heads: int, head_dim: int, *, dropout: float = 0.0, stddev: float | None = 0.02, **kwargs):
        super().__init__(**kwargs)
        self.num_heads, self.head_dim = check_sizes("num_heads", num_heads)[0], check_sizes("head_dim", head_dim)[0]
        self.dropout_rate, self.stddev = check_rate("dropout", dropout), stddev
        self.dropout = keras.layers.Dropout(dropout, name="dropout", dtype="float32") if dropout else None

    def build(self, streams_shape):
        width, total = streams_shape[-1], self.num_heads * self.head_dim
        for name, inputs, units in (
            *((name, width, total) for name in ("query", "key", "value", "position")),
            ("output", total, width),
        ):
            start = {"kernel_initializer": initializer(self.stddev), "use_bias": False}
            dense = keras.layers.Dense(units, name=name, dtype=self.dtype_policy, **start)
            dense.build((None, None, inputs))
            setattr(self, f"{name}_dense", dense)
        for name in ("content", "position", "segment"):  # u, v and w
            setattr(self, f"{name}_bias", self._vectors(self.num_heads, name=f"{name}_bias"))
        self.segments = self._vectors(2, self.num_heads, name="segments")  # s

    def _vectors(self, *counts, name):
        return self.add_weight(shape=(*counts, self.head_dim), initializer=initializer(self.stddev), name=name)

    def call(self, streams, *, views, memory=None, target_mapping=None, training=None):
        times = ops.shape(views["same_segment"])[1]
        content = streams if target_mapping is None else streams[:, :times]  # (b, t, d)
        read = content if memory is None else ops.concatenate([memory, content], axis=1)  # (b, s, d), s = m + t
        known = {
            "keys": self._heads(self.key_dense(read)),  # (b, n, s, h)
            "values": self._heads(self.value_dense(read)),
            "distances": self._distances(views),  # (1 or b, n, p, h)
            "same_segment": views["same_segment"],
            "training": training,
        }
        asked = self.query_dense(streams)  # (b, t + k, n * h)
        if target_mapping is None:
            return self.output_dense(self._attend(asked, views["content_mask"], **known))
        found = self._attend(asked[:, :times], views["content_mask"], **known)  # (b, t, n * h)
        placed = ops.einsum("bkt,bke->bte", target_mapping, asked[:, times:])  # each query at its place
        told = ops.einsum("bkt,bte->bke", target_mapping, self._attend(placed, views["query_mask"], **known))
        return self.output_dense(ops.concatenate([found, told], axis=1))  # (b, t + k, d)

    def _heads(self, x):
        """(b, t, n * h) to (b, n, t, h)."""
        return turned(ops.reshape(x, (*ops.shape(x)[:2], self.num_heads, self.head_dim)))

    def _distances(self, views):
        """The projected encodings of all distances, (1, n, p, h); (b, n, p, h) where rows read in two directions."""
        distances = self._heads(self.position_dense(views["distances"]))
        return distances if "backward" not in views else ops.take(distances, views["backward"], axis=0)

    def _attend(self, asked, mask, *, keys, values, distances, same_segment, training):
        """Answers (b, t, n * h) to queries (b, t, n * h)."""
        asked = self._heads(asked)  # (b, n, t, h)
        content, position, segment = (
            (asked + bias[:, None]) * self.head_dim**-0.5
            for bias in (self.content_bias, self.position_bias, self.segment_bias)
        )
        scores = _float(ops.matmul(content, ops.swapaxes(keys, 2, 3)))  # (b, n, t, s)
        far = _float(ops.matmul(position, ops.swapaxes(distances, 2, 3)))  # (b, n, t, p)
        scores = scores + relative_shift(far, ops.shape(keys)[2])
        kinds = _float(ops.einsum("bnth,knh->bntk", segment, self.segments))  # (b, n, t, 2)
        scores = scores + ops.where(same_segment[:, None], kinds[..., :1], kinds[..., 1:])
        weights = normalized(scores, mask[:, None])
        weights = self.dropout(weights, training=training) if self.dropout else weights
        found = turned(answers(weights, values))  # (b, t, n, h)
        return ops.reshape(found, (*ops.shape(found)[:2], self.num_heads * self.head_dim))

    def get_config(self):
        own = {"num_heads": self.num_heads, "head_dim": self.head_dim, "stddev": self.stddev}
        return super().get_config() | own | {"dropout": self.dropout_rate}


@keras.saving.register_keras_serializable("dl_essentials")
class RelativeBlock(keras.layers.Layer):
    """Relative attention, then two dense layers, each added to a shortcut and normalized; both streams take one road.

    Args:
        num_heads, head_dim, stddev: of `RelativeAttention`.
        hidden_dim: width of the hidden dense layer.
        dropout: share dropped in training of attention weights, of the hidden layer and of each sub-layer's output.
        activation: of the hidden dense layer, as `models.layers.activations.get` takes it.
        epsilon: added to the variance in layer normalization.

    Call arguments, output shape: of `RelativeAttention`.

    Raises:
        ValueError: an argument is not as described.

    Reference: Yang et al. 2019, appendix A.2, which defines both streams.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        hidden_dim: int,
        *,
        dropout: float = 0.0,
        activation: str = "gelu",
        epsilon: float = 1e-12,
        stddev: float | None = 0.02,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.given: dict[str, Any] = {
            "num_heads": num_heads,
            "head_dim": head_dim,
            "hidden_dim": hidden_dim,
            "dropout": dropout,
        }
        check_sizes("hidden_dim", hidden_dim)
        self.given |= {"activation": activation, "epsilon": epsilon, "stddev": stddev}
        policy = {"dtype": self.dtype_policy}
        self.attention = RelativeAttention(
            num_heads, head_dim, dropout=dropout, stddev=stddev, name=f"{self.name}_attention", **policy
        )
        start = {"kernel_initializer": initializer(stddev)} | policy
        self.hidden = keras.layers.Dense(hidden_dim, activations.get(activation), name=f"{self.name}_hidden", **start)
        self.norms = {
            part: keras.layers.LayerNormalization(epsilon=epsilon, name=f"{self.name}_{part}_norm", **policy)
            for part in ("attention", "dense")
        }
        self.drops = {
            part: keras.layers.Dropout(dropout, name=f"{self.name}_{part}_dropout", **policy)
            for part in ("attention", "hidden", "dense")
            if dropout
        }

    def build(self, streams_shape):
        width, stddev = streams_shape[-1], self.given["stddev"]
        self.output_dense = keras.layers.Dense(
            width, kernel_initializer=initializer(stddev), name=f"{self.name}_output", dtype=self.dtype_policy
        )
        self.output_dense.build((*streams_shape[:-1], self.given["hidden_dim"]))
        for layer in (self.attention, self.hidden, *self.norms.values()):
            layer.build(streams_shape)

    def call(self, streams, *, views, memory=None, target_mapping=None, training=None):
        known = {"views": views, "memory": memory, "target_mapping": target_mapping}
        y = self.attention(streams, **known, training=training)
        x = self.norms["attention"](streams + self._dropped("attention", y, training))
        y = self._dropped("hidden", self.hidden(x), training)  # (b, t + k, hidden_dim)
        return self.norms["dense"](x + self._dropped("dense", self.output_dense(y), training))

    def _dropped(self, part, x, training):
        return self.drops[part](x, training=training) if self.drops else x

    def compute_output_spec(self, streams, **others):
        return keras.KerasTensor(streams.shape, dtype=self.compute_dtype)

    def get_config(self):
        return super().get_config() | self.given


def _float(x):
    return ops.cast(x, "float32")


def relative_shift(scores, length):
    """Scores by distance as scores by key: the last axis of row i moves i places to the left of the last row.

    Args:
        scores: (b, n, t, p), for the distances s, s - 1, …, 1 - t between a query and a key, of which there are p =
            s + t.
        length: s, the number of keys; the last t of them are at the places of the queries.

    Returns:
        (b, n, t, s): query i and key j are s - t + i - j apart.

    Reference: Dai et al. 2019, appendix B.
    """
    batch, heads, times, count = ops.shape(scores)
    shifted = ops.reshape(scores, (batch, heads, count, times))[:, :, 1:]  # t scores less, so that rows begin later
    return ops.reshape(shifted, (batch, heads, times, count - 1))[..., :length]


@keras.saving.register_keras_serializable("dl_essentials")
class Apart(keras.layers.Layer):
    """The two streams, content and queries.

    Input shape: (b, t + k, d) and the target mapping (b, k, t)
    Output shape: (b, t, d) and (b, k, d)
    """

    def call(self, streams, target_mapping):
        times = ops.shape(target_mapping)[2]
        return streams[:, :times], streams[:, times:]

    def compute_output_spec(self, streams, target_mapping):
        (batch, _, width), (_, count, times) = streams.shape, target_mapping.shape
        return tuple(keras.KerasTensor((batch, length, width), dtype=streams.dtype) for length in (times, count))


@keras.saving.register_keras_serializable("dl_essentials")
class Views(keras.layers.Layer):
    """What places may look at, how far away it is, and whether it is in the same segment.

    Args:
        width: of the encodings of distances, d, an even number.
        pad_id: of the places that nobody but themselves looks at; None for none.
        clamp_len: greatest distance; all beyond it are alike. None for no bound.
        bi_data: whether the second half of the batch reads backwards: its distances have the other sign.

    Call arguments:
        token_ids, segment_ids: (b, t) int.
        permutation_mask: (b, t, t), true where a place may look at another; None for everywhere.
        memory: (b, m, d), of segment 0; None for none.
        memory_mask: (b, m), true where the memory may be looked at; None for everywhere.

    Returns:
        A dictionary: `content_mask` and `query_mask` (b, t, s) bool, of which the first lets each place look at itself;
        `same_segment` (b, t, s) bool; `distances` (1, p, d) float32, sines and cosines as `relative_shift` needs them;
        with `bi_data` these are (2, p, d), and `backward` (b,) int says which of them a row takes.

    Raises:
        ValueError: `width` is odd, or `clamp_len` is not a positive whole number.

    Reference: Dai et al. 2019, section 3.3, for the encodings; Yang et al. 2019, section 2.3 to 2.5.
    """

    def __init__(self, width: int, pad_id: int | None, clamp_len: int | None, bi_data: bool, **kwargs):
        super().__init__(**(kwargs | {"dtype": "float32"}))
        if check_sizes("width", width)[0] % 2:
            raise ValueError(f"Encodings of distances need an even width. Received: {width}")
        self.clamp_len = None if clamp_len is None else check_sizes("clamp_len", clamp_len)[0]
        self.width, self.pad_id, self.bi_data = width, pad_id, bool(bi_data)

    def call(self, token_ids, segment_ids, permutation_mask=None, memory=None, memory_mask=None):
        batch, times = ops.shape(token_ids)
        before = 0 if memory is None else ops.shape(memory)[1]  # m
        seen = ops.ones((batch, times), "bool") if self.pad_id is None else ops.not_equal(token_ids, self.pad_id)
        seen = ops.broadcast_to(seen[:, None], (batch, times, times))
        if permutation_mask is not None:
            seen = ops.logical_and(seen, ops.cast(permutation_mask, "bool"))
        order = ops.arange(times, dtype="int32")
        content = ops.logical_or(seen, order[:, None] == order)
        same = ops.equal(segment_ids[:, :, None], segment_ids[:, None])  # (b, t, t)
        if memory is not None:
            remembered = ops.ones((batch, before), "bool") if memory_mask is None else ops.cast(memory_mask, "bool")
            remembered = ops.broadcast_to(remembered[:, None], (batch, times, before))
            first = ops.broadcast_to(ops.equal(segment_ids, 0)[:, :, None], (batch, times, before))
            parts = ((remembered, content), (remembered, seen), (first, same))
            content, seen, same = (ops.concatenate(part, axis=2) for part in parts)  # each (b, t, s)
        views = {"content_mask": content, "query_mask": seen, "same_segment": same}
        if self.bi_data:
            views["backward"] = ops.cast(ops.arange(batch) >= (batch + 1) // 2, "int32")  # (b,)
        return views | {"distances": self._encodings(before + times, times)}

    def _encodings(self, length, times):
        """Of the distances s to 1 - t, forwards and, if wanted, backwards: (1 or 2, p, d)."""
        distances = length - ops.arange(length + times, dtype="int32")  # (p,)
        if self.clamp_len is not None:
            distances = ops.clip(distances, -self.clamp_len, self.clamp_len)
        both = [distances, -distances] if self.bi_data else [distances]
        mixed = ops.stack([sinusoids(one, self.width) for one in both])  # (1 or 2, p, d)
        return ops.concatenate([mixed[..., 0::2], mixed[..., 1::2]], axis=-1)  # all sines first

    def get_config(self):
        names = ("width", "pad_id", "clamp_len", "bi_data")
        return super().get_config() | {name: getattr(self, name) for name in names}
