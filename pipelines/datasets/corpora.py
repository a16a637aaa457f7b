"""Plain text without labels, read as a stream: of the TFDS catalogue, built in, or the user's own files.

`load("tiny_code")`, `load("wikipedia/20230601.en")` and `load(data_dir="novels")` answer the same `Corpus`: three
splits of documents, each the bytes of a text in UTF-8. A split can be read again and again, and is never held in
memory.

Files: every file of text is a document; tables (CSV, TSV, JSONL) have one in each row. Longer documents are read in
pieces of at most 64 kB, cut at the ends of lines. A folder may have train, validation and test folders or files. What
it lacks is carved from train, documents chosen by the seed; of a single file of text the last tenth is the test split,
and the part before it is the validation split. A named set keeps a validation and a test split where it has both; what
it lacks is carved from train, by `catalogue.carved`.
"""

from __future__ import annotations

import codecs
import csv
import functools
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from pipelines.config import Failure, UsageError, nearest
from pipelines.datasets import catalogue, tables
from pipelines.datasets.folders import SPLIT_NAMES, visible
from pipelines.datasets.raw import SPLITS
from pipelines.datasets.tables import TEXT_NAMES

STAND_IN = "tiny_code"
TEST_FRACTION = 0.1
PIECE = 2**16  # bytes of a document at most
LEAST = 8  # documents of validation and test that a limit leaves
FEWEST = 20  # pieces that a single file is read in, unless they were shorter than 256 bytes
GROUP = 100  # documents in a row of which the same share is held out
# Files of a folder that are read as text; a file that is named itself may have any ending.
EXTENSIONS = frozenset(
    ".txt .text .md .rst .tex .org .adoc .log .srt .vtt .html .htm .xml .svg .json .yaml .yml .toml .ini .cfg .conf "
    ".py .pyi .pyx .ipynb .js .mjs .ts .tsx .jsx .java .kt .scala .c .h .cc .cpp .cxx .hh .hpp .cs .go .rs .swift .rb "
    ".php .pl .lua .r .jl .m .hs .ml .clj .ex .erl .sh .bash .sql .css .scss .proto .cmake .dart .f90 .asm .vue".split()
)
TABLES = frozenset(tables.EXTENSIONS)

Read = Callable[[], Iterator[bytes]]


class Documents:
    """A split: an iterable of documents, bytes of UTF-8, that begins anew each time.

    Args:
        read: begins to read.
    """

    def __init__(self, read: Read):
        self.read = read

    def __iter__(self) -> Iterator[bytes]:
        return self.read()

    @cached_property
    def count(self) -> int:
        """How many documents there are; found out by reading them, once."""
        return sum(1 for _ in self.read())

    def first(self, count: int) -> Documents:
        """The first `count` documents, or all where there are fewer."""
        return Documents(lambda: itertools.islice(self.read(), count))


@dataclass(frozen=True)
class Corpus:
    """Three splits of documents; `source` is a line for people.

    `fingerprint` says which data it is: the full name of the data set, or names, sizes and times of the files, and what
    of them is in which split.
    """

    train: Documents
    validation: Documents
    test: Documents
    source: str
    fingerprint: str

    @cached_property
    def counts(self) -> dict[str, int]:
        return {split: getattr(self, split).count for split in SPLITS}


