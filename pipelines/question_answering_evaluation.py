"""What answers to questions are judged by: exact match and F1 of SQuAD, the threshold of no answer, pictures."""

from __future__ import annotations

import re
import string
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import report
from pipelines.datasets.stream import InMemory

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
BINS = 5  # of the lengths of passages


def normalized(text: str) -> str:
    """An answer in small letters, without punctuation and English articles, its words one space apart.

    Reference: Rajpurkar et al. 2016, section 6.1.
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact(truth: str, answer: str) -> float:
    return float(normalized(truth) == normalized(answer))


def f1(truth: str, answer: str) -> float:
    """The harmonic mean of the shares of words that an answer has in common with the truth.

    Where one of them has no word it is 1 if both have none. Reference: Rajpurkar et al. 2016, section 6.1.
    """
    true, given = normalized(truth).split(), normalized(answer).split()
    if not true or not given:
        return float(true == given)
    common = sum((Counter(true) & Counter(given)).values())
    return 2 * common / (len(true) + len(given))


def of_each(truths: Sequence[Sequence[str]], answers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Exact match and F1 (n,) of answers, each by the truth that suits it best; no truth means no answer, ""."""
    pairs = [(one or ("",), answer) for one, answer in zip(truths, answers, strict=True)]
    scores = [[max(score(truth, answer) for truth in one) for one, answer in pairs] for score in (exact, f1)]
    return np.array(scores[0], "float64"), np.array(scores[1], "float64")


def measures(truths: Sequence[Sequence[str]], answers: Sequence[str]) -> dict[str, float]:
    """`exact_match` and `f1`, means over the questions; where some have no answer also those of the others, and
    `no_answer_accuracy`, the share of questions for which it is rightly said whether there is an answer.

    Args:
        truths: n times the texts that are right, none where there is no answer.
        answers: n texts, "" for no answer.
    """
    if not len(truths):
        return {"exact_match": 0.0, "f1": 0.0}
    match, overlap = of_each(truths, answers)
    found = {"exact_match": match.mean(), "f1": overlap.mean()}
    some = np.array([bool(one) for one in truths])
    if not some.all():
        if some.any():
            found |= {"answerable_exact_match": match[some].mean(), "answerable_f1": overlap[some].mean()}
        found["no_answer_accuracy"] = np.mean([bool(answer) == have for answer, have in zip(answers, some)])
    return {name: round(float(value), 6) for name, value in found.items()}


def of_rows(rows: Sequence[Mapping[str, Any]], given: Sequence[str] | None = None) -> dict[str, float]:
    """Measures of rows, or of other answers to them."""
    return measures([row["truths"] for row in rows], given or [row["answer"] for row in rows])


def of_group(rows: Sequence[Mapping[str, Any]], group: str) -> dict[str, Any]:
    """How many rows a group has, its measures, and those of the baseline on it."""
    chosen = [row for row in rows if row["group"] == group]
    return {
        "examples": len(chosen),
        **of_rows(chosen),
        "baseline": of_rows(chosen, [row["baseline"] for row in chosen]),
    }


def answered_rows(found: Mapping[str, np.ndarray], part: InMemory) -> list[dict[str, Any]]:
    """A row for each question of a split: what it is, what is right, and the best span.

    Args:
        found: what the model answers, as arrays.
        part: of `pipelines.datasets.questions`.
    """

    def strings(values: Iterable[bytes]) -> list[str]:
        return [one.decode("utf-8", "replace") for one in values]

    columns: dict[str, list[Any]] = {
        name: strings(part.examples[name].numpy()) for name in ("question", "context", "group")
    }
    columns["truths"] = [strings(row) for row in part.examples["answer"].to_list()]
    columns["best"] = strings(found["answers"][:, 0])
    columns |= {name: found[f"{name}s"][:, 0].tolist() for name in ("score", "start", "end")}
    columns |= {name: found[name].tolist() for name in ("margin", "no_answer_probability")}
    return [dict(zip(columns, row)) for row in zip(*columns.values(), strict=True)]


def decided_rows(rows: list[dict[str, Any]], config: Any) -> list[dict[str, Any]]:
    """Rows with `answer`, "" where the threshold says that there is none, and whether it is `right`."""
    for row in rows:
        silent = config.unanswerable and row["margin"] <= (config.no_answer_threshold or 0.0)
        row["answer"] = "" if silent else row["best"]
        if silent:
            row |= {"score": row["no_answer_probability"], "start": 0, "end": 0}
        row["right"] = bool(of_each([row["truths"]], [row["answer"]])[0][0])
    return rows


def best_threshold(truths: Sequence[Sequence[str]], answers: Sequence[str], margins: np.ndarray) -> float:
    """The difference of the best span's score and that of no answer above which answering gives the best F1.

    Args:
        truths: n times the texts that are right.
        answers: the best spans.
        margins: (n,), the differences.

    Reference: Devlin et al. 2019, section 4.3: τ, chosen on the development set.
    """
    silent = of_each(truths, [""] * len(truths))[1]
    order = np.argsort(-margins, kind="stable")
    gains = (of_each(truths, answers)[1] - silent)[order]
    total = np.concatenate([[0.0], np.cumsum(gains)])  # of answering the first k
    edges = margins[order].astype("float64")
    middles = np.concatenate([[edges[0] + 1], (edges[1:] + edges[:-1]) / 2, [edges[-1] - 1]])
    apart = np.concatenate([[True], edges[1:] < edges[:-1], [True]])  # a threshold is between different margins
    return round(float(middles[np.argmax(np.where(apart, total, -np.inf))]), 4)


