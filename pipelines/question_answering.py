"""Which words of this text answer the question?

    python -m pipelines.question_answering
    python -m pipelines.question_answering --dataset tiny_questions/unanswerable --unanswerable
    python -m pipelines.question_answering --data_dir train-v1.1.json
    python -m pipelines.question_answering --pretrained google-bert/bert-base-uncased --learning_rate 3e-5

Without a flag it trains a small BERT from nothing on `tiny_questions`, generated passages about people: an F1 of at
least 95 % on the test split (mean of three seeds), in under 5 minutes on two cores, beside 24 % of the sliding window
of Richardson et al. 2013. `--data_dir` takes your own JSON as SQuAD has it, or JSONL; `--dataset` any set of the TFDS
catalogue with SQuAD's features; `--pretrained` a published BERT, RoBERTa or DistilBERT with its tokenizer. Long
passages are read in windows. Served are a question and a passage as raw strings, and the answer with its place and its
probability.
Deviations from Devlin et al. 2019: from nothing the model is told which words of the passage are in the question
(`--overlap`) and has rotary positions; an answer begins and ends with a word; with `--unanswerable` the probability of
there being no answer is among all spans, and the threshold is chosen for F1 on the validation split.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from etils import epy

import pipelines
from pipelines import Data, builder, finetuning, runs
from pipelines.config import UsageError, one_of, option, run_cli

with epy.lazy_imports():
    import keras
    import numpy as np
    import tensorflow as tf

    from models import losses
    from pipelines import question_answering_baselines as baselines
    from pipelines import question_answering_evaluation as evaluation
    from pipelines import question_answering_serving as serving
    from pipelines import supervised, training
    from pipelines.datasets import questions, texts
    from pipelines.transforms import answers, spans, text

TASK = "question_answering"
MODELS = {"bert_question_answering": builder("models.bert", "bert_question_answering")}
OBJECTIVE = ("f1", "max")
MONITOR = "val_span_accuracy"  # of an epoch: windows whose start and end are both right
PORTABLE = "from_token_ids"  # the signature of arrays alone, which ONNX is made from
DATA = "tiny_questions, TFDS sets with SQuAD's features (squad/v1.1, squad/v2.0, …), SQuAD's JSON, JSONL files"
LEARN_FROM = 100_000  # passages and questions at most, evenly spaced, that the tokenizer learns from
# A model that learns from little data in minutes: wide steps at the beginning, nothing dropped.
FROM_NOTHING: dict[str, Any] = {
    "width": 64,
    "hidden_dim": 128,
    "positions": "rotary",
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "stddev": None,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(finetuning.Config):
    dataset: str = option(
        "tiny_questions", "a TFDS name (squad/v1.1, squad/v2.0, …), or built in: tiny_questions[/unanswerable]"
    )
    data_dir: str | None = option(
        None, "your own JSON or JSONL file, or a folder of train, dev and test files, instead", metavar="PATH"
    )
    skip_bad: bool = option(False, "leave out rows whose answer is not in the passage, naming them")
    model: str = option("bert_question_answering", "the architecture")
    epochs: int = option(10, "passes over the training data")
    batch_size: int = option(32, "windows per training step")
    learning_rate: float = option(1e-3, "peak learning rate")
    warmup: float = option(0.1, "share of the steps in which the rate rises from 0")
    tokenizer: str = option(
        "word", "what a token is", choices=("word", "character", "wordpiece", "bpe", "sentencepiece")
    )
    vocab_size: int = option(10_000, "most different tokens, learned from the training split")
    min_count: int = option(2, "words and characters that the training split has less often are unknown")
    max_length: int = option(384, "most tokens of a window, the question and the marks counted")
    stride: int = option(128, "tokens that a window begins after the one before")
    max_question: int = option(64, "most tokens of a question; the rest is cut off")
    max_answer_length: int = option(30, "most tokens of an answer")
    n_best: int = option(5, "answers that are served")
    overlap: str = option(
        "auto",
        "tell the model which tokens of the passage are in the question, by a third segment; auto: from nothing alone, "
        "and not with --size",
        choices=("auto", "yes", "no"),
    )
    unanswerable: bool = option(False, "learn when a passage has no answer; the answer is then empty")
    no_answer_threshold: float | None = option(
        None,
        "answer where the best span's score exceeds that of no answer by more than this; default: what gives the best "
        "F1 on the validation split",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.model, MODELS, "--model")
        self.at_least(5, "vocab_size")
        self.at_least(1, "min_count", "stride", "max_question", "max_answer_length", "n_best")
        if self.max_length < self.max_question + 8:
            raise UsageError(
                f"Expected --max_length of at least {self.max_question + 8}, the question and 8 more. "
                f"Received: {self.max_length}"
            )
        if self.no_answer_threshold is not None and not self.unanswerable:
            raise UsageError(
                f"Expected --no_answer_threshold with --unanswerable. Received: {self.no_answer_threshold} without it"
            )


@dataclasses.dataclass(frozen=True)
class Split:
    """Questions as they were, and the windows that the model reads: `token_ids`, `segment_ids` and `span`."""

    windows: Any
    questions: Any

    @property
    def count(self) -> int:
        return self.windows.count


def preprocess(question: Any, context: Any, tokenizer: Any, spec: dict[str, Any]) -> tuple[Any, Any]:
    """Questions and passages as the model takes them, in training and in serving, but for the padding.

    Args:
        question: (b,) of raw bytes.
        context: (b,) of raw bytes.
        tokenizer: of `transforms.text.tokenizer`.
        spec: of the data: `max_length`, `stride`, `max_question`, `overlap`.

    Returns:
        `spans.Words` of the passages, and `answers.Windows`.
    """
    words = spans.words_with_offsets(context)
    pieces = spans.pieces_of_words(words.words, tokenizer, words.spaced)
    sizes = {name: spec[name] for name in ("max_length", "stride", "max_question", "overlap")}
    return words, answers.windows(tokenizer.encode(question), pieces, tokenizer, **sizes)


def read(config: Config) -> Any:
    """Raw questions, as the flags say."""
    return questions.load(
        config.dataset,
        data_dir=config.data_dir,
        unanswerable=config.unanswerable,
        seed=config.seed,
        limit=config.limit,
        skip_bad=config.skip_bad,
    )


def load_data(config: Config) -> Data:
    """The three splits as windows in memory, with the questions, and their spec."""
    raw = read(config)
    state = tokenizer_state(config, raw)
    spec: dict[str, Any] = {
        "dataset": raw.source.partition(": ")[0],
        "about": raw.source.partition(": ")[2],
        "max_length": config.max_length,
        "stride": config.stride,
        "max_question": config.max_question,
        "segments": takes_segments(config, state),
        "overlap": marks_overlap(config),
        "tokenizer": state,
    }
    tokenizer = text.tokenizer(state)
    parts = [encoded(getattr(raw, split), tokenizer, spec) for split in raw.counts]
    spec["questions"] = raw.counts
    spec["counts"] = {split: part.count for split, part in zip(raw.counts, parts)}  # of windows
    lengths = parts[0].windows.examples["token_ids"].row_lengths().numpy()
    spec["lengths"] = {"mean": round(float(lengths.mean()), 1), "longest": int(lengths.max())}
    spec["groups"] = sorted({one.decode() for one in raw.test.examples["group"].numpy()} - {""})
    return Data(parts[0], parts[1], parts[2], spec)


def tokenizer_state(config: Config, raw: Any) -> dict[str, Any]:
    """The tokenizer of the pretrained model, or one learned from the training passages and questions."""
    if config.pretrained:
        return finetuning.tokenizer_state(config, MODELS)
    told = dict.fromkeys(raw.train.examples["context"].numpy())  # each passage once
    strings = [one.decode("utf-8", "replace") for one in (*told, *raw.train.examples["question"].numpy())]
    return text.train_tokenizer(
        config.tokenizer, strings[:: -(-len(strings) // LEARN_FROM)], config.vocab_size, min_count=config.min_count
    )


def takes_segments(config: Config, state: dict[str, Any]) -> bool:
    """Whether the model tells the question and the passage apart by `segment_ids`."""
    if state["kind"] == text.PUBLISHED:
        return text.tokenizer(state).inner.source.kind == "bert"
    given = arguments(config)
    if config.pretrained:
        run = runs.load(config.pretrained, model=False)
        given = pipelines.get(run.task).MODELS[run.config.model].arguments(run.config.size, run.config.model_args)
    return given.get("num_segments", 2) > 1


def marks_overlap(config: Config) -> bool:
    """Whether `--overlap` holds, and what is to be said of it with a model that has no third segment.

    Raises:
        UsageError: it is asked for, and the model cannot have it.
    """
    given = MODELS[config.model].arguments(config.size, config.model_args)
    if config.overlap == "yes" and (config.pretrained or given.get("num_segments", 3) < 3):
        raise UsageError(
            "Expected --overlap yes with new weights and three segments. "
            f"Received: {'--pretrained' if config.pretrained else 'num_segments'} "
            f"{config.pretrained or given['num_segments']}"
        )
    if config.overlap == "auto":
        return not config.pretrained and not config.size and given.get("num_segments", 3) > 2
    return config.overlap == "yes"


def encoded(part: Any, tokenizer: Any, spec: dict[str, Any], size: int = 1024) -> Split:
    """A split as windows: `token_ids` and `segment_ids` (r, t), ragged; `span`, the first and last token (r, 2)."""
    found: list[dict[str, Any]] = []
    for begin in range(0, part.count, size):
        here = {name: values[begin : begin + size] for name, values in part.examples.items()}
        words, pairs = preprocess(here["question"], here["context"], tokenizer, spec)
        start = here["start"].to_tensor(-1, shape=(None, 1))[:, 0]  # of the first answer; -1 without one
        end = start + tf.strings.length(here["answer"].to_tensor("", shape=(None, 1))[:, 0], "UTF8_CHAR")
        span = answers.tokens_of_span(pairs, *answers.words_of_answers(words, start, end))
        found.append({"token_ids": pairs.token_ids, "segment_ids": pairs.segment_ids, "span": span})
    windows = {name: tf.concat([one[name] for one in found], 0) for name in found[0]}
    return Split(texts.InMemory(windows, int(windows["span"].shape[0])), part)


def arguments(config: Config) -> dict[str, Any]:
    """The keyword arguments of the builder: a published size, or else `FROM_NOTHING`; `--model_args` over it."""
    given = MODELS[config.model].arguments(config.size, config.model_args)
    segments = {"num_segments": 3} if marks_overlap(config) else {}
    return ({} if config.size or config.pretrained else FROM_NOTHING) | segments | given


def build_model(config: Config, spec: dict[str, Any]) -> Any:
    """The compiled model, the same for the same seed."""
    given = arguments(config) | {"pad_id": padding(spec)}
    keras.utils.set_random_seed(config.seed)  # here, since preparing data may draw random numbers too
    with training.dtypes(config), training.replicas(config):
        try:
            if config.pretrained:
                model = finetuning.model(config, head="span", pairs=True)
            else:
                model = MODELS[config.model](spec["tokenizer"]["vocab_size"], **given)
        except (ValueError, TypeError) as error:
            raise UsageError(str(error)) from error
        if (len(model.inputs) > 1) != spec["segments"]:
            raise UsageError(f"Expected a model that takes segment_ids for its tokenizer. Received: {model.name}")
        finetuning.prepare(model, config)
        finetuning.check_length(model, spec["max_length"])
        compile_model(model, config, spec)
    return model


def compile_model(model: Any, config: Config, spec: dict[str, Any]) -> None:
    examples = spec["counts"]["train"]
    model.compile(
        optimizer=finetuning.optimizer(config, model, examples),
        loss=losses.SpanCrossentropy(),
        metrics=[span_accuracy],
        jit_compile=config.jit,
        steps_per_execution=training.steps_per_execution(config, examples),
    )


def span_accuracy(span: Any, logits: Any) -> Any:
    """Whether the likeliest start and the likeliest end are both right, (r,)."""
    found = keras.ops.argmax(logits, axis=1)  # (r, 2)
    return keras.ops.all(keras.ops.equal(found, keras.ops.cast(span, found.dtype)), axis=-1)


def padding(spec: dict[str, Any]) -> int:
    """The id of padding."""
    return text.tokenizer(spec["tokenizer"]).pad_id if spec["tokenizer"]["kind"] == text.PUBLISHED else text.PAD


def training_batches(data: Data, config: Config, start_step: int = 0) -> Any:
    """Endless training batches of windows of similar length from a global step on: token ids, segments, spans."""
    pad_id = padding(data.spec)
    windows = data.train.windows
    return texts.bucketed(
        windows,
        windows.examples["token_ids"].row_lengths().numpy(),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        map_fn=lambda step, batch: finished(batch, pad_id, data.spec),
    )


def evaluation_batches(part: Split, spec: dict[str, Any], batch_size: int = 64) -> Any:
    """Batches of a split's windows in their order."""
    pad_id = padding(spec)
    return texts.in_order(part.windows, batch_size=batch_size, map_fn=lambda batch: finished(batch, pad_id, spec))


