"""Pairs of texts, a source and its translation: of the TFDS catalogue, built in, or from the user's parallel files.

A named set has two features of text, which its `supervised_keys` put in order (`ted_hrlr_translate/pt_to_en`, `wmt*`,
`tiny_dates`, `tiny_messages/en_de`). Parallel files are UTF-8, a sentence a line, where line 7 of one file is the
translation of line 7 of the other. A source that occurs several times stays within one split.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from pipelines.config import Failure, UsageError, nearest
from pipelines.datasets import catalogue
from pipelines.datasets.raw import SPLITS

STAND_IN = "tiny_dates"
TEST_FRACTION = 0.1
SPLIT_FILES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
Columns = dict[str, np.ndarray]  # "source", "target" and perhaps "task", (n,) of strings


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Three `tf.data` sets of {"source", "target", "task", "group"}, scalar strings, always in the same order.

    `languages` names the two sides; `about` is a line for people. `task` and `group` are "" in sets that have none.
    """

    train: tf.data.Dataset
    validation: tf.data.Dataset
    test: tf.data.Dataset
    counts: dict[str, int]
    languages: tuple[str, str]
    about: str

    def limited(self, limit: int | None) -> Pairs:
        """At most `limit` training pairs, and the other splits cut in proportion, to 32 pairs at the least."""
        if limit is None or limit >= self.counts["train"]:
            return self
        share = limit / self.counts["train"]
        counts = {"train": limit}
        for split in ("validation", "test"):
            counts[split] = min(self.counts[split], max(32, round(share * self.counts[split])))
        cut = {split: getattr(self, split).take(counts[split]) for split in SPLITS}
        return dataclasses.replace(self, counts=counts, **cut)


def load(
    dataset: str = "",
    *,
    data_dir: str | None = None,
    files: tuple[str | None, str | None] = (None, None),
    languages: tuple[str | None, str | None] = (None, None),
    seed: int = 0,
    limit: int | None = None,
    skip_bad: bool = False,
    validation_fraction: float = 0.1,
) -> Pairs:
    """Pairs, split into train, validation and test; what a set does not bring itself is carved from train.

    Args:
        dataset: a TFDS name. Unused where files are given.
        data_dir: a folder with `train.src` and `train.tgt`, and perhaps the same of `validation` and `test`.
        files: a file of sources and one of targets, instead.
        languages: names of the two sides: features of the named set, or endings of the files in `data_dir`.
        seed: decides which pairs are held out.
        limit: at most this many training pairs; the other splits are cut in proportion.
        skip_bad: leave out pairs with an empty side, with a warning that names their lines.
        validation_fraction: share of train that is held out where there is no validation split.

    Raises:
        UsageError: unknown names or flags that do not fit each other.
        Failure: files that are missing, damaged, empty or of different lengths; the lines are named.
    """
    if any(files):
        if not all(files) or data_dir is not None:
            raise UsageError(
                "Expected --source_file and --target_file together, without --data_dir. Received: "
                + ", ".join(f"{one}" for one in (*files, data_dir) if one)
            )
        sides = Path(str(files[0])), Path(str(files[1]))
        parts = {"train": read_files(*sides, skip_bad)}
        names = (languages[0] or "source", languages[1] or "target")
        about = f"{sides[0].name} and {sides[1].name}"
        found = from_files(parts, names, about, seed, validation_fraction)
    elif data_dir is not None:
        found = from_files(*read_folder(data_dir, languages, skip_bad), seed, validation_fraction)
    else:
        found = read_named(dataset, languages, seed=seed, validation_fraction=validation_fraction)
    return found.limited(limit)


# Named sets


def languages_of(
    builder: tfds.core.DatasetBuilder,
    languages: tuple[str | None, str | None] = (None, None),
    flag: str = "language",
) -> tuple[str, str]:
    """The features that are source and target, as `languages` says, which come from --source_FLAG and --target_FLAG.

    Raises:
        UsageError: there are no two features of text, or those asked for are not among them.
    """
    flags = f"--source_{flag} and --target_{flag}"
    kinds = builder.info.features
    features = dict(kinds.items()) if isinstance(kinds, tfds.features.FeaturesDict) else {"": kinds}
    texts = [key for key, kind in features.items() if isinstance(kind, tfds.features.Text)]
    given = builder.info.supervised_keys
    pair = tuple(given) if given and len(given) == 2 and set(given) <= set(texts) else tuple(texts)
    if len(pair) != 2 and not all(languages):
        found = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in features.items())
        raise UsageError(
            f"Expected a data set of pairs of texts, or {flags} to name two of its features. Received: {builder.name} "
            f"with {found}"
        )
    for language in filter(None, languages):
        if language not in texts:
            raise UsageError(
                f"Expected a {flag} of {builder.name}, one of {', '.join(texts)}.{nearest(language, texts)} "
                f"Received: {language!r}"
            )
    if any(languages) and not all(languages):  # the other one follows
        one = languages[0] or languages[1]
        if one not in pair:
            raise UsageError(f"Expected {flags} together. Received: {one!r} alone")
        other = pair[1 - pair.index(one)]
        languages = (one, other) if languages[0] else (other, one)
    source, target = languages if all(languages) else pair
    if source == target:
        raise UsageError(f"Expected two different {flag}s. Received: {source!r} twice")
    return str(source), str(target)


