"""Labelled texts: the built-in sets, the catalogue by local stand-ins, the user's tables; and batches by length."""

from __future__ import annotations

import ast
import json
import sys
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.config import Failure, UsageError
from pipelines.datasets import catalogue, tables, texts, tiny_reviews, tiny_snippets
from pipelines.datasets.stream import InMemory


def pairs(part: InMemory) -> list[tuple[str, int]]:
    found = part.examples["text"].numpy(), part.examples["label"].numpy()
    return [(text.decode(), int(label)) for text, label in zip(*found, strict=True)]


# The built-in sets.


@pytest.fixture(scope="module")
def reviews() -> texts.Texts:
    return texts.load("tiny_reviews")


def test_reviews_are_balanced_and_no_sentence_is_in_two_splits(reviews):
    assert reviews.counts == {"train": 4500, "validation": 500, "test": 1000}
    assert reviews.classes == ("negative", "positive")
    found = {split: pairs(getattr(reviews, split)) for split in reviews.counts}
    for split, rows in found.items():
        assert abs(np.mean([label for _, label in rows]) - 0.5) < 0.01, split
    sentences = [text for rows in found.values() for text, _ in rows]
    assert len(set(sentences)) == len(sentences) == 6000


def read_back(sentence: str) -> tuple[float, set[tuple[int, int]]]:
    """The score of a sentence and its pairs of negation and contrast, found by reading and not by writing it."""
    clauses = [part for part in sentence.removesuffix(" .").split(" . ") if part not in tiny_reviews.REMARKS]
    assert len(clauses) == 1
    body = clauses[0]

    def of_clause(words: str) -> tuple[float, int | None]:
        assert words.startswith("the ") and words.split()[1] in tiny_reviews.ASPECTS, words
        rest = " ".join(words.split()[2:])
        adjective = rest.split()[-1]
        (strength,) = [s for s, group in tiny_reviews.ADJECTIVES.items() if adjective in group.split()]
        for place, negation in enumerate(tiny_reviews.NEGATIONS):
            if rest in (negation.format(adjective), negation.format(f"very {adjective}")):
                return -float(np.sign(strength)), place
        (adverb,) = [a for a in tiny_reviews.ADVERBS if rest.split() == ["is", *a.split(), adjective]]
        return strength * tiny_reviews.ADVERBS[adverb], None

    readings = []
    for place, contrast in enumerate(tiny_reviews.CONTRASTS):
        head, middle, tail = contrast.replace("{m}", "|").replace("{o}", "|").split("|")
        if body.startswith(head) and body.endswith(tail) and middle in body:
            for cut in range(len(body)):
                if body[cut:].startswith(middle) and cut >= len(head):
                    sides = body[len(head) : cut], body[cut + len(middle) : len(body) - len(tail)]
                    try:
                        first, second = (of_clause(side) for side in sides)
                    except (AssertionError, ValueError, IndexError):
                        continue
                    main = first if contrast.index("{m}") < contrast.index("{o}") else second
                    found = {(n, place) for n in (first[1], second[1]) if n is not None}
                    assert (first[0] > 0) != (second[0] > 0)
                    readings.append((main[0], found))
    if readings:
        assert len(readings) == 1, readings
        return readings[0]
    return sum(of_clause(part)[0] for part in body.split(" and ")), set()


def test_a_label_is_the_meaning_of_its_sentence_and_test_pairs_are_never_seen_in_training(reviews):
    seen: dict[str, set] = {split: set() for split in reviews.counts}
    for split in reviews.counts:
        for sentence, label in pairs(getattr(reviews, split)):
            score, found = read_back(sentence)
            assert (score > 0) == label, sentence
            assert found or split != "test"
            seen[split] |= found
    assert len(seen["train"]) == 2 * len(seen["test"]) == 2 * 9 * len(tiny_reviews.CONTRASTS) // 3
    assert not (seen["train"] | seen["validation"]) & seen["test"]
    for side in (0, 1):  # every negation and every contrast is known from training
        assert {pair[side] for pair in seen["test"]} <= {pair[side] for pair in seen["train"]}


def test_all_words_of_the_test_reviews_are_known_from_training(reviews):
    words = [{word for text, _ in pairs(part) for word in text.split()} for part in (reviews.train, reviews.test)]
    assert words[1] <= words[0]


