"""The weights of one of our models in another one, which has the same body and another head."""

from typing import NamedTuple

import keras

from models.checkpoints.pretrained import Report


class Transferred(NamedTuple):
    """A model, and what of its weights is new."""

    model: keras.Model
    report: Report


def with_head(
    model: keras.Model, head: str | None = None, *, num_classes: int | None = None, pairs: bool | None = None
) -> keras.Model:
    """A new model of the same sizes with another head; its weights are new.

    Args:
        model: of a builder of bert, gpt, t5 or xlnet.
        head: its head; None for the model's own.
        num_classes: of a classification; None for the model's own.
        pairs: whether `segment_ids` are an input, of models that may have one; None for the model's own.

    Raises:
        ValueError: the model's builder has no such head.
    """
    given = model.get_config()
    for name, wanted in (("head", head), ("num_classes", num_classes), ("pairs", pairs)):
        if wanted is None:
            continue
        if name in given:
            given[name] = wanted
        elif name == "head":
            raise ValueError(f"Expected a model that has heads. Received: {model.name}, and head {head!r}")
    return type(model).from_config(given)


def transferred(
    source: keras.Model,
    head: str | None = None,
    *,
    num_classes: int | None = None,
    pairs: bool | None = None,
    name: str = "",
) -> Transferred:
    """The weights of a model under another head: those of equal paths and shapes are taken over.

    Args:
        source: of a builder of bert, gpt, t5 or xlnet.
        head, num_classes, pairs: of `with_head`.
        name: where the weights come from, for the report.

    Raises:
        ValueError: as `with_head`, or weights of the body differ.
    """
    model = with_head(source, head, num_classes=num_classes, pairs=pairs)
    known = {weight.path: weight for weight in source.weights}
    fresh = []
    for weight in model.weights:
        found = known.get(weight.path)
        if found is not None and tuple(found.shape) == tuple(weight.shape):
            weight.assign(found)
            del known[weight.path]
        else:
            fresh.append(weight.path)
    body = {layer.name for layer in source.layers} & {path.partition("/")[0] for path in fresh}
    body -= {"features", "logits"}
    if body:
        raise ValueError(f"Expected equal weights in {', '.join(sorted(body))}. Received: other shapes in {name}")
    return Transferred(model, Report(name, head or str(getattr(source, "head", "model")), tuple(fresh), tuple(known)))
