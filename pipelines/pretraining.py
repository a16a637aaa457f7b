"""What does a model learn from text alone?

    python -m pipelines.pretraining
    python -m pipelines.pretraining --model t5
    python -m pipelines.pretraining --whole_word --sentences sop
    python -m pipelines.pretraining --dataset wikipedia/20230601.en --vocab_size 30000 --steps 100000
    python -m pipelines.pretraining --data_dir novels --model xlnet --no-packing
    python -m pipelines.text_classification --model bert_classifier --pretrained runs/pretraining/RUN

Without a flag BERT learns to name masked tokens of `tiny_code`, the modules of the standard library, in 1,200 steps.
Measured on `tiny_code_apart`, the same without a fifth of the functions: 40.5 % of the masked tokens of modules that it
has not seen, where a mixture of frequencies given both neighbours names 38.6 % (and the commonest token is 2.7 %); in
loss that mixture is still better, 3.09 nats a token against 3.16. `pretraining_data.py` makes what is predicted,
`pretraining_evaluation.py` judges, `pretraining_serving.py` answers.

Deviations: those of `transforms.corruption`, `transforms.sentence_pairs` and `models.xlnet`; the small BERT of the
defaults has rotary positions.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from pathlib import Path
from typing import Any

from etils import epy

import pipelines
from pipelines import Data, builder, finetuning, runs
from pipelines.config import CrossEntropyConfig, UsageError, one_of, option, run_cli

with epy.lazy_imports():
    import keras
    import tensorflow as tf

    from models import checkpoints
    from pipelines import language_evaluation, report, supervised, training
    from pipelines import pretraining_data as rows
    from pipelines import pretraining_evaluation as evaluation
    from pipelines import pretraining_serving as serving
    from pipelines.datasets import corpora, token_store
    from pipelines.transforms import text

TASK = "pretraining"
MODELS = {
    "bert": builder("models.bert"),
    "gpt": builder("models.gpt"),
    "llama": builder("models.llama"),
    "t5": builder("models.t5"),
    "xlnet": builder("models.xlnet"),
}
# What of a row a model predicts: masked tokens, the token after each, missing spans, or some of a random order.
OBJECTIVES = {"bert": "masked", "gpt": "causal", "llama": "causal", "t5": "spans", "xlnet": "permutation"}
HEADS = {"masked": "masked_lm", "causal": "lm", "spans": "lm", "permutation": "lm"}
# Arguments of the builder that are the task's own where no size is named: small models on little data need no dropout,
# and a small BERT learns what stands beside a token much sooner with rotary positions than with its own learned ones.
DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": {"num_heads": 4, "positions": "rotary", "dropout": 0.0, "attention_dropout": 0.0},
    "gpt": {"dropout": 0.0, "attention_dropout": 0.0, "embedding_dropout": 0.0},
    "llama": {},
    "t5": {"dropout": 0.0},
    "xlnet": {"dropout": 0.0},
}
OBJECTIVE = ("loss", "min")
PORTABLE = "from_token_ids"  # the signature of arrays alone, which ONNX is made from
DATA = "tiny_code, TFDS text sets (wikipedia, lm1b, c4, tiny_shakespeare, …), your own files of text, CSV and JSONL"
LEARN_FROM = (2**28, 2**23)  # of the first so many bytes so many, evenly spaced, for the tokenizer
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CrossEntropyConfig):
    dataset: str = option("tiny_code", "a TFDS name of a set with a text, or built in: tiny_code, tiny_code_apart")
    data_dir: str | None = option(None, "your own file or folder of text, CSV or JSONL, instead", metavar="PATH")
    text_column: str | None = option(None, "the column, key or feature of the text; default: found by its name")
    skip_bad: bool = option(False, "leave out files and rows that are no text, naming them, instead of stopping")
    model: str = option("bert", "the architecture, and with it what is predicted")
    epochs: int = option(6, "epochs of --epoch_rows rows each")
    epoch_rows: int | None = option(6400, "rows in an epoch, after which the validation split is judged; default: all")
    batch_size: int = option(32, "rows per training step")
    learning_rate: float = option(2e-3, "peak learning rate")
    tokenizer: str = option(
        "bpe", "what a token is", choices=("word", "character", "wordpiece", "bpe", "sentencepiece")
    )
    vocab_size: int = option(2048, "most different tokens, learned from the training split; special ones are added")
    max_length: int = option(128, "tokens of a row, its marks counted")
    packing: bool = option(True, "fill every row, across documents; without, a row is a piece of one document, padded")
    whole_word: bool = option(False, "bert: mask whole words")
    sentences: str = option(
        "none",
        "bert: rows are pairs of passages, of which it also learns whether the second follows the first (nsp) or the "
        "two are swapped (sop)",
        choices=("none", "nsp", "sop"),
    )
    memory: int = option(0, "xlnet: tokens before each row that are read first and remembered")
    evaluated: int = option(1024, "rows of the validation and of the test split that are judged, evenly spaced")
    max_new_tokens: int = option(48, "gpt, llama, t5: most tokens that the served model writes")

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.model, MODELS, "--model")
        self.at_least(5, "vocab_size")
        self.at_least(8, "max_length")
        self.at_least(1, "epoch_rows", "evaluated", "max_new_tokens")
        self.at_least(0, "memory")
        for name, default, model in (
            ("whole_word", False, "bert"),
            ("sentences", "none", "bert"),
            ("memory", 0, "xlnet"),
        ):
            if self.model != model and getattr(self, name) != default:
                raise UsageError(f"Expected --{name} with --model {model}. Received: {self.model}")
        if self.sentences != "none" and not self.packing:
            raise UsageError(
                f"Expected --sentences {self.sentences} alone, whose rows are pairs. Received: --no-packing"
            )
        if self.memory and not self.packing:
            raise UsageError(
                "Expected --memory with packed rows, which have tokens before them. Received: --no-packing"
            )
        if "head" in self.model_args:
            raise UsageError(f"Expected --model_args without head: the task decides it. Received: {self.model_args}")
        if OBJECTIVES[self.model] == "causal" and self.max_new_tokens > self.max_length - 2:
            raise UsageError(
                f"Expected --max_new_tokens of at most {self.max_length - 2}: a mark, the prompt and the answer share "
                f"--max_length {self.max_length}. Received: {self.max_new_tokens}"
            )


def preprocess(strings: Any, tokenizer: Any, spec: dict[str, Any]) -> tuple[Any, Any]:
    """Texts as rows of the model, in serving; names of special tokens in them stand for these.

    Args:
        strings: (b,) of raw bytes.
        tokenizer: of `transforms.text.tokenizer`.
        spec: of the data.

    Returns:
        int32 (b, tokens), ragged: `START` text `END` as in training, the text cut where a row ends. The causal models
        get `START` and the last tokens, with room for the answer; T5 the text and the end of its own.
    """
    ids, length = tokenizer.encode_named(strings), spec["max_length"]
    one = tf.ones([ids.nrows(), 1], tf.int32)
    if spec["objective"] == "causal":
        return tf.concat([text.START * one, ids[:, -(length - spec["max_new_tokens"] - 1) :]], 1)
    if spec["objective"] == "spans":
        return tf.concat([ids[:, : length - 1], rows.SPANS_END * one], 1)
    return text.sequences(ids, length, start=True)


def load_data(config: Config) -> Data:
    """The three splits as `TokenStore`s, and their spec with the tokenizer."""
    corpus, given = read(config), arguments(config)
    objective = OBJECTIVES[config.model]
    plain = tokenizer_state(config, corpus)
    stores = {
        split: token_store.build(getattr(corpus, split), plain, fingerprint=f"{corpus.fingerprint} {split}")
        for split in SPLITS
    }
    spec: dict[str, Any] = {
        "dataset": corpus.source.partition(": ")[0],
        "about": corpus.source.partition(": ")[2],
        "objective": objective,
        "max_length": config.max_length,
        "max_new_tokens": config.max_new_tokens,
        "memory": config.memory,
        "packing": config.packing,
        "sentences": config.sentences,
        "segments": given.get("num_segments", 2) > 1 and given.get("pairs", True),
        "whole_word": config.whole_word,
        "evaluated": config.evaluated,
        "tokenizer": text.with_names(plain, rows.names(objective), start=objective != "spans"),
        **({"marks": [text.PAD, rows.SPANS_END]} if objective == "spans" else {}),
        "documents": {split: store.num_documents for split, store in stores.items()},
        "tokens": {split: store.num_tokens for split, store in stores.items()},
        "bytes": {split: store.num_bytes for split, store in stores.items()},
    }
    counts = {split: rows.rows_of(store, spec) for split, store in stores.items()}
    spec["rows"] = counts
    spec["counts"] = {
        "train": min(counts["train"], config.epoch_rows or counts["train"]),
        **{split: min(counts[split], config.evaluated) for split in ("validation", "test")},
    }
    return Data(stores["train"], stores["validation"], stores["test"], spec)


def read(config: Config) -> Any:
    """The corpus that the flags name."""
    return corpora.load(
        config.dataset,
        data_dir=config.data_dir,
        text_column=config.text_column,
        seed=config.seed,
        limit=config.limit,
        skip_bad=config.skip_bad,
    )


def tokenizer_state(config: Config, corpus: Any) -> dict[str, Any]:
    """The tokenizer learned from the training documents, without the special tokens of an objective."""
    most, kept = LEARN_FROM
    texts = corpora.sample(language_evaluation.beginning(corpus.train, most), kept)
    strings = (one.decode("utf-8", "replace") for one in texts)
    options = {"space_runs": True} if config.tokenizer in ("bpe", "sentencepiece") else {}
    return text.train_tokenizer(config.tokenizer, strings, config.vocab_size, **options)


def arguments(config: Config) -> dict[str, Any]:
    """The keyword arguments of the builder: the task's own, or a published size, then `--model_args` over them."""
    given = MODELS[config.model].arguments(config.size, config.model_args)
    own = dict(DEFAULTS[config.model]) if config.size is None else {}
    head = HEADS[OBJECTIVES[config.model]]
    if config.sentences != "none":
        head = "pretraining"
    if config.model in ("bert", "gpt", "llama") and config.size is None:
        own["max_length"] = config.max_length + given.get("first_position", 0)
    return {**own, **given, "head": head, **({"pad_id": text.PAD} if config.model in ("bert", "xlnet") else {})}


