"""The signatures of a run: from the functions its pipeline serves to a SavedModel, its warm-up requests, and a summary.

`serving_default` comes from the pipeline's `serving_fn`, the others from its `more_signatures` where it offers that.
Inputs and outputs keep the names that the pipeline gave them. What a function needs beside the model (tables of a
tokenizer, say) it names in an attribute `resources`, and it is saved along. A signature called `classify` or `regress`
gets the method of that name in TensorFlow Serving, which Classify and Regress calls ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import classification_pb2, predict_pb2, prediction_log_pb2, regression_pb2

import pipelines
from pipelines.runs import Run

Signatures = dict[str, tuple[Callable[..., Any], dict[str, tf.TensorSpec]]]
Arrays = dict[str, np.ndarray]

METHODS = {"classify": "tensorflow/serving/classify", "regress": "tensorflow/serving/regress"}
WARMUP_BATCHES = (1, 8)


def signatures(run: Run) -> Signatures:
    """{name: (function of raw inputs to named answers, {input: TensorSpec})} of a loaded run."""
    pipeline: Any = pipelines.get(run.task)
    found = {"serving_default": pipeline.serving_fn(run.model, run.config, run.spec)}
    if hasattr(pipeline, "more_signatures"):
        found |= pipeline.more_signatures(run.model, run.config, run.spec)
    return found


def write(model: keras.Model, offered: Signatures, folder: Path) -> None:
    """Write a SavedModel with these signatures to a folder."""
    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, (function, inputs) in offered.items():
        for resource in getattr(function, "resources", ()):
            archive.track(resource)
        archive.add_endpoint(name, function, list(inputs.values()))
    archive.write_out(str(folder), verbose=False)
    set_methods(folder / "saved_model.pb", {name: METHODS[name] for name in offered if name in METHODS})


def set_methods(path: Path, methods: Mapping[str, str]) -> None:
    """Set the method names of signatures: TensorFlow writes `tensorflow/serving/predict` for all of them."""
    file = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for name, method in methods.items():
        file.meta_graphs[0].signature_def[name].method_name = method
    path.write_bytes(file.SerializeToString(deterministic=True))


def read(folder: Path) -> dict[str, Callable[[Arrays], Arrays]]:
    """The signatures of a SavedModel on disk as functions of named arrays."""
    loaded = tf.saved_model.load(str(folder))

    def asker(name: str) -> Callable[[Arrays], Arrays]:
        function = loaded.signatures[name]

        def ask(inputs: Arrays) -> Arrays:
            answers = function(**{key: tf.constant(value) for key, value in inputs.items()})
            return {key: value.numpy() for key, value in answers.items()}

        ask.model = loaded  # type: ignore[attr-defined]  # its variables live as long as it does
        return ask

    return {name: asker(name) for name in loaded.signatures}


def describe(folder: Path) -> dict[str, Any]:
    """{signature: {"method", "inputs": {name: {"dtype", "shape"}}, "outputs": …}} as `saved_model.pb` has them."""
    file = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())

    def tensors(infos: Any) -> dict[str, Any]:
        return {
            name: {
                "dtype": tf.dtypes.as_dtype(infos[name].dtype).name,
                "shape": [None if dim.size < 0 else dim.size for dim in infos[name].tensor_shape.dim],
            }
            for name in sorted(infos)
        }

    return {
        name: {
            "method": definition.method_name,
            "inputs": tensors(definition.inputs),
            "outputs": tensors(definition.outputs),
        }
        for name, definition in sorted(file.meta_graphs[0].signature_def.items())
        if not name.startswith("__")
    }


def write_warmup(folder: Path, model_name: str, examples: Mapping[str, Arrays]) -> None:
    """Write the requests that a server replays before it calls a version ready.

    A TFRecord file of PredictionLog messages, where TensorFlow Serving looks for it; for every signature a request with
    one example and a request with eight.

    Args:
        folder: of the SavedModel.
        model_name: what the model is called on the server.
        examples: {signature: {input: array}} with the example as first axis.
    """
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as file:
        for name, inputs in examples.items():
            for size in WARMUP_BATCHES:
                file.write(logged(model_name, name, {k: v[:size] for k, v in inputs.items()}).SerializeToString())


def logged(model_name: str, signature: str, inputs: Arrays) -> prediction_log_pb2.PredictionLog:
    """A request as a PredictionLog: Classify and Regress for signatures with those methods, Predict for others."""
    log = prediction_log_pb2.PredictionLog()
    if signature in METHODS:
        request: Any = {
            "classify": classification_pb2.ClassificationRequest,
            "regress": regression_pb2.RegressionRequest,
        }
        request = request[signature]()
        (serialized,) = inputs.values()  # (b,) of tf.train.Example
        request.input.example_list.examples.extend(tf.train.Example.FromString(one) for one in serialized)
    else:
        request = predict_pb2.PredictRequest()
        for key, value in inputs.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    request.model_spec.name, request.model_spec.signature_name = model_name, signature
    field = {"classify": log.classify_log, "regress": log.regress_log}.get(signature, log.predict_log)
    field.request.CopyFrom(request)
    return log
