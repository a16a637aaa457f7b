"""Learning runs of text to text: the numbers that its docstring promises. Minutes; make test-slow."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from pipelines import text_to_text

pytestmark = pytest.mark.slow


def test_three_tasks_are_learned_at_once_within_5_minutes_far_above_the_baselines(tmp_path):
    found, seconds = [], []
    for seed in range(3):
        begin = time.monotonic()
        folder = text_to_text.main(text_to_text.Config(seed=seed, out=str(tmp_path)))
        seconds.append(time.monotonic() - begin)
        found.append(json.loads((folder / "metrics.json").read_text()))
    rouge = [one["test"]["rouge_l"] for one in found]
    beside = [one["baseline"]["rouge_l"] for one in found]
    tasks = {name: [one["tasks"][name]["exact_match"] for one in found] for name in found[0]["tasks"]}
    print(f"ROUGE-L {rouge}, baseline {beside}, exact match {tasks}, seconds {np.round(seconds, 1)}")
    assert np.mean(rouge) >= 90
    assert np.mean(beside) < 60
    assert max(seconds) < 300
