"""Metrics that Keras lacks."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import ops


@keras.saving.register_keras_serializable("dl_essentials")
class SpanF1(keras.metrics.Metric):
    """F1 of the spans that tags of words stand for: both ends and the kind have to be right.

    `2 c / (p + t)` of `c` right spans among `p` that the tags stand for and `t` true ones, over all batches. A span
    begins at a tag B-, and at an I- after a tag of another kind or none.

    Args:
        kinds: of every tag, the number of its kind, 0 for none.
        begins: of every tag, whether it is a B-.

    Input shape:
        tags (b, t), logits (b, t, k), and sample weights (b, t): 1 where a word has its tag, 0 elsewhere.

    Reference: Tjong Kim Sang and De Meulder 2003, "Introduction to the CoNLL-2003 shared task", section 2.4.
    """

    def __init__(self, kinds: Sequence[int], begins: Sequence[bool], *, name: str = "f1", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.kinds, self.begins = list(kinds), list(begins)
        self.right, self.found, self.true = (
            self.add_weight(shape=(), initializer="zeros", name=part) for part in ("right", "found", "true")
        )

    def update_state(self, y_true, y_pred, sample_weight=None):
        tags, answers = ops.cast(y_true, "int32"), ops.argmax(y_pred, axis=-1)  # (b, t)
        weights = ops.ones_like(tags) if sample_weight is None else sample_weight
        mask = ops.cast(weights, "float32") > 0
        if len(mask.shape) == 1:  # of whole texts
            mask = ops.logical_and(mask[:, None], ops.ones_like(tags, dtype="bool"))
        places = ops.broadcast_to(ops.arange(ops.shape(tags)[1], dtype="int32"), ops.shape(tags))
        order = ops.argsort(ops.where(mask, places, places + ops.shape(tags)[1]), axis=1)  # tagged words come first
        mask = ops.take_along_axis(mask, order, axis=1)
        true = self._spans(ops.take_along_axis(tags, order, axis=1), mask)
        found = self._spans(ops.take_along_axis(answers, order, axis=1), mask)
        same = ops.logical_and(ops.equal(true[2], found[2]), ops.equal(true[3], found[3]))
        right = ops.logical_and(ops.logical_and(true[1], found[1]), same)
        for total, which in ((self.right, right), (self.found, found[0]), (self.true, true[0])):
            total.assign_add(ops.sum(ops.cast(which, total.dtype)))

    def _spans(self, tags, mask):
        """Where spans begin and where they end, both bool (b, t), the kind of each word, and where its span began."""
        kinds = ops.where(mask, ops.take(ops.convert_to_tensor(self.kinds, "int32"), tags), 0)  # (b, t)
        marked = ops.take(ops.convert_to_tensor(self.begins, "bool"), tags)
        none = ops.zeros_like(kinds[:, :1])
        before, after = ops.concatenate([none, kinds[:, :-1]], 1), ops.concatenate([kinds[:, 1:], none], 1)
        begins = ops.logical_and(kinds > 0, ops.logical_or(marked, ops.not_equal(kinds, before)))
        next_begins = ops.concatenate([begins[:, 1:], ops.zeros_like(begins[:, :1])], 1)
        ends = ops.logical_and(kinds > 0, ops.logical_or(next_begins, ops.not_equal(kinds, after)))
        length = ops.shape(kinds)[1]
        places = ops.broadcast_to(ops.arange(length, dtype="int32"), ops.shape(kinds))
        first = ops.sort(ops.where(begins, places, length), axis=1)  # where the spans begin, one after the other
        number = ops.maximum(ops.cumsum(ops.cast(begins, "int32"), axis=1) - 1, 0)
        return begins, ends, kinds, ops.take_along_axis(first, number, axis=1)

    def result(self):
        total = self.found + self.true
        return ops.where(total > 0, 2 * self.right / ops.maximum(total, 1), 0.0)

    def get_config(self):
        return {**super().get_config(), "kinds": self.kinds, "begins": self.begins}
