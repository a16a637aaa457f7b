"""Questions about passages with answers that stand in them: of the TFDS catalogue, built in, or from the user's files.

`load("tiny_questions")`, `load("squad/v1.1")` and `load(data_dir="dev-v1.1.json")` answer the same `Questions`. Files
are UTF-8: JSON as SQuAD has it, or JSONL with `context`, `question` and `answers` (SQuAD's lists `text` and
`answer_start`) or `answer` and `answer_start` in each line. All questions about a passage stay within one split.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from pipelines.config import Failure, UsageError
from pipelines.datasets import catalogue
from pipelines.datasets.folders import visible
from pipelines.datasets.raw import SPLITS, fewer
from pipelines.datasets.stream import InMemory
from pipelines.datasets.texts import first

STAND_IN = "tiny_questions"
TEST_FRACTION = 0.1
EXTENSIONS = (".json", ".jsonl", ".ndjson")
FILES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
NAMED = 10  # bad rows that a message names


class Question(NamedTuple):
    """A question about a passage; without answers it has none. `starts` count code points of the context."""

    context: str
    question: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]
    group: str = ""


@dataclass(frozen=True)
class Questions:
    """Three splits, always in the same order, of {"context", "question", "group": strings (n,); "answer": strings
    (n, k), ragged; "start": int32 (n, k), ragged}."""

    train: InMemory
    validation: InMemory
    test: InMemory
    source: str

    @property
    def counts(self) -> dict[str, int]:
        return {split: getattr(self, split).count for split in SPLITS}

    def limited(self, limit: int | None) -> Questions:
        """At most `limit` training questions, and the other splits cut in proportion, to 32 at the least."""
        counts = fewer(self.counts, limit)
        cut = {split: first(getattr(self, split), count) for split, count in counts.items()}
        return self if counts == self.counts else Questions(**cut, source=self.source)


def held(rows: Sequence[Question]) -> InMemory:
    """Questions as a split."""
    with tf.device("CPU"):
        examples: dict[str, Any] = {
            name: tf.constant(np.array([getattr(row, name) for row in rows], object), tf.string)
            for name in ("context", "question", "group")
        }
        splits = np.cumsum([0, *(len(row.answers) for row in rows)])
        answers = np.array([one for row in rows for one in row.answers], object)
        starts = np.array([one for row in rows for one in row.starts], "int32")
        for name, flat in (("answer", tf.constant(answers, tf.string)), ("start", tf.constant(starts, tf.int32))):
            examples[name] = tf.RaggedTensor.from_row_splits(flat, splits)  # (n, k)
    return InMemory(examples, len(rows))


def load(
    dataset: str = "",
    *,
    data_dir: str | None = None,
    unanswerable: bool = False,
    seed: int = 0,
    limit: int | None = None,
    skip_bad: bool = False,
    validation_fraction: float = 0.1,
) -> Questions:
    """Questions, split into train, validation and test; what a set does not bring itself is carved from train.

    Where there is a validation split and no test split, it is the test split, as with SQuAD, and validation is carved.

    Args:
        dataset: a TFDS name with the features of SQuAD. Unused where `data_dir` is given.
        data_dir: a JSON or JSONL file, or a folder with train, validation (dev) and test files of such.
        unanswerable: whether questions may be without an answer.
        seed: decides which passages are held out, and the order of the user's rows.
        limit: at most this many training questions; the other splits are cut in proportion.
        skip_bad: leave out rows that are wrong, with a warning that names them.
        validation_fraction: share of the training passages that is held out.

    Raises:
        UsageError: an unknown name, other features, no such file; questions without answers where there may be none.
        Failure: data that cannot be fetched or read, bad rows, too few passages for three splits.
    """
    if data_dir is not None:
        parts, source = read_files(Path(data_dir).expanduser(), skip_bad)
        parts = {split: shuffled(rows, seed) for split, rows in parts.items()}
    else:
        parts, source = read_named(dataset)
    if not unanswerable:
        check_answers(parts)
    share = validation_fraction
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    if "test" not in parts:
        share = validation_fraction / (1 - TEST_FRACTION)
        parts["train"], parts["test"] = carve(parts["train"], TEST_FRACTION, seed)
    if "validation" not in parts:
        parts["train"], parts["validation"] = carve(parts["train"], share, seed + 1)
    counts = {split: len(parts[split]) for split in SPLITS}
    if min(counts.values()) == 0:
        raise Failure(f"Expected enough different passages for train, validation and test. Received: {counts}")
    if not any(row.answers for row in parts["train"]):
        raise Failure(f"Expected training questions with an answer. Received: none among {counts['train']}")
    return Questions(**{split: held(parts[split]) for split in SPLITS}, source=source).limited(limit)


def check_answers(parts: Mapping[str, Sequence[Question]]) -> None:
    """Raises `UsageError` where a question has no answer."""
    rows = [row for part in parts.values() for row in part]
    without = [row.question for row in rows if not row.answers]
    if without:
        raise UsageError(
            "Expected an answer to every question (--unanswerable learns when there is none). "
            f"Received: {len(without)} of {len(rows)} without, the first: {without[0][:80]!r}"
        )


def shuffled(rows: Sequence[Question], seed: int) -> list[Question]:
    """Rows in an order whose first part is a fair sample."""
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]


def carve(rows: Sequence[Question], fraction: float, seed: int) -> tuple[list[Question], list[Question]]:
    """(rest, held out): of the different contexts a `fraction`, one at the least, with all their questions."""
    contexts = list(dict.fromkeys(row.context for row in rows))
    count = max(0, min(max(1, round(fraction * len(contexts))), len(contexts) - 1))
    chosen = {contexts[i] for i in np.random.default_rng(seed).permutation(len(contexts))[:count]}
    return [row for row in rows if row.context not in chosen], [row for row in rows if row.context in chosen]


# Named sets


def check_features(builder: tfds.core.DatasetBuilder) -> None:
    """Raises `UsageError` unless a data set has the features of SQuAD."""
    kinds = builder.info.features
    features = dict(kinds.items()) if isinstance(kinds, tfds.features.FeaturesDict) else {"": kinds}
    answers = getattr(features.get("answers"), "feature", None)
    inner = set(answers.keys()) if isinstance(answers, tfds.features.FeaturesDict) else set()
    if not {"context", "question"} <= features.keys() or not {"text", "answer_start"} <= inner:
        found = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in features.items())
        raise UsageError(
            "Expected a data set with `context`, `question` and `answers` of `text` and `answer_start`, as SQuAD. "
            f"Received: {builder.name} with {found}"
        )


def read_named(name: str) -> tuple[dict[str, list[Question]], str]:
    """The splits of a data set of TensorFlow Datasets, and a line about it; rows that are wrong are left out."""
    builder = catalogue.prepare(name, check_features, STAND_IN)
    splits = [split for split in SPLITS if split in builder.info.splits]
    if "train" not in splits:
        raise UsageError(
            f"Expected a data set with a `train` split. Received: {name!r} with {', '.join(builder.info.splits)}"
        )
    parts = {}
    for split in splits:
        data = builder.as_dataset(split=split, read_config=tfds.ReadConfig(try_autocache=False), shuffle_files=False)
        parts[split] = checked(split, ((f"row {i}", row) for i, row in enumerate(decoded(data))), skip_bad=True)
    description = " ".join(builder.info.description.split())
    return parts, f"{builder.info.full_name} (TensorFlow Datasets): {description[:400]}"


def decoded(data: tf.data.Dataset) -> Iterator[dict[str, Any]]:
    """Examples of TensorFlow Datasets as the rows that JSON has."""

    def strings(values: Iterable[bytes]) -> list[str]:
        return [one.decode("utf-8", "replace") for one in values]

    for chunk in data.ragged_batch(1024):
        columns = [strings(chunk[name].numpy()) for name in ("context", "question")]
        columns.append(strings(chunk["group"].numpy()) if "group" in chunk else [""] * len(columns[0]))
        given, starts = (chunk["answers"][name].to_list() for name in ("text", "answer_start"))
        for context, question, group, texts, places in zip(*columns, given, starts, strict=True):
            answers = {"text": strings(texts), "answer_start": places}
            yield {"context": context, "question": question, "group": group, "answers": answers}


# The user's files


def read_files(root: Path, skip_bad: bool) -> tuple[dict[str, list[Question]], str]:
    """The splits of a file or folder, and a line about it; `train` is always there."""
    parts = {split: checked(path.name, rows_of(path), skip_bad) for split, path in split_files(root).items()}
    for split, rows in parts.items():
        if not rows:
            raise Failure(f"Expected questions in the {split} file of {root}. Received: none")
    count = sum(map(len, parts.values()))
    return parts, f"{root.name}: {count} questions of the user's own files"


def split_files(root: Path) -> dict[str, Path]:
    """The file of each split: the file itself, the only one of a folder, or those named as splits: dev-v1.1.json."""
    if root.is_file():
        if root.suffix.lower() not in EXTENSIONS:
            raise UsageError(f"Expected a file of {', '.join(EXTENSIONS)}. Received: {root.name!r}")
        return {"train": root}
    if not root.is_dir():
        raise UsageError(f"Expected --data_dir to be a file ({', '.join(EXTENSIONS)}) or a folder. Received: '{root}'")
    files = [path for path in visible(root) if path.suffix.lower() in EXTENSIONS]
    if len(files) == 1:
        return {"train": files[0]}
    found = {}
    for split, names in FILES.items():
        named = [path for path in files if path.stem.lower().replace("-", ".").replace("_", ".").split(".")[0] in names]
        if len(named) > 1:
            listed = ", ".join(path.name for path in named)
            raise UsageError(f"Expected one {split} file in {root}. Received: {listed}")
        if named:
            found[split] = named[0]
    if "train" not in found:
        listed = ", ".join(path.name for path in visible(root)[:5]) or "an empty folder"
        raise UsageError(f"Expected one file in {root}, or train, dev and test files. Received: {listed}")
    return found


def rows_of(path: Path) -> Iterator[tuple[str, Any]]:
    """The questions of a file, each with what a message calls it.

    Raises:
        Failure: the file is not UTF-8, no JSON, or JSON of another form.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise Failure(f"Expected UTF-8 in {path.name}. Received: the byte 0x{error.object[error.start]:02x}") from error
    if path.suffix.lower() == ".json":
        try:
            found = json.loads(content)
        except ValueError as error:
            raise Failure(f"Expected JSON in {path.name}. Received: {error}") from error
        rows = found.get("data") if isinstance(found, dict) else found
        if not isinstance(rows, list):
            raise Failure(f"Expected a list `data` in {path.name}, as SQuAD has it. Received: {type(rows).__name__}")
        for place, row in enumerate(rows):
            yield from unnested(f"data[{place}]", row)
        return
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            yield from unnested(f"line {number}", row)


