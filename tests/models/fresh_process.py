"""Run by test_builders in a process of its own, under any backend: loads saved models, rebuilds them, compares answers.

KERAS_BACKEND=jax python tests/models/fresh_process.py FOLDER

JAX compiles: each model once and whole (one operation at a time takes twice as long), and no random first values,
which it would compile for every shape and the saved ones replace.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

import keras
import numpy as np


def draw_first_values_by_numpy() -> None:
    """Random initializers, for all models from here on."""
    noise = np.random.default_rng(0)

    def draw(self, shape, dtype=None):
        return keras.ops.convert_to_tensor(noise.normal(0, 0.05, shape), dtype or "float32")

    kinds = keras.initializers
    for kind in (kinds.VarianceScaling, kinds.RandomNormal, kinds.TruncatedNormal, kinds.Orthogonal):
        kind.__call__ = draw


def run(loaded, rebuilt, inputs):
    """The answers of both, and those of the second in training: noise and moving statistics run, too."""
    calls = ((loaded, False), (rebuilt, False), (rebuilt, True))
    if keras.backend.backend() != "jax":
        return [model(inputs, training=training) for model, training in calls]
    import jax

    def answers(variables, inputs):
        return [
            model.stateless_call(*values, inputs, training=training)[0]
            for (model, training), values in zip(calls, variables)
        ]

    variables = [
        [[weight.value for weight in part] for part in (model.trainable_variables, model.non_trainable_variables)]
        for model, _ in calls
    ]
    return jax.jit(answers)(variables, inputs)


def main(folder: Path) -> dict:
    """Largest difference of each model's answers, loaded and rebuilt, from those of the process that saved them."""
    draw_first_values_by_numpy()
    difference = {}
    for name, (module, positional, kwargs) in json.loads((folder / "builders.json").read_text()).items():
        with np.load(folder / f"{name}.npz") as file:
            arrays = {key: file[key] for key in file.files}
        wanted = arrays.pop("answers")
        inputs = arrays if len(arrays) > 1 else next(iter(arrays.values()))
        builder = getattr(import_module(module), name)  # imported first: loading needs the file's layers
        loaded = keras.saving.load_model(folder / f"{name}.keras")
        rebuilt = builder(*positional, **kwargs)
        rebuilt.set_weights(loaded.get_weights())
        found = [keras.ops.convert_to_numpy(one) for one in run(loaded, rebuilt, inputs)]
        apart = [np.nan_to_num(np.abs(one - wanted), nan=np.inf) for one in found[:2]]
        difference[name] = float(np.max(apart))
    return {"backend": keras.backend.backend(), "difference": difference}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
