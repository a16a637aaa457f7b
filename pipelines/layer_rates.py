"""Learning rates that differ from layer to layer and from step to step, for every optimizer of Keras.

The rate of a variable is that of the optimizer times a function of the variable and of the step. It scales the update
itself, not the gradient, whose scale Adam does not feel; and being a function of the step it needs no state, so that a
resumed run goes on as if it had never stopped. A rate of 0 leaves a weight as it is, bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

import keras
from keras import ops

BLOCK = re.compile(r"(block|encoder|decoder)\d+")  # names of the blocks of our transformers

Multiplier = Callable[[str, Any], Any]  # from a variable's path and the step to what its learning rate is multiplied by


def levels(model: keras.Model, head: Collection[str]) -> dict[str, int]:
    """The height of every layer: 0 of embeddings, 1 of the first block, …, and the head's above the last block.

    Args:
        model: a transformer of `models/`, whose blocks are layers named `block1`, or `encoder1` and `decoder1`.
        head: names of the layers of heads; those that the model lacks do not matter.

    Returns:
        {path of a weight: its height}. What comes after a block and is no head, as a last normalization, goes with it.
    """
    height = 0
    found: dict[str, int] = {}
    for layer in model.layers:
        height += bool(BLOCK.fullmatch(layer.name))
        found |= {weight.path: height for weight in layer.weights}
    top = [weight.path for layer in model.layers if layer.name in head for weight in layer.weights]
    return found | dict.fromkeys(top, height + 1)


def decayed(heights: dict[str, int], decay: float, unfreeze_every: int = 0) -> Multiplier:
    """Lower rates for lower layers, and, if wanted, none before their time has come.

    Args:
        heights: of `levels`.
        decay: the rate at a height is that of the height above it times this.
        unfreeze_every: the highest layers are trained from the first step on, those of the next height after so many
            steps, and so on; 0: all from the first step on.

    Reference: Howard and Ruder 2018, "Universal language model fine-tuning for text classification", section 3.2 and
        3.3; Clark et al. 2020, "ELECTRA", appendix B, for the decay.
    """
    top = max(heights.values(), default=0)

    def multiplier(path: str, step: Any) -> Any:
        below = top - heights[path]
        rate = decay**below
        if not unfreeze_every or not below:
            return rate
        return ops.where(step >= below * unfreeze_every, rate, 0.0)

    return multiplier


def scaled(optimizer: type[keras.optimizers.Optimizer], multiplier: Multiplier) -> type[keras.optimizers.Optimizer]:
    """A class of optimizer whose learning rate is another one for each variable, weight decay included.

    What it saves is the configuration of `optimizer`, with the same variables, and is loaded as such.

    Args:
        optimizer: a class of Keras's optimizers.
        multiplier: of the rate.
    """

    class Scaled(optimizer):
        rates = staticmethod(multiplier)

        def _multiplier(self, variable):
            known = self._trainable_variables[self._get_variable_index(variable)]  # Keras's, of TensorFlow's
            return multiplier(known.path, self._iterations)

        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate * self._multiplier(variable))

        def _apply_weight_decay(self, variables):  # Keras has one learning rate for all of them
            for variable in variables:
                self.share = self._multiplier(variable)
                super()._apply_weight_decay([variable])
            self.share = None

        def _get_current_learning_rate(self):
            rate, share = super()._get_current_learning_rate(), getattr(self, "share", None)
            return rate if share is None else rate * share

    Scaled.__name__, Scaled.__qualname__ = optimizer.__name__, optimizer.__qualname__
    Scaled.__module__ = optimizer.__module__
    return Scaled
