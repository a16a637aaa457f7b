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
    difference = {}
    for name, (module, positional, kwargs) in json.loads((folder / "builders.json").read_text()).items():
        with np.load(folder / f"{name}.npz") as file:
            arrays = {key: file[key] for key in file.files}
        answers = arrays.pop("answers")
        inputs = arrays if len(arrays) > 1 else next(iter(arrays.values()))
        builder = getattr(import_module(module), name)  # imported first: loading needs the file's layers
        loaded = keras.saving.load_model(folder / f"{name}.keras")
        rebuilt = builder(*positional, **kwargs)
        rebuilt.set_weights(loaded.get_weights())
        difference[name] = max(
            float(np.abs(keras.ops.convert_to_numpy(model(inputs)) - answers).max()) for model in (loaded, rebuilt)
        )
        rebuilt(inputs, training=True)  # noise and moving statistics run on this backend, too
    return {"backend": keras.backend.backend(), "difference": difference}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
