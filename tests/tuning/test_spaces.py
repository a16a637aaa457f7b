"""Spaces: every architecture has one, and every point of it is a model that can be built and a valid configuration."""

from __future__ import annotations

import inspect

import keras_tuner
import pytest

import pipelines
from pipelines.config import UsageError
from tuning import spaces

CASES = [(task, model) for task in pipelines.TASKS for model in pipelines.get(task).MODELS]
IDS = ["-".join(case) for case in CASES]
ARGUMENTS = {  # the positional ones of a builder, and the shapes of what its models answer
    "image_classification": (((8, 8, 1), 3), (None, 3)),
    "text_classification": ((50, 3), (None, 3)),
    "token_classification": ((50, 3), (None, None, 3)),
    "question_answering": ((50,), (None, None, 2)),
    "translation": ((50, 20), (None, None, 20)),
    "text_to_text": ((20, 20), (None, None, 20)),
    "forecasting": (((24, 2), 6), None),
    "language_modeling": ((50,), (None, None, 50)),
    "pretraining": ((50,), None),
}


def whole(task: str, model: str) -> keras_tuner.HyperParameters:
    hp = keras_tuner.HyperParameters()
    spaces.settings(hp, pipelines.get(task).Config, model)
    return hp


def parts(found: spaces.Settings, kind: str) -> dict:
    return {name: value for (of, name), value in found.items() if of == kind}


@pytest.mark.parametrize(("task", "model"), CASES, ids=IDS)
def test_a_space_speaks_of_arguments_that_the_builder_has(task, model):
    found = parts(spaces.settings(spaces.At({}), pipelines.get(task).Config, model), "argument")
    known = inspect.signature(pipelines.get(task).MODELS[model].function).parameters
    assert found
    for name, value in found.items():
        assert known[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert value == known[name].default, f"{name}: the default of the space is not that of the builder"


@pytest.mark.parametrize(("task", "model"), CASES, ids=IDS)
def test_builders_build_at_the_ends_of_their_space(task, model):
    config, hp = pipelines.get(task).Config, whole(task, model)
    sizes = []
    for end in (0, -1):
        corner = {item.name: spaces.levels(item)[end] for item in hp.space}
        found = spaces.settings(spaces.At(corner), config, model)
        config(model=model, **parts(found, "field"))
        positional, shape = ARGUMENTS[task]
        positional = positional[-1:] if model == "t5" else positional  # it has one vocabulary for both sides
        network = pipelines.get(task).MODELS[model](*positional, **parts(found, "argument"))
        assert shape is None or network.output_shape == shape
        sizes.append(network.count_params())
    assert sizes[0] < sizes[1] or model in ("vgg", "vit")  # more stages shrink what the dense layers see


@pytest.mark.parametrize("task", pipelines.TASKS)
def test_the_training_space_starts_at_the_pipelines_defaults(task):
    config = pipelines.get(task).Config()
    for name, value in spaces.training(spaces.At({}), type(config)).items():
        assert getattr(config, name) == value


@pytest.mark.parametrize(("task", "model"), CASES, ids=IDS)
def test_every_hyperparameter_changes_something(task, model):
    config, hp = pipelines.get(task).Config, whole(task, model)
    reach = spaces.influence(hp, lambda point: spaces.settings(point, config, model), draws=3)
    assert len(reach) == len(hp.space) and all(reach.values())


def test_influence_is_what_depends_on_the_hyperparameter():
    hp = keras_tuner.HyperParameters()

    def decide(point) -> spaces.Settings:
        width, depth = point.Choice("width", [1, 2], default=1), point.Int("depth", 1, 2, default=1)
        return {("argument", "widths"): (width,) * depth, ("argument", "width"): width, ("field", "fixed"): 0}

    decide(hp)
    assert spaces.influence(hp, decide) == {
        "width": {("argument", "widths"), ("argument", "width")},
        "depth": {("argument", "widths")},
    }


def test_levels_cover_a_range_evenly_in_its_own_scale():
    hp = keras_tuner.HyperParameters()
    hp.Float("rate", 1e-4, 1.0, sampling="log")
    hp.Float("share", 0.0, 0.6)
    hp.Int("depth", 1, 3)
    hp.Choice("name", ["a", "b"])
    found = {item.name: spaces.levels(item) for item in hp.space}
    assert found == {
        "rate": [0.0001, 0.001, 0.01, 0.1, 1.0],
        "share": [0.0, 0.15, 0.3, 0.45, 0.6],
        "depth": [1, 2, 3],
        "name": ["a", "b"],
    }


def test_a_point_survives_the_protocol():
    hp = whole("image_classification", "resnet")
    back = keras_tuner.HyperParameters.from_proto(hp.to_proto())
    assert back.values == hp.values
    assert {item.name: spaces.levels(item) for item in back.space} == {i.name: spaces.levels(i) for i in hp.space}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["width", "dropout"], {"width": None, "dropout": None}),
        (["dropout=0.1", "0.3", "width"], {"dropout": [0.1, 0.3], "width": None}),
        (["width=8"], {"width": [8]}),
    ],
)
def test_vary_reads_names_and_values(words, found):
    assert spaces.varied(words, ["width", "dropout"]) == found


def test_values_take_the_type_of_the_hyperparameter():
    assert spaces.of_kind(0.1, [0, 1], "x") == [0.0, 1.0]
    assert spaces.of_kind("relu", ["gelu"], "x") == ["gelu"]
    for example, items in ((1, [1.5]), (0.1, ["a"]), (True, ["relu"])):
        with pytest.raises(UsageError, match="Received"):
            spaces.of_kind(example, items, "x")
