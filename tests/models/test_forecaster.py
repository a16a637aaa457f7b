"""Forecasters: causal trunks, steps that equal the whole, quantiles in order, windows normalized and restored."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from models import forecaster
from models.forecaster import PinballLoss, ScaledError
from models.layers.forecasting import Autoregressive, QuantileHead, Restore, WindowNormalization
from models.layers.trunks import RecurrentTrunk, TemporalTrunk, TransformerTrunk

ROOT = Path(__file__).parents[2]
STEPS, AHEAD, CHANNELS, TARGETS, KNOWN, SERIES = 10, 4, 3, 2, 2, 3
SMALL = {
    "recurrent_forecaster": {"width": 8, "depth": 2},
    "tcn_forecaster": {"width": 8, "depth": 2},
    "transformer_forecaster": {"width": 8, "depth": 2, "num_heads": 2, "hidden_dim": 8},
}
TRUNKS = {
    "gru": lambda: RecurrentTrunk(8, 2, "gru"),
    "lstm": lambda: RecurrentTrunk(8, 1, "lstm"),
    "simple_rnn": lambda: RecurrentTrunk(8, 1, "simple_rnn"),
    "tcn": lambda: TemporalTrunk(8, 2, 3),
    "transformer": lambda: TransformerTrunk(8, 2, 2, 8),
    "transformer-window": lambda: TransformerTrunk(8, 1, 2, 8, "window"),
}
every_model = pytest.mark.parametrize("name", SMALL)
every_head = pytest.mark.parametrize("head", ["direct", "autoregressive"])
every_trunk = pytest.mark.parametrize("kind", TRUNKS)


def build(name: str, head: str, quantiles: int = 3, **kwargs) -> keras.Model:
    """A small model of several targets, covariates and series with weights that are all alive."""
    make = getattr(forecaster, name)
    sizes = (TARGETS, KNOWN, SERIES, quantiles)
    model = make((STEPS, CHANNELS), AHEAD, *sizes, head=head, **(SMALL[name] | kwargs))
    noise = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(noise.normal(1.0 if weight.name == "gamma" else 0.0, 0.3, weight.shape))
    return model


@pytest.fixture(scope="module")
def models():
    return {(name, head): build(name, head) for name in SMALL for head in ("direct", "autoregressive")}


def batch(count: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "history": random.normal(5, 2, (count, STEPS, CHANNELS)).astype("float32"),
        "observed": (random.random((count, STEPS, CHANNELS)) < 0.9).astype("float32"),
        "known": random.normal(size=(count, STEPS + AHEAD, KNOWN)).astype("float32"),
        "series": np.arange(count, dtype="int32") % (SERIES + 1),
    }


@every_model
@every_head
def test_forecasts_have_steps_targets_and_quantiles_in_order(models, name, head):
    found = np.asarray(models[name, head](batch()))
    assert found.shape == (4, AHEAD, TARGETS, 3) == (4, *models[name, head].output_shape[1:])
    assert found.dtype == np.float32 and np.isfinite(found).all()
    assert (np.diff(found, axis=-1) >= 0).all()


@every_trunk
def test_a_state_does_not_depend_on_later_steps(kind):
    trunk, x = TRUNKS[kind](), np.random.default_rng(1).normal(size=(2, STEPS, 8)).astype("float32")
    before = np.asarray(trunk(x))
    for changed in range(1, STEPS):
        other = x.copy()
        other[:, changed:] *= -2  # adding a constant would be invisible to layer normalization
        after = np.asarray(trunk(other))
        np.testing.assert_allclose(after[:, :changed], before[:, :changed], atol=1e-5)
        assert np.abs(after[:, changed] - before[:, changed]).max() > 1e-3


@every_trunk
def test_steps_from_where_a_trunk_stands_equal_the_whole_sequence(kind):
    trunk, x = TRUNKS[kind](), np.random.default_rng(2).normal(size=(3, STEPS, 8)).astype("float32")
    whole = np.asarray(trunk(x))
    for first in (1, 2, STEPS - 2):
        states, cache = trunk.start(tf.constant(x[:, :first]))
        found = [states[:, i] for i in range(first)]
        for i in range(first, STEPS):
            state, cache = trunk.step(tf.constant(x[:, i]), cache)
            found.append(state)
        np.testing.assert_allclose(np.stack(found, 1), whole, atol=1e-5)


def test_the_receptive_field_of_the_tcn_is_what_the_docstring_says():
    trunk = TemporalTrunk(8, 2, 3)
    x = np.random.default_rng(3).normal(size=(1, 20, 8)).astype("float32")
    field = 1 + 2 * (3 - 1) * (2**2 - 1)
    before, reached = np.asarray(trunk(x))[0, -1], []
    for i in range(20):
        other = x.copy()
        other[0, i] *= -2
        reached.append(np.abs(np.asarray(trunk(other))[0, -1] - before).max() > 0)
    assert reached == [False] * (20 - field) + [True] * field


@every_model
def test_the_autoregressive_head_reads_its_own_medians_as_if_they_were_the_window(models, name):
    """By the whole trunk over the window and what was told so far, step by step, without a cache."""
    model, inputs = models[name, "autoregressive"], batch()
    head = model.get_layer("autoregressive")
    values, shift, scale = model.get_layer("window_normalization")(inputs["history"], inputs["observed"])
    rows = np.asarray(head.window_rows({"values": values, **{k: inputs[k] for k in ("observed", "known")}}))
    last, told = np.asarray(values)[:, -1].copy(), []
    for ahead in range(1, AHEAD + 1):
        states = np.asarray(head.trunk(head.embed(tf.constant(rows), inputs)))
        answer = np.asarray(head.head(states[:, -1]))  # (b, m, q)
        told.append(answer)
        if ahead < AHEAD:
            last[:, :TARGETS] = answer[..., 1]
            known = inputs["known"][:, STEPS + ahead]
            row = np.concatenate([last, np.zeros_like(last), known, np.full((4, 1), ahead / AHEAD)], -1)
            rows = np.concatenate([rows, row[:, None].astype("float32")], 1)
    whole = np.asarray(Restore()(np.stack(told, 1), shift, scale))
    np.testing.assert_allclose(np.asarray(model(inputs)), whole, atol=1e-4)


@every_model
def test_the_autoregressive_head_sees_no_covariate_before_its_time(models, name):
    model, inputs = models[name, "autoregressive"], batch()
    before = np.asarray(model(inputs))
    for step in range(AHEAD):
        known = inputs["known"].copy()
        known[:, STEPS + step :] += 3
        after = np.asarray(model(inputs | {"known": known}))
        np.testing.assert_allclose(after[:, :step], before[:, :step], atol=1e-5)
        assert np.abs(after[:, step:] - before[:, step:]).max() > 1e-4


@every_model
@every_head
def test_a_window_that_is_moved_and_stretched_moves_and_stretches_its_forecast(models, name, head):
    """With a deviation far above the least one, which is added to every window."""
    inputs = batch() | {"observed": np.ones((4, STEPS, CHANNELS), "float32")}
    inputs["history"] *= 100
    before = np.asarray(models[name, head](inputs))
    after = np.asarray(models[name, head](inputs | {"history": 3 * inputs["history"] + 700}))
    np.testing.assert_allclose(after, 3 * before + 700, rtol=1e-3, atol=0.5)


@pytest.mark.parametrize("kind", ["mean", "last", "none"])
def test_a_window_is_normalized_by_what_was_observed_and_can_be_restored(kind):
    inputs = batch()
    values, shift, scale = map(np.asarray, WindowNormalization(kind)(inputs["history"], inputs["observed"]))
    np.testing.assert_allclose(values * scale + shift, inputs["history"], atol=1e-4)
    there = np.ma.masked_array(inputs["history"], inputs["observed"] == 0)
    if kind == "mean":
        np.testing.assert_allclose(shift[:, 0], there.mean(1), atol=1e-4)
        np.testing.assert_allclose(scale[:, 0], np.sqrt(there.var(1) + 1e-4), atol=1e-4)
    if kind == "last":
        np.testing.assert_allclose(values[:, -1], 0, atol=1e-5)
    constant = np.full((1, STEPS, 1), 7.0, "float32")
    values, *_ = WindowNormalization(kind)(constant, np.zeros_like(constant))
    assert np.isfinite(np.asarray(values)).all()


def test_the_middle_quantile_is_free_and_the_others_are_sums_of_gaps():
    head = QuantileHead(1, 5)
    head.build((None, 5))
    head.dense.kernel.assign(np.eye(5))
    x = np.array([[0.5, -1.0, 2.0, 3.0, -2.0]], "float32")
    gap = np.log1p(np.exp(x[0]))
    wanted = [2 - gap[1] - gap[0], 2 - gap[1], 2, 2 + gap[3], 2 + gap[3] + gap[4]]
    np.testing.assert_allclose(np.asarray(head(x))[0, 0], wanted, rtol=1e-5)


@every_model
@every_head
def test_gradients_reach_every_weight(models, name, head):
    model, inputs = models[name, head], batch()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(inputs, training=True) - 1.0))
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    dead = [
        w.path for w, g in zip(model.trainable_weights, gradients) if g is None or not np.any(tf.convert_to_tensor(g))
    ]
    # A bias of the keys shifts all scores of a query alike, which the softmax does not see.
    assert [path for path in dead if not path.endswith("key/bias")] == []


@pytest.mark.parametrize(
    ("name", "head"), [*((name, "direct") for name in SMALL), ("recurrent_forecaster", "autoregressive")]
)
def test_one_batch_can_be_learned_by_heart(name, head):
    """By hand: tracing a `fit` of every model would take most of the time of these tests."""
    keras.utils.set_random_seed(0)
    model = getattr(forecaster, name)((STEPS, 1), 2, num_quantiles=3, head=head, **(SMALL[name] | {"depth": 1}))
    random = np.random.default_rng(4)
    inputs = {"history": random.normal(size=(5, STEPS, 1)).astype("float32")}
    inputs["observed"] = np.ones_like(inputs["history"])
    truth = np.stack([random.normal(size=(5, 2, 1)), np.ones((5, 2, 1))], -1).astype("float32")
    loss, optimizer = PinballLoss([0.1, 0.5, 0.9]), keras.optimizers.Adam(0.05)
    losses = []
    optimizer.build(model.trainable_variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            value = loss(truth, model(inputs, training=True))
        optimizer.apply(tape.gradient(value, [weight.value for weight in model.trainable_weights]))
        return value

    losses = [float(step()) for _ in range(150)]
    assert losses[-1] < 0.3 * losses[0]


def test_pinball_and_scaled_error_against_hand_calculation():
    truth = np.array([[[[10.0, 0.5]], [[4.0, 0.0]]]], "float32")  # the second is missing
    forecast = np.array([[[[8.0, 9.0, 12.0]], [[0.0, 1.0, 2.0]]]], "float32")
    # 0.1 · 2, 0.5 · 1 and 0.1 · 2, by three, by the weight 0.5; the missing one counts as 0
    loss = PinballLoss([0.1, 0.5, 0.9])(truth, forecast)
    np.testing.assert_allclose(loss, (0.2 + 0.5 + 0.2) / 3 * 0.5 / 2, rtol=1e-6)
    metric = ScaledError()
    metric.update_state(truth, forecast)
    np.testing.assert_allclose(metric.result(), 0.5, rtol=1e-6)
    assert PinballLoss.from_config(PinballLoss([0.2, 0.5]).get_config()).levels == [0.2, 0.5]


@pytest.mark.slow
def test_a_saved_model_answers_alike_in_a_fresh_process(models, tmp_path):
    """Other backends: tests/models/test_builders.py."""
    np.savez(tmp_path / "inputs.npz", **batch())
    wanted = {}
    for (name, head), model in models.items():
        model.save(tmp_path / f"{name}-{head}.keras")
        wanted[f"{name}-{head}"] = np.asarray(model(batch()))
    np.savez(tmp_path / "wanted.npz", **wanted)
    program = (
        "import sys, pathlib, numpy as np, keras; from models import forecaster\n"
        "folder = pathlib.Path(sys.argv[1]); inputs = dict(np.load(folder / 'inputs.npz'))\n"
        "wanted = np.load(folder / 'wanted.npz')\n"
        "for path in sorted(folder.glob('*.keras')):\n"
        "    model = keras.saving.load_model(path)\n"
        "    found = keras.ops.convert_to_numpy(model(inputs))\n"
        "    print(path.stem, np.abs(found - wanted[path.stem]).max())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    words = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = dict(line.split() for line in done.stdout.splitlines())
    assert rows.keys() == wanted.keys()
    assert max(map(float, rows.values())) < 1e-4, rows


@every_model
def test_the_smallest_model_has_no_covariates_and_one_series(name):
    model = getattr(forecaster, name)((3, 1), 1, **SMALL[name])
    assert set(model.input) == {"history", "observed"} and model.output_shape == (None, 1, 1, 1)
    assert np.isfinite(np.asarray(model({"history": np.ones((1, 3, 1)), "observed": np.ones((1, 3, 1))}))).all()


@every_model
@every_head
def test_mixed_precision_answers_in_float32(name, head):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        found = build(name, head)(batch())
    finally:
        keras.config.set_dtype_policy("float32")
    assert found.dtype == "float32" and np.isfinite(np.asarray(found)).all()


@every_model
@pytest.mark.parametrize(
    "arguments",
    [
        {"head": "both"},
        {"normalization": "max"},
        {"width": 0},
        {"depth": 1.5},
        {"dropout": 1.0},
        {"num_quantiles": 2},
        {"num_targets": 4},
        {"horizon": 0},
        {"history_shape": (10,)},
    ],
)
def test_arguments_out_of_range_are_errors(name, arguments):
    given = {"history_shape": (STEPS, CHANNELS), "horizon": AHEAD} | SMALL[name] | arguments
    with pytest.raises(ValueError, match="Received: "):
        getattr(forecaster, name)(**given)


def test_arguments_of_one_trunk_are_checked():
    with pytest.raises(ValueError, match="Received: "):
        forecaster.recurrent_forecaster((4, 1), 2, cell="gur")
    with pytest.raises(ValueError, match="Received: "):
        forecaster.transformer_forecaster((4, 1), 2, width=6, num_heads=2)
    with pytest.raises(ValueError, match="Received: "):
        forecaster.tcn_forecaster((4, 1), 2, kernel_size=0)


def test_the_head_is_kept_by_its_configuration():
    layer = build("tcn_forecaster", "autoregressive").get_layer("autoregressive")
    again = Autoregressive.from_config(layer.get_config())
    assert isinstance(again.trunk, TemporalTrunk) and again.get_config() == layer.get_config()
