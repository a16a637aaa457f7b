"""What training costs here: the pipeline against a bare `fit`, our builders against keras.applications and PyTorch.

    python -m benchmarks.training

For each network the pipeline's training (`pipelines.training.fit`: checkpoints, history, TensorBoard, best weights, its
own input stream) and a bare `model.fit` on an equal compiled model, the same pictures, batch and `steps_per_execution`;
ResNet-50 and EfficientNet-B0 of keras.applications under the same bare fit; and the small networks in plain PyTorch
where torch can be imported (here, or by the interpreter that the variable DLE_TORCH_PYTHON names).

The ways to train take turns epoch by epoch in one process, so that whatever else the machine does hits all of them. The
overhead is the median over the rounds of an epoch of the pipeline by the bare epoch beside it; rates are of the median
epoch. Writing checkpoints goes on in a thread, beside the others' turns; what saving takes is measured apart, in a run
of the default configuration, and added to the overhead. About twelve minutes on two idle cores. Prints a table, writes
benchmarks/results/training.json, and exits 1 where the pipeline costs more than it promises.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import sides
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
    rounds: int = 24


CASES = (
    Case("convnet, 8×8", {}, torch="convnet", rounds=240),
    Case(
        "resnet 20, 32×32",
        {"dataset": "tiny_photos", "model": "resnet", "size": "20", "image_size": 32, "limit": 320},
        torch="resnet20",
        rounds=60,
    ),
    Case(
        "resnet 50, 64×64",
        {"dataset": "tiny_photos", "model": "resnet", "size": "50", "image_size": 64, "limit": 320},
        application="ResNet50",
        rounds=6,
    ),
    Case(
        "efficientnet b0, 64×64",
        {"dataset": "tiny_photos", "model": "efficientnet", "size": "b0", "image_size": 64, "limit": 320},
        application="EfficientNetB0",
        rounds=6,
    ),
)


@dataclass
class Timing:
    """The epochs of one way to train: seconds of wall time and of CPU."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


class Baton:
    """Lets one of several threads train at a time, an epoch each, and times it."""

    def __init__(self, names: list[str]):
        self.names, self.now, self.failed = names, 0, False
        self.passed = threading.Condition()
        self.timings = {name: Timing() for name in names}
        self.begun = (0.0, 0.0)

    def begin(self, name: str) -> None:
        with self.passed:
            self.passed.wait_for(lambda: self.failed or self.names[self.now] == name)
        if self.failed:
            raise RuntimeError("Expected every way to train. Received: an error in another thread")
        self.begun = time.perf_counter(), time.process_time()

    def end(self, name: str) -> None:
        self.timings[name].wall.append(time.perf_counter() - self.begun[0])
        self.timings[name].cpu.append(time.process_time() - self.begun[1])
        with self.passed:
            self.now = (self.now + 1) % len(self.names)
            self.passed.notify_all()

    def fail(self) -> None:
        with self.passed:
            self.failed = True
            self.passed.notify_all()


Way = Callable[[int, Callable[[], None], Callable[[], None]], None]  # of epochs, and what to call around each


def bare(model: Any, x: Any, y: Any, validation: Any, config: Any) -> Way:
    """Epochs of `model.fit`."""
    import keras
    import tensorflow as tf

    def train(epochs: int, begin: Callable[[], None], end: Callable[[], None]) -> None:
        data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x)).repeat()
        model.fit(
            data.batch(config.batch_size).prefetch(tf.data.AUTOTUNE),
            epochs=epochs,
            steps_per_epoch=len(x) // config.batch_size,
            validation_data=validation,
            callbacks=[
                keras.callbacks.LambdaCallback(
                    on_epoch_begin=lambda epoch, logs: begin(), on_epoch_end=lambda epoch, logs: end()
                )
            ],
            shuffle=False,  # the data set is
            verbose=2,  # one line an epoch, as the pipeline prints
        )

    return train


