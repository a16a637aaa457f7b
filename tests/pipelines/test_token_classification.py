"""The task from raw strings to served entities: runs, measures, signatures, bad input, and exact continuation."""

from __future__ import annotations

import dataclasses
import json
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import pipelines
from models.bert import bert
from models.checkpoints import to_pretrained
from models.checkpoints.tokenizers import load
from pipelines import runs
from pipelines import token_classification as task
from pipelines import token_classification_evaluation as evaluation
from pipelines.config import run_cli
from pipelines.datasets import tagged
from pipelines.datasets.tag_schemes import spans_of
from pipelines.token_classification import Config
from pipelines.transforms import entities, spans, text

GOLDEN = Path(__file__).parent.parent / "golden"
TINY = {"width": 32, "depth": 1, "num_heads": 2, "hidden_dim": 32, "max_length": 64, "dropout": 0.0}
SMALL = {
    "model": "bert_token_classifier",
    "limit": 400,
    "epochs": 12,
    "batch_size": 20,
    "max_length": 40,
    "model_args": TINY | {"positions": "rotary"},
    "learning_rate": 1e-2,
}
STRANGE = [
    "",
    " ",
    "Ana Gil left Oslo.",
    "не по-английски 漢字 🙂",
    "\x00\x01\ufeff",
    "Oslo " * 400,
    "a\nb\tc",
    "É\u0301!",
]
NAMES = "O B-a I-a B-b I-b".split()


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
    compiled = {name: tf.function(f, input_signature=list(given.values())) for name, (f, given) in offered.items()}
    folder = str(tmp_path_factory.mktemp("saved"))
    tf.saved_model.save(module, folder, signatures={k: f.get_concrete_function() for k, f in compiled.items()})
    loaded = tf.saved_model.load(folder)
    return lambda name, **inputs: {
        key: value.numpy()
        for key, value in loaded.signatures[name](**{k: tf.constant(v) for k, v in inputs.items()}).items()
    }


def test_a_finished_run_holds_what_the_contract_says(run):
    names = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*")}
    assert names >= {"config.json", "spec.json", "metrics.json", "history.csv", "model.keras", "card.md"}
    assert names >= {f"plots/{p}.png" for p in ("curves", "confusion_matrix", "spans", "lengths")}
    for part in ("validation", "test", "baseline"):
        assert 0 <= run.metrics[part]["f1"] <= 1 and run.metrics[part]["kinds"]
    assert set(run.metrics["test"]["groups"]) == {"seen", "unseen", "ambiguous"}
    assert [one["model"].split(" on ")[0] for one in run.metrics["baselines"]] == ["logistic regression"]
    assert run.metrics["baselines"][0]["f1"] > run.metrics["baseline"]["f1"] > 0.1
    card = (run.folder / "card.md").read_text()
    assert "tiny_entities" in card and "the commonest tag" in card and "plots/spans.png" in card
    first = (run.folder / "plots/first_batch.txt").read_text().splitlines()
    assert len(first) == 16 and any("/B-" in line for line in first)


def test_the_f1_of_an_epoch_is_the_f1_that_is_reported(run):
    assert not run.spec["cut"] and run.metrics["validation"]["f1"] > 0.2
    best = max(runs.history(run.folder), key=lambda row: (row["val_f1"], -row["val_loss"]))
    np.testing.assert_allclose(best["val_f1"], run.metrics["validation"]["f1"], atol=1e-5)
    np.testing.assert_allclose(best["val_accuracy"], run.metrics["validation"]["accuracy"], atol=1e-5)


