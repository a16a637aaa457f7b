"""Questions about passages: the built-in ones, SQuAD's JSON, JSONL, and what is said of rows that are wrong."""

from __future__ import annotations

import json
import re

import pytest

from pipelines.config import Failure, UsageError
from pipelines.datasets import questions, tiny_questions

CONTEXT = "Nora 🙂 lives in Rosk. Emil lives in Tarn, by the sea."
ROW = {"context": CONTEXT, "question": "Where does Emil live?", "answer": "Tarn", "answer_start": 36}


def jsonl(path, rows) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def rows_of(part) -> list[tuple]:
    found = part.examples
    texts = [[one.decode() for one in found[name].numpy()] for name in ("context", "question")]
    told = [[one.decode() for one in row] for row in found["answer"].to_list()]
    return sorted(zip(*texts, told, found["start"].to_list(), strict=True))


@pytest.mark.parametrize("unanswerable", [0.0, 1 / 3])
def test_tiny_questions_are_answered_by_what_their_passages_tell(unanswerable):
    train, test = (tiny_questions.questions(split, unanswerable) for split in ("train", "test"))
    assert (len(train), len(test)) == (10_000, 1_200)
    assert [row["group"] for row in test].count("people") == 400
    for row in [*train, *test]:
        for answer, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            assert row["context"][start : start + len(answer)] == answer
            assert row["context"].count(answer) == 1 or answer.isdigit() or answer in tiny_questions.TOWNS
    share = sum(not row["answers"]["text"] for row in train) / len(train)
    assert share == 0 if not unanswerable else 0.3 < share < 0.37
    assert all(row["context"].count(".") in range(2, 9) for row in train)
    assert tiny_questions.questions("test", unanswerable) == test
    assert not {row["context"] for row in train} & {row["context"] for row in test}


def test_what_is_held_out_of_tiny_questions_is_in_no_training_passage():
    train, test = (tiny_questions.questions(split, 0.0) for split in ("train", "test"))
    told = " ".join(row["context"] + row["question"] for row in train)
    words = set(re.findall(r"\w+", told.lower()))
    shapes = {fact.held.format(n="X") for fact in tiny_questions.FACTS.values()}
    for row in test:
        name = next(m[0] for m in re.finditer(r"[A-Z]\w+ [A-Z]\w+", row["question"][1:]))
        assert (row["question"].replace(name, "X") in shapes) == (row["group"] == "wording")
        assert (name not in told) == (row["group"] == "people")
        assert set(re.findall(r"\w+", row["question"].lower())) <= words


def test_a_named_set_keeps_the_questions_about_a_passage_in_one_split():
    found = questions.load("tiny_questions", seed=3)
    contexts = [set(getattr(found, split).examples["context"].numpy()) for split in found.counts]
    assert not contexts[0] & contexts[1] and not contexts[0] & contexts[2] and not contexts[1] & contexts[2]
    assert sum(found.counts.values()) == 11_200 and 900 <= found.counts["validation"] <= 1100
    limited = found.limited(100)
    assert limited.counts == {"train": 100, "validation": 32, "test": 32}
    with pytest.raises(UsageError, match=r"--unanswerable .* Received: \d+ of"):
        questions.load("tiny_questions/unanswerable")


def squad(paragraphs) -> dict:
    return {"version": "1.1", "data": [{"title": "T", "paragraphs": paragraphs}]}


def test_squads_json_and_jsonl_say_the_same(tmp_path):
    contexts = [f"{CONTEXT} Number {i}." for i in range(20)]
    answers = [{"text": "Tarn", "answer_start": 36}, {"text": "Tarn, by the sea", "answer_start": 36}]
    asked = [{"id": "1", "question": "Where?", "answers": answers}, {"id": "2", "question": "Who?", "answers": []}]
    nested = tmp_path / "train-v2.0.json"
    nested.write_text(json.dumps(squad([{"context": context, "qas": asked} for context in contexts])))
    lists = {"text": ["Tarn", "Tarn, by the sea", "Tarn"], "answer_start": [36, 36, 36]}
    flat = [{"context": context, "question": "Where?", "answers": lists} for context in contexts]
    flat += [{"context": context, "question": "Who?", "answer": None} for context in contexts]
    one, other = (
        questions.load(data_dir=path, unanswerable=True, seed=1)
        for path in (str(nested), jsonl(tmp_path / "mine.jsonl", flat))
    )
    whole = [sorted(row for split in each.counts for row in rows_of(getattr(each, split))) for each in (one, other)]
    assert whole[0] == whole[1] and len(whole[0]) == 40
    assert whole[0][0][2:] == (["Tarn", "Tarn, by the sea"], [36, 36])
    assert [row[2] for row in whole[0]].count([]) == 20
    for each in (one, other):
        assert set(each.counts.values()) != {0} and min(each.counts.values()) >= 2  # both questions of a passage


