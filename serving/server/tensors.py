"""Tensors of the wire: data types, descriptions of inputs and outputs, and TensorProto from and to NumPy arrays.

Nothing here imports TensorFlow: a TensorProto is read and written by its fields. Answers use the typed fields
(`float_val`, …) and not `tensor_content`, as TensorFlow Serving does, because many clients read `float_val` directly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from serving.server.errors import ServingError, invalid


@dataclass(frozen=True)
class DType:
    """A data type: its number in types.proto, its two names, the NumPy type, the typed field of a TensorProto."""

    number: int
    name: str  # DT_FLOAT, as metadata spell it
    short: str  # float, as error messages spell it
    numpy: Any
    field: str


_TABLE = (
    (1, "DT_FLOAT", "float", np.float32, "float_val"),
    (2, "DT_DOUBLE", "double", np.float64, "double_val"),
    (3, "DT_INT32", "int32", np.int32, "int_val"),
    (4, "DT_UINT8", "uint8", np.uint8, "int_val"),
    (5, "DT_INT16", "int16", np.int16, "int_val"),
    (6, "DT_INT8", "int8", np.int8, "int_val"),
    (7, "DT_STRING", "string", object, "string_val"),
    (9, "DT_INT64", "int64", np.int64, "int64_val"),
    (10, "DT_BOOL", "bool", np.bool_, "bool_val"),
    (14, "DT_BFLOAT16", "bfloat16", ml_dtypes.bfloat16, "half_val"),
    (17, "DT_UINT16", "uint16", np.uint16, "int_val"),
    (19, "DT_HALF", "half", np.float16, "half_val"),
    (22, "DT_UINT32", "uint32", np.uint32, "uint32_val"),
    (23, "DT_UINT64", "uint64", np.uint64, "uint64_val"),
)
DTYPES = {row[0]: DType(row[0], row[1], row[2], np.dtype(row[3]), row[4]) for row in _TABLE}
BY_NAME = {dtype.name: dtype for dtype in DTYPES.values()}
BY_NUMPY = {dtype.numpy: dtype for dtype in DTYPES.values()}
_PACKED_TAG = {"float_val": b"\x2a", "double_val": b"\x32"}  # fields 5 and 6, wire type 2


@dataclass(frozen=True)
class Tensor:
    """An input or output of a signature: `shape` is None where the rank is unknown, sizes are -1 where unknown."""

    name: str
    dtype: DType
    shape: tuple[int, ...] | None


def dtype_of(number: int) -> DType:
    """The data type of this number.

    Raises:
        ServingError: UNIMPLEMENTED for types that have no NumPy counterpart.
    """
    if number not in DTYPES:
        raise ServingError("UNIMPLEMENTED", f"Tensors of data type {number} are not supported")
    return DTYPES[number]


def decode(proto: Any, name: str = "") -> np.ndarray:
    """The array of a TensorProto; strings become an object array of bytes.

    As in TensorFlow, fewer values than elements mean that the last one is repeated, none mean zeros.

    Raises:
        ServingError: INVALID_ARGUMENT where the values do not fit the shape.
    """
    dtype = dtype_of(proto.dtype)
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    count = math.prod(shape)
    if any(size < 0 for size in shape) or proto.tensor_shape.unknown_rank:
        raise invalid(f"tensor parsing error: {name}")
    if proto.tensor_content and dtype.field != "string_val":
        if len(proto.tensor_content) != count * dtype.numpy.itemsize:
            raise invalid(f"tensor parsing error: {name}")
        return np.frombuffer(proto.tensor_content, dtype.numpy).reshape(shape)
    values = getattr(proto, dtype.field)
    if len(values) > count:
        raise invalid(f"tensor parsing error: {name}")
    if dtype.field == "string_val":
        flat = np.empty(count, object)
        flat[:] = [*values, *[values[-1] if values else b""] * (count - len(values))]
        return flat.reshape(shape)
    if dtype.field == "half_val":
        flat = np.fromiter(values, np.uint16, len(values)).view(dtype.numpy)
    else:
        flat = np.fromiter(values, dtype.numpy, len(values))
    if len(flat) < count:
        flat = np.pad(flat, (0, count - len(flat)), mode="edge") if len(flat) else np.zeros(count, dtype.numpy)
    return flat.reshape(shape)


def encode(array: np.ndarray, proto: Any) -> None:
    """Write an array into an empty TensorProto."""
    array = np.asarray(array)
    dtype = BY_NUMPY.get(array.dtype)
    if dtype is None:
        raise ServingError("UNIMPLEMENTED", f"Outputs of type {array.dtype} are not supported")
    proto.dtype = dtype.number
    if array.ndim == 0:
        proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    tag = _PACKED_TAG.get(dtype.field)
    if tag:  # packed floats on the wire are the bytes of the array: merged whole, not value by value
        raw = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        proto.MergeFromString(tag + _varint(len(raw)) + raw)
    elif dtype.field == "half_val":
        proto.half_val.extend(np.ascontiguousarray(array).reshape(-1).view(np.uint16).tolist())
    elif dtype.field == "string_val":
        proto.string_val.extend(v if isinstance(v, bytes) else str(v).encode() for v in array.ravel().tolist())
    else:
        getattr(proto, dtype.field).extend(array.ravel().tolist())


def _varint(number: int) -> bytes:
    """A length as protocol buffers write it: seven bits a byte, lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
