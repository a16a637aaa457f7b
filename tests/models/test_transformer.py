"""The transformer: its size, causality, padding, cached decoding, search, alignments, learning, saving."""

import inspect
import json
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from models.layers.attention import KINDS, attention_maps
from models.layers.decoding import END, PAD, START
from models.schedules import TransformerSchedule
from models.text_transformer import text_transformer
from models.transformer import SIZES, Transformer, transformer

ROOT = Path(__file__).parent.parent.parent
TINY = {"width": 16, "depth": 1, "num_heads": 4, "hidden_dim": 24}
SMALL = {"window": 3, "block_size": 2, "window_blocks": 1, "num_global": 1}
V = 13
VARIANTS = {
    **{kind: {"attention": kind, **SMALL} for kind in KINDS},
    "pre": {"normalization": "pre", "positions": "rotary", "num_kv_heads": 2},
    "learned": {"positions": "learned", "max_length": 12, "tied_output": False, "use_bias": True},
    "shared": {"positions": "none", "shared_embeddings": True, "num_kv_heads": 1, "activation": "gelu"},
}
each = pytest.mark.parametrize("variant", VARIANTS)
some = pytest.mark.parametrize("variant", ["full", "pre", "learned", "shared"])


@cache
def model(variant="full"):
    """Small random weights everywhere, so that no zero hides a path."""
    made = transformer(V, V, **TINY, **VARIANTS[variant])
    noise = np.random.default_rng(0)
    for weight in made.trainable_weights:
        weight.assign(noise.normal(0, 0.3, weight.shape) + (weight.name == "gamma"))
    return made


def pairs(count=3, source=6, target=7, seed=0):
    tokens = np.random.default_rng(seed)
    inputs = {"source": tokens.integers(4, V, (count, source)), "target": tokens.integers(4, V, (count, target))}
    inputs["target"][:, 0] = START
    inputs["source"][0, source - 2 :] = PAD
    return {name: token_ids.astype("int32") for name, token_ids in inputs.items()}


def test_the_call_is_that_of_a_builder():
    parameters = inspect.signature(transformer).parameters
    assert list(parameters)[:2] == ["source_vocab_size", "target_vocab_size"]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in [*parameters.values()][2:])
    assert set().union(*SIZES.values()) <= set(parameters)
    made = transformer(V, 17)
    assert isinstance(made, Transformer) and not made.compiled and made.name == "transformer"
    assert made.output_shape == (None, None, 17) and set(made.input) == {"source", "target"}
    assert made.count_params() < 1_500_000, "a default must train in minutes"


def count_by_hand(vocab, d, depth, hidden):
    norm, dense = 2 * d, 2 * d * hidden + hidden + d
    return vocab * d + depth * (4 * d * d + dense + 2 * norm) + depth * (8 * d * d + dense + 3 * norm)


def test_the_base_of_the_paper_has_63_million_parameters():
    """Table 3 says 65 million. 37,000 tokens are shared by source, target and output."""
    assert count_by_hand(37_000, 512, 6, 2048) == 63_045_632
    assert count_by_hand(37_000, 1024, 6, 4096) == 214_171_648
    made = transformer(37_000, 37_000, **SIZES["base"])
    assert made.count_params() == 63_045_632


@each
def test_the_future_of_the_target_does_not_change_its_past(variant):
    inputs = pairs(target=9)
    changed = inputs | {"target": inputs["target"].copy()}
    changed["target"][:, 5:] = 4 + (changed["target"][:, 5:] + 1) % (V - 4)
    logits = model(variant)(inputs)
    assert logits.shape == (3, 9, V) and logits.dtype == "float32" and np.isfinite(logits).all()
    before, after = np.asarray(logits), np.asarray(model(variant)(changed))
    np.testing.assert_allclose(before[:, :5], after[:, :5], atol=1e-5)
    assert np.abs(before[:, 5] - after[:, 5]).max() > 1e-3


