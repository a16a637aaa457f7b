"""Losses that Keras lacks."""

from __future__ import annotations

import keras
from keras import ops


@keras.saving.register_keras_serializable("dl_essentials")
class TokenCrossentropy(keras.losses.Loss):
    """Cross-entropy of token ids from logits, with label smoothing, averaged over the sample weights.

    `-(1 - ε) log p_y - ε/v Σ_j log p_j` for each token, without a one-hot tensor (b, t, v) of targets: what Keras's
    categorical loss needs for label smoothing. Padding is what has a sample weight of 0.

    Args:
        label_smoothing: ε, the share that is spread over all of the vocabulary.

    Input shape:
        token ids (b, t), logits (b, t, v), sample weights (b, t).

    Reference: Szegedy et al. 2016, section 7; Vaswani et al. 2017, section 5.4.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        *,
        name: str = "token_crossentropy",
        reduction: str = "mean_with_sample_weight",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1). Received: {label_smoothing}")
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        logs = ops.log_softmax(ops.cast(y_pred, "float32"), axis=-1)  # (b, t, v)
        token_ids = ops.cast(y_true, "int32")[..., None]  # (b, t, 1)
        loss = -ops.squeeze(ops.take_along_axis(logs, token_ids, axis=-1), axis=-1)  # (b, t)
        if self.label_smoothing:
            loss = (1 - self.label_smoothing) * loss - self.label_smoothing * ops.mean(logs, axis=-1)
        return loss

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable("dl_essentials")
class SpanCrossentropy(keras.losses.Loss):
    """Cross-entropy of where a span starts and where it ends, the mean of both.

    `-½ log softmax(s)_i - ½ log softmax(e)_j` of a span from `i` to `j`; both distributions are over all of a row's
    places.

    Input shape:
        the first and the last place of the span (b, 2), logits (b, t, 2).

    Reference: Devlin et al. 2019, section 4.2.
    """

    def __init__(self, *, name: str = "span_crossentropy", reduction: str = "mean_with_sample_weight", dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def call(self, y_true, y_pred):
        logs = ops.log_softmax(ops.cast(y_pred, "float32"), axis=1)  # (b, t, 2)
        places = ops.cast(y_true, "int32")[:, None]  # (b, 1, 2)
        return -ops.mean(ops.take_along_axis(logs, places, axis=1), axis=(1, 2))  # (b,)
