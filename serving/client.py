"""Asks a model server, the embedded one or `tensorflow_model_server`, over REST or gRPC.

    python -m serving.client --rest http://localhost:8501 --model image_classification digit.png folder/ rows.csv
    python -m serving.client --model text_classification --text "a film to see twice" "never again"
    python -m serving.client --model question_answering --text question="Who sings?" context="Ada sings. Bo plays."

Inputs are files, folders of files, CSV files, and with `--text` the texts themselves, or one example as NAME=VALUE
where a model has several inputs. The server's metadata say what the model wants: a string input gets the bytes of each
file, or a column of a CSV file; numeric inputs get CSV columns of their names, all columns as one row of features, or
the array of an .npy file.
Prints a table (name, label, probability), or JSON lines with `--json`.
An input that the model refuses has the reason in its row; the others are answered, and the exit code is 1.
Over REST nothing here needs TensorFlow; over gRPC the official messages do, and their import takes a few seconds.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from pipelines.config import Failure, Parser, UsageError, guarded, nearest
from serving.records import Record, batches, records, texts
from serving.transports import Grpc, Rest, ServerError, Signature, as_array


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


def answers(
    client: Client, paths: Sequence[str], signature: str, size: int, given: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """The outputs of each example, with its name; of one that the model refuses, the reason as the text `error`."""
    wanted = client.signature(signature)
    for group in batches(chain(records(paths, wanted), texts(given, wanted) if given else ()), wanted, size):
        yield from _asked(client, group, wanted, signature)


def _asked(client: Client, group: Sequence[Record], wanted: Signature, signature: str) -> Iterator[dict[str, Any]]:
    """The answers to one request, or to one request for each example where the model refuses them together."""
    try:
        outputs = client.predict({key: [values[key] for _, values in group] for key in wanted.inputs}, signature)
    except ServerError as error:
        if error.status not in (400, "INVALID_ARGUMENT"):
            raise
        if len(group) == 1:
            yield {"name": group[0][0], "error": reason(error)}
        else:
            for record in group:
                yield from _asked(client, [record], wanted, signature)
        return
    for i, (name, _) in enumerate(group):
        yield {"name": name} | {key: array[i] if array.ndim else array for key, array in outputs.items()}


def reason(error: ServerError) -> str:
    """What a server says of an input: its first line, without the names of TensorFlow's nodes and the code."""
    words = re.sub(r"\{\{.*?\}\}", "", str(error))
    return re.split(r"\n|\[\[| \((?:HTTP|gRPC) \w+\)$", words.strip())[0].strip()


def refused(answer: Mapping[str, Any]) -> bool:
    """Whether an answer is a reason: an output of the model is never a text, but bytes."""
    return isinstance(answer.get("error"), str)


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
    """The command: ask, and print a table or JSON lines.

    Raises:
        UsageError: the flags or inputs are wrong.
        Failure: the server is not there, or refused some of the inputs.
    """
    if not flags.model:
        raise UsageError("Expected --model NAME. Received: none")
    if not flags.inputs and not flags.text:
        raise UsageError("Expected files, folders or --text TEXT. Received: none")
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
    rows, bad = [], 0
    for answer in answers(client, flags.inputs, flags.signature, flags.batch_size, flags.text):
        bad += refused(answer)
        rows.append(summary(answer))
        if flags.json:
            print(json.dumps({key: _plain(value) for key, value in answer.items()}), flush=True)
    if not flags.json:
        columns = sorted(dict.fromkeys(key for row in rows for key in row), key="error".__eq__)  # reasons stand last
        widths = [max(len(column), *(len(row.get(column, "")) for row in rows)) for column in columns]
        for line in [dict(zip(columns, columns)), *rows]:
            print("  ".join(line.get(column, "").ljust(width) for column, width in zip(columns, widths)).rstrip())
    if bad:
        raise Failure(f"Expected an answer to each of the {len(rows)} inputs. Received: {bad} refused, named above")


def parser() -> Parser:
    """The command line."""
    result = Parser(
        prog="python -m serving.client",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="files, folders of files, CSV files")
    add("--text", nargs="+", default=[], metavar="TEXT", help="texts to ask about, or NAME=VALUE of several inputs")
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
