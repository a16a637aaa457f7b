"""What a language model is judged by: bits per byte, an n-gram model and xz beside it, samples, and pictures.

All figures are of the same bytes: the documents of a split, each followed by an end mark. The mark is part of what has
to be said, and no part of the bytes that it is divided by.
"""

from __future__ import annotations

import itertools
import lzma
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipelines import report
from pipelines.datasets.token_store import TokenStore

ORDER = 5  # bytes of the n-gram model: the one to come and four before it
MARK = b"\0"  # after each document of the baselines
LEARNED = 16 * 2**20  # bytes of the training split, at most, that the baselines learn from
BATCH = 64  # windows
BITS = np.log(2.0)


# The model


def measured(model: Any, store: TokenStore, length: int, stride: int) -> dict[str, Any]:
    """How well a model foretells a split, each token with between `length - stride` and `length` tokens before it.

    Args:
        model: of token ids (b, t) to logits (b, t, v).
        store: of the split.
        length: tokens that the model sees, t.
        stride: how far windows are apart.

    Returns:
        `bits_per_byte`, `perplexity`, `token_accuracy`, `loss`, and `by_place`, the mean loss of the tokens that have
        1, 2, …, `length` tokens before them in their window.
    """

    @tf.function(reduce_retracing=True, autograph=False)
    def judged(ids):
        logits = tf.cast(model(ids[:, :-1], training=False), tf.float32)  # (b, t, v)
        right = tf.argmax(logits, -1, tf.int32) == ids[:, 1:]
        return tf.nn.sparse_softmax_cross_entropy_with_logits(ids[:, 1:], logits), right  # (b, t)

    nats = hits = tokens = 0.0
    places = np.zeros((2, length))  # sums and counts
    for ids, fresh in store.in_order(BATCH, length + 1, stride):
        losses, right = (one.numpy() for one in judged(ids))
        there = np.maximum.accumulate(fresh.numpy()[:, ::-1], axis=1)[:, ::-1][:, 1:]  # up to the last token of all
        new = fresh.numpy()[:, 1:]
        if store.start_id is not None:  # it is given, and not foretold
            there, new = there * (ids[:, 1:] != store.start_id), new * (ids[:, 1:] != store.start_id)
        nats += np.sum(losses * new, dtype="float64")
        hits += float(np.sum(right * new))
        tokens += float(np.sum(new))
        places += np.sum(losses * there, axis=0, dtype="float64"), np.sum(there, axis=0)
    found = {
        "bits_per_byte": nats / BITS / store.num_bytes,
        "perplexity": float(np.exp(min(50.0, nats / tokens))),
        "token_accuracy": hits / tokens,
        "loss": nats / tokens,
    }
    rounded: dict[str, Any] = {name: round(float(item), 6) for name, item in found.items()}
    return rounded | {"by_place": (places[0] / np.maximum(1, places[1])).round(4).tolist()}


# The baselines


