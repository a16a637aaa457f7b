"""The gate before a version: what was written must answer as Keras does, or it is not published.

The pipeline's `served_checks` gives, batch by batch of the test split, what clients would send to each signature and
what Keras answers by the road of training. Every answer of the files on disk is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from pipelines.config import Failure

TOLERANCE = 1e-5

Arrays = Mapping[str, np.ndarray]
Ask = Callable[[Any], Any]
Checks = Iterable[Mapping[str, tuple[Arrays, Arrays]]]


def check(doors: Mapping[str, tuple[str, Ask]], batches: Checks) -> dict[str, dict[str, Any]]:
    """Ask every door the questions of its signature.

    Args:
        doors: {name for people: (signature, function of named arrays)}.
        batches: {signature: (inputs, expected outputs)}, a mapping for each batch.

    Returns:
        {door: {"examples": count, "largest_difference": of all numbers}}.

    Raises:
        Failure: an answer differs, or a door has no question.
    """
    found: dict[str, dict[str, Any]] = {}
    for batch in batches:
        for door, (signature, ask) in doors.items():
            if signature not in batch:
                continue
            inputs, expected = batch[signature]
            measured = found.setdefault(door, {"examples": 0, "largest_difference": 0.0})
            difference = compare(door, measured["examples"], expected, ask(inputs))
            measured["largest_difference"] = max(measured["largest_difference"], difference)
            measured["examples"] += len(next(iter(expected.values())))
    for door in doors:
        if door not in found:
            raise Failure(
                f"Expected test examples for {door}: its pipeline's served_checks has none. Received: nothing"
            )
    return found


def compare(door: str, start: int, expected: Arrays, answered: Arrays) -> float:
    """The largest difference of a batch of answers.

    Numbers may differ by 1e-5, relative where the expected output exceeds 1. Words must be equal, except where the two
    largest `probabilities` are so near to each other that the tolerance decides between them.

    Args:
        door: what was asked, for the error.
        start: how many examples were before this batch, for the error.

    Raises:
        Failure: an output is missing, has another shape, or differs.
    """
    largest = 0.0
    for name, wanted in expected.items():
        if name not in answered:
            raise Failure(f"Expected the output {name!r} of {door}. Received: {', '.join(answered)}")
        got = answered[name]
        if got.shape != wanted.shape:
            raise Failure(f"Expected {name!r} of {door} to have the shape {wanted.shape}. Received: {got.shape}")
        if np.issubdtype(wanted.dtype, np.floating):
            off = np.abs(got.astype("float64") - wanted) / np.maximum(1.0, np.abs(wanted).max(initial=0.0))
            off = np.where(np.isnan(off), np.inf, off).reshape(len(off), -1).max(axis=1, initial=0.0)  # (b,)
            largest = max(largest, float(off.max(initial=0.0)))
            bad, amount = off > TOLERANCE, f"a difference of {largest:.2g}"
        else:
            other = words(got) != words(wanted)
            bad = other.reshape(len(other), -1).any(axis=1) & ~tied(expected, len(other))  # (b,)
            amount = f"{words(got)[bad][:1].tolist()} for {words(wanted)[bad][:1].tolist()}"
        if bad.any():
            where = f"in {bad.sum()} of {len(bad)} test examples, first in number {start + int(bad.argmax())}"
            raise Failure(
                f"Expected {name!r} of {door} to equal Keras's to {TOLERANCE:g}; nothing was published. "
                f"Received: {amount}, {where}"
            )
    return largest


def words(values: np.ndarray) -> np.ndarray:
    """Strings as `str`, whether they came as bytes or not; other values as they are."""
    values = np.asarray(values)
    if values.dtype.kind not in "OSU":
        return values
    text = [one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in values.ravel()]
    return np.array(text, dtype=object).reshape(values.shape)


def tied(expected: Arrays, count: int) -> np.ndarray:
    """Which examples have their two largest probabilities within twice the tolerance; (b,) of bool."""
    if "probabilities" not in expected or expected["probabilities"].shape[-1] < 2:
        return np.zeros(count, bool)
    top = np.sort(expected["probabilities"], axis=-1)[..., -2:].reshape(count, -1, 2)
    return (top[..., 1] - top[..., 0] <= 2 * TOLERANCE).any(axis=1)
