"""The life of a server process: versions roll over under load, signals, damaged files, ports and flags."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from ports import free_ports
from server_process import ROOT, Server, cpu_of_children
from tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from pipelines.config import guarded
from serving.server import app
from serving.server.config import ModelConfig
from serving.server.tensors import decode, encode


def command(*words: str, seconds: float = 60, **environment: str) -> subprocess.CompletedProcess:
    """A server command that should end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "serving.server", *words],
        cwd=ROOT,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def last_line(result: subprocess.CompletedProcess) -> str:
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


def put(half: Path, version: int, base: Path, name: int | None = None) -> Path:
    """Copy a version into a base path in one step, as a deployment should."""
    arriving = base.parent / f"{base.name}-arriving"
    shutil.copytree(half / str(version), arriving)
    return arriving.rename(base / str(name or version))


def write_config(base: Path, **models: Path) -> Path:
    """A configuration file beside the base path, of models that serve their latest version."""
    file = base.parent / f"{base.name}.config"
    entries = [f'config {{ name: "{n}" base_path: "{p}" model_platform: "tensorflow" }}' for n, p in models.items()]
    file.write_text(f"model_config_list {{ {' '.join(entries)} }}")
    return file


@pytest.fixture(scope="module")
def living(half, tmp_path_factory):
    """A server whose model folder the tests may change, and the folder. It starts before there is anything to serve."""
    base = tmp_path_factory.mktemp("living") / "base"
    file = write_config(base, half=base)
    running = Server(f"--model_config_file={file}", "--model_config_file_poll_wait_seconds=1")
    running.wait_for("could not find base path")
    running.first_answer = running.ask("/v1/models/half:predict", {"instances": [0]})
    base.mkdir()
    running.wait_for("no versions found")
    put(half, 1, base)
    running.wait_for("version 1 loaded")
    yield running, base
    running.stop()


def test_without_versions_it_waits_and_then_serves_the_first_that_comes(living):
    server, _ = living
    assert server.first_answer == (404, {"error": "Servable not found for request: Latest(half)"})
    assert server.ask("/v1/models/half:predict", {"instances": [0]}) == (200, {"predictions": [1.0]})


def test_versions_roll_over_under_load_without_a_failed_request(living, half):
    server, base = living
    stop, failures, seen = threading.Event(), [], {"rest": set(), "grpc": set()}

    def ask(kind: str) -> None:
        client = server.client("half", kind)
        while not stop.is_set():
            try:
                seen[kind].add(float(client.predict({"x": [0.0]})["y"][0]))
            except Exception as error:
                failures.append(error)

    def both_see(version: int) -> None:
        """Wait until REST and gRPC have both been answered by a version."""
        deadline = time.monotonic() + 60
        while not failures and not all(float(version) in values for values in seen.values()):
            assert time.monotonic() < deadline, seen
            time.sleep(0.02)

    threads = [threading.Thread(target=ask, args=(kind,)) for kind in ("rest", "rest", "grpc", "grpc")]
    for thread in threads:
        thread.start()
    try:
        both_see(1)
        for version in (2, 3):
            put(half, version, base)
            server.wait_for(f"version {version} loaded")
            server.wait_for(f"version {version - 1} unloaded")
            both_see(version)
    finally:
        stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert seen == {"rest": {1.0, 2.0, 3.0}, "grpc": {1.0, 2.0, 3.0}}
    states = [entry["state"] for entry in server.ask("/v1/models/half")[1]["model_version_status"]]
    assert states == ["AVAILABLE", "END", "END"]


