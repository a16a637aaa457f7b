"""Learning runs of translation: the numbers that its docstring promises, over three seeds. Minutes; make test-slow."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from pipelines import translation

pytestmark = pytest.mark.slow


def test_98_percent_of_unseen_days_are_read_exactly_within_5_minutes_on_three_seeds(tmp_path):
    found, seconds = [], []
    for seed in range(3):
        begin = time.monotonic()
        folder = translation.main(translation.Config(seed=seed, out=str(tmp_path)))
        seconds.append(time.monotonic() - begin)
        found.append(json.loads((folder / "metrics.json").read_text()))
    groups = {name: [one["groups"][name]["exact_match"] for one in found] for name in found[0]["groups"]}
    nearest = [one["baseline"]["exact_match"] for one in found]
    print(f"exact match {groups}, nearest source {nearest}, seconds {np.round(seconds, 1)}")
    assert np.mean(groups["days"]) >= 0.98
    assert np.mean(nearest) < 0.5
    assert max(seconds) < 300
