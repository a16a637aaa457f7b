"""Token ids of published tokenizers to strings, in a TensorFlow graph."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from models.checkpoints.tokenizers import CLEAN, PretrainedTokenizer
from pipelines.transforms.rows import kept, owners, places
from pipelines.transforms.subwords import spelled
from pipelines.transforms.text_steps import literal, parts_of, replaced


class Speller(tf.Module):
    """Token ids to strings.

    Args:
        source: the tokenizer.
        spec: the decoder of its tokenizer.json.

    Raises:
        ValueError: the decoder is none of those that the families have.
    """

    def __init__(self, source: PretrainedTokenizer, spec: Mapping[str, Any] | None):
        super().__init__()
        special = {token.content for token in source.tokenizer.get_added_tokens_decoder().values() if token.special}
        size = 1 + max(source.tokenizer.get_vocab().values())
        found = [source.id_to_token(number) for number in range(size)]
        self.known = np.array([token is not None for token in found])
        self.plain = np.array([token is not None and token not in special for token in found])
        parts, tokens = parts_of(spec, "decoders"), [token or "" for token in found]
        kinds = tuple(part["type"] for part in parts)
        self.by_bytes, self.bytes, self.ends = kinds == ("ByteLevel",), np.zeros(size, bool), ""
        first: list[Any]
        rest: list[Any]
        if self.by_bytes:
            first = rest = [token.encode() if (text := spelled(token)) is None else text for token in tokens]
        elif "ByteFallback" in kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
            for part in parts:
                if part["type"] == "Replace":
                    tokens = [token.replace(part["pattern"]["String"], part["content"]) for token in tokens]
                elif part["type"] == "Strip":
                    letter = literal(part["content"])
                    self.ends = f"^(?:{letter}){{0,{part['start']}}}|(?:{letter}){{0,{part['stop']}}}$"
            self.bytes = np.array([re.fullmatch("<0x[0-9A-F]{2}>", token) is not None for token in tokens])
            pairs = zip(tokens, self.bytes)
            first = rest = [bytes([int(token[3:5], 16)]) if byte else token.encode() for token, byte in pairs]
        elif kinds in ((), ("WordPiece",), ("Metaspace",)):  # a token is spelled one way at the start, another after it
            spell = source.tokenizer.decoder.decode if kinds else " ".join
            first, rest = ([spell([*before, token])[len(before) :] for token in tokens] for before in ([], ["a"]))
        else:
            raise ValueError(f"Expected a decoder of a published BERT, GPT, T5 or XLNet. Received: {', '.join(kinds)}")
        self.first, self.rest = np.array(first, object), np.array(rest, object)
        self.cleans = source.cleans

    def __call__(self, ids: tf.RaggedTensor, skip_special: tf.Tensor) -> tf.Tensor:
        """Strings (b,) of int64 ids (b, t), without special tokens if so."""
        inside = tf.clip_by_value(ids.values, 0, len(self.known) - 1)
        wanted = tf.gather(self.plain, inside) | (tf.gather(self.known, inside) & ~skip_special)
        ids = kept(ids, wanted & (inside == ids.values))  # (b, tokens)
        flat, row = ids.values, owners(ids.row_splits)
        texts = tf.where(
            places(ids) == 0, tf.gather(tf.constant(self.first), flat), tf.gather(tf.constant(self.rest), flat)
        )
        if self.bytes.any():
            texts = self.valid(texts, tf.gather(self.bytes, flat), row)
        text = tf.strings.unsorted_segment_join(texts, row, ids.nrows())  # (b,)
        if self.by_bytes:
            text = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")
        text = replaced(self.ends, "", text) if self.ends else text
        for part in CLEAN if self.cleans else ():
            text = replaced(literal(part), part.strip(" "), text)
        return text

    @staticmethod
    def valid(texts: tf.Tensor, byte: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
        """Tokens (s,) in which bytes side by side that are no UTF-8 are U+FFFD each."""
        together = byte[1:] & byte[:-1] & (row[1:] == row[:-1])
        run = tf.cumsum(1 - tf.cast(tf.concat([[False], together], 0)[: tf.size(byte)], tf.int64)) - 1
        joined = tf.strings.unsorted_segment_join(texts, run, tf.reduce_max(tf.concat([run, [-1]], 0)) + 1)
        wrong = tf.strings.unicode_transcode(joined, "UTF-8", "UTF-8", errors="replace") != joined
        return tf.where(byte & tf.gather(wrong, run), "\ufffd", texts)
