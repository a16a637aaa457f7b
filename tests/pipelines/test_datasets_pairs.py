"""Pairs of texts: what the built-in sets promise of their splits, the catalogue's languages, and parallel files."""

from __future__ import annotations

import re
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings

from pipelines.config import Failure, UsageError
from pipelines.datasets import catalogue, pairs, tiny_dates, tiny_messages


def rows(part) -> list[dict[str, str]]:
    found = []
    for batch in part.batch(4096).as_numpy_iterator():
        found += [{key: value.decode() for key, value in zip(batch, row)} for row in zip(*batch.values())]
    return found


@pytest.fixture(scope="module")
def dates():
    builder = catalogue.prepare("tiny_dates", pairs.languages_of)
    return {split: rows(builder.as_dataset(split=split)) for split in ("train", "validation", "test")}


def test_days_of_validation_and_test_are_in_no_training_example(dates):
    days = {split: {row["iso"] for row in part} for split, part in dates.items()}
    assert not days["train"] & (days["validation"] | days["test"])
    assert not days["validation"] & days["test"]
    assert {split: len(part) for split, part in dates.items()} == {"train": 20_000, "validation": 1_000, "test": 3_000}


def test_each_group_of_the_test_split_is_what_it_says(dates):
    known = {(row["locale"], row["style"]) for row in dates["train"] + dates["validation"]}
    locales = {locale for locale, _ in known}
    assert len(locales) >= 20
    found = {
        group: {(r["locale"], r["style"]) for r in dates["test"] if r["group"] == group} for group in tiny_dates.GROUPS
    }
    assert found["days"] == known
    assert not found["styles"] & known
    assert {locale for locale, _ in found["styles"]} <= locales
    assert {locale for locale, _ in found["locale"]} == {"gl"} and "gl" not in locales
    for group in found:
        stretch = [row["group"] for row in dates["test"][:300]]
        assert stretch.count(group) == pytest.approx(300 * tiny_dates.SIZES[group] / 3000, abs=2), "any part is fair"


def test_a_date_is_written_as_its_language_does():
    day = date(2007, 3, 9)
    assert tiny_dates.written(day, "de", "full") == "Freitag, 9. März 2007"
    assert tiny_dates.written(day, "en", "weekday") == "Fri, Mar 9, 2007"
    assert tiny_dates.written(day, "ja", "long") == "2007年3月9日"
    assert tiny_dates.written(day, "hu", "short") == "2007. 03. 09."


def test_no_text_has_two_readings():
    read: dict[str, date] = {}
    for place in range(0, tiny_dates.DAYS, 83):  # all days of a month, all months, many years
        day = tiny_dates.FIRST + timedelta(place)
        twin = date(day.year, day.day, day.month) if day.day <= 12 else day
        for other in {day, twin}:
            for locale in (*tiny_dates.LOCALES, tiny_dates.UNSEEN_LOCALE):
                for style in ("short", "medium"):
                    if (locale, style) not in tiny_dates.LEFT_OUT:
                        text = tiny_dates.written(other, locale, style)
                        assert read.setdefault(text, other) == other, text


def test_the_flags_of_tiny_dates_reach_the_pairs(dates):
    found = pairs.load("tiny_dates", limit=100)
    assert found.languages == ("date", "iso")
    assert found.counts == {"train": 100, "validation": 32, "test": 32}
    assert rows(found.train)[:3] == [
        {"source": row["date"], "target": row["iso"], "task": "", "group": "days"} for row in dates["train"][:3]
    ]


@pytest.fixture(scope="module")
def messages():
    return pairs.load("tiny_messages/en_de")


def test_messages_of_the_test_split_are_new_and_new_names_are_nowhere_in_training(messages):
    train, test = rows(messages.train), rows(messages.test)
    sources = {row["source"] for row in train}
    assert not sources & {row["source"] for row in test}
    assert {row["group"] for row in test} == {"phrases", "names"}
    assert {row["group"] for row in rows(messages.validation)} == {"phrases"}
    names = [row["source"] for row in test if row["group"] == "names"]
    assert len(names) > 80
    parts = {part.strip() for source in sources for part in re.split(r",| and | or ", source)}
    assert not parts & set(names)


