"""SavedModels as functions: the fast path and the documented one answer alike, warm-up requests are replayed."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from serving.server import app, calls, config, engine
from serving.server.errors import ServingError
from serving.server.versions import Manager, Version

RNG = np.random.default_rng(0)
EXAMPLES = {
    "serving_default": [RNG.random(3, np.float32)],
    "matmul": [RNG.random((2, 3), np.float32), RNG.random((3, 4), np.float32)],
    "strings": [np.array([b"a", b"\xff"], object)],
    "same_float64": [RNG.random((2, 2, 2))],
    "same_bool": [np.array(True)],
    "same_string": [np.array(b"scalar", object)],
    "slow": [np.array([2], np.int32)],
    "regress": [np.array([tf.train.Example().SerializeToString()], object)],
}


@pytest.fixture(scope="module")
def both(half):
    """The same SavedModel through the two paths."""
    fast, documented = engine.load(half / "2"), engine.load(half / "2", fast=False)
    yield fast, documented
    fast.close()
    documented.close()


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "regress"])
def test_both_paths_give_the_same_answers(both, name):
    answers = []
    for model in both:
        signature = model.signatures[name]
        arrays = calls.arrays_for(signature, dict(zip(signature.inputs, EXAMPLES[name])))
        answers.append(calls.picked(signature, signature.run(arrays), ()))
    assert answers[0].keys() == answers[1].keys()
    for key, array in answers[0].items():
        assert array.dtype == answers[1][key].dtype and array.shape == answers[1][key].shape
        np.testing.assert_array_equal(array, answers[1][key])


def test_both_paths_know_the_same_signatures(both):
    fast, documented = both
    assert fast.fast and not documented.fast
    assert fast.signatures.keys() == documented.signatures.keys() >= EXAMPLES.keys()
    for name, signature in fast.signatures.items():
        other = documented.signatures[name]
        assert (signature.inputs, signature.outputs, signature.method) == (other.inputs, other.outputs, other.method)


def test_both_paths_refuse_in_tensorflows_words_with_its_code(both):
    for model in both:
        arrays = [np.zeros((1, 2), np.float32), np.zeros((3, 1), np.float32)]
        with pytest.raises(ServingError, match="Matrix size-incompatible") as error:
            calls.timed(model.signatures["matmul"], 0, arrays)
        assert error.value.code == "INVALID_ARGUMENT"


def test_without_the_private_name_the_documented_path_takes_over(half, monkeypatch):
    monkeypatch.setattr(engine, "_PRIVATE", "_a_name_that_is_gone")
    model = engine.load(half / "1")
    assert not model.fast
    np.testing.assert_array_equal(model.signatures["serving_default"].run([np.zeros(1, np.float32)])[0], [1.0])


@pytest.mark.parametrize("damage", ["graph", "index", "shard"])
def test_damaged_files_are_a_serving_error_that_names_the_folder(half, tmp_path, damage):
    folder = shutil.copytree(half / "1", tmp_path / "1")
    if damage == "graph":
        (folder / "saved_model.pb").write_bytes(b"\x08")
    else:
        (file,) = (folder / "variables").glob("*.index" if damage == "index" else "*.data*")
        file.write_bytes(file.read_bytes()[: 10 if damage == "index" else 1])
    for fast in (True, False):
        with pytest.raises(ServingError, match=f"Could not load SavedModel {folder}"):
            engine.load(folder, fast=fast)


def write_warmup(folder, *logs):
    file = folder / engine.WARMUP_FILE
    file.parent.mkdir()
    with tf.io.TFRecordWriter(str(file)) as writer:
        for log in logs:
            writer.write(log.SerializeToString())


def predict_log(**inputs):
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = "m"
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return log


def test_recorded_requests_are_replayed_when_a_version_is_loaded(half, tmp_path, capsys):
    folder = shutil.copytree(half / "1", tmp_path / "1")
    regress = prediction_log_pb2.PredictionLog()
    regress.regress_log.request.model_spec.signature_name = "regress"
    example = regress.regress_log.request.input.example_list.examples.add()
    example.features.feature["x"].float_list.value.append(1.0)
    write_warmup(folder, predict_log(x=np.zeros(4, np.float32)), regress)
    model = app.loader(app.Options())(Version("m", 1, folder))
    assert "replayed 2 warm-up requests" in capsys.readouterr().out
    assert list(model.signatures["serving_default"].seconds) == [(16).bit_length()]
    assert model.signatures["regress"].seconds
    model = app.loader(app.Options(enable_model_warmup=False))(Version("m", 1, folder))
    assert not model.signatures["serving_default"].seconds


def test_recorded_requests_that_do_not_fit_fail_the_version(half, tmp_path):
    folder = shutil.copytree(half / "1", tmp_path / "1")
    write_warmup(folder, predict_log(y=np.zeros(4, np.float32)))
    with pytest.raises(ServingError, match="input size does not match signature"):
        app.loader(app.Options())(Version("m", 1, folder))


def test_cheap_calls_run_on_the_loop_and_costly_ones_in_a_thread(half):
    async def story():
        import threading

        manager = Manager([config.ModelConfig("m", half)], lambda version: engine.load(version.path), lambda line: None)
        await manager.poll()
        version = manager.find("m")
        signature = version.servable.signatures["serving_default"]
        runner, where, plain = calls.Runner(manager, 2), [], signature.run
        signature.run = lambda arrays: (where.append(threading.current_thread()), plain(arrays))[1]
        arrays = [np.zeros(2, np.float32)]
        size = arrays[0].nbytes.bit_length()
        for known, inline in ((None, False), (1e-9, True), (1.0, False)):
            signature.seconds = {} if known is None else {size: known}
            await runner.run(version, signature, arrays)
            assert (where[-1] is threading.main_thread()) == inline
        assert 0.5 < signature.seconds[size] < 1.0, "memory of a costly call fades slowly"
        for _ in range(5000):
            await runner.run(version, signature, arrays)
            if where[-1] is threading.main_thread():
                break
        assert where[-1] is threading.main_thread(), "but it fades"

        release = threading.Event()
        signature.run = lambda arrays: release.wait(30)
        signature.seconds = {}
        with pytest.raises(ServingError, match="Timed out") as error:
            await runner.run(version, signature, arrays, timeout=0.05)
        assert error.value.code == "DEADLINE_EXCEEDED" and version.in_flight == 1
        release.set()
        while version.in_flight:
            await asyncio.sleep(0.01)
        runner.close()
        await manager.close()

    asyncio.run(story())


def test_a_model_with_operations_of_tensorflow_text_is_loaded_by_a_process_that_did_not_import_it(tmp_path):
    import tensorflow_text

    module = tf.Module()
    module.serve = tf.function(
        lambda text: {"folded": tensorflow_text.case_fold_utf8(text)},
        input_signature=[tf.TensorSpec([None], tf.string, name="text")],
    )
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.serve})
    program = (
        "import sys, numpy\nfrom serving.server import engine\nassert 'tensorflow_text' not in sys.modules\n"
        "for fast in (True, False):\n    run = engine.load(sys.argv[1], fast=fast).signatures['serving_default'].run\n"
        "    print(run([numpy.array([b'STRASSE'], object)])[0].tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["[b'strasse']"] * 2, done.stderr[-2000:]
