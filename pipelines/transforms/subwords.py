"""Words to the tokens of published vocabularies in a TensorFlow graph, exactly as the `tokenizers` library finds them.

`BytePairs` and `WordPieces` here and `Unigram` in `unigram.py` take the model of a tokenizer.json and answer the ids of
words, all words at once. They use core operations of TensorFlow; `WordPieces` needs one of TensorFlow Text.

A word may be cut between characters that stand side by side in no token: no token goes over such a place, so the parts
can be read one by one. That leaves parts of a few characters even of a line without spaces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import tensorflow as tf
from etils import epy

from pipelines.transforms.characters import Paged
from pipelines.transforms.rows import by_owner, interleaved, owners, singles, splits_of, where

with epy.lazy_imports():
    import tensorflow_text

NONE = 2**62  # a rank that no pair has
CODES = 2**21  # more than there are characters


def table(numbers: Mapping[Any, int], rest: int = -1, keys: tf.DType = tf.int64) -> tf.lookup.StaticHashTable:
    """Numbers by numbers or strings, in the graph; `rest` is that of all others."""
    numbers = numbers or {(-1 if keys.is_integer else ""): rest}  # a table has to hold something
    pairs = tf.constant([*numbers], keys), tf.constant([*numbers.values()], tf.int64)
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(*pairs), rest)


def alphabet() -> list[str]:
    """The characters that stand for the bytes 0 to 255 in a byte-level vocabulary.

    Reference: Radford et al. 2019, "Language models are unsupervised multitask learners", section 2.2, and their code:
    bytes that print stand for themselves, the others for the characters from U+0100 on, in order.
    """
    printing = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printing else next(others)) for byte in range(256)]


LETTERS = {letter: byte for byte, letter in enumerate(alphabet())}


def spelled(token: str) -> bytes | None:
    """The bytes of a token of a byte-level vocabulary; None if it is written in other characters."""
    return bytes(LETTERS[letter] for letter in token) if LETTERS.keys() >= set(token) else None


class Words(tf.Module):
    """What the models share: words as symbols, and those cut into parts.

    Args:
        neighbours: the pairs of symbols that stand side by side in a token, each as one number.
        base: such a pair is first · base + second.
    """

    def __init__(self, neighbours: Iterable[int], base: int):
        super().__init__()
        self.neighbours, self.base = table(dict.fromkeys(neighbours, 1), 0), base

    def parts(self, symbols: tf.Tensor, word: tf.Tensor, cuts: tf.Tensor | bool = True) -> tf.Tensor:
        """The number of the part that each symbol (s,) is in, where `cuts` (s - 1,) allow them; else a word is one."""
        pair = tf.cast(symbols[:-1], tf.int64) * self.base + tf.cast(symbols[1:], tf.int64)
        apart = (self.neighbours.lookup(pair) == 0) & cuts | (word[:-1] != word[1:])
        return tf.cumsum(tf.concat([[0], tf.cast(apart, tf.int32)], 0))[: tf.size(symbols)]


def fused(ids: tf.Tensor, word: tf.Tensor, unknown: int | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Ids in which unknown ones side by side in a word are one."""
    if unknown is None:
        return ids, word
    again = (ids[1:] == unknown) & (ids[:-1] == unknown) & (word[1:] == word[:-1])
    kept = where(~tf.concat([[False], again], 0)[: tf.size(ids)])
    return tf.gather(ids, kept), tf.gather(word, kept)


