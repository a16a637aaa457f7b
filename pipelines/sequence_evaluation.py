"""What a model that answers texts wrote: rows of answers, measures by forced teaching, and pictures of attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import translation_evaluation as evaluation
from pipelines.datasets import texts
from pipelines.sequence_to_sequence import evaluation_batches, predict, preprocess
from pipelines.transforms import parallel
from pipelines.transforms import text as tokens


def strings_of(part: Any, name: str, most: int | None = None) -> list[str]:
    """A column of texts of a split, or its beginning."""
    return [one.decode("utf-8", "replace") for one in part.examples[name][:most].numpy()]


def rows_of(serve: Any, part: Any, answer: str) -> list[dict[str, Any]]:
    """A row for each pair of a split: task, group, source, truth, answers (the n best) and their scores."""
    found = predict(serve, part.examples["source_text"].numpy())
    columns = [strings_of(part, name) for name in ("task", "group", "source_text", "target_text")]
    best = [[one.decode("utf-8", "replace") for one in row] for row in found[f"{answer}s"]]
    names = ("task", "group", "source", "truth", "answers", "scores")
    return [dict(zip(names, row)) for row in zip(*columns, best, found["scores"].tolist())]


def chosen(part: Any, rows: Sequence[bool] | Any) -> Any:
    """The rows of a split that are marked."""
    places = np.flatnonzero(rows)
    return texts.InMemory(texts.taken(part, places), len(places))


def groups_of(parts: dict[str, Any]) -> dict[str, list[str]]:
    """The groups of each split but the training split."""
    return {name: sorted(set(strings_of(parts[name], "group"))) for name in ("validation", "test")}


def forced(model: Any, part: Any, spec: dict[str, Any]) -> dict[str, float]:
    """Loss and accuracy of the next token, given the true ones before it."""
    found = model.evaluate(evaluation_batches(part, spec), verbose=0, return_dict=True)
    return {name: round(float(found[name]), 6) for name in ("token_accuracy", "loss")}


def first_batch(batches: Any, spec: dict[str, Any], path: Path, count: int = 8) -> None:
    """`plots/first_batch.txt`: the tokens that the model is about to see."""
    inputs, after, _ = next(iter(batches.take(1)))
    source, target = parallel.tokenizers(spec["tokenizers"])
    end = parallel.marks(spec)[1]
    lines = [f"first training batch: source {inputs['source'].shape}, target {after.shape}", ""]
    for given, wanted in zip(inputs["source"][:count].numpy(), after[:count].numpy()):
        for ids, tokenizer in ((given, source), (wanted, target)):
            lines.append(" ".join(parallel.labels(ids[ids != tokens.PAD], tokenizer, end)))
        lines.append("")
    path.write_text("\n".join(lines))


def draw_alignments(model: Any, rows: list[dict[str, Any]], spec: dict[str, Any], path: Path, count: int = 6) -> bool:
    """`plots/alignments.png`: attention of answers, of each group some; False without attention or answers."""
    if not hasattr(model, "alignments"):
        return False
    source, target = parallel.tokenizers(spec["tokenizers"])
    groups, marks = spec["groups"]["test"], parallel.marks(spec)
    chosen = []
    for group in groups:
        fits = [row for row in rows if row["group"] == group and row["answers"][0]]
        fits = [row for row in fits if evaluation.drawable(row["source"] + row["answers"][0])]
        short = sorted(range(len(fits)), key=lambda i: (len(fits[i]["source"]) > 40, i))
        chosen += [fits[i] for i in short[: max(1, count // len(groups))]]
    if not chosen:
        return False
    given = preprocess([row["source"] for row in chosen], source, spec)  # (n, s)
    ids = target.encode([row["answers"][0] for row in chosen])
    before = tokens.sequences(ids, spec["max_target"], start=True, end=False, marks=marks)
    weights = model.alignments(given, tokens.padded(before))  # (n, t, s)
    if weights is None:
        return False
    after = tokens.padded(tokens.sequences(ids, spec["max_target"], marks=marks))  # (n, t)
    pictures = []
    for row, read, written, drawn in zip(chosen, given.numpy(), after.numpy(), np.asarray(weights)):
        read, written = read[read != tokens.PAD], written[written != tokens.PAD]
        right = "" if row["answers"][0] == row["truth"] else f" (truth: {row['truth']})"
        title = f"{row['group']}{': ' * bool(row['group'])}{row['answers'][0][:60]}{right}"
        labels = parallel.labels(read, source, marks[1]), parallel.labels(written, target, marks[1])
        pictures.append((title, *labels, drawn[: len(written), : len(read)]))
    evaluation.alignments(pictures, path)
    return True