def test_snippets_are_different_functions_of_this_pythons_library():
    found = texts.load("tiny_snippets")
    assert f"tiny_snippets/{'.'.join(map(str, sys.version_info[:3]))}" in found.source
    rows = [row for split in found.counts for row in pairs(getattr(found, split))]
    assert len({text for text, _ in rows}) == len(rows) > 3000
    counts = Counter(label for _, label in rows)
    assert len(found.classes) == len(counts) == 10 and min(counts.values()) > 100
    for text, _ in rows[::50]:
        (function,) = ast.parse(text).body if text.lstrip().startswith(("def", "async", "@")) else [None]
        assert function is None or ast.get_docstring(function) is None
    assert 0.15 < found.counts["test"] / len(rows) < 0.25
    everywhere = Counter(label for _, label in pairs(found.test))
    assert all(abs(everywhere[k] / found.counts["test"] - counts[k] / len(rows)) < 0.04 for k in counts)


def test_a_python_without_its_source_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_snippets.sysconfig, "get_path", lambda name: str(tmp_path))
    builder = tiny_snippets.TinySnippets(data_dir=str(tmp_path))
    monkeypatch.setattr(catalogue.tfds, "builder", lambda name: builder)
    with pytest.raises(Failure, match="Expected Python's library as source files"):
        texts.load("tiny_snippets")


def test_the_seed_moves_validation_and_never_test(reviews):
    again, other = (texts.load("tiny_reviews", seed=seed) for seed in (0, 1))
    assert pairs(reviews.validation) == pairs(again.validation) != pairs(other.validation)
    assert pairs(reviews.test) == pairs(other.test)


def test_limit_cuts_train_exactly_and_the_rest_in_proportion(reviews):
    found = texts.load("tiny_reviews", limit=900)
    assert found.counts == {"train": 900, "validation": 100, "test": 200}
    assert all(len(pairs(getattr(found, split))) == count for split, count in found.counts.items())
    assert reviews.limited(10).counts == {"train": 10, "validation": 32, "test": 32}
    assert reviews.limited(10**6) is reviews


# The catalogue.


@pytest.mark.parametrize(
    ("name", "text", "classes"),
    [
        ("imdb_reviews", "text", ("neg", "pos")),
        ("ag_news_subset", "description", ("World", "Sports", "Business", "Sci/Tech")),
        ("glue/sst2", "sentence", ("negative", "positive")),
    ],
)
def test_the_catalogue_takes_the_same_road(name, text, classes):
    with tfds.testing.mock_data(num_examples=5, policy=tfds.testing.MockPolicy.USE_CODE):
        found = texts.load(name)
        assert texts.labelled_texts(tfds.builder(name))[0] == text
        assert found.classes == classes
        assert found.counts == {"train": 5, "validation": 5, "test": 5}
        assert all(0 <= label < len(classes) for _, label in pairs(found.train))


class FakeTexts(tfds.core.GeneratorBasedBuilder):
    """A hundred headlines with a body and an index, as a set of the catalogue; some splits may be unlabelled."""

    VERSION = tfds.core.Version("1.0.0")
    names: tuple[str, ...] = ("train", "validation", "test")
    unlabelled: tuple[str, ...] = ()
    columns: tuple[str, ...] = ("headline", "body")
    classes: tuple[str, ...] = ("a", "b")

    def _info(self):
        features = {name: tfds.features.Text() for name in self.columns} | {
            "verdict": tfds.features.ClassLabel(names=list(self.classes)),
            "idx": tfds.features.Scalar(np.int32),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.names}

    def _generate_examples(self, split):
        for i in range(100):
            label = -1 if split in self.unlabelled else i % len(self.classes)
            yield i, {name: f"{name} {split} {i} ß" for name in self.columns} | {"verdict": label, "idx": i}


@pytest.fixture
def fake(monkeypatch, tmp_path):
    def load(text_column=None, label_column=None, **changes) -> texts.Texts:
        for attribute, value in changes.items():
            monkeypatch.setattr(FakeTexts, attribute, value)
        builder = FakeTexts(data_dir=str(tmp_path))
        monkeypatch.setattr(catalogue.tfds, "builder", lambda name: builder)
        return texts.load("fake_texts", text_column=text_column, label_column=label_column)

    return load


