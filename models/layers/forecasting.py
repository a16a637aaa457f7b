"""What every forecaster does around its trunk: normalize a window, tell the steps after it by quantiles, and put the
normalization back."""

import keras
from keras import ops

from models.layers.classification import check_choice

LEAST_DEVIATION = 1e-2  # of a window, in units of the whole series' deviation
register = keras.saving.register_keras_serializable("dl_essentials")


@register
class WindowNormalization(keras.layers.Layer):
    """Shifts and scales each window and channel by what was observed in it.

    Args:
        kind: "mean", mean and deviation; "last", the last value and the deviation; "none".

    Input shape: values (b, t, c) with gaps filled, observed (b, t, c), 1 where a value was measured.
    Output shape: normalized (b, t, c), shift (b, 1, c), scale (b, 1, c).

    Reference: Kim et al. 2022, "Reversible instance normalization", eq. 1 and 2; Zeng et al. 2023, "Are transformers
        effective for time series forecasting?", section 4, for the last value (NLinear).
    """

    def __init__(self, kind: str = "mean", **kwargs):
        super().__init__(**(kwargs | {"dtype": "float32"}))
        self.kind = check_choice("normalization", kind, ("mean", "last", "none"))

    def call(self, values, observed):
        count = ops.maximum(ops.sum(observed, axis=1, keepdims=True), 1.0)  # (b, 1, c)
        mean = ops.sum(values * observed, axis=1, keepdims=True) / count
        variance = ops.sum(ops.square(values - mean) * observed, axis=1, keepdims=True) / count
        scale = ops.sqrt(variance + LEAST_DEVIATION**2)
        shift = values[:, -1:] if self.kind == "last" else mean
        if self.kind == "none":
            shift, scale = ops.zeros_like(mean), ops.ones_like(mean)
        return (values - shift) / scale, shift, scale

    def get_config(self):
        return super().get_config() | {"kind": self.kind}


@register
class QuantileHead(keras.layers.Layer):
    """Forecasts of every target and quantile: the middle one is free, the others lie above and below each other.

    Args:
        num_targets: m.
        num_quantiles: q, odd; 1 for a point forecast.

    Input shape: (..., d)
    Output shape: (..., m, q) float32, never falling along the last axis.
    """

    def __init__(self, num_targets: int, num_quantiles: int = 1, **kwargs):
        super().__init__(**(kwargs | {"dtype": "float32"}))
        self.num_targets, self.num_quantiles = num_targets, num_quantiles
        self.dense = keras.layers.Dense(num_targets * num_quantiles, dtype="float32", name="forecast")

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, x):
        x = self.dense(x)
        x = ops.reshape(x, (*ops.shape(x)[:-1], self.num_targets, self.num_quantiles))  # (..., m, q)
        half = self.num_quantiles // 2
        if half == 0:
            return x
        middle, gaps = x[..., half : half + 1], ops.softplus(x)
        above = middle + ops.cumsum(gaps[..., half + 1 :], axis=-1)
        below = middle - ops.flip(ops.cumsum(ops.flip(gaps[..., :half], axis=-1), axis=-1), axis=-1)
        return ops.concatenate([below, middle, above], axis=-1)

    def get_config(self):
        return super().get_config() | {"num_targets": self.num_targets, "num_quantiles": self.num_quantiles}


