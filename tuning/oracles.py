"""KerasTuner's oracles, mended where a search that is killed, shared or bounded by time would go wrong.

What is mended in KerasTuner 1.4.8, and why:

- Files are replaced atomically, and a state that a kill left between two files is put right: a finished trial is not
  repeated, one that was under way is, one that had not begun is forgotten.
- Failing too often ends the search with every trial on record, in place of an exception in the middle of the records
  (over the chief/worker protocol it would reach the worker as an unknown error and leave the oracle locked).
- The protocol shuffles the order of a trial's values: the oracle keeps its own copy of them.
- `GridSearchOracle` forgets its place when it is reloaded and walks one corner of a large grid: `Grid` counts.
- `BayesianOptimizationOracle` draws 3 random points per dimension before it begins to model, which is more than most
  searches have trials, may propose the same point again and again, takes seconds for a proposal (50 descents with
  numerical gradients), spends a short search on the corners of the space, and forgets failed trials, so that it goes on
  trying beside them: `Bayesian` begins after a third of the trials, takes the untried one of many candidates with the
  largest expected improvement, and counts a failure as a bad result.
- `HyperbandOracle` has no number of trials: here brackets follow each other until there are `max_trials`.
"""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.oracles import BayesianOptimizationOracle, HyperbandOracle, RandomSearchOracle
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning

from pipelines.runs import write_json
from tuning.spaces import levels

CANDIDATES = 2000  # Bayesian: points drawn everywhere, and as many near the best
MODELLED = 3  # Bayesian: one trial in this many is a random draw before the model begins


class Lasting(keras_tuner.Oracle):
    """What all oracles here share: records that survive a kill, the clock, the end after repeated failures.

    Attributes:
        time_left: seconds until no new trial is begun; None: no end.
        drawn: trials whose point was drawn at random: the random search within the search.
    """

    time_left: float | None = None
    began: float
    trials: dict[str, Trial]
    end_order: list[str]
    earlier: float = 0.0
    drawn: list[str]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.verbose = 0
        self.drawn = []
        self.began = time.monotonic()

    def seconds(self) -> float:
        """Seconds this search has worked, over all its processes in time."""
        return self.earlier + time.monotonic() - self.began

    def stop_reason(self) -> str | None:
        """Why no further trial is begun; None while there is no reason."""
        failed = [self.trials[name].status == TrialStatus.FAILED for name in self.end_order]
        most = self.max_consecutive_failed_trials
        if len(failed) >= most and all(failed[-most:]):
            return f"{most} trials in a row failed"
        if self.time_left is not None and time.monotonic() - self.began >= self.time_left:
            return "the time is used up"
        return None

    @keras_tuner.synchronized
    def create_trial(self, tuner_id):
        if tuner_id not in self.ongoing_trials and self.stop_reason():
            self.tuner_ids.discard(tuner_id)
            return Trial(self.get_space(), trial_id="none", status=TrialStatus.STOPPED)
        return super().create_trial(tuner_id)

    @keras_tuner.synchronized
    def end_trial(self, trial):
        trial.hyperparameters = self.trials[trial.trial_id].hyperparameters
        super().end_trial(trial)

    def _check_consecutive_failures(self):
        """Left to `stop_reason`."""

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "drawn": self.drawn, "seconds": self.seconds()}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.drawn, self.earlier = state["drawn"], state["seconds"]

    def save(self) -> None:
        write_json(self._file("oracle"), self.get_state())

    def _save_trial(self, trial) -> None:
        write_json(self._file(f"trial_{trial.trial_id}/trial"), trial.get_state())

    def _file(self, name: str) -> Path:
        path = Path(self._project_dir) / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def reload(self) -> None:
        super().reload()
        self.trials = {name: self.trials[name] for name in self.start_order}
        ended = [name for name, trial in self.trials.items() if trial.status in ("COMPLETED", "FAILED")]
        self.end_order = [n for n in self.end_order if n in ended] + [n for n in ended if n not in self.end_order]
        self._retry_queue = [name for name in reversed(self.start_order) if name not in ended]


class Random(Lasting, RandomSearchOracle):
    """Independent draws, none twice."""

    def populate_space(self, trial_id):
        self.drawn.append(trial_id)
        return super().populate_space(trial_id)


class Grid(Lasting):
    """Every combination of a few levels of each hyperparameter once; of a larger grid, `max_trials` spread over it.

    The k-th trial is point k · s of the grid, counted as a number with a digit per hyperparameter, where s is coprime
    to the grid's size and near its golden section. So the place is known from the number of trials alone.
    """

    def size(self) -> int:
        return math.prod(len(levels(item)) for item in self.hyperparameters.space)

    def populate_space(self, trial_id):
        size, place = self.size(), len(self.trials)
        if place >= size:
            return {"status": TrialStatus.STOPPED}
        stride = 1
        if size > (self.max_trials or size):
            stride = next(s for s in range(max(1, round(size * 0.618)), 2 * size) if math.gcd(s, size) == 1)
        rest, values = place * stride % size, {}
        for item in reversed(self.hyperparameters.space):
            rest, digit = divmod(rest, len(levels(item)))
            values[item.name] = levels(item)[digit]
        self.drawn.append(trial_id)
        return {"status": TrialStatus.RUNNING, "values": {i.name: values[i.name] for i in self.hyperparameters.space}}


