"""Draws of a language model, one token at a time: greedy, temperature, top-k, top-p, a penalty for repetition.

One `keras.ops.while_loop`, which ends as soon as all texts have. A draw takes one uniform number: the token at which
the sum of the probabilities, in the order of the ids, exceeds it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

from models.layers.alignment import LEAST
from models.layers.classification import check_sizes

Step = Callable[[Any, Any, Any], tuple[Any, Any]]


class Generated(NamedTuple):
    """What was written: token ids (b, m), lengths (b,), and the tokens' log probabilities (b, m), 0 after the end."""

    token_ids: Any
    lengths: Any
    log_probabilities: Any


class Sampling(NamedTuple):
    """How a token is drawn; see `models.gpt.CausalLM.generate`."""

    temperature: Any = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    @property
    def greedy(self) -> bool:
        return isinstance(self.temperature, (int, float)) and self.temperature == 0

    def check(self) -> "Sampling":
        """Returns itself, or raises a `ValueError`."""
        if isinstance(self.temperature, (int, float)) and self.temperature < 0:
            raise ValueError(f"temperature must be at least 0. Received: {self.temperature}")
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise ValueError(f"top_k must be a whole number, 0 for all tokens. Received: {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1. Received: {self.top_p}")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty must be above 0. Received: {self.repetition_penalty}")
        return self


def penalized(logits, seen, penalty: float):
    """Logits (b, v), those of tokens that were seen (b, v) divided by the penalty, or multiplied where negative.

    Reference: Keskar et al. 2019, section 4.1; the rule for negative logits is that of Hugging Face transformers.
    """
    return ops.where(seen, ops.where(logits < 0, logits * penalty, logits / penalty), logits)


def narrowed(logits, top_k: int, top_p: float):
    """Logits (b, v) of the tokens that may be drawn; of the others a very small number."""
    if top_k and top_k < logits.shape[-1]:
        least = ops.top_k(logits, top_k)[0][:, -1:]  # (b, 1)
        logits = ops.where(logits < least, LEAST, logits)
    if top_p < 1:
        falling = -ops.sort(-logits, axis=-1)  # (b, v)
        shares = ops.softmax(falling, axis=-1)
        before = ops.cumsum(shares, axis=-1) - shares  # of the likelier tokens; 0 for the first
        least = ops.min(ops.where(before < top_p, falling, -LEAST), axis=-1, keepdims=True)  # (b, 1)
        logits = ops.where(logits < least, LEAST, logits)
    return logits


def draw(logits, drawing: Sampling, noise):
    """Token ids (b,) from logits (b, v) and uniform numbers (b,)."""
    if drawing.greedy:
        return ops.cast(ops.argmax(logits, axis=-1), "int32")
    logits = narrowed(logits / drawing.temperature, drawing.top_k, drawing.top_p)
    sums = ops.cumsum(ops.softmax(logits, axis=-1), axis=-1)  # (b, v)
    goal = ops.minimum(noise, 1.0 - 1e-6)[:, None] * sums[:, -1:]  # (b, 1), below the last sum
    return ops.sum(ops.cast(sums <= goal, "int32"), axis=-1)


class Rules(NamedTuple):
    """How texts are written; see `models.gpt.CausalLM.generate`. It can be a key of a dictionary."""

    vocab_size: int
    max_new_tokens: int
    drawing: Sampling
    end_ids: tuple[int, ...] = ()
    stop: tuple[tuple[int, ...], ...] = ()
    pad_id: int = 0

    def check(self) -> "Rules":
        """Returns itself with tuples of numbers, or raises a `ValueError`."""
        self.drawing.check()
        check_sizes("max_new_tokens", self.max_new_tokens)
        if any(not len(one) for one in self.stop):
            raise ValueError(f"A sequence of stop holds at least one token. Received: {self.stop}")
        stop = tuple(tuple(int(one) for one in sequence) for sequence in self.stop)
        return self._replace(end_ids=tuple(int(one) for one in self.end_ids), stop=stop, pad_id=int(self.pad_id))


