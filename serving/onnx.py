"""Models as ONNX: a run converted for any ONNX runtime, and such a file as a Python function.

    python -m serving.export RUN --format onnx

writes `exported/<task>-onnx/<version>/model.onnx`. The graph is that of the pipeline's `PORTABLE` signature; for
pictures that is `from_pixels`: uint8 pixels of the model's own size go in, standardization is inside, label and
probabilities come out. Decoding and resizing stay outside, since ONNX does not decode or resize as TensorFlow does.

    answer = load("exported/image_classification-onnx/1")
    answer({"image": pixels})["label"]
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config import Failure, UsageError, nearest

OPSET = 18
FILE = "model.onnx"


class OnnxModel:
    """A loaded model: called with {input: array}, answers {output: array}; strings are Python `str`.

    `inputs` and `outputs` are {name: (dtype, shape)}: NumPy's names and `string`, None for the number of examples.
    """

    def __init__(self, session: Any):
        self.session = session
        self.inputs = {one.name: _kind(one) for one in session.get_inputs()}
        self.outputs = {one.name: _kind(one) for one in session.get_outputs()}

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Ask the model.

        Raises:
            ValueError: an input is missing, unknown, or of another dtype or shape.
        """
        for name in inputs:
            if name not in self.inputs:
                near = nearest(name, self.inputs)
                raise ValueError(f"Expected the inputs {', '.join(self.inputs)}.{near} Received: {name!r}")
        arrays = {}
        for name, (dtype, shape) in self.inputs.items():
            if name not in inputs:
                raise ValueError(
                    f"Expected the inputs {', '.join(self.inputs)}. Received: {', '.join(inputs) or 'none'}"
                )
            array = np.asarray(inputs[name])
            fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape))
            kind = "string" if array.dtype.kind in "OU" else str(array.dtype)
            if kind != dtype or not fits:
                raise ValueError(f"Expected {name} of {dtype} {shape}. Received: {array.dtype} {array.shape}")
            arrays[name] = array
        return dict(zip(self.outputs, self.session.run(None, arrays)))


def load(path: str | Path, *, threads: int = 0) -> OnnxModel:
    """Load a `model.onnx`, or the version folder that holds one, in onnxruntime on the CPU.

    Args:
        path: file or folder.
        threads: within an operation; 0 leaves the choice to onnxruntime.

    Raises:
        UsageError: no such file.
        Failure: the file is damaged, or holds operations that onnxruntime does not have.
    """
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"Expected an ONNX file, or a folder with a {FILE}. Received: {path}")
    return OnnxModel(_session(str(file), threads))


def _session(model: str | bytes, threads: int = 0) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a class of its own for each of its status codes
        what = model if isinstance(model, str) else "the converted model"
        text = " ".join(str(error).split())[:400]
        raise Failure(f"Expected an ONNX model that onnxruntime can run. Received: {what}: {text}") from error


def _kind(value: Any) -> tuple[str, tuple[int | None, ...]]:
    """The dtype in NumPy's words and the shape of an input or output."""
    dtype = value.type.removeprefix("tensor(").removesuffix(")")
    names = {"float": "float32", "double": "float64"}
    return names.get(dtype, dtype), tuple(size if isinstance(size, int) else None for size in value.shape)


def convert(function: Callable[..., Any], inputs: Mapping[str, Any], path: Path) -> None:
    """Convert a function of tensors and write it; the first axis of all inputs and outputs is `batch`, any size.

    Args:
        function: of tensors in the order of `inputs`, answers {output: tensor}.
        inputs: {name: tf.TensorSpec}; every dimension but the first must be known.
        path: of the file to write.

    Raises:
        Failure: the function holds operations that ONNX has no counterpart for.
    """
    import tensorflow as tf
    import tf2onnx

    specs = [tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in inputs.items()]
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # what it cannot convert is found by onnxruntime below
    traced = tf.function(function, input_signature=specs)
    try:
        model, _ = tf2onnx.convert.from_function(traced, specs, opset=OPSET, custom_op_handlers={"Erfc": (_erfc, [])})
    except Exception as error:  # the converter raises whatever its handlers run into
        text = " ".join(str(error).split())[:400]
        raise Failure(f"Expected a model that converts to ONNX. Received: {text}") from error
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    model.producer_name = "dl_essentials"
    content = model.SerializeToString()
    _session(content)
    path.write_bytes(content)


def _erfc(context: Any, node: Any, name: str, arguments: Sequence[Any]) -> Any:
    """`Erfc`, of the exact GELU, which ONNX lacks: erfc(x) = 1 - erf(x)."""
    shapes, dtypes = [context.get_shape(node.output[0])], [context.get_dtype(node.output[0])]
    source, target = node.input[0], node.output[0]
    context.remove_node(name)
    one = context.make_const(f"{name}_one", np.ones((), "float32"))
    erf = context.make_node("Erf", [source], name=f"{name}_erf", shapes=shapes, dtypes=dtypes)
    operands = [one.output[0], erf.output[0]]
    return context.make_node("Sub", operands, name=name, outputs=[target], shapes=shapes, dtypes=dtypes)
