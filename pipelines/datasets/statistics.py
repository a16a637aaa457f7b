"""What a split says of itself. Labels are read without decoding a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from pipelines.datasets.stream import InMemory, Prepare, batches


def labels(source: Any) -> np.ndarray:
    """All labels of a split in its order, (n,) int64."""
    if isinstance(source, InMemory):
        return source.examples["label"].numpy()
    return np.fromiter((item["label"] for item in only_labels(source).as_numpy_iterator()), "int64")


def only_labels(source: tf.data.Dataset) -> tf.data.Dataset:
    return source.map(lambda item: {"label": item["label"]})


def class_counts(source: Any, num_classes: int) -> list[int]:
    """How many examples each of the classes has."""
    return np.bincount(labels(source), minlength=num_classes).tolist()


def balanced_weights(counts: list[int]) -> np.ndarray:
    """Weights of the classes that make each count the same in a loss, with a mean of one over the examples; (k,)."""
    return (sum(counts) / (len(counts) * np.maximum(counts, 1))).astype("float32")


def moments(source: Any, prepare: Prepare, sample: int = 2000) -> dict[str, Any]:
    """Mean and deviation of the pixels by channel, measured on the first pictures.

    Args:
        source: examples of `image` (h, w, c) uint8, or raw ones that `prepare` makes such of.
        prepare: one raw example to one of fixed shape.
        sample: how many pictures.

    Returns:
        `{"mean", "std", "order"}` as `transforms.images.standardize` takes it. A channel that is the same everywhere
        gets a deviation of 1.
    """
    if isinstance(source, InMemory):
        found = source.examples["image"][:sample].numpy()
    else:
        found = np.concatenate(
            [batch["image"] for batch in batches(source.take(sample), batch_size=256, prepare=prepare)]
        )
    pixels = found.reshape(-1, found.shape[-1])  # (b * h * w, c)
    mean = pixels.mean(0, dtype="float64")
    std = np.sqrt(np.maximum((pixels.astype("float32") - mean.astype("float32")).var(0, dtype="float64"), 1.0))
    return {"mean": mean.round(3).tolist(), "std": std.round(3).tolist(), "order": "rgb"}
