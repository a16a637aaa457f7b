"""Export: every signature answers as Keras does, versions appear whole or not at all, and errors are one line."""

from __future__ import annotations

import dataclasses
import io
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines import image_classification, runs
from pipelines.config import Failure, UsageError, guarded
from serving import export, gate

TASK = "image_classification"
SIGNATURES = {"serving_default", "from_pixels", "features", "classify"}


@pytest.fixture(scope="module")
def version(tiny_run, tmp_path_factory) -> Path:
    """The tiny run, exported."""
    (path,) = export.export(tiny_run, out=tmp_path_factory.mktemp("exported"))
    return path


@pytest.fixture(scope="module")
def served(version):
    """Its signatures, loaded from disk."""
    from serving import signatures

    return signatures.read(version)


def untrained(config: image_classification.Config) -> Path:
    """A finished run folder whose model has its initial weights."""
    data = image_classification.load_data(config)
    model = image_classification.build_model(config, data.spec)
    with runs.start(TASK, config, data.spec) as folder:
        runs.save_model(model, folder / "model.keras")
        runs.write_json(folder / "metrics.json", {"test": {}})
    return folder


def encoded(pixels: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).save(file, kind, **options)
    return file.getvalue()


def digits(tiny_run, count: int) -> np.ndarray:
    """Test pictures as pixels, (count, 8, 8, 1)."""
    from pipelines import datasets
    from pipelines.transforms import images

    items = datasets.load("tiny_digits").test.take(count).as_numpy_iterator()
    return np.stack([images.decode(item["image"]).numpy() for item in items])


def test_the_signatures_are_those_of_the_contract(version):
    found = json.loads((version / "signature.json").read_text())["signatures"]
    assert found.keys() == SIGNATURES
    assert found["serving_default"]["inputs"] == {"image": {"dtype": "string", "shape": [None]}}
    assert found["from_pixels"]["inputs"] == {"image": {"dtype": "uint8", "shape": [None, None, None, 1]}}
    assert found["classify"]["inputs"] == {"inputs": {"dtype": "string", "shape": [None]}}
    assert found["serving_default"]["outputs"].keys() == {"label", "probabilities"}
    assert found["classify"]["outputs"].keys() == {"classes", "scores"}
    methods = {name: one["method"].rpartition("/")[2] for name, one in found.items()}
    assert methods == dict.fromkeys(SIGNATURES, "predict") | {"classify": "classify"}


def test_the_summary_tells_where_the_version_comes_from(version, tiny_run):
    summary = json.loads((version / "signature.json").read_text())
    assert summary["run"] == tiny_run.name and summary["version"] == 1
    assert summary["classes"] == list("0123456789")
    assert summary["test"] == json.loads((tiny_run / "metrics.json").read_text())["test"]
    assert {"keras", "tensorflow"} <= summary["versions"].keys()
    assert all(found["examples"] > 30 and found["largest_difference"] <= 1e-5 for found in summary["gate"].values())
    assert "b64" in summary["signatures"]["serving_default"]["curl"]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF"])
def test_lossless_bytes_answer_as_their_pixels(kind, served, tiny_run):
    pixels = digits(tiny_run, 3)
    by_bytes = served["serving_default"]({"image": np.array([encoded(one, kind) for one in pixels], object)})
    by_pixels = served["from_pixels"]({"image": pixels})
    assert by_bytes["label"].tolist() == by_pixels["label"].tolist()
    np.testing.assert_allclose(by_bytes["probabilities"], by_pixels["probabilities"], atol=1e-5)
    np.testing.assert_allclose(by_bytes["probabilities"].sum(-1), 1, atol=1e-5)


def test_jpeg_bytes_answer_nearly_as_their_pixels(served, tiny_run):
    pixels = digits(tiny_run, 3)
    given = np.array([encoded(one, "JPEG", quality=100) for one in pixels], object)
    found, wanted = served["serving_default"]({"image": given}), served["from_pixels"]({"image": pixels})
    np.testing.assert_allclose(found["probabilities"], wanted["probabilities"], atol=0.02)


def test_one_request_may_mix_sizes_channels_and_formats(served, tiny_run):
    pixels = digits(tiny_run, 1)[0]
    large = np.kron(pixels[..., 0], np.ones((4, 4), "uint8"))  # (32, 32)
    colour = np.repeat(large[..., None], 3, axis=-1)
    given = [encoded(pixels, "PNG"), encoded(colour, "BMP"), encoded(np.tile(large, (1, 2)), "PNG")]
    together = served["serving_default"]({"image": np.array(given, object)})
    alone = [served["serving_default"]({"image": np.array([one], object)}) for one in given]
    assert together["probabilities"].shape == (3, 10)
    np.testing.assert_allclose(
        together["probabilities"], np.concatenate([a["probabilities"] for a in alone]), atol=1e-5
    )


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (5, 40), (1, 1)])
def test_pixels_of_any_size_answer_as_their_bytes(size, served):
    pixels = np.random.default_rng(0).integers(0, 256, (2, *size, 1), "uint8")
    by_pixels = served["from_pixels"]({"image": pixels})
    by_bytes = served["serving_default"]({"image": np.array([encoded(one, "PNG") for one in pixels], object)})
    np.testing.assert_allclose(by_pixels["probabilities"], by_bytes["probabilities"], atol=1e-5)


