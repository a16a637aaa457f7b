"""Fine-tuning of published checkpoints: their weights and tokenizer, a new head, and what of it all is trained."""

from __future__ import annotations

from typing import Any

from models.checkpoints import from_pretrained, load_tokenizer
from pipelines.config import Failure, UsageError

FAMILIES = {"bert_classifier": ("bert", "roberta", "distilbert")}  # of an architecture: `model_type` of checkpoints
HEAD = ("features", "logits")  # names of the layers of a head


def tokenizer(source: str, model: str) -> Any:
    """The tokenizer of a checkpoint for an architecture.

    Args:
        source: a folder in Hugging Face's format, or the id of a repository of its Hub.
        model: the architecture that the checkpoint has to be of.

    Raises:
        UsageError: no such checkpoint, one of another architecture, or one without a tokenizer.
        Failure: it could not be fetched.
    """
    if model not in FAMILIES:
        raise UsageError(f"Expected --model {', '.join(FAMILIES)} with --pretrained. Received: {model}")
    try:
        found = load_tokenizer(source)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except ConnectionError as error:
        raise Failure(str(error)) from error
    if found is None:
        raise UsageError(f"Expected a checkpoint with its tokenizer's files. Received: {source}")
    if found.kind not in FAMILIES[model]:
        raise UsageError(f"Expected a checkpoint of {', '.join(FAMILIES[model])} for {model}. Received: {found.kind}")
    return found


def classifier(source: str, num_classes: int) -> Any:
    """The classifier of single texts that begins with the weights of a checkpoint.

    The head is the checkpoint's own where it has one for as many classes, and new otherwise; a line says which.
    """
    found = from_pretrained(source, head="classification", num_classes=num_classes)
    print(f"weights: {found.report}")
    single = type(found.model).from_config(found.model.get_config() | {"pairs": False})
    single.set_weights(found.model.get_weights())
    return single


def freeze(model: Any, trained: str) -> None:
    """Leaves training the weights that `--trained` names."""
    for layer in model.layers:
        layer.trainable = trained == "all" or layer.name in HEAD


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
