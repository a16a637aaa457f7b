"""The user's rows: a CSV, TSV or JSONL file, or a folder of train, validation and test files of such.

Files are UTF-8, with or without a byte-order mark. CSV has a header; its delimiter is the comma, semicolon, tab or bar
that splits the header most. JSONL has an object in each line. Which columns hold the text and the class is found by
their names, or told.
"""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.config import Failure, UsageError, nearest
from pipelines.datasets.folders import SPLIT_NAMES, visible

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson")
TEXT_NAMES = (
    "text sentence review review_body content body document comment message snippet tweet description title".split()
)
LABEL_NAMES = "label class category sentiment topic target intent stars rating".split()
LONGEST = 131_072  # characters of a text

Row = tuple[str, str]  # text and label


def read_tables(
    data_dir: str, text_column: str | None, label_column: str | None, skip_bad: bool
) -> dict[str, list[Row]]:
    """The rows of each split that is there; `train` always is.

    Raises:
        UsageError: no such file, no training file, or a column that is not there.
        Failure: a file that is not of its format, or rows without text or label (unless `skip_bad`).
    """
    found: dict[str, list[Row]] = {}
    for split, path in split_files(Path(data_dir).expanduser()).items():
        rows, bad = [], []
        for number, row in table(path, text_column, label_column):
            if isinstance(row, str):
                bad.append(f"line {number} ({row})")
            else:
                rows.append(row)
        left_out(path, bad, len(rows) + len(bad), "a text and a label", skip_bad)
        found[split] = rows
    return found


def left_out(path: Path, bad: Sequence[str], count: int, what: str, skip_bad: bool) -> None:
    """Names the bad ones of a file's rows, `what` says what each row should have: in a warning with `skip_bad`.

    Raises:
        Failure: there are some, without `skip_bad`.
    """
    if not bad:
        return
    names = ", ".join(bad[:10]) + (f" and {len(bad) - 10} more" if len(bad) > 10 else "")
    if not skip_bad:
        raise Failure(
            f"Expected {what} in every row of {path.name} (--skip_bad leaves others out). "
            f"Received {len(bad)} of {count} without: {names}"
        )
    warnings.warn(f"left out {len(bad)} rows of {path.name}: {names}", stacklevel=5)


def split_files(root: Path) -> dict[str, Path]:
    """The file of each split: the file itself, the only one of the folder, or those named as splits."""
    if root.is_file():
        if root.suffix.lower() not in EXTENSIONS:
            raise UsageError(f"Expected a file of {', '.join(EXTENSIONS)}. Received: {root.name!r}")
        return {"train": root}
    if not root.is_dir():
        raise UsageError(f"Expected --data_dir to be a file ({', '.join(EXTENSIONS)}) or a folder. Received: '{root}'")
    files = [path for path in visible(root) if path.suffix.lower() in EXTENSIONS]
    if len(files) == 1:
        return {"train": files[0]}
    stems = {path.stem.lower(): path for path in files}
    found = {split: next((stems[n] for n in names if n in stems), None) for split, names in SPLIT_NAMES.items()}
    if found["train"] is None:
        names = ", ".join(path.name for path in visible(root)[:5]) or "an empty folder"
        raise UsageError(f"Expected one table in {root}, or train, validation and test tables. Received: {names}")
    return {split: path for split, path in found.items() if path}


def table(path: Path, text_column: str | None, label_column: str | None) -> Iterator[tuple[int, Row | str]]:
    """The rows of a file with the number of their line; a word of what is wrong in place of a bad one.

    Raises:
        UsageError: a column is not there.
        Failure: as of `numbered`.
    """
    text = label = None
    for number, row in numbered(path):
        if isinstance(row, str):
            yield number, row
            continue
        if text is None or label is None:
            text = column(path, list(row), text_column, TEXT_NAMES, "text")
            label = column(path, list(row), label_column, LABEL_NAMES, "label")
        yield number, checked(row.get(text), row.get(label), text, label)


def numbered(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The rows of a file by their columns or keys, with the number of their line; a word of what is wrong with others.

    Raises:
        Failure: the file is empty, not UTF-8, or holds a longer field than a text may have.
    """
    number, read = 0, csv_rows if path.suffix.lower() in (".csv", ".tsv") else json_rows
    try:
        for number, row in read(path):
            yield number, row
    except UnicodeDecodeError as error:
        byte = f"0x{error.object[error.start]:02x}"
        raise Failure(f"Expected UTF-8 in {path.name}. Received: the byte {byte} after line {number}") from error
    except csv.Error as error:
        raise Failure(f"Expected a table in {path.name}. Received after line {number}: {error}") from error
    if number == 0:
        raise Failure(f"Expected rows in {path.name}. Received: none")


def csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a CSV or TSV file by the names of the header."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        header = file.readline()
        file.seek(0)
        marks = "\t" if path.suffix.lower() == ".tsv" else ",;\t|"
        reader = csv.reader(
            file, delimiter=max(marks, key=lambda mark: len(next(csv.reader([header], delimiter=mark))))
        )
        names = [name.strip() for name in next(reader, [])]
        for row in reader:
            if row:
                yield reader.line_num, dict.fromkeys(names) | dict(zip(names, row))


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Objects of a JSONL file; empty lines are left out."""
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except ValueError:
                found = None
            yield number, found if isinstance(found, dict) else "not a JSON object"


def column(path: Path, there: Sequence[str], given: str | None, names: Sequence[str], what: str) -> str:
    """The column that is named, or else the first of `names`, whatever its capitals.

    Raises:
        UsageError: it is not there; the columns are listed and the nearest suggested.
    """
    if given is not None:
        if given in there:
            return given
        raise UsageError(
            f"Expected --{what}_column to be a column of {path.name} ({', '.join(there)}).{nearest(given, there)} "
            f"Received: {given!r}"
        )
    lower = {name.lower(): name for name in reversed(there)}
    found = next((lower[name] for name in names if name in lower), None)
    if found is None:
        raise UsageError(
            f"Expected a column of {path.name} named {', '.join(names[:4])}, …, or --{what}_column with another one."
            f"{nearest(what, there)} Received: {', '.join(there)}"
        )
    return found


def checked(text: Any, label: Any, text_column: str, label_column: str) -> Row | str:
    """A row, or what is wrong with it."""
    if text is None or label is None:
        return f"no {text_column if text is None else label_column}"
    if not isinstance(text, str):
        return f"{text_column} is no text"
    if isinstance(label, (dict, list)):
        return f"{label_column} is no class"
    label = str(label).strip()
    if not text.strip() or not label:
        return f"empty {label_column if text.strip() else text_column}"
    if len(text) > LONGEST:
        return f"{len(text):,} characters, more than {LONGEST:,}"
    return text, label