@each
def test_padding_of_source_and_target_does_not_change_answers(variant):
    inputs = pairs(target=5)
    longer = {name: np.pad(token_ids, ((0, 0), (0, 4))) for name, token_ids in inputs.items()}
    before, after = np.asarray(model(variant)(inputs)), np.asarray(model(variant)(longer))
    np.testing.assert_allclose(before, after[:, :5], atol=1e-4)


@some
def test_answers_depend_on_every_source_token_and_on_the_order(variant):
    inputs = pairs(count=1, target=4)
    inputs["source"][0, 4:] = 4, 5
    sources = np.repeat(inputs["source"], 8, axis=0)  # as it is, changed at each of six places, and backwards
    sources[np.arange(1, 7), np.arange(6)] = 4 + (sources[0] + 1) % (V - 4)
    sources[7] = sources[0, ::-1]
    answers = np.asarray(model(variant)({"source": sources, "target": np.repeat(inputs["target"], 8, axis=0)}))
    moved = np.abs(answers - answers[0]).max(axis=(1, 2))
    assert (moved[1:7] > 1e-4).all()
    assert bool(moved[7] > 1e-3) is (variant != "shared")  # which has no positions


@each
def test_token_by_token_with_a_cache_equals_all_at_once(variant):
    inputs, made = pairs(target=9), model(variant)
    memory, mask = made.encode(ops.convert_to_tensor(inputs["source"]))
    memory, state, logits = made.remember(memory), made.empty_state(3, 10), []
    for place in range(9):
        token_ids = ops.convert_to_tensor(inputs["target"][:, place : place + 1])
        step, state = made.decode(token_ids, memory, mask, state=state, position=ops.convert_to_tensor(place))
        logits.append(step)
    np.testing.assert_allclose(np.concatenate(logits, axis=1), made(inputs), atol=2e-5, rtol=1e-5)


def log_probabilities(made, source, token_ids):
    """Logarithms of the probabilities of all tokens at each place of an answer, by the whole decoder."""
    target = np.pad(token_ids[:, :-1], ((0, 0), (1, 0)), constant_values=START)
    logits = np.asarray(made({"source": source, "target": target}))
    return np.asarray(ops.log_softmax(logits))


@pytest.mark.parametrize("variant", ["pre", "linear"])
def test_greedy_search_finds_what_the_whole_decoder_finds(variant):
    made, source, target = model(variant), pairs(source=5)["source"], np.full((3, 1), START, "int32")
    for place in range(6):
        logits = np.array(made({"source": source, "target": target}))[:, -1]
        logits[:, [PAD, START]] = -np.inf
        best = np.where((target[:, 1:] == END).any(1), PAD, logits.argmax(-1) if place < 5 else END)
        target = np.concatenate([target, best[:, None].astype("int32")], axis=1)
    found = made.generate(source, max_length=6, beam_width=1)
    np.testing.assert_array_equal(found.token_ids[:, 0], target[:, 1:])


def test_scores_of_a_beam_are_those_of_the_whole_decoder_and_its_attention_the_alignments():
    made, source = model("pre"), pairs()["source"]
    found = made.generate(source, max_length=6, beam_width=3, length_penalty=0.0)
    assert found.token_ids.shape == (3, 3, 6) and (np.diff(found.scores, axis=1) <= 1e-6).all()
    for beam in range(3):
        token_ids, lengths = np.asarray(found.token_ids[:, beam]), np.asarray(found.lengths[:, beam])
        logs = np.take_along_axis(log_probabilities(made, source, token_ids), token_ids[..., None], axis=-1)[..., 0]
        real = np.arange(6) < lengths[:, None]
        np.testing.assert_allclose(found.scores[:, beam], (logs * real).sum(-1), atol=1e-4)
        target = np.pad(token_ids[:, :-1], ((0, 0), (1, 0)), constant_values=START)
        told = np.asarray(made.alignments(source, target)) * (np.arange(6) < lengths[:, None])[..., None]
        np.testing.assert_allclose(found.attention[:, beam], told, atol=1e-5)