def test_a_folder_brings_its_splits_and_dev_is_the_test_split(tmp_path):
    rows = [ROW | {"context": f"{CONTEXT} {i}", "question": f"Where {i}?"} for i in range(12)]
    jsonl(tmp_path / "train-v1.1.jsonl", rows[:9])
    jsonl(tmp_path / "dev-v1.1.jsonl", rows[9:])
    found = questions.load(data_dir=str(tmp_path))
    assert [row[1] for row in rows_of(found.test)] == ["Where 10?", "Where 11?", "Where 9?"]
    assert found.counts["train"] + found.counts["validation"] == 9
    jsonl(tmp_path / "test.jsonl", rows[9:10])
    assert questions.load(data_dir=str(tmp_path)).counts == {"train": 9, "validation": 3, "test": 1}
    jsonl(tmp_path / "dev.jsonl", rows[9:])
    with pytest.raises(UsageError, match="one validation file"):
        questions.load(data_dir=str(tmp_path))


BAD = [
    ("no json", "not a JSON object"),
    ('["a"]', "not a JSON object"),
    ({**ROW, "answer_start": 37}, "the answer 'Tarn' is not at 37 of the context, where 'arn,' stands"),
    ({**ROW, "answer_start": -1}, "is not at -1"),
    ({**ROW, "answer_start": "36"}, "answer_start '36' is no whole number"),
    ({**ROW, "answer": "Aldor"}, "'Aldor' is not at 36"),
    ({"context": CONTEXT, "question": "x", "answer": "lives"}, "stands 2 times in the context"),
    ({"context": CONTEXT, "question": "x", "answer": "Aldor"}, "stands 0 times in the context"),
    ({"context": CONTEXT, "question": "x"}, "no answers"),
    ({"question": "x", "answer": "Tarn"}, "no context"),
    ({**ROW, "question": " "}, "empty question"),
    ({**ROW, "question": 3}, "no question"),
    ({"context": CONTEXT, "question": "x", "answers": ["Tarn"]}, "no lists"),
    ({"context": CONTEXT, "question": "x", "answers": {"text": ["Tarn"], "answer_start": []}}, "as many `text`"),
    ({"context": CONTEXT, "question": "x", "answers": [{"text": "", "answer_start": 0}]}, "is no text"),
]


def test_rows_that_are_wrong_are_named_or_left_out(tmp_path):
    good = [ROW | {"context": f"{CONTEXT} {i}"} for i in range(9)]
    for number, (row, said) in enumerate(BAD):
        path = jsonl(tmp_path / f"{number}.jsonl", [*good, row])
        with pytest.raises(Failure, match="--skip_bad") as error:
            questions.load(data_dir=path)
        assert f"1 of 10 without: line 10 ({said}" in str(error.value) or said in str(error.value)
        assert "line 10" in str(error.value)
    path = jsonl(tmp_path / "all.jsonl", [*good, *(row for row, _ in BAD)])
    with pytest.warns(UserWarning, match="left out 15 rows of all.jsonl: line 10"):
        found = questions.load(data_dir=path, skip_bad=True)
    assert sum(found.counts.values()) == 9
    alone = jsonl(tmp_path / "start.jsonl", [{k: v for k, v in row.items() if k != "answer_start"} for row in good])
    assert rows_of(questions.load(data_dir=alone).train)[0][3] == [36]  # found, since it stands there once


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("a.json", "{", Failure, "Expected JSON in a.json"),
        ("a.json", '{"rows": []}', Failure, "Expected a list `data`"),
        ("a.json", "[]", Failure, "Expected questions in the train file"),
        ("a.jsonl", "", Failure, "Expected questions in the train file"),
        ("a.jsonl", b"\xff\xfe{}", Failure, "Expected UTF-8 in a.jsonl"),
        ("a.csv", "context,question", UsageError, r"Expected a file of .json"),
        (
            "a.json",
            json.dumps(squad([{"context": "x", "qas": [{"question": "q"}]}])),
            Failure,
            r"qas\[0\] \(no answers",
        ),
        ("a.jsonl", json.dumps(ROW), Failure, "enough different passages"),
        ("a.jsonl", "\n".join([json.dumps(ROW)] * 50), Failure, "enough different passages"),
    ],
)
def test_files_that_are_wrong(name, content, error, said, tmp_path):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=said):
        questions.load(data_dir=str(path))


def test_other_sets_and_missing_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match="as SQuAD. Received: tiny_reviews"):
        questions.load("tiny_reviews")
    with pytest.raises(UsageError, match="Did you mean 'tiny_questions'"):
        questions.load("tiny_question")
    with pytest.raises(UsageError, match="a file .* or a folder"):
        questions.load(data_dir=str(tmp_path / "none"))
    with pytest.raises(UsageError, match="Received: an empty folder"):
        questions.load(data_dir=str(tmp_path))
    none = [{"context": f"c {i}", "question": "q", "answer": ""} for i in range(9)]
    with pytest.raises(Failure, match="training questions with an answer"):
        questions.load(data_dir=jsonl(tmp_path / "x.jsonl", none), unanswerable=True)