def read_named(
    name: str,
    languages: tuple[str | None, str | None],
    *,
    seed: int,
    validation_fraction: float = 0.1,
    flag: str = "language",
    stand_in: str = STAND_IN,
) -> Pairs:
    """A data set of TensorFlow Datasets as `Pairs`: its own splits, and for those it lacks a stretch of `train`."""
    known_languages(name)
    builder = catalogue.prepare(name, lambda builder: languages_of(builder, languages, flag), stand_in)
    source, target = languages_of(builder, languages, flag)
    splits = list(builder.info.splits) or list(SPLITS)
    if "train" not in splits:
        raise UsageError(f"Expected a data set with a `train` split. Received: {name!r} with {', '.join(splits)}")
    last = 100 if "test" in splits else 90
    parts = {"train": "train", "validation": "validation", "test": "test" if last == 100 else "train[90%:]"}
    if "validation" in splits:
        parts["train"] = f"train[:{last}%]"
    else:
        held = min(max(1, round(last * validation_fraction)), last - 1)
        start = seed * 37 % (last - held + 1)
        parts["train"] = f"train[:{start}%]+train[{start + held}%:{last}%]"
        parts["validation"] = f"train[{start}%:{start + held}%]"
    read_config = tfds.ReadConfig(try_autocache=False)

    def read(part: str) -> tf.data.Dataset:
        data = builder.as_dataset(split=part, shuffle_files=False, read_config=read_config)

        def pair(item: dict[str, Any]) -> dict[str, Any]:
            more = {name: item.get(name, tf.constant("")) for name in ("task", "group")}
            more = {name: one if one.dtype == tf.string else tf.constant("") for name, one in more.items()}
            return {"source": item[source], "target": item[target], **more}

        return data.map(pair)

    sets = {split: read(part) for split, part in parts.items()}
    description = " ".join(builder.info.description.split())
    return Pairs(
        **sets,
        counts={split: int(data.cardinality()) for split, data in sets.items()},
        languages=(source, target),
        about=f"{builder.info.full_name} (TensorFlow Datasets): {description[:400]}",
    )


def known_languages(name: str) -> None:
    """Raises `UsageError` for a `tiny_messages/…` of languages it does not have; the others TFDS tells by name."""
    from pipelines.datasets.tiny_messages import LANGUAGES

    asked = re.fullmatch(r"tiny_messages/([^:]*)(:.*)?", name)
    if not asked:
        return
    words = asked[1].split("_")
    strange = [word for word in words if word not in LANGUAGES]
    if strange or len(words) != 2 or words[0] == words[1]:
        raise UsageError(
            f"Expected two languages of tiny_messages, as in tiny_messages/en_de, of {', '.join(LANGUAGES)}."
            f"{nearest(strange[0], LANGUAGES) if strange else ''} Received: {name!r}"
        )


# Parallel files


