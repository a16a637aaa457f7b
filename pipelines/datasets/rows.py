"""Rows with a date: which column is what, and cells as dates and numbers. What cannot be read is named by its line."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.config import Failure, UsageError, nearest

EMPTY = ["", "nan", "na", "null", "none"]


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which column of the rows is what. None or empty: found, or none."""

    time: str | None = None
    targets: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    series: str | None = None


def read_csv(path: str | Path) -> pd.DataFrame:
    """The rows of a CSV file, or of the only one in a folder, as text; empty cells are empty text.

    Raises:
        UsageError: no such file, or a folder without exactly one.
        Failure: not a CSV with a header and rows.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        found = sorted(file.glob("*.csv"))
        if len(found) != 1:
            raise UsageError(f"Expected --data_dir to be a CSV file or a folder with one. Received: {len(found)} files")
        (file,) = found
    if not file.is_file():
        raise UsageError(f"Expected --data_dir to be a CSV file or a folder with one. Received: {str(path)!r}")
    try:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False, skipinitialspace=True, encoding="utf-8-sig")
    except (ValueError, pd.errors.ParserError) as error:
        raise Failure(f"Expected a CSV file with a header. Received: {file.name}: {error}") from error
    if frame.empty:
        raise Failure(f"Expected rows under the header of {file.name}. Received: none")
    return frame


def of(name: str) -> str:
    """` of series 'x'`, or nothing where there is one series without a name."""
    return f" of series {name!r}" if name else ""


def checked(frame: pd.DataFrame, columns: Columns, date_format: str | None) -> Columns:
    """The columns with the time and the targets found where they were not given."""
    for name in (columns.time, columns.series, *columns.targets, *columns.past, *columns.known):
        if name is not None and name not in frame:
            there = ", ".join(map(str, frame.columns))
            raise UsageError(f"Expected a column of the data ({there}).{nearest(name, frame)} Received: {name!r}")
    dates = [c for c in frame if c != columns.series and holds_dates(frame[c], date_format)]
    words, years = [c for c in dates if not whole_numbers(frame[c])], [c for c in dates if whole_numbers(frame[c], 4)]
    time = columns.time or next(iter(words + years), None)
    if time is None:
        raise UsageError(f"Expected a column of dates (--time_column). Received: {', '.join(map(str, frame.columns))}")
    taken = [time, columns.series, *columns.past, *columns.known]
    targets = columns.targets or tuple(c for c in frame if c not in taken and holds_numbers(frame[c]))
    if not targets:
        raise UsageError(f"Expected a column of numbers to forecast (--targets). Received: {', '.join(frame.columns)}")
    named = [name for name in (*taken, *targets) if name is not None]
    twice = [name for name in named if named.count(name) > 1]
    if twice:
        raise UsageError(f"Expected every column in one role. Received: {twice[0]!r} in two")
    return dataclasses.replace(columns, time=time, targets=tuple(targets))


def holds_dates(cells: pd.Series, date_format: str | None) -> bool:
    if cells.dtype != object and not pd.api.types.is_string_dtype(cells):
        return False
    try:
        read_moments(cells.head(20), date_format)
    except Failure:
        return False
    return True


def whole_numbers(cells: pd.Series, digits: int | None = None) -> bool:
    """Whether all cells are whole numbers, of so many digits."""
    text = cells.astype(str).str.strip()
    return bool(
        (text.str.fullmatch(r"-?[0-9]+") if digits is None else text.str.fullmatch(rf"[0-9]{{{digits}}}")).all()
    )


def holds_numbers(cells: pd.Series) -> bool:
    found = pd.to_numeric(cells.replace("", None), errors="coerce")
    empty = cells.astype(str).str.strip().str.lower().isin(EMPTY)
    return bool(found.notna().any() and (found.notna() | empty).mean() > 0.5)


def read_moments(cells: pd.Series, date_format: str | None) -> np.ndarray:
    """Seconds since 1970 of a column of dates, int64 (n,).

    Raises:
        Failure: a cell is no date; its line is named.
    """
    found = np.empty(len(cells), "int64")
    seconds = whole_numbers(cells) and not whole_numbers(cells, 4) and not whole_numbers(cells, 8)
    for line, text in enumerate(cells.astype(str).str.strip()):
        try:
            if date_format:
                stamp = np.datetime64(pd.to_datetime(text, format=date_format).tz_localize(None), "s")
            elif seconds:
                stamp = np.datetime64(int(text), "s")
            else:
                stamp = np.datetime64(text.removesuffix("Z") if re.match("[0-9]{4}(-|$)", text) else "NaT", "s")
        except ValueError:
            stamp = np.datetime64("NaT")
        if np.isnat(stamp):
            how = f"as {date_format}" if date_format else "such as 2001-12-31 (or --date_format)"
            raise Failure(f"Expected dates {how} in the column {cells.name!r}. Received: {text!r} in line {line + 2}")
        found[line] = stamp.astype("int64")
    return found


def read_numbers(cells: pd.Series) -> np.ndarray:
    """Numbers of a column, NaN where a cell is empty; float64 (n,).

    Raises:
        Failure: a cell is no number; its line is named.
    """
    if cells.dtype != object and not pd.api.types.is_string_dtype(cells):
        return cells.to_numpy("float64", na_value=np.nan)
    text = cells.astype(str).str.strip()
    empty = text.str.lower().isin(EMPTY)
    found = pd.to_numeric(text.where(~empty), errors="coerce")
    bad = np.flatnonzero(found.isna() & ~empty | np.isinf(found))
    if len(bad):
        where = f"{text.iloc[bad[0]]!r} in line {bad[0] + 2}"
        raise Failure(f"Expected numbers or empty cells in the column {cells.name!r}. Received: {where}")
    return found.to_numpy("float64")


def in_order(rows: np.ndarray, moments: np.ndarray, name: str, sort: bool) -> np.ndarray:
    """The rows of one series in the order of time.

    Raises:
        Failure: they are not in that order, or a date comes twice.
    """
    times = moments[rows]
    if sort:
        rows = rows[np.argsort(times, kind="stable")]
    elif (np.diff(times) < 0).any():
        first = int(np.flatnonzero(np.diff(times) < 0)[0]) + 1
        when, line = np.datetime64(int(times[first]), "s"), rows[first] + 2
        raise Failure(f"Expected rows in the order of time (or --sort){of(name)}. Received: {when} in line {line}")
    twice = np.flatnonzero(np.diff(moments[rows]) == 0)
    if len(twice):
        when, lines = np.datetime64(int(moments[rows[twice[0]]]), "s"), rows[twice[0] : twice[0] + 2] + 2
        hint = "" if name else "; several series need --id_column"
        raise Failure(f"Expected each date once{of(name)}{hint}. Received: {when} in lines {lines[0]} and {lines[1]}")
    return rows
