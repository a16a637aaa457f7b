"""Labelled texts by name or from the user's files, held in memory, and batches of them by length.

`load("tiny_reviews")`, `load("imdb_reviews")` and `load(data_dir="reviews.csv")` answer the same `Texts`. Batches of
`bucketed` hold texts of similar length, so that little of a batch is padding, in an order that is a pure function of
the seed and the step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from pipelines.config import Failure, UsageError, nearest
from pipelines.datasets import catalogue
from pipelines.datasets.folders import carve
from pipelines.datasets.raw import SPLITS, fewer
from pipelines.datasets.stream import ENDLESS, InMemory
from pipelines.datasets.tables import LABEL_NAMES, TEXT_NAMES, read_tables

STAND_IN = "tiny_reviews"
TEST_FRACTION = 0.1
CHUNK = 50  # batches that are sorted by length together


@dataclass(frozen=True)
class Texts:
    """Three splits of {"text": strings (n,); "label": int64 (n,)}, always in the same order."""

    train: InMemory
    validation: InMemory
    test: InMemory
    classes: tuple[str, ...]
    source: str

    @property
    def counts(self) -> dict[str, int]:
        return {split: getattr(self, split).count for split in SPLITS}

    def limited(self, limit: int | None) -> Texts:
        """At most `limit` training examples, and the other splits cut in proportion, to 32 examples at the least."""
        counts = fewer(self.counts, limit)
        cut = {split: first(getattr(self, split), count) for split, count in counts.items()}
        return self if counts == self.counts else Texts(**cut, classes=self.classes, source=self.source)


def first(source: InMemory, count: int) -> InMemory:
    """The first examples of a split."""
    return InMemory({name: values[:count] for name, values in source.examples.items()}, min(count, source.count))


def held(texts: Iterable[str | bytes], labels: Iterable[int]) -> InMemory:
    """Texts and labels as a split."""
    strings = np.array(list(texts), object)
    with tf.device("CPU"):
        examples = {"text": tf.constant(strings, tf.string), "label": tf.constant(list(labels), tf.int64)}
    return InMemory(examples, len(strings))


def load(
    dataset: str = "",
    *,
    data_dir: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    skip_bad: bool = False,
    validation_fraction: float = 0.1,
) -> Texts:
    """Texts with labels, split into train, validation and test.

    Validation is carved from train, by `seed`, unless the files bring their own; it never comes from test.

    Args:
        dataset: a TFDS name, `name`, `name/config` or `name:version`. Unused where `data_dir` is given.
        data_dir: a CSV, TSV or JSONL file, or a folder with train, validation and test files of such.
        text_column: the column, key or feature that holds the text; default: found by its name.
        label_column: the one that holds the class; default: found by its name.
        seed: decides which examples are held out.
        limit: at most this many training examples; the other splits are cut in proportion.
        skip_bad: leave out rows without text or label, with a warning that names them.
        validation_fraction: share of train that is held out.

    Raises:
        UsageError: an unknown name, a data set without a text and a class, a column that is not there, no such file.
        Failure: data that cannot be fetched or read, bad rows, a single class.
    """
    if data_dir is not None:
        found = read_files(data_dir, text_column, label_column, seed, skip_bad, validation_fraction)
    else:
        found = read_named(dataset, text_column, label_column, seed, validation_fraction, limit)
    return found.limited(limit)


def labelled_texts(
    builder: tfds.core.DatasetBuilder, text_column: str | None = None, label_column: str | None = None
) -> tuple[str, str, tuple[str, ...]]:
    """The feature that holds the text, the one that holds the class, and the names of the classes.

    Without a name given, the keys that the data set declares for supervised learning are taken, then those of
    `TEXT_NAMES` and `LABEL_NAMES`, then the only one there is.

    Raises:
        UsageError: there is none, several and none of a known name, or not the one named.
        Failure: it has one class only.
    """
    kinds = builder.info.features
    features = dict(kinds.items()) if isinstance(kinds, tfds.features.FeaturesDict) else {"": kinds}
    labels = [name for name, kind in features.items() if isinstance(kind, tfds.features.ClassLabel)]
    texts = [name for name, kind in features.items() if kind.shape == () and kind.tf_dtype == tf.string]
    found = []
    for given, there, names, flag in (
        (text_column, texts, TEXT_NAMES, "text"),
        (label_column, labels, LABEL_NAMES, "label"),
    ):
        declared = [key for key in builder.info.supervised_keys or () if isinstance(key, str)]
        wanted = [given] if given else [*declared, *names, *(there if len(there) == 1 else ())]
        chosen = next((name for name in wanted if name in there), None)
        if chosen is None:
            listed = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in features.items())
            if given or there:
                what = f"Expected --{flag}_column to name one of {', '.join(there) or 'none'}."
                raise UsageError(f"{what}{nearest(given or flag, there)} Received: {given!r} for {builder.name}")
            raise UsageError(f"Expected a data set with a text and a class. Received: {builder.name} with {listed}")
        found.append(chosen)
    text, label = found
    kind = features[label]
    if kind.num_classes is not None and kind.num_classes < 2:
        raise Failure(f"Expected at least two classes. Received: {builder.name} with {kind.num_classes}")
    return text, label, tuple(kind.names)


def read_named(
    name: str,
    text_column: str | None,
    label_column: str | None,
    seed: int,
    validation_fraction: float,
    limit: int | None,
) -> Texts:
    """A data set of TensorFlow Datasets as `Texts`, in the splits of `catalogue.carved`; no more is read than asked."""
    builder = catalogue.prepare(name, lambda b: labelled_texts(b, text_column, label_column), STAND_IN)
    text, label, classes = labelled_texts(builder, text_column, label_column)

    def read(part: str) -> tf.data.Dataset:
        data = builder.as_dataset(split=part, read_config=tfds.ReadConfig(try_autocache=False), shuffle_files=False)
        return data.map(lambda example: (example[text], tf.cast(example[label], tf.int64)))

    def usable(split: str) -> bool:
        return all(int(number) >= 0 for _, number in read(split).take(1))  # secret labels are written as -1

    def split(part: tf.data.Dataset) -> InMemory:
        pairs = list(part.batch(1024).as_numpy_iterator())
        return held(*(np.concatenate(column) for column in zip(*pairs))) if pairs else held((), ())

    carved = catalogue.carved(builder, name, seed, validation_fraction, usable)
    parts = {key: read(part) for key, part in carved.items()}
    counts = fewer({key: int(part.cardinality()) for key, part in parts.items()}, limit)
    description = " ".join(builder.info.description.split())
    return Texts(
        **{key: split(part.take(counts[key])) for key, part in parts.items()},
        classes=classes,
        source=f"{builder.info.full_name} (TensorFlow Datasets): {description[:400]}",
    )


def read_files(
    data_dir: str,
    text_column: str | None,
    label_column: str | None,
    seed: int,
    skip_bad: bool,
    validation_fraction: float,
) -> Texts:
    """The user's rows as `Texts`; splits that are not there are carved, stratified and by `seed`.

    Raises:
        UsageError: no such file, or a column that is not there.
        Failure: bad rows, one class only, a class of its own for nearly every row, or a split with a class that train
            lacks.
    """
    tables = read_tables(data_dir, text_column, label_column, skip_bad)
    classes = ordered({label for _, label in tables["train"]})
    if len(classes) < 2:
        raise Failure(f"Expected rows of at least two classes in {data_dir}. Received: {', '.join(classes) or 'none'}")
    if len(classes) > max(10, len(tables["train"]) // 2):
        raise Failure(
            f"Expected a column of classes, each for several rows, in {data_dir} (--label_column). "
            f"Received: {len(classes)} different values in {len(tables['train'])} rows"
        )
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for split, rows in tables.items():
        extra = ordered({label for _, label in rows} - set(classes))
        if extra:
            raise Failure(f"Expected the classes of train in the {split} file. Received, in addition: {extra[:10]}")
        labels = np.array([classes.index(label) for _, label in rows], "int64")
        parts[split] = np.array([text for text, _ in rows], object), labels
    if "test" not in parts:
        parts["train"], parts["test"] = carve(*parts["train"], TEST_FRACTION, seed)
    if "validation" not in parts:
        share = validation_fraction if "test" in tables else validation_fraction / (1 - TEST_FRACTION)
        parts["train"], parts["validation"] = carve(*parts["train"], share, seed + 1)
    counts = {split: len(parts[split][1]) for split in SPLITS}
    if min(counts.values()) == 0:
        raise Failure(f"Expected enough rows in {data_dir} for train, validation and test. Received: {counts}")
    seen = set(parts["train"][0]) & set(parts["test"][0])
    if seen:
        warnings.warn(f"{len(seen)} texts of the test split are in the training split too", stacklevel=3)
    splits = {}
    for split in SPLITS:
        texts, labels = parts[split]
        order = np.random.default_rng(seed).permutation(len(labels))  # any first part is a fair sample
        splits[split] = held(texts[order], labels[order])
    total = sum(len(rows) for rows in tables.values())
    name = data_dir.rstrip("/").rpartition("/")[2]
    return Texts(**splits, classes=tuple(classes), source=f"{total} rows of {len(classes)} classes in {name}")


def ordered(labels: Iterable[str]) -> list[str]:
    """Labels in the order of their numbers where all are numbers, else of their letters."""
    labels = sorted(labels)
    try:
        return sorted(labels, key=float)
    except ValueError:
        return labels


def bucketed(
    source: InMemory,
    lengths: Sequence[int],
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    map_fn: Callable[[tf.Tensor, dict[str, Any]], Any] | None = None,
) -> tf.data.Dataset:
    """An endless stream of batches of examples of similar length, from `start_step` on.

    A pass over the data is a permutation, of which every `CHUNK` batches in a row are sorted by length and cut; the
    batches then come in an order of their own. All of it is decided by the seed and the number of the pass, so that
    `start_step=s` gives exactly the batches that a stream from step 0 gives from step `s` on.

    Args:
        source: examples, tensors or ragged tensors with the example as first axis.
        lengths: (n,), of each example.
        batch_size: examples in a batch, at most `n`. A pass has `n // batch_size` batches; the rest is skipped.
        seed: decides every permutation.
        start_step: the step of the first batch.
        map_fn: `(step, batch) -> elements`, in parallel and in order; `step` is an int64 scalar. Randomness must come
            from `step` alone.

    Raises:
        ValueError: no examples, or not a length for each.
    """
    count = source.count
    if count < 1 or len(lengths) != count:
        raise ValueError(f"Expected examples, and a length for each. Received: {count} and {len(lengths)} lengths")
    size = min(batch_size, count)
    per_pass = count // size
    first_pass, passed = divmod(start_step, per_pass)
    with tf.device("CPU"):
        sizes = tf.constant(np.asarray(lengths), tf.int64)
        chunks = tf.range(per_pass * size, dtype=tf.int64) // (CHUNK * size) * (int(max(lengths)) + 1)

    def one_pass(number: tf.Tensor) -> tf.data.Dataset:
        pair = tf.stack([tf.constant(seed, tf.int64), number])
        seeds = tf.random.experimental.stateless_split(pair, 2)
        order = tf.random.experimental.stateless_shuffle(tf.range(count, dtype=tf.int64), seeds[0])[: per_pass * size]
        order = tf.gather(order, tf.argsort(chunks + tf.gather(sizes, order), stable=True))
        turns = tf.random.experimental.stateless_shuffle(tf.range(per_pass), seeds[1])
        places = tf.gather(tf.reshape(order, (per_pass, size)), turns)  # (steps, b)
        start = tf.where(number == first_pass, tf.constant(passed, tf.int64), 0)
        return tf.data.Dataset.from_tensor_slices(places).skip(start).enumerate(number * per_pass + start)

    def finished(step: tf.Tensor, places: tf.Tensor) -> Any:
        batch = taken(source, places)
        return map_fn(step, batch) if map_fn else batch

    found = tf.data.Dataset.range(first_pass, ENDLESS).flat_map(one_pass)
    return found.map(finished, tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


def in_order(
    source: InMemory, *, batch_size: int, map_fn: Callable[[dict[str, Any]], Any] | None = None
) -> tf.data.Dataset:
    """All examples once, in their order; the last batch may be smaller."""
    places = tf.data.Dataset.range(source.count).batch(batch_size)
    batches = places.map(lambda batch: taken(source, batch))
    return (batches.map(map_fn, tf.data.AUTOTUNE) if map_fn else batches).prefetch(tf.data.AUTOTUNE)


def taken(source: InMemory, places: tf.Tensor) -> dict[str, Any]:
    """The examples at some places."""
    return {name: tf.gather(values, places) for name, values in source.examples.items()}
