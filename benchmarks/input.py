"""Whether the input keeps up: images per second that the pipeline's stream delivers, against what training consumes.

    python -m benchmarks.input

For each case the stream of `image_classification` (gather, augmentation, standardization) is drained alone, and the
model trains alone on one batch that is repeated from memory, in turns of `--seconds`; medians of `--rounds`. The ratio
is what counts: 10 or more means that training never waits for pictures. Also the rates of decoding PNG files into
memory and of a stream that decodes in every pass. Prints a table and writes benchmarks/results/input.json; 90 seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from pipelines.config import quiet_tensorflow

RESULTS = Path(__file__).parent / "results" / "input.json"
CASES: dict[str, dict[str, Any]] = {
    "convnet, tiny_digits, the default": {},
    "convnet, tiny_digits, no augmentation": {"augment": ()},
    "resnet 20, tiny_photos, flip crop mixup": {
        "dataset": "tiny_photos", "model": "resnet", "size": "20", "augment": ("flip", "crop", "mixup"),
    },
    "resnet 20, tiny_photos, flip randaugment cutmix": {
        "dataset": "tiny_photos", "model": "resnet", "size": "20", "augment": ("flip", "randaugment", "cutmix"),
    },
}  # fmt: skip


def drained(data: Any, batch_size: int, seconds: float) -> float:
    """Images per second of an endless stream of batches, without a consumer; it runs for about `seconds`."""
    import tensorflow as tf

    def run(steps: int) -> float:
        begun = time.perf_counter()
        data.take(steps).reduce(tf.constant(0, tf.int64), lambda count, *_: count + 1).numpy()
        return time.perf_counter() - begun

    run(2)
    steps = 20
    while (spent := run(steps)) < seconds:
        steps = int(steps * min(8, max(1.5, 1.2 * seconds / spent)))
    return steps * batch_size / spent


def trained(model: Any, batch: Any, batch_size: int, seconds: float) -> float:
    """Images per second of `fit` on one batch in memory, repeated; it runs for about `seconds`, after a warm-up."""
    import tensorflow as tf

    data = tf.data.Dataset.from_tensors(batch).repeat()
    call = int(model.steps_per_execution)
    model.fit(data, steps_per_epoch=2 * call, verbose=0)
    steps, spent = call, 0.0
    while True:
        begun = time.perf_counter()
        model.fit(data, steps_per_epoch=steps, verbose=0)
        spent = time.perf_counter() - begun
        if spent >= seconds:
            return steps * batch_size / spent
        steps = call * max(steps // call + 1, int(min(8, 1.2 * seconds / spent) * steps / call))


def case(changes: dict[str, Any], seconds: float, rounds: int) -> dict[str, float]:
    """Both rates of one configuration and their ratio: medians over rounds, the two in turns."""
    from pipelines import image_classification as task

    config = task.Config(**changes)
    data = task.load_data(config)
    model = task.build_model(config, data.spec)
    stream = task.training_batches(data, config)
    batch = next(iter(stream.take(1)))
    pairs = [
        (drained(stream, config.batch_size, seconds), trained(model, batch, config.batch_size, seconds))
        for _ in range(rounds)
    ]
    delivered, consumed = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    ratio = statistics.median(given / taken for given, taken in pairs)
    return {"delivered": round(delivered), "consumed": round(consumed), "ratio": round(ratio, 1)}


def files(count: int, seconds: float) -> dict[str, int]:
    """Rates of a class folder of `count` 128×128 JPEG files: checking, decoding into memory, decoding in each pass."""
    import numpy as np
    from PIL import Image

    from pipelines import datasets
    from pipelines.transforms import images

    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as root:
        for i in range(count):
            path = Path(root) / f"class{i % 4}" / f"{i}.jpg"
            path.parent.mkdir(exist_ok=True)
            coarse = Image.fromarray(generator.integers(0, 256, (16, 16, 3), "uint8"))
            coarse.resize((128, 128)).save(path, quality=90)
        begun = time.perf_counter()
        raw = datasets.load(data_dir=root)
        checked = time.perf_counter()

        def prepare(example: dict[str, Any]) -> dict[str, Any]:
            return example | {"image": images.pixels(example["image"], (128, 128, 3))}

        number = raw.counts["train"]
        decoded = time.perf_counter()
        held = datasets.in_memory(raw.train, number, prepare)
        done = time.perf_counter()
        rates = {
            "checked": count / (checked - begun),
            "decoded into memory": number / (done - decoded),
            "streamed from memory": drained(datasets.stream(held, count=number, batch_size=32, seed=0), 32, seconds),
            "streamed from files": drained(
                datasets.stream(raw.train, count=number, batch_size=32, seed=0, prepare=prepare), 32, seconds
            ),
        }
    return {name: round(rate) for name, rate in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="of each case (default 3)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    flags = parser.parse_args()
    quiet_tensorflow()
    import keras
    import tensorflow as tf

    warnings.filterwarnings("ignore", "`shuffle=True` was passed")
    rows = {}
    print(f"{'images per second':50} {'delivered':>10} {'consumed':>10} {'ratio':>7}")
    for name, changes in CASES.items():
        rows[name] = case(changes, flags.seconds, flags.rounds)
        print(f"{name:50} {rows[name]['delivered']:10,} {rows[name]['consumed']:10,} {rows[name]['ratio']:7}")
    read = files(1000, flags.seconds)
    for name, rate in read.items():
        print(f"{'1,000 JPEG files of 128 × 128: ' + name:50} {rate:10,}")
    machine = {
        "cores": os.cpu_count(), "system": platform.machine(), "python": platform.python_version(),
        "tensorflow": tf.__version__, "keras": keras.__version__,
    }  # fmt: skip
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps({"machine": machine, "cases": rows, "files": read}, indent=1) + "\n")
    print(f"lowest ratio {min(row['ratio'] for row in rows.values())}; written to {flags.out}")


if __name__ == "__main__":
    main()
