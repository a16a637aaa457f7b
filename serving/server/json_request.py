"""JSON bodies of the REST API's predict requests into arrays.

The formats and the wording of errors are those of TensorFlow Serving (tensorflow_serving/util/json_tensor.cc and
https://www.tensorflow.org/tfx/serving/api_rest): `instances` is the row format, `inputs` the column format,
`{"b64": …}` stands for bytes, NaN and Infinity may stand bare. Large numeric bodies take a short cut: pysimdjson reads
all numbers into one buffer, and the brackets and commas of the text, compared with those that the shape calls for,
prove that the nesting is right.

Deviation: integers that do not fit a narrow input type are refused, where TensorFlow Serving wraps them around.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import simdjson

from serving.server.errors import ServingError, invalid
from serving.server.json_values import MAX_RANK, dense, is_b64, text_of
from serving.server.tensors import Tensor

Inputs = Mapping[str, Tensor]
SHORT_CUT_BYTES = 1024  # below this, orjson and the plain road are faster
_HEAD = re.compile(rb'\s*\{\s*(?:"signature_name"\s*:\s*"([\w.-]*)"\s*,\s*)?"(instances|inputs)"\s*:\s*(?=\[)')
_TAIL = re.compile(rb'\]\s*(?:,\s*"signature_name"\s*:\s*"([\w.-]*)"\s*)?\}\s*$')
_NOT_STRUCTURE = b"0123456789+-.eE \t\r\n"


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object of a body; NaN, Infinity and -Infinity are numbers here, as in TensorFlow Serving."""
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise invalid(f"JSON Parse error: Invalid value. at offset: {getattr(error, 'pos', 0)}") from None
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {text_of(document)} Is not object")
    return document


