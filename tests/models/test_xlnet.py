"""XLNet against Hugging Face's answers (see tests/golden/make_xlnet.py), and what makes an XLNet."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from models.checkpoints import from_pretrained, to_pretrained
from models.checkpoints.xlnet import XLNET
from models.layers.relative_attention import relative_shift
from models.xlnet import HEADS, SIZES, XLNet, permutation_masks, xlnet, xlnet_classifier, xlnet_lm
from tests.models.counting import parameters

GOLDEN = Path(__file__).parent.parent / "golden"
V, T = 13, 6
SMALL = {"width": 16, "depth": 2, "num_heads": 2, "hidden_dim": 24}


@cache
def model(head="lm", **arguments):
    """Small random weights everywhere, so that no zero hides a path."""
    made = xlnet(V, head=head, num_classes=3, **(SMALL | arguments))
    noise = np.random.default_rng(0)
    for weight in made.weights:
        if "seed" not in weight.path:
            weight.assign(noise.normal(0, 0.4, weight.shape) + (weight.name == "gamma"))
    return made


def texts(count=3, times=T, seed=0):
    noise = np.random.default_rng(seed)
    segment_ids = np.broadcast_to(np.arange(times) >= times // 2, (count, times))
    return {
        "token_ids": noise.integers(6, V, (count, times)).astype("int32"),
        "segment_ids": segment_ids.astype("int32"),
    }


def orders(count=3, times=T, seed=0):
    return np.random.default_rng(seed).permuted(np.tile(np.arange(times, dtype="int32"), (count, 1)), axis=1)


def masks(order, num_targets, **others):
    made = permutation_masks(order, num_targets, **others)
    return {"permutation_mask": made.permutation_mask, "target_mapping": made.target_mapping}


def near(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=tolerance)


def answers(made, data):
    """What a model says about the inputs of a golden file, by the names of the answers there."""
    given = {name: data[name] for name in ("token_ids", "segment_ids")}
    if made.head == "classification":
        return {"logits": made(given)}
    asked = {name: data[name] for name in ("permutation_mask", "target_mapping")}
    if made.head == "features":
        return {"hidden": made(given), "queries": made.predict_targets(**given, **asked)}
    first = {name: data[f"first_{name}"] for name in given}
    memory = made.read(**first).memory
    after, kept = made.predict_targets(**given, **asked, memory=memory, return_memory=True)
    later = made.read(**given, memory=memory)
    near(later.memory[0], kept[0])  # embeddings, which no mask changes
    return {
        "logits": made(first),
        "targets": made.predict_targets(**given, **asked),
        "targets_after": after,
        "logits_after": made.parts.embedding(later.content, reverse=True),
        "memory": np.stack(later.memory),
    }


@pytest.mark.parametrize("name", ["xlnet_features", "xlnet_lm", "xlnet_classifier"])
def test_published_checkpoints_answer_as_the_reference_does(name, tmp_path):
    """Loaded, and loaded again after `to_pretrained`: both streams, with and without memory, forwards and backwards."""
    data = dict(np.load(GOLDEN / f"{name}.npz"))
    made, _, report = from_pretrained(GOLDEN / name)
    assert report.fresh == report.dropped == ()
    again = from_pretrained(to_pretrained(made, tmp_path / "written")).model
    assert again.get_config() == made.get_config()
    for one in (made, again):
        found = answers(one, data)
        assert set(found) == set(data) - {*texts(), "permutation_mask", "target_mapping"} - {
            f"first_{x}" for x in texts()
        }
        for key, answer in found.items():
            assert answer.shape == data[key].shape
            near(answer, data[key], 1e-4)


def test_the_reference_loads_what_we_write(tmp_path):
    transformers = pytest.importorskip("transformers")
    import torch

    kinds = {"features": "XLNetModel", "lm": "XLNetLMHeadModel", "classifier": "XLNetForSequenceClassification"}
    for name, kind in kinds.items():
        to_pretrained(from_pretrained(GOLDEN / f"xlnet_{name}").model, tmp_path / name)
        reference = getattr(transformers, kind).from_pretrained(tmp_path / name).eval()
        data = np.load(GOLDEN / f"xlnet_{name}.npz")
        ids, segments = (torch.tensor(data[f"first_{x}" if name == "lm" else x]) for x in texts())
        answer = reference(input_ids=ids, token_type_ids=segments, attention_mask=(ids != 5).float())
        near(answer[0].detach().numpy(), data["hidden" if name == "features" else "logits"], 1e-4)


@pytest.mark.parametrize(("size", "count"), [("base", 116_718_336), ("large", 360_268_800)])
def test_published_sizes_have_the_published_number_of_parameters(size, count):
    assert parameters(xlnet, 32_000, **SIZES[size]) == count
    assert parameters(xlnet_lm, 32_000, **SIZES[size]) == count + 32_000


def test_the_relative_shift_takes_the_score_of_each_distance():
    for times, length in ((1, 1), (4, 4), (3, 8)):
        scores = np.random.default_rng(0).normal(size=(2, 3, times, length + times)).astype("float32")
        distances = list(range(length, -times, -1))
        shifted = relative_shift(ops.convert_to_tensor(scores), length)
        for i in range(times):
            for j in range(length):
                place = distances.index(length - times + i - j)
                np.testing.assert_array_equal(shifted[:, :, i, j], scores[:, :, i, place])


def dependence(made, **asked):
    """(k, t) bool: which targets of the first text move when the token of a place changes."""
    given = {name: array[:1] for name, array in texts().items()}
    changed = {name: np.repeat(array, T + 1, axis=0) for name, array in given.items()}
    changed["token_ids"][np.arange(T), np.arange(T)] = 6 + (given["token_ids"][0] - 5) % (V - 6)
    asked = {name: np.repeat(array[:1], T + 1, axis=0) for name, array in asked.items()}
    found = np.asarray(made.predict_targets(**changed, **asked))
    return (np.abs(found[:-1] - found[-1]).max(-1) > 1e-5).T


@pytest.mark.parametrize("num_targets", [2, T])
def test_a_target_depends_on_what_comes_before_it_in_the_order_and_never_on_itself(num_targets):
    """With as many targets as tokens the first one sees nothing at all, and must not see itself for that."""
    for seed in range(3):
        order = orders(seed=seed)
        moved = dependence(model(), **masks(order, num_targets))
        steps = np.arange(T - num_targets, T)  # at which the targets are predicted
        rank = np.argsort(order[0])
        np.testing.assert_array_equal(moved, rank[None] < steps[:, None])


def test_the_content_stream_does_not_know_the_order_of_what_is_predicted():
    given = texts()
    plain, order = model().read(**given), orders()
    for seed in (1, 2):
        asked = masks(orders(seed=seed), 2)
        full = model().read(**given, target_mapping=asked["target_mapping"])  # under full masks: of all orders
        near(full.content, plain.content)
        other = np.concatenate([np.flip(order[:, :3], 1), order[:, 3:]], axis=1)
    first, second = (model().read(**given, **masks(one, 3)) for one in (order, other))
    near(first.content, second.content)  # the context has no order
    near(first.queries, second.queries)
    last = np.concatenate([order[:, :3], np.flip(order[:, 3:], 1)], axis=1)
    turned = model().read(**given, **masks(last, 3))
    context = np.take_along_axis(np.asarray(turned.content), order[:, :3, None], axis=1)
    near(context, np.take_along_axis(np.asarray(first.content), order[:, :3, None], axis=1))
    assert np.abs(np.asarray(turned.queries)[:, ::-1] - np.asarray(first.queries)).max() > 1e-3


@pytest.mark.parametrize("kind", ["causal", "by segment"])
def test_two_segments_with_a_memory_are_one_long_segment_in_which_the_first_does_not_see_the_second(kind):
    """Distances go on through the memory. The first half's states must not know the second, as when it was read."""
    made, whole = model(), texts(times=2 * T) | {"segment_ids": np.zeros((3, 2 * T), "int32")}
    places = np.arange(2 * T)
    seen = places[None] <= places[:, None] if kind == "causal" else places[None] // T <= places[:, None] // T
    seen = np.broadcast_to(seen, (3, 2 * T, 2 * T))
    mapping = np.broadcast_to(np.eye(2 * T, dtype="float32")[[T + 1, 2 * T - 1]], (3, 2, 2 * T))
    asked = {"permutation_mask": seen & ~np.eye(2 * T, dtype=bool), "target_mapping": mapping}  # not one's own token
    long = made.read(**whole, **asked)
    halves = [{name: array[:, part] for name, array in whole.items()} for part in (slice(T), slice(T, None))]
    first = made.read(**halves[0], permutation_mask=seen[:, :T, :T])
    known = {"permutation_mask": asked["permutation_mask"][:, T:, T:], "target_mapping": mapping[:, :, T:]}
    second = made.read(**halves[1], **known, memory=first.memory)
    near(first.content, np.asarray(long.content)[:, :T])
    near(second.content, np.asarray(long.content)[:, T:])
    near(second.queries, long.queries)
    near(np.stack(second.memory), np.stack(long.memory))
    assert np.abs(np.asarray(made.read(**halves[1], **known).content) - second.content).max() > 1e-2


