"""Translation: what is trained on, measured, drawn and served; one small trained run shared by all."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import pipelines
from models.layers.decoding import END, PAD, START
from models.losses import TokenCrossentropy
from pipelines import runs, sequence_evaluation, sequence_to_sequence, translation
from pipelines import translation_evaluation as evaluation
from pipelines.config import Failure, run_cli
from pipelines.transforms import parallel
from pipelines.translation import Config

SMALL = {
    "seq2seq": {"width": 16, "embedding_dim": 8},
    "transformer": {"width": 16, "depth": 1, "num_heads": 2, "hidden_dim": 16},
}
GROUPS = {"days", "styles", "locale"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = Config(
        model_args=SMALL["seq2seq"], limit=128, epochs=2, batch_size=32, out=str(tmp_path_factory.mktemp("runs"))
    )
    return runs.load(translation.main(config))


@pytest.fixture(scope="module")
def data(run):
    return translation.load_data(run.config)


@pytest.fixture(scope="module")
def serve(run):
    return translation.translator(run.model, run.config, run.spec)


def test_the_groups_of_the_test_split_are_reported_apart(run):
    metrics = run.metrics
    assert metrics["groups"].keys() == GROUPS
    assert sum(group["examples"] for group in metrics["groups"].values()) == run.spec["counts"]["test"]
    for name in ("exact_match", "bleu", "chrf"):
        assert metrics["test"][name] == metrics["groups"]["days"][name], "the headline is of unseen days"
        assert metrics["baseline"][name] == metrics["groups"]["days"]["baselines"][0][name]
    assert [one["model"] for one in metrics["baselines"]] == ["source as it is", "commonest target", "dateutil"]
    assert 0 < metrics["test"]["token_accuracy"] < 1 and metrics["test"]["loss"] > 0
    assert "tok:13a" in metrics["bleu_signature"]


def test_the_run_folder_shows_what_the_model_saw_and_said(run):
    assert (run.folder / "plots/alignments.png").stat().st_size > 5000
    assert "end" in (run.folder / "plots/first_batch.txt").read_text()
    page = (run.folder / "examples.md").read_text()
    assert "## Furthest from the truth" in page and page.count("\n| ") > 20
    assert "alignments.png" in (run.folder / "card.md").read_text()


def test_the_served_function_answers_what_was_evaluated(run, data, serve):
    rows = sequence_evaluation.rows_of(serve, data.test, "translation")
    assert (
        run.metrics["groups"]["styles"]["exact_match"]
        == evaluation.of_rows(rows, "13a", chosen=[row["group"] == "styles" for row in rows])["exact_match"]
    )
    answer = serve(tf.constant([row["source"] for row in rows[:5]]))
    assert answer["translations"].shape == answer["scores"].shape == (5, run.config.beam_width)
    assert [t.decode() for t in answer["translation"].numpy()] == [row["answers"][0] for row in rows[:5]]
    np.testing.assert_array_equal(answer["score"], answer["scores"][:, 0])
    np.testing.assert_allclose(answer["score"], [row["scores"][0] for row in rows[:5]], rtol=1e-5)
    assert (np.diff(answer["scores"], axis=1) <= 0).all(), "the best first"


def test_neighbours_in_a_batch_change_no_answer(serve):
    alone, beside = serve(tf.constant(["9.3.07"])), serve(tf.constant(["9.3.07", "Freitag, 9. März 2007"]))
    assert alone["translation"][0] == beside["translation"][0]
    np.testing.assert_allclose(alone["scores"][0], beside["scores"][0], rtol=1e-5)


def test_empty_overlong_and_strange_texts_have_answers(run, serve):
    long = "9" * (run.config.max_length + 50)
    answer = serve(tf.constant(["", long, "ᚠᚢᚦ \x00", b"\xff\xfe"]))
    assert answer["truncated"].numpy().tolist() == [False, True, False, False]
    assert answer["translation"][0] == b"" and answer["score"][0] == 0
    cut = serve(tf.constant([long[: run.config.max_length - 1]]))
    assert not cut["truncated"][0] and cut["translation"][0] == answer["translation"][1], "the beginning is translated"


def test_all_doors_answer_as_keras_does(run, serve):
    (checks,) = translation.served_checks(run.model, run.config, run.spec, limit=6)
    doors = {"serving_default": (serve, None)} | translation.more_signatures(run.model, run.config, run.spec)
    assert checks.keys() == doors.keys()
    for name, (inputs, expected) in checks.items():
        found = doors[name][0](*(tf.constant(value) for value in inputs.values()))
        for output, values in expected.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(found[output], values, rtol=1e-4, atol=1e-5)
            else:
                np.testing.assert_array_equal(found[output].numpy(), values)


def test_the_score_of_the_best_answer_is_its_probability_with_the_length_penalty(run, serve):
    text = tf.constant(["9.3.07", "Freitag, 9. März 2007"])
    best = serve(text)
    score = translation.more_signatures(run.model, run.config, run.spec)["score"][0](text, best["translation"])
    penalty = ((5 + score["tokens"]) / 6) ** run.config.length_penalty  # Wu et al. 2016, eq. 14
    finished = score["tokens"] < run.spec["max_target"]  # the last place holds the end for certain
    np.testing.assert_allclose(best["score"][finished], (score["log_probability"] / penalty)[finished], rtol=1e-4)


def test_what_the_model_is_told_never_holds_what_it_is_asked(run, data):
    inputs, after, weights = parallel.teacher_forcing(
        {name: data.train.examples[name][:9] for name in ("source", "target")}, run.spec
    )
    before = inputs["target"].numpy()
    assert (before[:, 0] == START).all() and END not in before
    for told, asked, weight in zip(before, after.numpy(), weights.numpy()):
        length = int(weight.sum())
        assert asked[length - 1] == END and not asked[length:].any() and not told[length:].any()
        np.testing.assert_array_equal(told[1:length], asked[: length - 1])
        np.testing.assert_array_equal(weight, asked != PAD)


def test_batches_of_a_resumed_run_are_those_of_one_never_stopped(run, data):
    def take(first, count):
        return list(translation.training_batches(data, run.config, first).take(count).as_numpy_iterator())

    whole = take(0, 10)
    for start in (3, 6):  # within a pass of four, and within the second
        for one, other in zip(whole[start:], take(start, 10 - start), strict=True):
            for a, b in zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True):
                np.testing.assert_array_equal(a, b)


def test_the_loss_is_kerass_with_label_smoothing_over_what_is_no_padding():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(3, 4, 7)).astype("float32"), random.integers(0, 7, (3, 4))
    weights = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], "float32")
    for smoothing in (0.0, 0.3):
        whole = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing, reduction=None)
        wanted = (np.asarray(whole(np.eye(7)[labels], logits)) * weights).sum() / weights.sum()
        loss = TokenCrossentropy(smoothing)
        np.testing.assert_allclose(loss(labels, logits, weights), wanted, rtol=1e-5)
        assert TokenCrossentropy.from_config(loss.get_config()).label_smoothing == smoothing
    with pytest.raises(ValueError, match=r"in \[0, 1\). Received: 1"):
        TokenCrossentropy(1)


def test_measures_are_right_where_they_can_be_told_by_hand():
    same = evaluation.measures(["the cat sat on the mat", "no"], ["the cat sat on the mat", "no"])
    assert same == {"exact_match": 1.0, "bleu": 100.0, "chrf": 100.0}
    half = evaluation.measures(["a b c d", "x y z w"], ["a b c d", "q r s t"])
    assert half["exact_match"] == 0.5 and 0 < half["bleu"] < 100 and 0 < half["chrf"] < 100
    assert evaluation.measures([], []) == {"exact_match": 0.0, "bleu": 0.0, "chrf": 0.0}


def test_baselines_do_what_their_names_say():
    train = (["9. März 2007", "5 juin 1999", "5 juin 1999"], ["2007-03-09", "1999-06-05", "1999-06-05"])
    found = evaluation.baselines(train, ["8. März 2008", "4 juin 1999", "June 4, 1999"])
    assert found["nearest training source"][:2] == ["2007-03-09", "1999-06-05"]
    assert found["commonest target"] == ["1999-06-05"] * 3
    assert found["source as it is"][2] == "June 4, 1999"
    assert found["dateutil"][2] == "1999-06-04"
    assert "dateutil" not in evaluation.baselines((["a", "b"], ["c", "d"]), ["a"])


def test_a_label_stands_for_every_token(run):
    source, _ = parallel.tokenizers(run.spec["tokenizers"])
    ids = source.encode(["9 \u202f2"]).values.numpy()
    assert parallel.labels([*ids, END], source) == ["9", "␣", "␣", "2", "end"]
    assert evaluation.drawable("9. März ␣") and not evaluation.drawable("年")


@pytest.mark.slow
def test_user_files_train_a_transformer_with_one_vocabulary_for_both(tmp_path):
    lines = [f"the {i} small cats saw {i % 7} dogs" for i in range(60)]
    (tmp_path / "train.src").write_text("\n".join(lines))
    (tmp_path / "train.tgt").write_text("\n".join(line.replace("small", "big") for line in lines))
    config = Config(
        model="transformer",
        model_args=SMALL["transformer"] | {"shared_embeddings": True},
        data_dir=str(tmp_path),
        tokenizer="bpe",
        vocab_size=300,
        shared_vocabulary=True,
        epochs=1,
        out=str(tmp_path / "runs"),
    )
    run = runs.load(translation.main(config))
    assert run.metrics["groups"] == {} and len(run.spec["tokenizers"]) == 1
    assert run.metrics["test"].keys() >= {"exact_match", "bleu", "chrf", "token_accuracy", "loss"}


def test_training_pairs_that_are_too_long_are_left_out_and_counted():
    config = Config(limit=200, max_length=16)
    data = translation.load_data(config)
    assert 0 < data.spec["left_out"] < 200
    assert data.spec["counts"]["train"] == data.train.count == 200 - data.spec["left_out"]
    assert f"{data.spec['left_out']} longer pairs left out" in translation.described(data.spec, config)
    assert int(parallel.token_counts(data.train).numpy().max()) < 16
    with pytest.raises(Failure, match="at most 3 tokens"):
        translation.load_data(Config(limit=50, max_length=3))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--model", "seq2sqe"], 2, "Did you mean 'seq2seq'?"),
        (["--tokenizer", "caracter"], 2, "Did you mean 'character'?"),
        (["--dataset", "tiny_messages/en_xx"], 2, "Expected two languages of tiny_messages"),
        (["--source_file", "only.txt"], 2, "--source_file and --target_file together"),
        (["--model_args", "atention=dot"], 2, "Did you mean 'attention'?"),
        (["--model_args", "attention=none", "--coverage_penalty", "0.2"], 2, "coverage_penalty"),
        (["--max_length", "1"], 2, "--max_length of at least 2"),
        (["--class_weights", "balanced"], 2, "Expected a flag of"),
        (["--source_file", "a.txt", "--target_file", "b.txt"], 1, "readable file of sentences. Received: a.txt"),
    ],
    ids=lambda x: "_".join(x) if isinstance(x, list) else None,
)
def test_wrong_flags_are_told_in_a_line_and_leave_no_run(words, code, said, capfd, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        run_cli(pipelines.get("translation"), [*words, "--limit", "40", "--out", str(tmp_path / "runs")])
    shown = capfd.readouterr().err
    assert stopped.value.code == code and said in shown and "Traceback" not in shown
    assert not (tmp_path / "runs").exists()


def test_a_beam_of_one_is_greedy_search_with_one_answer(data, run):
    config = dataclasses.replace(run.config, model="transformer", model_args=SMALL["transformer"], beam_width=1)
    model = translation.build_model(config, run.spec)
    serve = translation.translator(model, config, run.spec)
    greedy = sequence_to_sequence.predict(serve, np.array([b"9.3.07", b"1 de enero de 1950"], object))
    assert greedy["translations"].shape == (2, 1)
