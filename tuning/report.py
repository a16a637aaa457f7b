"""What a search found, read from its folder: the table, report.html, plots/search.png and the command to paste.

The best-so-far curve stands beside a random-search line, the expected best of k random trials (`expected_best`):

- random: over the orderings of its own trials; grid: of the points it visited, which is random search on that grid;
- bayesian: over its first, random trials, and from there on their best, dashed: more trials would reach or pass it;
- hyperband: the same over the random trials that got all epochs; the axis is the cost in full trainings;
- with --compare_random: over the trials of a random search of the same length, and nothing is estimated.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pipelines
from pipelines import runs
from pipelines.config import Failure, UsageError, command_line

FEWEST = 8  # finished trials for an importance


@dataclasses.dataclass(frozen=True)
class Trial:
    """One trial: what was tried, what came out. `cost` is its share of a full training."""

    id: str
    values: dict[str, Any]
    ended: bool
    objective: float | None = None
    seconds: float | None = None
    run: str | None = None
    error: str | None = None
    usage: bool = False
    drawn: bool = False
    cost: float = 1.0


@dataclasses.dataclass(frozen=True)
class Search:
    """A search folder that was loaded; `trials` in the order they were begun."""

    folder: Path
    task: str
    flags: dict[str, Any]
    trials: list[Trial]

    @property
    def objective(self) -> tuple[str, str]:
        return pipelines.get(self.task).OBJECTIVE

    @property
    def sign(self) -> int:
        return 1 if self.objective[1] == "max" else -1

    @property
    def finished(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.objective is not None]

    @property
    def ranked(self) -> list[Trial]:
        return sorted(self.finished, key=lambda trial: -self.sign * (trial.objective or 0.0))

    @property
    def best(self) -> Any:
        """The best finished trial, of two alike the first; None before any has finished."""
        return next(iter(self.ranked), None)

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for trial in self.trials for name in trial.values))


def load(folder: Path) -> Search:
    """Read a search folder.

    Raises:
        Failure: a file of it is missing or damaged.
    """
    flags, oracle = runs.read_json(folder / "search.json"), runs.read_json(folder / "oracle.json")
    full = oracle.get("max_epochs", 1)
    trials = []
    for name in oracle["start_order"]:
        place = folder / f"trial_{name}"
        kept = runs.read_json(place / "trial.json")
        values, status = kept["hyperparameters"]["values"], kept["status"]
        record = runs.read_json(place / "run.json") if (place / "run.json").exists() else {}
        shown = {key: item for key, item in values.items() if not key.startswith("tuner/")}
        epochs = {"epochs": values["tuner/epochs"]} if "tuner/epochs" in values else {}
        found = {key: record.get(key) for key in ("objective", "seconds", "run", "error")}
        trials.append(
            Trial(
                id=name,
                values=shown | epochs,
                ended=status in ("COMPLETED", "FAILED"),
                usage=record.get("usage", False),
                drawn=name in oracle["drawn"],
                cost=values.get("tuner/epochs", full) / full,
                **found,
            )
        )
    return Search(folder, flags["task"], flags, trials)


def shown(values: dict[str, Any]) -> str:
    """A point of a space on one line."""
    return " ".join(f"{name}={number(item)}" for name, item in values.items() if not name.startswith("tuner/"))


def number(item: Any) -> str:
    return f"{item:.4g}" if isinstance(item, float) else str(item)


def best_so_far(search: Search, trials: Sequence[Trial]) -> tuple[list[float], list[float]]:
    """Cost spent, and the best objective by then, after each trial."""
    spent, now = 0.0, math.nan
    cost, best = [], []
    for trial in trials:
        spent += trial.cost
        if trial.objective is not None and not search.sign * trial.objective <= search.sign * now:
            now = trial.objective
        cost.append(spent)
        best.append(now)
    return cost, best


def expected_best(values: Sequence[float], count: int, sign: int = 1) -> list[float]:
    """Expected best of k = 1 … `count` random trials, from the results of n of them.

    Up to n they are drawn without replacement, so that the k-th number is the mean of the best-so-far curve over all
    orderings: with results v ascending it is Σ_i v_i · C(i−1, k−1) / C(n, k), since v_i is the best in C(i−1, k−1) of
    the C(n, k) choices. Beyond n it stays at the best of the n, which more trials would reach or pass.

    Returns:
        `count` numbers, in the unit of the objective; none where there are no results.
    """
    ordered = sorted(sign * value for value in values)
    n, found = len(ordered), []
    for k in range(1, min(n, count) + 1):
        found.append(sign * sum(math.comb(i, k - 1) / math.comb(n, k) * value for i, value in enumerate(ordered)))
    return found + found[-1:] * (count - n)


def random_line(search: Search) -> tuple[list[float], int, str]:
    """The random-search line: expected best after k full trainings, how many of them are no extrapolation, its source.

    A comparison that was run (`--compare_random`) goes before what can be estimated from the search itself.
    """
    length = max(1, math.ceil(sum(trial.cost for trial in search.trials) - 1e-9))
    folder = search.folder / "random"
    if (folder / "oracle.json").exists():
        values = [trial.objective for trial in load(folder).finished]
        source = f"random search, {len(values)} trials of its own"
        length = min(length, len(values))
    else:
        values = [trial.objective for trial in search.finished if trial.drawn]
        kind = (
            "points of this grid in random order" if search.flags["tuner"] == "grid" else "random trials of this search"
        )
        source = f"random search, expected from the {len(values)} {kind}"
        if not values:
            source = "no random trial with all epochs: see --compare_random"
    return expected_best([v for v in values if v is not None], length, search.sign), len(values), source


def importance(search: Search) -> tuple[dict[str, float], float] | str:
    """How much of a random forest's prediction is lost when one hyperparameter is shuffled, on held-out trials.

    Returns:
        share of the variance by hyperparameter, largest first, and the forest's R² on held-out trials; or the reason
        why there is none.

    Reference: Breiman 2001, "Random forests", section 10.
    """
    import numpy as np
    import pandas as pd
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.metrics import r2_score
    from sklearn.model_selection import KFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    trials = search.finished
    table = pd.DataFrame([trial.values for trial in trials], columns=search.names)
    table = table.loc[:, [name for name in search.names if table[name].nunique() > 1]]
    result = np.array([trial.objective for trial in trials], float)
    if len(trials) < FEWEST:
        return f"too few trials for an importance: {len(trials)} of at least {FEWEST}"
    if not len(table.columns) or np.ptp(result) == 0:
        return "no importance: all trials have the same result" if len(table.columns) else "no importance: no variation"
    words = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    lost, predicted = np.zeros(len(table.columns)), np.zeros(len(result))
    folds = list(KFold(min(5, len(trials) // 2), shuffle=True, random_state=0).split(table))
    for fit, held in folds:
        columns = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), words), remainder="passthrough")
        forest = make_pipeline(columns, RandomForestRegressor(60, min_samples_leaf=2, random_state=0))
        forest.fit(table.iloc[fit], result[fit])
        predicted[held] = forest.predict(table.iloc[held])
        shuffled = permutation_importance(
            forest, table.iloc[held], result[held], scoring="neg_mean_squared_error", n_repeats=5, random_state=0
        )
        lost += shuffled.importances_mean * len(held) / len(result)
    order = np.argsort(-lost)
    share = {str(table.columns[i]): round(float(lost[i] / result.var()), 4) for i in order}
    return share, round(float(r2_score(result, predicted)), 3)


def table(search: Search, most: int = 20) -> str:
    """The trials by result, `most` at most, and under them those that failed, with the reason."""
    names = [name for name in search.names if len({str(trial.values.get(name)) for trial in search.trials}) > 1]
    header = ["", "trial", search.objective[0], *names, "seconds", "run"]
    rows: list[list[Any]] = []
    for place, trial in enumerate(search.ranked[:most]):
        cells = [number(trial.values[name]) if name in trial.values else "" for name in names]
        seconds = None if trial.seconds is None else f"{trial.seconds:.1f}"
        rows.append([place + 1, int(trial.id) + 1, trial.objective, *cells, seconds, trial.run])
    lines = [runs.table(header, rows)]
    if len(search.ranked) > most:
        lines.append(f"… and {len(search.ranked) - most} more")
    for trial in search.trials:
        if trial.error:
            lines.append(f"trial {int(trial.id) + 1} failed: {trial.error[:300]} ({shown(trial.values)})")
    return "\n".join(lines)


def best_command(search: Search) -> str:
    """The command that trains the best configuration by itself."""
    config = runs.from_json(search.task, runs.read_json(Path(search.best.run) / "config.json"))
    plain = dataclasses.replace(config, out=type(config)().out, budget=None, resume=None)
    return f"python -m pipelines.{search.task} {command_line(plain)}".strip()


def check(search: Search) -> None:
    """Raises what kept every trial from finishing.

    Raises:
        UsageError: the same error of usage in all trials: it is not a matter of the point that was tried.
        Failure: no trial finished, for different reasons.
    """
    failed = [trial for trial in search.trials if trial.error]
    if search.finished or not failed:
        if not search.finished:
            raise Failure("Expected a trial that finished. Received: none; give the search more time")
        return
    if all(trial.usage for trial in failed) and len({trial.error for trial in failed}) == 1:
        raise UsageError(failed[0].error)
    raise Failure(f"Expected a trial that finished. Received: {len(failed)} that failed, the last: {failed[-1].error}")


def ending(search: Search) -> str:
    """Why the search ended before its number of trials, or nothing."""
    wanted, failures = search.flags["trials"], search.flags["failures"]
    ended = [trial for trial in search.trials if trial.ended]
    if len(search.trials) >= wanted:
        return ""
    if len(ended) >= failures and all(trial.error for trial in ended[-failures:]):
        return f"; it ended because {failures} trials in a row failed"
    if search.flags["budget"]:
        return f" of {wanted} within {search.flags['budget']}"
    return f" of {wanted}: the space holds no more"


def write(folder: Path) -> str:
    """Write report.html and plots/search.png of a search, and return what to print: table, best command, best run.

    Raises:
        UsageError, Failure: no trial finished (see `check`).
    """
    from tuning import pictures

    search = load(folder)
    check(search)
    weights = importance(search)
    pictures.png(search, weights, folder / "plots/search.png")
    best, name = search.best, search.objective[0]
    test = runs.read_json(Path(best.run) / "metrics.json").get("test", {}).get(name)
    lines = [
        table(search),
        "",
        f"{len(search.trials)} trials{ending(search)}",
        f"best {name} on the validation split: {best.objective:.4f}"
        + (f"; on the test split: {test:.4f}" if test else ""),
        f"best run: {best.run}",
        f"train it again: {best_command(search)}",
        f"report: {folder / 'report.html'}; picture: {folder / 'plots/search.png'}",
    ]
    pictures.html(search, weights, lines[2:6], folder / "report.html")
    return "\n".join(lines)
