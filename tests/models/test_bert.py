"""BERT, RoBERTa and DistilBERT against Hugging Face's answers (tests/golden/make_bert.py), and what makes a BERT."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from models.bert import HEADS, SIZES, bert, bert_classifier, bert_masked_lm, bert_pretraining
from models.checkpoints import from_pretrained, to_pretrained
from tests.models.counting import parameters

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*bert*_*.npz"))
REFERENCE = {
    "hidden": "hidden",
    "pooled": "pooler_output",
    "logits": "logits",
    "masked_lm": "prediction_logits",
    "next_sentence": "seq_relationship_logits",
}
SMALL = {"width": 8, "depth": 2, "num_heads": 2, "hidden_dim": 12, "max_length": 10}
IDS = np.array([[5, 7, 4, 6, 8, 9], [9, 4, 3, 0, 0, 0]], "int32")
SEGMENTS = np.array([[0, 0, 0, 1, 1, 1], [0, 1, 1, 0, 0, 0]], "int32")
INPUTS = {"token_ids": IDS, "segment_ids": SEGMENTS}


def named(answers):
    return answers if isinstance(answers, dict) else {"logits": answers}


@pytest.mark.parametrize("name", NAMES)
def test_published_checkpoints_answer_as_the_reference_does(name, tmp_path):
    """Loaded, and loaded again after `to_pretrained`."""
    data = dict(np.load(GOLDEN / f"{name}.npz"))
    model, _, report = from_pretrained(GOLDEN / name)
    assert report.fresh == report.dropped == ()
    again = from_pretrained(to_pretrained(model, tmp_path / "written")).model
    inputs = {key: data[key] for key in ("token_ids", "segment_ids")}
    inputs = inputs if isinstance(model.input, dict) else inputs["token_ids"]
    seen = data["token_ids"] != model.arguments["pad_id"]
    for answers in (named(model(inputs)), named(again(inputs))):
        assert answers
        for key, answer in answers.items():
            answer, expected = np.asarray(answer), data[REFERENCE[key]]
            if answer.ndim == 3:
                answer, expected = answer[seen], expected[seen]
            np.testing.assert_allclose(answer, expected, atol=1e-4)


def test_the_reference_loads_what_we_write(tmp_path):
    transformers = pytest.importorskip("transformers")
    import torch

    for name, kind in (
        ("bert_pretraining", "BertForPreTraining"),
        ("roberta_masked_lm", "RobertaForMaskedLM"),
        ("distilbert_classification", "DistilBertForSequenceClassification"),
    ):
        to_pretrained(from_pretrained(GOLDEN / name).model, tmp_path / name)
        reference = getattr(transformers, kind).from_pretrained(tmp_path / name).eval()
        data = np.load(GOLDEN / f"{name}.npz")
        ids = torch.tensor(data["token_ids"])
        given = {"input_ids": ids, "attention_mask": (ids != reference.config.pad_token_id).long()}
        if name.startswith("bert"):
            given["token_type_ids"] = torch.tensor(data["segment_ids"])
        answer = reference(**given)
        key = "prediction_logits" if name.startswith("bert") else "logits"
        np.testing.assert_allclose(answer[key].detach().numpy()[0], data[key][0], atol=1e-4)


@pytest.mark.parametrize(
    ("vocab_size", "size", "count"),
    [
        (30522, "tiny", 4_385_920),
        (30522, "mini", 11_170_560),
        (30522, "small", 28_763_648),
        (30522, "medium", 41_373_184),
        (30522, "base", 109_482_240),
        (30522, "large", 335_141_888),
        (50265, "roberta-base", 124_055_040),
        (50265, "roberta-large", 354_310_144),
        (30522, "distilbert", 66_362_880),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(vocab_size, size, count):
    assert parameters(bert, vocab_size, **SIZES[size]) == count


@pytest.mark.parametrize("head", HEADS)
def test_gradients_reach_every_weight(head):
    import tensorflow as tf

    model = bert(12, head=head, num_classes=3, **SMALL)
    with tf.GradientTape() as tape:
        answers = named(model(INPUTS, training=True))
        noise = {key: np.random.default_rng(0).normal(size=value.shape) for key, value in answers.items()}
        loss = sum(tf.reduce_sum(value * noise[key].astype("float32")) for key, value in answers.items())
    for weight, gradient in zip(model.trainable_variables, tape.gradient(loss, model.trainable_variables)):
        assert gradient is not None, weight.path
        # a key's bias moves all scores of a query alike, which the softmax takes away
        if not weight.path.endswith("key/bias"):
            assert float(tf.reduce_max(tf.abs(tf.convert_to_tensor(gradient)))) > 0, weight.path


def test_every_place_sees_both_sides_and_no_padding():
    model = bert(12, stddev=0.5, **SMALL)
    hidden = np.asarray(model(INPUTS)["hidden"])
    first, last = IDS.copy(), IDS.copy()
    first[0, 0], last[0, 5] = 3, 3
    for changed in (first, last):
        difference = np.abs(np.asarray(model(INPUTS | {"token_ids": changed})["hidden"]) - hidden)[0].max(-1)
        assert (difference > 1e-4).all()
    wider = {key: np.pad(value, ((0, 0), (0, 3))) for key, value in INPUTS.items()}
    np.testing.assert_allclose(np.asarray(model(wider)["hidden"])[:, :6], hidden, atol=1e-5)
    segments = np.asarray(model(INPUTS | {"segment_ids": 1 - SEGMENTS})["hidden"])
    assert np.abs(segments - hidden).max() > 1e-3


def test_the_output_is_tied_to_the_embeddings():
    model = bert_masked_lm(12, **SMALL)
    assert sum(13 in weight.shape for weight in bert_masked_lm(13, **SMALL).weights) == 2  # the table, and a bias
    table = next(weight for weight in model.weights if weight.path == "token_embedding/embeddings")
    before = np.asarray(model(INPUTS))[:, :, 10]
    table.assign(ops.where((ops.arange(12) == 10)[:, None], -table, table))  # of a token that no text here has
    assert np.abs(before).max() > 1e-2
    np.testing.assert_allclose(np.asarray(model(INPUTS))[:, :, 10], -before, atol=1e-5)


def test_one_batch_can_be_learned_by_heart():
    keras.utils.set_random_seed(0)
    model = bert_classifier(12, 3, pairs=True, **SMALL | {"dropout": 0.0, "attention_dropout": 0.0})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, steps_per_execution=20)
    ids = np.random.default_rng(1).integers(1, 12, (12, 6)).astype("int32")
    labels = np.arange(12) % 3
    inputs = {"token_ids": ids, "segment_ids": np.zeros_like(ids)}
    many = {key: np.tile(value, (60, 1)) for key, value in inputs.items()}
    before = model.evaluate(inputs, labels, batch_size=12, verbose=0)
    model.fit(many, np.tile(labels, 60), batch_size=12, shuffle=False, verbose=0)
    assert model.evaluate(inputs, labels, batch_size=12, verbose=0) < 0.1 < 0.7 < before


@pytest.mark.parametrize("attention", ["window", "block_sparse", "linear", "chunked"])
def test_every_kind_of_attention_is_one_argument(attention):
    model = bert(12, attention=attention, window=2, block_size=2, **SMALL)
    assert model(INPUTS)["hidden"].shape == (2, 6, 8)
    again = type(model).from_config(model.get_config())
    again.set_weights(model.get_weights())
    np.testing.assert_allclose(again(INPUTS)["hidden"], model(INPUTS)["hidden"], atol=1e-6)


def test_half_precision_keeps_logits_in_float32():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = bert_pretraining(12, **SMALL)
    finally:
        keras.config.set_dtype_policy(before)
    answers = model(INPUTS)
    assert {keras.backend.standardize_dtype(answer.dtype) for answer in answers.values()} == {"float32"}
    assert all(np.isfinite(np.asarray(answer)).all() for answer in answers.values())
    assert type(model).from_config(model.get_config()).policy == {"dtype": "mixed_bfloat16"}


def test_another_head_is_new_and_the_report_says_so():
    model, _, report = from_pretrained(GOLDEN / "bert_pretraining", head="classification", num_classes=4)
    assert model(INPUTS).shape == (2, 4)
    assert report.fresh == ("classifier.weight", "classifier.bias")
    assert "cls.predictions.bias" in report.dropped and "bert.pooler.dense.bias" not in report.dropped
    pretrained = from_pretrained(GOLDEN / "bert_pretraining").model
    np.testing.assert_array_equal(
        model.get_layer("features").kernel.numpy(), pretrained.get_layer("features").kernel.numpy()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "masked"}, "masked_lm"),
        ({"width": 9}, "num_heads must divide width"),
        ({"max_length": 0}, "max_length"),
        ({"first_position": 10, "max_length": 10}, "first_position"),
        ({"attention": "sparse"}, "block_sparse"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=rf"(?s){message}.*Received: |Received: .*{message}"):
        bert(12, **arguments)