class Bayesian(Lasting, BayesianOptimizationOracle):
    """A Gaussian process over the finished trials, and the untried point where it expects the largest improvement.

    Reference: Jones, Schonlau and Welch 1998, "Efficient global optimization of expensive black-box functions", eq. 15.
    """

    def _make_gpr(self):
        return super()._make_gpr().set_params(n_restarts_optimizer=4)

    def populate_space(self, trial_id):
        finished = sum(trial.status == TrialStatus.COMPLETED for trial in self.trials.values())
        values = self.proposal() if finished >= self.num_initial_points else None
        if values is not None:
            return {"status": TrialStatus.RUNNING, "values": values}
        self.drawn.append(trial_id)
        return self._random_populate_space()

    def seen(self) -> tuple[np.ndarray, np.ndarray]:
        """Points (trials, d) in 0..1 and what to minimize (trials,).

        Failed trials count as the worst that finished, so that the search leaves where they are, and so do those under
        way, so that workers do not try the same (the "constant liar" of Ginsbourger et al. 2010, section 4.2).
        """
        sign = -1 if self.objective.direction == "max" else 1
        trials = list(self.trials.values())
        worst = max(sign * trial.score for trial in trials if trial.status == TrialStatus.COMPLETED)
        y = [sign * trial.score if trial.status == TrialStatus.COMPLETED else worst for trial in trials]
        space = self.hyperparameters.space
        x = [[item.value_to_prob(trial.hyperparameters.values[item.name]) for item in space] for trial in trials]
        return np.array(x), np.array(y)

    def proposal(self) -> dict[str, Any] | None:
        """The best of many candidates, drawn everywhere and near the best trials; None: all of those were tried."""
        x, y = self.seen()
        source = np.random.default_rng([self.seed, len(self.trials)])  # the same after a kill
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.gpr.fit(x, y)
        good = x[np.argsort(y)[:5]]
        near = good[source.integers(len(good), size=CANDIDATES)]
        near = near + source.normal(0, 1, near.shape) * source.choice([0.02, 0.1], (len(near), 1))
        points = np.concatenate([source.random(near.shape), near]).clip(0, 1 - 1e-9)  # (2 * candidates, d)
        mean, deviation = self.gpr.predict(points, return_std=True)
        gain = (y.min() - mean) / np.maximum(deviation, 1e-12)
        improvement = deviation * (gain * norm.cdf(gain) + norm.pdf(gain))
        for place in np.argsort(-improvement)[:200]:
            values = self._vector_to_values(points[place])
            if not self._duplicate(values):
                return values
        return None


class Hyperband(Lasting, HyperbandOracle):
    """Many trials of few epochs, of which the better third goes on with three times as many.

    Reference: Li et al. 2018, "Hyperband: a novel bandit-based approach to hyperparameter optimization", algorithm 1.
    """

    def first_bracket(self) -> int:
        """Trials until the first has had all epochs."""
        last = self._get_num_brackets() - 1
        return sum(self._get_size(last, place) for place in range(last + 1))

    def populate_space(self, trial_id):
        response = super().populate_space(trial_id)
        values = response.get("values") or {}
        if values.get("tuner/round") == 0 and values["tuner/epochs"] >= self.max_epochs:
            self.drawn.append(trial_id)
        return response


def make(
    tuner: str, objective: tuple[str, str], space, *, trials: int, epochs: int, seed: int, most_failed: int
) -> Any:
    """The oracle of a search.

    Args:
        tuner: grid, random, bayesian or hyperband.
        objective: name and direction.
        space: `keras_tuner.HyperParameters` that hold what is searched.
        trials: most trials to begin.
        epochs: of a full training; hyperband gives most trials less.
        seed: of the draws.
        most_failed: failed trials in a row that end the search.
    """
    shared = {
        "objective": keras_tuner.Objective(*objective),
        "hyperparameters": space,
        "tune_new_entries": False,
        "seed": seed + 1,  # KerasTuner takes 0 for none
        "max_consecutive_failed_trials": most_failed,
    }
    if tuner == "hyperband":
        oracle = Hyperband(max_epochs=epochs, hyperband_iterations=None, **shared)
        oracle.max_trials = trials
        return oracle
    if tuner == "bayesian":
        first = max(3, min(3 * len(space.space), trials // MODELLED))
        return Bayesian(max_trials=trials, num_initial_points=first, **shared)
    return {"random": Random, "grid": Grid}[tuner](max_trials=trials, **shared)
