"""Tagged texts: every way to write tags gives the same spans, files are checked, tiny_entities is as it says."""

from __future__ import annotations

import json
import random
import warnings

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config import Failure, UsageError
from pipelines.datasets import tagged, tiny_entities
from pipelines.datasets.tag_schemes import Example, Span, bio, scheme_of, spans_of
from pipelines.transforms import text

HAND = [
    ("B-a I-a O B-a B-a I-b I-b O I-c", [(0, 2, "a"), (3, 4, "a"), (4, 5, "a"), (5, 7, "b"), (8, 9, "c")]),
    ("B-a E-a S-b S-b I-c E-c I-c", [(0, 2, "a"), (2, 3, "b"), (3, 4, "b"), (4, 6, "c"), (6, 7, "c")]),
    ("I-a I-a B-a O", [(0, 2, "a"), (2, 3, "a")]),
    ("U-a B-b I-b L-b U-b", [(0, 1, "a"), (1, 4, "b"), (4, 5, "b")]),
    ("O O", []),
    ("", []),
]


@pytest.mark.parametrize(("tags", "spans"), HAND)
def test_spans_of_cases_written_by_hand(tags, spans):
    assert spans_of(tags.split()) == spans


def test_a_class_of_every_word_is_a_span_of_its_own():
    assert spans_of("NOUN NOUN O VERB".split(), "words") == [(0, 1, "NOUN"), (1, 2, "NOUN"), (3, 4, "VERB")]


spans = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.sampled_from("ab")), max_size=5)


def written(length: int, spans: list[Span], scheme: str) -> list[str]:
    """Tags of spans in a scheme."""
    tags, last = ["O"] * length, Span(-1, -1, "")
    for span in spans:
        marks = ["I"] * (span.end - span.start)
        if scheme == "BIO" or (scheme == "IOB1" and (last.end, last.label) == (span.start, span.label)):
            marks[0] = "B"
        if scheme in ("BIOES", "BILOU"):
            marks[0], marks[-1] = "B", "E" if scheme == "BIOES" else "L"
            if len(marks) == 1:
                marks = ["S" if scheme == "BIOES" else "U"]
        tags[span.start : span.end] = [f"{mark}-{span.label}" for mark in marks]
        last = span
    return tags


@settings(deadline=None, max_examples=60)
@given(spans, st.sampled_from(["BIO", "IOB1", "BIOES", "BILOU"]))
def test_spans_come_back_from_every_scheme_and_bio_is_their_writing(parts, scheme):
    found, place = [], 0
    for gap, length, label in parts:
        found.append(Span(place + gap, place + gap + length, label))
        place += gap + length
    tags = written(place + 1, found, scheme)
    assert spans_of(tags) == found
    assert bio(place + 1, found) == written(place + 1, found, "BIO")
    assert not scheme_of([tags]).wrong


@pytest.mark.parametrize(
    ("tags", "name", "wrong"),
    [
        ("B-a I-a O", "BIO", 0),
        ("B-a I-b O I-a", "BIO", 2),
        ("I-a B-a O I-b", "IOB1", 0),
        ("I-a I-b O", "IO", 0),
        ("B-a E-a O S-b", "BIOES", 0),
        ("B-a O S-b E-b", "BIOES", 2),
        ("B-a L-a U-b", "BILOU", 0),
        ("NOUN O VERB", "words", 0),
    ],
)
def test_the_scheme_is_recognized_and_what_it_does_not_allow_is_counted(tags, name, wrong):
    assert scheme_of([tags.split()])[:2] == (name, wrong)


def test_tags_with_and_without_marks_are_refused():
    with pytest.raises(Failure, match=r"begin with B-.*Received, too: \['city'\]"):
        scheme_of([["B-person", "city", "O"]])


def test_tokens_that_are_several_words_keep_their_span():
    parts = {"train": [Example("The U.S. army".split(), ["O", "I-loc", "O"], [])]}
    parts |= {"validation": parts["train"], "test": parts["train"]}
    found = tagged.tagged(parts, ["loc"], "")
    assert found.train.examples["words"].to_list() == [[b"The", b"U", b".", b"S", b".", b"army"]]
    assert [found.tags[k] for k in found.train.examples["tags"].to_list()[0]] == "O B-loc I-loc I-loc I-loc O".split()


def test_spans_of_characters_are_laid_on_whole_words():
    texts, spans = ["é 20km to “Köln”!", "a"], [[Span(2, 4, "n"), Span(4, 6, "u"), Span(11, 15, "city")], []]
    words, tags, wider = tagged.on_words(texts, spans)
    assert [one.decode() for one in words[0]] == ["é", "20km", "to", "“", "Köln", "”", "!"]
    assert tags == [["O", "B-n", "O", "O", "B-city", "O", "O"], ["O"]] and wider == 2


CONLL = (
    "-DOCSTART- -X- O O\n\nAna NNP B-NP B-PER\nGil NNP I-NP I-PER\nleft VBD B-VP O\n\n\nOslo NNP B-NP B-LOC\n. . O O\n"
)


