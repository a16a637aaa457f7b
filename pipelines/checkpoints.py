"""Exact resume: everything a training step depends on, written while training goes on.

A checkpoint holds the variables of the model (weights, batch statistics, states of noise layers), of the optimizer
(slots, iterations, running averages) and of the metrics, the best weights so far, and the history. Data order and
augmentation need nothing: they are functions of the seed and the step (`pipelines.datasets.stream`). A run that was
killed and is continued from here therefore ends with the weights of a run that never was: bit for bit on a CPU.

Files are written beside their final name and renamed, so that a kill leaves the old file or the new one and never
half of one; the two newest are kept. Writing happens in a thread of its own, and the next checkpoint waits until
two hundred times its cost has passed: saving never takes more than 0.5 % of the time.
"""

from __future__ import annotations

import json
import os
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from pipelines.config import Failure

COST_FACTOR = 200  # seconds of training per second of saving
KEEP = 2


def groups(model: keras.Model) -> dict[str, list[keras.Variable]]:
    """The variables of a compiled, built model that a training step reads or writes."""
    return {"model": model.variables, "optimizer": model.optimizer.variables, "metrics": model.metrics_variables}


def snapshot(variables: list[keras.Variable]) -> list[np.ndarray]:
    """Copies of the values, safe from the steps that follow."""
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def write(folder: Path, step: int, arrays: dict[str, list[np.ndarray]], progress: dict[str, Any]) -> Path:
    """Write `step-XXXXXXXX.npz` atomically and drop the older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.npz"
    part = path.with_suffix(".part")
    flat: dict[str, Any] = {f"{group}/{i}": array for group, values in arrays.items() for i, array in enumerate(values)}
    flat["progress"] = np.frombuffer(json.dumps(progress).encode(), np.uint8)
    with open(part, "wb") as file:
        np.savez(file, **flat)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    for old in sorted(folder.glob("step-*.npz"))[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def read(path: Path) -> tuple[dict[str, list[np.ndarray]], dict[str, Any]]:
    """The arrays by group, and the progress, of one checkpoint file."""
    arrays: dict[str, list[np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as archive:
        progress = json.loads(archive["progress"].tobytes())
        for name in sorted((n for n in archive.files if "/" in n), key=lambda n: int(n.rpartition("/")[2])):
            arrays.setdefault(name.partition("/")[0], []).append(archive[name])
    return arrays, progress


def latest(folder: Path) -> tuple[dict[str, list[np.ndarray]], dict[str, Any]] | None:
    """The newest readable checkpoint, or None before the first.

    Raises:
        Failure: there are checkpoints and every one of them is damaged.
    """
    files = sorted(folder.glob("step-*.npz"), reverse=True)
    for path in files:
        try:
            return read(path)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            print(f"warning: {path.name} is damaged and is passed over: {error}")
    if files:
        raise Failure(f"Expected a readable checkpoint in {folder}. Received: {len(files)} damaged files")
    return None


def assign(variables: list[keras.Variable], values: list[np.ndarray], what: str) -> None:
    """Set variables from a checkpoint.

    Raises:
        Failure: the count or a shape differs, so the checkpoint belongs to another model.
    """
    if [tuple(v.shape) for v in variables] != [value.shape for value in values]:
        raise Failure(
            f"Expected a checkpoint of {len(variables)} {what} variables of this model's shapes. "
            f"Received: {len(values)} variables"
        )
    for variable, value in zip(variables, values):
        variable.assign(value)


class ExactResume(keras.callbacks.Callback):
    """Saves checkpoints while `fit` runs and starts `fit` from one.

    Must be the first callback: the others see the restored state. A checkpoint taken within an epoch is continued
    within it: `fit` begins that epoch anew, so the metrics so far are put back and the epoch ends early.

    Args:
        folder: where checkpoints are written.
        restored: what `latest` returned.
        steps_per_epoch: training steps in an epoch.
        progress: called for the JSON that goes along: history, seconds, best result.
        best: called for the best weights so far, `[]` before there are any.
    """

    def __init__(self, folder: Path, restored: Any, steps_per_epoch: int, progress: Any, best: Any):
        super().__init__()
        self.folder, self.restored, self.steps_per_epoch = folder, restored, steps_per_epoch
        self.progress, self.best = progress, best
        self.step: int = restored[1]["step"] if restored else 0
        self.first_epoch: int = self.step // steps_per_epoch
        self.offset: int = self.step % steps_per_epoch
        self.start_step = self.step
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.cost, self.saved_at, self.spent = 0.0, time.monotonic(), 0.0

    def on_train_begin(self, logs=None):
        if self.restored:
            for name in ("model", "optimizer"):
                assign(groups(self.model)[name], self.restored[0].get(name, []), name)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.begin = epoch * self.steps_per_epoch
        self.ended_early = False
        if self.restored and epoch == self.first_epoch and self.offset:
            self.begin += self.offset
            assign(self.model.metrics_variables, self.restored[0].get("metrics", []), "metric")

    def on_train_batch_end(self, batch, logs=None):
        self.step = self.begin + batch + 1
        left = (self.epoch + 1) * self.steps_per_epoch - self.step
        if left <= 0:
            self.ended_early = not self.model.stop_training and self.begin % self.steps_per_epoch > 0
            if self.ended_early:
                self.model.stop_training = True  # leaves the batch loop; taken back in on_epoch_end
        else:
            self.save_if_due()

    def on_epoch_end(self, epoch, logs=None):
        if self.ended_early:
            self.model.stop_training = False

    def save_if_due(self) -> None:
        busy = self.thread is not None and self.thread.is_alive()
        if not busy and time.monotonic() - self.saved_at >= COST_FACTOR * self.cost:
            self.save()

    def save(self) -> None:
        """Copy the state now and write it in the background."""
        self.wait()
        begin = time.monotonic()
        arrays = {name: snapshot(variables) for name, variables in groups(self.model).items()}
        arrays["best"] = self.best()
        progress = {"step": self.step, **self.progress()}
        blocked = time.monotonic() - begin
        self.thread = threading.Thread(target=self.write, args=(self.step, arrays, progress, blocked), daemon=True)
        self.thread.start()
        self.saved_at = time.monotonic()

    def write(self, step, arrays, progress, blocked) -> None:
        begin = time.monotonic()
        try:
            write(self.folder, step, arrays, progress)
        except OSError as error:  # told by wait(), in the training thread
            size = sum(array.nbytes for values in arrays.values() for array in values)
            self.error = Failure(
                f"Expected room for a checkpoint of {size:,} bytes in {self.folder}. Received: {error}"
            )
        except BaseException as error:
            self.error = error
        self.cost = blocked + time.monotonic() - begin
        self.spent += self.cost

    def wait(self) -> None:
        """Wait for the file under way; raises what went wrong with it (a full disk, say)."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            error, self.error = self.error, None
            raise error
