"""What every builder promises, checked once for all of them; and the published sizes, counted."""

import inspect
import json
import os
import subprocess
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest

from models import efficientnet, inception, resnet, vgg, vit
from tests.models.counting import parameters

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent
SHAPE = (8, 8, 3)
# Small arguments: the checks are about structure and not about size.
TINY = {
    "mlp": {"hidden_dims": (16, 8), "normalization": "layer"},
    "lenet": {"filters": (4, 6), "hidden_dims": (12, 8)},
    "convnet": {"widths": (8, 12), "depth": 1},
    "vgg": {"depths": (1, 1), "width": 8, "hidden_dims": (16, 16)},
    "resnet": {"depths": (1, 1), "width": 8},
    "inception": {"width_coefficient": 0.0625},
    "efficientnet": {"stages": ((3, 1, 8, 1, 1), (3, 2, 8, 2, 2)), "stem_width": 8, "head_width": 16},
    "vit": {"width": 16, "depth": 2, "hidden_dim": 24, "patch_size": 4},
}
NOISY = {
    "resnet": {"dropout": 0.1, "stochastic_depth": 0.2, "depths": (2, 2)},
    "efficientnet": {"dropout": 0.1, "stochastic_depth": 0.3},
    "vit": {"dropout": 0.1, "stochastic_depth": 0.2},
}
each = pytest.mark.parametrize("name", TINY)


def builder(name):
    return getattr(import_module(f"models.{name}"), name)


def build(name, classes=3, shape=SHAPE, **kwargs):
    return builder(name)(shape, classes, **(TINY[name] | kwargs))


@cache
def images(count=4):
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype("float32")


def randomized(model, seed=0):
    """Small random values everywhere, so that no zero hides a path and no two weights are alike."""
    noise = np.random.default_rng(seed)
    for weight in model.weights:
        values = noise.normal(0, 0.2, weight.shape) + (1 if weight.name in ("gamma", "moving_variance") else 0)
        weight.assign(np.abs(values) + 0.1 if weight.name == "moving_variance" else values)
    return model


@each
def test_the_call_is_the_same_for_every_builder(name):
    parameters = inspect.signature(builder(name)).parameters
    assert list(parameters)[:2] == ["input_shape", "num_classes"]
    rest = list(parameters.values())[2:]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in rest)
    assert parameters["name"].default == name and parameters["dropout"].kind is inspect.Parameter.KEYWORD_ONLY
    assert set().union(*import_module(f"models.{name}").SIZES.values()) <= set(parameters)


@each
def test_input_features_and_logits_have_their_names(name):
    model = build(name)
    assert model.input.name == "image" and not model.compiled and model.name == name
    assert model.layers[-1].name == "logits" and model.layers[-1].activation is keras.activations.linear
    assert len(model.get_layer("features").output.shape) == 2
    assert model.get_layer("logits").input.shape == model.get_layer("features").output.shape


@each
def test_layers_are_named_by_hand(name):
    """Automatic names (`conv2d_3`) tell a reader nothing."""
    noisy = build(name, **NOISY.get(name, {"dropout": 0.1}))
    automatic = [layer.name for layer in noisy.layers if layer.name.startswith(keras_name(layer))]
    assert automatic in ([], ["flatten"], ["dropout"], ["flatten", "dropout"]), automatic


def keras_name(layer):
    return {"Conv2D": "conv2d", "BatchNormalization": "batch_norm"}.get(
        type(layer).__name__, type(layer).__name__.lower()
    )


@each
def test_symbolic_and_eager_shapes_agree_for_a_batch_of_one_and_of_three(name):
    model = build(name)
    assert model.output.shape == (None, 3)
    for count in (1, 3):
        eager = model(images()[:count])
        assert tuple(eager.shape) == model.compute_output_shape((count, *SHAPE)) == (count, 3)