def finished(batch: dict[str, Any], pad_id: int, spec: dict[str, Any]) -> tuple[Any, Any]:
    """Ragged windows as the model's inputs (r, t), with few different t, and their spans (r, 2)."""
    ids = text.padded(batch["token_ids"], 8, pad_id)
    return serving.inputs_of(ids, text.padded(batch["segment_ids"], 8, 0), spec), batch["span"]


def serving_fn(model: Any, config: Config, spec: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The served function: questions and passages in; the answer, its probability and its place out.

    `answers` and `scores` are the `--n_best` best spans, whatever was decided. A passage without a word has the answer
    "" and the `no_answer_probability` 1.
    """
    tokenizer = text.tokenizer(spec["tokenizer"])

    def serve(question, context):
        words, pairs = preprocess(question, context, tokenizer, spec)
        found = serving.answered(model, words, pairs, context, tokenizer.pad_id, config, spec)
        return serving.decided(found, config)

    serve.resources = [tokenizer]  # type: ignore[attr-defined]  # for the export to track
    return serve, {name: tf.TensorSpec([None], tf.string, name=name) for name in ("question", "context")}


def more_signatures(model: Any, config: Config, spec: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Other doors to the served model.

    `from_token_ids`: a window as arrays (b, t): token ids, segments (of models that have them) and `context_mask`, 1
    where an answer may stand; to the `start` and `end` tokens of the best span, its probability `score`,
    `no_answer_probability`, and all `logits` (b, t, 2). `tokenize`: a question and a passage to the windows, as
    `from_token_ids` takes them, and the place of their question.
    """
    tokenizer = text.tokenizer(spec["tokenizer"])

    def tokenize(question, context):
        return serving.arrays_of(preprocess(question, context, tokenizer, spec)[1], tokenizer.pad_id, spec)

    tokenize.resources = [tokenizer]  # type: ignore[attr-defined]
    raw = {name: tf.TensorSpec([None], tf.string, name=name) for name in ("question", "context")}
    return {"from_token_ids": serving.of_arrays(model, config, spec), "tokenize": (tokenize, raw)}


def answerer(model: Any, config: Config, spec: dict[str, Any]) -> Any:
    """`serving.answered`, compiled, of questions and passages."""
    tokenizer = text.tokenizer(spec["tokenizer"])

    def answer(question, context):
        words, pairs = preprocess(question, context, tokenizer, spec)
        return serving.answered(model, words, pairs, context, tokenizer.pad_id, config, spec)

    return tf.function(answer, input_signature=[tf.TensorSpec([None], tf.string)] * 2)


def predict(answer: Any, part: Any, batch_size: int = 64) -> dict[str, Any]:
    """What an `answerer` says of a split's questions, as arrays; passages of similar length share a batch."""
    strings = [part.examples[name].numpy() for name in ("question", "context")]
    order = np.argsort([len(one) for one in strings[1]], kind="stable")
    places = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    found = [answer(*(tf.constant(column[here]) for column in strings)) for here in places]
    back = np.argsort(order, kind="stable")
    return {name: np.concatenate([one[name].numpy() for one in found])[back] for name in found[0]}


def windows_measured(model: Any, part: Split, spec: dict[str, Any]) -> dict[str, float]:
    """Loss and span accuracy of a split's windows."""
    found = model.evaluate(evaluation_batches(part, spec), verbose=0, return_dict=True)
    return {name: round(float(found[name]), 6) for name in ("span_accuracy", "loss")}


def chosen_threshold(rows: list[dict[str, Any]], config: Config, folder: Path) -> Config:
    """With `--unanswerable` the configuration with the best threshold on the validation split, kept in config.json."""
    if not config.unanswerable or config.no_answer_threshold is not None:
        return config
    margins = np.array([row["margin"] for row in rows])
    threshold = evaluation.best_threshold([row["truths"] for row in rows], [row["best"] for row in rows], margins)
    config = dataclasses.replace(config, no_answer_threshold=threshold)
    runs.write_json(folder / "config.json", runs.to_json(dataclasses.replace(config, resume=None)))
    print(f"no answer below a margin of {threshold:g} (best F1 on the validation split)")
    return config


def evaluated(model: Any, data: Data, config: Config, folder: Path) -> tuple[Config, dict[str, Any], Any]:
    """The configuration with its threshold, what `metrics.json` says of the answers, and the rows of the test split.

    The baseline is the one that is best on the test split; the others are in `baselines`.
    """
    spec, answer = data.spec, answerer(model, config, data.spec)
    validation = evaluation.answered_rows(predict(answer, data.validation.questions), data.validation.questions)
    config = chosen_threshold(validation, config, folder)
    validation = evaluation.decided_rows(validation, config)
    rows = evaluation.decided_rows(
        evaluation.answered_rows(predict(answer, data.test.questions), data.test.questions), config
    )
    beside = baselines.baselines(rows)
    ranked = sorted(beside, key=lambda name: -evaluation.of_rows(rows, beside[name])["f1"])
    others = [{"model": name, **evaluation.of_rows(rows, beside[name])} for name in ranked]
    for row, other in zip(rows, beside[ranked[0]]):
        row["baseline"] = other
    result: dict[str, Any] = {
        "validation": evaluation.of_rows(validation) | windows_measured(model, data.validation, spec),
        "test": evaluation.of_rows(rows) | windows_measured(model, data.test, spec),
        "baseline": others[0],
        "baselines": others[1:],
        "groups": {group: evaluation.of_group(rows, group) for group in spec["groups"]},
    }
    return config, result, rows


def first_batch(data: Data, config: Config, path: Path, most: int = 8) -> None:
    """A text file with the first windows as the model is about to see them: the answer, and the ids decoded."""
    tokenizer = text.tokenizer(data.spec["tokenizer"])
    given, places = next(iter(training_batches(data, config).take(1)))
    ids = given["token_ids"] if data.spec["segments"] else given
    lines = []
    for row, (start, end) in zip(ids[:most].numpy(), places[:most].numpy()):
        shown = [row[None, start : end + 1] if start else row[None, :0], row[None]]
        answer, whole = (" ".join(tokenizer.decode(tf.constant(one)).numpy()[0].decode().split()) for one in shown)
        lines.append(f"{answer or '(no answer in this window)'}\t{whole}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def pictures(rows: list[dict[str, Any]], name: str, plots: Path) -> None:
    """Passages with their answers, and the measures by group or length."""
    evaluation.passages(rows, plots / "answers.png")
    evaluation.by_group(rows, [row["baseline"] for row in rows], name, plots / "by_group.png")


def described(spec: dict[str, Any], config: Config) -> str:
    """What the data are, in two lines."""
    counts = ", ".join(
        f"{count:,} {part}" + (f" (in {spec['counts'][part]:,} windows)" if spec["counts"][part] > count else "")
        for part, count in spec["questions"].items()
    )
    state, lengths = spec["tokenizer"], spec["lengths"]
    return (
        f"data: {spec['dataset']}: questions: {counts}\n"
        f"tokens: {state['kind']}, {state['vocab_size']:,} different ones; {lengths['mean']:g} a window, "
        f"{lengths['longest']:,} at most of {config.max_length:,}"
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
    print(described(spec, config))
    print(f"model: {config.model}, {finetuning.described(model, config)}")
    with runs.start(TASK, config, spec) as folder:
        print(f"run folder: {folder}")
        batches = functools.partial(training_batches, data, config)
        config = supervised.with_found_rate(model, batches, compile_model, config, spec, folder)
        first_batch(data, config, folder / "plots/first_batch.txt")
        print(f"first batch: {folder / 'plots/first_batch.txt'}")
        validation = evaluation_batches(data.validation, spec)
        fitted = supervised.train(model, batches, validation, config, spec, folder, MONITOR, "max")
        config, found, rows = evaluated(model, data, config, folder)
        pictures(rows, found["baseline"]["model"], folder / "plots")
        metrics = supervised.finish(
            TASK,
            OBJECTIVE,
            model,
            config,
            spec,
            folder,
            found | fitted,
            inputs=f"a question of at most {spec['max_question']} tokens and a passage of any length, read in windows "
            f"of {spec['max_length']} ({spec['tokenizer']['kind']}, {spec['tokenizer']['vocab_size']:,} tokens)",
            limits="The figures hold for questions like those of the test split. An answer is always a part of the "
            "passage, whether that is true or not; "
            + (
                "questions that are answered by something it does not say may get one all the same."
                if config.unanswerable
                else "every question gets one, also one that the passage does not answer (--unanswerable learns it)."
            ),
            pictures=("curves", "answers", "by_group"),
        )
    for group, one in metrics["groups"].items():
        base = one["baseline"]["f1"]
        print(f"{group}: exact match {one['exact_match']:.2%}, F1 {one['f1']:.2%} of {one['examples']} ({base:.2%})")
    test, base = metrics["test"], metrics["baseline"]
    print(
        f"test: exact match {test['exact_match']:.2%}, F1 {test['f1']:.2%} ({base['model']}: "
        f"{base['exact_match']:.2%}, {base['f1']:.2%}; {fitted['train_seconds']} s): {folder}"
    )
    print(f"pictures: {folder / 'plots'}")
    if config.export:
        runs.export(folder)
    return folder


def served_checks(model: Any, config: Config, spec: dict[str, Any], *, limit: int | None = None) -> Any:
    """What clients would send of the test split, and what Keras answers by the road of training.

    Questions whose best spans are so near to each other that rounding decides between them are left out.

    Yields, batch by batch: {signature: ({input: array}, {output: array})}; at most `limit` examples in all.
    """
    whole = read(config).test
    part = texts.first(whole, limit or whole.count)
    found = predict(answerer(model, config, spec), part)
    chosen = np.flatnonzero(serving.clear(found, config))
    part = texts.InMemory(texts.taken(part, tf.constant(chosen)), len(chosen))
    expected = serving.decided({name: values[chosen] for name, values in found.items()}, config)
    doors = more_signatures(model, config, spec)
    by_arrays, tokenize = doors["from_token_ids"][0], doors["tokenize"][0]
    strings = {name: part.examples[name].numpy() for name in ("question", "context")}
    rows = {name: value.numpy() for name, value in tokenize(**strings).items()}  # of one length, which ONNX takes
    owner = rows.pop("example")
    for begin in range(0, part.count, 64):
        here = slice(begin, begin + 64)
        given = {name: value[here] for name, value in strings.items()}
        tokens = {name: value[(owner >= begin) & (owner < begin + 64)] for name, value in rows.items()}
        wanted = by_arrays(**{name: tf.constant(value) for name, value in tokens.items()})
        yield {
            "serving_default": (given, {name: np.asarray(value)[here] for name, value in expected.items()}),
            "from_token_ids": (
                tokens,
                {name: np.asarray(wanted[name]) for name in ("score", "no_answer_probability", "logits")},
            ),
            "tokenize": (given, {name: value.numpy() for name, value in tokenize(**given).items()}),
        }


if __name__ == "__main__":
    run_cli(pipelines.get(TASK))
