"""Which words of this text answer the question?

    python -m pipelines.question_answering
    python -m pipelines.question_answering --dataset tiny_questions/unanswerable --unanswerable
    python -m pipelines.question_answering --data_dir train-v1.1.json
    python -m pipelines.question_answering --pretrained google-bert/bert-base-uncased --learning_rate 3e-5

Without a flag it trains a small BERT from nothing on `tiny_questions`, generated passages about people. `--data_dir`
takes your own JSON as SQuAD has it, or JSONL; `--dataset` any set of the TFDS catalogue with SQuAD's features;
`--pretrained` a published BERT, RoBERTa or DistilBERT with its tokenizer. Long passages are read in windows. Served are
a question and a passage as raw strings, and the answer with its place and its probability.
Deviations from Devlin et al. 2019: an answer begins and ends with a word; with `--unanswerable` the probability of
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
    from pipelines import question_answering_evaluation as evaluation
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
ROWS = 64  # windows that the model reads at a time when it answers


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


def inputs_of(token_ids: Any, segment_ids: Any, spec: dict[str, Any]) -> Any:
    """What the model takes."""
    return {"token_ids": token_ids, "segment_ids": segment_ids} if spec["segments"] else token_ids


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
    return inputs_of(ids, text.padded(batch["segment_ids"], 8, 0), spec), batch["span"]


def answered(model: Any, tokenizer: Any, config: Config, spec: dict[str, Any], question: Any, context: Any) -> Any:
    """The best answers to questions (b,) about passages (b,), and what decides whether there is one.

    Returns:
        `answers`, `scores` (their probabilities), `starts` and `ends` (code points of the passage), all (b, k), the
        best first; `no_answer_probability` (b,); `margin` (b,), how much the best score exceeds that of no answer.
    """
    words, pairs = preprocess(question, context, tokenizer, spec)
    rows = (text.padded(pairs.token_ids, pad_id=tokenizer.pad_id), text.padded(pairs.segment_ids, pad_id=0))

    def read(token_ids, segment_ids):
        return model(inputs_of(token_ids, segment_ids, spec), training=False)

    logits = answers.in_parts(read, rows, ROWS)  # (r, t, 2)
    masks = ((mask & pairs.central if i == 0 else mask) for i, mask in enumerate((pairs.first, pairs.last)))
    begins, ends = (mask.to_tensor(False) for mask in masks)  # (r, t)
    best = answers.best_spans(logits, begins, ends, max_answer=config.max_answer_length, n_best=config.n_best)
    found = answers.over_windows(best, pairs)
    scores, nothing = answers.probabilities(found, unanswerable=config.unanswerable)
    starts, ends = answers.span_of_words(words, found.starts, found.ends)
    return {
        "answers": spans.substring(context, starts, ends),
        "scores": scores,
        "starts": starts,
        "ends": ends,
        "no_answer_probability": nothing,
        "margin": found.scores[:, 0] - found.null,
    }


def decided(found: dict[str, Any], config: Config) -> dict[str, Any]:
    """`answered` with the one answer of each question, which is "" where there is none."""
    silent = found["scores"][:, 0] == 0
    if config.unanswerable:
        silent |= found["margin"] <= (config.no_answer_threshold or 0.0)
    best = {name: found[f"{name}s"][:, 0] for name in ("answer", "start", "end")}
    return {
        "answer": tf.where(silent, "", best["answer"]),
        "score": tf.where(silent, found["no_answer_probability"], found["scores"][:, 0]),
        "start": tf.where(silent, 0, best["start"]),
        "end": tf.where(silent, 0, best["end"]),
        **{name: found[name] for name in ("answers", "scores", "no_answer_probability")},
    }


def serving_fn(model: Any, config: Config, spec: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The served function: questions and passages in; the answer, its probability and its place out.

    `answers` and `scores` are the `--n_best` best spans, whatever was decided. A passage without a word has the answer
    "" and the `no_answer_probability` 1.
    """
    tokenizer = text.tokenizer(spec["tokenizer"])

    def serve(question, context):
        return decided(answered(model, tokenizer, config, spec, question, context), config)

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

    def best(token_ids, segment_ids, context_mask):
        logits = model(inputs_of(token_ids, segment_ids, spec), training=False)
        allowed = context_mask > 0
        found = answers.best_spans(logits, allowed, allowed, max_answer=config.max_answer_length, n_best=1)
        scores, nothing = answers.probabilities(found, unanswerable=config.unanswerable)
        return {
            "start": found.starts[:, 0],
            "end": found.ends[:, 0],
            "score": scores[:, 0],
            "no_answer_probability": nothing,
            "logits": tf.cast(logits, tf.float32),
        }

    def from_token_ids(token_ids, segment_ids, context_mask):
        return best(token_ids, segment_ids, context_mask)

    def without_segments(token_ids, context_mask):
        return best(token_ids, None, context_mask)

    def tokenize(question, context):
        return windows_of(question, context, tokenizer, spec)

    tokenize.resources = [tokenizer]  # type: ignore[attr-defined]
    names = ("token_ids", *(["segment_ids"] if spec["segments"] else []), "context_mask")
    arrays = {name: tf.TensorSpec([None, None], tf.int32, name=name) for name in names}
    raw = {name: tf.TensorSpec([None], tf.string, name=name) for name in ("question", "context")}
    return {
        "from_token_ids": (from_token_ids if spec["segments"] else without_segments, arrays),
        "tokenize": (tokenize, raw),
    }