def test_generation_compiles_for_any_batch_and_length_and_for_an_empty_source():
    import tensorflow as tf

    made = model("full")

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)])
    def generate(source):
        found = made.generate(source, max_length=5, beam_width=2, coverage_penalty=0.2)
        return found.token_ids, found.scores

    for source in (pairs()["source"], pairs(count=1, source=3)["source"], np.zeros((2, 4), "int32")):
        token_ids, scores = generate(source)
        assert token_ids.shape == (len(source), 2, 5) and np.isfinite(scores).all()
    shorter = generate(np.zeros((1, 1), "int32"))
    np.testing.assert_array_equal(shorter[0][0], token_ids[0])  # nothing is nothing, however padded


def test_alignments_and_maps_are_told_by_name():
    made, inputs = model("full"), pairs()
    maps = attention_maps(made, inputs)
    assert set(maps) == {
        "encoder1_self_attention",
        "decoder1_self_attention",
        "decoder1_memory_attention",
    }
    assert maps["decoder1_memory_attention"].shape == (3, 4, 7, 6)
    alignments = made.alignments(**inputs)
    np.testing.assert_allclose(alignments, np.mean(maps["decoder1_memory_attention"], axis=1), atol=1e-5)
    np.testing.assert_allclose(np.sum(alignments, -1), 1.0, atol=1e-5)
    assert not np.asarray(alignments)[0, :, 4:].any(), "nobody looks at padding"


@some
def test_gradients_reach_every_weight(variant):
    import tensorflow as tf

    made, inputs = model(variant), pairs()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(made(inputs, training=True) - 1.0))
    gradients = tape.gradient(loss, [weight.value for weight in made.trainable_weights])
    still = [
        w.path for w, g in zip(made.trainable_weights, gradients) if g is None or not np.any(ops.convert_to_tensor(g))
    ]
    assert [path for path in still if not path.endswith("attention/key/bias")] == []


