"""Time series as a table on a regular grid: the built-in `tiny_*` sets and the user's CSV, on one road.

A source gives rows with a column of dates. `read_frame` checks them, finds the frequency and the gaps, and puts every
series on the grid of its frequency; a step without a row, or with an empty cell, is NaN. Series come from an id column
(long), from every target column apart (`melt`, wide), or are one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds

from pipelines.config import Failure, UsageError
from pipelines.datasets import catalogue
from pipelines.datasets.rows import Columns, checked, in_order, of, read_moments, read_numbers
from pipelines.transforms.series import DAY, civil, moment, month_length, position

NAMED: dict[str, tuple[str, int]] = {
    "secondly": ("seconds", 1),
    "minutely": ("seconds", 60),
    "hourly": ("seconds", 3600),
    "daily": ("seconds", DAY),
    "weekly": ("seconds", 7 * DAY),
    "monthly": ("months", 1),
    "quarterly": ("months", 3),
    "yearly": ("months", 12),
}
SEASONS = {  # steps after which a pattern is likely to return
    ("seconds", 60): 60,
    ("seconds", 3600): 24,
    ("seconds", DAY): 7,
    ("seconds", 7 * DAY): 52,
    ("months", 1): 12,
    ("months", 3): 4,
}


@dataclasses.dataclass(frozen=True)
class Table:
    """Series on one grid, one after the other. `values` holds the targets, then the past covariates; NaN is missing.

    Attributes:
        values: float32 (n, c).
        known: covariates that are known in advance, float32 (n, k).
        moments: int64 (n,), seconds since 1970.
        lengths: steps of each series, their sum is n.
    """

    values: np.ndarray
    known: np.ndarray
    moments: np.ndarray
    lengths: tuple[int, ...]
    names: tuple[str, ...]
    columns: Columns
    frequency: dict[str, Any]
    season: int
    source: str

    @property
    def starts(self) -> np.ndarray:
        """The first row of each series, (s,)."""
        return np.cumsum((0, *self.lengths[:-1]))

    def of(self, series: int) -> slice:
        return slice(self.starts[series], self.starts[series] + self.lengths[series])


def read_named(name: str) -> tuple[pd.DataFrame, dict[str, Any], str]:
    """The rows of a data set of TensorFlow Datasets whose examples are rows with a text feature for the date.

    Returns:
        the rows; what the set says of its columns (`metadata`: time, targets, past, known, series, season); its source.

    Raises:
        UsageError: no such data set, or examples that are no rows with a date.
        Failure: it cannot be prepared.
    """
    builder = catalogue.prepare(name, rows_with_dates, "tiny_co2")
    features = builder.info.features
    parts = [tfds.as_dataframe(builder.as_dataset(split=part)) for part in builder.info.splits]
    frame = pd.concat(parts, ignore_index=True)[list(features)]
    for column in frame:
        if isinstance(features[column], tfds.features.Text):
            frame[column] = frame[column].str.decode("utf-8")
    description = " ".join(builder.info.description.split())
    return frame, dict(builder.info.metadata or {}), f"{builder.info.full_name}: {description[:300]}"


def rows_with_dates(builder: tfds.core.DatasetBuilder) -> None:
    """Raises `UsageError` unless the examples are rows: a text and else single values."""
    kinds = builder.info.features
    flat = isinstance(kinds, tfds.features.FeaturesDict) and all(kind.shape == () for kind in kinds.values())
    if not flat or not any(isinstance(kind, tfds.features.Text) for kind in kinds.values()):
        raise UsageError(
            "Expected a data set of rows with a date (tiny_co2, tiny_sunspots, tiny_series; your own CSV goes by "
            f"--data_dir). Received: {builder.name!r}"
        )


def read_frame(
    frame: pd.DataFrame,
    columns: Columns,
    *,
    frequency: str | None = None,
    date_format: str | None = None,
    season: int | None = None,
    sort: bool = False,
    melt: bool = False,
    source: str = "",
) -> Table:
    """Rows as a `Table`.

    Args:
        frame: rows; text or numbers.
        columns: which column is what. Without a time column the first that holds dates is it; without targets every
            column of numbers that is nothing else is one.
        frequency: a name of `NAMED`; None: found in the dates.
        date_format: as of `strptime`; None: ISO 8601, or a whole number (four digits a year, else seconds since 1970).
        season: steps of a season; None: that of the frequency.
        sort: put rows in the order of time instead of refusing others.
        melt: every target column is a series of its own instead of a channel.
        source: a line for people.

    Raises:
        UsageError: a column that is not there.
        Failure: dates that cannot be read, come twice, are not in order or not regular; cells that are no numbers;
            a target that never changes.
    """
    columns = checked(frame, columns, date_format)
    moments = read_moments(frame[columns.time], date_format)
    wanted = (*columns.targets, *columns.past, *columns.known)
    numbers = np.stack([read_numbers(frame[name]) for name in wanted], 1)  # (rows, c + k)
    ids = frame[columns.series].astype(str).to_numpy() if columns.series else np.full(len(frame), "")
    names = tuple(dict.fromkeys(ids.tolist()))
    found = pd.Series(ids).groupby(ids).indices
    rows = [in_order(found[name], moments, name, sort) for name in names]
    grid = find_frequency([moments[part] for part in rows], frequency)
    values, times = zip(*(placed(moments[part], numbers[part], grid) for part in rows))
    split_at = len(columns.targets) + len(columns.past)
    if melt and len(columns.targets) > 1:
        names, values, times, columns = melted(names, values, times, columns)
        split_at = 1 + len(columns.past)
    for name, one in zip(names, values):
        for target, cells in zip(columns.targets, one.T):
            there = cells[~np.isnan(cells)]
            if len(there) == 0 or (there == there[0]).all():
                what = f"{there[0]:g} throughout" if len(there) else "no values"
                raise Failure(f"Expected a target that changes. Received: {what} in {target!r}{of(name)}")
    every = np.concatenate(values)
    return Table(
        values=every[:, :split_at].astype("float32"),
        known=every[:, split_at:].astype("float32"),
        moments=np.concatenate(times),
        lengths=tuple(len(one) for one in values),
        names=names,
        columns=columns,
        frequency=grid,
        season=season or SEASONS.get((grid["unit"], grid["count"]), 1),
        source=source,
    )


def find_frequency(series: Sequence[np.ndarray], name: str | None) -> dict[str, Any]:
    """The grid that the dates of all series lie on: the step that occurs most often, where all fit.

    Raises:
        Failure: fewer than three dates, or dates that do not fit one grid.
    """
    steps = np.concatenate([np.diff(times) for times in series])
    if len(steps) < 2:
        raise Failure(f"Expected a history of several dates. Received: {len(steps) + 1}")
    every = np.concatenate(series)
    years, months, days_of_month = civil(every // DAY)
    last = days_of_month == month_length(years, months)
    monthly = (every % DAY == every[0] % DAY).all() and (days_of_month.max() == days_of_month.min() or last.all())
    if name:
        unit, count = NAMED[name]
    elif monthly and (np.abs(steps) >= 28 * DAY).all():
        unit, count = "months", commonest(np.concatenate([np.diff(12 * y + m) for y, m in by_series(series)]))
    else:
        unit, count = "seconds", commonest(steps)
    if unit == "months":
        number = 12 * years + months - 1
        day = 31 if last.all() else int(days_of_month.max())
        grid = {"unit": unit, "count": count, "phase": int(number[0] % count), "day": day}
        grid["seconds"] = int(every[0] % DAY)
    else:
        grid = {"unit": unit, "count": count, "phase": int(every[0] % count)}
    off = np.flatnonzero(moment(position(every, grid), grid) != every)
    if len(off):
        when = np.datetime64(int(every[off[0]]), "s")
        raise Failure(
            f"Expected dates on a regular grid, {describe(grid)} from {np.datetime64(int(every[0]), 's')} on "
            f"(--frequency names another). Received: {when}"
        )
    return grid


def by_series(series: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [civil(times // DAY)[:2] for times in series]


def commonest(steps: np.ndarray) -> int:
    found, counts = np.unique(steps, return_counts=True)
    return int(found[counts.argmax()])


def describe(frequency: dict[str, Any]) -> str:
    """`monthly`, or `every 900 seconds`."""
    kind = (frequency["unit"], frequency["count"])
    return next((name for name, one in NAMED.items() if one == kind), f"every {kind[1]} {kind[0]}")


def placed(times: np.ndarray, numbers: np.ndarray, grid: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Values (n, c) on the whole grid from the first date to the last, NaN in the gaps, and its moments (n,)."""
    place = position(times, grid)
    values = np.full((place[-1] - place[0] + 1, numbers.shape[1]), np.nan)
    values[place - place[0]] = numbers
    return values, moment(np.arange(place[0], place[-1] + 1), grid)


def melted(names, values, times, columns: Columns) -> tuple[Any, Any, Any, Columns]:
    """Every target of every series as a series of its own, called by the name of its column."""
    count = len(columns.targets)
    pairs = [(one, k) for one in range(len(names)) for k in range(count)]
    labels = tuple(f"{names[one]}/{columns.targets[k]}" if names[one] else columns.targets[k] for one, k in pairs)
    cells = [values[one][:, [k, *range(count, values[one].shape[1])]] for one, k in pairs]
    return labels, cells, [times[one] for one, _ in pairs], dataclasses.replace(columns, targets=("value",))
