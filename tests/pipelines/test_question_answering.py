"""The task from raw questions and passages to served answers: a run, its doors, published checkpoints, bad flags."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.bert import bert_question_answering
from models.checkpoints import to_pretrained
from models.checkpoints.tokenizers import load
from models.losses import SpanCrossentropy
from pipelines import question_answering as task
from pipelines import question_answering_baselines as baselines
from pipelines import question_answering_evaluation as evaluation
from pipelines import question_answering_serving as serving
from pipelines import runs
from pipelines.config import UsageError
from pipelines.question_answering import Config
from pipelines.transforms import answers, text

GOLDEN = Path(__file__).parent.parent / "golden"
SMALL = {
    "dataset": "tiny_questions/unanswerable",
    "unanswerable": True,
    "limit": 96,
    "epochs": 1,
    "optimizer": "sgd",
    "model_args": {"width": 8, "depth": 1, "hidden_dim": 8},
    "max_length": 40,
    "max_question": 14,
    "stride": 12,
    "n_best": 3,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> runs.Run:
    return runs.load(task.main(Config(out=str(tmp_path_factory.mktemp("runs")), **SMALL)))


@pytest.fixture(scope="module")
def doors(run, tmp_path_factory):
    """All signatures as they come back from a SavedModel."""
    offered = {"serving_default": task.serving_fn(run.model, run.config, run.spec)}
    offered |= task.more_signatures(run.model, run.config, run.spec)
    module = tf.Module()
    module.held = [run.model, *(one for f, _ in offered.values() for one in getattr(f, "resources", []))]
    compiled = {name: tf.function(f, input_signature=list(inputs.values())) for name, (f, inputs) in offered.items()}
    folder = str(tmp_path_factory.mktemp("saved"))
    tf.saved_model.save(module, folder, signatures={k: f.get_concrete_function() for k, f in compiled.items()})
    loaded = tf.saved_model.load(folder)

    def ask(name, **inputs):
        kinds = {"question": tf.string, "context": tf.string}
        found = loaded.signatures[name](**{key: tf.constant(one, kinds.get(key)) for key, one in inputs.items()})
        return {key: value.numpy() for key, value in found.items()}

    return ask


def test_a_finished_run_holds_what_the_contract_says(run):
    names = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*")}
    assert names >= {"config.json", "spec.json", "metrics.json", "history.csv", "model.keras", "card.md"}
    assert names >= {f"plots/{name}.png" for name in ("curves", "answers", "by_group")}
    for part in ("validation", "test", "baseline"):
        assert 0 <= run.metrics[part]["f1"] <= 1 and 0 <= run.metrics[part]["no_answer_accuracy"] <= 1
    assert run.metrics["groups"].keys() == {"known", "people", "wording"}
    assert {one["model"] for one in [run.metrics["baseline"], *run.metrics["baselines"]]} == {
        "sliding window",
        "sentence of most TF-IDF",
        "never an answer",
    }
    assert run.metrics["baseline"]["f1"] == max(
        one["f1"] for one in [run.metrics["baseline"], *run.metrics["baselines"]]
    )
    assert run.spec["counts"]["train"] > run.spec["questions"]["train"] == 96  # in several windows each
    first = (run.folder / "plots/first_batch.txt").read_text().splitlines()
    for line in first:
        answer, window = line.split("\t")
        assert answer in window or answer == "(no answer in this window)"
    assert "sliding window" in (run.folder / "card.md").read_text()


def test_the_threshold_of_the_validation_split_is_kept_and_serves(run):
    kept = json.loads((run.folder / "config.json").read_text())["no_answer_threshold"]
    assert isinstance(kept, float) and run.config.no_answer_threshold == kept
    found = {"scores": np.array([[0.5]]), "no_answer_probability": np.array([0.25]), "answers": np.array([["x"]])}
    found |= {"starts": np.array([[3]]), "ends": np.array([[4]])}
    for margin, answer, score in ((kept - 0.1, "", 0.25), (kept + 0.1, "x", 0.5)):
        decided = serving.decided(found | {"margin": np.array([margin])}, run.config)
        assert decided["answer"].numpy()[0].decode() == answer and float(decided["score"][0]) == score
        assert int(decided["start"][0]) == (3 if answer else 0)


def test_every_signature_answers_the_checks_of_the_export(run, doors):
    counts: dict[str, int] = {}
    for batch in task.served_checks(run.model, run.config, run.spec):
        for name, (inputs, expected) in batch.items():
            found = doors(name, **inputs)
            counts[name] = counts.get(name, 0) + len(next(iter(inputs.values())))
            for key, wanted in expected.items():
                if wanted.dtype.kind == "f":
                    np.testing.assert_allclose(found[key], wanted, atol=1e-5, err_msg=f"{name} {key}")
                else:
                    np.testing.assert_array_equal(found[key], wanted, err_msg=f"{name} {key}")
    assert counts.keys() == {"serving_default", "from_token_ids", "tokenize"}
    assert counts["serving_default"] >= 25 and counts["from_token_ids"] > counts["serving_default"]


QUESTIONS = ["Wer wohnt in Zürich?", "", "谁?", "Who?", "what " * 300, "Where?"]
CONTEXTS = ["Зоя živí 🙂 v Zürichu.", "Nora Falk lives in Rosk.", "漢字を書く", "", "a b", "x \x00\xff y. " * 300]


def test_any_strings_get_an_answer_that_stands_where_it_says_and_neighbours_do_not_matter(doors):
    contexts = [one.encode("utf-8") if "\xff" not in one else one.encode("latin-1") for one in CONTEXTS]
    together = doors("serving_default", question=QUESTIONS, context=contexts)
    assert together["answers"].shape == together["scores"].shape == (6, 3)
    assert (np.diff(together["scores"], axis=-1) <= 0).all()
    total = together["scores"].sum(-1) + together["no_answer_probability"]
    assert (together["scores"] >= 0).all() and (total <= 1 + 1e-5).all()
    assert together["no_answer_probability"][3] == 1 and together["answer"][3] == b""
    nothing = doors("serving_default", question=np.array([], object), context=np.array([], object))
    assert nothing["answers"].shape == (0, 3) and nothing["answer"].shape == (0,)
    for i, context in enumerate(contexts):
        start, end = together["start"][i], together["end"][i]
        assert context.decode("utf-8", "replace")[start:end] == together["answer"][i].decode()
        alone = doors("serving_default", question=QUESTIONS[i : i + 1], context=[context])
        np.testing.assert_allclose(alone["scores"][0], together["scores"][i], atol=1e-5)


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> str:
    """A user's own file."""
    path = tmp_path_factory.mktemp("data") / "mine.jsonl"
    rows = [{"context": f"Nora {i} lives in Rosk.", "question": "Where is Nora?", "answer": "Rosk"} for i in range(9)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture(scope="module")
def data():
    return task.load_data(Config(**SMALL))


def test_every_window_of_training_is_labelled_with_the_words_of_the_answer(data):
    tokenizer, raw = text.tokenizer(data.spec["tokenizer"]), data.train.questions.examples
    _, pairs = task.preprocess(raw["question"], raw["context"], tokenizer, data.spec)
    owner = answers.owners(pairs.splits).numpy()
    ids, spans = data.train.windows.examples["token_ids"].to_list(), data.train.windows.examples["span"].numpy()
    wanted = tokenizer.encode(raw["answer"].to_tensor("", shape=(None, 1))[:, 0]).to_list()
    found = dict.fromkeys(range(data.train.questions.count), False)
    for i, row, (start, end) in zip(owner, ids, spans, strict=True):
        if start:
            assert row[start : end + 1] == wanted[i]
            found[i] = True
        else:
            assert end == 0
    assert [found[i] for i in found] == [bool(one) for one in raw["answer"].to_list()]


def test_the_overlap_is_a_third_segment_of_the_passage_alone(data, mine):
    rows = data.train.windows.examples
    for ids, segments in zip(rows["token_ids"].to_list()[:50], rows["segment_ids"].to_list()[:50]):
        begin = ids.index(text.END) + 1
        asked = set(ids[1 : begin - 1])
        assert segments[:begin] == [0] * begin and segments[-1] == 1
        assert segments[begin:-1] == [2 if one in asked else 1 for one in ids[begin:-1]]
    assert int(tf.reduce_max(rows["segment_ids"])) == 2
    plain = task.load_data(Config(data_dir=mine, overlap="no")).train.windows.examples["segment_ids"]
    assert int(tf.reduce_max(plain)) == 1


def test_the_loss_is_the_mean_of_two_cross_entropies():
    logits = np.random.default_rng(0).normal(size=(3, 5, 2)).astype("float32")
    span = np.array([[0, 0], [1, 3], [4, 4]])
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    wanted = -np.mean([[logs[i, span[i, k], k] for k in (0, 1)] for i in range(3)])
    assert float(SpanCrossentropy()(span, logits)) == pytest.approx(wanted, abs=1e-6)
    copy = keras.losses.deserialize(keras.losses.serialize(SpanCrossentropy()))
    assert float(copy(span, logits)) == pytest.approx(wanted, abs=1e-6)
    right = task.span_accuracy(logits.argmax(1), logits)
    assert right.numpy().all() and not task.span_accuracy(logits.argmax(1) + 1, logits).numpy().any()


# Published checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a family, a tiny model with a real tokenizer, as `to_pretrained` writes it."""
    root = tmp_path_factory.mktemp("tokenizers")
    with tarfile.open(GOLDEN / "tokenizers/golden.tar.xz") as archive:
        archive.extractall(root, filter="data")

    def made(kind: str) -> str:
        tokenizer = load(root / {"bert": "bert_uncased"}.get(kind, kind), {"model_type": kind})
        more = {} if kind == "bert" else {"num_segments": 1, "model_type": kind, "first_position": 2}
        sizes = {"width": 8, "depth": 1, "hidden_dim": 8, "max_length": 66, "pad_id": tokenizer.pad_id}
        model = bert_question_answering(tokenizer.vocab_size, **sizes, **more)
        return str(to_pretrained(model, tmp_path_factory.mktemp("checkpoint") / kind, tokenizer))

    return made


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_published_checkpoint_reads_in_its_own_tokens_and_segments(kind, checkpoint, mine):
    config = Config(pretrained=checkpoint(kind), data_dir=mine, max_length=64, max_question=24)
    data = task.load_data(config)
    assert data.spec["segments"] == (kind == "bert") and not data.spec["overlap"]
    model = task.build_model(config, data.spec)
    inputs, _ = next(iter(task.training_batches(data, config)))
    assert model(inputs).shape == (*(inputs["token_ids"] if kind == "bert" else inputs).shape, 2)
    row = (inputs["token_ids"] if kind == "bert" else inputs).numpy()[0]
    tokenizer = text.tokenizer(data.spec["tokenizer"])
    pair = tokenizer.inner.source.encode("a", "b")
    assert row[0] == pair[0] and (row == pair[-1]).sum() == pair.count(pair[-1])
    serve, _ = task.serving_fn(model, config, data.spec)
    question, context = "Wo wohnt sie?", "Sie  heißt Zoë 🙂 und wohnt in Groß-Gerau. " * 9
    found = serve(tf.constant([question]), tf.constant([context]))
    for answer, start, end in zip(found["answer"].numpy(), found["start"].numpy(), found["end"].numpy()):
        assert context[start:end] == answer.decode() and 0 <= start < end


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"max_length": 60}, "--max_length of at least 72"),
        ({"stride": 0}, "--stride"),
        ({"no_answer_threshold": 1.0}, "with --unanswerable"),
        ({"model": "bert_answering"}, "Did you mean 'bert_question_answering'"),
        ({"n_best": 0}, "--n_best"),
    ],
)
def test_flags_that_do_not_fit(flags, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        Config(**flags)


@pytest.mark.parametrize("args", [{"num_segments": 2}, {"num_segments": 0}])
def test_the_overlap_needs_a_third_segment(args):
    with pytest.raises(UsageError, match="Expected --overlap yes"):
        task.arguments(Config(overlap="yes", model_args=args))
    assert task.arguments(Config(model_args=args))["num_segments"] == args["num_segments"]
    assert task.arguments(Config())["num_segments"] == 3
    assert "num_segments" not in task.arguments(Config(size="base"))


# Measures


@pytest.mark.parametrize(
    ("truth", "answer", "exact", "f1"),
    [
        ("The Eiffel Tower!", "eiffel  tower", 1, 1),
        ("in the garden", "garden", 0, 2 / 3),
        ("Danish", "Swiss German", 0, 0),
        ("a b a", "a b", 0, 1),
        ("", "", 1, 1),
        ("the", "", 1, 1),
        ("", "word", 0, 0),
        ("漢字", "漢字", 1, 1),
    ],
)
def test_exact_match_and_f1_are_those_of_squad(truth, answer, exact, f1):
    if truth == "a b a":  # articles go, words count as often as they stand
        truth, answer, f1 = "x b x", "x b", 0.8
    assert evaluation.exact(truth, answer) == exact
    assert evaluation.f1(truth, answer) == pytest.approx(f1)


def test_the_best_of_several_truths_counts_and_none_means_no_answer():
    found = evaluation.measures([("Rosk", "in Rosk"), (), (), ("Tarn",)], ["in rosk", "", "Tarn", ""])
    assert found == {
        "exact_match": 0.5,
        "f1": 0.5,
        "answerable_exact_match": 0.5,
        "answerable_f1": 0.5,
        "no_answer_accuracy": 0.5,
    }


def test_the_threshold_is_the_one_of_best_f1():
    truths = [("a b",), (), ("c d",), (), ("e f",)]
    best = ["a b", "x", "c d", "y", "wrong"]
    margins = np.array([5.0, 1.0, 3.0, -2.0, 2.0])
    assert 2 <= evaluation.best_threshold(truths, best, margins) <= 3
    assert evaluation.best_threshold([()] * 5, best, margins) > 5
    assert evaluation.best_threshold([(one,) for one in best], best, margins) < -2
    assert evaluation.best_threshold([("x",), ()], ["x", "y"], np.array([1.0, 1.0])) in (0.0, 2.0)  # all or none


def test_baselines_find_what_words_alone_tell_and_are_misled_by_paraphrases():
    context = "Nora Falk was born in Port Ellis. She keeps a black cat. Emil Berg was born in Tarn in 1931."
    where = "In which town was Emil Berg born?"
    assert baselines.sliding_window(where, context) == "Tarn"
    assert baselines.sliding_window("When was Emil Berg born?", context) == "1931"
    overlap = baselines.sentence_overlap([context])
    assert overlap(where, context) == "Tarn" and overlap("Which animal does Nora Falk own?", context) != "black cat"
    spans = [context[a:b] for a, b in baselines.candidates(context)]
    assert {"Nora Falk", "Port Ellis", "black cat", "1931"} <= set(spans) and "She" not in spans
    for question, passage in (("", ""), ("?", "..."), ("谁", "漢字")):
        assert isinstance(baselines.sliding_window(question, passage), str)
        assert isinstance(baselines.sentence_overlap([passage or "x"])(question, passage), str)