@pytest.mark.parametrize(
    ("true", "found", "expected"),
    [
        ("B-a I-a O B-b", "B-a I-a O B-b", {"f1": 1.0, "precision": 1.0, "recall": 1.0, "accuracy": 1.0}),
        ("B-a I-a O B-b", "B-a O O B-b", {"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 0.75}),
        ("B-a I-a O B-b", "I-a I-a O O", {"f1": 0.666667, "precision": 1.0, "recall": 0.5}),  # repaired
        ("B-a B-a O O", "B-a I-a O O", {"f1": 0.0, "macro_f1": 0.0}),  # one span of two words, not two
        ("B-a O O B-b", "B-a O B-b O", {"f1": 0.5, "macro_f1": 0.5}),
        ("O O O O", "O O O O", {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 1.0}),
        ("O O O O", "O B-a O O", {"f1": 0.0, "precision": 0.0, "accuracy": 0.75}),
    ],
)
def test_measures_of_cases_written_by_hand(true, found, expected):
    measured = evaluation.measures([true.split(), []], [found.split(), []])
    assert {name: measured[name] for name in expected} == expected


def test_measures_of_kinds_are_those_of_the_kind_alone():
    true, found = [["B-a", "O", "B-b", "B-b"]], [["B-a", "B-a", "B-b", "O"]]
    kinds = evaluation.measures(true, found)["kinds"]
    assert kinds["a"] == {"f1": 0.666667, "precision": 0.5, "recall": 1.0, "count": 1}
    assert kinds["b"] == {"f1": 0.666667, "precision": 1.0, "recall": 0.5, "count": 2}


@tf.function(input_signature=[tf.TensorSpec([None], tf.string), tf.RaggedTensorSpec([None, None], tf.int32)])
def read(texts, numbers):
    found = spans.words_with_offsets(texts)
    return entities.read(texts, found, numbers, tf.cast(numbers, tf.float32) / 8, entities.Tags(NAMES))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, 4), max_size=8), min_size=1, max_size=4))
def test_the_graph_reads_any_sequence_of_tags_as_python_does(rows):
    texts = [" ".join("né" for _ in row) for row in rows]
    numbers = tf.ragged.constant(rows, tf.int32, ragged_rank=1).with_row_splits_dtype(tf.int64)
    answer = read(tf.constant(texts), numbers)
    for place, row in enumerate(rows):
        expected = evaluation.placed(texts[place], [NAMES[k] for k in row], [k / 8 for k in row])
        count = int((answer["starts"][place] >= 0).numpy().sum())
        columns = zip(*(answer[name][place, :count].numpy().tolist() for name, *_ in evaluation.PLACED))
        got = [(a.decode(), b.decode(), *rest) for a, b, *rest in columns]
        assert [one[:4] for one in got] == [one[:4] for one in expected]
        np.testing.assert_allclose([one[4] for one in got], [one[4] for one in expected], atol=1e-6)


def test_every_signature_answers_the_checks_of_the_export(run, doors):
    counts: dict[str, int] = {}
    for batch in task.served_checks(run.model, run.config, run.spec, limit=60):
        for name, (inputs, expected) in batch.items():
            found = doors(name, **inputs)
            for key, wanted in expected.items():
                counts[name] = counts.get(name, 0) + len(wanted)
                if wanted.dtype.kind == "f":
                    np.testing.assert_allclose(found[key], wanted, atol=1e-5, err_msg=f"{name} {key}")
                elif wanted.dtype.kind == "O":
                    assert [one.decode() for one in found[key].ravel()] == wanted.ravel().tolist(), key
                else:
                    np.testing.assert_array_equal(found[key], wanted, err_msg=f"{name} {key}")
    assert counts.keys() == {"serving_default", "from_token_ids", "tokenize", "tag_words"}
    assert min(counts.values()) >= 120


def test_entities_are_what_python_finds_at_their_places(doors):
    answer = doors("serving_default", text=["“Ana Gil” 🙂 left É\u0301 Oslo on 3 May 2001.", ""])
    sent = "“Ana Gil” 🙂 left É\u0301 Oslo on 3 May 2001."
    some = answer["starts"][0] >= 0
    assert [sent[a:b] for a, b in zip(answer["starts"][0][some], answer["ends"][0][some])] == [
        one.decode() for one in answer["entities"][0][some]
    ]
    assert set(answer["starts"][1]) <= {-1} and set(answer["labels"][1]) <= {b""}
    assert [one.decode() for one in answer["words"][0]][:4] == ["“", "Ana", "Gil", "”"]


def test_any_string_gets_an_answer_and_its_neighbours_do_not_matter(doors):
    together = doors("serving_default", text=STRANGE)
    assert together["truncated"].tolist() == [one.startswith("Oslo ") for one in STRANGE]
    assert np.isfinite(together["scores"]).all()
    for place, one in enumerate(STRANGE):
        alone = doors("serving_default", text=[one])
        for name, values in alone.items():
            if values.ndim == 2:
                width = values.shape[1]
                same = together[name][place, :width] if values.dtype.kind == "O" else values[0]
                np.testing.assert_array_equal(same, values[0], err_msg=name)
                assert set(together[name][place, width:].ravel().tolist()) <= {b"", -1, 0.0}
    assert doors("serving_default", text=[b"\xff\xfe"])["words"].shape == (1, 2)
    assert doors("serving_default", text=np.array([], object))["tags"].shape[0] == 0


