"""Attention against hand calculations, Keras's own, and its own promises: masks, groups, caches, maps by name."""

from itertools import product

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from models.layers import embeddings
from models.layers.attention import (
    KINDS,
    AdditiveAttention,
    MultiHeadAttention,
    MultiplicativeAttention,
    attention,
    attention_maps,
    dot_product,
)
from models.layers.long_attention import block_sparse_attention, window_attention

B, T, S, N, D, WIDTH = 2, 7, 9, 4, 6, 10
SMALL = {"window": 3, "block_size": 2, "window_blocks": 1, "num_global": 1}
each_kind = pytest.mark.parametrize("kind", KINDS)


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype("float32")


def layer(num_heads=N, head_dim=D, **kwargs):
    return MultiHeadAttention(num_heads, head_dim, name="some_attention", **({"use_bias": False} | kwargs))


def randomized(attention_layer, width=WIDTH, memory_width=None):
    keras.utils.set_random_seed(3)
    attention_layer.build((B, T, width), (B, S, memory_width) if memory_width else None)
    for index, weight in enumerate(attention_layer.trainable_weights):
        weight.assign(random(*weight.shape, seed=index) * 0.4)
    return attention_layer


def softmax(x):
    shares = np.exp(x - x.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def padding(lengths, size):
    return np.arange(size) < np.array(lengths)[:, None]


# ---- one product, no parameters ----


def test_dot_product_is_equation_1():
    query, key, value = random(B, N, T, D), random(B, N, S, D, seed=1), random(B, N, S, 5, seed=2)
    weights = softmax(query @ key.swapaxes(-1, -2) / np.sqrt(D))
    answers, found = dot_product(query, key, value)
    np.testing.assert_allclose(found, weights, atol=1e-6)
    np.testing.assert_allclose(answers, weights @ value, atol=1e-6)


def test_dot_product_equals_that_of_keras_under_a_mask_and_with_shared_keys():
    query, key, value = random(B, N, T, D), random(B, 2, S, D, seed=1), random(B, 2, S, D, seed=2)
    mask = padding([3, 9], S)[:, None, None, :] & (np.arange(T)[:, None] >= np.arange(S) - 2)
    answers, weights = dot_product(query, key, value, mask=mask)
    turned = [x.swapaxes(1, 2) for x in (query, key, value)]
    expected = ops.dot_product_attention(*turned, mask=mask)
    np.testing.assert_allclose(answers, np.asarray(expected).swapaxes(1, 2), atol=1e-5)
    assert not np.asarray(weights)[~np.broadcast_to(mask, weights.shape)].any()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_weights_sum_to_one_and_the_order_of_the_memory_does_not_matter(times, places, seed):
    query, key, value = random(1, 2, times, 4, seed=seed), random(1, 1, places, 4), random(1, 1, places, 3)
    answers, weights = dot_product(query, key, value)
    np.testing.assert_allclose(np.sum(weights, -1), 1.0, atol=1e-5)
    order = np.random.default_rng(seed).permutation(places)
    other, _ = dot_product(query, key[:, :, order], value[:, :, order])
    np.testing.assert_allclose(answers, other, atol=1e-5)


def test_a_query_that_may_look_nowhere_gets_zeros():
    mask = padding([0, 2], S)
    for kind in ("full", "linear", "chunked"):
        found = randomized(layer(kind=kind))(random(B, S, WIDTH), memory_mask=mask)
        assert not np.any(found[0]) and np.all(np.any(found[1], -1)), kind


# ---- additive and multiplicative scores ----


def by_hand(kind, given, query, memory):
    """Scores, one query and one memory at a time."""
    weights = {
        weight.path.split("/")[-2] if "kernel" in weight.path else "score": np.asarray(weight) for weight in given
    }
    scores = np.zeros((B, T, S))
    for b, t, s in product(range(B), range(T), range(S)):
        q, k = query[b, t], memory[b, s]
        if kind == "dot":
            scores[b, t, s] = q @ k
        elif kind == "general":
            scores[b, t, s] = q @ (k @ weights["key"])
        else:
            scores[b, t, s] = weights["score"] @ np.tanh(q @ weights["query"] + k @ weights["key"])
    return scores


@pytest.mark.parametrize("kind", ["additive", "dot", "general", "concat"])
def test_scores_are_those_of_the_papers(kind):
    query, memory = random(B, T, 5), random(B, S, 5 if kind == "dot" else 8, seed=1)
    mask = padding([4, 9], S)
    one = attention(kind, 3, name="one")
    context, weights = one(query, memory, mask=mask)
    scores = np.where(mask[:, None], by_hand(kind, one.weights, query, memory), -np.inf)
    np.testing.assert_allclose(weights, softmax(scores), atol=1e-5)
    np.testing.assert_allclose(context, softmax(scores) @ memory, atol=1e-5)
    again, _ = one(query[:, :1], memory, mask=mask, keys=one.keys(ops.convert_to_tensor(memory)))
    np.testing.assert_allclose(again, context[:, :1], atol=1e-5)
    assert len(one.weights) == {"additive": 3, "dot": 0, "general": 1, "concat": 3}[kind]
    copied = type(one).from_config(one.get_config())
    copied.build(query.shape, memory.shape)
    copied.set_weights(one.get_weights())
    np.testing.assert_array_equal(copied(query, memory, mask=mask)[0], context)


def test_unfit_scores_are_errors():
    with pytest.raises(ValueError, match="one of 'additive', 'dot', 'general', 'concat'. Received: 'doty'"):
        attention("doty", 3)
    with pytest.raises(ValueError, match="equal length. Received: 5 and 8"):
        MultiplicativeAttention("dot")(random(B, T, 5), random(B, S, 8))
    with pytest.raises(ValueError, match="units must hold positive whole numbers. Received: 0"):
        AdditiveAttention(0)


# ---- several heads ----


def theirs(ours, memory_width=WIDTH):
    """Keras's layer with the weights of ours."""
    other = keras.layers.MultiHeadAttention(N, D, use_bias=ours.use_bias)
    other.build((B, T, WIDTH), (B, S, memory_width))
    for weight in other.weights:
        _, part, kind = weight.path.split("/")
        mine = getattr(ours, {"attention_output": "output"}.get(part, part) + "_dense")
        weight.assign(ops.reshape(mine.kernel if kind == "kernel" else mine.bias, weight.shape))
    return other


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [None, (4, 9)])
@pytest.mark.parametrize("use_bias", [False, True])
def test_several_heads_equal_those_of_keras(causal, lengths, use_bias):
    ours = randomized(layer(use_bias=use_bias), memory_width=WIDTH)
    query, memory = random(B, T, WIDTH), random(B, S, WIDTH, seed=1)
    mask = None if lengths is None else padding(lengths, S)
    answers, weights = ours(query, memory, memory_mask=mask, causal=causal, return_weights=True)
    expected, scores = theirs(ours)(
        query,
        memory,
        attention_mask=None if mask is None else mask[:, None],
        use_causal_mask=causal,
        return_attention_scores=True,
    )
    np.testing.assert_allclose(answers, expected, atol=1e-5)
    np.testing.assert_allclose(weights, scores, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [None, (4, 0)])
