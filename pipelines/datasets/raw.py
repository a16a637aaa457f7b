"""What a source of images answers: raw examples in a fixed order, and what is known of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import tensorflow as tf

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Raw:
    """Three `tf.data` sets of {"image": encoded bytes, a scalar string; "label": int64}, always in the same order.

    `image_shape` is (height, width, channels), with None where the images differ; `channels` is 1 or 3. `source` is a
    line for people: name, version, where it came from.
    """

    train: tf.data.Dataset
    validation: tf.data.Dataset
    test: tf.data.Dataset
    classes: tuple[str, ...]
    counts: dict[str, int]
    image_shape: tuple[int | None, int | None, int]
    source: str

    def limited(self, limit: int | None) -> Raw:
        """At most `limit` training examples, and the other splits cut in proportion, to 32 examples at the least."""
        counts = fewer(self.counts, limit)
        cut = {split: getattr(self, split).take(counts[split]) for split in SPLITS}
        return self if counts == self.counts else dataclasses.replace(self, counts=counts, **cut)


def fewer(counts: Mapping[str, int], limit: int | None) -> dict[str, int]:
    """At most `limit` training examples, and the other splits cut in proportion, to 32 examples at the least."""
    if limit is None or limit >= counts["train"]:
        return dict(counts)
    share = limit / counts["train"]
    return {split: min(n, max(32, round(share * n))) for split, n in counts.items()} | {"train": limit}
