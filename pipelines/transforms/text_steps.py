"""The normalizers and pre-tokenizers of published tokenizers, as steps that take strings to strings in TensorFlow.

    for step in normalization(spec["normalizer"]):
        texts = step(texts)

The steps are those of a tokenizer.json. A pre-tokenizer's put the byte `CUT`, which no UTF-8 has, between words; no
pattern of RE2 matches it or goes over it.
"""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
from etils import epy
from tokenizers import normalizers

from pipelines.transforms import characters
from pipelines.transforms.characters import SPACES

with epy.lazy_imports():
    import tensorflow_text

CUT = b"\xff"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
Step = Callable[[tf.Tensor], tf.Tensor]  # strings to strings
Splitter = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # strings, and which begin a text, to strings with cuts


def parts_of(spec: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    """The parts of a sequence, or the one part there is."""
    if spec is None:
        return []
    return [part for one in spec[key] for part in parts_of(one, key)] if spec["type"] == "Sequence" else [spec]


def replaced(pattern: str, by: str | bytes, texts: tf.Tensor) -> tf.Tensor:
    return tf.strings.regex_replace(texts, pattern, by)


def replace(pattern: str, by: str | bytes) -> Step:
    """A step that replaces what a pattern of RE2 matches."""
    return functools.partial(replaced, pattern, by)


def literal(text: str) -> str:
    """Text as a pattern of RE2 that matches it alone."""
    return "".join(rf"\x{{{ord(letter):x}}}" for letter in text)


def normalization(spec: Mapping[str, Any] | None) -> list[Step]:
    """The steps of a normalizer of tokenizer.json.

    Raises:
        ValueError: one is none of those that the families have.
    """
    steps: list[Any] = []
    parts = parts_of(spec, "normalizers")
    for part, after in zip(parts, [*(part["type"] for part in parts[1:]), None]):
        kind = part["type"]
        if kind == "BertNormalizer" and part["handle_chinese_chars"]:
            steps.append(replace(f"([{characters.IDEOGRAPHS}])", r" \1 "))
        if kind == "BertNormalizer":
            names = ("clean_text", "strip_accents", "lowercase")
            one = normalizers.BertNormalizer(handle_chinese_chars=False, **{name: part[name] for name in names})
        elif kind in ("StripAccents", "Lowercase", "Nmt") or (kind in ("NFD", "NFKD") and after == "StripAccents"):
            one = getattr(normalizers, kind)()
        else:
            steps.append(whole_texts(part))
            continue
        if steps and isinstance(steps[-1], list):  # what looks at single characters is one table
            steps[-1].append(one)
        else:
            steps.append([one])
    return [table_of(step) if isinstance(step, list) else step for step in steps]


def table_of(parts: list[normalizers.Normalizer]) -> characters.Characters:
    return characters.Characters(characters.answers(normalizers.Sequence(parts)))


def whole_texts(part: Mapping[str, Any]) -> Step:
    """The step of a normalizer that looks further than one character."""
    kind = part["type"]
    if kind == "Replace":
        pattern, by = part["pattern"], part["content"].replace("\\", r"\\")
        return replace(literal(pattern["String"]) if "String" in pattern else re2(pattern["Regex"]), by)
    if kind == "Prepend":
        return replace(r"(?s)^(.)", part["prepend"].replace("\\", r"\\") + r"\1")
    if kind == "Strip":
        ends = [rf"^[{SPACES}]+"] * part["strip_left"] + [rf"[{SPACES}]+$"] * part["strip_right"]
        return replace("|".join(ends), "")
    if kind == "Precompiled":
        return characters.Clusters(base64.b64decode(part["precompiled_charsmap"]))
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return functools.partial(tensorflow_text.normalize_utf8, normalization_form=kind)
    raise ValueError(f"Expected a normalizer of a published BERT, GPT, T5 or XLNet. Received: {kind}")


def re2(pattern: str) -> str:
    """A pattern of the reference in RE2's syntax, with the library's categories of characters.

    Raises:
        ValueError: it has look-around, or a class of characters that is not known.
    """
    found, rest, inside = "", pattern, False
    while rest:
        if match := re.match(r"\\p\{(L|N)\}|\\s|\\S", rest):
            chars = characters.category(match[1]) if match[1] else SPACES
            no = match[0] == r"\S"
            if no and inside:
                raise ValueError(rf"Expected a pattern without \S in a class. Received: {pattern}")
            found += chars if inside else f"[^{chars}]" if no else f"[{chars}]"
        elif match := re.match(r"\\[rnt]|\\[^\w]|[^\\]", rest):
            group = rest.startswith("(?") and not rest.startswith(("(?i:", "(?:"))
            if group or rest[:2] in ("++", "*+", "?+", "}+"):
                raise ValueError(f"Expected a pattern without look-around or possession. Received: {pattern}")
            inside = match[0] == "[" or (inside and match[0] != "]")
            found += match[0]
        else:
            raise ValueError(f"Expected a pattern of GPT-2 or Llama 3. Received: {pattern}")
        rest = rest[match.end() :]
    return found


def isolated(pattern: str) -> Step:
    r"""Cuts before and after what a pattern of the reference matches.

    RE2 has no look-ahead. `\s+(?!\S)` leaves the last space of several to the word that follows; so that place is cut
    beforehand, where no other part of the pattern goes over it: those of Llama 3 end spaces with their last line break.
    """
    barrier: list[Step] = []
    if r"\s+(?!\S)" in pattern:
        if not pattern.endswith((r"|\s+(?!\S)|\s+", r"|\s+(?!\S)")):
            raise ValueError(rf"Expected \s+(?!\S) at the end of a pattern. Received: {pattern}")
        pattern = pattern[: pattern.index(r"|\s+(?!\S)")] + r"|\s+"
        spaces = re.sub(r"\\t-\\r", r"\\t\\x0b\\x0c", SPACES) if r"\s*[\r\n]" in pattern else SPACES
        barrier = [replace(rf"([{spaces}][^{SPACES}])", CUT + rb"\1")]
    steps = [*barrier, replace(re2(pattern), CUT + rb"\0" + CUT)]
    return lambda texts: functools.reduce(lambda each, step: step(each), steps, texts)


def splitting(spec: Mapping[str, Any] | None) -> list[Splitter]:
    """The steps of a pre-tokenizer of tokenizer.json, which put a cut between words.

    Raises:
        ValueError: one is none of those that the families have.
    """
    return [splitter(part) for part in parts_of(spec, "pretokenizers")]


def splitter(part: Mapping[str, Any]) -> Splitter:
    kind, spaces = part["type"], replace(f"[{SPACES}]+", CUT)
    if kind == "WhitespaceSplit":
        return lambda texts, begins: spaces(texts)
    if kind == "BertPreTokenizer":
        marks = replace(f"[{characters.alone(kind)}]", CUT + rb"\0" + CUT)
        return lambda texts, begins: marks(spaces(texts))
    if kind == "Digits":
        many = "" if part["individual_digits"] else "+"
        digits = replace(f"[{characters.alone(kind)}]{many}", CUT + rb"\0" + CUT)
        return lambda texts, begins: digits(texts)
    if kind == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
        pattern = part["pattern"]
        cut_out = (
            isolated(pattern["Regex"])
            if "Regex" in pattern
            else replace(literal(pattern["String"]), CUT + rb"\0" + CUT)
        )
        return lambda texts, begins: cut_out(texts)
    if kind == "ByteLevel":
        words: Step = isolated(GPT2) if part["use_regex"] else tf.identity
        space = r"^([^ ])" if part["add_prefix_space"] else ""
        return lambda texts, begins: words(replaced(space, r" \1", texts) if space else texts)
    if kind == "Metaspace":
        return functools.partial(metaspace, part)
    raise ValueError(f"Expected a pre-tokenizer of a published BERT, GPT, T5 or XLNet. Received: {kind}")


def metaspace(part: Mapping[str, Any], texts: tf.Tensor, begins: tf.Tensor) -> tf.Tensor:
    """Writes the mark of a space for every space and before a text, and cuts before the marks."""
    mark = part["replacement"]
    texts = replaced(" ", mark, texts)
    wants = {"always": tf.ones_like(begins), "first": begins, "never": tf.zeros_like(begins)}[part["prepend_scheme"]]
    marked = tf.strings.regex_full_match(texts, f"(?s){literal(mark)}.*")
    texts = tf.where(wants & ~marked, tf.strings.join([mark, texts]), texts)
    return replaced(literal(mark), CUT + mark.encode(), texts) if part["split"] else texts