def test_a_damaged_version_is_reported_and_the_others_keep_serving(living, half):
    server, base = living
    arriving = base.parent / "damaged"
    shutil.copytree(half / "1", arriving)
    (arriving / "saved_model.pb").write_bytes(b"not a protocol buffer")
    arriving.rename(base / "4")
    line = server.wait_for("version 4 failed to load")
    assert "saved_model.pb" in line or "SavedModel" in line
    status, answer = server.ask("/v1/models/half/versions/4")
    (entry,) = answer["model_version_status"]
    assert (status, entry["state"], entry["status"]["error_code"]) == (200, "END", "INTERNAL")
    assert "Could not load SavedModel" in entry["status"]["error_message"]
    assert server.ask("/v1/models/half:predict", {"instances": [0]}) == (200, {"predictions": [3.0]})
    shutil.rmtree(base / "4")


def test_a_new_configuration_adds_a_model_while_serving(living, half):
    server, base = living
    request = model_management_pb2.ReloadConfigRequest()
    listed = request.config.model_config_list.config
    listed.add(name="half", base_path=str(base), model_platform="tensorflow")
    added = listed.add(name="two", base_path=str(half), model_platform="tensorflow")
    added.model_version_policy.specific.versions.append(2)
    with grpc.insecure_channel(f"localhost:{server.grpc_port}") as channel:
        model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest(request, timeout=60)
    assert server.ask("/v1/models/two:predict", {"instances": [0]}) == (200, {"predictions": [2.0]})


def test_a_changed_configuration_file_is_read_again_and_a_wrong_one_is_not(living, half):
    server, base = living
    file = write_config(base, half=base, three=half)
    server.wait_for(f"read {file} again")
    assert server.ask("/v1/models/three:predict", {"instances": [0]}) == (200, {"predictions": [3.0]})
    file.write_text("model_config_list { nonsense }")
    assert "Expected the text form of a ModelServerConfig" in server.wait_for(f"{file} was not taken over")
    assert server.ask("/v1/models/three:predict", {"instances": [0]})[0] == 200


def test_slow_requests_do_not_keep_fast_ones_waiting(living):
    server, _ = living
    slow_body = {"signature_name": "slow", "instances": [3000]}
    took = []

    def ask_slow() -> None:
        begin = time.perf_counter()
        assert server.ask("/v1/models/half:predict", slow_body)[0] == 200
        took.append(time.perf_counter() - begin)

    slow = threading.Thread(target=ask_slow)
    slow.start()
    fast = []
    while slow.is_alive():
        begin = time.perf_counter()
        assert server.ask("/v1/models/half:predict", {"instances": [0]})[0] == 200
        fast.append(time.perf_counter() - begin)
    assert fast and took[0] > 0.1 and np.median(fast) < took[0] / 3


def test_a_port_in_use_is_one_line(living):
    server, base = living
    for flag, port, other in (
        ("--rest_api_port", server.rest_port, "--port=0"),
        ("--port", server.grpc_port, "--rest_api_port=0"),
    ):
        result = command(f"--model_base_path={base}", f"{flag}={port}", other)
        assert result.returncode == 1
        assert last_line(result) == f"error: Expected a free port for {flag}. Received: {port} (Address already in use)"


def test_sigterm_answers_what_is_in_flight_and_ends_with_0(living):
    """The last test of this server. What was sent before a request that is answered has arrived."""
    server, _ = living
    path, steps = "/v1/models/half:predict", 4000
    fast, slow = predict_pb2.PredictRequest(), predict_pb2.PredictRequest()
    fast.model_spec.name = slow.model_spec.name = "half"
    slow.model_spec.signature_name = "slow"
    encode(np.float32([0]), fast.inputs["x"])
    encode(np.int32([steps]), slow.inputs["steps"])
    rest = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=60)
    with grpc.insecure_channel(f"localhost:{server.grpc_port}") as channel, contextlib.closing(rest):
        predict = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
        predict(fast, timeout=60)
        over_grpc = predict.future(slow, timeout=60)
        rest.request("POST", path, json.dumps({"signature_name": "slow", "inputs": [steps]}))
        predict(fast, timeout=60)
        assert server.ask(path, {"instances": [0]})[0] == 200
        unanswered = not over_grpc.done() and not select.select([rest.sock], [], [], 0)[0]
        assert unanswered, "the requests are in flight"
        assert server.stop(signal.SIGTERM) == 0
        assert rest.getresponse().status == 200
        assert decode(over_grpc.result().outputs["y"], "y").shape == (1,)
    assert server.lines[-1] == "[serving] stopped\n"


