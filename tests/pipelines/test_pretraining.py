"""Pretraining from text to served answers: what is predicted and judged, one run whole, its weights in a classifier."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

import pipelines
from pipelines import (
    checkpoints,
    pretraining,
    pretraining_data,
    pretraining_evaluation,
    pretraining_serving,
    report,
    runs,
)
from pipelines.config import UsageError, run_cli
from pipelines.datasets import tiny_snippets
from pipelines.datasets.tiny_code_apart import without_tested
from pipelines.pretraining import Config
from pipelines.transforms import text
from pipelines.transforms.text import END, PAD, START

WORDS = "the cat sat on a mat and the dog lay by the fire while rain fell over hills".split()
SMALL = {
    "tokenizer": "word",
    "vocab_size": 40,
    "max_length": 16,
    "epochs": 2,
    "epoch_rows": 24,
    "batch_size": 8,
    "evaluated": 24,
    "max_new_tokens": 4,
    "steps_per_execution": 1,
    "optimizer": "momentum",
    "model_args": {"width": 8, "depth": 1, "num_heads": 2, "hidden_dim": 8},
}


@pytest.fixture(scope="module")
def novels(tmp_path_factory) -> str:
    """Thirty short texts in files."""
    folder = tmp_path_factory.mktemp("novels")
    random = np.random.default_rng(0)
    for number in range(30):
        words = random.choice(WORDS, random.integers(30, 80))
        (folder / f"{number:02}.txt").write_text(" ".join(words) + " .\n")
    return str(folder)


@pytest.fixture(scope="module")
def run(novels, tmp_path_factory) -> runs.Run:
    config = Config(
        data_dir=novels, sentences="nsp", whole_word=True, out=str(tmp_path_factory.mktemp("runs")), **SMALL
    )
    return runs.load(pretraining.main(config))


def data_of(novels, **flags):
    config = Config(data_dir=novels, **SMALL | flags)
    return config, pretraining.load_data(config)


def test_a_finished_run_holds_what_the_contract_says(run):
    names = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*")}
    assert names >= {"config.json", "spec.json", "metrics.json", "history.csv", "model.keras", "card.md", "examples.md"}
    assert names >= {"plots/curves.png", "plots/losses.png", "plots/first_batch.txt"}
    for part in ("validation", "test", "baseline"):
        assert run.metrics[part]["loss"] > 0 and 0 <= run.metrics[part]["token_accuracy"] <= 1
        assert 0 <= run.metrics[part]["sentence_accuracy"] <= 1
    assert "neighbouring" in run.metrics["baseline"]["model"] and "frequency" in run.metrics["baselines"][0]["model"]
    assert run.spec["tokenizer"]["extra"] == ["[MASK]"] and run.spec["tokenizer"]["start"]
    first = (run.folder / "plots/first_batch.txt").read_text()
    assert "[MASK]" in first and "the second passage" in first
    assert "[MASK]" in (run.folder / "examples.md").read_text()


@pytest.mark.slow
def test_a_run_stopped_within_an_epoch_is_continued_within_it(run, novels, tmp_path, monkeypatch):
    class Stop(BaseException):
        pass

    original = checkpoints.ExactResume.on_train_batch_end

    def stop_at_step_4(self, batch, logs=None):
        original(self, batch, logs)
        if self.step >= 4:
            self.save()
            self.wait()
            raise Stop

    monkeypatch.setattr(checkpoints.ExactResume, "on_train_batch_end", stop_at_step_4)
    with pytest.raises(Stop):
        pretraining.main(Config(data_dir=novels, sentences="nsp", whole_word=True, out=str(tmp_path), **SMALL))
    monkeypatch.undo()
    for module, name in (
        (pretraining_evaluation, "examples_page"),
        (pretraining_evaluation, "losses"),
        (report, "curves"),
    ):
        monkeypatch.setattr(module, name, lambda *_: None)  # what is drawn is drawn from what is compared
    (folder,) = runs.find(tmp_path)
    pretraining.main(Config(resume=str(folder)))
    for a, b in zip(run.model.get_weights(), runs.load(folder).model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert json.loads((folder / "metrics.json").read_text())["test"] == run.metrics["test"]


def test_its_weights_begin_a_classifier_that_reads_the_same_tokens(run):
    from pipelines import finetuning, text_classification

    config = text_classification.Config(model="bert_classifier", pretrained=str(run.folder))
    state = finetuning.tokenizer_state(config, text_classification.MODELS)
    assert state == run.spec["tokenizer"]
    marked = text.tokenizer(state).marked(["the cat sat"], 16).to_list()[0]
    assert (marked[0], marked[-1]) == (START, END)
    model = finetuning.model(config, head="classification", num_classes=3)
    known = {weight.path: weight for weight in run.model.weights}
    shared = [weight for weight in model.weights if weight.path in known and weight.path.partition("/")[0] != "logits"]
    assert {weight.path.partition("/")[0] for weight in shared} >= {"token_embedding", "block1", "features"}
    for weight in shared:
        np.testing.assert_array_equal(weight, known[weight.path])


# Rows and what is asked of them


@pytest.mark.parametrize("model", ["bert", "xlnet", "gpt", "t5"])
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "pieces"])
def test_batches_are_of_the_step_alone_and_ask_for_tokens_that_were_there(novels, model, packing):
    config, data = data_of(novels, model=model, packing=packing)
    spec = data.spec
    first = list(pretraining.training_batches(data, config).take(4))
    later = list(pretraining.training_batches(data, config, 2).take(2))
    for one, other in zip(tf.nest.flatten(first[2:]), tf.nest.flatten(later), strict=True):
        np.testing.assert_array_equal(one, other)
    inputs, labels, weights = first[0]
    size = spec["tokenizer"]["vocab_size"]
    there = weights.numpy() > 0
    assert any(batch[2].numpy().any() for batch in first) and labels.numpy().max() < size
    if model == "gpt":
        before, after = inputs.numpy(), labels.numpy()
        np.testing.assert_array_equal(before[:, 1:], after[:, :-1])
        assert (before[:, 0] == START).all() and (packing <= there.all())
        return
    if model == "t5":
        sentinels = size - pretraining_data.SENTINELS
        assert inputs["source"].shape[1] <= 16
        for source, after in zip(inputs["source"].numpy(), labels.numpy()):
            marks = [token for token in after if token >= sentinels]
            assert marks and marks == [token for token in source if token >= sentinels] and marks[0] == size - 1
        return
    ids = inputs["token_ids"].numpy()
    assert (ids[:, 0] == START).all() and ((ids == END).sum(1) >= 1).all()
    assert ids.shape[1] == 16 if packing or model == "xlnet" else ids.shape[1] in (8, 16)
    special = [PAD, START, END, spec["tokenizer"]["vocab_size"] - 1]
    assert not np.isin(labels.numpy()[there], special).any()
    if model == "bert":
        shown = np.take_along_axis(ids, inputs["places"].numpy(), 1)[there]
        assert (shown == size - 1).mean() > 0.4
    else:
        places = inputs["target_mapping"].numpy().argmax(-1)
        np.testing.assert_array_equal(np.take_along_axis(ids, places, 1)[there], labels.numpy()[there])


def test_rows_of_documents_hold_every_token_once_and_nothing_of_another(novels):
    _, data = data_of(novels, packing=False, model="gpt")
    store = data.train
    starts, lengths = pretraining_data.pieces(store, 16)
    assert (
        lengths.max() == 16
        and lengths.min() >= 1
        and lengths.sum() == store.lengths(np.arange(store.num_documents)).sum()
    )
    ids = store.read(starts, 16)
    for row, length in zip(ids, lengths):
        assert END not in row[:length]
    assert data.spec["rows"]["train"] == len(starts)


def test_a_memory_is_of_the_tokens_before_and_changes_what_is_said(novels):
    config, data = data_of(novels, model="xlnet", memory=6, model_args=SMALL["model_args"] | {"stddev": 0.5})
    inputs, _, _ = next(iter(pretraining.training_batches(data, config)))
    assert inputs["memory_ids"].shape == (8, 6) and inputs["token_ids"].shape == (8, 16)
    assert (inputs["memory_ids"][:, 0] == START).numpy().all() and (inputs["token_ids"][:, -1] == END).numpy().all()
    model = pretraining.build_model(config, data.spec)
    trained = pretraining.two_streams(model, 6)
    other = dict(inputs) | {"memory_ids": tf.reverse(inputs["memory_ids"], [1])}
    assert np.abs(trained(inputs) - trained(other)).max() > 1e-6


def test_scores_at_places_are_those_of_the_model(run, novels):
    _, data = data_of(novels, sentences="nsp")
    inputs, _, _ = next(iter(pretraining.evaluation_batches(data.test, data.spec)))
    found = pretraining.at_places(run.model)(inputs)
    whole = run.model({name: inputs[name] for name in ("token_ids", "segment_ids")})
    wanted = tf.gather(whole["masked_lm"], inputs["places"], batch_dims=1)
    np.testing.assert_allclose(found["masked_lm"], wanted, atol=1e-5)
    np.testing.assert_allclose(found["next_sentence"], whole["next_sentence"], atol=1e-6)


# What it is judged by


def test_the_neighbour_model_is_a_distribution_and_learns_what_neighbours_tell():
    random = np.random.default_rng(0)
    tokens = random.integers(4, 20, 6000)
    for place in range(2, 6000):
        if place % 10:  # nine of ten are decided by the two before
            tokens[place] = (tokens[place - 1] + tokens[place - 2]) % 16 + 4
    beside = pretraining_evaluation.Neighbours(tokens[:5000], 20, both=False)
    a, b, x = tokens[5001:-1], tokens[5000:-2], tokens[5002:]
    beside.fit(a, b, x)
    found = beside.measured(a, b, x)
    alone = -np.log(beside.alone[x]).mean()
    assert found["loss"] < alone - 1 and 0.8 < found["token_accuracy"] <= 0.95
    for one, other in ((5, 6), (-1, 6), (5, -1), (-1, -1), (19, 0)):
        whole = np.arange(20)
        parts, group = beside.parts(np.full(20, one), np.full(20, other), whole)
        assert abs((parts * beside.weights[group]).sum() - 1) < 1e-9
    hidden = beside.measured(np.full(len(x), -1), np.full(len(x), -1), x)
    assert abs(hidden["loss"] - alone) < 1e-6


def test_neighbours_are_those_that_the_model_sees():
    spec = {"objective": "masked", "sentences": "none", "tokenizer": {"vocab_size": 50}}
    ids = np.array([[START, 7, 49, 49, 9, END, 8, END, PAD]])
    given = {"token_ids": ids, "places": np.array([[1, 2, 3, 4, 6]])}
    left, right = pretraining_evaluation.neighbours(given, np.zeros((1, 5)), spec)
    assert left.tolist() == [[-1, 7, -1, -1, END]] and right.tolist() == [[-1, -1, 9, END, -1]]
    left, right = pretraining_evaluation.neighbours(np.array([[START, 5, 6]]), None, spec | {"objective": "causal"})
    assert left.tolist() == [[-1, 5, 6]] and right.tolist() == [[-1, -1, 5]]
    # 5 6 | 7 8 | 9 | 10, of which 7 8 and 10 are missing
    spans = {"source": np.array([[5, 6, 149, 9, 148, 1]])}
    after = np.array([[149, 7, 8, 148, 10, 1, 0]])
    left, before = pretraining_evaluation.before_missing(spans["source"], after, 50)
    assert left[0, [1, 2, 4]].tolist() == [6, 7, 9] and before[0, [1, 2, 4]].tolist() == [5, 6, 8]
    there = pretraining_evaluation.counted(
        after, np.ones_like(after), {"objective": "spans", "tokenizer": {"vocab_size": 150}}
    )
    assert after[there].tolist() == [7, 8, 10]


# What is served


def doors(model, config, spec):
    found = {"serving_default": pretraining.serving_fn(model, config, spec)}
    return found | pretraining.more_signatures(model, config, spec)


def test_masks_are_filled_whatever_stands_beside_them(run):
    serve, signature = pretraining.serving_fn(run.model, run.config, run.spec)
    compiled = tf.function(serve, input_signature=list(signature.values()))
    strange = ["the [MASK] sat on a [MASK]", "", "no mask here", "字 [MASK]", "[MASK] " * 40, "\x00[MASK]\xff"]
    found = {name: value.numpy() for name, value in compiled(tf.constant(strange)).items()}
    filled = [one.decode() for one in found["filled"]]
    assert "[MASK]" not in filled[0] and filled[0].startswith("the ") and len(filled[0].split()) == 6
    assert filled[1:3] == strange[1:3] and found["tokens"][2].tolist() == [b""] * 5
    assert (found["probabilities"][[1, 2]] == 0).all() and (found["probabilities"][0] > 0).all()
    assert (np.diff(found["probabilities"], axis=-1) <= 0).all()
    assert filled[0].split()[1] == found["tokens"][0][0].decode()
    for i, one in enumerate(strange):
        alone = compiled(tf.constant([one]))
        np.testing.assert_allclose(alone["probabilities"][0], found["probabilities"][i], atol=1e-5)


def test_spans_of_an_answer_go_where_their_sentinels_are():
    v = 150  # sentinels are 50 to 149
    source = [[5, 149, 6, 148, 7, 1], [8, 9, 1, 0, 0, 0], [149, 4, 1, 0, 0, 0]]
    answer = [[149, 11, 12, 148, 13, 147, 14, 1], [149, 15, 1, 0, 0, 0, 0, 0], [16, 148, 17, 149, 18, 1, 0, 0]]
    whole, spans = pretraining_serving.joined(tf.constant(source), tf.constant(answer), v)
    assert whole.to_list() == [[5, 11, 12, 6, 13, 7], [8, 9], [18, 4]]
    assert spans.to_list() == [[11, 12], [13], [], [], [18], []]


@pytest.mark.parametrize("model", ["t5", "gpt"])
def test_the_others_write(novels, model):
    config, data = data_of(novels, model=model)
    made = pretraining.build_model(config, data.spec)
    serve, _ = pretraining.serving_fn(made, config, data.spec)
    if model == "t5":
        found = serve(tf.constant(["the cat <extra_id_0> on", "nothing missing", ""]))
        assert found["spans"].shape == (3, 1) and found["filled"].numpy()[1:].tolist() == [b"nothing missing", b""]
        assert found["filled"].numpy()[0].startswith(b"the cat")
    else:
        found = serve(tf.constant(["the cat", "", "the dog " * 30]))
        for given, whole, more in zip(
            ["the cat", "", "the dog " * 30], found["full_text"].numpy(), found["continuation"].numpy()
        ):
            assert whole.decode() == given + more.decode()
        assert (found["log_probability"].numpy() <= 0).all()


# Bad input, and data that are set apart


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"model": "brt"}, "Did you mean 'bert'"),
        ({"model": "gpt", "sentences": "nsp"}, "Expected --sentences with --model bert. Received: gpt"),
        ({"model": "t5", "whole_word": True}, "Expected --whole_word with --model bert"),
        ({"memory": 8}, "Expected --memory with --model xlnet"),
        ({"sentences": "sop", "packing": False}, "whose rows are pairs. Received: --no-packing"),
        ({"model": "xlnet", "memory": 8, "packing": False}, "packed rows"),
        ({"model_args": {"head": "features"}}, "without head"),
        ({"model": "gpt", "max_length": 32}, "Expected --max_new_tokens of at most 30"),
        ({"max_length": 4}, "Expected --max_length of at least 8"),
        ({"sentences": "nps"}, "Did you mean 'nsp'"),
    ],
    ids=lambda x: "_".join(x) if isinstance(x, dict) else None,
)
def test_flags_that_do_not_fit_are_usage_errors(flags, said):
    with pytest.raises(UsageError, match=said):
        Config(**flags)


def test_errors_are_one_line_and_leave_no_run(novels, tmp_path, capfd):
    for words, code, said in (
        (["--data_dir", "nowhere"], 2, "Expected --data_dir to be a file or a folder"),
        (["--data_dir", novels, "--model_args", "widht=8"], 2, "Did you mean 'width'"),
        (["--data_dir", novels, "--size", "bsae"], 2, "Did you mean 'base'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run_cli(pipelines.get("pretraining"), [*words, "--out", str(tmp_path / "runs")])
        shown = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
        assert stopped.value.code == code and len(shown) == 1 and said in shown[0], shown
    assert not (tmp_path / "runs").exists()


def test_nothing_of_the_snippets_of_the_test_split_is_in_the_code_apart():
    body = "\n".join(f"    x{i} = {i}" for i in range(4))
    names = [f"f{i}" for i in range(40)]
    source = "import os\n\nclass A:\n    @property\n    def kept(self): return 1\n\n"
    source += "\n".join(f"@cached\ndef {name}(a):\n    '''Text.'''\n{body}\n" for name in names)
    tested = [text for _, text in tiny_snippets.defined(source) if tiny_snippets.is_tested(text)]
    assert 2 < len(tested) < 20
    found = without_tested(source)
    left = [text for _, text in tiny_snippets.defined(found)]
    assert not set(left) & set(tested) and len(left) + len(tested) == 40
    assert found.count("@cached") == len(left) and "def kept" in found
    assert without_tested("no program at all") == ""
