"""Parameters of models that are too big to be made."""

from __future__ import annotations

from collections.abc import Callable

import keras


def parameters(builder: Callable[..., keras.Model], *positional, **keywords) -> int:
    """Parameters of what a builder builds, without its weights being made: they have shapes, and no values."""
    try:
        with keras.StatelessScope(initialize_variables=False):
            return builder(*positional, **keywords).count_params()
    finally:
        keras.utils.clear_session()  # Keras would make them when the next model is built
