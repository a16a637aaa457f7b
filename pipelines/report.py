"""The pictures and the model card of a run, written from its files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # and not pyplot, which has a state of its own in a notebook

Rows = Sequence[Mapping[str, float]]


def save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=110, bbox_inches="tight")
    return path


def canvas(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure of so many inches and its axes, an array (rows, columns)."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, squeeze=False)


def image_grid(images, titles: Sequence[str], path: Path, *, heading: str = "", columns: int = 8, wrong=()) -> Path:
    """A grid of pictures with a title each.

    Args:
        images: uint8 pixels, (n, h, w, c) with 1 or 3 channels.
        titles: n lines.
        path: where the PNG goes.
        wrong: indices whose title is red.
    """
    rows, pitch, side = max(1, math.ceil(len(images) / columns)), (1.35, 1.65), 1.2  # in inches
    figure, ((axis,),) = canvas(pitch[0] * columns, pitch[1] * rows)  # one for all: an axis each would take seconds
    for i, (image, title) in enumerate(zip(images, titles)):
        row, column = divmod(i, columns)
        middle, bottom = (column + 0.5) * pitch[0], (row + 1) * pitch[1]
        height, width = (side * length / max(image.shape[:2]) for length in image.shape[:2])
        place = (middle - width / 2, middle + width / 2, bottom, bottom - height)
        grey = image.shape[-1] == 1
        axis.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=255, extent=place)
        color = "firebrick" if i in wrong else "black"
        axis.text(middle, bottom - height - 0.05, title, fontsize=8, color=color, ha="center", va="bottom")
    axis.set(xlim=(0, pitch[0] * columns), ylim=(pitch[1] * rows, 0), aspect="equal")
    axis.axis("off")
    axis.set_title(heading, fontsize=11)
    figure.subplots_adjust(0, 0, 1, 1)
    return save(figure, path)


def curves(rows: Rows, path: Path, monitor: str, best_epoch: int | None = None) -> Path:
    """Loss, the objective and the learning rate by epoch, on training (own batches) and validation."""
    objective = monitor.removeprefix("val_")
    names = [name for name in dict.fromkeys(("loss", objective)) if name in rows[0]]
    figure, ((*axes, last),) = canvas(4.2 * (len(names) + 1), 3.4, 1, len(names) + 1)
    epochs = [row["epoch"] for row in rows]
    for axis, name in zip(axes, names):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            if key in rows[0]:
                axis.plot(epochs, [row[key] for row in rows], label=label, marker="." if len(rows) < 3 else None)
        if best_epoch:
            axis.axvline(best_epoch, color="grey", linewidth=0.8, linestyle=":", label="best epoch")
        axis.set(title=name, xlabel="epoch")
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    last.plot(epochs, [row["learning_rate"] for row in rows], color="grey", marker="." if len(rows) < 3 else None)
    last.set(title="learning rate", xlabel="epoch")
    last.grid(alpha=0.25)
    figure.tight_layout()
    return save(figure, path)


def overlaid_curves(histories: Mapping[str, Rows], path: Path) -> Path:
    """Validation loss and the other validation measures of several runs, a colour each."""
    names: list[str] = []
    for rows in histories.values():
        names += [name for name in (rows[0] if rows else ()) if name.startswith("val_") and name not in names]
    figure, axes = canvas(5 * max(1, len(names)), 3.6, 1, max(1, len(names)))
    for axis, name in zip(axes[0], names):
        for run, rows in histories.items():
            axis.plot([row["epoch"] for row in rows], [row.get(name, math.nan) for row in rows], label=run, marker=".")
        axis.set(title=name, xlabel="epoch")
        axis.grid(alpha=0.25)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    return save(figure, path)


def confusion(labels, predictions, classes: Sequence[str], path: Path) -> Path:
    """Confusion matrix on the test split: rows are true classes, columns are answers, counts in the cells."""
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

    matrix = confusion_matrix(labels, predictions, labels=range(len(classes)))
    side = min(20.0, 3.2 + 0.42 * len(classes))
    figure, ((axis,),) = canvas(side, side)
    numbers = len(classes) <= 30
    display = ConfusionMatrixDisplay(matrix, display_labels=classes if numbers else None)
    display.plot(ax=axis, include_values=numbers, cmap="Blues", colorbar=False, xticks_rotation="vertical")
    right = matrix.trace() / max(1, matrix.sum())
    axis.set(title=f"test split: {matrix.trace()} of {matrix.sum()} right ({right:.2%})")
    return save(figure, path)


def rate_sweep(rates: Sequence[float], losses: Sequence[float], chosen: float, path: Path) -> Path:
    """Smoothed loss against the learning rate of `--lr_find`, with the rate it chose."""
    figure, ((axis,),) = canvas(6, 3.6)
    axis.semilogx(rates, losses)
    axis.axvline(chosen, color="firebrick", linestyle=":", label=f"chosen: {chosen:g}")
    axis.set(xlabel="learning rate", ylabel="smoothed training loss", title="learning-rate sweep")
    axis.grid(alpha=0.25)
    axis.legend()
    return save(figure, path)


def model_card(
    folder: Path, title: str, command: str, *, inputs: str, limits: str, pictures: Sequence[str] = ("curves",)
) -> Path:
    """`card.md`: what the model is, what it was trained on, how well it does, written from the run's files alone.

    Args:
        folder: the run folder, with `metrics.json` and `spec.json`.
        title: the first line.
        command: what trained it.
        inputs: what the model takes, in a line.
        limits: what its answers are not good for.
        pictures: names in `plots/`, the first first.
    """
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    spec: dict[str, Any] = json.loads((folder / "spec.json").read_text())
    measures = [name for name in metrics["test"] if isinstance(metrics["test"][name], float)]
    baselines = [metrics["baseline"], *metrics.get("baselines", [])]
    columns = ["measure", "validation", "test", *(one["model"] for one in baselines)]
    lines = [
        f"# {title}",
        "",
        f"Trained with `{command}`.",
        "",
        f"| {' | '.join(columns)} |",
        f"| {' | '.join(['---'] * len(columns))} |",
    ]
    for name in measures:
        cells = (one.get(name) for one in (metrics["validation"], metrics["test"], *baselines))
        lines.append(f"| {name} | " + " | ".join("" if c is None else f"{c:.4f}" for c in cells) + " |")
    lines += ["", "The test split was evaluated once, with the weights that were best on the validation split."]
    lines += ["The columns after it are baselines on the same split."]
    if "majority_accuracy" in metrics["baseline"]:
        lines += [f"Always answering the commonest class: {metrics['baseline']['majority_accuracy']:.4f}."]
    lines += [
        "",
        "## Data",
        "",
        f"- {spec['dataset']}{': ' * bool(spec['about'])}{spec['about']}",
        f"- examples: {', '.join(f'{count} {part}' for part, count in spec['counts'].items())}",
        *([f"- classes: {listed(spec['classes'])}"] if "classes" in spec else []),
        f"- input: {inputs}",
        "",
        "## Training",
        "",
        f"- {metrics['parameters']:,} parameters, {metrics['epochs']} epochs, {metrics['steps']} steps, "
        f"{metrics['train_seconds']} s, best epoch {metrics['best_epoch']}",
        f"- peak memory {metrics['peak_memory_mb']} MB",
        f"- versions: {', '.join(f'{k} {v}' for k, v in metrics['versions'].items())}",
        "",
        "## Limits",
        "",
        limits,
        "",
        *(f"![{name.replace('_', ' ')}](plots/{name}.png)" for name in pictures),
    ]
    path = folder / "card.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def listed(names: Sequence[Any], most: int = 50) -> str:
    """The first names of a list, and an ellipsis where there are more."""
    return ", ".join(map(str, names[:most])) + " …" * (len(names) > most)
