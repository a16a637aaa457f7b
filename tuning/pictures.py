"""The pictures of a search: report.html, which opens without a network, and one PNG of the same for a terminal.

Parallel coordinates (a line per trial, coloured by its result), importance, and the best so far beside random search.
"""

from __future__ import annotations

import html as markup
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.report import save
from tuning.report import Search, best_command, best_so_far, number, random_line

COLOURS = "Viridis"
LABEL: dict[str, Any] = {
    "fontsize": 7,
    "va": "center",
    "bbox": {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8},
}
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 1em;color:#222}
pre{background:#f4f4f4;padding:1em;overflow-x:auto}table{border-collapse:collapse;font-size:13px}
td,th{padding:3px 9px;border-bottom:1px solid #ddd;text-align:left}tr.failed td{color:#a33}div.wide{overflow-x:auto}"""


def axis(search: Search, name: str) -> tuple[list[float], list[float], list[str]]:
    """A hyperparameter as numbers, one per finished trial, and the ticks of its axis: ranks for names, logs for rates.

    Returns:
        positions, tick positions, tick labels.
    """
    items: list[Any] = [trial.values[name] for trial in search.finished]
    kinds = sorted(set(items))
    if len(kinds) <= min(6, len(items) - 1) or isinstance(kinds[0], (str, bool)):
        places = range(len(kinds))
        return [float(kinds.index(item)) for item in items], [float(k) for k in places], [number(k) for k in kinds]
    low, high = kinds[0], kinds[-1]
    if low > 0 and high / low >= 30:
        low, high = math.log10(low), math.log10(high)
        marks = [low + (high - low) * k / 4 for k in range(5)]
        return [math.log10(item) for item in items], marks, [f"{10**mark:.2g}" for mark in marks]
    marks = [low + (high - low) * k / 4 for k in range(5)]
    return [float(item) for item in items], marks, [f"{mark:.2g}" for mark in marks]


def columns(search: Search) -> list[str]:
    """The hyperparameters that every finished trial has and that are not always the same."""
    values = [trial.values for trial in search.finished]
    return [n for n in search.names if all(n in v for v in values) and len({str(v[n]) for v in values}) > 1]


def cost_name(search: Search) -> str:
    return "cost in full trainings" if search.flags["tuner"] == "hyperband" else "trials"


def html(search: Search, weights: Any, summary: Sequence[str], path: Path) -> Path:
    """Write the report; the page carries plotly itself."""
    import plotly.graph_objects as go

    name = search.objective[0]
    results = [trial.objective for trial in search.finished]
    dimensions = []
    for column in columns(search):
        values, marks, labels = axis(search, column)
        dimensions.append({"label": column, "values": values, "tickvals": marks, "ticktext": labels})
    dimensions.append({"label": name, "values": results})
    parallel = go.Figure(
        go.Parcoords(
            dimensions=dimensions,
            line={
                "color": results,
                "colorscale": COLOURS,
                "reversescale": search.sign < 0,
                "showscale": True,
                "colorbar": {"title": name},
            },
        ),
        layout={"height": 480, "margin": {"l": 90, "r": 40, "t": 60, "b": 30}},
    )
    cost, best = best_so_far(search, search.trials)
    line, sure, source = random_line(search)
    progress = go.Figure(layout={"height": 420, "xaxis": {"title": cost_name(search)}, "yaxis": {"title": name}})
    progress.add_scatter(x=cost, y=best, name="best so far", line={"shape": "hv", "width": 3})
    progress.add_scatter(x=cost, y=[trial.objective for trial in search.trials], name="trial", mode="markers")
    steps = list(range(1, len(line) + 1))
    progress.add_scatter(x=steps[:sure], y=line[:sure], name=source, line={"color": "#888"})
    if len(line) > sure:
        progress.add_scatter(
            x=steps[sure - 1 :],
            y=line[sure - 1 :],
            name="at least, from there on",
            line={"color": "#888", "dash": "dash"},
        )
    parts = [parallel.to_html(full_html=False, include_plotlyjs="inline"), "<h2>Best so far</h2>"]
    parts += [progress.to_html(full_html=False, include_plotlyjs=False), "<h2>Importance</h2>"]
    if isinstance(weights, str):
        parts.append(f"<p>{markup.escape(weights)}</p>")
    else:
        names = list(weights[0])[::-1]
        bars = go.Figure(go.Bar(x=[weights[0][n] for n in names], y=names, orientation="h"))
        bars.update_layout(height=140 + 26 * len(names), xaxis_title="share of the variance lost by shuffling")
        parts += [bars.to_html(full_html=False, include_plotlyjs=False), f"<p>{markup.escape(trust(weights[1]))}</p>"]
    text = "<br>".join(markup.escape(line) for line in summary)
    title = markup.escape(f"Search: {search.task}, {search.flags['model']}, {search.flags['tuner']}")
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1><p>{text}</p><pre>{markup.escape(best_command(search))}</pre>"
        f"<h2>Parallel coordinates</h2>{''.join(parts)}<h2>Trials</h2>{rows(search)}</body></html>\n"
    )
    return path


def trust(score: float) -> str:
    """What the importance is worth, by the forest's R² on held-out trials."""
    if score <= 0:
        return f"The forest does not predict the result of held-out trials (R² {score}): these bars mean nothing yet."
    return f"The forest explains {score:.0%} of the variance of held-out trials and cannot tell the rest from noise."


def rows(search: Search) -> str:
    """All trials as an HTML table, the best first, the failed last."""
    heads = ["trial", search.objective[0], *search.names, "seconds", "run or reason"]
    lines = ["".join(f"<th>{markup.escape(head)}</th>" for head in heads)]
    for trial in [*search.ranked, *(trial for trial in search.trials if trial.objective is None)]:
        result = "" if trial.objective is None else f"{trial.objective:.4f}"
        cells = [str(int(trial.id) + 1), result, *(number(trial.values.get(name, "")) for name in search.names)]
        cells += ["" if trial.seconds is None else f"{trial.seconds:.1f}", trial.error or trial.run or "not finished"]
        lines.append("".join(f"<td>{markup.escape(cell)}</td>" for cell in cells))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>{body}</table></div>'


def png(search: Search, weights: Any, path: Path) -> Path:
    """Draw the three pictures into one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path.parent.mkdir(exist_ok=True)
    figure, panels = plt.subplot_mosaic([["parallel"] * 2, ["best", "importance"]], figsize=(13, 8.5))
    parallel(search, panels["parallel"], plt)
    name = search.objective[0]
    cost, best = best_so_far(search, search.trials)
    line, sure, source = random_line(search)
    steps = list(range(1, len(line) + 1))
    panels["best"].step(cost, best, where="post", linewidth=2, label="best so far")
    panels["best"].plot(cost, [trial.objective for trial in search.trials], ".", color="tab:blue", alpha=0.6)
    panels["best"].plot(steps[:sure], line[:sure], color="grey", marker="." if sure == 1 else None, label=source)
    if len(line) > sure:
        panels["best"].plot(steps[sure - 1 :], line[sure - 1 :], "--", color="grey", label="at least, from there on")
    panels["best"].set(xlabel=cost_name(search), ylabel=name, title="best so far")
    panels["best"].xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    panels["best"].grid(alpha=0.25)
    panels["best"].legend(fontsize=8)
    panels["importance"].set_title("importance: share of the variance lost by shuffling")
    if isinstance(weights, str):
        panels["importance"].axis("off")
        panels["importance"].text(0.5, 0.5, weights, ha="center")
    else:
        names = list(weights[0])[::-1]
        panels["importance"].barh(names, [weights[0][n] for n in names])
        panels["importance"].set_xlabel(trust(weights[1]), fontsize=8)
    figure.suptitle(f"{search.task}, {search.flags['model']}: {search.flags['tuner']}, {len(search.trials)} trials")
    figure.tight_layout()
    return save(figure, path)


def parallel(search: Search, panel: Any, plt: Any) -> None:
    """Parallel coordinates: every axis from 0 to 1 with its own ticks, a line per trial, the result last."""
    results = [float(trial.objective or 0.0) for trial in search.finished]
    low, high = min(results), max(results)
    heights, names = [], columns(search)
    for place, column in enumerate(names):
        values, marks, labels = axis(search, column)
        least, range_ = min(values), (max(values) - min(values)) or 1.0
        heights.append([(value - least) / range_ for value in values])
        for mark, label in zip(marks, labels):
            panel.text(place + 0.03, (mark - least) / range_, label, **LABEL)
    heights.append([(result - low) / ((high - low) or 1.0) for result in results])
    for mark in (low, high):
        panel.text(len(names) + 0.03, (mark - low) / ((high - low) or 1.0), f"{mark:.4f}", **LABEL)
    for trial, line in sorted(enumerate(zip(*heights)), key=lambda pair: search.sign * results[pair[0]]):
        good = heights[-1][trial] if search.sign > 0 else 1 - heights[-1][trial]
        panel.plot(range(len(names) + 1), line, color=plt.get_cmap("viridis")(good), alpha=0.8, linewidth=1.3)
    panel.set_xticks(range(len(names) + 1), [*names, search.objective[0]], rotation=20, ha="right")
    panel.set_yticks([])
    panel.grid(axis="x", alpha=0.6)
    panel.set_xlim(-0.2, len(names) + 0.5)
