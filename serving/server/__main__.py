"""The embedded model server: REST and gRPC as `tensorflow_model_server` speaks them, with its flags.

    python -m serving.server --model_name=digits --model_base_path=exported/image_classification --rest_api_port=8501

Ready after a few seconds (it says `Exporting HTTP/REST API at:localhost:8501 ...`). New versions under the base path
are picked up while it serves. With `--engine tensorflow_model_server` the real server is started instead, with the
same flags. Ctrl-C or SIGTERM stops it after the requests in flight; exit code 0.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.config import Failure, Parser, UsageError, guarded, one_of, quiet_tensorflow

ENGINES = ("embedded", "tensorflow_model_server")
# Flags of tensorflow_model_server that the embedded server does not have.
# Reference: tensorflow_serving/model_servers/main.cc, the list of flags, as of 2025.
REAL_ONLY = (
    "--batching_parameters_file --enable_batching --enable_grpc_healthcheck_service "
    "--enable_per_model_batching_parameters --enable_profiler --enable_serialization_as_tensor_content "
    "--enable_signature_method_name_check --flush_filesystem_caches --grpc_max_threads --grpc_socket_path "
    "--load_retry_interval_micros --max_num_load_retries --mixed_precision --monitoring_config_file "
    "--num_load_threads --num_request_iterations_for_warmup --num_tflite_interpreters_per_pool --num_tflite_pools "
    "--num_unload_threads --per_process_gpu_memory_fraction --platform_config_file --prefer_tflite_model "
    "--remove_unused_fields_from_bundle_metagraph --rest_api_enable_cors_support --skip_initialize_tpu "
    "--ssl_config_file --tensorflow_inter_op_parallelism --tensorflow_intra_op_parallelism "
    "--tensorflow_session_config_file --thread_pool_factory_config_file --use_alts_credentials --version "
    "--xla_cpu_compilation_enabled --xla_gpu_compilation_enabled"
).split()


def truth(text: str) -> bool:
    """A boolean as TensorFlow's flags write it."""
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"Expected true or false. Received: {text!r}")
    return text.lower() in ("true", "1")


def parser() -> Parser:
    """The command line; every flag but `--engine` and `--verbose` is one of `tensorflow_model_server`."""
    result = Parser(
        prog="python -m serving.server",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=110),
    )
    switch: dict[str, Any] = {"type": truth, "nargs": "?", "const": True, "metavar": "BOOL"}
    add = result.add_argument
    add("--engine", default="embedded", metavar="NAME", help=f"{' or '.join(ENGINES)} (which must be on the PATH)")
    add("--model_name", default="default", metavar="NAME", help="the model's name in requests (default: default)")
    add("--model_base_path", default="", metavar="DIR", help="the folder whose folders 1, 2, … are the versions")
    add(
        "--model_config_file", default="", metavar="FILE", help="a ModelServerConfig in text form, instead of those two"
    )
    add("--model_config_file_poll_wait_seconds", type=int, default=0, metavar="N", help="read it again; 0: never")
    add("--port", type=int, default=8500, metavar="N", help="of gRPC; 0: none (default 8500)")
    add("--rest_api_port", type=int, default=0, metavar="N", help="of the REST API; 0: none (default 0)")
    add("--rest_api_timeout_in_ms", type=int, default=30000, metavar="N", help="give a request up (default 30000)")
    add("--rest_api_num_threads", type=int, default=0, metavar="N", help="threads for slow models, REST and gRPC alike")
    add("--file_system_poll_wait_seconds", type=int, default=1, metavar="N", help="between looks; 0: look once")
    add("--tensorflow_session_parallelism", type=int, default=0, metavar="N", help="threads of a model; 0: automatic")
    add("--saved_model_tags", default="serve", metavar="TAGS", help="which graph of the SavedModel (default serve)")
    add("--grpc_channel_arguments", default="", metavar="K=V,…", help="arguments of the gRPC server")
    add("--enable_model_warmup", default=True, help="replay assets.extra/tf_serving_warmup_requests", **switch)
    add(
        "--allow_version_labels_for_unavailable_models",
        default=False,
        help="the real server needs it to start with version labels; here labels always may precede their version",
        **switch,
    )
    add("--verbose", action="store_true", help="show the traceback of an error")
    return result


