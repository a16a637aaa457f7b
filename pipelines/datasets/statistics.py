"""What the training split says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.datasets.stream import InMemory, Prepare, batches


def of_images(
    train: InMemory | Any, image_shape: Sequence[int], num_classes: int, prepare: Prepare, sample: int = 2000
) -> tuple[dict[str, Any], list[int]]:
    """Mean and deviation of the pixels by channel, and the pictures of each class.

    Args:
        train: examples of `image` (h, w, c) uint8 and `label`.
        image_shape: (h, w, c).
        num_classes: k.
        prepare: one raw example to one of fixed shape.
        sample: how many pictures, from the first on, the pixels are measured on.

    Returns:
        `{"mean", "std", "order"}` as `transforms.images.standardize` takes it, and k counts. A channel that is the same
        everywhere gets a deviation of 1.
    """
    counts = np.zeros(num_classes, int)
    seen, total, square = 0, np.zeros(image_shape[-1]), np.zeros(image_shape[-1])
    for batch in batches(train, batch_size=256, prepare=prepare).as_numpy_iterator():
        counts += np.bincount(batch["label"], minlength=num_classes)
        if seen < sample:
            flat = batch["image"].reshape(-1, image_shape[-1]).astype("float64")  # (b * h * w, c)
            seen, total, square = seen + len(batch["image"]), total + flat.sum(0), square + (flat**2).sum(0)
    pixels = seen * image_shape[0] * image_shape[1]
    mean = total / pixels
    std = np.sqrt(np.maximum(square / pixels - mean**2, 1.0))
    return {"mean": mean.round(3).tolist(), "std": std.round(3).tolist(), "order": "rgb"}, counts.tolist()
