"""What a pretrained model is judged by: its losses, and beside them those of a token's frequency and its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from scipy import sparse

from pipelines import pretraining_serving as serving
from pipelines import report
from pipelines.pretraining_data import MASK, SENTINELS
from pipelines.transforms.text import END, PAD, START

LEARNED = 2**22  # training tokens, at most, that the baselines count
CELLS = 2**28  # numbers that their likeliest tokens may be looked for in
ROUNDS = 30  # of expectation maximization
BUCKETS = 5  # of how often a pair of neighbours was seen: 0, 1, 2 to 3, 4 to 15, more
LOSSLESS = ("character", "bpe", "sentencepiece")
HIDDEN = -1  # a neighbour that the model does not see either
UNIGRAM, NEIGHBOURS = "frequency of the token", "neighbouring tokens, interpolated"


class Neighbours:
    """How likely a token is by its two neighbours: a mixture of four relative frequencies.

    `P(x | a, b) = w_0 P(x) + w_1 P(x | a) + w_2 P(x | b) + w_3 P(x | a, b)`. The weights are learned on held-out tokens
    by expectation maximization, apart for which neighbours are seen and how often the pair was. A frequency that no
    token was counted for is that of the token alone, `P(x)`, to whose counts one is added.

    Args:
        tokens: (n,) of the training split.
        vocab_size: number of tokens, v.
        both: whether the neighbours are those on the left and on the right; else the two on the left.

    Reference: Jelinek and Mercer 1980, "Interpolated estimation of Markov source parameters from sparse data".
    """

    def __init__(self, tokens: Any, vocab_size: int, *, both: bool):
        tokens = np.asarray(tokens, np.int64)
        self.size = vocab_size
        counts = np.bincount(tokens, minlength=vocab_size) + 1.0
        self.alone = counts / counts.sum()  # (v,)
        a, x, b = tokens[:-2], tokens[1:-1], tokens[2:]
        first, second, x = (a, b, x) if both else (x, a, b)
        self.first, self.second = (self.table(one, x, vocab_size) for one in (first, second))
        self.pairs, rows = np.unique(first * vocab_size + second, return_inverse=True)
        self.pair = self.table(rows, x, max(1, len(self.pairs)))
        self.weights = np.full((4 * BUCKETS, 4), 0.25)

    def table(self, rows: np.ndarray, columns: np.ndarray, count: int) -> sparse.csr_matrix:
        ones = np.ones(len(rows))
        return sparse.csr_matrix((ones, (rows, columns)), shape=(count, self.size))

    def places(self, a: np.ndarray, b: np.ndarray) -> tuple[list[tuple[Any, np.ndarray, np.ndarray]], np.ndarray]:
        """For each table the rows of n tokens and how much was counted there, (n,); and the group of weights (n,)."""
        key = a * self.size + b
        row = np.minimum(np.searchsorted(self.pairs, key), len(self.pairs) - 1)
        seen = (a >= 0) & (b >= 0) & (self.pairs[row] == key)
        found = []
        for table, at, there in ((self.first, a, a >= 0), (self.second, b, b >= 0), (self.pair, row, seen)):
            at = np.where(there, at, 0)
            found.append((table, at, np.where(there, np.asarray(table.sum(1)).ravel()[at], 0.0)))
        bucket = np.searchsorted([1, 2, 4, 16], found[2][2], side="right")
        return found, (a >= 0) + 2 * (b >= 0) + 4 * bucket

    def parts(self, a: np.ndarray, b: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The four frequencies of tokens (n,) by their neighbours, (n, 4), and the group of weights (n,)."""
        tables, group = self.places(a, b)
        columns = [self.alone[x]]
        for table, at, count in tables:
            values = np.asarray(table[at, x]).ravel()
            columns.append(np.where(count > 0, values / np.maximum(count, 1), columns[0]))
        return np.stack(columns, axis=1), group

    def fit(self, a: np.ndarray, b: np.ndarray, x: np.ndarray) -> None:
        """Learns the weights on held-out tokens (n,)."""
        parts, group = self.parts(a, b, x)

        def learned(parts: np.ndarray) -> np.ndarray:
            weights = np.full(4, 0.25)
            for _ in range(ROUNDS):
                shares = parts * weights
                weights = (shares / shares.sum(1, keepdims=True)).mean(0)
            return weights

        self.weights[:] = learned(parts)
        for number in np.unique(group):
            if (group == number).sum() >= 20:
                self.weights[number] = learned(parts[group == number])

    def measured(self, a: np.ndarray, b: np.ndarray, x: np.ndarray) -> dict[str, float]:
        """`loss` and `token_accuracy` of tokens (n,); the latter of as many, evenly spaced, as `CELLS` allows."""
        parts, group = self.parts(a, b, x)
        loss = -np.log((parts * self.weights[group]).sum(1)).mean()
        few = np.linspace(0, len(x) - 1, min(len(x), max(1, CELLS // self.size))).astype(int)
        hits = 0
        for start in range(0, len(few), 512):
            here = few[start : start + 512]
            tables, group = self.places(a[here], b[here])
            weights = self.weights[group]  # (n, 4)
            found = weights[:, :1] * self.alone
            for number, (table, at, count) in enumerate(tables, 1):
                own = table[at].multiply((weights[:, number] / np.maximum(count, 1) * (count > 0))[:, None]).toarray()
                found += own + (weights[:, number] * (count == 0))[:, None] * self.alone
            hits += int((found.argmax(1) == x[here]).sum())
        return {"loss": round(float(loss), 6), "token_accuracy": round(hits / len(few), 6)}


def neighbours(inputs: Any, labels: np.ndarray, spec: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Of each predicted token two neighbours as the model sees them: left and right, or the two on the left.

    Args:
        inputs, labels: of `Examples`, as arrays; labels (b, k).
        spec: of the data.

    Returns:
        Two arrays (b, k); `HIDDEN` where the neighbour is masked, missing, or a mark of the row alone.
    """
    objective = spec["objective"]
    if objective == "causal":
        ids = np.pad(np.where(inputs == START, HIDDEN, inputs), [(0, 0), (1, 0)], constant_values=HIDDEN)
        return ids[:, 1:], ids[:, :-1]
    if objective == "spans":
        return before_missing(inputs["source"], labels, spec["tokenizer"]["vocab_size"] - SENTINELS)
    ids, length = inputs["token_ids"], inputs["token_ids"].shape[1]
    marks = (ids == START) | (ids == PAD)
    ends = ids == END
    last = np.arange(length) == (ids != PAD).sum(1, keepdims=True) - 1
    marks |= ends if spec["sentences"] != "none" else ends & last
    if objective == "masked":
        marks |= ids == spec["tokenizer"]["vocab_size"] - 1
        places = inputs["places"]
    else:
        places = inputs["target_mapping"].argmax(-1)
    rows = np.arange(len(ids))[:, None]
    found = []
    for step in (-1, 1):
        beside = places + step
        inside = (beside >= 0) & (beside < length)
        beside = np.clip(beside, 0, length - 1)
        seen = inside & ~marks[rows, beside]
        if objective == "permutation":
            seen &= inputs["permutation_mask"][rows, places, beside]
        found.append(np.where(seen, ids[rows, beside], HIDDEN))
    return found[0], found[1]


def before_missing(source: np.ndarray, labels: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """The two tokens on the left of each token of T5's target, in the text that it was taken from."""
    found = np.full((2, *labels.shape), HIDDEN)
    for row, (ids, after) in enumerate(zip(source, labels)):
        spans: dict[int, list[int]] = {}
        now = HIDDEN
        for place, token in enumerate(after):
            if token >= first:
                now = int(token)
            elif now != HIDDEN:
                spans.setdefault(now, []).append(place)
        text: list[int] = [HIDDEN, HIDDEN]
        for token in ids:
            if token < first:
                text.append(int(token))
                continue
            for place in spans.get(int(token), []):
                found[:, row, place] = text[-1], text[-2]
                text.append(int(after[place]))
    return found[0], found[1]


def counted(labels: np.ndarray, weights: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
    """Which labels are judged: those with a weight, and of T5 no sentinels and no end."""
    there = weights > 0
    if spec["objective"] == "spans":
        there &= (labels > START) & (labels < spec["tokenizer"]["vocab_size"] - SENTINELS)
    return there


def judged(model: Any, batches: Any, spec: Mapping[str, Any]) -> tuple[dict[str, float], list[np.ndarray]]:
    """Measures of a model on batches of a split, and of each predicted token two neighbours and itself, (n,) each."""

    @tf.function(reduce_retracing=True)
    def judge(inputs, labels):
        found = model(inputs, training=False)
        logits = tf.cast(found["masked_lm"] if isinstance(found, dict) else found, tf.float32)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        sentences = (
            tf.argmax(found["next_sentence"], -1, tf.int32) if isinstance(found, dict) else tf.zeros([0], tf.int32)
        )
        return losses, tf.argmax(logits, -1, tf.int32) == labels, sentences

    nats, hits, queries, right = [], [], [], []
    for inputs, labels, weights in batches:
        tokens = labels["masked_lm"] if isinstance(labels, dict) else labels
        weights = weights["masked_lm"] if isinstance(weights, dict) else weights
        losses, correct, sentences = judge(inputs, tokens)
        if isinstance(labels, dict):
            right.append((sentences == labels["next_sentence"]).numpy())
        there = counted(tokens.numpy(), weights.numpy(), spec)
        nats.append(losses.numpy()[there])
        hits.append(correct.numpy()[there])
        arrays = tf.nest.map_structure(lambda one: one.numpy(), inputs)
        queries.append([one[there] for one in (*neighbours(arrays, tokens.numpy(), spec), tokens.numpy())])
    found = {
        "loss": round(float(np.concatenate(nats).mean(dtype=np.float64)), 6),
        "token_accuracy": round(float(np.concatenate(hits).mean()), 6),
    }
    if right:
        found["sentence_accuracy"] = round(float(np.concatenate(right).mean()), 6)
    return found, [np.concatenate(column).astype(np.int64) for column in zip(*queries)]


def evaluated(model: Any, data: Any, batches: Callable[[Any, dict[str, Any]], Any]) -> dict[str, Any]:
    """What `metrics.json` says: of the model on validation and test, of the baselines on the same tokens of test.

    Args:
        model: what was trained, see `pretraining.learner`.
        data: token stores and their spec.
        batches: `pretraining.evaluation_batches`.
    """
    spec = data.spec
    validation, held = judged(model, batches(data.validation, spec), spec)
    test, asked = judged(model, batches(data.test, spec), spec)
    both = spec["objective"] in ("masked", "permutation")
    tokens = data.train.read([0], min(data.train.num_tokens, LEARNED))[0]
    beside = Neighbours(tokens, spec["tokenizer"]["vocab_size"], both=both)
    beside.fit(*held)
    alone = -np.log(beside.alone[asked[2]]).mean(), (asked[2] == beside.alone.argmax()).mean()
    unigram = dict(zip(("loss", "token_accuracy"), (round(float(one), 6) for one in alone)))
    found: dict[str, Any] = {
        "validation": validation,
        "test": test,
        "baseline": {"model": NEIGHBOURS, **beside.measured(*asked)},
        "baselines": [{"model": UNIGRAM, **unigram}],
        "predicted_tokens": {"validation": len(held[2]), "test": len(asked[2])},
    }
    if "sentence_accuracy" in test:  # half of the pairs are of each kind
        found["baseline"]["sentence_accuracy"] = 0.5
    if spec["objective"] == "causal" and spec["tokenizer"]["kind"] in LOSSLESS:
        for one, split in (
            (validation, "validation"),
            (test, "test"),
            (found["baseline"], "test"),
            (found["baselines"][0], "test"),
        ):
            tokens_a_byte = spec["tokens"][split] / spec["bytes"][split]
            one["bits_per_byte"] = round(one["loss"] / np.log(2) * tokens_a_byte, 6)
    return found


def losses(found: Mapping[str, Any], path: Path) -> Path:
    """A picture of loss and token accuracy of the model and of its baselines on the test split."""
    figure, axes = report.canvas(9, 2.4, 1, 2)
    models = {"this model": found["test"], **{one["model"]: one for one in (found["baseline"], *found["baselines"])}}
    titles = {"loss": "loss in nats a predicted token", "token_accuracy": "share of the tokens named right"}
    for axis, (name, title) in zip(axes[0], titles.items()):
        values = [one[name] for one in models.values()]
        bars = axis.barh(list(models), values, color=["tab:blue", "tab:grey", "tab:grey"])
        axis.bar_label(bars, [f"{one:.3f}" if name == "loss" else f"{one:.1%}" for one in values], padding=3)
        axis.set(title=title, xlim=(0, 1.25 * max(max(values), 1e-9)))
        axis.invert_yaxis()
    axes[0][1].set_yticklabels([])
    figure.tight_layout()
    return report.save(figure, path)


def described_rows(
    inputs: Any, labels: Any, weights: Any, spec: Mapping[str, Any], tokenizer: Any, most: int
) -> list[str]:
    """Lines that show rows of a batch as the model sees them, and what it is asked for."""
    named = {number: name for name, number in tokenizer.extra.items()} | {PAD: "", END: "[END]"}
    named[START] = "[END]" if spec["objective"] == "spans" else "[START]"

    def shown(ids: Any) -> str:
        ids = np.asarray(ids).reshape(-1)
        pieces = [one.decode("utf-8", "replace") for one in tokenizer.decode(ids[:, None]).numpy()]
        return "|".join(named.get(int(one), piece) for one, piece in zip(ids, pieces) if one != PAD)

    given = inputs if isinstance(inputs, dict) else {"token_ids": inputs}
    tokens = labels["masked_lm"] if isinstance(labels, dict) else labels
    wanted = weights["masked_lm"] if isinstance(weights, dict) else weights
    lines = []
    for row in range(min(most, len(tokens))):
        for name in ("memory_ids", "token_ids", "source"):
            if name in given:
                lines += [f"{name}: {shown(given[name][row])}"]
        lines += [f"asked for: {shown(tokens[row][wanted[row] > 0])}"]
        if isinstance(labels, dict):
            lines += [f"the second passage: {('follows', 'does not follow')[int(labels['next_sentence'][row])]}"]
        lines += ["-" * 80]
    return lines


def examples_page(model: Any, config: Any, data: Any, serving_fn: Callable, path: Path, count: int = 6) -> None:
    """`examples.md`: texts of the test split, what is missing in them, and what the served function answers."""
    spec = data.spec
    asked, missing = serving.questions(data.test, spec, count)
    serve, signature = serving_fn(model, config, spec)
    found = tf.function(serve, input_signature=list(signature.values()))(tf.constant(asked))
    lines = ["# What the model answers to texts of the test split", ""]
    for row in range(count):
        lines += ["```text", asked[row].replace("```", "'''"), "```", ""]
        if "tokens" in found:
            best = zip(found["tokens"][row].numpy(), found["probabilities"][row].numpy())
            answer = ", ".join(f"`{code(token)}` {chance:.0%}" for token, chance in best)
            lines += [f"`{MASK}` is `{code(missing[row].encode())}`; the model says {answer}.", ""]
        elif "spans" in found:
            lines += [
                f"Missing: `{code(missing[row].encode())}`; the model: `{code(found['spans'][row].numpy()[0])}`.",
                "",
            ]
        else:
            lines += ["goes on as", "", "```text", code(found["continuation"][row].numpy(), "\n"), "```", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def code(token: bytes, newline: str = "⏎") -> str:
    """A token for a page of Markdown."""
    shown = (one if one.isprintable() else newline if one == "\n" else "·" for one in token.decode("utf-8", "replace"))
    return "".join(shown).replace("`", "'")
