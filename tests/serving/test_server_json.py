"""JSON bodies and arrays: what goes through both is what went in, and wrong bodies get TensorFlow Serving's words."""

from __future__ import annotations

import json
from base64 import b64encode

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving.server import json_request, json_response
from serving.server.errors import ServingError
from serving.server.tensors import BY_NAME, Tensor

NUMERIC = {
    "DT_FLOAT": np.float32,
    "DT_DOUBLE": np.float64,
    "DT_INT32": np.int32,
    "DT_INT64": np.int64,
    "DT_UINT8": np.uint8,
    "DT_BOOL": np.bool_,
}
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5)


def inputs(dtype: str, name: str = "x", shape=None):
    return lambda _: {name: Tensor(name, BY_NAME[dtype], shape)}


def read(body, dtype="DT_FLOAT", name="x"):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return json_request.decode_predict(raw, inputs(dtype, name))


def arrays(dtype: str):
    finite = {"allow_nan": False, "allow_infinity": False} if dtype in ("DT_FLOAT", "DT_DOUBLE") else {}
    elements = hnp.from_dtype(np.dtype(NUMERIC[dtype]), **finite)
    return SHAPES.flatmap(lambda shape: hnp.arrays(NUMERIC[dtype], shape, elements=elements))


@pytest.mark.parametrize("dtype", NUMERIC)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_arrays_survive_json_in_both_formats(dtype, data):
    array = data.draw(arrays(dtype))
    for row_format, key in ((True, "predictions"), (False, "outputs")):
        answer = json.loads(json_response.encode_predict(row_format, {"x": array}))[key]
        body = {"instances" if row_format else "inputs": answer}
        name, rows, found = read(body, dtype)
        assert (name, rows) == ("", row_format)
        assert found["x"].dtype == array.dtype
        np.testing.assert_array_equal(found["x"], array)


@settings(max_examples=60, deadline=None)
@given(
    array=SHAPES.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-1e6, 1e6, width=32))),
    indent=st.sampled_from([None, 1]),
    key=st.sampled_from(["instances", "inputs"]),
    signature=st.sampled_from(["", "first", "last"]),
)
def test_the_short_cut_reads_what_the_plain_road_reads(array, indent, key, signature):
    body = {key: array.tolist()}
    if signature:
        body = {"signature_name": "s", **body} if signature == "first" else {**body, "signature_name": "s"}
    raw = json.dumps(body, indent=indent).encode()
    short = json_request._short_cut(raw, inputs("DT_FLOAT"))
    plain = read(raw)
    assert short is not None
    assert short[:2] == plain[:2]
    np.testing.assert_array_equal(short[2]["x"], plain[2]["x"])


@pytest.mark.parametrize(
    "text",
    [
        '{"instances": [[1, 2], [3], [4, 5, 6]]}',
        '{"instances": [[1, 2], 3]}',
        '{"instances": [[], []]}',
        '{"instances": [[1, 2], ["3", 4]]}',
        '{"instances": [[1, 2], [3, 4]], "inputs": [[1]]}',
        '{"instances": [[[1]], [2]]}',
        '{"instances": [1e39]}',
        '{"instances": [NaN]}',
        '{"instances": [20000000]}',
        '{"instances": [[1, 2], [3, 4]',
    ],
)
def test_the_short_cut_leaves_everything_doubtful_to_the_plain_road(text):
    assert json_request._short_cut(text.encode(), inputs("DT_FLOAT")) is None


def test_the_short_cut_is_taken_for_large_bodies(monkeypatch):
    monkeypatch.setattr(json_request, "parse", lambda body: pytest.fail("the plain road was taken"))
    _, _, found = read({"instances": np.zeros((2, 28, 28)).tolist()})
    assert found["x"].shape == (2, 28, 28)


