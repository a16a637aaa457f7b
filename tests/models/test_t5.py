"""T5 against Hugging Face's outputs, and against itself: sizes, buckets, cache, search, learning, saving."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from models.checkpoints import from_pretrained, to_pretrained
from models.layers.relative_bias import RelativeBias, bucket_table
from models.t5 import SIZES, T5, t5

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests/golden"
TINY = {"width": 16, "depth": 1, "num_heads": 2, "head_dim": 6, "hidden_dim": 24, "num_buckets": 8, "max_distance": 12}
V = 19
V11 = {"gated": True, "activation": "gelu_tanh", "tied_output": False}
# Options of `generate` by the name that the golden files have for them.
BEAMS = {
    "plain": {},
    "early": {"early_stopping": True, "length_penalty": 2.0},
    "never": {"early_stopping": "never", "length_penalty": 0.5},
    "short": {"length_penalty": -1.0},
    "sum": {"early_stopping": "never", "length_penalty": 0.0},
}
# With 32,128 tokens: the whole model, and its encoder with the embeddings, as `T5ForConditionalGeneration` and
# `T5EncoderModel` of transformers 5.23.0 count them.
COUNTS = {
    "small": (60_506_624, 35_330_816),
    "base": (222_903_552, 109_628_544),
    "large": (737_668_096, 334_939_648),
    "3b": (2_851_598_336, 1_240_909_824),
    "11b": (11_307_321_344, 4_864_791_552),
    "v1.1-small": (76_961_152, 35_332_800),
    "v1.1-base": (247_577_856, 109_628_544),
    "v1.1-large": (783_150_080, 341_231_104),
    "v1.1-xl": (2_849_757_184, 1_223_527_424),
    "v1.1-xxl": (11_135_332_352, 4_762_310_656),
}
both = pytest.mark.parametrize("name", ["t5_v10", "t5_v11"])


@cache
def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


@cache
def published(name):
    return from_pretrained(GOLDEN / name).model


def randomized(model, seed=0):
    """Random values everywhere, so that no zero hides a path."""
    noise = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        weight.assign(noise.normal(0, 0.3, weight.shape) + (weight.name == "scale"))
    return model


@cache
def tiny(version="v1.0"):
    return randomized(t5(V, **TINY, **(V11 if version == "v1.1" else {})))


def pairs(count=3, source=7, target=8, seed=0):
    tokens = np.random.default_rng(seed)
    inputs = {"source": tokens.integers(2, V, (count, source)), "target": tokens.integers(2, V, (count, target))}
    inputs["target"][:, 0] = 0
    inputs["source"][0, source - 3 :] = 0
    return {name: token_ids.astype("int32") for name, token_ids in inputs.items()}


def test_the_call_is_that_of_a_builder():
    parameters = inspect.signature(t5).parameters
    assert next(iter(parameters)) == "vocab_size"
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in [*parameters.values()][1:])
    assert set().union(*SIZES.values()) <= set(parameters) and SIZES.keys() == COUNTS.keys()
    made = t5(V)
    assert isinstance(made, T5) and not made.compiled and made.name == "t5" and made.model_type == "t5"
    assert made.output_shape == (None, None, V) and set(made.input) == {"source", "target"}
    assert made.count_params() < 1_500_000, "a default must train in minutes"


def counted(size, head):
    """Parameters of a published size; of one with many blocks, from those with one and with two of them."""
    depth = SIZES[size]["depth"]
    try:
        with keras.StatelessScope(initialize_variables=False):  # weights have shapes, and no values
            if depth <= 12:
                return t5(32_128, head=head, **SIZES[size]).count_params()
            one, two = (t5(32_128, head=head, **SIZES[size] | {"depth": count}).count_params() for count in (1, 2))
            return one + (depth - 1) * (two - one)
    finally:
        keras.utils.clear_session()  # or the next scope would make all these weights


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_have_the_published_number_of_parameters(size):
    assert (counted(size, "lm"), counted(size, "features")) == COUNTS[size]


@both
def test_hidden_states_and_logits_are_those_of_hugging_face(name):
    known, model = golden(name), published(name)
    hidden, mask = model.encode(ops.convert_to_tensor(known["source"]))
    np.testing.assert_array_equal(mask, known["source"] != 0)
    np.testing.assert_allclose(hidden, known["hidden"], atol=1e-4)  # also where there is padding
    logits = model({"source": known["source"], "target": known["target"]})
    assert known["logits"].std() > 0.1
    np.testing.assert_allclose(logits, known["logits"], atol=1e-4)


def test_the_encoder_alone_is_that_of_hugging_face():
    known, model = golden("t5_encoder"), published("t5_encoder")
    assert set(model.input) == {"source"} and not any("decoder" in weight.path for weight in model.weights)
    np.testing.assert_allclose(model({"source": known["source"]})["hidden"], known["hidden"], atol=1e-4)
    whole = golden("t5_v11")
    found = from_pretrained(GOLDEN / "t5_v11", head="features")
    np.testing.assert_allclose(found.model({"source": whole["source"]})["hidden"], whole["hidden"], atol=1e-4)
    assert all(name.startswith(("decoder.", "lm_head.")) for name in found.report.dropped)
    back = from_pretrained(GOLDEN / "t5_encoder", head="lm")
    assert back.report.fresh and all(name.startswith("decoder.") for name in back.report.fresh)
    with pytest.raises(ValueError, match="Only a T5 with head"):
        model.generate(known["source"], max_length=3)


@both
def test_greedy_answers_are_token_by_token_those_of_hugging_face(name):
    known = golden(name)
    found = published(name).generate(known["source"], max_length=64)
    np.testing.assert_array_equal(found.token_ids[:, 0], known["greedy"])
    ends = (known["greedy"] == 1).any(axis=1)
    assert ends.any() and not ends.all()  # some end, others are cut off
    expected = np.where(ends, (known["greedy"] == 1).argmax(axis=1) + 1, 64)
    np.testing.assert_array_equal(found.lengths[:, 0], expected)


@pytest.mark.parametrize(
    ("name", "beams"), [("t5_v10", name) for name in ("plain", "early", "never", "short")] + [("t5_v11", "plain")]
)
def test_beams_are_token_by_token_those_of_hugging_face(name, beams):
    known = golden(name)
    found = published(name).generate(known["source"], max_length=64, beam_width=4, **BEAMS[beams])
    np.testing.assert_array_equal(found.token_ids, known[f"{beams}_token_ids"])
    np.testing.assert_allclose(found.scores, known[f"{beams}_scores"], atol=1e-3, rtol=1e-4)


def test_beams_of_every_kind_differ_so_that_the_golden_file_tells_them_apart():
    made = [golden("t5_v10")[f"{beams}_token_ids"] for beams in ("plain", "early", "never")]
    assert all((one != other).any() for place, one in enumerate(made) for other in made[:place])


@both
def test_what_is_written_is_read_again(name, tmp_path):
    model = published(name)
    again = from_pretrained(to_pretrained(model, tmp_path / name)).model
    assert again.get_config() == model.get_config()
    for one, other in zip(model.get_weights(), again.get_weights()):
        np.testing.assert_array_equal(one, other)


def test_the_reference_loads_what_is_written(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    for version in ("v1.0", "v1.1"):
        folder = to_pretrained(tiny(version), tmp_path / version)
        theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
        inputs = pairs()
        source, target = (torch.tensor(inputs[name]).long() for name in ("source", "target"))
        with torch.no_grad():
            expected = theirs(source, attention_mask=(source != 0).long(), decoder_input_ids=target).logits
        np.testing.assert_allclose(tiny(version)(inputs), expected.numpy(), atol=1e-4)


def changed(name, folder, **fields):
    """A copy of a golden folder with other fields in config.json; None takes a field out."""
    shutil.copytree(GOLDEN / name, folder)
    config = json.loads((folder / "config.json").read_text()) | fields
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_config_is_read_as_it_was_published(tmp_path):
    """v1.1 was published as untied and says so; newer files say that it is not scaled, and have a matrix for it."""
    old = {"tie_word_embeddings": False, "scale_decoder_outputs": None, "dense_act_fn": None, "is_gated_act": None}
    made = from_pretrained(changed("t5_v11", tmp_path / "old", **old, num_decoder_layers=None)).model
    assert made.get_config() == published("t5_v11").get_config()
    assert not made.arguments["tied_output"] and not made.arguments["scaled_output"]
    assert published("t5_v10").arguments["tied_output"] and published("t5_v10").arguments["scaled_output"]
    exact = from_pretrained(changed("t5_v11", tmp_path / "exact", dense_act_fn="gelu")).model
    assert exact.arguments["block"]["activation"] == "gelu"


@pytest.mark.parametrize(
    "fields",
    [
        {"feed_forward_proj": "gated-sinus", "dense_act_fn": None},
        {"feed_forward_proj": "double-gelu"},
        {"pad_token_id": 3},
        {"eos_token_id": 2},
        {"decoder_start_token_id": 5},
        {"is_decoder": True},
        {"num_layers": 3},
        {"relative_attention_num_buckets": 16},
        {"architectures": ["T5ForTokenClassification"]},
    ],
)
def test_a_checkpoint_that_we_cannot_build_is_refused(fields, tmp_path):
    with pytest.raises(ValueError, match=r"Received: |expects"):
        from_pretrained(changed("t5_v11", tmp_path / "other", **fields))


def test_buckets_are_those_of_the_reference():
    for name, expected in golden("t5_buckets").items():
        buckets, most, both_ways = name.split("_")
        layer = RelativeBias(1, int(buckets), int(most), bidirectional=both_ways == "True")
        np.testing.assert_array_equal(layer.buckets(ops.arange(-300, 301)), expected, err_msg=name)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 64), st.integers(1, 400), st.booleans())
def test_buckets_grow_with_distance_use_their_half_and_end_at_the_longest(half, more, both_ways):
    buckets = 2 * half
    single = half // 2 if both_ways else half
    table = bucket_table(buckets, single + more, both_ways)
    steps = np.diff(table)
    assert (steps >= 0).all() and table[0] == 0 and (table[:single] == np.arange(single)).all()
    assert table[-1] == (half if both_ways else buckets) - 1  # the last bucket is that of the longest distance
    layer = RelativeBias(1, buckets, single + more, bidirectional=both_ways)
    places = ops.arange(1, single + more + 50)
    back, ahead = np.asarray(layer.buckets(-places)), np.asarray(layer.buckets(places))
    assert (back[single + more - 1 :] == table[-1]).all()  # clipped
    np.testing.assert_array_equal(ahead, back + half if both_ways else 0 * back)  # halves alike; or the future is 0


def test_the_bias_is_of_distances_and_float32_under_every_policy():
    for policy in ("float32", "mixed_bfloat16", "float16"):
        layer = RelativeBias(3, 8, 20, dtype=policy)
        x = ops.zeros((2, 6, 4))
        bias = np.asarray(layer(x))
        assert bias.shape == (1, 3, 6, 6) and bias.dtype == "float32" and layer.bias.dtype == "float32"
        np.testing.assert_array_equal(bias[..., 1:, 1:], bias[..., :-1, :-1])
        assert np.abs(bias[0, :, 0, 1] - bias[0, :, 1, 0]).max() > 0  # before is not after
        late = layer(x[:, :2], length=9, position=ops.convert_to_tensor(4))
        np.testing.assert_array_equal(late[..., :6], np.asarray(layer(ops.zeros((1, 9, 4))))[..., 4:6, :6])


@pytest.mark.parametrize("version", ["v1.0", "v1.1"])
def test_token_by_token_with_a_cache_equals_all_at_once(version):
    """Beyond the longest distance, so that the bias of a step must be that of its place."""
    inputs, made = pairs(target=21), tiny(version)
    memory, mask = made.encode(ops.convert_to_tensor(inputs["source"]))
    memory, state, logits = made.remember(memory), made.empty_state(3, 23), []
    for place in range(21):
        token_ids = ops.convert_to_tensor(inputs["target"][:, place : place + 1])
        step, state = made.decode(token_ids, memory, mask, state=state, position=ops.convert_to_tensor(place))
        logits.append(step)
    np.testing.assert_allclose(np.concatenate(logits, axis=1), made(inputs), atol=1e-5)


def test_the_future_of_the_target_and_padding_of_the_source_change_nothing():
    inputs = pairs()
    changed = inputs | {"target": inputs["target"].copy(), "source": np.pad(inputs["source"], ((0, 0), (0, 5)))}
    changed["target"][:, 5:] = 2 + (changed["target"][:, 5:] - 1) % (V - 2)
    before, after = np.asarray(tiny()(inputs)), np.asarray(tiny()(changed))
    np.testing.assert_allclose(before[:, :5], after[:, :5], atol=1e-5)
    assert np.abs(before[:, 5] - after[:, 5]).max() > 1e-3


def test_order_counts_in_source_and_target():
    inputs = pairs()
    swapped = {name: token_ids[:, [0, 2, 1, *range(3, token_ids.shape[1])]] for name, token_ids in inputs.items()}
    before = np.asarray(tiny()(inputs))[:, -1]
    for name in inputs:
        assert np.abs(before - np.asarray(tiny()(inputs | {name: swapped[name]}))[:, -1]).max() > 1e-3


@pytest.mark.parametrize("version", ["v1.0", "v1.1"])
def test_gradients_reach_every_weight(version):
    import tensorflow as tf

    made, inputs = tiny(version), pairs(source=20, target=20)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(made(inputs, training=True) - 1.0))
    weights = made.trainable_weights
    gradients = tape.gradient(loss, [weight.value for weight in weights])
    still = [w.path for w, g in zip(weights, gradients) if g is None or not np.any(ops.convert_to_tensor(g))]
    assert still == []


def test_kernels_begin_so_that_scores_and_logits_are_near_one():
    keras.utils.set_random_seed(1)
    made = t5(500, width=64, depth=1, num_heads=2, head_dim=64, hidden_dim=128, dropout=0.0)
    source = np.random.default_rng(0).integers(2, 500, (4, 32))
    assert 0.5 < np.std(made({"source": source, "target": source})) < 2.0
    block, x = made.parts.blocks["encoder"][0], np.random.default_rng(1).normal(size=(1, 40, 64)).astype("float32")
    attention = block.self_attention
    queries, keys = (ops.reshape(f(x), (40, 2, 64)) for f in (attention.query_dense, attention.key_dense))
    assert 0.5 < np.std(np.einsum("tnd,snd->nts", queries, keys)) < 1.5
    assert 0.8 < np.std(block.output_dense.kernel) * 128**0.5 < 1.0  # cut at two deviations


def test_one_batch_can_be_learned_by_heart():
    """To say a sequence backwards, and to end."""
    keras.utils.set_random_seed(1)
    made = t5(V, **TINY | {"width": 32}, dropout=0.0)
    source = pairs(count=6, source=5)["source"]
    answer = np.pad(source[:, ::-1], ((0, 0), (0, 1)), constant_values=1)
    answer = np.where(answer == 0, 4, answer)
    target = np.pad(answer[:, :-1], ((0, 0), (1, 0))).astype("int32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile(keras.optimizers.Adam(0.01), loss, steps_per_execution=10, jit_compile=False)
    before = made.generate(source, max_length=6).token_ids
    many = {"source": np.tile(source, (150, 1)), "target": np.tile(target, (150, 1))}
    made.fit(many, np.tile(answer, (150, 1)), batch_size=6, shuffle=False, verbose=0)
    found = made.generate(source, max_length=6)  # by the function that was compiled before
    assert (before != found.token_ids).any()
    np.testing.assert_array_equal(found.token_ids[:, 0], answer)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_answers_in_float32_and_is_kept_in_the_configuration(policy):
    keras.config.set_dtype_policy(policy)
    try:
        made = t5(V, **TINY, **V11)
    finally:
        keras.config.set_dtype_policy("float32")
    made.set_weights(tiny("v1.1").get_weights())
    inputs = pairs()
    logits = made(inputs)
    assert logits.dtype == "float32" and all(weight.dtype == "float32" for weight in made.trainable_weights)
    assert made.encode(ops.convert_to_tensor(inputs["source"]))[0].dtype == policy.removeprefix("mixed_")
    exact = np.asarray(tiny("v1.1")(inputs))
    assert np.abs(logits - exact).mean() < 0.1 * np.abs(exact).mean()
    again = T5.from_config(json.loads(json.dumps(made.get_config())))
    again.set_weights(made.get_weights())
    np.testing.assert_array_equal(again(inputs), logits)
    if policy == "mixed_bfloat16":
        assert np.isfinite(made.generate(inputs["source"], max_length=4, beam_width=2).scores).all()


def test_half_precision_adds_the_bias_to_scores_in_float32():
    """A hundred more for every distance changes no weight of attention; in bfloat16 it would drown the differences."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        made = t5(V, **TINY)
    finally:
        keras.config.set_dtype_policy("float32")
    made.set_weights(tiny().get_weights())
    before = np.asarray(made(pairs()))
    for side in ("encoder", "decoder"):
        made.parts.bias[side].bias.assign_add(100.0 + ops.zeros_like(made.parts.bias[side].bias))
    assert np.abs(before - made(pairs())).max() < 0.02 * np.abs(before).max()