def load(
    dataset: str = "",
    *,
    data_dir: str | None = None,
    text_column: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    validation_fraction: float = 0.1,
    skip_bad: bool = False,
) -> Corpus:
    """Documents, split into train, validation and test.

    Args:
        dataset: a TFDS name, `name`, `name/config` or `name:version`. Unused where `data_dir` is given.
        data_dir: a file or a folder of text or of tables.
        text_column: the column, key or feature that holds the text; default: found by its name.
        seed: decides which documents are held out.
        limit: at most this many training documents, and a tenth of that of the other splits, or `LEAST`.
        validation_fraction: share of train that is held out where there is no validation split.
        skip_bad: leave out files that are no text and rows without one, with a warning that names them.

    Raises:
        UsageError: an unknown name, a data set without text, a column or a file that is not there.
        Failure: data that cannot be fetched or read, bytes that are no text, nothing but empty files, too few
            documents.
    """
    if data_dir is not None:
        found = read_files(data_dir, text_column, seed, validation_fraction, skip_bad)
    else:
        found = read_named(dataset, text_column, seed, validation_fraction)
    if limit is None:
        return found
    few = {"train": limit} | dict.fromkeys(("validation", "test"), max(LEAST, limit // 10))
    some = {split: getattr(found, split).first(count) for split, count in few.items()}
    return Corpus(**some, source=found.source, fingerprint=f"{found.fingerprint} first {limit}")


# Named sets


def text_feature(builder: tfds.core.DatasetBuilder, text_column: str | None = None) -> str:
    """The feature that holds the text: the one named, the first of `TEXT_NAMES`, or the only one there is.

    Raises:
        UsageError: there is none, or several of no known name, or not the one named.
    """
    kinds = builder.info.features
    features = dict(kinds.items()) if isinstance(kinds, tfds.features.FeaturesDict) else {"": kinds}
    texts = [name for name, kind in features.items() if kind.shape == () and kind.tf_dtype == tf.string]
    wanted = [text_column] if text_column else [*TEXT_NAMES, *(texts if len(texts) == 1 else ())]
    chosen = next((name for name in wanted if name in texts), None)
    if chosen is not None:
        return chosen
    if texts:
        raise UsageError(
            f"Expected --text_column to name one of {', '.join(texts)}.{nearest(text_column or 'text', texts)} "
            f"Received: {text_column!r} for {builder.name}"
        )
    listed = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in features.items())
    raise UsageError(f"Expected a data set with a text. Received: {builder.name} with {listed}")


def read_named(name: str, text_column: str | None, seed: int, validation_fraction: float) -> Corpus:
    """A data set of TensorFlow Datasets as a `Corpus`."""
    builder = catalogue.prepare(name, lambda b: text_feature(b, text_column), STAND_IN)
    feature = text_feature(builder, text_column)
    if {"train", "validation", "test"} <= set(builder.info.splits):
        parts = {split: split for split in SPLITS}
    else:
        parts = catalogue.carved(builder, name, seed, validation_fraction, lambda split: True)

    def documents(part: str) -> Documents:
        def read() -> Iterator[bytes]:
            config = tfds.ReadConfig(try_autocache=False)
            data = builder.as_dataset(split=part, read_config=config, shuffle_files=False)
            for text in data.map(lambda example: example[feature]).prefetch(8).as_numpy_iterator():
                if text.strip():
                    yield from cut([text])

        return Documents(read)

    description = " ".join(builder.info.description.split())
    return Corpus(
        **{split: documents(part) for split, part in parts.items()},
        source=f"{builder.info.full_name} (TensorFlow Datasets): {description[:400]}",
        fingerprint=f"{builder.info.full_name} {feature} {sorted(parts.items())}",
    )


# Files


def read_files(data_dir: str, text_column: str | None, seed: int, validation_fraction: float, skip_bad: bool) -> Corpus:
    """The user's files as a `Corpus`; splits that are not there are carved."""
    root = Path(data_dir).expanduser()
    if not root.exists():
        raise UsageError(f"Expected --data_dir to be a file or a folder of text. Received: {data_dir!r}")
    files = split_files(root)
    if text_column is not None and not any(is_table(path) for paths in files.values() for path in paths):
        raise UsageError(
            f"Expected a table ({', '.join(sorted(TABLES))}) with --text_column {text_column}. Received: {data_dir!r}"
        )
    for path in (path for paths in files.values() for path in paths if is_table(path)):
        for _, row in rows(path):  # of a wrong column is told before anything is read
            if not isinstance(row, str):
                tables.column(path, list(row), text_column, TEXT_NAMES, "text")
                break
    whole = {
        split: Documents(functools.partial(documents_of, paths, text_column, skip_bad))
        for split, paths in files.items()
    }
    held = {"test": TEST_FRACTION if "test" not in whole else 0.0}
    held["validation"] = validation_fraction if "validation" not in whole else 0.0
    single = root.is_file() and not is_table(root)
    parts = carved(whole["train"], held, seed, in_order=single) | {k: v for k, v in whole.items() if k != "train"}
    for split in SPLITS:
        if next(iter(parts[split]), None) is None:
            raise Failure(
                f"Expected enough text in {root.name} for train, validation and test (three documents). "
                f"Received: {whole['train'].count} in train, and nothing for {split}"
            )
    stamps = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for paths in files.values() for path in paths]
    total = sum(len(paths) for paths in files.values())
    what = f"{total} files in {root.name}" if root.is_dir() else root.name
    how = "" if len(whole) == 3 else "; its last tenth is test" if single else "; carved by the seed"
    return Corpus(
        **parts,
        source=f"{root.stem}: {what}{how}",
        fingerprint="\n".join([*stamps, f"{sorted(files)} {text_column} {held} {seed} {skip_bad}"]),
    )