class Reader(keras.layers.Layer):
    """What both heads share: the window as rows, and a trunk that reads them.

    A row holds the values of a step, where they were observed, what is known in advance of the next step, and how far
    the step lies behind the last observed one, as a share of the horizon. With several series, a learned vector of the
    series is added to each row; series 0 stands for one that training has not seen.

    Args:
        trunk: a layer of `models.layers.trunks`.
        horizon: h.
        num_targets: m, the first channels of the values.
        num_quantiles: q.
        num_series: known series, s; with one there is no vector.

    Input shape: a dictionary of values (b, t, c), observed (b, t, c) and, where there are such, known (b, t + h, k) and
        series (b,), 0 to s.
    Output shape: (b, h, m, q)
    """

    def __init__(self, trunk, horizon: int, num_targets: int, num_quantiles: int, num_series: int, **kwargs):
        super().__init__(**kwargs)
        self.trunk, self.horizon = trunk, horizon
        self.num_targets, self.num_quantiles, self.num_series = num_targets, num_quantiles, num_series
        width, policy = trunk.arguments["width"], self.dtype_policy
        self.projection = keras.layers.Dense(width, dtype=policy, name="projection")
        self.embedding = keras.layers.Embedding(
            num_series + 1, width, embeddings_initializer="zeros", dtype=policy, name="series_embedding"
        )
        self.head = QuantileHead(num_targets, num_quantiles, name="quantiles")

    def build(self, input_shape):
        batch, length, channels = input_shape["values"]
        width = self.trunk.arguments["width"]
        known = input_shape["known"][-1] if "known" in input_shape else 0
        self.projection.build((batch, length, 2 * channels + known + 1))
        if "series" in input_shape:
            self.embedding.build((batch,))
        if not self.trunk.built:  # a loaded one is
            self.trunk.build((batch, length, width))
        self.head.build((batch, self.horizon, width))

    def window_rows(self, inputs):
        """The rows of the window (b, t, 2 c + k + 1)."""
        values = inputs["values"]
        length = values.shape[1]
        parts = [values, inputs["observed"], ops.zeros_like(values[:, :, :1])]
        if "known" in inputs:
            parts.insert(2, inputs["known"][:, 1 : length + 1])
        return ops.concatenate(parts, axis=-1)

    def embed(self, rows, inputs):
        """Rows (b, t, r) as the trunk reads them, (b, t, width)."""
        x = self.projection(rows)
        return x + self.embedding(inputs["series"])[:, None] if "series" in inputs else x

    def compute_output_shape(self, input_shape):
        return (input_shape["values"][0], self.horizon, self.num_targets, self.num_quantiles)

    def get_config(self):
        names = ("horizon", "num_targets", "num_quantiles", "num_series")
        trunk = keras.saving.serialize_keras_object(self.trunk)
        return super().get_config() | {name: getattr(self, name) for name in names} | {"trunk": trunk}

    @classmethod
    def from_config(cls, config):
        return cls(**(config | {"trunk": keras.saving.deserialize_keras_object(config["trunk"])}))


@register
class Direct(Reader):
    """All steps at once: the last state gives each step of the horizon a context, which meets what is known of it.

    Reference: Wen et al. 2017, "A multi-horizon quantile recurrent forecaster", eq. 3 and 4, without the context that
        is shared by all steps.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        width, policy = self.trunk.arguments["width"], self.dtype_policy
        self.contexts = keras.layers.Dense(self.horizon * width, dtype=policy, name="contexts")
        self.local = keras.layers.Dense(width, activation="gelu", dtype=policy, name="local")

    def build(self, input_shape):
        super().build(input_shape)
        batch, width = input_shape["values"][0], self.trunk.arguments["width"]
        known = input_shape["known"][-1] if "known" in input_shape else 0
        self.contexts.build((batch, width))
        self.local.build((batch, self.horizon, width + known))

    def call(self, inputs, training=None):
        length = inputs["values"].shape[1]
        states = self.trunk(self.embed(self.window_rows(inputs), inputs), training=training)  # (b, t, width)
        x = ops.reshape(self.contexts(states[:, -1]), (-1, self.horizon, states.shape[-1]))  # (b, h, width)
        if "known" in inputs:
            x = ops.concatenate([x, ops.cast(inputs["known"][:, length:], x.dtype)], axis=-1)
        return self.head(self.local(x))  # (b, h, m, q)


@register
class Autoregressive(Reader):
    """Step by step: the middle quantile of a step is the value that the next one is told from.

    Other channels keep their last value and count as not observed, as missing values do.

    Reference: Salinas et al. 2020, "DeepAR", section 3.1, with quantiles for the distribution and the median for
        samples of it.
    """

    def call(self, inputs, training=None):
        values = inputs["values"]
        length, middle = values.shape[1], self.num_quantiles // 2
        states, cache = self.trunk.start(self.embed(self.window_rows(inputs), inputs), training)
        state, last, answers = states[:, -1], values[:, -1], []
        for ahead in range(1, self.horizon + 1):
            answers.append(self.head(state))  # (b, m, q)
            if ahead == self.horizon:
                break
            told = ops.cast(answers[-1][..., middle], last.dtype)  # (b, m)
            last = ops.concatenate([told, last[:, self.num_targets :]], axis=-1)  # (b, c)
            parts = [last, ops.zeros_like(last), ops.full_like(last[:, :1], ahead / self.horizon)]
            if "known" in inputs:
                parts.insert(2, inputs["known"][:, length + ahead])
            row = ops.concatenate(parts, axis=-1)[:, None]  # (b, 1, r)
            state, cache = self.trunk.step(self.embed(row, inputs)[:, 0], cache, training)
        return ops.stack(answers, axis=1)  # (b, h, m, q)


@register
class Restore(keras.layers.Layer):
    """Puts the shift and scale of each window's targets back on the forecast.

    Input shape: forecast (b, h, m, q), shift (b, 1, c), scale (b, 1, c). Output shape: (b, h, m, q).
    """

    def __init__(self, **kwargs):
        super().__init__(**(kwargs | {"dtype": "float32"}))

    def call(self, forecast, shift, scale):
        targets = forecast.shape[2]
        return forecast * scale[:, :, :targets, None] + shift[:, :, :targets, None]
