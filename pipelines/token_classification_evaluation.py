"""What a tagger of words is judged by: spans as CoNLL counts them, taggers without a network, and pictures of texts."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from sklearn.feature_extraction import FeatureHasher
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

from pipelines import report
from pipelines.datasets.tag_schemes import OUTSIDE, Span, spans_of
from pipelines.text_evaluation import printable

Tags = Sequence[Sequence[str]]  # of texts, the tag of each word
Words = Sequence[Sequence[str]]
MOST = 60_000  # words at most that the linear tagger learns from
NONE = "none"


class Answers(NamedTuple):
    """What a tagger answered: of each text, the tags of its words, and the probability of each."""

    tags: list[list[str]]
    scores: list[list[float]]

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], lengths: Sequence[int], names: Sequence[str]) -> Answers:
        """From the probabilities of the tags of the words that were read, (words, k) of each text.

        Args:
            rows: a matrix for each text.
            lengths: how many words each text has; those that were not read have the first tag.
            names: of the tags.
        """
        tags = [[names[k] for k in row.argmax(-1)] + [names[0]] * (n - len(row)) for row, n in zip(rows, lengths)]
        return cls(tags, [[*row.max(-1).tolist(), *[1.0] * (n - len(row))] for row, n in zip(rows, lengths)])


def measures(true: Tags, found: Tags, *, by_kind: bool = True) -> dict[str, Any]:
    """Precision, recall and F1 of spans, and the accuracy of tags.

    Of `t` true spans, `p` spans found and `c` found ones that are true, of the same kind and from the same word to the
    same word: precision `c / p`, recall `c / t`, F1 `2 c / (p + t)`, 0 where nothing is to divide. `macro_f1` is the
    mean over the kinds that are true or found somewhere.

    Args:
        true: tags in BIO.
        found: the tags that were answered.
        by_kind: with `kinds`, the same three of each, and `count`, its true spans.

    Reference: Tjong Kim Sang and De Meulder 2003, "Introduction to the CoNLL-2003 shared task", section 2.4.
    """
    counts: dict[str, Counter] = {"true": Counter(), "found": Counter(), "right": Counter()}
    for one, other in zip(true, found, strict=True):
        known, answered = set(spans_of(one)), set(spans_of(other))
        for name, spans in (("true", known), ("found", answered), ("right", known & answered)):
            counts[name].update(span.label for span in spans)
    kinds = sorted(counts["true"].keys() | counts["found"].keys())
    each = {kind: ratios(*(counts[name][kind] for name in counts)) for kind in kinds}
    words = sum(map(len, true))
    right = sum(a == b for one, other in zip(true, found) for a, b in zip(one, other, strict=True))
    result: dict[str, Any] = {
        **ratios(*(sum(count.values()) for count in counts.values())),
        "macro_f1": round(float(np.mean([one["f1"] for one in each.values()])), 6) if each else 0.0,
        "accuracy": round(right / max(1, words), 6),
    }
    if by_kind:
        result["kinds"] = {kind: one | {"count": counts["true"][kind]} for kind, one in each.items()}
    return result


def ratios(true: int, found: int, right: int) -> dict[str, float]:
    """Precision, recall and F1 of counts."""
    pairs = {"f1": (2 * right, true + found), "precision": (right, found), "recall": (right, true)}
    return {name: round(part / whole, 6) if whole else 0.0 for name, (part, whole) in pairs.items()}


def simple_taggers(
    train: tuple[Words, Tags], validation: tuple[Words, Tags], test: tuple[Words, Tags]
) -> Iterator[tuple[str, list[list[str]]]]:
    """Taggers without a network: their names and the tags that they give the words of the test split.

    The first gives every word the tag that it has most often in training, and `O` to one that training lacks. The
    second is logistic regression (one against the rest, by stochastic gradient descent) on each word, its ends, its
    shape, and the two words at either side; its regularization is the one that is best on the validation split.
    """
    known: dict[str, Counter] = {}
    for words, tags in zip(*train):
        for word, tag in zip(words, tags):
            known.setdefault(word, Counter())[tag] += 1
    often = {word: count.most_common(1)[0][0] for word, count in known.items()}
    yield "the commonest tag of each word", [[often.get(word, OUTSIDE) for word in words] for words in test[0]]
    yield "logistic regression on words, shapes and neighbours", linear_tagger(train, validation, test[0])


def linear_tagger(train: tuple[Words, Tags], validation: tuple[Words, Tags], words: Words) -> list[list[str]]:
    """The tags that logistic regression gives words; see `simple_taggers`."""
    total, count = 0, 0
    while count < len(train[0]) and total < MOST:
        total, count = total + len(train[0][count]), count + 1
    hasher = FeatureHasher(2**18, input_type="string")
    x = hasher.transform(one for row in train[0][:count] for one in features(row))
    y = np.array([tag for row in train[1][:count] for tag in row])
    if len(set(y)) < 2:
        return [[str(y[0])] * len(row) for row in words]

    def answer(model: Any, texts: Words) -> list[list[str]]:
        flat = model.predict(hasher.transform(one for row in texts for one in features(row))).tolist()
        ends = np.cumsum([len(row) for row in texts])
        return [flat[end - len(row) : end] for row, end in zip(texts, ends)]

    found = [
        SGDClassifier(loss="log_loss", alpha=a, max_iter=12, tol=None, random_state=0).fit(x, y) for a in (1e-5, 1e-6)
    ]
    scores = [measures(validation[1], answer(model, validation[0]))["f1"] for model in found]
    return answer(found[int(np.argmax(scores))], words)


def features(words: Sequence[str]) -> Iterator[list[str]]:
    """Names of what the linear tagger sees of each word."""
    every = ["<", "<", *words, ">", ">"]
    shapes = [shape(word) for word in every]
    for place in range(2, len(words) + 2):
        word = every[place]
        near = [f"{step}={every[place + step]}" for step in (-2, -1, 1, 2)]
        near += [f"{step}~{shapes[place + step]}" for step in (-1, 1)]
        pairs = [f"-+{every[place - 1]} {every[place + 1]}", f"--{every[place - 2]} {every[place - 1]}"]
        own = [f"={word}", f"~{shapes[place]}", f"<{word[:3]}", f">{word[-3:]}", f"-0{every[place - 1]} {word}"]
        yield ["1", *own, *near, *pairs]


def shape(word: str) -> str:
    """`Xx` for Word, `d` for 2024, `X.` for marks among letters; a letter for each stretch of equal ones."""
    kinds = ["X" if c.isupper() else "x" if c.isalpha() else "d" if c.isdigit() else c for c in word]
    return "".join(kind for place, kind in enumerate(kinds) if place == 0 or kinds[place - 1] != kind)


PLACED = (("entities", "", object), ("labels", "", object), ("starts", -1, "int32"), ("ends", -1, "int32"))
PLACED += (("scores", 0.0, "float32"),)  # type: ignore[assignment]


def placed(text: str, tags: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str, int, int, float]]:
    """The entities of a text: what they say, their kind, where they start and end, and their score.

    Args:
        text: as it was sent.
        tags: of its words.
        scores: of its words.
    """
    from pipelines.transforms.spans import words_with_offsets

    _, starts, ends = (one.to_list()[0] for one in words_with_offsets([text]))
    found = []
    for first, last, label in spans_of(tags):
        start, end = starts[first], ends[last - 1]
        found.append((text[start:end], label, start, end, float(np.mean(scores[first:last]))))
    return found


def padded(rows: Sequence[Sequence[Any]], rest: Any, dtype: Any) -> np.ndarray:
    """Rows as an array as wide as the longest of them."""
    result = np.full((len(rows), max(map(len, rows), default=0)), rest, dtype)
    for place, row in enumerate(rows):
        result[place, : len(row)] = row
    return result


def confusion(true: Tags, found: Tags, kinds: Sequence[str], path: Path) -> Path:
    """A picture of which kind spans are taken for: rows are true spans, columns what is found at the same words.

    A true span that no span has the same words as counts as `none`, and so does a found one.
    """
    pairs: list[tuple[str, str]] = []
    for one, other in zip(true, found):
        known = {span[:2]: span.label for span in spans_of(one)}
        answered = {span[:2]: span.label for span in spans_of(other)}
        places = known.keys() | answered.keys()
        pairs += [(known.get(place, NONE), answered.get(place, NONE)) for place in places]
    names = [*kinds, NONE]
    matrix = confusion_matrix(*zip(*pairs), labels=names) if pairs else np.zeros([len(names)] * 2, int)
    side = min(20.0, 3.2 + 0.5 * len(names))
    figure, ((axis,),) = report.canvas(side, side)
    display = ConfusionMatrixDisplay(matrix, display_labels=names if len(names) <= 30 else None)
    display.plot(ax=axis, include_values=len(names) <= 30, cmap="Blues", colorbar=False, xticks_rotation="vertical")
    right, total = int(matrix.trace()), int(matrix[:-1].sum())
    axis.set(title=f"test split: {right} of {total} entities right", ylabel="true", xlabel="answer")
    return report.save(figure, path)


def draw_spans(words: Words, true: Tags, answers: Answers, path: Path, count: int = 12, most: int = 26) -> Path:
    """A picture of texts with their spans in colours, the truth above the words and the answer below.

    Half of the texts are the first ones with an error, half are the first ones without; a span that only one side has
    is red.

    Args:
        words: of the texts.
        true: their tags.
        answers: what was answered.
        path: where the PNG goes.
        count: how many texts.
        most: how many words of each.
    """
    places = [place for place, row in enumerate(words) if row and any(tag != OUTSIDE for tag in true[place])]
    wrong = [place for place in places if spans_of(true[place]) != spans_of(answers.tags[place])]
    right = [place for place in places if place not in set(wrong)]
    some = wrong[: max(count // 2, count - len(right))]
    chosen = [*some, *right[: count - len(some)]]
    kinds = sorted({span.label for tags in (*true, *answers.tags) for span in spans_of(tags)})
    palette = colormaps["Set2" if len(kinds) <= 8 else "tab20"]
    colours = {kind: palette(place % palette.N) for place, kind in enumerate(kinds)}
    width, letter = 13.0, 0.1  # inches, of the picture and of a letter
    figure, ((axis,),) = report.canvas(width, 0.5 + 0.75 * max(1, len(chosen)))
    axis.set(xlim=(0, width), ylim=(0.75 * max(1, len(chosen)), 0))
    axis.axis("off")
    axis.set_title("test texts: the truth above the words, the answer below (red: only one has it)", fontsize=11)
    for row, place in enumerate(chosen):
        shown = [printable(word)[:18] for word in words[place][:most]]
        lefts = np.cumsum([0.0, *((len(word) + 1.3) * letter for word in shown)])
        fits = int((lefts[1:] < width).sum())
        for word, left in zip(shown[:fits], lefts):
            axis.text(left, 0.75 * row + 0.4, word, fontsize=9.4, family="monospace", va="center", parse_math=False)
        for tags, other, height in ((true, answers.tags, 0.18), (answers.tags, true, 0.62)):
            there = set(spans_of(other[place]))
            for span in spans_of(tags[place]):
                if span.end <= fits:
                    bar(axis, span, lefts, 0.75 * row + height, colours[span.label], span not in there, letter)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # drawn as a box
        return report.save(figure, path)


def bar(axis: Any, span: Span, lefts: np.ndarray, middle: float, colour: Any, wrong: bool, letter: float) -> None:
    """A span as a coloured bar with its kind in it."""
    left, right = lefts[span.start], lefts[span.end] - 1.2 * letter
    edge = "firebrick" if wrong else "none"
    axis.barh(middle, right - left, 0.19, left, color=colour, edgecolor=edge, linewidth=1.4)
    label = span.label[: max(2, int((right - left) / 0.075))]
    style = {"fontsize": 7, "ha": "center", "va": "center", "parse_math": False}
    axis.text((left + right) / 2, middle, label, color="firebrick" if wrong else "black", **style)
