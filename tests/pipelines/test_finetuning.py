"""A published checkpoint, fine-tuned and served: its weights and tokenizer are those that are used."""

from __future__ import annotations

import dataclasses
import shutil
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.bert import bert, bert_classifier
from models.checkpoints import from_pretrained, to_pretrained
from models.checkpoints.tokenizers import load
from models.checkpoints.transfer import transferred
from models.xlnet import xlnet, xlnet_classifier
from pipelines import checkpoints, finetuning, report, runs, training
from pipelines import text_classification as task
from pipelines.config import Failure, UsageError, parse

GOLDEN = Path(__file__).parent.parent / "golden"
SMALL = {"width": 16, "depth": 2, "num_heads": 2, "hidden_dim": 16, "max_length": 24}
WORDS = {"good": "a joy from start to end", "bad": "two dull hours"}


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """The pictures of the task are drawn by its own tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.Figure, "tight_layout", lambda figure: None)
        patch.setattr(report, "save", lambda figure, path: path)
        yield


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """The folders of the golden tokenizers."""
    folder = tmp_path_factory.mktemp("tokenizers")
    with tarfile.open(GOLDEN / "tokenizers/golden.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tokenizers, tmp_path_factory):
    """A tiny BERT without a head, with a real tokenizer, as `to_pretrained` writes it."""
    tokenizer = load(tokenizers / "bert_uncased", {"model_type": "bert"})
    keras.utils.set_random_seed(0)
    model = bert(tokenizer.vocab_size, pad_id=tokenizer.pad_id, **SMALL)
    return to_pretrained(model, tmp_path_factory.mktemp("checkpoint") / "tiny", tokenizer)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """A CSV of two classes."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    rows = [f"{text}, film {n},{label}" for n in range(60) for label, text in WORDS.items()]
    path.write_text("text,label\n" + "\n".join(f'"{row.rpartition(",")[0]}",{row.rpartition(",")[2]}' for row in rows))
    return path


def config(checkpoint, reviews, out, **more):
    known = {"model": "bert_classifier", "pretrained": str(checkpoint), "data_dir": str(reviews), "out": str(out)}
    return task.Config(**{**known, "max_length": 16, "epochs": 2, "batch_size": 16, **more})


@pytest.fixture(scope="module")
def run(checkpoint, reviews, tmp_path_factory):
    return runs.load(task.main(config(checkpoint, reviews, tmp_path_factory.mktemp("runs"), trained="head")))


def test_training_the_head_leaves_the_rest_as_published(run, checkpoint):
    published = {
        w.path: w.numpy() for w in from_pretrained(checkpoint, head="classification", num_classes=2).model.weights
    }
    blocks = [w for w in run.model.weights if w.path.startswith(("block", "token_embedding", "position", "segment"))]
    assert len(blocks) > 30
    for weight in blocks:
        np.testing.assert_array_equal(weight, published[weight.path])
    assert np.abs(run.model.get_layer("features").kernel.numpy() - published["features/kernel"]).max() > 1e-4


def test_what_is_served_reads_strings_by_the_tokenizer_of_the_checkpoint(run, checkpoint):
    serve, signature = task.serving_fn(run.model, run.config, run.spec)
    texts = ["A JOY from start to end, film 7", "", "two dull hours " * 9, "漢字 and émojis 🙂"]
    answer = tf.function(serve, input_signature=list(signature.values()))(tf.constant(texts))
    tokenizer = from_pretrained(checkpoint).tokenizer
    for row, text in enumerate(texts):
        ids = tokenizer.encode(text)
        ids = [*ids[:15], ids[-1]] if len(ids) > 16 else ids  # cut, but for the mark at the end
        expected = keras.ops.softmax(run.model(np.array([ids], "int32")))[0]
        np.testing.assert_allclose(answer["probabilities"][row], expected, atol=1e-5)


@pytest.mark.slow
def test_the_whole_model_is_fine_tuned_and_learns(checkpoint, reviews, tmp_path):
    folder = task.main(config(checkpoint, reviews, tmp_path, epochs=6))
    assert runs.load(folder).metrics["test"]["accuracy"] == 1


