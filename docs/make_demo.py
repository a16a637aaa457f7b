"""Runs `python -m serving.demo` and keeps what README.md shows of it: what it printed, and its pictures.

    python -m docs.make_demo

Writes docs/results/demo.txt and docs/images/*.png (less than 300 kB in all); then `python -m docs.make_pages` puts the
text into the README. About two minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from docs.pictures import IMAGES, copied

ROOT = Path(__file__).resolve().parent.parent
PLOTS = ("first_batch", "curves", "confusion_matrix", "most_wrong", "served")


def run(folder: Path) -> str:
    """What the demonstration prints, run with its defaults in an empty folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    words = [sys.executable, "-m", "serving.demo"]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return done.stdout.replace(f"{folder.resolve()}/", "").replace(str(folder.resolve()), ".")


def shortened(text: str) -> str:
    """Without the epochs between the first and the last two, the server's log and most of the rows of answers."""
    lines = [line.rstrip() for line in text.splitlines()]
    epochs = [i for i, line in enumerate(lines) if re.match(r"Epoch \d+/\d+", line)]
    lines[epochs[1] : epochs[-1]] = ["…"]
    rows = [i for i, line in enumerate(lines) if re.match(r"\d\d-is-", line)]
    table = [i for i in rows if i > max((i for i, line in enumerate(lines) if line.startswith("picture ")), default=0)]
    if len(table) > 6:
        lines[table[3] : table[-1]] = ["…"]
    return "\n".join(lines).strip() + "\n"


def draw_augmentations(path: Path) -> None:
    """Two pictures under every augmentation, at its default amount."""
    import tensorflow as tf

    from pipelines import datasets, report
    from pipelines.transforms import augment, images

    raw = list(datasets.load("tiny_photos").train.take(64))
    raw.sort(key=lambda one: -float(np.std(images.decode(one["image"]))))  # the two with most to see come first
    pixels = tf.stack([images.decode(one["image"]) for one in raw])  # (64, 32, 32, 3)
    labels = tf.one_hot([int(one["label"]) for one in raw], 2)
    shown, titles = [pixels[0], pixels[1]], ["as it is", "as it is"]
    for name in augment.NAMES:
        changed, _ = augment.augmentation([name], 3, 2)(tf.constant(1), pixels, labels)
        shown += [changed[0], changed[1]]
        titles += [name, name]
    grid = np.stack([np.clip(np.asarray(one), 0, 255).astype("uint8") for one in shown])  # (n, 32, 32, 3)
    report.image_grid(grid, titles, path)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = run(folder)
        (plots,) = folder.glob("runs/image_classification/*/plots")
        for plot in PLOTS:
            copied(plots / f"{plot}.png", IMAGES / f"{plot}.png")
        digit = sorted((plots.parent / "pictures").glob("*-is-3.png"))[0]
        (IMAGES / "digit-3.png").write_bytes(digit.read_bytes())
        draw_augmentations(folder / "augmentations.png")
        copied(folder / "augmentations.png", IMAGES / "augmentations.png")
    (ROOT / "docs/results/demo.txt").write_text(shortened(text))
    size = sum(path.stat().st_size for path in IMAGES.glob("*.png"))
    print(f"docs/results/demo.txt and {size / 1e3:.0f} kB of pictures written; next: python -m docs.make_pages")


if __name__ == "__main__":
    main()
