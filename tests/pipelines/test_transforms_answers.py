"""Windows and best spans: what they promise, beside answers that are found by trying everything."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from pipelines.transforms import answers, spans, text

STATE = text.train_tokenizer("word", ["a b c d e f g h"], 50)
TOKENIZER = text.tokenizer(STATE)
PASSAGES = ["a b c d e f g h a b c d e f g h", "a b", "", "h g f e d c b a h"]
ASKED = ["a h ?", "", "b", "c d e f g h"]


def windows(max_length: int, stride: int, max_question: int = 5, **more) -> tuple[spans.Words, answers.Windows]:
    words = spans.words_with_offsets(PASSAGES)
    pieces = spans.pieces_of_words(words.words, TOKENIZER, words.spaced)
    sizes = {"max_length": max_length, "stride": stride, "max_question": max_question}
    return words, answers.windows(TOKENIZER.encode(ASKED), pieces, TOKENIZER, **sizes, **more)


@pytest.mark.parametrize(("max_length", "stride"), [(64, 8), (13, 3), (13, 100), (9, 1), (14, 5)])
def test_windows_read_all_of_a_passage_and_each_word_begins_an_answer_in_one_of_them(max_length, stride):
    words, pairs = windows(max_length, stride)
    owner = answers.owners(pairs.splits).numpy()
    lengths = pairs.token_ids.row_lengths().numpy()
    assert lengths.max() <= max_length and sorted(set(owner)) == [0, 1, 2, 3]
    for example, passage in enumerate(words.words.to_list()):
        rows = np.flatnonzero(owner == example)
        asked = TOKENIZER.encode([ASKED[example]]).to_list()[0][:5]
        central: list[int] = []
        for place, row in enumerate(rows):
            ids, read = pairs.token_ids[row].numpy().tolist(), pairs.word[row].numpy()
            assert ids[: len(asked) + 2] == [text.START, *asked, text.END] and ids[-1] == text.END
            told = read[read >= 0]
            assert (np.diff(told) == 1).all()
            assert (
                ids[len(asked) + 2 : -1]
                == TOKENIZER.encode([b" ".join(passage)]).to_list()[0][
                    told[0] if len(told) else 0 : told[-1] + 1 if len(told) else 0
                ]
            )
            room = max_length - 3 - len(asked)
            if place:
                assert told[0] == before + min(stride, room)  # noqa: F821
            if row != rows[-1]:
                assert len(told) == room
            before = told[0] if len(told) else 0  # noqa: F841
            central += read[pairs.central[row].numpy()].tolist()
        assert sorted(central) == list(range(len(passage)))
        reach = {word: [] for word in range(len(passage))}  # the context of a word in each window
        for row in rows:
            told = pairs.word[row].numpy()
            told = told[told >= 0]
            for i, word in enumerate(told):
                here = bool(pairs.central[row].numpy()[pairs.word[row].numpy() == word][0])
                reach[word].append((min(i, len(told) - 1 - i), here))
        for found in reach.values():
            assert max(found)[0] == next(context for context, here in found if here)


def test_a_window_marks_words_of_the_question_as_a_third_segment():
    pairs = windows(13, 3, overlap=True)[1]
    for row, owner in enumerate(answers.owners(pairs.splits).numpy()):
        asked = set(TOKENIZER.encode([ASKED[owner]]).to_list()[0][:5])
        for token, segment, word in zip(*(x[row].numpy() for x in (pairs.token_ids, pairs.segment_ids, pairs.word))):
            assert segment == 2 if word >= 0 and token in asked else segment < 2


def brute(logits, begins, ends, max_answer):
    found = []
    for i in np.flatnonzero(begins):
        found += [(logits[i, 0] + logits[j, 1], i, j) for j in np.flatnonzero(ends) if i <= j < i + max_answer]
    return sorted(found, reverse=True)


@pytest.mark.parametrize("max_answer", [1, 3, 30])
def test_best_spans_are_those_of_trying_all(max_answer):
    random = np.random.default_rng(max_answer)
    logits = random.normal(size=(6, 11, 2)).astype("float32") * 3
    begins, ends = random.random((2, 6, 11)) < 0.6
    begins[0] = ends[1] = False
    function = tf.function(answers.best_spans, autograph=False)
    found = function(logits, begins, ends, max_answer=max_answer, n_best=4)
    scores, nothing = answers.probabilities(found, unanswerable=True)
    only, never = answers.probabilities(found, unanswerable=False)
    for row in range(6):
        wanted = brute(logits[row], begins[row], ends[row], max_answer)
        some = min(4, len(wanted))
        np.testing.assert_allclose(found.scores[row, :some], [one[0] for one in wanted[:some]], atol=1e-5)
        assert found.starts[row, :some].numpy().tolist() == [one[1] for one in wanted[:some]]
        assert found.ends[row, :some].numpy().tolist() == [one[2] for one in wanted[:some]]
        assert (found.scores[row, some:].numpy() == answers.NEVER).all()
        null = logits[row, 0].sum()
        total = np.exp([one[0] for one in wanted]).sum()
        if wanted:
            best = np.exp([one[0] for one in wanted[:some]])
            np.testing.assert_allclose(scores[row, :some], best / (total + np.exp(null)), rtol=1e-4)
            np.testing.assert_allclose(nothing[row], np.exp(null) / (total + np.exp(null)), rtol=1e-4)
            np.testing.assert_allclose(only[row, :some], best / total, rtol=1e-4)
            assert never[row] == 0
        else:
            assert nothing[row] == never[row] == 1 and scores[row].numpy().sum() == 0


def test_over_windows_the_best_spans_are_those_of_all_windows_in_words():
    words, pairs = windows(13, 3)
    random, width = np.random.default_rng(0), int(pairs.token_ids.bounding_shape()[1])
    rows = int(pairs.splits[-1])
    logits = random.normal(size=(rows, width, 2)).astype("float32")
    begins, ends = (pairs.first & pairs.central).to_tensor(False), pairs.last.to_tensor(False)
    best = answers.best_spans(logits, begins, ends, max_answer=4, n_best=3)
    found = answers.over_windows(best, pairs)
    starts, stops = answers.span_of_words(words, found.starts, found.ends)
    told = spans.substring(PASSAGES, starts, stops).numpy()
    read, owner = pairs.word.to_tensor(-1).numpy(), answers.owners(pairs.splits).numpy()
    for example, passage in enumerate(PASSAGES):
        wanted = []
        for row in np.flatnonzero(owner == example):
            tried = brute(logits[row], begins[row].numpy(), ends[row].numpy(), 4)
            wanted += [(score, read[row, i], read[row, j]) for score, i, j in tried]
        wanted = sorted(wanted, reverse=True)[:3]
        assert len({one[1:] for one in wanted}) == len(wanted)  # no span twice
        parts = passage.split()
        names = [" ".join(parts[i : j + 1]).encode() for _, i, j in wanted]
        assert told[example].tolist() == names + [b""] * (3 - len(names))
        np.testing.assert_allclose(found.scores[example, : len(wanted)], [one[0] for one in wanted], atol=1e-5)
        nulls = logits[owner == example, 0].sum(-1)
        assert float(found.null[example]) == pytest.approx(nulls.min(), abs=1e-6)


def test_rows_in_parts_are_the_rows_at_once():
    rows = tf.random.stateless_normal([10, 4, 2], [0, 1])
    for size in (1, 3, 10, 64):
        calls = []

        def read(part, calls=calls):
            calls.append(part.shape)
            return part * 2

        function = tf.function(lambda x, size=size, read=read: answers.in_parts(read, [x], size), autograph=False)
        np.testing.assert_array_equal(function(rows), rows * 2)
        assert len(calls) == 1  # one graph for all parts


def test_words_of_answers_are_those_that_it_touches():
    words = spans.words_with_offsets(["Ana Gil's café, 漢字.", "x", ""])
    start, end = tf.constant([5, -1, 0]), tf.constant([12, 0, 3])
    first, last = answers.words_of_answers(words, start, end)
    assert first.numpy().tolist() == [1, -1, -1] and last.numpy().tolist() == [2, -1, -1]


def test_tokens_of_a_span_are_0_where_a_window_has_not_all_of_it():
    _, pairs = windows(13, 3)
    found = answers.tokens_of_span(pairs, tf.constant([6, 1, -1, 0]), tf.constant([7, 1, -1, 1])).numpy()
    read, owner = pairs.word.to_tensor(-1).numpy(), answers.owners(pairs.splits).numpy()
    seen = 0
    for (start, end), told, example in zip(found, read, owner, strict=True):
        first, last = {0: (6, 7), 1: (1, 1), 2: (-1, -1), 3: (0, 1)}[int(example)]
        if first >= 0 and first in told and last in told:
            assert (told[start], told[end]) == (first, last)
            seen += 1
        else:
            assert (start, end) == (0, 0)
    assert seen >= 4
