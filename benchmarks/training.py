"""What training costs here: the pipeline against a bare `fit`, our builders against keras.applications and PyTorch.

    python -m benchmarks.training

One run on one machine, in turns: for each network the pipeline's training (`pipelines.training.fit`: checkpoints,
history, TensorBoard, best weights, its own input stream) and a bare `model.fit` on the same compiled model, pictures,
batch and `steps_per_execution`. Then ResNet-50 and EfficientNet-B0 of keras.applications under the same bare fit, and
the small networks in plain PyTorch where torch can be imported (here, or by the interpreter that the variable
DLE_TORCH_PYTHON names). Rates are images per second of wall time in the epoch at the lower quartile of all turns,
which other work on the machine disturbs least. A checkpoint that falls into an epoch is left out by that; what saving
takes is measured apart, in a run of the default configuration, and added to the overhead. Under ten minutes on two idle
cores; on busy ones the numbers mean little. Prints the table and writes benchmarks/results/training.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipelines.config import quiet_tensorflow

RESULTS = Path(__file__).parent / "results" / "training.json"
PEERS = Path(__file__).parent / "torch_peers.py"
MOST = 0.03  # what the pipeline may cost over a bare fit, and what saving may take of a run


@dataclass(frozen=True)
class Case:
    """One network to time: flags of the pipeline, and the peers that it has."""

    name: str
    flags: dict[str, Any]
    torch: str | None = None
    application: str | None = None
    turns: int = 5


CASES = (
    Case("convnet, 8×8", {}, torch="convnet", turns=10),
    Case(
        "resnet 20, 32×32",
        {"dataset": "tiny_photos", "model": "resnet", "size": "20", "image_size": 32, "limit": 160},
        torch="resnet20",
    ),
    Case(
        "resnet 50, 64×64",
        {"dataset": "tiny_photos", "model": "resnet", "size": "50", "image_size": 64, "limit": 64},
        application="ResNet50",
        turns=3,
    ),
    Case(
        "efficientnet b0, 64×64",
        {"dataset": "tiny_photos", "model": "efficientnet", "size": "b0", "image_size": 64, "limit": 64},
        application="EfficientNetB0",
        turns=3,
    ),
)


@dataclass
class Timing:
    """The epochs of one way to train: seconds of wall time and of CPU."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def between(stamps: list[tuple[float, float]]) -> Timing:
    """Seconds and CPU seconds of the epochs, from the times at their ends; the first epoch is left out."""
    pairs = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(stamps)]
    return Timing([wall for wall, _ in pairs], [cpu for _, cpu in pairs])


def typical(times: list[float]) -> float:
    """The lower quartile."""
    return statistics.quantiles(times, n=4)[0]


def bare(model: Any, x: Any, y: Any, validation: Any, config: Any, epochs: int) -> Timing:
    """The epochs of `model.fit`."""
    import keras
    import tensorflow as tf

    steps = len(x) // config.batch_size
    stamps: list[tuple[float, float]] = []
    stamp = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: stamps.append((time.perf_counter(), time.process_time()))
    )
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x)).repeat()
    data = data.batch(config.batch_size).prefetch(tf.data.AUTOTUNE)
    model.fit(
        data,
        epochs=epochs,
        steps_per_epoch=steps,
        validation_data=validation,
        callbacks=[stamp],
        shuffle=False,  # the data set is
        verbose=2,  # one line an epoch, as the pipeline prints
    )
    return between(stamps)


def piped(model: Any, data: Any, validation: Any, config: Any, epochs: int) -> Timing:
    """The same of the pipeline's training, in a run folder that is thrown away."""
    import dataclasses

    from pipelines import image_classification, training

    stamps: list[tuple[float, float]] = []
    written = training.write_history

    def stamped(path: Path, rows: Any) -> None:
        written(path, rows)
        stamps.append((time.perf_counter(), time.process_time()))

    training.write_history = stamped  # called once at the end of every epoch
    try:
        with tempfile.TemporaryDirectory() as folder:
            training.fit(
                model,
                lambda step: image_classification.training_batches(data, config, step),
                validation,
                dataclasses.replace(config, epochs=epochs),
                Path(folder),
                examples=data.spec["counts"]["train"],
                monitor="val_accuracy",
                mode="max",
            )
    finally:
        training.write_history = written
    return between(stamps)


def application(name: str, shape: list[int], classes: int, config: Any, spec: dict[str, Any]) -> Any:
    """The network of keras.applications, compiled as ours."""
    import keras

    from pipelines import image_classification

    keras.utils.set_random_seed(config.seed)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=tuple(shape), classes=classes, classifier_activation=None
    )
    image_classification.compile_model(model, config, spec)
    return model


def in_turns(ways: dict[str, Callable[[int], Timing]], turns: int, seconds: float) -> dict[str, Timing]:
    """Time each way `turns` times, in turns and in alternating order, about `seconds` each after a warm-up.

    Returns:
        {name: Timing}.
    """
    epochs = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for name, way in ways.items():
            (wall,) = way(2).wall  # traces the step, fills caches
            epochs[name] = max(4, 1 + math.ceil(seconds / wall))
        most = max(epochs.values())
        found = {name: Timing() for name in ways}
        for turn in range(turns):
            for name in list(ways)[:: 1 if turn % 2 == 0 else -1]:
                timing = ways[name](most)
                found[name].wall += timing.wall
                found[name].cpu += timing.cpu
    return found