def test_a_real_set_is_written_read_and_split(fake):
    """Downloaded sets take this road; glue's test split has no labels, as here."""
    found = fake(unlabelled=("test",))
    assert found.counts == {"train": 90, "validation": 10, "test": 100}
    for split, origin in (("train", "train"), ("validation", "train"), ("test", "validation")):
        for text, label in pairs(getattr(found, split)):
            assert text.startswith(f"body {origin} ") and text.endswith(" ß")
            assert label == int(text.split()[2]) % 2
    rows = pairs(found.train) + pairs(found.validation)
    assert len(set(rows)) == 100


def test_a_feature_is_named_or_found(fake):
    assert pairs(fake("headline", "verdict").test)[0][0].startswith("headline test")


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (("headlin",), {}, "name one of headline, body. Did you mean 'headline'"),
        ((None, "verdikt"), {}, "name one of verdict. Did you mean 'verdict'"),
        ((), {"columns": ("left", "right")}, "--text_column to name one of left, right"),
        ((), {"columns": ()}, "a text and a class. Received: fake_texts with verdict .ClassLabel., idx"),
        ((), {"classes": ("only",)}, "at least two classes. Received: fake_texts with 1"),
    ],
)
def test_sets_without_a_text_and_a_class_say_what_they_have(fake, arguments, changes, message):
    with pytest.raises((UsageError, Failure), match=message):
        fake(*arguments, **changes)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imdb_review", "Did you mean 'imdb_reviews'"),
        ("tiny_revews", "Did you mean 'tiny_reviews'"),
        ("mnist", "a text and a class. Received: mnist with image"),
    ],
)
def test_a_wrong_name_is_one_line_that_helps(name, message):
    with pytest.raises(UsageError, match=message) as caught:
        texts.load(name)
    assert "\n" not in str(caught.value)


def test_without_a_network_the_stand_in_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(catalogue, "answers", lambda address: False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(Failure, match="'tiny_reviews' is built in and needs no network"):
        texts.load("ag_news_subset")


# The user's own tables.

ROWS = [
    (f'He said: "number {i}, {"yes" if i % 2 else "no"}"\nand left — ünïcode', "yes" if i % 2 else "no")
    for i in range(40)
]


def write_csv(path, header, rows, mark=","):
    def quoted(word):
        return '"' + str(word).replace('"', '""') + '"'

    lines = [mark.join(header)] + [mark.join(quoted(word) for word in row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return str(path)


def write_jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return str(path)


def everything(found: texts.Texts) -> list[tuple[str, str]]:
    return sorted((text, found.classes[k]) for split in found.counts for text, k in pairs(getattr(found, split)))


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_csv_of_any_delimiter_is_read_row_by_row_as_written(tmp_path, mark):
    path = write_csv(tmp_path / "mails.csv", ["id", "Text", "label"], [(i, *row) for i, row in enumerate(ROWS)], mark)
    found = texts.load(data_dir=path)
    assert everything(found) == sorted(ROWS)
    assert found.classes == ("no", "yes") and found.counts == {"train": 32, "validation": 4, "test": 4}
    assert pairs(found.train) != sorted(pairs(found.train))
    for split in found.counts:
        assert abs(np.mean([k for _, k in pairs(getattr(found, split))]) - 0.5) < 0.01


def test_jsonl_takes_numbers_and_words_as_labels(tmp_path):
    rows = [{"review": f"text {i}", "stars": i % 12, "more": [1, {"a": None}]} for i in range(120)]
    found = texts.load(data_dir=write_jsonl(tmp_path / "rows.jsonl", rows))
    assert found.classes == tuple(map(str, range(12)))  # in the order of numbers
    assert everything(found) == sorted((row["review"], str(row["stars"])) for row in rows)


def test_columns_are_named_by_flags(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["subject", "body", "folder"], [(f"s{i}", f"b{i}", i % 2) for i in range(30)])
    found = texts.load(data_dir=path, text_column="subject", label_column="folder")
    assert {text[0] for text, _ in everything(found)} == {"s"} and found.classes == ("0", "1")


def test_a_folder_brings_its_own_splits(tmp_path):
    for split, count in (("train", 20), ("valid", 6), ("test", 4)):
        write_jsonl(tmp_path / f"{split}.jsonl", [{"text": f"{split} {i}", "label": "ab"[i % 2]} for i in range(count)])
    found = texts.load(data_dir=str(tmp_path))
    assert found.counts == {"train": 20, "validation": 6, "test": 4}
    assert {text.split()[0] for text, _ in pairs(found.validation)} == {"valid"}
    write_jsonl(tmp_path / "test.jsonl", [{"text": "odd", "label": "c"}])
    with pytest.raises(Failure, match=r"classes of train in the test file. Received, in addition: \['c'\]"):
        texts.load(data_dir=str(tmp_path))


def test_texts_that_are_in_train_and_test_are_told(tmp_path):
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", [{"text": f"same {i}", "label": i % 2} for i in range(20)])
    with pytest.warns(UserWarning, match="texts of the test split are in the training split too"):
        texts.load(data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"text_column": "txet"}, r"--text_column to be a column of a.csv \(text, kind\). Did you mean 'text'"),
        ({"label_column": "kimd"}, "Did you mean 'kind'. Received: 'kimd'"),
        ({}, "named label, class, category, sentiment, …, or --label_column with another one. Received: text, kind"),
    ],
)
def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path, flags, message):
    path = write_csv(tmp_path / "a.csv", ["text", "kind"], ROWS)
    with pytest.raises(UsageError, match=message):
        texts.load(data_dir=path, **flags)