def piped(model: Any, data: Any, validation: Any, config: Any) -> Way:
    """The same of the pipeline's training, in a run folder that is thrown away."""
    import dataclasses

    from pipelines import image_classification, training

    def train(epochs: int, begin: Callable[[], None], end: Callable[[], None]) -> None:
        class Last(training.EpochCheckpoint):  # the last of the pipeline's callbacks
            def on_epoch_begin(self, epoch, logs=None):
                begin()

            def on_epoch_end(self, epoch, logs=None):
                super().on_epoch_end(epoch, logs)
                end()

        own, training.EpochCheckpoint = training.EpochCheckpoint, Last  # type: ignore[misc]
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
            training.EpochCheckpoint = own  # type: ignore[misc]

    return train


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


def in_turns(ways: dict[str, Way], rounds: int) -> dict[str, Timing]:
    """Epochs of every way in turns, `rounds` of each after two to warm up.

    Returns:
        {name: Timing}.
    """
    baton = Baton(list(ways))

    def run(name: str) -> None:
        try:
            ways[name](rounds + 2, lambda: baton.begin(name), lambda: baton.end(name))
        except BaseException:
            baton.fail()
            raise

    with contextlib.redirect_stdout(io.StringIO()), ThreadPoolExecutor(len(ways)) as pool:
        for done in [pool.submit(run, name) for name in ways]:
            done.result()
    return {name: Timing(timing.wall[2:], timing.cpu[2:]) for name, timing in baton.timings.items()}


def overhead(times: list[float], base: list[float]) -> float:
    """What the epochs of one way cost over those beside them."""
    return round(statistics.median(a / b for a, b in zip(times, base)) - 1, 4)


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


def measure(case: Case, share: float, python: str | None) -> list[dict[str, Any]]:
    """The rows of one network."""
    import keras
    import numpy as np

    from pipelines import image_classification

    config = image_classification.Config(augment=("none",), **case.flags)
    data = image_classification.load_data(config)
    spec = data.spec
    models = [image_classification.build_model(config, spec) for _ in range(2)]
    steps = spec["counts"]["train"] // config.batch_size
    images = steps * config.batch_size
    batches = image_classification.evaluation_batches(data.train, spec).as_numpy_iterator()
    x, y = (np.concatenate(parts)[:images] for parts in zip(*batches))
    validation = image_classification.evaluation_batches(data.validation, spec)
    ways = {
        "bare fit": bare(models[0], x, y, validation, config),
        "pipeline": piped(models[1], data, validation, config),
    }
    if case.application:
        other = application(case.application, spec["image_shape"], len(spec["classes"]), config, spec)
        ways[f"keras.applications.{case.application}, bare fit"] = bare(other, x, y, validation, config)
    timed = in_turns(ways, max(3, round(case.rounds * share)))
    rows = []
    base = timed["bare fit"]
    epoch = statistics.median(base.wall)
    for name, found in timed.items():
        row: dict[str, Any] = {
            "network": case.name,
            "trained by": name,
            "images/s": round(images / statistics.median(found.wall), 1),
        }
        row["CPU ms/image"] = round(statistics.median(found.cpu) / images * 1e3, 3)
        row["rate / bare fit"] = round(1 / (1 + overhead(found.wall, base.wall)), 3)
        if name == "pipeline":
            row["overhead"] = overhead(found.wall, base.wall)
            row["CPU overhead"] = overhead(found.cpu, base.cpu)
        rows.append(row)
        print(shown(row), flush=True)
    if case.torch and python:
        peer = torch_peer(python, case.torch, spec, config, images, 10 * share)
        ours = sum(int(np.prod(weight.shape)) for weight in models[0].trainable_variables)
        if peer["parameters"] != ours:
            raise ValueError(f"Expected a peer of {ours} parameters. Received: {peer['parameters']}")
        rate = peer["images_per_second"]
        row = {"network": case.name, "trained by": f"PyTorch {peer['torch']}, eager", "images/s": round(rate, 1)}
        rows.append({**row, "rate / bare fit": round(rate * epoch / images, 3)})
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
        "--share", type=float, default=1.0, help="of the rounds, for a quick look; at least three (default 1)"
    )
    parser.add_argument("--only", help="networks whose name contains this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON file goes")
    flags = parser.parse_args()
    quiet_tensorflow()
    from pipelines import training

    load, python = os.getloadavg()[0], sides.torch_python()
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if not flags.only or flags.only in case.name:
            rows += measure(case, flags.share, python)
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
    sys.exit(most >= MOST)


if __name__ == "__main__":
    main()
