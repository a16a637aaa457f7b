"""Forecasters: a recurrent, a convolutional or a transformer trunk reads a window, a head tells the steps after it.

    python -m pipelines.forecasting
    python -m pipelines.forecasting --model transformer_forecaster --model_args head=autoregressive

All three read the same inputs and share the ends. Each window is normalized by its own statistics, which are put back
on the forecast (Kim et al. 2022), so that a trend need not be learned by heart. The head is direct, all steps at once
(Wen et al. 2017), or autoregressive: the median is fed back, in training as in use. Quantiles never cross.
Deviations: layer normalization and no weight normalization in the TCN; no affine parameters in the normalization of
windows; the autoregressive head is trained on its own forecasts and not on the truth, so that its quantiles become as
wide as errors are at a far step.
"""

from collections.abc import Sequence

import keras
from keras import ops

from models.layers.classification import check_choice, check_sizes
from models.layers.forecasting import Autoregressive, Direct, Restore, WindowNormalization
from models.layers.trunks import RecurrentTrunk, TemporalTrunk, TransformerTrunk

SIZES: dict[str, dict] = {}
register = keras.saving.register_keras_serializable("dl_essentials")


@register
class PinballLoss(keras.losses.Loss):
    """Mean over the quantiles of max(l e, (l - 1) e) with e = truth - forecast, weighted by step and target.

    Input shape: truth (b, h, m, 2): the value and its weight, 0 where it is missing; forecast (b, h, m, q).

    Args:
        levels: of the quantiles, q numbers between 0 and 1.

    Reference: Koenker and Bassett 1978, "Regression quantiles", eq. 1.5.
    """

    def __init__(self, levels: Sequence[float] = (0.5,), name: str = "pinball", **kwargs):
        super().__init__(name=name, **kwargs)
        self.levels = list(levels)

    def call(self, y_true, y_pred):
        levels = ops.convert_to_tensor(self.levels, dtype=y_pred.dtype)
        error = y_true[..., :1] - y_pred  # (b, h, m, q)
        return ops.mean(ops.maximum(levels * error, (levels - 1) * error), axis=-1) * y_true[..., 1]

    def get_config(self):
        return super().get_config() | {"levels": self.levels}


