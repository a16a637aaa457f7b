"""The embedded server as a process, asked over REST and gRPC: the protocol of tensorflow_model_server."""

from __future__ import annotations

import asyncio
import socket
import time
from base64 import b64encode
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving.server import rest

HALF = "/v1/models/half"


@pytest.fixture(scope="module")
def stubs(server):
    """The official stubs, connected."""
    with grpc.insecure_channel(f"localhost:{server.grpc_port}") as channel:
        yield (
            prediction_service_pb2_grpc.PredictionServiceStub(channel),
            model_service_pb2_grpc.ModelServiceStub(channel),
        )


def predict_request(model="half", signature="", version=None, label="", outputs=(), **inputs):
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name, request.model_spec.signature_name = model, signature
    if version is not None:
        request.model_spec.version.value = version
    if label:
        request.model_spec.version_label = label
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(value if isinstance(value, TensorProto) else tf.make_tensor_proto(value))
    return request


def example(**features):
    made = tf.train.Example()
    for name, value in features.items():
        made.features.feature[name].float_list.value.append(value)
    return made


def test_it_says_when_models_and_ports_are_ready(server):
    text = "".join(server.lines)
    for line in (
        "[serving] model half version 2 loaded in ",
        f"[serving] Running gRPC ModelServer at 0.0.0.0:{server.grpc_port} ...",
        f"[serving] Exporting HTTP/REST API at:localhost:{server.rest_port} ...",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        (":predict", {"instances": [1.0, 2.0]}, {"predictions": [3.5, 4.0]}),
        (":predict", {"instances": [{"x": 1.0}, {"x": 2.0}]}, {"predictions": [3.5, 4.0]}),
        (":predict", {"inputs": [1.0, 2.0]}, {"outputs": [3.5, 4.0]}),
        (":predict", {"inputs": {"x": [1.0, 2.0]}}, {"outputs": [3.5, 4.0]}),
        (":predict", {"signature_name": "serving_default", "instances": [0]}, {"predictions": [3.0]}),
        ("/versions/1:predict", {"instances": [0]}, {"predictions": [1.0]}),
        ("/labels/stable:predict", {"instances": [0]}, {"predictions": [2.0]}),
        (
            ":predict",
            {"signature_name": "matmul", "inputs": {"a": [[1, 2]], "b": [[3], [4]]}},
            {"outputs": {"product": [[11.0]], "rows": [3.0]}},
        ),
        (
            ":predict",
            {"signature_name": "strings", "instances": ["äb", {"b64": b64encode(b"\x00\xff").decode()}]},
            {
                "predictions": [
                    {"length": 3, "upper": "äB", "upper_bytes": {"b64": "w6Ri"}},
                    {"length": 2, "upper": "\x00\ufffd", "upper_bytes": {"b64": "AP8="}},
                ]
            },
        ),
        (
            ":classify",
            {"signature_name": "classify", "examples": [{"x": 4.0}, {"x": [1.5]}]},
            {"results": [[["half", 5.0], ["same", 4.0]], [["half", 3.75], ["same", 1.5]]]},
        ),
        (":regress", {"signature_name": "regress", "examples": [{"x": 4.0}, {"x": 1.0}]}, {"results": [5.0, 3.5]}),
        (
            ":regress",
            {"signature_name": "regress", "context": {"x": 4.0}, "examples": [{"y": ["word"]}, {"y": 7}]},
            {"results": [5.0, 5.0]},
        ),
    ],
)
def test_rest_answers(server, path, body, answer):
    assert server.ask(HALF + path, body) == (200, answer)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/v1/models/nope:predict", b'{"instances": [1]}', 404, "Servable not found for request: Latest(nope)"),
        ("POST", f"{HALF}/versions/9:predict", b"{}", 404, "Servable not found for request: Specific(half, 9)"),
        ("POST", f"{HALF}/labels/beta:predict", b"{}", 400, "Unrecognized servable version label: beta"),
        ("POST", f"{HALF}:explain", b"{}", 400, f"Malformed request: POST {HALF}:explain"),
        ("POST", HALF, b"{}", 400, f"Malformed request: POST {HALF}"),
        ("GET", f"{HALF}:predict", None, 400, f"Malformed request: GET {HALF}:predict"),
        ("PUT", f"{HALF}:predict", b"{}", 400, f"Malformed request: PUT {HALF}:predict"),
        ("GET", "/v1/models", None, 400, "Missing model name in request."),
        ("GET", "/v1/models/nope", None, 404, "Could not find any versions of model nope"),
        ("GET", f"{HALF}/versions/9", None, 404, "Could not find version 9 of model half"),
        ("GET", f"{HALF}/versions/9/metadata", None, 404, "Servable not found for request: Specific(half, 9)"),
        ("GET", f"{HALF}/versions/{2**63}", None, 400, f"Failed to convert version: {2**63} to numeric."),
        ("GET", "/healthz", None, 404, "Not Found: GET /healthz"),
        ("POST", f"{HALF}:predict", b"", 400, "JSON Parse error: The document is empty"),
        (
            "POST",
            f"{HALF}:predict",
            b'{"signature_name": "x", "instances": [1]}',
            400,
            'Serving signature name: "x" not found in signature def',
        ),
        (
            "POST",
            f"{HALF}:predict",
            b'{"instances": [[1, 2]]}',
            400,
            "Expects arg[0] to have a shape that fits [?] but [1,2] is provided (input 'x')",
        ),
        (
            "POST",
            f"{HALF}:classify",
            b'{"examples": [{"x": 1.0}]}',
            400,
            "Expected classification signature method_name to be tensorflow/serving/classify. "
            "Was: tensorflow/serving/predict",
        ),
        (
            "POST",
            f"{HALF}:regress",
            b'{"signature_name": "none", "examples": [{"x": 1.0}]}',
            400,
            "No signature was found with the name: none",
        ),
        (
            "POST",
            f"{HALF}:classify",
            b'{"instances": [1]}',
            400,
            "When method is classify, key 'examples' is expected and was not found",
        ),
        ("POST", f"{HALF}:classify", b'{"examples": [1]}', 400, "Example must be JSON object but got JSON Number"),
        (
            "POST",
            f"{HALF}:classify",
            b'{"examples": [{"x": [1, 2.5]}]}',
            400,
            "Unexpected element type in feature: x expecting type: int64",
        ),
    ],
)
def test_rest_errors(server, method, path, body, status, message):
    assert server.ask(path, raw=body, method=method) == (status, {"error": message})


