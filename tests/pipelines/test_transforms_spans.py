"""Words are where their offsets say, and their tokens are those that the text has; in rows, in tf.data, in a graph."""

from __future__ import annotations

import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.checkpoints.tokenizers import load
from pipelines.transforms import text
from pipelines.transforms.spans import pieces_of_words, row, substring, words_with_offsets
from tests.golden.read_tokenizers import folders

LETTERS = "ab É'’_-.,\t\n\0\x85\xa0\u200b\u200d\u3000e\u0301漢字かกิ😀👨👩ﬁİ½"
strings = st.lists(st.text(st.sampled_from(LETTERS), max_size=12) | st.text(max_size=8), max_size=4)
some = settings(deadline=None, max_examples=40)
PLAIN = ["Ana Gil met Bob in Oslo.", "it costs (about) 20 euros, doesn't it?", "", "déjà vu: 東京 is large", " one "]


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
def found(texts):
    return words_with_offsets(texts)


@pytest.fixture(scope="module")
def tokenizers():
    texts = [*PLAIN, "Ana and Bob and Oslo", "one two three (20) euros, it is", "déjà déjà 東京"] * 8
    sizes = {"word": 60, "character": 60, "wordpiece": 90, "bpe": 340, "sentencepiece": 340}
    return {kind: text.Tokenizer(text.train_tokenizer(kind, texts, size)) for kind, size in sizes.items()}


@pytest.fixture(scope="module")
def published():
    kinds = {"bert_uncased": "bert", "roberta": "roberta"}
    return {
        name: text.Published(text.published(load(folders() / name, {"model_type": kind})))
        for name, kind in kinds.items()
    }


@some
@given(strings)
@example(["", " \t\0", "a\u200bb", "don't stop’n go_on", "e\u0301 漢字 กิ", "👨\u200d👩", "\ufeffa", "3,5 %"])
def test_offsets_are_those_of_python_and_words_those_of_the_tokenizer(texts):
    words, starts, ends = found(texts)
    assert words.to_list() == text.words(tf.constant(texts, tf.string)).to_list()
    for one, parts, begins, stops in zip(texts, words.to_list(), starts.to_list(), ends.to_list(), strict=True):
        assert [one[begin:end] for begin, end in zip(begins, stops)] == [part.decode() for part in parts]
        between = [one[end:begin] for end, begin in zip([0, *stops], [*begins, len(one)])]
        assert text.words(tf.constant(["".join(between)])).to_list() == [[]]  # nothing but spaces is left out


def test_a_word_after_a_space_is_told_from_one_after_a_mark():
    words = found(["(Ana Gil, 20%)", " Ana", "東 京都"])
    assert words.spaced.to_list() == [[False, False, True, False, True, False, False], [True], [False, True, False]]
    assert words.starts.dtype == words.ends.dtype == tf.int32
    assert words_with_offsets(tf.constant([], tf.string)).spaced.to_list() == []


def test_bytes_that_are_no_utf8_are_one_character_each():
    words, starts, _ = found([b"a\xffb c", b"\xc3"])
    assert words.to_list() == [[b"a", "\ufffd".encode(), b"b", b"c"], ["\ufffd".encode()]]
    assert starts.to_list() == [[0, 1, 2, 4], [0]]


@pytest.mark.parametrize("kind", text.KINDS)
def test_tokens_of_words_are_those_of_plain_texts(kind, tokenizers):
    words = found(PLAIN)
    ids = pieces_of_words(words.words, tokenizers[kind], words.spaced).ids
    expected = tokenizers[kind].encode([one.rstrip() for one in PLAIN]).to_list()
    same = (
        [0, 1, 2, 4] if kind in ("bpe", "sentencepiece") else range(5)
    )  # their pieces go over 東京, which is two words
    assert [ids.to_list()[i] for i in same] == [expected[i] for i in same]


@pytest.mark.parametrize("name", ["bert_uncased", "roberta"])
def test_published_tokens_of_words_are_those_of_plain_texts(name, published):
    words = found([one.rstrip() for one in PLAIN])
    ids = pieces_of_words(words.words, published[name], words.spaced).ids
    plain = [0, 2, 4] if name == "roberta" else range(len(PLAIN))  # `?` and `20` have pieces of their own
    expected = published[name].encode([one.rstrip() for one in PLAIN]).to_list()
    assert [ids.to_list()[i] for i in plain] == [expected[i] for i in plain]


def test_a_word_keeps_the_space_before_it(published):
    words = tf.ragged.constant([["Bob", "in", "Oslo"]])
    joined = published["roberta"].encode(["Bob in Oslo"]).to_list()
    assert pieces_of_words(words, published["roberta"]).ids.to_list() == joined  # words alone: all but the first
    without = tf.ragged.constant([[False, False, False]])
    apart = [one for word in ("Bob", "in", "Oslo") for one in published["roberta"].encode([word]).to_list()[0]]
    assert pieces_of_words(words, published["roberta"], without).ids.to_list() == [apart] != joined


