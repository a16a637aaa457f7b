"""Which text answers this text: its summary, or what else a few words before it ask for?

    python -m pipelines.text_to_text
    python -m pipelines.text_to_text --dataset cnn_dailymail --task_prefix "summarize: " --limit 20000 --vocab_size 8000
    python -m pipelines.text_to_text --dataset aeslc --task_prefix "summarize: " --pretrained google-t5/t5-small
    python -m pipelines.text_to_text --data_dir tickets.csv --source_column body --target_column answer

Without a flag a small T5 learns three tasks of `tiny_reports` at once, which the beginning of a text tells apart:
`summarize: ` a report, find its `date: `, write its numbers in `digits: `. ROUGE-L of new reports is above 90, where
the target of the nearest training source has 48, in under 5 minutes on two cores; nearly all dates and digits are
exact, and about half of the summaries, of which counting goals is the hardest part.
`--data_dir` takes your own CSV, TSV or JSONL file with columns `source`, `target` and perhaps `task`, or a folder with
train, validation and test files of such; `--dataset` any set of the TFDS catalogue with two features of text.
`--pretrained` starts from a published T5 with its tokenizer. Deviations from Raffel et al. 2020: tasks are mixed as
often as the data hold them, and sources above `--max_source` tokens are cut.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

from etils import epy

import pipelines
from pipelines import Data, builder, finetuning, runs
from pipelines import sequence_to_sequence as shared
from pipelines.config import OPTIMIZERS, one_of, option, run_cli
from pipelines.sequence_to_sequence import MONITOR, SequenceConfig, compile_model, training_batches

with epy.lazy_imports():
    import numpy as np
    import tensorflow as tf

    from pipelines import sequence_evaluation, supervised, translation_evaluation
    from pipelines import text_to_text_evaluation as evaluation
    from pipelines.datasets import pair_tables, pairs
    from pipelines.transforms import parallel

TASK = "text_to_text"
MODELS = {
    "t5": builder("models.t5"),
    "transformer": builder("models.transformer"),
}
OBJECTIVE = ("rouge_l", "max")
PORTABLE = "from_token_ids"  # the signature of arrays alone, which ONNX is made from
DATA = "tiny_reports, TFDS pairs (xsum, cnn_dailymail, gigaword, samsum, …), CSV and JSONL files"
ANSWER = "answer"
DEFAULTS: dict[str, Any] = {"dropout": 0.0}  # of builders without --size: small models on little data need none
DOORS = 8  # tasks, the commonest, that have a signature of their own
CHECKED = 32  # texts of the test split that these are tried with


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(SequenceConfig):
    dataset: str = option(
        "tiny_reports", "a TFDS name of pairs of texts (xsum, cnn_dailymail, samsum, …), or built in: tiny_reports"
    )
    data_dir: str | None = option(None, "your own CSV or JSONL file, or a folder of such, instead", metavar="PATH")
    source_column: str | None = option(None, "the column, key or feature of the source; default: found by its name")
    target_column: str | None = option(None, "the one of the target; default: found by its name")
    task_column: str | None = option(None, "the one of the task in your own file; default: found by its name, or none")
    task_prefix: str | None = option(
        None, 'put before every source, as "summarize: "; default: the name of its task, if it has one, and a colon'
    )
    skip_bad: bool = option(False, "leave out rows without source or target, naming them, instead of stopping")
    model: str = option("t5", "the architecture")
    epochs: int = option(8, "passes over the training data")
    batch_size: int = option(32, "pairs per training step")
    learning_rate: float = option(2e-2, "peak learning rate")
    optimizer: str = option("adafactor", "the update rule", choices=OPTIMIZERS)
    tokenizer: str = option("bpe", "what a token is", choices=shared.KINDS)
    vocab_size: int = option(1000, "most different tokens of the one vocabulary")
    max_source: int = option(512, "most tokens of a source, its end counted; the rest is cut off")
    max_target: int = option(128, "most tokens of an answer, its end counted; longer training targets are cut")

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.model, MODELS, "--model")
        self.at_least(2, "max_source", "max_target")


def read(config: Config) -> Any:
    """The pairs that the flags name, the prefix of its task before each source."""
    if config.data_dir is not None:
        columns = (config.source_column, config.target_column, config.task_column)
        raw = pair_tables.load(config.data_dir, columns, seed=config.seed, skip_bad=config.skip_bad)
    else:
        raw = pairs.read_named(
            config.dataset,
            (config.source_column, config.target_column),
            seed=config.seed,
            flag="column",
            stand_in="tiny_reports",
        )
    raw = raw.limited(config.limit)

    def prefixed(item: dict[str, Any]) -> dict[str, Any]:
        if config.task_prefix is not None:
            prefix = tf.constant(config.task_prefix)
        else:
            prefix = tf.where(item["task"] == "", "", item["task"] + ": ")
        return item | {"source": prefix + item["source"]}

    return dataclasses.replace(raw, **{name: getattr(raw, name).map(prefixed) for name in raw.counts})


def prefixes(tasks: list[str], given: str | None) -> dict[str, str]:
    """{task as the data name it: what stands before its sources}, in their order."""
    return {task: given if given is not None else f"{task}: " * bool(task) for task in tasks}


def load_data(config: Config) -> Data:
    """The three splits as token ids in memory, and their spec, with the tokenizer learned from the training split."""
    raw = read(config)
    found = shared.tokenizing(MODELS, config, raw.train, shared=True)
    parts = {name: parallel.encoded(getattr(raw, name), found["tokenizers"]) for name in raw.counts}
    own = config.data_dir is not None
    lengths = {side: parts["train"].examples[side].row_lengths().numpy() + 1 for side in ("source", "target")}
    most = {"source": config.max_source, "target": config.max_target}
    tasks, counts = np.unique(sequence_evaluation.strings_of(parts["train"], "task"), return_counts=True)
    order = [str(tasks[i]) for i in np.argsort(-counts, kind="stable")]
    spec: dict[str, Any] = {
        "dataset": raw.about.partition(": ")[2] if own else raw.about.partition(": ")[0],
        "about": raw.about.partition(": ")[0] if own else raw.about.partition(": ")[2],
        **found,
        "prefixes": prefixes(order, config.task_prefix),
        "max_source": config.max_source,
        "max_target": min(config.max_target, int(lengths["target"].max()) * 5 // 4 + 1),
        "cut": {side: int((lengths[side] > most[side]).sum()) for side in lengths},
        "counts": {name: part.count for name, part in parts.items()},
        "groups": sequence_evaluation.groups_of(parts),
    }
    return Data(parts["train"], parts["validation"], parts["test"], spec)


def arguments(config: Config) -> dict[str, Any]:
    """The keyword arguments of the builder: a published size or the task's own, then `--model_args` over them."""
    given = MODELS[config.model].arguments(config.size, config.model_args)
    return given if config.size else DEFAULTS | given


