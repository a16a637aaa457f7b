"""Tiny SavedModels, built once, and a running server of them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from server_process import Server


def half_plus(base: Path, versions) -> None:
    """TensorFlow Serving's own example, y = x / 2 + version, with classify, regress, and signatures of many kinds."""
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    module = tf.Module()
    module.half, module.offset = tf.Variable(0.5), tf.Variable(0.0)
    signatures = {}

    def signature(function, **inputs):
        specs = [tf.TensorSpec(shape, dtype, name=name) for name, (shape, dtype) in inputs.items()]
        made = tf.function(function, input_signature=specs)
        signatures[function.__name__] = made
        setattr(module, f"{function.__name__}_function", made)

    def serving_default(x):
        return {"y": x * module.half + module.offset}

    def matmul(a, b):
        return {"product": a @ b, "rows": tf.reduce_sum(a, axis=1)}

    def strings(text):
        return {"length": tf.strings.length(text), "upper": tf.strings.upper(text), "upper_bytes": tf.identity(text)}

    def slow(steps):  # some milliseconds for each step: something to be in flight
        x = tf.random.stateless_uniform([256, 256], [0, 1])
        state = tf.while_loop(lambda i, _: i < steps[0], lambda i, y: (i + 1, tf.tanh(y @ x)), (tf.constant(0), x))
        return {"y": tf.reduce_mean(state[1])[None]}

    def classify(inputs):
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]
        scores = tf.concat([x * module.half + module.offset, x], axis=1)
        return {"classes": tf.tile([["half", "same"]], [tf.shape(x)[0], 1]), "scores": scores}

    def regress(inputs):
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]
        return {"outputs": x * module.half + module.offset}

    signature(serving_default, x=([None], tf.float32))
    signature(matmul, a=([None, None], tf.float32), b=([None, None], tf.float32))
    signature(strings, text=([None], tf.string))
    signature(slow, steps=([None], tf.int32))
    signature(classify, inputs=([None], tf.string))
    signature(regress, inputs=([None], tf.string))
    for dtype in (tf.float32, tf.float64, tf.int32, tf.int64, tf.uint8, tf.bool, tf.float16, tf.string):

        def same(x):
            return {"same": tf.identity(x)}

        same.__name__ = f"same_{dtype.name}"
        signature(same, x=(None, dtype))
    for version in versions:
        module.offset.assign(float(version))
        folder = base / str(version)
        tf.saved_model.save(module, str(folder), signatures=signatures)
        file = folder / "saved_model.pb"
        message = saved_model_pb2.SavedModel.FromString(file.read_bytes())
        for name in ("classify", "regress"):
            message.meta_graphs[0].signature_def[name].method_name = f"tensorflow/serving/{name}"
        file.write_bytes(message.SerializeToString())


@pytest.fixture(scope="session")
def half(tmp_path_factory) -> Path:
    """A base path with versions 1 (x/2 + 1), 2 (x/2 + 2) and 3 (x/2 + 3)."""
    base = tmp_path_factory.mktemp("half")
    half_plus(base, (1, 2, 3))
    return base


@pytest.fixture(scope="session")
def server(half, tmp_path_factory):
    """A running server of all three versions, with labels."""
    file = tmp_path_factory.mktemp("config") / "models.config"
    file.write_text(
        f"""model_config_list {{
          config {{ name: "half" base_path: "{half}" model_platform: "tensorflow"
                    model_version_policy {{ all {{}} }} version_labels {{ key: "stable" value: 2 }} }}
          config {{ name: "one" base_path: "{half}" model_platform: "tensorflow"
                    model_version_policy {{ specific {{ versions: 1 }} }} }}
          config {{ name: "latest" base_path: "{half}" model_platform: "tensorflow" }}
        }}"""
    )
    running = Server(f"--model_config_file={file}")
    yield running
    assert running.stop(signal.SIGINT) == 0
