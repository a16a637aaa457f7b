"""Missing spans and masked tokens: nothing is lost, the shares are right, the same seed gives the same."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.transforms.corruption import (
    corrupted_lengths,
    masked_language_model,
    noise_counts,
    original_length,
    span_corruption,
)

SENTINEL, FEWEST = 999, 900  # ids from 900 on are sentinels
MASK, SPECIAL = 4, (0, 1, 2, 3, 4)
V = 60
some = settings(deadline=None, max_examples=50)
seeds = st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))


@tf.function(input_signature=[tf.TensorSpec([None], tf.int32), tf.TensorSpec([2], tf.int32)])
def corrupted(token_ids, seed):
    return span_corruption(token_ids, seed, sentinel=SENTINEL)


def pieces(token_ids) -> tuple[list[int], list[list[int]]]:
    """The sentinels of a sequence, and what stands before the first of them and after each; without the end."""
    assert token_ids[-1] == 1 and 1 not in token_ids[:-1]
    sentinels, parts = [], [[]]
    for token in token_ids[:-1]:
        if token >= FEWEST:
            sentinels.append(int(token))
            parts.append([])
        else:
            parts[-1].append(int(token))
    return sentinels, parts


@some
@given(st.integers(0, 300), seeds)
@example(0, (1, 2))
@example(1, (1, 2))
@example(2, (1, 2))
def test_source_and_target_together_hold_every_token_once_and_in_order(length, seed):
    token_ids = np.arange(2, length + 2, dtype="int32")
    source, target = (one.numpy() for one in corrupted(token_ids, seed))
    marks, kept = pieces(source)
    also, missing = pieces(target)
    assert marks == also == list(range(SENTINEL, SENTINEL - len(marks), -1))  # each once in both, counted down
    assert missing[0] == [] and (not marks or kept[-1] == [])  # a text begins with what is kept, and ends with a gap
    assert all(kept[:-1]) and all(missing[1:])  # no gap touches another, none is empty
    together = [token for before, gap in zip(kept, [*missing[1:], []]) for token in before + gap]
    assert together == token_ids.tolist()
    noise, spans = (int(number) for number in noise_counts(length))
    assert sum(map(len, missing)) == noise and len(marks) == spans
    assert (len(source), len(target)) == corrupted_lengths(length)
    if length >= 2:
        assert noise == np.clip(np.round(length * 0.15), 1, length - 1) and spans == max(1, np.round(noise / 3))


@some
@given(st.integers(2, 40), st.floats(0.05, 0.95), st.floats(1, 6), st.integers(1, 5), seeds)
def test_any_density_keeps_a_token_and_stays_within_the_sentinels(length, density, mean, most, seed):
    options = {"noise_density": density, "mean_span": mean, "num_sentinels": most}
    source, target = span_corruption(np.arange(2, length + 2), seed, sentinel=SENTINEL, **options)
    marks, kept = pieces(source.numpy())
    also, missing = pieces(target.numpy())
    assert marks == also and 1 <= len(marks) <= most
    assert any(kept) and sorted(chain(*kept, *missing)) == list(range(2, length + 2))


def test_lengths_are_those_that_t5_was_trained_with():
    assert original_length(512) == 568 and corrupted_lengths(568) == (512, 114)
    assert original_length(2) == 1
    for source_length in range(3, 120):
        length = original_length(source_length)
        assert corrupted_lengths(length)[0] <= source_length < corrupted_lengths(length + 1)[0]


def test_the_same_seed_gives_the_same_eagerly_and_in_a_data_set():
    token_ids = np.arange(2, 102, dtype="int32")
    texts = tf.data.Dataset.from_tensors(token_ids).repeat(4).enumerate()
    made = list(texts.map(lambda step, ids: span_corruption(ids, [7, step], sentinel=SENTINEL)))
    for step, (source, target) in enumerate(made):
        again = span_corruption(token_ids, (7, step), sentinel=SENTINEL)
        np.testing.assert_array_equal(source, again[0])
        np.testing.assert_array_equal(target, again[1])
    assert len({tuple(source.numpy()) for source, _ in made}) == 4  # and another seed another one


def test_every_way_to_take_a_span_is_as_likely():
    """Of 9 tokens 3 are missing in 2 spans: 2 ways to divide those, 5 to divide the others."""
    token_ids, options = np.arange(2, 11, dtype="int32"), {"noise_density": 1 / 3, "mean_span": 1.5}
    draws = tf.data.Dataset.range(600)
    draws = draws.map(lambda step: span_corruption(token_ids, [3, step], sentinel=SENTINEL, **options)[0])
    _, counts = np.unique(np.stack(list(draws.as_numpy_iterator())), axis=0, return_counts=True)
    assert len(counts) == 10 and counts.min() > 30 and counts.max() < 95  # 60 each, with a deviation of 7.3


@pytest.mark.parametrize(
    "options",
    [{"noise_density": 0.0}, {"noise_density": 1.0}, {"mean_span": 0.5}, {"num_sentinels": 0}, {"sentinel": 9}],
)
def test_options_of_spans_out_of_range_are_errors(options):
    with pytest.raises(ValueError, match="Received: "):
        span_corruption([3, 4, 5], (0, 0), **({"sentinel": SENTINEL} | options))
    with pytest.raises(ValueError, match="Received: 1"):
        original_length(1)


def masks(token_ids, seed=(0, 0), **options):
    found = masked_language_model(token_ids, seed, vocab_size=V, mask_id=MASK, special_ids=SPECIAL, **options)
    return [one.numpy() for one in found]


texts = st.lists(st.lists(st.integers(0, V - 1), min_size=12, max_size=12), min_size=1, max_size=4)


def plain(token_ids, starts, chosen, limit):
    """Checks a row: words are chosen whole, and none that was left out would have fitted."""
    words: list[list[int]] = []
    for place, token in enumerate(token_ids):
        if token in SPECIAL:
            continue
        if not words or starts[place] or token_ids[place - 1] in SPECIAL:
            words.append([])
        words[-1].append(place)
    taken = [word for word in words if chosen[word].all()]
    assert sum(map(len, taken)) == chosen.sum()  # whole words, and nothing else
    left = limit - chosen.sum()
    assert left >= 0 and all(len(word) > left for word in words if word not in taken)


@some
@given(texts, st.lists(st.booleans(), min_size=V, max_size=V), seeds, st.booleans(), st.sampled_from([None, 1, 2, 5]))
def test_chosen_tokens_are_whole_words_within_the_limit_and_never_special(rows, starts, seed, by_place, most):
    token_ids, starts = np.array(rows, "int32"), np.array(starts)
    by = starts[token_ids] if by_place else starts
    shown, labels, weights = masks(token_ids, seed, starts_word=by, share=0.4, max_predictions=most)
    chosen, special = weights == 1, np.isin(token_ids, SPECIAL)
    assert ((weights == 0) | chosen).all() and not (chosen & special).any()
    np.testing.assert_array_equal(labels, np.where(chosen, token_ids, 0))
    np.testing.assert_array_equal(shown[~chosen], token_ids[~chosen])
    assert not np.isin(shown[chosen], [0, 1, 2, 3]).any()  # the mask alone may take the place of a token
    for row in range(len(token_ids)):
        limit = min(max(round((~special[row]).sum() * 0.4), 1), most or 12)
        plain(token_ids[row], starts[token_ids[row]], chosen[row], limit)


@some
@given(texts, seeds)
def test_single_tokens_reach_their_share_exactly(rows, seed):
    token_ids = np.array(rows, "int32")
    _, _, weights = masks(token_ids, seed)
    usual = (~np.isin(token_ids, SPECIAL)).sum(1)
    np.testing.assert_array_equal(weights.sum(1), np.where(usual, np.maximum(np.round(usual * 0.15), 1), 0))


def test_four_of_five_are_masked_and_one_of_ten_is_random():
    token_ids = np.random.default_rng(0).integers(5, V, (50, 1000)).astype("int32")
    shown, _, weights = masks(token_ids)
    chosen = weights == 1
    assert chosen.sum() == 50 * 150
    masked, kept = (shown == MASK)[chosen].mean(), (shown == token_ids)[chosen].mean()
    assert abs(masked - 0.8) < 0.02 and abs(kept - 0.1 - 0.1 / 55) < 0.015  # a random token may be the true one
    drawn = shown[chosen & (shown != MASK) & (shown != token_ids)]
    assert set(np.unique(drawn)) == set(range(5, V)) and np.bincount(drawn)[5:].min() > 2
    places = chosen.sum(0)  # none is preferred: 7.5 of 50 times each
    assert abs(places[:500].mean() - places[500:].mean()) < 0.4 and places.max() < 22


def test_masks_are_dynamic_and_of_the_seed_alone():
    token_ids = tf.random.stateless_uniform([3, 40], (1, 2), 5, V, tf.int32)
    options = {"vocab_size": V, "mask_id": MASK, "special_ids": SPECIAL}
    steps = tf.data.Dataset.from_tensors(token_ids).repeat(3).enumerate()
    made = list(steps.map(lambda step, ids: masked_language_model(ids, [5, step], **options)))
    for step, one in enumerate(made):
        for found, expected in zip(one, masks(token_ids, (5, step))):
            np.testing.assert_array_equal(found, expected)
    assert (made[0].weights.numpy() != made[1].weights.numpy()).any()


@pytest.mark.parametrize(
    "options",
    [{"share": 0.0}, {"share": 1.5}, {"mask_share": 0.95}, {"random_share": -0.1}, {"special_ids": range(V)}],
)
def test_options_of_masks_out_of_range_are_errors(options):
    arguments = {"vocab_size": V, "mask_id": MASK, "special_ids": SPECIAL} | options
    with pytest.raises(ValueError, match="Received: "):
        masked_language_model([[5, 6]], (0, 0), **arguments)