def unnested(name: str, row: Any) -> Iterator[tuple[str, Any]]:
    """The questions of an article of SQuAD, of a paragraph of it, or the question that a row is itself."""
    for key, inner in (("paragraphs", {}), ("qas", {"context"})):
        if isinstance(row, dict) and isinstance(row.get(key), list):
            for place, part in enumerate(row[key]):
                outer = {other: row[other] for other in inner if other in row}
                yield from unnested(f"{name}.{key}[{place}]", outer | part if isinstance(part, dict) else part)
            return
    yield name, row


def checked(file: str, rows: Iterable[tuple[str, Any]], skip_bad: bool) -> list[Question]:
    """Rows as questions.

    Raises:
        Failure: some are none, and `skip_bad` is off; they are named.
    """
    kept: list[Question] = []
    bad: list[str] = []
    for name, row in rows:
        found = question(row)
        if isinstance(found, str):
            bad.append(f"{name} ({found})")
        else:
            kept.append(found)
    if bad:
        names = ", ".join(bad[:NAMED]) + (f" and {len(bad) - NAMED} more" if len(bad) > NAMED else "")
        if not skip_bad:
            raise Failure(
                f"Expected a context, a question and answers of the context in every row of {file} (--skip_bad leaves "
                f"others out). Received {len(bad)} of {len(kept) + len(bad)} without: {names}"
            )
        warnings.warn(f"left out {len(bad)} rows of {file}: {names}", stacklevel=4)
    return kept