def test_the_fused_path_equals_the_plain_one(causal, lengths, monkeypatch):
    ours, x = randomized(layer(rotary=True)), random(B, T, WIDTH)
    mask = None if lengths is None else padding(lengths, T)
    calls = []
    fused = ops.dot_product_attention
    monkeypatch.setattr(ops, "dot_product_attention", lambda *args, **kwargs: calls.append(1) or fused(*args, **kwargs))
    quick = ours(x, memory_mask=mask, causal=causal)
    assert calls == [1]
    plain, _ = ours(x, memory_mask=mask, causal=causal, return_weights=True)
    assert calls == [1]
    np.testing.assert_allclose(quick, plain, atol=1e-5)


@each_kind
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [None, (4, 11)])
def test_answers_of_every_kind_are_values_by_the_weights_it_tells(kind, causal, lengths):
    """The quick functions for long input against the whole matrix."""
    ours, x = randomized(layer(kind=kind, num_kv_heads=2, rotary=True, **SMALL)), random(B, 11, WIDTH)
    mask = None if lengths is None else padding(lengths, 11)
    quick = ours(x, memory_mask=mask, causal=causal)
    plain, weights = ours(x, memory_mask=mask, causal=causal, return_weights=True)
    np.testing.assert_allclose(quick, plain, atol=1e-5)
    sums = np.sum(weights, -1)
    assert np.all(np.isclose(sums, 1.0, atol=1e-5) | (sums == 0)) and np.all(sums[:, :, :4] > 0)