def test_below_zero_nothing_is_looked_for_until_a_configuration_is_reloaded(half):
    server = Server(f"--model_base_path={half}", "--model_name=half", "--file_system_poll_wait_seconds=-1")
    try:
        assert server.ask("/v1/models/half")[0] == 404
        request = model_management_pb2.ReloadConfigRequest()
        request.config.model_config_list.config.add(name="half", base_path=str(half), model_platform="tensorflow")
        with grpc.insecure_channel(f"localhost:{server.grpc_port}") as channel:
            model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest(request, timeout=60)
        assert server.ask("/v1/models/half:predict", {"instances": [0]}) == (200, {"predictions": [3.0]})
    finally:
        assert server.stop() == 0


def test_only_damaged_versions_end_the_start_with_one_line(tmp_path, half, capsys):
    put(half, 1, tmp_path)
    for shard in (tmp_path / "1" / "variables").glob("*.data*"):
        shard.write_bytes(b"")
    configs, options = [ModelConfig("half", tmp_path)], app.Options(port=free_ports(1)[0])
    assert guarded(lambda: app.run(configs, options)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: Failed to start server. Error: 1 servable(s) did not become available: half version 1"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model_base_pat=x"], "Did you mean '--model_base_path'? Received: '--model_base_pat=x'"),
        ([], "Expected --model_base_path or --model_config_file. Received: neither"),
        (["--model_base_path=x", "--port=8500", "--rest_api_port=8500"], "Received: 8500 for both"),
        (["--model_base_path=x", "--port", "70000"], "Expected --port from 0 to 65535. Received: 70000"),
        (["--model_base_path=x", "--port=0"], "Expected a --port or a --rest_api_port. Received: neither"),
        (["--model_base_path=x", "--enable_batching=true"], "--enable_batching needs --engine tensorflow_model_server"),
        (["--model_base_path=x", "--num_load_threads", "2"], "--num_load_threads needs --engine"),
        (["--model_base_path=x", "--file_system_poll_wait_seconds=0.5"], "invalid int value: '0.5'"),
        (["--model_base_path=x", "--engine=tensorflow_server"], "Did you mean 'tensorflow_model_server'?"),
        (["--model_config_file=/nowhere/at/all"], "Expected --model_config_file to be a readable text file."),
    ],
)
def test_usage_errors_are_one_line_and_exit_code_2(words, message):
    result = command(*words)
    assert result.returncode == 2
    assert message in last_line(result)


def test_the_real_server_gets_the_same_flags(tmp_path):
    result = command("--engine", "tensorflow_model_server", "--model_base_path=x", PATH=str(tmp_path))
    assert result.returncode == 1 and "Expected tensorflow_model_server on the PATH" in last_line(result)
    binary = tmp_path / "tensorflow_model_server"
    binary.write_text(f'#!{sys.executable}\nimport sys\nprint("\\n".join(sys.argv[1:]))\n')
    binary.chmod(0o755)
    words = [
        "--model_name",
        "half",
        "--engine=tensorflow_model_server",
        "--model_base_path=models",
        "--enable_batching",
    ]
    result = command(*words, PATH=str(tmp_path))
    assert result.returncode == 0
    assert result.stdout.splitlines() == [
        "--model_name=half",
        f"--model_base_path={ROOT / 'models'}",
        "--enable_batching",
    ]


def test_help_answers_at_once_and_without_tensorflow():
    begin = cpu_of_children()
    result = command("--help")
    assert result.returncode == 0 and "--model_config_file" in result.stdout
    assert cpu_of_children() - begin < 1
    code = "import sys, serving.server.__main__, serving.client; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