def question(row: Any) -> Question | str:
    """A row as a question, or what is wrong with it."""
    if not isinstance(row, dict):
        return "not a JSON object"
    for name in ("context", "question"):
        if not isinstance(row.get(name), str):
            return f"no {name}"
        if not row[name].strip():
            return f"empty {name}"
    given = answers_of(row)
    if isinstance(given, str):
        return given
    found: dict[tuple[str, int], None] = {}
    for text, start in given:
        placed = place(row["context"], text, start)
        if isinstance(placed, str):
            return placed
        found[text, placed] = None
    texts, starts = zip(*found) if found else ((), ())
    return Question(row["context"], row["question"], texts, starts, str(row.get("group") or ""))


def answers_of(row: Mapping[str, Any]) -> list[tuple[Any, Any]] | str:
    """Texts of answers with their starts, of which one may be None."""
    if row.get("is_impossible"):
        return []
    if "answers" in row:
        answers = row["answers"]
        if isinstance(answers, dict):
            texts, starts = answers.get("text"), answers.get("answer_start")
            if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
                return "answers without as many `text` as `answer_start`"
            return list(zip(texts, starts))
        if isinstance(answers, list) and all(isinstance(one, dict) for one in answers):
            return [(one.get("text"), one.get("answer_start")) for one in answers]
        return "answers are no lists `text` and `answer_start`"
    if "answer" not in row:
        return "no answers"
    return [(row["answer"], row.get("answer_start", row.get("start")))] if row["answer"] else []


def place(context: str, text: Any, start: Any) -> int | str:
    """Where an answer begins, or what is wrong with it."""
    if not isinstance(text, str) or not text.strip():
        return f"the answer {text!r} is no text"
    if start is None:
        count = context.count(text)
        if count == 1:
            return context.index(text)
        return f"the answer {text[:40]!r} stands {count} times in the context, and there is no answer_start"
    if not isinstance(start, int) or isinstance(start, bool):
        return f"answer_start {start!r} is no whole number"
    if start < 0 or context[start : start + len(text)] != text:
        there = context[start : start + len(text)][:40] if start >= 0 else ""
        return f"the answer {text[:40]!r} is not at {start} of the context, where {there!r} stands"
    return start