def test_the_memory_is_cut_and_no_gradient_goes_through_it():
    import tensorflow as tf

    made, given = model(mem_len=8, reuse_len=4), texts()
    whole = [model().read(**given).memory[place] for place in range(2)]
    first = made.read(**given).memory
    assert [one.shape for one in first] == [(3, 4, 16)] * 2
    near(first[1], np.asarray(whole[1])[:, :4])
    third = made.read(**given, memory=made.read(**given, memory=first).memory).memory
    assert [one.shape for one in third] == [(3, 8, 16)] * 2
    near(third[0], np.tile(np.asarray(whole[0])[:, :4], (1, 2, 1)))
    with tf.GradientTape() as tape:
        total = sum(tf.reduce_sum(one) for one in made.read(**given).memory)
    assert all(one is None for one in tape.gradient(total, [weight.value for weight in made.trainable_weights]))


@pytest.mark.parametrize("head", HEADS)
def test_padding_on_either_side_changes_nothing(head):
    given, made, filled = texts(), model(head), {"token_ids": 5, "segment_ids": 3}
    alone = np.asarray(made(given))
    for left, right in ((0, 3), (3, 0)):
        wider = {x: np.pad(given[x], ((0, 0), (left, right)), constant_values=filled[x]) for x in given}
        shown = slice(None) if head == "classification" else slice(left, left + T)
        near(np.asarray(made(wider))[:, shown], alone)
        assert np.abs(np.asarray(model(head, pad_id=None)(wider))[:, shown] - alone).max() > 1e-3
    empty = np.full((1, 4), 5, "int32")
    assert np.isfinite(made({"token_ids": empty, "segment_ids": np.zeros_like(empty)})).all()


