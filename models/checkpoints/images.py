"""Published checkpoints into our builders: Keras's ImageNet weights, Keras weight files, Hugging Face's ViT folders.

    model = resnet((224, 224, 3), 10, **SIZES["50"])
    print(load_weights(model, "imagenet"))  # or a path: resnet50.h5, mine.weights.h5, a folder with model.safetensors

Everything is checked before anything is assigned, so a model is loaded whole or left as it was. A head for another
number of classes stays as initialized, and the report says so.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import h5py
import keras
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from models.vit import from_hugging_face, hugging_face_shape, hugging_face_weights, resized_positions

_BASE = "https://storage.googleapis.com/tensorflow/keras-applications"
_EFFICIENTNET = "https://storage.googleapis.com/keras-applications"
_TAIL = "_weights_tf_dim_ordering_tf_kernels.h5"
# Keras's published files: parameters without the head (which names the architecture), address, MD5 hash.
PUBLISHED: dict[int, tuple[str, str]] = {
    134_260_544: (f"{_BASE}/vgg16/vgg16{_TAIL}", "64373286793e3c8b2b4e3219cbf3544b"),
    139_570_240: (f"{_BASE}/vgg19/vgg19{_TAIL}", "cbe5617147190e668d6c5d5026f83318"),
    23_587_712: (f"{_BASE}/resnet/resnet50{_TAIL}", "2cb95161c43110f7111970584f804107"),
    42_658_176: (f"{_BASE}/resnet/resnet101{_TAIL}", "f1aeb4b969a6efcfb50fad2f0c20cfc5"),
    58_370_944: (f"{_BASE}/resnet/resnet152{_TAIL}", "100835be76be38e30d865e96f2aaae62"),
    23_564_800: (f"{_BASE}/resnet/resnet50v2{_TAIL}", "3ef43a0b657b3be2300d5770ece849e0"),
    42_626_560: (f"{_BASE}/resnet/resnet101v2{_TAIL}", "6343647c601c52e1368623803854d971"),
    58_331_648: (f"{_BASE}/resnet/resnet152v2{_TAIL}", "a49b44d1979771252814e80f8ec446f9"),
    21_802_784: (f"{_BASE}/inception_v3/inception_v3{_TAIL}", "9a0d58056eeedaa3f26cb7ebd46da564"),
    4_049_571: (f"{_EFFICIENTNET}/efficientnetb0.h5", "902e53a9f72be733fc0bcb005b3ebbac"),
    6_575_239: (f"{_EFFICIENTNET}/efficientnetb1.h5", "1d254153d4ab51201f1646940f018540"),
    7_768_569: (f"{_EFFICIENTNET}/efficientnetb2.h5", "b15cce36ff4dcbd00b6dd88e7857a6ad"),
    10_783_535: (f"{_EFFICIENTNET}/efficientnetb3.h5", "ffd1fdc53d0ce67064dc6a9c7960ede0"),
    17_673_823: (f"{_EFFICIENTNET}/efficientnetb4.h5", "18c95ad55216b8f92d7e70b3a046e2fc"),
    28_513_527: (f"{_EFFICIENTNET}/efficientnetb5.h5", "ace28f2a6363774853a83a0b21b9421a"),
    40_960_143: (f"{_EFFICIENTNET}/efficientnetb6.h5", "165f6e37dce68623721b423839de8be5"),
    64_097_687: (f"{_EFFICIENTNET}/efficientnetb7.h5", "8c03f828fec3ef71311cd463b6759d99"),
}

_CAFFE = {"mean": [123.68, 116.779, 103.939], "std": [1.0, 1.0, 1.0], "order": "bgr"}
_SYMMETRIC = {"mean": [127.5, 127.5, 127.5], "std": [127.5, 127.5, 127.5], "order": "rgb"}
_IDENTITY = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "order": "rgb"}
_NORMALIZATIONS = {
    "vgg": _CAFFE,
    "resnet": _CAFFE,
    "inception": _SYMMETRIC,
    "vit": _SYMMETRIC,
    "efficientnet": _IDENTITY,
}
_IMAGENET_STD = (0.229, 0.224, 0.225)  # of red, green and blue between 0 and 1
ARCHITECTURES = tuple(_NORMALIZATIONS)  # those with published weights


@dataclass(frozen=True)
class Loaded:
    """What `load_weights` did.

    Attributes:
        source: the file that was read.
        weights: number of arrays assigned.
        left: names of the layers left as initialized: the head, or nothing.
    """

    source: str
    weights: int
    left: tuple[str, ...]

    def __str__(self) -> str:
        note = f"; left as initialized, no such head in the file: {', '.join(self.left)}" if self.left else ""
        return f"Loaded {self.weights} weights from {self.source}{note}"


def normalization(architecture: str, *, preactivation: bool = False) -> dict:
    """The scaling of pixels that the published weights of an architecture expect.

    Args:
        architecture: "vgg", "resnet", "inception", "efficientnet" or "vit".
        preactivation: for resnet, whether it is of the second kind.

    Returns:
        `mean` and `std` of the red, green and blue channels, in that order and in units of pixels (0 to 255), and
        `order`: "rgb", or "bgr" where the channels are reversed after (pixels - mean) / std.

    Raises:
        ValueError: nothing is published for the architecture.

    Reference: the `preprocess_input` of `keras.applications`; Hugging Face's ViTImageProcessor for vit.
    """
    if architecture not in _NORMALIZATIONS:
        near = get_close_matches(architecture, _NORMALIZATIONS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Weights are published for {', '.join(_NORMALIZATIONS)}.{hint} Received: {architecture!r}")
    chosen = _SYMMETRIC if architecture == "resnet" and preactivation else _NORMALIZATIONS[architecture]
    return {key: list(value) if isinstance(value, list) else value for key, value in chosen.items()}


def load_weights(model: keras.Model, source: str | Path) -> Loaded:
    """Loads a checkpoint into a model of one of our builders, whole or not at all.

    Args:
        model: a classifier with a head called `logits`.
        source: "imagenet" for Keras's published file, which is downloaded once and cached; or the path of a Keras file
            (`.h5`, `.weights.h5`), of a `.safetensors` file, or of a Hugging Face folder.

    Returns:
        What was loaded and what was left.

    Raises:
        ValueError: nothing is published for the model, the path is not a checkpoint, or its weights do not fit.
        ConnectionError: the published file could not be downloaded.
    """
    path = _downloaded(model) if source == "imagenet" else Path(source)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"Expected 'imagenet', a weight file or a folder with model.safetensors. Received: {source}")
    try:
        if file.suffix == ".safetensors":
            values = _from_hugging_face(model, file)
        elif file.suffix in (".h5", ".hdf5"):
            values = _from_keras(model, file)
        else:
            raise ValueError(f"A weight file ends in .h5, .weights.h5 or .safetensors. Received: {source}")
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(f"The weight file is damaged or of another kind ({error}). Received: {file}") from error
    left = () if model.get_layer("logits").kernel.path in values else ("logits",)
    for weight in model.weights:
        if weight.path in values:
            weight.assign(values[weight.path])
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    return Loaded(str(file), len(values), left)


def _downloaded(model) -> Path:
    """The published file whose architecture the model has, fetched once and cached."""
    parameters = model.count_params() - model.get_layer("logits").count_params()
    if parameters not in PUBLISHED:
        raise ValueError(
            "ImageNet weights are published for colour images and the sizes VGG 16 and 19 (at 224x224), ResNet 50, "
            "101, 152 and their v2, Inception v3, EfficientNet b0 to b7. "
            f"Received: {model.name}, input {tuple(model.input.shape[1:])}, {parameters:,} parameters without the head"
        )
    address, md5 = PUBLISHED[parameters]
    name = address.rsplit("/", 1)[1]
    try:
        return Path(keras.utils.get_file(name, address, cache_subdir="models", file_hash=md5))
    except Exception as error:  # get_file raises the bare class when there is no network
        reason = str(error) or type(error).__name__
        raise ConnectionError(f"Expected a network, or the path of a copy of {name}. Received: {reason}") from error


def _from_keras(model, file: Path) -> dict[str, np.ndarray]:
    """Arrays of a Keras file by the path of our weight, checked: both formats keep layers in the order of the model."""
    layers = [layer for layer in model.layers if layer.weights]
    with h5py.File(file) as store:
        root = store.get("model_weights", store)  # a whole saved model, or weights alone
        if "layers" in store:
            saved = _keras3_layers(store["layers"], model)
        elif "layer_names" in root.attrs or "layer_names0" in root.attrs:
            saved = _legacy_layers(root)
        else:
            raise ValueError(f"Expected a file of Keras weights, with layers in it. Received: {file}")
    if len(saved) == len(layers) - 1:
        layers = [layer for layer in layers if layer.name != "logits"]  # a published file without its head
    problems = [f"{len(layers)} layers with weights, where the file has {len(saved)}"] * (len(saved) != len(layers))
    ours = {layer.name for layer in layers}
    values = {}
    for layer, (name, arrays) in zip(layers, saved):
        expected, found = [tuple(w.shape) for w in layer.weights], [array.shape for array in arrays]
        if layer.name == "logits" and [s[:-1] for s in expected] == [s[:-1] for s in found] and expected != found:
            continue  # the same features, another number of classes
        if expected != found or (name in ours and name != layer.name):
            problems.append(f"{layer.name} {expected}, where the file has {name} {found}")
        values.update({weight.path: array for weight, array in zip(layer.weights, arrays)})
    _refuse(problems, model, file)
    for layer in layers:
        if isinstance(layer, keras.layers.Normalization):
            variance = values[layer.weights[1].path]
            # The published EfficientNets hold ImageNet's deviations in place of variances (tensorflow issue 49930), and
            # so does what Keras saves of them. Keras divides once more by their roots; this factor does the same.
            if variance.shape == (3,) and np.allclose(variance, _IMAGENET_STD, rtol=1e-3):
                values[layer.weights[1].path] = variance * np.array(_IMAGENET_STD, "float32")
    return values


def _legacy_layers(root) -> list[tuple[str, list[np.ndarray]]]:
    """Names and arrays of the layers with weights, in the order of an older file, such as the published ones."""
    layers = []
    for name in _names(root, "layer_names"):
        arrays = [np.asarray(root[name][weight]) for weight in _names(root[name], "weight_names")]
        if arrays:
            layers.append((name, arrays))
    return layers


def _names(group, attribute: str) -> list[str]:
    """A list of names, which a long file spreads over numbered attributes."""
    chunks = [key for key in group.attrs if re.fullmatch(rf"{attribute}\d*", key)]
    ordered = sorted(chunks, key=lambda key: int(key[len(attribute) :] or 0))
    return [n.decode() if isinstance(n, bytes) else str(n) for key in ordered for n in group.attrs[key]]


def _keras3_layers(root, model) -> list[tuple[str, list[np.ndarray]]]:
    """Names and arrays of the layers with weights of a `.weights.h5` file, in our order.

    The file counts the layers of each class: `conv2d`, `conv2d_1`, ...; parts of a layer are groups inside of its own.
    """
    counts: Counter[str] = Counter()
    ours: dict[str, list[str]] = {}  # group in the file -> the parts of our layer, weight by weight
    for layer in model.layers:
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", type(layer).__name__).lower()
        key = f"{kind}_{counts[kind]}" if counts[kind] else kind
        counts[kind] += 1
        if layer.weights:
            ours[key] = [weight.path.split("/")[-2] for weight in layer.weights]
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for key in root:
        parts: dict[str, list[np.ndarray]] = {}
        root[key].visititems(lambda _, group, parts=parts: _collect(group, parts))
        if parts:
            found[key] = parts
    layers = []
    for key in [*(key for key in ours if key in found), *sorted(set(found) - set(ours))]:
        part_of = found[key]
        name = str(root[key]["vars"].attrs.get("name", key)) if "vars" in root[key] else key
        order = dict.fromkeys(ours.get(key, [])) if len(part_of) > 1 else part_of
        layers.append((name, [array for part in order for array in part_of.get(part, [])]))
    return layers


def _collect(group, parts: dict[str, list[np.ndarray]]) -> None:
    """Adds the arrays of a group called `vars` under the name of the part that it belongs to."""
    if isinstance(group, h5py.Group) and group.name.endswith("/vars") and len(group):
        name = str(group.attrs.get("name", group.name.split("/")[-2]))
        parts[name] = [np.asarray(group[index]) for index in sorted(group, key=int)]


def _from_hugging_face(model, file: Path) -> dict[str, np.ndarray]:
    """Arrays of Hugging Face's ViT by the path of our weight, checked."""
    names = {layer.name for layer in model.layers}
    if not {"patch_embedding", "class_token", "encoder_norm"} <= names:
        raise ValueError(f"safetensors files hold the vit architecture. Received: {model.name}")
    tensors = {key.removeprefix("vit."): array for key, array in load_file(file).items()}
    tensors = {key: array for key, array in tensors.items() if not key.startswith("pooler.")}
    problems = _config_problems(model, file.parent / "config.json")
    wanted = hugging_face_weights(model)
    values = {}
    for key, weight in wanted.items():
        if key not in tensors:
            if not key.startswith("classifier."):  # a file of the encoder alone has no head
                problems.append(f"{weight.path} {tuple(weight.shape)}, where the file has no {key}")
            continue
        array = tensors[key]
        expected = hugging_face_shape(key, tuple(weight.shape))
        if key.startswith("classifier.") and array.shape[1:] == expected[1:] and array.shape != expected:
            continue  # the same features, another number of classes
        if key == "embeddings.position_embeddings" and array.shape != expected and array.shape[::2] == expected[::2]:
            array = resized_positions(array, model.get_layer("patch_embedding").output.shape[1:3])
        if array.shape != expected:
            problems.append(f"{weight.path} as {expected}, where the file has {key} {array.shape}")
        else:
            values[weight.path] = from_hugging_face(key, array).reshape(weight.shape)
    problems += [f"nothing for the file's {key} {tensors[key].shape}" for key in sorted(set(tensors) - set(wanted))]
    _refuse(problems, model, file)
    return values


def _config_problems(model, file: Path) -> list[str]:
    """What the weights' shapes do not tell: the number of heads and the activation."""
    if not file.is_file():
        return []
    config = json.loads(file.read_text())
    heads = model.get_layer("block1_attention").num_heads
    expected = {"num_attention_heads": heads, "hidden_act": "gelu"}
    return [
        f"{key} {value}, where config.json has {config[key]}"
        for key, value in expected.items()
        if key in config and config[key] != value
    ]


def _refuse(problems: list[str], model, file: Path) -> None:
    """Raises an error that lists the first problems, if there are any."""
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        listed = "; ".join(problems[:5])
        raise ValueError(f"The weights do not fit. {model.name} expects {listed}{more}. Received: {file}")