def build_model(config: Config, spec: dict[str, Any]) -> Any:
    """The model, the same for the same seed; it is trained by `learner`."""
    given = arguments(config)
    keras.utils.set_random_seed(config.seed)
    with training.dtypes(config), training.replicas(config):
        try:
            model = MODELS[config.model](spec["tokenizer"]["vocab_size"], **given)
        except (ValueError, TypeError) as error:
            raise UsageError(str(error)) from error
    finetuning.check_length(model, spec["max_length"])
    return model


def at_places(model: Any) -> Any:
    """BERT, with scores of tokens at some places alone: (b, k, v), where k is a sixth of t.

    It shares the layers of the model, and has `places` (b, k) as one more input.
    """
    inputs = dict(model.input) if isinstance(model.input, dict) else {"token_ids": model.input}
    inputs["places"] = keras.Input((None,), dtype="int32", name="places")
    hidden = model.get_layer(f"block{model.arguments['depth']}").output  # (b, t, d)
    x = keras.ops.take_along_axis(hidden, inputs["places"][..., None], axis=1)  # (b, k, d)
    for name in ("masked_lm_dense", "masked_lm_norm"):
        x = model.get_layer(name)(x)
    scores = model.get_layer("masked_lm_bias")(model.get_layer("token_embedding")(x, reverse=True))  # (b, k, v)
    if isinstance(model.output, dict):
        scores = {"masked_lm": scores, "next_sentence": model.output["next_sentence"]}
    return keras.Model(inputs, scores, name=f"{model.name}_at_places")


