"""What comes next in a series of numbers, with intervals, for one series or many?

    python -m pipelines.forecasting
    python -m pipelines.forecasting --model transformer_forecaster --model_args head=autoregressive
    python -m pipelines.forecasting --dataset tiny_series --horizon 14 --quantiles 0.05 0.25 0.5 0.75 0.95
    python -m pipelines.forecasting --data_dir sales.csv --time_column day --id_column shop --targets sold

Without a flag it forecasts `tiny_co2`, 526 months of real measurements, a year ahead. Every month of the test split is
an origin of a forecast, for the model as for the seasonal naive forecast, ETS and ARIMA: a scaled error (MASE) of at
most half of the seasonal naive forecast's and below that of ETS (mean of three seeds; ARIMA is better still), in under
90 seconds on two cores.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from etils import epy

import pipelines
from pipelines import Data, builder, runs
from pipelines.config import TrainingConfig, UsageError, one_of, option, run_cli

with epy.lazy_imports():
    import keras
    import numpy as np
    import tensorflow as tf

    from models import forecaster
    from pipelines import backtest, datasets, supervised, training
    from pipelines import forecast_pictures as pictures
    from pipelines.datasets import rows, windows
    from pipelines.datasets import series as tables
    from pipelines.transforms import series

TASK = "forecasting"
MODELS = {
    "recurrent_forecaster": builder("models.forecaster", "recurrent_forecaster"),
    "tcn_forecaster": builder("models.forecaster", "tcn_forecaster"),
    "transformer_forecaster": builder("models.forecaster", "transformer_forecaster"),
}
OBJECTIVE = ("mase", "min")
PORTABLE = "from_grid"  # the signature of arrays alone, which ONNX is made from
DATA = "tiny_co2, tiny_sunspots, tiny_series (generated), your own CSV"
BASELINES = ("seasonal_naive", "ets", "arima")
FREQUENCIES = ("secondly", "minutely", "hourly", "daily", "weekly", "monthly", "quarterly", "yearly")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    dataset: str = option("tiny_co2", "built in: tiny_co2, tiny_sunspots, tiny_series")
    data_dir: str | None = option(None, "your own CSV file, or a folder with one, instead of --dataset", metavar="FILE")
    model: str = option("tcn_forecaster", "the architecture")
    epochs: int = option(40, "passes over the training windows")
    batch_size: int = option(32, "windows per training step")
    learning_rate: float = option(3e-3, "peak learning rate")
    horizon: int = option(12, "steps to forecast")
    history: int | None = option(None, "steps the model looks back; default: three seasons or horizons")
    quantiles: tuple[str, ...] = option(("0.1", "0.5", "0.9"), "levels to forecast, 0.5 among them; none: a point")
    time_column: str | None = option(None, "the column of dates; default: the first that holds dates")
    targets: tuple[str, ...] = option((), "columns to forecast; default: all of numbers that are nothing else")
    past_covariates: tuple[str, ...] = option((), "columns that are measured along with the targets")
    known_covariates: tuple[str, ...] = option((), "columns that are known in advance")
    id_column: str | None = option(None, "the column that names the series of a row")
    melt: bool = option(False, "every target column is a series of its own, and not a channel of one")
    frequency: str | None = option(None, "of the dates; default: found in them")
    date_format: str | None = option(None, "as of strptime, such as %d.%m.%Y; default: ISO 8601", metavar="FORMAT")
    sort: bool = option(False, "put rows in the order of time instead of refusing others")
    season: int | None = option(None, "steps of a season; default: that of the frequency or data set")
    held_out: float = option(0.15, "share of the steps that is the test, and as much before it the validation")
    stride: int = option(1, "steps between the origins of validation and test forecasts")
    baselines: tuple[str, ...] = option(BASELINES, "classical forecasts to compare with")

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.model, MODELS, "--model")
        self.at_least(1, "horizon", "history", "season", "stride")
        if not 0 < self.held_out < 0.5:
            raise UsageError(f"Expected --held_out above 0 and below 0.5. Received: {self.held_out}")
        if self.frequency is not None:
            one_of(self.frequency, FREQUENCIES, "--frequency")
        for name in self.baselines:
            one_of(name, BASELINES, "--baselines")
        levels(self)


def levels(config: Config) -> list[float]:
    """The quantiles to forecast, rising, with the median in the middle; [0.5] alone for a point.

    Raises:
        UsageError: they are not like that.
    """
    given = [text for text in config.quantiles if text != "none"] or ["0.5"]
    try:
        found = sorted({float(text) for text in given})
    except ValueError:
        found = []
    middle = found[len(found) // 2] if len(found) % 2 else None
    if middle != 0.5 or found[0] <= 0 or found[-1] >= 1:
        raise UsageError(
            "Expected --quantiles between 0 and 1 with 0.5 in the middle, such as 0.1 0.5 0.9. "
            f"Received: {' '.join(map(str, config.quantiles))}"
        )
    return found


def preprocess(values: Any, moments: Any, known: Any, number: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """Windows as the model takes them, in training and in serving.

    Args:
        values: targets and past covariates, float32 (b, t, c); NaN where missing.
        moments: int64 (b, t + h), seconds since 1970.
        known: covariates known in advance, float32 (b, t + h, k); None where there are none.
        number: int32 (b,), 1 and up for the series of `spec`, 0 for another.
        spec: of the data.

    Returns:
        The inputs of the model, by name.
    """
    statistics = spec["normalization"]
    history, observed = series.fill(series.standardize(values, statistics["values"]))  # (b, t, c)
    inputs = {"history": history, "observed": observed}
    parts = [series.calendar(moments, spec["calendar"])] if spec["calendar"] else []
    if spec["known"]:
        parts.append(series.fill(series.standardize(known, statistics["known"]))[0])
    if parts:
        inputs["known"] = tf.concat(parts, -1)  # (b, t + h, k)
    if len(spec["series"]) > 1:
        inputs["series"] = number
    return inputs


def read_table(config: Config) -> Any:
    """All series of `--dataset` or `--data_dir`, on their grid."""
    given = rows.Columns(
        config.time_column, config.targets, config.past_covariates, config.known_covariates, config.id_column
    )
    about: dict[str, Any] = {}
    if config.data_dir is not None:
        frame, source = rows.read_csv(config.data_dir), f"{Path(config.data_dir).name}: your own"
    else:
        frame, about, source = tables.read_named(config.dataset)
    columns = rows.Columns(
        time=given.time or about.get("time"),
        targets=given.targets or tuple(about.get("targets", ())),
        past=given.past or tuple(about.get("past", ())),
        known=given.known or tuple(about.get("known", ())),
        series=given.series or about.get("series"),
    )
    return tables.read_frame(
        frame,
        columns,
        frequency=config.frequency,
        date_format=config.date_format,
        season=config.season or about.get("season"),
        sort=config.sort,
        melt=config.melt,
        source=source,
    )


def load_data(config: Config) -> Data:
    """Windows of the three splits, cut by time, and their spec."""
    table = read_table(config)
    shortest, horizon = min(table.lengths), config.horizon
    room = (shortest - 2 * max(horizon, round(config.held_out * shortest))) // 2
    history = config.history or max(1, min(3 * max(table.season, horizon), room))
    parts, fitted = windows.split(table, history, horizon, config.held_out)
    trained = np.concatenate([np.arange(n) < fit for n, fit in zip(table.lengths, fitted)])  # (n,)
    parts = windows.chosen(parts, config.limit, config.stride)
    targets, columns = len(table.columns.targets), table.columns
    scales = [
        [
            backtest.seasonal_scale(table.values[table.of(i), k][:fit].astype("float64"), table.season)
            for k in range(targets)
        ]
        for i, fit in enumerate(fitted)
    ]
    spec: dict[str, Any] = {
        "dataset": table.source.partition(": ")[0],
        "about": table.source.partition(": ")[2],
        "history": history,
        "horizon": horizon,
        "season": table.season,
        "frequency": table.frequency,
        "calendar": series.calendar_parts(table.frequency),
        "targets": list(columns.targets),
        "past": list(columns.past),
        "known": list(columns.known),
        "series": list(table.names),
        "quantiles": levels(config),
        "normalization": {
            "values": windows.statistics(table.values[trained]),
            "known": windows.statistics(table.known[trained]),
        },
        "scales": scales,
        "fitted": fitted.tolist(),
        "counts": {part: len(places) for part, places in parts.items()},
        "steps": int(sum(table.lengths)),
        "missing": int(np.isnan(table.values[:, :targets]).sum()),
        "span": [str(np.datetime64(int(at), "s"))[:10] for at in (table.moments.min(), table.moments.max())],
    }
    train, validation, test = (windows.Windows(table, parts[part]) for part in ("train", "validation", "test"))
    return Data(train, validation, test, spec)


def arguments(config: Config) -> dict[str, Any]:
    """The keyword arguments of the builder: a published size, then `--model_args` over it."""
    return MODELS[config.model].arguments(config.size, config.model_args)


def build_model(config: Config, spec: dict[str, Any]) -> Any:
    """The compiled model, the same for the same seed."""
    given = arguments(config)
    keras.utils.set_random_seed(config.seed)
    channels = len(spec["targets"]) + len(spec["past"])
    known = 2 * series.HARMONICS * len(spec["calendar"]) + len(spec["known"])
    sizes = (len(spec["targets"]), known, len(spec["series"]), len(spec["quantiles"]))
    with training.dtypes(config), training.replicas(config):
        try:
            model = MODELS[config.model]((spec["history"], channels), spec["horizon"], *sizes, **given)
        except (ValueError, TypeError) as error:
            raise UsageError(str(error)) from error
        compile_model(model, config, spec)
    return model


def compile_model(model: Any, config: Config, spec: dict[str, Any]) -> None:
    examples = spec["counts"]["train"]
    model.compile(
        optimizer=training.optimizer(config, training.total_steps(config, examples)),
        loss=forecaster.PinballLoss(spec["quantiles"]),
        metrics=[forecaster.ScaledError(name="mase")],
        jit_compile=config.jit,
        steps_per_execution=training.steps_per_execution(config, examples),
    )


def finish(part: windows.Windows, spec: dict[str, Any]) -> Any:
    """From a batch of places to what the model takes, and to truth and weight (b, h, m, 2)."""
    table, history, horizon, count = part.table, spec["history"], spec["horizon"], len(spec["targets"])
    with tf.device("CPU"):
        columns = {name: tf.constant(getattr(table, name)) for name in ("values", "moments", "known")}
    spread = np.array(spec["normalization"]["values"]["std"][:count])
    weights = tf.constant(spread / np.array(spec["scales"]), "float32")  # (s, m)

    def prepared(batch: dict[str, Any]) -> tuple[Any, Any]:
        window = {key: series.windows(row, batch["place"], history + horizon) for key, row in columns.items()}
        number = tf.cast(batch["series"], "int32") + 1
        inputs = preprocess(window["values"][:, :history], window["moments"], window["known"], number, spec)
        truth = series.standardize(window["values"], spec["normalization"]["values"])[:, history:, :count]  # (b, h, m)
        known = tf.logical_not(tf.math.is_nan(truth))
        weight = tf.where(known, tf.gather(weights, batch["series"])[:, None], 0.0)  # (b, h, m)
        return inputs, tf.stack([tf.where(known, truth, 0.0), weight], -1)

    return prepared


def training_batches(data: Data, config: Config, start_step: int = 0) -> Any:
    """Endless training batches from a global step on."""
    prepared = finish(data.train, data.spec)
    return datasets.stream(
        data.train.examples(),
        count=data.spec["counts"]["train"],
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        map_fn=lambda step, batch: prepared(batch),
    )


def evaluation_batches(part: windows.Windows, spec: dict[str, Any], batch_size: int = 128) -> Any:
    """Batches of a split in the order of its origins."""
    return datasets.batches(part.examples(), batch_size=batch_size, map_fn=finish(part, spec))


def restored(forecast: Any, spec: dict[str, Any]) -> Any:
    """Forecasts (b, h, m, q) in the units of the data."""
    statistics, count = spec["normalization"]["values"], len(spec["targets"])
    std, mean = (tf.constant(statistics[name][:count], "float32")[:, None] for name in ("std", "mean"))  # (m, 1)
    return tf.cast(forecast, "float32") * std + mean


def answers(forecast: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """Named answers: the forecast (b, h, m), its outermost interval, and every quantile (b, h, m, q)."""
    quantiles = restored(forecast, spec)
    named = {"forecast": quantiles[..., len(spec["quantiles"]) // 2]}
    if len(spec["quantiles"]) > 1:
        named |= {"lower": quantiles[..., 0], "upper": quantiles[..., -1], "quantiles": quantiles}
    return named


def serving_inputs(spec: dict[str, Any], rows: int | None) -> dict[str, Any]:
    """What every signature takes beside its dates, for windows of so many rows."""
    known, channels = len(spec["known"]), len(spec["targets"]) + len(spec["past"])
    found = {"values": tf.TensorSpec([None, rows, channels], tf.float32, name="values")}
    if known:
        found["known"] = tf.TensorSpec([None, rows, known], tf.float32, name="known")
        found["known_ahead"] = tf.TensorSpec([None, spec["horizon"], known], tf.float32, name="known_ahead")
    return found


def serving_fn(model: Any, config: Config, spec: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The served function: the last rows, with their dates as strings, to forecasts with dates and intervals.

    Rows may be fewer or more than the model looks back, in any order, and leave steps out; an empty date stands for no
    row, NaN for a missing value. Where the model has covariates known in advance, `known` gives those of the rows and
    `known_ahead` those of the horizon; where it knows several series, `series` names one, or a new one.
    """
    frequency, length, channels = spec["frequency"], spec["history"], len(spec["targets"]) + len(spec["past"])
    signature = {"dates": tf.TensorSpec([None, None], tf.string, name="dates"), **serving_inputs(spec, None)}
    if len(spec["series"]) > 1:
        signature["series"] = tf.TensorSpec([None], tf.string, name="series")

    def serve(*tensors):
        given = dict(zip(signature, tensors))
        moments, there = series.read_dates(given["dates"])  # (b, r)
        cells = tf.concat([given[name] for name in ("values", "known") if name in given], -1)  # (b, r, c + k)
        window, last = series.on_grid(moments, there, cells, length, frequency)  # (b, t, c + k)
        moments = series.following(last, spec["horizon"], frequency, before=length)  # (b, t + h)
        known = tf.concat([window[..., channels:], given["known_ahead"]], 1) if spec["known"] else None
        number = numbered(given["series"], spec) if "series" in given else None
        inputs = preprocess(window[..., :channels], moments, known, number, spec)
        dates = series.write_dates(moments[:, length:], frequency)  # (b, h)
        return {"dates": dates, **answers(model(inputs, training=False), spec)}

    return serve, signature


