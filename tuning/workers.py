"""The processes of a search with `--workers`: KerasTuner's chief, which holds the oracle, and the workers, on loopback.

All of them run the command of the search again with KerasTuner's variables in their environment. Their lines are
printed with their name before them. A worker that dies is reported and started again, and the chief hands it the trial
that it was in; a trial in which a process dies twice fails. When this process ends, however, they end too.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipelines import runs
from pipelines.config import Failure, UsageError

HOST = "127.0.0.1"
DEADLINE = "DL_ESSENTIALS_SEARCH_DEADLINE"  # set for processes that are started here
DEATHS = 5  # of one worker, after which the search gives up
GRACE = 5.0  # seconds for a process to end by itself


def supervised() -> bool:
    """Whether this process was started by `run`; from then on it ends when that process does."""
    return DEADLINE in os.environ


def deadline() -> float | None:
    """The deadline that `run` was given; starts the watch over that process."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    return float(os.environ[DEADLINE]) if os.environ[DEADLINE] else None


def end_with_parent() -> None:
    """The parent holds the other end of the standard input and never writes: its end means that the parent is gone."""
    os.read(0, 1)
    os._exit(1)


def run(plan: Any, argv: Sequence[str]) -> None:
    """Run a search to its end with a chief and `plan.flags.workers` workers.

    Raises:
        UsageError: a process found the command wrong.
        Failure: the chief ended early, or a worker keeps dying.
    """
    crew = Crew(plan, argv)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        crew.watch()
    finally:
        signal.signal(signal.SIGTERM, before)
        crew.end()


class Crew:
    """The processes of one search."""

    def __init__(self, plan: Any, argv: Sequence[str]):
        self.plan, self.deaths = plan, Counter[str]()
        self.command = [sys.executable, "-m", "tuning.search", *argv]
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = probe.getsockname()[1]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        share = str(max(1, cores // plan.flags.workers))
        self.environment = {
            "TF_NUM_INTRAOP_THREADS": share,
            **os.environ,
            "KERASTUNER_ORACLE_IP": HOST,
            "KERASTUNER_ORACLE_PORT": str(port),
            DEADLINE: str(plan.deadline or ""),
            "PYTHONUNBUFFERED": "1",
            "no_grpc_proxy": HOST,
        }
        self.errors: dict[str, str] = {}
        self.readers: dict[str, threading.Thread] = {}
        names = ["chief", *(f"worker{i + 1}" for i in range(plan.flags.workers))]
        self.processes = {name: self.start(name) for name in names}

    def start(self, name: str) -> subprocess.Popen:
        light = {"KERAS_BACKEND": "numpy"} if name == "chief" else {}  # it trains nothing and needs no TensorFlow
        process = subprocess.Popen(
            self.command,
            env={**self.environment, "KERASTUNER_TUNER_ID": name, **light},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others
        )
        self.readers[name] = threading.Thread(target=self.relay, args=(name, process), daemon=True)
        self.readers[name].start()
        return process

    def relay(self, name: str, process: subprocess.Popen) -> None:
        """Print a process's lines under its name; an error line is kept for the exception of `run`."""
        for line in process.stdout or ():
            if line.startswith("error: "):
                self.errors[name] = line.removeprefix("error: ").strip()
            else:
                print(f"{name} | {line}", end="", flush=True)

    def watch(self) -> None:
        """Until the chief or all workers have ended well."""
        working = set(self.processes) - {"chief"}
        while working:
            time.sleep(0.1)
            code = self.processes["chief"].poll()
            if code is not None:
                if code:
                    raise self.failure("chief", code)
                return
            for name in sorted(working):
                code = self.processes[name].poll()
                if code == 0:
                    working.discard(name)
                elif code is not None:
                    self.died(name, code)

    def died(self, name: str, code: int) -> None:
        """Report a worker's end and start it again, for the trial that it was in."""
        self.deaths[name] += 1
        if code == 2 or self.deaths[name] >= DEATHS:
            raise self.failure(name, code)
        path = self.plan.folder / "oracle.json"
        trial = runs.read_json(path)["ongoing_trials"].get(name) if path.exists() else None
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        reason = f" ({self.errors.pop(name)})" if name in self.errors else ""
        where = f"in trial {int(trial) + 1}, which is tried again" if trial else "outside of a trial"
        print(f"{name} died of {how}{reason} {where}; it is started again", file=sys.stderr, flush=True)
        if trial:
            self.deaths[trial] += 1
            runs.write_json(self.plan.folder / f"trial_{trial}" / "died.json", self.deaths[trial])
        self.processes[name] = self.start(name)

    def failure(self, name: str, code: int) -> Exception:
        self.readers[name].join(GRACE)
        text = self.errors.get(name, f"exit code {code}")
        return UsageError(text) if code == 2 else Failure(f"Expected the search's {name} to go on. Received: {text}")

    def end(self) -> None:
        """Give the processes that have been told to stop a moment, then end the rest."""
        close = time.monotonic() + GRACE
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(max(0.1, close - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for reader in self.readers.values():
            reader.join(GRACE)
