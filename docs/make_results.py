"""Runs every pipeline with its defaults, the first model for three seeds and the others once, and keeps the results.

    python -m docs.make_results                                 all tasks; an hour on two idle cores
    python -m docs.make_results image_classification            one task
    python -m docs.make_results image_classification mlp vit    these models again; the others stay

Each row is one or more runs of a pipeline's `main` with default flags but `--model`, `--seed` and what `MORE` adds; the
figures are read from their metrics.json. Writes docs/results/<task>.json, which `python -m docs.make_pages` puts into
docs/tasks/<task>.md, and the picture of docs/images that the page shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pipelines
from docs.pictures import IMAGES, copied

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs/results"
SEEDS = (0, 1, 2)  # of the model that a task takes by default
# Further rows of that model, with other flags.
MORE: dict[str, list[dict[str, Any]]] = {
    "text_classification": [{"dataset": "tiny_snippets"}],
    "translation": [{"dataset": "tiny_messages"}],
    "forecasting": [{"dataset": "tiny_sunspots"}, {"dataset": "tiny_series"}],
}
# Flags of models that the default ones do not suit, in all tasks or in one.
OWN: dict[str, dict[str, Any]] = {
    "bert_classifier": {"learning_rate": 0.0005},
    "bert_token_classifier": {"model_args": "positions=rotary", "learning_rate": 0.001, "batch_size": 32, "epochs": 8},
    "xlnet_classifier": {"learning_rate": 0.0005},
    "translation t5": {"optimizer": "adafactor", "learning_rate": 0.02},
    "text_to_text transformer": {"optimizer": "adam", "learning_rate": 0.001},
}
# Plots of a default run that a page shows.
SHOWN = {"translation": "alignments", "forecasting": "forecasts", "text_to_text": "rouge"}


def metrics(task: str, flags: dict[str, Any]) -> dict[str, Any]:
    """What one run measured, in a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        words = [f"--{name}={value}" for name, value in flags.items()]
        command = [sys.executable, "-m", f"pipelines.{task}", *words, "--out", out]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        (path,) = Path(out).glob(f"{task}/*/metrics.json")
        if task in SHOWN and flags == {"model": pipelines.get(task).Config().model, "seed": SEEDS[0]}:
            copied(path.parent / f"plots/{SHOWN[task]}.png", IMAGES / f"{SHOWN[task]}.png")
        return json.loads(path.read_text())


def row(task: str, model: str, flags: dict[str, Any], seeds: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row of a model, and the versions it was measured with."""
    found = []
    for seed in seeds:
        one = metrics(task, {"model": model, "seed": seed, **flags})
        found.append(one)
        measure = one["objective"][0]
        print(
            f"{task} {model} {flags} seed {seed}: {measure} {one['test'][measure]} in {one['train_seconds']} s",
            flush=True,
        )

    def gathered(part: str) -> dict[str, list[float]]:
        return {name: [one[part][name] for one in found] for name, x in found[0][part].items() if isinstance(x, float)}

    return {
        "model": model,
        "flags": flags,
        "parameters": found[0]["parameters"],
        "seeds": seeds,
        "test": gathered("test"),
        "baseline": gathered("baseline"),
        "groups": {  # parts of the test split that a task reports apart
            group: {name: [one[key][group][name] for one in found] for name, x in first.items() if isinstance(x, float)}
            for key in ("tasks", "groups")
            for group, first in found[0].get(key, {}).items()
        },
        "baseline_model": found[0]["baseline"]["model"],
        "train_seconds": [one["train_seconds"] for one in found],
        "checkpoint_seconds": [one["checkpoint_seconds"] for one in found],
    }, found[0]["versions"]


def record(task: str, chosen: list[str]) -> None:
    """Run the rows of a task, all of them or those of some models, and write its file."""
    pipeline: Any = pipelines.get(task)
    default = pipeline.Config().model
    planned: list[tuple[str, dict[str, Any], tuple[int, ...]]]
    own = {model: OWN.get(f"{task} {model}", OWN.get(model, {})) for model in pipeline.MODELS}
    planned = [(model, flags, SEEDS if model == default else SEEDS[:1]) for model, flags in own.items()]
    planned += [(default, flags, SEEDS[:1]) for flags in MORE.get(task, [])]
    path = RESULTS / f"{task}.json"
    before = (
        {str((one["model"], one["flags"])): one for one in json.loads(path.read_text())["rows"]}
        if path.exists()
        else {}
    )
    for model, flags, seeds in planned:
        if chosen and model not in chosen:
            continue
        before[str((model, flags))], versions = row(task, model, flags, seeds)
        machine = {**{k: v for k, v in versions.items() if k != "devices"}, "cores": os.cpu_count()}
        rows = [before[key] for key in (str(plan[:2]) for plan in planned) if key in before]
        content = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "rows": rows}
        path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{path.relative_to(ROOT)} written; next: python -m docs.make_pages")


def main(task: str | None = None, *models: str) -> None:
    for name in [task] if task else pipelines.TASKS:
        record(name, list(models))


if __name__ == "__main__":
    main(*sys.argv[1:])