def test_the_head_of_a_checkpoint_is_kept_where_it_fits(checkpoint, tmp_path, capsys):
    model, tokenizer, _ = from_pretrained(checkpoint, head="classification", num_classes=2)
    folder = to_pretrained(model, tmp_path / "classifier", tokenizer)

    def classifier(num_classes):
        given = finetuning.Config(pretrained=str(folder))
        return finetuning.model(given, head="classification", num_classes=num_classes)

    kept = classifier(2)
    assert "new weights" not in capsys.readouterr().out
    np.testing.assert_array_equal(kept.get_layer("logits").kernel, model.get_layer("logits").kernel)
    assert classifier(3).output.shape == (None, 3)
    assert "new weights, to be trained: classifier.weight, classifier.bias" in capsys.readouterr().out


@pytest.fixture(scope="module")
def adapted(run, reviews, tmp_path_factory):
    """A run that began with the weights of another run and trained adapters."""
    given = config(run.folder, reviews, tmp_path_factory.mktemp("runs"), trained="lora", lora_rank=2, epochs=1)
    return runs.load(task.main(given))


def test_adapters_are_a_part_of_the_kernels_that_are_saved(adapted, run):
    before = {weight.path: weight.numpy() for weight in run.model.weights}
    changed = set()
    for weight in adapted.model.weights:
        difference = weight.numpy() - before[weight.path]
        if np.abs(difference).max():
            changed.add(weight.path)
        if weight.path.endswith(("query/kernel", "value/kernel")):
            assert np.linalg.matrix_rank(difference, tol=1e-6) == 2
    blocks = {f"block{i}/block{i}_self_attention/{name}/kernel" for i in (1, 2) for name in ("query", "value")}
    assert changed == blocks | {f"{layer}/{name}" for layer in finetuning.HEAD for name in ("kernel", "bias")}
    head = 16 * 16 + 16 + 16 * 2 + 2
    assert adapted.metrics["trained_parameters"] == 4 * (16 * 2 + 2 * 16) + head
    assert adapted.metrics["parameters"] == adapted.model.count_params() == run.metrics["parameters"]
    assert run.metrics["trained_parameters"] == head


def test_a_run_lends_its_tokenizer_and_its_weights(adapted, run, capsys):
    assert adapted.spec["tokenizer"] == run.spec["tokenizer"]
    given = dataclasses.replace(adapted.config, trained="all")
    model = finetuning.model(given, head="classification", num_classes=3)
    assert "new weights, to be trained: logits/kernel, logits/bias" in capsys.readouterr().out
    for path in ("token_embedding/embeddings", "block2/block2_output/kernel", "features/kernel"):
        found, expected = ({w.path: w for w in one.weights}[path] for one in (model, run.model))
        np.testing.assert_array_equal(found, expected)


def test_a_language_model_becomes_a_classifier():
    """What a run of `pipelines.pretraining` holds: a head of tokens, which is left out."""
    made = bert(30, head="masked_lm", **SMALL)
    model, report = transferred(made, "classification", num_classes=3, pairs=False, name="a run")
    assert model.output_shape == (None, 3) and len(model.inputs) == 1
    assert set(report.fresh) == {f"{layer}/{name}" for layer in finetuning.HEAD for name in ("kernel", "bias")}
    assert {path.partition("/")[0] for path in report.dropped} == {
        *("masked_lm_dense", "masked_lm_norm", "masked_lm_bias")
    }
    again = bert_classifier(30, 3, **SMALL)
    again.set_weights(model.get_weights())
    ids = np.array([[3, 4, 5, 0]], "int32")
    np.testing.assert_allclose(again(ids), model(ids), atol=1e-6)
    source = xlnet(30, head="lm", **{key: SMALL[key] for key in ("width", "depth", "num_heads", "hidden_dim")})
    model, report = transferred(source, "classification", num_classes=3, pairs=False)
    assert report.dropped == ("token_embedding/bias",)
    np.testing.assert_array_equal(
        model.get_layer("block1").attention.segments, source.get_layer("block1").attention.segments
    )
    with pytest.raises(ValueError, match="Expected equal weights in block1.*Received: other shapes"):
        source.get_layer("block1").attention.segments._path = "elsewhere"
        transferred(source, "classification", num_classes=3)