def test_a_memory_of_padding_is_not_looked_at_where_its_mask_says_so():
    made, given = model(), texts()
    first = {"token_ids": np.pad(given["token_ids"][:, :3], ((0, 0), (3, 0)), constant_values=5)}
    known = first["token_ids"] != 5
    short = made.read(first["token_ids"][:, 3:]).memory
    near(
        made.read(**given, memory=made.read(**first).memory, memory_mask=known).content,
        made.read(**given, memory=short).content,
    )
    assert (
        np.abs(
            made.read(**given, memory=made.read(**first).memory).content - made.read(**given, memory=short).content
        ).max()
        > 1e-3
    )


def test_only_whether_segments_are_the_same_matters():
    given = texts()
    plain = np.asarray(model()(given))
    near(model()(given | {"segment_ids": 9 - 4 * given["segment_ids"]}), plain)
    near(model().read(given["token_ids"]).content, model().read(given["token_ids"], np.full((3, T), 2)).content)
    assert np.abs(np.asarray(model()(given | {"segment_ids": np.zeros((3, T), "int32")})) - plain).max() > 1e-3


def test_distances_are_clamped_and_known_below_that():
    given = {"token_ids": texts(count=1)["token_ids"], "segment_ids": np.zeros((1, T), "int32")}
    swapped = given | {"token_ids": given["token_ids"][:, [0, 1, 2, 3, 5, 4]]}
    for clamp, moves in ((None, True), (5, True), (4, False), (2, False)):
        made = model(depth=1, clamp_len=clamp)
        difference = np.abs(np.asarray(made(given)) - np.asarray(made(swapped)))[0, 0].max()
        assert bool(difference > 1e-4) is moves, clamp


def test_the_second_half_of_a_batch_reads_backwards():
    given = texts()
    both = {name: np.concatenate([array, array[:, ::-1]]) for name, array in given.items()}
    found = np.asarray(model(bi_data=True)(both))
    near(found[3:, ::-1], found[:3])
    near(found[:3], model()(given))
    assert np.abs(np.asarray(model()(both))[3:, ::-1] - found[:3]).max() > 1e-3
    assert model(bi_data=True)({name: array[:1] for name, array in given.items()}).shape == (1, T, V)


