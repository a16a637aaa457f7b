"""What is this text in the other language?

    python -m pipelines.translation
    python -m pipelines.translation --model transformer --dataset tiny_messages/en_de
    python -m pipelines.translation --dataset ted_hrlr_translate/pt_to_en --tokenizer bpe --vocab_size 8000
    python -m pipelines.translation --data_dir sentences --tokenizer sentencepiece
    python -m pipelines.translation --model t5 --pretrained google-t5/t5-small --prefix "translate English to German: "

Without a flag a recurrent encoder-decoder with attention learns to read `tiny_dates`, dates as 31 languages write them,
into ISO 8601: at least 98 % of the answers for unseen days equal the truth (mean of three seeds), in under 5 minutes on
two cores, beside the translation of the nearest training source. `--data_dir` takes a folder with `train.src` and
`train.tgt`, a sentence a line; `--dataset` any set of the TFDS catalogue with two features of text. `--pretrained`
starts from a published T5 with its tokenizer; `--prefix` is what such a model was taught to be told before a source.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from etils import epy

import pipelines
from pipelines import Data, builder, finetuning, runs
from pipelines import sequence_to_sequence as shared
from pipelines.config import Failure, UsageError, one_of, option, run_cli
from pipelines.sequence_to_sequence import MONITOR, SequenceConfig, compile_model, training_batches

with epy.lazy_imports():
    import numpy as np
    import tensorflow as tf

    from pipelines import sequence_evaluation, supervised
    from pipelines import translation_evaluation as evaluation
    from pipelines.datasets import pairs, texts
    from pipelines.transforms import parallel

TASK = "translation"
MODELS = {
    "seq2seq": builder("models.seq2seq"),
    "transformer": builder("models.transformer"),
    "t5": builder("models.t5"),
}
OBJECTIVE = ("chrf", "max")
PORTABLE = "from_token_ids"  # the signature of arrays alone, which ONNX is made from
DATA = "tiny_dates, tiny_messages, TFDS pairs (ted_hrlr_translate/pt_to_en, wmt14_translate, …), parallel text files"
ANSWER = "translation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(SequenceConfig):
    dataset: str = option("tiny_dates", "a TFDS name of pairs of texts, or built in: tiny_dates, tiny_messages/en_de")
    data_dir: str | None = option(None, "your own train.src and train.tgt, instead of --dataset", metavar="DIR")
    source_file: str | None = option(None, "your own sentences, one a line, instead of --dataset", metavar="FILE")
    target_file: str | None = option(None, "their translations, line by line", metavar="FILE")
    source_language: str | None = option(None, "feature of the data set, or ending of the files, to translate from")
    target_language: str | None = option(None, "the one to translate to")
    skip_bad: bool = option(False, "leave out pairs with an empty line, naming them, instead of stopping")
    model: str = option("seq2seq", "the architecture")
    epochs: int = option(5, "passes over the training data")
    batch_size: int = option(64, "pairs per training step")
    learning_rate: float = option(2e-3, "peak learning rate")
    shared_vocabulary: bool = option(False, "one vocabulary for both languages, as t5 always has")
    prefix: str = option(
        "", "put before every source, also in serving: T5 was taught its tasks by such", metavar="TEXT"
    )
    max_length: int = option(128, "most tokens of a text, its end counted: longer training pairs are left out")
    coverage_penalty: float = option(
        0.0, "above 0 it favours translations that attend to all of the source (beta); not of t5"
    )
    bleu_tokenizer: str = option("13a", "of BLEU, not of the model", choices=("13a", "intl", "zh", "char", "none"))

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.model, MODELS, "--model")
        self.at_least(2, "max_length")
        self.at_least(0, "coverage_penalty")
        if self.coverage_penalty and self.model == "t5":
            raise UsageError(f"Expected --coverage_penalty 0 with --model t5. Received: {self.coverage_penalty}")


def read(config: Config) -> Any:
    """The pairs that the flags name."""
    return pairs.load(
        config.dataset,
        data_dir=config.data_dir,
        files=(config.source_file, config.target_file),
        languages=(config.source_language, config.target_language),
        seed=config.seed,
        limit=config.limit,
        skip_bad=config.skip_bad,
    )


def load_data(config: Config) -> Data:
    """The three splits as token ids in memory, and their spec, with the tokenizers learned from the training split."""
    raw = read(config)
    found = shared.tokenizing(MODELS, config, raw.train, shared=config.shared_vocabulary)
    states = found["tokenizers"]
    own = bool(config.data_dir or config.source_file)
    spec: dict[str, Any] = {
        "dataset": raw.about.partition(": ")[2] if own else raw.about.partition(": ")[0],
        "about": raw.about.partition(": ")[0] if own else raw.about.partition(": ")[2],
        "languages": list(raw.languages),
        **found,
        "prefix": config.prefix,
        "max_source": config.max_length,
    }
    parts = {name: parallel.encoded(getattr(raw, name), states, config.prefix) for name in raw.counts}
    lengths = parallel.token_counts(parts["train"]) + 1  # with the end
    short = tf.boolean_mask(tf.range(len(lengths)), lengths <= config.max_length)
    if not len(short):
        raise Failure(f"Expected training pairs of at most {config.max_length} tokens (--max_length). Received: none")
    spec["left_out"] = len(lengths) - len(short)
    if spec["left_out"]:
        parts["train"] = texts.InMemory(texts.taken(parts["train"], short), len(short))
    longest = int(tf.reduce_max(parts["train"].examples["target"].row_lengths())) + 1
    spec["max_target"] = min(config.max_length, longest * 5 // 4 + 1)
    spec["counts"] = {name: part.count for name, part in parts.items()}
    spec["groups"] = sequence_evaluation.groups_of(parts)
    return Data(parts["train"], parts["validation"], parts["test"], spec)


def arguments(config: Config) -> dict[str, Any]:
    """The keyword arguments of the builder: a published size, then `--model_args` over it."""
    return MODELS[config.model].arguments(config.size, config.model_args)


def build_model(config: Config, spec: dict[str, Any]) -> Any:
    """The compiled model, the same for the same seed."""
    return shared.build_model(MODELS[config.model], config, spec, arguments(config))


def serving_fn(model: Any, config: Config, spec: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The served function: texts in; the translation, its score and the best `--beam_width` of them out."""
    return shared.serving_fn(model, config, spec, ANSWER)


