"""What a classifier is judged by: measures, an honest baseline, and the pictures it got most wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipelines import report


def measures(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy, macro F1, log loss and, with more than five classes, top-5 accuracy.

    Args:
        labels: true classes, (n,) integers.
        probabilities: of each class, (n, k).
    """
    probabilities = probabilities.astype("float64")
    probabilities /= probabilities.sum(-1, keepdims=True)  # float32 sums to one in six digits only
    found = probabilities.argmax(-1)
    known = np.arange(probabilities.shape[1])
    there = np.unique(labels)
    result = {
        "accuracy": metrics.accuracy_score(labels, found),
        "balanced_accuracy": metrics.recall_score(labels, found, labels=there, average="macro", zero_division=0),
        "macro_f1": metrics.f1_score(labels, found, labels=there, average="macro", zero_division=0),
        "log_loss": metrics.log_loss(labels, probabilities, labels=known),
    }
    if len(known) > 5:
        result["top_5_accuracy"] = metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=known)
    return {name: round(float(item), 6) for name, item in result.items()}


def linear_baseline(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], num_classes: int, what: str
) -> dict[str, Any]:
    """Logistic regression on standardized features, and always answering the commonest class, on the test split.

    Args:
        train: features (n, d) and labels (n,).
        test: the same of the test split.
        num_classes: k.
        what: the features in words, for the report.
    """
    (x, y), (test_x, test_y) = train, test
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, C=0.1)).fit(x, y)
    probabilities = np.zeros((len(test_y), num_classes))
    probabilities[:, regression.classes_] = regression.predict_proba(test_x)
    commonest = np.bincount(y).argmax()
    return {
        "model": f"logistic regression on {what}",
        **measures(test_y, probabilities),
        "majority_accuracy": round(float(np.mean(test_y == commonest)), 6),
    }


def most_wrong(
    images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], path: Path
) -> None:
    """Draw pictures with the truth and the answer below each other.

    Args:
        images: uint8 pixels (n, h, w, c).
        labels: true classes (n,).
        probabilities: (n, k).
        classes: names of the k classes.
        path: where the PNG goes.
    """
    answer = probabilities.argmax(-1)
    of_truth = probabilities[np.arange(len(labels)), labels]
    report.image_grid(
        images,
        [
            f"{classes[truth]} {p:.0%}\n→ {classes[found]} {row[found]:.0%}"
            for truth, p, found, row in zip(labels, of_truth, answer, probabilities)
        ],
        path,
        heading="test pictures with the least probability for their true class (red: wrong answers)",
        wrong=set(np.flatnonzero(answer != labels).tolist()),
    )