def numbered(names: Any, spec: dict[str, Any]) -> Any:
    """Names of series (b,) as their numbers from 1 on; 0 for one that is not known."""
    same = tf.equal(names[:, None], tf.constant(spec["series"]))  # (b, s)
    return tf.where(tf.reduce_any(same, 1), tf.argmax(tf.cast(same, "int32"), 1, "int32") + 1, 0)


def more_signatures(model: Any, config: Config, spec: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """`from_grid`: arrays alone, with `moments` in the answer in place of dates.

    `values` (b, t, c) and `known` (b, t, k) of every step of the window, `last` int64 (b,), the seconds since 1970 of
    its last step, and `series` int32 (b,), numbered from 1 in the order of `spec.json`.
    """
    length = spec["history"]
    signature = {**serving_inputs(spec, length), "last": tf.TensorSpec([None], tf.int64, name="last")}
    if len(spec["series"]) > 1:
        signature["series"] = tf.TensorSpec([None], tf.int32, name="series")

    def from_grid(*tensors):
        given = dict(zip(signature, tensors))
        moments = series.following(given["last"], spec["horizon"], spec["frequency"], before=length)
        known = tf.concat([given["known"], given["known_ahead"]], 1) if spec["known"] else None
        inputs = preprocess(given["values"], moments, known, given.get("series"), spec)
        return {"moments": moments[:, length:], **answers(model(inputs, training=False), spec)}

    return {"from_grid": (from_grid, signature)}


def predict(model: Any, part: windows.Windows, spec: dict[str, Any]) -> tuple[Any, Any]:
    """Truth (n, h, m), NaN where missing, and quantiles (n, h, m, q) of every origin of a split."""
    quantiles = restored(model.predict(evaluation_batches(part, spec), verbose=0), spec).numpy()
    steps = part.places[:, None] + spec["history"] + np.arange(spec["horizon"])  # (n, h)
    return part.table.values[steps][..., : len(spec["targets"])].astype("float64"), quantiles.astype("float64")


def first_batch(data: Data, config: Config, folder: Path) -> None:
    """`plots/first_batch.png`: windows as the model is about to see them."""
    inputs, answer = next(iter(training_batches(data, config).take(1)))
    truth, weight = answer[:8, :, 0, 0].numpy(), answer[:8, :, 0, 1].numpy()  # (8, h)
    path = folder / "plots/first_batch.png"
    pictures.draw_windows(inputs["history"][:8, :, 0].numpy(), np.where(weight > 0, truth, np.nan), path)


def main(config: Config) -> Path:
    """Train, evaluate and report; returns the run folder."""
    config = runs.resumed(TASK, config)
    if config.resume and runs.is_finished(Path(config.resume)):
        return runs.already_finished(config)
    arguments(config)  # wrong names end here, before anything is read or written
    data = load_data(config)
    spec, table = data.spec, data.test.table
    model = build_model(config, spec)
    kind = tables.describe(spec["frequency"])
    counts = ", ".join(f"{count:,} {part}" for part, count in spec["counts"].items())
    print(
        f"data: {spec['dataset']}: {len(spec['series'])} series, {kind}, {spec['steps']:,} steps from "
        f"{' to '.join(spec['span'])}, {spec['missing']} missing values; windows: {counts}"
    )
    print(f"model: {config.model}, {model.count_params():,} parameters, {spec['history']} steps to {spec['horizon']}")
    with runs.start(TASK, config, spec) as folder:
        print(f"run folder: {folder}")
        batches = functools.partial(training_batches, data, config)
        config = supervised.with_found_rate(model, batches, compile_model, config, spec, folder)
        first_batch(data, config, folder)
        print(f"first batch: {folder / 'plots/first_batch.png'}")
        validation, monitor = evaluation_batches(data.validation, spec), f"val_{OBJECTIVE[0]}"
        fitted = supervised.train(model, batches, validation, config, spec, folder, monitor, OBJECTIVE[1])
        found = {}
        for name, part in (("validation", data.validation), ("test", data.test)):
            truth, quantiles = predict(model, part, spec)
            scales = backtest.scales_of(table, part.places, spec)
            found[name] = backtest.measures(truth, quantiles, spec["quantiles"], scales)
        first, others, errors = backtest.compare(config.baselines, table, data.test.places, truth, quantiles, spec)
        pictures.draw_backtest(data.test, truth, quantiles, spec, folder / "plots/forecasts.png")
        pictures.draw_error_by_step(errors, folder / "plots/error_by_step.png")
        supervised.finish(
            TASK,
            OBJECTIVE,
            model,
            config,
            spec,
            folder,
            found | {"baseline": first, "baselines": others, "mase_by_step": errors} | fitted,
            inputs=f"the last {spec['history']} steps ({kind}) of {', '.join([*spec['targets'], *spec['past']])}",
            limits="The figures hold while the series goes on as it did. An interval covers its share of the truth as "
            "often as the table says, and less after a change that the history does not show.",
            pictures=("forecasts", "error_by_step", "curves"),
        )
    beside = "".join(f", {one['model']} {one['mase']:.3f}" for one in (first, *others))
    print(f"test MASE {found['test']['mase']:.3f}{beside} ({fitted['train_seconds']} s): {folder}")
    print(f"pictures: {folder / 'plots'}")
    if config.export:
        runs.export(folder)
    return folder


def served_checks(model: Any, config: Config, spec: dict[str, Any], *, limit: int | None = None) -> Any:
    """What clients would send of the test split, and what Keras answers by the road of training.

    Yields, batch by batch: {signature: ({input: array}, {output: array})}; at most `limit` examples in all.
    """
    test = load_data(config).test
    table, length = test.table, spec["history"]
    for start in range(0, min(limit or len(test.places), len(test.places)), 128):
        part = windows.Windows(table, test.places[start : min(start + 128, limit or len(test.places))])
        _, quantiles = predict(model, part, spec)
        steps = part.places[:, None] + np.arange(length + spec["horizon"])  # (b, t + h)
        moments, dates = table.moments[steps], series.write_dates(table.moments[steps], spec["frequency"]).numpy()
        grid = {"values": table.values[steps[:, :length]]}
        if spec["known"]:
            known = table.known[steps]
            grid |= {"known": known[:, :length], "known_ahead": known[:, length:]}
        expected = {"forecast": quantiles[..., len(spec["quantiles"]) // 2].astype("float32")}
        if len(spec["quantiles"]) > 1:
            lower, upper = (quantiles[..., i].astype("float32") for i in (0, -1))
            expected |= {"lower": lower, "upper": upper, "quantiles": quantiles.astype("float32")}
        given = {"dates": dates[:, :length], **grid}
        grid["last"] = moments[:, length - 1]
        if len(spec["series"]) > 1:
            given["series"] = np.array(table.names, object)[part.series]
            grid["series"] = (part.series + 1).astype("int32")
        yield {
            "serving_default": (given, {"dates": dates[:, length:], **expected}),
            "from_grid": (grid, {"moments": moments[:, length:], **expected}),
        }


if __name__ == "__main__":
    run_cli(pipelines.get(TASK))