@pytest.fixture
def load(tmp_path):
    """Files of texts, read as the user's."""

    def call(name="a.conll", content=CONLL * 10, **flags):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = tagged.load(data_dir=str(tmp_path / name), **flags)
        call.said = " ".join(str(one.message) for one in said)
        return found

    return call


def pairs(found: tagged.Tagged) -> set[str]:
    """All words of all splits with their tags."""
    rows = [
        zip(words, tags)
        for part in (found.train, found.validation, found.test)
        for words, tags in zip(part.examples["words"].to_list(), part.examples["tags"].to_list())
    ]
    return {f"{word.decode()}/{found.tags[tag]}" for row in rows for word, tag in row}


WANTED = {"Ana/B-PER", "Gil/I-PER", "left/O", "Oslo/B-LOC", "./O"}


def test_conll_files_are_read(load):
    found = load()
    assert found.counts == {"train": 16, "validation": 2, "test": 2} and found.scheme == "BIO"
    assert found.tags == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER") and pairs(found) == WANTED
    assert "in the training split too" in load.said
    assert pairs(load("b.tsv", CONLL.replace(" ", "\t") * 10)) == WANTED  # tabs
    assert pairs(load(content="\ufeff" + CONLL.replace("\n", "\r\n") * 10)) == WANTED
    marks = load(tags_column="2")
    assert marks.scheme == "words" and {"left/B-VBD", "Gil/B-NNP"} <= pairs(marks)
    assert "I-NNP" not in marks.tags  # no word goes on


def test_universal_dependencies_are_read(load):
    rows = "# text = I am.\n1-2\tI'm\t_\t_\n1\tI\tI\tPRON\n2\tam\tbe\tAUX\n\n"
    assert pairs(load("c.conllu", rows * 20)) == {"I/B-PRON", "am/B-AUX"}


def test_objects_are_read_in_both_forms(load):
    tokens = {"tokens": ["Ana", "Gil", "left"], "ner_tags": ["B-PER", "I-PER", "O"]}
    assert pairs(load("d.jsonl", (json.dumps(tokens) + "\n\n") * 20)) == {"Ana/B-PER", "Gil/I-PER", "left/O"}
    whole = {"text": "🙂 Ana Gil, left", "entities": [[2, 9, "PER"]]}
    other = {"text": "🙂 Ana Gil, left", "entities": [{"label": "PER", "start": 2, "end": 9}]}
    found = load("e.jsonl", "\n".join(map(json.dumps, [whole, other] * 10)))
    assert pairs(found) == {"🙂/O", "Ana/B-PER", "Gil/I-PER", ",/O", "left/O"} and found.scheme == "spans"
    named = {"t": ["a", "b"], "slot": ["X", "O"]}
    found = load("f.jsonl", (json.dumps(named) + "\n") * 20, text_column="t", tags_column="slot")
    assert pairs(found) == {"a/B-X", "b/O"}


def test_a_folder_brings_its_own_splits(tmp_path):
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(CONLL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert tagged.load(data_dir=str(tmp_path)).counts == {"train": 2, "validation": 2, "test": 2}
    (tmp_path / "test.txt").write_text(CONLL.replace("LOC", "GPE"))
    with pytest.raises(Failure, match=r"in the test file. Received, too: \['GPE'\]"):
        tagged.load(data_dir=str(tmp_path))


def rows(*broken: dict) -> str:
    good = [{"text": "Ana left", "entities": [[0, 3, "PER"]]}] * 20
    return "\n".join(json.dumps(one) for one in [*good, *broken])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.conll", CONLL * 9 + "Ana\n", "line 82 has 1 of 2 columns"),
        ("a.conll", "Ana\t\n", "has an empty column"),
        ("a.conll", "", "Expected tagged texts in a.conll. Received: none"),
        ("a.conll", "-DOCSTART- O\n\n", "Received: none"),
        ("a.conll", CONLL.encode() + b"\xff O\n", "Expected UTF-8 in a.conll. Received: the byte 0xff"),
        ("a.conll", "left O\n\n" * 20, "Expected training texts with tagged words"),
        ("a.conll", "Ana B-PER\nGil PER\n\n" * 9, "begin with B-"),
        ("a.jsonl", rows({"text": "Ana"}), "line 21 (no entities)"),
        ("a.jsonl", rows({"text": "Ana", "entities": [[0, 4, "PER"]]}), "is no part of a text of 3 characters"),
        ("a.jsonl", rows({"text": "Ana", "entities": [[2, 2, "PER"]]}), "is no part of a text"),
        ("a.jsonl", rows({"text": "Ana", "entities": [[0, 3]]}), "is no [start, end, label]"),
        ("a.jsonl", rows({"text": "Ana", "entities": [[True, 3, "PER"]]}), "is no [start, end, label]"),
        ("a.jsonl", rows({"text": "Ana Gil", "entities": [[0, 5, "A"], [4, 7, "B"]]}), "overlap"),
        ("a.jsonl", rows({"text": " ", "entities": []}), "text is no text"),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}', "2 tokens and 1 tags"),
        ("a.jsonl", '{"tokens": ["a", 3], "tags": ["O", "O"]}', "tokens are not all words"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [3]}', "tags are not all names of tags"),
        ("a.jsonl", "[1]", "not a JSON object"),
    ],
)
def test_bad_files_are_told(load, name, content, said):
    with pytest.raises(Failure) as failed:
        load(name, content)
    assert said in str(failed.value)


