"""GPT-2 in training on one device by JAX: tokens a second, and the share of the chip's arithmetic that the model uses.

    python -m benchmarks.gpt2_gpu --peak 989e12             # GPT-2 small in bfloat16 on an H100
    python -m benchmarks.gpt2_gpu --size tiny --steps 2     # anywhere, to see that it runs

A step is one of Adam on random tokens, weights in float32 and the computation in the precision of `--precision`,
compiled by XLA whole and timed after three steps that do not count. Model-FLOP utilization is what the forward and
backward passes of the model need, tokens/s × (6 N + 12 l d t), over the chip's peak (Chowdhery et al. 2022, "PaLM",
appendix B): N parameters without the embeddings of positions, l blocks, width d, t tokens in a row; nothing is counted
twice where activations are computed again. The peak is known of the chips below, or told by `--peak`; without one there
is no utilization. Needs `jax[cuda12]` on a GPU. Prints one JSON object and writes it where `--out` says.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

# Dense bfloat16 FLOP/s by what `jax.Device.device_kind` begins with, out of the makers' data sheets.
PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "Tesla V100": 125e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
}
TINY: dict[str, Any] = {"width": 32, "depth": 2, "num_heads": 2, "hidden_dim": 64, "max_length": 64}


def flops_per_token(parameters: int, depth: int, width: int, length: int) -> int:
    """Of the forward and the backward pass, of matrix products alone."""
    return 6 * parameters + 12 * depth * width * length


def peak_of(kind: str, told: float | None) -> float | None:
    """FLOP/s of a chip, None where nothing is known of it."""
    if told:
        return told
    return next((peak for name, peak in PEAKS.items() if kind.startswith(name)), None)


def stepper(model: Any, optimizer: Any) -> tuple[Any, Any]:
    """A compiled training step, and the state that it takes and gives."""
    import jax
    import jax.numpy as jnp

    optimizer.build(model.trainable_variables)

    def loss(trainable: Any, others: Any, ids: Any) -> tuple[Any, Any]:
        logits, others = model.stateless_call(trainable, others, ids[:, :-1], training=True)
        likely = jax.nn.log_softmax(logits.astype(jnp.float32))
        return -jnp.mean(jnp.take_along_axis(likely, ids[:, 1:, None], axis=-1)), others

    @jax.jit(donate_argnums=0)
    def step(state: Any, ids: Any) -> tuple[Any, Any]:
        trainable, others, slots = state
        (value, others), gradients = jax.value_and_grad(loss, has_aux=True)(trainable, others, ids)
        trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
        return (trainable, others, slots), value

    # Copies: what is given away by `donate_argnums` must not be what the model still holds.
    parts = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
    return step, tuple([jnp.array(one.value, copy=True) for one in part] for part in parts)


def measured(flags: argparse.Namespace) -> dict[str, Any]:
    """The figures of one run."""
    import jax
    import keras
    import numpy as np

    from models.gpt import SIZES, gpt

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(flags.precision)
    sizes = TINY if flags.size == "tiny" else SIZES[flags.size]
    length = min(flags.length, sizes["max_length"])
    model = gpt(flags.vocabulary, **sizes, dropout=0.0, attention_dropout=0.0, embedding_dropout=0.0)
    step, state = stepper(model, keras.optimizers.Adam(1e-4))
    draws = np.random.default_rng(0).integers(0, flags.vocabulary, (flags.batch, length + 1)).astype("int32")
    ids = jax.device_put(draws)
    value: Any = None
    begun = time.perf_counter()
    for _ in range(3):
        state, value = step(state, ids)
    jax.block_until_ready(value)
    compiling, begun = time.perf_counter() - begun, time.perf_counter()
    for _ in range(flags.steps):
        state, value = step(state, ids)
    jax.block_until_ready((state, value))
    rate = flags.steps * flags.batch * length / (time.perf_counter() - begun)
    if not np.isfinite(float(value)):
        raise ValueError(f"Expected a finite loss. Received: {float(value)}")
    device = jax.devices()[0]
    positions = sizes["max_length"] * sizes["width"]
    needed = flops_per_token(model.count_params() - positions, sizes["depth"], sizes["width"], length)
    peak = peak_of(device.device_kind, flags.peak)
    held = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "device": device.device_kind,
        "size": flags.size,
        "parameters": model.count_params(),
        "precision": flags.precision,
        "batch": flags.batch,
        "tokens a row": length,
        "tokens/s": round(rate, 1),
        "TFLOP/s of the model": round(rate * needed / 1e12, 3),
        "peak TFLOP/s": None if peak is None else peak / 1e12,
        "model-FLOP utilization": None if peak is None else round(rate * needed / peak, 4),
        "seconds of compiling and three steps": round(compiling, 1),
        "GiB of memory at most": round(held / 2**30, 2) if held else None,
        "loss after": round(float(value), 3),
        "versions": {"jax": jax.__version__, "keras": keras.__version__},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "small", "medium", "large", "xl"), default="small")
    parser.add_argument("--batch", type=int, default=16, help="rows of a step (default 16)")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row (default 1024)")
    parser.add_argument("--steps", type=int, default=20, help="that are timed (default 20)")
    parser.add_argument("--vocabulary", type=int, default=50257, help="tokens known (default 50257)")
    parser.add_argument("--precision", default="mixed_bfloat16", help="a policy of Keras (default mixed_bfloat16)")
    parser.add_argument("--peak", type=float, help="FLOP/s of the chip in that precision (default: of a table)")
    parser.add_argument("--out", type=Path, help="where the JSON goes, too")
    flags = parser.parse_args()
    if min(flags.batch, flags.length, flags.steps, flags.vocabulary) < 1:
        parser.error("--batch, --length, --steps and --vocabulary must be at least 1")
    os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    text = json.dumps(measured(flags), indent=1)
    print(text)
    if flags.out:
        flags.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
