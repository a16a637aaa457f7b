"""The JSON body of classify and regress requests as `tensorflow.serving.Input`: a list of tf.Examples.

`{"examples": [{"x": 1.5, "words": ["a", {"b64": "…"}]}], "context": {…}}`, as TensorFlow Serving reads it: JSON
integers and booleans become int64 features, numbers with a point become floats, strings and `b64` objects bytes.
"""

from __future__ import annotations

import struct
from typing import Any

from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow_serving.apis import input_pb2

from serving.server.errors import invalid
from serving.server.json_values import bytes_of


def input_from_json(document: dict[str, Any]) -> Any:
    """The Input message of a classify or regress body.

    Raises:
        ServingError: INVALID_ARGUMENT where the examples are missing or a feature mixes types.
    """
    examples = document.get("examples")
    if "examples" not in document:
        raise invalid("When method is classify, key 'examples' is expected and was not found")
    if not isinstance(examples, list):
        raise invalid("Expecting 'examples' value to be an list/array")
    if not examples:
        raise invalid("'examples' value is an empty array")
    message = input_pb2.Input()
    if "context" in document:
        message.example_list_with_context.context.CopyFrom(_example(document["context"]))
        message.example_list_with_context.examples.extend(map(_example, examples))
    else:
        message.example_list.examples.extend(map(_example, examples))
    return message


def _example(value: Any) -> Any:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {_kind(value)}")
    example = example_pb2.Example()
    for name, content in value.items():
        example.features.feature[name].CopyFrom(_feature(name, content if isinstance(content, list) else [content]))
    return example


def _feature(name: str, values: list[Any]) -> Any:
    feature = feature_pb2.Feature()
    for value in values:
        if isinstance(value, bool) or (isinstance(value, int) and -(2**63) <= value < 2**63):
            kind, item = "int64", int(value)
        elif isinstance(value, float):
            kind, item = "float", value  # type: ignore[assignment]
            try:
                struct.pack("<f", value)
            except OverflowError:
                raise invalid(f"Cannot convert JSON value: {value} to float without loss of precision.") from None
        elif isinstance(value, str):
            kind, item = "bytes", value.encode()  # type: ignore[assignment]
        elif isinstance(value, dict) and "b64" in value:
            kind, item = "bytes", bytes_of(value)  # type: ignore[assignment]
        elif isinstance(value, int):
            raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
        else:
            raise invalid(f"Feature: {name} has element with unexpected JSON type: {_kind(value)}")
        known = feature.WhichOneof("kind")
        if known not in (None, f"{kind}_list"):
            raise invalid(f"Unexpected element type in feature: {name} expecting type: {known.removesuffix('_list')}")
        getattr(feature, f"{kind}_list").value.append(item)
    return feature


def _kind(value: Any) -> str:
    return {type(None): "Null", dict: "Object", list: "Array", str: "String", bool: str(value)}.get(
        type(value), "Number"
    )