class BytePairs(Words):
    """Byte-pair encoding: the pair that was learned first is merged first, and of equal ones the first in the word.

    All merges of one pair in a part happen at once, unless the token they make was also learned as part of a pair
    before it, as in vocabularies of SentencePiece; then one happens at a time, as the order wants it.

    Args:
        model: of tokenizer.json, type BPE.
        by_bytes: whether the words are spelled in bytes, else in characters.

    Reference: Sennrich et al. 2016, "Neural machine translation of rare words with subword units", section 3.2.
    """

    def __init__(self, model: Mapping[str, Any], by_bytes: bool):
        for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(name):
                raise ValueError(f"Expected a BPE without {name}. Received: {model[name]!r}")
        vocab: dict[str, int] = model["vocab"]
        merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
        products = [vocab[left + right] for left, right in merges]
        base = max(vocab.values(), default=0) + 1
        ids = {(vocab[left], vocab[right]): rank for rank, (left, right) in enumerate(merges)}
        first_use: dict[int, int] = {}  # token -> the first pair that it is part of
        for (left, right), rank in ids.items():
            for token in (left, right):
                first_use[token] = min(rank, first_use.get(token, rank))
        self.unknown: int | None = vocab.get(model.get("unk_token") or "")
        self.fuse, self.by_bytes = bool(model.get("fuse_unk")), by_bytes
        letters = {token: number for token, number in vocab.items() if len(token) == 1}
        made = {left + right for left, right in merges}
        near = {(letters.get(a, -1), letters.get(b, -1)) for token in made for a, b in pairwise(token)}
        super().__init__((first * base + second for first, second in near if min(first, second) >= 0), base)
        self.pairs = table({left * base + right: rank for (left, right), rank in ids.items()}, NONE)
        self.products = np.array([*products, 0], np.int64)
        self.alone = np.array([first_use.get(token, NONE) <= rank for rank, token in enumerate(products)] + [False])
        absent = -1 if self.unknown is None else self.unknown
        if by_bytes:
            self.letters: Any = np.array([vocab.get(letter, absent) for letter in alphabet()], np.int32)
        else:
            self.letters = Paged({ord(token): number for token, number in letters.items()}, -1)
            found = [vocab.get(f"<0x{byte:02X}>", -1) for byte in range(256)] if model.get("byte_fallback") else [-1]
            self.fallback = np.array(found, np.int32)
            if model.get("byte_fallback") and min(found) < 0:
                raise ValueError(f"Expected a token for every byte. Received: none for byte {found.index(-1)}")
        self.whole = None
        if model.get("ignore_merges"):
            spell = {token: spelled(token) if by_bytes else token.encode() for token in vocab}
            known = {text: vocab[token] for token, text in spell.items() if text is not None}
            self.whole = table(known, keys=tf.string)

    def __call__(self, words: tf.Tensor) -> tf.RaggedTensor:
        """Token ids of words (w,), int64 (w, tokens)."""
        if self.whole is None:
            return self.merged(words)
        found = self.whole.lookup(words)
        known = found >= 0
        one = singles(tf.gather(found, where(known)))
        return interleaved(known, one, self.merged(tf.gather(words, where(~known))))

    def symbols(self, words: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The ids of the letters of words, and the number of each letter's word, (s,)."""
        if self.by_bytes:
            codes = tf.cast(tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8), tf.int32)
            word = owners(splits_of(tf.strings.length(words)))
            ids = tf.gather(self.letters, codes)
        else:
            ragged = tf.strings.unicode_decode(words, "UTF-8")  # (w, characters)
            codes, word = ragged.values, tf.cast(owners(ragged.row_splits), tf.int32)
            ids = self.letters(codes)
            if len(self.fallback) > 1:
                ids, word = self.in_bytes(codes, ids, word)
            elif self.unknown is not None:
                ids = tf.where(ids < 0, self.unknown, ids)
        kept = where(ids >= 0)
        return tf.cast(tf.gather(ids, kept), tf.int64), tf.gather(word, kept)

    def in_bytes(self, codes: tf.Tensor, ids: tf.Tensor, word: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The same, with the characters that have no id spelled in the bytes of UTF-8."""
        size = 1 + sum(tf.cast(codes >= least, tf.int32) for least in (0x80, 0x800, 0x10000))
        size = tf.where(ids < 0, size, 1)
        splits = splits_of(size)
        place = owners(splits)  # (s,), the character of each symbol
        codes, ids, word = (tf.gather(each, place) for each in (codes, ids, word))
        count = tf.gather(size, place)
        index = tf.range(tf.size(place)) - tf.gather(splits, place)  # in its character
        bits = tf.bitwise.right_shift(codes, 6 * (count - 1 - index))
        lead = tf.where(index == 0, tf.gather([0, 0, 0xC0, 0xE0, 0xF0], count), 0x80)
        byte = lead + tf.where(index == 0, bits, bits % 64)
        return tf.where(ids < 0, tf.gather(self.fallback, byte % 256), ids), word

    def merged(self, words: tf.Tensor) -> tf.RaggedTensor:
        """Token ids of words by merging their letters."""
        symbols, word = self.symbols(words)
        part = self.parts(symbols, word)
        word_of = tf.math.unsorted_segment_max(word, part, tf.reduce_max(tf.concat([part, [-1]], 0)) + 1)
        parts = tf.size(word_of)
        nothing = tf.zeros([0], tf.int64), tf.zeros([0], tf.int32)

        def step(symbols: tf.Tensor, part: tf.Tensor, ids: tf.Tensor, owner: tf.Tensor) -> tuple[tf.Tensor, ...]:
            inside = part[:-1] == part[1:]
            rank = tf.where(inside, self.pairs.lookup(symbols[:-1] * self.base + symbols[1:]), NONE)  # (s - 1,)
            best = tf.math.unsorted_segment_min(rank, part[:-1], parts)  # (parts,)
            chosen = (rank == tf.gather(best, part[:-1])) & (rank < NONE)
            place = tf.range(tf.size(chosen))
            begins = chosen & ~tf.concat([[False], chosen], 0)[:-1]  # of pairs that share a letter, every second one
            begin = tf.concat([[0], tf.cast(where(begins), tf.int32)], 0)
            chosen &= (place - tf.gather(begin, tf.cumsum(tf.cast(begins, tf.int32)))) % 2 == 0
            number = tf.where(chosen, rank, len(self.products) - 1)
            first = tf.math.unsorted_segment_min(tf.where(chosen, place, tf.int32.max), part[:-1], parts)
            chosen &= ~tf.gather(self.alone, number) | (place == tf.gather(first, part[:-1]))
            merged = tf.where(chosen, tf.gather(self.products, number), symbols[:-1])
            symbols_now = tf.concat([merged, symbols[-1:]], 0)
            active = tf.gather(best, part) < NONE
            stays, ready = where(active & ~tf.concat([[False], chosen], 0)), where(~active)
            ids = tf.concat([ids, tf.gather(symbols, ready)], 0)
            owner = tf.concat([owner, tf.gather(part, ready)], 0)
            return tf.gather(symbols_now, stays), tf.gather(part, stays), ids, owner

        loop = (symbols, part, *nothing)
        shapes = (tf.TensorShape([None]),) * 4
        _, _, ids, owner = tf.while_loop(lambda symbols, *_: tf.size(symbols) > 0, step, loop, shapes)
        order = tf.argsort(owner, stable=True)
        ids, word = tf.gather(ids, order), tf.gather(word_of, tf.gather(owner, order))
        ids, word = fused(ids, word, self.unknown if self.fuse else None)
        return by_owner(ids, word, tf.size(words))


class WordPieces(tf.Module):
    """The longest token of the vocabulary that a word begins with, and so on with the rest.

    Args:
        model: of tokenizer.json, type WordPiece.

    Reference: Schuster and Nakajima 2012, "Japanese and Korean voice search", as BERT reads it.
    """

    def __init__(self, model: Mapping[str, Any]):
        super().__init__()
        self.unknown, self.most = model["vocab"][model["unk_token"]], model["max_input_chars_per_word"]
        self.ids = table(model["vocab"], keys=tf.string)
        self.pieces = tensorflow_text.WordpieceTokenizer(
            self.ids,
            suffix_indicator=model["continuing_subword_prefix"],
            max_bytes_per_word=4 * self.most + 1,
            token_out_type=tf.int64,
            unknown_token=model["unk_token"],
        )

    def __call__(self, words: tf.Tensor) -> tf.RaggedTensor:
        """Token ids of words (w,), int64 (w, tokens)."""
        long = tf.strings.length(words, "UTF8_CHAR") > self.most
        unknown = tf.fill(tf.shape(where(long)), tf.constant(self.unknown, tf.int64))
        return interleaved(long, singles(unknown), self.pieces.tokenize(tf.gather(words, where(~long))))
