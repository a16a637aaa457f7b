"""The REST API as a bare ASGI application: predict, classify, regress, metadata and status under `/v1/models/`.

Paths, bodies and errors are those of TensorFlow Serving (https://www.tensorflow.org/tfx/serving/api_rest); every error
is `{"error": "…"}` with the HTTP status that belongs to its code.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

from google.protobuf import json_format
from tensorflow_serving.apis import get_model_status_pb2

from serving.server import calls, grpc_service, json_request, json_response
from serving.server.calls import Runner
from serving.server.errors import HTTP_STATUS, ServingError, as_serving_error, invalid
from serving.server.examples import input_from_json
from serving.server.versions import Version

_WHICH = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_POST = re.compile(rf"/v1/models/(?P<model>[^/:]+){_WHICH}:(?P<method>classify|regress|predict)", re.IGNORECASE)
_GET = re.compile(rf"/v1/models(?:/(?P<model>[^/:]+))?{_WHICH}(?:/(?P<part>metadata))?", re.IGNORECASE)
_HEADERS = [(b"content-type", b"application/json")]


class RestApi:
    """The ASGI application.

    Args:
        runner: runs the models.
        timeout: seconds after which a request is given up with DEADLINE_EXCEEDED.
    """

    def __init__(self, runner: Runner, timeout: float):
        self.runner, self.manager, self.timeout = runner, runner.manager, timeout

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable) -> None:
        if scope["type"] != "http":
            return
        parts: list[bytes] = []  # joined once: adding bytes to bytes copies all that came before
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            parts.append(message["body"])
            if not message.get("more_body"):
                break
        body = b"".join(parts)
        try:
            status, answer = 200, await self.answer(scope["method"], scope["raw_path"].decode("latin-1"), body)
        except Exception as error:
            failure = as_serving_error(error)
            status, answer = HTTP_STATUS[failure.code], json_response.dumps({"error": failure.message})
        headers = [*_HEADERS, (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def answer(self, method: str, path: str, body: bytes) -> bytes:
        """The body of the answer to one request.

        Raises:
            ServingError: the request cannot be answered.
        """
        path = path.partition("?")[0]
        match = {"POST": _POST, "GET": _GET}[method].fullmatch(path) if method in ("POST", "GET") else None
        if match is None:
            if path.lower().startswith("/v1/"):
                raise invalid(f"Malformed request: {method} {path}")
            raise ServingError("NOT_FOUND", f"Not Found: {method} {path}")
        name, label = unquote(match["model"] or ""), unquote(match["label"] or "") or None
        number = int(match["version"]) if match["version"] else None
        if number is not None and number >= 2**63:
            raise invalid(f"Failed to convert version: {match['version']} to numeric.")
        if method == "GET":
            if not name:
                raise invalid("Missing model name in request.")
            return self.metadata(name, number, label) if match["part"] else self.status(name, number, label)
        version = self.manager.acquire(name, number, label)
        try:
            kind = match["method"].lower()
            return await (self.predict(version, body) if kind == "predict" else self.examples(version, body, kind))
        finally:
            version.release()

    async def predict(self, version: Version, body: bytes) -> bytes:
        servable = version.servable
        name, row_format, inputs = json_request.decode_predict(body, lambda name: calls.tensors_of(servable, name))
        signature = calls.signature_of(servable, name)
        outputs = await self.runner.run(version, signature, calls.arrays_for(signature, inputs), self.timeout)
        return json_response.encode_predict(row_format, calls.picked(signature, outputs, ()))

    async def examples(self, version: Version, body: bytes, kind: str) -> bytes:
        """Classify and regress: tf.Examples in, `{"results": […]}` out."""
        document = json_request.parse(body)
        name, examples = json_request.signature_name(document), calls.serialized_examples(input_from_json(document))
        method = calls.CLASSIFY if kind == "classify" else calls.REGRESS
        signature = calls.example_signature(version.servable, name, method)
        arrays = await self.runner.run(version, signature, [examples], self.timeout)
        outputs = calls.picked(signature, arrays, ())
        return json_response.encode_results(
            calls.classifications(outputs, len(examples))
            if kind == "classify"
            else calls.regressions(outputs, len(examples))
        )

    def metadata(self, name: str, number: int | None, label: str | None) -> bytes:
        version = self.manager.find(name, number, label)
        message = grpc_service.signature_map(version)
        spec = {"name": name, "signature_name": "", "version": str(version.number)}
        return json_response.dumps({"model_spec": spec, "metadata": {"signature_def": _as_dict(message)}})

    def status(self, name: str, number: int | None, label: str | None) -> bytes:
        answer = get_model_status_pb2.GetModelStatusResponse()
        grpc_service.fill_status(answer, self.manager.status(name, number, label))
        return json_response.dumps(_as_dict(answer))


def _as_dict(message: Any) -> dict[str, Any]:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
