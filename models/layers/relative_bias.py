"""Relative position bias: what attention adds to the score of two places depends on their distance alone, by buckets.

Near distances have a bucket each, farther ones share buckets that widen with the logarithm, and all from `max_distance`
on share the last one. The bias is float32 under every precision policy.
"""

import keras
import numpy as np
from keras import ops

from models.layers.classification import check_sizes


def bucket_table(num_buckets: int, max_distance: int, bidirectional: bool) -> np.ndarray:
    """The bucket of each distance from 0 to `max_distance`, looking back: (max_distance + 1,) int32.

    Half of the buckets of a direction are for single distances; distance x from there on, with h of them, is in
    h + floor(log(x / h) / log(max_distance / h) * h), but at most in the last.

    Raises:
        ValueError: `num_buckets` is odd or below 4, or `max_distance` is not above the distances with a bucket each.

    Reference: Raffel et al. 2020, section 2.1; in float32, as the published weights were trained with.
    """
    check_sizes("num_buckets", num_buckets)
    check_sizes("max_distance", max_distance)
    if num_buckets % 2 or num_buckets < 4:
        raise ValueError(f"num_buckets must be even and at least 4. Received: {num_buckets}")
    count = num_buckets // 2 if bidirectional else num_buckets  # of a direction
    single = count // 2
    if max_distance <= single:
        raise ValueError(f"max_distance must be above the {single} single distances. Received: {max_distance}")
    distances = np.arange(max_distance + 1)
    logs = np.log(np.maximum(distances, 1).astype("float32") / np.float32(single))
    wide = single + (logs / np.float32(np.log(max_distance / single)) * np.float32(count - single)).astype("int32")
    return np.where(distances < single, distances, np.minimum(wide, count - 1)).astype("int32")


@keras.saving.register_keras_serializable("dl_essentials")
class RelativeBias(keras.layers.Layer):
    """A learned number for each head and each bucket of distances.

    Args:
        num_heads: n.
        num_buckets: an even number; looking both ways, half of them are for places before and half for places after.
        max_distance: from which on all distances share a bucket.
        bidirectional: whether places after the query have buckets of their own; else they count as distance 0.
        stddev: of the normal distribution that the numbers begin with.

    Call arguments:
        x: (b, t, ...), what looks.
        length: s, how many places are looked at, from 0 on; None for t.
        position: scalar, the place of the first of `x`.

    Output shape: (1, n, t, s) float32, for the argument `bias` of attention.

    Raises:
        ValueError: as of `bucket_table`.

    Reference: Raffel et al. 2020, "Exploring the limits of transfer learning with a unified text-to-text transformer",
        section 2.1; Shaw et al. 2018, "Self-attention with relative position representations", for the idea.
    """

    def __init__(
        self,
        num_heads: int,
        num_buckets: int = 32,
        max_distance: int = 128,
        *,
        bidirectional: bool = True,
        stddev: float = 0.05,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        self.num_heads, self.num_buckets = check_sizes("num_heads", num_heads)[0], num_buckets
        self.max_distance, self.bidirectional, self.stddev = max_distance, bidirectional, stddev
        self.table = bucket_table(num_buckets, max_distance, bidirectional)

    def build(self, x_shape):
        start = keras.initializers.RandomNormal(stddev=self.stddev)
        shape = (self.num_buckets, self.num_heads)
        self.bias = self.add_weight(shape=shape, initializer=start, dtype="float32", autocast=False, name="bias")

    def call(self, x, length=None, position=0):
        times = ops.shape(x)[1]
        queries = ops.arange(times, dtype="int32")[:, None] + position  # (t, 1)
        keys = ops.arange(times if length is None else length, dtype="int32")  # (s,)
        bias = ops.take(self.bias, self.buckets(keys - queries), axis=0)  # (t, s, n)
        return ops.transpose(bias, (2, 0, 1))[None]  # (1, n, t, s)

    def buckets(self, distances):
        """Buckets of distances, key's place less query's place, of any shape: int32 of the same shape."""
        back = ops.abs(distances) if self.bidirectional else ops.maximum(-distances, 0)
        found = ops.take(ops.convert_to_tensor(self.table), ops.minimum(back, self.max_distance), axis=0)
        after = ops.where(distances > 0, self.num_buckets // 2, 0) if self.bidirectional else 0
        return found + ops.cast(after, "int32")

    def compute_output_spec(self, x, length=None, position=0):
        shape = (1, self.num_heads, x.shape[1], x.shape[1] if length is None else length)
        return keras.KerasTensor(shape, dtype="float32")

    def get_config(self):
        names = ("num_heads", "num_buckets", "max_distance", "bidirectional", "stddev")
        return super().get_config() | {name: getattr(self, name) for name in names}
