"""The user's tagged texts: CoNLL and JSONL files, one by itself, or those of train, validation and test in a folder.

CoNLL has a word and its tag in each line, in columns apart by tabs or blanks, and an empty line after a sentence; lines
with `-DOCSTART-` are left out. `.conllu` files have their words in the second and parts of speech in the fourth column.
JSONL has an object in each line: `tokens` and `tags`, or `text` and `entities`, each of which is [start, end, label] or
an object with these keys, in code points.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipelines.config import Failure, UsageError, nearest
from pipelines.datasets.folders import SPLIT_NAMES, visible
from pipelines.datasets.tables import left_out
from pipelines.datasets.tag_schemes import Example, Span

COLUMNS = (".conll", ".conllu", ".txt", ".bio", ".iob", ".iob2", ".tsv")
OBJECTS = (".jsonl", ".ndjson")
TEXT_NAMES = ("tokens", "words", "text", "sentence", "content")
TAG_NAMES = ("tags", "ner_tags", "ner", "entities", "labels", "spans", "slots", "pos_tags", "pos", "upos")
Row = tuple[int, Example | str]  # the number of a line, and what it begins: a text, or a word of what is wrong with it


def read_files(
    data_dir: str, text_column: str | None, tags_column: str | None, skip_bad: bool
) -> tuple[dict[str, list[Example]], str]:
    """The texts of each split that is there, of which `train` is one, and a line that says what they are.

    Raises:
        UsageError: no such file, no training file, or a column that is not there.
        Failure: a file that is not of its format, bad texts (unless `skip_bad`), or none.
    """
    found: dict[str, list[Example]] = {}
    root = Path(data_dir).expanduser()
    for split, path in split_files(root).items():
        good: list[Example] = []
        bad: list[str] = []
        read = objects if path.suffix.lower() in OBJECTS else sentences
        for number, row in decoded(path, read(path, text_column, tags_column)):
            if isinstance(row, str):
                bad.append(f"line {number} ({row})")
            else:
                good.append(row)
        left_out(path, bad, len(good) + len(bad), "words with their tags", skip_bad)
        if not good:
            raise Failure(f"Expected tagged texts in {path.name}. Received: none")
        found[split] = good
    total = sum(map(len, found.values()))
    return found, f"{total} texts of {root.name}"


def split_files(root: Path) -> dict[str, Path]:
    """The file of each split: the file itself, the only one of the folder, or those named as splits."""
    known = ", ".join((*COLUMNS, *OBJECTS))
    if root.is_file():
        if root.suffix.lower() not in (*COLUMNS, *OBJECTS):
            raise UsageError(f"Expected a file of {known}. Received: {root.name!r}")
        return {"train": root}
    if not root.is_dir():
        raise UsageError(f"Expected --data_dir to be a file ({known}) or a folder. Received: '{root}'")
    files = [path for path in visible(root) if path.suffix.lower() in (*COLUMNS, *OBJECTS)]
    if len(files) == 1:
        return {"train": files[0]}
    stems = {path.stem.lower(): path for path in files}
    found = {split: next((stems[n] for n in names if n in stems), None) for split, names in SPLIT_NAMES.items()}
    if found["train"] is None:
        names = ", ".join(path.name for path in visible(root)[:5]) or "an empty folder"
        raise UsageError(f"Expected one tagged file in {root}, or train, validation and test files. Received: {names}")
    return {split: path for split, path in found.items() if path}


def decoded(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    """Rows, with the line named in which a file stops being UTF-8."""
    number = 0
    try:
        for number, row in rows:
            yield number, row
    except UnicodeDecodeError as error:
        byte = f"0x{error.object[error.start]:02x}"
        raise Failure(f"Expected UTF-8 in {path.name}. Received: the byte {byte} after line {number}") from error


def sentences(path: Path, text_column: str | None, tags_column: str | None) -> Iterator[Row]:
    """The sentences of a CoNLL file with the number of their first line."""
    universal = path.suffix.lower() == ".conllu"
    token = place_of(text_column or ("2" if universal else "1"), "text")
    tag = place_of(tags_column or ("4" if universal else "-1"), "tags")
    needed = max(2, *(one + 1 if one >= 0 else -one for one in (token, tag)))
    tokens: list[str] = []
    tags: list[str] = []
    begin, wrong = 0, ""
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate([*file, ""], 1):
            columns = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
            if not line.strip() or columns[0] == "-DOCSTART-":
                if tokens or wrong:
                    yield begin, wrong or Example(tokens, tags, [])
                tokens, tags, begin, wrong = [], [], 0, ""
                continue
            if universal and (line.startswith("#") or not columns[0].isdigit()):
                continue
            begin = begin or number
            if len(columns) < needed:
                wrong = wrong or f"line {number} has {len(columns)} of {needed} columns"
            elif not columns[token].strip() or not columns[tag].strip():
                wrong = wrong or f"line {number} has an empty column"
            else:
                tokens.append(columns[token])
                tags.append(columns[tag].strip())


def place_of(column: str, what: str) -> int:
    """The index of a column that is told by its number, from 1, or from the end."""
    try:
        number = int(column)
    except ValueError:
        number = 0
    if number == 0:
        raise UsageError(f"Expected --{what}_column as the number of a column, from 1. Received: {column!r}")
    return number - (number > 0)


def objects(path: Path, text_column: str | None, tags_column: str | None) -> Iterator[Row]:
    """The texts of a JSONL file with the number of their line."""
    text = tags = ""
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                yield number, "not a JSON object"
                continue
            text = text or key(path, list(row), text_column, TEXT_NAMES, "text")
            tags = tags or key(path, list(row), tags_column, TAG_NAMES, "tags")
            if row.get(text) is None or row.get(tags) is None:
                yield number, f"no {text if row.get(text) is None else tags}"
            else:
                yield number, example(row[text], row[tags], text, tags)


def key(path: Path, there: Sequence[str], given: str | None, names: Sequence[str], what: str) -> str:
    """The key that is named, or else the first of `names`."""
    found = next((name for name in ([given] if given else names) if name in there), None)
    if found is None:
        expected = f"--{what}_column with" if given else f"{', '.join(names[:4])}, … or --{what}_column with"
        raise UsageError(
            f"Expected {expected} a key of {path.name}.{nearest(given or what, there)} "
            f"Received: {repr(given) + ' for ' if given else ''}{', '.join(there)}"
        )
    return found


def example(text: Any, tags: Any, text_key: str, tags_key: str) -> Example | str:
    """A text, or what is wrong with it."""
    if isinstance(text, list):
        if not text or not all(isinstance(token, str) and token.strip() for token in text):
            return f"{text_key} are not all words"
        if not isinstance(tags, list) or not all(isinstance(tag, str) and tag for tag in tags):
            return f"{tags_key} are not all names of tags"
        if len(tags) != len(text):
            return f"{len(text)} {text_key} and {len(tags)} {tags_key}"
        return Example(text, tags, [])
    if not isinstance(text, str) or not text.strip():
        return f"{text_key} is no text"
    if not isinstance(tags, list):
        return f"{tags_key} is no list"
    spans = []
    for one in tags:
        parts = [one.get(name) for name in Span._fields] if isinstance(one, dict) else one
        if not isinstance(parts, list) or len(parts) != 3 or [type(part) for part in parts] != [int, int, str]:
            return f"{json.dumps(one, ensure_ascii=False)[:60]} is no [start, end, label]"
        if not 0 <= parts[0] < parts[1] <= len(text) or not parts[2] or not text[parts[0] : parts[1]].strip():
            return f"{json.dumps(parts, ensure_ascii=False)[:60]} is no part of a text of {len(text)} characters"
        spans.append(Span(*parts))
    spans.sort()
    for before, after in pairwise(spans):
        if before.end > after.start:
            return f"{list(before)} and {list(after)} overlap"
    return Example([text], None, spans)