@pytest.mark.parametrize(("dtype", "value"), [("DT_UINT8", 300), ("DT_INT32", -(2**31) - 1), ("DT_FLOAT", 1e39)])
def test_values_beyond_the_type_are_refused_in_large_bodies_too(dtype, value):
    with pytest.raises(ServingError, match="not of expected type|without loss of precision"):
        read({"instances": [0] * 2000 + [value]}, dtype)
    _, _, found = read({"instances": [2**62 + 1] * 2000}, "DT_INT64")
    assert set(found["x"].tolist()) == {2**62 + 1}


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.binary(max_size=20), min_size=1, max_size=5))
def test_bytes_survive_json_as_b64(values):
    body = {"instances": [{"b64": b64encode(value).decode()} for value in values]}
    _, _, found = read(body, "DT_STRING")
    assert found["x"].tolist() == values
    answer = json.loads(json_response.encode_predict(True, {"x_bytes": found["x"]}))["predictions"]
    assert answer == body["instances"]


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.text(max_size=10).filter(lambda s: s.isprintable()), min_size=1, max_size=5))
def test_text_stays_text_without_the_bytes_suffix(values):
    _, _, found = read({"inputs": values}, "DT_STRING")
    assert found["x"].tolist() == [value.encode() for value in values]
    assert json.loads(json_response.encode_predict(False, {"x": found["x"]})) == {"outputs": values}


def test_rows_of_named_inputs_are_stacked_and_columns_are_not():
    both = lambda _: {n: Tensor(n, BY_NAME["DT_FLOAT"], None) for n in ("a", "b")}  # noqa: E731
    rows = {"instances": [{"a": 1, "b": [2, 3]}, {"b": [4, 5], "a": 6}]}
    _, _, found = json_request.decode_predict(json.dumps(rows).encode(), both)
    assert found["a"].tolist() == [1, 6] and found["b"].tolist() == [[2, 3], [4, 5]]
    _, _, found = json_request.decode_predict(b'{"inputs": {"a": 1, "b": [[2]]}}', both)
    assert found["a"].shape == () and found["b"].shape == (1, 1)


def test_several_outputs_are_objects_and_one_stands_alone():
    outputs = {"label": np.array([b"x", b"y"], object), "score": np.array([0.1, 0.2], np.float32)}
    assert json.loads(json_response.encode_predict(True, outputs)) == {
        "predictions": [{"label": "x", "score": 0.1}, {"label": "y", "score": 0.2}]
    }
    assert json.loads(json_response.encode_predict(False, outputs)) == {
        "outputs": {"label": ["x", "y"], "score": [0.1, 0.2]}
    }


def test_floats_have_the_fewest_digits_and_non_finite_ones_stand_bare():
    array = np.array([[0.1, np.nan], [np.inf, -np.inf]], np.float32)
    assert json_response.encode_predict(True, {"x": array}) == b'{"predictions":[[0.1,NaN],[Infinity,-Infinity]]}'
    assert json_response.encode_predict(False, {"x": np.array(0.2, np.float32)}) == b'{"outputs":0.2}'
    assert json_response.encode_predict(False, {"x": np.array([3.0, 0.5], np.float32)}) == b'{"outputs":[3.0,0.5]}'
    _, _, found = read(b'{"instances": [NaN, Infinity, -Infinity]}')
    np.testing.assert_array_equal(found["x"], np.array([np.nan, np.inf, -np.inf], np.float32))


