"""Which words of a text name what: persons and places, dates and sums, parts of speech?

    python -m pipelines.token_classification
    python -m pipelines.token_classification --dataset conll2003 --lower --vocab_size 20000
    python -m pipelines.token_classification --data_dir mails.jsonl --text_column text --tags_column entities
    python -m pipelines.token_classification --model bert_token_classifier --pretrained google-bert/bert-base-cased

Without a flag a recurrent network learns on `tiny_entities`, sentences with real names in four languages where a word
alone does not tell its tag: F1 of at least 94 % on the test split (mean of three seeds) in under 90 seconds on two
cores, beside 36 % of the commonest tag of each word and 89 % of a linear model that reads neighbours. `--data_dir`
takes your own CoNLL or JSONL file, or a folder with train, validation and test files of such; `--dataset` any set of
the TFDS catalogue with a tag for each token; `--pretrained` a published checkpoint or a run of `pipelines.pretraining`.
What is served takes raw strings, and tells where in them each entity starts and ends.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epy

import pipelines
from pipelines import Data, builder, finetuning, runs
from pipelines.config import CrossEntropyConfig, UsageError, one_of, option, run_cli

with epy.lazy_imports():
    import keras
    import numpy as np
    import tensorflow as tf

    from models import losses
    from models import metrics as model_metrics
    from pipelines import supervised, text_evaluation, training
    from pipelines import token_classification_evaluation as evaluation
    from pipelines.datasets import tagged, texts
    from pipelines.transforms import entities, spans, text

TASK = "token_classification"
MODELS = {
    "lstm_tagger": builder("models.recurrent", "lstm_tagger"),
    "bert_token_classifier": builder("models.bert", "bert_token_classifier"),
}
OBJECTIVE = ("f1", "max")
PORTABLE = "from_token_ids"  # the signature of arrays alone, which ONNX is made from
LEARN_FROM = 100_000  # texts at most, evenly spaced, that the tokenizer learns from
DATA = "tiny_entities, TFDS sets of tagged tokens (conll2003, wikiann/en, …), CoNLL and JSONL files"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(finetuning.Config, CrossEntropyConfig):
    dataset: str = option("tiny_entities", "a TFDS name (conll2003, wikiann/en, …), or built in: tiny_entities")
    data_dir: str | None = option(None, "your own CoNLL or JSONL file, or a folder of such, instead", metavar="PATH")
    text_column: str | None = option(
        None,
        "the feature, key or column (its number, from 1) of the tokens, or of the text; default: found by its name",
    )
    tags_column: str | None = option(None, "the one of the tags, or of the entities; default: found by its name")
    skip_bad: bool = option(False, "leave out texts that cannot be read, naming them, instead of stopping")
    model: str = option("lstm_tagger", "the architecture")
    epochs: int = option(10, "passes over the training data")
    batch_size: int = option(64, "texts per training step")
    learning_rate: float = option(3e-3, "peak learning rate")
    tokenizer: str = option(
        "word", "what a token is", choices=("word", "character", "wordpiece", "bpe", "sentencepiece")
    )
    vocab_size: int = option(10_000, "most different tokens, learned from the training split")
    min_count: int = option(2, "words and characters that the training split has less often are unknown")
    max_length: int = option(128, "most tokens of a text, marks counted; words after it have no tag")
    lower: bool = option(False, "make letters small")
    accents: bool = option(True, "keep accents")
    word_dropout: float = option(0.2, "share of the words that training makes unknown")

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.model, MODELS, "--model")
        self.at_least(5, "vocab_size")
        self.at_least(1, "min_count")
        self.at_least(3, "max_length")
        self.within(0, 1, "word_dropout")


def preprocess(words: Any, tokenizer: Any, max_length: int) -> tuple[Any, Any, Any]:
    """Words as the model takes them, in training and in serving, but for the padding.

    Args:
        words: strings (b, words), ragged, of `transforms.spans`.
        tokenizer: of `transforms.text.tokenizer`.
        max_length: most tokens, marks counted.

    Returns:
        Token ids, int32; the place of each token's word, -1 for marks, int32; and whether a token is the first one of
        its word. All are ragged, (b, tokens).
    """
    pieces = spans.pieces_of_words(words, tokenizer)
    row = spans.row(pieces.ids, max_length=max_length, tokenizer=tokenizer)
    return row.token_ids, row.take(pieces.owner, rest=-1), row.take(pieces.first, rest=False)


def load_data(config: Config) -> Data:
    """The three splits as tokens in memory, with words and tags, and their spec."""
    raw = read(config)
    state = tokenizer_state(config, raw)
    tokenizer = text.tokenizer(state)
    parts = [tokenized(getattr(raw, split), tokenizer, config.max_length) for split in raw.counts]
    lengths = parts[0].examples["length"].numpy()
    spec: dict[str, Any] = {
        "dataset": raw.source.partition(": ")[0],
        "about": raw.source.partition(": ")[2],
        "classes": list(raw.tags),
        "scheme": raw.scheme,
        "counts": raw.counts,
        "groups": sorted({group.decode() for group in raw.test.examples["group"].numpy()} - {""}),
        "max_length": config.max_length,
        "lengths": {"mean": round(float(lengths.mean()), 1), "longest": int(lengths.max())},
        "cut": int((lengths > config.max_length).sum()),
        "tokenizer": state,
    }
    return Data(parts[0], parts[1], parts[2], spec)


def read(config: Config) -> Any:
    """Texts with tagged words, as the flags say."""
    return tagged.load(
        config.dataset,
        data_dir=config.data_dir,
        text_column=config.text_column,
        tags_column=config.tags_column,
        seed=config.seed,
        limit=config.limit,
        skip_bad=config.skip_bad,
    )


def tokenizer_state(config: Config, raw: Any) -> dict[str, Any]:
    """The tokenizer of the checkpoint, or one learned from the training texts."""
    if config.pretrained:
        return finetuning.tokenizer_state(config, MODELS)
    known = [one.decode("utf-8", "replace") for one in raw.train.examples["text"].numpy()]
    return text.train_tokenizer(
        config.tokenizer,
        known[:: -(-len(known) // LEARN_FROM)],
        config.vocab_size,
        min_count=config.min_count,
        lower=config.lower,
        accents=config.accents,
    )


def tokenized(part: texts.InMemory, tokenizer: Any, max_length: int, size: int = 1024) -> texts.InMemory:
    """A split with what `preprocess` returns, ragged, and `length`, the tokens of the whole text with its marks."""
    columns: dict[str, list] = {"token_ids": [], "owner": [], "first": [], "length": []}
    for start in range(0, part.count, size):
        words = part.examples["words"][start : start + size]
        whole = spans.row(spans.pieces_of_words(words, tokenizer).ids, tokenizer=tokenizer).token_ids
        for column, values in zip(columns.values(), (*preprocess(words, tokenizer, max_length), whole.row_lengths())):
            column.append(values)
    return texts.InMemory(part.examples | {name: tf.concat(one, 0) for name, one in columns.items()}, part.count)


def arguments(config: Config) -> dict[str, Any]:
    """The keyword arguments of the builder: a published size, then `--model_args` over it."""
    return MODELS[config.model].arguments(config.size, config.model_args)


def new_model(config: Config, spec: dict[str, Any]) -> Any:
    """The model with new weights; of padding, the tokenizer decides what it is."""
    given = arguments(config)
    if "pad_id" in inspect.signature(MODELS[config.model].function).parameters:
        given["pad_id"] = text.tokenizer(spec["tokenizer"]).pad_id
    return MODELS[config.model](spec["tokenizer"]["vocab_size"], len(spec["classes"]), **given)


def build_model(config: Config, spec: dict[str, Any]) -> Any:
    """The compiled model, the same for the same seed."""
    keras.utils.set_random_seed(config.seed)  # here, since preparing data may draw random numbers too
    with training.dtypes(config), training.replicas(config):
        try:
            if config.pretrained:
                model = finetuning.model(config, head="token_classification", num_classes=len(spec["classes"]))
            else:
                model = new_model(config, spec)
        except (ValueError, TypeError) as error:
            raise UsageError(str(error)) from error
        finetuning.prepare(model, config)
        finetuning.check_length(model, spec["max_length"])
        compile_model(model, config, spec)
    return model


def compile_model(model: Any, config: Config, spec: dict[str, Any]) -> None:
    examples = spec["counts"]["train"]
    tags = entities.Tags(spec["classes"])
    model.compile(
        optimizer=finetuning.optimizer(config, model, examples),
        loss=losses.TokenCrossentropy(config.label_smoothing),
        weighted_metrics=[
            keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
            model_metrics.SpanF1(tags.kind_of, tags.begins, name="f1"),
        ],
        jit_compile=config.jit,
        steps_per_execution=training.steps_per_execution(config, examples),
    )


def taught(batch: dict[str, Any], pad_id: int) -> tuple[Any, Any, Any]:
    """Token ids (b, t), the tag of each token's word (b, t), and 1 where a token is the first one of its word."""
    ids = text.padded(batch["token_ids"], 8, pad_id)  # (b, t); few different t, for compilers
    owner = batch["owner"].to_tensor(0, shape=tf.shape(ids))  # (b, t)
    first = batch["first"].to_tensor(False, shape=tf.shape(ids))
    tags = tf.pad(batch["tags"].to_tensor(0), [[0, 0], [0, 1]])  # (b, words + 1)
    tags = tf.gather(tags, tf.maximum(owner, 0), batch_dims=1)  # (b, t)
    return ids, tags, tf.cast(first, tf.float32)


