"""What translations are judged by: measures, honest baselines, alignment pictures and tables of examples."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sacrebleu

from pipelines import report

MOST = 20_000  # training pairs that the nearest-neighbour baseline looks at


def measures(truths: Sequence[str], answers: Sequence[str], tokenize: str = "13a") -> dict[str, float]:
    """Exact match (share of answers that equal the reference), corpus BLEU and chrF (0 to 100) by sacrebleu.

    Args:
        truths: n references, one for each source.
        answers: n translations.
        tokenize: sacrebleu's tokenizer for BLEU: `13a`, `intl`, `char`, `zh`, …

    Reference: Papineni et al. 2002 (BLEU), Popović 2015 (chrF), Post 2018 (sacrebleu).
    """
    if not len(truths):
        return {"exact_match": 0.0, "bleu": 0.0, "chrf": 0.0}
    return {
        "exact_match": round(float(np.mean([truth == answer for truth, answer in zip(truths, answers)])), 6),
        "bleu": round(bleu(tokenize).corpus_score(answers, [list(truths)]).score, 4),
        "chrf": round(sacrebleu.CHRF().corpus_score(answers, [list(truths)]).score, 4),
    }


def bleu(tokenize: str) -> sacrebleu.BLEU:
    """sacrebleu's measure; `force` keeps it from warning of texts that look tokenized, as dates do."""
    return sacrebleu.BLEU(tokenize=tokenize, force=True)


def signature(tokenize: str) -> str:
    """What to cite beside a BLEU score."""
    measure = bleu(tokenize)
    measure.corpus_score(["a"], [["a"]])
    return str(measure.get_signature())


def nearest(train: tuple[Sequence[str], Sequence[str]], sources: Sequence[str], by: str = "char") -> list[str]:
    """The target of the nearest training source by TF-IDF, of runs of 1 to 4 characters or of words and pairs of them.

    Args:
        train: sources and targets, of which the first `MOST` are looked at.
        sources: n texts.
        by: "char" or "word".
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    runs: dict[str, Any] = {"ngram_range": (1, 4)}
    if by == "word":
        runs = {"ngram_range": (1, 2), "token_pattern": r"\w+|[^\w\s]"}
    vectorizer = TfidfVectorizer(analyzer=by, dtype=np.float32, **runs)
    known = vectorizer.fit_transform(train[0][:MOST])  # (n, features), rows of length one
    found: list[str] = []
    for start in range(0, len(sources), 256):
        likeness = vectorizer.transform(sources[start : start + 256]) @ known.T  # (b, n)
        found += [train[1][i] for i in np.asarray(likeness.argmax(axis=1)).ravel()]
    return found


def by_rule(sources: Sequence[str]) -> list[str]:
    """Dates as `dateutil` reads them, the day before the month; "" where it gives up. It knows English names alone."""
    from dateutil import parser

    def read(text: str) -> str:
        try:
            return parser.parse(text, dayfirst=True).date().isoformat()
        except (ValueError, OverflowError, TypeError):
            return ""

    return [read(text) for text in sources]


def baselines(train: tuple[Sequence[str], Sequence[str]], sources: Sequence[str]) -> dict[str, list[str]]:
    """{what answers: its answers}; the first is the one to beat.

    `dateutil` is among them where the training targets are ISO 8601 dates.

    Args:
        train: sources and targets of the training split; the nearest one is looked for among the first `MOST`.
        sources: n texts to translate.
    """
    commonest = Counter(train[1]).most_common(1)[0][0]
    found = {
        "nearest training source": nearest(train, sources),
        "source as it is": list(sources),
        "commonest target": [commonest] * len(sources),
    }
    if all(re.fullmatch(r"\d{4}-\d\d-\d\d", target) for target in train[1][:100]):
        found["dateutil"] = by_rule(sources)
    return found


def of_rows(
    rows: Sequence[dict[str, Any]],
    tokenize: str,
    *,
    chosen: Sequence[bool] | np.ndarray | None = None,
    answers: Sequence[str] | None = None,
) -> dict[str, float]:
    """`measures` of rows with `truth` and `answers` (the first counts), or of other answers to them.

    Args:
        rows: n pairs.
        tokenize: sacrebleu's tokenizer for BLEU.
        chosen: (n,), which of them count; default: all.
        answers: n texts, instead of those of the rows.
    """
    kept = [i for i in range(len(rows)) if chosen is None or chosen[i]]
    given = [rows[i]["answers"][0] if answers is None else answers[i] for i in kept]
    return measures([rows[i]["truth"] for i in kept], given, tokenize)


def of_group(rows: Sequence[dict[str, Any]], group: str, tokenize: str, beside: dict[str, list[str]]) -> dict[str, Any]:
    """How many rows a group has, its measures, and those of the baselines on it."""
    chosen = np.array([row["group"] == group for row in rows])
    others = [
        {"model": name, **of_rows(rows, tokenize, chosen=chosen, answers=answers)} for name, answers in beside.items()
    ]
    return {"examples": int(chosen.sum()), **of_rows(rows, tokenize, chosen=chosen), "baselines": others}


def alignments(pictures: Iterable[tuple[str, Sequence[str], Sequence[str], np.ndarray]], path: Path) -> Path:
    """Attention of every token of a translation on the tokens of its source.

    Args:
        pictures: (title, source tokens (s,), target tokens (t,), weights (t, s)).
        path: where the PNG goes.
    """
    shown = list(pictures)
    columns = 2
    rows = max(1, -(-len(shown) // columns))
    wide = max((len(sources) for _, sources, _, _ in shown), default=10)
    tall = max((len(targets) for _, _, targets, _ in shown), default=10)
    size = (min(15.0, 0.22 * wide + 1.2), min(9.0, 0.24 * tall + 1.0))
    figure, axes = report.canvas(size[0] * columns, size[1] * rows, rows, columns)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, sources, targets, weights) in zip(axes.flat, shown):
        axis.axis("on")
        axis.imshow(weights, cmap="Greys", vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(range(len(sources)), sources, fontsize=8)
        axis.set_yticks(range(len(targets)), targets, fontsize=8)
        axis.set_title(title, fontsize=9)
        for label in axis.get_xticklabels():
            label.set_rotation(90 if len(label.get_text()) > 2 else 0)
    figure.suptitle("attention of each token of the answer (rows) on the source (columns)", fontsize=11)
    figure.tight_layout()
    return report.save(figure, path)


def drawable(text: str) -> bool:
    """Whether the font of the pictures has all characters of a text; white space needs none."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    known = font.get_charmap()
    return all(character.isspace() or ord(character) in known for character in text)


