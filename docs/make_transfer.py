"""Pretrains on code, fine-tunes on snippets of code, and keeps what that is worth beside the same model from nothing.

    python -m docs.make_transfer                            a quarter of an hour on two idle cores
    python -m docs.make_transfer runs/pretraining/RUN       with a run of these flags that is there

BERT is pretrained on `tiny_code_apart`, which has no text of the test split of `tiny_snippets`, with the flags of
`PRETRAINED`. A run of one step at a rate of almost 0 for each seed of `SEEDS` is the same model, with the same
tokenizer, from nothing. All are fine-tuned on `tiny_snippets` with the same flags, `FINETUNED`, and each seed. The
figures are read from their metrics.json into docs/results/transfer.json, which `python -m docs.make_pages` puts into
the page of pretraining.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "docs/results/transfer.json"
SEEDS = (0, 1, 2)
PRETRAINED: dict[str, Any] = {"dataset": "tiny_code_apart", "sentences": "nsp", "epochs": 15}
NOTHING: dict[str, Any] = {"steps": 1, "learning_rate": 1e-12, "evaluated": 64}
FINETUNED: dict[str, Any] = {
    "dataset": "tiny_snippets",
    "model": "bert_classifier",
    "max_length": 96,
    "epochs": 3,
    "batch_size": 32,
    "learning_rate": 5e-4,
}


def run(task: str, flags: dict[str, Any], out: str) -> tuple[Path, dict[str, Any]]:
    """The folder and the metrics of one run, in a process of its own."""
    before = set(Path(out).glob(f"{task}/*"))
    words = [f"--{name}={value}" for name, value in flags.items()]
    command = [sys.executable, "-m", f"pipelines.{task}", *words, "--out", out]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (folder,) = set(Path(out).glob(f"{task}/*")) - before
    return folder, json.loads((folder / "metrics.json").read_text())


def main(pretrained: str | Path | None = None) -> None:
    with tempfile.TemporaryDirectory() as out:
        if pretrained is None:
            pretrained, _ = run("pretraining", PRETRAINED, out)
        measured = json.loads((Path(pretrained) / "metrics.json").read_text())
        print(f"pretrained: {measured['test']} in {measured['train_seconds']} s", flush=True)
        rows: dict[str, list[float]] = {"pretrained": [], "from nothing": []}
        linear: list[float] = []
        for seed in SEEDS:
            nothing, _ = run("pretraining", PRETRAINED | NOTHING | {"seed": seed}, out)
            for name, source in (("pretrained", pretrained), ("from nothing", nothing)):
                _, found = run("text_classification", FINETUNED | {"seed": seed, "pretrained": source}, out)
                rows[name].append(found["test"]["accuracy"])
                linear.append(found["baseline"]["accuracy"])
                print(f"{name}, seed {seed}: {rows[name][-1]} in {found['train_seconds']} s", flush=True)
    gains = [one - other for one, other in zip(rows["pretrained"], rows["from nothing"])]
    content = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {k: v for k, v in measured["versions"].items() if k != "devices"} | {"cores": os.cpu_count()},
        "pretraining": {
            "flags": PRETRAINED,
            "steps": measured["steps"],
            "train_seconds": measured["train_seconds"],
            "parameters": measured["parameters"],
            "test": measured["test"],
            "baseline": measured["baseline"],
        },
        "fine_tuning": FINETUNED,
        "seeds": SEEDS,
        "accuracy": rows,
        "gain": {"each": gains, "mean": statistics.mean(gains), "deviation": statistics.stdev(gains)},
        "tfidf_accuracy": statistics.mean(linear),
    }
    PATH.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{PATH.relative_to(ROOT)} written: a gain of {content['gain']}; next: python -m docs.make_pages")


if __name__ == "__main__":
    main(*sys.argv[1:])
