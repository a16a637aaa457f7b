"""Texts whose words are tagged, by name or from the user's files, held in memory word by word.

`load("tiny_entities")`, `load("conll2003")` and `load(data_dir="my.conll")` answer the same `Tagged`. However a source
writes its tags, they become spans of the text, and then BIO tags of the words that `transforms.spans` finds in it: a
served model finds the same words. A token of the source that is several words, as "U.S." or "3-year-old", is tagged
word by word; a text that comes as tokens has a space between them.
"""

from __future__ import annotations

import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from pipelines.config import Failure, UsageError, nearest
from pipelines.datasets import catalogue
from pipelines.datasets.raw import SPLITS, fewer
from pipelines.datasets.stream import InMemory
from pipelines.datasets.tag_schemes import OUTSIDE, Example, Span, bio, parts_of, scheme_of
from pipelines.datasets.tagged_files import TAG_NAMES, TEXT_NAMES, read_files
from pipelines.transforms.spans import words_with_offsets

STAND_IN = "tiny_entities"
TEST_FRACTION = 0.1
Parts = dict[str, list[Example]]  # of splits


@dataclass(frozen=True)
class Tagged:
    """Three splits of {"text": strings (n,); "words": strings (n, words), ragged; "tags": int32 of the same shape;
    "group": strings (n,), "" where a set has no groups}, always in the same order.

    tags: names of the tags, `O` the first, then B- and I- of each kind.
    scheme: how the source writes them.
    source: a line for people.
    """

    train: InMemory
    validation: InMemory
    test: InMemory
    tags: tuple[str, ...]
    scheme: str
    source: str

    @property
    def counts(self) -> dict[str, int]:
        return {split: getattr(self, split).count for split in SPLITS}


def load(
    dataset: str = "",
    *,
    data_dir: str | None = None,
    text_column: str | None = None,
    tags_column: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    skip_bad: bool = False,
    validation_fraction: float = 0.1,
) -> Tagged:
    """Texts with tagged words, split into train, validation and test.

    Validation is carved from train, by `seed`, unless the files bring their own; it never comes from test.

    Args:
        dataset: a TFDS name. Unused where `data_dir` is given.
        data_dir: a CoNLL or JSONL file, or a folder with train, validation and test files of such.
        text_column: the feature, key or column (its number, from 1) of the tokens or of the text; default: found.
        tags_column: the one of the tags or the entities.
        seed: decides which examples are held out.
        limit: at most this many training texts; the other splits are cut in proportion.
        skip_bad: leave out texts that cannot be read, naming them.
        validation_fraction: share of train that is held out.

    Raises:
        UsageError: an unknown name, a data set without tagged words, a column that is not there, no such file.
        Failure: data that cannot be fetched or read, bad rows, nothing that is tagged.
    """
    if data_dir is None:
        return read_named(dataset, text_column, tags_column, seed, validation_fraction, limit)
    parts, source = read_files(data_dir, text_column, tags_column, skip_bad)
    kinds = set().union(*(one.labels() for one in parts["train"]))
    for split, examples in parts.items():
        extra = set().union(*(one.labels() for one in examples)) - kinds
        if extra:
            raise Failure(f"Expected the kinds of train in the {split} file. Received, too: {sorted(extra)[:10]}")
    parts = carved(parts, seed, validation_fraction, data_dir)
    counts = fewer({split: len(parts[split]) for split in SPLITS}, limit)
    return tagged({split: parts[split][: counts[split]] for split in SPLITS}, sorted(kinds), source)


def carved(parts: Parts, seed: int, fraction: float, name: str) -> Parts:
    """All three splits, each in an order that the seed decides; those that are not there are parts of train."""
    source = np.random.default_rng(seed)
    shuffled = {split: [examples[i] for i in source.permutation(len(examples))] for split, examples in parts.items()}
    train = shuffled["train"]
    for split, share in (("test", TEST_FRACTION), ("validation", fraction)):
        if split not in shuffled:
            held = max(1, round(share * len(parts["train"])))
            shuffled[split], train = train[:held], train[held:]
    shuffled["train"] = train
    counts = {split: len(shuffled[split]) for split in SPLITS}
    if not min(counts.values()):
        raise Failure(f"Expected enough texts in {name} for train, validation and test. Received: {counts}")
    seen = {tuple(one.tokens) for one in train} & {tuple(one.tokens) for one in shuffled["test"]}
    if seen:
        warnings.warn(f"{len(seen)} texts of the test split are in the training split too", stacklevel=3)
    return shuffled


def tagged(parts: Parts, kinds: Sequence[str], source: str) -> Tagged:
    """Examples as `Tagged`: the scheme recognized, their spans laid on words.

    Raises:
        Failure: nothing is tagged, or tags of different schemes are mixed.
    """
    scheme = scheme_of([one.tags for split in SPLITS for one in parts[split] if one.tags is not None])
    if scheme.wrong:
        warnings.warn(
            f"{scheme.wrong} of {scheme.total} tags are not where {scheme.name} allows them; there a span begins or "
            "ends all the same",
            stacklevel=4,
        )
    if not kinds or not any(one.labels() for one in parts["train"]):
        raise Failure(f"Expected training texts with tagged words. Received: none of {len(parts['train'])}, {source}")
    columns: dict[str, tuple[Any, Any, Any, Any]] = {}
    shared = 0
    for split in SPLITS:
        texts, spans = zip(*(one.placed(scheme.name) for one in parts[split]))
        words, tags, wider = on_words(texts, spans)
        columns[split] = (texts, words, tags, [one.group for one in parts[split]])
        shared += wider
    if shared:
        warnings.warn(f"{shared} entities begin or end within a word; all of it is taken", stacklevel=4)
    inside = {tag for split in SPLITS for tags in columns[split][2] for tag in tags}
    inner = {kind for kind in kinds if f"I-{kind}" in inside or scheme.name != "words"}
    names = [OUTSIDE, *(f"{mark}-{kind}" for kind in kinds for mark in "BI" if mark == "B" or kind in inner)]
    return Tagged(
        **{split: held(*columns[split], names) for split in SPLITS},
        tags=tuple(names),
        scheme=scheme.name if scheme.total else "spans",
        source=source,
    )