def test_words_that_were_split_elsewhere_are_tagged_in_their_places(doors):
    answer = doors("tag_words", words=[["Ana", "Gil", "left", "U.S.", ""], ["Oslo", "", "", "", ""]])
    assert answer["tags"].shape == (2, 5)
    assert [one != b"" for one in answer["tags"].ravel()] == [True] * 4 + [False] + [True] + [False] * 4
    long = doors("tag_words", words=[["Ana"] * 60])
    assert long["truncated"].tolist() == [True] and set(long["tags"][0, 39:]) == {b"O"}


def test_only_the_first_token_of_a_word_is_taught():
    data = task.load_data(Config(**SMALL | {"tokenizer": "sentencepiece", "vocab_size": 300, "max_length": 20}))
    ids, tags, weights = next(iter(task.evaluation_batches(data.train, data.spec)))
    owner, first = data.train.examples["owner"].to_list(), data.train.examples["first"].to_list()
    known, cut = data.train.examples["tags"].to_list(), 0
    for row in range(len(ids)):
        count = len(owner[row])
        assert weights[row].numpy()[:count].tolist() == [float(one) for one in first[row]]
        assert not weights[row].numpy()[count:].any()
        here = tags[row].numpy()[weights[row].numpy() > 0].tolist()
        assert here == known[row][: len(here)]  # the words that were not cut off, in order
        cut += len(here) < len(known[row])
    assert cut and sum(len(one) for one in owner) > sum(map(sum, first)) + len(owner)


def test_dropped_words_are_dropped_whole(run):
    data = task.load_data(run.config)
    config = dataclasses.replace(run.config, word_dropout=0.5)
    ids, *_ = next(iter(task.training_batches(data, config)))
    share = float(tf.reduce_mean(tf.cast(ids == text.UNKNOWN, tf.float32)))
    plain, tags, weights = next(iter(task.training_batches(data, dataclasses.replace(config, word_dropout=0.0))))
    assert share > float(tf.reduce_mean(tf.cast(plain == text.UNKNOWN, tf.float32))) + 0.1
    assert ids.shape == plain.shape == tags.shape == weights.shape


@pytest.mark.parametrize("kind", text.KINDS)
def test_every_tokenizer_reaches_the_model(kind):
    config = Config(**SMALL | {"tokenizer": kind, "vocab_size": 400, "limit": 60, "max_length": 200})
    data = task.load_data(config)
    assert data.spec["tokenizer"]["kind"] == kind and data.spec["tokenizer"]["vocab_size"] <= 400
    ids, _, weights = next(iter(task.evaluation_batches(data.test, data.spec)))
    assert int(tf.reduce_max(ids)) < 400
    words = data.test.examples["words"].row_lengths().numpy()
    np.testing.assert_array_equal(weights.numpy().sum(-1), words)  # each word has one place where it is tagged


def test_batches_are_a_function_of_the_seed_and_the_step(run):
    data = task.load_data(run.config)
    stream = list(task.training_batches(data, run.config).take(30))
    for begin in (7, 25):
        for one, other in zip(task.training_batches(data, run.config, begin).take(3), stream[begin:]):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)
    other = next(iter(task.training_batches(data, dataclasses.replace(run.config, seed=1))))
    assert other[0].shape != stream[0][0].shape or (other[0].numpy() != stream[0][0].numpy()).any()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A tiny BERT without a head, with a real tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    with tarfile.open(GOLDEN / "tokenizers/golden.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    tokenizer = load(folder / "bert_uncased", {"model_type": "bert"})
    keras.utils.set_random_seed(0)
    model = bert(tokenizer.vocab_size, pad_id=tokenizer.pad_id, **TINY)
    return to_pretrained(model, folder / "tiny", tokenizer)


@pytest.mark.slow
def test_a_published_checkpoint_is_fine_tuned_and_serves_raw_strings(published, tmp_path, monkeypatch):
    monkeypatch.setattr(task, "pictures", lambda *_: None)
    rows = [{"text": f"Ana{n} Gil lives in Oslo.", "entities": [[0, 8, "PER"], [18, 22, "LOC"]]} for n in range(10)]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows * 6))
    sizes = {"epochs": 8, "batch_size": 8, "max_length": 24, "learning_rate": 1e-2, "word_dropout": 0.0}
    own = {"pretrained": str(published), "data_dir": str(path), "out": str(tmp_path)}
    config = Config(model="bert_token_classifier", **sizes, **own)
    with pytest.warns(UserWarning, match="in the training split too"):
        run = runs.load(task.main(config))
    assert run.metrics["test"]["f1"] == 1.0 and run.spec["tokenizer"]["kind"] == text.PUBLISHED
    serve, signature = task.serving_fn(run.model, run.config, run.spec)
    answer = tf.function(serve, input_signature=list(signature.values()))(tf.constant(["Ana3  Gil lives in\nOslo."]))
    assert [one.decode() for one in answer["entities"][0].numpy()] == ["Ana3  Gil", "Oslo"]
    assert answer["starts"].numpy().tolist() == [[0, 19]] and answer["ends"].numpy().tolist() == [[9, 23]]
    assert answer["labels"].numpy().tolist() == [[b"PER", b"LOC"]]