def naive_masks(order, targets):
    """What each place sees (t, t) of one text, by the words of the docstring."""
    context = set(order[:-targets]) if targets < len(order) else set()
    rank = {place: step for step, place in enumerate(order)}
    return np.array(
        [
            [j in context or (i not in context and rank[j] < rank[i]) for j in range(len(order))]
            for i in range(len(order))
        ]
    )


@pytest.mark.parametrize("num_targets", [1, 3, T])
def test_masks_are_made_of_an_order(num_targets):
    import tensorflow as tf

    order = orders(4)
    made = permutation_masks(order, num_targets)
    for row in range(4):
        np.testing.assert_array_equal(made.permutation_mask[row], naive_masks(order[row], num_targets))
    np.testing.assert_array_equal(made.places, order[:, -num_targets:])
    np.testing.assert_array_equal(made.weights, np.ones((4, num_targets)))
    np.testing.assert_array_equal(made.target_mapping, np.eye(T)[order[:, -num_targets:]])
    mapped = tf.data.Dataset.from_tensors(order).map(lambda one: permutation_masks(one, num_targets))
    for one, other in zip(made, next(iter(mapped))):
        np.testing.assert_array_equal(one, other)


def test_only_candidates_are_predicted():
    order = np.array([[3, 0, 5, 1, 4, 2], [0, 1, 2, 3, 4, 5]], "int32")
    candidates = np.array([[1, 1, 0, 1, 0, 1], [0, 1, 0, 0, 0, 0]], bool)
    made = permutation_masks(order, 2, candidates)
    np.testing.assert_array_equal(made.places, [[5, 1], [5, 1]])
    np.testing.assert_array_equal(made.weights, [[1, 1], [0, 1]])
    np.testing.assert_array_equal(made.target_mapping[1], [[0] * T, [0, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(made.permutation_mask[0], naive_masks([3, 0, 4, 2, 5, 1], 2))
    np.testing.assert_array_equal(made.permutation_mask[1], naive_masks([0, 2, 3, 4, 5, 1], 1))


def gradients(made, asked):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        answer = made.predict_targets(**texts(), **asked, training=True) if asked else made(texts(), training=True)
        loss = tf.reduce_sum(answer * np.random.default_rng(0).normal(size=answer.shape).astype("float32"))
    found = tape.gradient(loss, [weight.value for weight in made.trainable_weights])
    return {w.path for w, g in zip(made.trainable_weights, found) if g is None or not np.any(ops.convert_to_tensor(g))}


def test_gradients_reach_every_weight():
    asked = masks(orders(), 3)
    for head in ("lm", "features"):
        assert gradients(model(head, dropout=0.1), asked) == set()
        assert gradients(model(head, dropout=0.1), {}) == {"token_embedding/mask"}  # of the query stream alone
    assert gradients(model("classification", dropout=0.1), {}) == set()  # there it is not trained
    assert not model("classification").parts.embedding.mask.trainable


def test_one_batch_of_targets_can_be_learned_by_heart():
    """By `fit`, of a model whose inputs are the masks, too; what the query stream learns is what the model keeps."""
    keras.utils.set_random_seed(0)
    made = xlnet_lm(V, **(SMALL | {"depth": 1, "dropout": 0.0}))
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in texts()}
    inputs["permutation_mask"] = keras.Input((None, None), dtype="bool", name="permutation_mask")
    inputs["target_mapping"] = keras.Input((2, None), name="target_mapping")
    trained = keras.Model(inputs, made.predict_targets(**inputs))
    assert trained.output.shape == (None, 2, V) and len(trained.trainable_weights) == len(made.trainable_weights)
    chosen = permutation_masks(orders(6), 2)
    given = texts(6) | {"permutation_mask": chosen.permutation_mask, "target_mapping": chosen.target_mapping}
    given = {name: np.asarray(array) for name, array in given.items()}
    labels = np.take_along_axis(given["token_ids"], np.asarray(chosen.places), axis=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trained.compile(keras.optimizers.Adam(0.02), loss, jit_compile=False)
    many = {name: np.concatenate([array] * 40) for name, array in given.items()}
    trained.fit(many, np.concatenate([labels] * 40), batch_size=6, shuffle=False, verbose=0)
    np.testing.assert_array_equal(np.argmax(made.predict_targets(**given), axis=-1), labels)


def test_one_batch_of_classes_can_be_learned_by_heart():
    """Plain momentum by hand, since tracing a `fit` takes longer than these few steps."""
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    small = SMALL | {"depth": 1, "dropout": 0.0, "stddev": 0.2}
    made = xlnet_classifier(V, 3, **small, classifier_dropout=0.0, pairs=True)
    given, labels = texts(6), np.arange(6) % 3
    weights = [weight.value for weight in made.trainable_weights]
    velocities = [0.0] * len(weights)
    for _ in range(15):
        with tf.GradientTape() as tape:
            answer = made(given, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, answer))
        slopes = [tf.convert_to_tensor(slope) for slope in tape.gradient(loss, weights)]
        velocities = [0.9 * old + new for old, new in zip(velocities, slopes)]
        for weight, velocity in zip(weights, velocities):
            weight.assign_sub(0.1 * velocity)
    np.testing.assert_array_equal(np.argmax(made(given), axis=-1), labels)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_single_text_is_read_as_published_tokenizers_mark_it(side):
    """`<cls>` at the end is a segment of its own, on whichever side the padding stands."""
    keras.utils.set_random_seed(1)
    small = SMALL | {"depth": 2, "dropout": 0.0, "stddev": 0.2}
    single, pair = (xlnet_classifier(V, 3, **small, pairs=pairs) for pairs in (False, True))
    pair.set_weights(single.get_weights())
    rows = [[7, 8, 9, 10, 4, 3], [9, 4, 3]]
    blank = [[5] * (6 - len(row)) for row in rows]
    ids = np.array([gap + row if side == "left" else row + gap for gap, row in zip(blank, rows)], "int32")
    segments = np.where(ids == 3, 2, np.where(ids == 5, 4, 0)).astype("int32")
    expected = pair({"token_ids": ids, "segment_ids": segments})
    near(single(ids), expected)
    assert np.abs(np.asarray(pair({"token_ids": ids, "segment_ids": np.zeros_like(ids)})) - expected).max() > 1e-3
    near(single(ids[1:]), single(np.array([rows[1]], "int32")))


def test_the_streams_compile_for_any_batch_length_and_memory():
    import tensorflow as tf

    def spec(*shape, dtype="int32"):
        return tf.TensorSpec(shape, dtype)

    wide = spec(None, None, None, dtype="float32")
    signature = [spec(None, None)] * 2 + [spec(None, None, None, dtype="bool"), wide, [wide] * 2]

    @tf.function(input_signature=signature)
    def predict(token_ids, segment_ids, permutation_mask, target_mapping, memory):
        return model().predict_targets(
            token_ids, segment_ids, permutation_mask, target_mapping, memory, return_memory=True
        )

    memory = [tf.zeros((3, 0, 16))] * 2
    for times in (T, 4):
        given, asked = texts(times=times), masks(orders(times=times), 2)
        expected = model().predict_targets(**given, **asked, memory=memory)
        logits, memory = predict(*given.values(), *asked.values(), memory)
        near(logits, expected)
    assert memory[0].shape == (3, T + 4, 16)
    near(
        predict(*texts().values(), *masks(orders(), 2).values(), [tf.zeros((3, 0, 16))] * 2)[0],
        model().predict_targets(**texts(), **masks(orders(), 2)),
    )


def test_half_precision_keeps_scores_and_logits_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        made = xlnet(V, head="lm", num_classes=3, **SMALL)
    finally:
        keras.config.set_dtype_policy("float32")
    made.set_weights(model(dropout=0.1).get_weights())
    given, asked, scores = texts(), masks(orders(), 2), []
    softmax = ops.softmax
    keras.ops.softmax = lambda x, axis=-1: scores.append(keras.backend.standardize_dtype(x.dtype)) or softmax(x, axis)
    try:
        first = made.read(**given)
        logits, memory = made.predict_targets(**given, **asked, memory=first.memory, return_memory=True)
    finally:
        keras.ops.softmax = softmax
    assert set(scores) == {"float32"} and len(scores) == 2 + 4
    assert made(given).dtype == logits.dtype == "float32" and memory[0].dtype == first.content.dtype == "bfloat16"
    expected = np.asarray(model().predict_targets(**given, **asked, memory=model().read(**given).memory))
    assert np.abs(np.asarray(logits) - expected).mean() < 0.1 * np.abs(expected).mean()
    again = XLNet.from_config(json.loads(json.dumps(made.get_config())))
    again.set_weights(made.get_weights())
    np.testing.assert_array_equal(again(given), made(given))


def test_noise_is_for_training_only():
    made, asked = model(dropout=0.1), masks(orders(), 2)
    assert any("seed" in weight.path for weight in made.variables)
    for run in (
        lambda **training: made(texts(), **training),
        lambda **x: made.predict_targets(**texts(), **asked, **x),
    ):
        np.testing.assert_array_equal(run(), run())
        assert not np.allclose(run(training=True), run(training=True))


def test_another_head_is_new_and_the_report_says_so():
    made, _, report = from_pretrained(GOLDEN / "xlnet_lm", head="classification", num_classes=4)
    assert made(texts()).shape == (3, 4) and report.dropped == ("lm_loss.bias",)
    assert set(report.fresh) == {
        f"{x}.{y}" for x in ("sequence_summary.summary", "logits_proj") for y in ("weight", "bias")
    }
    body = from_pretrained(GOLDEN / "xlnet_lm", head="features").model
    near(body(texts()), from_pretrained(GOLDEN / "xlnet_lm").model.read(**texts()).content)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("xlnet_lm", {"attn_type": "uni"}),
        ("xlnet_lm", {"tie_word_embeddings": False}),
        ("xlnet_lm", {"ff_activation": "mish"}),
        ("xlnet_classifier", {"summary_type": "first"}),
        ("xlnet_classifier", {"summary_use_proj": False}),
        ("xlnet_classifier", {"summary_activation": None}),
    ],
)
def test_what_is_not_built_here_is_refused(name, change, tmp_path):
    shutil.copytree(GOLDEN / name, tmp_path / "other")
    config = json.loads((GOLDEN / name / "config.json").read_text())
    (tmp_path / "other/config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=f"Expected {next(iter(change))}.*Received: "):
        from_pretrained(tmp_path / "other")


def test_what_config_json_leaves_out_is_the_default_of_the_reference():
    with keras.StatelessScope(initialize_variables=False):
        made = XLNET.build({"model_type": "xlnet", "n_layer": 1, "d_model": 32}, "lm", None, set())
    keras.utils.clear_session()
    expected = {"vocab_size": 32_000, "pad_id": 5, "mem_len": 512, "reuse_len": None, "clamp_len": None, "dropout": 0.1}
    assert {name: made.arguments[name] for name in expected} == expected
    block = {"num_heads": 16, "head_dim": 2, "hidden_dim": 4096, "activation": "gelu", "epsilon": 1e-12}
    assert made.arguments["block"] == block


@pytest.mark.parametrize(
    "arguments",
    [
        {"vocab_size": 0},
        {"head": "span"},
        {"num_classes": 0},
        {"width": 15, "num_heads": 1},
        {"num_heads": 3},
        {"head_dim": 0},
        {"hidden_dim": 0},
        {"depth": 0},
        {"dropout": 1.0},
        {"classifier_dropout": -0.1},
        {"clamp_len": 0},
        {"mem_len": -1},
        {"reuse_len": 2.5},
    ],
)
def test_arguments_out_of_range_are_errors(arguments):
    with pytest.raises(ValueError, match="Received: "):
        xlnet(**({"vocab_size": V} | SMALL | arguments))


def test_inputs_that_do_not_fit_are_errors(tmp_path):
    given, asked = texts(), masks(orders(), 2)
    with pytest.raises(ValueError, match=r"permutation_mask \(b, t, t\). Received: shape \(6, 6\)"):
        model().predict_targets(**given, **(asked | {"permutation_mask": asked["permutation_mask"][0]}))
    with pytest.raises(ValueError, match=r"target_mapping \(b, k, t\). Received: shape \(3, 6\)"):
        model().predict_targets(**given, **(asked | {"target_mapping": asked["target_mapping"][:, 0]}))
    with pytest.raises(ValueError, match="the memory of 2 blocks. Received: 1"):
        model().read(**given, memory=model().read(**given).memory[:1])
    with pytest.raises(ValueError, match="a classifier has no logits of tokens. Received: xlnet"):
        model("classification").predict_targets(**given, **asked)
    with pytest.raises(ValueError, match="at most 6, the places. Received: 7"):
        permutation_masks(orders(), 7)
    with pytest.raises(ValueError, match=r"an order \(b, t\). Received: shape \(6,\)"):
        permutation_masks(orders()[0], 2)
    with pytest.raises(ValueError, match="heads that share the width equally.*Received: 2 of 4 in 16"):
        to_pretrained(xlnet(V, **SMALL, head_dim=4), tmp_path / "other")