def test_messages_follow_the_rules_of_both_languages(messages):
    known = {row["source"]: row["target"] for row in rows(messages.train)}
    assert known["Germany"] == "Deutschland"
    amounts = [(s, t) for s, t in known.items() if re.match(r"[\d,]+\.\d\d ", s)]
    for source, target in amounts[:200]:
        number = source.split()[0]
        assert target.split()[0] == number.translate(str.maketrans(",.", ".,"))


def test_every_direction_of_the_languages_is_a_configuration():
    names = {config.name for config in tiny_messages.TinyMessages.BUILDER_CONFIGS}
    assert len(names) == 14 * 13 and {"de_en", "ja_hi"} <= names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny_messages/en_xx", "Expected two languages of tiny_messages.* Received: 'tiny_messages/en_xx'"),
        ("tiny_messages/en_en", "Expected two languages"),
        ("tiny_messages/fr_zhh", "Did you mean 'zh'"),
        ("tiny_datse", "Did you mean 'tiny_dates'"),
        ("tiny_digits", r"pairs of texts.* Received: tiny_digits with image \(Image\), label \(ClassLabel\)"),
    ],
)
def test_a_wrong_name_is_one_line_that_helps(name, message):
    with pytest.raises(UsageError, match=message) as caught:
        pairs.load(name)
    assert "\n" not in str(caught.value)


