"""tiny_series: generated daily sales of three shops, several channels with a structure that is known.

For shop `i` and day `t`, with the day of the week `w(t)`, temperature `x` (measured, not known in advance), promotion
`p` (0 or 1, known in advance) and independent normal noise `e`:

    demand_t  = level_i + slope_i · t + week_i[w(t)] + 0.8 · x_(t-1) + 6 · p_t + e_t        e of deviation 1
    returns_t = 0.3 · demand_(t-2) + e'_t                                                   e' of deviation 0.5
    x_t       = 0.9 · x_(t-1) + e''_t                                                       e'' of deviation 1

730 days of each shop; of every measured cell 2 % are missing, and so are whole rows of one week. `demand` cannot be
foretold better than to a mean absolute error of 0.8 (that of the noise, sqrt(2 / pi)), one day ahead.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

DAYS, SHOPS, START = 730, ("north", "south", "west"), np.datetime64("2021-01-01")
LAG_EFFECT, PROMOTION_EFFECT, RETURN_SHARE = 0.8, 6.0, 0.3
MEASURED = ("demand", "returns", "temperature")


def generate(shop: int) -> dict[str, np.ndarray]:
    """The columns of one shop, complete: float64 (DAYS,) each, and `week`, its seven effects of the day of the week."""
    random = np.random.default_rng(100 + shop)
    noise = random.normal(size=(3, DAYS + 2))
    temperature = np.zeros(DAYS + 2)
    for t in range(1, DAYS + 2):
        temperature[t] = 0.9 * temperature[t - 1] + noise[2, t]
    promotion = (random.random(DAYS + 2) < 0.15).astype("float64")
    week = random.normal(0, 4, 7)
    day = np.arange(-2, DAYS)
    weekday = (day + 4) % 7  # 2021-01-01 was a Friday
    trend = 40 + 20 * shop + (0.01 + 0.01 * shop) * day
    demand = trend + week[weekday] + PROMOTION_EFFECT * promotion + noise[0]
    demand[1:] += LAG_EFFECT * temperature[:-1]
    returns = 0.5 * noise[1]
    returns[2:] += RETURN_SHARE * demand[:-2]
    columns = {"demand": demand, "returns": returns, "temperature": temperature, "promotion": promotion}
    return {name: values[2:] for name, values in columns.items()} | {"week": week}


class TinySeries(tfds.core.GeneratorBasedBuilder):
    """Daily demand and returns of three generated shops, with a measured covariate and one known in advance."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: dict[str, str] = {"1.0.0": "Three shops, 730 days each."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        numbers = dict.fromkeys((*MEASURED, "promotion"), np.float64)
        texts = {"date": tfds.features.Text(), "shop": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(texts | numbers),
            metadata=tfds.core.MetadataDict(
                time="date",
                targets=["demand", "returns"],
                past=["temperature"],
                known=["promotion"],
                series="shop",
                season=7,
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator:
        for shop, name in enumerate(SHOPS):
            columns = generate(shop)
            random = np.random.default_rng(200 + shop)
            lost = random.random((len(MEASURED), DAYS)) < 0.02
            for t in range(DAYS):
                if 300 <= t < 307:
                    continue
                row = {key: float(values[t]) for key, values in columns.items() if key != "week"}
                row |= {key: float("nan") for key, gone in zip(MEASURED, lost[:, t]) if gone}
                yield shop * DAYS + t, {"date": str(START + t), "shop": name, **row}