def signature_name(document: Mapping[str, Any]) -> str:
    """The signature that a document asks for; empty where it names none."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {text_of(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def decode_predict(body: bytes, inputs_of: Callable[[str], Inputs]) -> tuple[str, bool, dict[str, np.ndarray]]:
    """Read the body of a predict request.

    Args:
        body: the JSON text.
        inputs_of: the inputs of a signature, by its name.

    Returns:
        The name of the signature as given, whether the format is that of rows, and the arrays by input name.

    Raises:
        ServingError: INVALID_ARGUMENT, in TensorFlow Serving's wording.
    """
    if len(body) >= SHORT_CUT_BYTES:
        found = _short_cut(body, inputs_of)
        if found is not None:
            return found
    document = parse(body)
    name = signature_name(document)
    inputs = inputs_of(name)
    if not inputs:
        raise invalid(f"Failed to get input map for signature: {name or 'DEFAULT'}")
    if "instances" in document and "inputs" in document:
        raise _malformed(
            document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
        )
    if "instances" in document:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise _malformed(document, "Excepting 'instances' to be an list/array")
        if not instances:
            raise _malformed(document, "No values in 'instances' array")
        return name, True, _rows(instances, inputs)
    if "inputs" in document:
        return name, False, _columns(document["inputs"], inputs)
    raise invalid("Missing 'inputs' or 'instances' key")


def _short_cut(body: bytes, inputs_of: Callable[[str], Inputs]) -> tuple[str, bool, dict[str, np.ndarray]] | None:
    """One numeric input as one nested list, read as a buffer; None where the body is anything else or in doubt."""
    head, tail = _HEAD.match(body), _TAIL.search(body, max(0, len(body) - 200))
    if not head or not tail or (head[1] and tail[1]):
        return None
    name = (head[1] or tail[1] or b"").decode()
    inputs = inputs_of(name)
    if len(inputs) != 1:
        return None
    (tensor,) = inputs.values()
    kind: Any = {"f": "d", "i": "i", "u": "i"}.get(tensor.dtype.numpy.kind)
    if kind is None:
        return None
    text = body[head.end() : tail.start() + 1]
    structure = text.translate(None, _NOT_STRUCTURE)
    shape = _shape_of(structure)
    if shape is None:
        return None
    try:
        numbers: Any = simdjson.Parser().parse(text)
        flat = np.frombuffer(numbers.as_buffer(of_type=kind), np.float64 if kind == "d" else np.int64)
    except (ValueError, TypeError, RuntimeError):
        return None
    limit = 2.0**24 - 1 if tensor.dtype.numpy.itemsize <= 4 else 2.0**53 - 1
    if kind == "i":
        info = np.iinfo(tensor.dtype.numpy)
        low, limit = float(info.min), min(float(info.max), 2.0**53)
    else:
        low = -limit
    if flat.size != int(np.prod(shape)) or not (flat.size and flat.min() >= low and flat.max() <= limit):
        return None  # empty, ragged, or near the limits of the type: the plain road knows what to say
    return name, head[2] == b"instances", {tensor.name: flat.astype(tensor.dtype.numpy).reshape(shape)}


def _shape_of(structure: bytes) -> tuple[int, ...] | None:
    """The shape of a nested list from its brackets and commas alone; None where it is not rectangular."""
    depth = len(structure) - len(structure.lstrip(b"["))
    if depth > MAX_RANK:
        return None
    sizes: list[int] = []
    item = b""
    for closed in range(1, depth + 1):
        end = structure.find(b"]" * closed)
        if end < 0:
            return None
        size, rest = divmod(end + closed - (depth - closed) - 1, len(item) + 1)
        if rest or size < 1:
            return None
        item = b"[" + b",".join([item] * size) + b"]"
        sizes.insert(0, size)
    return tuple(sizes) if item == structure else None


def _rows(instances: list[Any], inputs: Inputs) -> dict[str, np.ndarray]:
    """`instances`: one element for each example, a value where there is one input, else an object by input name."""
    named = isinstance(instances[0], dict) and not is_b64(instances[0])
    if not named:
        if len(inputs) > 1:
            raise invalid(
                "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
                "tensorinfo_map"
            )
        tensor = next(iter(inputs.values()))
        for i, element in enumerate(instances):
            if isinstance(element, dict) and not is_b64(element):
                raise invalid(f"Expecting value/list but got object at item {i} of input list")
        return {tensor.name: _stack(instances, tensor, "")}
    for i, element in enumerate(instances):
        if not isinstance(element, dict) or is_b64(element):
            raise invalid(f"Expecting object but got list at item {i} of input list")
        if element.keys() != inputs.keys():
            unknown = [key for key in element if key not in inputs]
            if unknown:
                raise invalid(
                    f"Failed to process element: {i} key: {unknown[0]} of 'instances' list. Error: INVALID_ARGUMENT: "
                    f"JSON object: does not have named input: {unknown[0]}"
                )
            raise invalid(
                f"Failed to process element: {i} of 'instances' list. JSON object: {text_of(element)} keys must be "
                f"equal to: {','.join(sorted(inputs))}"
            )
    return {n: _stack([element[n] for element in instances], t, f" key: {n}") for n, t in inputs.items()}


def _stack(values: list[Any], tensor: Tensor, key: str) -> np.ndarray:
    """One array of a list of examples; an error says which example it is about."""
    try:
        return dense(values, tensor.dtype)
    except ServingError as error:
        shape: list[int] | None = None
        for i, value in enumerate(values):  # again, one by one, for the message
            try:
                array = dense(value, tensor.dtype)
                if shape is not None and array.size != int(np.prod(shape)):
                    raise invalid(f"Expecting tensor size: {int(np.prod(shape))} but got: {array.size}")
                if shape is not None and list(array.shape) != shape:
                    raise invalid(f"Expecting shape {_shape(shape)} but got: {_shape(array.shape)}")
                shape = list(array.shape)
            except ServingError as inner:
                raise invalid(
                    f"Failed to process element: {i}{key} of 'instances' list. Error: {inner.code}: {inner.message}"
                ) from None
        raise error


def _columns(value: Any, inputs: Inputs) -> dict[str, np.ndarray]:
    """`inputs`: a whole tensor where there is one input, else an object of tensors by input name."""
    if isinstance(value, dict) and not is_b64(value):
        for name in inputs:
            if name not in value:
                raise invalid(f"Missing named input: {name} in 'inputs' object.")
        return {name: dense(value[name], tensor.dtype) for name, tensor in inputs.items()}
    if len(inputs) > 1:
        raise invalid(
            "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
            "tensorinfo_map"
        )
    (tensor,) = inputs.values()
    return {tensor.name: dense(value, tensor.dtype)}


def _shape(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _malformed(document: Any, message: str) -> ServingError:
    return invalid(f"JSON Value: {text_of(document)} {message}")
