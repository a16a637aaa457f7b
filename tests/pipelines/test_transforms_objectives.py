"""What is predicted: spans of a permutation, pairs of passages, whole words, and the special tokens that all need."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config import Failure, UsageError
from pipelines.transforms import text
from pipelines.transforms.corruption import masked_language_model
from pipelines.transforms.objectives import WordStarts, gathered, permutation, span_targets
from pipelines.transforms.sentence_pairs import FOLLOWS, OTHER, sentence_pairs
from pipelines.transforms.text import END, PAD, START, UNKNOWN, Tokenizer, with_names

SPECIAL = (0, 1, 2)
few = settings(deadline=None, max_examples=30)
seeds = st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))


# Targets of a permutation


@few
@given(st.integers(1, 90), st.integers(1, 8), st.integers(1, 6), seeds)
def test_one_token_of_k_is_predicted_in_spans_within_their_stretches(length, predicted, longest, seed):
    token_ids = np.full((3, length), 9, "int32")
    targets = span_targets(token_ids, seed, special_ids=SPECIAL, predicted=predicted, longest=longest).numpy()
    np.testing.assert_array_equal(targets.sum(1), length // predicted)  # exactly, where nothing is special
    if predicted > 1:
        edges = np.diff(np.pad(targets, [(0, 0), (1, 1)]).astype(int), axis=1)
        assert (edges == 1).sum() <= 3 * max(1, length // predicted)
    token_ids[:, ::2] = 1
    with_special = span_targets(token_ids, seed, special_ids=SPECIAL, predicted=predicted, longest=longest).numpy()
    np.testing.assert_array_equal(with_special, targets & (token_ids == 9))


def test_every_place_is_as_likely_and_every_length_of_a_span_is_drawn():
    token_ids = np.full((400, 120), 9, "int32")
    targets = span_targets(token_ids, (1, 2), special_ids=SPECIAL).numpy()
    share = targets.mean(0)  # 1/6 of 400 rows at each place, with a deviation of 0.019
    assert abs(share.mean() - 1 / 6) < 1e-6 and share[12:].max() < 0.26 and share[12:].min() > 0.09
    runs = np.diff(np.flatnonzero(np.diff(np.pad(targets[0::1].ravel(), 1).astype(int)))[0:])[::2]
    assert {1, 2, 3, 4, 5} <= set(runs.tolist())
    again = span_targets(token_ids, (1, 2), special_ids=SPECIAL).numpy()
    other = span_targets(token_ids, (1, 3), special_ids=SPECIAL).numpy()
    np.testing.assert_array_equal(targets, again)
    assert (targets != other).any()


def test_targets_see_the_context_and_the_targets_before_them():
    token_ids = np.full((2, 40), 9, "int32")
    steps = tf.data.Dataset.from_tensors(token_ids).repeat(2).enumerate()

    def made(step, ids):
        targets = span_targets(ids, [3, step], special_ids=SPECIAL)
        return targets, permutation(targets, [4, step], num_targets=6)

    for targets, known in steps.map(made).as_numpy_iterator():
        mask, mapping = known.permutation_mask, known.target_mapping
        np.testing.assert_array_equal(mapping.sum(1) > 0, targets)  # each target once
        assert (known.weights == 1).all()
        for row in range(2):
            context = ~targets[row]
            assert mask[row][:, context].all()  # all see the context
            assert not mask[row][np.ix_(context, targets[row])].any()  # which sees no target
            order = known.places[row]
            for turn, place in enumerate(order):  # and a target those before it, in its own order
                seen = set(np.flatnonzero(mask[row][place] & targets[row]))
                assert seen == set(order[:turn].tolist())


def test_numbers_of_targets_out_of_range_are_errors():
    with pytest.raises(ValueError, match="Received: 0 and 5"):
        span_targets([[5, 6]], (0, 0), special_ids=SPECIAL, predicted=0)


def test_chosen_places_are_gathered_in_their_order():
    token_ids = tf.random.stateless_uniform([4, 40], (1, 2), 5, 60, tf.int32)
    masked = masked_language_model(token_ids, (1, 1), vocab_size=60, mask_id=4, special_ids=(0, 1, 2, 3, 4))
    places, labels, weights = (one.numpy() for one in gathered(masked, 8))
    for row in range(4):
        chosen = np.flatnonzero(masked.weights[row])
        assert places[row][: len(chosen)].tolist() == chosen.tolist() and len(chosen) == 6
        np.testing.assert_array_equal(labels[row][:6], token_ids.numpy()[row][chosen])
        assert weights[row].tolist() == [1] * 6 + [0] * 2
    assert [one.shape for one in gathered(masked, 3)] == [(4, 3)] * 3


# Pairs of passages


def corpus(lengths) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that are numbered, from 10 on, and where documents begin and end, each with a mark after it."""
    offsets = np.cumsum([1, *[n + 1 for n in lengths]])
    return np.arange(10, 10 + offsets[-1]), offsets


