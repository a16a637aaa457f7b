"""Presets of KerasHub, where it is installed: tiny random backbones of every family answer alike as our models."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

from models.checkpoints import from_pretrained, keras_hub, load_tokenizer

SIZES = {"vocabulary_size": 30, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 12}
LLAMA = {name: value for name, value in SIZES.items() if name != "num_heads"}
LLAMA |= {"num_query_heads": 4, "num_key_value_heads": 2, "hidden_dim": 16}
ROPE = {
    "rope_frequency_adjustment_factor": 4.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_pretraining_sequence_length": 16,
}
CASES = {
    "bert": ("BertBackbone", SIZES | {"max_sequence_length": 16}),
    "roberta": ("RobertaBackbone", SIZES | {"max_sequence_length": 16}),
    "distilbert": ("DistilBertBackbone", SIZES | {"max_sequence_length": 16}),
    "gpt2": ("GPT2Backbone", SIZES | {"max_sequence_length": 16}),
    "llama": ("LlamaBackbone", LLAMA | {"rope_max_wavelength": 50}),
    "llama3": ("Llama3Backbone", LLAMA | {"rope_max_wavelength": 50, **ROPE}),
    "t5": ("T5Backbone", SIZES | {"key_value_dim": 6, "use_gated_activation": False}),
    "t5_v11": ("T5Backbone", SIZES | {"activation": "gelu", "tie_embedding_weights": False}),
    "xlnet": ("XLNetBackbone", SIZES),
}
IDS = np.random.default_rng(0).integers(6, 30, (2, 9)).astype("int32")


def test_a_preset_says_what_it_needs(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(
        json.dumps({"class_name": "BertBackbone", "registered_name": "keras_hub>Bert"})
    )

    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(keras_hub, "import_module", missing)
    for source in (tmp_path, "kaggle://keras/bert/keras/bert_tiny_en_uncased"):
        for read in (from_pretrained, load_tokenizer):
            with pytest.raises(
                ValueError, match=r"KerasHub .*dl-essentials\[hub\].*Received: .*(test_a_preset|kaggle)"
            ):
                read(source)


@pytest.fixture(scope="module")
def hub():
    return pytest.importorskip("keras_hub")


def given(backbone, pad):
    """Inputs of a backbone and of our model, the second text padded."""
    ids = IDS.copy()
    ids[1, 6:] = pad
    mask = (np.arange(9) < np.array([[9], [6]])).astype("int32")
    segments = ((np.arange(9) > 4) * mask).astype("int32")
    whole = {"token_ids": ids, "padding_mask": mask, "segment_ids": segments}
    whole |= {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in whole.items()}
    theirs = {one.name: whole[one.name] for one in backbone.inputs}
    ours = {"token_ids": ids, "segment_ids": segments, "source": ids, "target": ids}
    return theirs, ours, mask.astype(bool)


@pytest.mark.parametrize("name", CASES)
def test_a_backbone_answers_as_our_model_does(name, hub, tmp_path):
    kind, sizes = CASES[name]
    keras.utils.set_random_seed(1)
    backbone = getattr(hub.models, kind)(**sizes)
    noise = np.random.default_rng(2)
    for weight in backbone.weights:  # away from zeros and ones, so that none can be missed
        weight.assign(weight + 0.3 * noise.normal(size=weight.shape))
    backbone.save_to_preset(tmp_path / "preset")
    model, tokenizer, report = from_pretrained(tmp_path / "preset")
    assert tokenizer is None and not report.fresh
    pad = {"roberta": 1, "xlnet": 5}.get(name, 0)
    theirs, ours, mask = given(backbone, pad)
    if name == "xlnet":  # of several texts KerasHub 0.32 mixes the positions
        theirs, ours, mask = [{key: one[1:] for key, one in part.items()} for part in (theirs, ours)] + [mask[1:]]
    expected = backbone.predict_on_batch(theirs)
    if report.head == "lm":
        hidden = expected["decoder_sequence_output"] if name.startswith("t5") else expected
        expected = keras.ops.convert_to_numpy(backbone.token_embedding(hidden, reverse=True))
        expected = expected * (8**-0.5 if name == "t5" else 1)  # which the backbone leaves to its task
    names = [one.name for one in model.inputs]
    found = model(ours["token_ids"] if names == ["token_ids"] else {one: ours[one] for one in names})
    if name == "bert":
        np.testing.assert_allclose(found["pooled"], expected["pooled_output"], atol=1e-4)
        expected = expected["sequence_output"]
    found = np.asarray(found["hidden"] if isinstance(found, dict) else found)
    np.testing.assert_allclose(found[mask], expected[mask], atol=1e-4)


def test_heads_begin_new_and_are_reported(hub, tmp_path):
    hub.models.BertBackbone(**SIZES, max_sequence_length=16).save_to_preset(tmp_path / "bert")
    model, _, report = from_pretrained(tmp_path / "bert", head="classification", num_classes=3)
    assert report.fresh == ("logits/kernel", "logits/bias") and model.output_shape == (None, 3)
    _, _, report = from_pretrained(tmp_path / "bert", head="masked_lm")
    assert set(report.dropped) == {"features/kernel", "features/bias"}
    with pytest.raises(ValueError, match="Did you mean 'masked_lm'"):
        from_pretrained(tmp_path / "bert", head="masked_lms")


def test_what_keras_hub_cannot_load_or_we_cannot_build_is_refused(hub, tmp_path):
    hub.models.AlbertBackbone(**SIZES, embedding_dim=4).save_to_preset(tmp_path / "albert")
    with pytest.raises(ValueError, match="BertBackbone.* Received: AlbertBackbone"):
        from_pretrained(tmp_path / "albert")
    hub.models.BertBackbone(**SIZES, max_sequence_length=16).save_to_preset(tmp_path / "bert")
    hub.models.LlamaBackbone(**LLAMA, rope_position_scaling_factor=2.0).save_to_preset(tmp_path / "llama")
    with pytest.raises(ValueError, match=r"rope_position_scaling_factor 1.0.*Received: 2.0"):
        from_pretrained(tmp_path / "llama")
    (tmp_path / "bert/model.weights.h5").unlink()
    with pytest.raises(ValueError, match="preset that KerasHub loads. Received: "):
        from_pretrained(tmp_path / "bert")


def test_tokenizers_come_along(hub, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "The", "the", "road", "##s", ".", "é"]
    for lowercase, text in ((True, "THE roads."), (False, "The road. é")):
        folder = tmp_path / f"bert_{lowercase}"
        hub.models.BertBackbone(**SIZES, max_sequence_length=16).save_to_preset(folder)
        theirs = hub.tokenizers.BertTokenizer(vocabulary=words, lowercase=lowercase)
        theirs.save_to_preset(folder)
        ours = from_pretrained(folder).tokenizer
        assert ours.encode(text, add_special=False) == [int(one) for one in theirs(text)]
        assert load_tokenizer(folder).encode(text) == ours.encode(text)
    vocabulary = {one: place for place, one in enumerate(["<|endoftext|>", "a", "b", "Ġ", "ab", "Ġab"])}
    theirs = hub.tokenizers.GPT2Tokenizer(vocabulary=vocabulary, merges=["a b", "Ġ ab"])
    hub.models.GPT2Backbone(**SIZES, max_sequence_length=16).save_to_preset(tmp_path / "gpt2")
    theirs.save_to_preset(tmp_path / "gpt2")
    ours = from_pretrained(tmp_path / "gpt2").tokenizer
    assert ours.encode("ab abba") == [int(one) for one in theirs("ab abba")]
    assert ours.end_id == 0
