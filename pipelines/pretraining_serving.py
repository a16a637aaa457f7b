"""What a pretrained model answers when it is served: strings in, strings out, by objective.

- `masked` and `permutation` (BERT, XLNet): a text with `[MASK]` to the five likeliest tokens at the first mask, their
  probabilities, and the text with every mask filled. A text without one comes back as it is.
- `causal` (GPT, LLaMA): a text to its continuation, token by token the likeliest.
- `spans` (T5): a text with `<extra_id_0>`, `<extra_id_1>`, … to what is missing there, and the text with it.

Of longer texts the first tokens are read; of a text to be continued the last ones. Special tokens are never an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines.pretraining_data import MASK, SENTINELS
from pipelines.transforms import text as tokens
from pipelines.transforms.text import END, PAD, UNKNOWN

BEST = 5  # tokens of an answer
CHECKED = 16  # texts of the test split that an export asks
TIED = 1e-4  # where likelihoods are nearer to each other, their order is not checked
INPUTS = {
    "masked": "a text with [MASK], of any length, of which it reads the first row of tokens",
    "permutation": "a text with [MASK], of any length, of which it reads the first row of tokens",
    "causal": "a text of any length, of which it reads the last tokens that leave room for the answer",
    "spans": "a text with <extra_id_0>, <extra_id_1>, …, of any length, of which it reads the first row of tokens",
}

Signature = tuple[Callable, dict[str, Any]]


def likeliest(logits: Any, ordinary: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The likeliest tokens that are not special, (b, 5), and their probabilities among those; logits (b, v)."""
    chances = tf.nn.softmax(tf.cast(logits[:, UNKNOWN + 1 : ordinary], tf.float32))
    found = tf.math.top_k(chances, BEST)
    return found.indices + UNKNOWN + 1, found.values


def mask_id(tokenizer: tokens.Tokenizer) -> int:
    return tokenizer.extra[MASK]


def logits_at_masks(model: Any, ids: Any, objective: str, mask: int, predict: Callable | None = None) -> Any:
    """Logits (b, t, v) of BERT, of which those at the masks count, or of XLNet's queries, 0 elsewhere.

    Args:
        model: the trained model.
        ids: (b, t).
        objective: "masked" or "permutation".
        mask: id of the mask.
        predict: calls the model; None for an ordinary call.
    """
    segments = tf.zeros_like(ids)
    if objective == "masked":
        call = predict or (lambda inputs: model(inputs, training=False))
        found = call({"token_ids": ids, "segment_ids": segments} if isinstance(model.input, dict) else ids)
        return found["masked_lm"] if isinstance(found, dict) else found
    masks = ids == mask  # (b, t)
    count = tf.maximum(1, tf.reduce_max(tf.reduce_sum(tf.cast(masks, tf.int32), -1)))
    places = tf.argsort(tf.cast(~masks, tf.int32), stable=True)[:, :count]  # (b, k), masks first
    mapping = (
        tf.one_hot(places, tf.shape(ids)[1]) * tf.gather(tf.cast(masks, tf.float32), places, batch_dims=1)[..., None]
    )
    visible = tf.repeat(~masks[:, None], tf.shape(ids)[1], axis=1)  # (b, t, t)
    found = model.predict_targets(ids, segments, visible, mapping, training=False)  # (b, k, v)
    return tf.einsum("bkv,bkt->btv", found, mapping)


def first_mask(logits: Any, ids: Any, mask: int) -> tf.Tensor:
    """Logits (b, v) at the first mask of each row; of a row without one all are 0."""
    masks = tf.cast(ids == mask, tf.float32)
    first = masks * tf.cast(tf.cumsum(masks, axis=1) == 1, tf.float32)  # (b, t)
    return tf.einsum("btv,bt->bv", tf.cast(logits, tf.float32), first)


def filler(model: Any, spec: Mapping[str, Any], preprocess: Callable, predict: Callable | None = None) -> Signature:
    """Texts with masks to `filled`, `tokens` (b, 5) and `probabilities` (b, 5)."""
    tokenizer = tokens.tokenizer(spec["tokenizer"])
    mask, ordinary = mask_id(tokenizer), tokenizer.ordinary

    def fill(text):
        ids = tokens.padded(preprocess(text, tokenizer, spec))
        logits = logits_at_masks(model, ids, spec["objective"], mask, predict)
        best, chances = likeliest(first_mask(logits, ids, mask), ordinary)  # (b, 5)
        there = tf.reduce_any(ids == mask, -1, keepdims=True)  # (b, 1)
        likely = tf.argmax(logits[..., UNKNOWN + 1 : ordinary], -1, tf.int32) + UNKNOWN + 1  # (b, t)
        filled = tokenizer.decode(tf.where(ids == mask, likely, ids))
        names = tf.reshape(tokenizer.decode(tf.reshape(best, [-1, 1])), tf.shape(best))
        return {
            "filled": tf.where(there[:, 0], filled, text),
            "tokens": tf.where(there, names, ""),
            "probabilities": tf.where(there, chances, 0.0),
        }

    fill.resources = [tokenizer]  # type: ignore[attr-defined]  # for the export to track
    return fill, {"text": tf.TensorSpec([None], tf.string, name="text")}


