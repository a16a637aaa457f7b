"""tiny_questions: generated passages about people, and questions whose answers stand in them; from a fixed seed.

A passage of 2 to 8 sentences tells about two or three people: where they were born, where they live, what they do,
play, speak or keep, who employs them, when they were born and when they retired. Most sentences of a passage have the
same shape as those that answer, but speak of somebody else, who may have the same first name or surname; some speak of
"he" or "she". A question has other words than the sentence: "What is the mother tongue of Nora Falk?" of "She grew up
with Danish." People and facts are drawn anew for every passage, so that nothing can be learned by heart.

10,000 questions train, with the features of SQuAD (Rajpurkar et al. 2016). A field `group` tells the parts of the test
split apart, of 400 questions each:

- `known`: names and wordings that training has, too.
- `people`: the question is about a first name with a surname that no training passage puts together.
- `wording`: the question is worded as no training question is, of words that are known.

`tiny_questions/unanswerable` has the same groups, and a third of its questions ask what the passage tells of others or
of nobody; they have no answer, as in SQuAD 2.0 (Rajpurkar et al. 2018).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_datasets as tfds

HE = "Aron Bruno Carl Dario Emil Felix Georg Hugo Ivan Jonas Karim Luca".split()
SHE = "Anna Berta Clara Dora Elsa Freya Greta Hanna Irma Julia Karin Lena".split()
SURNAMES = (
    "Abel Berg Cole Dahl Eklund Falk Grant Holm Iversen Jansen Keller Lund "
    "Marsh Nolan Olsen Pike Quist Reed Sand Thorn Ulrich Voss Ward Young"
).split()
TOWNS = (
    "Aldor, Brenn, Port Ellis, Corvin, New Arden, Delmar, Esker, Falun Bay, Grafton, Upper Hale, Inver, Jarrow, "
    "Kelden, Lower Marle, Norwick, Ostend Hill, Penrith, Quarley, Rosk, San Tomas, Tarn, Umber, Old Vale, Wexcombe"
).split(", ")
YEARS = tuple(str(year) for year in range(1921, 2001, 2))


class Fact(NamedTuple):
    """What can be told of a person.

    values: what it may be.
    told: sentences; {n} is a name, {s} a name or "he" or "she", {v} the value.
    asked: questions of the training split.
    held: a question of the test split's group `wording`.
    """

    values: tuple[str, ...]
    told: tuple[str, ...]
    asked: tuple[str, ...]
    held: str


def pool(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


FACTS = {
    "birthplace": Fact(
        tuple(TOWNS),
        ("{s} was born in {v}", "{s} is a native of {v}", "{s} first saw the light in {v}"),
        (
            "In which town was {n} born?",
            "What is the birthplace of {n}?",
            "Which town does {n} come from?",
            "Where did the life of {n} begin?",
        ),
        "Which town is the birthplace of {n}?",
    ),
    "home": Fact(
        tuple(TOWNS),
        ("{s} lives in {v}", "{s} has settled in {v}", "{s} has a house in {v}"),
        (
            "Where is the home of {n}?",
            "What is the address of {n}?",
            "In which town does {n} live today?",
            "Which town does {n} call home?",
        ),
        "In which town is the home of {n}?",
    ),
    "profession": Fact(
        pool("baker, night nurse, bus driver, carpenter, head cook, dentist, farmer, tour guide, judge, pilot, tailor"),
        ("{s} works as a {v}", "{s} is a {v} by trade", "{s} has been a {v} for years"),
        (
            "What is the profession of {n}?",
            "How does {n} earn a living?",
            "What job does {n} have?",
            "What kind of work does {n} do?",
        ),
        "What kind of job does {n} have?",
    ),
    "instrument": Fact(
        pool("banjo, cello, drums, flute, grand piano, harp, oboe, trumpet, bass guitar, violin, mouth organ"),
        ("{s} plays the {v}", "{s} practises the {v} every day", "{s} is good at the {v}"),
        (
            "Which instrument does {n} play?",
            "On what does {n} make music?",
            "What did {n} learn in music lessons?",
            "What is the instrument of {n}?",
        ),
        "On which instrument does {n} make music?",
    ),
    "language": Fact(
        pool("Basque, Czech, Danish, Estonian, Finnish, Greek, Swiss German, Hindi, Irish, Korean, Old Norse, Polish"),
        ("{s} speaks {v}", "{s} grew up with {v}", "{s} writes letters in {v}"),
        (
            "What is the mother tongue of {n}?",
            "Which language does {n} use?",
            "In what language does {n} dream?",
            "Which words does {n} understand best?",
        ),
        "What is the language of {n}?",
    ),
    "pet": Fact(
        pool("black cat, canary, goose, guinea pig, hamster, parrot, pony, rabbit, sheep dog, tortoise, white mouse"),
        ("{s} keeps a {v}", "{s} looks after a {v}", "{s} shares the sofa with a {v}"),
        (
            "Which animal does {n} own?",
            "What pet does {n} have?",
            "Who waits for {n} to be fed?",
            "What kind of animal lives with {n}?",
        ),
        "What kind of pet does {n} own?",
    ),
    "employer": Fact(
        pool("Alpha Bank, Bright Foods, City Hall, Delta Rail, East Mill, Gold Press, Iron Works, Sun Hotel"),
        ("{s} is employed by {v}", "{s} gets a salary from {v}", "{s} signed a contract with {v}"),
        (
            "Who is the employer of {n}?",
            "Which company does {n} work for?",
            "Who pays {n}?",
            "Where is the office of {n}?",
        ),
        "Which company pays {n}?",
    ),
    "birth year": Fact(
        YEARS,
        ("{s} was born in {v}", "{s} came into the world in {v}", "{s} had a first birthday after {v}"),
        (
            "When was {n} born?",
            "In what year did the life of {n} begin?",
            "What is the year of birth of {n}?",
            "Since when has {n} been alive?",
        ),
        "In what year was {n} born?",
    ),
    "retirement": Fact(
        YEARS,
        ("{s} retired in {v}", "{s} stopped working in {v}", "{s} has drawn a pension since {v}"),
        (
            "When did {n} leave work for good?",
            "In what year did {n} retire?",
            "What was the last year of work of {n}?",
            "Since when has {n} been free of work?",
        ),
        "What is the year in which {n} did leave work?",
    ),
}
COUNTS = {"train": 10_000, "test": 400}  # questions, of test in each group
GROUPS = ("known", "people", "wording")
ASKED = 2  # questions of a passage
HELD_OUT = 7  # every seventh pair of names is kept for the test split


class Person(NamedTuple):
    first: str
    surname: str

    @property
    def name(self) -> str:
        return f"{self.first} {self.surname}"

    @property
    def new(self) -> bool:
        """Whether the pair of names is kept for the test split."""
        return ((HE + SHE).index(self.first) * 5 + SURNAMES.index(self.surname)) % HELD_OUT == 0


class Questions(tfds.core.BuilderConfig):
    """Whether some questions have no answer."""

    def __init__(self, name: str, unanswerable: float, description: str):
        super().__init__(name=name, description=description)
        self.unanswerable = unanswerable  # share of the questions


class TinyQuestions(tfds.core.GeneratorBasedBuilder):
    """Generated passages about people, and questions whose answers are spans of them."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: dict[str, str] = {"1.0.0": "10,000 train, 1,200 test questions."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        Questions("answerable", 0.0, "Every question has an answer."),
        Questions("unanswerable", 1 / 3, "A third of the questions have none."),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        answers = tfds.features.Sequence({"text": text(), "answer_start": tf.int32})
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "id": text(),
                    "title": text(),
                    "context": text(),
                    "question": text(),
                    "answers": answers,
                    "group": text(),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split: str) -> Iterator:
        """Questions, of test the groups in turn."""
        yield from enumerate(questions(split, self.builder_config.unanswerable))


