"""Learning runs of token_classification: the numbers that its docstring promises, over three seeds. Minutes."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from pipelines import token_classification as task

pytestmark = pytest.mark.slow
PROMISES = {"lstm_tagger": 0.94, "bert_token_classifier": 0.92}
FLAGS = {
    "bert_token_classifier": {
        "model_args": {"positions": "rotary"},
        "learning_rate": 1e-3,
        "batch_size": 32,
        "epochs": 8,
    }
}


@pytest.mark.parametrize("model", task.MODELS)
def test_every_architecture_beats_both_taggers_without_a_network(model, tmp_path):
    found, seconds = [], []
    for seed in range(3):
        begin = time.monotonic()
        folder = task.main(task.Config(model=model, seed=seed, out=str(tmp_path), **FLAGS.get(model, {})))
        seconds.append(time.monotonic() - begin)
        found.append(json.loads((folder / "metrics.json").read_text()))
    f1 = [metrics["test"]["f1"] for metrics in found]
    often = [metrics["baseline"]["f1"] for metrics in found]
    linear = [metrics["baselines"][0]["f1"] for metrics in found]
    groups = {g: [metrics["test"]["groups"][g]["f1"] for metrics in found] for g in ("seen", "unseen", "ambiguous")}
    print(f"{model}: {f1}, {groups}, commonest tag {often}, linear {linear}, seconds {np.round(seconds, 1)}")
    assert np.mean(f1) >= PROMISES[model]
    assert np.mean(f1) >= np.mean(linear) + 0.03 >= np.mean(often) + 0.4
    assert np.mean(groups["ambiguous"]) >= 0.95  # where the neighbours of a word tell nothing
    assert max(seconds) < 300
