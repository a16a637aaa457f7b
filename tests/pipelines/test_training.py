"""Optimizers, schedules and `fit`: that each flag does what it says."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines import checkpoints, image_classification, runs, training
from pipelines.config import OPTIMIZERS, Failure, TrainingConfig, UsageError

EXAMPLES = 64
X = np.random.default_rng(0).normal(size=(EXAMPLES, 4)).astype("float32")
Y = keras.utils.to_categorical((X[:, 0] > 0).astype(int), 2)


def batches(start: int) -> tf.data.Dataset:
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16).repeat()
    return data.skip(start % 4)


def fit(tmp_path, **flags) -> tuple[keras.Model, dict, list[dict[str, float]]]:
    """Train a linear model on 64 points, 4 steps an epoch."""
    config = TrainingConfig(**{"batch_size": 16, "epochs": 4, "learning_rate": 0.1, "model": "linear"} | flags)
    keras.utils.set_random_seed(config.seed)
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(2, name="head")])
    model.compile(
        training.optimizer(config, training.total_steps(config, EXAMPLES)),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        steps_per_execution=training.steps_per_execution(config, EXAMPLES),
    )
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(32)
    found = training.fit(model, batches, data, config, tmp_path, examples=EXAMPLES, monitor="val_accuracy", mode="max")
    return model, found, runs.history(tmp_path)


def rates(config: TrainingConfig, steps: int) -> list[float]:
    found = training.schedule(config, steps)
    return [float(found(step)) if callable(found) else found for step in range(steps)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_a_loss(name):
    # So little weight decay that what moves the weights is the gradient.
    config = TrainingConfig(optimizer=name, learning_rate=0.03, schedule="constant", weight_decay=1e-12)
    optimizer = training.optimizer(config, 50)
    weight = keras.Variable(np.full((3, 3), 2.0, "float32"), name="kernel")
    optimizer.build([weight])
    for _ in range(50):
        optimizer.apply([2 * weight], [weight])
    assert float(keras.ops.mean(weight**2)) < 4.0 - 1e-3


def test_momentum_and_nesterov_are_sgd_with_it():
    plain, heavy, nesterov = (training.optimizer(TrainingConfig(optimizer=n), 10) for n in OPTIMIZERS[2:5])
    assert (plain.momentum, heavy.momentum, heavy.nesterov, nesterov.nesterov) == (0.0, 0.9, False, True)


def test_the_cosine_rises_in_the_warm_up_and_falls_to_nothing():
    found = rates(TrainingConfig(schedule="cosine", learning_rate=0.5, warmup=0.1), 100)
    assert found[0] == pytest.approx(0.005)
    assert np.all(np.diff(found[:11]) > 0) and np.all(np.diff(found[10:]) < 0)
    assert found[10] == pytest.approx(0.5)
    assert found[55] == pytest.approx(0.25, abs=0.01)  # half way down the cosine
    assert found[-1] < 1e-3


def test_the_steps_divide_by_ten_at_half_and_three_quarters():
    found = rates(TrainingConfig(schedule="step", learning_rate=1.0), 100)
    assert [round(found[i], 6) for i in (0, 49, 52, 74, 77, 99)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


@pytest.mark.parametrize(("steps", "epochs", "per_epoch"), [(None, 4, 4), (3, 1, 3), (4, 1, 4), (10, 3, 4), (8, 2, 4)])
def test_steps_are_taken_to_the_last_one_and_no_further(tmp_path, steps, epochs, per_epoch):
    model, found, rows = fit(tmp_path, steps=steps)
    assert int(model.optimizer.iterations) == (steps or 16) == found["steps"]
    assert len(rows) == epochs
    assert training.steps_per_epoch(TrainingConfig(batch_size=16, steps=steps), EXAMPLES) == per_epoch


def test_steps_in_one_call_divide_an_epoch():
    assert training.steps_per_execution(TrainingConfig(batch_size=16), 16 * 40) == 20
    assert training.steps_per_execution(TrainingConfig(batch_size=16, steps_per_execution=8), 16 * 40) == 8
    with pytest.raises(UsageError, match="divide the 40 steps"):
        training.steps_per_execution(TrainingConfig(batch_size=16, steps_per_execution=7), 16 * 40)


def test_the_best_weights_are_kept_not_the_last(tmp_path):
    model, found, rows = fit(tmp_path, learning_rate=30.0, schedule="constant", optimizer="sgd", epochs=8)
    best = max(rows, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert found["best_epoch"] == best["epoch"]
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(32)
    assert model.evaluate(data, verbose=0, return_dict=True)["loss"] == pytest.approx(best["val_loss"], rel=1e-5)


def test_early_stopping_waits_for_its_patience(tmp_path):
    _, found, rows = fit(tmp_path, learning_rate=1e-9, epochs=50, patience=3, schedule="constant")
    assert found["epochs"] == len(rows) == 4  # the first is the best, and three without a better one


def test_early_stopping_is_remembered_over_a_resume(tmp_path):
    flags = {"learning_rate": 1e-9, "epochs": 50, "patience": 3, "schedule": "constant"}
    fit(tmp_path, **flags)
    _, found, rows = fit(tmp_path, **flags)
    assert found["epochs"] == len(rows) == 4


def test_the_plateau_halves_the_rate(tmp_path):
    _, _, rows = fit(tmp_path, learning_rate=1e-7, epochs=9, schedule="plateau")
    assert [row["learning_rate"] / 1e-7 for row in rows] == pytest.approx([1] * 4 + [0.5] * 3 + [0.25] * 2, rel=0.3)


def test_the_plateau_is_remembered_over_a_resume(tmp_path):
    flags = {"learning_rate": 1e-7, "schedule": "plateau"}
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    _, _, whole = fit(tmp_path / "a", epochs=9, **flags)
    fit(tmp_path / "b", epochs=5, **flags)
    _, _, parts = fit(tmp_path / "b", epochs=9, **flags)
    assert [r["learning_rate"] for r in parts] == [r["learning_rate"] for r in whole]


def test_the_budget_ends_training_with_an_evaluated_epoch(tmp_path, monkeypatch):
    original = training.Progress.on_train_batch_end

    def slow(self, batch, logs=None):
        time.sleep(0.05)
        original(self, batch, logs)

    monkeypatch.setattr(training.Progress, "on_train_batch_end", slow)
    _, found, rows = fit(tmp_path, epochs=10_000, budget="2s")
    assert 1 <= found["epochs"] < 200 and "val_accuracy" in rows[-1]


def test_the_running_average_is_what_is_evaluated_and_kept(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    plain, _, _ = fit(tmp_path / "a", optimizer="sgd", schedule="constant", epochs=1)
    averaged, _, _ = fit(tmp_path / "b", optimizer="sgd", schedule="constant", epochs=1, ema=0.5)
    keras.utils.set_random_seed(0)
    kernel = keras.layers.Dense(2)
    kernel.build([None, 4])
    # Both took the same four steps; the average lags behind the last weights, towards the first.
    start, last, mean = (np.array(m.kernel) for m in (kernel, plain.get_layer("head"), averaged.get_layer("head")))
    assert 0 < np.abs(mean - last).max() < np.abs(start - last).max()


def test_saving_waits_until_a_hundred_times_its_cost_has_passed(tmp_path, monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock, moments = Clock(), []

    def write(*_):
        moments.append(clock.now)
        clock.now += 0.5  # what writing costs

    monkeypatch.setattr(checkpoints, "time", clock)
    monkeypatch.setattr(checkpoints, "write", write)
    resume = checkpoints.ExactResume(tmp_path, None, 1000, dict, list)
    resume.set_model(keras.Sequential([keras.Input([1]), keras.layers.Dense(1)]))
    resume.model.compile("sgd", "mse")
    resume.on_epoch_begin(0)
    for batch in range(250):
        resume.on_train_batch_end(batch)
        resume.wait()
        clock.now += 1.0
    assert len(moments) == 3
    assert min(np.diff(moments)) >= 0.5 * checkpoints.COST_FACTOR


def test_what_went_wrong_in_the_writing_thread_is_raised_in_training(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write", full)
    with pytest.raises(Failure, match=r"room for a checkpoint of \d+ bytes in .*No space left"):
        fit(tmp_path)


def test_a_run_that_diverges_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "X", X * 1e38)
    with pytest.raises(Failure, match="training diverged; try a --learning_rate lower than 10"):
        fit(tmp_path, learning_rate=10.0, optimizer="sgd", schedule="constant")


def test_class_weights_multiply_the_loss_of_rare_classes():
    config = image_classification.Config(limit=100, class_weights="balanced", augment=())
    data = image_classification.load_data(config)
    data.spec["class_counts"][0] = 1  # as if zeros were rare
    _, labels, weights = next(iter(image_classification.training_batches(data, config)))
    zero = labels.numpy()[:, 0] == 1
    assert weights.numpy()[zero].min() > 5 * weights.numpy()[~zero].max()


def test_the_sweep_suggests_a_rate_that_learns_and_leaves_the_model_alone(tmp_path):
    config = image_classification.Config(limit=300, augment=(), model="mlp")
    data = image_classification.load_data(config)
    model = image_classification.build_model(config, data.spec)
    before = model.get_weights()
    stream = image_classification.training_batches(data, config)
    chosen, tried, losses = training.find_learning_rate(model, stream, config)
    assert 1e-4 < chosen < 0.3
    assert len(tried) == len(losses) > 50 and math.isfinite(sum(losses))
    for a, b in zip(before, model.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_flags_reach_the_run(tmp_path):
    """Mixed precision, class weights, label smoothing, clipping and the sweep in one run; the rate found is kept."""
    config = image_classification.Config(
        out=str(tmp_path), limit=100, epochs=1, precision="mixed_bfloat16", class_weights="balanced", lr_find=True,
        label_smoothing=0.1, clip_norm=1.0, model_args={"widths": (8, 8), "depth": 1}, optimizer="adamw",
        weight_decay=0.01, batch_size=10, augment=("cutmix",),
    )  # fmt: skip
    folder = image_classification.main(config)
    run = runs.load(folder)
    assert run.model.get_layer("stage1_1_conv").compute_dtype == "bfloat16"
    assert run.config.lr_find is False and run.config.learning_rate != config.learning_rate
    assert (folder / "plots/lr_find.png").exists()
    assert keras.config.dtype_policy().name == "float32"


TWO_REPLICAS = """
import sys, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from pipelines import image_classification as task, runs
for flags in ({"distribution": "mirrored"}, {}):
    config = task.Config(out=sys.argv[1], limit=200, epochs=2, batch_size=20, augment=(), model="mlp",
                         model_args={"hidden_dims": (16,)}, **flags)
    print("RUN", task.main(config))
"""


@pytest.mark.slow
def test_two_mirrored_replicas_train_to_what_one_does(tmp_path):
    import subprocess
    import sys
    from pathlib import Path

    done = subprocess.run(
        [sys.executable, "-c", TWO_REPLICAS, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    folders = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("RUN")]
    two, one = (json.loads((Path(folder) / "metrics.json").read_text()) for folder in map(Path, folders))
    assert json.loads(two["versions"]["devices"]) == ["CPU", "CPU"]
    # The same global batches; sums over replicas are added in another order.
    assert two["validation"]["log_loss"] == pytest.approx(one["validation"]["log_loss"], rel=1e-3)
    assert replace(runs.load(folders[0], model=False).config, distribution="none").model == "mlp"
