"""Tags of words and the spans they stand for, in the ways they are written: BIO, IOB1, IO, BIOES, BILOU, or a class.

    spans_of(["B-person", "I-person", "O", "B-city"])   # [Span(0, 2, "person"), Span(3, 4, "city")]
    scheme_of(sequences)                                # how a data set writes them, and what is wrong with it

A span begins at a tag that says so (B, S, U), and wherever a tag of another kind, or none, stands before. So every
sequence has a reading, the one of the CoNLL-2000 evaluation; what a scheme does not allow is counted and told.

Reference: Tjong Kim Sang and Veenstra 1999, "Representing text chunks", section 2 (IOB1, IOB2 = BIO, IOE); Ratinov and
Roth 2009, "Design challenges and misconceptions in named entity recognition", section 3.1 (BILOU).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from pipelines.config import Failure

OUTSIDE = "O"
BEGINS, ENDS = "BSU", "ESLU"
TAG = re.compile(r"([BIOESLUM])[-_](.+)", re.DOTALL)


class Span(NamedTuple):
    """Words (or characters) `start` to `end`, the latter not included, and what they are."""

    start: int
    end: int
    label: str


class Scheme(NamedTuple):
    """How tags are written.

    name: BIO, IOB1, IO, BIOES, BILOU, or `words` for a class of every word.
    wrong: how many of the tags the scheme does not allow where they stand.
    total: how many tags there are.
    """

    name: str
    wrong: int
    total: int


def parts_of(tag: str) -> tuple[str, str]:
    """The mark and the label of a tag: ("B", "person"), ("O", "") or, of a tag without a mark, ("", "noun")."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    found = TAG.fullmatch(tag)
    return (found[1], found[2]) if found else ("", tag)


def spans_of(tags: Sequence[str], scheme: str = "BIO") -> list[Span]:
    """The spans of a sequence of tags, in order.

    Args:
        tags: of the words of a text.
        scheme: of `scheme_of`; of `words` every word is a span of its own.
    """
    spans: list[Span] = []
    begin, label, ended = 0, "", True  # `ended`: the tag before was the last one of its span
    for place, tag in enumerate([*tags, OUTSIDE]):
        mark, kind = ("S" if tag != OUTSIDE else OUTSIDE, tag) if scheme == "words" else parts_of(tag)
        if mark == OUTSIDE:
            kind = ""
        if label and (kind != label or mark in BEGINS or ended):
            spans.append(Span(begin, place, label))
            label = ""
        if kind and not label:
            begin, label = place, kind
        ended = mark in ENDS
    return spans


def bio(length: int, spans: Iterable[Span]) -> list[str]:
    """The tags of so many words in BIO. Spans must not share a word."""
    tags = [OUTSIDE] * length
    for start, end, label in spans:
        tags[start:end] = [f"B-{label}", *[f"I-{label}"] * (end - start - 1)]
    return tags


def scheme_of(sequences: Sequence[Sequence[str]]) -> Scheme:
    """How the tags of a data set are written, and how many of them are not as that allows.

    Args:
        sequences: of each text, the tags of its words.

    Raises:
        Failure: some tags have a mark and others have none.
    """
    known = {tag: parts_of(tag) for tags in sequences for tag in tags}
    marks = {mark for mark, _ in known.values()} - {OUTSIDE}
    count = sum(map(len, sequences))
    bare = sorted(tag for tag, (mark, _) in known.items() if not mark)
    if marks <= {""}:
        return Scheme("words", 0, count)
    if bare:
        raise Failure(
            f"Expected tags that are {OUTSIDE!r} or begin with B-, I-, … as the others do. Received, too: {bare[:10]}"
        )
    known[OUTSIDE] = (OUTSIDE, "")
    pairs = [(known[one], known[other]) for tags in sequences for one, other in pairwise([OUTSIDE, *tags, OUTSIDE])]
    if marks & set("SEM"):
        return Scheme("BIOES", broken(pairs, "BS", "ES"), count)
    if marks & set("LU"):
        return Scheme("BILOU", broken(pairs, "BU", "LU"), count)
    alone = sum(mark == "I" and label != before for (_, before), (mark, label) in pairs)
    separating = all(label == before for (_, before), (mark, label) in pairs if mark == "B")
    if "B" not in marks:
        return Scheme("IO", 0, count)
    if alone and separating:
        return Scheme("IOB1", 0, count)
    return Scheme("BIO", alone, count)


def broken(pairs: Iterable[tuple[tuple[str, str], tuple[str, str]]], begins: str, ends: str) -> int:
    """How many neighbours do not fit a scheme that marks both ends of spans: an end without a beginning, and so on."""
    wrong = 0
    for (mark, label), (after, kind) in pairs:
        inside = mark != OUTSIDE and mark not in ends  # the span goes on
        goes_on = after != OUTSIDE and after not in begins
        wrong += inside != goes_on or (inside and label != kind)
    return wrong


class Example(NamedTuple):
    """A text as a source has it: tokens with a tag each, or the text as one token and spans of its characters.

    tokens: of the text.
    tags: of each token; None where the source gives spans.
    spans: in code points, sorted, none in another; of texts without tags.
    group: what the source says a test example belongs to, or "".
    """

    tokens: list[str]
    tags: list[str] | None
    spans: list[Span]
    group: str = ""

    def placed(self, scheme: str) -> tuple[str, list[Span]]:
        """The text, its tokens with a space between them, and its spans in code points."""
        text = " ".join(self.tokens)
        if self.tags is None:
            return text, self.spans
        starts = list(accumulate((len(token) + 1 for token in self.tokens), initial=0))
        spans = spans_of(self.tags, scheme)
        return text, [Span(starts[one.start], starts[one.end] - 1, one.label) for one in spans]

    def labels(self) -> set[str]:
        """The kinds of things that are tagged."""
        tags = {parts_of(tag)[1] for tag in self.tags or ()} - {""}
        return tags | {span.label for span in self.spans}
