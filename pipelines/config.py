"""A configuration is a frozen dataclass, and the command line is made from it.

Every field is a flag: its name, type and default give the flag its name, type and default, and `option(...)` gives it
the line of help. `parse(Config, argv)` reads a command line; `run_cli` is the whole `python -m pipelines.<task>`.
Usage errors end with exit code 2, failures with 1, both in one line; `--verbose` adds the traceback.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import os
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

OPTIMIZERS = (
    "adam adamw sgd momentum nesterov rmsprop nadam adagrad adadelta adamax adafactor ftrl lion lamb muon".split()
)
SCHEDULES = ("constant", "cosine", "step", "plateau")


class UsageError(ValueError):
    """The command or the configuration is wrong: one line, exit code 2."""


class Failure(RuntimeError):
    """The command was right and could not be carried out (data, disk, network): one line, exit code 1."""


def nearest(name: str, names: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest of `names`, or nothing when none is near."""
    near = difflib.get_close_matches(str(name), [str(n) for n in names], n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def one_of(name: str, names: Iterable[str], what: str) -> None:
    """Raises `UsageError` unless `name` is in `names`; the message lists them and suggests the nearest."""
    names = list(names)
    if name not in names:
        raise UsageError(f"Expected {what}, one of {', '.join(names)}.{nearest(name, names)} Received: {name!r}")


def option(default: Any, help: str, *, choices: Sequence[str] | None = None, metavar: str | None = None) -> Any:
    """A field of a configuration: its default, its line of help and, where the set is closed, its choices."""
    metadata = {"help": help, "choices": choices, "metavar": metavar}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """The flags that every task has."""

    dataset: str = option("", "a TFDS name, or a built-in one named tiny_*")
    data_dir: str | None = option(None, "your own files instead of a named data set", metavar="DIR")
    model: str = option("", "the architecture: a file in models/")
    size: str | None = option(None, "a published size of the architecture, a key of its SIZES (50, b0, s16, …)")
    model_args: dict = option({}, "arguments of the builder: --model_args width=32 dropout=0.1", metavar="KEY=VALUE")
    batch_size: int = option(32, "examples per training step")
    epochs: int = option(30, "passes over the training data")
    steps: int | None = option(None, "stop after this many training steps, whatever the epochs")
    learning_rate: float = option(1e-3, "peak learning rate")
    optimizer: str = option("adam", "the update rule", choices=OPTIMIZERS)
    seed: int = option(0, "the one seed: initial weights, data order, augmentation, dropout")
    precision: str = option(
        "float32", "dtype policy of the layers", choices=("float32", "mixed_bfloat16", "mixed_float16", "bfloat16")
    )
    distribution: str = option("none", "mirrored: one replica per local device", choices=("none", "mirrored"))
    limit: int | None = option(None, "use at most this many training examples")
    budget: str | None = option(None, "stop training after this much time: 90s, 3m, 1h", metavar="TIME")
    resume: str | None = option(None, "continue this run folder exactly where it stood", metavar="RUN")
    out: str = option("runs", "where run folders are written", metavar="DIR")
    export: bool = option(False, "export the finished run for serving, to exported/")
    verbose: bool = option(False, "show the traceback of an error")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            choices = field.metadata.get("choices")
            if choices:
                one_of(getattr(self, field.name), choices, f"--{field.name}")
        self.at_least(1, "batch_size", "epochs", "steps", "limit")
        if not 0 < self.learning_rate < float("inf"):
            raise UsageError(f"Expected --learning_rate above 0. Received: {self.learning_rate}")
        seconds(self.budget)

    def at_least(self, least: float, *names: str) -> None:
        """Raises `UsageError` where one of these fields is set and below `least`."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"Expected --{name} of at least {least}. Received: {value}")

    def within(self, low: float, high: float, *names: str) -> None:
        """Raises `UsageError` where one of these fields is outside `[low, high)`."""
        for name in names:
            if not low <= getattr(self, name) < high:
                raise UsageError(f"Expected --{name} in [{low}, {high}). Received: {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig(BaseConfig):
    """The flags of tasks that train with `compile` and `fit`."""

    schedule: str = option("cosine", "how the learning rate moves", choices=SCHEDULES)
    warmup: float = option(0.05, "share of the steps in which the rate rises from 0")
    momentum: float = option(0.9, "of sgd with momentum or nesterov, and of rmsprop")
    weight_decay: float = option(0.0, "decoupled weight decay; normalization and biases are left out")
    clip_norm: float | None = option(None, "clip the global norm of the gradients")
    ema: float = option(0.0, "momentum of the running average of the weights that is evaluated and saved; 0: none")
    patience: int | None = option(None, "stop early after this many epochs without a better validation result")
    lr_find: bool = option(False, "sweep the learning rate first, draw it, and train with the rate it suggests")
    jit: bool = option(False, "compile the training step with XLA")
    steps_per_execution: int | None = option(None, "training steps per call; default: up to 32 that divide an epoch")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "patience", "steps_per_execution")
        self.at_least(0, "weight_decay", "clip_norm")
        self.within(0, 1, "warmup", "momentum", "ema")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossEntropyConfig(TrainingConfig):
    """The flags of tasks whose loss compares distributions over classes or tokens."""

    label_smoothing: float = option(0.0, "share of the label that is spread over all classes")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.within(0, 1, "label_smoothing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationConfig(CrossEntropyConfig):
    """The flags of tasks in which an example has one class."""

    class_weights: str = option("none", "weight of a class in the loss", choices=("none", "balanced"))


def seconds(text: str | None) -> float | None:
    """Seconds of a duration such as `90`, `90s`, `3m`, `1.5h`; None stays None."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not match or float(match[1]) == 0:
        raise UsageError(f"Expected a duration such as 90s, 3m or 1h. Received: {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def value(text: str) -> Any:
    """A Python value written on a command line: `32`, `0.1`, `True`, `2,2,2`, `(2, 2)`, or else a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        return text


def pair(text: str) -> tuple[str, Any]:
    """`width=32` as `("width", 32)`."""
    key, equals, rest = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"Expected KEY=VALUE. Received: {text!r}")
    return key, value(rest)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and suggest the nearest flag."""

    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(message)

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = nearest(unknown[0].partition("=")[0], flags) if unknown[0].startswith("-") else ""
            raise UsageError(f"Expected a flag of {self.prog} (see --help).{near} Received: {unknown[0]!r}")
        return namespace, unknown


def underscored(argv: Sequence[str]) -> list[str]:
    """`--batch-size=8` means `--batch_size=8`, and `--no_export` means `--no-export`."""

    def one(word: str) -> str:
        flag = re.match(r"--(no[-_])?([a-z][a-z0-9_-]*)", word)
        if not flag:
            return word
        return f"--{'no-' if flag[1] else ''}{flag[2].replace('-', '_')}{word[flag.end() :]}"

    return [one(word) for word in argv]


def parser(config: type[BaseConfig], prog: str, description: str, models: Iterable[str] = ()) -> Parser:
    """The command line of a configuration class."""
    result = Parser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=110),
    )
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        if isinstance(hint, types.UnionType):
            hint = next(arm for arm in hint.__args__ if arm is not type(None))
        default = field.default if field.default is not dataclasses.MISSING else None
        line = field.metadata["help"].replace("%", "%%")
        if field.name == "model" and models:
            line += f": {', '.join(models)}"
        choices, metavar = field.metadata["choices"], field.metadata["metavar"]
        if choices:
            line += f": {', '.join(choices)}"
        if default not in (None, "", False):
            line += f" (default {', '.join(default) if isinstance(default, tuple) else default})"
        arguments: dict[str, Any] = {"help": line, "default": argparse.SUPPRESS}
        if hint is bool:
            arguments |= {"action": argparse.BooleanOptionalAction}
        elif hint is dict:
            arguments |= {"type": pair, "nargs": "*", "action": "extend", "metavar": metavar or "KEY=VALUE"}
        elif typing.get_origin(hint) is tuple:
            arguments |= {"type": typing.get_args(hint)[0], "nargs": "*", "metavar": metavar or "NAME"}
        else:
            arguments |= {"type": hint, "metavar": metavar or {int: "N", float: "X"}.get(hint, "NAME")}
        result.add_argument(f"--{field.name}", **arguments)
    return result