def questions(split: str, unanswerable: float) -> list[dict[str, Any]]:
    """The questions of a split with their passages; two in a row may share a passage."""
    source = random.Random(f"tiny_questions {split}")
    counts = dict.fromkeys(GROUPS if split == "test" else GROUPS[:1], 0)
    rows: list[dict[str, Any]] = []
    while (least := min(counts.values())) < COUNTS[split]:
        group = next(group for group in counts if counts[group] == least)
        context, facts = passage(source, new=group == "people")
        about = [key for key in facts if group != "people" or key[0].new]
        for ask in picked(source, about, min(ASKED, COUNTS[split] - least)):
            rows.append(question(source, context, facts, ask, group, unanswerable) | {"id": f"{split}-{len(rows)}"})
            counts[group] += 1
    return rows


def pick(source: random.Random, items):
    """One of several; `random` itself is the only source of numbers, since it alone is the same in every Python."""
    return items[int(source.random() * len(items))]


def picked(source: random.Random, items, count: int) -> list:
    """`count` different ones, in random order."""
    rest = list(items)
    return [rest.pop(int(source.random() * len(rest))) for _ in range(min(count, len(rest)))]


def people(source: random.Random, *, new: bool) -> list[Person]:
    """Three people; the first is the one of a held-out pair of names where `new`, and the second often shares a name
    with the first."""
    found: list[Person] = []
    while len(found) < 3:
        person = Person(pick(source, HE + SHE), pick(source, SURNAMES))
        if len(found) == 1:
            likeness = source.random()
            if likeness < 0.3:
                person = person._replace(first=found[0].first)
            elif likeness < 0.6:
                person = person._replace(surname=found[0].surname)
        if person not in found and person.new == (new and not found):
            found.append(person)
    return found


