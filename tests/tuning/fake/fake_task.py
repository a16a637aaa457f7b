"""A pipeline whose training is a formula: real run folders and resume, no network, so that searches take no time.

The accuracy is known: best at a learning rate of 10 ** -2.5 and a dropout of 0.3, better with more epochs.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

from pipelines import builder, runs
from pipelines.config import Failure, TrainingConfig, UsageError, option

TASK = "fake"
MODELS = {"mlp": builder("models.mlp"), "convnet": builder("models.convnet")}
OBJECTIVE = ("accuracy", "max")
DATA = "none"
CALLS: list[Any] = []  # every configuration that main was called with, in this process


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    model: str = option("mlp", "the architecture")
    epochs: int = option(9, "passes over the training data")
    nap: float = option(0.0, "seconds a training takes")
    trouble: str = option("none", "what goes wrong: none, usage, wide, crash, nan, die, hang or stop:<call>")


def main(config: Config) -> Path:
    CALLS.append(config)
    config = runs.resumed(TASK, config)
    if config.resume and runs.is_finished(Path(config.resume)):
        return Path(config.resume)
    if config.trouble == "usage":
        raise UsageError("Expected better data. Received: none")
    if config.trouble == "wide" and len(config.model_args["hidden_dims"]) > 2:
        raise UsageError("Expected at most 2 layers for so small an image. Received: more")
    if config.trouble == "crash":
        raise Failure("Expected a crash")
    if config.trouble == f"stop:{len(CALLS)}":
        raise KeyboardInterrupt
    with runs.start(TASK, config, {}) as folder:
        with open(Path(config.out) / "begun.txt", "a") as file:
            file.write(f"{folder.name} {os.getpid()} {bool(config.resume)}\n")
        marker = Path(config.out) / "died"
        if config.trouble == "die" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        second = len((Path(config.out) / "begun.txt").read_text().splitlines()) == 2
        end = math.inf if config.trouble == "hang" and second else time.monotonic() + config.nap
        while time.monotonic() < end:
            time.sleep(0.02)
        accuracy = score(config)
        result = {"accuracy": math.nan if config.trouble == "nan" else accuracy}
        metrics = {
            "objective": OBJECTIVE,
            "validation": result,
            "test": {"accuracy": -1.0},
            "train_seconds": config.nap,
        }
        runs.write_json(folder / "metrics.json", metrics)
        (folder / "model.keras").touch()
    return folder


def score(config: Config) -> float:
    """The accuracy that `main` reports."""
    rate = (math.log10(config.learning_rate) + 2.5) ** 2
    dropout = (config.model_args.get("dropout", 0.0) - 0.3) ** 2
    return round(0.95 - 0.1 * rate - 0.5 * dropout - 0.2 / config.epochs, 6)
