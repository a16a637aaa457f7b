"""Fine-tuning: the weights and the tokenizer of a pretrained model, a new head, and which weights are trained how.

    python -m pipelines.text_classification --model bert_classifier --pretrained google-bert/bert-base-uncased
    python -m pipelines.text_classification --model bert_classifier --pretrained RUN --max_length 128 --trained lora

A task inherits `Config`, takes `tokenizer_state` in its `load_data`, `model` and `prepare` in its `build_model`, and
`optimizer` in its `compile_model`. Deviations: gradual unfreezing computes the gradients of frozen blocks too, so that
it saves no time, and a block's moments are warm when its turn comes; a norm that `--clip_norm` cuts is of all of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epy

import pipelines
from pipelines import Builder, runs
from pipelines.config import Failure, TrainingConfig, UsageError, option

with epy.lazy_imports():
    import keras

    from models import checkpoints
    from models.checkpoints import transfer
    from pipelines import layer_rates, training
    from pipelines.transforms import text

# `model_type` of the checkpoints that a file of models can hold.
FAMILIES = {
    "models.bert": ("bert", "roberta", "distilbert"),
    "models.gpt": ("gpt2",),
    "models.llama": ("llama",),
    "models.t5": ("t5",),
    "models.xlnet": ("xlnet",),
}
HEAD = ("features", "logits")  # names of the layers of a head
ADAPTED = ("query", "value")  # names of the layers that get adapters
TRAINED = ("all", "head", "gradual", "lora")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """The flags of tasks that may start from a pretrained model."""

    pretrained: str | None = option(
        None,
        "start from the weights and the tokenizer of a published checkpoint (a folder in Hugging Face's format, or the "
        "id of a repository of its Hub) or of a finished run, as of pipelines.pretraining",
        metavar="PATH",
    )
    trained: str = option(
        "all",
        "weights that training changes; head: of the last layers alone; gradual: these first, then one block more from "
        "the top at a time; lora: these and low-rank adapters",
        choices=TRAINED,
    )
    unfreeze_every: int = option(1, "epochs until --trained gradual goes on to the next block")
    lora_rank: int = option(8, "rank of the adapters of --trained lora")
    lora_alpha: float = option(16.0, "adapters are multiplied by this over their rank")
    layer_decay: float = option(1.0, "learning rate of a block as a share of that of the block above it")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "unfreeze_every", "lora_rank")
        for name, most in (("lora_alpha", math.inf), ("layer_decay", 1)):
            if not 0 < getattr(self, name) <= most:
                raise UsageError(
                    f"Expected --{name} above 0{' and at most 1' * (most == 1)}. Received: {getattr(self, name)}"
                )
        if self.pretrained and (self.size or self.model_args):
            raise UsageError(
                "Expected --pretrained without --size and --model_args: the checkpoint says what the model is. "
                f"Received: --pretrained {self.pretrained} with one of them"
            )
        for name, default in (("trained", "all"), ("layer_decay", 1.0)):
            if not self.pretrained and getattr(self, name) != default:
                raise UsageError(
                    f"Expected --pretrained with --{name}: of new weights, all are to be trained. "
                    f"Received: --{name} {getattr(self, name)} without it"
                )


def is_run(source: str) -> bool:
    """Whether `--pretrained` names a run folder."""
    return (Path(source).expanduser() / "state.json").is_file()


def tokenizer_state(config: Any, models: Mapping[str, Builder]) -> dict[str, Any]:
    """The state of the pretrained model's tokenizer, for `spec.json` and `text.tokenizer`.

    Args:
        config: with `pretrained` and `model`.
        models: `MODELS` of the task.

    Raises:
        UsageError: no such checkpoint or run, one of another architecture, an unfinished run, or one without a
            tokenizer.
        Failure: it could not be fetched, or a file of the run is missing.
    """
    source, module = config.pretrained, models[config.model].module
    if module not in FAMILIES:
        known = [name for name, builder in models.items() if builder.module in FAMILIES]
        raise UsageError(f"Expected --model {', '.join(known)} with --pretrained. Received: {config.model}")
    if is_run(source):
        return tokenizer_of_run(Path(source).expanduser(), module, config.model)
    try:
        found = checkpoints.load_tokenizer(source)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except ConnectionError as error:
        raise Failure(str(error)) from error
    if found is None:
        run = Path(source).expanduser().resolve().parent
        hint = f" Its run has one: --pretrained {run}." if is_run(str(run)) else ""
        raise UsageError(f"Expected a checkpoint with its tokenizer's files.{hint} Received: {source}")
    if found.kind not in FAMILIES[module]:
        raise UsageError(
            f"Expected a checkpoint of {', '.join(FAMILIES[module])} for {config.model}. Received: {found.kind}"
        )
    return text.published(found)


def tokenizer_of_run(folder: Path, module: str, model: str) -> dict[str, Any]:
    """The state of the tokenizer of a finished run whose architecture is of the file `module`."""
    run = runs.load(folder, model=False)
    found = pipelines.get(run.task).MODELS[run.config.model].module
    if found != module or "tokenizer" not in run.spec:
        raise UsageError(
            f"Expected a run of {module.rpartition('.')[2]} with a tokenizer, for {model}. "
            f"Received: {folder}, a run of {run.task} with {run.config.model}"
        )
    if not (folder / "model.keras").is_file():
        raise Failure(f"Expected model.keras in {folder}. Received: none")
    return run.spec["tokenizer"]


def model(config: Any, *, head: str | None = None, num_classes: int | None = None, pairs: bool | None = False) -> Any:
    """The model that begins with pretrained weights; a line says where they come from and which ones are new.

    The head is the checkpoint's own where it has one of the same shape, and new otherwise.

    Args:
        config: with `pretrained`.
        head: of the builder, such as "classification"; None for the checkpoint's own.
        num_classes: of a classification.
        pairs: whether `segment_ids` are an input, of models that may have one.

    Raises:
        ValueError: the weights do not fit.
        Failure: the model of a run cannot be read.
    """
    if is_run(config.pretrained):
        source = runs.load(Path(config.pretrained).expanduser()).model
        made, report = transfer.transferred(
            source, head, num_classes=num_classes, pairs=pairs, name=str(config.pretrained)
        )
    else:
        made, _, report = checkpoints.from_pretrained(config.pretrained, head=head, num_classes=num_classes)
        if made.get_config().get("pairs", pairs) != pairs:
            same = transfer.with_head(made, pairs=pairs)
            same.set_weights(made.get_weights())
            made = same
    print(f"weights: {report}")
    return made


def prepare(model: Any, config: Any) -> None:
    """Leaves training the weights that `--trained` names, and makes adapters; before the model is compiled.

    Raises:
        UsageError: the model has no head, or no layers for adapters.

    Reference: Hu et al. 2022, "LoRA: low-rank adaptation of large language models", section 4: the kernels of queries
        and values, of which A is random and B is 0.
    """
    if config.trained in ("all", "gradual"):
        return
    head = {id(weight) for layer in model.layers if layer.name in HEAD for weight in layer.weights}
    if config.trained == "head" and not head:
        raise UsageError(f"Expected a model with a head of its own for --trained head. Received: {model.name}")
    for weight in model.trainable_weights:
        weight.trainable = id(weight) in head
    if config.trained == "lora":
        layers = [one for one in model._flatten_layers() if isinstance(one, keras.layers.Dense) and one.name in ADAPTED]
        if not layers:
            raise UsageError(f"Expected a model with attention for --trained lora. Received: {model.name}")
        for layer in layers:
            layer.enable_lora(config.lora_rank, lora_alpha=config.lora_alpha)


def optimizer(config: Any, model: Any, examples: int) -> Any:
    """`training.optimizer` with the rates of `--layer_decay` and `--trained gradual`.

    Args:
        config: of the run.
        model: after `prepare`.
        examples: size of the training split.

    Raises:
        UsageError: gradual unfreezing by an optimizer that divides by its rate.
    """
    steps, gradual = training.total_steps(config, examples), config.trained == "gradual"
    if not gradual and config.layer_decay == 1:
        return training.optimizer(config, steps)
    if gradual and config.optimizer == "ftrl":
        raise UsageError("Expected --trained gradual with an optimizer that may have a rate of 0. Received: ftrl")
    every = gradual * config.unfreeze_every * training.steps_per_epoch(config, examples)
    heights = layer_rates.levels(model, HEAD)
    return training.optimizer(config, steps, layer_rates.decayed(heights, config.layer_decay, every))


def described(model: Any, config: Any) -> str:
    """What is trained, in a line."""
    counts = training.parameters(model)
    told = f"{counts['parameters']:,} parameters"
    if config.trained != "gradual":
        return told + f", of which {counts['trained_parameters']:,} are trained" * (config.trained != "all")
    last = 1 + config.unfreeze_every * max(layer_rates.levels(model, HEAD).values())
    never = f", which this run of {config.epochs} does not reach" * (config.epochs < last)
    return f"{told}; the head is trained from the first epoch on, and the lowest layers from epoch {last} on{never}"


def check_length(model: Any, max_length: int) -> None:
    """Refuses texts of more tokens than a model has learned positions.

    Raises:
        UsageError: there are fewer.
    """
    given = getattr(model, "arguments", {})
    places = given.get("max_length", 0) - given.get("first_position", 0)
    if given.get("positions") == "learned" and max_length > places:
        raise UsageError(
            f"Expected --max_length of at most {places}, the positions of the model. Received: {max_length}"
        )
