"""Checkpoints: published layouts give the same answers here, and what does not fit changes nothing."""

import shutil
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from models import checkpoints, efficientnet, inception, resnet, vgg, vit
from models.checkpoints import load_weights, normalization

GOLDEN = Path(__file__).parent.parent / "golden"
VIT_TINY = {"patch_size": 4, "width": 24, "depth": 2, "num_heads": 3, "hidden_dim": 40, "epsilon": 1e-12}
SMALL = {"depths": (1, 1), "width": 4}

PEERS = {
    "vgg16": (keras.applications.VGG16, vgg.vgg, vgg.SIZES["16"], 32, 1.0),
    "resnet50": (keras.applications.ResNet50, resnet.resnet, resnet.SIZES["50"], 32, 1.0),
    "resnet50v2": (keras.applications.ResNet50V2, resnet.resnet, resnet.SIZES["50v2"], 32, 1.0),
    "inception_v3": (keras.applications.InceptionV3, inception.inception, inception.SIZES["v3"], 75, 1.0),
    "efficientnetb0": (keras.applications.EfficientNetB0, efficientnet.efficientnet, efficientnet.SIZES["b0"], 33, 2.0),
}


def scatter(model, seed, gain=1.0):
    """Moves every weight from its initial value, moving statistics too; `gain` keeps the signal of deep nets alive."""
    noise = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.name == "gamma":
            weight.assign(gain * noise.uniform(0.6, 1.4, weight.shape))
        elif weight.name in ("moving_variance", "variance"):
            weight.assign(noise.uniform(0.6, 1.4, weight.shape))
        elif weight.name in ("beta", "bias", "moving_mean", "mean"):
            weight.assign(noise.normal(0, 0.1, weight.shape))
        elif "kernel" in weight.name:
            weight.assign(np.asarray(weight) * noise.uniform(0.8, 1.2, weight.shape))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    return model


def save_legacy(model, path: Path) -> Path:
    """Weights alone in the older format, laid out as the published files are."""
    whole = path.with_name("whole.h5")
    model.save(whole)
    with h5py.File(whole) as source, h5py.File(path, "w") as target:
        for name in source["model_weights"]:
            source["model_weights"].copy(name, target)
        target.attrs.update(source["model_weights"].attrs)
    return path


def save_keras3(model, path: Path) -> Path:
    path = path.with_suffix(".weights.h5")
    model.save_weights(path)
    return path


def assert_same(ours, theirs, images):
    expected, answered = np.asarray(theirs(images)), np.asarray(ours(images))
    spread = expected.std(axis=0).max()
    assert spread > 1e-3, "the peer answers the same to every image, which would prove nothing"
    np.testing.assert_allclose(answered, expected, rtol=1e-4, atol=1e-4 * max(1.0, spread))


@pytest.mark.parametrize("peer", PEERS)
def test_weights_of_keras_applications_give_the_same_answers(peer, tmp_path):
    build_theirs, build_ours, size, side, gain = PEERS[peer]
    theirs = build_theirs(weights=None, input_shape=(side, side, 3), classes=7, classifier_activation=None)
    scatter(theirs, seed=1, gain=gain)
    ours = build_ours((side, side, 3), 7, **size)
    images = np.random.default_rng(2).normal(60, 60, (3, side, side, 3)).astype("float32")
    for save in (save_legacy, save_keras3):
        scatter(ours, seed=3)
        loaded = load_weights(ours, save(theirs, tmp_path / "peer.h5"))
        assert loaded.left == () and loaded.weights == len(ours.weights)
        assert_same(ours, theirs, images)


def test_imagenet_weights_of_efficientnet_answer_as_in_keras_whatever_file_they_are_in(tmp_path, monkeypatch):
    """With `weights="imagenet"` Keras divides once more by the root of the deviations: the stored variance tells it."""
    theirs = scatter(keras.applications.EfficientNetB0(weights=None), seed=4, gain=2.0)
    mean, variance, _ = next(x for x in theirs.layers if isinstance(x, keras.layers.Normalization)).weights
    mean.assign([0.485, 0.456, 0.406])
    variance.assign([0.229, 0.224, 0.225])  # what the published files hold
    published = save_legacy(theirs, tmp_path / "b0.h5")
    monkeypatch.setattr("keras.src.applications.efficientnet.file_utils.get_file", lambda *_, **__: str(published))
    theirs = keras.applications.EfficientNetB0(classifier_activation=None)
    body = keras.Model(theirs.input, theirs.get_layer("avg_pool").output)
    ours = efficientnet.efficientnet((224, 224, 3), 1000, **efficientnet.SIZES["b0"])
    features = keras.Model(ours.input, ours.get_layer("features").output)
    images = np.random.default_rng(6).uniform(0, 255, (2, 224, 224, 3)).astype("float32")
    for file, left in (
        (published, ()),
        (save_keras3(theirs, tmp_path / "again.h5"), ()),
        (save_legacy(theirs, tmp_path / "again.h5"), ()),
        (save_legacy(body, tmp_path / "notop.h5"), ("logits",)),
    ):
        scatter(ours, seed=5)
        assert load_weights(ours, file).left == left
        assert_same(features, body, images)
    load_weights(ours, published)
    assert_same(ours, theirs, images)
    own = save_keras3(ours, tmp_path / "own.h5")
    scatter(ours, seed=5)
    load_weights(ours, own)
    assert_same(ours, theirs, images)


