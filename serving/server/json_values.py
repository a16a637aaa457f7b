"""One JSON value, a scalar or a nested list, into a dense array of a given type."""

from __future__ import annotations

import binascii
import itertools
import json
from base64 import b64decode
from typing import Any

import numpy as np

from serving.server.errors import ServingError, invalid
from serving.server.tensors import DType

MAX_RANK = 32
_JSON_TYPES = {
    type(None): "Null",
    dict: "Object",
    list: "Array",
    str: "String",
    int: "Number",
    float: "Number",
}


def is_b64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def dense(value: Any, dtype: DType) -> np.ndarray:
    """The array of a scalar or of a rectangular nested list.

    Raises:
        ServingError: INVALID_ARGUMENT where a list is ragged, too deep, or holds a value of another type.
    """
    shape = []
    first = value
    while isinstance(first, list):
        shape.append(len(first))
        if not first:
            break
        first = first[0]
    if len(shape) > MAX_RANK:
        raise invalid(f"Encountered lists nested {len(shape)} deep, expected at most {MAX_RANK}")
    flat = [value]
    for level, size in enumerate(shape):
        for part in flat:
            if not isinstance(part, list):
                raise invalid(
                    f"JSON Value: {text_of(part)} found at incorrect level: {level + 1} in the JSON DOM. Expected at "
                    f"level: {len(shape)}"
                )
            if len(part) != size:
                raise invalid(
                    f"Encountered list at unexpected size: {len(part)} at level: {level} expected size: {size}"
                )
        flat = list(itertools.chain.from_iterable(flat))
    if list in set(map(type, flat)):
        raise invalid(f"Encountered list at unexpected level: {len(shape)} expected < {len(shape)}")
    return _values(flat, dtype).reshape(shape)


def _values(flat: list[Any], dtype: DType) -> np.ndarray:
    """A flat array of JSON values, each checked against the type."""
    kind = dtype.numpy.kind if dtype.short != "bfloat16" else "f"
    allowed = {"f": (int, float), "i": (int,), "u": (int,), "b": (bool,), "O": (str, dict)}[kind]
    if not set(map(type, flat)).issubset(allowed):
        wrong = next(v for v in flat if type(v) not in allowed)
        raise _type_error(wrong, dtype)
    if kind == "O":
        array = np.empty(len(flat), object)
        array[:] = [v.encode() if isinstance(v, str) else bytes_of(v) for v in flat]
        return array
    if kind in "iu":
        info = np.iinfo(dtype.numpy)
        for number in (min(flat, default=0), max(flat, default=0)):
            if not info.min <= number <= info.max:
                raise _type_error(number, dtype)
    elif kind == "f":
        single = dtype.numpy.itemsize <= 4
        digits = 2 ** (24 if single else 53) - 1
        beyond = 3.4028235677973366e38 if single else float("inf")  # from here on, rounding gives infinity
        for number in [number for number in flat if not -digits <= number <= digits]:
            if type(number) is int or beyond <= abs(number) < float("inf"):
                raise invalid(
                    f"Cannot convert JSON value: {text_of(number)} to {'float' if single else 'double'} "
                    "without loss of precision."
                )
    return np.array(flat, dtype.numpy)


def bytes_of(value: Any) -> bytes:
    """The bytes of a `{"b64": …}` object; the padding may be missing."""
    if not is_b64(value):
        raise invalid(f"JSON Value: {text_of(value)} not formatted correctly for base64 data")
    text = value["b64"].rstrip("=")
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None


def text_of(value: Any) -> str:
    """A value as messages quote it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else text[:200] + "…"


def _type_error(value: Any, dtype: DType) -> ServingError:
    kind = {True: "True", False: "False"}[value] if isinstance(value, bool) else _JSON_TYPES[type(value)]
    return invalid(f"JSON Value: {text_of(value)} Type: {kind} is not of expected type: {dtype.short}")
