"""What comes next in this text?

    python -m pipelines.language_modeling
    python -m pipelines.language_modeling --model llama --tokenizer sentencepiece
    python -m pipelines.language_modeling --data_dir novels --context 512 --temperature 0.7 --stop '\\n\\n'
    python -m pipelines.language_modeling --pretrained openai-community/gpt2 --data_dir novels --learning_rate 3e-5
    python -m pipelines.language_modeling --dataset wikipedia/20230601.en --steps 100000

Without a flag a GPT of 0.7 M parameters learns to write Python from `tiny_code`, the modules of the standard library.
One pass, in 6 minutes of CPU time with all that comes after it, brings it to 1.70 bits per byte of unseen modules
(Python 3.11.7), where an interpolated 5-gram model of bytes has 1.93. xz, which may copy whole lines of the training
text however long ago they were, has 1.46: a library repeats itself. Deviations from GPT-2: none in the model; no
dropout, kernels that begin at 0.08, and a small vocabulary of its own. `--data_dir` takes your own text, `--dataset`
any set of the TFDS catalogue with a text, also one larger than memory; `--pretrained` goes on from a checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from etils import epy

import pipelines
from pipelines import Data, builder, finetuning, runs
from pipelines.config import OPTIMIZERS, CrossEntropyConfig, UsageError, one_of, option, run_cli

with epy.lazy_imports():
    import keras
    import numpy as np
    import tensorflow as tf

    from pipelines import language_evaluation as evaluation
    from pipelines import supervised, training
    from pipelines.datasets import corpora, token_store
    from pipelines.transforms import text as tokens

TASK = "language_modeling"
MODELS = {"gpt": builder("models.gpt"), "llama": builder("models.llama")}
OBJECTIVE = ("bits_per_byte", "min")
MONITOR = "val_loss"  # in nats a token, which the bits per byte are a multiple of
PORTABLE = "from_token_ids"  # the signature of arrays alone, which ONNX is made from
DATA = "tiny_code, TFDS text sets (wikipedia, lm1b, c4, tiny_shakespeare, …), your own files of text, CSV and JSONL"
LEARN_FROM = (2**28, 2**23)  # of the first so many bytes so many, evenly spaced, for the tokenizer
JUDGED = {"validation": 2**21, "test": 2**22}  # bytes of a split, at most, that are judged
PROMPT_BYTES = 160  # of the beginnings that samples go on from
CHECKED = 16  # prompts of the test split that an export asks
# Over the builder's own where no size and no checkpoint is named: a pass over new text needs no dropout, and a narrow
# model begins to learn much sooner from kernels near 1 / sqrt(d) than from the published 0.02.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt": {"dropout": 0.0, "attention_dropout": 0.0, "embedding_dropout": 0.0, "stddev": 0.08},
    "llama": {"stddev": 0.08},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(finetuning.Config, CrossEntropyConfig):
    dataset: str = option("tiny_code", "a TFDS name of a set with a text, or built in: tiny_code")
    data_dir: str | None = option(None, "your own file or folder of text, CSV or JSONL, instead", metavar="PATH")
    text_column: str | None = option(None, "the column, key or feature of the text; default: found by its name")
    skip_bad: bool = option(False, "leave out files and rows that are no text, naming them, instead of stopping")
    model: str = option("gpt", "the architecture")
    epochs: int = option(1, "passes over the training data")
    batch_size: int = option(8, "windows per training step")
    learning_rate: float = option(3e-3, "peak learning rate")
    optimizer: str = option("adamw", "the update rule", choices=OPTIMIZERS)
    tokenizer: str = option(
        "bpe", "what a token is; both kinds give back every text exactly", choices=("bpe", "sentencepiece")
    )
    vocab_size: int = option(2048, "most different tokens, learned from the training split")
    context: int = option(256, "most tokens that the model sees")
    stride: int | None = option(None, "tokens by which windows of evaluation move on; default: half of --context")
    max_new_tokens: int = option(64, "most tokens that an answer has")
    temperature: float = option(0.8, "logits of the next token are divided by this; 0 takes the likeliest one")
    top_k: int = option(0, "one of so many likeliest tokens is drawn; 0: of all")
    top_p: float = option(0.95, "one is drawn of the fewest likeliest tokens whose probabilities sum to this")
    repetition_penalty: float = option(1.0, "above 1, tokens that were there get less likely")
    stop: tuple[str, ...] = option(
        (), "strings that end an answer and are cut off, a comma between them; \\n is a new line", metavar="TEXT"
    )
    prompt: str | None = option(None, "samples of every epoch go on from this, too", metavar="TEXT")

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.model, MODELS, "--model")
        self.at_least(1, "max_new_tokens", "stride")
        self.at_least(2, "context")
        self.at_least(0, "temperature", "top_k")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"Expected --top_p above 0 and at most 1. Received: {self.top_p}")
        if self.repetition_penalty <= 0:
            raise UsageError(f"Expected --repetition_penalty above 0. Received: {self.repetition_penalty}")
        if self.max_new_tokens >= self.context:
            raise UsageError(
                f"Expected --max_new_tokens below --context, {self.context}: prompt and answer share it. "
                f"Received: {self.max_new_tokens}"
            )
        if self.stride and self.stride > self.context:
            raise UsageError(f"Expected --stride of at most --context, {self.context}. Received: {self.stride}")


def preprocess(strings: Any, tokenizer: Any, spec: dict[str, Any], room: int) -> tuple[Any, Any]:
    """Prompts as the model takes them.

    The end of a prompt counts: of one with more than `room` tokens the last ones are kept. An empty prompt stands for
    the beginning of a document, which the mark between documents says. Families whose texts always begin with a mark
    (LLaMA) get it before every prompt, in place of its first token where there is no room.

    Args:
        strings: (b,) of raw bytes.
        tokenizer: of `transforms.text.tokenizer`.
        spec: of the data: `marks`.
        room: most tokens of a prompt, its mark counted.

    Returns:
        int32 (b, tokens), ragged, at least one token each; and bool (b,), whose beginning was cut off.
    """
    ids, marks = tokenizer.encode(strings), spec["marks"]
    count = ids.row_lengths()
    always = marks["start_id"] is not None
    keep = room - always
    kept = ids[:, -keep:] if keep else ids[:, :0]
    mark = tf.fill([ids.nrows(), 1], tf.constant(marks["start_id"] if always else marks["end_id"], tf.int32))
    marked = tf.RaggedTensor.from_tensor(mark, lengths=tf.ones_like(count) if always else tf.cast(count == 0, tf.int64))
    return tf.concat([marked, kept], 1), count > keep


def load_data(config: Config) -> Data:
    """The three splits as `TokenStore`s, and their spec with the tokenizer."""
    corpus = read(config)
    state = tokenizer_state(config, corpus)
    tokenizer = tokenizer_of({"tokenizer": state})
    marks = marks_of(tokenizer)
    stores = {}
    for split in ("train", "validation", "test"):
        documents: Any = judged(corpus, split)
        name = f"{corpus.fingerprint} {split}"
        stores[split] = token_store.build(documents, state, fingerprint=name, tokenizer=tokenizer, **marks)  # type: ignore[arg-type]
    length, stride = config.context + 1, config.stride or max(1, config.context // 2)
    spec: dict[str, Any] = {
        "dataset": corpus.source.partition(": ")[0],
        "about": corpus.source.partition(": ")[2],
        "counts": {
            "train": stores["train"].windows_per_pass(length),
            **{split: stores[split].windows_in_order(length, stride) for split in ("validation", "test")},
        },
        "documents": {split: store.num_documents for split, store in stores.items()},
        "tokens": {split: store.num_tokens for split, store in stores.items()},
        "bytes": {split: store.num_bytes for split, store in stores.items()},
        "context": config.context,
        "stride": stride,
        "marks": marks,
        "tokenizer": state,
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


def judged(corpus: Any, split: str) -> Any:
    """The documents of a split: of validation and test the first `JUDGED` bytes."""
    documents = getattr(corpus, split)
    return documents if split == "train" else evaluation.beginning(documents, JUDGED[split])


def tokenizer_state(config: Config, corpus: Any) -> dict[str, Any]:
    """The tokenizer of the pretrained model, or one learned from the training documents."""
    if config.pretrained:
        return finetuning.tokenizer_state(config, MODELS)
    most, kept = LEARN_FROM
    texts = corpora.sample(evaluation.beginning(corpus.train, most), kept)
    strings = (one.decode("utf-8", "replace") for one in texts)
    return tokens.train_tokenizer(config.tokenizer, strings, config.vocab_size, space_runs=True)


def tokenizer_of(spec: dict[str, Any]) -> Any:
    """The tokenizer of a spec; that of a checkpoint, which takes seconds to trace, is made once.

    Those of SentencePiece are made anew: they end where Keras sets its seed, which empties TensorFlow's caches.
    """
    state = spec["tokenizer"]
    return made(json.dumps(state, sort_keys=True)) if state["kind"] == tokens.PUBLISHED else tokens.tokenizer(state)


@functools.lru_cache(2)
def made(state: str) -> Any:
    return tokens.tokenizer(json.loads(state))


def marks_of(tokenizer: Any) -> dict[str, int | None]:
    """The marks between documents: an end after each and, where the family of a checkpoint has it, a start before."""
    if tokenizer.kind != tokens.PUBLISHED:
        return {"start_id": None, "end_id": tokens.END}
    source = tokenizer.inner.source
    if source.end_id is None:
        raise UsageError(f"Expected a tokenizer with an end of texts. Received: that of a {source.kind} without one")
    start = source.start_id if source.start_id != source.end_id else None
    return {"start_id": start, "end_id": source.end_id}


def arguments(config: Config) -> dict[str, Any]:
    """The keyword arguments of the builder: the task's own, or a published size, then `--model_args` over them."""
    given = MODELS[config.model].arguments(config.size, config.model_args)
    return {**(DEFAULTS[config.model] if config.size is None else {}), "max_length": config.context, **given}


