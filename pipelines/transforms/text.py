"""Strings to token ids and back: the same TensorFlow functions in training, in `tf.data` and in the served graph.

`train_tokenizer` learns one from texts and answers its state, plain JSON for `spec.json`; `Tokenizer(state)` runs it.

- `word`: words, marks of punctuation, and single characters of scripts without spaces; learned by counting. Decoding
  joins them by spaces.
- `character`: Unicode characters; learned by counting. The round trip is exact where all characters are known.
- `wordpiece`: parts of words (Schuster and Nakajima 2012), learned and run by TensorFlow Text. Decoding joins words and
  marks by spaces.
- `bpe`: merges of characters (Sennrich et al. 2016), learned by SentencePiece, run by TensorFlow Text. The round trip
  is exact for every string of valid UTF-8.
- `sentencepiece`: pieces of a unigram model (Kudo 2018), and the rest as for `bpe`.

Ids 0 to 3 are padding, start, end and unknown. `bpe` and `sentencepiece` spell what they do not know in bytes, so that
nothing is unknown to them. Graphs of `word` and `character` load wherever TensorFlow does; the others need TensorFlow
Text's ops, which TensorFlow Serving has and a Python program gets by `import tensorflow_text`. Bytes that are not UTF-8
become U+FFFD, the replacement character, in every kind.

`with_names` adds special tokens of a task (`[MASK]`, `<extra_id_0>`) behind the vocabulary and lets marked texts begin
with the start mark; `encode_named` reads raw text that contains their names.
"""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from etils import epy

from models.layers.decoding import END, PAD, START, UNKNOWN
from pipelines.config import Failure, UsageError, one_of
from pipelines.transforms.rows import nested, places, where

with epy.lazy_imports():
    import sentencepiece
    import tensorflow_text
    from tensorflow_text.tools.wordpiece_vocab import bert_vocab_from_dataset

    from pipelines.transforms import published as transforms_published

KINDS = ("word", "character", "wordpiece", "bpe", "sentencepiece")
FORMS = ("none", "NFC", "NFD", "NFKC", "NFKD")
PUBLISHED = "published"  # the kind of a tokenizer that came with a checkpoint
SPECIAL = ("[PAD]", "[START]", "[END]", "[UNK]")  # ids 0 to 3
BYTES = 256

NORMALIZATION: dict[str, dict[str, Any]] = {
    "word": {"form": "none", "lower": True, "accents": True},
    "character": {"form": "none", "lower": False, "accents": True},
    "wordpiece": {"form": "NFKC", "lower": True, "accents": True},
    "bpe": {"form": "none", "lower": False, "accents": True},
    "sentencepiece": {"form": "none", "lower": False, "accents": True},
}

# RE2 syntax. Scripts that put no space between words are read character by character, marks with their letter.
SPACES = r"[\p{Z}\p{Cc}]+"
UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]\p{M}*)"
WORD = r"([\p{L}\p{M}\p{N}_\x{200C}\x{200D}]+(?:['’][\p{L}\p{M}]+)*|[^ ])"

# SentencePiece writes a space as U+2581. One that stands in a text is spelled with an escape character, and so is that.
SPACE_MARK, ESCAPE = "\u2581", "\uf8ff"


def normalize(strings: Any, *, form: str = "NFKC", lower: bool = False, accents: bool = True) -> tf.Tensor:
    """Strings in one spelling.

    Args:
        strings: of any shape, UTF-8; what is not becomes U+FFFD.
        form: a normalization form of Unicode (UAX #15), or `none`.
        lower: make letters small, by Unicode's rules for all scripts; U+0000 becomes a space.
        accents: keep them; else marks (category Mn) are dropped after decomposition, and the rest is composed (NFC).

    Returns:
        Strings of the same shape. Only `form` and `accents=False` need TensorFlow Text.

    Raises:
        UsageError: no such form.
    """
    one_of(form, FORMS, "a normalization form")
    strings = tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", errors="replace")
    if form != "none":
        strings = tensorflow_text.normalize_utf8(strings, form)
    if lower:
        strings = tf.strings.regex_replace(strings, r"\x00", " ")  # `lower` drops what comes after a zero
        strings = tf.strings.lower(strings, encoding="utf-8")
    if not accents:
        strings = tf.strings.regex_replace(tensorflow_text.normalize_utf8(strings, "NFD"), r"\p{Mn}", "")
        strings = tensorflow_text.normalize_utf8(strings, "NFC")
    return strings


