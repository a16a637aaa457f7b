"""Search for the likeliest sentence of a decoder, one token at a time: greedy and beam search, shared by all decoders.

A decoder is a function `step(token_ids, position, state) -> (logits, state, attention)`. The search is one
`keras.ops.while_loop` that remembers tokens, parents and attention once a step and follows the parents back at its end;
it compiles into a SavedModel and stops as soon as every example has its answers. Special ids are the same everywhere:
`PAD`, `START`, `END`, `UNKNOWN`. Deviations from Wu et al. 2016: a hypothesis ends its search when it is among the
best k of its step, and an example is done when k have ended (their pruning is left out), so that a beam of one is
greedy search; the last place holds nothing but `END`, so that every answer is complete and all scores compare.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from models.layers.classification import check_sizes

PAD, START, END, UNKNOWN = 0, 1, 2, 3
LEAST = -1e9  # the score of what cannot be; finite, so that no difference of two is undefined
Step = Callable[[Any, Any, Any], tuple[Any, Any, Any]]


class Beams(NamedTuple):
    """Answers of a search, the best first.

    token_ids: (b, k, t) int32, without `START`, with `END`, then `PAD`.
    scores: (b, k) float32, as in `penalized`; -1e9 where there are fewer than k answers, whose length is then 0.
    lengths: (b, k) int32, `END` counted.
    attention: (b, k, t, s) float32, of every token on the source and 0 after the end; None without a source mask.
    """

    token_ids: Any
    scores: Any
    lengths: Any
    attention: Any


def beam_search(
    step: Step,
    state: Any,
    batch: Any,
    *,
    vocab_size: int,
    max_length: int,
    beam_width: int,
    length_penalty: float = 0.6,
    coverage_penalty: float = 0.0,
    source_mask: Any = None,
) -> Beams:
    """Searches for the k answers of the highest score, of which k hypotheses are kept at every step.

    Args:
        step: from token ids (b * k,), position (a scalar, 0 for the first) and state to logits (b * k, v), the new
            state of the same shapes, and attention (b * k, s) or None. It is given `START` first. What does not change
            from step to step is best closed over (see `repeat`).
        state: nested tensors of shape (b * k, ...); those of a hypothesis follow it.
        batch: b, a number or a scalar tensor.
        vocab_size: v.
        max_length: t, the most tokens of an answer, `END` counted.
        beam_width: k.
        length_penalty: alpha of `penalized`.
        coverage_penalty: beta of `penalized`; needs attention.
        source_mask: (b, s) bool, true where the source is no padding. If given, `step` must return attention, which
            then is part of the result.

    Returns:
        `Beams`, the best first. `PAD` and `START` are never generated.

    Raises:
        ValueError: a size is not a positive whole number, a coverage penalty without a source mask, or no attention
            from `step` where it is needed.

    Reference: Wu et al. 2016, "Google's neural machine translation system", section 7.
    """
    k = check_arguments(vocab_size, max_length, beam_width, coverage_penalty, source_mask)
    first = ops.expand_dims(ops.arange(batch, dtype="int32") * k, axis=1)  # (b, 1), the row of each first hypothesis
    zeros = ops.zeros((batch, k), "int32")
    only = ops.broadcast_to(ops.expand_dims(ops.arange(k) == 0, 0), (batch, k))  # at first there is one hypothesis
    least = ops.full((batch, k), LEAST, "float32")
    alive = {"token_ids": zeros + START, "scores": ops.where(only, 0.0, least)}
    if coverage_penalty:
        alive["coverage"] = ops.zeros((batch, k, source_mask.shape[1] or ops.shape(source_mask)[1]), "float32")
    ended = {"scores": least, "lengths": zeros, "parents": zeros, "count": ops.zeros((batch,), "int32")}
    history = empty_history(max_length, batch, k, source_mask)

    def unfinished(position, alive, ended, *_):
        return ops.logical_and(position < max_length, ops.any(ended["count"] < k))

    def body(position, alive, ended, history, state):
        logits, state, attention = step(ops.reshape(alive["token_ids"], (batch * k,)), position, state)
        attention = beams_of(attention, batch, k, source_mask)  # (b, k, s)
        scores = log_probabilities(logits, position, max_length)  # (b * k, v)
        scores = ops.reshape(scores, (batch, k, vocab_size)) + alive["scores"][:, :, None]

        # Hypotheses that go on: the best k continuations other than the end.
        going = ops.where(ops.arange(vocab_size) == END, LEAST, scores)
        best, places = ops.top_k(ops.reshape(going, (batch, k * vocab_size)), k)  # (b, k)
        parents = ops.cast(places // vocab_size, "int32")
        token_ids = ops.cast(places % vocab_size, "int32")

        # Hypotheses that end: those of which fewer than k continuations are better.
        ends = scores[:, :, END]  # (b, k)
        better = ops.sum(ops.cast(best[:, None, :] > ends[:, :, None], "int32"), axis=-1)
        better += ops.sum(ops.cast(ends[:, None, :] > ends[:, :, None], "int32"), axis=-1)
        new = ops.logical_and(better < k, ends > LEAST / 2)
        new = ops.logical_and(new, (ended["count"] < k)[:, None])
        lengths = zeros + position + 1
        covered = alive["coverage"] + attention if coverage_penalty else None  # (b, k, s)
        found = penalized(ends, lengths, covered, source_mask, length_penalty, coverage_penalty)
        both = ops.concatenate([ended["scores"], ops.where(new, found, LEAST)], axis=1)  # (b, 2 * k)
        kept, order = ops.top_k(both, k)  # (b, k)
        slots = zeros + ops.arange(k, dtype="int32")
        ended = {
            "scores": kept,
            "lengths": pick(ops.concatenate([ended["lengths"], lengths], axis=1), order),
            "parents": pick(ops.concatenate([ended["parents"], slots], axis=1), order),
            "count": ended["count"] + ops.sum(ops.cast(new, "int32"), axis=1),
        }
        alive = {"token_ids": token_ids, "scores": best}
        if coverage_penalty:
            alive["coverage"] = pick(covered, parents)
        rows = ops.reshape(first + parents, (batch * k,))
        state = keras.tree.map_structure(lambda x: ops.take(x, rows, axis=0), state)
        history = remember(history, position, token_ids=token_ids, parents=parents, attention=attention)
        return position + 1, alive, ended, history, state

    start = (ops.zeros((), "int32"), alive, ended, history, state)
    _, _, ended, history, _ = ops.while_loop(unfinished, body, start)
    none = ended["scores"] <= LEAST / 2
    return follow(history, ended["scores"], ops.where(none, 0, ended["lengths"]), ended["parents"])


def greedy(
    step: Step,
    state: Any,
    batch: Any,
    *,
    vocab_size: int,
    max_length: int,
    length_penalty: float = 0.6,
    coverage_penalty: float = 0.0,
    source_mask: Any = None,
) -> Beams:
    """Takes the likeliest token at every step: what `beam_search` with a beam of one finds, for less.

    Args: as of `beam_search`, with k = 1.

    Returns:
        `Beams` with k = 1.

    Raises:
        ValueError: as of `beam_search`.
    """
    check_arguments(vocab_size, max_length, 1, coverage_penalty, source_mask)
    zeros = ops.zeros((batch,), "int32")
    history = empty_history(max_length, batch, 1, source_mask)
    begin = {"token_ids": zeros + START, "scores": ops.zeros((batch,), "float32"), "lengths": zeros}

    def unfinished(position, alive, *_):
        return ops.logical_and(position < max_length, ops.any(alive["lengths"] == 0))

    def body(position, alive, history, state):
        logits, state, attention = step(alive["token_ids"], position, state)
        scores = log_probabilities(logits, position, max_length)  # (b, v)
        going = alive["lengths"] == 0  # length 0 stands for: not yet ended
        token_ids = ops.where(going, ops.cast(ops.argmax(scores, axis=-1), "int32"), PAD)
        alive = {
            "token_ids": token_ids,
            "scores": alive["scores"] + ops.where(going, ops.max(scores, axis=-1), 0.0),
            "lengths": ops.where(ops.logical_and(going, token_ids == END), position + 1, alive["lengths"]),
        }
        attention = beams_of(attention, batch, 1, source_mask)
        history = remember(history, position, token_ids=token_ids[:, None], parents=None, attention=attention)
        return position + 1, alive, history, state

    start = (ops.zeros((), "int32"), begin, history, state)
    _, alive, history, _ = ops.while_loop(unfinished, body, start)
    scores, lengths = alive["scores"][:, None], alive["lengths"][:, None]  # (b, 1)
    beams = follow(history, scores, lengths, ops.zeros_like(lengths))
    covered = ops.sum(beams.attention, axis=2) if coverage_penalty else None  # (b, 1, s)
    return beams._replace(scores=penalized(scores, lengths, covered, source_mask, length_penalty, coverage_penalty))


def penalized(log_probability, lengths, coverage, source_mask, length_penalty: float, coverage_penalty: float):
    """The score of an answer: log P(Y | X) / lp(Y) + cp(X; Y).

    lp(Y) = ((5 + |Y|) / (5 + 1))^alpha, where |Y| counts the end; cp(X; Y) = beta * sum_i log(min(sum_j p_ij, 1)),
    where p_ij is the attention of the j-th token on the i-th place of the source.

    Args:
        log_probability: (b, k)
        lengths: (b, k), |Y|.
        coverage: (b, k, s), the sum over j, or None where beta is 0.
        source_mask: (b, s) bool; padding costs nothing.
        length_penalty: alpha; 0 ranks by probability, which favours short answers, 1 nearly by its mean per token.
        coverage_penalty: beta; above 0 it favours answers that read all of the source.

    Returns:
        (b, k)

    Reference: Wu et al. 2016, eq. 14.
    """
    scores = log_probability / ((5.0 + ops.cast(lengths, "float32")) / 6.0) ** length_penalty
    if not coverage_penalty:
        return scores
    logs = ops.log(ops.clip(coverage, 1e-9, 1.0))  # (b, k, s)
    return scores + coverage_penalty * ops.sum(ops.where(source_mask[:, None, :], logs, 0.0), axis=-1)


def repeat(nest: Any, beam_width: int) -> Any:
    """Every example of nested tensors `beam_width` times in a row: (b, ...) → (b * k, ...)."""
    return keras.tree.map_structure(lambda x: ops.repeat(x, beam_width, axis=0), nest)


def check_arguments(vocab_size, max_length, beam_width, coverage_penalty, source_mask) -> int:
    """Returns the beam width, or raises a `ValueError`."""
    for name, size in (("vocab_size", vocab_size), ("max_length", max_length), ("beam_width", beam_width)):
        check_sizes(name, size)
    if vocab_size <= UNKNOWN:
        raise ValueError(f"vocab_size must be above {UNKNOWN}, the last special id. Received: {vocab_size}")
    if coverage_penalty and source_mask is None:
        raise ValueError(f"coverage_penalty needs attention and a source_mask. Received: {coverage_penalty} and None")
    return beam_width


def log_probabilities(logits, position, max_length: int):
    """Logarithms of the probabilities of the next token; what may not follow has `LEAST`."""
    logits = ops.cast(logits, "float32")
    ids = ops.arange(logits.shape[-1])
    barred = ops.logical_or(ids == PAD, ids == START)
    barred = ops.logical_or(barred, ops.logical_and(position == max_length - 1, ids != END))
    return ops.where(barred, LEAST, ops.log_softmax(logits, axis=-1))


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


def follow(history: dict[str, Any], scores, lengths, parents) -> Beams:
    """Reads answers backwards, from where they ended to their first token.

    Args:
        history: of every step, tokens and parents (t, b, k) of the hypotheses that left it, attention (t, b, k, s) of
            those that entered it.
        scores, lengths: (b, k), of the answers.
        parents: (b, k), the hypothesis that entered the answer's last step.
    """
    token_ids = ops.zeros_like(history["token_ids"])
    found = {"token_ids": token_ids}
    if "attention" in history:
        found["attention"] = ops.zeros_like(history["attention"])

    def body(position, place, found):
        before = ops.take(history["parents"], position, axis=0) if "parents" in history else None  # (b, k)
        source = place if before is None else pick(before, place)
        source = ops.where(position == lengths - 1, parents, source)
        tokens = pick(ops.take(history["token_ids"], position, axis=0), place)
        tokens = ops.where(position == lengths - 1, END, tokens)
        now = {"token_ids": ops.where(position < lengths, tokens, PAD)}
        if "attention" in found:
            attention = pick(ops.take(history["attention"], position, axis=0), source)  # (b, k, s)
            now["attention"] = ops.where((position < lengths)[:, :, None], attention, 0.0)
        return position - 1, ops.where(position < lengths, source, place), remember(found, position, **now)

    start = (ops.max(lengths) - 1, ops.zeros_like(parents), found)
    _, _, found = ops.while_loop(lambda position, *_: position >= 0, body, start)
    attention = ops.transpose(found["attention"], (1, 2, 0, 3)) if "attention" in found else None  # (b, k, t, s)
    return Beams(ops.transpose(found["token_ids"], (1, 2, 0)), scores, lengths, attention)
