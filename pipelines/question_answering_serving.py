"""What a model answers to questions about passages: windows to named answers, in evaluation and in the served graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines.transforms import answers, spans, text

ROWS = 64  # windows that the model reads at a time


def inputs_of(token_ids: Any, segment_ids: Any, spec: dict[str, Any]) -> Any:
    """What the model takes."""
    return {"token_ids": token_ids, "segment_ids": segment_ids} if spec["segments"] else token_ids


def answered(
    model: Any, words: spans.Words, pairs: answers.Windows, context: Any, pad_id: int, config: Any, spec: dict[str, Any]
) -> dict[str, Any]:
    """The best answers to questions about passages, and what decides whether there is one.

    Args:
        model: the trained model.
        words: of the b passages.
        pairs: the windows of the b questions.
        context: the passages as they were sent, (b,).
        pad_id: of padding.
        config: the run's configuration: `max_answer_length`, `n_best`, `unanswerable`.
        spec: of the data.

    Returns:
        `answers`, `scores` (their probabilities), `starts` and `ends` (code points of the passage), all (b, k), the
        best first; `no_answer_probability` (b,); `margin` (b,), how much the best score exceeds that of no answer.
    """

    def read(token_ids, segment_ids):
        return model(inputs_of(token_ids, segment_ids, spec), training=False)

    rows = (text.padded(pairs.token_ids, pad_id=pad_id), text.padded(pairs.segment_ids, pad_id=0))
    logits = answers.in_parts(read, rows, ROWS)  # (r, t, 2)
    begins, ends = (pairs.first & pairs.central).to_tensor(False), pairs.last.to_tensor(False)  # (r, t)
    best = answers.best_spans(logits, begins, ends, max_answer=config.max_answer_length, n_best=config.n_best)
    found = answers.over_windows(best, pairs)
    scores, nothing = answers.probabilities(found, unanswerable=config.unanswerable)
    starts, stops = answers.span_of_words(words, found.starts, found.ends)
    return {
        "answers": spans.substring(context, starts, stops),
        "scores": scores,
        "starts": starts,
        "ends": stops,
        "no_answer_probability": nothing,
        "margin": found.scores[:, 0] - found.null,
    }


def decided(found: dict[str, Any], config: Any) -> dict[str, Any]:
    """`answered` with the one answer of each question, which is "" where there is none.

    Reference: Devlin et al. 2019, section 4.3: there is one where its score is above that of none plus a threshold.
    """
    silent = found["scores"][:, 0] == 0
    if config.unanswerable:
        silent |= found["margin"] <= (config.no_answer_threshold or 0.0)
    best = {name: found[f"{name}s"][:, 0] for name in ("answer", "start", "end")}
    return {
        "answer": tf.where(silent, "", best["answer"]),
        "score": tf.where(silent, found["no_answer_probability"], found["scores"][:, 0]),
        "start": tf.where(silent, 0, best["start"]),
        "end": tf.where(silent, 0, best["end"]),
        **{name: found[name] for name in ("answers", "scores", "no_answer_probability")},
    }


def of_arrays(model: Any, config: Any, spec: dict[str, Any]) -> tuple[Callable, dict[str, Any]]:
    """`from_token_ids`: a function of windows as arrays, int32 (b, t), and its signature."""

    def best(token_ids, segment_ids, context_mask):
        logits = model(inputs_of(token_ids, segment_ids, spec), training=False)
        allowed = context_mask > 0
        found = answers.best_spans(logits, allowed, allowed, max_answer=config.max_answer_length, n_best=1)
        scores, nothing = answers.probabilities(found, unanswerable=config.unanswerable)
        return {
            "start": found.starts[:, 0],
            "end": found.ends[:, 0],
            "score": scores[:, 0],
            "no_answer_probability": nothing,
            "logits": tf.cast(logits, tf.float32),
        }

    def without_segments(token_ids, context_mask):
        return best(token_ids, None, context_mask)

    names = ("token_ids", *(["segment_ids"] if spec["segments"] else []), "context_mask")
    return best if spec["segments"] else without_segments, {
        name: tf.TensorSpec([None, None], tf.int32, name=name) for name in names
    }


def arrays_of(pairs: answers.Windows, pad_id: int, spec: dict[str, Any]) -> dict[str, Any]:
    """Windows as arrays (r, t): what `from_token_ids` takes, and `example`, the question of each row."""
    found = {"token_ids": text.padded(pairs.token_ids, pad_id=pad_id)}
    if spec["segments"]:
        found["segment_ids"] = text.padded(pairs.segment_ids, pad_id=0)
    found["context_mask"] = tf.cast((pairs.word >= 0).to_tensor(False), tf.int32)
    return found | {"example": tf.cast(answers.owners(pairs.splits), tf.int32)}


def clear(found: dict[str, Any], config: Any, least: float = 2e-5) -> np.ndarray:
    """Whether the order of a question's best spans, and whether it has an answer, is decided by more than rounding."""
    scores = found["scores"]
    apart = (scores[:, :-1] - scores[:, 1:] > least * scores[:, :1]) | (scores[:, 1:] == 0)
    sure = np.abs(found["margin"] - (config.no_answer_threshold or 0.0)) > least
    return apart.all(-1) & (sure | (not config.unanswerable))
