"""Attention for long sequences: a window, blocks with global tokens, a kernel, and all pairs in chunks.

All four are functions of query (b, n, t, d), key (b, m, s, d) and value (b, m, s, e), where m divides n: query head h
reads key head h // (n / m) (grouped queries, Ainslie et al. 2023). `mask` (b, s) is True where a key may be seen, and a
query that sees no key gets zeros. Softmax and sums are taken in float32. Call them with tensors, inside of a layer.

| function                 | pairs that are computed | memory     | answer                                      |
| ------------------------ | ----------------------- | ---------- | ------------------------------------------- |
| `window_attention`       | t · window              | t · window | of full attention under `window_mask`       |
| `block_sparse_attention` | t · (near + global)     | the same   | of full attention under `block_sparse_mask` |
| `linear_attention`       | t · chunk               | t          | its own: features(q) · features(k) as exp(q · k) |
| `chunked_attention`      | t · s                   | t          | of full attention, and so is the gradient   |

Deviations from the papers: BigBird's random blocks are left out; windows are counted in keys on one side, not on both;
chunked attention computes the scores anew in the backward pass by its own gradient (Dao et al. 2022, algorithm 4)
instead of by checkpoints.
"""

import math

from keras import ops

from models.layers.blocks import blocks, for_each_block, from_blocks, joined, near_blocks, parted, query_blocks
from models.layers.tiles import NEVER, tiled_attention


def window_attention(query, key, value, *, window: int, mask=None, causal: bool = False):
    """Each query sees the keys that are less than `window` places away; a causal one, only those not after it.

    Args:
        query: (b, n, t, d).
        key: (b, m, t, d), m divides n.
        value: (b, m, t, e).
        window: with `window` ≥ t all pairs are seen, and the answer is that of full attention.
        mask: (b, t) bool, True where a key may be seen; all by default.
        causal: no query sees a later key.

    Returns:
        (b, n, t, e), of the value's type.

    Raises:
        ValueError: shapes do not fit, or `window` is not positive.

    Reference: Beltagy et al. 2020, "Longformer", section 3.1, figure 2b.
    """
    _check(query, key, value, square=True, window=window)
    block = _fitted(min(window, 64), query)
    reach = math.ceil((_fitted(window, query) - 1) / block)
    return _banded(query, key, value, mask, causal, block=block, reach=reach, distance=window)


def block_sparse_attention(
    query,
    key,
    value,
    *,
    block_size: int = 64,
    window_blocks: int = 1,
    num_global: int = 0,
    mask=None,
    causal: bool = False,
):
    """Each query sees its own block, the blocks beside it, and the global tokens, which see everything.

    Args:
        query: (b, n, t, d).
        key: (b, m, t, d), m divides n.
        value: (b, m, t, e).
        block_size: tokens of a block.
        window_blocks: blocks seen on each side of the own one (causal: on the left).
        num_global: that many tokens from the start are seen by all, and see all.
        mask: (b, t) bool, True where a key may be seen; all by default.
        causal: no query sees a later key, global or not.

    Returns:
        (b, n, t, e), of the value's type.

    Raises:
        ValueError: shapes do not fit, or a size is out of range.

    Reference: Zaheer et al. 2020, "Big Bird", section 2 and appendix D (internal global tokens, without random blocks);
        Beltagy et al. 2020, "Longformer", figure 2d.
    """
    _check(query, key, value, square=True, block_size=block_size)
    if window_blocks < 0 or num_global < 0:
        raise ValueError(f"Expected 0 or more. Received: window_blocks={window_blocks}, num_global={num_global}")
    if query.shape[2] is not None:
        window_blocks = min(window_blocks, math.ceil(query.shape[2] / block_size) - 1)  # the others are all padding
    return _banded(query, key, value, mask, causal, block=block_size, reach=window_blocks, num_global=num_global)


