"""Exports a finished run for serving, after proving that what was written answers as Keras does.

    python -m serving.export RUN
    python -m serving.export RUN --format both --out exported

writes `exported/<task>/<version>/`, a SavedModel that `python -m serving.server` and TensorFlow Serving pick up while
they run, in about 15 seconds for the default run. `--format onnx` writes `exported/<task>-onnx/<version>/model.onnx`
(beside and not inside, so that each folder is a model repository: of TensorFlow Serving, and of Triton or
onnxruntime). Each version holds a `signature.json` for people: names, dtypes and shapes, a curl line, the run it came
from, and how far its answers were from Keras's on the test split.

A version is written to a hidden folder beside and renamed as the last step, so that a server sees all of it or nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pipelines
from pipelines import runs
from pipelines.config import Failure, Parser, UsageError, guarded, quiet_tensorflow
from serving import gate

FORMATS = {"savedmodel": ("savedmodel",), "onnx": ("onnx",), "both": ("savedmodel", "onnx")}
SUMMARY = "signature.json"


def model_base(out: str | Path, task: str, kind: str) -> Path:
    """The folder that holds the versions of a task in a format."""
    return Path(out) / (task if kind == "savedmodel" else f"{task}-{kind}")


def versions(base: Path) -> list[int]:
    """The versions in a folder, lowest first; `[]` where there are none."""
    if not base.is_dir():
        return []
    return sorted(int(path.name) for path in base.iterdir() if path.name.isdecimal() and path.is_dir())


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` that becomes `target` at the end, and leaves nothing behind after an error."""
    made = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent / f".export-{target.name}-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        yield folder
        os.rename(folder, target)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        if isinstance(error, OSError) and target.exists():
            raise Failure(f"Expected {target} to be free; another export wrote it meanwhile. Received: {error}")
        raise


def export(
    folder: str | Path,
    *,
    out: str | Path = "exported",
    version: int | None = None,
    formats: Sequence[str] = ("savedmodel",),
    gate_limit: int | None = None,
) -> list[Path]:
    """Export a finished run.

    Args:
        folder: the run folder.
        out: where exported models are.
        version: a number that is not there yet; default: one more than the highest there.
        formats: of `savedmodel` and `onnx`; both get the same version.
        gate_limit: compare at most this many test examples; default: the whole split.

    Returns:
        The folders written, one for each format.

    Raises:
        UsageError: no finished run, the version exists, or ONNX of a run that is not in float32.
        Failure: the run is damaged, its data are gone, or the written model answers otherwise than Keras.
    """
    run = runs.load(folder)
    bases = {kind: model_base(out, run.task, kind) for kind in formats}
    taken = sorted({number for base in bases.values() for number in versions(base)})
    version = version if version is not None else max(taken, default=0) + 1
    if version in taken:
        raise UsageError(
            f"Expected --version to be a new one; there are {', '.join(map(str, taken))}. Received: {version}"
        )
    if "onnx" in formats and run.config.precision != "float32":
        raise UsageError(f"Expected a run with --precision float32 for ONNX. Received: {run.config.precision}")

    pipeline: Any = pipelines.get(run.task)
    if not hasattr(pipeline, "served_checks"):
        raise Failure(f"Expected pipelines.{run.task} to offer served_checks. Received: none")
    checks = iter(pipeline.served_checks(run.model, run.config, run.spec, limit=gate_limit))
    first = next(checks, None)
    if first is None:
        raise Failure(f"Expected test examples to compare answers on. Received: none for {folder}")
    with ExitStack() as stack:
        folders = {kind: stack.enter_context(staged(base / str(version))) for kind, base in bases.items()}
        doors, contents = write(run, folders, first)
        measured = gate.check(doors, chain([first], checks))
        for kind, target in folders.items():
            summary = describe(run, version, contents[kind])
            summary["gate"] = {door: found for door, found in measured.items() if door.startswith(kind)}
            runs.write_json(target / SUMMARY, summary)
    for door, found in measured.items():
        print(f"{door}: {found['examples']} test examples, largest difference {found['largest_difference']:.2g}")
    return [base / str(version) for base in bases.values()]