def test_noise_is_for_training_only_and_stands_where_the_paper_says():
    made = tiny()
    np.testing.assert_array_equal(made(pairs()), made(pairs()))
    assert not np.allclose(made(pairs(), training=True), made(pairs(), training=True))
    drops = {layer.name for layer in made._flatten_layers() if isinstance(layer, keras.layers.Dropout)}
    for side in ("encoder", "decoder"):
        assert {f"{side}_embedding_dropout", f"{side}_norm_dropout", f"{side}1_hidden_dropout"} <= drops
        assert {f"{side}1_self_attention_dropout", f"{side}1_dense_dropout"} <= drops
        assert made.parts.blocks[side][0].self_attention.dropout.rate == 0.1
    assert made.parts.blocks["decoder"][0].memory_attention.dropout.rate == 0.1


def test_generation_becomes_a_part_of_a_saved_graph(tmp_path):
    import tensorflow as tf

    made = tiny("v1.1")
    archive = keras.export.ExportArchive()
    archive.track(made)

    def answer(source):
        found = made.generate(source, max_length=6, beam_width=2)
        return {"token_ids": found.token_ids, "scores": found.scores}

    archive.add_endpoint("serve", answer, [tf.TensorSpec((None, None), tf.int32, name="source")])
    archive.write_out(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "saved")
    for source in (pairs()["source"], pairs(count=1, source=4)["source"], np.zeros((2, 3), "int32")):
        found, expected = loaded.serve(source), made.generate(source, max_length=6, beam_width=2)
        np.testing.assert_array_equal(found["token_ids"], expected.token_ids)
        np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-5)


