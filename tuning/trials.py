"""A trial is a run: KerasTuner's tuner that calls the pipeline's `main` and reads the run folder it leaves.

Beside KerasTuner's trial.json a trial leaves `run.json` (its run folder, result or reason of failure, seconds), and
`output.log`, what the pipeline printed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import time
from pathlib import Path
from typing import Any

import keras
import keras_tuner
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.errors import FailedTrialError

import pipelines
from pipelines import runs
from pipelines.config import Failure, UsageError
from tuning import oracles, spaces
from tuning.search import Plan

RELEASE = 20.0  # seconds to wait for a killed process to let go of its run folder


class Point:
    """The searched part of a space, and the configuration at each of its points.

    Raises:
        UsageError: nothing is left to search, or `--vary` does not fit.
    """

    def __init__(self, plan: Plan):
        self.plan, self.pipeline = plan, pipelines.get(plan.task)
        base, vary = plan.base, plan.flags.vary
        whole = keras_tuner.HyperParameters()
        every = self.settings(whole)
        fixed = {("field", name) for name in plan.given} | {("argument", name) for name in base.model_args}
        if base.size or getattr(base, "pretrained", None):
            fixed |= {key for key in every if key[0] == "argument"}
        reach = {name: keys - fixed for name, keys in spaces.influence(whole, self.settings).items() if keys - fixed}
        chosen = spaces.varied(vary, reach) or dict.fromkeys(reach)
        self.space = keras_tuner.HyperParameters()
        for item in whole.space:
            if item.name in chosen:
                self.add(item, chosen[item.name])
        if not self.space.space:
            raise UsageError(
                f"Expected something to search. Received: flags that fix all of {', '.join(reach) or 'it'}"
            )
        self.used = set().union(*(reach[name] for name in chosen))
        for item in self.space.space:  # a value of --vary that no configuration takes is told before the first trial
            for level in item.values if chosen[item.name] else ():
                self.config({item.name: level})

    def settings(self, hp) -> spaces.Settings:
        return spaces.settings(hp, self.pipeline.Config, self.plan.base.model)

    def add(self, item, values: list[Any] | None) -> None:
        if values is None:
            self.space.merge([item])
        else:
            values = spaces.of_kind(item.default, values, item.name)
            self.space.Choice(item.name, values, default=item.default if item.default in values else values[0])

    def config(self, values: dict[str, Any]) -> Any:
        """The configuration of a trial; what is not searched is as in `plan.base`."""
        found = self.settings(spaces.At(values))
        found = {key: item for key, item in found.items() if key in self.used}
        fields = {name: item for (kind, name), item in found.items() if kind == "field"}
        arguments = {name: item for (kind, name), item in found.items() if kind == "argument"}
        if "tuner/epochs" in values:
            fields["epochs"] = int(values["tuner/epochs"])
        base = self.plan.base
        return dataclasses.replace(base, **fields, model_args={**arguments, **base.model_args})

    def grid(self) -> str:
        return " × ".join(f"{item.name} ({len(spaces.levels(item))})" for item in self.space.space)


class PipelineTuner(BaseTuner):
    """KerasTuner's loop over trials with `pipeline.main` as the trial."""

    def __init__(self, plan: Plan, point: Point, oracle):
        self.plan, self.point, self.idle = plan, point, False
        with contextlib.redirect_stdout(io.StringIO()):
            super().__init__(oracle, directory=str(plan.folder.parent), project_name=plan.folder.name)

    def _get_tuner_fname(self) -> str:
        return str(self.plan.folder / "oracle.json")  # BaseTuner reloads when this exists

    def save(self) -> None:
        if not self._is_worker():
            self.oracle.save()

    def reload(self) -> None:
        if not self._is_worker():
            self.oracle.reload()

    def pre_create_trial(self) -> None:
        if self.idle:  # KerasTuner asks again at once
            time.sleep(0.5)
        self.idle = True

    def on_trial_begin(self, trial) -> None:
        self.idle = False

    def run_trial(self, trial, *args, **kwargs) -> dict[str, float]:
        """Train at the trial's point; returns the objective on the validation split.

        Raises:
            FailedTrialError: the pipeline failed, or the point is infeasible; the reason is in `run.json`.
        """
        from tuning import report

        place = self.plan.folder / f"trial_{trial.trial_id}"
        place.mkdir(parents=True, exist_ok=True)
        order = {item.name: place for place, item in enumerate(self.point.space.space)}  # the protocol shuffles them
        point = sorted(trial.hyperparameters.values.items(), key=lambda pair: order.get(pair[0], len(order)))
        values = {name: spaces.plain(item) for name, item in point}
        name, _ = self.point.pipeline.OBJECTIVE
        title = f"trial {int(trial.trial_id) + 1} of {self.plan.flags.trials}"
        print(f"{title}: {report.shown(values)}", flush=True)
        begin, record = time.monotonic(), Record(place)
        try:
            if record.deaths > 1:
                raise Failure(f"its process died {record.deaths} times")
            with open(place / "output.log", "a") as log:
                with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                    folder = self.train(record, self.limited(self.point.config(values)))
            metrics = runs.load(folder, model=False).metrics
            result = float(metrics["validation"][name])
            if result != result:
                raise Failure(f"Expected a number as {name}. Received: {result}")
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            kind = "" if isinstance(error, (UsageError, Failure, OSError)) else f"{type(error).__name__}: "
            record.end(state="failed", error=(kind + reason)[:2000], usage=isinstance(error, UsageError))
            print(f"{title} failed: {kind}{reason[:300]}", flush=True)
            raise FailedTrialError(reason) from error
        finally:
            keras.utils.clear_session()
        record.end(state="finished", run=str(folder), objective=result, seconds=metrics["train_seconds"])
        best = report.load(self.plan.folder).best
        mark = f"best so far {best.objective:.4f}" if best else ""
        print(f"{title}: {name} {result:.4f} in {time.monotonic() - begin:.1f} s, {mark}", flush=True)
        return {name: result}

    def limited(self, config: Any) -> Any:
        """The configuration with what is left of `--budget`."""
        if self.plan.deadline is None:
            return config
        return dataclasses.replace(config, budget=f"{max(1, round(self.plan.deadline - time.time()))}s")

    def train(self, record: Record, config: Any) -> Path:
        """One call of `main`: the run that a kill left behind is continued, if it can be."""
        pipeline, out = self.point.pipeline, config.out
        folder = record.under_way(out, self.plan.task)
        if folder is not None:
            wait_for(folder)
            record.begin(out, self.plan.task, folder)
            try:
                return pipeline.main(pipeline.Config(resume=str(folder), out=out))
            except Exception as error:
                print(f"{folder} cannot be continued and is trained anew: {error}")
        record.begin(out, self.plan.task)
        return pipeline.main(config)