def test_bad_rows_are_named_and_left_out_on_request(tmp_path):
    rows = [{"text": f"t {i}", "label": i % 2} for i in range(30)]
    bad = [{"text": "  ", "label": 1}, {"text": "no label"}, {"text": 3, "label": 1}, {"text": "t", "label": None}]
    path = write_jsonl(tmp_path / "a.jsonl", [*rows, *bad, {"text": "x" * 200_000, "label": 1}])
    with open(path, "a") as file:
        file.write("{broken\n[1]\n")
    message = (
        r"Received 7 of 37 without: line 31 \(empty text\), line 32 \(no label\), line 33 \(text is no text\), "
        r"line 34 \(no label\), line 35 \(200,000 characters, more than 131,072\), line 37 \(not a JSON object\)"
    )
    with pytest.raises(Failure, match=message):
        texts.load(data_dir=path)
    with pytest.warns(UserWarning, match="left out 7 rows of a.jsonl"):
        assert len(everything(texts.load(data_dir=path, skip_bad=True))) == 30


def test_short_rows_and_empty_texts_of_csv_are_named_by_their_line(tmp_path):
    path = write_csv(
        tmp_path / "a.csv", ["label", "text"], [("x",), ("y", ""), *(("xy"[i % 2], f"{i}") for i in range(20))]
    )
    with pytest.raises(Failure, match=r"Received 2 of 22 without: line 2 \(no text\), line 3 \(empty text\)"):
        texts.load(data_dir=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expected rows in a.csv. Received: none"),
        (b"text,label\n", "Expected rows in a.csv. Received: none"),
        (b"text,label\na,x\nb\xff,y\n", "Expected UTF-8 in a.csv. Received: the byte 0xff after line"),
        (b"text,label\n" + b"a" * 140_000 + b",x\n", "Expected a table in a.csv. Received after line 0: field larger"),
        (b"text,label\n" + b"a,x\n" * 20, "at least two classes in .*a.csv. Received: x"),
        (b"text,label\n" + b"".join(b"a,%d\n" % i for i in range(30)), "30 different values in 30 rows"),
        (b"text,label\na,x\nb,y\n", "Expected enough rows"),
    ],
    ids=["empty", "header", "utf8", "long", "one_class", "no_classes", "few"],
)
def test_files_that_are_no_data_set_say_why(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(Failure, match=message):
        texts.load(data_dir=str(tmp_path / "a.csv"))


def test_folders_and_files_of_other_kinds_are_told(tmp_path):
    for name, message in (("nowhere", "to be a file"), ("", "Received: an empty folder")):
        with pytest.raises(UsageError, match=message):
            texts.load(data_dir=str(tmp_path / name))
    (tmp_path / "a.txt").touch()
    with pytest.raises(UsageError, match=r"Expected a file of .csv, .tsv, .jsonl, .ndjson. Received: 'a.txt'"):
        texts.load(data_dir=str(tmp_path / "a.txt"))
    with pytest.raises(UsageError, match="Expected one table .* Received: a.txt"):
        texts.load(data_dir=str(tmp_path))


def test_names_of_columns_are_found_whatever_their_capitals(tmp_path):
    assert tables.column(tmp_path, ["ID", "Review", "TITLE"], None, tables.TEXT_NAMES, "text") == "Review"


# Batches by length.


def ragged(lengths: list[int]) -> InMemory:
    rows = [[i] * n for i, n in enumerate(lengths)]
    ids = tf.ragged.constant(rows, tf.int32, ragged_rank=1)
    return InMemory({"ids": ids, "label": tf.range(len(lengths), dtype=tf.int64)}, len(lengths))


def places(lengths: list[int], batch_size: int, seed: int, start: int, steps: int) -> list[list[int]]:
    data = texts.bucketed(ragged(lengths), lengths, batch_size=batch_size, seed=seed, start_step=start)
    return [batch["label"].numpy().tolist() for batch in data.take(steps)]


lengths = st.lists(st.integers(0, 30), min_size=1, max_size=60)


@settings(max_examples=12, deadline=None)
@given(lengths=lengths, batch_size=st.integers(1, 9), seed=st.integers(0, 2**31), start=st.integers(0, 40))
@example(lengths=list(range(1, 21)), batch_size=4, seed=0, start=7)
def test_a_stream_continued_at_any_step_is_the_stream_that_never_stopped(lengths, batch_size, seed, start):
    whole = places(lengths, batch_size, seed, 0, start + 5)
    assert places(lengths, batch_size, seed, start, 5) == whole[start:]


@settings(max_examples=12, deadline=None)
@given(lengths=lengths, batch_size=st.integers(1, 20), seed=st.integers(0, 100))
def test_a_pass_takes_every_example_at_most_once_and_leaves_less_than_a_batch(lengths, batch_size, seed):
    size = min(batch_size, len(lengths))
    per_pass = len(lengths) // size
    steps = places(lengths, batch_size, seed, 0, 2 * per_pass)
    for number in range(2):
        seen = list(chain(*steps[number * per_pass : (number + 1) * per_pass]))
        assert len(seen) == len(set(seen)) == per_pass * size


def test_batches_hold_texts_of_similar_length_in_mixed_order():
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 100, 2000)
    steps = places(lengths, 20, 0, 0, 300)
    spread = [np.ptp(lengths[batch]) for batch in steps]
    assert np.mean(spread) < 5  # of 94 in batches drawn at random
    longest = np.array([lengths[batch].max() for batch in steps[:100]])
    assert abs(np.corrcoef(longest[1:], longest[:-1])[0, 1]) < 0.3
    assert steps[:100] != steps[100:200] and sorted(chain(*steps[:100])) == sorted(chain(*steps[100:200]))
    assert places(lengths, 20, 1, 0, 3) != steps[:3]


def test_a_batch_is_the_examples_at_its_places_and_map_fn_gets_the_step():
    source = ragged([3, 0, 2, 1, 5])
    data = texts.bucketed(
        source, [3, 0, 2, 1, 5], batch_size=2, seed=0, start_step=3, map_fn=lambda step, batch: (step, batch)
    )
    for number, (step, batch) in enumerate(data.take(4)):
        assert int(step) == 3 + number
        assert batch["ids"].to_list() == [[int(i)] * [3, 0, 2, 1, 5][i] for i in batch["label"]]
    found = [batch["label"].numpy().tolist() for batch in texts.in_order(source, batch_size=2)]
    assert found == [[0, 1], [2, 3], [4]]


def test_no_examples_or_a_wrong_number_of_lengths_are_refused():
    for source, lengths in ((InMemory({}, 0), []), (ragged([1, 2]), [1])):
        with pytest.raises(ValueError, match="Expected examples, and a length for each"):
            texts.bucketed(source, lengths, batch_size=2, seed=0)