def test_windows_and_blocks_are_full_attention_where_they_cover_all():
    x = random(B, T, WIDTH)
    full = randomized(layer())
    for kind, sizes in (("window", {"window": T}), ("block_sparse", {"block_size": 2, "window_blocks": 4})):
        other = randomized(layer(kind=kind, **sizes))
        for causal in (False, True):
            np.testing.assert_allclose(other(x, causal=causal), full(x, causal=causal), atol=1e-5)


def test_the_sizes_of_a_kind_reach_its_function():
    heads = [random(B, N, T, D, seed=seed) for seed in range(3)]
    ours = layer(kind="window", window=2)
    expected = window_attention(*map(ops.convert_to_tensor, heads), window=2)
    np.testing.assert_allclose(ours._variant()(*map(ops.convert_to_tensor, heads)), expected, atol=1e-6)
    ours = layer(kind="block_sparse", block_size=2, window_blocks=0, num_global=1)
    expected = block_sparse_attention(*map(ops.convert_to_tensor, heads), block_size=2, window_blocks=0, num_global=1)
    np.testing.assert_allclose(ours._variant()(*map(ops.convert_to_tensor, heads)), expected, atol=1e-6)


@each_kind
def test_the_future_does_not_change_the_past(kind):
    ours, x = randomized(layer(kind=kind, **SMALL)), random(1, 8, WIDTH)
    changed = x.copy()
    changed[:, 5:] += 3.0
    before, after = np.asarray(ours(x, causal=True)), np.asarray(ours(changed, causal=True))
    np.testing.assert_allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert np.abs(before[:, 5:] - after[:, 5:]).min(axis=-1).max() > 1e-3


@each_kind
def test_padding_does_not_change_answers(kind):
    ours, x = randomized(layer(kind=kind, rotary=True, **SMALL)), random(B, 5, WIDTH)
    longer = np.concatenate([x, 9 * random(B, 6, WIDTH)], axis=1)
    mask = padding([5, 3], 11)
    short = ours(x, query_mask=mask[:, :5])
    long = ours(longer, query_mask=mask)
    np.testing.assert_allclose(short, long[:, :5], atol=1e-5)
    assert not np.any(long[:, 5:]), "padded queries get zeros"


def test_a_window_sees_what_is_near_and_nothing_else():
    ours, x = randomized(layer(kind="window", window=3)), random(1, 12, WIDTH)
    for changed in range(12):
        other = x.copy()
        other[:, changed] += 1.0
        moved = np.abs(np.asarray(ours(other)) - np.asarray(ours(x))).max(axis=(0, 2)) > 1e-6
        assert list(np.flatnonzero(moved)) == [i for i in range(12) if abs(i - changed) < 3]


def test_grouped_queries_are_heads_with_equal_keys():
    grouped, x = randomized(layer(num_kv_heads=2)), random(B, T, WIDTH)
    whole = randomized(layer())
    for part in ("key", "value"):
        kernel = np.asarray(getattr(grouped, f"{part}_dense").kernel).reshape(WIDTH, 2, D)
        getattr(whole, f"{part}_dense").kernel.assign(np.repeat(kernel, 2, axis=1).reshape(WIDTH, N * D))
    for part in ("query", "output"):
        getattr(whole, f"{part}_dense").kernel.assign(getattr(grouped, f"{part}_dense").kernel)
    np.testing.assert_allclose(grouped(x, causal=True), whole(x, causal=True), atol=1e-5)
    assert grouped.count_params() == WIDTH * D * (N + 2 + 2) + N * D * WIDTH


@each_kind
@pytest.mark.parametrize(("rotary", "num_kv_heads"), [(False, 4), (True, 2)])
def test_step_by_step_with_a_cache_equals_all_at_once(kind, rotary, num_kv_heads):
    ours = randomized(layer(kind=kind, rotary=rotary, num_kv_heads=num_kv_heads, **SMALL))
    x = random(B, 9, WIDTH)
    whole = ours(x, causal=True)
    cache, answers, place = ours.empty_cache(B, 12), [], 0
    for count in (3, 1, 1, 2, 1, 1):
        step, cache = ours(x[:, place : place + count], cache=cache, position=ops.convert_to_tensor(place))
        answers.append(step)
        place += count
    np.testing.assert_allclose(np.concatenate(answers, axis=1), whole, atol=1e-5)


