"""Attention on long sequences: equal to dense attention under the same mask, sub-quadratic, on every backend."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import needle
from models.layers import long_attention
from models.layers.long_attention import (
    block_sparse_attention,
    block_sparse_mask,
    chunked_attention,
    linear_attention,
    window_attention,
    window_mask,
)

ROOT = Path(__file__).parent.parent.parent
# Each function with arguments that cut 13 tokens into several blocks.
SMALL = {
    "window": (window_attention, {"window": 3}),
    "block_sparse": (block_sparse_attention, {"block_size": 3, "window_blocks": 1, "num_global": 2}),
    "linear": (linear_attention, {"chunk": 4}),
    "chunked": (chunked_attention, {"chunk": 4}),
}
each = pytest.mark.parametrize("name", SMALL)
both = pytest.mark.parametrize("causal", [False, True], ids=["both sides", "causal"])


def tensors(length=13, batch=2, heads=4, key_heads=2, width=5, value_width=6, keys=None, seed=0):
    noise = np.random.default_rng(seed)
    shapes = [(heads, length, width), (key_heads, keys or length, width), (key_heads, keys or length, value_width)]
    return [noise.normal(size=(batch, *shape)).astype("float32") for shape in shapes]


def some_mask(batch, length, seed=1):
    """Padding of different lengths, and one hole."""
    mask = np.arange(length) < np.random.default_rng(seed).integers(1, length + 1, (batch, 1))
    mask[0, length // 2] = False
    return mask


def pairs(name, length, arguments, causal):
    """(t, t): what the function lets a query see."""
    if name == "window":
        return np.asarray(window_mask(length, causal=causal, **arguments))
    if name == "block_sparse":
        return np.asarray(block_sparse_mask(length, causal=causal, **arguments))
    return np.tril(np.ones((length, length), bool)) if causal else np.ones((length, length), bool)


def dense(name, query, key, value, seen, mask=None):
    """The answer in double precision, with the matrix of all scores; a query that sees nothing gets zeros."""
    groups = query.shape[1] // key.shape[1]
    query, key, value = (x.astype("float64") for x in (query, key, value))
    key, value = key.repeat(groups, axis=1), value.repeat(groups, axis=1)
    if name == "linear":
        query, key = (np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))) for x in (query, key))
        weights = query @ key.swapaxes(2, 3)
    else:
        scores = query @ key.swapaxes(2, 3) / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = weights * seen * (1 if mask is None else mask[:, None, None])
    total = weights.sum(-1, keepdims=True)
    return weights @ value / np.where(total, total, 1)


@each
@both
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
def test_the_answer_is_that_of_dense_attention_under_the_same_mask(name, causal, masked):
    function, arguments = SMALL[name]
    for length in (1, 2, 12, 13):
        query, key, value = tensors(length)
        mask = some_mask(2, length) if masked else None
        answer = function(query, key, value, mask=mask, causal=causal, **arguments)
        wanted = dense(name, query, key, value, pairs(name, length, arguments_of_mask(name, arguments), causal), mask)
        np.testing.assert_allclose(answer, wanted, atol=1e-5)


def arguments_of_mask(name, arguments):
    return arguments if name in ("window", "block_sparse") else {}


@settings(max_examples=12, deadline=None)
@given(
    length=st.integers(1, 24),
    window=st.integers(1, 30),
    block_size=st.integers(1, 9),
    window_blocks=st.integers(0, 4),
    num_global=st.integers(0, 9),
    chunk=st.integers(1, 9),
    causal=st.booleans(),
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]),
    seed=st.integers(0, 99),
)
def test_any_sizes_agree_with_dense_attention(
    length, window, block_size, window_blocks, num_global, chunk, causal, heads, seed
):
    query, key, value = tensors(length, heads=heads[0], key_heads=heads[1], seed=seed)
    mask = some_mask(2, length, seed) if seed % 2 else None
    cases = {
        "window": {"window": window},
        "block_sparse": {"block_size": block_size, "window_blocks": window_blocks, "num_global": num_global},
        "linear": {"chunk": chunk},
        "chunked": {"chunk": chunk},
    }
    for name, arguments in cases.items():
        answer = SMALL[name][0](query, key, value, mask=mask, causal=causal, **arguments)
        seen = pairs(name, length, arguments_of_mask(name, arguments), causal)
        np.testing.assert_allclose(answer, dense(name, query, key, value, seen, mask), atol=2e-5, err_msg=name)


@both
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("window", {"window": 70}),
        ("window", {"window": 1000}),
        ("block_sparse", {"block_size": 16, "window_blocks": 4}),
        ("block_sparse", {"block_size": 70, "window_blocks": 0}),
        ("block_sparse", {"block_size": 8, "window_blocks": 0, "num_global": 70}),
        ("chunked", {"chunk": 16}),
        ("chunked", {"chunk": 1000}),
    ],
    ids=str,
)
def test_where_the_window_covers_everything_it_is_the_full_attention_of_keras(name, arguments, causal):
    query, key, value = tensors(70, key_heads=4, width=8, value_width=8)
    turned = [np.swapaxes(x, 1, 2) for x in (query, key, value)]
    full = keras.ops.dot_product_attention(*turned, is_causal=causal)
    answer = SMALL[name][0](query, key, value, causal=causal, **arguments)
    np.testing.assert_allclose(answer, np.swapaxes(full, 1, 2), atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "chunked"])
@pytest.mark.parametrize("keys", [1, 4, 23])
def test_a_memory_may_be_of_another_length(name, keys):
    query, key, value = tensors(13, keys=keys)
    mask = some_mask(2, keys)
    answer = SMALL[name][0](query, key, value, mask=mask, **SMALL[name][1])
    np.testing.assert_allclose(answer, dense(name, query, key, value, True, mask), atol=1e-5)


def test_causal_linear_attention_is_a_recurrence():
    """Katharopoulos et al. 2020, eq. 16 to 20: a state that is added to, token by token."""
    query, key, value = tensors(9, key_heads=4)
    phi_query, phi_key = (np.asarray(long_attention.features(x)) for x in (query, key))
    state, total = np.zeros((2, 4, 5, 6)), np.zeros((2, 4, 5))
    rows = []
    for i in range(9):
        state += phi_key[:, :, i, :, None] * value[:, :, i, None]
        total += phi_key[:, :, i]
        above = np.einsum("bnd,bnde->bne", phi_query[:, :, i], state)
        rows.append(above / np.einsum("bnd,bnd->bn", phi_query[:, :, i], total)[..., None])
    np.testing.assert_allclose(linear_attention(query, key, value, causal=True, chunk=4), np.stack(rows, 2), atol=1e-5)


def test_a_masked_key_leaves_no_trace_even_if_it_is_huge():
    query, key, value = tensors()
    mask = np.ones((2, 13), bool)
    mask[:, 5] = False
    spoiled_key, spoiled_value = key.copy(), value.copy()
    spoiled_key[:, :, 5], spoiled_value[:, :, 5] = 50, 1e6
    for name, (function, arguments) in SMALL.items():
        clean, spoiled = (
            np.asarray(function(query, *rest, mask=mask, **arguments))
            for rest in ((key, value), (spoiled_key, spoiled_value))
        )
        np.testing.assert_allclose(clean, spoiled, atol=1e-6, err_msg=name)


def test_large_scores_stay_finite():
    query, key, value = (100 * x for x in tensors())
    for name, (function, arguments) in SMALL.items():
        for causal in (False, True):
            assert np.isfinite(function(query, key, value, causal=causal, **arguments)).all(), name


def gradients(function, inputs, upstream):
    import tensorflow as tf

    inputs = [tf.constant(x) for x in inputs]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss = tf.reduce_sum(function(*inputs) * upstream)
    return tape.gradient(loss, inputs)


def softmax_under(seen, mask):
    """Dense attention in keras.ops, for gradients; queries that see nothing get zeros."""
    allowed = np.broadcast_to(seen & (True if mask is None else mask[:, None, None]), (2, 1, *seen.shape))

    def attend(query, key, value):
        groups = query.shape[1] // key.shape[1]
        key, value = (keras.ops.repeat(x, groups, axis=1) for x in (key, value))
        scores = keras.ops.matmul(query, keras.ops.swapaxes(key, 2, 3)) / query.shape[-1] ** 0.5
        weights = keras.ops.softmax(keras.ops.where(allowed, scores, -1e9)) * allowed.any(-1, keepdims=True)
        return keras.ops.matmul(weights, value)

    return attend


@pytest.mark.parametrize("name", ["window", "block_sparse", "chunked"])
@both
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
def test_gradients_are_those_of_dense_attention(name, causal, masked):
    function, arguments = SMALL[name]
    inputs = tensors()
    mask = some_mask(2, 13) if masked else None
    upstream = np.random.default_rng(3).normal(size=(2, 4, 13, 6)).astype("float32")
    ours = gradients(lambda *x: function(*x, mask=mask, causal=causal, **arguments), inputs, upstream)
    seen = pairs(name, 13, arguments_of_mask(name, arguments), causal)
    theirs = gradients(softmax_under(seen, mask), inputs, upstream)
    for mine, wanted in zip(ours, theirs):
        np.testing.assert_allclose(mine, wanted, atol=2e-5)


@both
def test_gradients_of_linear_attention_are_the_numerical_ones(causal):
    inputs = tensors(5, batch=1, heads=2, key_heads=1, width=2, value_width=2)
    upstream = np.random.default_rng(3).normal(size=(1, 2, 5, 2)).astype("float32")
    ours = gradients(lambda *x: linear_attention(*x, causal=causal, chunk=2), inputs, upstream)
    seen = pairs("linear", 5, {}, causal)
    step = 1e-6
    for place, found in enumerate(ours):
        wanted = np.zeros(inputs[place].shape)
        for index in np.ndindex(wanted.shape):
            values = []
            for sign in (1, -1):
                moved = [x.astype("float64") for x in inputs]
                moved[place][index] += sign * step
                values.append((dense("linear", *moved, seen) * upstream).sum())
            wanted[index] = (values[0] - values[1]) / (2 * step)
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@each
@both
def test_a_graph_of_unknown_lengths_answers_and_learns_as_eagerly(name, causal):
    import tensorflow as tf

    function, arguments = SMALL[name]
    specs = [tf.TensorSpec((None, heads, None, width)) for heads, width in ((4, 5), (2, 5), (2, 6))]

    @tf.function(input_signature=[specs, tf.TensorSpec((None, None), tf.bool)])
    def graph(inputs, mask):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            answer = function(*inputs, mask=mask, causal=causal, **arguments)
            loss = tf.reduce_sum(answer**2)
        return answer, tape.gradient(loss, inputs)

    for length in (1, 12, 13):
        inputs, mask = tensors(length), some_mask(2, length)
        answer, slopes = graph([tf.constant(x) for x in inputs], mask)
        eager = function(*inputs, mask=mask, causal=causal, **arguments)
        np.testing.assert_allclose(answer, eager, atol=1e-6)
        assert all(np.isfinite(slope).all() and np.any(slope) for slope in slopes[2:])


@each
def test_it_compiles_with_xla(name):
    import tensorflow as tf

    function, arguments = SMALL[name]
    inputs = [tf.constant(x) for x in tensors()]
    compiled = tf.function(lambda *x: function(*x, causal=True, **arguments), jit_compile=True)
    np.testing.assert_allclose(compiled(*inputs), function(*inputs, causal=True, **arguments), atol=1e-5)


@each
@both
def test_bfloat16_stays_bfloat16_and_near(name, causal):
    function, arguments = SMALL[name]
    inputs = tensors()
    short = [keras.ops.cast(x, "bfloat16") for x in inputs]
    answer = function(*short, causal=causal, **arguments)
    assert keras.backend.standardize_dtype(answer.dtype) == "bfloat16"
    near = function(*[keras.ops.cast(x, "float32") for x in short], causal=causal, **arguments)
    np.testing.assert_allclose(keras.ops.cast(answer, "float32"), near, atol=0.05)


@each
@both
def test_no_tensor_of_the_graph_grows_with_the_square_of_the_length(name, causal):
    """Forward and backward, in loops, too."""
    import tensorflow as tf

    length, wide = 2048, 80  # the widest tensor may hold that many numbers for each token
    function = SMALL[name][0]
    arguments = {"window": {"window": 16}, "block_sparse": {"block_size": 16, "num_global": 4}}.get(name, {"chunk": 16})

    @tf.function
    def graph(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(function(*inputs, causal=causal, **arguments))
        return tape.gradient(loss, inputs)

    concrete = graph.get_concrete_function(*[tf.TensorSpec((1, 1, length, 8))] * 3)
    found = sizes(concrete.graph.as_graph_def(add_shapes=True))
    assert len(found) > 50 and max(found) <= length * wide < length * length / 10


def sizes(definition):
    """Numbers in each tensor of a graph, the bodies of its loops included."""
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    shapes = [shape.dim for node in nodes for shape in node.attr["_output_shapes"].list.shape]
    return [int(np.prod([dim.size for dim in shape])) for shape in shapes]


@each
def test_shapes_that_do_not_fit_are_errors(name):
    function, arguments = SMALL[name]
    query, key, value = tensors()
    bad = [
        (query, key[:, :, :, :4], value),  # widths
        (query[:, :3], key, value),  # 2 does not divide 3
        (query, key, value[:, :1]),  # heads of keys and values
        (query, key, value[:, :, :5]),  # lengths of keys and values
        (query[0], key, value),  # no batch
    ]
    for inputs in bad:
        with pytest.raises(ValueError, match="Expected .* Received: "):
            function(*inputs, **arguments)
    with pytest.raises(ValueError, match="Received: "):
        function(query[:, :, :5], key, value, causal=True, **arguments)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (window_attention, {"window": 0}),
        (block_sparse_attention, {"block_size": 0}),
        (block_sparse_attention, {"window_blocks": -1}),
        (block_sparse_attention, {"num_global": -1}),
        (linear_attention, {"chunk": 0}),
        (chunked_attention, {"chunk": -2}),
    ],
)
def test_sizes_out_of_range_are_errors(function, arguments):
    with pytest.raises(ValueError, match="Expected .* Received: "):
        function(*tensors(), **arguments)


OTHER = """
import json
import keras
from tests.models.test_long_attention import MIXED, SMALL, some_mask, tensors
found = {}
for name, causal in MIXED.items():
    def call(inputs):
        answer = SMALL[name][0](*inputs, mask=some_mask(2, 13), causal=causal, **SMALL[name][1])
        return (answer**2).sum(), answer
    if keras.backend.backend() == "jax":
        import jax
        slopes, answer = jax.jit(jax.grad(call, has_aux=True))([jax.numpy.asarray(x) for x in tensors()])
    else:
        import torch
        inputs = [torch.tensor(x, requires_grad=True) for x in tensors()]
        loss, answer = call(inputs)
        loss.backward()
        slopes = [x.grad for x in inputs]
    found[name] = [keras.ops.convert_to_numpy(x).tolist() for x in (answer, *slopes)]
