"""The server process: one event loop that holds the models, the REST API and the gRPC services.

Start: bind both ports, load the models, listen, say so. On SIGTERM or SIGINT: stop accepting, finish what is in flight,
close the models, leave with exit code 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import uvicorn
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from pipelines.config import Failure, UsageError
from serving.server import calls, config, engine
from serving.server.calls import Runner
from serving.server.config import ModelConfig
from serving.server.errors import ServingError
from serving.server.grpc_service import ModelService, PredictionService
from serving.server.ports import bind
from serving.server.rest import RestApi
from serving.server.versions import Manager, Version


@dataclass(frozen=True)
class Options:
    """What the command line decides; 0 turns a port off.

    A `file_system_poll_wait_seconds` of 0 looks for versions once, at the start; below 0, never: what is served then
    comes with a reload of the configuration.
    """

    port: int = 8500
    rest_api_port: int = 0
    rest_api_timeout_in_ms: int = 30000
    threads: int = 0
    file_system_poll_wait_seconds: int = 1
    model_config_file: str = ""
    model_config_file_poll_wait_seconds: float = 0.0
    session_threads: int = 0
    tags: Sequence[str] = ("serve",)
    grpc_channel_arguments: Sequence[tuple[str, Any]] = ()
    enable_model_warmup: bool = True
    grace_seconds: float = 30.0


def log(line: str) -> None:
    """A line for people."""
    print(f"[serving] {line}", flush=True)


def loader(options: Options) -> Any:
    """How a version is loaded: the SavedModel, then its recorded requests."""

    def load(version: Version) -> engine.SavedModel:
        begin = time.perf_counter()
        servable = engine.load(version.path, tags=options.tags, threads=options.session_threads)
        try:
            records = engine.warmup_records(version.path) if options.enable_model_warmup else []
            for record in records:
                calls.replay(servable, record)
        except Exception:
            servable.close()
            raise
        if records:
            log(f"model {version.model} version {version.number}: replayed {len(records)} warm-up requests")
        servable.load_seconds = time.perf_counter() - begin
        return servable

    return load


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handlers: this process has one place for them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(configs: Sequence[ModelConfig], options: Options) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        Failure: a port is in use, or no model could be loaded because all are damaged.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    http_socket = bind(options.rest_api_port, "--rest_api_port") if options.rest_api_port else None
    manager = Manager(configs, loader(options), log)
    runner = Runner(manager, options.threads or max(2, os.cpu_count() or 2))
    if options.file_system_poll_wait_seconds >= 0:
        first = asyncio.create_task(manager.poll())
        await _until(stop, first)
        if first.done():
            first.result()
            _check_started(manager)
    grpc_server = await _start_grpc(runner, options) if options.port and not stop.is_set() else None
    tasks = []
    http_server = None
    if http_socket is not None and not stop.is_set():
        http_server = HttpServer(
            uvicorn.Config(
                RestApi(runner, options.rest_api_timeout_in_ms / 1000),
                http="httptools",
                lifespan="off",
                ws="none",
                access_log=False,
                log_level="warning",
                server_header=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=int(options.grace_seconds),
            )
        )
        tasks.append(asyncio.create_task(http_server.serve(sockets=[http_socket])))
        log(f"Exporting HTTP/REST API at:localhost:{options.rest_api_port} ...")
    watchers = []
    if options.file_system_poll_wait_seconds > 0:
        watchers.append(asyncio.create_task(manager.poll_forever(options.file_system_poll_wait_seconds)))
    if options.model_config_file_poll_wait_seconds > 0:
        watchers.append(asyncio.create_task(_watch_config(manager, options)))
    await _until(stop, *watchers, *tasks)
    log("shutting down: finishing requests in flight")
    for watcher in watchers:
        watcher.cancel()
    if http_server is not None:
        http_server.should_exit = True
    if grpc_server is not None:
        await grpc_server.stop(options.grace_seconds)
    await asyncio.gather(*tasks, *watchers, return_exceptions=True)
    try:
        await asyncio.wait_for(manager.close(), options.grace_seconds)
        log("stopped")
    except TimeoutError:
        log(f"stopped, after {options.grace_seconds:g} s, with requests still in flight")
    runner.close()


async def _until(stop: asyncio.Event, *work: Any) -> None:
    """Wait for the signal, or for the first of these tasks to end; an error of theirs is ours."""
    waiting = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({waiting, *work}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for task in done - {waiting}:
        task.result()


def _check_started(manager: Manager) -> None:
    """TensorFlow Serving gives up at the start when models are damaged; here it needs all of them to be."""
    models = list(manager.models.values())
    errors = [version for model in models for version in model.versions.values() if version.error]
    if errors and not any(model.available() for model in models):
        names = "; ".join(f"{v.model} version {v.number}: {v.error.message}" for v in errors if v.error)
        raise Failure(f"Failed to start server. Error: {len(errors)} servable(s) did not become available: {names}")


async def _start_grpc(runner: Runner, options: Options) -> Any:
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.aio.server(options=[*limits, *options.grpc_channel_arguments])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(runner), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(runner.manager), server)
    try:
        server.add_insecure_port(f"0.0.0.0:{options.port}")
    except RuntimeError:
        raise Failure(f"Expected a free port for --port. Received: {options.port}") from None
    await server.start()
    log(f"Running gRPC ModelServer at 0.0.0.0:{options.port} ...")
    return server


async def _watch_config(manager: Manager, options: Options) -> None:
    """Read the configuration file again when it changes; one that is wrong changes nothing."""
    file = Path(options.model_config_file)
    seen = file.read_bytes()
    while True:
        await asyncio.sleep(options.model_config_file_poll_wait_seconds)
        try:
            now = file.read_bytes()
            if now == seen:
                continue
            seen = now
            await manager.reload(config.read(file))
            log(f"read {file} again")
        except (OSError, UsageError, ServingError) as error:
            log(f"{file} was not taken over: {error}")


def run(configs: Sequence[ModelConfig], options: Options) -> None:
    """Serve in this process, on uvloop where it exists."""
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # the session loader calls itself deprecated at every load
    factory: Any = asyncio.new_event_loop
    with contextlib.suppress(ImportError):  # uvloop is not made for Windows
        factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as loop:
        loop.run(serve(configs, options))