class FakeTalks(tfds.core.GeneratorBasedBuilder):
    """Three sentences in two languages, as the catalogue's sets of pairs hold them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.Translation(languages=("pt", "en"))
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("pt", "en"))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(200), "test": self._generate_examples(5)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"pt": f"frase {i}", "en": f"sentence {i}"}


@pytest.fixture
def talks(monkeypatch, tmp_path):
    monkeypatch.setattr(catalogue, "find", lambda name: FakeTalks(data_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("languages", "pair"),
    [
        ((None, None), ("pt", "en")),
        (("en", None), ("en", "pt")),
        ((None, "pt"), ("en", "pt")),
        (("en", "pt"), ("en", "pt")),
    ],
)
def test_features_of_two_languages_are_read_in_either_direction(talks, languages, pair):
    found = pairs.load("fake_talks", languages=languages)
    assert found.languages == pair
    assert found.counts == {"train": 180, "validation": 20, "test": 5}
    words = {"pt": "frase", "en": "sentence"}
    for row in rows(found.train) + rows(found.validation):
        (source, i), (target, j) = row["source"].split(), row["target"].split()
        assert (source, target, i) == (words[pair[0]], words[pair[1]], j)


def test_an_unknown_language_is_told_with_those_there_are(talks):
    with pytest.raises(UsageError, match="one of pt, en.* Received: 'de'"):
        pairs.load("fake_talks", languages=("de", None))
    with pytest.raises(UsageError, match="two different languages"):
        pairs.load("fake_talks", languages=("en", "en"))


def test_without_a_network_the_stand_in_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(catalogue, "answers", lambda address: False)
    monkeypatch.setattr(catalogue.tfds, "builder", partial(tfds.builder, data_dir=str(tmp_path)))
    with pytest.raises(Failure, match="'tiny_dates' is built in"):
        pairs.load("ted_hrlr_translate/pt_to_en")


def write(folder: Path, **files: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        content = content if isinstance(content, bytes) else content.encode()
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


def numbered(word: str, count: int) -> str:
    return "".join(f"{word} {i}\n" for i in range(count))


def test_parallel_files_become_pairs_whatever_their_line_ends(tmp_path):
    source = b"\xef\xbb\xbf" + numbered("eins", 50).replace("\n", "\r\n").encode()
    folder = write(tmp_path, train__src=source, train__tgt=numbered("one", 50).rstrip())
    found = pairs.load(data_dir=str(folder))
    assert found.counts == {"train": 40, "validation": 5, "test": 5}
    every = rows(found.train) + rows(found.validation) + rows(found.test)
    assert sorted(row["source"] for row in every) == sorted(f"eins {i}" for i in range(50))
    assert all(row["source"].split()[1] == row["target"].split()[1] for row in every)
    again = pairs.load(data_dir=str(folder))
    assert rows(again.train) == rows(found.train)
    assert rows(pairs.load(data_dir=str(folder), seed=1).test) != rows(found.test)


def test_own_splits_and_endings_are_kept(tmp_path):
    folder = write(tmp_path, train__de=numbered("a", 9), train__en=numbered("b", 9), test__de="x", test__en="y")
    found = pairs.load(data_dir=str(folder), languages=("de", "en"))
    assert found.counts == {"train": 8, "validation": 1, "test": 1}
    assert rows(found.test) == [{"source": "x", "target": "y", "task": "", "group": ""}]
    back = pairs.load(files=(str(folder / "train.en"), str(folder / "train.de")))
    assert sum(back.counts.values()) == 9 and all(row["source"].startswith("b") for row in rows(back.train))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"train__src": "a\nb\nc\n", "train__tgt": "a\n"},
            "Received: 3 and 1; lines 2 to 3 of train.src have no partner",
        ),
        ({"train__src": "a\n", "train__tgt": "a\nb\n"}, "Received: 1 and 2; line 2 of train.tgt have no partner"),
        ({"train__src": "a\n\nc\nd\n", "train__tgt": "a\nb\nc\n \n"}, "2 empty: train.src line 2, train.tgt line 4"),
        ({"train__src": b"a\n\xff\xfe\n", "train__tgt": "a\nb\n"}, "UTF-8 in .*train.src. Received: line 2"),
        ({"train__src": "a\n"}, "readable file of sentences. Received: .*train.tgt"),
        ({"train__src": "a\na\n", "train__tgt": "b\nc\n"}, "enough different sources"),
        ({"train__src": "", "train__tgt": ""}, "enough different sources"),
    ],
    ids=["longer source", "longer target", "empty lines", "not utf-8", "no target", "one source", "empty files"],
)
def test_bad_files_are_named_with_their_lines(files, message, tmp_path):
    with pytest.raises(Failure, match=message) as caught:
        pairs.load(data_dir=str(write(tmp_path, **files)))
    assert "\n" not in str(caught.value)


def test_pairs_with_an_empty_side_are_left_out_on_request(tmp_path):
    lines = numbered("a", 30).splitlines()
    lines[4] = ""
    folder = write(tmp_path, train__src="\n".join(lines), train__tgt=numbered("b", 30))
    with pytest.warns(UserWarning, match="left out 1 of 30 pairs with an empty side: train.src line 5"):
        found = pairs.load(data_dir=str(folder), skip_bad=True)
    assert sum(found.counts.values()) == 29
    assert "b 4" not in {row["target"] for split in found.counts for row in rows(getattr(found, split))}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data_dir": "nowhere"}, "--data_dir to be a folder. Received: 'nowhere'"),
        ({"files": ("only.txt", None)}, "--source_file and --target_file together"),
        ({"files": ("a", "b"), "data_dir": "c"}, "without --data_dir"),
    ],
)
def test_flags_that_do_not_fit_are_usage_errors(arguments, message):
    with pytest.raises(UsageError, match=message):
        pairs.load(**arguments)


def test_a_folder_without_training_files_is_told_what_is_there(tmp_path):
    write(tmp_path, train__de="a\n", train__en="b\n")
    with pytest.raises(UsageError, match="train.src and train.tgt.* Received: train.de, train.en"):
        pairs.load(data_dir=str(tmp_path))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=60), st.floats(0.05, 0.5), st.integers(0, 2**31))
def test_a_source_stays_within_one_split_and_no_pair_is_lost(numbers, fraction, seed):
    columns = {
        "source": np.array([f"s{n}" for n in numbers], object),
        "target": np.array([f"t{i}" for i in range(len(numbers))], object),
    }
    rest, held = pairs.carve(columns, fraction, seed)
    assert not set(rest["source"]) & set(held["source"])
    assert sorted([*rest["target"], *held["target"]]) == sorted(columns["target"])
    assert len(rest["source"]) > 0
    assert (len(held["source"]) > 0) == (len(set(numbers)) > 1)
