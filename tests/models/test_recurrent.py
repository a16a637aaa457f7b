"""Recurrent layers against Keras's and against plain loops; streams; classifiers of texts."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from models import recurrent
from models.layers.recurrent import GATES, LAYERS, NormalizedCell, Recurrent

CELLS = tuple(GATES)
TINY = {"embedding_dim": 6, "width": 5}
TEXTS = np.array([[5, 6, 7, 8], [9, 4, 0, 0], [3, 0, 0, 0]], "int32")
each = pytest.mark.parametrize("cell", CELLS)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def randomized(model, seed=0):
    for index, weight in enumerate(model.trainable_weights):
        weight.assign(0.5 * normal(*weight.shape, seed=seed + index) + ("gamma" in weight.path))
    return model


def built(cell, inputs=3, **arguments):
    layer = Recurrent(cell, 4, **arguments)
    layer.build((None, None, inputs))
    return randomized(layer)


MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], bool)
X = normal(2, 5, 3)


@each
def test_weights_are_those_of_keras_layers(cell):
    layer = built(cell, bidirectional=True)
    peer = keras.layers.Bidirectional(LAYERS[cell](4, return_sequences=True))
    peer.build(X.shape)
    peer.set_weights(layer.get_weights())
    for training in (False, True):
        np.testing.assert_allclose(layer(X, training=training)[0], peer(X), atol=1e-5)


def test_an_lstm_has_four_matrices_of_gates():
    d, m = 7, 5
    layer = Recurrent("lstm", d)
    layer.build((None, None, m))
    assert layer.count_params() == 4 * (d * (d + m) + d)
    both = Recurrent("lstm", d, bidirectional=True, depth=2)
    both.build((None, None, m))
    assert both.count_params() == 2 * 4 * (d * (d + m) + d) + 2 * 4 * (d * (d + 2 * d) + d)
    counts = {"simple_rnn": d * (d + m) + d, "gru": 3 * (d * (d + m) + 2 * d)}
    for cell, count in counts.items():
        layer = Recurrent(cell, d)
        layer.build((None, None, m))
        assert layer.count_params() == count


def test_a_normalized_lstm_follows_its_equations():
    cell = NormalizedCell("lstm", 4)
    cell.build((None, 3))
    randomized(cell)
    x, h, c = normal(2, 3), normal(2, 4, seed=1), normal(2, 4, seed=2)

    def norm(a, layer):
        a = (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + layer.epsilon)
        return a * np.asarray(layer.gamma) + (np.asarray(layer.beta) if layer.center else 0)

    a = norm(x @ np.asarray(cell.kernel), cell.norms["input"])
    a = a + norm(h @ np.asarray(cell.recurrent_kernel), cell.norms["recurrent"]) + np.asarray(cell.bias)
    i, f, g, o = np.split(a, 4, axis=-1)
    memory = 1 / (1 + np.exp(-f)) * c + 1 / (1 + np.exp(-i)) * np.tanh(g)
    expected = 1 / (1 + np.exp(-o)) * np.tanh(norm(memory, cell.norms["memory"]))
    out, states = cell(x, [h, c, np.ones((2, 4), "float32")])
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(states[1], memory, atol=1e-5)


@each
def test_layer_normalization_takes_out_the_scale_of_the_input(cell):
    layer = built(cell, normalization="layer")
    kernel = layer.rnns[0][0].cell.kernel
    scaled = [layer.rnns[0][0].cell.recurrent_kernel] if cell == "simple_rnn" else []
    before = np.asarray(layer(10 * X)[0])
    for weight in (kernel, *scaled):
        weight.assign(7 * weight)
    np.testing.assert_allclose(layer(10 * X)[0], before, atol=1e-2)


@each
@pytest.mark.parametrize("normalization", ["none", "layer"])
def test_recurrent_dropout_drops_the_same_units_at_every_step(cell, normalization):
    """With a rate near 1 no unit is handed on: every step answers as the first."""
    layer = built(cell, normalization=normalization, recurrent_dropout=0.999999)
    x = np.repeat(X[:, :1], 5, axis=1)
    dropped, still = (np.asarray(layer(x, training=training)[0]) for training in (True, False))
    np.testing.assert_allclose(dropped[:, 0], still[:, 0], atol=1e-5)
    assert not np.allclose(dropped[:, 1:], still[:, 1:], atol=1e-3)  # noise is for training only
    if cell == "simple_rnn":
        np.testing.assert_allclose(dropped, np.repeat(still[:, :1], 5, axis=1), atol=1e-5)


@each
def test_only_a_layer_that_reads_both_ways_sees_what_comes(cell):
    changed = X.copy()
    changed[:, -1] += 1
    one, both = built(cell, depth=2), built(cell, depth=2, bidirectional=True)
    np.testing.assert_array_equal(one(X)[0][:, :-1], one(changed)[0][:, :-1])
    assert (np.abs(both(X)[0][:, 0] - both(changed)[0][:, 0]).max(axis=-1) > 1e-4).all()


@each
@pytest.mark.parametrize("normalization", ["none", "layer"])
@pytest.mark.parametrize("training", [False, True])
def test_padding_is_passed_over(cell, normalization, training):
    layer = built(cell, depth=2, bidirectional=True, normalization=normalization)
    out, states = layer(X, mask=MASK, training=training)
    assert (np.asarray(out)[1, 2:] == 0).all()
    short, short_states = layer(X[1:, :2], training=training)
    np.testing.assert_allclose(out[1:, :2], short, atol=1e-6)
    for mine, theirs in zip(keras.tree.flatten(states), keras.tree.flatten(short_states)):
        np.testing.assert_allclose(mine[1:], theirs, atol=1e-6)


@each
@pytest.mark.parametrize("normalization", ["none", "layer"])
def test_pieces_and_steps_equal_one_long_call(cell, normalization):
    layer = built(cell, depth=2, normalization=normalization)
    whole, last = layer(X)
    state, outputs = None, []
    for piece in np.split(X, [1, 4], axis=1):
        out, state = layer(piece, initial_state=state)
        outputs.append(out)
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), whole, atol=1e-6)
    stepped = layer.zeros(2)
    for time in range(5):
        out, stepped = layer.step(X[:, time], stepped)
        np.testing.assert_allclose(out, whole[:, time], atol=1e-6)
    for one, other, third in zip(*map(keras.tree.flatten, (last, state, stepped))):
        np.testing.assert_allclose(one, other, atol=1e-6)
        np.testing.assert_allclose(one, third, atol=1e-6)


def classifier(name, **arguments):
    return randomized(getattr(recurrent, name)(12, 3, **(TINY | arguments)))


@each
def test_a_stream_answers_as_one_long_call(cell):
    model = classifier(cell, bidirectional=False, depth=2)
    stream = recurrent.Stream(model)
    for end in (1, 2, 4):
        begin = {1: 0, 2: 1, 4: 2}[end]
        answer = stream(TEXTS[:, begin:end])
        np.testing.assert_allclose(answer, model(TEXTS[:, :end]), atol=1e-5)
    with pytest.raises(ValueError, match="Expected a piece of each of 3 texts"):
        stream(TEXTS[:1])
    stream.reset()
    np.testing.assert_allclose(stream(TEXTS[:1]), model(TEXTS[:1]), atol=1e-5)


@pytest.mark.parametrize("arguments", [{}, {"bidirectional": False, "pooling": "max"}])
def test_what_cannot_be_streamed_is_an_error(arguments):
    with pytest.raises(ValueError, match="Stream expects .* Received: "):
        recurrent.Stream(classifier("lstm", **arguments))


@each
@pytest.mark.parametrize("pooling", recurrent.POOLINGS)
def test_padding_does_not_change_an_answer(cell, pooling):
    model = classifier(cell, pooling=pooling)
    answers = np.asarray(model(np.pad(TEXTS, ((0, 0), (0, 3)))))
    for text, answer in zip(TEXTS, answers):
        np.testing.assert_allclose(model(text[text > 0][None])[0], answer, atol=1e-5)
    empty = np.asarray(model(np.zeros((1, 2), "int32")))
    np.testing.assert_allclose(empty[0], model.get_layer("logits").bias, atol=1e-6)


@each
@pytest.mark.parametrize("normalization", ["none", "layer"])
def test_gradients_reach_every_weight(cell, normalization):
    model = classifier(cell, normalization=normalization, depth=2)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(TEXTS, training=True) - 1.0))
    found = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    missing = [
        w.path for w, g in zip(model.trainable_weights, found) if g is None or not np.any(ops.convert_to_numpy(g))
    ]
    assert not missing


@each
def test_one_batch_is_learned_by_heart(cell):
    keras.utils.set_random_seed(0)
    model = getattr(recurrent, cell)(12, 3, **TINY, dropout=0.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.1), loss, run_eagerly=True)  # tracing takes longer
    model.fit(TEXTS, np.array([0, 1, 2]), epochs=8, verbose=0)
    assert (np.argmax(model(TEXTS), axis=-1) == [0, 1, 2]).all()


def test_mixed_precision_answers_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = classifier("lstm")
    finally:
        keras.config.set_dtype_policy("float32")
    reference = classifier("lstm")
    for training in (False, True):
        answers = model(TEXTS, training=training)
        assert answers.dtype == "float32" and np.isfinite(answers).all()
    np.testing.assert_allclose(model(TEXTS), reference(TEXTS), atol=0.1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"width": 0},
        {"embedding_dim": 0},
        {"depth": 0},
        {"pooling": "sum"},
        {"normalization": "batch"},
        {"dropout": 1.0},
        {"recurrent_dropout": -0.1},
        {"vocab_size": 0},
        {"num_classes": 0},
    ],
)
def test_arguments_out_of_range_are_errors(arguments):
    with pytest.raises(ValueError, match="Received: "):
        recurrent.gru(**({"vocab_size": 9, "num_classes": 2} | arguments))


def test_an_unknown_cell_is_an_error():
    with pytest.raises(ValueError, match="cell must be one of .* Received: 'rnn'"):
        Recurrent("rnn", 4)
