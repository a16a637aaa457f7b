"""The pictures of a forecasting run: forecasts with their intervals, the error by step, and windows of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import report
from pipelines.backtest import classical
from pipelines.datasets.windows import Windows


def draw_backtest(part: Windows, truth: np.ndarray, quantiles: np.ndarray, spec: dict[str, Any], path: Path) -> Path:
    """`draw_forecasts` from six origins spread over a split.

    Args:
        part: the split.
        truth: (n, h, m).
        quantiles: (n, h, m, q).
        spec: of the data.
        path: where the PNG goes.
    """
    table, examples = part.table, []
    for i in np.unique(np.linspace(0, len(part.places) - 1, 6).round().astype(int)):
        place, number, target = part.places[i], part.series[i], int(i) % len(spec["targets"])
        rows = slice(place, place + spec["history"])
        origin, fitted = np.array([place + spec["history"]]), np.array(spec["fitted"])
        naive = classical("seasonal_naive", table, fitted, origin, spec["horizon"], [0.5])
        dates = table.moments[place : place + spec["history"] + spec["horizon"]]
        name = f"{table.names[number]} {spec['targets'][target]}".strip()
        last = str(np.datetime64(int(dates[spec["history"] - 1]), "s"))
        examples.append(
            {
                "title": f"{name} after {last[:10] if last.endswith('00:00:00') else last}",
                "history": table.values[rows, target],
                "truth": truth[i, :, target],
                "quantiles": quantiles[i, :, target],
                "naive": naive[0, :, target, 0],
                "dates": dates,
            }
        )
    return draw_forecasts(examples, spec["quantiles"], path)


def draw_forecasts(examples: Sequence[Mapping[str, Any]], levels: Sequence[float], path: Path) -> Path:
    """A panel for each example: history, truth, forecast with its interval, and the seasonal naive forecast.

    Args:
        examples: {"title", "history" (t,), "truth" (h,), "quantiles" (h, q), "naive" (h,), "dates" (t + h,)}.
        levels: of the quantiles.
        path: where the PNG goes.
    """
    rows = (len(examples) + 1) // 2
    figure, axes = report.canvas(13, 3.1 * rows, rows, 2)
    for axis, one in zip(axes.flat, examples):
        dates, count = np.asarray(one["dates"], "datetime64[s]").astype(object), len(one["history"])
        later, middle = dates[count:], len(levels) // 2
        axis.plot(dates[:count], one["history"], color="black", linewidth=1, label="history")
        axis.plot(later, one["truth"], color="black", linewidth=1, marker=".", linestyle=":", label="truth")
        axis.plot(later, one["naive"], color="grey", linewidth=1, linestyle="--", label="seasonal naive")
        axis.plot(later, one["quantiles"][:, middle], color="tab:blue", label="forecast")
        for i in range(middle):
            share = levels[-1 - i] - levels[i]
            low, high = one["quantiles"][:, i], one["quantiles"][:, -1 - i]
            axis.fill_between(later, low, high, color="tab:blue", alpha=0.2, linewidth=0, label=f"{share:.0%} interval")
        axis.set_title(one["title"], fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(examples) :]:
        axis.axis("off")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    return report.save(figure, path)


def draw_error_by_step(errors: Mapping[str, Sequence[float]], path: Path) -> Path:
    """MASE against the step of the horizon, a line for each model."""
    figure, ((axis,),) = report.canvas(6.5, 3.8)
    for name, values in errors.items():
        style: dict[str, Any] = {"linewidth": 2} if name == "model" else {"linestyle": "--", "linewidth": 1}
        axis.plot(range(1, len(values) + 1), values, marker=".", label=name, **style)
    axis.set(xlabel="steps ahead", ylabel="MASE", title="error by step, test split", ylim=(0, None))
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    return report.save(figure, path)


def draw_windows(history: np.ndarray, truth: np.ndarray, path: Path) -> Path:
    """Training windows as the model sees them: each shifted and scaled by its own history. (n, t) and (n, h)."""
    columns = 4
    rows = (len(history) + columns - 1) // columns
    figure, axes = report.canvas(3.2 * columns, 1.9 * rows + 0.4, rows, columns)
    for axis, one, later in zip(axes.flat, history, truth):
        shift, scale = one.mean(), one.std() or 1.0
        axis.plot((one - shift) / scale, color="black", linewidth=1)
        axis.plot(len(one) + np.arange(len(later)), (later - shift) / scale, color="tab:blue", marker=".", linewidth=1)
        axis.tick_params(labelsize=7)
    figure.suptitle("first training batch: normalized history, and what is to be told (blue)", fontsize=10)
    figure.tight_layout()
    return report.save(figure, path)
