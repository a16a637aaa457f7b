"""The order of training batches is a function of the seed and the step, in memory and from files alike."""

from __future__ import annotations

import sys
from itertools import chain

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.datasets import batches, fits_in_memory, in_memory, stream

KINDS = ("memory", "files")


def numbered(count: int) -> tf.data.Dataset:
    return tf.data.Dataset.range(count).map(lambda i: {"label": i})


def same(example):
    return example


def source(kind: str, count: int):
    return in_memory(numbered(count), count, same) if kind == "memory" else numbered(count)


def taken(kind: str, count: int, batch_size: int, seed: int, start: int, steps: int) -> list[list[int]]:
    data = stream(source(kind, count), count=count, batch_size=batch_size, seed=seed, start_step=start)
    return [batch["label"].numpy().tolist() for batch in data.take(steps)]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**31), start=st.integers(0, 60))
def test_a_stream_continued_at_any_step_is_the_stream_that_never_stopped(kind, count, batch_size, seed, start):
    whole = taken(kind, count, batch_size, seed, 0, start + 6)
    assert taken(kind, count, batch_size, seed, start, 6) == whole[start:]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(count=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 100))
def test_batches_never_straddle_passes_and_a_pass_repeats_nothing(kind, count, batch_size, seed):
    size = min(batch_size, count)
    per_pass = count // size
    steps = taken(kind, count, batch_size, seed, 0, 3 * per_pass)
    assert all(len(batch) == size for batch in steps)
    for number in range(3):
        seen = list(chain(*steps[number * per_pass : (number + 1) * per_pass]))
        assert len(set(seen)) == len(seen) and set(seen) <= set(range(count))


@pytest.mark.parametrize("kind", KINDS)
def test_passes_and_seeds_have_orders_of_their_own_whatever_the_programs_seed(kind):
    tf.random.set_seed(0)
    first = taken(kind, 64, 32, 0, 0, 6)
    tf.random.set_seed(5)
    assert taken(kind, 64, 32, 0, 0, 6) == first
    passes = [first[i] + first[i + 1] for i in (0, 2, 4)]
    assert all(sorted(order) == list(range(64)) for order in passes)
    assert passes[0] != passes[1] != passes[2] and list(range(64)) not in passes
    assert taken(kind, 64, 32, 1, 0, 6) != first


def test_every_example_is_as_likely_at_every_place():
    """400 passes over 20 examples: how often each is at each place, by χ² within five deviations of fair shuffles."""
    counts = np.zeros((20, 20))
    for order in taken("memory", 20, 20, 0, 0, 400):
        counts[order, np.arange(20)] += 1
    expected, freedom = 20.0, 19 * 19
    assert abs(((counts - expected) ** 2 / expected).sum() - freedom) < 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("kind", KINDS)
def test_map_fn_gets_the_global_step_in_order(kind):
    data = stream(
        source(kind, 10),
        count=10,
        batch_size=3,
        seed=0,
        start_step=7,
        map_fn=lambda step, batch: (step, batch["label"]),
    )
    assert [int(step) for step, _ in data.take(8)] == list(range(7, 15))


def test_examples_are_decoded_once_in_memory_and_each_pass_from_files():
    calls = []

    def prepare(example):
        return {"label": tf.numpy_function(lambda x: calls.append(x) or x, [example["label"]], tf.int64)}

    held = in_memory(numbered(12), 12, prepare)
    list(stream(held, count=12, batch_size=4, seed=0).take(9))
    assert len(calls) == 12
    calls.clear()
    list(stream(numbered(12), count=12, batch_size=4, seed=0, prepare=prepare).take(9))
    assert len(calls) >= 36
    calls.clear()
    list(stream(numbered(1200), count=1200, batch_size=4, seed=0, start_step=297, prepare=prepare).take(1))
    assert len(calls) < 300


def test_files_are_shuffled_through_a_bounded_buffer(monkeypatch):
    monkeypatch.setattr(sys.modules[stream.__module__], "BUFFER", 4)
    order = list(chain(*taken("files", 32, 8, 0, 0, 4)))
    assert sorted(order) == list(range(32)) != order
    assert all(number < place + 4 for place, number in enumerate(order))


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_takes_every_example_once_in_order(kind):
    found = [batch["label"].numpy().tolist() for batch in batches(source(kind, 10), batch_size=4)]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_no_examples_and_wrong_counts_are_refused():
    with pytest.raises(ValueError, match="at least one training example. Received: count=0"):
        stream(numbered(0), count=0, batch_size=4, seed=0)
    with pytest.raises(ValueError, match="Expected 3 examples. Received: at least 5"):
        in_memory(numbered(5), 3, same)
    with pytest.raises(ValueError, match="Expected 7 examples. Received: 5"):
        in_memory(numbered(5), 7, same)


def test_what_fits_in_memory_is_counted_in_bytes():
    assert fits_in_memory(50_000, (32, 32, 3))
    assert not fits_in_memory(1_281_167, (224, 224, 3))
    assert fits_in_memory(2**20, (2048,)) and not fits_in_memory(2**20, (2048,), item_size=2)