def parse(config: type[BaseConfig], argv: Sequence[str], *, prog: str = "", description: str = "", models=()) -> Any:
    """Read a command line into a configuration.

    Raises:
        UsageError: an unknown flag or a value that does not fit.
        SystemExit: after `--help`.
    """
    found = vars(parser(config, prog, description, models).parse_args(underscored(argv)))
    hints = typing.get_type_hints(config)
    for name, given in found.items():
        if hints[name] is dict:
            found[name] = dict(given)
        elif typing.get_origin(hints[name]) is tuple:
            found[name] = tuple(part for word in given for part in str(word).split(",") if part)
    return config(**found)


def command_line(config: BaseConfig) -> str:
    """The flags that make this configuration from the defaults, ready to paste."""
    import shlex

    words = []
    for field in dataclasses.fields(config):
        now, default = getattr(config, field.name), type(config).__dataclass_fields__[field.name]
        if now == (default.default_factory() if callable(default.default_factory) else default.default):
            continue
        if isinstance(now, bool):
            words.append(f"--{'' if now else 'no-'}{field.name}")
        elif isinstance(now, dict):
            words += [f"--{field.name}", *(f"{key}={item}".replace(" ", "") for key, item in now.items())]
        elif isinstance(now, tuple):
            words += [f"--{field.name}", *map(str, now)]
        else:
            words += [f"--{field.name}", str(now)]
    return shlex.join(words)


def guarded(action: Callable[[], Any], *, verbose: bool = False) -> int:
    """Run a command: its exit code, with every error told in one line on stderr."""
    try:
        action()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        if verbose:
            raise
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if verbose:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        kind = "" if isinstance(error, (Failure, OSError, ValueError)) else f"{type(error).__name__}: "
        print(f"error: {kind}{text[:2000]}", file=sys.stderr)
        return 1
    return 0


def quiet_tensorflow() -> None:
    """Import TensorFlow without its start-up lines about CPU features and missing GPUs, which no flag turns off."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        import tensorflow

        tensorflow.config.list_physical_devices()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def run_cli(task: Any, argv: Sequence[str] | None = None) -> typing.NoReturn:
    """The command line of a pipeline module: parse, run `main`, say where the run folder is, exit."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name = Path(task.__file__).stem

    def action() -> None:
        warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
        config = parse(
            task.Config, argv, prog=f"python -m pipelines.{name}", description=task.__doc__, models=task.MODELS
        )
        quiet_tensorflow()
        task.main(config)

    sys.exit(guarded(action, verbose="--verbose" in argv))
