"""Rows of different lengths in a TensorFlow graph, with few operations and memory no larger than the values.

`tf.repeat`, and with it `value_rowids`, `merge_dims` and masks of ragged tensors, makes a dense matrix of rows by
longest row on its way, which a single long text in a batch of words turns into gigabytes.
"""

from __future__ import annotations

import tensorflow as tf


def where(mask: tf.Tensor) -> tf.Tensor:
    """The places at which a mask (n,) is true."""
    return tf.where(mask)[:, 0]


def owners(splits: tf.Tensor) -> tf.Tensor:
    """The row of each value, (n,), by the places at which rows begin and end, (rows + 1,)."""
    begins = tf.scatter_nd(splits[1:-1, None], tf.ones_like(splits[1:-1]), splits[-1:] + 1)
    return tf.cumsum(begins)[:-1]


def splits_of(lengths: tf.Tensor) -> tf.Tensor:
    """The places at which rows of these lengths begin and end, (rows + 1,)."""
    return tf.concat([[0], tf.cumsum(lengths)], 0)


def ragged(values: tf.Tensor, splits: tf.Tensor) -> tf.RaggedTensor:
    return tf.RaggedTensor.from_row_splits(values, tf.cast(splits, tf.int64), validate=False)


def places(rows: tf.RaggedTensor) -> tf.Tensor:
    """Where in its row each value is, (n,)."""
    splits = rows.row_splits
    return tf.range(splits[-1]) - tf.gather(splits, owners(splits))


def singles(values: tf.Tensor) -> tf.RaggedTensor:
    """Values (n,) in a row each, (n, 1)."""
    return ragged(values, tf.range(tf.size(values) + 1))


def by_owner(values: tf.Tensor, owner: tf.Tensor, count: tf.Tensor) -> tf.RaggedTensor:
    """Values (n,) in the rows that own them; there are `count` rows."""
    return ragged(values, splits_of(tf.math.bincount(tf.cast(owner, tf.int32), minlength=count, maxlength=count)))


def kept(rows: tf.RaggedTensor, mask: tf.Tensor) -> tf.RaggedTensor:
    """Rows without the values at which the mask (n,) is false."""
    before = splits_of(tf.cast(mask, tf.int64))
    return ragged(tf.gather(rows.values, where(mask)), tf.gather(before, rows.row_splits))


def nested(outer: tf.RaggedTensor, inner: tf.RaggedTensor) -> tf.RaggedTensor:
    """Rows that have a row of `inner` (n, k) for each value of `outer` (r, n), one after the other, (r, k)."""
    return ragged(inner.values, tf.gather(inner.row_splits, outer.row_splits))


def interleaved(mask: tf.Tensor, those: tf.RaggedTensor, others: tf.RaggedTensor) -> tf.RaggedTensor:
    """Rows in one order: `those` where the mask (r,) is true, `others` where it is false."""
    splits = tf.concat([those.row_splits, those.row_splits[-1] + others.row_splits[1:]], 0)
    order = tf.math.invert_permutation(tf.concat([where(mask), where(~mask)], 0))
    return tf.gather(ragged(tf.concat([those.values, others.values], 0), splits), order)
