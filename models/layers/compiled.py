"""A function that reads a model's weights, compiled once, by Keras and so under every backend."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops


class Compiled(keras.Model):
    """Calls a function as one graph (TensorFlow) or one program of XLA (JAX); PyTorch runs it as it is.

    Args:
        model: whose weights the function reads.
        function: of one tensor, to nested tensors.

    Call it by `predict_on_batch(array)`, which returns arrays.
    """

    def __init__(self, model: keras.Model, function: Callable[[Any], Any]):
        super().__init__(name=f"compiled_{model.name}")
        self.model, self.function = model, function
        self.built = True
        self.compile(optimizer=None, jit_compile=keras.backend.backend() == "jax")

    def call(self, inputs):
        return self.function(inputs)


def known(tensor: Any):
    """The values of a tensor as an array; None where it has none yet, since a graph is being traced."""
    try:
        return ops.convert_to_numpy(tensor)
    except (NotImplementedError, TypeError, AttributeError):
        return None
