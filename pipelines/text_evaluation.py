"""What a classifier of texts is judged by beside its measures: TF-IDF, the texts it got most wrong, their lengths."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from pipelines import evaluation, report

Split = tuple[Sequence[str], np.ndarray]  # texts and labels

STRENGTHS = (1.0, 10.0, 100.0)  # C of the regression, chosen on the validation split
MOST = 20_000  # training texts


def tfidf_baseline(train: Split, validation: Split, test: Split, *, num_classes: int) -> dict[str, Any]:
    """Logistic regression on TF-IDF of words, marks and pairs of them, on the test split.

    The strength of its regularization is the one of `STRENGTHS` that is best on the validation split; it learns from at
    most `MOST` training texts.

    Args:
        train: texts and labels (n,).
        validation: the same, to choose on.
        test: the same, to be judged on.
        num_classes: k.

    Returns:
        `evaluation.measures`, the model in words, `C`, its accuracy on the validation split, and that of always
        answering the commonest class.
    """
    x, y = train[0][:MOST], train[1][:MOST]
    terms = TfidfVectorizer(
        token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True, max_features=200_000, lowercase=True
    )
    weights = terms.fit_transform(x)
    held = terms.transform(validation[0])
    found = [LogisticRegression(C=strength, max_iter=1000).fit(weights, y) for strength in STRENGTHS]
    scores = [regression.score(held, validation[1]) for regression in found]
    best = int(np.argmax(scores))
    probabilities = np.zeros((len(test[1]), num_classes))
    probabilities[:, found[best].classes_] = found[best].predict_proba(terms.transform(test[0]))
    return {
        "model": "logistic regression on TF-IDF of words and pairs of words",
        "C": STRENGTHS[best],
        **evaluation.measures(test[1], probabilities),
        "validation_accuracy": round(float(scores[best]), 6),
        "majority_accuracy": round(float(np.mean(test[1] == np.bincount(y).argmax())), 6),
    }


def most_wrong(
    texts: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], path: Path, count=14
) -> Path:
    """A picture of the texts whose true class got the least probability, with the truth and the answer.

    Args:
        texts: n raw texts; of each, the first three lines of a hundred characters are shown.
        labels: true classes (n,).
        probabilities: (n, k).
        classes: names of the k classes.
        path: where the PNG goes.
        count: how many.
    """
    of_truth = probabilities[np.arange(len(labels)), labels]
    order = np.argsort(of_truth, kind="stable")[:count]
    figure, ((axis,),) = report.canvas(11, 0.6 + 0.75 * len(order))
    axis.set(xlim=(0, 1), ylim=(len(order), 0))
    axis.axis("off")
    axis.set_title("test texts with the least probability for their true class (red: wrong answers)", fontsize=11)
    for row, i in enumerate(order):
        answer = int(probabilities[i].argmax())
        told = f"{classes[labels[i]]} {of_truth[i]:.0%}\n→ {classes[answer]} {probabilities[i, answer]:.0%}"
        colour = "firebrick" if answer != labels[i] else "black"
        shown = textwrap.shorten(printable(texts[i]), 300, placeholder=" …") or "(empty)"
        style = {"va": "center", "fontsize": 8, "parse_math": False}
        axis.text(0.0, row + 0.5, told, color=colour, **style)
        axis.text(0.2, row + 0.5, textwrap.fill(shown, 100), **style)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # drawn as a box
        return report.save(figure, path)


def printable(text: str) -> str:
    """A text without what cannot be drawn."""
    return "".join(c if c.isprintable() else " " for c in text)


def length_histogram(lengths: Mapping[str, np.ndarray], max_length: int, path: Path) -> Path:
    """How many tokens the texts of each split have, as a share of the split, and where they are cut."""
    figure, ((axis,),) = report.canvas(6, 3.6)
    top = max(int(np.quantile(found, 0.995)) for found in lengths.values()) + 1
    edges = np.unique(np.linspace(0, max(top, 2), 41).astype(int))
    for split, found in lengths.items():
        share = np.full(len(found), 1 / len(found))
        axis.hist(np.minimum(found, edges[-1]), edges, weights=share, histtype="step", label=split)
    if max_length <= edges[-1]:
        axis.axvline(max_length, color="firebrick", linestyle=":", label="cut here")
    axis.set(xlabel="tokens (the longest 0.5 % in the last bar)", ylabel="share of the texts", title="lengths")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    axis.legend()
    return report.save(figure, path)


def pictures(
    texts: Sequence[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    lengths: Mapping[str, np.ndarray],
    spec: Mapping[str, Any],
    plots: Path,
) -> None:
    """Confusion matrix, lengths, and the test texts whose true class got the least probability."""
    report.confusion(labels, probabilities.argmax(-1), spec["classes"], plots / "confusion_matrix.png")
    length_histogram(lengths, spec["max_length"], plots / "lengths.png")
    most_wrong(texts, labels, probabilities, spec["classes"], plots / "most_wrong.png")


def described(spec: Mapping[str, Any]) -> Sequence[str]:
    """What the data are, in two lines."""
    counts = ", ".join(f"{count:,} {part}" for part, count in spec["counts"].items())
    state, lengths = spec["tokenizer"], spec["lengths"]
    cut = f"; {spec['cut']:,} training texts are longer and cut" if spec["cut"] else ""
    return (
        f"data: {spec['dataset']}: {counts}; {len(spec['classes'])} classes",
        f"tokens: {state['kind']}, {state['vocab_size']:,} different ones; {lengths['mean']:g} a text, "
        f"{lengths['longest']:,} at most, of which the model sees {spec['max_length']:,}{cut}",
    )