def test_classify_and_features_belong_to_the_same_model(served, tiny_run):
    import tensorflow as tf

    pictures = [encoded(one, "PNG") for one in digits(tiny_run, 4)]
    examples = [
        tf.train.Example(
            features=tf.train.Features(feature={"image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[one]))})
        )
        for one in pictures
    ]
    found = served["classify"]({"inputs": np.array([one.SerializeToString() for one in examples], object)})
    wanted = served["serving_default"]({"image": np.array(pictures, object)})
    np.testing.assert_allclose(found["scores"], wanted["probabilities"], atol=1e-5)
    best = found["scores"].argmax(-1)
    assert found["classes"][np.arange(4), best].tolist() == wanted["label"].tolist()
    features = served["features"]({"image": np.array(pictures, object)})["features"]
    head = runs.load(tiny_run).model.get_layer("logits")
    scores = np.exp(np.asarray(head(features)))
    np.testing.assert_allclose(scores / scores.sum(-1, keepdims=True), wanted["probabilities"], atol=1e-5)


def test_warm_up_requests_are_real_requests_of_every_signature(version):
    from serving.server import engine

    logs = engine.warmup_records(version)
    asked = {}
    for log in logs:
        kind = log.WhichOneof("log_type")
        request = getattr(log, kind).request
        if kind == "classify_log":
            count = len(request.input.example_list.examples)
        else:
            count = request.inputs["image"].tensor_shape.dim[0].size
        asked.setdefault((kind, request.model_spec.signature_name), []).append(count)
    assert asked == {
        ("predict_log", "serving_default"): [1, 8],
        ("predict_log", "from_pixels"): [1, 8],
        ("predict_log", "features"): [1, 8],
        ("classify_log", "classify"): [1, 8],
    }


def test_versions_count_up_from_the_highest_there(tiny_run, tmp_path):
    (tmp_path / TASK / "7").mkdir(parents=True)
    (tmp_path / TASK / ".export-9-stale").mkdir()
    (path,) = export.export(tiny_run, out=tmp_path, gate_limit=3)
    assert path.name == "8"
    assert export.versions(path.parent) == [7, 8]
    with pytest.raises(UsageError, match="Expected --version to be a new one; there are 7, 8. Received: 7"):
        export.export(tiny_run, out=tmp_path, version=7)


def tampered(monkeypatch, change) -> None:
    """Let `serving_fn` serve something else than was trained."""
    honest = image_classification.serving_fn

    def serving_fn(model, config, spec):
        function, inputs = honest(model, config, spec)
        return (lambda image: change(function(image))), inputs

    monkeypatch.setattr(image_classification, "serving_fn", serving_fn)


@pytest.mark.parametrize("what", ["probabilities", "label"])
def test_answers_other_than_keras_are_not_published(what, tiny_run, tmp_path, monkeypatch):
    import tensorflow as tf

    change = {
        "probabilities": lambda a: a | {"probabilities": a["probabilities"] + 1e-3},
        "label": lambda a: a | {"label": tf.strings.join([a["label"], "!"])},
    }[what]
    tampered(monkeypatch, change)
    with pytest.raises(Failure, match=f"'{what}' of savedmodel serving_default .* nothing was published"):
        export.export(tiny_run, out=tmp_path / "exported", gate_limit=40)
    assert not (tmp_path / "exported").exists()


EXPECTED = {"p": np.float32([[0.25, 0.75], [1, 0]])}


@pytest.mark.parametrize(
    "answered, told",
    [
        ({"p": EXPECTED["p"] + np.float32([[0], [2e-5]])}, "in 1 of 2 test examples, first in number 11"),
        ({"p": EXPECTED["p"] * np.nan}, "in 2 of 2 test examples"),
        ({"p": EXPECTED["p"][:, :1]}, r"shape \(2, 2\)\. Received: \(2, 1\)"),
        ({"q": EXPECTED["p"]}, "Expected the output 'p' of x. Received: q"),
    ],
)
def test_the_gate_names_what_is_wrong(answered, told):
    with pytest.raises(Failure, match=told):
        gate.compare("x", 10, EXPECTED, answered)


@given(st.floats(0, 9e-6), st.floats(1, 1e6))
def test_the_gate_lets_rounding_pass_and_measures_it(off, scale):
    wanted = np.float64([[scale, 0.0], [0.0, -scale]])
    doors = {"x": ("s", lambda inputs: {"v": wanted + off * scale})}
    found = gate.check(doors, [{"s": ({}, {"v": wanted})}] * 2)["x"]
    assert found["examples"] == 4
    assert found["largest_difference"] == pytest.approx(off, abs=1e-9)


def test_a_signature_that_nothing_is_known_about_does_not_pass():
    with pytest.raises(Failure, match="Expected test examples for x"):
        gate.check({"x": ("s", lambda inputs: {})}, [{"other": ({}, EXPECTED)}])


def test_labels_may_differ_only_where_probabilities_tie():
    near, far = np.float32([[0.5, 0.5 - 1e-6]]), np.float32([[0.51, 0.49]])
    a, b = np.array(["a"], object), np.array([b"b"], object)
    assert gate.compare("x", 0, {"probabilities": near, "label": a}, {"probabilities": near, "label": b}) == 0
    with pytest.raises(Failure, match="number 40"):
        gate.compare("x", 40, {"probabilities": far, "label": a}, {"probabilities": far, "label": b})


def test_a_version_is_invisible_until_it_is_whole(tiny_run, tmp_path, monkeypatch):
    seen = []

    def check(doors, batches):
        seen.append(export.versions(tmp_path / TASK))
        assert (next((tmp_path / TASK).iterdir()) / "saved_model.pb").exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gate, "check", check)
    with pytest.raises(OSError, match="No space left"):
        export.export(tiny_run, out=tmp_path)
    assert seen == [[]]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_the_versions_as_they_were(tiny_run, tmp_path, capfd):
    (tmp_path / TASK / "1").mkdir(parents=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # files may not grow beyond 10 kB
    try:
        assert guarded(lambda: export.export(tiny_run, out=tmp_path)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / TASK).iterdir()] == ["1"]
    said = capfd.readouterr().err
    assert said.startswith("error: ") and "File too large" in said and said.count("\n") == 1


def test_photographs_of_mixed_sizes_pass_the_gate(tmp_path):
    random = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(24):
            size = random.integers(9, 60, 2)
            pixels = random.integers(level - 40, level + 40, (*size, 3), "uint8")
            (tmp_path / "data" / name / f"{i}.jpg").write_bytes(encoded(pixels, "JPEG"))
    config = image_classification.Config(
        data_dir=str(tmp_path / "data"), image_size=16, resize="pad", out=str(tmp_path), model_args={"widths": (8, 16)}
    )
    (path,) = export.export(untrained(config), out=tmp_path / "exported")
    assert json.loads((path / "signature.json").read_text())["classes"] == ["dark", "light"]


def broken(tiny_run: Path, tmp_path: Path, what: str) -> Path:
    """The tiny run with something wrong about it."""
    if what == "no run":
        return tmp_path
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    if what == "unfinished":
        runs.write_json(folder / "state.json", {"task": TASK, "state": "failed", "error": "no luck"})
    elif what == "damaged model":
        (folder / "model.keras").write_bytes((folder / "model.keras").read_bytes()[:500])
    elif what == "damaged spec":
        (folder / "spec.json").write_text("{")
    elif what == "data gone":
        config = dataclasses.replace(runs.load(folder, model=False).config, data_dir=str(tmp_path / "gone"))
        runs.write_json(folder / "config.json", runs.to_json(config))
    return folder


@pytest.mark.parametrize("what", ["no run", "unfinished", "damaged model", "damaged spec", "data gone"])
def test_a_run_that_cannot_be_exported_is_told_apart(what, tiny_run, tmp_path):
    folder = broken(tiny_run, tmp_path, what)
    expected = UsageError if what in ("no run", "unfinished") else (Failure, UsageError)
    with pytest.raises(expected, match="Expected"):
        export.export(folder, out=tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    "words, code, told",
    [
        (["nowhere"], 2, "Expected a run folder"),
        ([], 2, "RUN"),
        (["nowhere", "--version", "0"], 2, "Expected --version of at least 1. Received: 0"),
        (["nowhere", "--fromat", "onnx"], 2, "Did you mean '--format'?"),
        (["nowhere", "--format", "tflite"], 2, "savedmodel"),
    ],
)
def test_wrong_commands_end_with_one_line_and_code_2(words, code, told, capsys):
    assert guarded(lambda: export.main(words)) == code
    said = capsys.readouterr()
    assert told in said.err and said.err.count("\n") == 1 and not said.out


def test_a_damaged_model_is_one_line_and_code_1(tiny_run, tmp_path, capfd):
    damaged = broken(tiny_run, tmp_path, "damaged model")
    assert guarded(lambda: export.main([str(damaged), "--out", str(tmp_path)])) == 1
    said = capfd.readouterr().err
    assert said.startswith("error: Expected a readable model.keras") and said.count("\n") == 1


def test_the_command_writes_both_formats_and_says_how_to_serve(command, tiny_run, tmp_path):
    done = command("serving.export", tiny_run, "--format", "both", "--out", tmp_path, "--gate_limit", 8)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert f"exported: {tmp_path / TASK / '1'}\n" in done.stdout
    assert f"--model_name={TASK} --model_base_path={tmp_path / TASK}\n" in done.stdout
    assert (tmp_path / f"{TASK}-onnx" / "1" / "model.onnx").exists()


def test_help_needs_no_tensorflow():
    code = "import sys, serving.export, serving.demo; sys.exit(any(m in sys.modules for m in ('tensorflow', 'keras')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
