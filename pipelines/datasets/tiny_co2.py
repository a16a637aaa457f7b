"""tiny_co2: 526 months of carbon dioxide in the air at Mauna Loa, real, which statsmodels ships; nothing is downloaded.

Weekly means in parts per million from March 1958 to December 2001 (Keeling and Whorf, 2004), averaged by month here.
Five months without any measurement have no value. A season of twelve months on a trend that steepens.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds


class TinyCo2(tfds.core.GeneratorBasedBuilder):
    """Monthly means of atmospheric CO2, from statsmodels' `co2`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: dict[str, str] = {"1.0.0": "526 months, 5 without a value."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict({"date": tfds.features.Text(), "co2": np.float64}),
            metadata=tfds.core.MetadataDict(time="date", targets=["co2"], season=12),
            homepage="https://www.statsmodels.org/stable/datasets/generated/co2.html",
            citation="Keeling, C.D. and Whorf, T.P. (2004). Atmospheric CO2 concentrations. Trends, CDIAC.",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator:
        from statsmodels.datasets import co2

        monthly = co2.load_pandas().data["co2"].resample("MS").mean()
        for key, (month, value) in enumerate(monthly.items()):
            yield key, {"date": f"{month:%Y-%m}", "co2": float(value)}