@register
class ScaledError(keras.metrics.Mean):
    """Mean of |truth - middle quantile| · weight where the weight is above 0; shapes as in `PinballLoss`.

    With the weight 1 / (error of the seasonal naive forecast in training) it is the mean absolute scaled error.

    Reference: Hyndman and Koehler 2006, "Another look at measures of forecast accuracy", section 2.5.
    """

    def __init__(self, name: str = "mase", dtype=None):
        super().__init__(name=name, dtype=dtype)

    def update_state(self, y_true, y_pred, sample_weight=None):
        truth, weight = y_true[..., 0], y_true[..., 1]
        error = ops.abs(truth - y_pred[..., y_pred.shape[-1] // 2]) * weight
        return super().update_state(error, sample_weight=ops.cast(weight > 0, error.dtype))


def recurrent_forecaster(
    history_shape,
    horizon: int,
    num_targets: int = 1,
    num_known: int = 0,
    num_series: int = 1,
    num_quantiles: int = 1,
    *,
    cell: str = "gru",
    width: int = 48,
    depth: int = 1,
    head: str = "direct",
    normalization: str = "mean",
    dropout: float = 0.0,
    name: str = "recurrent_forecaster",
) -> keras.Model:
    """Builds a forecaster with stacked recurrent layers.

    Args:
        history_shape: (t, c), steps and channels of the window; the targets come first.
        horizon: h, steps to forecast.
        num_targets: m, channels to forecast.
        num_known: k, covariates known in advance.
        num_series: series with a vector of their own.
        num_quantiles: q, odd; 1 for a point forecast.
        cell: "gru", "lstm" or "simple_rnn".
        width: length of a state.
        depth: number of layers.
        head: "direct" or "autoregressive".
        normalization: of each window, "mean", "last" or "none".
        dropout: share dropped in training after every layer.
        name: name of the model.

    Returns:
        A model from `history` (b, t, c) with gaps filled, `observed` (b, t, c), 1 where measured, `known` (b, t + h, k)
        where k is not 0 and `series` (b,), 1 to s or 0 for an unknown one, where s is not 1, to the quantiles (b, h, m,
        q), never falling along the last axis; the middle one is the forecast.

    Raises:
        ValueError: an argument is not as described.

    Reference: Cho et al. 2014 for the GRU; see the layers for the rest.
    """
    trunk = RecurrentTrunk(width, depth, cell, dropout, name="trunk")
    sizes = (num_targets, num_known, num_series, num_quantiles)
    return _forecaster(trunk, history_shape, horizon, *sizes, head=head, normalization=normalization, name=name)


def tcn_forecaster(
    history_shape,
    horizon: int,
    num_targets: int = 1,
    num_known: int = 0,
    num_series: int = 1,
    num_quantiles: int = 1,
    *,
    width: int = 32,
    depth: int = 4,
    kernel_size: int = 3,
    head: str = "direct",
    normalization: str = "mean",
    dropout: float = 0.0,
    name: str = "tcn_forecaster",
) -> keras.Model:
    """Builds a forecaster with dilated causal convolutions.

    Args:
        width: channels of the convolutions.
        depth: number of blocks of two convolutions; block i is dilated by 2^i.
        kernel_size: taps of a convolution.

    The other arguments, what is returned and raised: as in `recurrent_forecaster`.

    Reference: Bai et al. 2018, "An empirical evaluation of generic convolutional and recurrent networks", section 3.
    """
    trunk = TemporalTrunk(width, depth, kernel_size, dropout, name="trunk")
    sizes = (num_targets, num_known, num_series, num_quantiles)
    return _forecaster(trunk, history_shape, horizon, *sizes, head=head, normalization=normalization, name=name)


def transformer_forecaster(
    history_shape,
    horizon: int,
    num_targets: int = 1,
    num_known: int = 0,
    num_series: int = 1,
    num_quantiles: int = 1,
    *,
    width: int = 32,
    depth: int = 2,
    num_heads: int = 4,
    hidden_dim: int = 64,
    attention: str = "full",
    head: str = "direct",
    normalization: str = "mean",
    dropout: float = 0.0,
    name: str = "transformer_forecaster",
) -> keras.Model:
    """Builds a forecaster with causal self-attention.

    Args:
        width: length of a row's vector, an even multiple of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads.
        hidden_dim: width of the hidden layer after each attention.
        attention: "full", "window", "block_sparse", "linear" or "chunked".

    The other arguments, what is returned and raised: as in `recurrent_forecaster`.

    Reference: Vaswani et al. 2017, section 3.
    """
    trunk = TransformerTrunk(width, depth, num_heads, hidden_dim, attention, dropout, name="trunk")
    sizes = (num_targets, num_known, num_series, num_quantiles)
    return _forecaster(trunk, history_shape, horizon, *sizes, head=head, normalization=normalization, name=name)


def _forecaster(
    trunk, history_shape, horizon, num_targets, num_known, num_series, num_quantiles, *, head, normalization, name
):
    """The graph around a trunk: normalize the window, read it, tell the horizon, put the scale back."""
    shape = tuple(history_shape) if isinstance(history_shape, (tuple, list)) else ()
    if len(shape) != 2 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"{name} expects history_shape=(steps, channels). Received: {history_shape}")
    check_sizes("horizon", horizon), check_sizes("num_series", num_series), check_sizes("num_targets", num_targets)
    if num_targets > shape[1] or num_known < 0:
        raise ValueError(
            f"num_targets must be at most the {shape[1]} channels of the history, and num_known at least 0. "
            f"Received: {num_targets} and {num_known}"
        )
    if check_sizes("num_quantiles", num_quantiles)[0] % 2 == 0:
        raise ValueError(f"num_quantiles must be odd, with the median in the middle. Received: {num_quantiles}")
    check_choice("head", head, ("direct", "autoregressive"))

    inputs = {"history": keras.Input(shape, name="history"), "observed": keras.Input(shape, name="observed")}
    if num_known:
        inputs["known"] = keras.Input((shape[0] + horizon, num_known), name="known")  # (b, t + h, k)
    if num_series > 1:
        inputs["series"] = keras.Input((), dtype="int32", name="series")  # (b,)
    normalized = WindowNormalization(normalization, name="window_normalization")
    values, shift, scale = normalized(inputs["history"], inputs["observed"])  # (b, t, c), (b, 1, c), (b, 1, c)
    read = {"values": values, **{key: item for key, item in inputs.items() if key != "history"}}
    make = Direct if head == "direct" else Autoregressive
    answers = make(trunk, horizon, num_targets, num_quantiles, num_series, name=head)(read)  # (b, h, m, q)
    return keras.Model(inputs, Restore(name="forecast")(answers, shift, scale), name=name)