def windows_of(question: Any, context: Any, tokenizer: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """The windows of questions as arrays: what `from_token_ids` takes, and `example`, the question of each row."""
    _, pairs = preprocess(question, context, tokenizer, spec)
    found = {"token_ids": text.padded(pairs.token_ids, pad_id=tokenizer.pad_id)}
    if spec["segments"]:
        found["segment_ids"] = text.padded(pairs.segment_ids, pad_id=0)
    found["context_mask"] = tf.cast((pairs.word >= 0).to_tensor(False), tf.int32)
    return found | {"example": tf.cast(answers.owners(pairs.splits), tf.int32)}


def answerer(model: Any, config: Config, spec: dict[str, Any]) -> Any:
    """`answered`, compiled, of questions and passages."""
    tokenizer = text.tokenizer(spec["tokenizer"])
    function = functools.partial(answered, model, tokenizer, config, spec)
    return tf.function(function, input_signature=[tf.TensorSpec([None], tf.string)] * 2)


def predict(answer: Any, part: Any, batch_size: int = 64) -> dict[str, Any]:
    """What an `answerer` says of a split's questions, as arrays; passages of similar length share a batch."""
    strings = [part.examples[name].numpy() for name in ("question", "context")]
    order = np.argsort([len(one) for one in strings[1]], kind="stable")
    places = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    found = [answer(*(tf.constant(column[here]) for column in strings)) for here in places]
    back = np.argsort(order, kind="stable")
    return {name: np.concatenate([one[name].numpy() for one in found])[back] for name in found[0]}


def rows_of(found: dict[str, Any], part: Any) -> list[dict[str, Any]]:
    """A row for each question of a split: what it is, what is right, and the best span."""
    names = {"question": "question", "context": "context", "group": "group"}
    columns = {
        to: [one.decode("utf-8", "replace") for one in part.examples[name].numpy()] for name, to in names.items()
    }
    columns["truths"] = [[one.decode("utf-8", "replace") for one in row] for row in part.examples["answer"].to_list()]
    columns["best"] = [one.decode("utf-8", "replace") for one in found["answers"][:, 0]]
    columns |= {name: found[f"{name}s"][:, 0].tolist() for name in ("score", "start", "end")}
    columns |= {name: found[name].tolist() for name in ("margin", "no_answer_probability")}
    return [dict(zip(columns, row)) for row in zip(*columns.values(), strict=True)]


def with_answers(rows: list[dict[str, Any]], config: Config) -> list[dict[str, Any]]:
    """Rows with `answer`, as `decided` says, and whether it is `right`."""
    for row in rows:
        silent = config.unanswerable and row["margin"] <= (config.no_answer_threshold or 0.0)
        row["answer"] = "" if silent else row["best"]
        if silent:
            row |= {"score": row["no_answer_probability"], "start": 0, "end": 0}
        row["right"] = bool(evaluation.of_each([row["truths"]], [row["answer"]])[0][0])
    return rows


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
    validation = rows_of(predict(answer, data.validation.questions), data.validation.questions)
    config = chosen_threshold(validation, config, folder)
    validation = with_answers(validation, config)
    rows = with_answers(rows_of(predict(answer, data.test.questions), data.test.questions), config)
    beside = evaluation.baselines(rows)
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
    tokenizer = text.tokenizer(spec["tokenizer"])
    found = predict(answerer(model, config, spec), part)
    chosen = np.flatnonzero(clear(found, config))
    part = texts.InMemory(texts.taken(part, tf.constant(chosen)), len(chosen))
    found = {name: values[chosen] for name, values in found.items()}
    expected = {name: np.asarray(value) for name, value in decided(found, config).items()}
    arrays = more_signatures(model, config, spec)["from_token_ids"][0]
    strings = {name: part.examples[name].numpy() for name in ("question", "context")}
    # Of one length for all batches, which ONNX takes from here.
    whole_windows = windows_of(strings["question"], strings["context"], tokenizer, spec)
    owner = whole_windows.pop("example").numpy()
    whole_windows = {name: value.numpy() for name, value in whole_windows.items()}
    for begin in range(0, part.count, 64):
        here = slice(begin, begin + 64)
        given = {name: value[here] for name, value in strings.items()}
        tokens = {name: value[(owner >= begin) & (owner < begin + 64)] for name, value in whole_windows.items()}
        alone = {
            name: value.numpy()
            for name, value in windows_of(given["question"], given["context"], tokenizer, spec).items()
        }
        by_arrays = {name: np.asarray(value) for name, value in arrays(*map(tf.constant, tokens.values())).items()}
        yield {
            "serving_default": (given, {name: value[here] for name, value in expected.items()}),
            "from_token_ids": (
                tokens,
                {name: by_arrays[name] for name in ("score", "no_answer_probability", "logits")},
            ),
            "tokenize": (given, alone),
        }


def clear(found: dict[str, Any], config: Config, least: float = 2e-5) -> Any:
    """Whether the order of a question's best spans, and whether it has an answer, is decided by more than rounding."""
    scores = found["scores"]
    apart = (scores[:, :-1] - scores[:, 1:] > least * scores[:, :1]) | (scores[:, 1:] == 0)
    sure = np.abs(found["margin"] - (config.no_answer_threshold or 0.0)) > least
    return apart.all(-1) & (sure | (not config.unanswerable))


if __name__ == "__main__":
    run_cli(pipelines.get(TASK))
