"""Answers to requests, the same for REST and gRPC: predict, classify, regress, metadata, status.

Where a call runs is decided by what it costs. A call that has lately taken less than `INLINE_SECONDS` for inputs of its
size runs on the event loop, because handing it to a thread and back costs more than that; any other one runs in a
small pool of threads, where TensorFlow lets go of Python's lock.

The checks and their wording follow TensorFlow Serving (servables/tensorflow/predict_util.cc, classifier.cc and
regressor.cc of its source).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from serving.server.errors import ServingError, as_serving_error, invalid
from serving.server.tensors import Tensor, decode
from serving.server.versions import Manager, Version

DEFAULT_SIGNATURE = "serving_default"
INLINE_SECONDS = 0.5e-3
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"
PREDICT = "tensorflow/serving/predict"


def signature_of(servable: Any, name: str) -> Any:
    """The signature a predict request asks for.

    Raises:
        ServingError: FAILED_PRECONDITION where the model has no such signature.
    """
    name = name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(name)
    if signature is None:
        raise ServingError("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
    return signature


def tensors_of(servable: Any, name: str) -> Mapping[str, Tensor]:
    """The inputs of a signature as the REST API asks for them: INVALID_ARGUMENT where it does not exist."""
    signature = servable.signatures.get(name or DEFAULT_SIGNATURE)
    if signature is None:
        raise invalid(f'Serving signature name: "{name or DEFAULT_SIGNATURE}" not found in signature def')
    return signature.inputs


def arrays_for(signature: Any, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The arrays in the order the signature takes them, once names and types are right."""
    if inputs.keys() != signature.inputs.keys():
        sent, wanted = set(inputs), set(signature.inputs)
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(wanted)} len({{{_names(sent)}}}) != "
            f"len({{{_names(wanted)}}}). Sent extra: {{{_names(sent - wanted)}}}. Missing but required: "
            f"{{{_names(wanted - sent)}}}."
        )
    arrays = []
    for i, (name, tensor) in enumerate(signature.inputs.items()):
        array = inputs[name]
        if array.dtype != tensor.dtype.numpy:
            found = "string" if array.dtype == object else array.dtype.name
            raise invalid(f"Expects arg[{i}] to be {tensor.dtype.short} but {found} is provided (input {name!r})")
        if not _fits(array.shape, tensor.shape):
            raise invalid(
                f"Expects arg[{i}] to have a shape that fits {_shape(tensor.shape)} but {_shape(array.shape)} is "
                f"provided (input {name!r})"
            )
        arrays.append(array)
    return arrays


def picked(signature: Any, arrays: Sequence[Any], names: Sequence[str]) -> dict[str, np.ndarray]:
    """The outputs by name: those a request asks for, or all of them."""
    outputs = {
        name: array if isinstance(array, np.ndarray) else np.asarray(array, tensor.dtype.numpy)
        for (name, tensor), array in zip(signature.outputs.items(), arrays)
    }
    return {name: outputs[name] for name in names} if names else outputs


def replay(servable: Any, record: Any) -> None:
    """Answer a recorded request (a PredictionLog) and drop the answer: the first real request then finds a warm model.

    Raises:
        ServingError: the record does not fit the model.
    """
    kind = record.WhichOneof("log_type")
    if kind == "predict_log":
        request = record.predict_log.request
        signature = signature_of(servable, request.model_spec.signature_name)
        inputs = {name: decode(proto, name) for name, proto in request.inputs.items()}
        timed(signature, *_sized(arrays_for(signature, inputs)))
    elif kind in ("classify_log", "regress_log"):
        request = getattr(record, kind).request
        method = CLASSIFY if kind == "classify_log" else REGRESS
        signature = example_signature(servable, request.model_spec.signature_name, method)
        timed(signature, *_sized([serialized_examples(request.input)]))


def check_filter(signature: Any, names: Sequence[str]) -> None:
    """An output filter names outputs of the signature, each once."""
    for i, name in enumerate(names):
        if name not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name} Outputs expected to be in the set "
                f"{{{_names(signature.outputs)}}}."
            )
        if name in names[:i]:
            raise invalid(f"duplicate output tensor alias: {name}")


def serialized_examples(request_input: Any) -> np.ndarray:
    """The examples of a classify or regress request as serialized tf.Examples, one for each element.

    A context is merged into every example: protocol buffers merge where their bytes are joined.
    """
    if request_input.WhichOneof("kind") == "example_list_with_context":
        listed = request_input.example_list_with_context
        context = listed.context.SerializeToString()
        values = [context + example.SerializeToString() for example in listed.examples]
    else:
        values = [example.SerializeToString() for example in request_input.example_list.examples]
    if not values:
        raise invalid("Input is empty.")
    array = np.empty(len(values), object)
    array[:] = values
    return array