def test_one_batch_can_be_learned_by_heart():
    """To say a sequence backwards, and to end."""
    keras.utils.set_random_seed(1)
    made = transformer(V, V, **(TINY | {"width": 32}), dropout=0.0)
    source = pairs(count=6, source=5)["source"]
    answer = np.pad(source[:, ::-1], ((0, 0), (0, 1)), constant_values=END)
    answer = np.where(answer == PAD, 4, answer)
    target = np.pad(answer[:, :-1], ((0, 0), (1, 0)), constant_values=START).astype("int32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile(keras.optimizers.Adam(0.01), loss, steps_per_execution=10, jit_compile=False)
    many = {"source": np.tile(source, (60, 1)), "target": np.tile(target, (60, 1))}
    made.fit(many, np.tile(answer, (60, 1)), batch_size=6, shuffle=False, verbose=0)
    found = made.generate(source, max_length=6, beam_width=2)
    np.testing.assert_array_equal(found.token_ids[:, 0], answer)


def test_mixed_precision_answers_in_float32_and_is_kept_in_the_configuration():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        made = transformer(V, V, **TINY, **VARIANTS["pre"])
    finally:
        keras.config.set_dtype_policy("float32")
    made.set_weights(model("pre").get_weights())
    logits, inputs = made(pairs()), pairs()
    assert logits.dtype == "float32" and made.encode(ops.convert_to_tensor(inputs["source"]))[0].dtype == "bfloat16"
    exact = np.asarray(model("pre")(inputs))
    assert np.abs(logits - exact).mean() < 0.1 * np.abs(exact).mean()
    again = Transformer.from_config(json.loads(json.dumps(made.get_config())))
    again.set_weights(made.get_weights())
    np.testing.assert_array_equal(again(inputs), logits)
    assert np.isfinite(made.generate(inputs["source"], max_length=4, beam_width=2).scores).all()


def test_noise_is_for_training_only():
    made = model("full")
    np.testing.assert_array_equal(made(pairs()), made(pairs()))
    assert not np.allclose(made(pairs(), training=True), made(pairs(), training=True))


@pytest.mark.parametrize(
    "arguments",
    [
        {"source_vocab_size": 0},
        {"width": 0},
        {"width": 17, "num_heads": 1},
        {"num_heads": 3},
        {"depth": 0},
        {"hidden_dim": -4},
        {"dropout": 1.0},
        {"normalization": "layer"},
        {"positions": "rotari"},
        {"width": 12, "positions": "rotary"},
        {"positions": "learned", "max_length": 0},
        {"attention": "sparse"},
        {"num_kv_heads": 3},
        {"window": 0},
        {"window_blocks": -1},
        {"shared_embeddings": True, "target_vocab_size": 14},
    ],
)
def test_arguments_out_of_range_are_errors(arguments):
    with pytest.raises(ValueError, match="Received: "):
        transformer(**({"source_vocab_size": V, "target_vocab_size": V} | TINY | arguments))


def test_a_target_longer_than_the_learned_positions_is_an_error():
    with pytest.raises(ValueError, match="at most the 12 learned positions. Received: 13"):
        model("learned").generate(pairs()["source"], max_length=13)


def test_the_schedule_is_equation_3():
    rate = TransformerSchedule(512)
    for step in (1, 2, 3_999, 4_000, 4_001, 100_000):
        expected = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        np.testing.assert_allclose(rate(step - 1), expected, rtol=1e-5)
    peak = float(rate(3_999))
    assert all(float(rate(step)) < peak for step in (3_900, 4_100)) and abs(peak - 1 / np.sqrt(512 * 4000)) < 1e-8
    schedules = keras.optimizers.schedules
    again = schedules.deserialize(schedules.serialize(TransformerSchedule(64, 10, scale=2.0)))
    np.testing.assert_allclose(again(9), 2.0 / np.sqrt(64 * 10), rtol=1e-5)
    with pytest.raises(ValueError, match="must be positive. Received: 512 and 0"):
        TransformerSchedule(512, 0)


FRESH = """
import sys, json, keras, numpy as np
import models.text_transformer, models.transformer
from fresh_process import draw_first_values_by_numpy, run
draw_first_values_by_numpy()
folder = sys.argv[1]
inputs = {name: np.load(f"{folder}/{name}.npy") for name in ("source", "target")}
answers = np.load(f"{folder}/answers.npz")
for name in answers.files:
    model = keras.saving.load_model(f"{folder}/{name}.keras")
    given = inputs if name in ("learned", "pre") else inputs["source"]
    found = keras.ops.convert_to_numpy(run(model, model, given)[0])
    difference = np.abs(found - answers[name]).max()
    assert difference < 1e-4, (name, difference)
found = model.generate(inputs["source"], max_length=5, beam_width=2)
print(json.dumps([keras.backend.backend(), keras.ops.convert_to_numpy(found.token_ids).tolist()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", [name for name in ("jax", "torch") if find_spec(name)])
def test_another_backend_loads_answers_and_generates_alike(backend, tmp_path):
    for name, token_ids in pairs().items():
        np.save(tmp_path / f"{name}.npy", token_ids)
    classifier = text_transformer(V, 3, width=16, depth=1, attention="block_sparse", block_size=2)
    made = {"classifier": classifier, "learned": model("learned"), "pre": model("pre")}
    for name, one in made.items():
        one.save(tmp_path / f"{name}.keras")
    given = {name: pairs() if name != "classifier" else pairs()["source"] for name in made}
    np.savez(tmp_path / "answers.npz", **{name: np.asarray(one(given[name])) for name, one in made.items()})
    result = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path)],
        cwd=ROOT,
        env=os.environ
        | {"KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])}
        | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    name, token_ids = json.loads(result.stdout.splitlines()[-1])
    expected = model("pre").generate(pairs()["source"], max_length=5, beam_width=2)
    assert name == backend
    np.testing.assert_array_equal(token_ids, expected.token_ids)
