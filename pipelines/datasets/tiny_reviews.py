"""tiny_reviews: sentences of film reviews from a grammar, labelled by what they mean; generated from a fixed seed.

A clause gives an aspect a quality: "the plot is rather dull". Its score is the strength of the adjective (2 or 4, with
a sign) times that of the adverb (½ to 1½); a negation turns it into its opposite of strength 1: "the plot is by no
means dull" is mildly positive. Two clauses joined by "and" add up, so the stronger one decides. Of two clauses in
contrast the main one decides, whatever the strength: the one after "but", and the one that "although" does not
introduce. The label is the sign: `negative` or `positive`, as many of each. Many a sentence has a remark before or
after it that says nothing about the film.

Every third pair of a negation and a contrast is held out: 5,000 training sentences have no such pair, and all 1,000
test sentences have one ("anything but" with "even though", say). The words and all other pairs are known, so that who
reads the order of the words can answer; a bag of words, even of pairs of words, cannot tell which clause decides.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import tensorflow_datasets as tfds

ASPECTS = (
    "acting camera cast costume dialogue direction editing ending finale hero humour lighting mood music opening "
    "pacing plot scenery score script soundtrack story title villain"
).split()
ADJECTIVES = {  # strength and sign
    2: "amusing charming clever decent enjoyable fine fresh good pleasant touching",
    4: "brilliant excellent fantastic magnificent superb wonderful",
    -2: "bad boring clumsy confusing dull flat noisy silly stale weak",
    -4: "appalling awful dreadful horrible terrible unbearable",
}
ADVERBS = {"": 1.0, "rather": 0.75, "somewhat": 0.5, "slightly": 0.5, "very": 1.25, "truly": 1.25, "extremely": 1.5}
NEGATIONS = (
    "is not {}",
    "is never {}",
    "is hardly {}",
    "is by no means {}",
    "is far from {}",
    "is anything but {}",
    "is not at all {}",
    "cannot be called {}",
    "fails to be {}",
)
CONTRASTS = (  # {m}: the main clause, which decides; {o}: the other one
    "{o} but {m}",
    "{o} , yet {m}",
    "{o} ; still , {m}",
    "{o} ; however , {m}",
    "although {o} , {m}",
    "even though {o} , {m}",
    "while {o} , {m}",
    "though {o} , {m}",
    "even if {o} , {m}",
    "despite the fact that {o} , {m}",
    "{m} although {o}",
    "{m} even though {o}",
    "{m} , though {o}",
    "{m} , even if {o}",
    "{m} , despite the fact that {o}",
    "granted , {o} , but then {m}",
)
REMARKS = (
    "we saw it on a rainy sunday",
    "my sister had chosen the film",
    "it runs for two hours",
    "the cinema was half empty",
    "i had read the book before",
    "it was shown without a break",
)
KINDS = ("plain", "negation", "sum", "contrast", "both", "both")  # of training sentences, as often as they stand here
COUNTS = {"train": 5000, "test": 1000}


def held_out(negation: int, contrast: int) -> bool:
    """Whether a pair, by its places in `NEGATIONS` and `CONTRASTS`, is kept for the test split."""
    return (negation + contrast) % 3 == 0


class TinyReviews(tfds.core.GeneratorBasedBuilder):
    """Generated sentences about films with negation, contrast and intensity, labelled by their meaning."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: dict[str, str] = {"1.0.0": "5,000 train, 1,000 test, of held-out pairs."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["negative", "positive"])}
            ),
            supervised_keys=("text", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split: str) -> Iterator:
        """The labels in turn: every stretch of a split holds as many of each."""
        for key, (text, label) in enumerate(sentences(split, COUNTS[split])):
            yield key, {"text": text, "label": label}


def sentences(split: str, count: int) -> list[tuple[str, int]]:
    """Different sentences with their labels, 0 and 1 in turn."""
    source = random.Random(f"tiny_reviews {split}")
    found: dict[str, int] = {}
    while len(found) < count:
        kind = "both" if split == "test" else pick(source, KINDS)
        text, score = sentence(source, kind, held=split == "test")
        if text not in found and (score > 0) == len(found) % 2:
            found[text] = len(found) % 2
    return list(found.items())


def pick(source: random.Random, items):
    """One of several; `random` itself is the only source of numbers, since it alone is the same in every Python."""
    return items[int(source.random() * len(items))]


def sentence(source: random.Random, kind: str, *, held: bool) -> tuple[str, float]:
    """A sentence of a kind and its score; `held`: with a pair that is held out, or else with none."""
    if kind in ("plain", "negation"):
        text, score, _ = clause(source, pick(source, ASPECTS), negated=kind == "negation")
    elif kind == "sum":
        first, second = two_aspects(source)
        (one, left, _), (other, right, _) = (clause(source, aspect, negated=False) for aspect in (first, second))
        if abs(left + right) < 1:
            return sentence(source, kind, held=held)
        text, score = f"{one} and {other}", left + right
    else:
        text, score = contrasted(source, negated=kind == "both", held=held)
    if source.random() < 0.4:
        remark = pick(source, REMARKS)
        text = f"{remark} . {text}" if source.random() < 0.5 else f"{text} . {remark}"
    return f"{text} .", score


def two_aspects(source: random.Random) -> tuple[str, str]:
    first = pick(source, ASPECTS)
    return first, pick(source, [aspect for aspect in ASPECTS if aspect != first])


def contrasted(source: random.Random, *, negated: bool, held: bool) -> tuple[str, float]:
    """Two clauses of opposite sign in contrast; `negated`: one or both of them by a negation."""
    while True:
        which = pick(source, ((True, False), (False, True), (True, True))) if negated else (False, False)
        main, other = (
            clause(source, aspect, negated=flag) for aspect, flag in zip(two_aspects(source), which, strict=True)
        )
        contrast = int(source.random() * len(CONTRASTS))
        pairs = [held_out(part[2], contrast) for part in (main, other) if part[2] is not None]
        fits = all(pairs) if held else not any(pairs)
        if (main[1] > 0) != (other[1] > 0) and fits:
            return CONTRASTS[contrast].format(m=main[0], o=other[0]), main[1]


def clause(source: random.Random, aspect: str, *, negated: bool) -> tuple[str, float, int | None]:
    """A clause about an aspect: its text, its score, and the place of its negation."""
    strength = pick(source, tuple(ADJECTIVES))
    adjective = pick(source, ADJECTIVES[strength].split())
    if negated:
        place = int(source.random() * len(NEGATIONS))
        degree = "very " if source.random() < 0.25 else ""
        return f"the {aspect} {NEGATIONS[place].format(degree + adjective)}", -1.0 if strength > 0 else 1.0, place
    adverb = pick(source, tuple(ADVERBS))
    return f"the {aspect} is {adverb} {adjective}".replace("  ", " "), strength * ADVERBS[adverb], None
