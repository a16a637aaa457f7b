"""The user's rows of a source, a target and perhaps a task: CSV, TSV or JSONL, in one file or in a folder of splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config import Failure
from pipelines.datasets import pairs, tables

NAMES = {  # of columns, whatever their capitals
    "source": "source input document article dialogue question prompt text".split(),
    "target": "target output summary highlights answer response completion".split(),
    "task": ["task"],
}


def load(
    data_dir: str,
    columns: tuple[str | None, str | None, str | None] = (None, None, None),
    *,
    seed: int = 0,
    skip_bad: bool = False,
    validation_fraction: float = 0.1,
) -> pairs.Pairs:
    """The rows of files as pairs; validation and test are carved from train where they are not given.

    Args:
        data_dir: a CSV, TSV or JSONL file, or a folder with train, validation and test files of such.
        columns: those of the source, the target and the task; default: found by their names, the task if it is there.
        seed: decides which rows are held out.
        skip_bad: leave out rows with an empty side, with a warning that names their lines.
        validation_fraction: share of train that is held out where there is no validation file.

    Raises:
        UsageError: no such file, or a column that is not there.
        Failure: files that are damaged or empty, or rows without a source, a target or the task.
    """
    parts = {
        split: read(path, columns, skip_bad) for split, path in tables.split_files(Path(data_dir).expanduser()).items()
    }
    if len({"task" in columns for columns in parts.values()}) > 1:
        without = ", ".join(split for split, columns in parts.items() if "task" not in columns)
        raise Failure(
            f"Expected a column of tasks in all tables of {data_dir}, or in none. Received none in: {without}"
        )
    name = data_dir.rstrip("/").rpartition("/")[2]
    return pairs.from_files(parts, ("source", "target"), f"rows of {name}", seed, validation_fraction)


def read(path: Path, columns: tuple[str | None, str | None, str | None], skip_bad: bool) -> pairs.Columns:
    """One file as columns of texts."""
    given = dict(zip(NAMES, columns))
    found: dict[str, str] = {}
    rows: list[list[str]] = []
    bad: list[str] = []
    for number, row in tables.numbered(path):
        if isinstance(row, str):
            bad.append(f"line {number} ({row})")
            continue
        if not found:
            there = list(row)
            has_task = given["task"] or not {name.lower() for name in there}.isdisjoint(NAMES["task"])
            wanted = [name for name in NAMES if name != "task" or has_task]
            found = {name: tables.column(path, there, given[name], NAMES[name], name) for name in wanted}
        wrong = next(filter(None, (problem(row.get(column), column) for column in found.values())), None)
        if wrong:
            bad.append(f"line {number} ({wrong})")
        else:
            rows.append([row[column].strip() for column in found.values()])
    what = "a source, a target and a task" if "task" in found else "a source and a target"
    tables.left_out(path, bad, len(rows) + len(bad), what, skip_bad)
    if not rows:
        raise Failure(f"Expected {what} in rows of {path.name}. Received: none of {len(bad)}")
    return {name: np.array(values, object) for name, values in zip(found, zip(*rows))}


def problem(value: Any, column: str) -> str | None:
    """What is wrong with a text of a row, if anything."""
    if value is None:
        return f"no {column}"
    if not isinstance(value, str):
        return f"{column} is no text"
    return None if value.strip() else f"empty {column}"