@each
def test_every_shape_from_digits_to_colour_builds_by_default(name):
    for shape in ((8, 8, 1), (28, 28, 1), (32, 32, 3)):
        model = builder(name)(shape, 10)
        assert model.output.shape == (None, 10)
        assert model.count_params() < 1_500_000, "a default must train in seconds"


@each
def test_answers_do_not_depend_on_the_rest_of_the_batch(name):
    model = randomized(build(name))
    together = np.asarray(model(images()))
    alone = np.concatenate([np.asarray(model(image[None])) for image in images()])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)


@each
def test_config_round_trip_keeps_layers_and_answers(name):
    model = randomized(build(name, **NOISY.get(name, {"dropout": 0.1})))
    again = keras.Model.from_config(json.loads(json.dumps(model.get_config())))
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(model(images()), again(images()))


@each
def test_gradients_reach_every_trainable_weight(name):
    import tensorflow as tf

    model = randomized(build(name))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(images(), training=True) - 1.0))
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    missing = [w.path for w, g in zip(model.trainable_weights, gradients) if g is None or not np.any(g)]
    assert not missing, missing


@each
def test_one_batch_can_be_learned_by_heart(name):
    """Plain momentum by hand: tracing a `fit` of every model would take most of the time of these tests."""
    import tensorflow as tf

    keras.utils.set_random_seed(1)
    model = build(name)
    labels = np.array([0, 1, 2, 1])
    weights = [weight.value for weight in model.trainable_weights]
    velocities, losses = [0.0] * len(weights), []
    for _ in range(25):
        with tf.GradientTape() as tape:
            answers = model(images(), training=True)
            losses.append(tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, answers)))
        gradients = tape.gradient(losses[-1], weights)
        velocities = [0.9 * velocity + gradient for velocity, gradient in zip(velocities, gradients)]
        for weight, velocity in zip(weights, velocities):
            weight.assign_sub(0.05 * velocity)
    assert (np.argmax(answers, axis=-1) == labels).all() and losses[-1] < 0.2 * losses[0]


@each
def test_mixed_precision_answers_in_float32(name):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build(name)
    finally:
        keras.config.set_dtype_policy("float32")
    answers = model(images())
    assert answers.dtype == "float32" and model.get_layer("features").output.dtype == "bfloat16"
    assert all(weight.dtype == "float32" for weight in model.trainable_weights)
    assert np.isfinite(answers).all()
    reference = build(name)
    reference.set_weights(model.get_weights())
    np.testing.assert_allclose(answers, reference(images()), atol=0.1, rtol=0.1)


@each
def test_noise_is_for_training_only_and_its_seeds_are_state(name):
    model = randomized(build(name, **NOISY.get(name, {"dropout": 0.3})))
    assert any("seed" in variable.path for variable in model.variables)
    np.testing.assert_array_equal(model(images()), model(images()))
    noisy = [np.asarray(model(images(), training=True)) for _ in range(6)]
    assert any(not np.allclose(noisy[0], other) for other in noisy[1:])


SMALLEST = {
    "lenet": (4, {}),
    "convnet": (2, {}),
    "vgg": (4, {}),
    "resnet": (2, {}),
    "inception": (4, {}),
    "efficientnet": (2, {}),
    "vit": (4, {}),
    "resnet-50": (32, resnet.SIZES["50"]),
    "inception-v3": (75, inception.SIZES["v3"]),
    "efficientnet-b0": (32, efficientnet.SIZES["b0"]),
    "vgg-11": (32, vgg.SIZES["11"] | {"hidden_dims": (8, 8)}),
}


@pytest.mark.parametrize("case", SMALLEST)
def test_the_smallest_image_works_and_a_smaller_one_names_it(case):
    side, kwargs = SMALLEST[case]
    name = case.split("-")[0]
    make = builder(name)
    arguments = kwargs or TINY[name]
    if "-" not in case or case == "inception-v3":
        assert np.isfinite(make((side, side, 3), 2, **arguments)(np.ones((1, side, side, 3), "float32"))).all()
    with pytest.raises(ValueError, match=rf"{name} needs images of at least {side}x{side} pixels. Received: "):
        make((side, side - 1, 3), 2, **arguments)


