"""Speculative decoding against greedy search, a part of `python -m benchmarks.language`.

A model and a small draft learn bytes of Python's standard library for a few hundred steps; then the model writes on
pieces of held-out modules, one text at a time, both ways compiled by XLA. A draft that has learned nothing agrees with
nothing, so random weights would tell nothing.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import sides
from pipelines.datasets import tiny_code

LARGE: dict[str, Any] = {"width": 256, "depth": 4, "num_heads": 4, "hidden_dim": 1024}
DRAFT: dict[str, Any] = {"width": 64, "depth": 1, "num_heads": 2, "hidden_dim": 128}


def loss() -> Any:
    import keras

    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def windows(part: str, batch: int, length: int) -> Iterator[tuple[Any, Any]]:
    """Batches of bytes out of Python's standard library, and the bytes after each; whole modules are held out."""
    import numpy as np

    noise = np.random.default_rng(0)
    texts = [
        text.encode()
        for name, text in sorted(tiny_code.modules(Path(sysconfig.get_path("stdlib"))).items())
        if (zlib.crc32(name.encode()) % tiny_code.TEST_SHARE == 0) == (part == "test")
    ]
    whole = np.frombuffer(b"".join(texts), np.uint8).astype("int32")
    while True:
        starts = noise.integers(0, len(whole) - length - 1, batch)
        rows = np.stack([whole[start : start + length + 1] for start in starts])
        yield rows[:, :-1], rows[:, 1:]


def learned(sizes: dict[str, Any], steps: int) -> Any:
    """A model of bytes that has learned for so many steps; says how well."""
    import keras

    from models.gpt import gpt

    model = gpt(256, **sizes, max_length=512, dropout=0.0, attention_dropout=0.0, embedding_dropout=0.0)
    model.compile(keras.optimizers.Adam(2e-3), loss())
    found = [float(model.train_on_batch(*pair)) for pair in itertools.islice(windows("train", 8, 128), steps)]
    bits = found[-1] / math.log(2)  # the mean since the start, which `train_on_batch` gives
    print(
        f"a model of {model.count_params():,} parameters: {steps} steps, {bits:.2f} bits a byte on the way", flush=True
    )
    return model


def compared(flags: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Greedy search against speculative decoding, of the same model on the same texts, one at a time."""
    import tensorflow as tf

    from models.layers.speculative import speculate

    model, draft = learned(LARGE, flags.learn), learned(DRAFT, 2 * flags.learn)
    prompts = [tf.constant(row[None]) for row in next(windows("test", 4, 64))[0]]
    new, calls = 128, 0
    greedy = tf.function(
        lambda ids: model.generate(ids, max_new_tokens=new, temperature=0).token_ids, jit_compile=True, autograph=False
    )
    guess = tf.function(
        lambda ids: speculate(model, draft, ids, max_new_tokens=new, draft_tokens=flags.draft_tokens),
        jit_compile=True,
        autograph=False,
    )
    for ids in prompts:
        found = guess(ids)
        calls += int(found.calls)
        if (found.token_ids.numpy() != greedy(ids).numpy()).any():
            raise ValueError(f"Expected the tokens of greedy search. Received: {found.token_ids} and {greedy(ids)}")
    ways = {
        "speculative decoding": sides.repeating(lambda: [guess(ids).token_ids.numpy() for ids in prompts]),
        "greedy search": sides.repeating(lambda: [greedy(ids).numpy() for ids in prompts]),
    }
    written = len(prompts) * new
    rows = sides.rows("bytes of modules", "generation", ways, written, flags.turns, flags.seconds)
    about = {"model": LARGE, "draft": DRAFT, "steps of learning": flags.learn, "tokens drafted": flags.draft_tokens}
    return rows, about | {"tokens written": written, "calls": calls, "tokens a call": round(written / calls, 2)}
