"""What answers questions without a network, from the words that a question and a passage have in common."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

WORDS = re.compile(r"\w+|[^\w\s]")
SENTENCES = re.compile(r"[^.!?。！？\n]+[.!?。！？\n]*")
NUMBERS = re.compile(r"\b(when|what year|how (many|much|old|long|far)|what (time|date|number)|in which year)\b", re.I)

Candidate = tuple[int, int]  # code points of a context


def candidates(context: str) -> list[Candidate]:
    """Spans that could be an answer: runs of capitalized words, of numbers, and of other words that tell something."""
    found: list[tuple[str, int, int]] = []
    before = ""
    for match in WORDS.finditer(context):
        word = match[0]
        kind = "" if not word[0].isalnum() or word.lower() in ENGLISH_STOP_WORDS else "word"
        if kind and any(c.isdigit() for c in word):
            kind = "number"
        elif kind and word[0].isupper():
            kind = "name"
        if kind and kind == before and not context[found[-1][2] : match.start()].strip():
            found[-1] = (kind, found[-1][1], match.end())
        elif kind:
            found.append((kind, match.start(), match.end()))
        before = kind
    return [(start, end) for _, start, end in found]


def fitting(question: str, context: str, spans: Sequence[Candidate]) -> list[Candidate]:
    """Those that no word of is in the question; a number where it asks for one, and else no number. All if none is."""
    asked = set(WORDS.findall(question.lower()))
    new = [(a, b) for a, b in spans if not asked & set(WORDS.findall(context[a:b].lower()))]
    wanted = bool(NUMBERS.search(question))
    of_kind = [(a, b) for a, b in new if any(c.isdigit() for c in context[a:b]) == wanted]
    return of_kind or new or list(spans)


def sliding_window(question: str, context: str) -> str:
    """The candidate whose words, with those of the question, weigh most in a window of its sentence, and stand near to
    those of the question.

    The window has as many words as are looked for; a word that the passage has `c` times weighs `log(1 + 1/c)`. From
    this the distance to the nearest word of the question is taken, as a share of the sentence.

    Reference: Richardson et al. 2013, "MCTest", algorithms 1 and 2; Rajpurkar et al. 2016, section 5.1, for the
    sentence in place of the passage.
    """
    counts = Counter(word.lower() for word in WORDS.findall(context))
    asked = {word for word in WORDS.findall(question.lower()) if word[0].isalnum()}
    spans = fitting(question, context, candidates(context))
    best, chosen = -np.inf, ""
    for sentence in SENTENCES.finditer(context):
        inside = [(a, b) for a, b in spans if a < sentence.end() and b > sentence.start()]
        matches = list(WORDS.finditer(context, *sentence.span()))
        words = [match[0].lower() for match in matches]
        weights = np.array([np.log1p(1 / counts[word]) for word in words])
        hits = np.array([word in asked for word in words], "float64")
        telling = np.array([i for i, word in enumerate(words) if hits[i] and word not in ENGLISH_STOP_WORDS])
        for start, end in inside:
            places = [i for i, match in enumerate(matches) if match.start() < end and match.end() > start]
            own = {words[i] for i in places}
            sums = np.concatenate([[0.0], np.cumsum(weights * np.maximum(hits, [word in own for word in words]))])
            size = min(len(asked | own), len(words))
            score = (sums[size:] - sums[:-size]).max()
            if len(telling):
                score -= (np.abs(telling[:, None] - np.array(places)[None]).min() + 1) / max(1, len(words) - 1)
            if score > best:
                best, chosen = score, context[start:end]
    return chosen


def sentence_overlap(contexts: Sequence[str]) -> Callable[[str, str], str]:
    """A function of a question and a passage: the first fitting candidate of the sentence that is most like the
    question by TF-IDF, with the frequencies of the sentences of all `contexts`."""
    terms = TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True)
    known = {context: SENTENCES.findall(context) or [context] for context in contexts}
    told = [sentence for found in known.values() for sentence in found]
    terms.fit(told if any(re.search(r"\w", sentence) for sentence in told) else ["nothing"])

    def answer(question: str, context: str) -> str:
        sentences = known.get(context) or [context]
        likeness = (terms.transform(sentences) @ terms.transform([question]).T).toarray()[:, 0]
        spans: list[Candidate] = []
        for place in np.argsort(-likeness, kind="stable"):
            sentence = sentences[place]
            spans = fitting(question, sentence, candidates(sentence))
            if spans:
                return sentence[spans[0][0] : spans[0][1]]
        return ""

    return answer


def baselines(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """{what answers: its answers} to rows with `question`, `context` and `truths`."""
    pairs = [(row["question"], row["context"]) for row in rows]
    overlap = sentence_overlap(list(dict.fromkeys(context for _, context in pairs)))
    found = {
        "sliding window": [sliding_window(*pair) for pair in pairs],
        "sentence of most TF-IDF": [overlap(*pair) for pair in pairs],
    }
    if any(not row["truths"] for row in rows):
        found["never an answer"] = [""] * len(rows)
    return found
