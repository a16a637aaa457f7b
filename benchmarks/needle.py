"""A needle in a haystack: which kinds of attention learn to find one token among many, however deep it lies.

    python -m benchmarks.needle

Every token is a key with a value; the first token asks for a key that occurs once, at a random depth, and the answer is
its value. A transformer of two blocks reads its answer off the first token. It is trained on sequences that double from
16 tokens to the longest, and tested at every length by the quarter in which the needle lies; a guess is right once in
eight times. Global tokens are what carries a question through a sparse pattern: a window alone finds a needle that its
window holds, and guesses beyond. Writes benchmarks/results/needle.json; about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config import quiet_tensorflow

RESULTS = Path(__file__).parent / "results" / "needle.json"
NUM_KEYS, NUM_VALUES = 16, 8
VOCABULARY = NUM_KEYS * NUM_VALUES + NUM_KEYS  # a pair each, and a question each
LENGTHS = (256, 512, 1024, 2048)
WINDOW = 64
KINDS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "chunked": {"kind": "chunked", "block_size": 64},
    "block_sparse": {"kind": "block_sparse", "block_size": WINDOW, "window_blocks": 1, "num_global": 1},
    "linear": {"kind": "linear"},
    "window": {"kind": "window", "window": WINDOW},
}
QUARTERS = ("first quarter", "second quarter", "third quarter", "last quarter")


def haystacks(
    generator: np.random.Generator, count: int, length: int, depth: tuple[float, float] = (0.0, 1.0)
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences with one needle each.

    Args:
        generator: draws them.
        count: sequences, b.
        length: tokens of each, t, the question among them.
        depth: the part of the sequence in which the needle lies, from 0 to 1.

    Returns:
        token ids (b, t) int32, and the values to be found (b,) int32.
    """
    asked = generator.integers(NUM_KEYS, size=count)
    others = (asked[:, None] + generator.integers(1, NUM_KEYS, size=(count, length))) % NUM_KEYS  # never the asked key
    tokens = others * NUM_VALUES + generator.integers(NUM_VALUES, size=(count, length))  # (b, t)
    low = 1 + int(depth[0] * (length - 1))
    places = generator.integers(low, max(low + 1, 1 + int(depth[1] * (length - 1))), size=count)
    values = generator.integers(NUM_VALUES, size=count)
    tokens[np.arange(count), places] = asked * NUM_VALUES + values
    tokens[:, 0] = NUM_KEYS * NUM_VALUES + asked
    return tokens.astype("int32"), values.astype("int32")


def reader(*, width: int = 64, depth: int = 2, num_heads: int = 2, **attention: Any) -> Any:
    """A transformer that answers from its first token: token ids (b, t) to logits (b, NUM_VALUES)."""
    import keras

    from models.layers.attention import MultiHeadAttention

    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    x = keras.layers.Embedding(VOCABULARY, width, name="tokens")(token_ids)  # (b, t, d)
    for index in range(depth):
        y = keras.layers.LayerNormalization(name=f"block{index + 1}_attention_norm")(x)
        y = MultiHeadAttention(num_heads, width // num_heads, **attention, name=f"block{index + 1}_attention")(y)
        x = keras.layers.Add(name=f"block{index + 1}_attention_add")([x, y])
        y = keras.layers.LayerNormalization(name=f"block{index + 1}_mlp_norm")(x)
        y = keras.layers.Dense(2 * width, activation="gelu", name=f"block{index + 1}_mlp_hidden")(y)
        y = keras.layers.Dense(width, name=f"block{index + 1}_mlp_output")(y)
        x = keras.layers.Add(name=f"block{index + 1}_mlp_add")([x, y])
    x = keras.layers.LayerNormalization(name="norm")(x[:, 0])  # (b, d)
    return keras.Model(token_ids, keras.layers.Dense(NUM_VALUES, name="logits", dtype="float32")(x))


def trained(attention: dict[str, Any], lengths: list[int], *, steps: int, tokens: int, seed: int = 0) -> Any:
    """A reader, trained `steps` steps at each length, in batches of about `tokens` tokens, four sequences at least."""
    import keras

    keras.utils.set_random_seed(seed)
    generator = np.random.default_rng(seed)
    model = reader(**attention)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps * len(lengths), alpha=0.01)
    model.compile(keras.optimizers.Adam(rate, clipnorm=1.0), loss, jit_compile=False)  # one graph for all lengths
    for length in lengths:
        for _ in range(steps):
            model.train_on_batch(*haystacks(generator, max(4, tokens // length), length))
    return model


def accuracy(
    model: Any, length: int, depth: tuple[float, float] = (0.0, 1.0), *, count: int = 256, seed: int = 1
) -> float:
    """Share of needles that are found."""
    tokens, values = haystacks(np.random.default_rng([seed, length]), count, length, depth)
    logits = model.predict(tokens, batch_size=max(1, 16384 // length), verbose=0)
    return float((logits.argmax(-1) == values).mean())


def doubling(longest: int) -> list[int]:
    """16, 32, …, longest."""
    return [2**power for power in range(4, longest.bit_length()) if 2**power <= longest]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens that are tested")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=list(KINDS), help="which attention")
    parser.add_argument("--steps", type=int, default=100, help="of training at each length (default 100)")
    parser.add_argument("--tokens", type=int, default=4096, help="in a batch (default 4,096)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON file goes")
    flags = parser.parse_args()
    quiet_tensorflow()
    import keras

    from pipelines import training

    rows: list[dict[str, Any]] = []
    for kind in flags.kinds:
        begun = time.perf_counter()
        lengths = doubling(max(flags.lengths))
        model = trained(KINDS[kind], lengths, steps=flags.steps, tokens=flags.tokens, seed=flags.seed)
        spent = time.perf_counter() - begun
        for length in sorted(flags.lengths):
            row: dict[str, Any] = {"attention": kind, "tokens": length}
            for place, name in enumerate(QUARTERS):
                row[name] = round(accuracy(model, length, (place / 4, (place + 1) / 4)), 3)
            row["all"] = round(sum(row[name] for name in QUARTERS) / 4, 3)
            if kind == "window":
                row["within reach"] = round(accuracy(model, length, (0, min(1, (WINDOW - 1) / (length - 1)))), 3)
            row["seconds of training"] = round(spent)
            rows.append(row)
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        keras.utils.clear_session()
    machine = {**training.environment(), "cores": os.cpu_count()}
    content = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "seed": flags.seed, "guessing": 1 / NUM_VALUES}
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps(content | {"rows": rows}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
