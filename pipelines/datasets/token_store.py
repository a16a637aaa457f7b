"""Tokens of a corpus on disk, so that one larger than memory trains in constant memory, from any step.

    store = build(corpus.train, state, fingerprint=corpus.fingerprint + " train", end_id=END)
    store.windows(32, 257, seed=0, start_step=0)      # endless, packed, for training
    store.in_order(32, 257)                           # every token once, for evaluation

Documents are read as a stream, made into tokens in batches, and joined with marks. What was written once is used again
by every run with the same data and the same tokenizer: it lies beside the data of TensorFlow Datasets, in
`TFDS_DATA_DIR`. A store is written to a hidden folder that gets its name as the last step, so that an interrupted
writing never passes for a finished one.

Batches are read from the file and not through its mapping into memory, whose pages would count as memory in use.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow_datasets.core import constants

from pipelines.config import Failure
from pipelines.datasets.stream import ENDLESS
from pipelines.transforms import text

FORMAT = 1  # of the files: another number makes new stores
TOKENS, OFFSETS, ABOUT = "tokens.bin", "offsets.bin", "about.json"
BATCH = (2**20, 1024)  # bytes and documents, at most, that are made into tokens together
THREADS = 2
LEFT_OVER = 86_400  # seconds after which a hidden folder belongs to no process that still writes
IN_MEMORY = 2**16  # up to so many windows an order is a permutation in memory
ROUNDS = 8


class Spans(NamedTuple):
    """Stretches of documents: the number of the document, the first token in it and how many tokens, each (b,)."""

    document: np.ndarray
    place: np.ndarray
    length: np.ndarray


class TokenStore:
    """Tokens of documents, one after the other.

    Args:
        folder: that `build` wrote.

    Attributes:
        tokens: (n,), in memory only as far as it is read. Each document stands between its marks. Where documents have
            an end and no start mark, the first token is one more end, so that every document comes after a mark.
        offsets: int64 (documents + 1,): document i is `tokens[offsets[i]:offsets[i + 1]]`, marks and all.
        num_bytes: of the texts of the documents.
        start_id, end_id: the marks, or None.

    Raises:
        Failure: the files are not whole.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            about = json.loads((folder / ABOUT).read_text())
            self.dtype = np.dtype(about["dtype"])
            self.tokens = np.memmap(folder / TOKENS, self.dtype, "r", shape=(about["tokens"],))
            self.offsets = np.memmap(folder / OFFSETS, np.int64, "r", shape=(about["documents"] + 1,))
        except (OSError, ValueError, KeyError) as error:
            raise Failure(f"Expected a whole token store (delete its folder). Received: {folder} ({error})") from error
        self.num_tokens: int = about["tokens"]
        self.num_documents: int = about["documents"]
        self.num_bytes: int = about["bytes"]
        self.start_id: int | None = about["start_id"]
        self.end_id: int | None = about["end_id"]
        self._file = open(folder / TOKENS, "rb", buffering=0)  # noqa: SIM115 (held open, for pread)

    def read(self, starts: Any, length: int, pad_id: int = 0) -> np.ndarray:
        """Tokens from some places on, int32 (b, length); after the last one, padding."""
        found = np.full((len(starts), length), pad_id, np.int32)
        for row, start in zip(found, starts):
            part = os.pread(self._file.fileno(), length * self.dtype.itemsize, int(start) * self.dtype.itemsize)
            values = np.frombuffer(part, self.dtype)
            row[: len(values)] = values
        return found

    def windows_per_pass(self, length: int) -> int:
        """How many windows of `length` tokens one pass of `windows` has: of its `shift`, too, the last one is whole.

        Raises:
            Failure: there are fewer tokens.
        """
        count = (self.num_tokens - length + 1) // length
        if count < 1:
            raise Failure(
                f"Expected at least {2 * length - 1} tokens for windows of {length}. Received: {self.num_tokens}"
            )
        return count

    def starts(self, length: int, seed: int, indices: np.ndarray) -> np.ndarray:
        """Where the windows begin that a run meets as its first, second, …: indices from 0 on, int64 (b,)."""
        count = self.windows_per_pass(length)
        found = np.empty(len(indices), np.int64)
        for number in np.unique(indices // count):
            here = indices // count == number
            shift = np.random.default_rng([seed, number]).integers(length)
            found[here] = shift + length * ordered(indices[here] % count, count, seed, int(number))
        return found

    def windows(self, batch_size: int, length: int, seed: int, start_step: int = 0) -> tf.data.Dataset:
        """An endless stream of packed windows, from `start_step` on.

        A pass cuts all tokens into windows, from a shift on that the seed and the pass decide, and visits each once, in
        an order that they decide, too. `start_step=s` gives exactly the batches that a stream from step 0 gives from
        step `s` on.

        Args:
            batch_size: windows in a batch; a pass has `windows_per_pass(length) // batch_size` of them or, where it has
                fewer windows than that, one of all.
            length: tokens in a window.
            seed: decides shifts and orders.
            start_step: the step of the first batch.

        Returns:
            (step, int32 (b, length)).

        Raises:
            Failure: there are not tokens enough for a window.
        """
        count = self.windows_per_pass(length)
        size = min(batch_size, count)
        per_pass = count // size

        def batch(step: np.ndarray) -> np.ndarray:
            number, place = divmod(int(step), per_pass)
            return self.read(self.starts(length, seed, number * count + place * size + np.arange(size)), length)

        def element(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            ids = tf.numpy_function(batch, [step], tf.int32, stateful=False)
            return step, tf.ensure_shape(ids, (size, length))

        found = tf.data.Dataset.range(start_step, ENDLESS).map(element, tf.data.AUTOTUNE, deterministic=True)
        return found.prefetch(tf.data.AUTOTUNE)

    def windows_in_order(self, length: int, stride: int | None = None) -> int:
        """How many windows `in_order` has."""
        return 1 + -(-max(0, self.num_tokens - length) // (stride or length))

    def in_order(self, batch_size: int, length: int, stride: int | None = None, pad_id: int = 0) -> tf.data.Dataset:
        """Every token in its order, for evaluation.

        Args:
            batch_size: windows in a batch; the last one may have fewer.
            length: tokens in a window; the last one is padded.
            stride: how far windows are apart, at most `length`; None for `length`. What they share is context.
            pad_id: of padding.

        Returns:
            (int32 (b, length), float32 (b, length)): tokens, and 1 for those that no window before has had. Padding has
            0.
        """
        stride = stride or length
        if not 1 <= stride <= length:
            raise ValueError(f"Expected a stride in [1, {length}]. Received: {stride}")
        count = self.windows_in_order(length, stride)
        columns = np.arange(length)

        def batch(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            indices = np.arange(int(number) * batch_size, min((int(number) + 1) * batch_size, count))
            starts = indices * stride
            fresh = (columns >= length - stride) | (indices == 0)[:, None]  # (b, length)
            there = starts[:, None] + columns < self.num_tokens
            return self.read(starts, length, pad_id), (fresh & there).astype(np.float32)

        def element(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            ids, fresh = tf.numpy_function(batch, [number], (tf.int32, tf.float32), stateful=False)
            return tf.ensure_shape(ids, (None, length)), tf.ensure_shape(fresh, (None, length))

        found = tf.data.Dataset.range(-(-count // batch_size)).map(element, tf.data.AUTOTUNE, deterministic=True)
        return found.prefetch(tf.data.AUTOTUNE)

    def documents(self, count: int, length: int, seed: int, step: int) -> Spans:
        """Stretches of documents drawn at random, each token with the same chance: a function of seed and step alone.

        Args:
            count: how many, b.
            length: most tokens of a stretch; a document with fewer is taken whole. Marks are not in it.
            seed, step: decide the draw.
        """
        generator = np.random.default_rng([seed, step])
        begin = int(self.offsets[0])
        places = generator.integers(begin, self.num_tokens, count)
        chosen = np.searchsorted(self.offsets, places, side="right") - 1  # (b,)
        whole = self.lengths(chosen)
        inside = places - self.offsets[chosen] - (self.start_id is not None)
        place = np.clip(inside, 0, np.maximum(0, whole - length))
        return Spans(chosen, place, np.minimum(length, whole - place))

    def lengths(self, documents: Any) -> np.ndarray:
        """Tokens of documents (b,), without their marks."""
        documents = np.asarray(documents)
        marks = (self.start_id is not None) + (self.end_id is not None)
        return self.offsets[documents + 1] - self.offsets[documents] - marks

    def span(self, document: int, place: int, length: int) -> np.ndarray:
        """Tokens of a document from a place on, int32 (length,), as `Spans` counts them."""
        start = int(self.offsets[document]) + (self.start_id is not None) + int(place)
        return self.read([start], int(length))[0]


def ordered(indices: np.ndarray, count: int, seed: int, number: int) -> np.ndarray:
    """The values at some places of a permutation of `range(count)` that the seed and a number decide.

    Up to `IN_MEMORY` values it is one of numpy's. Above, it needs no memory: a Feistel network over the next power of
    four, run again for values that are too large.

    Reference: Luby and Rackoff 1988, "How to construct pseudorandom permutations from pseudorandom functions"; Black
        and Rogaway 2002, "Ciphers with arbitrary finite domains", section 3, for running it again.
    """
    if count <= IN_MEMORY:
        return permutation(count, seed, number)[indices]
    half = np.uint64((int(count - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.default_rng([seed, number, count]).integers(0, 2**63, ROUNDS, dtype=np.uint64)

    def network(values: np.ndarray) -> np.ndarray:
        left, right = values >> half, values & mask
        for key in keys:
            left, right = right, left ^ (mixed(right ^ key) & mask)
        return left << half | right

    found = network(np.asarray(indices).astype(np.uint64))
    while (over := found >= count).any():
        found[over] = network(found[over])
    return found.astype(np.int64)


@functools.lru_cache(4)
def permutation(count: int, seed: int, number: int) -> np.ndarray:
    return np.random.default_rng([seed, number, count]).permutation(count)


def mixed(values: np.ndarray) -> np.ndarray:
    """Values of 64 bits, every bit of which depends on all (Steele et al. 2014, "Fast splittable …", figure 15)."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def root() -> Path:
    """The folder that holds all stores."""
    return Path(os.environ.get("TFDS_DATA_DIR") or constants.DATA_DIR).expanduser() / "token_stores"


def build(
    documents: Iterable[bytes],
    state: Mapping[str, Any],
    *,
    fingerprint: str,
    start_id: int | None = None,
    end_id: int | None = text.END,
    folder: Path | None = None,
    tokenizer: Any = None,
) -> TokenStore:
    """The store of documents: the one that is there, or else a new one.

    Args:
        documents: texts, read once, as a stream.
        state: of a tokenizer, see `transforms.text`.
        fingerprint: says which documents they are, such as `Corpus.fingerprint` and the name of the split.
        start_id: the mark before each document; None for none.
        end_id: the mark after each document; None for none.
        folder: that holds all stores; None for `root()`.
        tokenizer: of `state`, where it is there already.

    Raises:
        Failure: there is no document, or no room on the disk.
    """
    key = json.dumps([FORMAT, fingerprint, dict(state), start_id, end_id], sort_keys=True)
    target = (folder or root()) / hashlib.sha256(key.encode()).hexdigest()[:24]
    if target.exists():
        return TokenStore(target)
    part = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        part.mkdir(parents=True)
        swept(target.parent)
        write(part, documents, tokenizer or text.tokenizer(state), start_id, end_id)
        try:
            os.rename(part, target)
        except OSError:
            if not target.exists():  # else another process was first
                raise
    except OSError as error:
        raise Failure(f"Expected room for the tokens of a corpus in {target.parent}. Received: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return TokenStore(target)


def write(folder: Path, documents: Iterable[bytes], tokenizer: Any, start_id: int | None, end_id: int | None) -> None:
    """The files of a store."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32)
    before, after = ([] if mark is None else [mark] for mark in (start_id, end_id))
    tokens = count = size = 0
    with open(folder / TOKENS, "wb") as file, open(folder / OFFSETS, "wb") as places:
        if start_id is None and end_id is not None:
            file.write(np.array([end_id], dtype).tobytes())
            tokens = 1
        places.write(np.array([tokens], np.int64).tobytes())
        for values, splits, read in tokenized(documents, tokenizer):
            rows = len(splits) - 1
            joined = between(values, splits, before, after)
            file.write(joined.astype(dtype).tobytes())
            ends = splits[1:] + (len(before) + len(after)) * np.arange(1, rows + 1)
            places.write((tokens + ends).astype(np.int64).tobytes())
            tokens, count, size = tokens + len(joined), count + rows, size + read
        for one in (file, places):
            one.flush()
            os.fsync(one.fileno())
    if not count:
        raise Failure("Expected documents to make tokens of. Received: none")
    about = {"dtype": dtype.name, "tokens": tokens, "documents": count, "bytes": size}
    (folder / ABOUT).write_text(json.dumps(about | {"start_id": start_id, "end_id": end_id}))


def between(values: np.ndarray, splits: np.ndarray, before: list[int], after: list[int]) -> np.ndarray:
    """Rows (n,) that begin and end at `splits`, one after the other, with marks before and after each."""
    rows, marks = len(splits) - 1, len(before) + len(after)
    row = np.repeat(np.arange(rows), np.diff(splits))  # of each value
    found = np.empty(len(values) + rows * marks, values.dtype)
    found[np.arange(len(values)) + row * marks + len(before)] = values
    begins = splits[:-1] + marks * np.arange(rows)
    for mark in before:
        found[begins] = mark
    for mark in after:
        found[begins + np.diff(splits) + len(before)] = mark
    return found


def tokenized(documents: Iterable[bytes], tokenizer: Any) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Tokens (n,), where rows begin and end among them (rows + 1,), and bytes of the texts, batch by batch."""

    def encoded(batch: list[bytes]) -> tuple[np.ndarray, np.ndarray, int]:
        ids = tokenizer.encode(tf.constant(batch, tf.string))
        return ids.values.numpy(), ids.row_splits.numpy(), sum(map(len, batch))

    with ThreadPoolExecutor(THREADS) as pool:
        waiting: collections.deque[Future] = collections.deque()
        for batch in batches(documents):
            waiting.append(pool.submit(encoded, batch))
            if len(waiting) > THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def batches(documents: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Lists of documents, `BATCH` at most but for a single longer one."""
    batch: list[bytes] = []
    size = 0
    for document in documents:
        if batch and (size + len(document) > BATCH[0] or len(batch) == BATCH[1]):
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += len(document)
    if batch:
        yield batch


def swept(folder: Path) -> None:
    """Deletes what a process that was killed has left behind, a day ago or longer."""
    for part in folder.glob(".*-*"):
        tokens = part / TOKENS
        if tokens.exists() and time.time() - tokens.stat().st_mtime > LEFT_OVER:
            shutil.rmtree(part, ignore_errors=True)