def writer(model: Any, spec: Mapping[str, Any], preprocess: Callable) -> Signature:
    """Texts to their `continuation`, `full_text`, and the `log_probability` of what was written, its end counted."""
    tokenizer = tokens.tokenizer(spec["tokenizer"])

    def write(text):
        ids = preprocess(text, tokenizer, spec)
        found = model.generate(
            tokens.padded(ids),
            tf.cast(ids.row_lengths(), tf.int32),
            max_new_tokens=spec["max_new_tokens"],
            temperature=0.0,
            end_ids=(END,),
        )
        new = tf.RaggedTensor.from_tensor(found.token_ids, lengths=tf.cast(found.lengths, tf.int64))
        whole, before = tokenizer.decode(tf.concat([ids, new], 1)), tokenizer.decode(ids)
        written = tf.strings.substr(whole, tf.strings.length(before), tf.fill(tf.shape(whole), 2**30))
        return {
            "continuation": written,
            "full_text": tf.strings.join([text, written]),
            "log_probability": tf.reduce_sum(found.log_probabilities, -1),
        }

    write.resources = [tokenizer]  # type: ignore[attr-defined]
    return write, {"text": tf.TensorSpec([None], tf.string, name="text")}


def answerer(model: Any, spec: Mapping[str, Any], preprocess: Callable) -> Signature:
    """Texts with sentinels to `filled` and `spans` (b, s), what is missing at the first sentinel, the second, ….

    A sentinel of the text that the answer does not speak of is filled with nothing.
    """
    tokenizer = tokens.tokenizer(spec["tokenizer"])

    def answer(text):
        source = tokens.padded(preprocess(text, tokenizer, spec))  # (b, s)
        found = model.generate(source, max_length=spec["max_new_tokens"])
        whole, spans = joined(source, found.token_ids[:, 0], tokenizer.vocab_size)
        batch = tf.shape(source)[0]
        strings = tf.reshape(tokenizer.decode(spans), [batch, -1])
        there = tf.reduce_any(source >= tokenizer.vocab_size - SENTINELS, -1)
        return {"filled": tf.where(there, tokenizer.decode(whole), text), "spans": strings}

    answer.resources = [tokenizer]  # type: ignore[attr-defined]
    return answer, {"text": tf.TensorSpec([None], tf.string, name="text")}


def joined(source: Any, answer: Any, vocab_size: int) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
    """Sources with the spans of an answer in place of their sentinels, and these spans.

    Args:
        source: (b, s) token ids with sentinels.
        answer: (b, t), sentinels and after each the tokens that are missing there.
        vocab_size: v; sentinels are the last ids.

    Returns:
        (b, tokens), without marks and padding; and (b * n, tokens), the spans of the n sentinels that the source with
        the most has, at least one.
    """
    source, answer = tf.cast(source, tf.int32), tf.cast(answer, tf.int32)
    first, wide = vocab_size - SENTINELS, tf.shape(answer)[1]
    batch, long = tf.shape(source)[0], tf.shape(source)[1]
    steps = tf.range(wide)
    marks = tf.where(answer >= first, steps, -1)  # (b, t)
    last = tf.reduce_max(tf.where(steps[:, None] >= steps, marks[:, None], -1), -1)  # (b, t), of the sentinel before
    owner = tf.where(last >= 0, tf.gather(answer, tf.maximum(last, 0), batch_dims=1), -1)
    match = owner[:, :, None] == source[:, None]  # (b, t, s)
    used = tf.reduce_any(match, -1) & (answer > UNKNOWN) & (answer < first)  # (b, t)
    place = tf.argmax(match, -1, tf.int32)

    kept = tf.concat([(source > UNKNOWN) & (source < first), used], 1)  # (b, s + t)
    order = tf.concat([tf.tile(tf.range(long)[None] * (wide + 1), [batch, 1]), place * (wide + 1) + 1 + steps], 1)
    order = tf.argsort(tf.where(kept, order, tf.int32.max), axis=1)
    ids = tf.gather(tf.concat([source, answer], 1), order, batch_dims=1)
    whole = tf.RaggedTensor.from_tensor(ids, lengths=tf.reduce_sum(tf.cast(kept, tf.int64), 1))

    sentinels = tf.cast(source >= first, tf.int32)
    count = tf.maximum(1, tf.reduce_max(tf.reduce_sum(sentinels, 1)))
    number = tf.gather(tf.cumsum(sentinels, axis=1) - 1, place, batch_dims=1)  # (b, t)
    row = (number + tf.range(batch)[:, None] * count)[used]
    turn = tf.argsort(row, stable=True)
    rows, values = tf.gather(row, turn), tf.gather(answer[used], turn)
    return whole, tf.RaggedTensor.from_value_rowids(values, tf.cast(rows, tf.int64), tf.cast(batch * count, tf.int64))


def serving_fn(model: Any, spec: Mapping[str, Any], preprocess: Callable) -> Signature:
    """The served function of an objective, and its input signature."""
    made = {"masked": filler, "permutation": filler, "causal": writer, "spans": answerer}
    return made[spec["objective"]](model, spec, preprocess)