def words(strings: tf.Tensor) -> tf.RaggedTensor:
    """Normalized strings (b,) as their words, marks and single characters of unspaced scripts, (b, words)."""
    strings = tf.strings.regex_replace(strings, SPACES, " ")
    strings = tf.strings.regex_replace(strings, UNSPACED, r" \1 ")
    strings = tf.strings.regex_replace(strings, WORD, r" \1 ")
    return tf.strings.split(strings)  # (b, words)


def characters(strings: tf.Tensor) -> tf.RaggedTensor:
    """Strings (b,) as their Unicode characters, (b, characters)."""
    return tf.strings.unicode_split(strings, "UTF-8")


def escaped(strings: tf.Tensor) -> tf.Tensor:
    """Strings without U+2581, which stands for a space inside SentencePiece; `unescaped` brings them back exactly."""
    strings = tf.strings.regex_replace(strings, ESCAPE, f"{ESCAPE}0")
    return tf.strings.regex_replace(strings, SPACE_MARK, f"{ESCAPE}1")


def unescaped(strings: tf.Tensor) -> tf.Tensor:
    strings = tf.strings.regex_replace(strings, f"{ESCAPE}1", SPACE_MARK)
    return tf.strings.regex_replace(strings, f"{ESCAPE}0", ESCAPE)


def train_tokenizer(kind: str, texts: Iterable[str], vocab_size: int, **options: Any) -> dict[str, Any]:
    """Learn a tokenizer; the same texts give the same one.

    Args:
        kind: of `KINDS`.
        texts: of the training split.
        vocab_size: most ids, the four special ones included; fewer where the texts do not give that many.
        options: `form`, `lower` and `accents` as `normalize` takes them (defaults by kind: `NORMALIZATION`), and
            `min_count`: what `word` and `character` saw less often is unknown (default 1); `space_runs`: `bpe` and
            `sentencepiece` may have pieces of several spaces, as indented text wants (default False).

    Returns:
        The state, plain JSON: `kind`, `normalization`, `vocab_size` (of ids in all), and `vocabulary` (the pieces from
        id 4 on) or `model` (SentencePiece's, in base64).

    Raises:
        UsageError: no such kind or option, or `vocab_size` is too small for the kind.
        Failure: no text holds anything.
    """
    one_of(kind, KINDS, "a tokenizer")
    for name in options:
        one_of(name, ("form", "lower", "accents", "min_count", "space_runs"), "an option of a tokenizer")
    least = len(SPECIAL) + (BYTES + 1 if kind in ("bpe", "sentencepiece") else 1)
    if vocab_size < least:
        raise UsageError(f"Expected a vocabulary of at least {least} for {kind}. Received: {vocab_size}")
    min_count, space_runs = options.pop("min_count", 1), options.pop("space_runs", False)
    normalization = NORMALIZATION[kind] | options
    state: dict[str, Any] = {"kind": kind, "normalization": normalization}
    parts = (normalize(tf.constant(part), **normalization) for part in batched(texts))
    if kind in ("word", "character"):
        split = words if kind == "word" else characters
        state["vocabulary"] = counted((split(part) for part in parts), vocab_size - len(SPECIAL), min_count)
    elif kind == "wordpiece":
        state["vocabulary"] = wordpieces(parts, vocab_size)
    else:
        lines = [line.decode() for part in parts for line in escaped(part).numpy()]
        model = sentencepiece_model("bpe" if kind == "bpe" else "unigram", lines, vocab_size, space_runs)
        found = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
        return state | {"vocab_size": found, "model": base64.b64encode(model).decode()}
    return state | {"vocab_size": len(SPECIAL) + len(state["vocabulary"])}


