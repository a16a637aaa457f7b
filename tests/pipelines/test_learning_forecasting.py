"""Learning runs of forecasting: what the docstring promises, over three seeds. Minutes; make test-slow."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from pipelines import forecasting

pytestmark = pytest.mark.slow


def measured(out, **flags) -> dict:
    folder = forecasting.main(forecasting.Config(out=str(out), **flags))
    return json.loads((folder / "metrics.json").read_text())


def test_the_default_run_is_far_below_the_seasonal_naive_forecast_on_three_seeds_in_under_90_seconds_each(tmp_path):
    found, seconds = [], []
    for seed in range(3):
        begin = time.monotonic()
        found.append(measured(tmp_path, seed=seed))
        seconds.append(time.monotonic() - begin)
    errors, naive = [one["test"]["mase"] for one in found], found[0]["baseline"]["mase"]
    others = {one["model"]: one["mase"] for one in found[0]["baselines"]}
    print(f"MASE {errors}, seasonal naive {naive}, {others}, seconds {np.round(seconds, 1)}")
    assert np.mean(errors) <= 0.5 * naive
    assert np.mean(errors) < others["ets"]
    assert 0.55 < np.mean([one["test"]["coverage"] for one in found]) < 0.95
    assert max(seconds) < 90


@pytest.mark.parametrize("model", forecasting.MODELS)
@pytest.mark.parametrize("head", ["direct", "autoregressive"])
def test_every_architecture_and_head_keeps_the_promise(model, head, tmp_path):
    found = measured(tmp_path, model=model, model_args={"head": head}, baselines=("seasonal_naive",))
    print(f"{model} {head}: {found['test']['mase']}, seasonal naive {found['baseline']['mase']}")
    assert found["test"]["mase"] <= 0.8 * found["baseline"]["mase"]


@pytest.mark.parametrize("dataset", ["tiny_sunspots", "tiny_series"])
def test_the_other_series_are_forecast_better_than_by_the_last_season(dataset, tmp_path):
    found = measured(tmp_path, dataset=dataset, baselines=("seasonal_naive",))
    print(f"{dataset}: {found['test']['mase']}, seasonal naive {found['baseline']['mase']}")
    assert found["test"]["mase"] < found["baseline"]["mase"]