@pytest.mark.parametrize(
    ("name", "content", "flags", "said"),
    [
        ("a.csv", "x", {}, "Expected a file of .conll"),
        ("a.conll", CONLL, {"tags_column": "ner"}, "as the number of a column, from 1. Received: 'ner'"),
        ("a.jsonl", '{"txt": "a", "tags": []}', {}, "Expected tokens, words, text, sentence, … or --text_column"),
        ("a.jsonl", rows(), {"tags_column": "entitys"}, "Did you mean 'entities'?"),
    ],
)
def test_wrong_flags_are_told(load, name, content, flags, said):
    with pytest.raises(UsageError) as failed:
        load(name, content, **flags)
    assert said in str(failed.value)


def test_bad_texts_are_left_out_where_asked(load):
    found = load("a.jsonl", rows({"text": "Ana"}), skip_bad=True)
    assert sum(found.counts.values()) == 20 and "left out 1" in load.said and "line 21" in load.said


def test_tags_that_do_not_fit_are_told(load):
    load(content=CONLL.replace("I-PER", "I-LOC") * 10)
    assert "10 of 50 tags are not where BIO allows them" in load.said


def test_sets_of_the_catalogue_are_recognized_by_their_features():
    assert tagged.tagged_words(tfds.builder("conll2003"))[:2] == ("tokens", "ner")
    assert tagged.tagged_words(tfds.builder("conll2003"), None, "pos")[1] == "pos"
    names = tagged.tagged_words(tfds.builder("wikiann/en"))
    assert names[:2] == ("tokens", "tags") and names[2][:3] == ("O", "B-PER", "I-PER")
    with pytest.raises(UsageError, match="Expected a data set of tokens with a tag each. Received: tiny_reviews"):
        tagged.tagged_words(tfds.builder("tiny_reviews"))
    with pytest.raises(UsageError, match="Did you mean 'chunks'"):
        tagged.tagged_words(tfds.builder("conll2003"), None, "chunk")


@pytest.fixture(scope="module")
def entities() -> dict[str, list[dict]]:
    return {split: [one for _, one in tiny_entities.generated(split)] for split in tiny_entities.COUNTS}


def test_tiny_entities_has_the_words_that_a_served_model_finds(entities):
    for split, examples in entities.items():
        assert len(examples) == tiny_entities.COUNTS[split]
        joined = tf.constant([" ".join(one["tokens"]) for one in examples])
        assert [[w.decode() for w in row] for row in text.words(joined).to_list()] == [
            one["tokens"] for one in examples
        ]
        assert scope(examples) <= set(tiny_entities.TAGS)
        assert scheme_of([one["tags"] for one in examples])[:2] == ("BIO", 0)


def scope(examples: list[dict]) -> set[str]:
    return {tag for one in examples for tag in one["tags"]}


def test_unseen_names_are_in_no_training_sentence_and_ambiguous_ones_have_several_kinds(entities):
    train: dict[str, set[str]] = {}
    for one in entities["train"]:
        for start, end, kind in spans_of(one["tags"]):
            train.setdefault(" ".join(one["tokens"][start:end]), set()).add(kind)
    for one in entities["test"]:
        for start, end, kind in spans_of(one["tags"]):
            name = " ".join(one["tokens"][start:end])
            if one["group"] == "unseen" and kind in ("country", "city", "language"):
                assert name not in train
            if one["group"] == "ambiguous":
                assert len(train[name]) > 1
    groups = [one["group"] for one in entities["test"][:300]]
    assert {groups.count(group) for group in tiny_entities.GROUPS} == {100}


def test_the_pairs_of_sentences_of_the_ambiguous_group_are_of_test_alone(entities):
    def frames(split, group):
        return {
            " ".join(token if tag == "O" else "_" for token, tag in zip(one["tokens"], one["tags"]))
            for one in entities[split]
            if one["group"] == group
        }

    found = frames("test", "ambiguous")
    assert len(found) > 50 and not found & frames("train", "seen")


def test_the_same_seed_gives_the_same_sentences(entities):
    again = [one for _, one in zip(range(30), tiny_entities.generated("train"))]
    assert [one for _, one in again] == entities["train"][:30]
    assert tiny_entities.money(random.Random(1), "de", True) == tiny_entities.money(random.Random(1), "de", True)
