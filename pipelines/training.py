"""Training that every supervised pipeline shares: optimizer, schedule, replicas, and `fit` with exact resume."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorboard.summary import Writer

from pipelines import checkpoints, layer_rates
from pipelines.config import Failure, TrainingConfig, UsageError, seconds

NO_DECAY = ["bias", "gamma", "beta", "class_token", "position_embedding"]


def steps_per_epoch(config: TrainingConfig, examples: int) -> int:
    """Training steps in an epoch: whole batches of the training split, fewer where `--steps` asks for fewer."""
    whole = max(1, examples // min(config.batch_size, examples))
    if config.steps is None:
        return whole
    return math.ceil(config.steps / math.ceil(config.steps / whole))


def total_steps(config: TrainingConfig, examples: int) -> int:
    """Training steps of the whole run."""
    return config.steps or config.epochs * steps_per_epoch(config, examples)


def steps_per_execution(config: TrainingConfig, examples: int) -> int:
    """How many steps one call of the compiled function takes: the largest number up to 32 that divides an epoch.

    One with replicas: Keras 3.15 cannot trace several steps in a call under `MirroredStrategy`.

    Raises:
        UsageError: `--steps_per_execution` does not divide an epoch, or is not 1 with replicas.
    """
    whole = math.gcd(steps_per_epoch(config, examples), total_steps(config, examples))
    wanted = config.steps_per_execution
    if config.distribution != "none":
        if wanted not in (None, 1):
            raise UsageError(f"Expected --steps_per_execution 1 with --distribution mirrored. Received: {wanted}")
        return 1
    if wanted and whole % wanted:
        raise UsageError(f"Expected --steps_per_execution to divide the {whole} steps of an epoch. Received: {wanted}")
    return wanted or max(d for d in range(1, 33) if whole % d == 0)


def schedule(config: TrainingConfig, steps: int) -> Any:
    """The learning rate as Keras takes it: a number, or a schedule over `steps`.

    `cosine` rises from a hundredth of the rate over `warmup` and falls to 0 on half a cosine (Loshchilov and Hutter,
    2017, eq. 5); `step` divides by 10 at half and at three quarters (He et al., 2015, sec. 4.2); `plateau` is constant
    and halved by a callback.
    """
    rate = config.learning_rate
    if config.schedule == "cosine":
        warmup = int(config.warmup * steps)
        decay = max(1, steps - warmup)
        if warmup == 0:
            return keras.optimizers.schedules.CosineDecay(rate, decay)
        return keras.optimizers.schedules.CosineDecay(rate / 100, decay, warmup_target=rate, warmup_steps=warmup)
    if config.schedule == "step":
        return keras.optimizers.schedules.PiecewiseConstantDecay(
            [max(1, steps // 2), max(2, steps * 3 // 4)], [rate, rate / 10, rate / 100]
        )
    return rate


def optimizer(
    config: TrainingConfig, steps: int, multiplier: layer_rates.Multiplier | None = None
) -> keras.optimizers.Optimizer:
    """The optimizer that the flags describe, with its schedule over `steps` and, perhaps, a rate for each layer."""
    classes = {
        name.lower(): cls
        for name, cls in vars(keras.optimizers).items()
        if isinstance(cls, type) and issubclass(cls, keras.optimizers.Optimizer)
    }
    arguments: dict[str, Any] = {
        "learning_rate": schedule(config, steps),
        "weight_decay": config.weight_decay or None,
        "global_clipnorm": config.clip_norm,
        "use_ema": config.ema > 0,
        "ema_momentum": config.ema or 0.99,
    }
    name = config.optimizer
    if name in ("momentum", "nesterov"):
        arguments |= {"momentum": config.momentum, "nesterov": name == "nesterov"}
        name = "sgd"
    elif name == "rmsprop":
        arguments["momentum"] = config.momentum
    elif name in ("adamw", "lion", "muon") and not config.weight_decay:
        arguments["weight_decay"] = {"adamw": 0.004, "lion": 0.01, "muon": 0.1}[name]
    chosen = classes[name] if multiplier is None else layer_rates.scaled(classes[name], multiplier)
    result = chosen(**arguments)
    if arguments["weight_decay"]:
        result.exclude_from_weight_decay(var_names=NO_DECAY)
    return result


@contextmanager
def replicas(config: TrainingConfig) -> Iterator[None]:
    """The scope that models are built in: one replica per local device with `--distribution mirrored`."""
    if config.distribution == "none":
        yield
        return
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    with tf.distribute.MirroredStrategy([device.name for device in devices]).scope():
        yield


@contextmanager
def dtypes(config: TrainingConfig) -> Iterator[None]:
    """`--precision` for the models built inside."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


