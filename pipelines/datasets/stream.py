"""Batches in an order that is a pure function of the seed and the step, so that a resumed run sees what it would have.

Pass `e` over the data is a permutation that (seed, e) decides; batches never straddle passes. `stream(start_step=s)`
gives exactly the batches that a stream from step 0 gives from step `s` on, and decodes nothing that comes before.

Data that fit are decoded once into memory, and a batch is a gather. Larger data are read in the order of their files
through a shuffle buffer of still encoded images, and decoded after it. (`index_shuffle`, which needs no permutation in
memory, is not used: over a few dozen examples its orders are measurably unfair.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

Prepare = Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]
Pass = Callable[[tf.Tensor, tf.Tensor], tf.data.Dataset]  # of a pass's number and its first batch: its batches
MapFn = Callable[[tf.Tensor, dict[str, tf.Tensor]], Any]

MEMORY = 2 * 2**30  # bytes of decoded examples that are kept in memory
BUFFER = 10_000  # encoded examples in the shuffle buffer of data that are not
ENDLESS = 2**40


@dataclass(frozen=True)
class InMemory:
    """All examples of a data set, decoded: a dictionary of tensors with the example as first axis."""

    examples: dict[str, tf.Tensor]
    count: int


def fits_in_memory(count: int, example_shape: tuple[int, ...], item_size: int = 1) -> bool:
    """Whether `count` decoded examples of this shape and `item_size` bytes a value stay within `MEMORY`."""
    return count * int(np.prod(example_shape)) * item_size <= MEMORY


def in_memory(source: tf.data.Dataset, count: int, prepare: Prepare) -> InMemory:
    """Decode a whole data set once.

    Args:
        source: raw examples, each a dictionary.
        count: how many there are.
        prepare: one raw example to one of fixed shapes.

    Raises:
        ValueError: there are more or fewer.
    """
    columns: dict[str, np.ndarray] = {}
    done = 0
    for chunk in source.map(prepare, tf.data.AUTOTUNE).batch(256).prefetch(2).as_numpy_iterator():
        start, done = done, done + len(next(iter(chunk.values())))
        if done > count:
            raise ValueError(f"Expected {count} examples. Received: at least {done}")
        for name, values in chunk.items():
            if name not in columns:
                columns[name] = np.empty((count, *values.shape[1:]), values.dtype)
            columns[name][start:done] = values
    if done != count:
        raise ValueError(f"Expected {count} examples. Received: {done}")
    with tf.device("CPU"):
        return InMemory({name: tf.constant(values) for name, values in columns.items()}, count)


def stream(
    source: tf.data.Dataset | InMemory,
    *,
    count: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    prepare: Prepare | None = None,
    map_fn: MapFn | None = None,
) -> tf.data.Dataset:
    """An endless stream of training batches from `start_step` on.

    Args:
        source: `in_memory(...)`, or raw examples where they do not fit.
        count: examples in one pass. A pass has `count // batch_size` batches; what is left over is skipped.
        batch_size: examples in a batch, at most `count` (a larger one is cut to it).
        seed: decides every permutation.
        start_step: the step of the first batch.
        prepare: one raw example to one of fixed shapes, before batching; for raw examples only.
        map_fn: `(step, batch) -> elements`, in parallel and in order; `step` is an int64 scalar. Randomness must come
            from `step` alone.

    Raises:
        ValueError: no examples.
    """
    if count < 1:
        raise ValueError(f"Expected at least one training example. Received: count={count}")
    size = min(batch_size, count)
    per_pass = count // size
    first, passed = divmod(start_step, per_pass)
    one_pass = (
        passes_in_memory(source, size, seed)
        if isinstance(source, InMemory)
        else passes_of_files(source, count, size, seed, prepare)
    )

    def numbered(number: tf.Tensor) -> tf.data.Dataset:
        start = tf.where(number == first, tf.constant(passed, "int64"), 0)
        return one_pass(number, start).take(per_pass - start).enumerate(number * per_pass + start)

    found = tf.data.Dataset.range(first, ENDLESS).flat_map(numbered)

    def finished(step: tf.Tensor, batch: Any) -> Any:
        if isinstance(source, InMemory):
            batch = {name: tf.gather(values, batch) for name, values in source.examples.items()}
        return map_fn(step, batch) if map_fn else batch

    return found.map(finished, tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


def passes_in_memory(source: InMemory, size: int, seed: int) -> Pass:
    """The places of the examples, int64 (size,) for a batch: a permutation, cut."""

    def one_pass(number: tf.Tensor, start: tf.Tensor) -> tf.data.Dataset:
        pair = tf.stack([tf.constant(seed, "int64"), number])
        order = tf.random.experimental.stateless_shuffle(tf.range(source.count, dtype="int64"), pair)
        whole = source.count // size * size
        return tf.data.Dataset.from_tensor_slices(tf.reshape(order[:whole], (-1, size))).skip(start)

    return one_pass


def passes_of_files(source: tf.data.Dataset, count: int, size: int, seed: int, prepare: Prepare | None) -> Pass:
    """The files in their order, through a shuffle buffer of `BUFFER` raw examples; what is skipped is not decoded."""

    def one_pass(number: tf.Tensor, start: tf.Tensor) -> tf.data.Dataset:
        tf.random.set_seed(2 * seed + 1)  # of this graph alone; `shuffle` with a tensor refuses 0
        shuffled = source.shuffle(min(count, BUFFER), seed=number, reshuffle_each_iteration=False)
        shuffled = shuffled.skip(start * size)
        if prepare:
            shuffled = shuffled.map(prepare, tf.data.AUTOTUNE, deterministic=True)
        return shuffled.batch(size, drop_remainder=True)

    return one_pass


def batches(
    source: tf.data.Dataset | InMemory,
    *,
    batch_size: int,
    prepare: Prepare | None = None,
    map_fn: Callable[[dict[str, tf.Tensor]], Any] | None = None,
) -> tf.data.Dataset:
    """All examples once, in their order, for evaluation; the last batch may be smaller.

    Args:
        source: `in_memory(...)`, or raw examples.
        batch_size: examples in a batch.
        prepare: one raw example to one of fixed shapes, before batching; for raw examples only.
        map_fn: `batch -> elements`.
    """
    if isinstance(source, InMemory):
        data = tf.data.Dataset.from_tensor_slices(source.examples)
    else:
        data = source.map(prepare, tf.data.AUTOTUNE) if prepare else source
    data = data.batch(batch_size)
    if map_fn:
        data = data.map(map_fn, tf.data.AUTOTUNE)
    return data.prefetch(tf.data.AUTOTUNE)