print(json.dumps(found))
"""
MIXED = {"window": True, "block_sparse": False, "linear": True, "chunked": True}  # causal or not


@pytest.mark.parametrize("backend", [name for name in ("jax", "torch") if find_spec(name)])
def test_answers_and_gradients_are_the_same_on_other_backends(backend):
    done = subprocess.run(
        [sys.executable, "-c", OTHER],
        cwd=ROOT,
        env=os.environ | {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == SMALL.keys()
    for name, causal in MIXED.items():

        def call(*inputs, name=name, causal=causal):
            return SMALL[name][0](*inputs, mask=some_mask(2, 13), causal=causal, **SMALL[name][1])

        answer = np.asarray(call(*tensors()))
        for theirs, ours in zip(found[name], [answer, *gradients(call, tensors(), 2 * answer)], strict=True):
            np.testing.assert_allclose(theirs, ours, atol=1e-4, err_msg=name)


def test_a_needle_is_one_token_with_the_asked_key_and_it_lies_where_it_was_wanted():
    tokens, values = needle.haystacks(np.random.default_rng(0), 200, 40, (0.5, 0.75))
    asked = tokens[:, 0] - needle.NUM_KEYS * needle.NUM_VALUES
    assert (asked >= 0).all() and (tokens[:, 1:] < needle.NUM_KEYS * needle.NUM_VALUES).all()
    rows, places = np.nonzero(tokens[:, 1:] // needle.NUM_VALUES == asked[:, None])
    assert rows.tolist() == list(range(200))
    assert (tokens[rows, 1 + places] % needle.NUM_VALUES == values).all()
    assert places.min() >= 19 and places.max() < 30


@pytest.mark.slow
def test_a_needle_is_found_through_a_global_token():
    """Blocks of four: the question reaches no other way beyond the eighth token of 24."""
    attention = {"kind": "block_sparse", "block_size": 4, "window_blocks": 1, "num_global": 1}
    model = needle.trained(attention, [8, 24], steps=60, tokens=512)
    assert needle.accuracy(model, 24, (0.5, 1.0)) > 0.7  # guessing: 0.125


@pytest.mark.slow
@pytest.mark.parametrize("kind", needle.KINDS)
def test_a_needle_is_found_at_any_depth_of_a_long_haystack_if_the_attention_reaches_it(kind):
    length = 512
    model = needle.trained(needle.KINDS[kind], needle.doubling(length), steps=100, tokens=4096)
    reach = (needle.WINDOW - 1) / (length - 1)
    if kind == "window":
        assert needle.accuracy(model, length, (0.0, reach)) >= 0.8
        assert needle.accuracy(model, length, (2 * reach, 1.0)) <= 0.3  # guessing: 0.125
    else:
        assert min(needle.accuracy(model, length, (part / 4, (part + 1) / 4)) for part in range(4)) >= 0.9