def test_errors_of_tensorflow_itself_reach_the_client_with_their_code(server):
    body = {"signature_name": "matmul", "inputs": {"a": [[1, 2]], "b": [[3]]}}
    status, answer = server.ask(f"{HALF}:predict", body)
    assert status == 400 and "Matrix size-incompatible" in answer["error"]


def test_rest_status_lists_every_version(server):
    fine = {"error_code": "OK", "error_message": ""}
    entries = [{"version": str(n), "state": "AVAILABLE", "status": fine} for n in (3, 2, 1)]
    assert server.ask(HALF) == (200, {"model_version_status": entries})
    assert server.ask(f"{HALF}/versions/2") == (200, {"model_version_status": entries[1:2]})
    assert server.ask(f"{HALF}/labels/stable") == (200, {"model_version_status": entries[1:2]})
    assert server.ask("/v1/models/latest")[1]["model_version_status"] == entries[:1]
    assert server.ask("/v1/models/one")[1]["model_version_status"] == entries[2:]


def test_rest_metadata_describe_the_signatures(server):
    status, answer = server.ask(f"{HALF}/labels/stable/metadata")
    assert status == 200
    assert answer["model_spec"] == {"name": "half", "signature_name": "", "version": "2"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert signatures["classify"]["method_name"] == "tensorflow/serving/classify"
    x = signatures["serving_default"]["inputs"]["x"]
    assert x["dtype"] == "DT_FLOAT"
    assert x["tensor_shape"] == {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}


def test_large_bodies_come_back_whole(server):
    values = np.arange(200_000, dtype=np.float32) / 7
    status, answer = server.ask(f"{HALF}:predict", {"inputs": values.tolist()})
    assert status == 200
    np.testing.assert_array_equal(np.array(answer["outputs"], np.float32), values / 2 + 3)


def test_a_body_in_many_parts_costs_what_it_weighs():
    class Weighing(rest.RestApi):
        async def answer(self, method, path, body):
            return b"%d" % len(body)

    parts, answers = 4096, []
    left = iter(range(parts - 1, -1, -1))

    async def receive():
        return {"type": "http.request", "body": bytes(4096), "more_body": next(left) > 0}

    async def send(message):
        answers.append(message)

    scope = {"type": "http", "method": "POST", "raw_path": b"/"}
    begin = time.process_time()
    asyncio.run(Weighing(SimpleNamespace(manager=None), 1)(scope, receive, send))
    assert answers[-1]["body"] == b"%d" % (parts * 4096)
    assert time.process_time() - begin < 1


def test_pipelined_requests_are_answered_in_order(server):
    def request(value: int) -> bytes:
        body = b'{"instances": [%d]}' % value
        head = f"POST {HALF}:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=30) as connection:
        connection.sendall(request(2) + request(4))
        text = b""
        while text.count(b"]}") < 2:
            text += connection.recv(1 << 16)
    assert text.index(b'{"predictions":[4.0]}') < text.index(b'{"predictions":[5.0]}')


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1.5, -2.0], [np.nan, np.inf]], np.float32),
        np.array(3.25, np.float64),
        np.arange(6, dtype=np.int32).reshape(1, 2, 3),
        np.array([-(2**63), 2**63 - 1]),
        np.zeros((2, 0), np.int32),
        np.array([0, 255], np.uint8),
        np.array([[True], [False]]),
        np.array([1.5, 6e4], np.float16),
        np.array([[b"a", b"\xff\x00"]], object),
        np.array(b"scalar", object),
    ],
    ids=lambda a: f"{a.dtype}-{a.shape}",
)
def test_tensors_of_every_type_survive_grpc(stubs, array):
    name = "string" if array.dtype == object else array.dtype.name
    answer = stubs[0].Predict(predict_request(signature=f"same_{name}", x=array))
    found = tf.make_ndarray(answer.outputs["same"])
    assert found.shape == array.shape and found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_typed_fields_and_tensor_content_are_read_alike(stubs):
    shape = tf.TensorShape([3]).as_proto()
    float_type = tf.float32.as_datatype_enum
    for proto in (
        TensorProto(dtype=float_type, tensor_shape=shape, float_val=[1, 2, 2]),
        TensorProto(dtype=float_type, tensor_shape=shape, float_val=[1, 2]),
        TensorProto(dtype=float_type, tensor_shape=shape, tensor_content=np.array([1, 2, 2], np.float32).tobytes()),
    ):
        assert list(stubs[0].Predict(predict_request(x=proto)).outputs["y"].float_val) == [3.5, 4.0, 4.0]


