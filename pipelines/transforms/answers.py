"""Windows over long passages, and the best spans of them: for training, evaluation and the served graph.

    pairs = windows(tokenizer.encode(questions), pieces_of_words(words, tokenizer), tokenizer, max_length=384, …)
    rows = best_spans(logits, begins, ends, max_answer=30, n_best=5)  # of every window
    found = over_windows(rows, pairs)                                 # of every question

A passage that does not fit beside its question is read in windows of which each begins `stride` tokens after the one
before. A token that is in several of them may begin an answer in one alone, that in which it has most context on its
poorer side. Core operations of TensorFlow.

Reference: Devlin et al. 2019, section 4.2 and 4.3; windows and the context of a token as in the code of that paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from pipelines.transforms import spans, text
from pipelines.transforms.rows import owners, places, ragged, splits_of, where

NEVER = -1e9  # the score of what is no answer
OVERLAP = 2  # the segment of tokens of the passage that the question has, too


class Windows(NamedTuple):
    """What the model reads: r rows, those of a question one after the other.

    token_ids, segment_ids: int32 (r, t), ragged.
    word: int32 (r, t), the place of the token's word in the passage; -1 for marks and tokens of the question.
    first, last: bool (r, t), whether the token is the first and the last of its word.
    central: bool (r, t), whether the token has the most context in this window.
    splits: int64 (b + 1,), the rows of each question.
    """

    token_ids: tf.RaggedTensor
    segment_ids: tf.RaggedTensor
    word: tf.RaggedTensor
    first: tf.RaggedTensor
    last: tf.RaggedTensor
    central: tf.RaggedTensor
    splits: tf.Tensor


class Spans(NamedTuple):
    """The k best spans of rows, the best first, and what their probabilities are computed from.

    scores: float32 (r, k), logits of start and end added; `NEVER` where there are not so many.
    starts, ends: int32 (r, k), the first and the last token, or word.
    total: float32 (r,), the logarithm of the sum of all spans' exponentials.
    null: float32 (r,), the score of there being no answer.
    """

    scores: tf.Tensor
    starts: tf.Tensor
    ends: tf.Tensor
    total: tf.Tensor
    null: tf.Tensor


def number_of_marks(tokenizer: Any) -> int:
    """How many marks stand around and between two texts."""
    return len(tokenizer.inner.pair) - 2 if tokenizer.kind == text.PUBLISHED else 3


def windows(
    questions: tf.RaggedTensor,
    passages: spans.Pieces,
    tokenizer: Any,
    *,
    max_length: int,
    stride: int,
    max_question: int,
    overlap: bool = False,
) -> Windows:
    """Questions with their passages as rows of at most `max_length` tokens.

    Args:
        questions: token ids without marks, (b, pieces); they lose what is beyond `max_question`.
        passages: the tokens of the passages, (b, pieces).
        tokenizer: of `transforms.text.tokenizer`.
        max_length: most tokens of a row, marks and all; above `max_question` and the marks.
        stride: tokens from the beginning of a window to that of the next; fewer where a window has no more room.
        max_question: most tokens of a question.
        overlap: whether tokens of the passage that the question has, too, are of a third segment.

    Returns:
        `Windows`, one at the least for each question.
    """
    questions = questions.with_row_splits_dtype(tf.int64)[:, :max_question]
    room = max_length - number_of_marks(tokenizer) - questions.row_lengths()  # (b,)
    count, step = passages.ids.row_lengths(), tf.minimum(tf.constant(stride, tf.int64), room)
    number = 1 + (tf.maximum(count - room, 0) + step - 1) // step
    splits = splits_of(number)
    owner = tf.ensure_shape(owners(splits), [None])  # (r,)
    which = tf.range(splits[-1]) - tf.gather(splits, owner)
    room, count, step = (tf.gather(one, owner) for one in (room, count, step))  # (r,)
    begin = which * step
    length = tf.minimum(room, count - begin)
    offset = tf.gather(passages.ids.row_splits, owner) + begin
    index = tf.ragged.range(offset, offset + length)  # (r, pieces)

    def taken(values: tf.Tensor) -> tf.RaggedTensor:
        return index.with_values(tf.gather(values, index.values))

    flat = passages.first.values
    last = tf.concat([flat[1:], tf.ones_like(flat[:1])], 0)  # the token before a first one, or the end of all
    central = has_most_context(index, begin, length, step, room, count)
    asked, told = tf.gather(questions, owner), taken(passages.ids.values)
    row = spans.row(asked, told, tokenizer=tokenizer)
    segment_ids = row.segment_ids
    if overlap:
        both = row.take(asked.with_values(tf.zeros_like(asked.values, tf.bool)), in_question(told, asked), rest=False)
        segment_ids = tf.where(both, OVERLAP, segment_ids)
    no, nothing = asked.with_values(tf.zeros_like(asked.values, tf.bool)), asked.with_values(-1 + 0 * asked.values)
    return Windows(
        row.token_ids,
        segment_ids,
        word=row.take(nothing, taken(passages.owner.values), rest=-1),
        first=row.take(no, taken(passages.first.values), rest=False),
        last=row.take(no, taken(last), rest=False),
        central=row.take(no, central, rest=False),
        splits=splits,
    )


def in_question(passages: tf.RaggedTensor, questions: tf.RaggedTensor) -> tf.RaggedTensor:
    """Which tokens of passages (r, pieces) their questions (r, pieces) have, too.

    Reference: Chen et al. 2017, "Reading Wikipedia to answer open-domain questions", section 3.2, exact match.
    """
    # A token and its row are one number, to be looked for among those of the questions.
    most = tf.reduce_max(tf.concat([passages.values, questions.values, [0]], 0)) + 1
    told, asked = (
        tf.cast(owners(one.row_splits), tf.int64) * tf.cast(most, tf.int64) + tf.cast(one.values, tf.int64)
        for one in (passages, questions)
    )
    asked = tf.sort(tf.concat([asked, [tf.int64.max]], 0))
    return passages.with_values(tf.gather(asked, tf.searchsorted(asked, told)) == told)


def has_most_context(index, begin, length, step, room, count) -> tf.RaggedTensor:
    """Of the tokens of windows (r, pieces) those that have no more context in another window; of equals the earlier.

    The context of a token in a window is the smaller number of tokens before and after it. Windows are equally long but
    for the last one, so that it is enough to look at the neighbours.
    """
    owner, place = owners(index.row_splits), places(index)

    def context(place, length):
        return tf.where((place >= 0) & (place < length), tf.minimum(place, length - 1 - place), -1)

    begin, length, step, room, count = (tf.gather(one, owner) for one in (begin, length, step, room, count))
    own = context(place, length)
    before = context(place + step, tf.where(begin > 0, room, 0))
    after = context(place - step, tf.where(begin + length < count, tf.minimum(room, count - begin - step), 0))
    return index.with_values((own > before) & (own >= after))


def best_spans(logits: Any, begins: Any, ends: Any, *, max_answer: int, n_best: int) -> Spans:
    """The best spans of rows: those with the largest sum of a start's and an end's logit.

    Args:
        logits: (r, t, 2), of every token as the start and as the end.
        begins: bool (r, t), tokens that an answer may begin with.
        ends: bool (r, t), tokens that it may end with.
        max_answer: most tokens of an answer.
        n_best: k.

    Returns:
        `Spans` of tokens; `null` is of the first token as start and end.

    Reference: Devlin et al. 2019, section 4.2 and 4.3.
    """
    logits = tf.cast(logits, tf.float32)
    null = logits[:, 0, 0] + logits[:, 0, 1]  # (r,)
    starts, ends = (tf.where(mask, logits[..., i], NEVER) for i, mask in enumerate((begins, ends)))  # (r, t)
    longest = tf.shape(logits)[1]
    ends = tf.pad(ends, [[0, 0], [0, max_answer]], constant_values=NEVER)
    band = tf.range(longest)[:, None] + tf.range(max_answer)[None]  # (t, a): the end of each start and length
    scores = tf.maximum(starts[..., None] + tf.gather(ends, band, axis=1), NEVER)  # (r, t, a)
    scores = tf.reshape(scores, [tf.shape(logits)[0], longest * max_answer])
    padded = tf.pad(scores, [[0, 0], [0, n_best]], constant_values=NEVER)
    best, index = tf.math.top_k(padded, n_best)  # (r, k)
    start = index // max_answer
    return Spans(best, start, start + index % max_answer, tf.reduce_logsumexp(scores, -1), null)


def in_parts(function: Callable[..., tf.Tensor], rows: Sequence[tf.Tensor], size: int) -> tf.Tensor:
    """What a function answers for rows, `size` of them at a time, so that a long passage needs no more memory.

    Args:
        function: of a tensor (b, …) for each of `rows`, to float32 (b, t, 2).
        rows: tensors (r, …).
        size: most rows of a call.

    Returns:
        float32 (r, t, 2).
    """
    number = tf.maximum((tf.shape(rows[0])[0] + size - 1) // size, 1)
    found = tf.TensorArray(tf.float32, number, element_shape=[None, None, 2], infer_shape=False)

    def one(i: tf.Tensor, found: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        return i + 1, found.write(i, function(*(row[i * size : (i + 1) * size] for row in rows)))

    return tf.while_loop(lambda i, _: i < number, one, (0, found), parallel_iterations=1)[1].concat()


def over_windows(rows: Spans, pairs: Windows) -> Spans:
    """The best spans of questions from those of their windows; starts and ends become words.

    There is no answer as far as the window says so in which that is least likely.

    Args:
        rows: `best_spans` of r windows.
        pairs: the windows of b questions.

    Returns:
        `Spans` of b rows.
    """
    word = pairs.word.to_tensor(-1)  # (r, t)
    k = rows.scores.shape[-1]

    def together(values: tf.Tensor, rest: float | int) -> tf.Tensor:
        return ragged(values, pairs.splits).to_tensor(rest)  # (b, w, …)

    last = tf.shape(word)[1] - 1
    starts, ends = (tf.gather(word, tf.minimum(one, last), batch_dims=1) for one in (rows.starts, rows.ends))
    scores, starts, ends = (
        flattened(together(values, rest), rest)  # (b, w * k + k)
        for values, rest in ((rows.scores, NEVER), (starts, -1), (ends, -1))
    )
    best, index = tf.math.top_k(scores, k)  # (b, k)
    starts, ends = (tf.where(best > NEVER / 2, tf.gather(values, index, batch_dims=1), -1) for values in (starts, ends))
    total = tf.reduce_logsumexp(together(rows.total, NEVER), -1)
    return Spans(best, starts, ends, total, tf.reduce_min(together(rows.null, -NEVER), -1))


def flattened(values: tf.Tensor, rest: float | int) -> tf.Tensor:
    """(b, w, k) as (b, w * k + k), `rest` at the end: k places at the least, also of no questions."""
    shape, k = tf.shape(values), values.shape[-1]
    return tf.pad(tf.reshape(values, [shape[0], shape[1] * k]), [[0, 0], [0, k]], constant_values=rest)


def probabilities(found: Spans, *, unanswerable: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Of the best spans (b, k), and of there being no answer (b,), among all spans of all windows.

    Args:
        found: of `best_spans` or `over_windows`.
        unanswerable: whether there may be no answer; else its probability is 0, or 1 where there is no span at all.
    """
    some = found.scores[:, 0] > NEVER / 2
    null = found.null if unanswerable else tf.fill(tf.shape(found.null), NEVER)
    everything = tf.reduce_logsumexp(tf.stack([found.total, null], -1), -1)  # (b,)
    each = tf.where(found.scores > NEVER / 2, tf.exp(found.scores - everything[:, None]), 0.0)
    return each, tf.where(some, tf.exp(null - everything), 1.0)