@pytest.mark.parametrize(
    ("body", "dtype", "message"),
    [
        (b"", "DT_FLOAT", "JSON Parse error: The document is empty"),
        (b"instances = [1]", "DT_FLOAT", "JSON Parse error: Invalid value. at offset: 0"),
        (b"[1]", "DT_FLOAT", "Is not object"),
        (b'{"inputs": ' + b"[" * 100 + b"]" * 100 + b"}", "DT_FLOAT", "nested 100 deep, expected at most 32"),
        (b'{"inputs": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", "DT_FLOAT", "JSON Parse error: Invalid value."),
        ({"signature_name": 1, "instances": [1]}, "DT_FLOAT", "'signature_name' key must be a string value."),
        ({}, "DT_FLOAT", "Missing 'inputs' or 'instances' key"),
        ({"instances": [1], "inputs": [1]}, "DT_FLOAT", "expecting only one of 'inputs' or 'instances' keys to exist"),
        ({"instances": 1}, "DT_FLOAT", "Excepting 'instances' to be an list/array"),
        ({"instances": []}, "DT_FLOAT", "No values in 'instances' array"),
        ({"instances": ["a"]}, "DT_FLOAT", 'JSON Value: "a" Type: String is not of expected type: float'),
        ({"instances": [True]}, "DT_FLOAT", "JSON Value: true Type: True is not of expected type: float"),
        ({"instances": [None]}, "DT_FLOAT", "Type: Null is not of expected type: float"),
        ({"instances": [1.5]}, "DT_INT32", "JSON Value: 1.5 Type: Number is not of expected type: int32"),
        ({"instances": [2**31]}, "DT_INT32", "is not of expected type: int32"),
        ({"instances": [300]}, "DT_UINT8", "is not of expected type: uint8"),
        ({"instances": [1]}, "DT_BOOL", "is not of expected type: bool"),
        ({"instances": [1]}, "DT_STRING", "is not of expected type: string"),
        ({"instances": [2**24]}, "DT_FLOAT", "Cannot convert JSON value: 16777216 to float without loss of precision."),
        ({"instances": [1e39]}, "DT_FLOAT", "to float without loss of precision."),
        ({"instances": [[1, 2], [3]]}, "DT_FLOAT", "Failed to process element: 1 of 'instances' list."),
        ({"instances": [[1, 2], [3]]}, "DT_FLOAT", "Expecting tensor size: 2 but got: 1"),
        ({"instances": [[[1], [2]], [[3, 4]]]}, "DT_FLOAT", "Expecting shape [2,1] but got: [1,2]"),
        ({"instances": [{"y": 1}]}, "DT_FLOAT", "JSON object: does not have named input: y"),
        ({"instances": [{}]}, "DT_FLOAT", "keys must be equal to: x"),
        ({"instances": [{"x": 1}, 2]}, "DT_FLOAT", "Expecting object but got list at item 1 of input list"),
        ({"instances": [1, {"x": 2}]}, "DT_FLOAT", "Expecting value/list but got object at item 1 of input list"),
        ({"inputs": {"y": 1}}, "DT_FLOAT", "Missing named input: x in 'inputs' object."),
        ({"inputs": [[1], 2]}, "DT_FLOAT", "found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
        ({"inputs": [1, [2]]}, "DT_FLOAT", "Encountered list at unexpected level: 1 expected < 1"),
        ({"inputs": [[1, 2], [3]]}, "DT_FLOAT", "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        ({"instances": [{"b64": "?"}]}, "DT_STRING", "Unable to base64 decode"),
        ({"inputs": [{"b65": "YQ=="}]}, "DT_STRING", "not formatted correctly for base64 data"),
        ({"instances": [{"b64": "YQ=="}]}, "DT_FLOAT", "Type: Object is not of expected type: float"),
    ],
)
def test_wrong_bodies_are_refused_in_the_words_of_tensorflow_serving(body, dtype, message):
    with pytest.raises(ServingError) as error:
        read(body, dtype)
    assert error.value.code == "INVALID_ARGUMENT"
    assert message in error.value.message


def test_rows_need_outputs_of_one_batch_size():
    with pytest.raises(ServingError, match="Tensor name: b has inconsistent batch size: 1 expecting: 2"):
        json_response.encode_predict(True, {"a": np.zeros(2), "b": np.zeros(1)})
    with pytest.raises(ServingError, match="has no shape information"):
        json_response.encode_predict(True, {"a": np.float32(1).reshape(())})
