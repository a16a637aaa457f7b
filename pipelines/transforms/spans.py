"""Words and where they stand in a text, and the tokens that they are made of, in `tf.data` and in a served graph.

    found = words_with_offsets(["Ana Gil's café"])       # words, starts, ends
    pieces = pieces_of_words(found.words, tokenizer, found.spaced)
    tokens = row(pieces.ids, max_length=64, tokenizer=tokenizer)
    tokens.take(pieces.owner, rest=-1)                   # the word of every token; -1 for the model's marks

Offsets count Unicode's code points of the text as it was sent, so that Python's `text[start:end]` is the word. Bytes
that are not UTF-8 are read as U+FFFD. Core operations of TensorFlow, and those of the tokenizer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from pipelines.transforms import text
from pipelines.transforms.rows import interleaved, kept, owners, places, ragged, singles, splits_of, where

plain = tf.autograph.experimental.do_not_convert  # nothing here needs it, and it is slow
CUT = b"\xff"  # no UTF-8 has it, and no pattern of RE2 matches it or goes over it


class Words(NamedTuple):
    """The words of texts, each (b, words), ragged.

    words: strings, as `transforms.text.words` finds them in the same text.
    starts: int32, the code points before a word.
    ends: int32, the code points before the first one after it.
    """

    words: tf.RaggedTensor
    starts: tf.RaggedTensor
    ends: tf.RaggedTensor

    @property
    def spaced(self) -> tf.RaggedTensor:
        """Whether something that is no word stands before a word: a space, a line break; bool (b, words)."""
        ends = tf.concat([[0], self.ends.values], 0)[: tf.size(self.starts.values)]
        before = tf.where(places(self.starts) == 0, 0, ends)
        return self.starts.with_values(self.starts.values > before)


class Pieces(NamedTuple):
    """The tokens of words, each (b, pieces), ragged.

    ids: int32, ids of the tokenizer.
    owner: int32, the place of the token's word among the words of its text.
    first: bool, whether the token is the first one of its word.
    """

    ids: tf.RaggedTensor
    owner: tf.RaggedTensor
    first: tf.RaggedTensor


class Row(NamedTuple):
    """What a model reads: the tokens of one text or two with the model's marks, each (b, t), ragged.

    token_ids: int32.
    segment_ids: int32, as the model has them.
    text: int32, 0 for tokens of the first text, 1 for those of the second, -1 for marks.
    index: int32, the place of a token among all tokens of the batch, first texts before second ones; -1 for marks.
    """

    token_ids: tf.RaggedTensor
    segment_ids: tf.RaggedTensor
    text: tf.RaggedTensor
    index: tf.RaggedTensor

    def take(self, *values: tf.RaggedTensor, rest: Any) -> tf.RaggedTensor:
        """What is known of the tokens before they were in rows, in the rows: (b, t).

        Args:
            values: of the tokens of the first texts, (b, pieces), and of the second ones if there are any.
            rest: what marks have.
        """
        flat = tf.concat([*(one.values for one in values), [tf.cast(rest, values[0].dtype)]], 0)
        index = self.index.values
        return self.index.with_values(tf.gather(flat, tf.where(index < 0, tf.size(flat) - 1, index)))


def readable(strings: Any) -> tf.Tensor:
    """Strings in which bytes that are not UTF-8 are U+FFFD."""
    return tf.strings.unicode_transcode(tf.convert_to_tensor(strings, tf.string), "UTF-8", "UTF-8", errors="replace")


@plain
def words_with_offsets(strings: Any) -> Words:
    """The words, marks and single characters of unspaced scripts in texts, with their places.

    Args:
        strings: (b,), any bytes; nothing in them is normalized.

    Returns:
        `Words`; a text of spaces and control characters alone has none.
    """
    strings = readable(strings)
    for pattern in (f"({text.SPACES})", text.UNSPACED, text.WORD):
        strings = tf.strings.regex_replace(strings, pattern, CUT + rb"\1" + CUT)
    parts = tf.strings.split(strings, CUT)  # (b, parts): the whole text, in words and what is between them
    lengths = tf.strings.length(parts.values, "UTF8_CHAR")
    before = splits_of(lengths)
    begins = tf.gather(before, tf.gather(parts.row_splits, owners(parts.row_splits)))
    starts = before[:-1] - begins
    some = (lengths > 0) & ~tf.strings.regex_full_match(parts.values, text.SPACES)
    every = (parts, parts.with_values(starts), parts.with_values(starts + lengths))
    return Words(*(kept(one, some) for one in every))


@plain
def pieces_of_words(words: tf.RaggedTensor, tokenizer: Any, spaced: tf.RaggedTensor | None = None) -> Pieces:
    """The tokens of words.

    A tokenizer that keeps spaces (`bpe`, `sentencepiece`, `character` and byte-level ones, as RoBERTa's) gets a word
    together with the space before it, and so gives the tokens that it gives in a text. Those of T5 and XLNet read a
    space before every word.

    Args:
        words: strings (b, words), ragged.
        tokenizer: of `transforms.text.tokenizer`.
        spaced: bool (b, words), which words come after a space; without, all but the first of a text.

    Returns:
        `Pieces`. Every word has a token: one of characters that the tokenizer drops is unknown.
    """
    flat = words.values
    after = places(words) > 0 if spaced is None else spaced.values
    given = tf.strings.join([tf.where(after, " ", ""), flat])
    ids = tokenizer.encode(given).with_row_splits_dtype(tf.int64)  # (all words, pieces)
    some = ids.row_lengths() > 0
    unknown = tf.fill([tf.size(where(~some))], tf.constant(unknown_id(tokenizer), ids.dtype))
    splits = splits_of(tf.boolean_mask(ids.row_lengths(), some))
    ids = interleaved(some, ragged(ids.values, splits), singles(unknown))
    word = owners(ids.row_splits)  # (pieces,), of all words
    inside = tf.cast(tf.gather(places(words), word), tf.int32)
    outer = tf.gather(ids.row_splits, words.row_splits)  # (b + 1,)
    return Pieces(ragged(ids.values, outer), ragged(inside, outer), ragged(places(ids) == 0, outer))


def unknown_id(tokenizer: Any) -> int:
    """The id of what a tokenizer does not know; of padding where it knows everything."""
    if tokenizer.kind != text.PUBLISHED:
        return text.UNKNOWN
    found = tokenizer.inner.source.unknown_id
    return tokenizer.pad_id if found is None else found


@plain
def row(
    first: tf.RaggedTensor, second: tf.RaggedTensor | None = None, *, max_length: int | None = None, tokenizer: Any
) -> Row:
    """Tokens as a model reads them: those of one text, or of two, between the model's marks.

    A published tokenizer has the marks of its family. Our own put the end mark after each text, and the start mark
    before the first of two.

    Args:
        first: token ids (b, pieces) without marks.
        second: those of the second texts.
        max_length: most tokens, marks and all; texts lose their ends, of two the longer one first.
        tokenizer: of `transforms.text.tokenizer`.

    Returns:
        `Row`.

    Raises:
        ValueError: the marks alone are more than `max_length`.
    """
    given = [first] if second is None else [first, second]
    sizes = [tf.size(one.values) for one in given]
    shift = [0, sizes[0]][: len(given)]
    # Each token goes through as a negative number that tells its place, so that marks can be told apart.
    codes = [one.with_values(-1 - before - tf.range(size)) for one, before, size in zip(given, shift, sizes)]
    if tokenizer.kind == text.PUBLISHED:
        token, segment = tokenizer.inner.with_special(*codes, max_length=max_length)
    else:
        token, segment = own_marks(codes, max_length, tokenizer)
    flat = token.values
    index = tf.where(flat < 0, -1 - flat, -1)
    ids = tf.concat([*(tf.cast(one.values, tf.int32) for one in given), [0]], 0)
    ids = tf.where(index < 0, flat, tf.gather(ids, tf.maximum(index, 0)))
    which = tf.where(index < 0, -1, tf.cast(index >= sizes[0], tf.int32))
    return Row(token.with_values(ids), segment, token.with_values(which), token.with_values(index))


def own_marks(
    texts: list[tf.RaggedTensor], max_length: int | None, tokenizer: Any
) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
    """Texts with the marks of our own tokenizers, and the segments: 0 to the first end mark, 1 from there on."""
    from pipelines.transforms.published import cut

    begins = len(texts) == 2 or bool(getattr(tokenizer, "start", False))
    if max_length is not None:
        room = max_length - len(texts) - begins
        if room < 0:
            raise ValueError(f"Expected max_length of at least {max_length - room}. Received: {max_length}")
        texts = cut(texts, room)
    parts = [text.sequences(one, 2**30, start=begins and place == 0) for place, one in enumerate(texts)]
    segments = [one.with_values(tf.fill(tf.shape(one.values), place)) for place, one in enumerate(parts)]
    return tf.concat(parts, 1), tf.concat(segments, 1)


@plain
def substring(strings: Any, start: Any, end: Any) -> tf.Tensor | tf.RaggedTensor:
    """`text[start:end]` for numbers that are not negative, by code points; what is outside of a text is left out.

    Args:
        strings: (b,), any bytes.
        start: integers (b,), (b, n) or ragged (b, n).
        end: of the same shape.

    Returns:
        strings of that shape.
    """
    strings = readable(strings)
    if isinstance(start, tf.RaggedTensor):
        each = tf.gather(strings, owners(start.row_splits))
        return start.with_values(substring(each, start.values, end.values))
    start, end = tf.cast(start, tf.int32), tf.cast(end, tf.int32)
    ones = tf.ones([tf.rank(start) - 1], tf.int32)
    strings = tf.broadcast_to(tf.reshape(strings, tf.concat([tf.shape(strings), ones], 0)), tf.shape(start))
    length = tf.strings.length(strings, "UTF8_CHAR")
    start = tf.clip_by_value(start, 0, length)
    return tf.strings.substr(strings, start, tf.clip_by_value(end, start, length) - start, unit="UTF8_CHAR")
