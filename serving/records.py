"""What the client asks with: files, folders of files and CSV files as examples of a model's inputs."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config import UsageError, nearest
from serving.server.tensors import Tensor
from serving.transports import Signature

Record = tuple[str, dict[str, Any]]


def records(paths: Sequence[str], signature: Signature) -> Iterator[Record]:
    """What to ask, from files, folders and CSV files: a name for people, and one example by input name.

    Raises:
        UsageError: a path does not exist, holds nothing, or does not fit the inputs of the signature.
    """
    for given in paths:
        path = Path(given)
        if not path.exists():
            raise UsageError(f"Expected a file or a folder. Received: {given}")
        hidden = (part for part in sorted(path.rglob("*")) if part.is_file() and not part.name.startswith("."))
        files = list(hidden) if path.is_dir() else [path]
        if not files:
            raise UsageError(f"Expected files in the folder. Received: {given}, which is empty")
        for file in files:
            name = str(file.relative_to(path)) if path.is_dir() else file.name
            if file.suffix.lower() == ".csv":
                yield from _rows(file, name, signature)
            else:
                yield name, _file(file, signature)


def texts(given: Sequence[str], signature: Signature) -> Iterator[Record]:
    """What to ask, from the command line: texts, or one example as NAME=VALUE where a signature has several inputs.

    Raises:
        UsageError: the signature does not take strings, or a value of one of its inputs is missing or does not fit.
    """
    inputs = signature.inputs
    if "string" not in [tensor.dtype.short for tensor in inputs.values()]:
        received = ", ".join(f"{name} ({tensor.dtype.short})" for name, tensor in inputs.items())
        raise UsageError(f"Expected a signature with an input of strings for --text. Received: one of {received}")
    if len(inputs) == 1:
        for text in given:
            yield _shortened(text), dict.fromkeys(inputs, text)
        return
    values = {name: value for name, equals, value in (one.partition("=") for one in given) if equals}
    if values.keys() != inputs.keys() or len(given) != len(inputs):
        wanted = " ".join(f"{name}=VALUE" for name in inputs)
        unknown = next((name for name in values if name not in inputs), "")
        raise UsageError(f"Expected --text {wanted}.{nearest(unknown, inputs)} Received: {' '.join(given)}")
    try:
        example = {name: _cell(values[name], tensor) for name, tensor in inputs.items()}
    except ValueError as error:
        raise UsageError(f"Expected numbers where an input takes them. Received: {error}") from None
    yield _shortened(values[next(iter(inputs))]), example


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"


def _file(file: Path, signature: Signature) -> dict[str, Any]:
    """One file as one example: the bytes for a string input, the array of an .npy file for a numeric one."""
    if len(signature.inputs) != 1:
        raise UsageError(f"Expected a CSV file with the columns {', '.join(signature.inputs)}. Received: {file}")
    ((name, tensor),) = signature.inputs.items()
    if file.suffix.lower() == ".npy":
        return {name: np.load(file, allow_pickle=False)}
    if tensor.dtype.short != "string":
        raise UsageError(
            f"Expected a CSV or .npy file for input {name!r} of type {tensor.dtype.short}. Received: {file}"
        )
    return {name: file.read_bytes()}


def _rows(file: Path, name: str, signature: Signature) -> Iterator[Record]:
    """The rows of a CSV file with a header."""
    with file.open(newline="", encoding="utf-8-sig") as text:
        reader = csv.DictReader(text)
        columns = list(reader.fieldnames or ())
        missing = [key for key in signature.inputs if key not in columns]
        only, *others = signature.inputs.values()
        wide = only.dtype.short != "string" and (only.shape is None or len(only.shape) == 2)
        features = bool(missing) and wide and not others  # one input (b, d): a row is its features
        if missing and not features:
            raise UsageError(
                f"Expected the columns {', '.join(signature.inputs)} in {file}.{nearest(missing[0], columns)} "
                f"Received: {', '.join(columns) or 'an empty file'}"
            )
        for number, row in enumerate(reader, start=2):
            try:
                if features:
                    yield f"{name}:{number}", {only.name: [_value(row[column], only) for column in columns]}
                else:
                    yield f"{name}:{number}", {key: _cell(row[key], tensor) for key, tensor in signature.inputs.items()}
            except (TypeError, ValueError) as error:
                raise UsageError(f"Expected numbers in line {number} of {file}. Received: {error}") from None


def _value(text: str, tensor: Tensor) -> Any:
    """A cell in the type of an input."""
    kind = tensor.dtype.numpy.kind
    return text if kind == "O" else int(text) if kind in "iub" else float(text)


def _cell(text: str, tensor: Tensor) -> Any:
    """A cell as an example of its input: a list of one where the input is (b, 1)."""
    value = _value(text, tensor)
    return [value] if tensor.shape is not None and len(tensor.shape) == 2 else value


def batches(asked: Iterator[Record], signature: Signature, size: int) -> Iterator[list[Record]]:
    """Examples in groups of one shape; alone where an input has no free first dimension."""
    free = all(t.shape is None or (t.shape and t.shape[0] == -1) for t in signature.inputs.values())
    group: list[Record] = []
    for record in asked:
        same = group and all(np.shape(group[0][1][key]) == np.shape(value) for key, value in record[1].items())
        if group and (not same or len(group) >= size or not free):
            yield group
            group = []
        group.append(record)
    if group:
        yield group
