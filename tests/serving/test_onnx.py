"""ONNX: every architecture converts, answers as Keras does, and says in one line what it cannot take."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from models.layers.attention import MultiHeadAttention
from pipelines import image_classification, runs
from pipelines.config import Failure, UsageError
from serving import export, onnx

SMALL = {
    "mlp": ((8, 8, 1), {}),
    "lenet": ((28, 28, 1), {}),
    "convnet": ((8, 8, 1), {"widths": (8, 16), "depth": 1}),
    "vgg": ((32, 32, 3), {}),
    "resnet": ((16, 16, 3), {"depths": (1, 1), "width": 8}),
    "inception": ((75, 75, 3), {}),
    "efficientnet": ((32, 32, 3), {}),
    "vit": ((16, 16, 3), {}),
}


@pytest.fixture(scope="module")
def version(tiny_run, tmp_path_factory):
    (path,) = export.export(tiny_run, out=tmp_path_factory.mktemp("exported"), formats=("onnx",))
    return path


@pytest.mark.parametrize("name", image_classification.MODELS)
def test_every_architecture_answers_as_keras_does(name, tmp_path):
    shape, arguments = SMALL[name]
    model = image_classification.MODELS[name](shape, 5, **arguments)
    spec = {
        "image_shape": list(shape),
        "resize": "stretch",
        "classes": ["one", "two", "três", "四", "5"],
        "normalization": {"mean": [100.0], "std": [60.0], "order": "bgr" if shape[-1] == 3 else "rgb"},
    }
    offered = image_classification.more_signatures(model, None, spec)
    function, _ = offered[image_classification.PORTABLE]
    onnx.convert(function, {"image": tf.TensorSpec((None, *shape), tf.uint8)}, tmp_path / "model.onnx")
    converted = onnx.load(tmp_path)
    for count in (1, 3):
        pixels = np.random.default_rng(count).integers(0, 256, (count, *shape), "uint8")
        found, wanted = converted({"image": pixels}), function(tf.constant(pixels))
        assert found["label"].tolist() == [one.decode() for one in wanted["label"].numpy()]
        np.testing.assert_allclose(found["probabilities"], wanted["probabilities"], atol=1e-5)


def test_an_exported_run_answers_for_raw_pixels(version, tiny_run):
    run = runs.load(tiny_run)
    data = image_classification.load_data(run.config)
    labels, probabilities = image_classification.predict(run.model, data.test, run.spec)
    pixels = data.test.examples["image"].numpy()
    found = onnx.load(version / "model.onnx")({"image": pixels})
    np.testing.assert_allclose(found["probabilities"], probabilities, atol=1e-5)
    assert np.mean(found["label"] == np.array(run.spec["classes"])[labels]) == pytest.approx(
        run.metrics["test"]["accuracy"], abs=1e-6
    )


def test_the_summary_describes_inputs_and_outputs(version):
    summary = json.loads((version / "signature.json").read_text())
    found = summary["signatures"]["from_pixels"]
    assert version.parent.name == "image_classification-onnx"
    assert found["inputs"] == {"image": {"dtype": "uint8", "shape": [None, 8, 8, 1]}}
    assert found["outputs"]["probabilities"] == {"dtype": "float32", "shape": [None, 10]}
    assert found["outputs"]["label"] == {"dtype": "string", "shape": [None]}
    assert found["opset"] == 18
    assert summary["gate"]["onnx from_pixels"]["largest_difference"] <= 1e-5


def test_a_conversion_that_answers_otherwise_is_not_published(tiny_run, tmp_path, monkeypatch):
    honest = onnx.OnnxModel.__call__

    def off(self, inputs):
        answers = honest(self, inputs)
        return answers | {"probabilities": answers["probabilities"] + 2e-5}

    monkeypatch.setattr(onnx.OnnxModel, "__call__", off)
    with pytest.raises(Failure, match="'probabilities' of onnx from_pixels"):
        export.export(tiny_run, out=tmp_path / "exported", formats=("onnx",), gate_limit=8)
    assert not (tmp_path / "exported").exists()


def test_a_run_in_lower_precision_is_refused(tiny_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    config = dataclasses.replace(runs.load(folder, model=False).config, precision="mixed_bfloat16")
    runs.write_json(folder / "config.json", runs.to_json(config))
    with pytest.raises(UsageError, match="Expected a run with --precision float32 for ONNX. Received: mixed_bfloat16"):
        export.export(folder, out=tmp_path / "exported", formats=("onnx",))
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    "inputs, told",
    [
        ({"imgae": np.zeros((1, 8, 8, 1), "uint8")}, "Did you mean 'image'?"),
        ({}, "Received: none"),
        ({"image": np.zeros((1, 8, 8, 1), "float32")}, "Received: float32"),
        ({"image": np.zeros((1, 9, 8, 1), "uint8")}, r"Received: uint8 \(1, 9, 8, 1\)"),
        ({"image": np.zeros((8, 8, 1), "uint8")}, r"Received: uint8 \(8, 8, 1\)"),
    ],
)
def test_inputs_that_do_not_fit_are_told(inputs, told, version):
    with pytest.raises(ValueError, match=told):
        onnx.load(version)(inputs)


def test_files_that_are_no_model_are_told(tmp_path):
    with pytest.raises(UsageError, match="Expected an ONNX file"):
        onnx.load(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(Failure, match="Expected an ONNX model that onnxruntime can run"):
        onnx.load(tmp_path)


def test_a_function_that_onnx_cannot_hold_is_told(tmp_path):
    def decode(image):
        return {"size": tf.map_fn(lambda one: tf.size(tf.io.decode_image(one)), image, fn_output_signature=tf.int32)}

    with pytest.raises(Failure, match="Expected a"):
        onnx.convert(decode, {"image": tf.TensorSpec([None], tf.string)}, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_attention_over_texts_of_any_length_runs_in_onnxruntime(tmp_path):
    """It takes the shape of a projection's output for that of its rows, where that shape is asked for."""
    layer = MultiHeadAttention(2, 4)
    x = np.random.default_rng(0).normal(size=(3, 5, 8)).astype("float32")
    expected = layer(x)
    onnx.convert(lambda x: {"y": layer(x)}, {"x": tf.TensorSpec([None, None, 8], tf.float32)}, tmp_path / "model.onnx")
    np.testing.assert_allclose(onnx.load(tmp_path)({"x": x})["y"], expected, atol=1e-5)
