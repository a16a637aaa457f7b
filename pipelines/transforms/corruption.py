"""What a language model is taught to repair: T5's missing spans and BERT's masked tokens, drawn anew from every seed.

    source, target = span_corruption(token_ids, seed, sentinel=32_099)
    masked = masked_language_model(token_ids, seed, vocab_size=30_522, mask_id=103, special_ids=(0, 100, 101, 102, 103))

TensorFlow functions of a stateless seed, int (2,), eagerly and inside `tf.data`. Deviations: of spans, as in the
authors' program and unlike their figure 2, a text ends with a missing span, so that no last sentinel follows in the
target; of masks, a token that is replaced at random becomes no special one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf


def noise_counts(length: Any, noise_density: float = 0.15, mean_span: float = 3.0, num_sentinels: int = 100):
    """How many tokens of a text are missing, and in how many spans.

    Args:
        length: t, a number or a scalar tensor; a text of fewer than two tokens misses none.
        noise_density: share of the tokens that are missing; at least one is, and at least one is kept.
        mean_span: mean number of tokens of a span.
        num_sentinels: most spans; then they are longer.

    Returns:
        Two scalars, int32.

    Reference: Raffel et al. 2020, section 3.3.4, "Corrupting spans".
    """
    whole = tf.cast(length, tf.float64)
    noise = tf.clip_by_value(tf.cast(tf.round(whole * noise_density), tf.int32), 1, tf.maximum(length - 1, 1))
    spans = tf.cast(tf.round(tf.cast(noise, tf.float64) / mean_span), tf.int32)
    spans = tf.clip_by_value(spans, 1, tf.minimum(tf.minimum(noise, tf.maximum(length - noise, 1)), num_sentinels))
    enough = tf.cast(length >= 2, tf.int32)
    return noise * enough, spans * enough


def corrupted_lengths(length: int, noise_density: float = 0.15, mean_span: float = 3.0, num_sentinels: int = 100):
    """Tokens of the source and of the target that `span_corruption` makes of `length` tokens, the ends counted."""
    noise, spans = (int(number) for number in noise_counts(length, noise_density, mean_span, num_sentinels))
    return length - noise + spans + 1, noise + spans + 1


def original_length(source_length: int, noise_density: float = 0.15, mean_span: float = 3.0, num_sentinels: int = 100):
    """The most tokens of which `span_corruption` makes a source of at most `source_length`: 568 for 512.

    Raises:
        ValueError: there is no room for a token and the end.
    """
    if source_length < 2:
        raise ValueError(f"Expected a source of at least 2 tokens. Received: {source_length}")
    length = source_length - 1
    while corrupted_lengths(length + 1, noise_density, mean_span, num_sentinels)[0] <= source_length:
        length += 1
    return length


def span_corruption(
    token_ids: Any,
    seed: Any,
    *,
    sentinel: int,
    end: int = 1,
    noise_density: float = 0.15,
    mean_span: float = 3.0,
    num_sentinels: int = 100,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Takes random spans out of a text: the source has a sentinel for each, the target each sentinel and its span.

    The lengths of the missing and of the kept spans are drawn so that every way to divide their tokens is as likely.
    The first span is a kept one, the last a missing one.

    Args:
        token_ids: int (t,), without padding and end.
        seed: int (2,).
        sentinel: id of the first sentinel, the last of the tokenizer's (of the published T5 32,099, though its matrix
            has 32,128 rows); the next ones count down.
        end: id that ends both.
        noise_density, mean_span, num_sentinels: see `noise_counts`.

    Returns:
        Source and target, of the dtype of `token_ids`; their lengths are those of `corrupted_lengths`.

    Raises:
        ValueError: an argument is out of range.

    Reference: Raffel et al. 2020, section 3.1.4, figure 2 and section 3.3.4.
    """
    if not 0 < noise_density < 1 or mean_span < 1 or not 1 <= num_sentinels <= sentinel:
        raise ValueError(
            "Expected noise_density between 0 and 1, mean_span of at least 1 and num_sentinels from 1 to sentinel. "
            f"Received: {noise_density}, {mean_span}, {num_sentinels} and {sentinel}"
        )
    token_ids = tf.convert_to_tensor(token_ids)
    length = tf.shape(token_ids)[0]
    noise, spans = noise_counts(length, noise_density, mean_span, num_sentinels)
    seeds = tf.random.experimental.stateless_split(tf.cast(seed, tf.int32), 2)
    parts = [_divided(length - noise, spans, seeds[0]), _divided(noise, spans, seeds[1])]
    missing = tf.repeat(tf.range(2 * spans) % 2 == 1, tf.reshape(tf.stack(parts, axis=1), [-1]))  # (t,) or (0,)
    missing = tf.concat([missing, tf.fill([length - tf.size(missing)], False)], 0)  # (t,)
    return _with_sentinels(token_ids, missing, sentinel, end), _with_sentinels(token_ids, ~missing, sentinel, end)