def drawn(lengths, **given):
    tokens, offsets = corpus(lengths)
    return sentence_pairs(offsets, lambda place, count: tokens[place : place + count], **given)


@few
@given(st.lists(st.integers(0, 30), min_size=3, max_size=6), st.integers(5, 40), st.sampled_from(["nsp", "sop"]), seeds)
def test_pairs_follow_each_other_or_do_not_as_their_labels_say(lengths, length, kind, seed):
    lengths = [*lengths, 4, 9]
    tokens, offsets = corpus(lengths)
    found, again = (drawn(lengths, kind=kind, rows=6, length=length, seed=seed) for _ in range(2))
    for one, other in zip(found, again):
        np.testing.assert_array_equal(one, other)
    owner = {offsets[k] + place: k for k, size in enumerate(lengths) for place in range(size)}
    for ids, segments, label, ((a, m), (b, n)) in zip(*found):
        whole = [START, *tokens[a : a + m], END, *tokens[b : b + n], END]
        assert ids.tolist() == whole + [PAD] * (length - len(whole))
        assert segments.tolist() == [0] * (m + 2) + [1] * (n + 1) + [0] * (length - len(whole))
        assert m >= 1 and n >= 1
        first, second = ({owner[place] for place in range(start, start + size)} for start, size in ((a, m), (b, n)))
        assert len(first) == len(second) == 1  # no passage goes beyond its document
        if label == FOLLOWS:
            assert b == a + m and first == second
        elif kind == "sop":
            assert a == b + n and first == second
        else:
            assert first != second


def test_half_of_the_pairs_follow_and_documents_come_by_their_length():
    found = drawn([300, 100, 100], kind="nsp", rows=2000, length=20, seed=(0, 1))
    assert abs(found.labels.mean() - 0.5) < 0.04
    assert abs((found.passages[:, 0, 0] < 301).mean() - 0.6) < 0.04
    other = found.passages[(found.labels == OTHER) & (found.passages[:, 0, 0] < 301), 1, 0]
    assert (other >= 302).all() and abs((other < 403).mean() - 0.5) < 0.06  # of the other two as often


def test_pairs_need_documents_and_room():
    with pytest.raises(Failure, match="at least 1 tokens for nsp, two of them. Received: 2 documents"):
        drawn([5, 0], kind="nsp", rows=9, length=9, seed=(0, 0))
    with pytest.raises(Failure, match="at least 2 tokens for sop. Received: 3 documents"):
        drawn([1, 0, 1], kind="sop", rows=1, length=9, seed=(0, 0))
    assert drawn([5], kind="sop", rows=1, length=9, seed=(0, 0)).labels.shape == (1,)
    with pytest.raises(UsageError, match="Did you mean 'nsp'"):
        drawn([5], kind="nsq", rows=1, length=9, seed=(0, 0))
    with pytest.raises(ValueError, match="at least 5 tokens. Received: 4"):
        drawn([5], kind="sop", rows=1, length=4, seed=(0, 0))


# Whole words and named tokens

TEXTS = ["def read_lines(self, path):\n    return self.lines[0] + naïve_total", "class Reader(object):\n    pass"] * 20


@pytest.fixture(scope="module")
def states() -> dict[str, dict]:
    sizes = {"word": 60, "character": 60, "wordpiece": 120, "bpe": 330, "sentencepiece": 330}
    return {kind: text.train_tokenizer(kind, TEXTS, size) for kind, size in sizes.items()}


