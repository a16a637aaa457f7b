"""A function that reads a model's weights, compiled once, by Keras and so under every backend."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops


class Compiled(keras.Model):
    """Calls a function as one graph (TensorFlow) or one program of XLA (JAX); PyTorch runs it as it is.

    Args:
        model: whose weights the function reads.
        function: of nested tensors, to nested tensors.
        memory: variables beside the weights, which the function may also assign.

    Call it by `predict_on_batch(arrays)`, which returns arrays.
    """

    def __init__(self, model: keras.Model, function: Callable[[Any], Any], memory: Sequence[keras.Variable] = ()):
        super().__init__(name=f"compiled_{model.name}", dtype="float32")  # which inputs keep under every policy
        self.model, self.function, self.memory = model, function, list(memory)
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
