"""The layer that every recurrent architecture here is made of: cells stacked, read one way or both ways, with masks.

Each direction holds a layer of Keras, whose weights it has: `keras.layers.SimpleRNN`, `LSTM` or `GRU`, or a
`NormalizedCell` in `keras.layers.RNN`. Keras runs them, by cuDNN on a GPU; training on a CPU takes the loop of
`models.layers.recurrence`.
"""

from typing import Any

import keras
from keras import ops

from models.layers.classification import check_choice, check_sizes
from models.layers.recurrence import GATES, STATES, NormalizedCell, recurrence
from models.layers.regularization import check_rate

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
        self.cell, self.width = check_choice("cell", cell, GATES), check_sizes("width", width)[0]
        self.depth, self.bidirectional = check_sizes("depth", depth)[0], bool(bidirectional)
        self.normalization = check_choice("normalization", normalization, ("none", "layer"))
        self.dropout_rate = check_rate("dropout", dropout)
        self.recurrent_dropout_rate = check_rate("recurrent_dropout", recurrent_dropout)
        self.dropout = keras.layers.Dropout(dropout, name="dropout", dtype=self.dtype_policy)
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
            return LAYERS[self.cell](self.width, **shared)
        return keras.layers.RNN(NormalizedCell(self.cell, self.width, dtype=self.dtype_policy), **shared)

    def build(self, input_shape):
        inputs = input_shape[-1]
        for rnns in self.rnns:
            for rnn in rnns:
                rnn.build((None, None, inputs))
            inputs = self.width * len(self.directions)

    def call(self, x, mask=None, initial_state=None, training=False):
        states = self.zeros(ops.shape(x)[0]) if initial_state is None else initial_state
        # On a GPU cuDNN is faster than any loop, and it knows no recurrent dropout.
        own = training and (self.recurrent_dropout_rate or not keras.distribution.list_devices("gpu"))
        run = self._run_own if own and self.normalization == "none" else self._run_keras
        found = []
        for index, rnns in enumerate(self.rnns):
            if index and self.dropout_rate:
                x = self.dropout(x, training=training)
            x, state = run(rnns, x, mask, states[index], training)  # (b, t, d)
            found.append(state)
        return x, found

    def step(self, x, states):
        """One step of a sequence, read one way and without dropout: (b, m) and states to (b, d) and states."""
        found = []
        for (rnn,), (state,) in zip(self.rnns, states):
            x, state = rnn.cell(x, [*state, *self._keep(x, rnn, False)])
            found.append([list(state)[: STATES[self.cell]]])
        return x, found

    def zeros(self, batch) -> list[list[list[Any]]]:
        """The states before the first token."""
        count = STATES[self.cell]
        return [
            [[ops.zeros((batch, self.width), self.compute_dtype) for _ in range(count)] for _ in rnns]
            for rnns in self.rnns
        ]

    def _run_keras(self, rnns, x, mask, states, training):
        """A layer by Keras's loops: one direction after the other."""
        outputs, found = [], []
        for rnn, state in zip(rnns, states):
            out, *state = rnn(x, initial_state=[*state, *self._keep(x, rnn, training)], mask=mask, training=training)
            outputs.append(ops.flip(out, axis=1) if rnn.go_backwards else out)
            found.append(state[: STATES[self.cell]])
        return outputs[0] if len(outputs) == 1 else ops.concatenate(outputs, axis=-1), found

    def _keep(self, x, rnn, training):
        """The mask of recurrent dropout as the normalized cell takes it, beside its states."""
        if self.normalization == "none":
            return []
        return [self.recurrent_dropout(ops.ones((ops.shape(x)[0], self.width), x.dtype), training=training)]

    def _run_own(self, rnns, x, mask, states, training):
        """A layer by `recurrence`: both directions at once."""
        x = ops.transpose(ops.cast(x, self.compute_dtype), (1, 0, 2))  # (t, b, m)
        cells = [rnn.cell for rnn in rnns]
        gru = self.cell == "gru"  # its bias holds one of the input and one of the product
        z = [
            ops.matmul(x, self._value(cell.kernel)) + self._value(cell.bias[0] if gru else cell.bias) for cell in cells
        ]
        z = ops.stack([ops.flip(part, axis=0) if rnn.go_backwards else part for part, rnn in zip(z, rnns)], axis=1)
        mask = None if mask is None else ops.cast(ops.transpose(mask)[:, :, None], x.dtype)  # (t, b, 1)
        masks = mask if mask is None else self._both(mask, rnns)  # (t, n, b, 1)
        keep = None
        if self.recurrent_dropout_rate:
            ones = ops.ones((len(rnns), ops.shape(x)[1], self.width), x.dtype)
            keep = self.recurrent_dropout(ones, training=training)  # (n, b, d)
        out, last = recurrence(
            self.cell,
            z,  # (t, n, b, g)
            ops.stack([self._value(cell.recurrent_kernel) for cell in cells]),  # (n, d, g)
            ops.stack([self._value(cell.bias[1:]) for cell in cells]) if gru else None,  # (n, 1, g)
            [ops.stack(parts) for parts in zip(*states)],  # each (n, b, d)
            masks,
            keep,
        )
        outputs = [ops.flip(out[:, i], axis=0) if rnn.go_backwards else out[:, i] for i, rnn in enumerate(rnns)]
        joined = outputs[0] if len(outputs) == 1 else ops.concatenate(outputs, axis=-1)  # (t, b, n * d)
        joined = joined if mask is None else joined * mask
        return ops.transpose(joined, (1, 0, 2)), [[state[i] for state in last] for i in range(len(rnns))]

    def _both(self, mask, rnns):
        return ops.stack([ops.flip(mask, axis=0) if rnn.go_backwards else mask for rnn in rnns], axis=1)

    def _value(self, weight):
        return ops.cast(weight, self.compute_dtype)

    def get_config(self):
        names = ("cell", "width", "depth", "bidirectional", "normalization")
        rates = {"dropout": self.dropout_rate, "recurrent_dropout": self.recurrent_dropout_rate}
        return super().get_config() | {name: getattr(self, name) for name in names} | rates
