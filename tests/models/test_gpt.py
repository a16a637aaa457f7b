"""GPT-2 and LLaMA against Hugging Face's answers (tests/golden/make_gpt.py), what they write, and how they draw."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from models import gpt as gpt_file
from models import llama as llama_file
from models.checkpoints import from_pretrained, to_pretrained
from models.gpt import gpt
from models.layers.sampling import Sampling, draw, narrowed, penalized
from models.layers.speculative import speculate
from models.llama import llama
from tests.models.counting import parameters

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = ("gpt2_lm", "gpt2_features", "llama_grouped", "llama_tied", "llama_linear", "llama_llama3")
WRITING = tuple(name for name in NAMES if name != "gpt2_features")
LENGTHS = np.array([9, 5, 1], "int32")  # of the prompts in the golden files
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "embedding_dropout": 0.0}
SMALL = {"width": 8, "depth": 2, "num_heads": 2, "hidden_dim": 12, "max_length": 32}
BUILDERS = {"gpt": (gpt, SMALL | {"stddev": 0.5}), "llama": (llama, SMALL | {"num_kv_heads": 1, "stddev": 0.5})}
IDS = np.array([[5, 7, 4, 6, 8, 9], [9, 4, 3, 1, 2, 0]], "int32")


@pytest.fixture(params=BUILDERS)
def model(request):
    keras.utils.set_random_seed(3)
    builder, arguments = BUILDERS[request.param]
    return builder(12, **arguments)


@pytest.mark.parametrize("name", NAMES)
def test_published_checkpoints_answer_as_the_reference_does(name, tmp_path):
    """Loaded, and loaded again after `to_pretrained`."""
    data = np.load(GOLDEN / f"{name}.npz")
    model, _, report = from_pretrained(GOLDEN / name)
    again = from_pretrained(to_pretrained(model, tmp_path / "written")).model
    assert again.get_config() == model.get_config()
    for one in (model, again):
        np.testing.assert_allclose(
            one(data["token_ids"]), data["logits" if report.head == "lm" else "hidden"], atol=1e-4
        )


@pytest.mark.parametrize("name", WRITING)
def test_greedy_search_writes_token_by_token_what_the_reference_writes(name):
    """64 tokens, after prompts of several lengths in one batch; with an end, and with a penalty."""
    data = np.load(GOLDEN / f"{name}.npz")
    model = from_pretrained(GOLDEN / name).model
    write = tf.function(
        lambda ids, lengths, **more: model.generate(ids, lengths, max_new_tokens=64, temperature=0, **more),
        autograph=False,
    )
    prompt = tf.constant(data["token_ids"], tf.int32)
    np.testing.assert_array_equal(write(prompt, LENGTHS).token_ids, data["written"])
    ended = write(prompt, LENGTHS, end_ids=(int(data["end"]),))
    np.testing.assert_array_equal(ended.token_ids, data["ended"])
    assert min(ended.lengths.numpy()) < 64
    penalized_too = write(prompt[:1], LENGTHS[:1], repetition_penalty=1.3)
    np.testing.assert_array_equal(penalized_too.token_ids, data["penalized"])


def test_the_reference_loads_what_we_write(tmp_path):
    transformers = pytest.importorskip("transformers")
    import torch

    for name in WRITING:
        to_pretrained(from_pretrained(GOLDEN / name).model, tmp_path / name)
        reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        data = np.load(GOLDEN / f"{name}.npz")
        answer = reference(torch.tensor(data["token_ids"])).logits.detach().numpy()
        np.testing.assert_allclose(answer, data["logits"], atol=1e-4)


@pytest.mark.parametrize(
    ("module", "vocab_size", "size", "count"),
    [
        (gpt_file, 50257, "small", 124_439_808),
        (gpt_file, 50257, "medium", 354_823_168),
        (gpt_file, 50257, "large", 774_030_080),
        (gpt_file, 50257, "xl", 1_557_611_200),
        (llama_file, 32000, "7b", 6_738_415_616),
        (llama_file, 32000, "13b", 13_015_864_320),
        (llama_file, 32000, "tiny-1.1b", 1_100_048_384),
        (llama_file, 128256, "3-8b", 8_030_261_248),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(module, vocab_size, size, count):
    builder = module.gpt if module is gpt_file else module.llama
    assert parameters(builder, vocab_size, **module.SIZES[size]) == count


def test_no_place_sees_what_comes_after_it(model):
    before = np.asarray(model(IDS))
    for place in range(6):
        changed = IDS.copy()
        changed[:, place] = 11
        difference = np.abs(np.asarray(model(changed)) - before).max((0, 2))
        assert difference[:place].max(initial=0) == 0 and difference[place] > 1e-3


def test_token_by_token_with_a_cache_equals_all_at_once(model):
    whole, state = np.asarray(model(IDS)), model.empty_state(2, 6)
    for place in range(6):
        logits, state = model.decode(IDS[:, place : place + 1], state=state, position=place)
        np.testing.assert_allclose(logits[:, 0], whole[:, place], atol=1e-5)


def test_padding_of_other_prompts_changes_nothing(model):
    """A prompt is written on alike alone and beside longer ones, whatever stands in its padding."""
    alone = model.generate(IDS[:1, :3], max_new_tokens=5, temperature=0)
    ids = np.array([[5, 7, 4, 0, 0, 0], [5, 7, 4, 9, 11, 3], [9, 4, 3, 1, 2, 0]], "int32")
    beside = model.generate(ids, [3, 3, 6], max_new_tokens=5, temperature=0)
    for row in (0, 1):
        np.testing.assert_array_equal(beside.token_ids[row], alone.token_ids[0])
        np.testing.assert_allclose(beside.log_probabilities[row], alone.log_probabilities[0], atol=1e-4)


def test_log_probabilities_are_those_of_the_model(model):
    found = model.generate(IDS, max_new_tokens=4, temperature=0.7, top_k=5, seed=1)
    whole = np.concatenate([IDS, found.token_ids], axis=1)
    expected = np.asarray(ops.log_softmax(model(whole)))[:, 5:9]
    expected = np.take_along_axis(expected, np.asarray(found.token_ids)[..., None], axis=2)[..., 0]
    np.testing.assert_allclose(found.log_probabilities, expected, atol=1e-4)


def test_a_seed_gives_the_same_text_and_another_one_another(model):
    def write(seed):
        return np.asarray(model.generate(IDS, max_new_tokens=6, seed=seed).token_ids)

    np.testing.assert_array_equal(write(1), write(1))
    assert (write(1) != write(2)).any()


def test_texts_end_at_their_ends_and_stops(model):
    plain = np.asarray(model.generate(IDS, max_new_tokens=12, temperature=1.5, seed=5).token_ids)
    pair = tuple(int(one) for one in plain[0, 3:5])
    stopped = model.generate(IDS, max_new_tokens=12, temperature=1.5, seed=5, stop=(pair,), pad_id=11)
    first = next(place for place in range(12) if tuple(plain[0, place : place + 2]) == pair) + 2
    assert int(stopped.lengths[0]) == first
    np.testing.assert_array_equal(stopped.token_ids[0, :first], plain[0, :first])
    np.testing.assert_array_equal(stopped.token_ids[0, first:], 11)
    assert not np.asarray(stopped.log_probabilities)[0, first:].any()
    end = int(plain[1, 2])
    ended = model.generate(IDS, max_new_tokens=12, temperature=1.5, seed=5, end_ids=(end,))
    assert int(ended.lengths[1]) == list(plain[1]).index(end) + 1


def test_what_may_be_drawn_is_what_the_reference_leaves():
    data = np.load(GOLDEN / "sampling.npz")

    def shares(*limits):
        return np.asarray(ops.softmax(narrowed(ops.convert_to_tensor(data["logits"]), *limits)))

    np.testing.assert_allclose(shares(7, 1.0), data["top_k"], atol=1e-6)
    np.testing.assert_allclose(shares(0, 0.8), data["top_p"], atol=1e-6)
    seen = np.zeros_like(data["logits"], bool)
    np.put_along_axis(seen, data["before"], True, axis=1)
    np.testing.assert_allclose(penalized(ops.convert_to_tensor(data["logits"]), seen, 1.7), data["penalty"], atol=1e-6)


@pytest.mark.parametrize("drawing", [Sampling(), Sampling(0.5), Sampling(1.0, 3), Sampling(1.3, 0, 0.7)])
def test_tokens_are_drawn_as_often_as_their_probability_says(drawing):
    logits = ops.convert_to_tensor([[0.3, -1.0, 2.0, 0.0, 1.5]])
    count = 20_000
    noise = (np.arange(count, dtype="float32") + 0.5) / count
    ids = draw(ops.repeat(logits, count, axis=0), drawing, ops.convert_to_tensor(noise))
    expected = ops.softmax(narrowed(logits / drawing.temperature, drawing.top_k, drawing.top_p))[0]
    np.testing.assert_allclose(np.bincount(ids, minlength=5) / count, expected, atol=2e-4)
    for edge in (0.0, np.nextafter(np.float32(1), np.float32(0))):  # never a token of probability 0
        assert float(expected[int(draw(logits, drawing, ops.convert_to_tensor([edge]))[0])]) > 0


def test_gradients_reach_every_weight(model):
    with tf.GradientTape() as tape:
        noise = np.random.default_rng(0).normal(size=(2, 6, 12)).astype("float32")
        loss = tf.reduce_sum(model(IDS, training=True) * noise)
    for weight, gradient in zip(model.trainable_variables, tape.gradient(loss, model.trainable_variables)):
        assert gradient is not None, weight.path
        # a key's bias moves all scores of a query alike, which the softmax takes away
        if not weight.path.endswith("key/bias"):
            assert float(tf.reduce_max(tf.abs(tf.convert_to_tensor(gradient)))) > 0, weight.path


@pytest.mark.parametrize("name", BUILDERS)
def test_one_text_can_be_learned_by_heart_and_written(name):
    keras.utils.set_random_seed(0)
    builder, _ = BUILDERS[name]
    model = builder(12, **SMALL | {"width": 16}, **(NO_DROPOUT if name == "gpt" else {}))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss, steps_per_execution=20)
    text = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]], "int32")
    before = model.evaluate(text[:, :-1], text[:, 1:], verbose=0)
    many = np.repeat(text, 120, axis=0)
    model.fit(many[:, :-1], many[:, 1:], batch_size=1, verbose=0)
    assert model.evaluate(text[:, :-1], text[:, 1:], verbose=0) < 0.1 < 1.5 < before
    np.testing.assert_array_equal(model.generate(text[:, :2], max_new_tokens=14, temperature=0).token_ids, text[:, 2:])


def test_half_precision_keeps_logits_in_float32():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        models = [builder(12, **arguments) for builder, arguments in BUILDERS.values()]
    finally:
        keras.config.set_dtype_policy(before)
    for model in models:
        logits = model(IDS)
        assert keras.backend.standardize_dtype(logits.dtype) == "float32" and np.isfinite(np.asarray(logits)).all()
        assert model.generate(IDS, max_new_tokens=3, temperature=0).token_ids.shape == (2, 3)


@pytest.mark.parametrize("attention", ["window", "block_sparse", "linear", "chunked"])
def test_every_kind_of_attention_writes(attention):
    model = gpt(12, attention=attention, window=3, block_size=2, **SMALL)
    assert model.generate(IDS, max_new_tokens=4, temperature=0).token_ids.shape == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"stop": ((),)}, "stop"),
        ({"max_new_tokens": 27}, "32 positions"),
    ],
)
def test_arguments_of_generation_are_checked(arguments, message):
    with pytest.raises(ValueError, match=rf"{message}.*Received: "):
        gpt(12, **SMALL).generate(IDS, **{"max_new_tokens": 2, **arguments})
    with pytest.raises(ValueError, match="Received: 'features'"):
        gpt(12, head="features", **SMALL).generate(IDS, max_new_tokens=2)


def test_speculation_writes_what_greedy_search_writes_in_fewer_calls(model):
    keras.utils.set_random_seed(4)
    other = gpt(12, **SMALL | {"depth": 1, "stddev": 0.5})
    prompt = IDS[:1, :3]
    greedy = model.generate(prompt, max_new_tokens=9, temperature=0)
    for draft, most in ((model, 3), (other, 9)):  # itself agrees with all, a stranger with next to nothing
        write = tf.function(
            lambda ids, draft=draft: speculate(model, draft, ids, max_new_tokens=9, draft_tokens=2), autograph=False
        )
        found = write(prompt)
        np.testing.assert_array_equal(found.token_ids, greedy.token_ids)
        assert int(found.calls) <= most
    assert int(found.calls) > 3


def test_speculation_refuses_what_it_cannot_do():
    model = gpt(12, **SMALL)
    for prompt, draft, more, message in (
        (IDS, model, {}, "one prompt"),
        (IDS[:1], gpt(13, **SMALL), {}, "vocabularies"),
        (IDS[:1], model, {"max_new_tokens": 27}, "32 positions"),
        (IDS[:1], model, {"draft_tokens": 0}, "draft_tokens"),
    ):
        with pytest.raises(ValueError, match=rf"{message}.*Received: |Received: .*{message}"):
            speculate(model, draft, prompt, **{"max_new_tokens": 2, **more})


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"kind": "yarn", "factor": 2.0}, "'linear', 'llama3'. Received: 'yarn'"),
        ({"kind": "linear"}, "linear' has factor, .* Received"),
        ({"kind": "linear", "factor": 0.0}, "above 0"),
        ({"kind": "linear", "factor": 2.0, "base": 3.0}, "has factor"),
        (
            {"kind": "llama3", "factor": 8.0, "low_factor": 4.0, "high_factor": 1.0, "trained_length": 64},
            "high_factor .* above low_factor",
        ),
    ],
)
def test_scalings_of_rotary_positions_are_checked(scaling, message):
    with pytest.raises(ValueError, match=message):
        llama(12, rotary_scaling=scaling, **SMALL)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "yarn", "factor": 2.0}, "default, linear, llama3 .*Received: 'yarn'"),
        ({"type": "dynamic", "factor": 2.0}, "Received: 'dynamic'"),
        ({"rope_type": "llama3", "factor": 2.0}, "Expected low_freq_factor"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor 1.0"),
    ],
)
def test_checkpoints_with_other_rotary_positions_are_refused(rope, message, tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "llama_llama3", tmp_path / "llama"))
    config = json.loads((folder / "config.json").read_text()) | {"rope_parameters": rope}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        from_pretrained(folder)
    config |= {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 50.0, "rope_parameters": None}
    (folder / "config.json").write_text(json.dumps(config))  # as it was written before
    attention = from_pretrained(folder).model.arguments["block"]["attention"]
    assert attention["rotary_scaling"] == {"kind": "linear", "factor": 4.0} and attention["rotary_base"] == 50.0