class Record:
    """`run.json` of a trial."""

    def __init__(self, place: Path):
        self.path = place / "run.json"
        self.content: dict[str, Any] = runs.read_json(self.path) if self.path.exists() else {}
        died = place / "died.json"
        self.deaths: int = runs.read_json(died) if died.exists() else 0

    def begin(self, out: str, task: str, folder: Path | None = None) -> None:
        """Note how to find the run folder again: it is made by this process, and was not there before."""
        before = [path.name for path in runs.find(out, task)]
        self.content = {"state": "running", "pid": os.getpid(), "before": before, "run": folder and str(folder)}
        runs.write_json(self.path, self.content)

    def under_way(self, out: str, task: str) -> Path | None:
        """The run folder of the attempt that was interrupted; None where there is none."""
        if not self.content or self.content["run"]:
            return Path(self.content["run"]) if self.content else None
        for folder in runs.find(out, task):
            mine = runs.read_json(folder / "state.json").get("pid") == self.content["pid"]
            if mine and folder.name not in self.content["before"]:
                return folder
        return None

    def end(self, **content: Any) -> None:
        self.content = {"run": self.content.get("run"), **content}
        runs.write_json(self.path, self.content)


def wait_for(folder: Path) -> None:
    """Wait until the process that was killed has let go of its run folder."""
    end = time.monotonic() + RELEASE
    while runs.state(folder)["state"] == "running" and time.monotonic() < end:
        time.sleep(0.2)


def work(plan: Plan) -> None:
    """Work on a search in this process: alone, as the chief, or as one of its workers."""
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # that every trial traces its own functions is no news
    point, flags = Point(plan), plan.flags
    oracle = oracles.make(
        flags.tuner,
        point.pipeline.OBJECTIVE,
        point.space,
        trials=flags.trials,
        epochs=plan.base.epochs,
        seed=flags.seed,
        most_failed=flags.failures,
    )
    if plan.deadline is not None:
        oracle.time_left = plan.deadline - time.time()
    if "worker" not in os.environ.get("KERASTUNER_TUNER_ID", ""):
        if flags.tuner == "grid":
            print(f"the grid has {oracle.size():,} points: {point.grid()}")
        if flags.tuner == "hyperband" and flags.trials < oracle.first_bracket():
            print(f"note: no trial gets all {plan.base.epochs} epochs before trial {oracle.first_bracket()}")
    PipelineTuner(plan, point, oracle).search()
