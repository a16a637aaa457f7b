"""Text to text: several tasks in one model, its measures and how it is served; one small run shared by all."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import pipelines
from models.checkpoints import from_pretrained, to_pretrained
from models.checkpoints.tokenizers import load
from models.t5 import t5
from pipelines import runs, sequence_evaluation, sequence_to_sequence, text_to_text, translation
from pipelines import text_to_text_evaluation as evaluation
from pipelines.config import run_cli
from pipelines.text_to_text import Config
from pipelines.transforms import parallel
from pipelines.transforms import text as tokens

GOLDEN = Path(__file__).parent.parent / "golden"
SMALL = {"width": 8, "depth": 1, "num_heads": 2, "head_dim": 4, "hidden_dim": 8}
TASKS = {"summarize": "summarize: ", "date": "date: ", "digits": "digits: "}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = Config(model_args=SMALL, limit=96, epochs=1, beam_width=2, out=str(tmp_path_factory.mktemp("runs")))
    return runs.load(text_to_text.main(config))


@pytest.fixture(scope="module")
def data(run):
    return text_to_text.load_data(run.config)


@pytest.fixture(scope="module")
def serve(run):
    return text_to_text.answerer(run.model, run.config, run.spec)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny T5 with a real tokenizer of the family, as `to_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    with tarfile.open(GOLDEN / "tokenizers/golden.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    tokenizer = load(folder / "t5", {"model_type": "t5"})
    keras.utils.set_random_seed(0)
    return to_pretrained(t5(tokenizer.vocab_size, **SMALL), folder / "tiny", tokenizer)


def test_tasks_and_groups_are_reported_apart(run):
    metrics = run.metrics
    assert metrics["tasks"].keys() == TASKS.keys() and metrics["groups"].keys() == {"reports", "names", "longer"}
    assert sum(one["examples"] for one in metrics["groups"].values()) == run.spec["counts"]["test"]
    assert sum(one["examples"] for one in metrics["tasks"].values()) == metrics["groups"]["reports"]["examples"]
    for name in ("rouge_1", "rouge_2", "rouge_l", "chrf", "exact_match"):
        assert metrics["test"][name] == metrics["groups"]["reports"][name], "the headline is of known names"
        assert metrics["baseline"][name] == metrics["groups"]["reports"]["baselines"][0][name]
    assert metrics["baseline"]["model"] == "nearest training source"
    assert metrics["baseline"]["rouge_l"] > 20
    assert 0 < metrics["test"]["token_accuracy"] < 1 and metrics["test"]["loss"] > 0


def test_the_run_folder_shows_what_the_model_saw_and_said(run):
    assert (run.folder / "plots/rouge.png").stat().st_size > 5000
    shown = (run.folder / "plots/first_batch.txt").read_text()
    assert "end" in shown and "␣" in shown
    page = (run.folder / "examples.md").read_text()
    assert "| summarize reports | summarize: " in page
    assert "rouge.png" in (run.folder / "card.md").read_text()


def test_every_source_begins_with_its_task_and_one_vocabulary_serves_both_sides(run, data):
    assert run.spec["prefixes"] == TASKS and len(run.spec["tokenizers"]) == 1
    for part in data[:3]:
        columns = [sequence_evaluation.strings_of(part, name) for name in ("task", "source_text")]
        assert all(source.startswith(f"{task}: ") for task, source in zip(*columns))
    rows = [{"task": "date", "source": "date: On 9 March 2007."}]
    assert evaluation.bare(rows, run.spec)[0]["text"] == "On 9 March 2007."


def test_a_t5_starts_and_ends_with_the_marks_of_its_family_whatever_the_tokenizer(run, data):
    assert run.spec["marks"] == [0, 1]
    inputs, after, weights = next(iter(text_to_text.training_batches(data, run.config).take(1)))
    source, before, after = inputs["source"].numpy(), inputs["target"].numpy(), after.numpy()
    lengths = weights.numpy().sum(-1).astype(int)
    assert (before[:, 0] == 0).all() and (source[np.arange(len(source)), (source != 0).sum(-1) - 1] == 1).all()
    for told, asked, length in zip(before, after, lengths):
        assert asked[length - 1] == 1 and 1 not in asked[: length - 1] and not asked[length:].any()
        np.testing.assert_array_equal(told[1:length], asked[: length - 1])
    other = text_to_text.load_data(Config(model="transformer", limit=64)).spec
    assert other["marks"] == [1, 2], "those of our decoders"


def test_the_served_function_answers_what_was_evaluated(run, data, serve):
    rows = sequence_evaluation.rows_of(serve, data.test, "answer")
    alike = [row["group"] == "names" for row in rows]
    assert run.metrics["groups"]["names"]["chrf"] == evaluation.of_rows(rows, alike)["chrf"]
    answer = serve(tf.constant([row["source"] for row in rows[:5]]))
    assert answer["answers"].shape == answer["scores"].shape == (5, 2)
    assert [one.decode() for one in answer["answer"].numpy()] == [row["answers"][0] for row in rows[:5]]


def test_empty_overlong_and_strange_texts_have_answers(run, serve):
    long = "summarize: " + "Dorby reported 9 degrees. " * 300
    answer = serve(tf.constant(["", long, "ᚠᚢᚦ \x00", b"\xff\xfe", "no task at all"]))
    assert answer["truncated"].numpy().tolist() == [False, True, False, False, False]
    assert answer["answer"][0] == b"" and answer["score"][0] == 0


def test_all_doors_answer_as_keras_does_and_a_task_has_one_of_its_own(run, serve):
    (checks,) = text_to_text.served_checks(run.model, run.config, run.spec, limit=6)
    doors = {"serving_default": (serve, None)} | text_to_text.more_signatures(run.model, run.config, run.spec)
    assert checks.keys() == doors.keys() == {"serving_default", "from_token_ids", "score", *TASKS}
    for name, (inputs, expected) in checks.items():
        found = doors[name][0](*(tf.constant(value) for value in inputs.values()))
        for output, values in expected.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(found[output], values, rtol=1e-4, atol=1e-5)
            else:
                np.testing.assert_array_equal(np.asarray(found[output]), values)
    texts = checks["date"][0]["text"]
    assert not any(one.startswith(b"date: ") for one in texts) and len(texts) == 6
    np.testing.assert_array_equal(checks["date"][1]["answer"], serve([b"date: " + one for one in texts])["answer"])


def test_batches_of_a_resumed_run_are_those_of_one_never_stopped(run, data):
    whole, late = (
        list(text_to_text.training_batches(data, run.config, step).take(6 - step).as_numpy_iterator())
        for step in (0, 4)
    )
    for one, other in zip(keras.tree.flatten(whole[4:]), keras.tree.flatten(late), strict=True):
        np.testing.assert_array_equal(one, other)


def test_measures_are_right_where_they_can_be_told_by_hand():
    same = evaluation.measures(["Lindby was warmest.", "no"], ["Lindby was warmest.", "no"])
    assert same["exact_match"] == 1 and same["rouge_1"] == same["rouge_l"] == 100 and same["chrf"] == 100
    # Of the words "a b c d" and "a c b e": 3 of 4 in common, no pair, and "a b" or "a c" as longest subsequence.
    some = evaluation.measures(["a b c d"], ["a c b e"])
    assert some["rouge_1"] == 75 and some["rouge_2"] == 0 and some["rouge_l"] == 50 and some["exact_match"] == 0
    assert set(evaluation.measures([], []).values()) == {0.0}


def test_baselines_do_what_their_names_say():
    assert evaluation.lead("One. Two! Three? Four.", 2) == "One. Two!"
    assert evaluation.lead("no end", 3) == "no end"
    train = [
        {"task": "a", "text": "the red cat sleeps", "truth": "cat"},
        {"task": "a", "text": "the old dog barks", "truth": "dog"},
        {"task": "b", "text": "the red cat sleeps", "truth": "of another task"},
    ]
    rows = [{"task": "a", "text": "a red cat sleeps here. And so on.", "truth": "a red cat sleeps here."}]
    found = evaluation.baselines(train, rows, rows)
    assert list(found) == ["first sentence", "nearest training source"], "the better one on validation is first"
    assert found["first sentence"] == ["a red cat sleeps here."] and found["nearest training source"] == ["cat"]


@pytest.mark.slow
def test_a_published_t5_is_fine_tuned_and_served_with_its_own_tokenizer(checkpoint, tmp_path):
    lines = [{"source": f"Number {n} is there.", "target": f"It is {n}."} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = Config(
        data_dir=str(tmp_path / "rows.jsonl"),
        task_prefix="summarize: ",
        pretrained=str(checkpoint),
        beam_width=1,
        epochs=1,
        learning_rate=1e-6,
        out=str(tmp_path / "runs"),
    )
    data = text_to_text.load_data(config)
    tokenizer = from_pretrained(checkpoint).tokenizer
    texts = ["summarize: Number 7 is there.", "summarize: Ein Größenwahn"]
    found = sequence_to_sequence.preprocess(tf.constant(texts), tokens.tokenizer(data.spec["tokenizers"][0]), data.spec)
    for row, text in zip(found.numpy(), texts):
        assert [int(one) for one in row if one] == tokenizer.encode(text), "the ids are those of the checkpoint"
    model = text_to_text.build_model(config, data.spec)
    for ours, theirs in zip(model.weights, from_pretrained(checkpoint).model.weights):
        np.testing.assert_array_equal(ours, theirs)
    signatures = text_to_text.more_signatures(model, config, data.spec)
    assert "summarize" in signatures and data.spec["prefixes"] == {"": "summarize: "}
    given = tokens.padded(tf.ragged.constant([tokenizer.encode(texts[0])], dtype=tf.int32))
    expected = model.generate(given, max_length=data.spec["max_target"])
    answer = signatures["summarize"][0](tf.constant([texts[0].removeprefix("summarize: ")]))
    assert answer["answer"].numpy()[0].decode() == tokenizer.decode(np.asarray(expected.token_ids)[0, 0])


def test_translation_takes_a_t5_and_puts_the_prefix_before_what_clients_send(tmp_path):
    (tmp_path / "train.src").write_text("\n".join(f"the cat number {n}" for n in range(60)))
    (tmp_path / "train.tgt").write_text("\n".join(f"die Katze Nummer {n}" for n in range(60)))
    given = {"data_dir": str(tmp_path), "model": "t5", "model_args": SMALL, "beam_width": 1}
    config = translation.Config(prefix="Katze, ", **given)
    data = translation.load_data(config)
    assert len(data.spec["tokenizers"]) == 1 and data.spec["marks"] == [0, 1]
    tokenizer = tokens.tokenizer(data.spec["tokenizers"][0])
    first = sequence_evaluation.strings_of(data.train, "source_text")[0]
    assert first.startswith("the cat"), "texts are shown as they came"
    np.testing.assert_array_equal(data.train.examples["source"][0], tokenizer.encode(["Katze, " + first])[0])
    model = translation.build_model(config, data.spec)
    serve, _ = translation.serving_fn(model, config, data.spec)
    plain, _ = translation.serving_fn(model, config, data.spec | {"prefix": ""})
    answers = serve(tf.constant(["the cat", ""])), plain(tf.constant(["Katze, the cat", "the cat"]))
    assert answers[0]["translations"][0] == answers[1]["translations"][0]
    np.testing.assert_allclose(answers[0]["score"][0], answers[1]["score"][0], rtol=1e-5)
    assert abs(answers[1]["score"][0] - answers[1]["score"][1]) > 1e-4, "the prefix is read"
    assert answers[0]["translation"][1] == b"" and answers[0]["score"][1] == 0, "nothing to translate"


def test_the_alignments_of_a_t5_are_the_attention_of_its_last_block(run, data):
    part = {name: data.test.examples[name][:3] for name in ("source", "target")}
    inputs, *_ = parallel.teacher_forcing(part, run.spec)
    found = np.asarray(run.model.alignments(inputs["source"], inputs["target"]))  # (3, t, s)
    mask = inputs["source"].numpy() != 0
    assert found.shape == (3, inputs["target"].shape[1], inputs["source"].shape[1])
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    assert not (found * ~mask[:, None]).any(), "padding is not looked at"


@pytest.mark.parametrize(
    ("task", "words", "code", "said"),
    [
        ("text_to_text", ["--model", "t6"], 2, "Did you mean 't5'?"),
        ("text_to_text", ["--max_source", "1"], 2, "--max_source of at least 2"),
        ("text_to_text", ["--dataset", "tiny_report"], 2, "Did you mean 'tiny_reports'?"),
        ("text_to_text", ["--source_column", "sourze"], 2, "Did you mean 'source'?"),
        ("text_to_text", ["--model", "transformer", "--pretrained", "x"], 2, "--model t5 with --pretrained"),
        ("text_to_text", ["--pretrained", "x", "--size", "small"], 2, "without --size"),
        ("text_to_text", ["--model_args", "widht=8"], 2, "Did you mean 'width'?"),
        ("text_to_text", ["--data_dir", "nowhere"], 2, "Expected --data_dir to be a file"),
        ("translation", ["--model", "t5", "--coverage_penalty", "0.2"], 2, "--coverage_penalty 0 with --model t5"),
        ("translation", ["--model", "seq2seq", "--pretrained", "x"], 2, "--model t5 with --pretrained"),
    ],
    ids=lambda x: "_".join(x) if isinstance(x, list) else None,
)
def test_wrong_flags_are_told_in_a_line_and_leave_no_run(task, words, code, said, capfd, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        run_cli(pipelines.get(task), [*words, "--limit", "40", "--out", str(tmp_path / "runs")])
    shown = capfd.readouterr().err
    assert stopped.value.code == code and said in shown and "Traceback" not in shown
    assert not (tmp_path / "runs").exists()
