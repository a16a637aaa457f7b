"""The likeliest tokens of words by a unigram model, in a TensorFlow graph, exactly as `tokenizers` finds them.

    Unigram(model)(["▁token"])

SentencePiece's own operation would not do: it adds scores in single precision, so that ties fall otherwise, and it
keeps control symbols out of its search, which the library does not. Sums of scores are rounded as the library's are, so
that ties fall alike; but in a word of more than 1,000 characters, which is read in parts, they may not.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines.transforms.rows import by_owner, owners, where
from pipelines.transforms.subwords import CODES, Words, fused, table


class Unigram(Words):
    """The likeliest tokens of a word by a unigram model; of equals, those with the longest last token.

    Args:
        model: of tokenizer.json, type Unigram.

    Reference: Kudo 2018, "Subword regularization", section 3.2; Viterbi 1967, in the order of the library.
    """

    PENALTY = 10.0  # of an unknown character, below the least score of a token
    LONG = 1000  # characters; longer words are cut, so that a tie of scores may fall otherwise there

    def __init__(self, model: Mapping[str, Any]):
        if model.get("byte_fallback"):
            raise ValueError("Expected a unigram model without byte_fallback. Received: one with it")
        if model.get("unk_id") is None:
            raise ValueError("Expected a unigram model with an unknown token. Received: none")
        scores = [score for _, score in model["vocab"]]
        nodes: dict[int, int] = {}  # node · CODES + code point -> the next node, of a tree whose root is 0
        owners = [-1]  # the token that ends at a node
        near: set[int] = set()
        for number, (token, _) in enumerate(model["vocab"]):
            node, codes = 0, [ord(letter) for letter in token]
            for code in codes:
                node = nodes.setdefault(node * CODES + code, len(nodes) + 1)
                owners += [-1] * (node == len(owners))
            owners[node] = number if codes else -1
            near.update(first * CODES + second for first, second in pairwise(codes))
        super().__init__(near, CODES)
        self.edges = table(nodes, 0)
        self.unknown = int(model["unk_id"])
        self.owners = np.array(owners, np.int64)
        self.scores = np.array([-np.inf if number < 0 else scores[number] for number in owners])
        self.unknown_score = min(scores) - self.PENALTY

    def __call__(self, words: tf.Tensor) -> tf.RaggedTensor:
        """Token ids of words (w,) that are not empty, int64 (w, tokens)."""
        ragged = tf.strings.unicode_decode(words, "UTF-8")  # (w, characters)
        codes, word = tf.cast(ragged.values, tf.int64), tf.cast(owners(ragged.row_splits), tf.int32)
        long = tf.gather(ragged.row_lengths() > self.LONG, word[:-1])
        part = self.parts(codes, word, long)  # (s,)
        lengths = tf.math.bincount(part)  # (parts,)
        nodes = self.ending(codes, tf.gather(tf.cumsum(lengths), part))  # (s, l)
        scores = tf.gather(self.scores, nodes)
        strange = tf.math.is_inf(scores[:, 0])  # no token is this character
        unknown = tf.constant(self.unknown_score, tf.float64)
        scores = tf.concat([tf.where(strange, unknown, scores[:, 0])[:, None], scores[:, 1:]], 1)
        length = self.last(scores, part, lengths)  # (s,), of the last token, less one
        ends = self.ends(tf.range(tf.size(part)) - length - 1, part, lengths)  # (s,)
        node = tf.gather(nodes, length, batch_dims=1)
        ids = tf.where(strange & (length == 0), tf.constant(self.unknown, tf.int64), tf.gather(self.owners, node))
        ids, word = fused(tf.gather(ids, where(ends)), tf.gather(word, where(ends)), self.unknown)
        return by_owner(ids, word, tf.size(words))

    def ending(self, codes: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
        """By character and length, less one, the node of the letters that end there; 0 where there is none.

        Args:
            codes: code points of all parts, (s,).
            end: where the part of each ends.
        """
        count = tf.size(codes)

        def step(size: tf.Tensor, start: tf.Tensor, node: tf.Tensor, found: tf.TensorArray) -> tuple[Any, ...]:
            node = self.edges.lookup(node * CODES + tf.gather(codes, start + size))
            alive = where(node > 0)
            start, node = tf.gather(start, alive), tf.gather(node, alive)
            found = found.write(size, tf.scatter_nd((start + size)[:, None], node, [count]))
            room = where(start + size + 1 < tf.gather(end, start))
            return size + 1, tf.gather(start, room), tf.gather(node, room), found

        found = tf.TensorArray(tf.int64, 0, dynamic_size=True, element_shape=[None])
        loop = (0, tf.range(count), tf.zeros([count], tf.int64), found)
        shapes = (tf.TensorShape([]), tf.TensorShape([None]), tf.TensorShape([None]), tf.TensorShape(None))
        *_, found = tf.while_loop(lambda size, start, *_: (tf.size(start) > 0) | (size < 1), step, loop, shapes)
        return tf.transpose(found.stack())  # (l, s) -> (s, l)

    def last(self, scores: tf.Tensor, part: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """The length, less one, of the last token of the best reading of a part up to each character, (s,).

        Args:
            scores: of the tokens that end at a character, by their length, (s, l).
            part: of each character.
            lengths: of the parts.
        """
        parts, width = tf.size(lengths), tf.shape(scores)[1]
        longest_first = tf.argsort(lengths, direction="DESCENDING", stable=True)
        place = tf.range(tf.size(part)) - tf.gather(tf.cumsum(lengths, exclusive=True), part)  # in its part
        key = tf.cast(place, tf.int64) * tf.cast(parts, tf.int64)
        key += tf.cast(tf.gather(tf.math.invert_permutation(longest_first), part), tf.int64)
        order = tf.argsort(key)  # first characters of all parts, then second ones, …
        scores, counts = tf.gather(scores, order), tf.math.bincount(place)  # how many parts have such a character

        def step(time: tf.Tensor, start: tf.Tensor, best: tf.Tensor, found: tf.TensorArray) -> tuple[Any, ...]:
            stop = start + counts[time]
            total = best[: counts[time]] + scores[start:stop]  # (parts that reach so far, l)
            longest = width - 1 - tf.argmax(total[:, ::-1], 1, tf.int32)
            best = tf.concat([tf.reduce_max(total, 1)[:, None], best[: counts[time], :-1]], 1)
            return time + 1, stop, best, found.write(time + 1, longest)

        found = tf.TensorArray(tf.int32, 1, dynamic_size=True, infer_shape=False, element_shape=[None])
        found = found.write(0, tf.zeros([0], tf.int32))
        nothing = tf.fill([parts, width - 1], tf.constant(-np.inf, tf.float64))
        best = tf.concat([tf.zeros([parts, 1], tf.float64), nothing], 1)  # by how many characters before
        shapes = (tf.TensorShape([]), tf.TensorShape([]), tf.TensorShape([None, None]), tf.TensorShape(None))
        steps = tf.size(counts)
        *_, found = tf.while_loop(lambda time, *_: time < steps, step, (0, 0, best, found), shapes)
        return tf.gather(found.concat(), tf.math.invert_permutation(order))

    def ends(self, before: tf.Tensor, part: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """At which characters (s,) a token of the best reading ends.

        Args:
            before: the character at which the token before ends, if one ends here.
            part: of each character.
            lengths: of the parts.
        """
        count = tf.size(part)
        start = tf.gather(tf.cumsum(lengths, exclusive=True), part)
        jump = tf.concat(
            [tf.where(before < start, count, before), [count]], 0
        )  # (s + 1,), the last one is no character
        reached = tf.scatter_nd((tf.cumsum(lengths) - 1)[:, None], tf.ones_like(lengths), [count + 1])

        def step(hops: tf.Tensor, jump: tf.Tensor, reached: tf.Tensor) -> tuple[tf.Tensor, ...]:
            more = tf.maximum(tf.math.unsorted_segment_max(reached, jump, count + 1), 0)
            return 2 * hops, tf.gather(jump, jump), tf.maximum(reached, more)

        longest = tf.reduce_max(tf.concat([lengths, [0]], 0))
        *_, reached = tf.while_loop(lambda hops, *_: hops < longest, step, (1, jump, reached))
        return reached[:-1] > 0
