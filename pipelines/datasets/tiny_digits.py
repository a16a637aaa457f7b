"""tiny_digits: 1,797 real handwritten digits of 8×8 pixels, which scikit-learn ships; nothing is downloaded.

The digits are the test part of UCI's "Optical Recognition of Handwritten Digits": 13 people wrote them, the same
people in both splits. The split is stratified with a fixed seed: 1,437 train, 360 test.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds


class TinyDigits(tfds.core.GeneratorBasedBuilder):
    """Real 8×8 grey digits with 10 classes, from scikit-learn's `load_digits`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: dict[str, str] = {"1.0.0": "1,437 train, 360 test, stratified."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation="Alpaydin, E. and Kaynak, C. (1998). Optical Recognition of Handwritten Digits. UCI.",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        images = np.round(images.reshape(-1, 8, 8, 1) * 255 / 16).astype("uint8")  # (n, 8, 8, 1)
        train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
        return {
            name: self._generate_examples(images, labels, part) for name, part in (("train", train), ("test", test))
        }

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray, part: np.ndarray) -> Iterator:
        """In rounds through the classes: every stretch of a split holds about as many of each digit."""
        turns = [(turn, label, index) for label in range(10) for turn, index in enumerate(part[labels[part] == label])]
        for key, (_, label, index) in enumerate(sorted(turns)):
            yield key, {"image": images[index], "label": int(label)}