def test_imagenet_asks_for_the_published_file_and_leaves_another_head(tmp_path, monkeypatch):
    asked = []
    theirs = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=1000)
    file = save_legacy(scatter(theirs, seed=7), tmp_path / "r50.h5")
    monkeypatch.setattr(keras.utils, "get_file", lambda *args, **kwargs: asked.append((args, kwargs)) or str(file))
    ours = resnet.resnet((32, 32, 3), 3, **resnet.SIZES["50"])
    head = ours.get_layer("logits").get_weights()
    loaded = load_weights(ours, "imagenet")
    (name, address), kwargs = asked[0]
    assert name == "resnet50_weights_tf_dim_ordering_tf_kernels.h5" and address.endswith("/resnet/" + name)
    assert kwargs["file_hash"] == "2cb95161c43110f7111970584f804107"
    assert loaded.left == ("logits",) and "logits" in str(loaded)
    np.testing.assert_array_equal(ours.get_layer("logits").kernel, head[0])
    images = np.random.default_rng(8).normal(0, 60, (2, 32, 32, 3)).astype("float32")
    features = keras.Model(ours.input, ours.get_layer("features").output)
    assert_same(features, keras.Model(theirs.input, theirs.get_layer("avg_pool").output), images)


def test_every_published_hash_is_the_one_in_keras():
    """A long-lived table of our own, checked against the installed Keras."""
    from keras.src.applications import efficientnet as their_efficientnet
    from keras.src.applications import resnet as their_resnet

    hashes = {address.rsplit("/", 1)[1]: md5 for address, md5 in checkpoints.PUBLISHED.values()}
    for name, (md5, _) in their_resnet.WEIGHTS_HASHES.items():
        if not name.startswith("resnext"):
            assert hashes[f"{name}_weights_tf_dim_ordering_tf_kernels.h5"] == md5
    for name, (md5, _) in their_efficientnet.WEIGHTS_HASHES.items():
        assert hashes[f"efficientnet{name}.h5"] == md5
    for name in ("vgg16", "vgg19", "inception_v3"):
        source = Path(keras.src.applications.__file__).with_name(f"{name}.py").read_text()
        assert hashes[f"{name}_weights_tf_dim_ordering_tf_kernels.h5"] in source


def test_no_published_weights_is_an_error_that_names_those_there_are():
    with pytest.raises(ValueError, match=r"ResNet 50.*Received: resnet, input \(8, 8, 1\)"):
        load_weights(resnet.resnet((8, 8, 1), 10), "imagenet")


def test_no_network_is_one_line_that_names_the_file(monkeypatch):
    def refuse(*_, **__):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.utils, "get_file", refuse)
    with pytest.raises(ConnectionError, match="copy of resnet50_weights.*Received: URL fetch failure"):
        load_weights(resnet.resnet((32, 32, 3), 3, **resnet.SIZES["50"]), "imagenet")


def test_own_weights_come_back_in_both_formats(tmp_path):
    for index, model in enumerate((resnet.resnet((8, 8, 1), 3, **SMALL), vit.vit((8, 8, 1), 3, depth=2))):
        for save in (save_legacy, save_keras3):
            scatter(model, seed=index)
            expected = model.get_weights()
            file = save(model, tmp_path / f"own{index}.h5")
            scatter(model, seed=9)
            load_weights(model, file)
            for before, after in zip(expected, model.get_weights()):
                np.testing.assert_array_equal(before, after)


def test_a_file_without_its_head_loads(tmp_path):
    model = resnet.resnet((8, 8, 1), 3, **SMALL)
    body = keras.Model(model.input, model.get_layer("features").output)
    for save in (save_legacy, save_keras3):
        assert load_weights(resnet.resnet((8, 8, 1), 3, **SMALL), save(body, tmp_path / "body.h5")).left == ("logits",)


