"""The two ways to a model server, REST and gRPC, as the client uses them: metadata, status, predict.

Over REST nothing here needs TensorFlow; over gRPC the official messages do, and their import takes a few seconds.
"""

from __future__ import annotations

import http.client
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import numpy as np

from pipelines.config import Failure, UsageError
from serving.server.tensors import BY_NAME, Tensor, decode, encode


class ServerError(Failure):
    """The server answered with an error, or not at all. `status` is its HTTP status or the name of its gRPC code."""

    def __init__(self, message: str, status: int | str | None = None):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Signature:
    """What a signature takes and gives, by name."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    method: str


class Target(Protocol):
    """Which model is asked."""

    model: str
    version: int | None
    label: str | None


def as_array(value: Any, tensor: Tensor) -> np.ndarray:
    """A value in the type of an input; text becomes UTF-8 bytes.

    Raises:
        UsageError: it does not fit.
    """
    try:
        if tensor.dtype.short != "string":
            return np.asarray(value, dtype=tensor.dtype.numpy)
        array = np.array(value, dtype=object)
        flat = np.empty(array.size, object)
        flat[:] = [v.encode() if isinstance(v, str) else bytes(v) for v in array.ravel().tolist()]
        return flat.reshape(array.shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(f"Expected {tensor.dtype.short} values for input {tensor.name!r}. Received: {error}") from None


def _signatures(message: Mapping[str, Any]) -> dict[str, Signature]:
    """Signatures from the JSON form of a SignatureDefMap."""

    def tensors(infos: Mapping[str, Any]) -> dict[str, Tensor]:
        found = {}
        for name in sorted(infos):
            info = infos[name]
            if info.get("dtype") not in BY_NAME:
                continue
            shape = info.get("tensor_shape", {})
            sizes = None if shape.get("unknown_rank") else tuple(int(d.get("size", -1)) for d in shape.get("dim", ()))
            found[name] = Tensor(name, BY_NAME[info["dtype"]], sizes)
        return found

    return {
        name: Signature(tensors(one.get("inputs", {})), tensors(one.get("outputs", {})), one.get("method_name", ""))
        for name, one in sorted(message.items())
        if not name.startswith("__")
    }


class Rest:
    """The REST API, over one connection that is kept open."""

    def __init__(self, address: str, timeout: float):
        url = urlsplit(address if "://" in address else f"http://{address}")
        if url.scheme not in ("http", "https") or not url.hostname:
            raise UsageError(f"Expected an address such as http://localhost:8501. Received: {address!r}")
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        self.address, self._prefix = address, url.path.rstrip("/")
        self._connection = kind(url.hostname, url.port, timeout=timeout)

    def _ask(self, client: Target, part: str, body: Any = None) -> Any:
        which = f"/versions/{client.version}" if client.version is not None else ""
        which = f"/labels/{quote(client.label, safe='')}" if client.label else which
        path = f"{self._prefix}/v1/models/{quote(client.model, safe='')}{which}{part}"
        data = None if body is None else json.dumps(body).encode()
        for attempt in (1, 2):
            try:
                self._connection.request("GET" if data is None else "POST", path, data)
                answer = self._connection.getresponse()
                text = answer.read()
                break
            except (
                http.client.RemoteDisconnected,
                http.client.CannotSendRequest,
                ConnectionResetError,
                BrokenPipeError,
            ):
                self._connection.close()  # an idle connection that the server has closed: once more
                if attempt == 2:
                    raise ServerError(f"Expected an answer of {self.address}. Received: a closed connection") from None
            except http.client.HTTPException as error:
                self._connection.close()
                raise ServerError(
                    f"Expected HTTP at {self.address}, the port of the REST API and not that of gRPC. "
                    f"Received: something else ({type(error).__name__})"
                ) from None
            except OSError as error:
                self._connection.close()
                raise ServerError(
                    f"Expected a model server at {self.address}. Received: {error.strerror or error}"
                ) from None
        try:
            document = json.loads(text)
        except ValueError:
            raise ServerError(f"Expected JSON from {self.address}. Received: {text[:80]!r}", answer.status) from None
        if answer.status != 200:
            raise ServerError(f"{document.get('error', document)} (HTTP {answer.status})", answer.status)
        return document

    def metadata(self, client: Target) -> dict[str, Signature]:
        return _signatures(self._ask(client, "/metadata")["metadata"]["signature_def"]["signature_def"])

    def status(self, client: Target) -> list[dict[str, Any]]:
        entries = self._ask(client, "")["model_version_status"]
        return [
            {"version": int(e["version"]), "state": e["state"], "error": e["status"].get("error_message", "")}
            for e in entries
        ]

    def predict(self, client: Target, name: str, wanted: Signature, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
        body = {"signature_name": name, "inputs": {key: _to_json(array) for key, array in arrays.items()}}
        outputs = self._ask(client, ":predict", body)["outputs"]
        if len(wanted.outputs) == 1:
            outputs = {next(iter(wanted.outputs)): outputs}
        return {key: _from_json(outputs[key], tensor) for key, tensor in wanted.outputs.items()}

    def close(self) -> None:
        self._connection.close()


def _to_json(array: np.ndarray) -> Any:
    if array.dtype != object:
        return (array.astype(np.float32) if array.dtype.kind == "V" else array).tolist()
    if array.ndim:
        return [_to_json(np.asarray(part, object)) for part in array]
    return {"b64": b64encode(array.item()).decode()}


def _from_json(value: Any, tensor: Tensor) -> np.ndarray:
    if tensor.dtype.short != "string":
        return np.array(value, tensor.dtype.numpy)
    if isinstance(value, list):
        parts = [_from_json(part, tensor) for part in value]
        array = np.empty((len(parts), *(parts[0].shape if parts else ())), object)
        for i, part in enumerate(parts):
            array[i] = part if part.ndim else part.item()
        return array
    return np.array(b64decode(value["b64"]) if isinstance(value, dict) else value.encode(), object)


class Grpc:
    """The gRPC services, through the official stubs."""

    def __init__(self, address: str, timeout: float):
        if "://" in address:
            raise UsageError(f"Expected HOST:PORT for --grpc. Received: {address!r}")
        try:
            import grpc
            from tensorflow_serving.apis import (
                get_model_metadata_pb2,
                get_model_status_pb2,
                model_service_pb2_grpc,
                predict_pb2,
                prediction_service_pb2_grpc,
            )
        except ImportError as error:
            raise Failure(
                f"Expected the serving extra (pip install 'dl-essentials[serving]'). Received: {error}"
            ) from None
        self.address, self.timeout, self._error = address, timeout, grpc.RpcError
        limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(address, options=limits)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._metadata, self._status, self._predict = get_model_metadata_pb2, get_model_status_pb2, predict_pb2

    def _call(self, client: Target, method: Any, request: Any) -> Any:
        request.model_spec.name = client.model
        if client.version is not None:
            request.model_spec.version.value = client.version
        if client.label:
            request.model_spec.version_label = client.label
        try:
            return method(request, timeout=self.timeout)
        except self._error as error:
            code = error.code().name
            text = error.details() or code
            if code == "UNAVAILABLE":
                text = f"Expected a model server at {self.address}. Received: {text}"
            raise ServerError(f"{text} (gRPC {code})", code) from None

    def metadata(self, client: Target) -> dict[str, Signature]:
        from google.protobuf import json_format

        request = self._metadata.GetModelMetadataRequest(metadata_field=["signature_def"])
        answer = self._call(client, self._predictions.GetModelMetadata, request)
        message = self._metadata.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(message)
        return _signatures(
            json_format.MessageToDict(message, preserving_proto_field_name=True).get("signature_def", {})
        )

    def status(self, client: Target) -> list[dict[str, Any]]:
        answer = self._call(client, self._models.GetModelStatus, self._status.GetModelStatusRequest())
        states = self._status.ModelVersionStatus.State
        return [
            {"version": e.version, "state": states.Name(e.state), "error": e.status.error_message}
            for e in answer.model_version_status
        ]

    def predict(self, client: Target, name: str, wanted: Signature, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
        request = self._predict.PredictRequest()
        request.model_spec.signature_name = name
        for key, array in arrays.items():
            encode(array, request.inputs[key])
        answer = self._call(client, self._predictions.Predict, request)
        return {key: decode(answer.outputs[key], key) for key in wanted.outputs}

    def close(self) -> None:
        self._channel.close()