def examples_page(rows: Sequence[dict[str, Any]], path: Path, *, worst: int = 20, samples: int = 20) -> Path:
    """`examples.md`: the answers of the test split that are furthest from the truth, and a fair sample of all.

    Args:
        rows: of the test split: `group`, `source`, `truth`, `answers` (n best) and `scores`.
        path: where the page goes.
    """
    measure = sacrebleu.CHRF()
    wrong = [row for row in rows if row["answers"][0] != row["truth"]]
    likeness = [measure.sentence_score(row["answers"][0], [row["truth"]]).score for row in wrong]
    order = np.argsort(likeness, kind="stable")[:worst]
    step = max(1, len(rows) // samples)

    def table(chosen: Iterable[dict[str, Any]]) -> list[str]:
        lines = ["| group | source | truth | answer | score | second best |", "| --- | --- | --- | --- | --- | --- |"]
        for row in chosen:
            second = row["answers"][1] if len(row["answers"]) > 1 else ""
            cells = [row["group"], row["source"], row["truth"], row["answers"][0], f"{row['scores'][0]:.3f}", second]
            cells = [textwrap.shorten(cell.replace("|", "\\|"), 600, placeholder=" …") for cell in cells]
            lines.append(f"| {' | '.join(cells)} |")
        return lines

    lines = [
        "# Examples of the test split",
        "",
        f"{len(rows) - len(wrong)} of {len(rows)} answers equal the truth.",
        "",
        "## Furthest from the truth, by chrF",
        "",
        *table(wrong[i] for i in order),
        "",
        f"## Every {step}th" if step > 1 else "## All",
        "",
        *table(rows[::step][:samples]),
    ]
    path.write_text("\n".join(lines) + "\n")
    return path
