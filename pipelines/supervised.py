"""The steps that the `main` of every supervised task takes between its own: find a rate, train and keep, finish."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines import report, runs, training
from pipelines.config import TrainingConfig, command_line

Batches = Callable[[int], Any]  # of a global step: the endless training batches that begin there


def with_found_rate(
    model: Any, batches: Batches, recompile: Callable[[Any, Any, dict], None], config: Any, spec: dict, folder: Path
) -> Any:
    """`--lr_find`: sweep, draw, recompile with the suggested rate, and keep it in `config.json`.

    Args:
        model: compiled model; its weights are left as they are.
        batches: of the training split.
        recompile: the task's `compile_model`.
        config: the run's configuration.
        spec: of the data.
        folder: the run folder.

    Returns:
        The configuration with the rate that was found; as it was given where `--lr_find` is off.
    """
    if not config.lr_find:
        return config
    chosen, rates, losses = training.find_learning_rate(model, batches(0), config)
    report.rate_sweep(rates, losses, chosen, folder / "plots/lr_find.png")
    print(f"learning rate {chosen:g} (from the sweep in {folder / 'plots/lr_find.png'})")
    config = dataclasses.replace(config, learning_rate=chosen, lr_find=False)
    with training.replicas(config):
        recompile(model, config, spec)
    runs.write_json(folder / "config.json", runs.to_json(dataclasses.replace(config, resume=None)))
    return config


def train(
    model: Any,
    batches: Batches,
    validation: Any,
    config: TrainingConfig,
    spec: Mapping[str, Any],
    folder: Path,
    monitor: str,
    mode: str,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """`training.fit`, with the task's own `callbacks`, then `model.keras` with the best weights and `plots/curves.png`.

    Returns:
        What `training.fit` returns.
    """
    examples = spec["counts"]["train"]
    fitted = training.fit(
        model,
        batches,
        validation,
        config,
        folder,
        examples=examples,
        monitor=monitor,
        mode=mode,
        callbacks=callbacks,
    )
    runs.save_model(model, folder / "model.keras")
    report.curves(runs.history(folder), folder / "plots/curves.png", monitor, fitted["best_epoch"])
    return fitted


def finish(
    task: str,
    objective: tuple[str, str],
    model: Any,
    config: TrainingConfig,
    spec: Mapping[str, Any],
    folder: Path,
    found: Mapping[str, Any],
    *,
    inputs: str,
    limits: str,
    pictures: Sequence[str],
) -> dict[str, Any]:
    """Write `metrics.json` and `card.md`.

    Args:
        task: its name.
        objective: what a search optimizes.
        model: the trained model.
        config: the run's configuration.
        spec: of the data.
        folder: the run folder.
        found: `validation`, `test` and `baseline`, what else the task measured, and what `train` returned.
        inputs: see `report.model_card`, as `limits` and `pictures`.

    Returns:
        The content of `metrics.json`.
    """
    metrics = {
        "task": task,
        "objective": objective,
        **found,
        **training.parameters(model),
        "peak_memory_mb": runs.peak_memory_mb(),
        "versions": training.environment(),
    }
    runs.write_json(folder / "metrics.json", metrics)
    command = f"python -m pipelines.{task} {command_line(dataclasses.replace(config, resume=None))}"
    title = f"{config.model} on {spec['dataset']}"
    report.model_card(folder, title, command.strip(), inputs=inputs, limits=limits, pictures=pictures)
    return metrics
