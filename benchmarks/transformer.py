"""The transformer against PyTorch's modules and plain keras.layers of the same shape: tokens a second, on this machine.

    python -m benchmarks.transformer

Training is a step of `fit` (Adam, label smoothing, dropout) on one batch that is repeated from memory, tokens of source
and target counted. Generation is greedy with a cache of keys and values, written tokens counted; plain layers have no
cache and read everything again for each token. Ours and plain layers are compiled by XLA, as `--jit` does, and ours
once more without it. All sides take turns in one run; rates are those of the quickest quarter of the turns, which other
work on the machine disturbs least. PyTorch answers from benchmarks/torch_transformer.py where it can be imported (here,
or by the interpreter that DLE_TORCH_PYTHON names), eagerly. All sides have equal numbers of parameters, or this stops.
Then what a token costs against the length that is generated, without XLA: with a window it is promised to be flat up to
the window, at most half more than at the shortest length. Writes benchmarks/results/transformer.json and exits 1 where
that promise breaks; fifteen minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import sides
from pipelines.config import quiet_tensorflow

RESULTS = Path(__file__).parent / "results" / "transformer.json"
PEER = Path(__file__).parent / "torch_transformer.py"
DROPOUT, SMOOTHING = 0.1, 0.1
LENGTHS = (32, 64, 128, 256, 512)
WINDOW = 128
MOST = 1.5  # what a token may cost up to the window, against one of the shortest length


@dataclass(frozen=True)
class Case:
    """The shape of a network, and of what it is timed on."""

    name: str
    vocabulary: int
    width: int
    depth: int
    num_heads: int
    hidden_dim: int
    batch: int
    length: int

    @property
    def sizes(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("width", "depth", "num_heads", "hidden_dim")}


CASES = (
    Case("small", 1000, 128, 2, 4, 256, batch=32, length=32),
    Case("medium", 8000, 256, 4, 8, 1024, batch=16, length=64),
)


def ours(case: Case, **changes: Any) -> Any:
    """Our builder, with the biases that PyTorch's modules have."""
    from models.transformer import transformer

    arguments: dict[str, Any] = {**case.sizes, "dropout": DROPOUT, "use_bias": True, **changes}
    return transformer(case.vocabulary, case.vocabulary, **arguments)


