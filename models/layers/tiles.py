"""Exact attention tile by tile, with a gradient of its own: what `long_attention.chunked_attention` computes with.

Reference: Rabe and Staats 2021, "Self-attention does not need O(n²) memory", section 3; Dao et al. 2022,
"FlashAttention", algorithms 1 (forward) and 4 (backward). Deviation: the backward pass goes over the tiles twice, once
for the gradient of the queries and once for that of keys and values, so that nothing is written in two places.
"""

from keras import ops

NEVER = -1e30  # added to the score of a pair that must not be seen; finite, so that no row becomes NaN


def tiled_attention(causal: bool, groups: int):
    """Makes the function that attends tile by tile.

    Args:
        causal: tile (i, j) is computed for j ≤ i alone, and the diagonal ones see what is not later.
        groups: query heads that share a key head: the rows of a chunk of queries are g · size.

    Returns:
        A function of query (c, b, m, g · size, d) that is scaled already, key (k, b, m, size, d), value
        (k, b, m, size, e) and bias (k, b or 1, 1, 1, size), which is 0 or `NEVER`, in float32; it returns
        (c, b, m, g · size, e), with zeros where a query sees no key.
    """

    @ops.custom_gradient
    def attend(query, key, value, bias):
        rows, columns = ops.shape(query)[0], ops.shape(key)[0]

        def scores(i, j, diagonal):
            """Of one tile, in float32: (b, m, g · size, size)."""
            found = ops.matmul(_at(query, i), ops.swapaxes(_at(key, j), -1, -2))
            found = ops.cast(found, "float32") + _at(bias, j)
            if diagonal:
                size = found.shape[-1]
                found = found + ops.tile(ops.triu(ops.full((size, size), NEVER, "float32"), 1), (groups, 1))
            return found

        def sweep(step, state, own, lower, upper):
            """Runs `step` over all tiles of a row or column; if causal, over its diagonal one and the range."""
            if causal:
                return ops.fori_loop(lower, upper, step, step(own, state, diagonal=True))
            return ops.fori_loop(0, upper, step, state)

        def row(i):
            def step(j, state, diagonal=False):
                above, below, top = state
                found = scores(i, j, diagonal)
                higher = ops.maximum(top, ops.max(found, axis=-1, keepdims=True))
                weights, shrink = ops.exp(found - higher), ops.exp(top - higher)
                summed = ops.matmul(ops.cast(weights, value.dtype), _at(value, j))
                above = above * shrink + ops.cast(summed, "float32")  # (b, m, g · size, e)
                return above, below * shrink + ops.sum(weights, axis=-1, keepdims=True), higher

            zeros = ops.zeros((*shape, 1), "float32")
            start = (ops.zeros((*shape, value.shape[-1]), "float32"), zeros, zeros + NEVER)
            above, below, top = sweep(step, start, i, 0, i if causal else columns)
            some = top > NEVER / 2
            out = ops.where(some, above / below, 0.0)
            return ops.cast(out, value.dtype), ops.where(some, top + ops.log(below), -NEVER)

        shape = ops.shape(query)[1:-1]  # (b, m, g · size)
        blank = ops.zeros((*shape, value.shape[-1]), value.dtype), ops.zeros((*shape, 1), "float32")
        out, total = _one_by_one(row, rows, blank)  # (c, b, m, g · size, e), (c, b, m, g · size, 1)

        def gradient(*given, upstream=None):
            upstream = given[0] if upstream is None else upstream  # (c, b, m, g · size, e)
            shared = ops.cast(upstream, "float32") * ops.cast(out, "float32")
            shared = ops.sum(shared, axis=-1, keepdims=True)  # (c, b, m, g · size, 1)

            def tile(i, j, diagonal):
                """The weights of one tile, and the gradient of its scores, as the values' and the queries' type."""
                weights = ops.exp(scores(i, j, diagonal) - _at(total, i))  # (b, m, g · size, size)
                slopes = ops.matmul(_at(upstream, i), ops.swapaxes(_at(value, j), -1, -2))
                slopes = weights * (ops.cast(slopes, "float32") - _at(shared, i))
                return ops.cast(weights, value.dtype), ops.cast(slopes, query.dtype)

            def of_query(i):
                def step(j, state, diagonal=False):
                    _, slopes = tile(i, j, diagonal)
                    return state + ops.cast(ops.matmul(slopes, _at(key, j)), "float32")

                start = ops.zeros_like(_at(query, i), dtype="float32")
                return ops.cast(sweep(step, start, i, 0, i if causal else columns), query.dtype)

            def of_key(j):
                def step(i, state, diagonal=False):
                    weights, slopes = (ops.swapaxes(x, -1, -2) for x in tile(i, j, diagonal))
                    to_key, to_value = ops.matmul(slopes, _at(query, i)), ops.matmul(weights, _at(upstream, i))
                    return state[0] + ops.cast(to_key, "float32"), state[1] + ops.cast(to_value, "float32")

                start = tuple(ops.zeros_like(_at(x, j), dtype="float32") for x in (key, value))
                to_key, to_value = sweep(step, start, j, j + 1, rows)
                return ops.cast(to_key, key.dtype), ops.cast(to_value, value.dtype)

            to_query = _one_by_one(of_query, rows, ops.zeros_like(_at(query, 0)))
            blank = ops.zeros_like(_at(key, 0)), ops.zeros_like(_at(value, 0))
            to_key, to_value = _one_by_one(of_key, columns, blank)
            return to_query, to_key, to_value, ops.zeros_like(bias)

        return out, gradient

    return attend


def _one_by_one(function, count, blank):
    """The results of `function` for 0, 1, …, stacked. A map would run several at once, and need their memory at once.

    `blank` is of the shapes and types of a result; a scan wants to begin with something.
    """

    def step(_, index):
        found = function(index)
        return found, found

    return ops.scan(step, blank, ops.arange(count, dtype="int32"))[1]


def _at(x, index):
    return ops.take(x, index, axis=0)
