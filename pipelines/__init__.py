"""Tasks that run: one module per task, `python -m pipelines.<task>`; bare `python -m pipelines` lists them.

A pipeline is a module, not a class. It offers the names of the `Pipeline` protocol below, and every tool of the suite
(search, export, tests, docs) reaches it through `get(task)`. Nothing here imports TensorFlow, so that listing and
`--help` answer at once.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from pipelines.config import BaseConfig, UsageError, nearest, one_of

TASKS = (
    "image_classification",
    "text_classification",
    "token_classification",
    "question_answering",
    "translation",
    "text_to_text",
    "forecasting",
    "language_modeling",
    "pretraining",
)


class Data(NamedTuple):
    """What `load_data` returns: three `tf.data` sets of raw examples, and what they told us.

    `spec` is plain JSON (shapes, classes, normalization, counts): builders learn their sizes from it, and serving
    works with it alone, without the data.
    """

    train: Any
    validation: Any
    test: Any
    spec: dict[str, Any]


@dataclass(frozen=True)
class Builder:
    """A model builder that is imported when it is first called: `MODELS` stays a literal dict and costs nothing.

    By the naming rule of the suite the builder in `models/resnet.py` is `resnet`; a file with several variants names
    the one it means: `builder("models.recurrent", "gru")`.
    """

    module: str
    attribute: str

    @property
    def function(self) -> Callable[..., Any]:
        return getattr(importlib.import_module(self.module), self.attribute)

    @property
    def sizes(self) -> Mapping[str, Mapping[str, Any]]:
        """The published sizes of the file, `{}` where it has none."""
        return getattr(importlib.import_module(self.module), "SIZES", {})

    @property
    def resolutions(self) -> Mapping[str, int]:
        """Side in pixels of the pictures that the published weights of a size were made for."""
        return getattr(importlib.import_module(self.module), "RESOLUTION", {})

    def arguments(self, size: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments that a published size and `--model_args` over it stand for.

        Raises:
            UsageError: no such size, or no such argument; the nearest is suggested.
        """
        chosen: Mapping[str, Any] = {}
        if size is not None:
            one_of(size, self.sizes, f"--size of {self.attribute}")
            chosen = self.sizes[size]
        parameters = inspect.signature(self.function).parameters.values()
        known = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY and p.name != "name"]
        for key in given:
            one_of(key, known, f"an argument of {self.attribute}")
        return {**chosen, **given}

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)


def builder(module: str, attribute: str | None = None) -> Builder:
    """Name a builder without importing it. `attribute` defaults to the last part of `module`."""
    return Builder(module, attribute or module.rpartition(".")[2])


class Pipeline(Protocol):
    """The names every task module offers; mypy checks modules against this."""

    Config: type[BaseConfig]
    MODELS: Mapping[str, Builder]
    OBJECTIVE: tuple[str, str]
    DATA: str  # the data sets it takes, for the list of tasks
    PORTABLE: str  # the signature of arrays alone, which ONNX is made from

    def main(self, config: Any) -> Path:
        """Train, evaluate, report; returns the finished run folder."""

    def serving_fn(self, model: Any, config: Any, spec: dict[str, Any]) -> tuple[Callable, dict[str, Any]]:
        """A function of raw inputs to named answers, and its input signature {name: tf.TensorSpec}.

        A task with other doors offers `more_signatures` of the same arguments: {name: (function, input signature)}.
        """

    def served_checks(self, model: Any, config: Any, spec: dict[str, Any], *, limit: int | None = None) -> Any:
        """Batches of {signature: (inputs of a client, Keras's answers)} over the test split, for the export's gate."""


def get(task: str) -> Pipeline:
    """The module of a task.

    Raises:
        UsageError: no such task; the nearest name is suggested.
    """
    if task not in TASKS:
        raise UsageError(f"Expected a task, one of {', '.join(TASKS)}.{nearest(task, TASKS)} Received: {task!r}")
    return cast(Pipeline, importlib.import_module(f"pipelines.{task}"))
