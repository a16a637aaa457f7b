"""Pairs of passages that a language model is asked about: does the second one follow the first?

    pairs = sentence_pairs(offsets, read, kind="nsp", rows=32, length=128, seed=(0, step))

`nsp` (next-sentence prediction): in half of the pairs the second passage is of another document. `sop` (sentence-order
prediction): in half of them the two passages are swapped. A passage is a stretch of tokens, no grammatical sentence.
NumPy functions, stateless: the same seed gives the same pairs. Deviation: passages are cut at any token, not at ends of
sentences, and every pair is as long as its document lets it be (Devlin et al. shorten one of ten).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from models.layers.decoding import END, PAD, START
from pipelines.config import Failure, one_of

KINDS = ("nsp", "sop")
FOLLOWS, OTHER = 0, 1  # classes: as in `models.bert.bert_pretraining`, and what is no such pair
MARKS = 3  # START first END second END
TRIES = 1000  # draws of a document until one has tokens enough


class Pairs(NamedTuple):
    """token_ids (rows, length) int32, padded; segment_ids (rows, length) int32, 1 from the second passage on; labels
    (rows,) int32, 0 where the second passage follows the first; passages (rows, 2, 2) int64, the place in the corpus
    and the number of tokens of both, in the order in which they stand."""

    token_ids: np.ndarray
    segment_ids: np.ndarray
    labels: np.ndarray
    passages: np.ndarray


def sentence_pairs(
    offsets: Any,
    read: Callable[[int, int], Any],
    *,
    kind: str,
    rows: int,
    length: int,
    seed: Sequence[int],
    ends: int = 1,
) -> Pairs:
    """Draws pairs of passages; a document is drawn in proportion to its length.

    Args:
        offsets: (documents + 1,), where documents begin and end in the corpus; on disk, if need be.
        read: from a place and a number to so many token ids of the corpus.
        kind: of `KINDS`.
        rows: number of pairs.
        length: tokens of a row, its three marks counted; at least 5.
        seed: numbers from 0 on, such as the run's seed and the step.
        ends: marks at the end of each document, which are in no passage.

    Returns:
        `Pairs`, each row `START first END second END` and padding.

    Raises:
        UsageError: no such kind.
        ValueError: there is no room for a token of each passage.
        Failure: there are no documents of two tokens, or only one where another one is needed.

    Reference: Devlin et al. 2019, section 3.1, task 2 and appendix A.2; Lan et al. 2020, "ALBERT", section 3.1, for
        sentence-order prediction.
    """
    one_of(kind, KINDS, "a kind of sentence prediction")
    if length < MARKS + 2:
        raise ValueError(f"Expected rows of at least {MARKS + 2} tokens. Received: {length}")
    random, room = np.random.default_rng(list(seed)), length - MARKS

    def document(least: int, without: int | None = None) -> tuple[int, int, int]:
        """Number, place and tokens of one that has `least` tokens or more."""
        begin, end = int(offsets[0]), int(offsets[-1])
        hole = (0, 0) if without is None else (int(offsets[without]), int(offsets[without + 1]))
        for _ in range(TRIES if end - begin > hole[1] - hole[0] else 0):
            place = int(random.integers(begin, end - (hole[1] - hole[0])))
            place += (hole[1] - hole[0]) * (place >= hole[0] and hole[1] > hole[0])
            number = int(np.searchsorted(offsets, place, side="right")) - 1
            size = int(offsets[number + 1]) - int(offsets[number]) - ends
            if size >= least:
                return number, int(offsets[number]), size
        what = f"documents of at least {least} tokens for {kind}" + ", two of them" * (kind == "nsp")
        raise Failure(f"Expected {what}. Received: {len(offsets) - 1} documents")

    def passage(begin: int, size: int, most: int) -> tuple[int, int]:
        whole = min(size, most)
        return begin + int(random.integers(size - whole + 1)), whole

    token_ids = np.full((rows, length), PAD, np.int32)
    segment_ids = np.zeros((rows, length), np.int32)
    labels, passages = np.zeros(rows, np.int32), np.zeros((rows, 2, 2), np.int64)
    for row in range(rows):
        number, begin, size = document(2)
        start, whole = passage(begin, size, room)
        cut = int(random.integers(1, whole))
        first, second = (start, cut), (start + cut, whole - cut)
        labels[row] = random.integers(2)
        if labels[row] == OTHER and kind == "sop":
            first, second = second, first
        elif labels[row] == OTHER:
            _, begin, size = document(1, without=number)
            second = passage(begin, size, room - cut)
        passages[row] = first, second
        ids = [START, *read(*first), END, *read(*second), END]
        token_ids[row, : len(ids)] = ids
        segment_ids[row, first[1] + 2 : len(ids)] = 1
    return Pairs(token_ids, segment_ids, labels, passages)
