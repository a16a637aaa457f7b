"""What `from_pretrained` has to know of a family of checkpoints; each family is in a file beside this one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import keras
import numpy as np

# Names of activations in config.json -> ours (see `models.layers.activations`).
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


class Entry(NamedTuple):
    """Where our weights stand in a tensor of a file.

    Attributes:
        weights: the variables that the tensor holds, side by side along their last axis.
        transposed: whether the file has the transposed matrix, as PyTorch's Linear does.
        shape: of the tensor in the file, where it is not that of our weights (transposed, if so).
    """

    weights: tuple[Any, ...]
    transposed: bool = False
    shape: tuple[int, ...] | None = None

    def file_shape(self) -> tuple[int, ...]:
        if self.shape is not None:
            return self.shape
        first = tuple(self.weights[0].shape)
        joined = (*first[:-1], sum(int(weight.shape[-1]) for weight in self.weights))
        return joined[::-1] if self.transposed else joined

    def split(self, array: np.ndarray) -> list[np.ndarray]:
        """The tensor of a file as the values of our weights."""
        first = tuple(self.weights[0].shape)
        joined = (*first[:-1], sum(int(weight.shape[-1]) for weight in self.weights))
        array = array.reshape(joined[::-1]).T if self.transposed else array.reshape(joined)
        ends = np.cumsum([int(weight.shape[-1]) for weight in self.weights])[:-1]
        return np.split(array, ends, axis=-1)

    def joined(self) -> np.ndarray:
        """The tensor of a file from the values of our weights."""
        array = np.concatenate([keras.ops.convert_to_numpy(weight) for weight in self.weights], axis=-1)
        return np.ascontiguousarray(array.T if self.transposed else array).reshape(self.file_shape())


@dataclass(frozen=True)
class Family:
    """One kind of published checkpoint.

    Attributes:
        model_type: of config.json.
        heads: the head of the model by the architecture that config.json names: `{"BertForMaskedLM": "masked_lm"}`.
            "features" is the head of a model without one.
        prefix: what the names of all tensors but the head's begin with, as far as the file has a head.
        head_tensors: regular expressions of the names of tensors that belong to a head.
        ignored: regular expressions of the names of tensors that hold no weights: buffers, and copies of tied weights.
        unused: regular expressions of the names of tensors that published files have though their head reads none.
        build: from config.json, the head, the number of classes (None: as config.json says) and the names of the file's
            tensors to an uncompiled model. It must read every field that changes an answer, and refuse what it lacks.
        config: from a model to what config.json must say of it, `architectures` and `model_type` too.
        entries: from a model to every one of its weights by the full names in a file.
    """

    model_type: str
    heads: Mapping[str, str]
    prefix: str
    head_tensors: Sequence[str]
    ignored: Sequence[str]
    unused: Sequence[str] = field(default=(), kw_only=True)
    build: Callable[[dict[str, Any], str, int | None, set[str]], keras.Model]
    config: Callable[[keras.Model], dict[str, Any]]
    entries: Callable[[keras.Model], dict[str, Entry]]


def weights_by_path(model: keras.Model) -> dict[str, Any]:
    """Trainable weights by path, as "block1/block1_self_attention/query/kernel"."""
    return {weight.path: weight for weight in model.weights if weight.trainable}


def linear(weights: Mapping[str, Any], path: str, name: str, bias: bool = True) -> dict[str, Entry]:
    """Entries of PyTorch's Linear `name`, which is our dense layer at `path`."""
    found = {f"{name}.weight": Entry((weights[f"{path}/kernel"],), transposed=True)}
    return found | ({f"{name}.bias": Entry((weights[f"{path}/bias"],))} if bias else {})


def normal(weights: Mapping[str, Any], path: str, name: str) -> dict[str, Entry]:
    """Entries of a layer normalization."""
    return {f"{name}.weight": Entry((weights[f"{path}/gamma"],)), f"{name}.bias": Entry((weights[f"{path}/beta"],))}


def activation(config: Mapping[str, Any], key: str, default: str) -> str:
    """Our name of an activation of config.json."""
    name = config.get(key, default)
    if name not in ACTIVATIONS:
        raise ValueError(f"Expected {key} of {', '.join(ACTIVATIONS)} in config.json. Received: {name!r}")
    return ACTIVATIONS[name]


def required(config: Mapping[str, Any], **expected: Any) -> None:
    """Refuses a configuration whose fields, where it has them, are not as expected; a tuple lists what may be."""
    for key, value in expected.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if key in config and config[key] not in allowed:
            listed = " or ".join(map(repr, allowed))
            raise ValueError(f"Expected {key} {listed} in config.json. Received: {config[key]!r}")
