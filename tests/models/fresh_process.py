"""Run by test_builders in a process of its own, under any backend: loads saved models, rebuilds them, compares answers.

KERAS_BACKEND=jax python tests/models/fresh_process.py FOLDER
"""

import json
import sys
from importlib import import_module
from pathlib import Path

import keras
import numpy as np


def main(folder: Path) -> dict:
    """Largest difference of each model's answers, loaded and rebuilt, from those of the process that saved them."""
    images = np.load(folder / "images.npy")
    answers = np.load(folder / "answers.npz")
    arguments = json.loads((folder / "arguments.json").read_text())
    difference = {}
    for name, kwargs in arguments.items():
        builder = getattr(import_module(f"models.{name}"), name)
        loaded = keras.saving.load_model(folder / f"{name}.keras")
        rebuilt = builder(images.shape[1:], answers[name].shape[-1], **kwargs)
        rebuilt.set_weights(loaded.get_weights())
        difference[name] = max(
            float(np.abs(keras.ops.convert_to_numpy(model(images)) - answers[name]).max())
            for model in (loaded, rebuilt)
        )
        rebuilt(images, training=True)  # noise and moving statistics run on this backend, too
    return {"backend": keras.backend.backend(), "difference": difference}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
