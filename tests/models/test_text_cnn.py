"""The convolution over words: padding, windows, variants of the paper."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.text_cnn import SIZES, PhraseFilters, text_cnn

TINY = {"embedding_dim": 4, "filters": 3}
TEXTS = np.array([[5, 6, 7, 8, 3], [9, 4, 0, 0, 0], [3, 0, 0, 0, 0]], "int32")


def random(model):
    for index, weight in enumerate(model.weights):
        if "seed" not in weight.path:
            weight.assign(np.random.default_rng(index).normal(size=weight.shape))
    return model


def test_a_filter_answers_with_its_best_place():
    layer = PhraseFilters(3, 2)
    x, mask = np.random.default_rng(0).normal(size=(1, 4, 5)).astype("float32"), np.array([[1, 1, 1, 0]], bool)
    layer.build(x.shape)
    random(layer)
    kernel, bias = map(np.asarray, layer.convolution.weights)
    real = np.concatenate([np.zeros((1, 5)), x[0, :3], np.zeros((1, 5))])
    places = [np.maximum(np.einsum("kd,kdc->c", real[i : i + 2], kernel) + bias, 0) for i in range(4)]
    np.testing.assert_allclose(layer(x, mask)[0], np.max(places, axis=0), atol=1e-5)


@pytest.mark.parametrize("vectors", ["trained", "static", "multichannel"])
def test_padding_does_not_change_an_answer(vectors):
    model = random(text_cnn(12, 2, **TINY, vectors=vectors))
    answers = np.asarray(model(np.pad(TEXTS, ((0, 0), (0, 9)))))
    for text, answer in zip(TEXTS, answers):
        np.testing.assert_allclose(model(text[text > 0][None])[0], answer, atol=1e-5)
    empty = np.asarray(model(np.zeros((1, 1), "int32")))
    np.testing.assert_allclose(empty[0], model.get_layer("logits").bias, atol=1e-6)


def test_a_phrase_counts_wherever_it_stands():
    model = random(text_cnn(12, 2, **TINY, kernel_sizes=(2,)))
    features = keras.Model(model.input, model.get_layer("features").output)
    one, other = (np.asarray(features(np.array([text]))) for text in ([5, 6, 4, 4, 4, 4], [4, 4, 5, 6, 4, 4]))
    same = np.isclose(one, other, atol=1e-5)
    assert same.any()
    assert not np.allclose(one, np.asarray(features(np.array([[6, 5, 4, 4, 4, 4]]))), atol=1e-5)  # order matters


@pytest.mark.parametrize(("vectors", "count"), [("trained", 48), ("static", 0), ("multichannel", 48)])
def test_static_vectors_stay_as_they_are(vectors, count):
    keras.utils.set_random_seed(0)  # in some draws a filter answers no text
    model = random(text_cnn(12, 2, **TINY, vectors=vectors))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(TEXTS, training=True) - 1.0))
    weights = model.trainable_weights
    found = tape.gradient(loss, [weight.value for weight in weights])
    assert all(np.any(keras.ops.convert_to_numpy(gradient)) for gradient in found)
    rest = sum(size * 4 * 3 + 3 for size in (3, 4, 5)) + 9 * 2 + 2
    assert sum(int(np.prod(weight.shape)) for weight in weights) == count + rest


def test_the_bound_cuts_weight_vectors_after_an_update():
    keras.utils.set_random_seed(0)
    model = text_cnn(12, 3, **TINY, dropout=0.0, max_norm=0.5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss, metrics=["accuracy"])
    model.fit(TEXTS, np.array([0, 1, 2]), epochs=30, verbose=0)
    norms = np.linalg.norm(model.get_layer("logits").kernel, axis=0)
    assert (norms <= 0.5 + 1e-5).all() and norms.max() > 0.49
    assert model.evaluate(TEXTS, np.array([0, 1, 2]), verbose=0)[1] == 1.0  # one batch is learned by heart


def test_the_published_size_has_the_parameters_of_its_equations():
    model = text_cnn(18_765, 2, **SIZES["non_static"])  # the vocabulary of movie reviews, table 1
    filters = sum(size * 300 * 100 + 100 for size in (3, 4, 5))
    assert model.count_params() == 18_765 * 300 + filters + 300 * 2 + 2
    assert set(SIZES) == {"non_static", "static", "multichannel"}


def test_a_saved_model_answers_the_same(tmp_path):
    model = random(text_cnn(12, 2, **TINY, vectors="multichannel", max_norm=3.0))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model(TEXTS), again(TEXTS))
    assert not again.get_layer("static_embedding").trainable


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_sizes": ()},
        {"kernel_sizes": (3, 3)},
        {"kernel_sizes": (0,)},
        {"filters": 0},
        {"vectors": "random"},
        {"max_norm": 0.0},
        {"max_norm": -1.0},
        {"dropout": 1.0},
        {"embedding_dim": 0},
        {"vocab_size": 0},
    ],
)
def test_arguments_out_of_range_are_errors(arguments):
    with pytest.raises(ValueError, match="Received: "):
        text_cnn(**({"vocab_size": 9, "num_classes": 2} | arguments))
