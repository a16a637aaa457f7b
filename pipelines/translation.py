"""What is this text in the other language?

    python -m pipelines.translation
    python -m pipelines.translation --model transformer --dataset tiny_messages/en_de
    python -m pipelines.translation --dataset ted_hrlr_translate/pt_to_en --tokenizer bpe --vocab_size 8000
    python -m pipelines.translation --data_dir sentences --tokenizer sentencepiece

Without a flag a recurrent encoder-decoder with attention learns to read `tiny_dates`, dates as 31 languages write them,
into ISO 8601: at least 98 % of the answers for unseen days equal the truth (mean of three seeds), in under 5 minutes on
two cores, beside the translation of the nearest training source. `--data_dir` takes a folder with `train.src` and
`train.tgt`, a sentence a line; `--dataset` any set of the TFDS catalogue with two features of text.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from etils import epy

import pipelines
from pipelines import Data, builder, runs
from pipelines.config import CrossEntropyConfig, Failure, UsageError, one_of, option, run_cli

with epy.lazy_imports():
    import keras
    import numpy as np
    import tensorflow as tf

    from pipelines import supervised, training
    from pipelines import translation_evaluation as evaluation
    from pipelines.datasets import pairs, texts
    from pipelines.transforms import parallel
    from pipelines.transforms import text as tokens

TASK = "translation"
MODELS = {
    "seq2seq": builder("models.seq2seq"),
    "transformer": builder("models.transformer"),
}
OBJECTIVE = ("chrf", "max")
MONITOR = "val_token_accuracy"  # of an epoch, since generating at each would take longer than training
PORTABLE = "from_token_ids"  # the signature of arrays alone, which ONNX is made from
DATA = "tiny_dates, tiny_messages, TFDS pairs (ted_hrlr_translate/pt_to_en, wmt14_translate, …), parallel text files"
KINDS = ("word", "character", "wordpiece", "bpe", "sentencepiece")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CrossEntropyConfig):
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
    tokenizer: str = option("character", "what a token is", choices=KINDS)
    vocab_size: int = option(8000, "most different tokens of a language")
    shared_vocabulary: bool = option(False, "one vocabulary for both languages")
    max_length: int = option(128, "most tokens of a text, its end counted: longer training pairs are left out")
    beam_width: int = option(4, "translations that the search keeps, and that are served")
    length_penalty: float = option(0.6, "above 0 it favours long translations (alpha of Wu et al. 2016, eq. 14)")
    coverage_penalty: float = option(0.0, "above 0 it favours translations that attend to all of the source (beta)")
    bleu_tokenizer: str = option("13a", "of BLEU, not of the model", choices=("13a", "intl", "zh", "char", "none"))

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.model, MODELS, "--model")
        self.at_least(1, "vocab_size", "beam_width")
        self.at_least(2, "max_length")
        self.at_least(0, "length_penalty", "coverage_penalty")


def preprocess(strings: Any, tokenizer: Any, spec: dict[str, Any]) -> Any:
    """Texts as the model takes them, in training and in serving.

    Args:
        strings: (b,), of the source language.
        tokenizer: of the source language.
        spec: of the data: `max_source`.

    Returns:
        Token ids, int32 (b, s): each text and its end, cut to `max_source` tokens, zeros after it.
    """
    return tokens.padded(tokens.sequences(tokenizer.encode(strings), spec["max_source"]))


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
    states = parallel.learned(raw.train, config.tokenizer, config.vocab_size, shared=config.shared_vocabulary)
    own = bool(config.data_dir or config.source_file)
    spec: dict[str, Any] = {
        "dataset": raw.about.partition(": ")[2] if own else raw.about.partition(": ")[0],
        "about": raw.about.partition(": ")[0] if own else raw.about.partition(": ")[2],
        "languages": list(raw.languages),
        "tokenizers": states,
        "max_source": config.max_length,
    }
    parts = {name: parallel.encoded(getattr(raw, name), states) for name in raw.counts}
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
    groups = {name: sorted({g.decode() for g in part.examples["group"].numpy()}) for name, part in parts.items()}
    spec["groups"] = {name: groups[name] for name in ("validation", "test")}
    return Data(parts["train"], parts["validation"], parts["test"], spec)


def arguments(config: Config) -> dict[str, Any]:
    """The keyword arguments of the builder: a published size, then `--model_args` over it."""
    return MODELS[config.model].arguments(config.size, config.model_args)


def build_model(config: Config, spec: dict[str, Any]) -> Any:
    """The compiled model, the same for the same seed."""
    sizes = [state["vocab_size"] for state in spec["tokenizers"]]
    given = arguments(config)
    keras.utils.set_random_seed(config.seed)
    with training.dtypes(config), training.replicas(config):
        try:
            model = MODELS[config.model](sizes[0], sizes[-1], **given)
            search(model, tf.ones([1, 2], tf.int32), config, spec | {"max_target": 2})  # its flags fit the model
        except (ValueError, TypeError) as error:
            raise UsageError(str(error)) from error
        compile_model(model, config, spec)
    return model


def compile_model(model: Any, config: Config, spec: dict[str, Any]) -> None:
    from models.losses import TokenCrossentropy

    examples = spec["counts"]["train"]
    model.compile(
        optimizer=training.optimizer(config, training.total_steps(config, examples)),
        loss=TokenCrossentropy(config.label_smoothing),
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="token_accuracy")],
        jit_compile=config.jit,
        steps_per_execution=training.steps_per_execution(config, examples),
    )


def training_batches(data: Data, config: Config, start_step: int = 0) -> Any:
    """Endless training batches of pairs of similar length from a global step on, as `teacher_forcing` makes them."""
    ids = {name: data.train.examples[name] for name in ("source", "target")}
    multiple = 8 if config.jit else 1  # XLA compiles for every shape
    return texts.bucketed(
        texts.InMemory(ids, data.train.count),
        parallel.token_counts(data.train).numpy(),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        map_fn=lambda step, batch: parallel.teacher_forcing(batch, data.spec, multiple),
    )


def evaluation_batches(part: Any, spec: dict[str, Any], batch_size: int = 128) -> Any:
    """Batches of a split in its own order."""
    return texts.in_order(part, batch_size=batch_size, map_fn=lambda batch: parallel.teacher_forcing(batch, spec))


def search(model: Any, source: Any, config: Config, spec: dict[str, Any]) -> Any:
    """The best translations of token ids (b, s), as `models.layers.decoding.Beams`."""
    return model.generate(
        source,
        max_length=spec["max_target"],
        beam_width=config.beam_width,
        length_penalty=config.length_penalty,
        coverage_penalty=config.coverage_penalty,
    )


def serving_fn(model: Any, config: Config, spec: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The served function: texts in; the translation, its score and the best `--beam_width` of them out.

    An empty text has an empty translation of score 0. Of a text above `max_source` tokens the beginning is translated,
    and `truncated` says so. A place that the search left empty has the score -1e9.
    """
    source, target = parallel.tokenizers(spec["tokenizers"])

    def serve(text):
        ids = source.encode(text)
        found = search(model, tokens.padded(tokens.sequences(ids, spec["max_source"])), config, spec)
        flat = tf.reshape(found.token_ids, [-1, spec["max_target"]])  # (b * k, t)
        empty = (ids.row_lengths() == 0)[:, None]  # (b, 1)
        answers = tf.reshape(target.decode(flat), tf.shape(found.scores))  # (b, k)
        answers = tf.where(empty, "", answers)
        scores = tf.where(empty, 0.0, found.scores)
        return {
            "translation": answers[:, 0],
            "score": scores[:, 0],
            "translations": answers,
            "scores": scores,
            "truncated": ids.row_lengths() >= spec["max_source"],
        }

    serve.resources = [source, target]  # type: ignore[attr-defined]
    return serve, {"text": tf.TensorSpec([None], tf.string, name="text")}