@pytest.mark.parametrize("kind", text.KINDS)
def test_words_start_where_letters_do(states, kind):
    state = with_names(states[kind], ["[MASK]"])
    tokenizer = Tokenizer(state)
    given = "return naïve_total(self)"
    ids = tokenizer.encode([given]).to_tensor()
    starts = WordStarts(state)(ids).numpy()[0]
    words: list[list[int]] = []
    for piece, start in zip(np.array(ids)[0], starts):
        words += [[int(piece)]] if start else []
        if not start:
            words[-1].append(int(piece))
    shown = [one.decode().strip() for one in tokenizer.decode(tf.ragged.constant(words)).numpy()]
    shown = [one for one in shown if one]
    if kind == "wordpiece":  # reads an underscore as a mark
        assert shown == ["return", "naive_total", "(", "self", ")"] or shown[0] == "return"
    else:
        assert shown == ["return", "naïve_total", "(", "self", ")"]


@pytest.mark.parametrize("kind", text.KINDS)
def test_named_tokens_follow_the_vocabulary_and_are_read_by_their_names(states, kind):
    before = Tokenizer(states[kind])
    state = json.loads(json.dumps(with_names(states[kind], ["[MASK]", "<extra_id_1>", "<extra_id_0>"])))
    tokenizer = Tokenizer(state)
    v = before.vocab_size
    assert tokenizer.vocab_size == v + 3 and tokenizer.extra == {
        "[MASK]": v,
        "<extra_id_1>": v + 1,
        "<extra_id_0>": v + 2,
    }
    plain = ["def read_lines(self)", "", "x[0] [MASK", "\x00 \ufeff"]
    for one, other in zip(before.encode(plain).to_list(), tokenizer.encode(plain).to_list()):
        assert one == other  # `encode` stays as it is
    for one, other in zip(before.encode(plain).to_list(), tokenizer.encode_named(plain).to_list()):
        assert one == other
    ids = tokenizer.encode_named(
        ["[MASK]", "self.[MASK](path)<extra_id_0>[MASK]", b"\xfe[MASK]\xff", "[mask]"]
    ).to_list()
    assert ids[0] == [v] and [one for one in ids[1] if one >= v] == [v, v + 2, v]
    assert [one for one in ids[2] if one >= v] == [v] and v not in ids[3]
    parts = before.encode(["self.", "(path)"]).to_list()
    assert ids[1] == [*parts[0], v, *parts[1], v + 2, v]
    np.testing.assert_array_equal(tokenizer.decode(tokenizer.encode_named(["self.[MASK]"])), before.decode(parts[:1]))
    marked = tokenizer.marked(["self.", "self." * 50], 6).to_list()
    assert marked[0][0] == START and marked[0][-1] == END and len(marked[1]) == 6 and marked[1][-1] == END
    assert tokenizer.marks == 2 and before.marks == 1 and before.marked(["self."], 6).to_list()[0][0] > UNKNOWN
    assert with_names(states[kind], [], start=False)["vocab_size"] == v


def test_a_space_before_a_name_belongs_to_what_it_stands_for(states):
    tokenizer = Tokenizer(with_names(states["bpe"], ["[MASK]"]))
    (ids,) = tokenizer.encode_named(["return [MASK] + self"]).to_list()
    word = tokenizer.encode([" path"]).to_list()[0]
    filled = [token for one in ids for token in (word if one == tokenizer.extra["[MASK]"] else [one])]
    assert tokenizer.decode([filled]).numpy()[0] == b"return path + self"


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_names_come_through_a_saved_graph(states, kind, tmp_path):
    module = tf.Module()
    module.tokenizer = Tokenizer(with_names(states[kind], ["[MASK]"]))
    signature = [tf.TensorSpec([None], tf.string)]
    module.run = tf.function(lambda raw: module.tokenizer.encode_named(raw).to_tensor(), input_signature=signature)
    tf.saved_model.save(module, str(tmp_path))
    given = tf.constant(["class [MASK](object)", "def"])
    found = tf.saved_model.load(str(tmp_path)).run(given)
    np.testing.assert_array_equal(found, module.tokenizer.encode_named(given).to_tensor())


@pytest.mark.parametrize("names", [["a", "a"], [""]])
def test_names_that_are_none_are_errors(states, names):
    with pytest.raises(UsageError, match="different names"):
        with_names(states["word"], names)
    with pytest.raises(UsageError, match="that has none"):
        with_names(with_names(states["word"], ["x"]), ["y"])