def example_signature(servable: Any, name: str, method: str) -> Any:
    """The signature of a classify or regress request, once its method, input and outputs are right."""
    kind = "classification" if method == CLASSIFY else "regression"
    name = name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(name)
    if signature is None:
        raise invalid(f"No signature was found with the name: {name}")
    if signature.method != method:
        raise invalid(f"Expected {kind} signature method_name to be {method}. Was: {signature.method}")
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if "inputs" not in signature.inputs:
        raise ServingError("FAILED_PRECONDITION", f"No {kind} inputs found in SignatureDef: {name}")
    expected = {"classes", "scores"} if method == CLASSIFY else {"outputs"}
    if not expected & signature.outputs.keys():
        raise ServingError("FAILED_PRECONDITION", f"No {kind} outputs found in SignatureDef: {name}")
    return signature


def classifications(outputs: Mapping[str, np.ndarray], count: int) -> list[list[tuple[bytes, float]]]:
    """Labels and scores of each example; a model may give either alone."""
    classes, scores = outputs.get("classes"), outputs.get("scores")
    for name, array, kind in (("classes", classes, "O"), ("scores", scores, "f")):
        if array is None:
            continue
        if array.ndim != 2:
            raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array.shape)}")
        if array.dtype.kind != kind or (kind == "f" and array.dtype != np.float32):
            raise invalid(f"Expected {name} Tensor of {'DT_STRING' if kind == 'O' else 'DT_FLOAT'}. Got: {array.dtype}")
        if len(array) != count:
            raise invalid(f"Expected {name} output batch size of {count}. Got: {len(array)}")
    if classes is not None and scores is not None and classes.shape != scores.shape:
        raise invalid(
            f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    labels = classes.tolist() if classes is not None else [[b""] * len(row) for row in scores]  # type: ignore[union-attr]
    values = scores.tolist() if scores is not None else [[0.0] * len(row) for row in labels]
    return [list(zip(*pair)) for pair in zip(labels, values)]


def regressions(outputs: Mapping[str, np.ndarray], count: int) -> list[float]:
    """The value of each example."""
    array = outputs["outputs"]
    if not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        raise invalid(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape(array.shape)}"
        )
    if len(array) != count:
        raise invalid(f"Input batch size did not match output batch size: {count} vs. {len(array)}")
    if array.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {array.dtype}")
    return array.ravel().tolist()


class Runner:
    """Runs signatures, on the event loop or in one of `threads` threads.

    Args:
        manager: the models.
        threads: how many slow calls run at once.
        inline_seconds: below this, calls run on the event loop.
    """

    def __init__(self, manager: Manager, threads: int, inline_seconds: float = INLINE_SECONDS):
        self.manager = manager
        self.inline_seconds = inline_seconds
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="inference")

    async def run(
        self, version: Version, signature: Any, arrays: Sequence[np.ndarray], timeout: float | None = None
    ) -> list[Any]:
        """The outputs of one call, in the order of the signature.

        Raises:
            ServingError: what TensorFlow says of the inputs; DEADLINE_EXCEEDED after `timeout` seconds.
        """
        size, arrays = _sized(arrays)
        if signature.seconds.get(size, 1.0) < self.inline_seconds:
            return timed(signature, size, arrays)
        version.in_flight += 1  # for the thread: it may outlive the request that a client gave up
        future = asyncio.get_running_loop().run_in_executor(self._pool, timed, signature, size, arrays)
        future.add_done_callback(lambda done: _finished(version, done))
        try:
            return await asyncio.wait_for(asyncio.shield(future), timeout)
        except TimeoutError:
            raise ServingError("DEADLINE_EXCEEDED", f"Timed out after {timeout} seconds") from None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _finished(version: Version, done: asyncio.Future) -> None:
    """A call in a thread has ended; its error, if any, has been told to the client, unless the client is gone."""
    version.release()
    if not done.cancelled():
        done.exception()


def timed(signature: Any, size: int, arrays: Sequence[np.ndarray]) -> list[Any]:
    """Run a signature, and remember what it cost."""
    begin = time.perf_counter()
    try:
        outputs = signature.run(arrays)
    except Exception as error:
        raise as_serving_error(error) from error
    took, known = time.perf_counter() - begin, signature.seconds.get(size)
    # Up at once and down slowly: a signature whose cost depends on its values must not hold the event loop twice.
    signature.seconds[size] = took if known is None or took > known else 0.9 * known + 0.1 * took
    return outputs


def _sized(arrays: Sequence[np.ndarray]) -> tuple[int, Sequence[np.ndarray]]:
    """The size of the inputs as a power of two of bytes, and the inputs."""
    total = 0
    for array in arrays:
        total += sum(map(len, array.ravel().tolist())) if array.dtype == object else array.nbytes
    return total.bit_length(), arrays


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...] | None) -> bool:
    return wanted is None or (
        len(shape) == len(wanted) and all(size in (given, -1) for given, size in zip(shape, wanted))
    )


def _names(names: Any) -> str:
    return ",".join(sorted(names))


def _shape(shape: tuple[int, ...] | None) -> str:
    return "[" + ",".join("?" if size < 0 else str(size) for size in shape or ()) + "]"
