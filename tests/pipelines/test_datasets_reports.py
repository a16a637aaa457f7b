"""tiny_reports and tables of pairs: what the splits promise, that the targets are true, and rows that are not right."""

from __future__ import annotations

import re
from collections import Counter
from datetime import date

import pytest

from pipelines.config import Failure, UsageError
from pipelines.datasets import catalogue, pair_tables, pairs, tiny_reports


@pytest.fixture(scope="module")
def reports():
    return tiny_reports.every()


def names_of(row: dict[str, str]) -> set[str]:
    """The names of two parts in a text."""
    text = row["source"] + row["target"]
    known = {
        first + last for parts in (tiny_reports.PLACES, tiny_reports.PLAYERS) for first in parts[0] for last in parts[1]
    }
    return known & set(re.findall(r"\w+", text))


def test_no_source_comes_twice_and_splits_have_their_sizes(reports):
    sources = [row["source"] for part in reports.values() for row in part]
    assert len(set(sources)) == len(sources)
    found = {split: Counter(row["group"] for row in part) for split, part in reports.items()}
    assert found == tiny_reports.SIZES
    for part in reports.values():
        tasks = Counter(row["task"] for row in part[:200])
        assert tasks["summarize"] == pytest.approx(100, abs=8) and tasks["date"] == pytest.approx(50, abs=8)


def test_days_and_unseen_names_of_the_test_split_are_in_no_training_report(reports):
    days = {split: {row["target"] for row in part if row["task"] == "date"} for split, part in reports.items()}
    assert not days["train"] & (days["validation"] | days["test"])
    known = set().union(*(names_of(row) for row in reports["train"] + reports["validation"]))
    by_group = {
        group: [names_of(row) for row in reports["test"] if row["group"] == group] for group in ("reports", "names")
    }
    assert set().union(*by_group["reports"]) <= known
    assert not set().union(*by_group["names"]) & known and len(set().union(*by_group["names"])) > 50


def test_summaries_say_what_the_facts_say(reports):
    rows = [row for row in reports["test"] if row["task"] == "summarize"]
    for row in (row for row in rows if row["kind"] == "stations"):
        degrees = [int(one) for one in re.findall(r"(\d+) degrees", row["source"])]
        warm, high, cold, low = re.fullmatch(
            r"(\w+) was warmest with (\d+) degrees and (\w+) coldest with (\d+) degrees\.", row["target"]
        ).groups()
        assert (int(high), int(low)) == (max(degrees), min(degrees))
        facts = [one for one in row["source"].split(". ") if "degrees" in one]
        assert any(warm in one and f"{high} degrees" in one for one in facts)
        assert any(cold in one and f"{low} degrees" in one for one in facts)
    for row in (row for row in rows if row["kind"] == "match"):
        first = re.search(r"(\w+) scored first", row["target"])[1]
        goals = [one for one in row["source"].split(". ") if "minutes" in one]
        assert first in goals[0] and all(first not in one for one in goals[1:])
        ours, theirs = map(int, re.search(r"(\d) to (\d)", row["target"]).groups())
        assert ours + theirs == len(goals) and ours >= theirs
        assert sum(row["target"].split()[0] in one for one in goals) == ours
    counts = Counter(len(re.findall("degrees", row["source"])) for row in rows if row["kind"] == "stations")
    assert counts.keys() == {3, 4, 5, 6}


def test_dates_and_digits_are_those_of_the_source(reports):
    for row in (row for row in reports["validation"] if row["task"] == "date"):
        day = date.fromisoformat(row["target"])
        assert str(day.year) in row["source"] and re.search(rf"\b{day.day}\b", row["source"])
        assert day.strftime("%b") in row["source"]
    for row in (row for row in reports["validation"] if row["task"] == "digits"):
        assert not re.search(r"\d", row["source"]) and len(re.findall(r"\d+", row["target"])) == 2
    assert [tiny_reports.spelled(n) for n in (0, 13, 20, 45, 99)] == [
        "zero", "thirteen", "twenty", "forty-five", "ninety-nine"
    ]  # fmt: skip