def plain(case: Case) -> Any:
    """The same network of `keras.layers` as they are, for sequences of the case's length."""
    import keras
    from keras import layers, ops

    from models.layers.embeddings import sinusoidal_positions

    waves = sinusoidal_positions(case.length, case.width)[None]  # (1, t, d)
    source, target = (keras.Input((case.length,), dtype="int32", name=name) for name in ("source", "target"))
    tables = [layers.ReversibleEmbedding(case.vocabulary, case.width) for _ in range(2)]

    def beside(x: Any, y: Any) -> Any:
        return layers.LayerNormalization(epsilon=1e-6)(x + layers.Dropout(DROPOUT)(y))

    def attended(x: Any, memory: Any, **masks: Any) -> Any:
        return beside(x, layers.MultiHeadAttention(case.num_heads, case.width // case.num_heads)(x, memory, **masks))

    def dense(x: Any) -> Any:
        return beside(x, layers.Dense(case.width)(layers.Dense(case.hidden_dim, activation="relu")(x)))

    memory, x = (
        layers.Dropout(DROPOUT)(table(tokens) * case.width**0.5 + waves)
        for table, tokens in zip(tables, (source, target))
    )
    seen = ops.not_equal(source, 0)[:, None]  # (b, 1, s)
    for _ in range(case.depth):
        memory = dense(attended(memory, memory, attention_mask=seen))
    for _ in range(case.depth):
        x = dense(attended(attended(x, x, use_causal_mask=True), memory, attention_mask=seen))
    return keras.Model({"source": source, "target": target}, tables[1](x, reverse=True))


def batch_of(case: Case) -> tuple[dict[str, Any], Any]:
    """Random tokens: source and target, and the tokens to be predicted."""
    import numpy as np

    draws = np.random.default_rng(0).integers(4, case.vocabulary, (3, case.batch, case.length)).astype("int32")
    return {"source": draws[0], "target": draws[1]}, draws[2]


def writing(model: Any, case: Case, length: int, *, jit: bool) -> Callable[[], Any]:
    """Our greedy generation of `length` tokens, whole."""
    import tensorflow as tf

    source = tf.constant(batch_of(case)[0]["source"])
    graph = tf.function(lambda source: model.generate(source, max_length=length, beam_width=1), jit_compile=jit)
    found = int(tf.reduce_min(graph(source).lengths))
    if found != length:
        raise ValueError(f"Expected answers of {length} tokens from random weights. Received: one of {found}")
    return lambda: graph(source).token_ids.numpy()


def rereading(model: Any, case: Case) -> Callable[[], Any]:
    """Greedy generation as plain layers do it: the whole target again for each token."""
    import tensorflow as tf

    source = tf.constant(batch_of(case)[0]["source"])

    @tf.function(jit_compile=True)
    def graph(source: Any) -> Any:
        target = tf.concat([tf.ones((case.batch, 1), tf.int32), tf.zeros((case.batch, case.length), tf.int32)], axis=1)
        for place in tf.range(case.length):
            logits = model({"source": source, "target": target[:, :-1]}, training=False)
            token = tf.argmax(logits[:, place], axis=-1, output_type=tf.int32)
            target = tf.where((tf.range(case.length + 1) == place + 1)[None], token[:, None], target)
        return target

    return lambda: graph(source).numpy()


def compared(case: Case, python: str | None, turns: int, seconds: float) -> list[dict[str, Any]]:
    """The rows of one network: training, then generation, of each side."""
    import keras

    from models.losses import TokenCrossentropy

    networks = {"ours, XLA": ours(case), "ours, no XLA": ours(case), "keras.layers, XLA": plain(case)}
    peer = None
    if python:
        sizes = [f"--{name}={value}" for name, value in case.sizes.items()]
        peer = sides.Peer([python, str(PEER), *sizes, f"--vocabulary={case.vocabulary}", f"--dropout={DROPOUT}"])
    sides.of_one_size(*(one.count_params() for one in networks.values()), *([peer.said["parameters"]] if peer else []))
    loss, batch = TokenCrossentropy(SMOOTHING), batch_of(case)
    train = {name: sides.fitting(one, batch, loss, jit="no XLA" not in name) for name, one in networks.items()}
    write = {
        "ours, XLA": writing(networks["ours, XLA"], case, case.length, jit=True),
        "ours, no XLA": writing(networks["ours, XLA"], case, case.length, jit=False),
        "keras.layers, XLA, no cache": rereading(networks["keras.layers, XLA"], case),
    }
    answer = {name: sides.repeating(call) for name, call in write.items()}
    if peer:
        shape = {"batch": case.batch, "length": case.length}
        train[peer.name] = peer.side("train", **shape)
        answer[peer.name] = peer.side("generate", **shape, source_length=case.length)
    found = sides.rows(case.name, "training", train, 2 * case.batch * case.length, turns, seconds)
    found += sides.rows(case.name, "generation", answer, case.batch * case.length, turns, seconds)
    if peer:
        peer.end()
    keras.utils.clear_session()
    return found


def by_length(case: Case, lengths: list[int], turns: int, seconds: float) -> dict[str, dict[int, float]]:
    """Milliseconds of a generated token of one text, against the length that is generated."""
    case = replace(case, batch=1)
    found: dict[str, dict[int, float]] = {}
    for name, changes in {"full": {}, "window": {"attention": "window", "window": WINDOW}}.items():
        model = ours(case, **changes)
        ways = {str(length): sides.repeating(writing(model, case, length, jit=False)) for length in lengths}
        times = sides.in_turns(ways, turns, seconds)
        found[name] = {int(length): round(spent / int(length) * 1e3, 3) for length, spent in times.items()}
        print(f"{name:<8} ms/token: {', '.join(f'{n} tokens {ms}' for n, ms in found[name].items())}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn (default 3)")
    parser.add_argument("--turns", type=int, default=8, help="of each way (default 8)")
    parser.add_argument("--only", help="networks whose name contains this")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens that are generated")
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
    costs = by_length(CASES[0], sorted(flags.lengths), max(2, flags.turns // 2), flags.seconds / 2)
    near = [ms for length, ms in costs["window"].items() if length <= WINDOW]
    ratio = round(max(near) / near[0], 2) if near else 1.0
    print(f"a token costs at most {ratio} times as much up to the window of {WINDOW}; promised: at most {MOST} times")
    content = sides.machine(python, load)
    for case in CASES:
        content[case.name] = {"vocabulary": case.vocabulary, **case.sizes, "batch": case.batch, "tokens": case.length}
    for name, times in costs.items():
        text = f"ms per token of one text, {name} attention" + (f" of {WINDOW}" if name == "window" else "")
        content[text] = {f"{length} tokens": ms for length, ms in times.items()}
    content[f"largest cost up to a window of {WINDOW}, against the shortest length"] = ratio
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps(content | {"rows": rows}, indent=1, ensure_ascii=False) + "\n")
    sys.exit(ratio > MOST)


if __name__ == "__main__":
    main()
