"""Searches the settings of a task: every trial is a run of the pipeline, chosen by its result on the validation split.

    python -m tuning.search image_classification --model convnet --tuner random --trials 8 --epochs 5
    python -m tuning.search image_classification --model resnet --tuner hyperband --trials 30 --workers 2 --budget 30m
    python -m tuning.search image_classification --tuner grid --vary learning_rate=0.001,0.003,0.01 width dropout

All flags of the pipeline are flags here: what they fix is not searched. The search lives in searches/<name>: a run
folder for every trial under runs/, the table, report.html, which opens without a network, and plots/search.png. It
prints the best configuration as a command to paste. Killed at any moment, the same command continues it: finished
trials are not repeated, the one under way goes on from its checkpoint. The first example takes under two minutes on
two cores. On several machines that share the folder, the same command with KerasTuner's variables
KERASTUNER_TUNER_ID (chief, or a name per worker), KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT is one process.

Deviations: a configuration that hyperband promotes is trained anew with more epochs instead of going on, because the
schedule of the learning rate is laid over the epochs; the test split of every trial is evaluated by the pipeline, and
nothing here looks at it before the best trial is chosen.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pipelines
from pipelines import runs
from pipelines.config import (
    Failure,
    UsageError,
    guarded,
    one_of,
    option,
    parse,
    quiet_tensorflow,
    seconds,
    underscored,
)

TUNERS = ("grid", "random", "bayesian", "hyperband")
FREE = {"trials", "workers", "budget", "compare_random", "verbose"}  # may differ when a search is continued


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchFlags:
    """The flags of a search, beside those of the pipeline."""

    tuner: str = option("random", "how the next trial is chosen", choices=TUNERS)
    trials: int = option(20, "trials in all; of a larger grid, so many points spread over it")
    workers: int = option(1, "processes that train at the same time")
    vary: tuple[str, ...] = option((), "search these alone, or with these values: width dropout=0.1,0.3; default: all")
    budget: str | None = option(None, "begin no trial after this much time, and end the last one: 10m, 1h")
    name: str | None = option(None, "of the search; default: <task>-<model>-<tuner>")
    out: str = option("searches", "where searches are written", metavar="DIR")
    failures: int = option(3, "end the search after this many failed trials in a row")
    compare_random: bool = option(False, "after it, search at random with as many trials, and draw both")


def check(flags: Any) -> None:
    """Raises `UsageError` for flags of the pipeline that have no place in a search, and for numbers too small."""
    flags.at_least(1, "trials", "workers", "failures")
    if flags.resume is not None:
        raise UsageError(f"Expected no --resume: the same command continues a search. Received: {flags.resume!r}")
    if flags.tuner == "hyperband" and flags.steps is not None:
        raise UsageError(f"Expected --epochs for hyperband, which shares them out. Received: --steps {flags.steps}")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a search does.

    Attributes:
        base: the pipeline's configuration of every trial, before the point of the space is put in.
        given: fields that the command line names, and so fixes.
        folder: of the search.
        deadline: time (seconds since 1970) after which no trial is begun, or None.
    """

    task: str
    flags: Any
    base: Any
    given: frozenset[str]
    folder: Path
    deadline: float | None


def read(argv: Sequence[str]) -> Plan:
    """The plan that a command line describes.

    Raises:
        UsageError: an unknown task or flag, or a value that does not fit.
    """
    task, *words = argv
    pipeline = pipelines.get(task)
    both: Any = dataclasses.dataclass(frozen=True, kw_only=True)(type("Search", (SearchFlags, pipeline.Config), {}))
    flags = parse(
        both, words, prog=f"python -m tuning.search {task}", description=__doc__ or "", models=pipeline.MODELS
    )
    check(flags)
    one_of(flags.model, pipeline.MODELS, "--model")
    fields = {field.name for field in dataclasses.fields(pipeline.Config)}
    named = {
        word.partition("=")[0].removeprefix("--").removeprefix("no-") for word in underscored(words) if word[:2] == "--"
    }
    folder = Path(flags.out) / (flags.name or f"{task}-{flags.model}-{flags.tuner}")
    kept = {name: getattr(flags, name) for name in fields - {"out", "budget", "export"}}
    base = pipeline.Config(**kept, out=str(folder / "runs"))
    return Plan(task, flags, base, frozenset(fields & named), folder, None)


def remember(plan: Plan) -> None:
    """`search.json`: what this search is, compared when it is continued.

    Raises:
        UsageError: the folder holds a search that was begun with another command.
    """
    now = {"task": plan.task, "given": sorted(plan.given), **dataclasses.asdict(plan.flags)}
    now = {name: list(item) if isinstance(item, tuple) else item for name, item in now.items()}
    path = plan.folder / "search.json"
    if path.exists():
        before = runs.read_json(path)
        for name in sorted(now.keys() - FREE - {"out", "name"}):
            if before.get(name) != now[name]:
                raise UsageError(
                    f"Expected the command that {plan.folder} was begun with, there {name} is {before.get(name)!r}; "
                    f"another search takes another --name. Received: {now[name]!r}"
                )
    runs.write_json(path, now)


def timed(plan: Plan) -> Plan:
    """The plan with its deadline: the budget less what the search has used before it was interrupted."""
    budget, used = seconds(plan.flags.budget), 0.0
    if (plan.folder / "oracle.json").exists():
        used = runs.read_json(plan.folder / "oracle.json")["seconds"]
    return dataclasses.replace(plan, deadline=budget and time.time() + budget - used)


def search(argv: Sequence[str]) -> Path:
    """Run a search, or go on with it, and report; returns its folder.

    Raises:
        UsageError: the command is wrong, or no trial can be run with these flags.
        Failure: another process works in the folder, or no trial finished.
    """
    from tuning import report, workers

    plan = read(argv)
    role = os.environ.get("KERASTUNER_TUNER_ID")
    if role and workers.supervised():
        part_of(dataclasses.replace(plan, deadline=workers.deadline()))
        return plan.folder
    plan.folder.mkdir(parents=True, exist_ok=True)
    if role:
        if "chief" in role:
            remember(plan)
        part_of(timed(plan))
        return plan.folder
    lock = runs.Lock(plan.folder)
    if not lock.take():
        raise Failure(f"Expected a search that no process works on. Received: {plan.folder}, which is running")
    try:
        remember(plan)
        done = report.load(plan.folder).trials if (plan.folder / "oracle.json").exists() else []
        if done:
            print(f"continuing {plan.folder}: {sum(t.ended for t in done)} of {plan.flags.trials} trials are done")
        if plan.flags.workers > 1:
            workers.run(timed(plan), argv)
        else:
            part_of(timed(plan))
        if plan.flags.compare_random and plan.flags.tuner != "random":
            print("the same number of trials at random, for comparison:")
            words = [word for word in argv if underscored([word])[0] != "--compare_random"]
            search([*words, "--tuner", "random", "--out", str(plan.folder), "--name", "random"])
        print(report.write(plan.folder))
    finally:
        lock.release()
    return plan.folder


def part_of(plan: Plan) -> None:
    """Work on a search in this process: alone, as the chief, or as one of its workers."""
    if os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow":
        quiet_tensorflow()
    from tuning.trials import work

    work(plan)


def main(argv: Sequence[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        print(f"tasks: {', '.join(pipelines.TASKS)}\nflags: python -m tuning.search TASK --help")
        return
    search(argv)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), verbose="--verbose" in sys.argv))
