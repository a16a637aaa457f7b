"""Activations that Keras has under no name of their own."""

from collections.abc import Callable

import keras
from keras import ops


@keras.saving.register_keras_serializable("dl_essentials")
def gelu_tanh(x):
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), in which GPT-2 and T5 v1.1 were trained.

    Reference: Hendrycks and Gimpel 2016, "Gaussian error linear units (GELUs)", section 2.
    """
    return ops.gelu(x, approximate=True)


def get(name: str) -> Callable:
    """An activation by its name: "gelu_tanh", or one of Keras's; "gelu" is the exact one.

    Raises:
        ValueError: no such activation.
    """
    return gelu_tanh if name == "gelu_tanh" else keras.activations.get(name)