@each
@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 0), (8, -8, 1), (8.0, 8, 1), "8x8", (8, 8, None)])
def test_a_shape_that_is_none_is_an_error(name, shape):
    with pytest.raises(ValueError, match=r"Received: "):
        builder(name)(shape, 2)


@each
@pytest.mark.parametrize("arguments", [{"num_classes": 0}, {"num_classes": 2.5}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_arguments_out_of_range_are_errors(name, arguments):
    with pytest.raises(ValueError, match=r"Received: "):
        builder(name)(SHAPE, **({"num_classes": 2} | TINY[name] | arguments))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("mlp", {"hidden_dims": ()}),
        ("mlp", {"hidden_dims": (8, 0)}),
        ("mlp", {"normalization": "batc"}),
        ("lenet", {"pooling": "mean"}),
        ("lenet", {"padding": "full"}),
        ("convnet", {"widths": "8"}),
        ("convnet", {"depth": 0}),
        ("vgg", {"normalization": True}),
        ("resnet", {"stem": "5x5"}),
        ("resnet", {"shortcut": "none"}),
        ("resnet", {"stochastic_depth": 1}),
        ("resnet", {"preactivation": True, "conv_bias": True}),
        ("inception", {"width_coefficient": 0}),
        ("inception", {"stem": "v4"}),
        ("efficientnet", {"stages": ((3, 1, 8),)}),
        ("efficientnet", {"depth_coefficient": -1}),
        ("vit", {"patch_size": 3}),
        ("vit", {"num_heads": 5}),
        ("vit", {"width": 0}),
    ],
)
def test_arguments_of_one_builder_are_checked(name, arguments):
    with pytest.raises(ValueError, match=r"Received: "):
        build(name, **arguments)


@pytest.mark.parametrize(
    ("build_large", "size", "side", "count"),
    [
        (vgg.vgg, vgg.SIZES["16"], 224, 138_357_544),
        (vgg.vgg, vgg.SIZES["19"], 224, 143_667_240),
        (resnet.resnet, resnet.SIZES["50"], 224, 25_636_712),
        (resnet.resnet, resnet.SIZES["101"], 224, 44_707_176),
        (resnet.resnet, resnet.SIZES["50v2"], 224, 25_613_800),
        (inception.inception, inception.SIZES["v3"], 299, 23_851_784),
        (efficientnet.efficientnet, efficientnet.SIZES["b0"], 224, 5_330_571),
        (efficientnet.efficientnet, efficientnet.SIZES["b7"], 600, 66_658_687),
        (vit.vit, vit.SIZES["b16"], 224, 86_567_656),
    ],
    ids=["vgg16", "vgg19", "resnet50", "resnet101", "resnet50v2", "inception_v3", "b0", "b7", "vit_b16"],
)
def test_published_sizes_have_the_published_number_of_parameters(build_large, size, side, count):
    assert parameters(build_large, (side, side, 3), 1000, **size) == count


def processes():
    """The backends beside TensorFlow that are installed here."""
    return [name for name in ("jax", "torch") if find_spec(name)]


