"""What is predicted in a row of tokens: the places of masks, whole words, and the targets of a permutation.

    targets = span_targets(token_ids, seed, special_ids=(0, 1, 2))      # 1 of 6 tokens, in spans of 1 to 5
    known = permutation(targets, seed, num_targets=21)                 # what each place may see, for models.xlnet
    starts = WordStarts(state)(token_ids)                              # for masks of whole words

TensorFlow functions of a stateless seed, int (2,), eagerly and inside `tf.data`. `corruption.py` beside this file draws
masks and missing spans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from models.xlnet import PermutationMasks, permutation_masks
from pipelines.transforms.corruption import Masked

PREDICTED = 6  # one token of so many is predicted, K
LONGEST = 5  # tokens of a predicted span


def gathered(masked: Masked, count: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The chosen places of each row, in their order, so that nothing is scored but them.

    Args:
        masked: of `masked_language_model`.
        count: k, places of a row; the first are kept where more were chosen, and the last have no weight where fewer
            were.

    Returns:
        Places (b, k) int32, their true ids (b, k), weights (b, k) float32.
    """
    order = tf.argsort(-masked.weights, axis=1, stable=True)[:, :count]  # (b, k)
    return order, tf.gather(masked.labels, order, batch_dims=1), tf.gather(masked.weights, order, batch_dims=1)


def span_targets(
    token_ids: Any, seed: Any, *, special_ids: Sequence[int], predicted: int = PREDICTED, longest: int = LONGEST
) -> tf.Tensor:
    """Which tokens a permutation language model predicts: one of `predicted`, in spans.

    The row is divided into stretches of `predicted` times `l` tokens, `l` from 1 to `longest` drawn anew for each; of
    a stretch one span of `l` tokens is predicted, anywhere in it. The last stretch is as long as the rest allows, and
    what is left over stands before the first one or after the last.

    Args:
        token_ids: int (b, t).
        seed: int (2,).
        special_ids: ids that are never predicted.
        predicted: K; one token of so many.
        longest: most tokens of a span.

    Returns:
        (b, t) bool; at most `t // predicted` of a row are true.

    Raises:
        ValueError: a number is below 1.

    Reference: Yang et al. 2019, section 2.3, "Partial prediction", and section 3.1 for the spans and K = 6.
    """
    if min(predicted, longest) < 1:
        raise ValueError(f"Expected predicted and longest of at least 1. Received: {predicted} and {longest}")
    token_ids = tf.convert_to_tensor(token_ids)
    batch, length = tf.unstack(tf.shape(token_ids))
    count = length // predicted  # of targets, and of stretches at most
    seeds = tf.random.experimental.stateless_split(tf.cast(seed, tf.int32), 3)
    sizes = tf.random.stateless_uniform([batch, count], seeds[0], 1, longest + 1, tf.int32)
    before = tf.cumsum(sizes, axis=1, exclusive=True)  # (b, n), targets of the stretches before
    sizes = tf.clip_by_value(sizes, 0, tf.maximum(count - before, 0))
    gaps = tf.cast(
        tf.cast((predicted - 1) * sizes + 1, tf.float32) * tf.random.stateless_uniform([batch, count], seeds[1]),
        tf.int32,
    )
    rest = tf.cast(
        tf.random.stateless_uniform([batch, 1], seeds[2]) * tf.cast(length % predicted + 1, tf.float32), tf.int32
    )
    starts = (rest + predicted * before + gaps)[:, None]  # (b, 1, n)
    places = tf.range(length)[None, :, None]  # (1, t, 1)
    inside = tf.reduce_any((places >= starts) & (places < starts + sizes[:, None]), axis=-1)  # (b, t)
    special = tf.reduce_any(token_ids[..., None] == tf.cast(list(special_ids), token_ids.dtype), -1)
    return inside & ~special


def permutation(targets: Any, seed: Any, *, num_targets: int) -> PermutationMasks:
    """What each place may see when the targets come last in a random order, for `XLNet.predict_targets`.

    Args:
        targets: (b, t) bool, of `span_targets`.
        seed: int (2,).
        num_targets: k, the most of a row.

    Returns:
        `models.xlnet.PermutationMasks`.
    """
    order = tf.argsort(tf.random.stateless_uniform(tf.shape(targets), tf.cast(seed, tf.int32)), axis=1)
    return permutation_masks(tf.ensure_shape(order, targets.shape), num_targets, targets)


class WordStarts:
    """Whether a token begins a word, by the spelling of it and of the one before.

    A token goes on with the word before it if that ends, and it begins, with a letter, a digit or an underscore, or if
    it says so (`##`). A byte of a character beyond ASCII counts as a letter.

    Args:
        state: of a tokenizer of this project.
    """

    def __init__(self, state: Mapping[str, Any]):
        begins, ends = np.array([boundaries(name, state["kind"]) for name in spellings(state)], bool).T
        with tf.device("CPU"):
            self.begins, self.ends = tf.constant(begins), tf.constant(ends)  # (v,)

    def __call__(self, token_ids: Any) -> tf.Tensor:
        """(b, t) bool of token ids (b, t)."""
        ends = tf.gather(self.ends, token_ids)
        before = tf.pad(ends, [[0, 0], [1, 0]])[:, :-1]  # (b, t)
        return ~(tf.gather(self.begins, token_ids) & before)


def spellings(state: Mapping[str, Any]) -> list[str]:
    """The name of each id, special ones empty: pieces of SentencePiece as it writes them, with U+2581 for a space."""
    from pipelines.transforms import text

    if "model" in state:
        pieces = text.Tokenizer(state).pieces
        count = state["vocab_size"] - len(state.get("extra", ()))
        names = [one.decode("utf-8", "replace") for one in pieces.id_to_string(tf.range(count)).numpy()]
    else:
        names = [*text.SPECIAL, *state["vocabulary"]]
    names[: len(text.SPECIAL)] = [""] * len(text.SPECIAL)
    return names + [""] * len(state.get("extra", ()))


def boundaries(name: str, kind: str) -> tuple[bool, bool]:
    """Whether a token begins, and whether it ends, within a word."""
    if kind == "word":
        return False, False
    if kind == "wordpiece":
        return name.startswith("##"), True
    if kind in ("bpe", "sentencepiece") and len(name) == 6 and name.startswith("<0x"):
        letter = int(name[3:5], 16) >= 128
        return letter, letter
    return (of_word(name[0]), of_word(name[-1])) if name else (False, False)


def of_word(character: str) -> bool:
    return character.isalnum() or character == "_"
