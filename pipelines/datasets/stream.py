"""Batches in an order that is a pure function of the seed and the step, so that a resumed run sees what it would have.

Pass `e` over the data is a permutation that (seed, e) decides; batches never straddle passes. `stream(start_step=s)`
gives exactly the batches that a stream from step 0 gives from step `s` on, at once: nothing is replayed.

Data that fit are decoded once into memory, and a batch is a gather at pseudo-random indices. Larger data are read in
the order of their files through a shuffle buffer of still encoded images, and decoded after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

Prepare = Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]
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
    """
    columns: dict[str, np.ndarray] = {}
    done = 0
    for chunk in source.map(prepare, tf.data.AUTOTUNE).batch(256).prefetch(2).as_numpy_iterator():
        for name, values in chunk.items():
            if name not in columns:
                columns[name] = np.empty((count, *values.shape[1:]), values.dtype)
            columns[name][done : done + len(values)] = values
        done += len(values)
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
    if isinstance(source, InMemory):
        steps = tf.data.Dataset.range(start_step, ENDLESS)
        examples = source.examples

        def gathered(step: tf.Tensor) -> Any:
            places = permuted(step, size, per_pass, count, seed)
            batch = {name: tf.gather(values, places) for name, values in examples.items()}
            return map_fn(step, batch) if map_fn else batch

        return steps.map(gathered, tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)

    def one_pass(number: tf.Tensor) -> tf.data.Dataset:
        tf.random.set_seed(2 * seed + 1)  # of this graph alone; `shuffle` with a tensor refuses 0
        shuffled = source.shuffle(min(count, BUFFER), seed=number, reshuffle_each_iteration=False)
        if prepare:
            shuffled = shuffled.map(prepare, tf.data.AUTOTUNE, deterministic=True)
        return shuffled.batch(size, drop_remainder=True).take(per_pass).enumerate(number * per_pass)

    passes = tf.data.Dataset.range(start_step // per_pass, ENDLESS).flat_map(one_pass).skip(start_step % per_pass)
    if map_fn:
        passes = passes.map(map_fn, tf.data.AUTOTUNE, deterministic=True)
    else:
        passes = passes.map(lambda step, batch: batch)
    return passes.prefetch(tf.data.AUTOTUNE)


def permuted(step: tf.Tensor, size: int, per_pass: int, count: int, seed: int) -> tf.Tensor:
    """The examples of a step: a slice of the permutation that (seed, pass) decides, without making the whole of it.

    Returns:
        int64 (size,), distinct within a pass.
    """
    number, place = step // per_pass, step % per_pass
    slots = place * size + tf.range(size, dtype="int64")  # (size,)
    pair = tf.stack([tf.constant(seed, "int64"), number])
    return tf.random.experimental.index_shuffle(slots, pair, tf.constant(count - 1, "int64"))


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