def on_words(
    texts: Sequence[str], spans: Sequence[Sequence[Span]], size: int = 1024
) -> tuple[list[list[bytes]], list[list[str]], int]:
    """The words of texts, their tags in BIO, and how many spans did not begin and end with a word."""
    words: list[list[bytes]] = []
    tags: list[list[str]] = []
    wider = 0
    for begin in range(0, len(texts), size):
        found = words_with_offsets(list(texts[begin : begin + size]))
        words += found.words.to_list()
        rows = zip(found.starts.to_list(), found.ends.to_list(), spans[begin : begin + size])
        for starts, ends, given in rows:
            laid: list[Span] = []
            for span in given:
                low, high = bisect_right(ends, span.start), bisect_left(starts, span.end)
                free = max(low, laid[-1].end) if laid else low
                if low < high:
                    wider += starts[low] < span.start or ends[high - 1] > span.end or free > low
                if free < high:
                    laid.append(Span(free, high, span.label))
            tags.append(bio(len(starts), laid))
    return words, tags, wider


def held(
    texts: Sequence[str], words: list[list[bytes]], tags: list[list[str]], groups: list[str], names: Sequence[str]
) -> InMemory:
    """A split in memory."""
    number = {name: place for place, name in enumerate(names)}
    with tf.device("CPU"):
        lengths = tf.constant([len(row) for row in words], tf.int64)
        flat = tf.constant([word for row in words for word in row], tf.string)
        ids = tf.constant([number[tag] for row in tags for tag in row], tf.int32)
        examples = {
            "text": tf.constant(list(texts), tf.string),
            "words": tf.RaggedTensor.from_row_lengths(flat, lengths),  # (n, words)
            "tags": tf.RaggedTensor.from_row_lengths(ids, lengths),  # (n, words)
            "group": tf.constant(groups, tf.string),
        }
    return InMemory(examples, len(texts))


def tagged_words(
    builder: tfds.core.DatasetBuilder, text_column: str | None = None, tags_column: str | None = None
) -> tuple[str, str, tuple[str, ...]]:
    """The feature of the tokens, the one of the tags, and the names of the tags.

    Raises:
        UsageError: there is none, or not the one named.
    """
    kinds = builder.info.features
    features = dict(kinds.items()) if isinstance(kinds, tfds.features.FeaturesDict) else {"": kinds}
    inner = {name: kind.feature for name, kind in features.items() if isinstance(kind, tfds.features.Sequence)}
    labels = [name for name, kind in inner.items() if isinstance(kind, tfds.features.ClassLabel)]
    tokens = [name for name, kind in inner.items() if kind.shape == () and kind.tf_dtype == tf.string]
    chosen = []
    for given, there, names, flag in (
        (text_column, tokens, TEXT_NAMES, "text"),
        (tags_column, labels, TAG_NAMES, "tags"),
    ):
        wanted = [given] if given else [*names, *(there if len(there) == 1 else ())]
        found = next((name for name in wanted if name in there), None)
        if found is None:
            listed = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in features.items())
            if there:
                raise UsageError(
                    f"Expected --{flag}_column to name one of {', '.join(there)}.{nearest(given or flag, there)} "
                    f"Received: {given!r} for {builder.name}"
                )
            raise UsageError(f"Expected a data set of tokens with a tag each. Received: {builder.name} with {listed}")
        chosen.append(found)
    return chosen[0], chosen[1], tuple(inner[chosen[1]].names)


def read_named(
    name: str,
    text_column: str | None,
    tags_column: str | None,
    seed: int,
    validation_fraction: float,
    limit: int | None,
) -> Tagged:
    """A data set of TensorFlow Datasets as `Tagged`, in the splits of `catalogue.carved`."""
    builder = catalogue.prepare(name, lambda b: tagged_words(b, text_column, tags_column), STAND_IN)
    tokens, tags, names = tagged_words(builder, text_column, tags_column)

    def read(part: str) -> tf.data.Dataset:
        data = builder.as_dataset(split=part, read_config=tfds.ReadConfig(try_autocache=False), shuffle_files=False)
        return data.map(lambda one: (one[tokens], one[tags], one.get("group", tf.constant(""))))

    def usable(split: str) -> bool:
        return all((one >= 0).all() for _, one, _ in read(split).take(1).as_numpy_iterator())  # secret ones are -1

    parts = {
        split: read(part) for split, part in catalogue.carved(builder, name, seed, validation_fraction, usable).items()
    }
    counts = fewer({split: int(data.cardinality()) for split, data in parts.items()}, limit)
    examples = {
        split: [
            Example([one.decode("utf-8", "replace") for one in words], [names[k] for k in ids], [], group.decode())
            for words, ids, group in parts[split].take(counts[split]).as_numpy_iterator()
            if len(words)
        ]
        for split in SPLITS
    }
    kinds = list(dict.fromkeys(kind for kind in (parts_of(tag)[1] for tag in names) if kind))
    description = " ".join(builder.info.description.split())
    return tagged(examples, kinds, f"{builder.info.full_name} (TensorFlow Datasets): {description[:400]}")