class Progress(keras.callbacks.Callback):
    """Keeps the history and the best weights, writes `history.csv` and TensorBoard scalars, stops by the clock.

    Files are written once a second at most, with every checkpoint, and at the end: an epoch may be short.
    """

    def __init__(self, folder: Path, monitor: str, mode: str, budget: float | None, restored):
        super().__init__()
        progress = restored[1] if restored else {}
        self.folder, self.monitor, self.sign, self.budget = folder, monitor, 1 if mode == "max" else -1, budget
        self.rows: list[dict[str, float]] = progress.get("history", [])
        self.earlier = progress.get("seconds", 0.0)
        self.best: list[np.ndarray] = restored[0].get("best", []) if restored else []
        self.best_row: dict[str, float] | None = progress.get("best_row")
        self.candidate: list[np.ndarray] = []
        self.began = time.monotonic()
        self.writer = Writer(str(folder / "logs"))
        self.written, self.written_at = len(self.rows), self.began

    def seconds(self) -> float:
        return self.earlier + time.monotonic() - self.began

    def state(self) -> dict[str, Any]:
        self.write()
        return {"history": list(self.rows), "seconds": self.seconds(), "best_row": self.best_row}

    def was_stopped(self, patience: int | None) -> bool:
        """Whether the restored run had already stopped, by the clock or by early stopping."""
        if not self.rows:
            return False
        values = [self.sign * row[self.monitor] for row in self.rows]
        waited = len(values) - 1 - values.index(max(values))
        return bool(patience and waited >= patience) or bool(self.budget and self.earlier > self.budget)

    def rank(self, row: dict[str, float]) -> tuple[float, float]:
        """What the best epoch is chosen by: the objective, then the validation loss; one that diverged is last."""
        if not math.isfinite(row["val_loss"]):
            return -math.inf, -math.inf
        return self.sign * row[self.monitor], -row["val_loss"]

    def is_best(self, row: dict[str, float]) -> bool:
        return self.best_row is None or self.rank(row) > self.rank(self.best_row)

    def on_train_begin(self, logs=None):
        self.rate = tf.function(lambda: tf.convert_to_tensor(self.model.optimizer.learning_rate))

    def on_train_batch_end(self, batch, logs=None):
        if self.budget and self.seconds() > self.budget:
            self.model.stop_training = True

    def on_test_end(self, logs=None):
        if self.is_best({f"val_{name}": float(item) for name, item in (logs or {}).items()}):
            self.candidate = checkpoints.snapshot(self.model.variables)  # with --ema, the averages are in place here

    def on_epoch_end(self, epoch, logs=None):
        logs = {name: float(item) for name, item in (logs or {}).items()}
        row = {"epoch": epoch + 1, **logs}
        row["learning_rate"] = float(self.rate())
        row["seconds"] = round(self.seconds(), 3)
        self.rows.append(row)
        if self.is_best(row):
            self.best, self.best_row = self.candidate, row
        if time.monotonic() - self.written_at >= 1:
            self.write()

    def on_train_end(self, logs=None):
        self.write()
        self.writer.close()

    def write(self):
        if self.rows:
            write_history(self.folder / "history.csv", self.rows)
        for row in self.rows[self.written :]:
            for name in row.keys() - {"epoch"}:
                self.writer.add_scalar(name, row[name], int(row["epoch"]))
        self.written, self.written_at = len(self.rows), time.monotonic()


class EpochCheckpoint(keras.callbacks.Callback):
    """Saves at the end of an epoch, when all other callbacks have seen it."""

    def __init__(self, resume: checkpoints.ExactResume):
        super().__init__()
        self.resume = resume

    def on_epoch_end(self, epoch, logs=None):
        self.resume.save_if_due()

    def on_train_end(self, logs=None):
        self.resume.save()
        self.resume.wait()


class StepLimit(keras.callbacks.Callback):
    """Stops when `steps` steps have been taken, within an epoch if need be."""

    def __init__(self, steps: int, resume: checkpoints.ExactResume):
        super().__init__()
        self.steps, self.resume = steps, resume

    def on_train_batch_end(self, batch, logs=None):
        if self.resume.step >= self.steps:
            self.model.stop_training = True


class Replayed(keras.callbacks.Callback):
    """A callback that decides by the history (early stopping, plateau) sees the earlier epochs of a resumed run."""

    def __init__(self, inner: keras.callbacks.Callback, rows: list[dict[str, float]]):
        super().__init__()
        self.inner, self.earlier = inner, list(rows)

    def set_model(self, model):
        super().set_model(model)
        self.inner.set_model(model)

    def on_train_begin(self, logs=None):
        self.inner.on_train_begin()
        rate = self.model.optimizer.learning_rate
        now = float(keras.ops.convert_to_numpy(rate))
        for row in self.earlier:
            self.inner.on_epoch_end(int(row["epoch"]) - 1, dict(row))
        if hasattr(rate, "assign"):
            rate.assign(now)

    def on_epoch_end(self, epoch, logs=None):
        self.inner.on_epoch_end(epoch, logs)


def write_history(path: Path, rows: list[dict[str, float]]) -> None:
    """`history.csv`: a row per epoch, replaced atomically."""
    part = path.with_suffix(".part")
    with open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(part, path)


