"""What benchmarks share that let networks of one shape take turns: a training step, a call, PyTorch in its own process.

Sides are `{name: seconds of a call, when it is given some seconds to run}`, ours first.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

Side = Callable[[float], float]


def torch_python(*others: str) -> str | None:
    """An interpreter that imports torch and others: the one that DLE_TORCH_PYTHON names, or this one."""
    words = "import " + ", ".join(("torch", *others))
    for python in (os.environ.get("DLE_TORCH_PYTHON"), sys.executable):
        if python and subprocess.run([python, "-c", words], capture_output=True).returncode == 0:
            return python
    return None


class Peer:
    """PyTorch in a process of its own, asked line by line in JSON.

    Args:
        words: the command; it prints what it is when it is ready.
    """

    def __init__(self, words: list[str]):
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.said = self.answer()
        if self.said.get("different"):
            raise ValueError(f"Expected a cache that changes no token. Received: {self.said['different']} differences")

    @property
    def name(self) -> str:
        return f"PyTorch {self.said['torch']}, eager"

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ValueError(f"Expected an answer of PyTorch. Received: exit code {self.process.wait()}")
        return json.loads(line)

    def ask(self, what: str, **job: Any) -> dict[str, Any]:
        """What the process answers to one line."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"what": what, **job}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def side(self, what: str, **job: Any) -> Side:
        def timed(seconds: float) -> float:
            found = self.ask(what, **job, seconds=seconds)
            return found["seconds"] / found["calls"]

        return timed

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def fitting(model: Any, batch: Any, loss: Any, *, jit: bool) -> Side:
    """A step of `fit` (Adam) on one batch that is repeated from memory."""
    import keras
    import tensorflow as tf

    model.compile(keras.optimizers.Adam(1e-4, beta_2=0.98, epsilon=1e-9), loss, jit_compile=jit)
    data = tf.data.Dataset.from_tensors(batch).cache().repeat()

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


def repeating(call: Callable[[], Any]) -> Side:
    """A call, made once before it is timed."""
    call()

    def run(seconds: float) -> float:
        begun, count = time.perf_counter(), 0
        while not count or time.perf_counter() - begun < seconds:
            call()
            count += 1
        return (time.perf_counter() - begun) / count

    return run


def in_turns(sides: dict[str, Side], turns: int, seconds: float) -> dict[str, float]:
    """{side: seconds of its call}, the lower quartile of all turns, which are taken in alternating order."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns):
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            found[name].append(sides[name](seconds))
    return {name: sorted(times)[len(times) // 4] for name, times in found.items()}


def rows(network: str, what: str, sides: dict[str, Side], tokens: int, turns: int, seconds: float) -> list[dict]:
    """A row of tokens per second for each side, with the ratio of the first side to it; printed as they are made."""
    times = in_turns(sides, turns, seconds)
    first = next(iter(times.values()))
    made = []
    for name, spent in times.items():
        made.append({"network": network, "what": what, "by": name, "tokens/s": round(tokens / spent)})
        made[-1]["our rate / this"] = ratio = round(spent / first, 2)
        rate = f"{made[-1]['tokens/s']:>9,} tokens/s"
        print(f"{network:<20} {what:<11} {name:<32} {rate}, ours / this {ratio}", flush=True)
    return made


def of_one_size(*counts: int) -> None:
    """Raises where networks that are compared differ in their parameters."""
    if len(set(counts)) > 1:
        raise ValueError(f"Expected networks of one size. Received: parameters {sorted(set(counts))}")


def machine(python: str | None, load: float) -> dict[str, Any]:
    """Where and when this ran, for the record; says what is missing or in the way."""
    from pipelines import training

    if python is None:
        print("PyTorch is not installed: its rows are left out (pip install torch, or DLE_TORCH_PYTHON=…/bin/python)")
    if load > 1:
        print(f"the load was {load:.1f} when this began: repeat it on an idle machine")
    about = {**training.environment(), "cores": os.cpu_count(), "load at start": round(load, 2)}
    return {"date": time.strftime("%Y-%m-%d"), "machine": about}