def write(run: runs.Run, folders: dict[str, Path], first: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write each format to its folder.

    Returns:
        The doors that the gate tries, `{"savedmodel from_pixels": (signature, function)}`, and the signatures of each
        format as `signature.json` shows them.
    """
    import tensorflow as tf

    from serving import signatures

    offered = signatures.signatures(run)
    doors: dict[str, Any] = {}
    contents: dict[str, Any] = {}
    if "savedmodel" in folders:
        target = folders["savedmodel"]
        signatures.write(run.model, offered, target)
        signatures.write_warmup(target, run.task, {name: first[name][0] for name in offered if name in first})
        contents["savedmodel"] = signatures.describe(target)
        doors |= {f"savedmodel {name}": (name, ask) for name, ask in signatures.read(target).items()}
    if "onnx" in folders:
        from serving import onnx

        name = getattr(pipelines.get(run.task), "PORTABLE", "serving_default")
        function, inputs = offered[name]
        fixed = {}
        for key, spec in inputs.items():
            size = first[name][0][key].shape[1:]  # what the signature leaves open, the test examples decide
            fixed[key] = tf.TensorSpec([None, *size], spec.dtype, name=key)
        onnx.convert(function, fixed, folders["onnx"] / onnx.FILE)
        model = onnx.load(folders["onnx"])
        doors[f"onnx {name}"] = (name, model)
        parts = {"inputs": model.inputs, "outputs": model.outputs}
        shown = {
            part: {key: {"dtype": dtype, "shape": list(shape)} for key, (dtype, shape) in kinds.items()}
            for part, kinds in parts.items()
        }
        contents["onnx"] = {name: {"opset": onnx.OPSET, **shown}}
    return doors, contents


def describe(run: runs.Run, version: int, content: dict[str, Any]) -> dict[str, Any]:
    """What `signature.json` says."""
    from pipelines import training

    summary: dict[str, Any] = {
        "model": run.task,
        "version": version,
        "signatures": {name: one | example(run.task, version, name, one) for name, one in content.items()},
        "run": str(run.folder.name),
        "architecture": run.config.model,
        "exported": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "test": run.metrics.get("test", {}),
        "versions": training.environment(),
    }
    if "classes" in run.spec:
        summary["classes"] = run.spec["classes"]
    return summary


def example(task: str, version: int, name: str, signature: dict[str, Any]) -> dict[str, str]:
    """`{"curl": a line to paste}` for a served signature; `{"python": …}` for ONNX."""
    inputs = signature["inputs"]
    if "opset" in signature:
        arguments = ", ".join(f'"{key}": {key}' for key in inputs)
        return {"python": f'serving.onnx.load("exported/{task}-onnx/{version}")({{{arguments}}})'}
    if signature["method"] != "tensorflow/serving/predict":
        return {}
    url = f"http://localhost:8501/v1/models/{task}:predict"
    if list(inputs) == ["image"] and inputs["image"]["dtype"] == "string":
        return {"curl": curl(url, name, "picture.png")}
    row = {key: months(tensor) if key == "dates" else nested(tensor) for key, tensor in inputs.items()}
    content = {"instances": [row if len(row) > 1 else next(iter(row.values()))]}
    named = {} if name == "serving_default" else {"signature_name": name}
    body = json.dumps(named | content, separators=(",", ":"))
    return {"curl": f"curl -s {url} -d {shlex.quote(body)}"} if len(body) < 2000 else {}


def nested(tensor: dict[str, Any]) -> Any:
    """A value of one example that a tensor takes: two of what may be any number."""
    value: Any = {"string": "some text", "bool": True}.get(tensor["dtype"], 0)
    for size in reversed(tensor["shape"][1:]):
        value = [value] * (size or 2)
    return value


def months(tensor: dict[str, Any]) -> list[str]:
    """Dates in a row, one a month, for a tensor of ISO 8601 strings."""
    return [f"{2001 + index // 12}-{index % 12 + 1:02}-01" for index in range(tensor["shape"][-1] or 2)]


def curl(url: str, signature: str, file: str) -> str:
    """A command that sends a file to a signature that takes bytes."""
    name = "" if signature == "serving_default" else f'"signature_name": "{signature}", '
    body = f'{{{name}"instances": [{{"b64": "%s"}}]}}'
    return f"printf '{body}' \"$(base64 < {shlex.quote(file)} | tr -d '\\n')\" | curl -s {url} -d @-"


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m serving.export", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run folder (python -m pipelines.runs)")
    parser.add_argument("--out", default="exported", metavar="DIR", help="where exported models are (default exported)")
    parser.add_argument("--version", type=int, metavar="N", help="default: one more than the highest there")
    parser.add_argument("--format", default="savedmodel", choices=tuple(FORMATS), help="default savedmodel")
    parser.add_argument("--gate_limit", type=int, metavar="N", help="compare at most N test examples; default: all")
    parser.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    flags = parser.parse_args(argv)
    for name in ("version", "gate_limit"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise UsageError(f"Expected --{name} of at least 1. Received: {value}")
    runs.state(flags.run)  # a wrong folder is told before TensorFlow is loaded
    quiet_tensorflow()
    kinds = FORMATS[flags.format]
    paths = export(flags.run, out=flags.out, version=flags.version, formats=kinds, gate_limit=flags.gate_limit)
    for path in paths:
        print(f"exported: {path}")
    if "savedmodel" in kinds:
        base = paths[0].parent.resolve()
        print(f"serve it: python -m serving.server --model_name={base.name} --model_base_path={base}")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), verbose="--verbose" in sys.argv))