Facts = dict[tuple[Person, str], tuple[str, int]]  # of a person, the name of a fact: its value and where it stands


def passage(source: random.Random, *, new: bool) -> tuple[str, Facts]:
    """A passage, and what it tells; of every fact that the first person has another one has it, too."""
    chosen = people(source, new=new)
    kinds = picked(source, FACTS, pick(source, (1, 2, 3, 4, 4)))
    told = {chosen[0]: kinds[:3], chosen[1]: [*kinds[:2], *kinds[3:]], chosen[2]: kinds[2:]}
    blocks: list[list[tuple[Person, list[str], bool]]] = []  # person, facts, by name
    for person, mine in told.items():
        mine = picked(source, mine, len(mine))
        while mine:
            count = 2 if len(mine) > 1 and source.random() < 0.3 else 1
            block = [(person, mine[:count], True)]
            mine = mine[count:]
            if mine and source.random() < 0.5:
                block.append((person, [mine.pop()], False))
            blocks.append(block)
    context, facts = "", {}
    used: dict[str, set[str]] = {}
    for block in picked(source, blocks, len(blocks)):
        for person, mine, by_name in block:
            subject = person.name if by_name else ("He" if person.first in HE else "She")
            for place, kind in enumerate(mine):
                context += " and " if place else (" " if context else "")
                shape = pick(source, FACTS[kind].told)
                value = pick(source, [one for one in FACTS[kind].values if one not in used.setdefault(kind, set())])
                used[kind].add(value)
                before, after = shape.split("{v}")
                before = before.removeprefix("{s} ") if place else before.replace("{s}", subject)
                facts[person, kind] = (value, len(context) + len(before))
                context += before + value + after
            context += "."
    return context, facts


def question(
    source: random.Random, context: str, facts: Facts, ask: tuple[Person, str], group: str, unanswerable: float
) -> dict[str, Any]:
    """A question about a fact of a passage, or about one that it does not tell of the person."""
    person, kind = ask
    texts, starts = [facts[ask][0]], [facts[ask][1]]
    if source.random() < unanswerable:
        mine = {other for one, other in facts if one == person}
        others = {other for _, other in facts} - mine
        kind, texts, starts = pick(source, sorted(others or FACTS.keys() - mine)), [], []
    shape = FACTS[kind].held if group == "wording" else pick(source, FACTS[kind].asked)
    return {
        "title": "People",
        "context": context,
        "question": shape.format(n=person.name),
        "answers": {"text": texts, "answer_start": starts},
        "group": group,
    }
