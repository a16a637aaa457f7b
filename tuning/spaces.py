"""What a search may change: a function per architecture, named as the architecture, and `training` for all of them.

    python -m tuning.search image_classification --model convnet --trials 20 --vary learning_rate dropout

A space reads named values from `hp` and returns arguments of the builder; `training` returns fields of the pipeline's
configuration. One hyperparameter may decide several arguments and the other way round: `influence` finds out by trying,
so that what the command line fixes is not searched, and what is not searched keeps the pipeline's own default. Names
are unique over both, sizes suit small images (8 to 64 pixels), and every default is the builder's or the pipeline's.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pipelines.config import UsageError, nearest, value

POLICIES = {  # of the field `augment`
    "none": ("none",),
    "shift": ("translate", "rotate"),
    "zoom": ("translate", "rotate", "zoom"),
    "erasing": ("translate", "rotate", "erasing"),
    "mixup": ("translate", "rotate", "mixup"),
    "cutmix": ("translate", "rotate", "cutmix"),
}


def training(hp, config: type) -> dict[str, Any]:
    """Fields of a configuration: update rule, rate and its schedule, batch, regularization, augmentation."""
    default: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(config)}
    sizes = sorted({16, 32, 64, 128, default["batch_size"]})
    optimizers = list(dict.fromkeys(["adam", "adamw", "nesterov", "nadam", default["optimizer"]]))
    found = {
        "learning_rate": hp.Float("learning_rate", 1e-4, 3e-2, sampling="log", default=default["learning_rate"]),
        "batch_size": hp.Choice("batch_size", sizes, default=default["batch_size"]),
        "optimizer": hp.Choice("optimizer", optimizers, default=default["optimizer"]),
        "schedule": hp.Choice("schedule", ["cosine", "step", "constant"], default=default["schedule"]),
        "weight_decay": hp.Choice("weight_decay", [0.0, 1e-5, 1e-4, 1e-3, 1e-2], default=default["weight_decay"]),
        "ema": hp.Choice("ema", [0.0, 0.99], default=default["ema"]),
    }
    if "label_smoothing" in default:
        found["label_smoothing"] = hp.Choice("label_smoothing", [0.0, 0.05, 0.1, 0.2], default=0.0)
    if "augment" in default:
        found["augment"] = policy(hp.Choice("augment", list(POLICIES), default="shift"))
    return found


def policy(name: str) -> tuple[str, ...]:
    """A named policy, or the names of augmentations joined by `+`: `translate+mixup`."""
    return POLICIES.get(name) or tuple(name.split("+"))


def mlp(hp) -> dict[str, Any]:
    width = hp.Choice("width", [64, 128, 256, 512], default=256)
    layers = hp.Int("layers", 1, 4, default=2)
    return {
        "hidden_dims": tuple(max(16, width // 2**i) for i in range(layers)),
        "activation": hp.Choice("activation", ["relu", "gelu", "silu"], default="relu"),
        "normalization": hp.Choice("normalization", ["none", "batch", "layer"], default="none"),
        "dropout": hp.Float("dropout", 0.0, 0.6, default=0.0),
    }


def lenet(hp) -> dict[str, Any]:
    filters = hp.Choice("filters", [4, 6, 12, 24], default=6)
    width = hp.Choice("width", [30, 60, 120, 240], default=120)
    return {
        "filters": (filters, filters * 8 // 3),
        "hidden_dims": (width, width * 7 // 10),
        "kernel_size": hp.Choice("kernel_size", [3, 5], default=5),
        "activation": hp.Choice("activation", ["tanh", "relu", "gelu"], default="tanh"),
        "pooling": hp.Choice("pooling", ["average", "max"], default="average"),
        "dropout": hp.Float("dropout", 0.0, 0.6, default=0.0),
    }


def convnet(hp) -> dict[str, Any]:
    width = hp.Choice("width", [8, 16, 32, 64], default=32)
    return {
        "widths": tuple(width * 2**i for i in range(hp.Int("stages", 1, 3, default=2))),
        "depth": hp.Int("depth", 1, 3, default=2),
        "pooling": hp.Choice("pooling", ["max", "average"], default="max"),
        "activation": hp.Choice("activation", ["relu", "gelu", "silu"], default="relu"),
        "dropout": hp.Float("dropout", 0.0, 0.6, default=0.3),
    }


def vgg(hp) -> dict[str, Any]:
    depth = hp.Int("depth", 1, 3, default=2)
    dense = hp.Choice("dense", [64, 128, 256], default=128)
    return {
        "depths": (1, 1, depth) if hp.Choice("stages", [2, 3], default=3) == 3 else (depth, depth),
        "width": hp.Choice("width", [8, 16, 32, 64], default=32),
        "hidden_dims": (dense, dense),
        "normalization": hp.Choice("normalization", ["none", "batch"], default="none"),
        "dropout": hp.Float("dropout", 0.0, 0.6, default=0.0),
    }


def resnet(hp) -> dict[str, Any]:
    return {
        "depths": (hp.Int("depth", 1, 4, default=2),) * hp.Int("stages", 1, 3, default=3),
        "width": hp.Choice("width", [8, 16, 32], default=16),
        "preactivation": hp.Boolean("preactivation", default=False),
        "dropout": hp.Float("dropout", 0.0, 0.5, default=0.0),
        "stochastic_depth": hp.Float("stochastic_depth", 0.0, 0.3, default=0.0),
    }


def inception(hp) -> dict[str, Any]:
    return {
        "pool_widths": (32,) * hp.Int("first_modules", 1, 3, default=1),
        "factorized_widths": (128,) * hp.Int("second_modules", 1, 3, default=1),
        "expanded_blocks": hp.Int("expanded_blocks", 1, 2, default=1),
        "width_coefficient": hp.Choice("width_coefficient", [0.0625, 0.125, 0.25], default=0.125),
        "dropout": hp.Float("dropout", 0.0, 0.5, default=0.0),
    }


def efficientnet(hp) -> dict[str, Any]:
    return {
        "width_coefficient": hp.Choice("width_coefficient", [0.5, 1.0, 1.5], default=1.0),
        "depth_coefficient": hp.Choice("depth_coefficient", [0.5, 1.0, 1.5], default=1.0),
        "head_width": hp.Choice("head_width", [80, 160, 320], default=160),
        "dropout": hp.Float("dropout", 0.0, 0.5, default=0.0),
        "stochastic_depth": hp.Float("stochastic_depth", 0.0, 0.3, default=0.0),
    }


def vit(hp) -> dict[str, Any]:
    width = hp.Choice("width", [32, 64, 96, 128], default=64)
    return {
        "patch_size": hp.Choice("patch_size", [2, 4], default=2),
        "width": width,
        "depth": hp.Int("depth", 2, 6, default=4),
        "num_heads": hp.Choice("num_heads", [2, 4, 8], default=4),
        "hidden_dim": width * hp.Choice("expansion", [2, 4], default=2),
        "dropout": hp.Float("dropout", 0.0, 0.3, default=0.0),
        "stochastic_depth": hp.Float("stochastic_depth", 0.0, 0.3, default=0.0),
    }


def simple_rnn(hp) -> dict[str, Any]:
    return {
        "embedding_dim": hp.Choice("embedding_dim", [32, 64, 128], default=64),
        "width": hp.Choice("width", [32, 64, 128], default=64),
        "depth": hp.Int("depth", 1, 3, default=1),
        "bidirectional": hp.Boolean("bidirectional", default=True),
        "pooling": hp.Choice("pooling", ["last", "mean", "max"], default="last"),
        "normalization": hp.Choice("normalization", ["none", "layer"], default="none"),
        "dropout": hp.Float("dropout", 0.0, 0.6, default=0.3),
        "recurrent_dropout": hp.Float("recurrent_dropout", 0.0, 0.4, default=0.0),
    }


lstm = gru = simple_rnn


def lstm_tagger(hp) -> dict[str, Any]:
    return {
        "embedding_dim": hp.Choice("embedding_dim", [32, 64, 128], default=64),
        "width": hp.Choice("width", [32, 64, 128], default=64),
        "depth": hp.Int("depth", 1, 3, default=1),
        "normalization": hp.Choice("normalization", ["none", "layer"], default="none"),
        "dropout": hp.Float("dropout", 0.0, 0.6, default=0.3),
        "recurrent_dropout": hp.Float("recurrent_dropout", 0.0, 0.4, default=0.0),
    }


def text_cnn(hp) -> dict[str, Any]:
    smallest = hp.Int("smallest_kernel", 1, 4, default=3)
    return {
        "embedding_dim": hp.Choice("embedding_dim", [32, 64, 128, 300], default=64),
        "kernel_sizes": tuple(range(smallest, smallest + hp.Int("kernels", 1, 4, default=3))),
        "filters": hp.Choice("filters", [50, 100, 200], default=100),
        "max_norm": hp.Choice("max_norm", [0.0, 3.0], default=0.0) or None,
        "dropout": hp.Float("dropout", 0.0, 0.7, default=0.5),
    }


def text_transformer(hp) -> dict[str, Any]:
    width = hp.Choice("width", [32, 64, 128, 256], default=64)
    return {
        "width": width,
        "depth": hp.Int("depth", 1, 4, default=2),
        "num_heads": hp.Choice("num_heads", [2, 4, 8], default=4),
        "hidden_dim": width * hp.Choice("expansion", [2, 4], default=2),
        "positions": hp.Choice("positions", ["sinusoidal", "rotary", "learned"], default="sinusoidal"),
        "normalization": hp.Choice("normalization", ["post", "pre"], default="pre"),
        "dropout": hp.Float("dropout", 0.0, 0.5, default=0.1),
    }


def bert_classifier(hp) -> dict[str, Any]:
    width = hp.Choice("width", [64, 128, 256], default=128)
    return {
        "width": width,
        "depth": hp.Int("depth", 1, 6, default=2),
        "num_heads": hp.Choice("num_heads", [2, 4, 8], default=2),
        "hidden_dim": 4 * width,
        "dropout": hp.Float("dropout", 0.0, 0.5, default=0.1),
        "attention_dropout": hp.Float("attention_dropout", 0.0, 0.3, default=0.1),
    }


bert_token_classifier = bert_classifier
bert_question_answering = bert_classifier


def xlnet_classifier(hp) -> dict[str, Any]:
    width = hp.Choice("width", [64, 128, 256], default=128)
    return {
        "width": width,
        "depth": hp.Int("depth", 1, 6, default=2),
        "num_heads": hp.Choice("num_heads", [2, 4, 8], default=4),
        "hidden_dim": 4 * width,
        "dropout": hp.Float("dropout", 0.0, 0.5, default=0.1),
        "classifier_dropout": hp.Float("classifier_dropout", 0.0, 0.5, default=0.1),
    }


def gpt(hp) -> dict[str, Any]:
    width = hp.Choice("width", [64, 128, 192, 256], default=128)
    dropout = hp.Float("dropout", 0.0, 0.3, default=0.1)
    return {
        "width": width,
        "depth": hp.Int("depth", 1, 6, default=2),
        "num_heads": hp.Choice("num_heads", [2, 4, 8], default=4),
        "hidden_dim": width * hp.Choice("expansion", [2, 4], default=4),
        "positions": hp.Choice("positions", ["learned", "sinusoidal", "rotary"], default="learned"),
        "dropout": dropout,
        "attention_dropout": dropout,
        "embedding_dropout": dropout,
    }


def llama(hp) -> dict[str, Any]:
    width = hp.Choice("width", [64, 128, 192, 256], default=128)
    return {
        "width": width,
        "depth": hp.Int("depth", 1, 6, default=2),
        "num_heads": hp.Choice("num_heads", [2, 4, 8], default=4),
        "hidden_dim": width * hp.Choice("expansion", [2, 3, 4], default=3),
        "tied_output": hp.Boolean("tied_output", default=False),
        "dropout": hp.Float("dropout", 0.0, 0.3, default=0.0),
    }


def bert(hp) -> dict[str, Any]:
    width = hp.Choice("width", [64, 128, 256], default=128)
    return {
        "width": width,
        "depth": hp.Int("depth", 1, 6, default=2),
        "num_heads": hp.Choice("num_heads", [2, 4, 8], default=2),
        "hidden_dim": 4 * width,
        "dropout": hp.Float("dropout", 0.0, 0.3, default=0.1),
        "attention_dropout": hp.Float("attention_dropout", 0.0, 0.3, default=0.1),
        "positions": hp.Choice("positions", ["learned", "sinusoidal", "rotary"], default="learned"),
    }


def xlnet(hp) -> dict[str, Any]:
    width = hp.Choice("width", [64, 128, 256], default=128)
    return {
        "width": width,
        "depth": hp.Int("depth", 1, 6, default=2),
        "num_heads": hp.Choice("num_heads", [2, 4, 8], default=4),
        "hidden_dim": 4 * width,
        "dropout": hp.Float("dropout", 0.0, 0.3, default=0.1),
    }


def seq2seq(hp) -> dict[str, Any]:
    return {
        "cell": hp.Choice("cell", ["gru", "lstm", "simple_rnn"], default="gru"),
        "width": hp.Choice("width", [64, 128, 256], default=128),
        "embedding_dim": hp.Choice("embedding_dim", [32, 64, 128], default=64),
        "depth": hp.Int("depth", 1, 3, default=1),
        "attention": hp.Choice("attention", ["additive", "dot", "general", "concat", "none"], default="additive"),
        "dropout": hp.Float("dropout", 0.0, 0.4, default=0.1),
        "scheduled_sampling": hp.Choice("scheduled_sampling", [0.0, 0.1, 0.25], default=0.0),
    }


def transformer(hp) -> dict[str, Any]:
    width = hp.Choice("width", [64, 128, 256, 512], default=128)
    return {
        "width": width,
        "depth": hp.Int("depth", 1, 6, default=2),
        "num_heads": hp.Choice("num_heads", [2, 4, 8], default=4),
        "hidden_dim": width * hp.Choice("expansion", [2, 4], default=2),
        "positions": hp.Choice("positions", ["sinusoidal", "rotary", "learned"], default="sinusoidal"),
        "normalization": hp.Choice("normalization", ["post", "pre"], default="post"),
        "dropout": hp.Float("dropout", 0.0, 0.3, default=0.1),
    }


def t5(hp) -> dict[str, Any]:
    width = hp.Choice("width", [64, 128, 256], default=128)
    return {
        "width": width,
        "depth": hp.Int("depth", 1, 6, default=2),
        "num_heads": hp.Choice("num_heads", [2, 4, 8], default=4),
        "head_dim": hp.Choice("head_dim", [16, 32, 64], default=32),
        "hidden_dim": width * hp.Choice("expansion", [2, 4], default=2),
        "gated": hp.Boolean("gated", default=False),
        "tied_output": hp.Boolean("tied_output", default=True),
        "dropout": hp.Float("dropout", 0.0, 0.3, default=0.1),
    }


def recurrent_forecaster(hp) -> dict[str, Any]:
    return {
        "cell": hp.Choice("cell", ["gru", "lstm", "simple_rnn"], default="gru"),
        "width": hp.Choice("width", [16, 32, 48, 96], default=48),
        "depth": hp.Int("depth", 1, 3, default=1),
        **forecasting_ends(hp),
    }


def tcn_forecaster(hp) -> dict[str, Any]:
    return {
        "width": hp.Choice("width", [16, 32, 64], default=32),
        "depth": hp.Int("depth", 2, 6, default=4),
        "kernel_size": hp.Choice("kernel_size", [2, 3, 5], default=3),
        **forecasting_ends(hp),
    }


def transformer_forecaster(hp) -> dict[str, Any]:
    width = hp.Choice("width", [16, 32, 64], default=32)
    return {
        "width": width,
        "depth": hp.Int("depth", 1, 4, default=2),
        "num_heads": hp.Choice("num_heads", [2, 4, 8], default=4),
        "hidden_dim": width * hp.Choice("expansion", [2, 4], default=2),
        **forecasting_ends(hp),
    }


def forecasting_ends(hp) -> dict[str, Any]:
    """What is around the trunk of every forecaster."""
    return {
        "head": hp.Choice("head", ["direct", "autoregressive"], default="direct"),
        "normalization": hp.Choice("normalization", ["mean", "last", "none"], default="mean"),
        "dropout": hp.Float("dropout", 0.0, 0.4, default=0.0),
    }


class At:
    """A point of a space, read as `hp` is: a hyperparameter answers its value there, or else its default."""

    def __init__(self, values: dict[str, Any]):
        self.values = values

    def read(self, name: str, *_: Any, default: Any, **__: Any) -> Any:
        return self.values.get(name, default)

    Boolean = Choice = Float = Int = read


Settings = dict[tuple[str, str], Any]  # ("field" or "argument", its name) → value


def settings(hp, config: type, model: str) -> Settings:
    """Everything that `hp` sets: fields of `config` and arguments of the builder."""
    found: Settings = {("field", name): plain(item) for name, item in training(hp, config).items()}
    return found | {("argument", name): plain(item) for name, item in globals()[model](hp).items()}


def plain(item: Any) -> Any:
    """Numbers as a person writes them: four digits."""
    return float(f"{item:.4g}") if isinstance(item, float) else item


def influence(hp, decide: Callable[[Any], Settings], draws: int = 12) -> dict[str, set[tuple[str, str]]]:
    """What each hyperparameter can change, found by changing it alone, from its default and from random points.

    Args:
        hp: a `keras_tuner.HyperParameters` that holds the whole space.
        decide: from a point of the space, read as `hp`, to settings.
        draws: random points tried beside the default.
    """
    source = random.Random(0)
    points = [{item.name: item.default for item in hp.space}]
    points += [{item.name: item.random_sample(source.randrange(2**31)) for item in hp.space} for _ in range(draws)]
    changed: dict[str, set[tuple[str, str]]] = {item.name: set() for item in hp.space}
    for point in points:
        before = decide(At(point))
        for item in hp.space:
            for other in levels(item, 3):
                after = decide(At(point | {item.name: other}))
                changed[item.name] |= {key for key in after if after[key] != before[key]}
    return changed


def levels(item, count: int = 5) -> list[Any]:
    """The values a grid takes of a hyperparameter: all of a choice, `count` evenly spaced ones of a range."""
    if hasattr(item, "min_value"):
        found = [item.prob_to_value(min(k / (count - 1), 1 - 1e-9)) for k in range(count)]
        return list(dict.fromkeys(plain(value) for value in found))
    return list(item.values)


def varied(words: Sequence[str], known: Iterable[str]) -> dict[str, list[Any] | None]:
    """`--vary width dropout=0.1,0.3`, split at spaces and commas, as {"width": None, "dropout": [0.1, 0.3]}.

    Raises:
        UsageError: a name that is not in the space, or a value twice.
    """
    names = list(known)
    found: dict[str, list[Any] | None] = {}
    for word in words:
        name, equals, rest = word.partition("=")
        last = found[next(reversed(found))] if found else None
        if not equals and last is not None and name not in names:
            last.append(value(word))  # the command line splits at commas
            continue
        if name not in names:
            raise UsageError(
                f"Expected --vary with hyperparameters of this search, of {', '.join(names)}."
                f"{nearest(name, names)} Received: {name!r}"
            )
        found[name] = [value(rest)] if equals else None
    for name, items in found.items():
        if items is not None and len(set(items)) < len(items):
            raise UsageError(f"Expected --vary {name}=VALUE,VALUE with different values. Received: {items}")
    return found


def of_kind(example: Any, items: list[Any], name: str) -> list[Any]:
    """Values of `--vary` with the type that the hyperparameter has."""
    try:
        found = [type(example)(item) for item in items]
    except (TypeError, ValueError):
        found = []
    if not found or (not isinstance(example, str) and found != items):
        raise UsageError(f"Expected --vary {name} with values like {example!r}. Received: {items}")
    return found