def training_batches(data: Data, config: Config, start_step: int = 0) -> Any:
    """Endless training batches from a global step on: token ids, tags and where they count."""
    tokenizer = text.tokenizer(data.spec["tokenizer"])
    pad_id, unknown = tokenizer.pad_id, spans.unknown_id(tokenizer)

    def finish(step, batch):
        ids, tags, weights = taught(batch, pad_id)
        if config.word_dropout:
            seed = tf.stack([tf.constant(config.seed, "int64"), step])
            owner = batch["owner"].to_tensor(-1, shape=tf.shape(ids))  # (b, t)
            lost = tf.random.stateless_uniform(tf.shape(ids), seed) < config.word_dropout  # a number for each word
            lost = tf.gather(lost, tf.maximum(owner, 0), batch_dims=1) & (owner >= 0)
            ids = tf.where(lost, unknown, ids)
        return ids, tags, weights

    return texts.bucketed(
        data.train,
        data.train.examples["token_ids"].row_lengths().numpy(),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        map_fn=finish,
    )


def evaluation_batches(part: texts.InMemory, spec: dict[str, Any], batch_size: int = 128) -> Any:
    """Batches of a split in its own order: token ids, tags and where they count."""
    pad_id = text.tokenizer(spec["tokenizer"]).pad_id
    return texts.in_order(part, batch_size=batch_size, map_fn=lambda batch: taught(batch, pad_id))


