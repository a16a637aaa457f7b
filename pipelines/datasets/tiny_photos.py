"""tiny_photos: 32×32 patches of the two photographs that scikit-learn ships; nothing is downloaded.

Which photograph is the patch from: a temple in China, or a flower? The patches do not overlap, and the splits are
separate regions: the left three quarters of each photograph train (390 patches), the right quarter tests (130).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

SIDE = 32
COLUMNS = {"train": range(15), "test": range(15, 20)}


class TinyPhotos(tfds.core.GeneratorBasedBuilder):
    """Patches of two real photographs, 32×32 RGB, labelled by photograph; from `load_sample_images`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: dict[str, str] = {"1.0.0": "390 train, 130 test, of separate regions."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=["china", "flower"]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://scikit-learn.org/stable/datasets/loading_other_datasets.html",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        from sklearn.datasets import load_sample_image

        photos = [load_sample_image(f"{name}.jpg") for name in self.info.features["label"].names]
        return {split: self._generate_examples(photos, columns) for split, columns in COLUMNS.items()}

    def _generate_examples(self, photos: list[np.ndarray], columns: range) -> Iterator:
        """Patch by patch, the photographs in turn: every stretch of a split holds as many of each."""
        rows = range(photos[0].shape[0] // SIDE)
        places = np.random.default_rng(0).permutation([(row, column) for row in rows for column in columns])
        for place, (row, column) in enumerate(places):
            for label, photo in enumerate(photos):
                patch = photo[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]  # (32, 32, 3)
                yield place * len(photos) + label, {"image": np.ascontiguousarray(patch), "label": label}