def is_table(path: Path) -> bool:
    return path.suffix.lower() in TABLES


def split_files(root: Path) -> dict[str, list[Path]]:
    """The files of each split: the file itself, those of folders or files named as splits, or all of the folder.

    Raises:
        UsageError: there is none that is read as text.
    """
    if root.is_file():
        return {"train": [root]}
    named = {(path.name if path.is_dir() else path.stem).lower(): path for path in visible(root)}
    found = {split: next((named[n] for n in names if n in named), None) for split, names in SPLIT_NAMES.items()}
    if found["train"] is not None and len(named) <= sum(path is not None for path in found.values()):
        parts = {split: text_files(path) for split, path in found.items() if path is not None}
    else:
        parts = {"train": text_files(root)}
    for split, files in parts.items():
        if not files:
            there = ", ".join(path.name for path in visible(root)[:8]) or "an empty folder"
            raise UsageError(
                f"Expected files of text (.txt, .md, .py, …) or tables (.jsonl, .csv, .tsv) in {root} for {split}. "
                f"Received: {there}"
            )
    return parts


def text_files(path: Path) -> list[Path]:
    """The files of text below a folder, or the file itself, in the order of their names; hidden ones are left out."""
    if path.is_file():
        return [path]
    found = []
    for parent, folders, names in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        chosen = (Path(parent) / name for name in names if not name.startswith("."))
        found += [one for one in chosen if one.suffix.lower() in EXTENSIONS | TABLES]
    return sorted(found)