def test_a_memory_is_cached_once_and_answers_alike():
    ours = randomized(layer(num_kv_heads=2), memory_width=8)
    query, memory, mask = random(B, T, WIDTH), random(B, S, 8), padding([4, 9], S)
    cache = ours.memory_cache(ops.convert_to_tensor(memory))
    assert cache["key"].shape == (B, 2, S, D)
    found, weights = ours(query, cache=cache, memory_mask=mask, return_weights=True)
    expected, expected_weights = ours(query, memory, memory_mask=mask, return_weights=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-5)


@each_kind
def test_gradients_reach_every_weight(kind):
    import tensorflow as tf

    ours, x = randomized(layer(kind=kind, use_bias=True, num_kv_heads=2, **SMALL)), random(B, T, WIDTH)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(ours(x, causal=True, query_mask=padding([4, 7], T))))
    gradients = tape.gradient(loss, [weight.value for weight in ours.trainable_weights])
    missing = [w.path for w, g in zip(ours.trainable_weights, gradients) if g is None or not np.any(g)]
    # A constant that is added to all keys moves no softmax; the features of linear attention do feel it.
    assert [path.split("/")[-2:] for path in missing] in ([], [["key", "bias"]])


def test_dropped_weights_are_for_training_and_keep_the_mean():
    ours, x = randomized(layer(dropout=0.5)), np.repeat(random(1, T, WIDTH), 500, axis=0)
    calm, noisy = np.asarray(ours(x)), np.asarray(ours(x, training=True))
    np.testing.assert_allclose(calm[0], calm[-1], atol=1e-6)
    assert np.abs(noisy - calm).max() > 0.3 and np.abs(noisy.mean(0) - calm[0]).max() < 0.3


@each_kind
def test_bfloat16_stays_near_float32(kind):
    x, mask = random(B, T, WIDTH), padding([4, 7], T)
    exact = randomized(layer(kind=kind, rotary=True, **SMALL))(x, memory_mask=mask, causal=True)
    ours = randomized(layer(kind=kind, rotary=True, dtype="mixed_bfloat16", **SMALL))
    found, weights = ours(x, memory_mask=mask, causal=True, return_weights=True)
    assert found.dtype == "bfloat16" and weights.dtype == "float32"
    for answer in (found, ours(x, memory_mask=mask, causal=True)):
        np.testing.assert_allclose(ops.cast(answer, "float32"), exact, atol=0.15)
    step, cache = ours(x[:, :1], cache=ours.empty_cache(B, 4), position=0)
    np.testing.assert_allclose(ops.cast(step, "float32"), exact[:, :1], atol=0.15)
    assert kind == "linear" or cache["key"].dtype == "bfloat16"


def test_float16_does_not_overflow():
    x, mask = random(B, T, WIDTH), padding([4, 0], T)
    found = randomized(layer(dtype="mixed_float16"))(x, memory_mask=mask)
    assert np.isfinite(found).all()


def test_maps_are_found_by_the_names_of_layers():
    inputs = keras.Input((None, WIDTH))
    x = MultiHeadAttention(2, 4, name="first_attention")(inputs)
    x = MultiHeadAttention(2, 4, kind="window", window=2, name="second_attention")(x, causal=True)
    context, _ = AdditiveAttention(3, name="third_attention")(x, inputs)
    model = keras.Model(inputs, context)
    maps = attention_maps(model, random(B, T, WIDTH))
    assert {name: tuple(weights.shape) for name, weights in maps.items()} == {
        "first_attention": (B, 2, T, T),
        "second_attention": (B, 2, T, T),
        "third_attention": (B, T, T),
    }
    for weights in maps.values():
        np.testing.assert_allclose(np.sum(weights, -1), 1.0, atol=1e-5)
    far = np.tri(T, T, -2, dtype=bool)
    assert not np.asarray(maps["second_attention"])[..., far | np.triu(np.ones((T, T), bool), 1)].any()
    assert (
        attention_maps(model, random(B, T, WIDTH)).keys() == maps.keys()
        and model.get_layer("first_attention").listener is None
    )


