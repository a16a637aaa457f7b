"""Runs the default pipeline for three seeds, and every other architecture once, and keeps what they reached.

    python -m docs.make_results           about ten minutes on two idle cores
    python -m docs.make_results mlp vit   these again; the others stay

Each row is one or more runs of `pipelines.image_classification.main` with default flags but `--model` and `--seed`;
the figures are read from their metrics.json. Writes docs/results/image_classification.json, which
`python -m docs.make_pages` puts into docs/tasks/image_classification.md.
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

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "docs/results/image_classification.json"
TASK = "image_classification"
SEEDS = {"convnet": (0, 1, 2)}


def metrics(model: str, seed: int) -> dict[str, Any]:
    """What one default run measured, in a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        words = [sys.executable, "-m", f"pipelines.{TASK}", "--model", model, "--seed", str(seed), "--out", out]
        subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        (path,) = Path(out).glob(f"{TASK}/*/metrics.json")
        return json.loads(path.read_text())


def row(model: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row of a model, and the versions it was measured with."""
    seeds = SEEDS.get(model, (0,))
    found = []
    for seed in seeds:
        found.append(metrics(model, seed))
        accuracy, seconds = found[-1]["test"]["accuracy"], found[-1]["train_seconds"]
        print(f"{model} seed {seed}: {accuracy:.2%} in {seconds:.0f} s", flush=True)
    return {
        "model": model,
        "parameters": found[0]["parameters"],
        "seeds": seeds,
        "test_accuracy": [one["test"]["accuracy"] for one in found],
        "baseline_accuracy": [one["baseline"]["accuracy"] for one in found],
        "train_seconds": [one["train_seconds"] for one in found],
        "checkpoint_seconds": [one["checkpoint_seconds"] for one in found],
    }, found[0]["versions"]


def main() -> None:
    import pipelines

    models = pipelines.get(TASK).MODELS
    chosen = sys.argv[1:] or list(models)
    before = {one["model"]: one for one in json.loads(RESULT.read_text())["rows"]} if RESULT.exists() else {}
    versions: dict[str, Any] = {}
    for model in chosen:
        before[model], versions = row(model)
        machine = {**{k: v for k, v in versions.items() if k != "devices"}, "cores": os.cpu_count()}
        rows = [before[name] for name in models if name in before]
        content = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "rows": rows}
        RESULT.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{RESULT.relative_to(ROOT)} written; next: python -m docs.make_pages")


if __name__ == "__main__":
    main()
