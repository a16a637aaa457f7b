"""The task from raw strings to served answers: runs, signatures, bad input, and that a run can be continued exactly."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

import pipelines
from pipelines import checkpoints, runs, text_classification, text_evaluation
from pipelines.config import Failure, UsageError, parse, run_cli
from pipelines.text_classification import Config
from pipelines.transforms import text

SMALL = {
    "limit": 300,
    "epochs": 2,
    "batch_size": 20,
    "model": "text_cnn",
    "model_args": {"filters": 8, "embedding_dim": 8},
    "token_dropout": 0.1,
    "steps_per_execution": 5,
}
STRANGE = ["", "the plot is good .", "не по-английски 漢字 🙂", "\x00\x01\ufeff", "good " * 2500, "a\nb\tc"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> runs.Run:
    return runs.load(text_classification.main(Config(out=str(tmp_path_factory.mktemp("runs")), **SMALL)))


def test_a_finished_run_holds_what_the_contract_says(run):
    names = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*")}
    assert names >= {"config.json", "spec.json", "metrics.json", "history.csv", "model.keras", "card.md"}
    assert names >= {f"plots/{p}.png" for p in ("curves", "confusion_matrix", "most_wrong", "lengths")}
    for part in ("validation", "test", "baseline"):
        assert 0 <= run.metrics[part]["accuracy"] <= 1
    assert "TF-IDF" in run.metrics["baseline"]["model"]
    card = (run.folder / "card.md").read_text()
    assert "tiny_reviews" in card and "TF-IDF" in card and "plots/most_wrong.png" in card
    first = (run.folder / "plots/first_batch.txt").read_text().splitlines()
    assert len(first) == 16 and all(line.split("\t")[0] in run.spec["classes"] for line in first)


@pytest.fixture(scope="module")
def doors(run, tmp_path_factory):
    """All signatures as they come back from a SavedModel."""
    offered = {"serving_default": text_classification.serving_fn(run.model, run.config, run.spec)}
    offered |= text_classification.more_signatures(run.model, run.config, run.spec)
    module = tf.Module()
    module.held = [
        run.model,
        *(item for function, _ in offered.values() for item in getattr(function, "resources", [])),
    ]
    compiled = {
        name: tf.function(function, input_signature=list(inputs.values()))
        for name, (function, inputs) in offered.items()
    }
    folder = str(tmp_path_factory.mktemp("saved"))
    tf.saved_model.save(module, folder, signatures={k: f.get_concrete_function() for k, f in compiled.items()})
    loaded = tf.saved_model.load(folder)
    return lambda name, **inputs: {
        key: value.numpy()
        for key, value in loaded.signatures[name](**{k: tf.constant(v) for k, v in inputs.items()}).items()
    }


def test_every_signature_answers_the_checks_of_the_export(run, doors):
    counts: dict[str, int] = {}
    for batch in text_classification.served_checks(run.model, run.config, run.spec, limit=150):
        for name, (inputs, expected) in batch.items():
            found = doors(name, **inputs)
            for key, wanted in expected.items():
                counts[name] = counts.get(name, 0) + len(wanted)
                if wanted.dtype.kind == "f":
                    np.testing.assert_allclose(found[key], wanted, atol=1e-5, err_msg=f"{name} {key}")
                elif wanted.dtype.kind == "O":
                    assert [one.decode() for one in found[key].ravel()] == wanted.ravel().tolist()
                else:
                    np.testing.assert_array_equal(found[key], wanted)
    assert counts.keys() == {"serving_default", "from_token_ids", "tokenize", "features", "classify"}
    assert counts["tokenize"] == counts["features"] == run.spec["counts"]["test"]


def test_any_string_gets_an_answer_and_its_neighbours_do_not_matter(run, doors):
    together = doors("serving_default", text=STRANGE)
    assert np.isfinite(together["probabilities"]).all()
    np.testing.assert_allclose(together["probabilities"].sum(-1), 1, atol=1e-5)
    for i, one in enumerate(STRANGE):
        np.testing.assert_allclose(
            doors("serving_default", text=[one])["probabilities"][0], together["probabilities"][i], atol=1e-5
        )
    assert doors("serving_default", text=[b"\xff\xfe"])["label"].shape == (1,)


def test_longer_texts_are_cut_where_the_run_says(run):
    config = dataclasses.replace(run.config, max_length=6)
    data = text_classification.load_data(config)
    assert data.train.examples["token_ids"].row_lengths().numpy().max() == 6
    assert data.train.examples["length"].numpy().max() > 6
    assert data.spec["cut"] > 0 and "longer and cut" in " ".join(text_evaluation.described(data.spec))
    ids = text_classification.token_ids(["good " * 50], text.Tokenizer(data.spec["tokenizer"]), data.spec)
    assert ids.shape == (1, 6) and ids[0, -1] == text.END


@pytest.mark.parametrize("kind", text.KINDS)
def test_every_tokenizer_reaches_the_model(kind):
    config = Config(**SMALL | {"tokenizer": kind, "vocab_size": 400})
    data = text_classification.load_data(config)
    assert data.spec["tokenizer"]["kind"] == kind and data.spec["tokenizer"]["vocab_size"] <= 400
    ids, labels = next(iter(text_classification.training_batches(data, config)))
    assert ids.shape == (20, ids.shape[1]) and ids.shape[1] % 8 == 0 and labels.shape == (20, 2)
    assert int(tf.reduce_max(ids)) < data.spec["tokenizer"]["vocab_size"]
    model = text_classification.build_model(config, data.spec)
    assert model(ids).shape == (20, 2)


@pytest.mark.slow
def test_a_run_stopped_within_an_epoch_is_continued_within_it(run, tmp_path, monkeypatch):
    class Stop(BaseException):
        pass

    original = checkpoints.ExactResume.on_train_batch_end

    def stop_at_step_20(self, batch, logs=None):
        original(self, batch, logs)
        if self.step >= 20:
            self.save()
            self.wait()
            raise Stop

    monkeypatch.setattr(checkpoints.ExactResume, "on_train_batch_end", stop_at_step_20)
    with pytest.raises(Stop):
        text_classification.main(Config(**SMALL, out=str(tmp_path)))
    monkeypatch.undo()
    (folder,) = runs.find(tmp_path)
    text_classification.main(Config(resume=str(folder)))
    for a, b in zip(run.model.get_weights(), runs.load(folder).model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    read = [json.loads((path / "metrics.json").read_text())["test"] for path in (run.folder, folder)]
    assert read[0] == read[1]


def test_the_baseline_chooses_on_validation_and_reads_pairs_of_words():
    words = ["good", "bad"]
    texts = [f"it is {'not ' * negated}{words[k]} {i}" for i in range(30) for k in (0, 1) for negated in (0, 1)]
    labels = np.array([k ^ negated for _ in range(30) for k in (0, 1) for negated in (0, 1)])
    found = text_evaluation.tfidf_baseline((texts, labels), (texts, labels), (texts, labels), num_classes=3)
    assert found["accuracy"] == 1.0 and found["majority_accuracy"] == 0.5 and found["C"] in text_evaluation.STRENGTHS


def test_pictures_show_any_text(tmp_path, recwarn):
    texts = [*STRANGE, "$x^2 & {y}$ \\frac", "字" * 400]
    labels = np.arange(len(texts)) % 2
    probabilities = np.tile([[0.9, 0.1]], (len(texts), 1))
    path = tmp_path / "wrong.png"
    text_evaluation.most_wrong(texts, labels, probabilities, ["a", "b_{"], path)
    assert path.stat().st_size > 10_000
    lengths = {"train": np.array([1, 1, 2]), "test": np.array([1])}
    assert text_evaluation.length_histogram(lengths, 256, tmp_path / "lengths.png").exists()
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


@pytest.fixture
def cli(capfd, tmp_path):
    def call(*words: object) -> tuple[int, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_cli(pipelines.get("text_classification"), [*map(str, words), "--out", str(tmp_path / "runs")])
        said = "\n".join(line for line in capfd.readouterr().err.splitlines() if "absl" not in line)
        return stopped.value.code, said

    return call


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "lsmt"], "Did you mean 'lstm'?"),
        (["--dataset", "tiny_revews"], "Did you mean 'tiny_reviews'?"),
        (["--tokenizer", "wordpeice"], "Did you mean 'wordpiece'?"),
        (["--tokenizer", "bpe", "--vocab_size", "100"], "at least 261 for bpe"),
        (["--vocab_size", "4"], "Expected --vocab_size of at least 5. Received: 4"),
        (["--max_length", "1"], "Expected --max_length of at least 2. Received: 1"),
        (["--token_dropout", "1"], "Expected --token_dropout in [0, 1)"),
        (["--model", "text_cnn", "--model_args", "filtres=8"], "Did you mean 'filters'?"),
        (["--data_dir", "nowhere.csv"], "Expected --data_dir to be a file"),
    ],
    ids=lambda x: "_".join(x) if isinstance(x, list) else None,
)
def test_usage_errors_exit_with_2_and_leave_no_run(cli, words, said, tmp_path):
    code, shown = cli(*words)
    assert said in shown
    assert (code, shown.count("error:"), "Traceback" in shown, len(shown.splitlines())) == (2, 1, False, 1), shown
    assert not (tmp_path / "runs").exists()


def test_bad_tables_exit_in_one_line_and_good_ones_run(cli, tmp_path):
    table = tmp_path / "mails.csv"
    table.write_text("subject,folder\n" + "".join(f"win {i} now,spam\nmeeting at {i},work\n" for i in range(40)))
    code, shown = cli("--data_dir", table, "--text_column", "subjct", "--label_column", "folder")
    assert code == 2 and "(subject, folder). Did you mean 'subject'?" in shown and len(shown.splitlines()) == 1
    words = ["--text_column", "subject", "--label_column", "folder", "--model", "text_cnn", "--batch_size", 8]
    code, shown = cli("--data_dir", table, *words, "--epochs", 6)
    assert code == 0, shown
    folder = runs.find(tmp_path / "runs")[0]
    assert json.loads((folder / "metrics.json").read_text())["test"]["accuracy"] == 1.0
    table.write_text("subject,folder\n" + "win now,spam\n" * 40)
    code, shown = cli("--data_dir", table, *words)
    assert code == 1 and "at least two classes" in shown and "spam" in shown and len(shown.splitlines()) == 1


def test_one_class_left_by_the_limit_is_told(tmp_path):
    with pytest.raises(Failure, match="at least two classes. Received: one class in 1 texts"):
        text_classification.load_data(Config(limit=1))


def test_flags_of_another_kind_are_refused():
    with pytest.raises(UsageError, match="Expected --form"):
        parse(Config, ["--form", "nfkc"], prog="test")
