"""The command line that is made from a configuration, and its errors."""

from __future__ import annotations

import dataclasses
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import image_classification
from pipelines.config import command_line, guarded, nearest, parse, seconds
from pipelines.image_classification import Config

PROG = {"prog": "test", "models": image_classification.MODELS}


def read(*words: str) -> Config:
    return parse(Config, words, **PROG)


def test_every_field_is_a_flag_with_a_line_of_help(capsys):
    with pytest.raises(SystemExit):
        read("--help")
    shown = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert f"--{field.name}" in shown
        assert field.metadata["help"][:30] in shown


def test_flags_are_read_by_the_type_of_their_field():
    config = read(
        "--batch-size", "8", "--learning_rate=1e-2", "--ema", "0.9", "--export", "--augment", "flip,crop", "mixup"
    )
    assert (config.batch_size, config.learning_rate, config.ema, config.export) == (8, 0.01, 0.9, True)
    assert config.augment == ("flip", "crop", "mixup")
    assert not read("--export", "--no-export").export and not read("--export", "--no_export").export
    assert read("--data_dir=my-own-folder").data_dir == "my-own-folder"
    args = read("--model_args", "widths=8,16", "dropout=0.1", "--model_args", "pooling=average").model_args
    assert args == {"widths": (8, 16), "dropout": 0.1, "pooling": "average"}


@given(
    st.builds(
        Config,
        model=st.sampled_from(sorted(image_classification.MODELS)),
        batch_size=st.integers(1, 512),
        steps=st.none() | st.integers(1, 1000),
        learning_rate=st.floats(1e-6, 1),
        optimizer=st.sampled_from(["adam", "lion"]),
        augment=st.lists(st.sampled_from(["flip", "rotate:0.1"]), max_size=2).map(tuple),
        lr_find=st.booleans(),
        export=st.booleans(),
        data_dir=st.none() | st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1),
        model_args=st.dictionaries(
            st.sampled_from(["width", "depth"]), st.integers(1, 9) | st.lists(st.integers(1, 9), min_size=2).map(tuple)
        ),
    )
)
def test_a_command_line_written_from_a_configuration_reads_back_as_it(config):
    # a flag's value that begins with a dash has to be written with =, as in any command line
    if config.data_dir is None or not config.data_dir.startswith("-"):
        assert read(*shlex.split(command_line(config))) == config


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--modle", "vgg"], "Did you mean '--model'?"),
        (["--model", "resnte"], "Did you mean 'resnet'?"),
        (["--optimizer", "adan"], "Did you mean 'adam'?"),
        (["--epochs", "0"], "at least 1. Received: 0"),
        (["--epochs", "many"], "invalid int value: 'many'"),
        (["--budget", "soon"], "Expected a duration"),
        (["--model_args", "width"], "Expected KEY=VALUE. Received: 'width'"),
        (["--ema", "1"], "Expected --ema in [0, 1)"),
        (["--learning_rate", "-1"], "above 0"),
        (["--learning_rate", "nan"], "Received: nan"),
    ],
)
def test_usage_errors_are_one_line_that_helps_and_exit_code_2(words, said, capsys):
    assert guarded(lambda: read(*words)) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


def test_failures_are_one_line_and_exit_code_1_and_verbose_raises(capsys):
    def fail():
        raise OSError(28, "No space left on device")

    assert guarded(fail) == 1
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"
    with pytest.raises(OSError):
        guarded(fail, verbose=True)


def test_durations():
    assert [seconds(text) for text in ("90", "90s", "1.5m", "2h", None)] == [90, 90, 90, 7200, None]


def test_the_nearest_name_is_suggested_only_when_near():
    assert nearest("restnet", ["resnet", "vit"]) == " Did you mean 'resnet'?"
    assert nearest("transformer", ["resnet", "vit"]) == ""