def fit(
    model: keras.Model,
    train: Callable[[int], tf.data.Dataset],
    validation: tf.data.Dataset,
    config: TrainingConfig,
    folder: Path,
    *,
    examples: int,
    monitor: str,
    mode: str,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, Any]:
    """Train a compiled model inside a run folder, from its last checkpoint if it has one.

    Afterwards the model holds the best weights by `monitor` on the validation split; of equals, those of least loss.

    Args:
        model: compiled model.
        train: from a global step to the endless batches that begin there.
        validation: batches in fixed order.
        config: the run's configuration.
        folder: the run folder; `checkpoints/`, `history.csv` and `logs/` are written here.
        examples: size of the training split.
        monitor: logged name that the best epoch is chosen by, such as `val_accuracy`.
        mode: `max` or `min`.
        callbacks: of the task; they must not draw random numbers of Keras's global generator.

    Returns:
        seconds of training, epochs and steps taken, the best epoch, seconds spent saving.
    """
    per_epoch = steps_per_epoch(config, examples)
    steps = total_steps(config, examples)
    restored = checkpoints.latest(folder / "checkpoints")
    progress = Progress(folder, monitor, mode, seconds(config.budget), restored)
    resume = checkpoints.ExactResume(folder / "checkpoints", restored, per_epoch, progress.state, lambda: progress.best)
    own: list[keras.callbacks.Callback] = [resume, progress]
    if config.ema:
        own.append(keras.callbacks.SwapEMAWeights())
    if config.schedule == "plateau":
        own.append(Replayed(keras.callbacks.ReduceLROnPlateau(monitor, 0.5, 3, mode=mode), progress.rows))
    if config.patience:
        own.append(Replayed(keras.callbacks.EarlyStopping(monitor, 0, config.patience, mode=mode), progress.rows))
    own += [*callbacks, StepLimit(steps, resume), EpochCheckpoint(resume)]
    with model.distribute_strategy.scope():
        model.optimizer.build(model.trainable_variables)
    if resume.offset:  # metrics have variables from their first batch on
        model.test_on_batch(*next(iter(validation)))
    if resume.step < steps and not progress.was_stopped(config.patience):
        model.fit(
            train(resume.step),
            initial_epoch=resume.first_epoch,
            epochs=math.ceil(steps / per_epoch),
            steps_per_epoch=per_epoch,
            validation_data=validation,
            callbacks=own,
            shuffle=False,  # the stream is shuffled, by the seed
            verbose=1 if sys.stdout.isatty() else 2,
        )
    if progress.best_row is None or not math.isfinite(progress.best_row["val_loss"]):
        raise Failure(
            f"Expected finite losses: training diverged; try a --learning_rate lower than {config.learning_rate:g}, or "
            f"--clip_norm 1. Received: a validation loss of {progress.rows[-1]['val_loss']}"
        )
    checkpoints.assign(model.variables, progress.best, "best")
    return {
        "train_seconds": round(progress.seconds(), 2),
        "epochs": len(progress.rows),
        "steps": resume.step,
        "best_epoch": int(progress.best_row["epoch"]),
        "checkpoint_seconds": round(resume.spent, 3),
    }


def find_learning_rate(
    model: keras.Model, batches: tf.data.Dataset, config: TrainingConfig, *, low=1e-6, high=1.0, steps=120
) -> tuple[float, list[float], list[float]]:
    """Sweep the learning rate upwards over `steps` batches (Smith, 2017, sec. 3.3) and leave the model untouched.

    Returns:
        the suggestion (a tenth of the rate where the smoothed loss is least), the rates, the smoothed losses.
    """
    start = checkpoints.snapshot(model.variables)
    loss = model.loss
    rates, losses, average = [], [], 0.0
    sweep = replace(config, schedule="constant", learning_rate=low, ema=0.0)
    used = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # of one that scales losses
    model.compile(optimizer=optimizer(sweep, steps, getattr(used, "rates", None)), loss=loss)
    for i, (x, y, *weight) in enumerate(batches.take(steps)):
        rate = low * (high / low) ** (i / (steps - 1))
        model.optimizer.learning_rate.assign(rate)
        now = float(model.train_on_batch(x, y, *weight, return_dict=True)["loss"])
        average = 0.9 * average + 0.1 * now
        smooth = average / (1 - 0.9 ** (i + 1))  # bias-corrected
        rates.append(rate)
        losses.append(smooth)
        if not math.isfinite(now) or smooth > 4 * min(losses):
            break
    checkpoints.assign(model.variables, start, "model")
    kept = int(np.argmin(losses))
    return float(f"{rates[kept] / 10:.2g}"), rates, losses


def parameters(model: keras.Model) -> dict[str, int]:
    """How many numbers a model has, and how many of them are trained.

    Low-rank adapters are counted where they are trained only: in what is saved they are a part of the kernels.
    """
    saved = [weight for weight in model.weights if not weight.name.startswith("lora_kernel")]
    counted = {"parameters": saved, "trained_parameters": model.trainable_weights}
    return {name: sum(math.prod(weight.shape) for weight in weights) for name, weights in counted.items()}


def environment() -> dict[str, str]:
    """Versions that the numbers of a run depend on."""
    import platform

    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "backend": keras.backend.backend(),
        "devices": json.dumps([device.device_type for device in tf.config.list_logical_devices()]),
    }