class WittenBell:
    """An interpolated n-gram model of bytes.

    `p(c | h) = (n(hc) + t(h) p(c | h')) / (n(h) + t(h))`, where n counts in the training text, t(h) is how many
    different bytes follow h there, and h' is h without its first byte; below the single byte all are equally likely.

    Args:
        text: to learn from.
        order: bytes of the longest n-gram, 1 to 8.

    Reference: Witten and Bell 1991, "The zero-frequency problem", method C; Chen and Goodman 1999, "An empirical study
        of smoothing techniques for language modeling", section 2.5, for the interpolation.
    """

    def __init__(self, text: bytes, order: int = ORDER):
        if not 1 <= order <= 8:
            raise ValueError(f"Expected an order from 1 to 8. Received: {order}")
        self.order = order
        self.tables = []
        whole = self.keys(text)
        for length in range(1, order + 1):
            grams, counts = np.unique(whole & mask(length), return_counts=True)
            histories, first = np.unique(grams >> np.uint64(8), return_index=True)
            types = np.diff(np.append(first, len(grams)))
            totals = np.add.reduceat(counts, first) if len(first) else first
            self.tables.append((grams, counts, histories, totals, types))

    def keys(self, text: bytes) -> np.ndarray:
        """Each byte of a text with the `order - 1` before it as a number, uint64 (n,); before the text are marks."""
        data = np.frombuffer(MARK * (self.order - 1) + text, np.uint8)
        found = np.zeros(len(text), np.uint64)
        for place in range(self.order):
            found = found << np.uint64(8) | data[place : place + len(text)]
        return found

    def probabilities(self, keys: np.ndarray) -> np.ndarray:
        """Of the last byte of each key after the others, float64 (n,)."""
        keys, back = np.unique(keys, return_inverse=True)
        found = np.full(len(keys), 1 / 256)
        for length, (grams, counts, histories, totals, types) in enumerate(self.tables, 1):
            wanted = keys & mask(length)
            count = looked_up(grams, counts, wanted)
            total = looked_up(histories, totals, wanted >> np.uint64(8))
            kinds = looked_up(histories, types, wanted >> np.uint64(8))
            found = np.where(total > 0, (count + kinds * found) / np.maximum(1, total + kinds), found)
        return found[back]

    def bits(self, text: bytes) -> float:
        """Bits that a text takes."""
        return float(-np.log2(self.probabilities(self.keys(text))).sum())


def mask(length: int) -> np.uint64:
    """The last `length` bytes."""
    return np.uint64(2 ** (8 * length) - 1)


def looked_up(names: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Values by sorted names, 0 for a name that is not there."""
    places = np.minimum(np.searchsorted(names, wanted), max(0, len(names) - 1))
    return np.where(names[places] == wanted, values[places], 0) if len(names) else np.zeros(len(wanted), int)


def xz_size(text: bytes) -> int:
    """Bytes of a text that xz has packed as tightly as it can, with all of the text before in reach."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": max(2**16, len(text))}]
    return len(lzma.compress(text, lzma.FORMAT_XZ, lzma.CHECK_NONE, filters=filters))


def baselines(train: Iterable[bytes], test: Iterable[bytes]) -> list[dict[str, Any]]:
    """The n-gram model and xz on the documents of a test split, after those of the training split.

    They learn from the last `LEARNED` bytes, at most, of what is given for training.

    Args:
        train, test: documents.

    Returns:
        {"model", "bits_per_byte", "training_bytes"} of each, the better one first.
    """
    known, asked = MARK.join([b"", *train])[-LEARNED:] + MARK, MARK.join([*test, b""])
    size = len(asked) - asked.count(MARK)
    found = {
        f"interpolated byte {ORDER}-gram": WittenBell(known).bits(asked) / size,
        "xz after the training text": 8 * (xz_size(known + asked) - xz_size(known)) / size,
    }
    rows = [{"model": name, "bits_per_byte": round(item, 6)} for name, item in found.items()]
    return [row | {"training_bytes": len(known)} for row in rows]


def beginning(documents: Iterable[bytes], most: int) -> Iterator[bytes]:
    """The first documents, until they are `most` bytes; at least one."""
    size = 0
    for document in documents:
        yield document
        size += len(document)
        if size >= most:
            return


# What it writes


class Samples(keras.callbacks.Callback):
    """Lets the model go on with the same prompts after every epoch: a part of `samples.md` for each, one is printed.

    Args:
        write: from prompts to what follows them, as strings.
        prompts: what it goes on from.
        path: of the file.
    """

    def __init__(self, write: Callable[[Sequence[str]], Sequence[str]], prompts: Sequence[str], path: Path):
        super().__init__()
        self.write, self.prompts, self.path = write, list(prompts), path

    def on_epoch_end(self, epoch, logs=None):
        texts = self.write(self.prompts)
        earlier = self.path.read_text(encoding="utf-8") if self.path.exists() else "# What the model writes\n"
        earlier = earlier.partition(f"\n## Epoch {epoch + 1}\n")[0]  # of a run that was stopped before it saved
        parts = [f"{earlier.rstrip()}\n\n## Epoch {epoch + 1}\n"]
        for prompt, text in zip(self.prompts, texts):
            parts.append(f"{fenced(prompt) if prompt else 'At the beginning:'}\n→\n{fenced(text)}")
        self.path.write_text("\n".join(parts), encoding="utf-8")
        shown = printable(f"{self.prompts[-1][-60:]} → {texts[-1]}")
        print(f"epoch {epoch + 1} writes: {shown[:240]}", flush=True)


