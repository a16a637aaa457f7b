"""Time and memory of attention against the length of the sequence: full, window, block-sparse, linear, chunked.

    python -m benchmarks.attention

Every kind at every length, from 512 to 32,768 tokens, is run in a process of its own: one sequence, 4 heads of 64,
float32, forward alone and with the gradient of queries, keys and values. Memory is the peak of resident memory in eight
calls (in fewer, if they take longer than `--seconds`) over that of the waiting process; milliseconds are the median of
the calls in `--seconds` after these. Full attention is `keras.ops.dot_product_attention`; a kind stops before the
length that would not fit into the free memory. Slopes are those of a straight line through the logarithms; 1 is linear.
Prints the table, writes benchmarks/results/attention.json and docs/images/attention.png, and exits 1 where a slope is
over what is promised: 1.1 for time and memory of window, block-sparse and linear, and for memory of chunked. About 20
minutes on two cores.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docs.pictures import IMAGES, copied
from pipelines.config import quiet_tensorflow

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results/attention.json"
PICTURE = IMAGES / "attention.png"
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
HEADS, WIDTH = 4, 64
KINDS = ("full", "window", "block_sparse", "linear", "linear, causal", "chunked")
SIZES: dict[str, dict[str, Any]] = {
    "window": {"window": 128},
    "block_sparse": {"block_size": 64, "window_blocks": 1, "num_global": 16},
    "linear": {},
    "linear, causal": {"causal": True},
    "chunked": {},
}
PASSES = ("forward", "training")
MOST = 1.1
MMAP_THRESHOLD = -3  # of glibc's mallopt: from so many bytes on an allocation is a mapping of its own
# What a slope is promised of: kind, and what is measured.
PROMISED = dict.fromkeys(SIZES, ("ms", "MiB")) | {"chunked": ("MiB",)}


def attention(kind: str) -> Callable[..., Any]:
    """The function of query, key and value, each (b, n, t, d)."""
    from keras import ops

    from models.layers import long_attention

    if kind == "full":

        def full(query: Any, key: Any, value: Any) -> Any:
            turned = [ops.swapaxes(x, 1, 2) for x in (query, key, value)]  # (b, t, n, d)
            return ops.swapaxes(ops.dot_product_attention(*turned), 1, 2)

        return full
    function = getattr(long_attention, f"{kind.partition(',')[0]}_attention")
    return lambda *inputs: function(*inputs, **SIZES[kind])


def peak(call: Callable[[], Any]) -> float:
    """MiB by which the resident memory of this process grows while `call` runs, at its highest."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed is given back, so that it counts again
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew from what is resident now
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return grown / (1024**2 if sys.platform == "darwin" else 1024)  # bytes there, KiB elsewhere


def pages(least: int) -> None:
    """Has the C library map allocations of at least so many bytes one by one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, least)


def measured(kind: str, training: bool, length: int, seconds: float) -> dict[str, float]:
    """One cell, in this process: milliseconds and MiB."""
    import numpy as np
    import tensorflow as tf

    function = attention(kind)

    @tf.function(input_signature=[[tf.TensorSpec((1, HEADS, None, WIDTH))] * 3])
    def step(inputs: Any) -> Any:
        if not training:
            return function(*inputs)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(tf.square(function(*inputs)))
        return tape.gradient(loss, inputs)

    def random(tokens: int) -> list[Any]:
        noise = np.random.default_rng(0)
        return [tf.constant(noise.normal(size=(1, HEADS, tokens, WIDTH)).astype("float32")) for _ in range(3)]

    pages(
        2**16
    )  # tensors get pages of their own and give them back at once, so that none hide in what was freed before
    step(random(16))  # the graph is made, the threads are started
    inputs = random(length)

    def calls() -> None:
        begun = time.perf_counter()
        for _ in range(8):  # operations of one call overlap differently each time
            step(inputs)
            if time.perf_counter() - begun > seconds:
                break

    memory = peak(calls)
    pages(2**25)  # memory is used again, as it commonly is
    times: list[float] = []
    while (len(times) < 3 and sum(times) < 10 * seconds) or sum(times) < seconds:
        begun = time.perf_counter()
        step(inputs)
        times.append(time.perf_counter() - begun)
    return {"ms": statistics.median(times) * 1e3, "MiB": memory}


def cell(kind: str, training: bool, length: int, seconds: float) -> dict[str, float] | str:
    """The same in a process of its own; if that fails, why."""
    words = [sys.executable, "-m", "benchmarks.attention", "--one", kind, PASSES[training], str(length)]
    done = subprocess.run([*words, f"--seconds={seconds}"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        killed = "the process was killed, as systems do when memory ends" if done.returncode < 0 else ""
        return killed or (said[-1] if said else f"exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def free() -> float:
    """MiB that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) / 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20


def needed(found: dict[int, dict[str, float]], length: int) -> float:
    """MiB that a length will take, by the growth between the last two lengths."""
    if len(found) < 2:
        return 0.0
    (shorter, less), (longer, more) = list(found.items())[-2:]
    rate = math.log(max(more["MiB"], 1) / max(less["MiB"], 1)) / math.log(longer / shorter)
    return max(more["MiB"], 1) * (length / longer) ** max(rate, 0.0)