def start(argv: Sequence[str]) -> None:
    """Read the command line and serve.

    Raises:
        UsageError: a flag, value or configuration is wrong.
        Failure: a port is in use, no model can be loaded, the engine is not installed.
    """
    for word in argv:
        flag = word.partition("=")[0]
        if flag in REAL_ONLY and not _engine_of(argv) == ENGINES[1]:
            raise UsageError(
                f"Expected a flag that the embedded server has; {flag} needs --engine {ENGINES[1]}. Received: {word!r}"
            )
    if _engine_of(argv) == ENGINES[1]:
        start_real(argv)
    flags = parser().parse_args(argv)
    one_of(flags.engine, ENGINES, "--engine")
    for name in ("port", "rest_api_port"):
        if not 0 <= getattr(flags, name) < 65536:
            raise UsageError(f"Expected --{name} from 0 to 65535. Received: {getattr(flags, name)}")
    if not flags.port and not flags.rest_api_port:
        raise UsageError("Expected a --port or a --rest_api_port. Received: neither")
    if flags.port == flags.rest_api_port:
        raise UsageError(f"Expected --rest_api_port to differ from --port. Received: {flags.port} for both")
    if not flags.model_base_path and not flags.model_config_file:
        raise UsageError("Expected --model_base_path or --model_config_file. Received: neither")
    pairs = [tuple(pair.split("=", 1)) for pair in flags.grpc_channel_arguments.split(",") if pair]
    if any(len(pair) != 2 for pair in pairs):
        raise UsageError(f"Expected --grpc_channel_arguments KEY=VALUE,… Received: {flags.grpc_channel_arguments!r}")

    from serving.server import config, ports

    if flags.model_config_file:
        configs = config.read(flags.model_config_file)
    else:
        configs = [config.ModelConfig(flags.model_name, Path(flags.model_base_path))]
    ports.check(port=flags.port, rest_api_port=flags.rest_api_port)
    quiet_tensorflow()
    from serving.server import app

    app.run(
        configs,
        app.Options(
            port=flags.port,
            rest_api_port=flags.rest_api_port,
            rest_api_timeout_in_ms=flags.rest_api_timeout_in_ms,
            threads=flags.rest_api_num_threads,
            file_system_poll_wait_seconds=flags.file_system_poll_wait_seconds,
            model_config_file=flags.model_config_file,
            model_config_file_poll_wait_seconds=flags.model_config_file_poll_wait_seconds,
            session_threads=flags.tensorflow_session_parallelism,
            tags=tuple(flags.saved_model_tags.split(",")),
            grpc_channel_arguments=[
                (key, int(value) if value.lstrip("-").isdigit() else value) for key, value in pairs
            ],
            enable_model_warmup=flags.enable_model_warmup,
        ),
    )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # everything is closed; taking TensorFlow's modules apart would only add seconds


def _engine_of(argv: Sequence[str]) -> str:
    """The engine asked for, before the other flags are read: the real server has more of them."""
    for i, word in enumerate(argv):
        if word == "--engine" and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith("--engine="):
            return word.partition("=")[2]
    return ENGINES[0]


def start_real(argv: Sequence[str]) -> None:
    """Become `tensorflow_model_server`, with the same flags in the one form it reads, and an absolute base path.

    Raises:
        Failure: it is not on the PATH.
    """
    binary = shutil.which(ENGINES[1])
    if binary is None:
        raise Failure(
            f"Expected {ENGINES[1]} on the PATH, or --engine embedded, which speaks the same protocol. Received: no "
            "such program"
        )
    words: list[str] = []
    for word in argv:
        if not word.startswith("--") and words and "=" not in words[-1]:
            words[-1] += f"={word}"
        elif word != "--verbose":
            words.append(word)
    words = [word for word in words if not word.startswith("--engine=")]
    for i, word in enumerate(words):
        if word.startswith("--model_base_path=") and "://" not in word:
            words[i] = f"--model_base_path={Path(word.partition('=')[2]).resolve()}"
    sys.stdout.flush()
    os.execv(binary, [binary, *words])


if __name__ == "__main__":
    sys.exit(guarded(lambda: start(sys.argv[1:]), verbose="--verbose" in sys.argv))