def begin(prompt, prompt_mask, rules: Rules) -> dict[str, Any]:
    """What is known before the first token is written, of prompts (b, p) whose last column is their last token."""
    batch, most = ops.shape(prompt)[0], rules.max_new_tokens
    now = {
        "last": prompt[:, -1],
        "token_ids": ops.full((most, batch), rules.pad_id, "int32"),
        "log_probabilities": ops.zeros((most, batch), "float32"),
        "lengths": ops.zeros((batch,), "int32"),
        "ended": ops.zeros((batch,), "bool"),
    }
    if rules.drawing.repetition_penalty != 1:
        here = ops.one_hot(prompt, rules.vocab_size, dtype="float32") * ops.cast(prompt_mask, "float32")[:, :, None]
        now["seen"] = ops.sum(here, axis=1) > 0  # (b, v)
    return now


def advance(step: Step, count, now: dict[str, Any], state: Any, noise, rules: Rules) -> tuple[dict[str, Any], Any]:
    """What is known after one more token of every text, and the new state.

    Args:
        step: see `sample`.
        count: scalar, tokens written before.
        now: of `begin`, or of this function.
        state: of `step`.
        noise: (b,) uniform numbers.
        rules: how it is written.
    """
    penalty = rules.drawing.repetition_penalty
    logits, state = step(now["last"], count, state)
    scores = ops.cast(logits, "float32")  # (b, v)
    chosen = penalized(scores, now["seen"], penalty) if penalty != 1 else scores
    ids = draw(chosen, rules.drawing, noise)  # (b,)
    likely = ops.take_along_axis(ops.log_softmax(scores, axis=-1), ids[:, None], axis=1)[:, 0]
    going = ops.logical_not(now["ended"])
    ids = ops.where(going, ids, rules.pad_id)
    place = ops.reshape(count, (1, 1))
    likely = ops.where(going, likely, 0.0)
    new = {
        "last": ids,
        "token_ids": ops.scatter_update(now["token_ids"], place, ids[None]),
        "log_probabilities": ops.scatter_update(now["log_probabilities"], place, likely[None]),
        "lengths": now["lengths"] + ops.cast(going, "int32"),
    }
    new["ended"] = ops.logical_or(now["ended"], has_ended(new["token_ids"], ids, count, rules.end_ids, rules.stop))
    if penalty != 1:
        written = ops.arange(rules.vocab_size, dtype="int32")[None] == ids[:, None]
        new["seen"] = ops.logical_or(now["seen"], ops.logical_and(written, going[:, None]))
    return new, state


def sample(step: Step, state: Any, now: dict[str, Any], noise, rules: Rules) -> Generated:
    """Draws tokens until every text has ended.

    Args:
        step: from token ids (b,), how many were written before and with them, and the state, to logits (b, v) of the
            next ones and the new state. It is given the last of the prompt first.
        state: after all of the prompt but its last tokens.
        now: of `begin`.
        noise: (max_new_tokens, b) uniform numbers.
        rules: how texts are written.

    Returns:
        `Generated`.
    """

    def unfinished(count, now, state):
        return ops.logical_and(count < rules.max_new_tokens, ops.logical_not(ops.all(now["ended"])))

    def body(count, now, state):
        return count + 1, *advance(step, count, now, state, ops.take(noise, count, axis=0), rules)

    _, found, _ = ops.while_loop(unfinished, body, (ops.zeros((), "int32"), now, state))
    return Generated(ops.transpose(found["token_ids"]), found["lengths"], ops.transpose(found["log_probabilities"]))


def has_ended(written, ids, count, end_ids, stop):
    """Whether the texts (m, b), whose newest tokens (b,) are at `count`, end with one of the ends: (b,) bool."""
    ended = ops.zeros_like(ids, dtype="bool")
    for one in end_ids:
        ended = ops.logical_or(ended, ids == one)
    for sequence in stop:
        same = count >= len(sequence) - 1
        for back, one in enumerate(reversed(sequence)):
            place = ops.maximum(count - back, 0)
            same = ops.logical_and(same, ops.take(written, place, axis=0) == one)
        ended = ops.logical_or(ended, same)
    return ended
