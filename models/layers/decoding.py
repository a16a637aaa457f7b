"""Search for the likeliest sentence of a decoder, one token at a time: greedy and beam search, shared by all decoders.

A decoder is a function `step(token_ids, position, state) -> (logits, state, attention)`. The search is one
`keras.ops.while_loop` that remembers tokens, parents and attention once a step and follows the parents back at its end;
it compiles into a SavedModel and stops as soon as every example has its answers. Special ids are those of `Special`,
by default `PAD`, `START`, `END` and `UNKNOWN`. Deviations from Wu et al. 2016: a hypothesis ends its search when it is
among the best k of its step, and an example is done when k have ended (their pruning is left out), so that a beam of
one is greedy search; the last place holds nothing but `END`, so that every answer is complete and all scores compare.

Hugging Face's `generate` searches by other rules, which are here, too: `special=Special(..., barred=())`,
`normalization="power"`, `early_stopping=False` (its default) and `complete=False` find what it finds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from models.layers.classification import check_choice, check_sizes
from models.layers.hypotheses import LEAST, Beams, beams_of, empty_history, follow, pick, remember

PAD, START, END, UNKNOWN = 0, 1, 2, 3
NORMALIZATIONS = ("wu", "power")
Step = Callable[[Any, Any, Any], tuple[Any, Any, Any]]


class Special(NamedTuple):
    """Ids of a decoder's special tokens.

    pad: after the end of an answer.
    start: what the decoder is given first.
    end: the last token of an answer.
    unknown: the highest id that stands for no word; the vocabulary must be larger.
    barred: ids that are never generated.
    """

    pad: int = PAD
    start: int = START
    end: int = END
    unknown: int = UNKNOWN
    barred: tuple[int, ...] = (PAD, START)


SPECIAL = Special()


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
    special: Special = SPECIAL,
    normalization: str = "wu",
    early_stopping: bool | str = True,
    complete: bool = True,
) -> Beams:
    """Searches for the k answers of the highest score, of which k hypotheses are kept at every step.

    Args:
        step: from token ids (b * k,), position (a scalar, 0 for the first) and state to logits (b * k, v), the new
            state of the same shapes, and attention (b * k, s) or None. It is given the start first. What does not
            change from step to step is best closed over (see `repeat`).
        state: nested tensors of shape (b * k, ...); those of a hypothesis follow it.
        batch: b, a number or a scalar tensor.
        vocab_size: v.
        max_length: t, the most tokens of an answer, the end counted and the start not.
        beam_width: k.
        length_penalty: alpha of `penalized`.
        coverage_penalty: beta of `penalized`; needs attention.
        source_mask: (b, s) bool, true where the source is no padding. If given, `step` must return attention, which
            then is part of the result.
        special: the special ids, and which tokens are never generated.
        normalization: of scores by length, see `penalized`.
        early_stopping: when an example is done. True: as soon as k answers have ended. False: as soon as k have ended
            and the likeliest hypothesis, were it to end with the tokens it has, would not be better than the worst of
            them. "never": as False, but with a length penalty above 0 it is rated at `max_length`, its best chance, so
            that no better answer is missed.
        complete: whether the last place holds nothing but the end. Otherwise the best k continuations of the last place
            end there, whatever their last token is.

    Returns:
        `Beams`, the best first.

    Raises:
        ValueError: a size is not a positive whole number, a coverage penalty without a source mask, no attention from
            `step` where it is needed, or an argument is not as described.

    Reference: Wu et al. 2016, "Google's neural machine translation system", section 7.
    """
    k = check_arguments(vocab_size, max_length, beam_width, coverage_penalty, source_mask, special, normalization)
    check_choice("early_stopping", early_stopping, (True, False, "never"))
    first = ops.expand_dims(ops.arange(batch, dtype="int32") * k, axis=1)  # (b, 1), the row of each first hypothesis
    zeros = ops.zeros((batch, k), "int32")
    only = ops.broadcast_to(ops.expand_dims(ops.arange(k) == 0, 0), (batch, k))  # at first there is one hypothesis
    least = ops.full((batch, k), LEAST, "float32")
    alive = {"token_ids": zeros + special.start, "scores": ops.where(only, 0.0, least)}
    if coverage_penalty:
        alive["coverage"] = ops.zeros((batch, k, source_mask.shape[1] or ops.shape(source_mask)[1]), "float32")
    ended = {"scores": least, "lengths": zeros, "parents": zeros, "tokens": zeros}
    ended |= {"count": ops.zeros((batch,), "int32"), "open": ops.ones((batch,), "bool")}
    history = empty_history(max_length, batch, k, source_mask)

    def unfinished(position, alive, ended, *_):
        return ops.logical_and(position < max_length, ops.any(ended["open"]))

    def body(position, alive, ended, history, state):
        logits, state, attention = step(ops.reshape(alive["token_ids"], (batch * k,)), position, state)
        attention = beams_of(attention, batch, k, source_mask)  # (b, k, s)
        last = position == max_length - 1
        scores = log_probabilities(logits, last, special, complete)  # (b * k, v)
        scores = ops.reshape(scores, (batch, k, vocab_size)) + alive["scores"][:, :, None]

        # Hypotheses that go on: the best k continuations other than the end; in the last place perhaps any.
        stays = ops.arange(vocab_size) == special.end  # (v,)
        stays = stays if complete else ops.logical_and(stays, ops.logical_not(last))
        going = ops.where(stays, LEAST, scores)
        best, places = ops.top_k(ops.reshape(going, (batch, k * vocab_size)), k)  # (b, k)
        parents = ops.cast(places // vocab_size, "int32")
        token_ids = ops.cast(places % vocab_size, "int32")

        # Hypotheses that end: those of which fewer than k continuations are better; in the last place perhaps all.
        ends = scores[:, :, special.end]  # (b, k)
        better = ops.sum(ops.cast(best[:, None, :] > ends[:, :, None], "int32"), axis=-1)
        better += ops.sum(ops.cast(ends[:, None, :] > ends[:, :, None], "int32"), axis=-1)
        new, tokens, slots = better < k, zeros + special.end, zeros + ops.arange(k, dtype="int32")
        covered = alive["coverage"] + attention if coverage_penalty else None  # (b, k, s)
        read = covered
        if not complete:
            ends, new = ops.where(last, best, ends), ops.logical_or(last, new)
            tokens, slots = ops.where(last, token_ids, tokens), ops.where(last, parents, slots)
            read = pick(covered, slots) if coverage_penalty else None
        new = ops.logical_and(ops.logical_and(new, ends > LEAST / 2), ended["open"][:, None])
        lengths = zeros + position + 1
        found = penalized(ends, lengths, read, source_mask, length_penalty, coverage_penalty, normalization)
        both = ops.concatenate([ended["scores"], ops.where(new, found, LEAST)], axis=1)  # (b, 2 * k)
        kept, order = ops.top_k(both, k)  # (b, k)
        now = {"lengths": lengths, "parents": slots, "tokens": tokens}
        now = {name: pick(ops.concatenate([ended[name], now[name]], axis=1), order) for name in now}
        count = ended["count"] + ops.sum(ops.cast(new, "int32"), axis=1)

        # Examples that go on: those with fewer than k answers, or perhaps with hope for a better one.
        hopeful = count < k  # (b,)
        if early_stopping in (False, "never"):
            length = max_length if early_stopping == "never" and length_penalty > 0 else position + 1
            rated = penalized(best[:, 0], length, None, None, length_penalty, 0.0, normalization)  # (b,)
            hopeful = ops.logical_and(ended["open"], ops.logical_or(hopeful, rated > kept[:, -1]))
        ended = {"scores": kept, "count": count, "open": hopeful, **now}
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
    lengths = ops.where(none, 0, ended["lengths"])
    return follow(history, ended["scores"], lengths, ended["parents"], ended["tokens"], special.pad)


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
    special: Special = SPECIAL,
    normalization: str = "wu",
    complete: bool = True,
) -> Beams:
    """Takes the likeliest token at every step: what `beam_search` with a beam of one finds, for less.

    Args: as of `beam_search`, with k = 1.

    Returns:
        `Beams` with k = 1.

    Raises:
        ValueError: as of `beam_search`.
    """
    check_arguments(vocab_size, max_length, 1, coverage_penalty, source_mask, special, normalization)
    zeros = ops.zeros((batch,), "int32")
    history = empty_history(max_length, batch, 1, source_mask)
    begin = {"token_ids": zeros + special.start, "scores": ops.zeros((batch,), "float32"), "lengths": zeros}

    def unfinished(position, alive, *_):
        return ops.logical_and(position < max_length, ops.any(alive["lengths"] == 0))

    def body(position, alive, history, state):
        logits, state, attention = step(alive["token_ids"], position, state)
        last = position == max_length - 1
        scores = log_probabilities(logits, last, special, complete)  # (b, v)
        going = alive["lengths"] == 0  # length 0 stands for: not yet ended
        token_ids = ops.where(going, ops.cast(ops.argmax(scores, axis=-1), "int32"), special.pad)
        ends = ops.logical_and(going, ops.logical_or(token_ids == special.end, last))
        alive = {
            "token_ids": token_ids,
            "scores": alive["scores"] + ops.where(going, ops.max(scores, axis=-1), 0.0),
            "lengths": ops.where(ends, position + 1, alive["lengths"]),
        }
        attention = beams_of(attention, batch, 1, source_mask)
        history = remember(history, position, token_ids=token_ids[:, None], parents=None, attention=attention)
        return position + 1, alive, history, state

    start = (ops.zeros((), "int32"), begin, history, state)
    _, alive, history, _ = ops.while_loop(unfinished, body, start)
    scores, lengths = alive["scores"][:, None], alive["lengths"][:, None]  # (b, 1)
    beams = follow(history, scores, lengths, ops.zeros_like(lengths), None, special.pad)
    covered = ops.sum(beams.attention, axis=2) if coverage_penalty else None  # (b, 1, s)
    penalties = (length_penalty, coverage_penalty, normalization)
    return beams._replace(scores=penalized(scores, lengths, covered, source_mask, *penalties))


def penalized(
    log_probability,
    lengths,
    coverage,
    source_mask,
    length_penalty: float,
    coverage_penalty: float,
    normalization: str = "wu",
):
    """The score of an answer: log P(Y | X) / lp(Y) + cp(X; Y).

    lp(Y) = ((5 + |Y|) / (5 + 1))^alpha of "wu" and |Y|^alpha of "power", where |Y| counts the end and not the start;
    cp(X; Y) = beta * sum_i log(min(sum_j p_ij, 1)), where p_ij is the attention of the j-th token on the i-th place of
    the source.

    Args:
        log_probability: (b, k)
        lengths: (b, k), |Y|.
        coverage: (b, k, s), the sum over j, or None where beta is 0.
        source_mask: (b, s) bool; padding costs nothing.
        length_penalty: alpha; 0 ranks by probability, which favours short answers, 1 by its mean per token ("power")
            or nearly so ("wu").
        coverage_penalty: beta; above 0 it favours answers that read all of the source.
        normalization: "wu", or "power" as Hugging Face's `generate` has it.

    Returns:
        (b, k)

    Reference: Wu et al. 2016, eq. 14.
    """
    lengths = ops.cast(lengths, "float32")
    scores = log_probability / ((5.0 + lengths) / 6.0 if normalization == "wu" else lengths) ** length_penalty
    if not coverage_penalty:
        return scores
    logs = ops.log(ops.clip(coverage, 1e-9, 1.0))  # (b, k, s)
    return scores + coverage_penalty * ops.sum(ops.where(source_mask[:, None, :], logs, 0.0), axis=-1)


def repeat(nest: Any, beam_width: int) -> Any:
    """Every example of nested tensors `beam_width` times in a row: (b, ...) → (b * k, ...)."""
    return keras.tree.map_structure(lambda x: ops.repeat(x, beam_width, axis=0), nest)


def check_arguments(
    vocab_size, max_length, beam_width, coverage_penalty, source_mask, special: Special, normalization: str
) -> int:
    """Returns the beam width, or raises a `ValueError`."""
    for name, size in (("vocab_size", vocab_size), ("max_length", max_length), ("beam_width", beam_width)):
        check_sizes(name, size)
    check_choice("normalization", normalization, NORMALIZATIONS)
    highest = max(special.pad, special.start, special.end, special.unknown, *special.barred)
    if vocab_size <= highest:
        raise ValueError(f"vocab_size must be above {highest}, the last special id. Received: {vocab_size}")
    if coverage_penalty and source_mask is None:
        raise ValueError(f"coverage_penalty needs attention and a source_mask. Received: {coverage_penalty} and None")
    return beam_width


def log_probabilities(logits, last, special: Special, complete: bool):
    """Logarithms of the probabilities of the next token; what may not follow has `LEAST`."""
    found = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
    ids = ops.arange(logits.shape[-1])
    for barred in special.barred:
        found = ops.where(ids == barred, LEAST, found)
    return ops.where(ops.logical_and(last, ids != special.end), LEAST, found) if complete else found
