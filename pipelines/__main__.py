"""Lists the tasks: python -m pipelines."""

from __future__ import annotations

import sys

import pipelines
from pipelines.config import UsageError, guarded, nearest


def summary(module) -> str:
    return module.__doc__.strip().splitlines()[0]


def main(argv: list[str]) -> None:
    if argv and argv[0] not in ("-h", "--help", "--verbose"):
        hint = nearest(argv[0], pipelines.TASKS)
        raise UsageError(f"Expected no argument: python -m pipelines.<task> runs one.{hint} Received: {argv[0]!r}")
    for task in pipelines.TASKS:
        module = pipelines.get(task)
        print(f"{task}: {summary(module)}")
        print(f"  run:    python -m pipelines.{task}")
        print(f"  models: {', '.join(module.MODELS)}")
        print(f"  data:   {module.DATA}")
    print("\nOptions of a task: python -m pipelines.<task> --help. Its runs: python -m pipelines.runs")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), verbose="--verbose" in sys.argv))
