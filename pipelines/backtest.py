"""What a forecast is judged by: measures and classical forecasts from the same origins.

The classical models learn once, on the training part; at every origin their states are brought up to date with all that
was known by then, and their parameters stay. The neural model is asked in the same way.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm
from sklearn import metrics

from pipelines.datasets.series import Table

Forecast = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]  # of a past (n,) and h: means and deviations (h,)
BASELINES = ("seasonal_naive", "ets", "arima")
LONGEST_SEASON = 24  # that ETS and ARIMA are given; a longer one makes them slow, and is left out
FITS = 6  # series that ETS and ARIMA are fitted to, targets counted apart
MOST = 300  # forecasts of a classical model in one split


def seasonal_scale(values: np.ndarray, season: int) -> float:
    """Mean absolute error of the seasonal naive forecast, one season ahead, within a series; NaN are left out.

    Where that is 0 or unknown, the deviation of the series; where that is 0, too, 1.

    Reference: Hyndman and Koehler 2006, "Another look at measures of forecast accuracy", section 2.5.
    """
    error = np.abs(values[season:] - values[:-season])
    found = float(np.nanmean(error)) if np.isfinite(error).any() else 0.0
    spread = float(np.nanstd(values)) if np.isfinite(values).any() else 0.0
    return found or spread or 1.0


def measures(truth: np.ndarray, quantiles: np.ndarray, levels: Sequence[float], scales: np.ndarray) -> dict[str, float]:
    """MASE, sMAPE, MAE, RMSE of the middle quantile; with more than one, pinball loss, and coverage of the outer two.

    Args:
        truth: (n, h, m); NaN where missing.
        quantiles: (n, h, m, q), rising.
        levels: of the quantiles, (q,).
        scales: of `seasonal_scale`, (n, m): that of the series of each forecast.

    Reference: Hyndman and Koehler 2006, section 2.5 (MASE); Makridakis et al. 2020, "The M4 competition", section 2.4
        (sMAPE); Makridakis et al. 2022, "The M5 uncertainty competition", section 2.5 (scaled pinball loss).
    """
    known = ~np.isnan(truth)
    true, found = truth[known], quantiles[known]  # (a,), (a, q)
    scale = np.broadcast_to(scales[:, None], truth.shape)[known]
    middle = found[:, len(levels) // 2]
    error, size = np.abs(true - middle), np.abs(true) + np.abs(middle)
    result = {
        "mase": np.mean(error / scale),
        "smape": 200 * np.mean(np.divide(error, size, out=np.zeros_like(error), where=size > 0)),
        "mae": metrics.mean_absolute_error(true, middle),
        "rmse": metrics.root_mean_squared_error(true, middle),
    }
    if len(levels) > 1:
        result["pinball"] = np.mean([pinball(true, found[:, i], level) for i, level in enumerate(levels)])
        result["scaled_pinball"] = np.mean(
            [pinball(true / scale, found[:, i] / scale, level) for i, level in enumerate(levels)]
        )
        result["coverage"] = np.mean((found[:, 0] <= true) & (true <= found[:, -1]))
        result["interval_width"] = np.mean(found[:, -1] - found[:, 0])
    return {name: round(float(item), 6) for name, item in result.items()}


def pinball(truth: np.ndarray, forecast: np.ndarray, level: float) -> float:
    return metrics.mean_pinball_loss(truth, forecast, alpha=level)


def error_by_step(truth: np.ndarray, quantiles: np.ndarray, scales: np.ndarray) -> list[float]:
    """MASE of each step of the horizon, (h,)."""
    error = np.abs(truth - quantiles[..., quantiles.shape[-1] // 2]) / scales[:, None]  # (n, h, m)
    return [round(float(np.nanmean(error[:, step])), 6) for step in range(error.shape[1])]


def seasonal_naive(train: np.ndarray, season: int) -> Forecast:
    """The last known value of the same place in the season; the deviation grows with the root of the seasons ahead.

    Reference: Hyndman and Athanasopoulos 2021, "Forecasting: principles and practice", sections 5.2 and 5.5.
    """
    residuals = train[season:] - train[:-season]
    deviation = float(np.sqrt(np.nanmean(residuals**2))) if np.isfinite(residuals).any() else 0.0

    def forecast(past: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        mean = np.empty(horizon)
        for step in range(horizon):
            same = past[len(past) - season + step % season :: -season] if len(past) >= season else past[::-1]
            same = same[~np.isnan(same)]
            mean[step] = same[0] if len(same) else past[~np.isnan(past)][-1]
        return mean, deviation * np.sqrt(np.arange(horizon) // season + 1)

    return forecast


def ets(train: np.ndarray, season: int) -> Forecast:
    """Exponential smoothing with additive errors, a damped trend and, if there is one, an additive season.

    Gaps are filled with the value a season before. Reference: Hyndman et al. 2008, "Forecasting with exponential
    smoothing", table 2.2; statsmodels' `ETSModel`.
    """
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    season = season if 1 < season <= LONGEST_SEASON else 1
    kind: dict[str, Any] = {"error": "add", "trend": "add", "damped_trend": True}
    kind |= {"seasonal": "add", "seasonal_periods": season} if season > 1 else {}
    params = ETSModel(pd.Series(filled(train, season)), **kind).fit(disp=False, maxiter=200).params

    def forecast(past: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        answer = ETSModel(pd.Series(filled(past, season)), **kind).smooth(params)
        answer = answer.get_prediction(start=len(past), end=len(past) + horizon - 1)
        return np.asarray(answer.predicted_mean), np.sqrt(np.asarray(answer.forecast_variance))

    return forecast


def arima(train: np.ndarray, season: int) -> Forecast:
    """ARIMA(1, 1, 1)(0, 1, 1) with a season, AR(3) around a mean without one; gaps are gaps.

    Reference: Box and Jenkins 1976, chapter 9; statsmodels' `SARIMAX`.
    """
    from statsmodels.tsa.statespace.sarimax import SARIMAX

    if 1 < season <= LONGEST_SEASON:
        kind: dict[str, Any] = {"order": (1, 1, 1), "seasonal_order": (0, 1, 1, season)}
    else:
        kind = {"order": (3, 0, 0), "trend": "c"}
    fitted = SARIMAX(train, **kind).fit(disp=False, maxiter=50)
    now, seen = fitted, len(train)

    def forecast(past: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        nonlocal now, seen
        if len(past) < seen:
            now, seen = fitted, len(train)
        if len(past) > seen:
            now, seen = now.extend(past[seen:]), len(past)
        answer = now.get_forecast(horizon)
        return np.asarray(answer.predicted_mean), np.asarray(answer.se_mean)

    return forecast


def filled(values: np.ndarray, season: int) -> np.ndarray:
    """Gaps take the value a season before, or else the next one known; nothing else looks ahead."""
    values = values.copy()
    for i in np.flatnonzero(np.isnan(values)):
        before = values[i - season] if i >= season else np.nan
        later = values[i:][~np.isnan(values[i:])]
        values[i] = before if not np.isnan(before) else (later[0] if len(later) else values[i - 1])
    return values


MAKERS: Mapping[str, Callable[[np.ndarray, int], Forecast]] = {
    "seasonal_naive": seasonal_naive,
    "ets": ets,
    "arima": arima,
}


def classical(
    name: str, table: Table, fitted: np.ndarray, origins: np.ndarray, horizon: int, levels: Sequence[float]
) -> np.ndarray:
    """Forecasts of a classical model from the same origins.

    Args:
        name: of `BASELINES`.
        table: the series.
        fitted: steps of each series that are for training, (s,).
        origins: the first row to forecast of each, (n,).
        horizon: h.
        levels: quantiles wanted, (q,), from a normal distribution.

    Returns:
        (n, h, m, q); NaN where the model could not be fitted.
    """
    targets = len(table.columns.targets)
    answers = np.full((len(origins), horizon, targets, len(levels)), np.nan)
    of_series = np.searchsorted(table.starts, origins, side="right") - 1
    spread = norm.ppf(levels)  # (q,)
    for series in np.unique(of_series):
        start = table.starts[series]
        for target in range(targets):
            values = table.values[table.of(series), target].astype("float64")
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")  # statsmodels tells of every start it had to change
                forecast = MAKERS[name](values[: fitted[series]], table.season)
                for place in np.flatnonzero(of_series == series):
                    mean, deviation = forecast(values[: origins[place] - start], horizon)
                    answers[place, :, target] = mean[:, None] + deviation[:, None] * spread
    return answers


def origins_for(table: Table, places: np.ndarray, history: int) -> np.ndarray:
    """Which windows the slow classical models answer, (a,): of the first series, evenly chosen where there are many."""
    targets = len(table.columns.targets)
    of_series = np.searchsorted(table.starts, places, side="right") - 1
    chosen = np.flatnonzero(of_series < max(1, FITS // targets))
    most = max(1, MOST // targets)
    return chosen if len(chosen) <= most else chosen[np.linspace(0, len(chosen) - 1, most).round().astype(int)]


def compare(
    names: Sequence[str], table: Table, places: np.ndarray, truth: np.ndarray, quantiles: np.ndarray, spec: Any
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, list[float]]]:
    """The classical forecasts of the origins of a split, beside those of the model.

    Args:
        names: of `BASELINES`.
        table: the series.
        places: the first row of each window, (n,).
        truth: (n, h, m).
        quantiles: of the model, (n, h, m, q).
        spec: of the data.

    Returns:
        measures of the seasonal naive forecast at all origins; measures of the others, and of the model where they
        answer fewer origins; MASE by step of each of them.
    """
    levels, scales = spec["quantiles"], scales_of(table, places, spec)
    origins, fitted = places + spec["history"], np.array(spec["fitted"])
    few = origins_for(table, places, spec["history"])
    naive = classical("seasonal_naive", table, fitted, origins, spec["horizon"], levels)
    first = {"model": "seasonal naive", **measures(truth, naive, levels, scales)}
    steps = {"model": error_by_step(truth, quantiles, scales), "seasonal_naive": error_by_step(truth, naive, scales)}
    others = []
    for name in names:
        if name == "seasonal_naive":
            continue
        found = classical(name, table, fitted, origins[few], spec["horizon"], levels)
        others.append({"model": name, "origins": len(few), **measures(truth[few], found, levels, scales[few])})
        steps[name] = error_by_step(truth[few], found, scales[few])
    if others and len(few) < len(places):
        others.append(
            {"model": "the model there", "origins": len(few)}
            | measures(truth[few], quantiles[few], levels, scales[few])
        )
    return first, others, steps


def scales_of(table: Table, places: np.ndarray, spec: Any) -> np.ndarray:
    """The seasonal scale of the series of each window, (n, m)."""
    return np.array(spec["scales"])[np.searchsorted(table.starts, places, side="right") - 1]