def build_model(config: Config, spec: dict[str, Any]) -> Any:
    """The compiled model, the same for the same seed."""
    return shared.build_model(MODELS[config.model], config, spec, arguments(config))


def serving_fn(model: Any, config: Config, spec: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The served function: texts that begin with the prefix of a task in; the answer and the best of them out."""
    return shared.serving_fn(model, config, spec, ANSWER)


def more_signatures(model: Any, config: Config, spec: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Other doors to the served model: `from_token_ids` and `score` of `sequence_to_sequence.more_signatures`, and one
    for each task (`summarize`, …), to texts without its prefix."""
    found = shared.more_signatures(model, config, spec, ANSWER)
    tokenizers = parallel.tokenizers(spec["tokenizers"])
    for name, prefix in doors(spec).items():
        found[name] = shared.serving_fn(model, config, spec | {"prefix": prefix}, ANSWER, tokenizers)
    return found


def doors(spec: dict[str, Any]) -> dict[str, str]:
    """{name of a signature: the prefix that it puts before a text}, of the commonest tasks."""
    found: dict[str, str] = {}
    for prefix in list(spec["prefixes"].values())[:DOORS]:
        name = re.sub(r"\W+", "_", prefix).strip("_").lower()
        if name and name not in ("serving_default", "from_token_ids", "score"):
            found.setdefault(name, prefix)
    return found


def answerer(model: Any, config: Config, spec: dict[str, Any]) -> Any:
    """The served function, compiled."""
    return shared.compiled(serving_fn(model, config, spec))


def evaluated(model: Any, data: Data, config: Config) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `metrics.json` says of the answers, and the rows of the test split.

    `validation` and `test` hold pairs of the same groups; the tasks of these, and all groups of the test split, are
    also measured apart.
    """
    spec = data.spec
    serve = answerer(model, config, spec)
    validation, rows = (
        evaluation.bare(sequence_evaluation.rows_of(serve, part, ANSWER), spec) for part in (data.validation, data.test)
    )
    columns = [
        sequence_evaluation.strings_of(data.train, name, translation_evaluation.MOST)
        for name in ("task", "source_text", "target_text")
    ]
    train = evaluation.bare([dict(zip(("task", "source", "truth"), row)) for row in zip(*columns)], spec)
    beside = evaluation.baselines(train, validation, rows)
    alike = np.array([row["group"] in spec["groups"]["validation"] for row in rows])
    result: dict[str, Any] = {
        "validation": evaluation.of_rows(validation, np.ones(len(validation), bool))
        | sequence_evaluation.forced(model, data.validation, spec),
        "test": evaluation.of_rows(rows, alike)
        | sequence_evaluation.forced(model, sequence_evaluation.chosen(data.test, alike), spec),
    }
    result["baseline"], *result["baselines"] = evaluation.of_part(rows, alike, beside)["baselines"]
    for key, named, among in (
        ("tasks", [task for task in spec["prefixes"] if task], alike),
        ("groups", spec["groups"]["test"] if len(spec["groups"]["test"]) > 1 else [], np.ones(len(rows), bool)),
    ):
        chosen = {one: among & np.array([row[key[:-1]] == one for row in rows]) for one in named}
        result[key] = {one: evaluation.of_part(rows, which, beside) for one, which in chosen.items() if which.any()}
    return result, rows


def described(spec: dict[str, Any]) -> str:
    """What the data are, in two lines."""
    counts = ", ".join(f"{count:,} {part}" for part, count in spec["counts"].items())
    tasks = ", ".join(filter(None, spec["prefixes"])) or "one task"
    cut = "".join(f"; {count:,} training {side}s are longer and cut" for side, count in spec["cut"].items() if count)
    state = spec["tokenizers"][0]
    return (
        f"data: {spec['dataset']}: {counts}; {tasks}\n"
        f"tokens: {state['kind']}, {state['vocab_size']:,} different ones; at most {spec['max_source']:,} of a source "
        f"and {spec['max_target']:,} of an answer{cut}"
    )


def main(config: Config) -> Path:
    """Train, evaluate and report; returns the run folder."""
    config = runs.resumed(TASK, config)
    if config.resume and runs.is_finished(Path(config.resume)):
        return runs.already_finished(config)
    arguments(config)  # wrong names end here, before anything is read
    data = load_data(config)
    spec = data.spec
    model = build_model(config, spec)
    print(described(spec))
    print(f"model: {config.model}, {finetuning.described(model, config)}")
    with runs.start(TASK, config, spec) as folder:
        print(f"run folder: {folder}")
        batches = functools.partial(training_batches, data, config)
        config = supervised.with_found_rate(model, batches, compile_model, config, spec, folder)
        sequence_evaluation.first_batch(batches(0), spec, folder / "plots/first_batch.txt")
        print(f"first batch: {folder / 'plots/first_batch.txt'}")
        validation = shared.evaluation_batches(data.validation, spec)
        fitted = supervised.train(model, batches, validation, config, spec, folder, MONITOR, "max")
        found, rows = evaluated(model, data, config)
        evaluation.pictures(found, rows, config.model, folder)
        known = ", ".join(repr(prefix) for prefix in spec["prefixes"].values() if prefix)
        metrics = supervised.finish(
            TASK,
            OBJECTIVE,
            model,
            config,
            spec,
            folder,
            found | fitted,
            inputs=f"text of at most {spec['max_source']} {spec['tokenizers'][0]['kind']} tokens, its end counted; the "
            f"rest is cut{f'; it begins with one of {known}' if known else ''}",
            limits="The figures hold for texts like those of the test split. The model answers any text, also one of "
            "another kind or with another beginning, and an answer may say what its text does not.",
            pictures=("curves", "rouge"),
        )
    for name, one in {**metrics["tasks"], **metrics["groups"]}.items():
        print(f"{name}: ROUGE-L {one['rouge_l']:.2f}, exact match {one['exact_match']:.2%} of {one['examples']}")
    test, base = metrics["test"], metrics["baseline"]
    print(
        f"test: ROUGE-1 {test['rouge_1']:.2f}, ROUGE-2 {test['rouge_2']:.2f}, ROUGE-L {test['rouge_l']:.2f}, exact "
        f"match {test['exact_match']:.2%} ({base['model']}: {base['rouge_1']:.2f}, {base['rouge_2']:.2f}, "
        f"{base['rouge_l']:.2f}, {base['exact_match']:.2%}; {fitted['train_seconds']} s): {folder}"
    )
    print(f"answers: {folder / 'examples.md'}, pictures: {folder / 'plots'}")
    if config.export:
        runs.export(folder)
    return folder


def served_checks(model: Any, config: Config, spec: dict[str, Any], *, limit: int | None = None) -> Any:
    """What clients would send of the test split, and what Keras answers by the road of training.

    Yields, batch by batch: {signature: ({input: array}, {output: array})}; at most `limit` examples in all. The
    signatures of tasks are in the first batch: the same texts are sent to each.
    """
    test = read(config).test.take(limit or -1)
    serve = answerer(model, config, spec)
    batches = shared.served_checks(model, config, spec, test, ANSWER, serve)
    first = next(batches)
    rows = [
        {name: item[name].decode() for name in ("task", "source")} for item in test.take(CHECKED).as_numpy_iterator()
    ]
    texts = [row["text"] for row in evaluation.bare(rows, spec) if row["text"]]
    for name, prefix in doors(spec).items():
        given, told = (np.array([(before + one).encode() for one in texts], object) for before in ("", prefix))
        first[name] = {"text": given}, shared.predict(serve, told)
    yield first
    yield from batches


if __name__ == "__main__":
    run_cli(pipelines.get(TASK))
