"""Forecasting: measures by hand, no look ahead, served answers, exact resume, and what cannot be forecast."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from sklearn.metrics import mean_absolute_error

import pipelines
from pipelines import backtest, checkpoints, forecasting, runs
from pipelines.config import Failure, UsageError, parse, run_cli
from pipelines.datasets.series import Columns, read_frame
from serving import gate, signatures

SMALL = {
    "model": "recurrent_forecaster",
    "model_args": {"width": 8},
    "dataset": "tiny_series",
    "horizon": 3,
    "history": 10,
    "limit": 40,
    "epochs": 4,
    "batch_size": 10,
    "baselines": ("seasonal_naive",),
}
CO2 = SMALL | {
    "model": "tcn_forecaster",
    "model_args": {"width": 8, "depth": 1, "dropout": 0.1},
    "dataset": "tiny_co2",
    "quantiles": ("none",),
    "steps_per_execution": 2,
    "epochs": 3,
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return str(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def run(out):
    """A finished run over several series, targets and covariates, with gaps."""
    return runs.load(forecasting.main(forecasting.Config(out=out, **SMALL)))


@pytest.fixture(scope="module")
def co2_config(out):
    return forecasting.Config(out=out, **CO2)


@pytest.fixture(scope="module")
def co2_run(co2_config):
    """A finished run of point forecasts."""
    return runs.load(forecasting.main(co2_config))


def rows(count: int) -> pd.DataFrame:
    dates = [str(month) for month in np.datetime64("1990-01") + np.arange(count)]
    return pd.DataFrame({"date": dates, "x": [str(10 + t % 12 + 0.1 * t) for t in range(count)]})


def quarters(count: int, change=lambda t: 0.0):
    """A season of four steps on a trend of 1.2 a season."""
    dates = [str(month) for month in np.datetime64("1990-01") + 3 * np.arange(count)]
    values = [str(10 + 3 * (t % 4) + 0.3 * t + change(t)) for t in range(count)]
    return read_frame(pd.DataFrame({"date": dates, "x": values}), Columns())


def test_measures_against_hand_calculation():
    truth = np.array([[[2.0], [4.0]], [[np.nan], [10.0]]])  # (2, 2, 1)
    quantiles = np.array([[[[1.0, 3, 5]], [[2, 3, 3.5]]], [[[0, 0, 0]], [[9, 10, 12]]]])
    found = backtest.measures(truth, quantiles, [0.1, 0.5, 0.9], np.array([[2.0], [4.0]]))
    assert found["mase"] == pytest.approx((1 / 2 + 1 / 2 + 0 / 4) / 3, abs=1e-6)
    assert found["smape"] == pytest.approx(200 * (1 / 5 + 1 / 7 + 0) / 3, abs=1e-5)
    assert found["mae"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["rmse"] == pytest.approx(np.sqrt(2 / 3), abs=1e-6)
    assert found["coverage"] == pytest.approx(2 / 3, abs=1e-6)  # 4 is above 3.5
    assert found["interval_width"] == pytest.approx((4 + 1.5 + 3) / 3, abs=1e-6)
    tenth = (0.1 * 1 + 0.1 * 2 + 0.1 * 1) / 3
    middle = (0.5 * 1 + 0.5 * 1 + 0) / 3
    upper = (0.1 * 3 + 0.9 * 0.5 + 0.1 * 2) / 3
    assert found["pinball"] == pytest.approx((tenth + middle + upper) / 3, abs=1e-6)
    assert backtest.error_by_step(truth, quantiles, np.array([[2.0], [4.0]])) == [0.5, 0.25]
    assert backtest.measures(truth[:1], quantiles[:1], [0.1, 0.5, 0.9], np.array([[2.0]]))["mae"] == 1


def test_the_scale_is_the_error_of_last_season_and_a_naive_forecast_there_has_a_mase_of_one():
    values = np.array([1.0, 2, 4, 3, np.nan, 7])
    assert backtest.seasonal_scale(values, 2) == pytest.approx((3 + 1 + 4) / 3)
    assert backtest.seasonal_scale(values[:2], 2) > 0 and backtest.seasonal_scale(np.ones(9), 2) == 1
    walk = np.random.default_rng(0).normal(size=300).cumsum()
    forecast = backtest.seasonal_naive(walk, 4)
    errors = [mean_absolute_error(walk[t : t + 4], forecast(walk[:t], 4)[0]) for t in range(4, 297)]
    assert np.mean(errors) / backtest.seasonal_scale(walk, 4) == pytest.approx(1, abs=0.02)


def test_the_seasonal_naive_forecast_repeats_the_last_season_also_over_gaps():
    past = np.array([1.0, 2, 3, 4, 5, np.nan])
    mean, deviation = backtest.seasonal_naive(np.arange(9.0), 3)(past, 7)
    np.testing.assert_array_equal(mean, [4, 5, 3, 4, 5, 3, 4])
    np.testing.assert_allclose(deviation, 3 * np.sqrt([1, 1, 1, 2, 2, 2, 3]))


@pytest.mark.parametrize("name", forecasting.BASELINES)
def test_classical_forecasts_do_not_look_ahead_and_know_a_season(name):
    """A change after an origin changes nothing; parameters come from the training part, states from the past."""
    noise = np.random.default_rng(1).normal(0, 0.2, 60)
    origins = np.array([40, 48])
    now = quarters(60, lambda t: noise[t])
    later = quarters(60, lambda t: noise[t] + (50 if t >= 48 else 0))
    found, changed = (
        backtest.classical(name, one, np.array([40]), origins, 4, [0.1, 0.5, 0.9]) for one in (now, later)
    )
    assert (np.diff(found, axis=-1) > 0).all() and found.shape == (2, 4, 1, 3)
    np.testing.assert_allclose(changed, found, rtol=1e-6)
    error = np.abs(found[0, :, 0, 1] - now.values[40:44, 0]).mean()
    assert (0.9 < error < 1.5) if name == "seasonal_naive" else error < 0.6


def test_a_run_is_reported_beside_the_seasonal_naive_forecast(run):
    metrics = run.metrics
    names = {"mase", "smape", "mae", "rmse", "pinball", "scaled_pinball", "coverage", "interval_width"}
    assert names == metrics["test"].keys() == metrics["validation"].keys() == metrics["baseline"].keys() - {"model"}
    assert metrics["baseline"]["model"] == "seasonal naive" and metrics["baselines"] == []
    assert len(metrics["mase_by_step"]["model"]) == 3
    for name in ("curves", "forecasts", "error_by_step", "first_batch"):
        assert (run.folder / f"plots/{name}.png").stat().st_size > 5000
    assert "seasonal naive" in (run.folder / "card.md").read_text()
    assert run.spec["series"] == ["north", "south", "west"] and run.spec["calendar"] == ["year", "week"]
    assert run.spec["missing"] > 100


def test_training_sees_nothing_of_validation_and_test(monkeypatch):
    """Other values there: the same spec, training windows and weights of series."""
    config = forecasting.Config(**(CO2 | {"limit": None, "steps_per_execution": None}))
    before = forecasting.load_data(config)
    original, held = forecasting.read_table, 526 - 2 * round(0.15 * 526)

    def changed(config):
        found = original(config)
        values = found.values.copy()
        values[held:] = 999 - values[held:]
        return replace(found, values=values)

    monkeypatch.setattr(forecasting, "read_table", changed)
    after = forecasting.load_data(config)
    differing = {key for key in before.spec if before.spec[key] != after.spec[key]}
    assert differing == set()
    for one, other in zip(
        forecasting.training_batches(before, config).take(12), forecasting.training_batches(after, config).take(12)
    ):
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)


def test_a_forecast_does_not_change_with_what_comes_after_its_origin(run):
    """Values, missing values and covariates that are measured along; those known in advance may."""
    data = forecasting.load_data(run.config)
    part, spec = data.test, run.spec
    _, before = forecasting.predict(run.model, part, spec)
    origin = part.places[3] + spec["history"]
    values = part.table.values.copy()
    values[origin : origin + 5], values[origin + 5 :] = np.nan, -1000
    _, after = forecasting.predict(run.model, replace(part, table=replace(part.table, values=values)), spec)
    reaching = part.places + spec["history"] <= origin
    assert reaching[3] and not reaching.all()
    np.testing.assert_array_equal(after[reaching], before[reaching])
    assert np.abs(after[~reaching] - before[~reaching]).max() > 1


def test_scaled_error_of_training_is_the_reported_mase(run):
    data = forecasting.load_data(run.config)
    model = forecasting.build_model(run.config, run.spec)
    model.set_weights(run.model.get_weights())
    _, mase = model.evaluate(forecasting.evaluation_batches(data.validation, run.spec), verbose=0)
    assert mase == pytest.approx(run.metrics["validation"]["mase"], rel=1e-4)


def test_served_answers_equal_those_of_training_and_pass_the_gate(run, tmp_path):
    offered = signatures.signatures(run)
    signatures.write(run.model, offered, tmp_path / "saved")
    read = signatures.read(tmp_path / "saved")
    assert set(read) >= {"serving_default", "from_grid"}
    checks = forecasting.served_checks(run.model, run.config, run.spec, limit=6)
    found = gate.check({name: (name, read[name]) for name in offered}, checks)
    assert {name: one["examples"] for name, one in found.items()} == {"serving_default": 6, "from_grid": 6}


@pytest.fixture(scope="module")
def question(run):
    (batch,) = forecasting.served_checks(run.model, run.config, run.spec, limit=2)
    return batch["serving_default"]


def ask(run, inputs):
    serve, signature = forecasting.serving_fn(run.model, run.config, run.spec)
    answer = tf.function(serve)(*(tf.constant(inputs[name]) for name in signature))
    return {name: value.numpy() for name, value in answer.items()}


def test_rows_may_come_in_any_order_with_more_history_and_without_missing_ones(run, question):
    inputs, expected = question
    order = np.random.default_rng(2).permutation(13)
    old = np.array([[b"2020-01-01", b"2019-06-30", b""]] * 2, object)
    dates = np.concatenate([inputs["dates"], old], 1)[:, order]
    values = np.concatenate([inputs["values"], np.full((2, 3, 3), 1e6, "float32")], 1)[:, order]
    known = np.concatenate([inputs["known"], np.zeros((2, 3, 1), "float32")], 1)[:, order]
    found = ask(run, inputs | {"dates": dates, "values": values, "known": known})
    gate.compare("other rows", 0, expected, found)


def test_a_series_that_is_not_known_is_answered_too_and_differently(run, question):
    inputs, expected = question
    found = ask(run, inputs | {"series": np.array([b"east", b"east"], object)})
    assert np.isfinite(found["forecast"]).all()
    assert found["lower"].shape == expected["lower"].shape == (2, 3, 2)
    assert (found["lower"] <= found["forecast"]).all() and (found["forecast"] <= found["upper"]).all()


def test_a_date_that_is_none_is_refused_by_the_served_graph(run, question):
    inputs, _ = question
    dates = inputs["dates"].copy()
    dates[0, 0] = b"yesterday"
    with pytest.raises(tf.errors.InvalidArgumentError, match="yesterday"):
        ask(run, inputs | {"dates": dates})


def test_future_dates_of_a_monthly_series_are_months(co2_run):
    dates = np.array([[b"2001-11", b"2001-12"]], object)
    answer = ask(co2_run, {"dates": dates, "values": np.array([[[369.0], [370.0]]], "float32")})
    assert answer.keys() == {"dates", "forecast"}
    assert answer["dates"].tolist() == [[b"2002-01-01", b"2002-02-01", b"2002-03-01"]]
    assert np.abs(answer["forecast"] - 370).max() < 20 and "coverage" not in co2_run.metrics["test"]


@pytest.mark.slow
def test_a_run_stopped_within_an_epoch_ends_like_one_that_was_not(co2_config, co2_run, tmp_path, monkeypatch):
    class Stop(BaseException):
        pass

    original = checkpoints.ExactResume.on_train_batch_end

    def stop(self, batch, logs=None):
        original(self, batch, logs)
        if self.step == 6:
            self.save()
            self.wait()
            raise Stop("pulled the plug")

    monkeypatch.setattr(checkpoints.ExactResume, "on_train_batch_end", stop)
    with pytest.raises(Stop):
        forecasting.main(replace(co2_config, out=str(tmp_path)))
    monkeypatch.undo()
    (folder,) = runs.find(tmp_path)
    assert forecasting.main(forecasting.Config(resume=str(folder))) == folder
    for one, other in zip(*(checkpoints.latest(f / "checkpoints")[0].items() for f in (co2_run.folder, folder))):
        assert one[0] == other[0]
        for a, b in zip(one[1], other[1]):
            np.testing.assert_array_equal(a, b)
    results = [json.loads((f / "metrics.json").read_text())["test"] for f in (co2_run.folder, folder)]
    assert results[0] == results[1]


@pytest.fixture
def cli(capfd, tmp_path):
    """Run the command line in this process: its exit code and what it said on stderr."""

    def call(*words: object) -> tuple[int, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_cli(pipelines.get("forecasting"), [*map(str, words), "--out", str(tmp_path / "runs")])
        said = "\n".join(line for line in capfd.readouterr().err.splitlines() if "absl" not in line)
        return stopped.value.code, said

    return call


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--quantiles", "0.1", "0.9"], 2, "0.5 in the middle"),
        (["--quantiles", "0.5", "high"], 2, "0.5 in the middle"),
        (["--baselines", "arma"], 2, "Did you mean 'arima'?"),
        (["--frequency", "month"], 2, "Did you mean 'monthly'?"),
        (["--horizon", "0"], 2, "--horizon of at least 1"),
        (["--held_out", "0.5"], 2, "--held_out"),
        (["--model_args", "head=both"], 2, "head must be one of"),
        (["--dataset", "tiny_digits"], 2, "rows with a date"),
        (["--targets", "co3"], 2, "Did you mean 'co2'?"),
        (["--history", "400"], 1, "Received: 526"),
        (["--horizon", "200"], 1, "a shorter --history or --horizon"),
    ],
    ids=lambda x: "_".join(x) if isinstance(x, list) else None,
)
def test_what_cannot_be_forecast_is_said_in_one_line_and_leaves_no_run(cli, words, code, said, tmp_path):
    found, shown = cli(*words)
    assert said in shown and found == code, shown
    assert len(shown.splitlines()) == 1 and not (tmp_path / "runs").exists()


def test_bad_files_are_named_by_line(cli, tmp_path):
    for text, said in (
        ("date,x\n2001,1\n2003,2\n2002,3\n", "line 4"),
        ("date,x\n2001,1\nsometime,2\n", "line 3"),
        ("date,x\n2001,4\n2002,4\n2003,4\n", "that changes"),
    ):
        (tmp_path / "my.csv").write_text(text)
        code, shown = cli("--data_dir", tmp_path / "my.csv", "--time_column", "date", "--targets", "x")
        assert (code, said in shown, len(shown.splitlines())) == (1, True, 1), shown


def test_a_file_of_ones_own_becomes_windows(tmp_path):
    rows(60).rename(columns={"x": "sold"}).to_csv(tmp_path / "mine.csv", index=False)
    config = forecasting.Config(data_dir=str(tmp_path / "mine.csv"), horizon=3)
    data = forecasting.load_data(config)
    assert (data.spec["targets"], data.spec["season"], data.spec["dataset"]) == (["sold"], 12, "mine.csv")
    inputs, answer = next(iter(forecasting.training_batches(data, config)))
    history = data.spec["history"]
    assert inputs["history"].shape[1:] == (history, 1) and inputs["known"].shape[1:] == (history + 3, 6)
    assert answer.shape[1:] == (3, 1, 2)


def test_the_command_line_of_a_configuration_makes_it_again():
    from pipelines.config import command_line

    config = forecasting.Config(quantiles=("0.05", "0.5", "0.95"), targets=("a", "b"), horizon=5)
    assert parse(forecasting.Config, command_line(config).split()) == config


def test_nothing_is_left_of_a_series_that_is_too_short(tmp_path):
    rows(20).to_csv(tmp_path / "short.csv", index=False)
    with pytest.raises(Failure, match="Expected at least"):
        forecasting.load_data(forecasting.Config(data_dir=str(tmp_path / "short.csv")))
    with pytest.raises(UsageError, match="CSV file"):
        forecasting.load_data(forecasting.Config(data_dir=str(tmp_path / "none.csv")))
