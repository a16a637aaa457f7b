"""A published checkpoint, fine-tuned and served: its weights and tokenizer are those that are used."""

from __future__ import annotations

import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.bert import bert
from models.checkpoints import from_pretrained, to_pretrained
from models.checkpoints.tokenizers import load
from pipelines import finetuning, runs
from pipelines import text_classification as task
from pipelines.config import UsageError

GOLDEN = Path(__file__).parent.parent / "golden"
SMALL = {"width": 16, "depth": 2, "num_heads": 2, "hidden_dim": 16, "max_length": 24}
WORDS = {"good": "a joy from start to end", "bad": "two dull hours"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny BERT without a head, with a real tokenizer, as `to_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    with tarfile.open(GOLDEN / "tokenizers/golden.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    tokenizer = load(folder / "bert_uncased", {"model_type": "bert"})
    keras.utils.set_random_seed(0)
    model = bert(tokenizer.vocab_size, pad_id=tokenizer.pad_id, **SMALL)
    return to_pretrained(model, folder / "tiny", tokenizer)


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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model": "gru"}, "bert_classifier"),
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