def documents_of(paths: Iterable[Path], text_column: str | None, skip_bad: bool) -> Iterator[bytes]:
    """The documents of files, one after the other.

    Raises:
        Failure: a file is no text, or a row has none, and `skip_bad` is off; or all of them are empty.
    """
    paths, some = list(paths), False
    for path in paths:
        size = PIECE if len(paths) > 1 else min(PIECE, max(256, path.stat().st_size // FEWEST))
        found = rows_of(path, text_column, skip_bad) if is_table(path) else pieces_of(path, size)
        try:
            for document in found:
                if document.strip():
                    some = True
                    yield document
        except Failure as error:
            if not skip_bad or is_table(path):
                raise
            warnings.warn(f"left out {path.name}, or the rest of it: {error}", stacklevel=2)
    if not some:
        raise Failure(f"Expected text in {', '.join(path.name for path in paths[:5])}. Received: empty files")


def pieces_of(path: Path, size: int) -> Iterator[bytes]:
    """A file of text in pieces; a byte-order mark is no text.

    Raises:
        Failure: it cannot be read, or is not UTF-8.
    """
    check = codecs.getincrementaldecoder("utf-8")()
    place = 0

    def blocks() -> Iterator[bytes]:
        nonlocal place
        with open(path, "rb") as file:
            while block := file.read(PIECE):
                if b"\0" in block:
                    raise Failure(
                        f"Expected text in {path.name}. Received: a zero byte at place {place + block.index(0)}"
                    )
                check.decode(block)
                yield block.removeprefix(codecs.BOM_UTF8) if place == 0 else block
                place += len(block)
            check.decode(b"", final=True)

    try:
        yield from cut(blocks(), size)
    except UnicodeDecodeError as error:
        byte = f"0x{error.object[error.start]:02x}"
        raise Failure(f"Expected UTF-8 in {path.name}. Received: the byte {byte} after place {place}") from error
    except OSError as error:
        raise Failure(f"Expected a readable file. Received: {path} ({error.strerror})") from error


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a table with the numbers of their lines."""
    return tables.csv_rows(path) if path.suffix.lower() in (".csv", ".tsv") else tables.json_rows(path)


def rows_of(path: Path, text_column: str | None, skip_bad: bool) -> Iterator[bytes]:
    """The texts of a table.

    Raises:
        UsageError: the column is not there.
        Failure: it is no table, or a row has no text and `skip_bad` is off.
    """
    number, name = 0, None
    try:
        for number, row in rows(path):
            if not isinstance(row, str) and name is None:
                name = tables.column(path, list(row), text_column, TEXT_NAMES, "text")
            text = None if isinstance(row, str) else row.get(name)
            if isinstance(text, str) and text.strip():
                yield from cut([text.encode("utf-8", "replace")])
            elif not skip_bad:
                why = row if isinstance(row, str) else f"no text in {name}"
                raise Failure(
                    f"Expected a text in every row of {path.name} (--skip_bad leaves others out). "
                    f"Received: line {number} ({why})"
                )
    except UnicodeDecodeError as error:
        byte = f"0x{error.object[error.start]:02x}"
        raise Failure(f"Expected UTF-8 in {path.name}. Received: the byte {byte} after line {number}") from error
    except csv.Error as error:
        raise Failure(f"Expected a table in {path.name}. Received after line {number}: {error}") from error


def cut(blocks: Iterable[bytes], size: int = PIECE) -> Iterator[bytes]:
    """A text that comes in blocks, in pieces of at most `size` bytes that end where a line does.

    A longer line is cut where a character ends. The pieces joined are the text.
    """
    rest = b""
    for block in blocks:
        rest += block
        while len(rest) > size:
            end = rest.rfind(b"\n", 0, size) + 1 or whole_characters(rest, size)
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def whole_characters(text: bytes, size: int) -> int:
    """The largest number of bytes up to `size`, and at least one character, after which a character begins."""
    end = size
    while end > 0 and text[end] & 0xC0 == 0x80:
        end -= 1
    if end == 0:
        end = 1
        while end < len(text) and text[end] & 0xC0 == 0x80:
            end += 1
    return end


def carved(documents: Documents, shares: dict[str, float], seed: int, *, in_order: bool) -> dict[str, Documents]:
    """Train and the parts held out of it.

    Args:
        documents: of train.
        shares: of "test" and "validation"; 0 for one that is there already.
        seed: decides which documents are held out: of every `GROUP` in a row the same share, at least one.
        in_order: hold out the last ones instead.

    Returns:
        "train", and the splits whose share is above 0.
    """
    wanted = [split for split in ("test", "validation") if shares[split] > 0]
    if not wanted:
        return {"train": documents}
    count = documents.count

    def assigned(start: int, size: int) -> np.ndarray:
        """The split of each of `size` documents: 0 for train, else the place in `wanted` + 1."""
        found, place = np.zeros(size, int), size
        order = np.arange(size) if in_order else np.random.default_rng([seed, start]).permutation(size)
        for number, split in enumerate(wanted, 1):
            held = min(max(int(size == count), round(shares[split] * size)), max(0, place - 1))
            found[order[place - held : place]] = number
            place -= held
        return found

    def part(number: int) -> Documents:
        def read() -> Iterator[bytes]:
            source = iter(documents)
            group = max(1, count) if in_order else GROUP
            for start in range(0, count, group):
                which = assigned(start, min(group, count - start))
                for other, document in zip(which, source):
                    if other == number:
                        yield document

        return Documents(read)

    return {"train": part(0)} | {split: part(number) for number, split in enumerate(wanted, 1)}


def sample(documents: Iterable[bytes], most: int) -> list[bytes]:
    """Documents of at most `most` bytes in all, evenly spaced over all of them, for a tokenizer to learn from.

    All documents are read once and few are held: whenever more than `most` bytes are, every second one is let go.
    """
    kept: list[bytes] = []
    size, every = 0, 1
    for number, document in enumerate(documents):
        if number % every:
            continue
        kept.append(document)
        size += len(document)
        while size > most and len(kept) > 1:
            kept, every = kept[::2], 2 * every
            size = sum(map(len, kept))
    return kept