def more_signatures(model: Any, spec: Mapping[str, Any], preprocess: Callable) -> dict[str, Signature]:
    """Other doors.

    `from_token_ids`: ids, padded with 0 at the right, to the five `likeliest` ids and their `probabilities`: at
    the first mask, or after the last token; of T5 from a `source` and a `target` so far, which starts with 0.
    `tokenize`: raw strings to such ids.
    """
    tokenizer = tokens.tokenizer(spec["tokenizer"])

    def tokenize(text):
        return {"token_ids": tokens.padded(preprocess(text, tokenizer, spec))}

    def named(logits):
        best, chances = likeliest(logits, tokenizer.ordinary)
        return {"likeliest": best, "probabilities": chances}

    def at_mask(token_ids):
        mask = mask_id(tokenizer)
        return named(first_mask(logits_at_masks(model, token_ids, spec["objective"], mask), token_ids, mask))

    def after(token_ids):
        count = tf.maximum(1, tf.reduce_sum(tf.cast(token_ids != PAD, tf.int32), -1))
        last = tf.one_hot(count - 1, tf.shape(token_ids)[1])  # (b, t)
        return named(tf.einsum("btv,bt->bv", model(token_ids, training=False), last))

    def after_target(source, target):
        return named(model({"source": source, "target": target}, training=False)[:, -1])

    tokenize.resources = [tokenizer]  # type: ignore[attr-defined]
    ids = {name: tf.TensorSpec([None, None], tf.int32, name=name) for name in ("token_ids", "source", "target")}
    arrays: dict[str, Signature] = {"causal": (after, {"token_ids": ids["token_ids"]})}
    arrays["spans"] = (after_target, {name: ids[name] for name in ("source", "target")})
    found = arrays.get(spec["objective"], (at_mask, {"token_ids": ids["token_ids"]}))
    raw = {"text": tf.TensorSpec([None], tf.string, name="text")}
    return {"from_token_ids": found, "tokenize": (tokenize, raw)}


def questions(store: Any, spec: Mapping[str, Any], count: int) -> tuple[list[str], list[str]]:
    """Texts of a split to ask the model, evenly spaced, each with one token or span missing; and what that is."""
    tokenizer = tokens.tokenizer(spec["tokenizer"])
    length = max(6, min(spec["max_length"] - 4, 48))
    starts = np.arange(count) * max(1, store.num_tokens - length) // count
    ids = store.read(starts, length)  # (n, t)
    gap = 2 if spec["objective"] == "spans" else 1
    middle = length // 2
    parts = (ids[:, :middle], ids[:, middle : middle + gap], ids[:, middle + gap :])
    before, missing, rest = (
        [one.decode("utf-8", "replace") for one in tokenizer.decode(part).numpy()] for part in parts
    )
    if spec["objective"] == "causal":
        return before, [m + r for m, r in zip(missing, rest)]
    name = "<extra_id_0>" if spec["objective"] == "spans" else MASK
    join = " " if spec["tokenizer"]["kind"] in ("word", "wordpiece") else ""
    return [join.join((b, name, r)) for b, r in zip(before, rest)], missing


def checks(model: Any, spec: Mapping[str, Any], store: Any, preprocess: Callable, count: int) -> dict[str, Any]:
    """Questions for every signature, and Keras's answers to them."""
    tokenizer = tokens.tokenizer(spec["tokenizer"])
    asked = np.array([one.encode() for one in questions(store, spec, count)[0]], object)
    kind = spec["objective"]
    ragged = preprocess(tf.constant(asked), tokenizer, spec)
    ids = tokens.padded(ragged).numpy()
    given: dict[str, Any] = {"token_ids": ids}
    if kind in ("masked", "permutation"):
        serve, _ = filler(model, spec, preprocess, model.predict_on_batch if kind == "masked" else None)
        logits = logits_at_masks(model, tf.constant(ids), kind, mask_id(tokenizer))
        logits = first_mask(logits, tf.constant(ids), mask_id(tokenizer))
    else:
        serve, _ = serving_fn(model, spec, preprocess)
        if kind == "spans":
            given = {"source": ids, "target": np.tile([[PAD, tokenizer.vocab_size - 1]], (count, 1)).astype("int32")}
            logits = model.predict_on_batch(given)[:, -1]
        else:
            logits = np.take_along_axis(model.predict_on_batch(ids), (ids != PAD).sum(-1)[:, None, None] - 1, 1)[:, 0]
    expected = {name: values.numpy() for name, values in serve(tf.constant(asked)).items()}
    best, chances = (one.numpy() for one in likeliest(logits, tokenizer.ordinary))
    arrays = {"probabilities": chances, "likeliest": best}
    if np.diff(-chances, axis=-1).min() < TIED:
        expected.pop("tokens", None)
        arrays.pop("likeliest")
    return {
        "serving_default": ({"text": asked}, expected),
        "from_token_ids": (given, arrays),
        "tokenize": ({"text": asked}, {"token_ids": ids}),
    }
