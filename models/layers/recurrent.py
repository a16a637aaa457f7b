"""The layer that every recurrent architecture here is made of: cells stacked, read one way or both ways, with masks.

Each direction is a layer of Keras, whose loop and weights it has (cuDNN's on a GPU): `keras.layers.SimpleRNN`, `LSTM`
or `GRU`, or a `NormalizedCell` in `keras.layers.RNN`. Tried on a CPU and left out, since training was no faster by it:
the input multiplied by its kernel for all steps at once, a hand-written gradient, both directions in one loop.
"""

from typing import Any

import keras
from keras import ops

from models.layers.classification import check_choice, check_sizes
from models.layers.regularization import check_rate

GATES = {"simple_rnn": 1, "lstm": 4, "gru": 3}
STATES = {"simple_rnn": 1, "lstm": 2, "gru": 1}
LAYERS = {"simple_rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}


@keras.saving.register_keras_serializable("dl_essentials")
class Recurrent(keras.layers.Layer):
    """Recurrent layers on top of each other, over padded sequences.

    Args:
        cell: "simple_rnn", "lstm" or "gru".
        width: units of a layer in each direction.
        depth: number of layers.
        bidirectional: whether every layer reads both ways; the two outputs are put side by side.
        normalization: "none", or "layer" for layer normalization inside of the cells.
        dropout: share of the outputs dropped in training between two layers.
        recurrent_dropout: share of the units that a sequence's steps do not hand to the next, the same in all steps.

    Call arguments:
        x: (b, t, m)
        mask: (b, t) bool, false for padding, over which states pass unchanged; None for no padding.
        initial_state: states as returned, to go on where another call ended; None for zeros.

    Returns:
        The outputs of the last layer (b, t, d), 0 where the mask is false, with d = width, or twice that if it reads
        both ways; and the last states: a list over layers of a list over directions of [h], or [h, c] of an LSTM, each
        (b, width).

    Raises:
        ValueError: an argument is not as described.

    Reference: Elman 1990; Hochreiter and Schmidhuber 1997; Cho et al. 2014; Schuster and Paliwal 1997 for both ways;
        Gal and Ghahramani 2016 for recurrent dropout; Ba et al. 2016, eq. 20 to 22, for layer normalization.
    """

    def __init__(
        self,
        cell: str,
        width: int,
        *,
        depth: int = 1,
        bidirectional: bool = False,
        normalization: str = "none",
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.cell, self.width = check_choice("cell", cell, GATES), check_sizes("width", width)[0]
        self.depth, self.bidirectional = check_sizes("depth", depth)[0], bool(bidirectional)
        self.normalization = check_choice("normalization", normalization, ("none", "layer"))
        self.dropout_rate = check_rate("dropout", dropout)
        self.recurrent_dropout_rate = check_rate("recurrent_dropout", recurrent_dropout)
        self.dropout = keras.layers.Dropout(dropout, name="dropout", dtype=self.dtype_policy)
        # Of normalized cells; Keras's own have it.
        self.recurrent_dropout = keras.layers.Dropout(
            recurrent_dropout, name="recurrent_dropout", dtype=self.dtype_policy
        )
        self.directions = ("forward", "backward") if bidirectional else ("forward",)
        self.rnns = [[self._rnn(f"layer{i + 1}_{way}") for way in self.directions] for i in range(depth)]

    def _rnn(self, name: str) -> keras.layers.RNN:
        """A layer of Keras, reading one way."""
        shared = {
            "return_sequences": True,
            "return_state": True,
            "zero_output_for_mask": True,
            "go_backwards": name.endswith("backward"),
            "dtype": self.dtype_policy,
            "name": name,
        }
        if self.normalization == "none":
            return LAYERS[self.cell](self.width, recurrent_dropout=self.recurrent_dropout_rate, **shared)
        return keras.layers.RNN(NormalizedCell(self.cell, self.width, dtype=self.dtype_policy), **shared)

    def build(self, input_shape):
        inputs = input_shape[-1]
        for rnns in self.rnns:
            for rnn in rnns:
                rnn.build((None, None, inputs))
            inputs = self.width * len(self.directions)

    def call(self, x, mask=None, initial_state=None, training=False):
        states = self.zeros(ops.shape(x)[0]) if initial_state is None else initial_state
        found = []
        for index, rnns in enumerate(self.rnns):
            if index and self.dropout_rate:
                x = self.dropout(x, training=training)
            x, state = self._run(rnns, x, mask, states[index], training)  # (b, t, d)
            found.append(state)
        return x, found

    def compute_mask(self, x, mask=None):
        """None: masks are handed on by hand."""

    def step(self, x, states):
        """One step of a sequence, read one way and without dropout: (b, m) and states to (b, d) and states."""
        found = []
        for (rnn,), (state,) in zip(self.rnns, states):
            x, state = rnn.cell(x, [*state, *self._keep(x, False)])
            found.append([list(state)[: STATES[self.cell]]])
        return x, found

    def zeros(self, batch) -> list[list[list[Any]]]:
        """The states before the first token."""
        count = STATES[self.cell]
        return [
            [[ops.zeros((batch, self.width), self.compute_dtype) for _ in range(count)] for _ in rnns]
            for rnns in self.rnns
        ]

    def _run(self, rnns, x, mask, states, training):
        """All directions of a layer: outputs side by side (b, t, d), and last states."""
        outputs, found = [], []
        for rnn, state in zip(rnns, states):
            out, *state = rnn(x, initial_state=[*state, *self._keep(x, training)], mask=mask, training=training)
            outputs.append(ops.flip(out, axis=1) if rnn.go_backwards else out)
            found.append(state[: STATES[self.cell]])
        return ops.concatenate(outputs, axis=-1), found  # of one, too: the new tensor carries no mask of Keras

    def _keep(self, x, training):
        """The mask of recurrent dropout as the normalized cell takes it, beside its states."""
        if self.normalization == "none":
            return []
        return [self.recurrent_dropout(ops.ones((ops.shape(x)[0], self.width), x.dtype), training=training)]

    def get_config(self):
        names = ("cell", "width", "depth", "bidirectional", "normalization")
        rates = {"dropout": self.dropout_rate, "recurrent_dropout": self.recurrent_dropout_rate}
        return super().get_config() | {name: getattr(self, name) for name in names} | rates


@keras.saving.register_keras_serializable("dl_essentials")
class NormalizedCell(keras.layers.Layer):
    """One step of a recurrent layer with layer normalization inside, for `keras.layers.RNN`.

    Args:
        cell: "simple_rnn", "lstm" or "gru".
        width: d.

    Call arguments:
        x: (b, m)
        states: h, and c of an LSTM, each (b, d); and last the mask of recurrent dropout (b, d), which stays as it is.

    Returns:
        h (b, d), and the new states.

    Reference: Ba et al. 2016, "Layer normalization", eq. 4 for the simple cell, eq. 20 to 22 for the LSTM, and
        supplementary eq. 26 to 29 for the GRU.
    """

    def __init__(self, cell: str, width: int, **kwargs):
        super().__init__(**kwargs)
        self.cell, self.width = cell, width
        self.state_size, self.output_size = [width] * (STATES[cell] + 1), width
        norms = {"simple_rnn": ("gates",), "lstm": ("input", "recurrent", "memory")}
        names = norms.get(cell, ("input_gates", "input_candidate", "recurrent_gates", "recurrent_candidate"))
        self.norms = {
            name: keras.layers.LayerNormalization(center=name == "memory", name=f"{name}_norm", dtype=self.dtype_policy)
            for name in names
        }

    def build(self, input_shape):
        units = GATES[self.cell] * self.width
        self.kernel = self.add_weight(shape=(input_shape[-1], units), initializer="glorot_uniform", name="kernel")
        self.recurrent_kernel = self.add_weight(
            shape=(self.width, units), initializer="orthogonal", name="recurrent_kernel"
        )
        self.bias = self.add_weight(shape=(units,), initializer="zeros", name="bias")
        if self.cell == "lstm":  # an open forget gate at first, as in keras.layers.LSTM
            self.bias.assign(ops.concatenate([ops.zeros(self.width), ops.ones(self.width), ops.zeros(2 * self.width)]))
        for name, norm in self.norms.items():
            wide = {
                "input": units,
                "recurrent": units,
                "input_gates": 2 * self.width,
                "recurrent_gates": 2 * self.width,
            }
            norm.build((None, wide.get(name, self.width)))

    def call(self, x, states):
        *states, keep = states
        z, product = ops.matmul(x, self.kernel), ops.matmul(states[0] * keep, self.recurrent_kernel)  # (b, g)
        if self.cell == "simple_rnn":
            states = [ops.tanh(self.norms["gates"](z + product) + self.bias)]
        elif self.cell == "lstm":
            gates = self.norms["input"](z) + self.norms["recurrent"](product) + self.bias
            i, f, g, o = ops.split(gates, 4, axis=-1)
            c = ops.sigmoid(f) * states[1] + ops.sigmoid(i) * ops.tanh(g)
            states = [ops.sigmoid(o) * ops.tanh(self.norms["memory"](c)), c]
        else:
            z, product = self._halves(z, "input", self.bias), self._halves(product, "recurrent", None)
            u, r = ops.split(ops.sigmoid(z[0] + product[0]), 2, axis=-1)
            g = ops.tanh(z[1] + r * product[1])
            states = [g + u * (states[0] - g)]
        return states[0], [*states, keep]

    def _halves(self, x, name, bias):
        """Gates (b, 2 * d) and candidate (b, d) of a GRU, each normalized."""
        halves = x[:, : 2 * self.width], x[:, 2 * self.width :]
        parts = [self.norms[f"{name}_{part}"](value) for part, value in zip(("gates", "candidate"), halves)]
        if bias is None:
            return parts
        return [parts[0] + bias[: 2 * self.width], parts[1] + bias[2 * self.width :]]

    def get_config(self):
        return super().get_config() | {"cell": self.cell, "width": self.width}
