"""Windows of series: a history and the horizon after it, cut by time into training, validation and test."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from pipelines.config import Failure
from pipelines.datasets.rows import of
from pipelines.datasets.series import Table
from pipelines.datasets.stream import InMemory


@dataclasses.dataclass(frozen=True)
class Windows:
    """A split: a table of series, and the row that each window begins at, int64 (n,)."""

    table: Table
    places: np.ndarray

    @property
    def series(self) -> np.ndarray:
        """The series of each window, (n,)."""
        return np.searchsorted(self.table.starts, self.places, side="right") - 1

    def examples(self) -> InMemory:
        """Where each window begins and of which series it is, as examples of a stream."""
        columns = {"place": tf.constant(self.places, "int64"), "series": tf.constant(self.series, "int64")}
        return InMemory(columns, len(self.places))


def split(table: Table, history: int, horizon: int, fraction: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The first row of every window, by split, and how many steps of each series are for training.

    The last `fraction` of every series is the test, as much before it the validation, a horizon each at the least. A
    window belongs to the split that its horizon lies in wholly; its history may reach back into the split before, as
    it would in use. Windows without a known target in the history or in the horizon are left out.

    Returns:
        {"train", "validation", "test": int64 rows of the table}, and int64 (s,).

    Raises:
        Failure: a series is too short.
    """
    found: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    fitted = []
    known = ~np.isnan(table.values[:, : len(table.columns.targets)]).any(1)  # (n,)
    before = np.concatenate([[0], np.cumsum(known)])
    for name, start, length in zip(table.names, table.starts, table.lengths):
        held = max(horizon, round(fraction * length))
        ends = {"train": length - 2 * held, "validation": length - held, "test": length}
        if ends["train"] < history + horizon:
            raise Failure(
                f"Expected at least {history + horizon + 2 * held} steps{of(name)}: {history} of history and {horizon} "
                f"to forecast, in training, and {held} each for validation and test. Received: {length} "
                "(a shorter --history or --horizon needs fewer)"
            )
        low = 0
        for part, end in ends.items():
            first = np.arange(max(0, low - history), end - history - horizon + 1) + start
            full = before[first + history] > before[first]
            full &= before[first + history + horizon] > before[first + history]
            found[part].append(first[full])
            low = end
        fitted.append(ends["train"])
    parts = {part: np.concatenate(rows).astype("int64") for part, rows in found.items()}
    if min(map(len, parts.values())) == 0:
        raise Failure(
            f"Expected known values in every part of the series. Received: {[len(p) for p in parts.values()]}"
        )
    return parts, np.array(fitted)


def chosen(parts: dict[str, np.ndarray], limit: int | None, stride: int) -> dict[str, np.ndarray]:
    """Fewer windows: every `stride`-th origin of validation and test; with `limit` so many of training, evenly spread
    over it, and the others cut in proportion, to 8 at the least."""
    count = len(parts["train"])
    share = min(1.0, (limit or count) / count)
    found = {}
    for part, places in parts.items():
        places = places if part == "train" else places[::stride]
        most = round(share * len(places)) if part == "train" else max(8, round(share * len(places)))
        if share < 1 and most < len(places):
            places = places[np.linspace(0, len(places) - 1, most).round().astype(int)]
        found[part] = places
    return found


def statistics(values: np.ndarray) -> dict[str, list[float]]:
    """Mean and deviation of each channel, of the training part; a deviation of 1 where nothing changes."""
    if not values.size:
        return {"mean": [], "std": []}
    mean, std = np.nanmean(values, 0, dtype="float64"), np.nanstd(values, 0, dtype="float64")
    mean, std = np.nan_to_num(mean), np.where(std > 0, std, 1.0)
    return {"mean": [float(f"{x:.7g}") for x in mean], "std": [float(f"{x:.7g}") for x in std]}
