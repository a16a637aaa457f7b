"""Recurrent networks against PyTorch's modules and plain keras.layers of the same shape: tokens a second, here.

    python -m benchmarks.recurrent

Training is a step of `fit` (Adam) on one batch that is repeated from memory; a classifier's tokens are those of its
texts, a translator's those of source and target. Generation is greedy, written tokens counted, with states and the keys
of the attention kept from step to step; plain layers keep nothing and read everything again for each token. All sides
take turns in one run; rates are those of the quickest quarter of the turns, which other work on the machine disturbs
least. PyTorch answers from benchmarks/torch_recurrent.py where it can be imported (here, or by the interpreter that
DLE_TORCH_PYTHON names), eagerly. All sides have the same number of parameters, or this stops. The recurrent layers are
those of Keras, so that training by plain layers costs the same but for what stands around them: expect about 1 there.
Writes benchmarks/results/recurrent.json; six minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.training import torch_python
from benchmarks.transformer import in_turns, repeating
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


class Peer:
    """PyTorch in a process of its own, asked line by line."""

    def __init__(self, python: str, case: Case):
        sizes = {**case.sizes, "cell": case.cell, "vocabulary": case.vocabulary}
        sizes |= {"batch": case.batch, "length": case.length}
        words = [python, str(PEER), case.kind, *(f"--{name}={value}" for name, value in sizes.items())]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.said = self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ValueError(f"Expected an answer of {PEER.name}. Received: exit code {self.process.wait()}")
        return json.loads(line)

    def asking(self, what: str) -> Callable[[float], float]:
        """Seconds of a call, when it is given some seconds to run."""

        def ask(seconds: float) -> float:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps({"what": what, "seconds": seconds}) + "\n")
            self.process.stdin.flush()
            found = self.answer()
            return found["seconds"] / found["calls"]

        return ask

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def batch_of(case: Case) -> tuple[Any, Any]:
    """Random tokens, and what is to be answered."""
    import numpy as np

    source = np.random.default_rng(0)
    draws = source.integers(4, case.vocabulary, (3, case.batch, case.length)).astype("int32")
    if case.kind == "classifier":
        return draws[0], source.integers(0, 2, case.batch)
    return {"source": draws[0], "target": draws[1]}, draws[2]


def fitting(model: Any, case: Case) -> Callable[[float], float]:
    """Seconds of a training step, when it is given some seconds to run."""
    import keras
    import tensorflow as tf

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss, jit_compile=False)
    data = tf.data.Dataset.from_tensors(batch_of(case)).cache().repeat()

    def run(seconds: float) -> float:
        steps = 2
        while True:
            begun = time.perf_counter()
            model.fit(data, steps_per_epoch=steps, shuffle=False, verbose=0)
            spent = time.perf_counter() - begun
            if spent >= seconds:
                return spent / steps
            steps = math.ceil(steps * min(10, 1.2 * seconds / spent))

    run(0)
    return run


def writing(model: Any, case: Case) -> Callable[[], Any]:
    """Our greedy generation, whole; `END` is made unlikely, so that nothing ends early."""
    import tensorflow as tf

    from models.layers.decoding import END

    bias = model.decoder.logits.bias
    bias.assign(tf.where(tf.range(case.vocabulary) == END, -1e3, bias))
    source = tf.constant(batch_of(case)[0]["source"])
    graph = tf.function(lambda source: model.generate(source, max_length=case.length, beam_width=1))
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

    model, layers = ours(case), plain(case)
    peer = Peer(python, case) if python else None
    counts = {model.count_params(), layers.count_params(), *([peer.said["parameters"]] if peer else [])}
    if len(counts) > 1:
        raise ValueError(f"Expected networks of one size. Received: parameters {sorted(counts)}")
    jobs: dict[str, tuple[dict[str, Callable[[float], float]], int]] = {}
    jobs["training"] = {"ours": fitting(model, case), "keras.layers": fitting(layers, case)}, case.tokens
    if case.kind == "translator":
        ways = {"ours": repeating(writing(model, case)), "keras.layers, no states": repeating(rereading(layers, case))}
        jobs["generation"] = ways, case.batch * case.length
    rows = []
    for what, (ways, tokens) in jobs.items():
        if peer:
            ways[f"PyTorch {peer.said['torch']}, eager"] = peer.asking({"training": "train"}.get(what, "generate"))
        times = in_turns(ways, turns, seconds)
        for name, spent in times.items():
            row = {"network": case.name, "what": what, "by": name, "tokens/s": round(tokens / spent)}
            rows.append({**row, "our rate / this": round(spent / times["ours"], 2)})
            print(shown(rows[-1]), flush=True)
    if peer:
        peer.end()
    keras.utils.clear_session()
    return rows


def shown(row: dict[str, Any]) -> str:
    ratio = row["our rate / this"]
    return f"{row['network']:<20} {row['what']:<11} {row['by']:<28} {row['tokens/s']:>9,} tokens/s, ours / this {ratio}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn (default 2)")
    parser.add_argument("--turns", type=int, default=8, help="of each way (default 8)")
    parser.add_argument("--only", help="networks whose name contains this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON file goes")
    flags = parser.parse_args()
    quiet_tensorflow()
    from pipelines import training

    load, python = os.getloadavg()[0], torch_python()
    rows = [
        row
        for case in CASES
        if not flags.only or flags.only in case.name
        for row in compared(case, python, flags.turns, flags.seconds)
    ]
    if python is None:
        print("PyTorch is not installed: its rows are left out (pip install torch, or DLE_TORCH_PYTHON=…/bin/python)")
    if load > 1:
        print(f"the load was {load:.1f} when this began: repeat it on an idle machine")
    content: dict[str, Any] = {"date": time.strftime("%Y-%m-%d")}
    content["machine"] = {**training.environment(), "cores": os.cpu_count(), "load at start": round(load, 2)}
    for case in CASES:
        content[case.name] = {**case.sizes, "vocabulary": case.vocabulary, "batch": case.batch, "tokens": case.length}
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps(content | {"rows": rows}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