def _banded(query, key, value, mask, causal, *, block, reach, distance=None, num_global=0):
    """Softmax attention of each block of queries on `reach` blocks of keys before it, its own, and as many after it."""
    length = ops.shape(query)[2]
    groups = query.shape[1] // key.shape[1]
    query = query * ops.cast(query.shape[-1] ** -0.5, query.dtype)
    allowed = ops.ones((1, length), "float32") if mask is None else ops.cast(mask, "float32")
    allowed = allowed[:, None, :, None]  # (b, 1, t, 1)
    local = allowed
    if num_global:  # as local keys they would count twice
        local = local * ops.cast(ops.arange(length) >= num_global, "float32")[:, None]
    near = {"size": block, "before": reach, "after": 0 if causal else reach}
    keys, values = near_blocks(key, **near), near_blocks(value, **near)  # (b, m, c, r, d), (b, m, c, r, e)
    queries = query_blocks(query, groups, block)  # (b, m, c, g · block, d)
    count = ops.shape(queries)[2]
    apart = ops.arange(block)[:, None] - ops.arange(keys.shape[3]) + reach * block  # (block, r)
    seen = (near_blocks(local, **near)[..., 0] > 0)[:, :, :, None]  # (b, 1, c, 1, r)
    if distance is not None:
        seen = seen & (ops.abs(apart) < distance)  # (b, 1, c, block, r)
    if causal:
        seen = seen & (apart >= 0)
    seen = ops.logical_and(seen, ops.ones((block, 1), "bool"))  # (b, 1, c, block, r), whatever was asked
    if num_global:
        first_keys, first_values, first = key[:, :, :num_global], value[:, :, :num_global], allowed[:, :, :num_global]
        keys = ops.concatenate([for_each_block(first_keys, count), keys], axis=3)  # (b, m, c, global + r, d)
        values = ops.concatenate([for_each_block(first_values, count), values], axis=3)
        places = ops.reshape(ops.arange(count * block), (count, block, 1))
        many = ops.arange(ops.shape(first_keys)[2])
        reached = (places >= many) if causal else (places >= 0)  # (c, block, global or 1)
        reached = reached & (first[:, :, None, None, :, 0] > 0)  # (b, 1, c, block, global)
        seen = ops.concatenate([reached, seen], axis=-1)  # (b, 1, c, block, global + r)
    out = from_blocks(_attend(queries, keys, values, seen, groups, always=mask is None), groups)  # (b, n, c · block, e)
    out = out[:, :, :length]
    if num_global:
        seen = allowed[..., 0][:, :, None] > 0  # (b, 1, 1, t)
        if causal:
            seen = seen & (many[:, None] >= ops.arange(length))
        else:
            seen = ops.logical_and(seen, ops.ones_like(many, "bool")[:, None])
        rows = joined(query[:, :, :num_global], groups)  # (b, m, g · global, d)
        rows = _attend(rows, key, value, seen, groups, always=mask is None)
        out = ops.concatenate([parted(rows, groups), out[:, :, num_global:]], axis=2)
    return out


def _attend(query, key, value, seen, groups, *, always):
    """Softmax attention of scaled queries (b, m, …, g · rows, d) where `seen` (b, 1, …, rows, r) allows it.

    `always` tells that every query sees a key; otherwise those that see none get zeros.
    """
    seen = ops.concatenate([seen] * groups, axis=-2)  # (b, 1, …, g · rows, r)
    scores = ops.cast(ops.matmul(query, ops.swapaxes(key, -1, -2)), "float32")  # (b, m, …, g · rows, r)
    weights = ops.softmax(scores + ops.where(seen, 0.0, NEVER), axis=-1)
    if not always:
        weights = weights * ops.cast(ops.any(seen, axis=-1, keepdims=True), "float32")
    return ops.matmul(ops.cast(weights, value.dtype), value)  # (b, m, …, g · rows, e)


def linear_attention(query, key, value, *, mask=None, causal: bool = False, chunk: int = 128):
    """Attention whose weights are features(query) · features(key), normalized: its cost grows with t and not with t².

    Causal attention takes whole chunks by the sums of all chunks before them, and pairs within a chunk.

    Args:
        query: (b, n, t, d).
        key: (b, m, s, d), m divides n; s = t if causal.
        value: (b, m, s, e).
        mask: (b, s) bool, True where a key may be seen; all by default.
        causal: no query sees a later key.
        chunk: tokens of a chunk; it changes speed and memory, not the answer.

    Returns:
        (b, n, t, e), of the value's type.

    Raises:
        ValueError: shapes do not fit, or `chunk` is not positive.

    Reference: Katharopoulos et al. 2020, "Transformers are RNNs", eq. 5 to 9; the chunks are those of Hua et al. 2022,
        "Transformer quality in linear time", section 3.2.
    """
    _check(query, key, value, square=causal, chunk=chunk)
    groups, length, kind = query.shape[1] // key.shape[1], ops.shape(query)[2], value.dtype
    query, key, value = features(query), features(key), ops.cast(value, "float32")
    if mask is not None:
        key = key * ops.cast(mask, "float32")[:, None, :, None]
    if not causal:
        query = joined(query, groups)  # (b, m, g · t, d)
        sums = ops.matmul(ops.swapaxes(key, -1, -2), value)  # (b, m, d, e)
        total = ops.sum(key, axis=2)[..., None]  # (b, m, d, 1)
        out = _divided(ops.matmul(query, sums), ops.matmul(query, total))  # (b, m, g · t, e)
        return ops.cast(parted(out, groups), kind)
    chunk = _fitted(chunk, query)
    query = query_blocks(query, groups, chunk)  # (b, m, c, g · chunk, d)
    key, value = blocks(key, chunk), blocks(value, chunk)  # (b, m, c, chunk, d), (b, m, c, chunk, e)
    sums = _before(ops.matmul(ops.swapaxes(key, -1, -2), value))  # (b, m, c, d, e)
    total = _before(ops.sum(key, axis=3)[..., None])  # (b, m, c, d, 1)
    inside = ops.matmul(query, ops.swapaxes(key, -1, -2))  # (b, m, c, g · chunk, chunk)
    inside = inside * ops.tile(ops.tril(ops.ones((chunk, chunk), "float32")), (groups, 1))
    above = ops.matmul(inside, value) + ops.matmul(query, sums)  # (b, m, c, g · chunk, e)
    below = ops.sum(inside, axis=-1, keepdims=True) + ops.matmul(query, total)  # (b, m, c, g · chunk, 1)
    return ops.cast(from_blocks(_divided(above, below), groups)[:, :, :length], kind)


