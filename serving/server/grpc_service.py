"""The gRPC services of TensorFlow Serving, on the official stubs: PredictionService and ModelService.

Predict, Classify, Regress, GetModelMetadata; GetModelStatus and HandleReloadConfigRequest. MultiInference answers
UNIMPLEMENTED.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from pipelines.config import UsageError
from serving.server import calls, config
from serving.server.calls import Runner
from serving.server.errors import CODES, as_serving_error, invalid
from serving.server.tensors import decode, encode
from serving.server.versions import Manager, Version


def which(spec: Any) -> tuple[str, int | None, str | None]:
    """Name, version and label of a ModelSpec message."""
    choice = spec.WhichOneof("version_choice")
    number = spec.version.value if choice == "version" else None
    return spec.name, number, spec.version_label if choice == "version_label" else None


def echo(spec: Any, version: Version, signature: str) -> None:
    """Say in an answer which model, version and signature gave it."""
    spec.name, spec.signature_name = version.model, signature
    spec.version.value = version.number


def fill_status(answer: Any, versions: Sequence[Version]) -> None:
    """Write the states of versions into a GetModelStatusResponse."""
    for version in versions:
        entry = answer.model_version_status.add(version=version.number, state=int(version.state))
        entry.status.SetInParent()
        if version.error:
            entry.status.error_code = CODES.index(version.error.code)
            entry.status.error_message = version.error.message


def signature_map(version: Version) -> Any:
    """The signatures of a version as a SignatureDefMap message."""
    message = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in version.servable.definitions.items():
        message.signature_def[name].CopyFrom(definition)
    return message


def _answered(method: Any) -> Any:
    """Turns the exceptions of a method into the status of the call."""

    async def call(self: Any, request: Any, context: Any) -> Any:
        try:
            return await method(self, request)
        except Exception as error:
            failure = as_serving_error(error)
        return await context.abort(grpc.StatusCode[failure.code], failure.message)  # raises

    return call


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, classify and regress, and the description of a model's signatures."""

    def __init__(self, runner: Runner):
        self.runner, self.manager = runner, runner.manager

    @_answered
    async def Predict(self, request: Any) -> Any:
        version = self.manager.acquire(*which(request.model_spec))
        try:
            signature = calls.signature_of(version.servable, request.model_spec.signature_name)
            inputs = {name: decode(proto, name) for name, proto in request.inputs.items()}
            arrays, names = calls.arrays_for(signature, inputs), request.output_filter
            if names:
                calls.check_filter(signature, names)
            outputs = await self.runner.run(version, signature, arrays)
            answer = predict_pb2.PredictResponse()
            echo(answer.model_spec, version, signature.name)
            for name, array in calls.picked(signature, outputs, names).items():
                encode(array, answer.outputs[name])
            return answer
        finally:
            version.release()

    @_answered
    async def Classify(self, request: Any) -> Any:
        answer = classification_pb2.ClassificationResponse()
        outputs, count = await self._examples(request, answer, calls.CLASSIFY)
        for example in calls.classifications(outputs, count):
            classes = answer.result.classifications.add().classes
            for label, score in example:
                classes.add(label=label.decode("utf-8", "replace"), score=score)
        return answer

    @_answered
    async def Regress(self, request: Any) -> Any:
        answer = regression_pb2.RegressionResponse()
        outputs, count = await self._examples(request, answer, calls.REGRESS)
        for value in calls.regressions(outputs, count):
            answer.result.regressions.add(value=value)
        return answer

    async def _examples(self, request: Any, answer: Any, method: str) -> tuple[Any, int]:
        version = self.manager.acquire(*which(request.model_spec))
        try:
            signature = calls.example_signature(version.servable, request.model_spec.signature_name, method)
            examples = calls.serialized_examples(request.input)
            outputs = await self.runner.run(version, signature, [examples])
            echo(answer.model_spec, version, request.model_spec.signature_name)
            return calls.picked(signature, outputs, ()), len(examples)
        finally:
            version.release()

    @_answered
    async def GetModelMetadata(self, request: Any) -> Any:
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for name in request.metadata_field:
            if name != "signature_def":
                raise invalid(f"Metadata field {name} is not supported")
        version = self.manager.find(*which(request.model_spec))
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        echo(answer.model_spec, version, "")
        answer.metadata["signature_def"].Pack(signature_map(version))
        return answer


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """The states of versions, and a new configuration while serving."""

    def __init__(self, manager: Manager):
        self.manager = manager

    @_answered
    async def GetModelStatus(self, request: Any) -> Any:
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        answer = get_model_status_pb2.GetModelStatusResponse()
        fill_status(answer, self.manager.status(*which(request.model_spec)))
        return answer

    @_answered
    async def HandleReloadConfigRequest(self, request: Any) -> Any:
        try:
            configs = config.from_proto(request.config)
        except UsageError as error:
            raise invalid(str(error)) from error
        await self.manager.reload(configs)
        answer = model_management_pb2.ReloadConfigResponse()
        answer.status.SetInParent()
        return answer
