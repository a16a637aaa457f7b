"""Sequences cut into blocks: the shapes in which attention on long sequences is computed.

Heads come in groups that share a key head: n = m · g query heads, m key heads.
"""

from keras import ops


def blocks(x, size, *, before=0, after=0):
    """(b, m, s, d) in blocks: (b, m, before + c + after, size, d); zeros behind the end and in the blocks around."""
    batch, heads, length, width = ops.shape(x)
    rest = (-length) % size
    if before or after or not isinstance(rest, int) or rest:
        x = ops.pad(x, ((0, 0), (0, 0), (before * size, rest + after * size), (0, 0)))
    return ops.reshape(x, (batch, heads, before + (length + rest) // size + after, size, width))


def near_blocks(x, *, size, before, after):
    """For each block of (b, m, s, d) the blocks before it, itself and those after it: (b, m, c, r, d)."""
    x = blocks(x, size, before=before, after=after)
    count = ops.shape(x)[2] - before - after
    return ops.concatenate([x[:, :, shift : shift + count] for shift in range(before + after + 1)], axis=3)


def for_each_block(x, count):
    """(b, m, s, d) again for each block: (b, m, count, s, d)."""
    batch, heads, length, width = ops.shape(x)
    return ops.broadcast_to(x[:, :, None], (batch, heads, count, length, width))


def query_blocks(x, groups, size):
    """(b, n, t, d) in blocks, the heads that share a key head one behind the other: (b, m, c, g · size, d)."""
    x = blocks(x, size)  # (b, n, c, size, d)
    batch, heads, count, _, width = ops.shape(x)
    x = ops.reshape(x, (batch, heads // groups, groups, count, size, width))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5)) if groups > 1 else x
    return ops.reshape(x, (batch, heads // groups, count, groups * size, width))


def from_blocks(x, groups):
    """The way back: (b, m, c, g · size, e) to (b, n, c · size, e)."""
    batch, heads, count, rows, width = ops.shape(x)
    x = ops.reshape(x, (batch, heads, count, groups, rows // groups, width))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5)) if groups > 1 else x
    return ops.reshape(x, (batch, heads * groups, count * (rows // groups), width))


def joined(x, groups):
    """(b, n, t, d) to (b, m, g · t, d)."""
    batch, heads, length, width = ops.shape(x)
    return ops.reshape(x, (batch, heads // groups, groups * length, width))


def parted(x, groups):
    """The way back: (b, m, g · t, d) to (b, n, t, d)."""
    batch, heads, length, width = ops.shape(x)
    return ops.reshape(x, (batch, heads * groups, length // groups, width))