JAX = """
import json, sys, keras, numpy as np
import models.t5
folder = sys.argv[1]
model = keras.saving.load_model(f"{folder}/model.keras")
source = np.load(f"{folder}/source.npy")
found = model.generate(source, max_length=9, beam_width=2)
print(json.dumps([keras.backend.backend(), found.token_ids.tolist()]))
"""


@pytest.mark.slow
def test_jax_loads_a_saved_model_and_generates_alike(tmp_path):
    pytest.importorskip("jax")
    made, source = tiny(), pairs()["source"]
    made.save(tmp_path / "model.keras")
    np.save(tmp_path / "source.npy", source)
    result = subprocess.run(
        [sys.executable, "-c", JAX, str(tmp_path)],
        cwd=ROOT,
        env=os.environ
        | {"KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT)}
        | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    backend, token_ids = json.loads(result.stdout.splitlines()[-1])
    assert backend == "jax"
    np.testing.assert_array_equal(token_ids, made.generate(source, max_length=9, beam_width=2).token_ids)


@pytest.mark.parametrize(
    "arguments",
    [
        {"vocab_size": 0},
        {"head": "classes"},
        {"width": 0},
        {"depth": 2.5},
        {"decoder_depth": -1},
        {"num_heads": 0},
        {"head_dim": 0},
        {"hidden_dim": -4},
        {"dropout": 1.0},
        {"num_buckets": 7},
        {"num_buckets": 2},
        {"num_buckets": 40, "max_distance": 20},
    ],
)
def test_arguments_out_of_range_are_errors(arguments):
    with pytest.raises(ValueError, match="Received: "):
        t5(**({"vocab_size": V} | TINY | arguments))


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ([[3, V]], {}),
        ([[-1, 3]], {}),
        ([3, 4], {}),
        ([[]], {}),
        ([[3, 4]], {"max_length": 0}),
        ([[3, 4]], {"beam_width": 0}),
        ([[3, 4]], {"beam_width": 2, "early_stopping": "always"}),
        ([[3, 4]], {"normalization": "mean"}),
    ],
)
def test_a_source_or_an_option_that_makes_no_sense_is_an_error(source, options):
    with pytest.raises(ValueError, match="Received: "):
        tiny().generate(np.array(source, "int32"), **({"max_length": 4} | options))