def test_linear_tagger_reads_neighbours():
    words = [["in" if n % 2 else "with", "Jordan", str(n)] for n in range(80)]
    tags = [["O", "B-place" if n % 2 else "B-person", "O"] for n in range(80)]
    found = dict(evaluation.simple_taggers((words, tags), (words, tags), (words, tags)))
    often, linear = found.values()
    assert linear == tags and often != tags and {row[1] for row in often} == {"B-person"}
    assert evaluation.shape("Ab12.C") == "Xxd.X"


def test_pictures_show_any_text(tmp_path, recwarn):
    words = [["$x^2", "&", "{y}", "字" * 40], [], ["\x00", "a"] * 40]
    true = [["B-a", "I-a", "O", "B-b_{"], [], ["O", "B-a"] * 40]
    found = [["B-a", "O", "O", "B-b_{"], [], ["O", "B-a"] * 40]
    answers = evaluation.Answers(found, [[1.0] * len(row) for row in found])
    assert evaluation.draw_spans(words, true, answers, tmp_path / "spans.png").stat().st_size > 5000
    assert evaluation.confusion(true, found, ["a", "b_{"], tmp_path / "confusion.png").exists()
    assert evaluation.confusion([["O"]], [["O"]], ["a"], tmp_path / "none.png").exists()
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


@pytest.fixture
def cli(capfd, tmp_path):
    def call(*words: object) -> tuple[int, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_cli(pipelines.get("token_classification"), [*map(str, words), "--out", str(tmp_path / "runs")])
        return stopped.value.code, "\n".join(
            line for line in capfd.readouterr().err.splitlines() if "absl" not in line and "warning" not in line
        )

    return call


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["--model", "bert_token_clasifier"], "Did you mean 'bert_token_classifier'?", 2),
        (["--dataset", "tiny_entitys"], "Did you mean 'tiny_entities'?", 2),
        (["--dataset", "tiny_reviews"], "Expected a data set of tokens with a tag each", 2),
        (["--max_length", "2"], "Expected --max_length of at least 3. Received: 2", 2),
        (["--word_dropout", "1"], "Expected --word_dropout in [0, 1)", 2),
        (
            ["--model", "bert_token_classifier", "--limit", "40", "--max_length", "600"],
            "Expected --max_length of at most 512",
            2,
        ),
        (["--model_args", "widht=8"], "Did you mean 'width'?", 2),
        (["--data_dir", "nowhere.conll"], "Expected --data_dir to be a file", 2),
        (["--trained", "head"], "Expected --pretrained with --trained", 2),
    ],
    ids=lambda x: "_".join(x) if isinstance(x, list) else None,
)
def test_usage_errors_exit_with_2_and_leave_no_run(cli, words, said, code, tmp_path):
    found, shown = cli(*words)
    assert said in shown
    assert (found, shown.count("error:"), "Traceback" in shown, len(shown.splitlines())) == (code, 1, False, 1), shown
    assert not (tmp_path / "runs").exists()


def test_bad_files_exit_with_1_in_one_line(cli, tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("Ana B-PER\nleft\n\n")
    code, shown = cli("--data_dir", path)
    assert code == 1 and "line 2 has 1 of 2 columns" in shown and len(shown.splitlines()) == 1


def test_reading_gives_the_words_that_serving_finds(run):
    raw = tagged.load("tiny_entities", limit=50)
    found = spans.words_with_offsets(raw.test.examples["text"])
    assert found.words.to_list() == raw.test.examples["words"].to_list()
    names = [[raw.tags[k] for k in row] for row in raw.test.examples["tags"].to_list()]
    assert all(spans_of(row) for row in names[:10])
