"""The tokenizers of published checkpoints inside a TensorFlow graph: strings to the reference's ids and back.

    tokenizer = PublishedTokenizer(load(folder, config).state())
    tokenizer.decode(tokenizer.encode(["Hello world"]))

`models/checkpoints/tokenizers.py` reads the files; what it makes of them, the parts of a tokenizer.json, is built here
a second time of TensorFlow's operations, for `tf.data`, `tf.function` and SavedModels that TensorFlow Serving runs.
The ids are the same, for every text, with these exceptions:

- Bytes that are not UTF-8, which a Python string cannot hold, are read as U+FFFD, the replacement character.
- BERT without accents: where two or more marks follow each other that Unicode has had since version 9, the reference
  brings them into canonical order and this does not. (It drops older marks, so that they have no order.)
- T5 and XLNet: where the last letter of a flag, a family, a syllable of Hangul or an Indic conjunct has an entry in
  the normalization and a mark of two bytes follows; see `Clusters`, in `characters.py`.
- T5 and XLNet: a tie in a word of more than 1,000 characters; see `unigram.py`.
- A NFC, NFD, NFKC or NFKD that tokenizer.json asks for, without dropping accents, goes by TensorFlow Text's version of
  Unicode. None of the seven families comes with one.

What no op can do alike is refused when the tokenizer is built: `single_word` tokens, look-around in patterns but for
the `\\s+(?!\\S)` of GPT-2 and Llama 3, and parts of a tokenizer.json that none of the families has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf
from tokenizers import normalizers

from models.checkpoints.tokenizers import from_state
from pipelines.transforms.characters import SPACES
from pipelines.transforms.rows import interleaved, kept, nested, owners, places, ragged, singles, where
from pipelines.transforms.spelling import Speller
from pipelines.transforms.subwords import BytePairs, WordPieces, table
from pipelines.transforms.text_steps import CUT, literal, normalization, parts_of, replaced, splitting
from pipelines.transforms.unigram import Unigram

MARK = b"\xfe"  # before an added token in a text; no UTF-8 has it


class Marked(NamedTuple):
    """Texts with the family's marks, each (b, tokens), ragged, int32.

    token_ids: of the marks and the texts.
    segments: 0 for the first text, 1 for the second, and what the family has for marks.
    """

    token_ids: tf.RaggedTensor
    segments: tf.RaggedTensor


class PublishedTokenizer(tf.Module):
    """A published tokenizer of TensorFlow operations. What exports a function that calls it must track it.

    Args:
        state: of `PretrainedTokenizer.state`.

    Attributes:
        source: the same tokenizer in Python, with its names and ids of special tokens.
        vocab_size: number of ids.

    Raises:
        ValueError: the tokenizer has a part that cannot be built.
    """

    def __init__(self, state: Mapping[str, Any]):
        super().__init__(name="published_tokenizer")
        self.source = from_state(dict(state))
        self.vocab_size = self.source.vocab_size
        spec = json.loads(self.source.tokenizer.to_str())
        self.steps = tuple(normalization(spec["normalizer"]))
        self.splitters = tuple(splitting(spec["pre_tokenizer"]))
        self.model = model_of(spec)
        normalizer = self.source.tokenizer.normalizer
        self.before = Around([token for token in spec["added_tokens"] if not token["normalized"]], None)
        self.after = Around([token for token in spec["added_tokens"] if token["normalized"]], normalizer)
        self.single, self.pair = templates(spec["post_processor"])
        self.speller = Speller(self.source, spec["decoder"])
        # Compiled once for all that calls them: loops of thousands of steps would be slow one by one.
        strings, ids = (
            tf.TensorSpec([None], tf.string),
            tf.RaggedTensorSpec([None, None], tf.int64, row_splits_dtype=tf.int64),
        )
        self._encode = tf.function(self._encoded, [strings], autograph=False)
        self._decode = tf.function(self.speller, [ids, tf.TensorSpec([], tf.bool)], autograph=False)

    def encode(self, strings: Any) -> tf.RaggedTensor:
        """Token ids of raw strings, without the family's marks.

        Args:
            strings: (b,), any bytes.

        Returns:
            int32 (b, tokens), ragged; an empty string has no token.
        """
        return self._encode(tf.convert_to_tensor(strings, tf.string))

    def _encoded(self, strings: tf.Tensor) -> tf.RaggedTensor:
        strings = tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", errors="replace")
        return tf.cast(self.before(strings, tf.fill(tf.shape(strings), True), self._normalized), tf.int32)

    def _normalized(self, texts: tf.Tensor, begins: tf.Tensor) -> tf.RaggedTensor:
        for step in self.steps:
            texts = step(texts)
        return self.after(texts, begins, self._words)

    def _words(self, texts: tf.Tensor, begins: tf.Tensor) -> tf.RaggedTensor:
        words, begins = without_empty(singles(texts), begins)  # (n, 1)
        for split in self.splitters:
            parts, begins = pieces(split(words.values, begins), begins)  # (words, parts)
            words = nested(words, parts)  # (n, words)
        unique, index = tf.unique(words.values)  # a word that comes again is read once
        return nested(words, tf.gather(self.model(unique), index))  # (n, tokens)

    def encode_pair(self, first: Any, second: Any, max_length: int | None = None) -> Marked:
        """`with_special` of two raw strings each, (b,)."""
        return self.with_special(self.encode(first), self.encode(second), max_length)

    @tf.autograph.experimental.do_not_convert  # nothing here needs it, and it is slow
    def with_special(
        self, ids: tf.RaggedTensor, pair_ids: tf.RaggedTensor | None = None, max_length: int | None = None
    ) -> Marked:
        """Puts the family's marks around texts, and cuts those that are too long at their ends.

        Args:
            ids: of `encode`, (b, tokens).
            pair_ids: of the second texts, if there are any.
            max_length: most tokens, marks and all. Of two texts the longer one is cut first, as the reference does.

        Returns:
            `Marked`.

        Raises:
            ValueError: the marks alone are more than `max_length`.
        """
        template = self.single if pair_ids is None else self.pair
        texts = {"A": ids} if pair_ids is None else {"A": ids, "B": pair_ids}
        if max_length is not None:
            room = max_length - sum(part not in texts for part, _ in template)
            if room < 0:
                raise ValueError(f"Expected max_length of at least {max_length - room}. Received: {max_length}")
            texts = dict(zip(texts, cut([*texts.values()], room)))
        count, rows, segments = ids.nrows(), [], []
        for part, segment in template:
            row = texts[part] if part in texts else singles(tf.fill([count], part))
            rows.append(row)
            segments.append(ragged(tf.fill(tf.shape(row.values), segment), row.row_splits))
        return Marked(tf.concat(rows, 1), tf.concat(segments, 1))

    def decode(self, ids: Any, skip_special: bool = True) -> tf.Tensor:
        """Strings of token ids.

        Args:
            ids: integers (b, t), padded or ragged; those that are no token are left out.
            skip_special: leave out special tokens.

        Returns:
            strings (b,).
        """
        if not isinstance(ids, tf.RaggedTensor):
            ids = tf.RaggedTensor.from_tensor(tf.convert_to_tensor(ids))
        ids = tf.cast(ids.with_row_splits_dtype(tf.int64), tf.int64)
        return self._decode(ids, tf.constant(skip_special))


def model_of(spec: Mapping[str, Any]) -> BytePairs | Unigram | WordPieces:
    """The model of a tokenizer.json."""
    kind, parts = spec["model"].get("type"), parts_of(spec["pre_tokenizer"], "pretokenizers")
    if kind == "BPE":
        return BytePairs(spec["model"], by_bytes=any(part["type"] == "ByteLevel" for part in parts))
    if kind == "Unigram":
        return Unigram(spec["model"])
    if kind == "WordPiece":
        return WordPieces(spec["model"])
    raise ValueError(f"Expected a model BPE, Unigram or WordPiece. Received: {kind}")


def without_empty(texts: tf.RaggedTensor, begins: tf.Tensor) -> tuple[tf.RaggedTensor, tf.Tensor]:
    """Strings (n, parts) that hold something, and what `begins` says of each of them."""
    some = texts.values != ""
    return kept(texts, some), tf.gather(begins, where(some))


def pieces(texts: tf.Tensor, begins: tf.Tensor) -> tuple[tf.RaggedTensor, tf.Tensor]:
    """Texts (n,) at their cuts, (n, parts), and which parts begin a whole text."""
    parts = tf.strings.split(texts, CUT)  # (n, parts)
    return without_empty(parts, tf.gather(begins, owners(parts.row_splits)) & (places(parts) == 0))


class Around(tf.Module):
    """Reads added tokens wherever they are in texts, and lets something else read what is between them.

    Args:
        tokens: `added_tokens` of tokenizer.json.
        normalizer: what the texts have been through, and so the tokens have to go through.
    """

    def __init__(self, tokens: list[Mapping[str, Any]], normalizer: normalizers.Normalizer | None):
        super().__init__()
        ids, patterns, space = {}, {}, f"[{SPACES}]*"
        for token in tokens:
            if token["single_word"]:
                raise ValueError(f"Expected added tokens without single_word. Received: {token['content']!r}")
            text = token["content"] if normalizer is None else normalizer.normalize_str(token["content"])
            if text:
                ids[text] = token["id"]
                patterns[text] = space * token["lstrip"] + literal(text) + space * token["rstrip"]
        self.pattern = "|".join(patterns[text] for text in sorted(patterns, key=len, reverse=True))
        self.ids = table(ids, keys=tf.string)

    def __call__(self, texts: tf.Tensor, begins: tf.Tensor, inside: Callable) -> tf.RaggedTensor:
        """Token ids, (n, tokens).

        Args:
            texts: (n,).
            begins: which of them begin a whole text.
            inside: reads texts, and which begin one, to token ids (m, tokens).
        """
        if not self.pattern:
            return inside(texts, begins)
        parts, first = pieces(replaced(self.pattern, CUT + MARK + rb"\0" + CUT, texts), begins)  # (n, parts)
        flat = parts.values
        token = tf.strings.substr(flat, 0, 1) == MARK
        name = tf.strings.substr(tf.gather(flat, where(token)), 1, -1)
        number = self.ids.lookup(name)
        bare = replaced(f"^[{SPACES}]+|[{SPACES}]+$", "", name)
        number = tf.where(number < 0, self.ids.lookup(bare), number)
        ids = inside(tf.gather(flat, where(~token)), tf.gather(first, where(~token)))
        ids = interleaved(token, singles(number), ids)  # (all parts, tokens)
        return nested(parts, ids)


def templates(spec: Mapping[str, Any] | None) -> tuple[tuple, tuple]:
    """What a post-processor of tokenizer.json makes of one text and of two: ids of marks and the letters A and B in
    order, each with its segment.

    Raises:
        ValueError: it is none of those that the families have.
    """
    single: tuple = (("A", 0),)
    pair: tuple = (("A", 0), ("B", 1))
    for part in parts_of(spec, "processors"):
        kind = part["type"]
        if kind == "TemplateProcessing":
            single, pair = (template(part[name], part["special_tokens"]) for name in ("single", "pair"))
        elif kind in ("BertProcessing", "RobertaProcessing"):
            end, start, second = part["sep"][1], part["cls"][1], int(kind == "BertProcessing")
            single = ((start, 0), ("A", 0), (end, 0))
            pair = (*single, *(((end, 0),) if not second else ()), ("B", second), (end, second))
        elif kind != "ByteLevel":
            raise ValueError(f"Expected a post-processor of a published BERT, GPT, T5 or XLNet. Received: {kind}")
    return single, pair


def template(parts: list[Mapping[str, Any]], marks: Mapping[str, Any]) -> tuple:
    found: list[tuple[Any, int]] = []
    for part in parts:
        if "Sequence" in part:
            found.append((part["Sequence"]["id"], part["Sequence"]["type_id"]))
        else:
            mark = part["SpecialToken"]
            found += [(number, mark["type_id"]) for number in marks[mark["id"]]["ids"]]
    return tuple(found)


def cut(texts: list[tf.RaggedTensor], room: int) -> list[tf.RaggedTensor]:
    """Texts (b, tokens) that have room together: of two the longer one loses its end first, then both."""
    if len(texts) == 1:
        return [texts[0][:, :room]]
    first, second = (ids.row_lengths() for ids in texts)
    short, whole = tf.minimum(first, second), tf.constant(room, first.dtype)
    long = tf.where(short > room, short, tf.maximum(short, whole - short))
    both = short + long > room
    short, long = tf.where(both, whole // 2, short), tf.where(both, whole - whole // 2, long)
    most = tf.where(first > second, long, short), tf.where(first > second, short, long)
    return [kept(ids, places(ids) < tf.gather(each, owners(ids.row_splits))) for ids, each in zip(texts, most)]