def more_signatures(model: Any, config: Config, spec: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Other doors to the served model: `from_token_ids` and `score`, see `sequence_to_sequence.more_signatures`."""
    return shared.more_signatures(model, config, spec, ANSWER)


def translator(model: Any, config: Config, spec: dict[str, Any]) -> Any:
    """The served function, compiled."""
    return shared.compiled(serving_fn(model, config, spec))


def evaluated(model: Any, data: Data, config: Config) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `metrics.json` says of the answers, and the rows of the test split.

    `validation` and `test` hold pairs of the same groups; all groups of the test split are in `groups`, apart.
    """
    spec, tokenize = data.spec, config.bleu_tokenizer
    serve = translator(model, config, spec)
    validation, rows = (sequence_evaluation.rows_of(serve, part, ANSWER) for part in (data.validation, data.test))
    sources, targets = (
        sequence_evaluation.strings_of(data.train, name, evaluation.MOST) for name in ("source_text", "target_text")
    )
    beside = evaluation.baselines((sources, targets), [row["source"] for row in rows])
    alike = np.array([row["group"] in spec["groups"]["validation"] for row in rows])
    test = sequence_evaluation.chosen(data.test, alike)
    result: dict[str, Any] = {
        "validation": evaluation.of_rows(validation, tokenize)
        | sequence_evaluation.forced(model, data.validation, spec),
        "test": evaluation.of_rows(rows, tokenize, chosen=alike) | sequence_evaluation.forced(model, test, spec),
    }
    result["baseline"], *result["baselines"] = [
        {"model": name, **evaluation.of_rows(rows, tokenize, chosen=alike, answers=answers)}
        for name, answers in beside.items()
    ]
    groups = spec["groups"]["test"] if len(spec["groups"]["test"]) > 1 else ()
    result["groups"] = {group: evaluation.of_group(rows, group, tokenize, beside) for group in groups}
    result["bleu_signature"] = evaluation.signature(tokenize)
    return result, rows


def described(spec: dict[str, Any], config: Config) -> str:
    """What the data are, in a line."""
    counts = ", ".join(f"{count:,} {part}" for part, count in spec["counts"].items())
    sizes = " and ".join(f"{state['vocab_size']:,}" for state in spec["tokenizers"])
    left = f", {spec['left_out']:,} longer pairs left out" if spec["left_out"] else ""
    pair = " to ".join(spec["languages"])
    return f"data: {spec['dataset']}: {counts}{left}; {pair}, {sizes} different {spec['tokenizers'][0]['kind']} tokens"


def main(config: Config) -> Path:
    """Train, evaluate and report; returns the run folder."""
    config = runs.resumed(TASK, config)
    if config.resume and runs.is_finished(Path(config.resume)):
        return runs.already_finished(config)
    arguments(config)  # wrong names end here, before anything is read
    data = load_data(config)
    spec = data.spec
    model = build_model(config, spec)
    print(described(spec, config))
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
        drawn = sequence_evaluation.draw_alignments(model, rows, spec, folder / "plots/alignments.png")
        evaluation.examples_page(rows, folder / "examples.md")
        metrics = supervised.finish(
            TASK,
            OBJECTIVE,
            model,
            config,
            spec,
            folder,
            found | fitted,
            inputs=f"text of at most {spec['max_source']} {spec['tokenizers'][0]['kind']} tokens, its end counted; the "
            "rest is cut",
            limits="The figures hold for texts like those of the test split. The model answers any text, also one in "
            "another language or of another kind; its scores compare translations of one text, not of different ones.",
            pictures=("curves", "alignments") if drawn else ("curves",),
        )
    for group, one in metrics["groups"].items():
        print(f"{group}: exact match {one['exact_match']:.2%} of {one['examples']}, chrF {one['chrf']:.2f}")
    test, base = metrics["test"], metrics["baseline"]
    print(
        f"test: exact match {test['exact_match']:.2%}, BLEU {test['bleu']:.2f}, chrF {test['chrf']:.2f} "
        f"({base['model']}: {base['exact_match']:.2%}, {base['bleu']:.2f}, {base['chrf']:.2f}; "
        f"{fitted['train_seconds']} s): {folder}"
    )
    print(f"answers: {folder / 'examples.md'}, pictures: {folder / 'plots'}")
    if config.export:
        runs.export(folder)
    return folder


def served_checks(model: Any, config: Config, spec: dict[str, Any], *, limit: int | None = None) -> Any:
    """What clients would send of the test split, at most `limit` examples, and what Keras answers to it."""
    test, serve = read(config).test.take(limit or -1), translator(model, config, spec)
    return shared.served_checks(model, config, spec, test, ANSWER, serve)


if __name__ == "__main__":
    run_cli(pipelines.get(TASK))