def test_grpc_says_which_version_and_signature_answered(stubs):
    for arguments, version, value in (({}, 3, 3.0), ({"version": 1}, 1, 1.0), ({"label": "stable"}, 2, 2.0)):
        answer = stubs[0].Predict(predict_request(x=np.zeros(1, np.float32), **arguments))
        assert (answer.model_spec.name, answer.model_spec.version.value) == ("half", version)
        assert answer.model_spec.signature_name == "serving_default"
        assert list(answer.outputs["y"].float_val) == [value]


def test_output_filters_pick_outputs(stubs):
    inputs = {"a": np.ones((1, 2), np.float32), "b": np.ones((2, 1), np.float32)}
    answer = stubs[0].Predict(predict_request(signature="matmul", outputs=["rows"], **inputs))
    assert list(answer.outputs) == ["rows"]
    for outputs, message in (
        (
            ["nope"],
            "output tensor alias not found in signature: nope Outputs expected to be in the set {product,rows}.",
        ),
        (["rows", "rows"], "duplicate output tensor alias: rows"),
    ):
        with pytest.raises(grpc.RpcError) as error:
            stubs[0].Predict(predict_request(signature="matmul", outputs=outputs, **inputs))
        assert (error.value.code().name, error.value.details()) == ("INVALID_ARGUMENT", message)


X = np.zeros(1, np.float32)