TOKENS = {"token_ids": np.array([[5, 7, 4, 6, 8, 9], [9, 4, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0]], "int32")}
SEGMENTED = TOKENS | {"segment_ids": np.array([[0, 0, 0, 1, 1, 1], [0, 1, 0, 0, 0, 0], [0] * 6], "int32")}
PAIRS = {"source": TOKENS["token_ids"], "target": np.array([[1, 5, 6], [1, 7, 0], [1, 0, 0]], "int32")}
WINDOWS = {
    "history": np.random.default_rng(1).normal(size=(3, 6, 2)).astype("float32"),
    "observed": np.ones((3, 6, 2), "float32"),
}
# Builders of sequences have tests of their own; here, too, each is built and run on every backend.
SEQUENCES = {
    "simple_rnn": ("models.recurrent", (12, 3), {"width": 8, "dropout": 0.1}, TOKENS),
    "lstm": ("models.recurrent", (12, 3), {"width": 8, "recurrent_dropout": 0.1, "normalization": "layer"}, TOKENS),
    "lstm_tagger": ("models.recurrent", (12, 3), {"width": 8, "depth": 2}, TOKENS),
    "gru": ("models.recurrent", (12, 3), {"width": 8, "depth": 2}, TOKENS),
    "text_cnn": ("models.text_cnn", (12, 3), {"embedding_dim": 8, "filters": 4}, TOKENS),
    "text_transformer": ("models.text_transformer", (12, 3), {"width": 8, "depth": 1, "num_heads": 2}, TOKENS),
    "seq2seq": ("models.seq2seq", (12, 11), {"width": 8, "embedding_dim": 4}, PAIRS),
    "transformer": ("models.transformer", (12, 11), {"width": 8, "depth": 1, "num_heads": 2, "hidden_dim": 8}, PAIRS),
    "bert_classifier": ("models.bert", (12, 3), {"width": 8, "depth": 1, "hidden_dim": 8, "pairs": True}, SEGMENTED),
    "bert_token_classifier": ("models.bert", (12, 3), {"width": 8, "depth": 1, "hidden_dim": 8}, TOKENS),
    "gpt": ("models.gpt", (12,), {"width": 8, "depth": 1, "num_heads": 2, "hidden_dim": 8}, TOKENS),
    "llama": ("models.llama", (12,), {"width": 8, "depth": 1, "num_heads": 2, "hidden_dim": 8, "dropout": 0.1}, TOKENS),
    "t5": ("models.t5", (12,), {"width": 8, "depth": 1, "num_heads": 2, "head_dim": 3, "hidden_dim": 8}, PAIRS),
    "recurrent_forecaster": ("models.forecaster", ((6, 2), 3), {"width": 8, "head": "autoregressive"}, WINDOWS),
    "tcn_forecaster": ("models.forecaster", ((6, 2), 3), {"width": 8, "depth": 2}, WINDOWS),
    "transformer_forecaster": ("models.forecaster", ((6, 2), 3), {"width": 8, "num_heads": 2, "depth": 1}, WINDOWS),
    "xlnet_lm": ("models.xlnet", (12,), {"width": 8, "depth": 1, "hidden_dim": 8, "pad_id": 0}, SEGMENTED),
}


def every_builder():
    """{name: (module, positional arguments, keyword arguments, inputs)}."""
    found = {
        name: (f"models.{name}", (SHAPE, 3), TINY[name] | NOISY.get(name, {"dropout": 0.1}), {"image": images()})
        for name in TINY
    }
    return found | SEQUENCES


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Every builder's tiny model with random weights, saved whole, with inputs and its answers."""
    folder = tmp_path_factory.mktemp("saved")
    for name, (module, positional, kwargs, inputs) in every_builder().items():
        model = randomized(getattr(import_module(module), name)(*positional, **kwargs))
        model.save(folder / f"{name}.keras")
        answers = model(inputs if len(inputs) > 1 else next(iter(inputs.values())))
        np.savez(folder / f"{name}.npz", answers=np.asarray(answers), **inputs)
    written = {name: one[:3] for name, one in every_builder().items()}
    (folder / "builders.json").write_text(json.dumps(written))
    return folder


@pytest.mark.parametrize("backend", ["tensorflow", *processes()])
def test_a_fresh_process_gives_the_same_answers_on_every_backend(backend, saved):
    """Builds every model anew under the backend, loads the saved one, runs the noise of training, and compares."""
    result = subprocess.run(
        [sys.executable, str(HERE / "fresh_process.py"), str(saved)],
        cwd=ROOT,
        env=os.environ
        | {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
        | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},  # compiling is most of the time
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["backend"] == backend
    assert set(report["difference"]) == set(every_builder())
    assert max(report["difference"].values()) < 1e-4, report
