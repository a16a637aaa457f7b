"""Rows of tokens for pretraining, and what of them the model has to predict, by objective.

`training_rows` and `evaluation_rows` read a token store, packed or document by document or as pairs of passages;
`Examples` makes of every batch of rows what a model is trained on. All of it is decided by the seed and the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines.config import Failure
from pipelines.datasets import texts
from pipelines.datasets.stream import ENDLESS, InMemory
from pipelines.transforms import corruption, objectives
from pipelines.transforms.sentence_pairs import sentence_pairs
from pipelines.transforms.text import END, PAD, SPECIAL, START

MASK, SENTINELS = "[MASK]", 100
MASKED_SHARE = 0.15  # of the tokens that BERT and T5 are asked for
SPANS_END = 1  # ends a source and a target of T5, whose ids are its own: it is START elsewhere
EVALUATION = 2**31 - 1  # the seed of masks and pairs in evaluation, whatever the seed of the run
EVALUATED = 64  # rows in a batch of evaluation


def names(objective: str) -> list[str]:
    """The special tokens that an objective needs; the first sentinel of T5 has the last id."""
    if objective == "spans":
        return [f"<extra_id_{number}>" for number in reversed(range(SENTINELS))]
    return [] if objective == "causal" else [MASK]


def room(spec: Mapping[str, Any]) -> int:
    """Tokens of the corpus in a whole row."""
    if spec["objective"] == "spans":
        return corruption.original_length(spec["max_length"], MASKED_SHARE, num_sentinels=SENTINELS)
    return spec["max_length"] + spec["memory"] - (0 if spec["objective"] == "causal" else 2)


def rows_of(store: Any, spec: Mapping[str, Any]) -> int:
    """How many rows a store has."""
    if spec["packing"] or spec["sentences"] != "none":
        return max(1, store.num_tokens // room(spec))
    return len(pieces(store, room(spec))[0])


def pieces(store: Any, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents in pieces of at most so many tokens: where they begin in the store, and their lengths.

    Raises:
        Failure: there is no token.
    """
    sizes = store.lengths(np.arange(store.num_documents))
    counts = -(-sizes // length)  # of pieces, by document
    first = np.cumsum(counts) - counts
    inside = (np.arange(counts.sum()) - np.repeat(first, counts)) * length
    lengths = np.minimum(length, np.repeat(sizes, counts) - inside)
    if not len(lengths):
        raise Failure("Expected documents with tokens. Received: empty ones")
    return np.repeat(np.asarray(store.offsets[:-1]), counts) + inside, lengths


def read(store: Any, starts: Any, lengths: Any, width: int | None) -> dict[str, tf.Tensor]:
    """Stretches of a store as `token_ids` (b, w), padded, and `lengths` (b,); `width` is w, or None for the longest."""

    def rows(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        longest = int(lengths.max()) if width is None else width
        found = store.read(starts, longest, PAD)
        return np.where(np.arange(longest) < lengths[:, None], found, PAD).astype(np.int32)

    found = tf.numpy_function(rows, [starts, lengths], tf.int32, stateful=False)
    return {"token_ids": tf.ensure_shape(found, [None, width]), "lengths": tf.cast(lengths, tf.int32)}


def paired(store: Any, spec: Mapping[str, Any], rows: int, seed: int, step: Any) -> dict[str, tf.Tensor]:
    """Pairs of passages with their marks: `token_ids`, `segment_ids` (b, t) and `labels` (b,)."""

    def draw(step: np.ndarray) -> tuple[np.ndarray, ...]:
        found = sentence_pairs(
            store.offsets,
            lambda place, count: store.read([place], count)[0],
            kind=spec["sentences"],
            rows=rows,
            length=spec["max_length"],
            seed=(seed, int(step)),
        )
        return found.token_ids, found.segment_ids, found.labels

    ids, segments, labels = tf.numpy_function(draw, [step], [tf.int32] * 3, stateful=False)
    shape = (rows, spec["max_length"])
    return {
        "token_ids": tf.ensure_shape(ids, shape),
        "segment_ids": tf.ensure_shape(segments, shape),
        "labels": tf.ensure_shape(labels, (rows,)),
    }


def training_rows(store: Any, spec: Mapping[str, Any], batch_size: int, seed: int, start_step: int) -> tf.data.Dataset:
    """An endless stream of (step, rows) from a step on; rows as `read` or `paired` give them."""
    length = room(spec)
    if spec["sentences"] != "none":
        steps = tf.data.Dataset.range(start_step, ENDLESS)
        return steps.map(
            lambda step: (step, paired(store, spec, batch_size, seed, step)), tf.data.AUTOTUNE, deterministic=True
        )
    if not spec["packing"]:
        starts, lengths = pieces(store, length)
        source = InMemory({"start": tf.constant(starts), "length": tf.constant(lengths)}, len(starts))
        return texts.bucketed(
            source,
            lengths.tolist(),
            batch_size=batch_size,
            seed=seed,
            start_step=start_step,
            map_fn=lambda step, batch: (step, read(store, batch["start"], batch["length"], None)),
        )
    windows = store.windows(batch_size, length, seed, start_step)
    return windows.map(
        lambda step, ids: (step, {"token_ids": ids, "lengths": tf.fill([tf.shape(ids)[0]], length)}), tf.data.AUTOTUNE
    )


def evaluation_rows(store: Any, spec: Mapping[str, Any], most: int) -> tf.data.Dataset:
    """(number of the batch, rows) of at most `most` rows, evenly spaced over a split; the same in every run."""
    length = room(spec)
    count = min(most, rows_of(store, spec))
    numbers = tf.data.Dataset.range(-(-count // EVALUATED))
    if spec["sentences"] != "none":
        return numbers.map(lambda number: (number, paired(store, spec, min(count, EVALUATED), EVALUATION, number)))
    if spec["packing"]:
        starts = np.arange(rows_of(store, spec)) * length
        lengths = np.minimum(length, store.num_tokens - starts)
    else:
        starts, lengths = pieces(store, length)
    chosen = np.arange(count) * len(starts) // count
    parts = tf.data.Dataset.from_tensor_slices((starts[chosen], lengths[chosen])).batch(EVALUATED)
    width = length if spec["packing"] else None
    return tf.data.Dataset.zip(
        numbers, parts.map(lambda starts, lengths: read(store, starts, lengths, width)).prefetch(2)
    )


def framed(token_ids: Any, lengths: Any, multiple: int = 1) -> tf.Tensor:
    """Rows (b, w) between their marks: `START` text `END` and padding, (b, t)."""
    width = tf.shape(token_ids)[1]
    more = -(width + 2) % multiple
    ids = tf.pad(token_ids, [[0, 0], [1, 1 + more]], constant_values=PAD)  # (b, t)
    places = tf.range(width + 2 + more)[None]
    ids = tf.where(places == 0, START, tf.where(places == lengths[:, None] + 1, END, ids))
    known = token_ids.shape[1]
    return tf.ensure_shape(ids, [None, None if known is None else known + 2 + -(known + 2) % multiple])


class Examples:
    """What a model is trained on: (step, rows) to inputs, labels and weights.

    Args:
        spec: of the data: `objective`, `max_length`, `memory`, `packing`, `sentences`, `segments`, `whole_word`
            and `tokenizer`.
        seed: of everything that is drawn.
    """

    def __init__(self, spec: Mapping[str, Any], seed: int):
        self.spec, self.seed = spec, seed
        state = spec["tokenizer"]
        self.vocab_size: int = state["vocab_size"]
        ordinary = self.vocab_size - len(state.get("extra", ()))
        self.special = (*range(len(SPECIAL)), *range(ordinary, self.vocab_size))
        self.mask_id = ordinary  # where there is one, it is the first
        self.starts = objectives.WordStarts(state) if spec["whole_word"] else None
        self.sizes = corruption.corrupted_lengths(room(spec), MASKED_SHARE, num_sentinels=SENTINELS)  # of T5's sides
        self.make = getattr(self, spec["objective"])

    def __call__(self, step: Any, rows: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        seed = tf.stack([tf.constant(self.seed, tf.int64), tf.cast(step, tf.int64)])
        return self.make(tf.cast(seed, tf.int32), rows)

    def framed(self, rows: Mapping[str, Any]) -> tf.Tensor:
        """Rows with their marks, (b, t)."""
        if "segment_ids" in rows:
            return rows["token_ids"]
        return framed(rows["token_ids"], rows["lengths"], 1 if self.spec["packing"] else 8)

    def masked(self, seed: Any, rows: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """BERT: tokens with masks, segments and the places (b, k) that are asked for; the true tokens there."""
        ids = self.framed(rows)
        found = corruption.masked_language_model(
            ids,
            seed,
            vocab_size=self.vocab_size,
            mask_id=self.mask_id,
            special_ids=self.special,
            share=MASKED_SHARE,
            starts_word=None if self.starts is None else self.starts(ids),
        )
        width = ids.shape[1] or tf.shape(ids)[1]
        count = tf.maximum(1, tf.cast(tf.round(tf.cast(width, tf.float32) * MASKED_SHARE), tf.int32))
        places, labels, weights = objectives.gathered(found, count)
        inputs = {"token_ids": found.token_ids, "places": places}
        if self.spec["segments"]:
            inputs["segment_ids"] = rows.get("segment_ids", tf.zeros_like(ids))
        if "labels" not in rows:
            return inputs, labels, weights
        ones = tf.ones_like(rows["labels"], tf.float32)
        return (
            inputs,
            {"masked_lm": labels, "next_sentence": rows["labels"]},
            {"masked_lm": weights, "next_sentence": ones},
        )

    def causal(self, seed: Any, rows: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """GPT and LLaMA: `START` and the tokens but the last; the token after each."""
        after = rows["token_ids"]  # (b, t)
        before = tf.pad(after, [[0, 0], [1, 0]], constant_values=START)[:, :-1]
        return before, after, tf.sequence_mask(rows["lengths"], tf.shape(after)[1], tf.float32)

    def permutation(self, seed: Any, rows: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """XLNet: tokens, what each place may see, and which places are asked for, (b, k, t); the true tokens there."""
        ids = self.framed(rows)
        memory, length = self.spec["memory"], self.spec["max_length"]
        if ids.shape[1] is None:  # as long as the numbers of targets ask for
            ids = tf.pad(ids, [[0, 0], [0, memory + length - tf.shape(ids)[1]]], constant_values=PAD)
        ids = tf.ensure_shape(ids, [None, memory + length])
        before, ids = ids[:, :memory], ids[:, memory:]
        seeds = tf.random.experimental.stateless_split(seed, 2)
        targets = objectives.span_targets(ids, seeds[0], special_ids=self.special)
        known = objectives.permutation(targets, seeds[1], num_targets=max(1, length // objectives.PREDICTED))
        inputs = {
            "token_ids": ids,
            "segment_ids": tf.zeros_like(ids),
            "permutation_mask": known.permutation_mask,
            "target_mapping": known.target_mapping,
        }
        if memory:
            inputs["memory_ids"] = before
        return inputs, tf.gather(ids, known.places, batch_dims=1), known.weights

    def spans(self, seed: Any, rows: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """T5: the source with sentinels, and the target so far; the token after it."""
        seeds = tf.random.experimental.stateless_split(seed, tf.shape(rows["token_ids"])[0])

        def one(row: Any) -> tuple[tf.Tensor, tf.Tensor]:
            ids, length, seed = row
            sides = corruption.span_corruption(
                ids[:length],
                seed,
                sentinel=self.vocab_size - 1,
                end=SPANS_END,
                noise_density=MASKED_SHARE,
                num_sentinels=SENTINELS,
            )
            return tuple(
                tf.ensure_shape(tf.pad(side, [[0, size - tf.size(side)]]), [size])
                for side, size in zip(sides, self.sizes)
            )

        signature = tuple(tf.TensorSpec([size], tf.int32) for size in self.sizes)
        source, after = tf.map_fn(
            one, (rows["token_ids"], rows["lengths"], seeds), fn_output_signature=signature, parallel_iterations=16
        )
        if not self.spec["packing"]:
            source, after = (side[:, : longest(side)] for side in (source, after))
        before = tf.pad(after, [[0, 0], [1, 0]], constant_values=PAD)[:, :-1]  # an answer starts with padding
        return {"source": source, "target": before}, after, tf.cast(after != PAD, tf.float32)


def longest(ids: tf.Tensor) -> tf.Tensor:
    """Tokens of the longest row, up to a multiple of 8."""
    count = tf.reduce_max(tf.reduce_sum(tf.cast(ids != PAD, tf.int32), -1))
    return tf.minimum((count + 7) // 8 * 8, tf.shape(ids)[1])
