"""Trunks: causal layers that read a sequence of vectors as a whole, or go on step by step from where they stand.

`trunk(x)` gives the states of all steps; `trunk.start(x)` gives them with a cache, and `trunk.step(row, cache)` the
state of one step more, equal to what the whole longer sequence would give. A state never depends on a later step.
"""

import keras
from keras import ops

from models.layers.attention import MultiHeadAttention
from models.layers.classification import check_choice, check_sizes
from models.layers.regularization import check_rate

register = keras.saving.register_keras_serializable("dl_essentials")


@register
class RecurrentTrunk(keras.layers.Layer):
    """Stacked recurrent layers, each with a shortcut around it where it is not the first.

    Input shape: (b, t, d); Output shape: (b, t, width). A state depends on its own step and those before it.
    """

    def __init__(self, width: int, depth: int, cell: str = "gru", dropout: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.arguments = {"width": width, "depth": depth, "cell": cell, "dropout": dropout}
        check_sizes("width", width), check_sizes("depth", depth), check_rate("dropout", dropout)
        kinds = {"gru": keras.layers.GRU, "lstm": keras.layers.LSTM, "simple_rnn": keras.layers.SimpleRNN}
        make = kinds[check_choice("cell", cell, kinds)]
        policy = self.dtype_policy
        self.recurrent = [
            make(width, return_sequences=True, return_state=True, dtype=policy, name=f"{cell}{i + 1}")
            for i in range(depth)
        ]
        self.dropout = keras.layers.Dropout(dropout, dtype=policy, name="dropout")

    def build(self, input_shape):
        for layer in self.recurrent:
            layer.build(input_shape)
            input_shape = (*input_shape[:-1], self.arguments["width"])

    def start(self, x, training=None):
        """The states of all steps (b, t, width), and what `step` needs to go on."""
        cache = []
        for i, layer in enumerate(self.recurrent):
            y, *state = layer(x, training=training)  # (b, t, width)
            x = self.dropout(y, training=training) + (x if i else 0)
            cache.append(state)
        return x, cache

    def step(self, x, cache, training=None):
        """The state of one step more (b, width) from its input (b, d), and the new cache."""
        fresh = []
        for i, (layer, state) in enumerate(zip(self.recurrent, cache)):
            y, state = layer.cell(x, state)
            x = self.dropout(y, training=training) + (x if i else 0)
            fresh.append(state)
        return x, fresh

    def call(self, x, training=None):
        return self.start(x, training)[0]

    def get_config(self):
        return super().get_config() | self.arguments


@register
class TemporalTrunk(keras.layers.Layer):
    """Residual blocks of two causal convolutions each, dilated by 1, 2, 4, … steps.

    Input shape: (b, t, width); Output shape: (b, t, width). The receptive field is
    1 + 2 (kernel_size - 1) (2^depth - 1) steps.

    Reference: Bai et al. 2018, "An empirical evaluation of generic convolutional and recurrent networks for sequence
        modeling", section 3 and fig. 1.
    """

    def __init__(self, width: int, depth: int, kernel_size: int = 3, dropout: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.arguments = {"width": width, "depth": depth, "kernel_size": kernel_size, "dropout": dropout}
        for name in ("width", "depth", "kernel_size"):
            check_sizes(name, self.arguments[name])
        check_rate("dropout", dropout)
        policy = self.dtype_policy
        self.convolutions = [
            keras.layers.Conv1D(width, kernel_size, dilation_rate=2**i, dtype=policy, name=f"block{i + 1}_conv{j + 1}")
            for i in range(depth)
            for j in range(2)
        ]
        self.norms = [
            keras.layers.LayerNormalization(dtype=policy, name=f"block{i + 1}_norm{j + 1}")
            for i in range(depth)
            for j in range(2)
        ]
        self.dropout = keras.layers.Dropout(dropout, dtype=policy, name="dropout")

    def build(self, input_shape):
        for layer in (*self.convolutions, *self.norms):
            layer.build((input_shape[0], None, self.arguments["width"]))  # any length: each is padded by its reach

    def start(self, x, training=None):
        """As in `RecurrentTrunk`; the cache holds the last inputs of each convolution, as many as it looks back."""
        return self._blocks(x, [None] * len(self.convolutions), training)

    def step(self, x, cache, training=None):
        """As in `RecurrentTrunk`."""
        y, cache = self._blocks(x[:, None], cache, training)  # (b, 1, width)
        return y[:, 0], cache

    def _blocks(self, x, cache, training):
        fresh = []
        for i, (convolution, norm, before) in enumerate(zip(self.convolutions, self.norms, cache)):
            if i % 2 == 0:
                shortcut = x
            reach = (self.arguments["kernel_size"] - 1) * convolution.dilation_rate[0]
            x = ops.pad(x, ((0, 0), (reach, 0), (0, 0))) if before is None else ops.concatenate([before, x], axis=1)
            fresh.append(x[:, x.shape[1] - reach :])  # (b, reach, width)
            x = ops.relu(norm(convolution(x)))  # (b, t, width)
            x = self.dropout(x, training=training)
            if i % 2:
                x = ops.relu(x + shortcut)
        return x, fresh

    def call(self, x, training=None):
        return self.start(x, training)[0]

    def get_config(self):
        return super().get_config() | self.arguments


@register
class TransformerTrunk(keras.layers.Layer):
    """Causal transformer blocks, normalized before each part, with rotary positions.

    Input shape: (b, t, width); Output shape: (b, t, width).

    Reference: Vaswani et al. 2017, section 3; Xiong et al. 2020, fig. 1 (b), for the normalization.
    """

    def __init__(
        self, width: int, depth: int, num_heads: int, hidden_dim: int, attention: str = "full", dropout=0.0, **kwargs
    ):
        super().__init__(**kwargs)
        sizes = {"width": width, "depth": depth, "num_heads": num_heads, "hidden_dim": hidden_dim}
        for name, size in sizes.items():
            check_sizes(name, size)
        self.arguments = {**sizes, "attention": attention, "dropout": check_rate("dropout", dropout)}
        if width % (2 * num_heads):
            raise ValueError(f"width must be an even multiple of num_heads. Received: {width} and {num_heads}")
        policy = self.dtype_policy
        self.blocks = []
        for i in range(depth):
            name = f"block{i + 1}"
            head_dim = width // num_heads
            block = {
                "attention_norm": keras.layers.LayerNormalization(dtype=policy, name=f"{name}_attention_norm"),
                "attention": MultiHeadAttention(
                    num_heads, head_dim, rotary=True, kind=attention, dtype=policy, name=f"{name}_attention"
                ),
                "mlp_norm": keras.layers.LayerNormalization(dtype=policy, name=f"{name}_mlp_norm"),
                "hidden": keras.layers.Dense(hidden_dim, activation="gelu", dtype=policy, name=f"{name}_mlp_hidden"),
                "output": keras.layers.Dense(width, dtype=policy, name=f"{name}_mlp_output"),
            }
            self.blocks.append(block)
            for part, layer in block.items():
                setattr(self, f"{name}_{part}", layer)
        self.norm = keras.layers.LayerNormalization(dtype=policy, name="norm")
        self.dropout = keras.layers.Dropout(dropout, dtype=policy, name="dropout")

    def build(self, input_shape):
        for block in self.blocks:
            for part, layer in block.items():
                wide = (*input_shape[:-1], self.arguments["hidden_dim"])
                layer.build(wide if part == "output" else input_shape)
        self.norm.build(input_shape)

    def start(self, x, training=None):
        """As in `RecurrentTrunk`; the cache holds the inputs of each attention."""
        return self._blocks(x, [None] * len(self.blocks), training)

    def step(self, x, cache, training=None):
        """As in `RecurrentTrunk`."""
        y, cache = self._blocks(x[:, None], cache, training)  # (b, 1, width)
        return y[:, 0], cache

    def _blocks(self, x, cache, training):
        fresh = []
        for block, before in zip(self.blocks, cache):
            y = block["attention_norm"](x)
            y = y if before is None else ops.concatenate([before, y], axis=1)  # (b, t, width)
            fresh.append(y)
            y = block["attention"](y, causal=True, training=training)[:, y.shape[1] - x.shape[1] :]
            x = x + self.dropout(y, training=training)
            y = block["output"](block["hidden"](block["mlp_norm"](x)))
            x = x + self.dropout(y, training=training)
        return self.norm(x), fresh

    def call(self, x, training=None):
        return self.start(x, training)[0]

    def get_config(self):
        return super().get_config() | self.arguments