def two_streams(model: Any, memory: int) -> Any:
    """XLNet, asked by its query stream for the targets of a permutation, (b, k, v); it shares the model's layers.

    With a memory it first reads the `memory` tokens before the row, and remembers them without a gradient.
    """
    inputs = {
        "token_ids": keras.Input((None,), dtype="int32", name="token_ids"),
        "segment_ids": keras.Input((None,), dtype="int32", name="segment_ids"),
        "permutation_mask": keras.Input((None, None), dtype="bool", name="permutation_mask"),
        "target_mapping": keras.Input((None, None), name="target_mapping"),
    }
    known: dict[str, Any] = dict(inputs)
    if memory:
        inputs["memory_ids"] = before = keras.Input((memory,), dtype="int32", name="memory_ids")
        known |= {"memory": model.read(before).memory, "memory_mask": keras.ops.not_equal(before, text.PAD)}
    return keras.Model(inputs, model.predict_targets(**known), name=f"{model.name}_two_streams")


def learner(model: Any, config: Config, spec: dict[str, Any]) -> Any:
    """What `fit` trains, compiled: the model, or one around it that is asked for some places alone."""
    with training.dtypes(config), training.replicas(config):
        found = model
        if spec["objective"] == "masked":
            found = at_places(model)
        elif spec["objective"] == "permutation":
            found = two_streams(model, spec["memory"])
        compile_model(found, config, spec)
    return found


