"""What attention keeps of the tokens before, so that the next costs no more than itself: keys and values, or sums."""

from keras import ops

from models.layers import long_attention
from models.layers.dot_product import answers, products, turned


def continued(cache, new, position):
    """A cache with new keys and values, (b, t, m, d) each, written from `position` on."""
    places = ops.arange(ops.shape(cache["key"])[2], dtype="int32") - position  # (s,), of the new ones from 0 on
    count = ops.shape(new[0])[1]
    here = ops.logical_and(places >= 0, places < count)[:, None]  # (s, 1)

    def written(old, more):
        more = turned(more)  # (b, m, t, d)
        if more.shape[2] != 1:
            more = ops.take(more, ops.clip(places, 0, count - 1), axis=2)  # (b, m, s, d)
        return ops.where(here, more, old)

    return {"key": written(cache["key"], new[0]), "value": written(cache["value"], new[1])}


def linear_step(query, key, value, cache, mask=None):
    """Linear attention of queries (b, n, t, d) to what the sums in a cache stand for and to each other, causal.

    Keys are left out where the mask (b, t) is false.

    Reference: Katharopoulos et al. 2020, eq. 10 to 12 and 18 to 20.
    """
    query, key, floats = long_attention.features(query), long_attention.features(key), ops.cast(value, "float32")
    key = key if mask is None else ops.where(mask[:, None, :, None], key, 0.0)
    inside = products(query, key)  # (b, n, t, t)
    rows = ops.arange(ops.shape(query)[2])
    inside = ops.where(rows[:, None] >= rows, inside, 0.0)
    groups = query.shape[1] // key.shape[1]
    sums, norm = ops.repeat(cache["sum"], groups, axis=1), ops.repeat(cache["norm"], groups, axis=1)
    above = answers(inside, floats) + ops.einsum("bntd,bnde->bnte", query, sums)
    below = ops.sum(inside, axis=-1) + ops.einsum("bntd,bnd->bnt", query, norm)
    cache = {
        "sum": cache["sum"] + ops.einsum("bmtd,bmte->bmde", key, floats),
        "norm": cache["norm"] + ops.sum(key, axis=2),
    }
    return ops.cast(above / ops.maximum(below, 1e-9)[..., None], value.dtype), cache
