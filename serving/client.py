"""Asks a model server, the embedded one or `tensorflow_model_server`, over REST or gRPC.

    python -m serving.client --rest http://localhost:8501 --model image_classification digit.png folder/ rows.csv

Inputs are files, folders of files, and CSV files. The server's metadata say what the model wants: a string input gets
the bytes of each file, or a column of a CSV file; numeric inputs get CSV columns of their names, all columns as one
row of features, or the array of an .npy file. Prints a table (name, label, probability), or JSON lines with `--json`.
Over REST nothing here needs TensorFlow; over gRPC the official messages do, and their import takes a few seconds.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config import Parser, UsageError, guarded, nearest
from serving.transports import Grpc, Rest, Signature, as_array


class Client:
    """A model of a server.

        client = Client(rest="http://localhost:8501", model="digits")
        client.predict({"image": [open("digit.png", "rb").read()]})["label"]

    Args:
        rest: address of the REST API.
        grpc: host and port of the gRPC service; exactly one of the two.
        model: its name.
        version: a version number; by default the latest.
        label: a version label instead.
        timeout: seconds to wait for an answer.

    Raises:
        UsageError: both or no address, or both a version and a label.
    """

    def __init__(
        self,
        *,
        model: str,
        rest: str | None = None,
        grpc: str | None = None,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 30.0,
    ):
        if (rest is None) == (grpc is None):
            raise UsageError(f"Expected one address, of REST or of gRPC. Received: {rest} and {grpc}")
        if version is not None and label is not None:
            raise UsageError(f"Expected a version or a label. Received: {version} and {label!r}")
        self.model, self.version, self.label = model, version, label
        self._signatures: dict[str, Signature] | None = None
        self._transport: Any = Rest(rest, timeout) if rest is not None else Grpc(str(grpc), timeout)

    def metadata(self) -> dict[str, Signature]:
        """The signatures of the model, by name; asked for once.

        Raises:
            ServerError: the server is not there or does not know the model.
        """
        if self._signatures is None:
            self._signatures = self._transport.metadata(self)
        return self._signatures

    def signature(self, name: str = "serving_default") -> Signature:
        """One signature of the model.

        Raises:
            UsageError: the model has no such signature.
        """
        found = self.metadata()
        if name not in found:
            raise UsageError(
                f"Expected a signature of {self.model}, one of {', '.join(found)}.{nearest(name, found)} "
                f"Received: {name!r}"
            )
        return found[name]

    def predict(self, inputs: Mapping[str, Any], signature: str = "serving_default") -> dict[str, np.ndarray]:
        """The outputs by name; strings are object arrays of bytes, over REST as over gRPC.

        Args:
            inputs: arrays, lists or scalars by input name; they are brought to the type of the input.
            signature: which function of the model.

        Raises:
            UsageError: the names or values do not fit the signature.
            ServerError: the server refused, with its own words.
        """
        wanted = self.signature(signature)
        if inputs.keys() != wanted.inputs.keys():
            raise UsageError(
                f"Expected the inputs {', '.join(wanted.inputs)} of {signature}. "
                f"Received: {', '.join(inputs) or 'none'}"
            )
        arrays = {name: as_array(value, wanted.inputs[name]) for name, value in inputs.items()}
        return self._transport.predict(self, signature, wanted, arrays)

    def status(self) -> list[dict[str, Any]]:
        """The versions of the model, as `{"version": 1, "state": "AVAILABLE", "error": ""}`.

        Raises:
            ServerError: the server is not there or does not know the model.
        """
        return self._transport.status(self)

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


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
        features = (
            len(signature.inputs) == 1 and missing and next(iter(signature.inputs.values())).dtype.short != "string"
        )
        if missing and not features:
            raise UsageError(
                f"Expected the columns {', '.join(signature.inputs)} in {file}.{nearest(missing[0], columns)} "
                f"Received: {', '.join(columns) or 'an empty file'}"
            )
        for number, row in enumerate(reader, start=2):
            try:
                if features:
                    yield f"{name}:{number}", {missing[0]: [float(row[column]) for column in columns]}
                else:
                    yield f"{name}:{number}", {key: _cell(row[key], tensor) for key, tensor in signature.inputs.items()}
            except (TypeError, ValueError) as error:
                raise UsageError(f"Expected numbers in line {number} of {file}. Received: {error}") from None


def _cell(text: str, tensor: Any) -> Any:
    """A cell in the type of its input; inputs of shape (b, 1) get a list of one."""
    kind = tensor.dtype.numpy.kind
    value: Any = text if kind == "O" else int(text) if kind in "iub" else float(text)
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


def answers(client: Client, paths: Sequence[str], signature: str, size: int) -> Iterator[dict[str, Any]]:
    """The outputs of each example, with its name."""
    wanted = client.signature(signature)
    for group in batches(records(paths, wanted), wanted, size):
        names = [name for name, _ in group]
        outputs = client.predict({key: [values[key] for _, values in group] for key in wanted.inputs}, signature)
        for i, name in enumerate(names):
            yield {"name": name} | {key: array[i] if array.ndim else array for key, array in outputs.items()}


def summary(answer: Mapping[str, Any]) -> dict[str, str]:
    """A row of the table: name, label and top probability of a classifier, short outputs of anything else."""
    row = {"name": str(answer["name"])}
    scores = next((answer[key] for key in ("probabilities", "scores") if key in answer), None)
    if isinstance(scores, np.ndarray) and scores.ndim == 1 and scores.size:
        label = next((answer[key] for key in ("label", "class") if key in answer), str(int(np.argmax(scores))))
        return row | {"label": _text(label), "probability": f"{float(np.max(scores)):.4f}"}
    return row | {key: _text(value) for key, value in answer.items() if key != "name"}


def _text(value: Any) -> str:
    value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    if isinstance(value, list):
        words = [_text(item) for item in value[:6]] + (["…"] if len(value) > 6 else [])
        return f"[{' '.join(words)}]"
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")[:60]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """What JSON can hold: text where bytes are UTF-8, base64 objects elsewhere."""
    value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"b64": b64encode(value).decode()}
    return value


def ask(flags: argparse.Namespace) -> None:
    """The command: ask, and print a table or JSON lines."""
    if not flags.model:
        raise UsageError("Expected --model NAME. Received: none")
    if flags.batch_size < 1:
        raise UsageError(f"Expected --batch_size of at least 1. Received: {flags.batch_size}")
    if flags.rest is None and flags.grpc is None:
        flags.rest = "http://localhost:8501"
    client = Client(
        model=flags.model,
        rest=flags.rest,
        grpc=flags.grpc,
        version=flags.version,
        label=flags.label,
        timeout=flags.timeout,
    )
    found = answers(client, flags.inputs, flags.signature, flags.batch_size)
    if flags.json:
        for answer in found:
            print(json.dumps({key: _plain(value) for key, value in answer.items()}), flush=True)
        return
    rows = [summary(answer) for answer in found]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    widths = [max(len(column), *(len(row.get(column, "")) for row in rows)) for column in columns]
    for line in [dict(zip(columns, columns)), *rows]:
        print("  ".join(line.get(column, "").ljust(width) for column, width in zip(columns, widths)).rstrip())


def parser() -> Parser:
    """The command line."""
    result = Parser(
        prog="python -m serving.client",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="files, folders of files, CSV files")
    add("--rest", metavar="URL", help="address of the REST API (default http://localhost:8501)")
    add("--grpc", metavar="HOST:PORT", help="address of the gRPC service instead")
    add("--model", metavar="NAME", help="the model's name on the server")
    add("--version", type=int, metavar="N", help="a version; by default the latest")
    add("--label", metavar="NAME", help="a version label instead")
    add("--signature", default="serving_default", metavar="NAME", help="which function of the model")
    add("--batch_size", type=int, default=32, metavar="N", help="examples per request")
    add("--timeout", type=float, default=30.0, metavar="SECONDS", help="wait this long for an answer")
    add("--json", action="store_true", help="print a JSON object per example, with every output")
    add("--verbose", action="store_true", help="show the traceback of an error")
    return result


if __name__ == "__main__":
    sys.exit(guarded(lambda: ask(parser().parse_args()), verbose="--verbose" in sys.argv))
