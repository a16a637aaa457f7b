"""What texts that answer texts are judged by: ROUGE, chrF and exact match of each task, beside honest baselines."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sacrebleu
from rouge_score import rouge_scorer

from pipelines import report, translation_evaluation

ROUGES = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}  # the library's names and ours
LEADS = (1, 2, 3)  # sentences
Row = Mapping[str, Any]  # task, group, source, text (the source without its prefix), truth, answers


@functools.cache
def scorer() -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(list(ROUGES), use_stemmer=True)


def measures(truths: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """ROUGE and chrF, 0 to 100, and exact match, the share of answers that equal the reference.

    ROUGE is the mean over the texts of F1 of words (1), of pairs of words (2) and of the longest common subsequence
    (L), with Porter's stems, by the library rouge-score; it knows the letters a to z and digits alone.

    Args:
        truths: n references.
        answers: n texts.

    Reference: Lin 2004, "ROUGE: a package for automatic evaluation of summaries", sections 2 and 3; Popović 2015, chrF.
    """
    names = [*ROUGES.values(), "chrf", "exact_match"]
    if not len(truths):
        return dict.fromkeys(names, 0.0)
    found = [scorer().score(truth, answer) for truth, answer in zip(truths, answers)]
    rouge = {ours: 100 * float(np.mean([one[theirs].fmeasure for one in found])) for theirs, ours in ROUGES.items()}
    chrf = sacrebleu.CHRF().corpus_score(answers, [list(truths)]).score
    exact = float(np.mean([truth == answer for truth, answer in zip(truths, answers)]))
    return {name: round(one, 4) for name, one in (rouge | {"chrf": chrf, "exact_match": exact}).items()}


def bare(rows: Sequence[Row], spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows with `text`, the source without the prefix of its task."""
    return [{**row, "text": row["source"][len(spec["prefixes"].get(row["task"], "")) :]} for row in rows]


def lead(text: str, count: int) -> str:
    """The first sentences of a text, as far as full stops, question and exclamation marks before a space tell."""
    return " ".join(re.split(r"(?<=[.!?])\s+", text.strip())[:count])


def nearest(train: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """The target of the nearest training source of the same task, by TF-IDF of words and pairs of words."""
    found = [""] * len(rows)
    for task in {row["task"] for row in rows}:
        known = [row for row in train if row["task"] == task] or list(train)
        places = [i for i, row in enumerate(rows) if row["task"] == task]
        pairs = [row["text"] for row in known], [row["truth"] for row in known]
        near = translation_evaluation.nearest(pairs, [rows[i]["text"] for i in places], by="word")
        for i, answer in zip(places, near):
            found[i] = answer
    return found


def baselines(train: Sequence[Row], validation: Sequence[Row], test: Sequence[Row]) -> dict[str, list[str]]:
    """{what answers: its answers to the test rows}; the one that is best on validation is first.

    - the first k sentences of the source, with the k of `LEADS` that has the best ROUGE-L on validation
    - the target of the nearest training source of the same task
    """

    def judged(answers: Sequence[str]) -> float:
        return measures([row["truth"] for row in validation], answers)["rouge_l"]

    leads = {k: judged([lead(row["text"], k) for row in validation]) for k in LEADS}
    best = max(leads, key=lambda k: (leads[k], -k))
    what = "first sentence" if best == 1 else f"first {best} sentences"
    found = {what: (leads[best], [lead(row["text"], best) for row in test])}
    near = nearest(train, [*validation, *test])
    found["nearest training source"] = judged(near[: len(validation)]), near[len(validation) :]
    return {name: answers for name, (_, answers) in sorted(found.items(), key=lambda item: -item[1][0])}


def of_rows(
    rows: Sequence[Row], chosen: Sequence[bool] | np.ndarray, answers: Sequence[str] | None = None
) -> dict[str, float]:
    """`measures` of the chosen rows: of their best answers, or of other answers to them."""
    kept = np.flatnonzero(chosen)
    given = [rows[i]["answers"][0] if answers is None else answers[i] for i in kept]
    return measures([rows[i]["truth"] for i in kept], given)


def of_part(
    rows: Sequence[Row], chosen: Sequence[bool] | np.ndarray, beside: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """How many rows are chosen, their measures, and those of the baselines on them."""
    others = [{"model": name, **of_rows(rows, chosen, answers)} for name, answers in beside.items()]
    return {"examples": int(np.sum(chosen)), **of_rows(rows, chosen), "baselines": others}


def bars(parts: Mapping[str, Mapping[str, Any]], model: str, path: Path) -> Path:
    """ROUGE-L of each part of the test split, the model's beside those of the baselines.

    Args:
        parts: {name: of `of_part`}.
        model: its name.
        path: where the PNG goes.
    """
    figure, ((axis,),) = report.canvas(max(5.0, 1.6 * len(parts) + 2.5), 3.8)
    names = [model, *(one["model"] for one in next(iter(parts.values()))["baselines"])]
    wide = 0.8 / len(names)
    for k, name in enumerate(names):
        heights = [([part, *part["baselines"]][k])["rouge_l"] for part in parts.values()]
        drawn = axis.bar(np.arange(len(parts)) + (k - (len(names) - 1) / 2) * wide, heights, wide, label=name)
        axis.bar_label(drawn, fmt="%.0f", fontsize=8)
    axis.set_xticks(range(len(parts)), parts)
    axis.set(ylim=(0, 112), ylabel="ROUGE-L", title="test split: the model beside its baselines")
    axis.set_yticks(range(0, 101, 20))
    axis.grid(axis="y", alpha=0.25)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(names), frameon=False)
    figure.tight_layout()
    return report.save(figure, path)


def pictures(found: Mapping[str, Any], rows: Sequence[Row], model: str, folder: Path) -> None:
    """`plots/rouge.png`, and `examples.md` with the answers that are furthest from the truth and a fair sample.

    Args:
        found: `test`, `baseline`, `baselines`, `tasks` and `groups` of `metrics.json`.
        rows: of the test split.
        model: the architecture.
        folder: the run folder.
    """
    whole = {"examples": len(rows), **found["test"], "baselines": [found["baseline"], *found["baselines"]]}
    bars(found["tasks"] | found["groups"] or {"test": whole}, model, folder / "plots/rouge.png")
    shown = [{**row, "group": f"{row['task']} {row['group']}".strip()} for row in rows]
    translation_evaluation.examples_page(shown, folder / "examples.md")
