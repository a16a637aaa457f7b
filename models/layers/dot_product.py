"""Scaled dot-product attention, all heads at once: products, weights, answers. Masks are true where a query looks."""

from keras import ops

from models.layers.alignment import LEAST, normalized


def dot_product(query, key, value, *, mask=None, scale: float | None = None, bias=None):
    """softmax(Q K^T / sqrt(d)) V, and its weights.

    Args:
        query: (b, n, t, d)
        key: (b, m, s, d), where m divides n: n / m queries in a row share a key.
        value: (b, m, s, e)
        mask: bool, broadcastable to (b, n, t, s).
        scale: what the products are multiplied by; 1 / sqrt(d) if None.
        bias: float, broadcastable to (b, n, t, s), added to the scaled products.

    Returns:
        The answers (b, n, t, e) in the dtype of `value`, and the weights (b, n, t, s) in float32.

    Reference: Vaswani et al. 2017, eq. 1; Ainslie et al. 2023, "GQA", section 2.2, for shared keys.
    """
    scores = products(query, key) * (scale or query.shape[-1] ** -0.5)  # (b, n, t, s)
    weights = normalized(scores if bias is None else scores + ops.cast(bias, "float32"), mask)
    return answers(weights, value), weights


def products(query, key):
    """Products of every query with every key, (b, n, t, d) and (b, m, s, d) to (b, n, t, s) float32."""
    batch, heads, times = ops.shape(query)[:3]
    if heads != key.shape[1]:
        query = ops.reshape(query, (batch, key.shape[1], -1, query.shape[3]))  # (b, m, n / m * t, d)
    products = ops.cast(ops.einsum("bntd,bnsd->bnts", query, key), "float32")
    return ops.reshape(products, (batch, heads, times, ops.shape(key)[2]))


def answers(weights, value):
    """Values by their weights: (b, n, t, s) and (b, m, s, e) to (b, n, t, e)."""
    batch, heads, times, length = ops.shape(weights)
    weights = ops.cast(weights, value.dtype)
    if heads != value.shape[1]:
        weights = ops.reshape(weights, (batch, value.shape[1], -1, length))  # (b, m, n / m * t, s)
    return ops.reshape(ops.einsum("bnts,bnse->bnte", weights, value), (batch, heads, times, value.shape[-1]))


def turned(x):
    """(b, t, n, d) to (b, n, t, d) and back."""
    return ops.swapaxes(x, 1, 2)


def fused(queries, keys, values, allowed, padded, bias=None):
    """Keras's own attention of (b, t, n, d), which takes masks best as numbers that are added to the scores."""
    if allowed is not None:
        bias = ops.where(allowed, 0.0 if bias is None else bias, LEAST)
    out = ops.dot_product_attention(queries, keys, values, bias=bias)  # (b, t, n, d)
    if not padded:
        return out
    seeing = ops.swapaxes(ops.any(allowed, axis=-1, keepdims=True), 1, 2)  # (b, t or 1, 1, 1)
    return out * ops.cast(seeing, out.dtype)