def batched(texts: Iterable[str], size: int = 1024) -> Iterator[list[str]]:
    """Lists of up to `size` texts."""
    rest = iter(texts)
    while part := list(itertools.islice(rest, size)):
        yield part


def counted(parts: Iterable[tf.RaggedTensor], most: int, min_count: int) -> list[str]:
    """The commonest tokens, commonest first; of equals, the first by code point."""
    counts: Counter[bytes] = Counter()
    for part in parts:
        counts.update(part.flat_values.numpy().tolist())
    found = sorted((-count, token) for token, count in counts.items() if count >= min_count)
    if not counts:
        raise Failure("Expected texts to learn a vocabulary from. Received: none that holds anything")
    return [token.decode() for _, token in found[:most]]


def wordpieces(parts: Iterable[tf.Tensor], vocab_size: int) -> list[str]:
    """WordPiece's vocabulary by TensorFlow Text's learner, without the special tokens."""
    held = list(parts)
    if not any(len(words(part).flat_values) for part in held):
        raise Failure("Expected texts to learn a vocabulary from. Received: none that holds anything")
    found = bert_vocab_from_dataset.bert_vocab_from_dataset(
        tf.data.Dataset.from_tensor_slices(tf.concat(held, 0)).batch(1024),
        vocab_size,
        list(SPECIAL),
        learn_params={"lower_thresh": 2, "max_unique_chars": max(1, vocab_size // 4)},
    )
    return found[len(SPECIAL) : vocab_size]


def sentencepiece_model(model_type: str, lines: list[str], vocab_size: int, space_runs: bool = False) -> bytes:
    """A model of SentencePiece that changes nothing in a text and falls back on bytes."""
    counts = Counter(itertools.chain.from_iterable(lines))
    if not counts:
        raise Failure("Expected texts to learn a vocabulary from. Received: none that holds anything")
    room = max(1, (vocab_size - len(SPECIAL) - BYTES) // 2)
    rare = sorted(counts, key=lambda character: (-counts[character], character))[room:]
    if rare:  # they would fill the vocabulary; so they are spelled in bytes
        table = str.maketrans(dict.fromkeys(rare, " "))
        lines = [line.translate(table) for line in lines]
    target = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=target,
        model_type=model_type,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=space_runs,
        max_sentence_length=2**20,  # bytes
        num_threads=2,  # fixed: the sums of several threads depend on how many there are
        minloglevel=2,
        pad_id=PAD,
        bos_id=START,
        eos_id=END,
        unk_id=UNKNOWN,
    )
    return target.getvalue()


def with_names(state: Mapping[str, Any], names: Sequence[str] = (), *, start: bool = True) -> dict[str, Any]:
    """The state of a tokenizer with more special tokens.

    Args:
        state: of `train_tokenizer`.
        names: of the tokens, whose ids follow those of the vocabulary in this order: `[MASK]`, `<extra_id_0>`, ….
        start: whether marked texts begin with the start mark, too.

    Raises:
        UsageError: a name is empty or comes twice, or the state has names already.
    """
    if state.get("extra") or len(set(names)) < len(names) or not all(names):
        raise UsageError(f"Expected different names for a tokenizer that has none. Received: {list(names)}")
    return {**state, "vocab_size": state["vocab_size"] + len(names), "extra": list(names), "start": start}


class Tokenizer(tf.Module):
    """A trained tokenizer. Its tables belong to it: what exports a function that calls it must track it.

    Args:
        state: of `train_tokenizer`, or of `with_names` after it.

    Attributes:
        extra: ids of additional special tokens by name.
        ordinary: number of ids before those.
        start: whether `marked` begins with the start mark.
        marks: how many marks it puts around a text.

    Raises:
        UsageError: the state is of no kind that is known.
    """

    pad_id = PAD

    def __init__(self, state: Mapping[str, Any]):
        super().__init__(name="tokenizer")
        one_of(state["kind"], KINDS, "a tokenizer")
        self.kind: str = state["kind"]
        self.vocab_size: int = state["vocab_size"]
        added = state.get("extra", ())
        self.ordinary = self.vocab_size - len(added)
        self.extra = {name: self.ordinary + place for place, name in enumerate(added)}
        self.start: bool = state.get("start", False)
        self.marks = 1 + self.start
        if self.extra:
            by_name = tf.lookup.KeyValueTensorInitializer(
                list(self.extra), list(self.extra.values()), value_dtype="int32"
            )
            self.extra_ids = tf.lookup.StaticHashTable(by_name, UNKNOWN)
        options = dict(state["normalization"])
        self.normalize = lambda strings: normalize(strings, **options)
        if "model" in state:
            self.pieces = tensorflow_text.SentencepieceTokenizer(base64.b64decode(state["model"]), out_type=tf.int32)
            return
        names = [*SPECIAL, *state["vocabulary"]] if self.kind == "wordpiece" else list(state["vocabulary"])
        first = self.ordinary - len(names)
        keys, ids = tf.constant(names, tf.string), tf.range(first, self.ordinary, dtype=tf.int64)
        if not names:  # a table has to hold something: the name of padding, which is no word
            keys, ids = tf.constant([""]), tf.constant([PAD], tf.int64)
        self.ids = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, ids), UNKNOWN)
        self.names = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(ids, keys), "")
        if self.kind == "wordpiece":
            longest = max(len(name.removeprefix("##")) for name in names)
            self.pieces = tensorflow_text.BertTokenizer(
                self.ids,
                max_bytes_per_word=2**20,
                max_chars_per_token=longest,
                token_out_type=tf.int32,
                unknown_token=SPECIAL[UNKNOWN],
                split_unknown_characters=True,
            )

    def encode(self, strings: Any) -> tf.RaggedTensor:
        """Token ids of raw strings.

        Args:
            strings: (b,), any bytes.

        Returns:
            int32 (b, tokens), ragged, without start and end; an empty string has no token.
        """
        strings = self.normalize(tf.convert_to_tensor(strings, tf.string))
        if self.kind in ("word", "character"):
            tokens = words(strings) if self.kind == "word" else characters(strings)  # (b, tokens)
            return tf.cast(self.ids.lookup(tokens), tf.int32)
        if self.kind == "wordpiece":
            return self.pieces.tokenize(strings).merge_dims(1, 2)  # (b, words, pieces) -> (b, tokens)
        return self.pieces.tokenize(escaped(strings))

    def encode_named(self, strings: Any) -> tf.RaggedTensor:
        """Token ids of raw strings in which names of additional special tokens stand for these.

        `bpe` and `sentencepiece` write the space before a word as a part of it; so one space before a name is taken to
        belong to what the name stands for.

        Args:
            strings: (b,), any bytes.

        Returns:
            As of `encode`.
        """
        strings = tf.convert_to_tensor(strings, tf.string)
        if not self.extra:
            return self.encode(strings)
        strings = tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", errors="replace")
        names = "|".join(map(re.escape, sorted(self.extra, key=len, reverse=True)))
        space = " ?" if self.kind in ("bpe", "sentencepiece") else ""
        marked = tf.strings.regex_replace(strings, f"{space}({names})".encode(), b"\xfe\\1\xfe")  # no UTF-8 has it
        parts = tf.strings.split(marked, b"\xfe")  # (b, parts): text, name, text, …
        values = tf.ensure_shape(parts.values, [None])  # (n,)
        named = tf.ensure_shape(places(parts) % 2 == 1, [None])  # (n,)
        found = tf.gather(values, where(named))
        ids = self.encode(tf.where(named, "", values))  # (n, tokens)
        special = tf.RaggedTensor.from_row_lengths(
            self.extra_ids.lookup(found), tf.cast(named, tf.int64)
        )  # (n, 0 or 1)
        return nested(parts, tf.concat([ids, special], axis=1))

    def marked(self, strings: Any, max_length: int) -> tf.RaggedTensor:
        """Token ids of raw strings with the marks, at most `max_length` of them: (b, tokens)."""
        return sequences(self.encode(strings), max_length, start=self.start)

    def decode(self, ids: Any) -> tf.Tensor:
        """Strings of token ids; special ids are left out, additional ones too.

        Args:
            ids: integers (b, t), padded or ragged, below `vocab_size`.

        Returns:
            strings (b,).
        """
        if not isinstance(ids, tf.RaggedTensor):
            ids = tf.RaggedTensor.from_tensor(ids)
        ids = tf.ragged.boolean_mask(ids, (ids > UNKNOWN) & (ids < self.ordinary))  # (b, tokens)
        if self.kind in ("bpe", "sentencepiece"):
            return unescaped(self.pieces.detokenize(tf.cast(ids, tf.int32)))
        names = self.names.lookup(tf.cast(ids, tf.int64))
        text = tf.strings.reduce_join(names, axis=-1, separator="" if self.kind == "character" else " ")  # (b,)
        return tf.strings.regex_replace(text, "(?:^| )##", "") if self.kind == "wordpiece" else text