def build_model(config: Config, spec: dict[str, Any]) -> Any:
    """The compiled model, the same for the same seed."""
    keras.utils.set_random_seed(config.seed)
    with training.dtypes(config), training.replicas(config):
        try:
            if config.pretrained:
                model = finetuning.model(config, head="lm")
            else:
                model = MODELS[config.model](spec["tokenizer"]["vocab_size"], **arguments(config))
            finetuning.prepare(model, config)
        except (ValueError, TypeError) as error:
            raise UsageError(str(error)) from error
        places = model.arguments["max_length"]
        if spec["context"] > places:
            raise UsageError(f"Expected --context of at most {places}, the model's own. Received: {spec['context']}")
        compile_model(model, config, spec)
    return model


def compile_model(model: Any, config: Config, spec: dict[str, Any]) -> None:
    from models.losses import TokenCrossentropy

    examples = spec["counts"]["train"]
    model.compile(
        optimizer=finetuning.optimizer(config, model, examples),
        loss=TokenCrossentropy(config.label_smoothing),
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="token_accuracy")],
        jit_compile=config.jit,
        steps_per_execution=training.steps_per_execution(config, examples),
    )


def shifted(ids: Any, weights: Any, spec: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Windows (b, t + 1) as the tokens that the model sees (b, t), those after them, and their weights.

    Nobody has to foretell the mark that a document begins with, where the family has one.
    """
    before, after = ids[:, :-1], ids[:, 1:]
    if spec["marks"]["start_id"] is not None:
        weights = weights * tf.cast(ids != spec["marks"]["start_id"], tf.float32)
    return before, after, weights[:, 1:]


def training_batches(data: Data, config: Config, start_step: int = 0) -> Any:
    """Endless training batches of packed windows from a global step on."""
    found = data.train.windows(config.batch_size, config.context + 1, config.seed, start_step)
    return found.map(lambda step, ids: shifted(ids, tf.ones(tf.shape(ids)), data.spec))


def evaluation_batches(part: Any, spec: dict[str, Any], batch_size: int = 64) -> Any:
    """Batches of the windows of a split, one after the other: each token once."""
    found = part.in_order(batch_size, spec["context"] + 1, spec["context"])
    return found.map(lambda ids, fresh: shifted(ids, fresh, spec))


def written(model: Any, prompts: Any, config: Config, spec: dict[str, Any], tokenizer: Any, **drawing: Any) -> dict:
    """Answers to prompts (b,).

    Args:
        model: the trained model.
        prompts: raw strings.
        config: with the flags of generation.
        spec: of the data.
        tokenizer: of `spec`.
        drawing: `temperature` and `noise` of `generate`.

    Returns:
        `text` after the prompt, up to a stop string; `full_text`, both; `tokens`, how many were written, the end
        counted; `log_probability` of them; `truncated`, whether the prompt's beginning was cut off.
    """
    kept, truncated = preprocess(prompts, tokenizer, spec, config.context - config.max_new_tokens)
    stops = [re.sub(r"\\([nt])", lambda one: {"n": "\n", "t": "\t"}[one[1]], stop) for stop in config.stop]
    found = model.generate(
        tokens.padded(kept, pad_id=tokenizer.pad_id),
        kept.row_lengths(),
        max_new_tokens=config.max_new_tokens,
        top_k=config.top_k,
        top_p=config.top_p,
        repetition_penalty=config.repetition_penalty,
        end_ids=(spec["marks"]["end_id"],),
        stop=spelled(stops, spec),
        pad_id=tokenizer.pad_id,
        **drawing,
    )
    new = tf.RaggedTensor.from_tensor(found.token_ids, lengths=tf.cast(found.lengths, tf.int64))
    whole, before = tokenizer.decode(tf.concat([kept, new], 1)), tokenizer.decode(kept)
    answers = tf.strings.substr(whole, tf.strings.length(before), tf.fill(tf.shape(whole), 2**30))
    if stops:
        ends = "|".join(re.escape(stop) for stop in stops)
        answers = tf.strings.regex_replace(answers, f"(?s)(?:{ends}).*", "", replace_global=False)
    return {
        "text": answers,
        "full_text": tf.strings.join([prompts, answers]),
        "tokens": found.lengths,
        "log_probability": tf.reduce_sum(found.log_probabilities, -1),
        "truncated": truncated,
    }


def spelled(stops: Sequence[str], spec: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    """Stop strings as token ids, at which writing may end; a text that spells one otherwise is cut off later."""
    with tf.init_scope():
        rows = tokenizer_of(spec).encode(tf.constant(stops)).to_list() if stops else []
    return tuple(tuple(row) for row in rows)


def noise_of(seeds: Any, count: int) -> Any:
    """Uniform numbers (count, b), those of a row by its seed (b,) alone."""
    one = lambda seed: tf.random.stateless_uniform([count], tf.stack([seed, 0]))  # noqa: E731
    return tf.transpose(tf.map_fn(one, tf.cast(seeds, tf.int32), fn_output_signature=tf.float32))


def serving_fn(model: Any, config: Config, spec: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The served function: prompts in, `text` and the rest of `written` out.

    It draws as the flags of the run say, with the run's seed for every prompt: the same prompt has the same answer,
    whatever it comes with. `generate`, of `more_signatures`, takes a temperature and a seed.
    """
    tokenizer = tokenizer_of(spec)

    def serve(prompt):
        noise = tf.random.stateless_uniform([config.max_new_tokens, 1], [config.seed, 0])
        noise = tf.broadcast_to(noise, [config.max_new_tokens, tf.shape(prompt)[0]])
        drawing = {"temperature": config.temperature, "noise": noise}
        return written(model, prompt, config, spec, tokenizer, **drawing)

    serve.resources = [tokenizer]  # type: ignore[attr-defined]  # for the export to track
    return serve, {"prompt": tf.TensorSpec([None], tf.string, name="prompt")}


def more_signatures(model: Any, config: Config, spec: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Other doors to the served model.

    `generate`: a prompt, a temperature (0 takes the likeliest token) and a seed to what `serving_default` answers.
    `score`: a text, as a document from its beginning, to the logarithm of its probability, its tokens, and bits per
    byte. `from_token_ids`: int32 ids (b, t) to the logits (b, t, v) of the token after each.
    """
    tokenizer = tokenizer_of(spec)

    def generate(prompt, temperature, seed):
        warm = tf.maximum(temperature, 1e-4)[:, None]  # (b, 1); at so little the likeliest token is as good as certain
        drawing = {"temperature": warm, "noise": noise_of(seed, config.max_new_tokens)}
        return written(model, prompt, config, spec, tokenizer, **drawing)

    def score(text):
        found = scored(lambda ids: model(ids, training=False), text, tokenizer, spec)
        size = tf.cast(tf.strings.length(text), tf.float32)
        return found | {"bits_per_byte": -found["log_probability"] / tf.math.log(2.0) / tf.maximum(1.0, size)}

    def from_token_ids(token_ids):
        return {"logits": model(token_ids, training=False)}

    for function in (generate, score):
        function.resources = [tokenizer]  # type: ignore[union-attr]
    raw = {
        "prompt": tf.TensorSpec([None], tf.string, name="prompt"),
        "temperature": tf.TensorSpec([None], tf.float32, name="temperature"),
        "seed": tf.TensorSpec([None], tf.int32, name="seed"),
    }
    return {
        "generate": (generate, raw),
        "score": (score, {"text": tf.TensorSpec([None], tf.string, name="text")}),
        "from_token_ids": (from_token_ids, {"token_ids": tf.TensorSpec([None, None], tf.int32, name="token_ids")}),
    }


def scored(predict: Callable, strings: Any, tokenizer: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """How likely texts (b,) are, each as a document from its beginning, its end not counted.

    Longer ones are read in stretches of the model's context.

    Args:
        predict: from ids (n, t) to logits (n, t, v).
        strings, tokenizer, spec: see `preprocess`.

    Returns:
        `log_probability`, the natural logarithm, and `tokens`, each (b,).
    """
    ids, size = tokenizer.encode(strings), spec["context"]
    count = tf.cast(ids.row_lengths(), tf.int32)  # (b,)
    after = tokens.padded(ids, size)  # (b, k * t)
    mark = spec["marks"]["start_id"] if spec["marks"]["start_id"] is not None else spec["marks"]["end_id"]
    before = tf.concat([tf.fill([tf.shape(after)[0], 1], mark), after[:, :-1]], 1)
    logits = tf.cast(predict(tf.reshape(before, [-1, size])), tf.float32)  # (b * k, t, v)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.reshape(after, [-1, size]), logits)
    losses = tf.reshape(losses, tf.shape(after)) * tf.sequence_mask(count, tf.shape(after)[1], tf.float32)
    return {"log_probability": -tf.reduce_sum(losses, -1), "tokens": count}


def writer(model: Any, config: Config, spec: dict[str, Any]) -> Callable[[Sequence[str]], list[str]]:
    """From prompts to what the served function writes after them."""
    serve, signature = serving_fn(model, config, spec)
    compiled = tf.function(serve, input_signature=list(signature.values()), autograph=False)
    return lambda prompts: [one.decode("utf-8", "replace") for one in compiled(tf.constant(prompts))["text"].numpy()]


def prompts_of(data: Data, config: Config) -> list[str]:
    """What the samples of every epoch go on from: nothing, the beginnings of two validation documents, `--prompt`."""
    store, tokenizer = data.validation, tokenizer_of(data.spec)
    found = [""]
    for document in (0, store.num_documents - 1):
        ids = store.span(document, 0, min(PROMPT_BYTES, int(store.lengths(document))))
        text = tokenizer.decode(ids[None]).numpy()[0][:PROMPT_BYTES].decode("utf-8", "ignore")
        found.append(text[: len(text) * 3 // 4].rpartition("\n")[0] + "\n" if "\n" in text else text)
    return [*found, *([config.prompt] if config.prompt else [])]


def first_batch(data: Data, config: Config, path: Path, most: int = 4) -> None:
    """`plots/first_batch.txt`: the first windows as the model is about to see them, a bar between tokens."""
    before, *_ = next(iter(training_batches(data, config).take(1)))
    tokenizer = tokenizer_of(data.spec)
    lines = [f"first training batch: {before.shape}, and the token after each", ""]
    for ids in before[:most].numpy():
        lines += ["|".join(pieces(ids, tokenizer)), "-" * 80]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def pieces(ids: Any, tokenizer: Any) -> list[str]:
    """Token ids (n,) as strings, one by one; a mark is shown as ¶."""
    found = [one.decode("utf-8", "replace") for one in tokenizer.decode(np.asarray(ids)[:, None]).numpy()]
    return [one or "¶" for one in found]


def draw_surprise(model: Any, data: Data, path: Path, count: int = 1024) -> None:
    """`plots/surprise.png`: a stretch of the test split from the middle on, each token after all before it."""
    store, spec, length = data.test, data.spec, data.spec["context"]
    start = max(0, min(store.num_tokens // 2, store.num_tokens - count - length))
    found, shown = [], []
    for place in range(start, min(start + count, store.num_tokens - length - 1), max(1, length // 2)):
        ids = store.read([place], length + 1)
        logits = model.predict_on_batch(ids[:, :-1])
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(ids[:, 1:], logits).numpy()[0]
        new = slice(length - max(1, length // 2), None)
        shown += ids[0, 1:][new].tolist()
        found += (losses[new] / np.log(2)).tolist()
    evaluation.surprise(pieces(shown, tokenizer_of(spec)), found, path)


def described(spec: dict[str, Any]) -> Sequence[str]:
    """What the data are, in two lines."""
    parts = (f"{spec['bytes'][one]:,} bytes of {spec['documents'][one]:,} documents {one}" for one in spec["bytes"])
    state = spec["tokenizer"]
    return (
        f"data: {spec['dataset']}: {', '.join(parts)}",
        f"tokens: {state['kind']}, {state['vocab_size']:,} different ones; a token has "
        f"{spec['bytes']['train'] / spec['tokens']['train']:.2f} bytes, a window {spec['context']} tokens",
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
    print("\n".join(described(spec)))
    print(f"model: {config.model}, {finetuning.described(model, config)}")
    with runs.start(TASK, config, spec) as folder:
        print(f"run folder: {folder}")
        batches = functools.partial(training_batches, data, config)
        config = supervised.with_found_rate(model, batches, compile_model, config, spec, folder)
        first_batch(data, config, folder / "plots/first_batch.txt")
        print(f"first batch: {folder / 'plots/first_batch.txt'}")
        validation = evaluation_batches(data.validation, spec)
        samples = evaluation.Samples(writer(model, config, spec), prompts_of(data, config), folder / "samples.md")
        fitted = supervised.train(model, batches, validation, config, spec, folder, MONITOR, "min", callbacks=[samples])
        size, stride = spec["context"], spec["stride"]
        corpus = read(config)
        known, *others = evaluation.baselines(corpus.train, judged(corpus, "test"))
        found: dict[str, Any] = {
            "validation": evaluation.measured(model, data.validation, size, stride),
            "test": evaluation.measured(model, data.test, size, stride),
            "baseline": known,
            "baselines": others,
        }
        by_place = [found[split].pop("by_place") for split in ("validation", "test")][1]
        rows: dict[str, Any] = {config.model: found["test"], **{row["model"]: row for row in (known, *others)}}
        plots = folder / "plots"
        evaluation.compared({name: row["bits_per_byte"] for name, row in rows.items()}, plots / "bits_per_byte.png")
        evaluation.by_place(by_place, plots / "context.png")
        draw_surprise(model, data, plots / "surprise.png")
        metrics = supervised.finish(
            TASK,
            OBJECTIVE,
            model,
            config,
            spec,
            folder,
            found | {"loss_by_place": by_place} | fitted,
            inputs=f"prompts, of which it reads the last {size - config.max_new_tokens} tokens "
            f"({spec['tokenizer']['kind']}, {spec['tokenizer']['vocab_size']:,} different ones); it answers with at "
            f"most {config.max_new_tokens}",
            limits="The figures hold for texts like those of the test split. The model writes what is likely after a "
            "prompt, true or not; it may repeat texts that it was trained on word by word.",
            pictures=("bits_per_byte", "curves", "context", "surprise"),
        )
    told = ", ".join(f"{row['model']} {row['bits_per_byte']:.3f}" for row in (known, *others))
    test = metrics["test"]
    print(f"test: {test['bits_per_byte']:.3f} bits per byte, perplexity {test['perplexity']:.2f} ({told}; "
          f"{fitted['train_seconds']} s): {folder}")  # fmt: skip
    print(f"samples: {folder / 'samples.md'}, pictures: {folder / 'plots'}")
    if config.export:
        runs.export(folder)
    return folder


def served_checks(model: Any, config: Config, spec: dict[str, Any], *, limit: int | None = None) -> Any:
    """What clients would send of the test split, and what Keras answers by the road of training.

    Yields, batch by batch: {signature: ({input: array}, {output: array})}; at most `limit` or `CHECKED` examples.
    """
    documents = list(evaluation.beginning(read(config).test, JUDGED["test"]))
    step = max(1, len(documents) // min(CHECKED, limit or CHECKED))
    texts = [one[: 4 * PROMPT_BYTES].decode("utf-8", "ignore").encode() for one in documents[::step]]
    strings = np.array(texts[: min(CHECKED, limit or CHECKED)], object)
    tokenizer = tokenizer_of(spec)
    count = len(strings)
    given: dict[str, Any] = {"prompt": strings, "temperature": np.linspace(0.5, 1.0, count, dtype="float32")}
    given["seed"] = np.arange(count, dtype="int32")
    generate, inputs = more_signatures(model, config, spec)["generate"]
    compiled = functools.partial(tf.function, autograph=False)
    answers = {
        "serving_default": ({"prompt": strings}, compiled(serving_fn(model, config, spec)[0])(tf.constant(strings))),
        "generate": (given, compiled(generate)(*(tf.constant(given[name]) for name in inputs))),
    }
    found = {
        name: (asked, {key: value.numpy() for key, value in one.items()}) for name, (asked, one) in answers.items()
    }
    likely = scored(model.predict_on_batch, tf.constant(strings), tokenizer, spec)
    found["score"] = ({"text": strings}, {name: value.numpy() for name, value in likely.items()})
    ids = tokens.padded(tokenizer.encode(strings)[:, : spec["context"]], pad_id=tokenizer.pad_id).numpy()
    found["from_token_ids"] = ({"token_ids": ids}, {"logits": np.asarray(model.predict_on_batch(ids))})
    yield found


if __name__ == "__main__":
    run_cli(pipelines.get(TASK))