@pytest.mark.parametrize(
    ("request_of", "code", "message"),
    [
        (lambda: predict_request(model=""), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (lambda: predict_request(model="nope"), "NOT_FOUND", "Servable not found for request: Latest(nope)"),
        (lambda: predict_request(version=9), "NOT_FOUND", "Servable not found for request: Specific(half, 9)"),
        (lambda: predict_request(label="beta"), "INVALID_ARGUMENT", "Unrecognized servable version label: beta"),
        (lambda: predict_request(signature="nope"), "FAILED_PRECONDITION", 'Serving signature key "nope" not found.'),
        (
            lambda: predict_request(y=X),
            "INVALID_ARGUMENT",
            "input size does not match signature: 1!=1 len({y}) != len({x}). Sent extra: {y}. "
            "Missing but required: {x}.",
        ),
        (
            lambda: predict_request(x=np.zeros(1, np.int64)),
            "INVALID_ARGUMENT",
            "Expects arg[0] to be float but int64 is provided (input 'x')",
        ),
        (
            lambda: predict_request(
                x=TensorProto(dtype=1, tensor_shape=tf.TensorShape([2]).as_proto(), tensor_content=b"abc")
            ),
            "INVALID_ARGUMENT",
            "tensor parsing error: x",
        ),
    ],
)
def test_grpc_errors(stubs, request_of, code, message):
    with pytest.raises(grpc.RpcError) as error:
        stubs[0].Predict(request_of())
    assert (error.value.code().name, error.value.details()) == (code, message)


def test_classify_and_regress_over_grpc(stubs):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name, request.model_spec.signature_name = "half", "classify"
    request.input.example_list.examples.extend([example(x=4.0), example(x=1.0)])
    answer = stubs[0].Classify(request)
    assert [[(c.label, c.score) for c in one.classes] for one in answer.result.classifications] == [
        [("half", 5.0), ("same", 4.0)],
        [("half", 3.5), ("same", 1.0)],
    ]
    request = regression_pb2.RegressionRequest()
    request.model_spec.name, request.model_spec.signature_name = "half", "regress"
    request.input.example_list_with_context.context.CopyFrom(example(x=4.0))
    request.input.example_list_with_context.examples.extend([example(z=0.0), example(z=0.0)])
    answer = stubs[0].Regress(request)
    assert [one.value for one in answer.result.regressions] == [5.0, 5.0]
    assert answer.model_spec.version.value == 3
    request.ClearField("input")
    with pytest.raises(grpc.RpcError) as error:
        stubs[0].Regress(request)
    assert (error.value.code().name, error.value.details()) == ("INVALID_ARGUMENT", "Input is empty.")


def test_metadata_and_status_over_grpc(stubs):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "half"
    answer = stubs[0].GetModelMetadata(request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    assert answer.model_spec.version.value == 3
    assert signatures.signature_def["strings"].inputs["text"].dtype == tf.string.as_datatype_enum
    request.metadata_field[:] = ["other"]
    with pytest.raises(grpc.RpcError, match="Metadata field other is not supported"):
        stubs[0].GetModelMetadata(request)

    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "half"
    found = stubs[1].GetModelStatus(request).model_version_status
    available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert [(one.version, one.state) for one in found] == [(3, available), (2, available), (1, available)]


def test_methods_that_are_not_there_are_unimplemented(stubs):
    with pytest.raises(grpc.RpcError) as error:
        stubs[0].MultiInference(inference_pb2.MultiInferenceRequest())
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_wrong_reload_changes_nothing(stubs):
    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.config.add(name="half", base_path="/x", model_platform="torch")
    with pytest.raises(grpc.RpcError) as error:
        stubs[1].HandleReloadConfigRequest(request)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert stubs[0].Predict(predict_request(x=X)).model_spec.version.value == 3


def test_large_messages_pass_grpc(server):
    values = np.arange(2_000_000, dtype=np.float32)  # 8 MB: twice gRPC's own limit
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"localhost:{server.grpc_port}", options=options) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = stub.Predict(predict_request(x=values), timeout=30)
    np.testing.assert_array_equal(tf.make_ndarray(answer.outputs["y"]), values / 2 + 3)
