"""F1 of spans in batches is what counting spans one by one gives, whatever the padding and the pieces of words."""

from __future__ import annotations

import keras
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.metrics import SpanF1
from pipelines.datasets.tag_schemes import spans_of

TAGS = "O B-a I-a B-b I-b".split()
KINDS, BEGINS = [0, 1, 1, 2, 2], [False, True, False, True, False]
rows = st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=9), min_size=3, max_size=3)


def counted(texts: list[list[tuple[int, int]]]) -> float:
    """F1 by sets of spans."""
    right = total = 0
    for text in texts:
        true, found = (set(spans_of([TAGS[pair[side]] for pair in text])) for side in (0, 1))
        right, total = right + len(true & found), total + len(true) + len(found)
    return 2 * right / total if total else 0.0


def batch(texts: list[list[tuple[int, int]]], source: np.random.Generator):
    """True tags, logits and weights; before and after each word are up to two tokens that do not count."""
    spread = [[*[None] * source.integers(3)] for _ in texts]
    for row, text in zip(spread, texts):
        for pair in text:
            row += [pair, *[None] * source.integers(3)]
    length = 36  # one for all: shapes take time
    true = source.integers(0, 5, (len(texts), length))
    answers, weights = source.integers(0, 5, true.shape), np.zeros(true.shape, "float32")
    for place, row in enumerate(spread):
        for at, pair in enumerate(row):
            if pair is not None:
                true[place, at], answers[place, at] = pair
                weights[place, at] = 1
    return true, np.eye(5)[answers] + 0.1, weights


@settings(deadline=None, max_examples=30)
@given(rows, rows, st.integers(0, 2**32 - 1))
def test_it_counts_the_spans_of_words_over_batches(first, second, seed):
    source, metric = np.random.default_rng(seed), SpanF1(KINDS, BEGINS)
    for texts in (first, second):
        metric.update_state(*batch(texts, source))
    np.testing.assert_allclose(float(metric.result()), counted(first + second), atol=1e-6)
    metric.reset_state()
    assert float(metric.result()) == 0.0


def test_all_tokens_count_without_weights_and_whole_texts_with_a_weight_each():
    true = np.array([[1, 2, 0, 3], [1, 0, 0, 0]])
    logits = np.eye(5)[[[1, 2, 0, 1], [1, 0, 0, 1]]]
    metric = SpanF1(KINDS, BEGINS)
    metric.update_state(true, logits)
    np.testing.assert_allclose(float(metric.result()), 2 * 2 / (4 + 3))
    metric.reset_state()
    metric.update_state(true, logits, np.array([1.0, 0.0]))
    np.testing.assert_allclose(float(metric.result()), 0.5)


def test_it_is_saved_with_its_tags():
    again = keras.metrics.deserialize(keras.metrics.serialize(SpanF1(KINDS, BEGINS)))
    assert (again.name, again.kinds, again.begins) == ("f1", KINDS, BEGINS)
