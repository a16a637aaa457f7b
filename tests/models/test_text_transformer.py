"""The text classifier: any length, padding, order, kinds of attention, learning, saving."""

import inspect
import json
from functools import cache

import keras
import numpy as np
import pytest

from models.layers.attention import KINDS, attention_maps
from models.text_transformer import SIZES, text_transformer

TINY = {"width": 16, "depth": 1, "hidden_dim": 24}
SMALL = {"window": 3, "block_size": 2, "window_blocks": 1, "num_global": 1}
V, CLASSES = 23, 3
VARIANTS = {
    **{kind: {"attention": kind, **SMALL} for kind in KINDS},
    "post": {"normalization": "post", "positions": "rotary", "num_kv_heads": 2, "use_bias": False},
    "learned": {"positions": "learned", "max_length": 6, "activation": "relu"},
    "bag": {"positions": "none", "num_kv_heads": 1},
}
each = pytest.mark.parametrize("variant", VARIANTS)
some = pytest.mark.parametrize("variant", ["full", "post", "learned", "bag"])


@cache
def model(variant="full"):
    made = text_transformer(V, CLASSES, **TINY, **VARIANTS[variant])
    noise = np.random.default_rng(0)
    for weight in made.trainable_weights:
        weight.assign(noise.normal(0, 0.3, weight.shape) + (weight.name == "gamma"))
    return made


def texts(count=4, length=7, seed=0):
    token_ids = np.random.default_rng(seed).integers(4, V, (count, length)).astype("int32")
    token_ids[0, length // 2 :] = 0
    return token_ids


def test_the_call_is_that_of_a_builder_and_parts_have_their_names():
    parameters = inspect.signature(text_transformer).parameters
    assert list(parameters)[:2] == ["vocab_size", "num_classes"]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in [*parameters.values()][2:])
    assert set().union(*SIZES.values()) <= set(parameters)
    made = text_transformer(V, CLASSES)
    assert made.input.name == "token_ids" and not made.compiled and made.name == "text_transformer"
    assert made.layers[-1].name == "logits" and made.get_layer("features").output.shape == (None, 64)
    assert made.count_params() < 200_000


def test_parameters_are_those_of_the_formula():
    d, hidden, depth = 16, 24, 1
    block = 4 * (d * d + d) + 2 * d * hidden + hidden + d + 2 * 2 * d
    assert model().count_params() == V * d + depth * block + 2 * d + d * CLASSES + CLASSES


@each
def test_every_length_from_one_on_is_answered(variant):
    for length in (1, 19):
        logits = model(variant)(texts(length=length))
        assert logits.shape == (4, CLASSES) and logits.dtype == "float32" and np.isfinite(logits).all()


@each
def test_padding_does_not_change_answers(variant):
    token_ids = np.concatenate([texts(length=5), np.zeros((1, 5), "int32")])  # one text is empty
    short, long = (np.asarray(model(variant)(np.pad(token_ids, ((0, 0), (0, more))))) for more in (0, 6))
    np.testing.assert_allclose(short, long, atol=2e-5)


@some
def test_answers_do_not_depend_on_the_rest_of_the_batch(variant):
    together = np.asarray(model(variant)(texts()))
    alone = np.concatenate([np.asarray(model(variant)(text[None])) for text in texts()])
    np.testing.assert_allclose(together, alone, atol=2e-5)


@some
def test_the_order_of_words_matters_where_there_are_positions(variant):
    text = texts(count=2, length=6)[1:]
    moved = np.abs(np.asarray(model(variant)(text)) - np.asarray(model(variant)(text[:, ::-1].copy()))).max()
    assert bool(moved > 1e-3) is (variant != "bag")


@some
def test_gradients_reach_every_weight(variant):
    import tensorflow as tf

    made = model(variant)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(made(texts(), training=True) - 1.0))
    gradients = tape.gradient(loss, [weight.value for weight in made.trainable_weights])
    still = [
        w.path for w, g in zip(made.trainable_weights, gradients) if g is None or not np.any(tf.convert_to_tensor(g))
    ]
    assert [path for path in still if not path.endswith("attention/key/bias")] == []


def test_one_batch_can_be_learned_by_heart():
    keras.utils.set_random_seed(1)
    made = text_transformer(V, CLASSES, **TINY, dropout=0.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"], steps_per_execution=10, jit_compile=False)
    labels = np.array([0, 1, 2, 1])
    made.fit(np.tile(texts(), (40, 1)), np.tile(labels, 40), batch_size=4, shuffle=False, verbose=0)
    assert (np.argmax(made(texts()), -1) == labels).all()


@some
def test_config_round_trip_keeps_layers_and_answers(variant):
    made = model(variant)
    again = keras.Model.from_config(json.loads(json.dumps(made.get_config())))
    assert [layer.name for layer in again.layers] == [layer.name for layer in made.layers]
    again.set_weights(made.get_weights())
    np.testing.assert_array_equal(made(texts()), again(texts()))


def test_a_saved_model_answers_alike(tmp_path):
    made = model("learned")
    made.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(texts()), made(texts()))


def test_mixed_precision_answers_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        made = text_transformer(V, CLASSES, **TINY)
    finally:
        keras.config.set_dtype_policy("float32")
    made.set_weights(model().get_weights())
    logits, exact = made(texts()), np.asarray(model()(texts()))
    assert logits.dtype == "float32" and made.get_layer("features").output.dtype == "bfloat16"
    np.testing.assert_allclose(logits, exact, atol=0.15)


def test_maps_are_told_by_name():
    maps = attention_maps(model("block_sparse"), texts())
    assert {name: tuple(weights.shape) for name, weights in maps.items()} == {"block1_self_attention": (4, 4, 7, 7)}


@pytest.mark.parametrize(
    "arguments",
    [{"vocab_size": 0}, {"num_classes": 0}, {"width": 15}, {"depth": 0}, {"attention": "all"}, {"dropout": -0.1}],
)
def test_arguments_out_of_range_are_errors(arguments):
    with pytest.raises(ValueError, match="Received: "):
        text_transformer(**({"vocab_size": V, "num_classes": CLASSES} | TINY | arguments))