def fenced(text: str) -> str:
    """A block of code of Markdown, whatever marks the text has."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}\n"


def printable(text: str) -> str:
    """A text in one line, without what cannot be drawn."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


# Pictures


def compared(rows: dict[str, float], path: Path) -> Path:
    """Bits per byte of the model and of the baselines."""
    figure, ((axis,),) = report.canvas(6.4, 0.9 + 0.5 * len(rows))
    names = list(rows)[::-1]
    colours = ["teal" if name == next(iter(rows)) else "silver" for name in names]
    bars = axis.barh(names, [rows[name] for name in names], color=colours)
    axis.bar_label(bars, fmt="%.3f", padding=3)
    axis.margins(x=0.12)
    axis.set(xlabel="bits per byte of the test split (less is better)")
    axis.spines[["top", "right"]].set_visible(False)
    return report.save(figure, path)


def by_place(losses: Sequence[float], path: Path) -> Path:
    """Bits of a token by how many tokens the model has seen before it: whether a longer context helps."""
    values = np.asarray(losses) / BITS
    edges = np.unique(np.geomspace(1, len(values) + 1, 24).astype(int))
    means = [values[low - 1 : high - 1].mean() for low, high in itertools.pairwise(edges)]
    figure, ((axis,),) = report.canvas(6, 3.6)
    axis.step(edges, [*means, means[-1]], where="post", color="teal")
    axis.set_xscale("log", base=2)
    axis.set(xlabel="tokens before it in the window", ylabel="bits of a token", title="does context help?")
    axis.grid(alpha=0.25)
    return report.save(figure, path)


def surprise(pieces: Sequence[str], bits: Sequence[float], path: Path, rows: int = 28, columns: int = 96) -> Path:
    """A stretch of a text whose characters are the redder, the more bits their token took.

    Args:
        pieces: tokens as strings, in their order.
        bits: of each.
        path: where the PNG goes.
        rows, columns: characters that there is room for; longer lines go on in the next one.
    """
    grid = np.full((rows, columns), np.nan)
    lines = [[" "] * columns for _ in range(rows)]
    row = column = 0
    for character, amount in ((one, amount / len(piece)) for piece, amount in zip(pieces, bits) for one in piece):
        if column == columns or character == "\n":
            row, column = row + 1, 0
        if row == rows:
            break
        if character != "\n":
            grid[row, column] = amount
            lines[row][column] = character if character.isprintable() else " "
            column += 1
    used = min(rows, row + 1)
    size = 8.0  # points; a character of the font is 0.602 of that wide
    width, height = columns * 0.602 * size / 72, used * 1.45 * size / 72
    figure, ((axis,),) = report.canvas(width, height)
    figure.subplots_adjust(0, 0, 1, 1)
    image = axis.imshow(
        grid[:used], cmap="Reds", vmin=0, vmax=8, aspect="auto", extent=(0, columns, used, 0), alpha=0.6
    )
    for index, line in enumerate(lines[:used]):
        style = {"fontsize": size, "family": "DejaVu Sans Mono", "va": "center", "parse_math": False}
        axis.text(0, index + 0.5, "".join(line).rstrip(), **style)
    axis.axis("off")
    axis.set_title("a stretch of the test split: bits of each character, given all before it", fontsize=9)
    figure.colorbar(image, cax=figure.add_axes((1.01, 0.1, 0.012, 0.8)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # drawn as a box
        return report.save(figure, path)