def features(x):
    """The positive features elu(x) + 1 in float32, of the same shape (Katharopoulos et al. 2020, eq. 7)."""
    return ops.elu(ops.cast(x, "float32")) + 1.0


def _divided(above, below):
    return above / ops.maximum(below, 1e-9)


def _before(x):
    """The sums of all chunks before each chunk, along axis 2."""
    sums = ops.cumsum(x, axis=2)
    return ops.concatenate([ops.zeros_like(sums[:, :, :1]), sums[:, :, :-1]], axis=2)


def chunked_attention(query, key, value, *, mask=None, causal: bool = False, chunk: int = 256):
    """Full attention, exactly, without the matrix of all scores: memory grows with t, forward and backward.

    A running maximum and sum of each query take one chunk of keys after the other. The gradient is this function's own
    and computes the scores again from the queries, the keys and one number per query. Causal attention leaves out the
    chunks that nobody sees, so it takes half the time.

    Args:
        query: (b, n, t, d).
        key: (b, m, s, d), m divides n; s = t if causal.
        value: (b, m, s, e).
        mask: (b, s) bool, True where a key may be seen; all by default.
        causal: no query sees a later key.
        chunk: queries and keys of a tile; it changes speed and memory, not the answer.

    Returns:
        (b, n, t, e), of the value's type.

    Raises:
        ValueError: shapes do not fit, or `chunk` is not positive.

    Reference: Rabe and Staats 2021, "Self-attention does not need O(n²) memory", section 3 and figure 1; Dao et al.
        2022, "FlashAttention", algorithms 1 and 4.
    """
    _check(query, key, value, square=causal, chunk=chunk)
    groups, length = query.shape[1] // key.shape[1], ops.shape(query)[2]
    size = _fitted(chunk, query, key)
    query = query * ops.cast(query.shape[-1] ** -0.5, query.dtype)
    allowed = ops.ones((1, ops.shape(key)[2]), "float32") if mask is None else ops.cast(mask, "float32")
    allowed = blocks(allowed[:, None, :, None], size)  # (b, 1, c, size, 1), 0 behind the end
    bias = ops.where(ops.swapaxes(allowed, -1, -2) > 0, 0.0, NEVER)  # (b, 1, c, 1, size)
    parts = (query_blocks(query, groups, size), blocks(key, size), blocks(value, size), bias)
    chunks = [ops.transpose(part, (2, 0, 1, 3, 4)) for part in parts]  # each (c, b, m, ...)
    out = tiled_attention(causal, groups)(*chunks)  # (c, b, m, g · size, e)
    return from_blocks(ops.transpose(out, (1, 2, 0, 3, 4)), groups)[:, :, :length]


def window_mask(length: int, *, window: int, causal: bool = False):
    """The pairs that `window_attention` computes: (t, t) bool, True where query i sees key j."""
    apart = ops.arange(length)[:, None] - ops.arange(length)
    seen = ops.abs(apart) < window
    return seen & (apart >= 0) if causal else seen


def block_sparse_mask(
    length: int, *, block_size: int = 64, window_blocks: int = 1, num_global: int = 0, causal: bool = False
):
    """The pairs that `block_sparse_attention` computes: (t, t) bool, True where query i sees key j."""
    places = ops.arange(length)
    blocks = places // block_size
    seen = ops.abs(blocks[:, None] - blocks) <= window_blocks
    seen = seen | (places < num_global) | (places < num_global)[:, None]
    return seen & (places[:, None] >= places) if causal else seen


def _check(query, key, value, *, square, **sizes):
    """Raises an error where shapes do not fit each other, or a size is not positive."""
    shapes = [tuple(x.shape) for x in (query, key, value)]
    heads = [shape[1] for shape in shapes if len(shape) == 4]
    if len(heads) < 3 or heads[0] % heads[1] or heads[1] != heads[2] or shapes[0][3] != shapes[1][3]:
        raise ValueError(
            "Expected query (b, n, t, d), key (b, m, s, d) and value (b, m, s, e) with m a divisor of n. "
            f"Received: {shapes[0]}, {shapes[1]}, {shapes[2]}"
        )
    lengths = {shape[2] for shape in (shapes if square else shapes[1:])} - {None}
    if len(lengths) > 1:
        what = "Expected as many queries as keys and values" if square else "Expected as many keys as values"
        raise ValueError(f"{what}. Received: {shapes[0]}, {shapes[1]}, {shapes[2]}")
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"Expected a positive {name}. Received: {size}")


def _fitted(size, *tensors):
    """The size, or the longest of the lengths where that is known and less."""
    lengths = [x.shape[2] for x in tensors]
    return size if None in lengths else max(1, min(size, max(lengths)))
