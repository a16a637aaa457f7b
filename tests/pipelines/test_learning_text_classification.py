"""Learning runs of text_classification: the numbers that its docstring promises, over three seeds. Minutes."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from pipelines import text_classification

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("model", text_classification.MODELS)
def test_every_architecture_beats_tfidf_on_reviews_by_far_more_than_five_points(model, tmp_path):
    found, seconds = [], []
    for seed in range(3):
        begin = time.monotonic()
        folder = text_classification.main(text_classification.Config(model=model, seed=seed, out=str(tmp_path)))
        seconds.append(time.monotonic() - begin)
        found.append(json.loads((folder / "metrics.json").read_text()))
    accuracies = [metrics["test"]["accuracy"] for metrics in found]
    linear = [metrics["baseline"]["accuracy"] for metrics in found]
    print(f"{model}: {accuracies}, TF-IDF {linear}, seconds {np.round(seconds, 1)}")
    assert np.mean(accuracies) >= np.mean(linear) + 0.05
    assert np.mean(accuracies) >= PROMISES[model]
    assert max(seconds) < 90


PROMISES = {"simple_rnn": 0.95, "lstm": 0.97, "gru": 0.97, "text_cnn": 0.95, "text_transformer": 0.75}


def test_on_snippets_a_network_comes_near_tfidf_which_is_hard_to_beat_there(tmp_path):
    config = text_classification.Config(dataset="tiny_snippets", model="text_cnn", epochs=8, out=str(tmp_path))
    metrics = json.loads((text_classification.main(config) / "metrics.json").read_text())
    print(metrics["test"], metrics["baseline"])
    assert metrics["test"]["accuracy"] >= 0.78
    assert metrics["test"]["accuracy"] >= metrics["baseline"]["accuracy"] - 0.06
