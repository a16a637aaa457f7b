"""What the embedded server costs: CPU of its process per call and requests per second, against direct calls.

    python -m benchmarks.serving

Serves a small MLP and a small convolutional network from one server process and asks it over REST and gRPC, with one
client and with 64, for at most `--seconds` and `--calls` each; all of it on the loopback interface. In the same run
the loaded signature (as documented) and the session's callable (what the server calls) are timed without any network.
Prints a table of ratios and writes benchmarks/results/serving.json. Under a minute on two idle cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config import quiet_tensorflow

CLIENTS = (1, 64)
RESULTS = Path(__file__).parent / "results" / "serving.json"


def export(folder: Path) -> dict[str, np.ndarray]:
    """Write the two models under `folder`; one example of input for each, by name."""
    import keras

    from models.convnet import convnet
    from models.mlp import mlp

    examples = {
        "mlp": np.random.default_rng(0).random((1, 64), np.float32),
        "convnet": np.random.default_rng(0).random((1, 32, 32, 3), np.float32).round(4),
    }
    networks = {"mlp": mlp((8, 8, 1), 10), "convnet": convnet((32, 32, 3), 10, widths=(8, 16))}
    for name, network in networks.items():
        shape = (None, *examples[name].shape[1:])
        image = keras.Input(shape[1:], name="image")
        model = keras.Model(image, {"logits": network(keras.layers.Reshape(network.input_shape[1:])(image))})
        archive = keras.export.ExportArchive()
        archive.track(model)
        spec = keras.InputSpec(shape=shape, dtype="float32", name="image")
        archive.add_endpoint("serve", model.call, input_signature=[spec])
        archive.write_out(str(folder / name / "1"), verbose=False)
    return examples


def direct(folder: Path, examples: dict[str, np.ndarray], seconds: float) -> dict[str, dict[str, float]]:
    """CPU seconds per call and calls per second of the two paths into each SavedModel, one caller, no network."""
    from serving.server import engine

    found = {}
    for name, example in examples.items():
        for path, fast in (("signature", False), ("session", True)):
            model = engine.load(folder / name / "1", fast=fast)
            run = model.signatures["serving_default"].run
            run([example])
            calls, begin, cpu = 0, time.perf_counter(), time.process_time()
            while time.perf_counter() - begin < seconds / 2:
                for _ in range(20):
                    run([example])
                calls += 20
            cpu, wall = time.process_time() - cpu, time.perf_counter() - begin
            found[f"{name} {path}"] = {"cpu_ms": cpu / calls * 1e3, "per_second": calls / wall}
            model.close()
    return found


def cpu_of(pid: int) -> float:
    """CPU seconds that a process has used, of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(client: Callable[[Callable[[], bool]], Awaitable[int]], clients: int, seconds: float, calls: int) -> int:
    """Let `clients` clients ask until time or calls are up; the number of answers."""
    begin, left = time.perf_counter(), calls

    def more() -> bool:
        nonlocal left
        left -= 1
        return left >= 0 and time.perf_counter() - begin < seconds

    return sum(await asyncio.gather(*[client(more) for _ in range(clients)]))


def rest_client(port: int, model: str, example: np.ndarray) -> Callable[[Callable[[], bool]], Awaitable[int]]:
    """A client that keeps one connection and sends the example as JSON rows."""
    body = json.dumps({"instances": example.tolist()}).encode()
    head = f"POST /v1/models/{model}:predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"

    async def client(more: Callable[[], bool]) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        answers = 0
        while more():
            writer.write(head.encode() + body)
            status = await reader.readuntil(b"\r\n\r\n")
            if not status.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"Expected answers with status 200. Received: {status!r}")
            length = int(status.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
            answers += 1
        writer.close()
        return answers

    return client


def grpc_client(port: int, model: str, example: np.ndarray) -> Callable[[Callable[[], bool]], Awaitable[int]]:
    """A client that sends the example as a tensor."""
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.inputs["image"].CopyFrom(tf.make_tensor_proto(example))

    async def client(more: Callable[[], bool]) -> int:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            answers = 0
            while more():
                await stub.Predict(request)
                answers += 1
        return answers

    return client


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def served(folder: Path, examples: dict[str, np.ndarray], seconds: float, calls: int) -> dict[str, dict[str, float]]:
    """CPU seconds of the server per call and answers per second, for each model, protocol and number of clients."""
    ports = {"rest": free_port(), "grpc": free_port()}
    config = folder / "models.config"
    lines = [f'config {{ name: "{m}" base_path: "{folder / m}" model_platform: "tensorflow" }}' for m in examples]
    config.write_text(f"model_config_list {{ {' '.join(lines)} }}")
    words = [f"--model_config_file={config}", f"--rest_api_port={ports['rest']}", f"--port={ports['grpc']}"]
    process = subprocess.Popen([sys.executable, "-m", "serving.server", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = {}
    try:
        for line in process.stdout:
            if "Exporting HTTP" in line:
                break
        for model, example in examples.items():
            for protocol, make in (("rest", rest_client), ("grpc", grpc_client)):
                client = make(ports[protocol], model, example)
                asyncio.run(load(client, 4, seconds, 200))  # warm
                for clients in CLIENTS:
                    begin, cpu = time.perf_counter(), cpu_of(process.pid)
                    answers = asyncio.run(load(client, clients, seconds, calls))
                    cpu, wall = cpu_of(process.pid) - cpu, time.perf_counter() - begin
                    found[f"{model} {protocol} {clients}"] = {
                        "cpu_ms": cpu / answers * 1e3,
                        "per_second": answers / wall,
                    }
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    return found


def report(found: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Rows of the table: what was measured, and its ratio to the documented call of the same model."""
    rows = []
    for name, measured in found.items():
        base = found[f"{name.split()[0]} signature"]
        rows.append(
            {
                "what": name,
                "cpu_ms": round(measured["cpu_ms"], 4),
                "per_second": round(measured["per_second"]),
                "cpu_ratio": round(measured["cpu_ms"] / base["cpu_ms"], 2),
                "rate_ratio": round(measured["per_second"] / base["per_second"], 2),
            }
        )
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="longest time of each measurement")
    parser.add_argument("--calls", type=int, default=10000, help="most calls of each measurement")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON file goes")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        examples = export(Path(folder))
        found = direct(Path(folder), examples, flags.seconds)
        found |= served(Path(folder), examples, flags.seconds, flags.calls)
    rows = report(found)
    print("model, path, clients      CPU ms/call  calls/s   CPU, calls/s against the loaded signature, one caller")
    for row in sorted(rows, key=lambda row: row["what"].split()[0]):
        cost = f"{row['cpu_ms']:>10.3f} {row['per_second']:>9}"
        print(f"{row['what']:<25} {cost} {row['cpu_ratio']:>7.2f} {row['rate_ratio']:>7.2f}")
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"python": platform.python_version(), "cores": os.cpu_count(), "machine": platform.machine()}
    flags.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    quiet_tensorflow()
    main()