def span_of_words(words: spans.Words, start: tf.Tensor, end: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The code points at which spans of words begin and end, (b, k); both 0 where there is none.

    Args:
        words: of b passages.
        start: the first word of each span, (b, k); below 0 where there is none.
        end: the last one.
    """
    splits = words.starts.row_splits[:-1, None]

    def at(values: tf.RaggedTensor, place: tf.Tensor) -> tf.Tensor:
        flat = tf.concat([values.values, [0]], 0)
        index = tf.where(place < 0, tf.size(flat, tf.int64) - 1, splits + tf.cast(place, tf.int64))
        return tf.gather(flat, index)

    return at(words.starts, start), at(words.ends, end)


def tokens_of_span(pairs: Windows, start: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """The first and the last token (r, 2) of an answer in each window; 0 and 0, the mark before all, where it is not.

    Args:
        pairs: the windows of b questions.
        start: the first word of the answer to each question, (b,); below 0 where there is none.
        end: the last one.
    """
    owner = owners(pairs.splits)
    found = []
    for word, mask in ((start, pairs.first), (end, pairs.last)):
        here = mask & (pairs.word == tf.gather(word, owner)[:, None])  # (r, t)
        found.append(here.to_tensor(False))
    inside = tf.reduce_any(found[0], -1) & tf.reduce_any(found[1], -1)
    places = tf.stack([tf.argmax(one, -1, tf.int32) for one in (tf.cast(one, tf.int32) for one in found)], -1)
    return tf.where(inside[:, None], places, 0)


def words_of_answers(words: spans.Words, start: tf.Tensor, end: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The first and the last word that answers touch, each (b,), and -1 where one touches none.

    Args:
        words: of b passages.
        start: code points before each answer, (b,); below 0 where there is none.
        end: code points before the first one after it.
    """
    owner = owners(words.starts.row_splits)
    touched = (words.ends.values > tf.gather(start, owner)) & (words.starts.values < tf.gather(end, owner))
    touched &= tf.gather(start, owner) >= 0
    chosen, place = where(touched), tf.cast(places(words.starts), tf.int32)
    count = tf.size(words.starts.row_splits) - 1
    segment, place = tf.gather(owner, chosen), tf.gather(place, chosen)
    some = tf.math.unsorted_segment_sum(tf.ones_like(place), segment, count) > 0
    first, last = (f(place, segment, count) for f in (tf.math.unsorted_segment_min, tf.math.unsorted_segment_max))
    return tf.where(some, first, -1), tf.where(some, last, -1)