def _divided(count: tf.Tensor, parts: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """A number as the sum of `parts` positive ones, (parts,): every way is as likely."""
    places = tf.argsort(tf.random.stateless_uniform([tf.maximum(count - 1, 0)], seed))  # a random order of the gaps
    cuts = tf.sort(places[: tf.maximum(parts - 1, 0)]) + 1
    return (tf.concat([cuts, [count]], 0) - tf.concat([[0], cuts], 0))[:parts]


def _with_sentinels(token_ids: tf.Tensor, out: tf.Tensor, sentinel: int, end: int) -> tf.Tensor:
    """Token ids where each span of true places has become a sentinel, and the end; without them if all are true."""
    first = out & ~tf.concat([[False], out[:-1]], 0)[: tf.size(out)]  # (t,)
    first &= ~tf.reduce_all(out)
    numbers = tf.cumsum(tf.cast(first, token_ids.dtype))
    marked = tf.where(first, tf.cast(sentinel + 1, token_ids.dtype) - numbers, token_ids)
    return tf.concat([marked[~out | first], tf.cast([end], token_ids.dtype)], 0)


class Masked(NamedTuple):
    """token_ids: (b, t), as they are shown. labels: (b, t), the true ids where one is asked for, and 0 elsewhere.
    weights: (b, t) float32, 1 where one is asked for."""

    token_ids: tf.Tensor
    labels: tf.Tensor
    weights: tf.Tensor


def masked_language_model(
    token_ids: Any,
    seed: Any,
    *,
    vocab_size: int,
    mask_id: int,
    special_ids: Sequence[int],
    share: float = 0.15,
    max_predictions: int | None = None,
    starts_word: Any = None,
    mask_share: float = 0.8,
    random_share: float = 0.1,
) -> Masked:
    """Chooses tokens that the model must name; most of them are masked, some replaced at random, some left.

    Args:
        token_ids: int (b, t).
        seed: int (2,); another one each time a text is seen makes the masks dynamic.
        vocab_size: number of tokens, v.
        mask_id: id that masks.
        special_ids: ids that are never chosen, nor drawn at random: padding, separators, the mask.
        share: of the tokens that are not special; rounded, and at least one is chosen.
        max_predictions: most tokens that are chosen of a text; None for no bound.
        starts_word: bool, whether a token starts a word: (v,) by id or (b, t) by place. Then words are chosen whole, in
            a random order, each if it does not go beyond the share; None chooses single tokens.
        mask_share: share of the chosen ones that are masked.
        random_share: share of the chosen ones that become a random token.

    Returns:
        `Masked`.

    Raises:
        ValueError: a share is out of range, or all tokens are special.

    Reference: Devlin et al. 2019, section 3.1 and appendix A.1; Liu et al. 2019, "RoBERTa", section 4.1, for dynamic
        masks; the release notes of BERT of May 2019 for whole words.
    """
    ordinary = np.setdiff1d(np.arange(vocab_size), special_ids)
    if not 0 < share <= 1 or min(mask_share, random_share) < 0 or mask_share + random_share > 1 or not len(ordinary):
        raise ValueError(
            "Expected share above 0 and at most 1, mask_share and random_share with a sum of at most 1, and ordinary "
            f"tokens. Received: {share}, {mask_share}, {random_share} and {len(ordinary)} tokens"
        )
    token_ids = tf.convert_to_tensor(token_ids)
    seeds = tf.random.experimental.stateless_split(tf.cast(seed, tf.int32), 3)
    usual = tf.reduce_all(token_ids[..., None] != tf.cast(list(special_ids), token_ids.dtype), -1)  # (b, t)
    count = tf.reduce_sum(tf.cast(usual, tf.int32), axis=1)  # (b,)
    limit = tf.maximum(tf.cast(tf.round(tf.cast(count, tf.float64) * share), tf.int32), 1)
    limit = limit if max_predictions is None else tf.minimum(limit, max_predictions)
    starts = tf.ones_like(usual) if starts_word is None else tf.convert_to_tensor(starts_word, tf.bool)
    starts = tf.gather(starts, token_ids) if starts.shape.rank == 1 else starts  # (b, t)
    chosen = _chosen(usual, starts, limit, seeds[0])  # (b, t)

    kinds = tf.random.stateless_uniform(tf.shape(token_ids), seeds[1])
    drawn = tf.random.stateless_uniform(tf.shape(token_ids), seeds[2], 0, len(ordinary), tf.int32)
    drawn = tf.gather(tf.constant(ordinary, token_ids.dtype), drawn)
    shown = tf.where(kinds < mask_share + random_share, drawn, token_ids)
    shown = tf.where(kinds < mask_share, tf.cast(mask_id, token_ids.dtype), shown)
    return Masked(
        tf.where(chosen, shown, token_ids),
        tf.where(chosen, token_ids, tf.zeros_like(token_ids)),
        tf.cast(chosen, tf.float32),
    )


def _chosen(usual: tf.Tensor, starts: tf.Tensor, limit: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Places (b, t) of words in a random order, each taken whole if the text stays within its limit (b,) with it."""
    after_none = tf.pad(~usual, [[0, 0], [1, 0]], constant_values=True)[:, :-1]  # (b, t)
    words = tf.cumsum(tf.cast(usual & (starts | after_none), tf.int32), axis=1) - 1  # (b, t), numbers from 0 on
    batch, length = tf.unstack(tf.shape(usual))
    rows = tf.range(batch)[:, None] * length
    inside = tf.cast(usual, tf.int32)
    sizes = tf.math.unsorted_segment_sum(inside, rows + tf.maximum(words, 0), batch * length)
    order = tf.argsort(tf.random.stateless_uniform([batch, length], seed), axis=1)
    sizes = tf.gather(tf.reshape(sizes, [batch, length]), order, batch_dims=1)  # (b, t), of words in a random order

    def unchanged(taken, left, found):
        return found

    def take(taken, left, found):
        fits = ~taken & (sizes <= left[:, None])  # what does not fit now never will
        new = fits & (tf.cumsum(tf.where(fits, sizes, 0), axis=1) <= left[:, None])
        left -= tf.reduce_sum(tf.where(new, sizes, 0), axis=1)
        return taken | new, left, tf.reduce_any(new)

    taken, _, _ = tf.while_loop(unchanged, take, (tf.zeros_like(usual), limit, tf.constant(True)))
    taken = tf.gather(taken, tf.argsort(order, axis=1), batch_dims=1)  # (b, t), by number of the word
    return usual & tf.gather(taken, tf.maximum(words, 0), batch_dims=1)
