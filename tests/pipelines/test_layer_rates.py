"""Rates by layer: an update is scaled exactly, 0 leaves weights as they are, and a resumed run goes on as it was."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.bert import bert_classifier
from models.t5 import t5
from pipelines import finetuning, layer_rates, training
from pipelines.config import OPTIMIZERS, TrainingConfig

RATES = {"frozen": 0.0, "whole": 1.0, "half": 0.5}


def updated(name: str, start: float, multiplier=None, **flags) -> dict[str, np.ndarray]:
    """Three weights after four steps of an optimizer with the same gradients."""
    config = TrainingConfig(optimizer=name, schedule="constant", learning_rate=0.01, **flags)
    weights = [keras.Variable(np.full((3, 3), start, "float32"), name=name) for name in RATES]
    optimizer = training.optimizer(config, 4, multiplier)
    optimizer.build(weights)
    noise = np.random.default_rng(0)

    @tf.function
    def step(gradient):
        optimizer.apply([gradient] * 3, weights)

    for _ in range(4):
        step(tf.constant(noise.normal(size=(3, 3)), "float32"))
    return {weight.name: weight.numpy() for weight in weights}


def by_name(path, step):
    return RATES[path]


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "ftrl"])
def test_a_rate_of_0_keeps_every_bit_and_1_changes_nothing(name):
    found, plain = updated(name, 0.7, by_name, weight_decay=0.1), updated(name, 0.7, weight_decay=0.1)
    np.testing.assert_array_equal(found["frozen"], np.full((3, 3), 0.7, "float32"))
    np.testing.assert_array_equal(found["whole"], plain["whole"])
    assert np.abs(found["half"] - found["whole"]).max() > 1e-5


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "rmsprop", "adam", "adamax", "nadam", "lion", "ftrl"])
def test_half_the_rate_is_half_the_update(name):
    """From 0 on, since halves of numbers are exact; FTRL's update is no multiple of its rate, but grows with it."""
    found = updated(
        name, 0.0, lambda path, step: RATES[path] or 1.0, **({"weight_decay": 1e-30} if name == "lion" else {})
    )
    if name == "ftrl":
        assert 0 < np.abs(found["half"]).mean() < np.abs(found["whole"]).mean()
    else:
        np.testing.assert_allclose(found["half"], found["whole"] / 2, rtol=1e-6)


def test_weight_decay_follows_the_rate():
    config = TrainingConfig(optimizer="sgd", schedule="constant", learning_rate=0.1, weight_decay=0.5)
    weights = [keras.Variable(np.ones(3, "float32"), name=name) for name in RATES]
    optimizer = training.optimizer(config, 1, by_name)
    optimizer.apply([tf.zeros(3)] * 3, weights)
    for weight in weights:
        np.testing.assert_allclose(weight, 1 - 0.1 * 0.5 * RATES[weight.name], rtol=1e-6)
    assert float(optimizer.learning_rate) == pytest.approx(0.1)


def test_heights_go_from_the_embeddings_to_the_head():
    small = {"width": 8, "depth": 2, "num_heads": 2, "hidden_dim": 8}
    heights = layer_rates.levels(bert_classifier(20, 3, **small), finetuning.HEAD)
    parts = {path.partition("/")[0]: height for path, height in heights.items()}
    assert {part for part, height in parts.items() if not height} == {
        *("token_embedding", "segment_embedding", "position_embedding", "embedding_norm")
    }
    assert {part: height for part, height in parts.items() if height} == {
        "block1": 1,
        "block2": 2,
        "features": 3,
        "logits": 3,
    }
    both = layer_rates.levels(t5(20, **small), finetuning.HEAD)
    parts = {path.partition("/")[0]: height for path, height in both.items()}
    order = ("embedding", "encoder1", "encoder2", "encoder_norm", "decoder1", "decoder2", "decoder_norm")
    assert [parts[name] for name in order] == [0, 1, 2, 2, 3, 4, 4]


def test_rates_fall_with_the_height_and_begin_with_their_time():
    heights = {"embedding": 0, "block1": 1, "block2": 2, "logits": 3}
    constant = layer_rates.decayed(heights, 0.5)
    assert [constant(path, 0) for path in heights] == [0.125, 0.25, 0.5, 1]
    growing = layer_rates.decayed(heights, 0.5, unfreeze_every=10)

    def active(step):
        return [path for path in heights if float(growing(path, tf.constant(step))) > 0]

    assert active(0) == active(9) == ["logits"]
    assert active(10) == active(19) == ["block2", "logits"]
    assert active(29) == ["block1", "block2", "logits"] and active(30) == list(heights)
    assert float(growing("embedding", 30)) == 0.125


def test_what_is_saved_is_the_plain_optimizer(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="logits")])
    made = training.optimizer(TrainingConfig(ema=0.9), 5, lambda path, step: 0.5)
    model.compile(optimizer=made, loss="mse")
    model.train_on_batch(np.ones((4, 3)), np.ones((4, 2)))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").optimizer
    assert type(loaded) is keras.optimizers.Adam
    for a, b in zip(made.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(a, b)
