"""Arrays into the JSON answers of the REST API's predict requests.

As in TensorFlow Serving: `{"predictions": […]}` answers rows and `{"outputs": …}` columns, a single output stands
without its name, string outputs whose name ends in `_bytes` come back as `{"b64": …}`, floats have the fewest digits
that read back as the same float, NaN, Infinity and -Infinity are written bare.

Deviation: string outputs that are not UTF-8 get replacement characters, where TensorFlow Serving writes invalid JSON.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson

from serving.server.errors import invalid


def encode_predict(row_format: bool, outputs: Mapping[str, np.ndarray]) -> bytes:
    """The JSON answer: `{"predictions": […]}` for rows, `{"outputs": …}` for columns; one output stands alone.

    Raises:
        ServingError: INVALID_ARGUMENT for rows whose outputs have no or different batch sizes.
    """
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")
    if not row_format:
        values = {name: plain(name, array) for name, array in outputs.items()}
        return dumps({"outputs": next(iter(values.values())) if len(values) == 1 else values})
    rows = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if rows is not None and len(array) != rows:
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {rows}")
        rows = len(array)
    if len(outputs) == 1:
        return dumps({"predictions": next(plain(name, array) for name, array in outputs.items())})
    columns = [list(plain(name, array)) for name, array in outputs.items()]
    return dumps({"predictions": [dict(zip(outputs, row)) for row in zip(*columns)]})


def encode_results(results: list[Any]) -> bytes:
    """The JSON answer to classify (label and score of each class of each example) and to regress (values)."""
    if results and isinstance(results[0], list):
        rows = []
        for example in results:
            labels, scores = zip(*example) if example else ((), ())
            rows.append([*map(list, zip(map(_as_text, labels), _floats(scores)))])
        return dumps({"results": rows})
    return dumps({"results": _floats(results)})


def _floats(values: Any) -> Any:
    return plain("", np.asarray(values, np.float32))


def plain(name: str, array: np.ndarray) -> Any:
    """What orjson writes for an output: the array itself where it can, else nested lists."""
    kind = array.dtype.kind
    if kind == "V":  # bfloat16
        array, kind = array.astype(np.float32), "f"
    if kind == "O":
        write: Callable[[Any], Any] = _as_b64 if name.endswith("_bytes") else _as_text
        return _nested([write(v) for v in array.ravel().tolist()], array.shape)
    if kind == "f" and not np.isfinite(array).all():
        finite = orjson.dumps(np.where(np.isfinite(array), array, 0).ravel(), option=orjson.OPT_SERIALIZE_NUMPY)
        words = dict.fromkeys(np.flatnonzero(np.isnan(array)).tolist(), b"NaN")
        words |= dict.fromkeys(np.flatnonzero(np.isposinf(array)).tolist(), b"Infinity")
        words |= dict.fromkeys(np.flatnonzero(np.isneginf(array)).tolist(), b"-Infinity")
        tokens = [orjson.Fragment(words.get(i, token)) for i, token in enumerate(finite[1:-1].split(b","))]
        return _nested(tokens, array.shape)
    if array.ndim == 0:
        return array[()]
    if array.size == 0:
        return array.tolist()
    return np.ascontiguousarray(array)


def dumps(value: Any) -> bytes:
    """JSON of plain values and arrays."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _nested(flat: list[Any], shape: tuple[int, ...]) -> Any:
    """A flat list as nested lists of this shape; of no dimensions: the value."""
    array = np.empty(len(flat), object)
    array[:] = flat
    return array.reshape(shape).tolist()


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _as_b64(value: Any) -> dict[str, str]:
    return {"b64": b64encode(value if isinstance(value, bytes) else str(value).encode()).decode()}