def test_a_published_xlnet_reads_single_texts_with_the_segments_of_its_tokenizer(tokenizers, tmp_path):
    """Padded at the right, as batches of the task are."""
    tokenizer = load(tokenizers / "xlnet", {"model_type": "xlnet"})
    keras.utils.set_random_seed(0)
    small = {"width": 8, "depth": 1, "num_heads": 2, "hidden_dim": 8, "stddev": 0.5}
    made = xlnet_classifier(tokenizer.vocab_size, 2, pad_id=tokenizer.pad_id, pairs=True, **small)
    folder = to_pretrained(made, tmp_path / "xlnet", tokenizer)
    given = task.Config(model="xlnet_classifier", pretrained=str(folder))
    assert finetuning.tokenizer_state(given, task.MODELS)["source"]["kind"] == "xlnet"
    model = finetuning.model(given, head="classification", num_classes=2)
    texts = ["A joy from start to end, film 7", "two dull hours", ""]
    rows = [tokenizer.encode(text) for text in texts]
    padded = [row + [tokenizer.pad_id] * (max(map(len, rows)) - len(row)) for row in rows]
    answers = model(np.array(padded, "int32"))
    for text, row, answer in zip(texts, rows, answers):
        inputs = {"token_ids": row, "segment_ids": tokenizer.segments(text)}
        expected = made({name: np.array([ids], "int32") for name, ids in inputs.items()})[0]
        np.testing.assert_allclose(answer, expected, atol=1e-5)


def toy(trained: str, **more):
    """A compiled model with the names of a transformer's layers, and the configuration."""
    given = {"pretrained": "x", "trained": trained, "epochs": 3, "batch_size": 8, "steps_per_execution": 2}
    given = finetuning.Config(**{**given, "lora_rank": 2, "layer_decay": 0.5, "learning_rate": 0.05, **more})
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((5,))
    for name in ("token_embedding", "block1", "block2", "query"):
        x = keras.layers.Dropout(0.1)(keras.layers.Dense(6, "tanh", name=name)(x))
    model = keras.Model(inputs, keras.layers.Dense(3, name="logits")(x))
    finetuning.prepare(model, given)
    model.compile(finetuning.optimizer(given, model, 32), "mse", metrics=["mae"], steps_per_execution=2)
    return model, given


def fitted(trained: str, folder: Path, **more):
    model, given = toy(trained, **more)
    noise = np.random.default_rng(0).normal(size=(12, 8, 8)).astype("float32")
    batches = tf.data.Dataset.from_tensor_slices((noise[..., :5], noise[..., 5:]))
    more = {"examples": 32, "monitor": "val_mae", "mode": "min"}
    training.fit(model, lambda step: batches.skip(step), batches.take(1), given, folder, **more)
    return model