def compile_model(model: Any, config: Config, spec: dict[str, Any]) -> None:
    from models.losses import TokenCrossentropy

    examples = spec["counts"]["train"]
    loss: Any = TokenCrossentropy(config.label_smoothing)
    metrics: Any = [keras.metrics.SparseCategoricalAccuracy(name="token_accuracy")]
    if spec["sentences"] != "none":
        loss = {"masked_lm": loss, "next_sentence": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
        right = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        metrics = {"masked_lm": metrics, "next_sentence": [right]}
    model.compile(
        optimizer=training.optimizer(config, training.total_steps(config, examples)),
        loss=loss,
        weighted_metrics=metrics,
        jit_compile=config.jit,
        steps_per_execution=training.steps_per_execution(config, examples),
    )


def training_batches(data: Data, config: Config, start_step: int = 0) -> Any:
    """Endless training batches from a global step on: masks and orders are drawn anew for every step."""
    spec = data.spec
    found = rows.training_rows(data.train, spec, config.batch_size, config.seed, start_step)
    return found.map(rows.Examples(spec, config.seed), tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


def evaluation_batches(part: Any, spec: dict[str, Any]) -> Any:
    """Batches of a split, evenly spaced over it; masks and orders are the same in every run."""
    found = rows.evaluation_rows(part, spec, spec["evaluated"])
    return found.map(rows.Examples(spec, rows.EVALUATION), tf.data.AUTOTUNE, deterministic=True).prefetch(2)


def serving_fn(model: Any, config: Config, spec: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The served function; see `pretraining_serving` for what each objective answers."""
    return serving.serving_fn(model, spec, preprocess)


def more_signatures(model: Any, config: Config, spec: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Other doors to the served model: `from_token_ids` and `tokenize`, see `pretraining_serving`."""
    return serving.more_signatures(model, spec, preprocess)


def served_checks(model: Any, config: Config, spec: dict[str, Any], *, limit: int | None = None) -> Any:
    """What clients would send of the test split, and what Keras answers by the road of training.

    Yields {signature: ({input: array}, {output: array})}; at most `limit` texts, and at most `serving.CHECKED`.
    """
    state = {name: item for name, item in spec["tokenizer"].items() if name not in ("extra", "start")}
    state["vocab_size"] -= len(spec["tokenizer"].get("extra", ()))
    corpus = read(config)
    store = token_store.build(corpus.test, state, fingerprint=f"{corpus.fingerprint} test")
    yield serving.checks(model, spec, store, preprocess, min(limit or serving.CHECKED, serving.CHECKED))


def first_batch(data: Data, config: Config, path: Path, most: int = 3) -> None:
    """`plots/first_batch.txt`: the first rows as the model is about to see them, and what it is asked for."""
    inputs, labels, weights = next(iter(training_batches(data, config).take(1)))
    tokenizer = text.tokenizer(data.spec["tokenizer"])
    lines = [f"first training batch of {data.spec['objective']} prediction; | is between tokens", ""]
    lines += evaluation.described_rows(inputs, labels, weights, data.spec, tokenizer, most)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def described(spec: dict[str, Any]) -> str:
    """What the data are, in two lines."""
    state, counts = spec["tokenizer"], spec["rows"]
    sizes = ", ".join(
        f"{spec['documents'][split]:,} documents and {spec['tokens'][split]:,} tokens {split}" for split in SPLITS
    )
    how = "packed" if spec["packing"] else "pieces of documents"
    how = {"nsp": "next-sentence pairs", "sop": "ordered pairs"}.get(spec["sentences"], how)
    return (
        f"data: {spec['dataset']}: {sizes}\n"
        f"tokens: {state['kind']}, {state['vocab_size']:,} different ones; {counts['train']:,} training rows of at "
        f"most {spec['max_length']} ({how}), {spec['objective']} prediction"
    )


def main(config: Config) -> Path:
    """Train, evaluate and report; returns the run folder."""
    config = runs.resumed(TASK, config)
    if config.resume and runs.is_finished(Path(config.resume)):
        return runs.already_finished(config)
    arguments(config)  # wrong names end here, before anything is read or written
    data = load_data(config)
    spec = data.spec
    model = build_model(config, spec)
    trained = learner(model, config, spec)
    print(described(spec))
    print(f"model: {config.model}, {model.count_params():,} parameters")
    with runs.start(TASK, config, spec) as folder:
        print(f"run folder: {folder}")
        batches = functools.partial(training_batches, data, config)
        config = supervised.with_found_rate(trained, batches, compile_model, config, spec, folder)
        first_batch(data, config, folder / "plots/first_batch.txt")
        print(f"first batch: {folder / 'plots/first_batch.txt'}")
        fitted = training.fit(
            trained,
            batches,
            evaluation_batches(data.validation, spec),
            config,
            folder,
            examples=spec["counts"]["train"],
            monitor=f"val_{OBJECTIVE[0]}",
            mode=OBJECTIVE[1],
        )
        runs.save_model(model, folder / "model.keras")
        written = checkpoint(model, folder / "pretrained")
        report.curves(runs.history(folder), folder / "plots/curves.png", f"val_{OBJECTIVE[0]}", fitted["best_epoch"])
        found = evaluation.evaluated(trained, data, evaluation_batches)
        evaluation.examples_page(model, config, data, serving_fn, folder / "examples.md")
        evaluation.losses(found, folder / "plots/losses.png")
        metrics = supervised.finish(
            TASK,
            OBJECTIVE,
            model,
            config,
            spec,
            folder,
            found | fitted,
            inputs=serving.INPUTS[spec["objective"]],
            limits="The figures hold for texts like those of the test split, under its tokenizer alone: losses of runs "
            "with other tokens do not compare. The model has learned what is frequent, right or wrong; what it fills "
            "in or writes is no fact.",
            pictures=("curves", "losses"),
        )
    test = metrics["test"]
    for one in (metrics["baseline"], *metrics["baselines"]):
        print(f"{one['model']}: loss {one['loss']:.3f}, token accuracy {one['token_accuracy']:.2%}")
    print(
        f"test: loss {test['loss']:.3f} nats a predicted token, token accuracy {test['token_accuracy']:.2%} "
        f"({fitted['train_seconds']} s): {folder}"
    )
    print(f"examples: {folder / 'examples.md'}, pictures: {folder / 'plots'}")
    if written:
        print(f"weights in Hugging Face's format: {written}")
    if config.export:
        runs.export(folder)
    return folder


def checkpoint(model: Any, folder: Path) -> Path | None:
    """`pretrained/`: weights and config.json for Hugging Face's libraries, where they have such an architecture."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    try:
        return checkpoints.to_pretrained(model, folder)
    except ValueError as error:
        print(f"no {folder.name}/ is written: {error}")
        return None


if __name__ == "__main__":
    run_cli(pipelines.get(TASK))