def slope(lengths: list[int], values: list[float]) -> float:
    """Of a straight line through the logarithms, by least squares."""
    x, y = ([math.log(max(value, 1e-3)) for value in row] for row in (lengths, values))
    return statistics.linear_regression(x, y).slope


def table(found: dict[tuple[str, str], dict[int, dict[str, float]]], lengths: list[int]) -> list[dict[str, Any]]:
    """A row for each pass, kind and measure, with its slope."""
    rows = []
    for (which, kind), cells in found.items():
        for measure in ("ms", "MiB"):
            row: dict[str, Any] = {"pass": which, "attention": kind, "measure": measure}
            row |= {f"{n:,}": float(f"{cells[n][measure]:.3g}") if n in cells else "" for n in lengths}
            if len(cells) > 1:
                row["slope"] = round(slope(list(cells), [one[measure] for one in cells.values()]), 2)
            rows.append(row)
    return rows


def draw(found: dict[tuple[str, str], dict[int, dict[str, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex=True, layout="constrained")
    for place, which in enumerate(PASSES):
        for axis, (measure, title) in zip(axes[place], {"ms": "milliseconds", "MiB": "peak memory in MiB"}.items()):
            for color, kind in enumerate(KINDS):
                cells = found.get((which, kind), {})
                if len(cells) > 1:
                    values = [one[measure] for one in cells.values()]
                    label = f"{kind}: {slope(list(cells), values):.2f}"
                    axis.loglog(list(cells), values, "o-", color=f"C{color}", label=label, base=2)
            axis.set_yscale("log", base=10)
            axis.set_title(f"{which}: {title}")
            axis.grid(True, alpha=0.3)
            axis.legend(title="kind: slope", fontsize="small")
    ticks = sorted({length for cells in found.values() for length in cells})
    for axis in axes[1]:
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=30)
        axis.set_xlabel("tokens")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=70)
    plt.close(figure)
    copied(path, path)


def broken(rows: list[dict[str, Any]]) -> list[str]:
    """The promises that the rows do not keep."""
    return [
        f"{row['attention']}, {row['pass']}: slope {row['slope']} of {row['measure']}, promised: at most {MOST}"
        for row in rows
        if row["measure"] in PROMISED.get(row["attention"], ()) and row.get("slope", 0) > MOST
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens, ascending")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="which attention (default all)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing in each process (default 2)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON file goes")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where the plot goes")
    parser.add_argument("--one", nargs=3, metavar=("KIND", "PASS", "LENGTH"), help="measure one cell in this process")
    flags = parser.parse_args()
    quiet_tensorflow()
    if flags.one:
        kind, which, length = flags.one
        print(json.dumps(measured(kind, which == "training", int(length), flags.seconds)))
        return
    from pipelines import training

    load = os.getloadavg()[0]
    found: dict[tuple[str, str], dict[int, dict[str, float]]] = {(p, k): {} for p in PASSES for k in flags.kinds}
    stopped: dict[str, str] = {}
    for length in sorted(flags.lengths):
        for (which, kind), cells in found.items():
            name = f"{kind}, {which}"
            if name in stopped:
                continue
            wanted, there = needed(cells, length), free()
            if wanted > 0.9 * there:
                stopped[name] = f"{length:,} tokens would take about {wanted:,.0f} MiB, {there:,.0f} MiB are free"
            else:
                answer = cell(kind, which == "training", length, flags.seconds)
                if isinstance(answer, str):
                    stopped[name] = f"at {length:,} tokens: {answer}"
                else:
                    cells[length] = answer
                    print(f"{length:>7,} {name:<26} {answer['ms']:>10.1f} ms {answer['MiB']:>9.1f} MiB", flush=True)
            if name in stopped:
                print(f"{length:>7,} {name:<26} stopped: {stopped[name]}", flush=True)
    rows = table(found, sorted(flags.lengths))
    for row in rows:
        print(f"{row['pass']:<9} {row['attention']:<15} {row['measure']:<4} slope {row.get('slope', '')}")
    machine = {**training.environment(), "cores": os.cpu_count(), "load at start": round(load, 2)}
    content: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": machine}
    content["sizes"] = f"1 sequence, {HEADS} heads of {WIDTH}, float32; " + "; ".join(
        f"{kind}: {', '.join(f'{name} {value}' for name, value in sizes.items())}"
        for kind, sizes in SIZES.items()
        if sizes
    )
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps(content | {"stopped": stopped, "rows": rows}, indent=1, ensure_ascii=False) + "\n")
    draw(found, flags.picture)
    if load > 1:
        print(f"the load was {load:.1f} when this began: repeat it on an idle machine")
    failures = broken(rows) + [f"{name} stopped {why}" for name, why in stopped.items() if not name.startswith("full")]
    print("\n".join(failures) or f"every promised slope is at most {MOST}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