def read_folder(
    data_dir: str, languages: tuple[str | None, str | None], skip_bad: bool
) -> tuple[dict[str, Columns], tuple[str, str], str]:
    """The splits of a folder of parallel files, the names of the two sides, and a line about them.

    Raises:
        UsageError: no such folder, or no `train` files with the two endings.
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise UsageError(f"Expected --data_dir to be a folder. Received: {data_dir!r}")
    ends = (languages[0] or "src", languages[1] or "tgt")
    parts: dict[str, Columns] = {}
    for split, names in SPLIT_FILES.items():
        for name in names:
            one, other = (root / f"{name}.{end}" for end in ends)
            if one.exists() or other.exists():
                parts[split] = read_files(one, other, skip_bad)
                break
    if "train" not in parts:
        found = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))[:8]
        raise UsageError(
            f"Expected train.{ends[0]} and train.{ends[1]} in {root} (other endings: --source_language en "
            f"--target_language de; two files anywhere: --source_file and --target_file). "
            f"Received: {', '.join(found) or 'an empty folder'}"
        )
    return parts, ends, f"parallel files in {root.name}"


def read_files(source: Path, target: Path, skip_bad: bool) -> Columns:
    """Two files as columns of texts.

    Raises:
        Failure: a file is missing or not UTF-8, they have different numbers of lines, or a line is empty and
            `skip_bad` is off.
    """
    texts = {path: read_lines(path) for path in (source, target)}
    one, other = texts[source], texts[target]
    if len(one) != len(other):
        longer = source if len(one) > len(other) else target
        least, most = sorted((len(one), len(other)))
        which = f"line {most}" if most == least + 1 else f"lines {least + 1} to {most}"
        raise Failure(
            f"Expected as many lines in {source} as in {target}, line by line each other's translation. Received: "
            f"{len(one)} and {len(other)}; {which} of {longer.name} have no partner, or one is missing before"
        )
    bad = [i for i, (left, right) in enumerate(zip(one, other)) if not left or not right]
    if bad:
        shown = [f"{(source if not one[i] else target).name} line {i + 1}" for i in bad[:10]]
        names = ", ".join(shown) + (f" and {len(bad) - 10} more" if len(bad) > 10 else "")
        if not skip_bad:
            raise Failure(
                f"Expected text on every line (--skip_bad leaves such pairs out). Received {len(bad)} empty: {names}"
            )
        warnings.warn(f"left out {len(bad)} of {len(one)} pairs with an empty side: {names}", stacklevel=4)
        keep = sorted(set(range(len(one))) - set(bad))
        one, other = [one[i] for i in keep], [other[i] for i in keep]
    return {"source": np.array(one, object), "target": np.array(other, object)}


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, without white space around them; a byte-order mark is no text.

    Raises:
        Failure: it is not there, or a line is not UTF-8.
    """
    try:
        content = path.expanduser().read_bytes()
    except OSError as error:
        raise Failure(f"Expected a readable file of sentences. Received: {path} ({error.strerror})") from error
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1].strip() == b"":
        lines.pop()  # a file ends with the end of its last line
    for i, line in enumerate(lines):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            raise Failure(f"Expected UTF-8 in {path}. Received: line {i + 1} ({error.reason})") from error
    return [line.decode().strip() for line in lines]


def from_files(
    parts: dict[str, Columns], languages: tuple[str, str], about: str, seed: int, validation_fraction: float
) -> Pairs:
    """Columns as `Pairs`; validation and test are carved from train where they are not given.

    Raises:
        Failure: there are too few pairs for three splits.
    """
    parts, count = dict(parts), sum(len(columns["source"]) for columns in parts.values())
    held = validation_fraction if "test" in parts else validation_fraction / (1 - TEST_FRACTION)
    if "test" not in parts:
        parts["train"], parts["test"] = carve(parts["train"], TEST_FRACTION, seed)
    if "validation" not in parts:
        parts["train"], parts["validation"] = carve(parts["train"], held, seed + 1)
    counts = {split: len(parts[split]["source"]) for split in SPLITS}
    if min(counts.values()) == 0:
        raise Failure(f"Expected enough different sources in {about} for three splits. Received: {counts}")
    order = np.random.default_rng(seed).permutation(counts["train"])  # any first part of it is a fair sample
    parts["train"] = {name: column[order] for name, column in parts["train"].items()}

    def rows(columns: Columns) -> tf.data.Dataset:
        texts: Any = {name: column.tolist() for name, column in columns.items()}
        none = [""] * len(columns["source"])
        return tf.data.Dataset.from_tensor_slices({"task": none, "group": none} | texts)

    sets = {split: rows(parts[split]) for split in SPLITS}
    return Pairs(**sets, counts=counts, languages=languages, about=f"{count} pairs: {about}")


def carve(columns: Columns, fraction: float, seed: int) -> tuple[Columns, Columns]:
    """(rest, held out): of the different sources a `fraction`, one at the least, with all their pairs."""
    different, which = np.unique(columns["source"], return_inverse=True)
    count = max(0, min(max(1, round(fraction * len(different))), len(different) - 1))
    chosen = np.zeros(len(different), bool)
    chosen[np.random.default_rng(seed).permutation(len(different))[:count]] = True
    held = chosen[which]
    rest = {name: column[~held] for name, column in columns.items()}
    return rest, {name: column[held] for name, column in columns.items()}