@settings(deadline=None, max_examples=15)
@given(strings)
@example(["a\u200bb \u200d", ""])
def test_every_word_has_tokens_and_every_token_its_word(published, tokenizers, texts):
    words = found(texts)
    for tokenizer in (published["bert_uncased"], tokenizers["bpe"]):
        ids, owner, first = pieces_of_words(words.words, tokenizer, words.spaced)
        for given_words, pieces, owners, firsts in zip(*(one.to_list() for one in (words.words, ids, owner, first))):
            assert sorted(set(owners)) == list(range(len(given_words))) and owners == sorted(owners)
            assert firsts == [place == 0 or owners[place - 1] != owners[place] for place in range(len(pieces))]


def test_what_a_tokenizer_drops_is_unknown(published):
    ids = pieces_of_words(tf.ragged.constant([["\u200d", "a"]]), published["bert_uncased"]).ids
    assert ids.to_list()[0][0] == published["bert_uncased"].inner.source.unknown_id


def test_rows_have_the_marks_of_the_tokenizer(published, tokenizers):
    for tokenizer in (*published.values(), tokenizers["word"], tokenizers["bpe"]):
        ids = tokenizer.encode(PLAIN)
        for most in (7, 64):
            given_row = row(ids, max_length=most, tokenizer=tokenizer)
            assert given_row.token_ids.to_list() == tokenizer.marked(PLAIN, most).to_list()
        with pytest.raises(ValueError, match="max_length of at least"):
            row(ids, max_length=0, tokenizer=tokenizer)


def test_pairs_have_the_marks_and_the_cut_of_the_family(published):
    questions, texts = ["who met Bob?", "", "a b c d e f g"], [PLAIN[0], PLAIN[1], "x"]
    for tokenizer in published.values():
        first, second = tokenizer.encode(questions), tokenizer.encode(texts)
        for most in (8, 40):
            given_row = row(first, second, max_length=most, tokenizer=tokenizer)
            expected = tokenizer.inner.encode_pair(questions, texts, most)
            assert given_row.token_ids.to_list() == expected.token_ids.to_list()
            assert given_row.segment_ids.to_list() == expected.segments.to_list()


def test_pairs_of_our_own_begin_with_a_start_and_end_with_an_end_each(tokenizers):
    first, second = tf.ragged.constant([[5, 6], []], tf.int32), tf.ragged.constant([[7], [8, 9, 10, 11]], tf.int32)
    given_row = row(first, second, max_length=6, tokenizer=tokenizers["word"])
    assert given_row.token_ids.to_list() == [[1, 5, 6, 2, 7, 2], [1, 2, 8, 9, 10, 2]]
    assert given_row.segment_ids.to_list() == [[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1]]
    assert given_row.text.to_list() == [[-1, 0, 0, -1, 1, -1], [-1, -1, 1, 1, 1, -1]]


def test_what_is_known_of_tokens_goes_with_them_into_rows(tokenizers, published):
    words = found(["Ana Gil met Bob", "", "Oslo"])
    for tokenizer in (tokenizers["wordpiece"], published["bert_uncased"]):
        pieces = pieces_of_words(words.words, tokenizer, words.spaced)
        given_row = row(pieces.ids, max_length=4, tokenizer=tokenizer)
        marks, room = given_row.token_ids.row_lengths().numpy()[1], 4 - given_row.token_ids.row_lengths().numpy()[1]
        left = given_row.take(pieces.owner, rest=-1).to_list()
        assert [[one for one in each if one >= 0] for each in left] == [
            each[:room] for each in pieces.owner.to_list()
        ] and [each.count(-1) for each in left] == [marks] * 3
        pair = row(pieces.ids, pieces.ids, max_length=64, tokenizer=tokenizer)
        kept = pair.take(pieces.first, pieces.first, rest=False).to_list()
        assert [sum(each) for each in kept] == [8, 0, 2]


@settings(deadline=None, max_examples=25)
@given(strings, st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), min_size=1, max_size=3))
def test_substrings_are_those_of_python(texts, places):
    starts, ends = zip(*places)
    expected = [[one[start:end].encode() for start, end in places] for one in texts]
    shape = tf.fill([len(texts), 1], 1)
    answer = substring(texts, shape * tf.constant([starts]), shape * tf.constant([ends]))
    assert answer.numpy().tolist() == expected
    if texts:
        ragged = substring(texts, *(tf.ragged.constant([list(one)] * len(texts)) for one in (starts, ends)))
        assert ragged.to_list() == expected
        one = substring(texts, [starts[0]] * len(texts), [ends[0]] * len(texts))
        assert one.numpy().tolist() == [each[0] for each in expected]


def test_all_of_it_runs_in_tf_data(tokenizers):
    @tf.autograph.experimental.do_not_convert
    def prepare(texts):
        words = words_with_offsets(texts)
        pieces = pieces_of_words(words.words, tokenizers["bpe"], words.spaced)
        tokens = row(pieces.ids, max_length=12, tokenizer=tokenizers["bpe"])
        return tokens.token_ids, tokens.take(pieces.owner, rest=-1), substring(texts, words.starts, words.ends)

    data = tf.data.Dataset.from_tensor_slices(PLAIN).batch(2).map(prepare)
    rows = [one.to_list() for batch in data for one in batch]
    eager = [
        one.to_list() for start in range(0, len(PLAIN), 2) for one in prepare(tf.constant(PLAIN[start : start + 2]))
    ]
    assert rows == eager