def torch_python() -> str | None:
    """An interpreter that imports torch."""
    for python in (os.environ.get("DLE_TORCH_PYTHON"), sys.executable):
        if python and subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 0:
            return python
    return None


def torch_peer(python: str, name: str, spec: dict[str, Any], config: Any, images: int, seconds: float) -> Any:
    """What benchmarks/torch_peers.py prints."""
    words = [*map(str, spec["image_shape"]), str(len(spec["classes"])), f"--batch={config.batch_size}"]
    done = subprocess.run(
        [python, str(PEERS), name, *words, f"--images={images}", f"--seconds={seconds}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def measure(case: Case, seconds: float, python: str | None) -> list[dict[str, Any]]:
    """The rows of one network."""
    import keras
    import numpy as np

    from pipelines import image_classification

    config = image_classification.Config(augment=("none",), **case.flags)
    data = image_classification.load_data(config)
    spec = data.spec
    model = image_classification.build_model(config, spec)
    steps = spec["counts"]["train"] // config.batch_size
    images = steps * config.batch_size
    batches = image_classification.evaluation_batches(data.train, spec).as_numpy_iterator()
    x, y = (np.concatenate(parts)[:images] for parts in zip(*batches))
    validation = image_classification.evaluation_batches(data.validation, spec)
    ways: dict[str, Callable[[int], Timing]] = {
        "bare fit": lambda epochs: bare(model, x, y, validation, config, epochs),
        "pipeline": lambda epochs: piped(model, data, validation, config, epochs),
    }
    if case.application:
        other = application(case.application, spec["image_shape"], len(spec["classes"]), config, spec)
        ways[f"keras.applications.{case.application}, bare fit"] = lambda epochs: bare(
            other, x, y, validation, config, epochs
        )
    timed = in_turns(ways, case.turns, seconds)
    rows = []
    base = timed["bare fit"]
    for name, found in timed.items():
        row: dict[str, Any] = {
            "network": case.name,
            "trained by": name,
            "images/s": round(images / typical(found.wall), 1),
        }
        row["CPU ms/image"] = round(typical(found.cpu) / images * 1e3, 3)
        row["rate / bare fit"] = round(typical(base.wall) / typical(found.wall), 3)
        if name == "pipeline":
            row["overhead"] = round(typical(found.wall) / typical(base.wall) - 1, 4)
            row["CPU overhead"] = round(typical(found.cpu) / typical(base.cpu) - 1, 4)
        rows.append(row)
        print(shown(row), flush=True)
    if case.torch and python:
        peer = torch_peer(python, case.torch, spec, config, images, seconds)
        ours = sum(int(np.prod(weight.shape)) for weight in model.trainable_variables)
        if peer["parameters"] != ours:
            raise ValueError(f"Expected a peer of {ours} parameters. Received: {peer['parameters']}")
        rate = peer["images_per_second"]
        row = {"network": case.name, "trained by": f"PyTorch {peer['torch']}, eager", "images/s": round(rate, 1)}
        rows.append({**row, "rate / bare fit": round(rate * typical(base.wall) / images, 3)})
        print(shown(rows[-1]), flush=True)
    keras.utils.clear_session()
    return rows


def saving(epochs: int) -> dict[str, Any]:
    """What checkpoints take of a run of the default configuration, by its own account in metrics.json."""
    from pipelines import image_classification

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run = image_classification.main(image_classification.Config(out=folder, epochs=epochs))
        metrics = json.loads((run / "metrics.json").read_text())
    share = metrics["checkpoint_seconds"] / metrics["train_seconds"]
    return {"seconds of training": metrics["train_seconds"], "share of saving": round(share, 4)}


def shown(row: dict[str, Any]) -> str:
    extra = f", overhead {row['overhead']:+.1%} (CPU {row['CPU overhead']:+.1%})" if "overhead" in row else ""
    by = row["trained by"]
    return f"{row['network']:<24} {by:<44} {row['images/s']:>8} images/s, {row['rate / bare fit']:.2f}{extra}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="of each turn, at the least three epochs (default 3)"
    )
    parser.add_argument("--only", help="networks whose name contains this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON file goes")
    flags = parser.parse_args()
    quiet_tensorflow()
    from pipelines import training

    load, python = os.getloadavg()[0], torch_python()
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if not flags.only or flags.only in case.name:
            rows += measure(case, flags.seconds, python)
    saved = saving(40)
    most = max(row["overhead"] for row in rows if "overhead" in row) + saved["share of saving"]
    print(f"saving checkpoints took {saved['share of saving']:.1%} of a default run ({saved['seconds of training']} s)")
    print(f"largest overhead of the pipeline, saving included: {most:+.1%}; promised: under {MOST:.0%}")
    if python is None:
        print("PyTorch is not installed: its rows are left out (pip install torch, or DLE_TORCH_PYTHON=…/bin/python)")
    if load > 1:
        print(f"the load was {load:.1f} when this began: repeat it on an idle machine")
    machine = {**training.environment(), "cores": os.cpu_count(), "load at start": round(load, 2)}
    content = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "saving": saved, "rows": rows}
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