def test_a_layer_comes_back_from_its_configuration():
    ours = randomized(layer(kind="block_sparse", num_kv_heads=2, rotary=True, **SMALL))
    again = MultiHeadAttention.from_config(ours.get_config())
    again.build((B, T, WIDTH))
    again.set_weights(ours.get_weights())
    np.testing.assert_array_equal(ours(random(B, T, WIDTH)), again(random(B, T, WIDTH)))


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_heads": 0},
        {"head_dim": -1},
        {"num_kv_heads": 3},
        {"kind": "windo"},
        {"window": 0},
        {"num_global": -1},
        {"dropout": 1.0},
        {"dropout": 0.1, "kind": "window"},
    ],
)
def test_arguments_out_of_range_are_errors(arguments):
    with pytest.raises(ValueError, match="Received: "):
        layer(**arguments)


def test_a_window_over_a_memory_is_an_error():
    with pytest.raises(ValueError, match="window attention is of a sequence to itself. Received: a memory"):
        layer(kind="window")(random(B, T, WIDTH), random(B, S, WIDTH))


# ---- places and tokens ----


def test_sinusoids_are_those_of_the_paper():
    found = np.asarray(embeddings.sinusoidal_positions(50, 8))
    for place, i in product((0, 1, 49), range(4)):
        angle = place / 10000 ** (2 * i / 8)
        np.testing.assert_allclose(found[place, 2 * i : 2 * i + 2], [np.sin(angle), np.cos(angle)], atol=1e-5)


def test_rotated_products_depend_on_distance_alone_and_lengths_are_kept():
    query, key = random(1, 1, 1, 8), random(1, 1, 1, 8, seed=1)

    def at(q, k):
        turned = [embeddings.rotary(x, np.array([place])) for x, place in ((query, q), (key, k))]
        return float(np.sum(np.asarray(turned[0]) * np.asarray(turned[1])))

    np.testing.assert_allclose([at(5, 2), at(103, 100)], at(3, 0), atol=1e-4)
    assert abs(at(3, 0) - at(4, 0)) > 1e-3
    x = random(B, T, N, 8)
    turned = np.asarray(embeddings.rotary(x, np.arange(T)))
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    # eq. 14: a pair is turned by its place times its rate
    pair, rate = x[0, 3, 0, [1, 5]], 10000 ** (-2 / 8)
    turn = np.array([[np.cos(3 * rate), -np.sin(3 * rate)], [np.sin(3 * rate), np.cos(3 * rate)]])
    np.testing.assert_allclose(turned[0, 3, 0, [1, 5]], turn @ pair, atol=1e-5)


def test_embeddings_tell_tokens_and_score_them_in_float32():
    layer = embeddings.TokenEmbedding(11, 4, scale=True, dtype="mixed_bfloat16")
    vectors = layer(np.array([[3, 0, 10]]))
    table = np.asarray(layer.embeddings)
    assert vectors.dtype == "bfloat16"
    np.testing.assert_allclose(ops.cast(vectors, "float32")[0], 2 * table[[3, 0, 10]], atol=0.05)
    x = random(1, 3, 4)
    scores = layer(ops.convert_to_tensor(x), reverse=True)
    assert scores.dtype == "float32"
    np.testing.assert_allclose(scores, x @ table.T, atol=0.05)


def test_places_are_added_from_a_position_on_and_learned_ones_end():
    x = random(B, 5, 8)
    for kind in ("sinusoidal", "learned"):
        places = embeddings.PositionEmbedding(kind, max_length=7)
        whole = places(np.concatenate([x, x], axis=1))
        np.testing.assert_allclose(places(x, position=5), whole[:, 5:], atol=1e-5)
    np.testing.assert_allclose(whole[:, 8] - x[:, 3], whole[:, 9] - x[:, 4], atol=1e-6)


def test_names_of_registered_layers_are_theirs_alone():
    from models import vit

    for kind in (vit.PositionEmbedding, embeddings.PositionEmbedding, MultiHeadAttention, embeddings.TokenEmbedding):
        assert keras.saving.get_registered_object(keras.saving.get_registered_name(kind)) is kind


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: embeddings.TokenEmbedding(0, 4), "vocab_size"),
        (lambda: embeddings.PositionEmbedding("sinusoid"), "kind must be one of"),
        (lambda: embeddings.PositionEmbedding("learned"), "max_length"),
        (lambda: embeddings.sinusoidal_positions(5, 3), "even width. Received: 3"),
        (lambda: embeddings.rotary(random(1, 2, 1, 5), np.arange(2)), "even width. Received: 5"),
    ],
)
def test_unfit_tables_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