class Published(tf.Module):
    """The tokenizer of a published checkpoint, with the methods of `Tokenizer`.

    Args:
        state: of `published`.
    """

    def __init__(self, state: Mapping[str, Any]):
        super().__init__(name="tokenizer")
        self.kind, self.vocab_size = PUBLISHED, state["vocab_size"]
        self.inner = transforms_published.PublishedTokenizer(state["source"])
        source = self.inner.source
        self.pad_id = next(one for one in (source.pad_id, source.end_id, 0) if one is not None)
        self.marks = len(source.encode(""))

    def encode(self, strings: Any) -> tf.RaggedTensor:
        """Token ids of raw strings (b,) without marks: (b, tokens)."""
        return self.inner.encode(strings)

    def marked(self, strings: Any, max_length: int) -> tf.RaggedTensor:
        """Token ids of raw strings with the marks of the family, at most `max_length` of them: (b, tokens)."""
        return self.inner.with_special(self.encode(strings), max_length=max_length).token_ids

    def decode(self, ids: Any) -> tf.Tensor:
        """Strings (b,) of token ids; special ids are left out."""
        return self.inner.decode(ids)


def tokenizer(state: Mapping[str, Any]) -> Any:
    """The tokenizer of a state of `train_tokenizer` or `published`; both kinds have `pad_id`, `marks` and `marked`."""
    return Published(state) if state["kind"] == PUBLISHED else Tokenizer(state)