def probabilities_of(logits: Any) -> Any:
    """Probabilities of tags, float32, from logits (b, t, k)."""
    return tf.nn.softmax(tf.cast(logits, tf.float32))


def word_tags(words: Any, model: Any, tokenizer: Any, spec: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Tags of words inside of a graph.

    Args:
        words: strings (b, words), ragged.
        model: the trained model.
        tokenizer: of the spec.
        spec: of the data.

    Returns:
        The number of each word's tag, int32, and its probability, both ragged (b, words), `O` with 1 for words that
        were cut off; and whether there were any, bool (b,).
    """
    ids, _, first = preprocess(words, tokenizer, spec["max_length"])
    ids = text.padded(ids, pad_id=tokenizer.pad_id)  # (b, t)
    return entities.of_words(probabilities_of(model(ids, training=False)), first, words)


def serving_fn(model: Any, config: Config, spec: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The served function: raw strings in; entities with their places, and words with their tags out.

    `entities`, `labels`, `starts`, `ends` and `scores` are (b, e), as wide as the text with the most entities has them,
    with "", -1 or 0 after the others'; `starts` and `ends` count code points. `words` and `tags` are (b, w). A text of
    more than `max_length` tokens is read up to there, which `truncated` tells; later words are `O`.
    """
    tokenizer, tags = text.tokenizer(spec["tokenizer"]), entities.Tags(spec["classes"])

    def serve(text):
        found = spans.words_with_offsets(text)
        numbers, scores, truncated = word_tags(found.words, model, tokenizer, spec)
        answer = entities.read(text, found, numbers, scores, tags)
        answer |= {"words": found.words.to_tensor(""), "tags": tags.names_of(numbers).to_tensor("")}
        return answer | {"truncated": truncated}

    serve.resources = [tokenizer]  # type: ignore[attr-defined]  # for the export to track
    return serve, {"text": tf.TensorSpec([None], tf.string, name="text")}


def more_signatures(model: Any, config: Config, spec: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Other doors to the served model.

    `from_token_ids`: int32 ids (b, t) of any t, padded, to the probabilities of the tags at every token and the name of
    the likeliest. `tokenize`: raw strings to such ids, and to the number of the word that begins at each token, or -1.
    `tag_words`: words (b, w) that were split elsewhere, with "" after the last one of a row, to their tags.
    """
    tokenizer, tags = text.tokenizer(spec["tokenizer"]), entities.Tags(spec["classes"])

    def from_token_ids(token_ids):
        probabilities = probabilities_of(model(token_ids, training=False))  # (b, t, k)
        return {
            "tags": tf.gather(tf.constant(tags.names), tf.argmax(probabilities, -1)),
            "probabilities": probabilities,
        }

    def tokenize(text):
        ids, owner, first = preprocess(spans.words_with_offsets(text).words, tokenizer, spec["max_length"])
        word = owner.with_values(tf.where(first.values, owner.values, -1))
        return {"token_ids": ids.to_tensor(tokenizer.pad_id), "word": word.to_tensor(-1)}

    def tag_words(words):
        rows = tf.RaggedTensor.from_tensor(words, padding="")  # (b, words)
        numbers, scores, truncated = word_tags(rows, model, tokenizer, spec)
        shape = tf.shape(words, out_type=tf.int64)
        return {
            "tags": tags.names_of(numbers).to_tensor("", shape=shape),
            "scores": scores.to_tensor(0.0, shape=shape),
            "truncated": truncated,
        }

    for function in (tokenize, tag_words):
        function.resources = [tokenizer]  # type: ignore[attr-defined]
    raw = tf.TensorSpec([None], tf.string, name="text")
    return {
        "from_token_ids": (from_token_ids, {"token_ids": tf.TensorSpec([None, None], tf.int32, name="token_ids")}),
        "tokenize": (tokenize, {"text": raw}),
        "tag_words": (tag_words, {"words": tf.TensorSpec([None, None], tf.string, name="words")}),
    }


def predict(model: Any, part: texts.InMemory, spec: dict[str, Any]) -> evaluation.Answers:
    """The tags of a split's words, with the probability of each; of words that were cut off, `O` with 1."""
    rows = []
    for ids, _, weights in evaluation_batches(part, spec):
        probabilities = probabilities_of(model.predict_on_batch(ids)).numpy()
        rows += [one[there > 0] for one, there in zip(probabilities, weights.numpy())]
    return evaluation.Answers.of(rows, part.examples["words"].row_lengths().numpy(), spec["classes"])


def truth(part: texts.InMemory, spec: dict[str, Any]) -> list[list[str]]:
    """The true tags of a split's words."""
    return [[spec["classes"][k] for k in row] for row in part.examples["tags"].to_list()]


def words_of(part: texts.InMemory) -> list[list[str]]:
    """The words of a split."""
    return [[one.decode("utf-8", "replace") for one in row] for row in part.examples["words"].to_list()]


def measured(answers: evaluation.Answers, part: texts.InMemory, spec: dict[str, Any]) -> dict[str, Any]:
    """The measures of a split, and of each of its groups where it has some."""
    true = truth(part, spec)
    found = evaluation.measures(true, answers.tags)
    groups = [one.decode() for one in part.examples["group"].numpy()]
    if spec["groups"]:
        found["groups"] = {}
        for group in spec["groups"]:
            chosen = [place for place, one in enumerate(groups) if one == group]
            if chosen:
                rows = ([tags[place] for place in chosen] for tags in (true, answers.tags))
                found["groups"][group] = evaluation.measures(*rows, by_kind=False)
    return found


def baselines(data: Data) -> list[dict[str, Any]]:
    """Taggers without a network on the test split: the commonest tag of each word, and a linear model."""
    parts = [(words_of(part), truth(part, data.spec)) for part in data[:3]]
    found = []
    for name, tags in evaluation.simple_taggers(*parts):
        answers = evaluation.Answers(tags, [[1.0] * len(row) for row in tags])
        found.append({"model": name, **measured(answers, data.test, data.spec)})
    return found


def first_batch(data: Data, config: Config, path: Path, most: int = 16) -> None:
    """A text file with the first texts as the model is about to see them: each word's first token and its tag."""
    ids, tags, weights = next(iter(training_batches(data, config).take(1)))
    tokenizer = text.tokenizer(data.spec["tokenizer"])
    lines = []
    for row, kinds, here in zip(ids.numpy()[:most], tags.numpy(), weights.numpy()):
        shown = tokenizer.decode(row[here > 0][:, None]).numpy()
        names = [data.spec["classes"][k] for k in kinds[here > 0]]
        told = [(one.decode("utf-8", "replace").strip() or "?", name) for one, name in zip(shown, names)]
        lines.append(" ".join(one if name == "O" else f"{one}/{name}" for one, name in told))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def pictures(data: Data, answers: evaluation.Answers, folder: Path) -> None:
    """Confusion of kinds, lengths, and test texts with their spans: truth above, answer below."""
    spec, plots = data.spec, folder / "plots"
    true = truth(data.test, spec)
    evaluation.confusion(true, answers.tags, entities.Tags(spec["classes"]).kinds, plots / "confusion_matrix.png")
    lengths = {split: getattr(data, split).examples["length"].numpy() for split in ("train", "test")}
    text_evaluation.length_histogram(lengths, spec["max_length"], plots / "lengths.png")
    evaluation.draw_spans(words_of(data.test), true, answers, plots / "spans.png")


def described(spec: dict[str, Any]) -> Sequence[str]:
    """What the data are, in two lines."""
    counts = ", ".join(f"{count:,} {part}" for part, count in spec["counts"].items())
    state, lengths = spec["tokenizer"], spec["lengths"]
    cut = f"; {spec['cut']:,} training texts are longer and cut" if spec["cut"] else ""
    kinds = ", ".join(entities.Tags(spec["classes"]).kinds[:12])
    return (
        f"data: {spec['dataset']}: {counts}; tags ({spec['scheme']}) of {kinds}",
        f"tokens: {state['kind']}, {state['vocab_size']:,} different ones; {lengths['mean']:g} a text, "
        f"{lengths['longest']:,} at most, of which the model sees {spec['max_length']:,}{cut}",
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
        validation, monitor = evaluation_batches(data.validation, spec), f"val_{OBJECTIVE[0]}"
        fitted = supervised.train(model, batches, validation, config, spec, folder, monitor, OBJECTIVE[1])
        answers = predict(model, data.test, spec)
        simple = baselines(data)
        found = {
            "validation": measured(predict(model, data.validation, spec), data.validation, spec | {"groups": []}),
            "test": measured(answers, data.test, spec),
            "baseline": simple[0],
            "baselines": simple[1:],
        }
        pictures(data, answers, folder)
        metrics = supervised.finish(
            TASK,
            OBJECTIVE,
            model,
            config,
            spec,
            folder,
            found | fitted,
            inputs=f"texts of any length, of which it reads the first {spec['max_length']} tokens, marks counted "
            f"({spec['tokenizer']['kind']}, {spec['tokenizer']['vocab_size']:,} different ones)",
            limits="The figures hold for texts like those of the test split. An entity counts as found only where both "
            "its ends and its kind are right. Scores are means of the words' probabilities, which are not calibrated.",
            pictures=("curves", "confusion_matrix", "spans", "lengths"),
        )
    others = ", ".join(f"{one['model']} {one['f1']:.2%}" for one in simple)
    print(f"test F1 {metrics['test']['f1']:.2%} ({others}; {fitted['train_seconds']} s): {folder}")
    print(f"pictures: {folder / 'plots'}")
    if config.export:
        runs.export(folder)
    return folder


def served_checks(model: Any, config: Config, spec: dict[str, Any], *, limit: int | None = None) -> Any:
    """What clients would send of the test split, and what Keras answers by the road of training.

    Yields, batch by batch: {signature: ({input: array}, {output: array})}; at most `limit` examples in all.
    """
    whole = read(config).test
    test = tokenized(texts.first(whole, limit or whole.count), text.tokenizer(spec["tokenizer"]), spec["max_length"])
    answers, words = predict(model, test, spec), words_of(test)
    pad_id = text.tokenizer(spec["tokenizer"]).pad_id
    ids = text.padded(test.examples["token_ids"], pad_id=pad_id).numpy()  # of one length, which ONNX takes from here
    owner, first = (
        test.examples[name].to_tensor(-1 if name == "owner" else False).numpy() for name in ("owner", "first")
    )
    raw, names = test.examples["text"].numpy(), np.array(spec["classes"], object)
    for start in range(0, test.count, 128):
        part = slice(start, start + 128)
        given = evaluation.Answers(answers.tags[part], answers.scores[part])
        tags = evaluation.padded(given.tags, "", object)
        found = [evaluation.placed(one.decode("utf-8", "replace"), *row) for one, row in zip(raw[part], zip(*given))]
        columns = {
            name: evaluation.padded([[one[i] for one in row] for row in found], rest, kind)
            for i, (name, rest, kind) in enumerate(evaluation.PLACED)
        }
        probabilities = np.asarray(probabilities_of(model.predict_on_batch(ids[part])))
        longest = int((ids[part] != pad_id).sum(-1).max())
        begins = np.where(first[part, :longest], owner[part, :longest], -1).astype("int32")
        shown = {"words": evaluation.padded(words[part], "", object), "tags": tags}
        scores = evaluation.padded(given.scores, 0.0, "float32")
        yield {
            "serving_default": ({"text": raw[part]}, columns | shown),
            "from_token_ids": (
                {"token_ids": ids[part]},
                {"tags": names[probabilities.argmax(-1)], "probabilities": probabilities},
            ),
            "tokenize": ({"text": raw[part]}, {"token_ids": ids[part, :longest], "word": begins}),
            "tag_words": ({"words": shown["words"]}, {"tags": tags, "scores": scores}),
        }


if __name__ == "__main__":
    run_cli(pipelines.get(TASK))