def test_the_set_is_read_by_name_with_its_tasks_and_groups():
    found = pairs.read_named("tiny_reports", (None, None), seed=0, flag="column")
    assert found.languages == ("source", "target") and found.counts["test"] == 1800
    first = next(found.test.take(1).as_numpy_iterator())
    assert first["task"] == b"summarize" and first["group"] == b"longer"
    with pytest.raises(UsageError, match="Expected a column of tiny_reports.*Did you mean 'source'.*'sorce'"):
        pairs.read_named("tiny_reports", ("sorce", None), seed=0, flag="column")


@pytest.mark.parametrize(
    ("name", "sides"),
    {
        "cnn_dailymail": ("article", "highlights"),
        "xsum": ("document", "summary"),
        "gigaword": ("document", "summary"),
        "samsum": ("dialogue", "summary"),
        "aeslc": ("email_body", "subject_line"),
        "multi_news": ("document", "summary"),
    }.items(),
)
def test_sets_of_summaries_in_the_catalogue_say_which_side_is_which(name, sides):
    assert pairs.languages_of(catalogue.find(name), flag="column") == sides


# Tables of pairs


def written(path, name: str, text: str):
    (path / name).write_text(text, encoding="utf-8")
    return str(path / name)


def rows(part) -> list[tuple[str, ...]]:
    return [tuple(row[name].decode() for name in ("source", "target", "task")) for row in part.as_numpy_iterator()]


def test_rows_of_a_table_are_pairs_and_all_of_one_source_stay_in_one_split(tmp_path):
    lines = ["Input,Output,task"] + [f'"text {n % 30}, long",answer {n},{"sum" if n % 2 else "cut"}' for n in range(60)]
    found = pair_tables.load(written(tmp_path, "rows.csv", "\n".join(lines)))
    splits = [rows(part) for part in (found.train, found.validation, found.test)]
    assert sum(map(len, splits)) == 60 and sum(found.counts.values()) == 60
    assert ("text 0, long", "answer 30", "cut") in splits[0] + splits[1] + splits[2]
    sources = [{row[0] for row in part} for part in splits]
    assert not sources[0] & sources[1] and not sources[0] & sources[2] and not sources[1] & sources[2]


def test_columns_may_be_named_and_a_task_may_be_missing(tmp_path):
    path = written(tmp_path, "rows.jsonl", "\n".join(f'{{"a": "x {n}", "b": "y {n}", "c": 1}}' for n in range(20)))
    found = rows(pair_tables.load(path, ("b", "a", None)).train)
    assert {row[2] for row in found} == {""} and all(row[0].startswith("y") and row[1].startswith("x") for row in found)
    with pytest.raises(UsageError, match="named source, input, document"):
        pair_tables.load(path)
    with pytest.raises(UsageError, match="--target_column.*Received: 'nothing'"):
        pair_tables.load(path, ("a", "nothing", None))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "rows.csv",
            "source,target\na,b\n,c\nd,\n",
            "Received 2 of 3 without: line 3 .empty source., line 4 .empty target.",
        ),
        ("rows.csv", "source,target,task\na,b,\n", "a source, a target and a task.*line 2 .empty task."),
        ("rows.jsonl", '{"source": "a", "target": 3}\nno json\n', "target is no text.*line 2 .not a JSON object."),
        ("rows.csv", "source,target\n", "Expected rows in rows.csv"),
        ("rows.csv", "source,target\na,b\n", "enough different sources"),
    ],
)
def test_bad_tables_are_told_by_their_lines(name, text, said, tmp_path):
    with pytest.raises(Failure, match=said):
        pair_tables.load(written(tmp_path, name, text))


def test_bad_rows_may_be_left_out(tmp_path):
    lines = ["source,target", *(f"a {n},b" for n in range(20)), ",c"]
    with pytest.warns(UserWarning, match="left out 1 rows of rows.csv: line 22"):
        found = pair_tables.load(written(tmp_path, "rows.csv", "\n".join(lines)), skip_bad=True)
    assert sum(found.counts.values()) == 20
