"""What the normalization of a published tokenizer does to every character, as tables inside a TensorFlow graph.

    smaller = Characters(answers(normalizers.Lowercase()))
    smaller(["ÀB"])  # "àb"

The tables come from the `tokenizers` library itself, which is asked for every character of Unicode when a tokenizer is
built: so the graph goes by the library's version of Unicode, and neither by Python's nor by TensorFlow's.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tokenizers import Regex, normalizers, pre_tokenizers

from pipelines.transforms.rows import owners, ragged, splits_of, where

ALL, PAGE = 0x110000, 256
# Blocks in which a character is treated as the first one is: ideographs, private use, planes without characters.
ALIKE = [(0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xE000, 0xF8FF), (0x20000, 0x2F7FF), (0x2FA20, 0xDFFFF)]
ALIKE += [(0xE1000, 0xEFFFF), (0xF0000, 0xFFFFD), (0x100000, 0x10FFFD)]
BETWEEN = "\u3400"  # an ideograph that nothing becomes and that becomes nothing
SPACES = r"\t-\r \x85\xa0\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"  # White_Space of Unicode
# What BERT puts spaces around, as its authors wrote it, with two blocks less than they meant.
IDEOGRAPHS = r"\x{4e00}-\x{9fff}\x{3400}-\x{4dbf}\x{20000}-\x{2a6df}\x{2a700}-\x{2b81f}\x{2b920}-\x{2ceaf}"
IDEOGRAPHS += r"\x{f900}-\x{faff}\x{2f800}-\x{2fa1f}"


def characters(alike: bool = False) -> list[str]:
    """All characters but those that are alike, or only the first ones of those blocks."""
    if alike:
        return [chr(first) for first, _ in ALIKE]
    rest = np.ones(ALL, bool)
    for first, last in [*ALIKE, (0xD800, 0xDFFF)]:
        rest[first : last + 1] = False
    return [chr(code) for code in np.flatnonzero(rest)]


def answers(normalizer: normalizers.Normalizer) -> dict[str, str]:
    """What a normalizer that looks at one character at a time makes of those that it changes."""
    asked = characters()
    text = normalizer.normalize_str(BETWEEN.join(asked))
    found = dict(zip(asked, text.split(BETWEEN), strict=True))
    for (first, last), one in zip(ALIKE, characters(alike=True)):
        answer = normalizer.normalize_str(one)
        if answer != one:
            found |= dict.fromkeys(map(chr, range(first, last + 1)), answer)
    return {one: answer for one, answer in found.items() if one != answer}


def ranges(found: Iterable[str]) -> str:
    """Characters as the inside of a class of a regular expression of RE2."""
    codes = np.array(sorted(map(ord, found)))
    parts = np.split(codes, np.flatnonzero(np.diff(codes) > 1) + 1) if len(codes) else []
    return "".join(rf"\x{{{part[0]:x}}}-\x{{{part[-1]:x}}}" for part in parts)


@functools.cache
def category(name: str) -> str:
    """The class of the characters that the library has in a category of Unicode, as `L` or `N`; `ranges` of them."""
    outside = pre_tokenizers.Split(Regex(rf"[^\p{{{name}}}]+"), "removed")
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x40000)]))
    return ranges("".join(part for part, _ in outside.pre_tokenize_str(text)))


@functools.cache
def alone(name: str) -> str:
    """The class of the characters that a pre-tokenizer of the library makes words of their own; `ranges` of them."""
    make = {"Digits": lambda: pre_tokenizers.Digits(individual_digits=True)}
    splitter = make.get(name, getattr(pre_tokenizers, name))()
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x40000)]))
    maybe = [part for part, _ in splitter.pre_tokenize_str(text) if len(part) == 1]
    parts = splitter.pre_tokenize_str("a" + "a".join(maybe) + "a")
    return ranges({part for part, _ in parts if len(part) == 1} - {"a"})


class Paged:
    """A whole number for every character, in pages of which equal ones are kept once.

    Args:
        numbers: by code point; others have `rest`.
        rest: the number of the others.
    """

    def __init__(self, numbers: Mapping[int, int], rest: int = 0):
        values = np.full(ALL, rest, np.int32)
        values[list(numbers)] = list(numbers.values())
        known: dict[bytes, int] = {}
        self.pages = np.array([known.setdefault(page.tobytes(), len(known)) for page in values.reshape(-1, PAGE)])
        self.rows = np.frombuffer(b"".join(known), np.int32)

    def __call__(self, codes: tf.Tensor) -> tf.Tensor:
        """Numbers of code points."""
        return tf.gather(self.rows, tf.gather(self.pages.astype(np.int32), codes // PAGE) * PAGE + codes % PAGE)


class Characters(tf.Module):
    """Strings in which characters are replaced by what a table says of them.

    Args:
        table: a character -> what it becomes; others stay.
        longer: some characters -> what they become, for `Clusters`.
    """

    def __init__(self, table: Mapping[str, str], longer: Mapping[str, str] | None = None):
        super().__init__(name="characters")
        longer = longer or {}
        texts = {text: place for place, text in enumerate(dict.fromkeys(["", *table.values(), *longer.values()]), 1)}
        self.paged = Paged({ord(one): texts[text] for one, text in table.items()})  # 0: it stays; 1: nothing does
        self.lengths = np.array([1, *map(len, texts)], np.int32)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths[1:]) - self.lengths[1:]]).astype(np.int32)
        self.codes = np.array([ord(one) for text in texts for one in text], np.int32)
        if longer:
            keys, found = tf.constant([*longer]), tf.constant([texts[text] for text in longer.values()])
            self.longer = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, found), 0)

    def entries(self, codes: tf.RaggedTensor) -> tf.Tensor:
        """The entry of each character, (c,)."""
        return self.paged(codes.flat_values)

    def __call__(self, strings: Any) -> tf.Tensor:
        """Strings (b,) of UTF-8, to such."""
        codes = tf.strings.unicode_decode(strings, "UTF-8")  # (b, characters)
        entries, flat = self.entries(codes), codes.flat_values  # (c,)
        lengths = tf.gather(self.lengths, entries)
        own = len(self.codes) + tf.range(tf.size(flat))
        starts = tf.where(entries > 0, tf.gather(self.starts, entries), own)
        places = tf.ragged.range(starts, starts + lengths).flat_values
        splits = tf.gather(splits_of(lengths), codes.row_splits)
        values = tf.gather(tf.concat([self.codes, flat], 0), places)
        return tf.strings.unicode_encode(ragged(values, splits), "UTF-8")


class Clusters(Characters):
    """The normalization that a model of SentencePiece carries, as the library applies it.

    A letter with its marks that takes less than six bytes is looked up as one, by the shortest entry that it begins
    with, and what follows that is lost; everything else goes character by character. Letters also belong together in
    flags, families, syllables of Hangul and conjuncts of Indic scripts. Those are longer; the last letter of such a
    group is taken for one of its own here, which shows only if it has an entry and a mark of two bytes follows.

    Args:
        table: as SentencePiece writes it, `precompiled_charsmap`.
    """

    SHORT = 6  # bytes

    def __init__(self, table: bytes):
        entries = read_table(table, self.SHORT - 1)
        super().__init__({key: text for key, text in entries.items() if len(key) == 1}, entries)
        kinds = {code: kind for kind, codes in enumerate(joining(), 1) for code in codes}
        self.kinds = Paged(kinds | {0x0D: 4, 0x0A: 5})

    def entries(self, codes: tf.RaggedTensor) -> tf.Tensor:
        """The entry of each character; of a short cluster, that of the whole for the first one and none for others."""
        flat, entries = codes.flat_values, super().entries(codes)  # (c,)
        kind = self.kinds(flat)
        mark, before, control = kind == 1, kind == 2, kind >= 3
        joins = (mark[1:] & ~control[:-1]) | (before[:-1] & ~control[1:]) | ((kind[:-1] == 4) & (kind[1:] == 5))
        joins = tf.concat([[False], joins], 0)[: tf.size(flat)]
        first = tf.scatter_nd(codes.row_splits[:-1, None], tf.ones_like(codes.row_splits[:-1]), [tf.size(flat) + 1])
        joins &= first[:-1] == 0  # a string begins no later than its first character
        cluster = tf.cumsum(tf.cast(~joins, tf.int32)) - 1  # (c,)
        size = 1 + sum(tf.cast(flat >= least, tf.int32) for least in (0x80, 0x800, 0x10000))
        count = tf.math.segment_sum(tf.ones_like(flat), cluster)  # (clusters,)
        short = (count > 1) & (tf.math.segment_sum(size, cluster) < self.SHORT)
        within = tf.where(tf.gather(short, cluster))  # the characters in short clusters, (k, 1)
        sizes = tf.gather(count, where(short))  # (short ones,)
        some = ragged(tf.gather_nd(flat, within), splits_of(sizes))  # (short ones, characters)
        found = tf.zeros_like(sizes)
        for length in range(3, 0, -1):
            entry = self.longer.lookup(tf.strings.unicode_encode(some[:, :length], "UTF-8"))
            found = tf.where(entry > 0, entry, found)
        whole = tf.gather(found, owners(some.row_splits))
        changed = tf.where(tf.gather_nd(joins, within), 1, whole)
        changed = tf.where(whole == 0, tf.gather_nd(entries, within), changed)
        return tf.tensor_scatter_nd_update(entries, within, changed)


def read_table(table: bytes, longest: int) -> dict[str, str]:
    """The entries of `precompiled_charsmap` of at most `longest` bytes: what is replaced -> by what.

    Four bytes say how long a double array is (Aoe 1989, as Darts-clone packs it), in which every path of bytes that
    ends is an entry; after it come the replacements, each with a zero at its end.
    """
    length = int.from_bytes(table[:4], "little")
    units = np.frombuffer(table[4 : 4 + length], "<u4").astype(np.int64)
    texts = table[4 + length :]
    offsets = (units >> 10) << ((units & 0x200) >> 6)
    labels = units & 0x800000FF
    values = np.arange(1, 256)
    nodes, keys, found = offsets[:1], np.zeros([1, 0], np.uint8), {}
    for _ in range(longest):  # all paths at once, byte by byte
        places = np.minimum(nodes[:, None] ^ values, len(units) - 1)  # (paths, 255)
        path, byte = np.nonzero(labels[places] == values)
        places = places[path, byte]
        keys = np.concatenate([keys[path], values[byte][:, None].astype(np.uint8)], 1)
        nodes = places ^ offsets[places]
        ends = (units[places] >> 8 & 1).astype(bool)
        for key, start in zip(keys[ends], (units[nodes[ends]] & 0x7FFFFFFF).tolist()):
            found[key.tobytes().decode()] = texts[start : texts.index(0, start)].decode()
    return found


@functools.cache
def joining() -> tuple[frozenset[int], frozenset[int], frozenset[int]]:
    """Characters that belong to the one before them, to the one after them, and to none.

    The library is asked by a table that changes a to b, and a sign that belongs to what follows it to b.
    """
    units, sign = np.zeros(1024, np.uint32), "\u0600"
    units[0] = 256 << 10

    def leaf(place: int, label: int) -> None:
        units[place], units[place ^ 1] = label | 1 << 8 | 1 << 10, 1 << 31

    leaf(256 ^ ord("a"), ord("a"))
    lead, rest = sign.encode()
    units[256 ^ lead] = lead | ((256 ^ lead ^ 512) << 10)
    leaf(512 ^ rest, rest)
    table = normalizers.Precompiled(len(units.tobytes()).to_bytes(4, "little") + units.tobytes() + b"b\0")
    asked = [
        one
        for one in characters()
        if one not in f"\r\n{sign}" and not "\uac00" <= one <= "\ud7a3" and one < "\U000e1000"
    ]

    def changed(before: str, after: str, answer: str) -> frozenset[int]:
        parts = table.normalize_str("".join(f"{before}{one}{after}\n" for one in asked)).split("\n")[:-1]
        return frozenset(ord(one) for one, part in zip(asked, parts, strict=True) if part == answer.replace("?", one))

    marks, signs = changed("a", "", "b"), changed("", "a\u0301", "?b\u0301")
    bound = changed(sign, "", "b")
    signs |= {ord(sign)}
    return marks, signs, frozenset(ord(one) for one in asked if one < "\U00010000") - bound
