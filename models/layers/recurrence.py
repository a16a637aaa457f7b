"""Recurrent layers: simple, LSTM and GRU cells, stacked, read one way or both ways, over padded sequences.

The weights of a plain layer are those of `keras.layers.SimpleRNN`, `LSTM` and `GRU` (four matrices of gates in an
LSTM: 4 (d (d + m) + d) parameters), and on a GPU Keras runs them by cuDNN. On a CPU training takes `recurrence`: the
input is multiplied by its kernel for all steps at once, both directions share one loop, and the gradient is written by
hand, so that the loop backwards keeps no more than gates and states and the gradient of the recurrent kernel is one
product at its end. Layer normalization (Ba et al. 2016) has a cell of its own.
"""

from typing import Any

import keras
from keras import ops

GATES = {"simple_rnn": 1, "lstm": 4, "gru": 3}
STATES = {"simple_rnn": 1, "lstm": 2, "gru": 1}


def recurrence(cell: str, z, kernel, bias, states, mask=None, keep=None):
    """Runs a cell over time, with a gradient of its own.

    Args:
        cell: "simple_rnn", "lstm" or "gru".
        z: (t, n, b, g), the input after its kernel and bias; n is the number of directions, g of the gates' units.
        kernel: (n, d, g), the recurrent kernel.
        bias: (n, 1, g), the recurrent bias of a GRU, whose reset gate multiplies after the product; None of others.
        states: h, and c of an LSTM, at the start; each (n, b, d).
        mask: (t, n, b, 1), 1 where there is a token and 0 where states pass by; None for 1 everywhere.
        keep: (n, b, d), the mask of recurrent dropout, scaled; None for no dropout.

    Returns:
        h of all steps (t, n, b, d), and the last states, each (n, b, d).

    Reference: Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; Cho et al. 2014; Werbos 1990,
        "Backpropagation through time", eq. 11 to 13; Gal and Ghahramani 2016, eq. 7, for recurrent dropout.
    """
    optional = {"bias": bias, "mask": mask, "keep": keep}
    names = [name for name, value in optional.items() if value is not None]
    count = STATES[cell]

    @ops.custom_gradient
    def run(z, kernel, *rest):
        start, given = rest[:count], dict(zip(names, rest[count:]))
        mask, keep = given.get("mask"), given.get("keep")
        steps, batch, width = ops.shape(z)[0], ops.shape(z)[2], kernel.shape[1]
        directions = kernel.shape[0]

        def room(units):
            return ops.zeros((steps, directions, batch, units), z.dtype)

        def forward(step, states, kept):
            h = states[0] if keep is None else states[0] * keep
            product = ops.matmul(h, kernel)  # (n, b, g)
            new, gates = FORWARD[cell](z[step], product, given.get("bias"), states)
            if mask is not None:
                at = mask[step]  # (n, b, 1)
                new = tuple(old + at * (fresh - old) for fresh, old in zip(new, states))
            values = (*new, gates) if gates is not None else new
            return step + 1, new, tuple(write(room, step, value) for room, value in zip(kept, values))

        kept = (room(width),) * count
        if cell != "simple_rnn":
            kept = (*kept, room(4 * width))
        first = ops.zeros((), "int32")
        _, last, kept = ops.while_loop(lambda step, *_: step < steps, forward, (first, tuple(start), kept))

        def gradient(*upstreams, upstream=None):
            dout, *dlast = unpack(upstreams if upstream is None else (upstream,), count + 1)
            entered = tuple(
                ops.concatenate([begin[None], of_step[:-1]], axis=0) for begin, of_step in zip(start, kept)
            )  # the states before each step, (t, n, b, d)

            def backward(step, dstates, dz):
                dstates = (dstates[0] + dout[step], *dstates[1:])
                at = None if mask is None else mask[step]
                fresh = dstates if at is None else tuple(at * d for d in dstates)
                now = tuple(of_step[step] for of_step in kept)
                before = tuple(of_step[step] for of_step in entered)
                dgates, dproduct, direct = BACKWARD[cell](now, before, fresh)
                dh = ops.matmul(dproduct, turned)  # (n, b, d)
                dh = dh if keep is None else dh * keep
                passed = [(1 - at) * d for d in dstates] if at is not None else [None] * count
                back = (dh, *[None] * (count - 1))
                found = tuple(total(parts) for parts in zip(back, direct, passed))
                return step - 1, found, write(dz, step, dgates)

            turned = ops.transpose(kernel, (0, 2, 1))  # (n, g, d)
            begin = (steps - 1, tuple(dlast), ops.zeros_like(z))
            _, dstart, dz = ops.while_loop(lambda step, *_: step >= 0, backward, begin)

            dproducts = dz
            if cell == "gru":  # the candidate's product is under the reset gate
                reset = kept[1][..., width : 2 * width]
                dproducts = ops.concatenate([dz[..., : 2 * width], dz[..., 2 * width :] * reset], axis=-1)
            h = entered[0] if keep is None else entered[0] * keep
            flat = [ops.reshape(ops.transpose(x, (1, 0, 2, 3)), (directions, -1, x.shape[-1])) for x in (h, dproducts)]
            dkernel = ops.matmul(ops.transpose(flat[0], (0, 2, 1)), flat[1])  # (n, d, g)
            extra = {"bias": lambda: ops.sum(flat[1], axis=1, keepdims=True)}
            rest = [extra[name]() if name in extra else ops.zeros_like(given[name]) for name in names]
            return (dz, dkernel, *dstart, *rest)

        return (kept[0], *last), gradient

    out, *last = run(z, kernel, *states, *(optional[name] for name in names))
    return out, last


