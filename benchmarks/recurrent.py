"""Recurrent networks against PyTorch's modules and plain keras.layers of the same shape: tokens a second, here.

    python -m benchmarks.recurrent

Training is a step of `fit` (Adam) on one batch that is repeated from memory; a classifier's tokens are those of its
texts, a translator's those of source and target. Generation is greedy, written tokens counted, with states and the keys
of the attention kept from step to step; plain layers keep nothing and read everything again for each token, in graphs
of growing shapes that XLA cannot take. Ours and plain layers are compiled by XLA, as `--jit` does, and ours once more
without it. All sides take turns in one run; rates are those of the quickest quarter of the turns, which other work on
the machine disturbs least. PyTorch answers from benchmarks/torch_recurrent.py where it can be imported (here, or by the
interpreter that DLE_TORCH_PYTHON names), eagerly. All sides have the same number of parameters, or this stops. The
recurrent layers are those of Keras, so that plain layers cost the same but for what stands around them: expect about 1.
Writes benchmarks/results/recurrent.json; ten minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import sides
from pipelines.config import quiet_tensorflow

RESULTS = Path(__file__).parent / "results" / "recurrent.json"
PEER = Path(__file__).parent / "torch_recurrent.py"


@dataclass(frozen=True)
class Case:
    """The shape of a network, and of what it is timed on."""

    name: str
    kind: str  # classifier or translator
    cell: str
    vocabulary: int
    embedding_dim: int
    width: int
    batch: int
    length: int

    @property
    def sizes(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("embedding_dim", "width")}

    @property
    def tokens(self) -> int:
        return self.batch * self.length * (1 if self.kind == "classifier" else 2)


CASES = (
    Case("lstm, width 64", "classifier", "lstm", 2000, 64, 64, batch=32, length=40),
    Case("lstm, width 256", "classifier", "lstm", 2000, 128, 256, batch=32, length=80),
    Case("gru, width 64", "classifier", "gru", 2000, 64, 64, batch=32, length=40),
    Case("gru, width 256", "classifier", "gru", 2000, 128, 256, batch=32, length=80),
    Case("seq2seq, width 128", "translator", "gru", 100, 64, 128, batch=64, length=32),
    Case("seq2seq, width 256", "translator", "gru", 4000, 128, 256, batch=32, length=32),
)


def ours(case: Case) -> Any:
    from models import recurrent
    from models.seq2seq import seq2seq

    if case.kind == "classifier":
        return getattr(recurrent, case.cell)(case.vocabulary, 2, **case.sizes, dropout=0.0)
    return seq2seq(case.vocabulary, case.vocabulary, cell=case.cell, **case.sizes, dropout=0.0)


def plain(case: Case) -> Any:
    """The same network of `keras.layers` as they are."""
    import keras
    from keras import layers

    source = keras.Input((None,), dtype="int32", name="source")
    x = layers.Embedding(case.vocabulary, case.embedding_dim, mask_zero=True)(source)  # (b, s, m)
    layer = {"lstm": layers.LSTM, "gru": layers.GRU}[case.cell]
    if case.kind == "classifier":
        return keras.Model(source, layers.Dense(2)(layers.Bidirectional(layer(case.width))(x)))
    target = keras.Input((None,), dtype="int32", name="target")
    memory, *states = layers.Bidirectional(layer(case.width, return_sequences=True, return_state=True))(x)
    first = layers.Dense(case.width, activation="tanh")(layers.Concatenate()(states))
    y = layers.Embedding(case.vocabulary, case.embedding_dim)(target)  # (b, t, m)
    y = layer(case.width, return_sequences=True)(y, initial_state=first)  # (b, t, d)
    query, key = (layers.Dense(case.width, use_bias=False)(one) for one in (y, memory))
    context = layers.AdditiveAttention()([query, memory, key])
    y = layers.Dense(case.width, activation="tanh", use_bias=False)(layers.Concatenate()([context, y]))
    return keras.Model({"source": source, "target": target}, layers.Dense(case.vocabulary)(y))


def batch_of(case: Case) -> tuple[Any, Any]:
    """Random tokens, and what is to be answered."""
    import numpy as np

    source = np.random.default_rng(0)
    draws = source.integers(4, case.vocabulary, (3, case.batch, case.length)).astype("int32")
    if case.kind == "classifier":
        return draws[0], source.integers(0, 2, case.batch)
    return {"source": draws[0], "target": draws[1]}, draws[2]


def writing(model: Any, case: Case, *, jit: bool) -> Callable[[], Any]:
    """Our greedy generation, whole; `END` is made unlikely, so that nothing ends early."""
    import tensorflow as tf

    from models.layers.decoding import END

    bias = model.decoder.logits.bias
    bias.assign(tf.where(tf.range(case.vocabulary) == END, -1e3, bias))
    source = tf.constant(batch_of(case)[0]["source"])
    graph = tf.function(lambda source: model.generate(source, max_length=case.length, beam_width=1), jit_compile=jit)
    found = int(tf.reduce_min(graph(source).lengths))
    if found != case.length:
        raise ValueError(f"Expected answers of {case.length} tokens. Received: one of {found}")
    return lambda: graph(source).token_ids.numpy()


def rereading(model: Any, case: Case) -> Callable[[], Any]:
    """Greedy generation as plain layers do it: source and target again for each token."""
    import tensorflow as tf

    source = tf.constant(batch_of(case)[0]["source"])

    @tf.function
    def graph(source: Any) -> Any:
        target = tf.ones((case.batch, 1), tf.int32)
        for _ in tf.range(case.length):
            tf.autograph.experimental.set_loop_options(shape_invariants=[(target, tf.TensorShape([case.batch, None]))])
            logits = model({"source": source, "target": target}, training=False)
            token = tf.argmax(logits[:, -1], axis=-1, output_type=tf.int32)
            target = tf.concat([target, token[:, None]], axis=1)
        return target

    return lambda: graph(source).numpy()


def compared(case: Case, python: str | None, turns: int, seconds: float) -> list[dict[str, Any]]:
    """The rows of one network: training, then generation of a translator, of each side."""
    import keras

    networks = {"ours, XLA": ours(case), "ours, no XLA": ours(case), "keras.layers, XLA": plain(case)}
    peer = None
    if python:
        sizes = {**case.sizes, "cell": case.cell, "vocabulary": case.vocabulary}
        sizes |= {"batch": case.batch, "length": case.length}
        peer = sides.Peer([python, str(PEER), case.kind, *(f"--{name}={value}" for name, value in sizes.items())])
    sides.of_one_size(*(one.count_params() for one in networks.values()), *([peer.said["parameters"]] if peer else []))
    loss, batch = keras.losses.SparseCategoricalCrossentropy(from_logits=True), batch_of(case)
    train = {name: sides.fitting(one, batch, loss, jit="no XLA" not in name) for name, one in networks.items()}
    if peer:
        train[peer.name] = peer.side("train")
    found = sides.rows(case.name, "training", train, case.tokens, turns, seconds)
    if case.kind == "translator":
        one = networks["ours, XLA"]
        write = {f"ours{', XLA' if jit else ', no XLA'}": writing(one, case, jit=jit) for jit in (True, False)}
        write["keras.layers, no states"] = rereading(networks["keras.layers, XLA"], case)
        answer = {name: sides.repeating(call) for name, call in write.items()}
        if peer:
            answer[peer.name] = peer.side("generate")
        found += sides.rows(case.name, "generation", answer, case.batch * case.length, turns, seconds)
    if peer:
        peer.end()
    keras.utils.clear_session()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn (default 2)")
    parser.add_argument("--turns", type=int, default=8, help="of each way (default 8)")
    parser.add_argument("--only", help="networks whose name contains this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON file goes")
    flags = parser.parse_args()
    quiet_tensorflow()
    load, python = os.getloadavg()[0], sides.torch_python()
    rows = [
        row
        for case in CASES
        if not flags.only or flags.only in case.name
        for row in compared(case, python, flags.turns, flags.seconds)
    ]
    content = sides.machine(python, load)
    for case in CASES:
        content[case.name] = {**case.sizes, "vocabulary": case.vocabulary, "batch": case.batch, "tokens": case.length}
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps(content | {"rows": rows}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