@pytest.mark.parametrize("save", [save_legacy, save_keras3])
@pytest.mark.parametrize("change", [{"width": 6}, {"depths": (1, 2)}, {"preactivation": True}])
def test_what_does_not_fit_changes_nothing_and_is_listed(save, change, tmp_path):
    file = save(resnet.resnet((8, 8, 1), 3, **SMALL), tmp_path / "other.h5")
    model = resnet.resnet((8, 8, 1), 3, **(SMALL | change))
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"resnet expects .*where the file has.*Received: .*other"):
        load_weights(model, file)
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_a_path_that_is_no_checkpoint_is_named(tmp_path):
    model = resnet.resnet((8, 8, 1), 3, **SMALL)
    text, damaged, broken = tmp_path / "notes.txt", tmp_path / "damaged.h5", tmp_path / "broken.safetensors"
    for file in (text, damaged, broken):
        file.write_text("no weights")
    small = vit.vit((12, 12, 3), 5, **VIT_TINY)
    for target, source, words in (
        (model, tmp_path / "nothing.h5", "weight file or a folder"),
        (model, tmp_path, "weight file or a folder"),
        (model, text, "ends in .h5"),
        (model, damaged, "damaged"),
        (small, broken, "damaged"),
        (model, GOLDEN / "vit_tiny", "hold the vit architecture"),
    ):
        with pytest.raises(ValueError, match=f"{words}.*Received"):
            load_weights(target, source)


def test_vit_answers_as_hugging_face():
    golden = np.load(GOLDEN / "vit_tiny.npz")
    model = vit.vit((12, 12, 3), 5, **VIT_TINY)
    loaded = load_weights(model, GOLDEN / "vit_tiny")
    assert loaded.weights == len(model.weights) and loaded.left == ()
    both = keras.Model(model.input, [model.get_layer("features").output, model.output])
    features, answers = both(golden["images"])
    np.testing.assert_allclose(features, golden["features"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(answers, golden["logits"], rtol=1e-4, atol=1e-4)


def test_vit_loads_at_another_size_and_for_other_classes():
    model = vit.vit((20, 24, 3), 2, **VIT_TINY)
    assert load_weights(model, GOLDEN / "vit_tiny" / "model.safetensors").left == ("logits",)
    same = vit.vit((12, 12, 3), 5, **VIT_TINY)
    load_weights(same, GOLDEN / "vit_tiny")
    small, large = (np.asarray(m.get_layer("position_embedding").positions)[0] for m in (same, model))
    assert large.shape == (1 + 5 * 6, 24)
    np.testing.assert_array_equal(large[0], small[0])  # the class token has no place in the image
    corners = np.array([0, 5, 24, 29]) + 1
    np.testing.assert_allclose(large[corners], small[np.array([0, 2, 6, 8]) + 1], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_heads": 4}, "num_attention_heads 4, where config.json has 3"),
        ({"depth": 1}, "nothing for the file's encoder.layer.1"),
        ({"depth": 3}, "where the file has no encoder.layer.2"),
        ({"hidden_dim": 48}, r"where the file has encoder.layer.0.intermediate.dense.weight \(40, 24\)"),
    ],
)
def test_another_vit_is_refused_whole(change, words):
    model = vit.vit((12, 12, 3), 5, **(VIT_TINY | change))
    before = model.get_weights()
    with pytest.raises(ValueError, match=words):
        load_weights(model, GOLDEN / "vit_tiny")
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_a_vit_encoder_without_head_or_prefix_loads(tmp_path):
    """The layout of `ViTModel`: no prefix, a pooler that the classifier does not use."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(GOLDEN / "vit_tiny" / "model.safetensors")
    bare = {key.removeprefix("vit."): array for key, array in tensors.items() if not key.startswith("classifier")}
    save_file(bare | {"pooler.dense.weight": np.zeros((24, 24), "float32")}, tmp_path / "model.safetensors")
    shutil.copy(GOLDEN / "vit_tiny" / "config.json", tmp_path)
    model = vit.vit((12, 12, 3), 5, **VIT_TINY)
    assert load_weights(model, tmp_path).left == ("logits",)


def test_normalization_is_that_of_keras_applications():
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 4, 4, 3)).astype("float32")
    for architecture, kwargs, module in (
        ("vgg", {}, keras.applications.vgg16),
        ("resnet", {}, keras.applications.resnet),
        ("resnet", {"preactivation": True}, keras.applications.resnet_v2),
        ("inception", {}, keras.applications.inception_v3),
        ("efficientnet", {}, keras.applications.efficientnet),
    ):
        spec = normalization(architecture, **kwargs)
        ours = (pixels - spec["mean"]) / spec["std"]
        ours = ours[..., ::-1] if spec["order"] == "bgr" else ours
        np.testing.assert_allclose(ours, module.preprocess_input(pixels.copy()), atol=1e-4)
    with pytest.raises(ValueError, match="Did you mean 'resnet'"):
        normalization("resnett")
