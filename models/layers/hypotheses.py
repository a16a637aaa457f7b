"""What a search remembers of its hypotheses, once a step, and how answers are read from it when the search is over."""

from typing import Any, NamedTuple

from keras import ops

LEAST = -1e9  # the score of what cannot be; finite, so that no difference of two is undefined


class Beams(NamedTuple):
    """Answers of a search, the best first.

    token_ids: (b, k, t) int32, without the start, with the end (unless it was cut off), then padding.
    scores: (b, k) float32, as in `penalized`; -1e9 where there are fewer than k answers, whose length is then 0.
    lengths: (b, k) int32, the end counted.
    attention: (b, k, t, s) float32, of every token on the source and 0 after the end; None without a source mask.
    """

    token_ids: Any
    scores: Any
    lengths: Any
    attention: Any


def beams_of(attention, batch, k: int, source_mask):
    """Attention of a step as (b, k, s), or None where it is not wanted."""
    if source_mask is None:
        return None
    if attention is None:
        raise ValueError("step must return attention where a source_mask is given. Received: None")
    return ops.reshape(ops.cast(attention, "float32"), (batch, k, source_mask.shape[1] or ops.shape(source_mask)[1]))


def empty_history(max_length: int, batch, k: int, source_mask) -> dict[str, Any]:
    """Places for what is remembered of each step, time first: (t, b, k) and (t, b, k, s)."""
    history = {"token_ids": ops.zeros((max_length, batch, k), "int32")}
    if k > 1:
        history["parents"] = ops.zeros((max_length, batch, k), "int32")
    if source_mask is not None:
        length = source_mask.shape[1] or ops.shape(source_mask)[1]
        history["attention"] = ops.zeros((max_length, batch, k, length), "float32")
    return history


def remember(history: dict[str, Any], position, **now: Any) -> dict[str, Any]:
    """Writes a step into its place."""
    place = ops.reshape(position, (1, 1))
    return {name: ops.scatter_update(history[name], place, now[name][None]) for name in history}


def pick(x, order):
    """x[b, order[b, j], ...] as [b, j, ...], by one gather of rows."""
    batch, width = ops.shape(x)[:2]
    rows = order + ops.expand_dims(ops.arange(batch, dtype="int32") * width, axis=1)  # (b, j)
    return ops.take(ops.reshape(x, (batch * width, *ops.shape(x)[2:])), rows, axis=0)


def follow(history: dict[str, Any], scores, lengths, parents, last, pad: int) -> Beams:
    """Reads answers backwards, from where they ended to their first token.

    Args:
        history: of every step, tokens and parents (t, b, k) of the hypotheses that left it, attention (t, b, k, s) of
            those that entered it.
        scores, lengths: (b, k), of the answers.
        parents: (b, k), the hypothesis that entered the answer's last step.
        last: (b, k), the answer's last token, or None where the history has it.
        pad: what follows the end.
    """
    token_ids = ops.full_like(history["token_ids"], pad)
    found = {"token_ids": token_ids}
    if "attention" in history:
        found["attention"] = ops.zeros_like(history["attention"])

    def body(position, place, found):
        before = ops.take(history["parents"], position, axis=0) if "parents" in history else None  # (b, k)
        source = place if before is None else pick(before, place)
        source = ops.where(position == lengths - 1, parents, source)
        tokens = pick(ops.take(history["token_ids"], position, axis=0), place)
        tokens = tokens if last is None else ops.where(position == lengths - 1, last, tokens)
        now = {"token_ids": ops.where(position < lengths, tokens, pad)}
        if "attention" in found:
            attention = pick(ops.take(history["attention"], position, axis=0), source)  # (b, k, s)
            now["attention"] = ops.where((position < lengths)[:, :, None], attention, 0.0)
        return position - 1, ops.where(position < lengths, source, place), remember(found, position, **now)

    start = (ops.max(lengths) - 1, ops.zeros_like(parents), found)
    _, _, found = ops.while_loop(lambda position, *_: position >= 0, body, start)
    attention = ops.transpose(found["attention"], (1, 2, 0, 3)) if "attention" in found else None  # (b, k, t, s)
    return Beams(ops.transpose(found["token_ids"], (1, 2, 0)), scores, lengths, attention)
