"""tiny_sunspots: yearly numbers of sunspots from 1700 to 2008, real, which statsmodels ships; nothing is downloaded.

A cycle of about eleven years whose length and height vary: no calendar explains it, and a seasonal naive forecast is
often out of step.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds


class TinySunspots(tfds.core.GeneratorBasedBuilder):
    """Yearly sunspot numbers, from statsmodels' `sunspots`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: dict[str, str] = {"1.0.0": "309 years."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict({"date": tfds.features.Text(), "sunspots": np.float64}),
            metadata=tfds.core.MetadataDict(time="date", targets=["sunspots"], season=11),
            homepage="https://www.statsmodels.org/stable/datasets/generated/sunspots.html",
            citation="National Geophysical Data Center. Yearly mean sunspot numbers, 1700-2008.",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator:
        from statsmodels.datasets import sunspots

        rows = sunspots.load_pandas().data
        for key, (year, number) in enumerate(zip(rows["YEAR"], rows["SUNACTIVITY"])):
            yield key, {"date": f"{int(year):04d}", "sunspots": float(number)}