# Pictures


def by_group(rows: Sequence[Mapping[str, Any]], beside: Sequence[str], name: str, path: Path) -> Path:
    """Exact match and F1 of the groups of a split, or else by the length of the passage, beside a baseline's F1.

    Args:
        rows: `truths`, `answer`, `context` and `group` of n questions.
        beside: the answers of the baseline.
        name: what it is called.
        path: where the PNG goes.
    """
    groups = [row["group"] for row in rows]
    title = "test questions by group"
    if len(set(groups)) < 2:
        lengths = np.array([len(row["context"]) for row in rows])
        edges = np.unique(np.quantile(lengths, np.linspace(0, 1, BINS + 1)[1:-1]).astype(int))
        names = [f"up to {edge}" for edge in edges] + [f"above {edges[-1]}" if len(edges) else "all"]
        groups = [names[int(np.searchsorted(edges, length))] for length in lengths]
        title, order = "test questions by the characters of the passage", [one for one in names if one in groups]
    else:
        order = sorted(set(groups))
    match, overlap = of_each([row["truths"] for row in rows], [row["answer"] for row in rows])
    other = of_each([row["truths"] for row in rows], beside)[1]
    figure, ((axis,),) = report.canvas(max(5.0, 1.5 * len(order) + 1.5), 3.6)
    at, chosen = np.arange(len(order)), np.array(groups)
    series = (("exact match", match, "steelblue"), ("F1", overlap, "lightsteelblue"), (f"F1, {name}", other, "silver"))
    for place, (label, values, colour) in enumerate(series):
        heights = [values[chosen == group].mean() for group in order]
        bars = axis.bar(at + (place - 1) * 0.27, heights, 0.25, label=label, color=colour)
        axis.bar_label(bars, [f"{height:.0%}" for height in heights], fontsize=7)
    axis.set_xticks(at, [f"{group}\n{(chosen == group).sum()} questions" for group in order], fontsize=8)
    axis.set(ylim=(0, 1.25), title=title)
    axis.legend(fontsize=8, ncols=3, loc="upper center")
    return report.save(figure, path)


def passages(rows: Sequence[Mapping[str, Any]], path: Path, count: int = 6, width: int = 105) -> Path:
    """A picture of test passages with the model's answer in colour, right ones and wrong ones.

    Args:
        rows: of n questions: `question`, `context`, `truths`, `answer`, `score`, `start`, `end`, `right`.
        path: where the PNG goes.
        count: how many passages, half of them answered wrongly if there are so many.
        width: characters of a line.
    """
    wrong = [row for row in rows if not row["right"]][: count // 2]
    right = [row for row in rows if row["right"]]
    shown = [*spread(right, count - len(wrong)), *wrong]
    lines: list[list[tuple[str, str]]] = []  # of parts with their colour
    for row in shown:
        colour = "seagreen" if row["right"] else "firebrick"
        answer = row["answer"] or "(no answer)"
        truth = "" if row["right"] else f"   truth: {' / '.join(dict.fromkeys(row['truths'])) or '(no answer)'}"
        lines.append([(f"{row['question']}  →  {answer} ({row['score']:.0%}){truth}"[: width + 10], colour)])
        lines += coloured(row["context"], row["start"], row["end"], colour, width)
        lines.append([])
    figure, ((axis,),) = report.canvas(0.085 * width, 0.6 + 0.19 * len(lines))
    axis.set(xlim=(0, width), ylim=(len(lines), 0))
    axis.axis("off")
    axis.set_title("test questions, and where the model found its answers (red: wrong)", fontsize=11)
    for number, line in enumerate(lines):
        for place, (_, colour) in enumerate(line):  # each over spaces in place of the others, so that all are in line
            drawn = "".join(text if i == place else " " * len(text) for i, (text, _) in enumerate(line))
            weight = "normal" if colour == "black" else "bold"
            style = {"family": "monospace", "fontsize": 8, "va": "center", "parse_math": False}
            axis.text(0, number + 0.5, drawn.rstrip(), color=colour, weight=weight, **style)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # drawn as a box
        return report.save(figure, path)


def spread(rows: Sequence[Any], count: int) -> list[Any]:
    """`count` rows, evenly spaced."""
    return [rows[i * len(rows) // count] for i in range(count)] if len(rows) > count else list(rows)


def coloured(context: str, start: int, end: int, colour: str, width: int, most: int = 8) -> list[list[tuple[str, str]]]:
    """The lines of a passage around a span, in parts of which each has its colour."""
    context = "".join(c if c.isprintable() else " " for c in context)
    lines, begin = [], 0
    for line in textwrap.wrap(context, width, drop_whitespace=False, replace_whitespace=False, expand_tabs=False):
        cuts = [min(max(place - begin, 0), len(line)) for place in (start, end)]
        parts = [(line[: cuts[0]], "black"), (line[cuts[0] : cuts[1]], colour), (line[cuts[1] :], "black")]
        lines.append((begin, [part for part in parts if part[0]]))
        begin += len(line)
    there = next((i for i, (place, _) in enumerate(lines) if place <= start < place + width), 0)
    first = max(0, min(there - most // 2, len(lines) - most))
    return [parts for _, parts in lines[first : first + most]]
