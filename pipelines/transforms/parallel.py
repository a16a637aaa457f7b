"""Parallel text as token ids: tokenizers learned from pairs, splits held in memory, and what a decoder is taught."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines.datasets.texts import InMemory
from pipelines.transforms.text import END, PAD, START, padded, sequences, tokenizer, train_tokenizer

LEARN_FROM = 100_000  # pairs at most that tokenizers learn from; the sources of pairs shuffle before


def learned(train: tf.data.Dataset, kind: str, vocab_size: int, *, shared: bool = False) -> list[dict[str, Any]]:
    """The states of two tokenizers, or of the one that both languages share.

    Args:
        train: {"source", "target"}, scalar strings.
        kind: of `transforms.text.KINDS`.
        vocab_size: most ids of each.
        shared: whether one tokenizer learns from both languages.
    """

    def strings(*names: str) -> Iterator[str]:
        for batch in train.take(LEARN_FROM).batch(1024).as_numpy_iterator():
            for name in names:
                yield from (one.decode("utf-8", "replace") for one in batch[name])

    together = [("source", "target")] if shared else [("source",), ("target",)]
    options = {"form": "none", "lower": False}  # a translation is written as the training targets are
    return [train_tokenizer(kind, strings(*names), vocab_size, **options) for names in together]


def tokenizers(states: Sequence[dict[str, Any]]) -> tuple[Any, Any]:
    """The tokenizers of source and target; with a shared vocabulary the same one twice."""
    found = [tokenizer(state) for state in states]
    return found[0], found[-1]


def prefixed(strings: Any, tokenizer: Any, prefix: str) -> tf.RaggedTensor:
    """Token ids (b, tokens) of strings (b,) with a prefix before each that is not empty; without marks."""
    strings = tf.convert_to_tensor(strings, tf.string)
    return tokenizer.encode(tf.where(strings == "", "", prefix + strings) if prefix else strings)


def encoded(part: tf.data.Dataset, states: Sequence[dict[str, Any]], prefix: str = "") -> InMemory:
    """A split in memory: `source` and `target` as token ids, ragged and without marks, and all strings.

    Args:
        part: {"source", "target", "task", "group"}, scalar strings.
        states: of the tokenizers.
        prefix: put before each source, but not into `source_text`.
    """
    source, target = tokenizers(states)

    def columns(batch: dict[str, Any]) -> dict[str, Any]:
        ids = {"source": prefixed(batch["source"], source, prefix), "target": target.encode(batch["target"])}
        texts = {f"{side}_text": batch[side] for side in ("source", "target")}
        return ids | texts | {name: batch[name] for name in ("task", "group")}

    with tf.device("CPU"):
        batches = list(part.batch(1024).map(columns))
        found = {name: tf.concat([batch[name] for batch in batches], 0) for name in batches[0]}
        return InMemory(found, int(found["group"].shape[0]))


def token_counts(part: InMemory) -> tf.Tensor:
    """Tokens of the longer side of each pair, (n,)."""
    return tf.maximum(part.examples["source"].row_lengths(), part.examples["target"].row_lengths())


def marks(spec: dict[str, Any]) -> tuple[int, int]:
    """The ids that start and end an answer; `spec.json` names them where they are those of a family."""
    start, end = spec.get("marks", (START, END))
    return start, end


def teacher_forcing(batch: dict[str, Any], spec: dict[str, Any], multiple: int = 1) -> tuple[Any, Any, Any]:
    """What the model is trained on: the source and the target so far, the token that follows, 0 for padding.

    Args:
        batch: ragged `source` and `target`, without marks.
        spec: of the data.
        multiple: of which the padded lengths are multiples.

    Returns:
        `{"source": (b, s), "target": (b, t)}`, token ids (b, t), weights (b, t).
    """
    own = marks(spec)
    source = padded(sequences(batch["source"], spec["max_source"], marks=own), multiple)  # (b, s)
    before = sequences(batch["target"], spec["max_target"], start=True, end=False, marks=own)
    after = padded(sequences(batch["target"], spec["max_target"], marks=own), multiple)  # (b, t)
    inputs = {"source": source, "target": padded(before, multiple)}
    return inputs, after, tf.cast(after != PAD, tf.float32)


def labels(ids: np.ndarray, tokenizer: Any, end: int = END) -> list[str]:
    """A label for each token id (t,): what it stands for, `␣` for white space, `end`."""
    names = [one.decode("utf-8", "replace") for one in tokenizer.decode(tf.reshape(ids, [-1, 1])).numpy()]
    special = {PAD: "", end: "end"}
    return [special.get(int(i), "".join("␣" if c.isspace() else c for c in name) or "?") for i, name in zip(ids, names)]