def published(source: Any) -> dict[str, Any]:
    """The state of a published tokenizer, a `models.checkpoints.tokenizers.PretrainedTokenizer`, for `spec.json`."""
    return {"kind": PUBLISHED, "vocab_size": source.vocab_size, "source": source.state()}


def sequences(
    ids: tf.RaggedTensor,
    max_length: int,
    *,
    start: bool = False,
    end: bool = True,
    marks: tuple[int, int] = (START, END),
) -> tf.RaggedTensor:
    """Token ids between their marks, cut so that at most `max_length` are left, marks and all; (b, tokens)."""
    first, last = (tf.fill([ids.nrows(), 1], tf.constant(mark, ids.dtype)) for mark in marks)
    kept = ids[:, : max_length - start - end]
    return tf.concat([*([first] if start else []), kept, *([last] if end else [])], axis=1)


def padded(ids: tf.RaggedTensor, multiple: int = 1, pad_id: int = PAD) -> tf.Tensor:
    """Ragged ids as a tensor (b, t), `pad_id` at the right; `t` is a multiple of `multiple`, and at least that."""
    longest = tf.reduce_max(tf.concat([ids.row_lengths(), [1]], 0))
    length = (longest + multiple - 1) // multiple * multiple
    return ids.to_tensor(pad_id, shape=tf.stack([tf.constant(-1, length.dtype), length]))  # (b, t)