def more_signatures(model: Any, config: Config, spec: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Other doors to the served model.

    `from_token_ids`: token ids of sources, each ended by 2 and padded by 0, to those of the translations and scores.
    `score`: a text and a translation of it to the logarithm of its probability, and to how many tokens it has.
    """
    source, target = parallel.tokenizers(spec["tokenizers"])

    def from_token_ids(token_ids):
        found = search(model, token_ids, config, spec)
        return {"translations": found.token_ids, "scores": found.scores}

    def score(text, translation):
        batch = {"source": source.encode(text), "target": target.encode(translation)}
        inputs, after, weights = parallel.teacher_forcing(batch, spec)
        logs = tf.nn.log_softmax(tf.cast(model(inputs, training=False), tf.float32))  # (b, t, v)
        logs = tf.gather(logs, after, batch_dims=2) * weights  # (b, t)
        return {"log_probability": tf.reduce_sum(logs, -1), "tokens": tf.reduce_sum(weights, -1)}

    score.resources = [source, target]  # type: ignore[attr-defined]
    ids = tf.TensorSpec([None, None], tf.int32, name="token_ids")
    given = {name: tf.TensorSpec([None], tf.string, name=name) for name in ("text", "translation")}
    return {"from_token_ids": (from_token_ids, {"token_ids": ids}), "score": (score, given)}


def translator(model: Any, config: Config, spec: dict[str, Any]) -> Any:
    """The served function, compiled."""
    serve, signature = serving_fn(model, config, spec)
    return tf.function(serve, input_signature=list(signature.values()))


def predict(serve: Any, strings: Any, batch_size: int = 128) -> dict[str, Any]:
    """What a `translator` answers for texts (n,), as arrays; texts of similar length share a batch."""
    order = np.argsort([len(one) for one in strings], kind="stable")
    parts = [serve(tf.gather(strings, order[i : i + batch_size])) for i in range(0, len(order), batch_size)]
    back = np.argsort(order, kind="stable")
    return {name: np.concatenate([part[name].numpy() for part in parts])[back] for name in parts[0]}


def strings_of(part: Any, name: str, most: int | None = None) -> list[str]:
    """A column of texts of a split, or its beginning."""
    return [one.decode("utf-8", "replace") for one in part.examples[name][:most].numpy()]


def translated(serve: Any, part: Any) -> list[dict[str, Any]]:
    """A row for each pair of a split: group, source, truth, answers (the n best) and their scores."""
    found = predict(serve, part.examples["source_text"].numpy())
    columns = [strings_of(part, name) for name in ("group", "source_text", "target_text")]
    best = [[one.decode("utf-8", "replace") for one in row] for row in found["translations"]]
    names = ("group", "source", "truth", "answers", "scores")
    return [dict(zip(names, row)) for row in zip(*columns, best, found["scores"].tolist())]


def forced(model: Any, part: Any, spec: dict[str, Any]) -> dict[str, float]:
    """Loss and accuracy of the next token, given the true ones before it."""
    found = model.evaluate(evaluation_batches(part, spec), verbose=0, return_dict=True)
    return {name: round(float(found[name]), 6) for name in ("token_accuracy", "loss")}


def evaluated(model: Any, data: Data, config: Config) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `metrics.json` says of the answers, and the rows of the test split.

    `validation` and `test` hold pairs of the same groups; all groups of the test split are in `groups`, apart.
    """
    spec, tokenize = data.spec, config.bleu_tokenizer
    serve = translator(model, config, spec)
    validation, rows = translated(serve, data.validation), translated(serve, data.test)
    train = (strings_of(data.train, "source_text", evaluation.MOST), strings_of(data.train, "target_text"))
    beside = evaluation.baselines(train, [row["source"] for row in rows])
    alike = np.array([row["group"] in spec["groups"]["validation"] for row in rows])
    test = texts.InMemory(texts.taken(data.test, np.flatnonzero(alike)), int(alike.sum()))
    result: dict[str, Any] = {
        "validation": evaluation.of_rows(validation, tokenize) | forced(model, data.validation, spec),
        "test": evaluation.of_rows(rows, tokenize, chosen=alike) | forced(model, test, spec),
    }
    result["baseline"], *result["baselines"] = [
        {"model": name, **evaluation.of_rows(rows, tokenize, chosen=alike, answers=answers)}
        for name, answers in beside.items()
    ]
    groups = spec["groups"]["test"] if len(spec["groups"]["test"]) > 1 else ()
    result["groups"] = {group: evaluation.of_group(rows, group, tokenize, beside) for group in groups}
    result["bleu_signature"] = evaluation.signature(tokenize)
    return result, rows


def first_batch(data: Data, config: Config, path: Path, count: int = 8) -> None:
    """`plots/first_batch.txt`: the tokens that the model is about to see."""
    inputs, after, _ = next(iter(training_batches(data, config).take(1)))
    source, target = parallel.tokenizers(data.spec["tokenizers"])
    lines = [f"first training batch: source {inputs['source'].shape}, target {after.shape}", ""]
    for given, wanted in zip(inputs["source"][:count].numpy(), after[:count].numpy()):
        for ids, tokenizer in ((given, source), (wanted, target)):
            lines.append(" ".join(parallel.labels(ids[ids != tokens.PAD], tokenizer)))
        lines.append("")
    path.write_text("\n".join(lines))


def draw_alignments(model: Any, rows: list[dict[str, Any]], spec: dict[str, Any], path: Path, count: int = 6) -> bool:
    """`plots/alignments.png`: attention of answers, of each group some; False without attention or answers."""
    source, target = parallel.tokenizers(spec["tokenizers"])
    groups = spec["groups"]["test"]
    chosen = []
    for group in groups:
        fits = [row for row in rows if row["group"] == group and row["answers"][0]]
        fits = [row for row in fits if evaluation.drawable(row["source"] + row["answers"][0])]
        short = sorted(range(len(fits)), key=lambda i: (len(fits[i]["source"]) > 40, i))
        chosen += [fits[i] for i in short[: max(1, count // len(groups))]]
    if not chosen:
        return False
    given = preprocess([row["source"] for row in chosen], source, spec)  # (n, s)
    ids = target.encode([row["answers"][0] for row in chosen])
    weights = model.alignments(
        given, tokens.padded(tokens.sequences(ids, spec["max_target"], start=True, end=False))
    )  # (n, t, s)
    if weights is None:
        return False
    after = tokens.padded(tokens.sequences(ids, spec["max_target"]))  # (n, t)
    pictures = []
    for row, read, written, drawn in zip(chosen, given.numpy(), after.numpy(), np.asarray(weights)):
        read, written = read[read != tokens.PAD], written[written != tokens.PAD]
        right = "" if row["answers"][0] == row["truth"] else f" (truth: {row['truth']})"
        title = f"{row['group']}{': ' * bool(row['group'])}{row['answers'][0][:60]}{right}"
        labels = parallel.labels(read, source), parallel.labels(written, target)
        pictures.append((title, *labels, drawn[: len(written), : len(read)]))
    evaluation.alignments(pictures, path)
    return True


def described(spec: dict[str, Any], config: Config) -> str:
    """What the data are, in a line."""
    counts = ", ".join(f"{count:,} {part}" for part, count in spec["counts"].items())
    sizes = " and ".join(f"{state['vocab_size']:,}" for state in spec["tokenizers"])
    left = f", {spec['left_out']:,} longer pairs left out" if spec["left_out"] else ""
    pair = " to ".join(spec["languages"])
    return f"data: {spec['dataset']}: {counts}{left}; {pair}, {sizes} different {config.tokenizer} tokens"


def main(config: Config) -> Path:
    """Train, evaluate and report; returns the run folder."""
    config = runs.resumed(TASK, config)
    if config.resume and runs.is_finished(Path(config.resume)):
        return runs.already_finished(config)
    arguments(config)  # wrong names end here, before anything is read or written
    data = load_data(config)
    spec = data.spec
    model = build_model(config, spec)
    print(described(spec, config))
    print(f"model: {config.model}, {model.count_params():,} parameters")
    with runs.start(TASK, config, spec) as folder:
        print(f"run folder: {folder}")
        batches = functools.partial(training_batches, data, config)
        config = supervised.with_found_rate(model, batches, compile_model, config, spec, folder)
        first_batch(data, config, folder / "plots/first_batch.txt")
        print(f"first batch: {folder / 'plots/first_batch.txt'}")
        validation = evaluation_batches(data.validation, spec)
        fitted = supervised.train(model, batches, validation, config, spec, folder, MONITOR, "max")
        found, rows = evaluated(model, data, config)
        drawn = draw_alignments(model, rows, spec, folder / "plots/alignments.png")
        evaluation.examples_page(rows, folder / "examples.md")
        metrics = supervised.finish(
            TASK,
            OBJECTIVE,
            model,
            config,
            spec,
            folder,
            found | fitted,
            inputs=f"text of at most {spec['max_source']} {config.tokenizer} tokens, its end counted; the rest is cut",
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
    """What clients would send of the test split, and what Keras answers by the road of training.

    Yields, batch by batch: {signature: ({input: array}, {output: array})}; at most `limit` examples in all.
    """
    part = parallel.encoded(read(config).test.take(limit or -1), spec["tokenizers"])
    strings = part.examples["source_text"].numpy()
    found = predict(translator(model, config, spec), strings)
    ids = tokens.padded(tokens.sequences(part.examples["source"], spec["max_source"])).numpy()  # (n, s), of one width
    find = tf.function(lambda ids: search(model, ids, config, spec), reduce_retracing=True)
    for start in range(0, part.count, 128):
        here = slice(start, start + 128)
        beams = find(tf.constant(ids[here]))
        inputs, after, weights = parallel.teacher_forcing(
            {name: part.examples[name][here] for name in ("source", "target")}, spec
        )
        logs = keras.ops.log_softmax(model.predict_on_batch(inputs), axis=-1)  # (b, t, v)
        logs = np.take_along_axis(np.asarray(logs), after.numpy()[..., None], -1)[..., 0] * weights.numpy()  # (b, t)
        given = {"text": strings[here], "translation": part.examples["target_text"][here].numpy()}
        yield {
            "serving_default": ({"text": strings[here]}, {name: values[here] for name, values in found.items()}),
            "from_token_ids": (
                {"token_ids": ids[here]},
                {"translations": beams.token_ids.numpy(), "scores": beams.scores.numpy()},
            ),
            "score": (given, {"log_probability": logs.sum(-1), "tokens": weights.numpy().sum(-1)}),
        }


if __name__ == "__main__":
    run_cli(pipelines.get(TASK))