@pytest.mark.parametrize("trained", ["gradual", "lora"])
def test_a_run_that_is_stopped_goes_on_exactly(trained, tmp_path, monkeypatch):
    class Stop(BaseException):
        pass

    whole = fitted(trained, tmp_path / "whole")
    original = checkpoints.ExactResume.on_train_batch_end

    def stop_at_step_6(self, batch, logs=None):
        original(self, batch, logs)
        if self.step >= 6:
            self.save()
            self.wait()
            raise Stop

    monkeypatch.setattr(checkpoints.ExactResume, "on_train_batch_end", stop_at_step_6)
    with pytest.raises(Stop):
        fitted(trained, tmp_path / "stopped")
    monkeypatch.undo()
    again = fitted(trained, tmp_path / "stopped")
    for a, b in zip(whole.weights, again.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_gradual_unfreezing_takes_a_block_more_each_epoch():
    """Four steps are an epoch: the head from the first on, then block 2 with what follows it, then block 1."""
    model, _ = toy("gradual")
    model.compile(model.optimizer, "mse", run_eagerly=True)
    noise = np.random.default_rng(0).normal(size=(8, 8)).astype("float32")
    start = [weight.numpy() for weight in model.weights]
    moved = []
    for _ in range(3):
        for _ in range(4):
            model.train_on_batch(noise[:, :5], noise[:, 5:])
        changed = [w.path for w, value in zip(model.weights, start) if np.any(w.numpy() != value)]
        moved.append(sorted({path.partition("/")[0] for path in changed}))
    assert moved == [["logits"], ["block2", "logits", "query"], ["block1", "block2", "logits", "query"]]


def test_adapters_begin_as_the_frozen_model():
    model, given = toy("lora")
    plain, _ = toy("all")
    x = np.random.default_rng(1).normal(size=(4, 5)).astype("float32")
    np.testing.assert_allclose(model(x), plain(x), atol=1e-6)
    names = {weight.path for weight in model.trainable_weights}
    assert names == {"query/lora_kernel_a", "query/lora_kernel_b", "logits/kernel", "logits/bias"}
    assert model.get_layer("query").lora_alpha / model.get_layer("query").lora_rank == 8
    counts = training.parameters(model)
    assert counts == {"parameters": plain.count_params(), "trained_parameters": 2 * 12 + 21}
    assert finetuning.described(model, given).endswith("of which 45 are trained")


def test_the_sweep_of_rates_keeps_the_shares_of_the_layers():
    model, given = toy("gradual")
    before = [weight.numpy() for weight in model.weights]
    noise = np.random.default_rng(0).normal(size=(40, 8, 8)).astype("float32")
    batches = tf.data.Dataset.from_tensor_slices((noise[..., :5], noise[..., 5:]))
    training.find_learning_rate(model, batches, given, steps=20)
    assert float(model.optimizer.rates("block1/kernel", 0)) == 0
    for weight, value in zip(model.weights, before):
        np.testing.assert_array_equal(weight, value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trained", "lroa"], "Did you mean 'lora'"),
        (["--trained", "lora"], "Expected --pretrained with --trained"),
        (["--layer_decay", "0.9"], "Expected --pretrained with --layer_decay"),
        (["--layer_decay", "1.5"], "Expected --layer_decay above 0 and at most 1"),
        (["--lora_rank", "0"], "Expected --lora_rank of at least 1"),
        (["--lora_alpha", "0"], "Expected --lora_alpha above 0"),
        (["--unfreeze_every", "0"], "Expected --unfreeze_every of at least 1"),
        (["--pretrained", "x", "--size", "base"], "without --size"),
        (["--pretrained", "x", "--token_dropout", "0.1"], "without --token_dropout"),
    ],
)
def test_flags_that_do_not_fit_are_refused(words, message):
    with pytest.raises(UsageError, match=rf"{message}.*Received: "):
        parse(task.Config, words, prog="test")


def test_what_cannot_be_prepared_is_refused():
    bare = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="block1")])
    for trained, message in (("head", "a head of its own"), ("lora", "attention")):
        with pytest.raises(UsageError, match=rf"{message}.*Received: "):
            finetuning.prepare(bare, finetuning.Config(pretrained="x", trained=trained))
    with pytest.raises(UsageError, match="rate of 0. Received: ftrl"):
        toy("gradual", optimizer="ftrl")


def test_runs_that_do_not_fit_are_refused(run, reviews, tmp_path):
    other = shutil.copytree(run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "logs", "plots"))

    def refused(error, message, **flags):
        with pytest.raises(error, match=rf"{message}.*Received: "):
            task.load_data(config(other, reviews, tmp_path, **flags))

    refused(UsageError, "Expected a run of xlnet with a tokenizer, for xlnet_classifier", model="xlnet_classifier")
    made = to_pretrained(runs.load(other).model, other / "pretrained")
    refused(UsageError, f"Its run has one: --pretrained {other}", pretrained=str(made))
    state = runs.read_json(other / "state.json")
    runs.write_json(other / "state.json", state | {"state": "failed", "error": "disk"})
    refused(UsageError, "Expected a finished run")
    runs.write_json(other / "state.json", state)
    (other / "model.keras").unlink()
    refused(Failure, "Expected model.keras in")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model": "gru"}, "bert_classifier, xlnet_classifier"),
        ({"pretrained": "no/such/folder/here"}, "Expected a folder"),
        ({"pretrained": str(GOLDEN)}, "config.json"),
        ({"pretrained": str(GOLDEN / "bert_features")}, "tokenizer"),
        ({"max_length": 25}, "at most 24"),
        ({"model_args": {"width": 8}}, "--model_args"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_run_begins(flags, message, checkpoint, reviews, tmp_path):
    with pytest.raises(UsageError, match=rf"{message}.*Received: "):
        task.main(config(checkpoint, reviews, tmp_path, **flags))
    assert not list(tmp_path.iterdir())
