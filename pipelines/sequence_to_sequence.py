"""What translation and text_to_text share: models that read one text and write another, taught, searched and served."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from etils import epy

from pipelines import Builder, Data, finetuning
from pipelines.config import CrossEntropyConfig, UsageError, option

with epy.lazy_imports():
    import keras
    import numpy as np
    import tensorflow as tf

    from models.layers import decoding
    from pipelines import training
    from pipelines.datasets import texts
    from pipelines.transforms import parallel
    from pipelines.transforms import text as tokens

KINDS = ("word", "character", "wordpiece", "bpe", "sentencepiece")
MONITOR = "val_token_accuracy"  # of an epoch, since generating at each would take longer than training


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceConfig(finetuning.Config, CrossEntropyConfig):
    """The flags of tasks that read one text and write another."""

    tokenizer: str = option("character", "what a token is", choices=KINDS)
    vocab_size: int = option(8000, "most different tokens of a vocabulary")
    beam_width: int = option(4, "answers that the search keeps, and that are served; 1: greedy search")
    length_penalty: float = option(0.6, "above 0 it favours long answers (alpha of Wu et al. 2016, eq. 14)")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "vocab_size", "beam_width")
        self.at_least(0, "length_penalty")


def preprocess(strings: Any, tokenizer: Any, spec: dict[str, Any]) -> Any:
    """Texts as the model takes them, in training and in serving.

    Args:
        strings: (b,), sources.
        tokenizer: of the sources.
        spec: of the data: `max_source`, `prefix` to put before each text, `marks` where they are those of a family.

    Returns:
        Token ids, int32 (b, s): each text and its end, cut to `max_source` tokens, zeros after it.
    """
    return as_read(parallel.prefixed(strings, tokenizer, spec.get("prefix", "")), spec)


def as_read(ids: Any, spec: dict[str, Any]) -> Any:
    """Ragged token ids without marks as `preprocess` gives them."""
    return tokens.padded(tokens.sequences(ids, spec["max_source"], marks=parallel.marks(spec)))


def vocabularies(builder: Builder) -> int:
    """How many vocabularies an architecture has: one for both sides, or one for each."""
    parameters = inspect.signature(builder.function).parameters.values()
    return sum(one.kind == one.POSITIONAL_OR_KEYWORD for one in parameters)


def tokenizing(models: Mapping[str, Builder], config: Any, train: Any, *, shared: bool) -> dict[str, Any]:
    """`tokenizers` and `marks` of the spec: those of `--pretrained`, or what is learned from the training pairs.

    Args:
        models: of the task; an architecture may have marks of its own.
        config: of the run.
        train: {"source", "target"}, scalar strings.
        shared: whether both sides have one vocabulary, also where the architecture could have two.
    """
    builder = models[config.model]
    special = getattr(importlib.import_module(builder.module), "SPECIAL", decoding.SPECIAL)
    if config.pretrained:
        states = [finetuning.tokenizer_state(config, models)]
    else:
        shared = shared or vocabularies(builder) == 1
        states = parallel.learned(train, config.tokenizer, config.vocab_size, shared=shared)
    return {"tokenizers": states, "marks": [special.start, special.end]}


def build_model(builder: Builder, config: Any, spec: dict[str, Any], given: dict[str, Any]) -> Any:
    """The compiled model with these keyword arguments of its builder, the same for the same seed."""
    sizes = [state["vocab_size"] for state in spec["tokenizers"]]
    keras.utils.set_random_seed(config.seed)
    with training.dtypes(config), training.replicas(config):
        try:
            if config.pretrained:
                model = finetuning.model(config, head="lm", pairs=None)
            else:
                model = builder(*(sizes[0], sizes[-1])[: vocabularies(builder)], **given)
            if getattr(config, "coverage_penalty", 0.0):
                searching(model, config, spec | {"max_target": 2})  # which needs a model with attention
        except (ValueError, TypeError) as error:
            raise UsageError(str(error)) from error
        finetuning.prepare(model, config)
        compile_model(model, config, spec)
    return model


def compile_model(model: Any, config: Any, spec: dict[str, Any]) -> None:
    from models.losses import TokenCrossentropy

    examples = spec["counts"]["train"]
    model.compile(
        optimizer=finetuning.optimizer(config, model, examples),
        loss=TokenCrossentropy(config.label_smoothing),
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="token_accuracy")],
        jit_compile=config.jit,
        steps_per_execution=training.steps_per_execution(config, examples),
    )


def training_batches(data: Data, config: Any, start_step: int = 0) -> Any:
    """Endless training batches of pairs of similar length from a global step on, as `teacher_forcing` makes them."""
    ids = {name: data.train.examples[name] for name in ("source", "target")}
    multiple = 8 if config.jit else 1  # XLA compiles for every shape
    return texts.bucketed(
        texts.InMemory(ids, data.train.count),
        parallel.token_counts(data.train).numpy(),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        map_fn=lambda step, batch: parallel.teacher_forcing(batch, data.spec, multiple),
    )


def evaluation_batches(part: Any, spec: dict[str, Any], batch_size: int = 128) -> Any:
    """Batches of a split in its own order."""
    return texts.in_order(part, batch_size=batch_size, map_fn=lambda batch: parallel.teacher_forcing(batch, spec))


def search(model: Any, source: Any, config: Any, spec: dict[str, Any]) -> Any:
    """The best answers to token ids (b, s), as `models.layers.decoding.Beams`."""
    options = {"beam_width": config.beam_width, "length_penalty": config.length_penalty}
    known = inspect.signature(model.generate).parameters
    if "coverage_penalty" in known:
        options["coverage_penalty"] = getattr(config, "coverage_penalty", 0.0)
    if "normalization" in known:  # where it could search by other rules, too
        options |= {"normalization": "wu", "early_stopping": True}
    return model.generate(source, max_length=spec["max_target"], **options)


def searching(model: Any, config: Any, spec: dict[str, Any]) -> Any:
    """`search` without attention as a compiled function of token ids (b, s) of any size; it is traced here."""
    find = tf.function(lambda ids: search(model, ids, config, spec)._replace(attention=None), reduce_retracing=True)
    find.get_concrete_function(tf.TensorSpec([None, None], tf.int32))
    return find


def serving_fn(
    model: Any, config: Any, spec: dict[str, Any], answer: str, tokenizers: tuple[Any, Any] | None = None
) -> tuple[Any, dict[str, Any]]:
    """The served function: texts in; the answer, its score and the best `--beam_width` of them out.

    An empty text has an empty answer of score 0. Of a text above `max_source` tokens the beginning is read, and
    `truncated` says so. A place that the search left empty has the score -1e9.

    Args:
        model: trained.
        config: of the run.
        spec: of the data.
        answer: what an answer is called among the outputs.
        tokenizers: of source and target, where they are there already.
    """
    source, target = tokenizers or parallel.tokenizers(spec["tokenizers"])

    def serve(text):
        ids = parallel.prefixed(text, source, spec.get("prefix", ""))
        found = search(model, as_read(ids, spec), config, spec)
        flat = tf.reshape(found.token_ids, [-1, spec["max_target"]])  # (b * k, t)
        empty = (ids.row_lengths() == 0)[:, None]  # (b, 1)
        answers = tf.reshape(target.decode(flat), tf.shape(found.scores))  # (b, k)
        answers = tf.where(empty, "", answers)
        scores = tf.where(empty, 0.0, found.scores)
        return {
            answer: answers[:, 0],
            "score": scores[:, 0],
            f"{answer}s": answers,
            "scores": scores,
            "truncated": ids.row_lengths() >= spec["max_source"],
        }

    serve.resources = [source, target]  # type: ignore[attr-defined]
    return serve, {"text": tf.TensorSpec([None], tf.string, name="text")}


def more_signatures(model: Any, config: Any, spec: dict[str, Any], answer: str) -> dict[str, tuple[Any, dict]]:
    """Other doors to the served model.

    `from_token_ids`: token ids of sources, each with its end and padded by 0, to those of the answers and scores.
    `score`: a text and an answer to it to the logarithm of its probability, and to how many tokens it has.
    """
    source, target = parallel.tokenizers(spec["tokenizers"])

    def from_token_ids(token_ids):
        found = search(model, token_ids, config, spec)
        return {f"{answer}s": found.token_ids, "scores": found.scores}

    def score(text, written):
        batch = {"source": parallel.prefixed(text, source, spec.get("prefix", "")), "target": target.encode(written)}
        inputs, after, weights = parallel.teacher_forcing(batch, spec)
        logs = tf.nn.log_softmax(tf.cast(model(inputs, training=False), tf.float32))  # (b, t, v)
        logs = tf.gather(logs, after, batch_dims=2) * weights  # (b, t)
        return {"log_probability": tf.reduce_sum(logs, -1), "tokens": tf.reduce_sum(weights, -1)}

    score.resources = [source, target]  # type: ignore[attr-defined]
    ids = tf.TensorSpec([None, None], tf.int32, name="token_ids")
    given = {name: tf.TensorSpec([None], tf.string, name=name) for name in ("text", answer)}
    return {"from_token_ids": (from_token_ids, {"token_ids": ids}), "score": (score, given)}


def compiled(served: tuple[Any, dict[str, Any]]) -> Any:
    """A served function with its input signature, compiled."""
    serve, signature = served
    return tf.function(serve, input_signature=list(signature.values()))


def predict(serve: Any, strings: Any, batch_size: int = 128) -> dict[str, Any]:
    """What a compiled served function answers to texts (n,), as arrays; texts of similar length share a batch."""
    order = np.argsort([len(one) for one in strings], kind="stable")
    parts = [serve(tf.gather(strings, order[i : i + batch_size])) for i in range(0, len(order), batch_size)]
    back = np.argsort(order, kind="stable")
    return {name: np.concatenate([part[name].numpy() for part in parts])[back] for name in parts[0]}


def served_checks(model: Any, config: Any, spec: dict[str, Any], test: Any, answer: str, serve: Any) -> Any:
    """What clients would send of raw pairs of the test split, and what Keras answers by the road of training.

    Args:
        model: trained.
        config: of the run.
        spec: of the data.
        test: {"source", "target", "task", "group"}, scalar strings.
        answer: what an answer is called among the outputs.
        serve: the served function, compiled.

    Yields, batch by batch: {signature: ({input: array}, {output: array})}.
    """
    part = parallel.encoded(test, spec["tokenizers"], spec.get("prefix", ""))
    strings = part.examples["source_text"].numpy()
    found = predict(serve, strings)
    ids = as_read(part.examples["source"], spec).numpy()  # (n, s), of one width, which ONNX takes from here
    find = searching(model, config, spec)
    for start in range(0, part.count, 128):
        here = slice(start, start + 128)
        beams = find(tf.constant(ids[here]))
        inputs, after, weights = parallel.teacher_forcing(
            {name: part.examples[name][here] for name in ("source", "target")}, spec
        )
        logs = keras.ops.log_softmax(model.predict_on_batch(inputs), axis=-1)  # (b, t, v)
        logs = np.take_along_axis(np.asarray(logs), after.numpy()[..., None], -1)[..., 0] * weights.numpy()  # (b, t)
        given = {"text": strings[here], answer: part.examples["target_text"][here].numpy()}
        yield {
            "serving_default": ({"text": strings[here]}, {name: values[here] for name, values in found.items()}),
            "from_token_ids": (
                {"token_ids": ids[here]},
                {f"{answer}s": beams.token_ids.numpy(), "scores": beams.scores.numpy()},
            ),
            "score": (given, {"log_probability": logs.sum(-1), "tokens": weights.numpy().sum(-1)}),
        }
