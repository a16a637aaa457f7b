"""Learning runs of question_answering: the numbers that its docstring promises, over three seeds. Minutes."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from pipelines import question_answering

pytestmark = pytest.mark.slow


def test_f1_of_unseen_people_and_wordings_is_far_above_what_overlap_of_words_finds(tmp_path):
    found, seconds = [], []
    for seed in range(3):
        begin = time.monotonic()
        folder = question_answering.main(question_answering.Config(seed=seed, out=str(tmp_path)))
        seconds.append(time.monotonic() - begin)
        found.append(json.loads((folder / "metrics.json").read_text()))
    groups = {name: [one["groups"][name]["f1"] for one in found] for name in found[0]["groups"]}
    overlap = [one["baseline"]["f1"] for one in found]
    print(f"F1 {[one['test']['f1'] for one in found]}, {groups}, overlap {overlap}, seconds {np.round(seconds, 1)}")
    assert np.mean([one["test"]["f1"] for one in found]) >= 0.95
    assert np.mean(groups["people"]) >= 0.95 and np.mean(groups["wording"]) >= 0.9
    assert np.mean(overlap) < 0.55
    assert max(seconds) < 300


def test_it_learns_when_there_is_no_answer(tmp_path):
    config = question_answering.Config(dataset="tiny_questions/unanswerable", unanswerable=True, out=str(tmp_path))
    metrics = json.loads((question_answering.main(config) / "metrics.json").read_text())
    print(metrics["test"], metrics["baseline"])
    assert metrics["test"]["f1"] >= 0.8 and metrics["test"]["no_answer_accuracy"] >= 0.85
    assert metrics["baseline"]["f1"] < 0.5