def write(room, step, value):
    """Puts (n, b, d) at a step of (t, n, b, d)."""
    return ops.scatter_update(room, ops.reshape(step, (1, 1)), value[None])


def unpack(gradients, count: int):
    """Gradients of several outputs: some backends hand them over as one tuple."""
    return gradients if len(gradients) == count else gradients[0]


def total(parts):
    """The sum of those that are not None."""
    first, *others = (part for part in parts if part is not None)
    for other in others:
        first = first + other
    return first


def simple_rnn_forward(z, product, bias, states):
    return (ops.tanh(z + product),), None


def simple_rnn_backward(now, before, fresh):
    (h,), (dh,) = now, fresh
    dgates = dh * (1 - h * h)
    return dgates, dgates, (None,)


def lstm_forward(z, product, bias, states):
    i, f, g, o = ops.split(z + product, 4, axis=-1)
    i, f, g, o = ops.sigmoid(i), ops.sigmoid(f), ops.tanh(g), ops.sigmoid(o)
    c = f * states[1] + i * g
    return (o * ops.tanh(c), c), ops.concatenate([i, f, g, o], axis=-1)


def lstm_backward(now, before, fresh):
    (_, c, gates), (_, c_before), (dh, dc) = now, before, fresh
    i, f, g, o = ops.split(gates, 4, axis=-1)
    squashed = ops.tanh(c)
    dc = dc + dh * o * (1 - squashed * squashed)
    dgates = [
        dc * g * i * (1 - i),
        dc * c_before * f * (1 - f),
        dc * i * (1 - g * g),
        dh * squashed * o * (1 - o),
    ]
    dgates = ops.concatenate(dgates, axis=-1)
    return dgates, dgates, (None, dc * f)


def gru_forward(z, product, bias, states):
    (h,) = states
    zu, zr, zg = ops.split(z, 3, axis=-1)
    pu, pr, pg = ops.split(product + bias, 3, axis=-1)
    u, r = ops.sigmoid(zu + pu), ops.sigmoid(zr + pr)
    g = ops.tanh(zg + r * pg)
    return (g + u * (h - g),), ops.concatenate([u, r, g, pg], axis=-1)


def gru_backward(now, before, fresh):
    (_, gates), (h,), (dh,) = now, before, fresh
    u, r, g, pg = ops.split(gates, 4, axis=-1)
    dg = dh * (1 - u) * (1 - g * g)
    du, dr = dh * (h - g) * u * (1 - u), dg * pg * r * (1 - r)
    return ops.concatenate([du, dr, dg], axis=-1), ops.concatenate([du, dr, dg * r], axis=-1), (dh * u,)


FORWARD: dict[str, Any] = {"simple_rnn": simple_rnn_forward, "lstm": lstm_forward, "gru": gru_forward}
BACKWARD: dict[str, Any] = {"simple_rnn": simple_rnn_backward, "lstm": lstm_backward, "gru": gru_backward}


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
        parts = x[:, : 2 * self.width], x[:, 2 * self.width :]
        parts = [self.norms[f"{name}_{part}"](value) for part, value in zip(("gates", "candidate"), parts)]
        if bias is None:
            return parts
        return [parts[0] + bias[: 2 * self.width], parts[1] + bias[2 * self.width :]]

    def get_config(self):
        return super().get_config() | {"cell": self.cell, "width": self.width}
