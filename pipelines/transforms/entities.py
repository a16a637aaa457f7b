"""Tags of words to the entities they stand for, in a served graph, by core operations of TensorFlow.

An entity begins at a tag B-, and at an I- after a word that has another kind or none (which no tag of training has, and
a model may well answer): so every sequence of tags has one reading, and no word that has a kind is lost. It is the one
of `datasets.tag_schemes.spans_of`. Its score is the mean of its words' probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from pipelines.datasets.tag_schemes import parts_of
from pipelines.transforms.rows import by_owner, owners, places, where
from pipelines.transforms.spans import Words, substring


class Tags:
    """What the tags of a model stand for.

    Args:
        names: of the tags, in BIO.

    Attributes:
        names: the same.
        kinds: names of kinds, in their order among the tags.
        kind_of: of each tag, the number of its kind from 1 on; 0 for none.
        begins: of each tag, whether it is a B-.
    """

    def __init__(self, names: Sequence[str]):
        marks = [parts_of(name) for name in names]
        self.names = list(names)
        self.kinds = list(dict.fromkeys(kind for _, kind in marks if kind))
        self.kind_of = [self.kinds.index(kind) + 1 if kind else 0 for _, kind in marks]
        self.begins = [mark == "B" for mark, _ in marks]

    def names_of(self, numbers: tf.RaggedTensor) -> tf.RaggedTensor:
        """Names of tags by their numbers."""
        return numbers.with_values(tf.gather(tf.constant(self.names), numbers.values))


@tf.autograph.experimental.do_not_convert
def of_words(
    probabilities: tf.Tensor, first: tf.RaggedTensor, words: tf.RaggedTensor
) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.Tensor]:
    """The tags of words from those of tokens.

    Args:
        probabilities: of the tags at every token, (b, t, k); t may go on after the last token.
        first: whether a token is the first one of its word, bool (b, tokens).
        words: (b, words); those without a token were cut off.

    Returns:
        The number of each word's likeliest tag, int32, and its probability, float32, both (b, words): tag 0 with 1
        where a word was cut off; and whether there are such words, bool (b,).
    """
    row, place = owners(first.row_splits), places(first)
    here = where(first.values)
    at = tf.stack([tf.gather(row, here), tf.gather(place, here)], 1)  # of the first tokens
    chosen = tf.gather_nd(probabilities, at)  # (read words, k)
    read = tf.math.unsorted_segment_sum(tf.cast(first.values, tf.int64), row, first.nrows())  # (b,)
    kept = places(words) < tf.gather(read, owners(words.row_splits))  # the words that were read
    into, size = where(kept)[:, None], tf.shape(words.values, out_type=tf.int64)
    tags = tf.scatter_nd(into, tf.argmax(chosen, -1, tf.int32), size)
    scores = tf.scatter_nd(into, tf.reduce_max(chosen, -1), size) + tf.cast(~kept, tf.float32)
    return words.with_values(tags), words.with_values(scores), read < words.row_lengths()


@tf.autograph.experimental.do_not_convert
def read(
    text: tf.Tensor, found: Words, numbers: tf.RaggedTensor, scores: tf.RaggedTensor, tags: Tags
) -> dict[str, Any]:
    """The entities of texts.

    Args:
        text: (b,), any bytes.
        found: the words in them.
        numbers: of the words' tags, (b, words).
        scores: of the words, (b, words).
        tags: what they stand for.

    Returns:
        `entities`, `labels`: strings; `starts`, `ends`: int32, code points; `scores`: float32. All are (b, e), as wide
        as the most entities that a text has, with "", -1 and 0 after those of the others.
    """
    kinds = tf.gather(tags.kind_of, numbers.values)  # (all words,)
    place = places(numbers)
    before = tf.where(place > 0, tf.concat([[0], kinds], 0)[: tf.size(kinds)], 0)
    begins = (kinds > 0) & (tf.gather(tags.begins, numbers.values) | (kinds != before))
    here, inside = where(begins), where(kinds > 0)
    number = tf.gather(tf.cumsum(tf.cast(begins, tf.int32)) - 1, inside)  # the entity of each word that is in one
    total = tf.size(here)
    ends = tf.math.unsorted_segment_max(tf.gather(found.ends.values, inside), number, total)
    means = tf.math.unsorted_segment_mean(tf.gather(scores.values, inside), number, total)

    def rows(values: tf.Tensor) -> tf.RaggedTensor:
        return by_owner(values, tf.gather(owners(numbers.row_splits), here), tf.cast(numbers.nrows(), tf.int32))

    starts, stops = rows(tf.gather(found.starts.values, here)), rows(ends)
    return {
        "entities": substring(text, starts, stops).to_tensor(""),
        "labels": rows(tf.gather(tf.constant(["", *tags.kinds]), tf.gather(kinds, here))).to_tensor(""),
        "starts": starts.to_tensor(-1),
        "ends": stops.to_tensor(-1),
        "scores": rows(means).to_tensor(0.0),
    }
