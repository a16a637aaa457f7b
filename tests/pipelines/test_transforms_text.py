"""Tokenizers on arbitrary Unicode: round trips where the kind promises one, the same ids eagerly and in a graph."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.config import Failure, UsageError
from pipelines.transforms import text
from pipelines.transforms.text import END, PAD, START, UNKNOWN, Tokenizer

ROOT = Path(__file__).parents[2]
CORPUS = [
    "The quick brown fox isn't lazy; the lazy dog sleeps, and sleeps.",
    "Кошка сидит на окне и смотрит на кошек во дворе.",
    "Η γρήγορη αλεπού πηδάει πάνω από το σκυλί.",
    "我喜欢学习，也喜欢唱歌。猫在窗台上。",
    "القط يجلس على النافذة وينظر إلى الكلب",
    "ราคา naïve café Straße 12345 🙂🙂",
] * 20
VOCABULARY = {"word": 60, "character": 120, "wordpiece": 800, "bpe": 420, "sentencepiece": 420}
LOSSLESS = ("bpe", "sentencepiece")
NASTY = ["", " ", "▁", "\uf8ff", "\uf8ff1", "\uf8ff0▁1", "\x00a\x00", "\n\t\r ", "  a  b  ", "<s></s><unk><pad>"]
NASTY += [
    "<0x41>",
    "[PAD][UNK]",
    "##a ##",
    "e\u0301",
    "\ufeffbom",
    "\u200d\u200c",
    "👩\u200d👧",
    "\U0010ffff",
    "ﷺ",
    "İI",
]

few = settings(deadline=None, max_examples=20)
strings = st.lists(st.text(max_size=30), min_size=1, max_size=8)


def states() -> dict[str, dict]:
    return {kind: text.train_tokenizer(kind, CORPUS, size) for kind, size in VOCABULARY.items()}


@pytest.fixture(scope="module")
def trained() -> dict[str, dict]:
    return states()


@pytest.fixture(scope="module")
def tokenizers(trained) -> dict[str, Tokenizer]:
    return {kind: Tokenizer(json.loads(json.dumps(state))) for kind, state in trained.items()}


@pytest.fixture(scope="module")
def graphs(tokenizers, tmp_path_factory) -> dict:
    """Of each kind, `encode` and `decode` as they come back from a SavedModel."""
    return {kind: exported(tokenizer, str(tmp_path_factory.mktemp(kind))) for kind, tokenizer in tokenizers.items()}


def exported(tokenizer: Tokenizer, folder: str):
    module = tf.Module()
    module.tokenizer = tokenizer
    strings, ids = tf.TensorSpec([None], tf.string), tf.TensorSpec([None, None], tf.int32)
    module.encode = tf.function(lambda raw: text.padded(tokenizer.encode(raw)), input_signature=[strings])
    module.decode = tf.function(tokenizer.decode, input_signature=[ids])
    tf.saved_model.save(module, folder)
    return tf.saved_model.load(folder)


def decoded(values: tf.Tensor) -> list[str]:
    return [one.decode() for one in values.numpy()]


@pytest.mark.parametrize("kind", LOSSLESS)
@few
@given(raw=strings)
@example(raw=NASTY)
@example(raw=["x" * 10_000, "猫" * 3_000, " ".join(CORPUS)])
def test_byte_pairs_and_unigrams_give_back_every_string_exactly(kind, raw, tokenizers):
    ids = tokenizers[kind].encode(raw)
    assert decoded(tokenizers[kind].decode(ids)) == raw
    assert UNKNOWN not in ids.flat_values.numpy()


@few
@given(raw=strings)
@example(raw=NASTY)
def test_characters_give_back_all_that_they_know(raw, tokenizers, trained):
    known = set(trained["character"]["vocabulary"])
    assert decoded(tokenizers["character"].decode(tokenizers["character"].encode(raw))) == [
        "".join(c for c in one if c in known) for one in raw
    ]


@few
@given(raw=strings | st.lists(st.lists(st.sampled_from(" ".join(CORPUS[:6]).split())).map(" ".join), min_size=1))
@example(raw=NASTY)
@example(raw=CORPUS)
def test_what_words_decode_to_is_read_as_the_same_words(raw, tokenizers):
    tokenizer = tokenizers["word"]
    ids = tokenizer.encode(raw)
    known = tf.ragged.boolean_mask(ids, ids != UNKNOWN)
    assert tokenizer.encode(tokenizer.decode(ids)).to_list() == known.to_list()


@few
@given(raw=st.lists(st.lists(st.sampled_from(" ".join(CORPUS[:6]).split())).map(" ".join), min_size=1))
def test_what_word_pieces_decode_to_is_read_as_the_same_pieces(raw, tokenizers):
    tokenizer = tokenizers["wordpiece"]
    ids = tokenizer.encode(raw)
    assert UNKNOWN not in ids.flat_values.numpy()
    assert tokenizer.encode(tokenizer.decode(ids)).to_list() == ids.to_list()


@pytest.mark.parametrize("kind", text.KINDS)
@few
@given(raw=st.lists(st.text(max_size=20).map(str.encode) | st.binary(max_size=20), min_size=1, max_size=6))
@example(raw=[one.encode() for one in NASTY])
@example(raw=[b"\xff\xfe", b"ab\xc3", b"\xed\xa0\x80", b"a" * 10_000, b" ".join(one.encode() for one in CORPUS)])
def test_graphs_answer_as_eager_calls_do_to_any_bytes(kind, raw, tokenizers, graphs):
    tokenizer, loaded = tokenizers[kind], graphs[kind]
    ids = text.padded(tokenizer.encode(raw))
    np.testing.assert_array_equal(ids, loaded.encode(tf.constant(raw)))
    found = tokenizer.decode(ids)
    assert found.numpy().tolist() == loaded.decode(ids).numpy().tolist()
    assert found.numpy().tolist() == tokenizer.decode(tokenizer.encode(raw)).numpy().tolist()


@pytest.mark.parametrize("kind", text.KINDS)
def test_the_same_in_tf_data(kind, tokenizers):
    tokenizer = tokenizers[kind]
    data = tf.data.Dataset.from_tensor_slices(CORPUS + NASTY).batch(7).map(tokenizer.encode)
    found = [row for batch in data for row in batch.to_list()]
    assert found == tokenizer.encode(CORPUS + NASTY).to_list()


@pytest.mark.parametrize("kind", text.KINDS)
@few
@given(raw=strings)
@example(raw=NASTY)
def test_ids_are_below_the_size_of_the_vocabulary_and_never_a_mark(kind, raw, tokenizers):
    ids = tokenizers[kind].encode(raw)
    assert ids.dtype == tf.int32 and ids.shape.rank == 2 and ids.nrows() == len(raw)
    values = ids.flat_values.numpy()
    assert np.all((values >= UNKNOWN) & (values < tokenizers[kind].vocab_size))
    assert all(len(row) == 0 for row, one in zip(ids.to_list(), raw) if one == "")


@pytest.mark.parametrize("kind", text.KINDS)
def test_special_ids_decode_to_nothing_and_marks_in_texts_are_only_text(kind, tokenizers):
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode(["fox sleeps"])
    marked = tf.concat([[[START]], ids.to_tensor(), [[END, PAD, UNKNOWN]]], 1)
    assert decoded(tokenizer.decode(marked)) == decoded(tokenizer.decode(ids))
    assert decoded(tokenizer.decode(tf.zeros([2, 0], tf.int32))) == ["", ""]
    assert not {PAD, START, END} & set(tokenizer.encode(["[PAD] <pad> <s> [END] </s>"]).flat_values.numpy())


@pytest.mark.parametrize("kind", text.KINDS)
def test_vocabularies_stay_within_their_size_and_hold_what_is_common(kind, trained):
    state = trained[kind]
    assert len(text.SPECIAL) < state["vocab_size"] <= VOCABULARY[kind]
    smaller = text.train_tokenizer(kind, CORPUS, 270)
    assert smaller["vocab_size"] <= 270
    ids = Tokenizer(smaller).encode(CORPUS)
    assert ids.flat_values.numpy().max() < smaller["vocab_size"]


def test_rare_words_are_unknown_on_request():
    state = text.train_tokenizer("word", ["one two two three three three"], 100, min_count=2)
    assert state["vocabulary"] == ["three", "two"]
    assert Tokenizer(state).encode(["three one"]).to_list() == [[4, UNKNOWN]]
    nothing = Tokenizer(text.train_tokenizer("word", ["one two"], 100, min_count=2))
    ids = nothing.encode(["one two"])
    assert ids.to_list() == [[UNKNOWN, UNKNOWN]] and decoded(nothing.decode(ids)) == [""]


def test_another_process_learns_the_same(trained):
    """Whatever the seed of Python's hashes."""
    code = (
        "import json, sys; sys.path[:0] = ['tests/pipelines']; import test_transforms_text as t; "
        "print(json.dumps(t.states()))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == trained, done.stderr[-2000:]


def operations(function) -> set[str]:
    graph = function.get_concrete_function().graph.as_graph_def()
    return {
        node.op for part in (graph, *graph.library.function) for node in getattr(part, "node", None) or part.node_def
    }


def test_words_and_characters_need_no_operation_of_tensorflow_text(tokenizers):
    beyond = {}
    for kind, tokenizer in tokenizers.items():
        signature = [tf.TensorSpec([None], tf.string)]
        found = operations(tf.function(lambda raw, it=tokenizer: it.encode(raw), input_signature=signature))
        beyond[kind] = {op for op in found if op.startswith(("Wordpiece", "Sentencepiece", "Normalize", "RegexSplit"))}
    assert {kind for kind, found in beyond.items() if found} == {"wordpiece", "bpe", "sentencepiece"}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("Hello, World!", ["hello", ",", "world", "!"]),
        ("isn't O’Neill's 'quoted'", ["isn't", "o’neill's", "'", "quoted", "'"]),
        ("snake_case(x1)", ["snake_case", "(", "x1", ")"]),
        ("ПРИВЕТ ΚΌΣΜΕ", ["привет", "κόσμε"]),
        ("我喜欢abc。", ["我", "喜", "欢", "abc", "。"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("a\u00a0b\u3000c\x00d\u2028e", ["a", "b", "c", "d", "e"]),
        ("e\u0301t\u00e9 🙂🙂", ["e\u0301t\u00e9", "🙂", "🙂"]),
        ("", []),
    ],
)
def test_words_are_split_in_every_script(raw, words):
    found = text.words(text.normalize([raw], form="none", lower=True))
    assert [one.decode() for one in found.flat_values.numpy()] == words


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@few
@given(raw=st.lists(st.text(st.characters(max_codepoint=0x2FFF, exclude_categories=["Cs", "Cn"])), min_size=1))
def test_normalization_is_that_of_unicode(form, raw):
    assert decoded(text.normalize(raw, form=form)) == [unicodedata.normalize(form, one) for one in raw]


def test_letters_are_made_small_and_accents_dropped_on_request():
    assert decoded(text.normalize(["ÀÉÎ ΣΟΦΌΣ ДА"], form="none", lower=True)) == ["àéî σοφός да"]
    assert decoded(text.normalize(["Crème Brûlée ёж"], accents=False)) == ["Creme Brulee еж"]
    assert decoded(text.normalize([b"a\xffb"], form="none")) == ["a\ufffdb"]


@few
@given(
    rows=st.lists(st.lists(st.integers(4, 9), max_size=12), min_size=1, max_size=5),
    most=st.integers(2, 10),
    start=st.booleans(),
    multiple=st.integers(1, 8),
)
def test_sequences_are_cut_between_their_marks_and_padded_at_the_right(rows, most, start, multiple):
    ids = text.sequences(tf.ragged.constant(rows, tf.int32, ragged_rank=1), most, start=start)
    for row, found in zip(rows, ids.to_list(), strict=True):
        assert found == [START] * start + row[: most - 1 - start] + [END]
    batch = text.padded(ids, multiple).numpy()
    assert batch.shape[1] % multiple == 0 and batch.shape[1] < max(map(len, ids.to_list())) + multiple
    assert [[i for i in row if i != PAD] for row in batch.tolist()] == ids.to_list()


def test_a_batch_of_nothing_is_one_column_of_padding():
    assert text.padded(tf.ragged.constant([[], []], tf.int32, ragged_rank=1)).numpy().tolist() == [[0], [0]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"kind": "wordpeice"}, "Did you mean 'wordpiece'"),
        ({"kind": "bpe", "vocab_size": 100}, "at least 261 for bpe. Received: 100"),
        ({"kind": "word", "vocab_size": 4}, "at least 5 for word. Received: 4"),
        ({"kind": "word", "lowre": True}, "Did you mean 'lower'"),
        ({"kind": "word", "form": "nfkc"}, "one of none, NFC, NFD, NFKC, NFKD"),
    ],
)
def test_wrong_arguments_are_named(words, message):
    with pytest.raises(UsageError, match=message):
        text.train_tokenizer(**{"vocab_size": 300, "texts": CORPUS} | words)


@pytest.mark.parametrize("kind", text.KINDS)
@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_texts_that_hold_nothing_are_refused(kind, texts):
    with pytest.raises(Failure, match="Expected texts to learn a vocabulary from"):
        text.train_tokenizer(kind, texts, 300)
