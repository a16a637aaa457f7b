"""Speculative decoding: a small model drafts tokens, a large one reads them at once and keeps those it agrees on.

What is written is what the large model alone would write by greedy search; it only reads several tokens in one call.
"""

from typing import Any, NamedTuple

from keras import ops

from models.layers.classification import check_sizes


class Speculated(NamedTuple):
    """What was written: token ids (1, m) int32, and how often the large model was called."""

    token_ids: Any
    calls: Any


def speculate(model, draft, prompt, *, max_new_tokens: int, draft_tokens: int = 4) -> Speculated:
    """Writes a text on as greedy search of a model does, in fewer calls of it.

    Args:
        model: a `models.gpt.CausalLM`.
        draft: a smaller one with the same tokens.
        prompt: (1, p) token ids, p known; one text, since texts of a batch would go on at different places.
        max_new_tokens: m, tokens written.
        draft_tokens: tokens that the draft proposes before each call of the model.

    Returns:
        `Speculated`. Between 1 and `draft_tokens` + 1 tokens are written per call.

    Raises:
        ValueError: several texts, different vocabularies, a size that is not a positive whole number, or fewer learned
            positions than tokens.

    Reference: Leviathan et al. 2023, "Fast inference from transformers via speculative decoding", algorithm 1, with a
        temperature of 0: a token is kept where it is the model's own likeliest one.
    """
    check_sizes("max_new_tokens", max_new_tokens)
    check_sizes("draft_tokens", draft_tokens)
    prompt = ops.convert_to_tensor(prompt, dtype="int32")
    rows, width = prompt.shape
    if rows != 1 or not width:
        raise ValueError(f"Expected one prompt of a known length, at least 1. Received: shape {tuple(prompt.shape)}")
    sizes = {one.arguments["vocab_size"] for one in (model, draft)}
    if len(sizes) > 1:
        raise ValueError(f"Expected a draft with the tokens of the model. Received: vocabularies of {sorted(sizes)}")
    total = width + max_new_tokens
    for one in (model, draft):
        if one.parts.positions is not None and total > one.arguments["max_length"]:
            table = one.arguments["max_length"]
            raise ValueError(f"Prompt and answer must fit into {table} positions. Received: {total}")
    length = total + draft_tokens + 1  # the last call may read beyond the end
    states = [one.empty_state(1, length) for one in (model, draft)]
    if width > 1:
        states = [one.hidden(prompt[:, :-1], state=state, position=0)[1] for one, state in zip((model, draft), states)]
    text = ops.pad(prompt[0], [[0, length - width]])  # (length,)
    places = ops.arange(length, dtype="int32")

    def body(count, calls, text, state, draft_state):
        """`count` tokens are known; the caches hold all of them but the last."""
        last = ops.reshape(ops.take(text, count - 1), (1, 1))
        read = [last]
        for step in range(draft_tokens + 1):  # one more than is proposed, so that the cache holds the last proposal
            logits, draft_state = draft.decode(read[-1], state=draft_state, position=count - 1 + step)
            read.append(ops.cast(ops.argmax(logits, axis=-1), "int32"))  # (1, 1)
        read = ops.concatenate(read[:-1], axis=1)  # (1, k + 1), the last known token and k proposals
        logits, state = model.decode(read, state=state, position=count - 1)
        own = ops.cast(ops.argmax(logits, axis=-1), "int32")[0]  # (k + 1,)
        agreed = ops.cumprod(ops.cast(read[0, 1:] == own[:-1], "int32"))  # (k,), 1 up to the first difference
        offset = places - count
        written = ops.take(own, ops.clip(offset, 0, draft_tokens))
        text = ops.where(ops.logical_and(offset >= 0, offset <= draft_tokens), written, text)
        return count + 1 + ops.sum(agreed), calls + 1, text, state, draft_state

    start = (ops.full((), width, "int32"), ops.zeros((), "int32"), text, *states)
    _, calls, text, *_ = ops.while_loop(lambda count, *_: count < total, body, start)
    return Speculated(text[None, width:total], calls)
