"""tiny_reports: short reports with a summary of each, and two more tasks of text to text; generated from a fixed seed.

A report of weather stations, of a shop's day or of a match is a dateline, three or four facts in changing words and
perhaps a remark that is of no importance. The field `task` says what is asked of a source:

- `summarize`: the sentence with what matters: the warmest and the coldest place, what was sold most and least, who beat
  whom by how many goals and who scored first. The model has to compare, to count and to copy names.
- `date`: the day of a report in ISO 8601, whatever Babel made of it: `Friday, March 9, 2007` is `2007-03-09`.
- `digits`: two facts with their numbers in words, written again with digits.

12,000 examples train, every second one a summary. The days of validation (600) and test are in no training report, and
names are made of two parts of which every fifth pair is in no training report either. A field `group` tells the parts
of test apart: `reports` (1,000), new reports with names of training; `names` (400), with unseen names; `longer` (400),
of five or six facts.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import tensorflow_datasets as tfds

PLACES = (
    "Al Ber Cal Dor El Fen Gar Hol Ing Kel Lin Mar Nor Os Pen Rav Sal Tor Ul Ven Wes Yar".split(),
    "by dale field ford gate ham ley mere mouth ness port stead ton vik wick worth".split(),
)
PLAYERS = (
    "And Berg Carl Dan Erik Frid Gust Hans Jon Karl Lars Nils Olof Pet Svend".split(),
    "sen son berg gren holm lund man qvist strom".split(),
)
SHOPS = {  # kinds, and what they sell
    "bakery": "loaves rolls cakes pies buns tarts cookies",
    "grocery": "apples pears lemons eggs melons onions carrots",
    "bookshop": "novels maps comics diaries atlases calendars postcards",
    "garage": "tyres lamps batteries mirrors keys belts pumps",
}
STATIONS = (
    "{name} reported {n} degrees.",
    "In {name} it was {n} degrees.",
    "The thermometer of {name} showed {n} degrees.",
    "{n} degrees were measured in {name}.",
    "{name}: {n} degrees and {sky}.",
    "With {sky}, {name} came to {n} degrees.",
)
SKIES = ("rain", "sun", "fog", "snow", "wind", "clouds")
SALES = (
    "{n} {name} were sold.",
    "Customers bought {n} {name}.",
    "Of the {name}, {n} went over the counter.",
    "The till counted {n} {name}.",
    "{n} {name} left the shelves.",
)
GOALS = (
    "{name} scored for {team} after {n} minutes.",
    "After {n} minutes {name} hit the net for {team}.",
    "{team} had a goal by {name} after {n} minutes.",
    "With {n} minutes played, {name} met the goal for {team}.",
)
DATELINES = {
    "stations": ("Weather of {date}.", "The stations on {date}.", "{date}, the weather."),
    "shop": ("The {shop} {owner}, {date}.", "{date} at the {shop} {owner}.", "Sales of {date}: the {shop} {owner}."),
    "match": ("{one} against {other}, {date}.", "{date}: {one} met {other}.", "Match of {one} and {other}, {date}."),
}  # fmt: skip
REMARKS = (
    "The next report follows tomorrow.",
    "The bus was late again.",
    "A dog ran across the street.",
    "Nobody asked for more.",
    "The band played until noon.",
    "The old bridge is still closed.",
)
STYLES = (("en", "full"), ("en", "long"), ("en", "medium"), ("en_GB", "full"), ("en_GB", "long"), ("en_GB", "medium"))
FIRST, DAYS = date(2000, 1, 1), 9131
SIZES = {
    "train": {"reports": 12_000},
    "validation": {"reports": 600},
    "test": {"reports": 1_000, "names": 400, "longer": 400},
}
TASKS = ("summarize", "date", "summarize", "digits")  # in turn
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


class TinyReports(tfds.core.GeneratorBasedBuilder):
    """Generated reports with summaries, dates to ISO 8601, and numbers in words to digits: three tasks in one set."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: dict[str, str] = {"1.0.0": "12,000 train, 600 validation, 1,800 test in three groups."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {"source": text(), "target": text(), "task": text(), "kind": text(), "group": text()}
            ),
            supervised_keys=("source", "target"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split: str) -> Iterator:
        yield from enumerate(every()[split])


@functools.cache
def every() -> dict[str, list[dict[str, str]]]:
    """The examples of each split, in rounds through groups, tasks and kinds; no source comes twice."""
    found: dict[str, list[dict[str, str]]] = {}
    seen: set[str] = set()
    for split, sizes in SIZES.items():
        source = random.Random(f"tiny_reports {split}")
        order = sorted((place / size, group, place) for group, size in sizes.items() for place in range(size))
        found[split] = []
        for _, group, place in order:
            task, kind = TASKS[place % len(TASKS)], list(KINDS)[place // len(TASKS) % len(KINDS)]
            example = made(source, split, group, task, kind)
            while example["source"] in seen:
                example = made(source, split, group, task, kind)
            seen.add(example["source"])
            found[split].append(example | {"task": task, "kind": kind, "group": group})
    return found


def made(source: random.Random, split: str, group: str, task: str, kind: str) -> dict[str, str]:
    """The source and the target of an example."""
    count, day = pick(source, (5, 6) if group == "longer" else (3, 4)), day_of(source, split)
    start, facts, summary = KINDS[kind](source, count, group == "names")
    if task == "digits":
        chosen = facts[: count - 2] if group == "longer" else facts[:2]
        return {"source": " ".join(said(one, spelled) for one in chosen), "target": " ".join(map(said, chosen))}
    sentences = [said(one) for one in facts]
    if source.random() < 0.5:
        sentences.insert(int(source.random() * (len(sentences) + 1)), pick(source, REMARKS))
    locale, style = pick(source, STYLES)
    head = pick(source, DATELINES[kind]).format(date=written(day, locale, style), **start)
    return {"source": " ".join([head, *sentences]), "target": summary if task == "summarize" else day.isoformat()}


def said(fact: tuple[str, dict[str, Any]], number: Any = str) -> str:
    """A fact as a sentence, its number as `number` writes it."""
    pattern, parts = fact
    text = pattern.format(**parts | {"n": number(parts["n"])})
    return text[0].upper() + text[1:]


def pick(source: random.Random, items: Any) -> Any:
    """One of several; `random` itself is the only source of numbers, since it alone is the same in every Python."""
    return items[int(source.random() * len(items))]


def several(source: random.Random, items: Any, count: int) -> list[Any]:
    """Different ones of several."""
    rest = list(items)
    return [rest.pop(int(source.random() * len(rest))) for _ in range(count)]


def day_of(source: random.Random, split: str) -> date:
    """A day of 2000 to 2024; every fifth is kept for validation and test."""
    while True:
        place = int(source.random() * DAYS)
        if (place % 5 == 0) == (split != "train"):
            return FIRST + timedelta(place)


def name(source: random.Random, parts: tuple[list[str], list[str]], unseen: bool) -> str:
    """A name of two parts; `unseen`: a pair that training has none of."""
    while True:
        first, last = (int(source.random() * len(one)) for one in parts)
        if ((first + last) % 5 == 0) == unseen:
            return parts[0][first] + parts[1][last]


def names(source: random.Random, parts: tuple[list[str], list[str]], count: int, unseen: bool) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        one = name(source, parts, unseen)
        if one not in found:
            found.append(one)
    return found


def numbers(source: random.Random, count: int, highest: int) -> list[int]:
    """Different numbers, of which the largest and the smallest have no neighbour."""
    while True:
        found = several(source, range(1, highest + 1), count)
        order = sorted(found)
        if order[-1] - order[-2] > 1 and order[1] - order[0] > 1:
            return found


Report = tuple[dict[str, str], list[tuple[str, dict[str, Any]]], str]  # for the dateline, facts, the summary


def stations(source: random.Random, count: int, unseen: bool) -> Report:
    places, degrees = names(source, PLACES, count, unseen), numbers(source, count, 39)
    facts = [
        (pick(source, STATIONS), {"name": one, "n": n, "sky": pick(source, SKIES)}) for one, n in zip(places, degrees)
    ]
    (low, cold), *_, (high, warm) = sorted(zip(degrees, places))
    return {}, facts, f"{warm} was warmest with {high} degrees and {cold} coldest with {low} degrees."


def shop(source: random.Random, count: int, unseen: bool) -> Report:
    kind, owner = pick(source, tuple(SHOPS)), name(source, PLACES, unseen)
    goods, sold = several(source, SHOPS[kind].split(), count), numbers(source, count, 99)
    facts = [(pick(source, SALES), {"name": one, "n": n}) for one, n in zip(goods, sold)]
    (low, least), *_, (high, most) = sorted(zip(sold, goods))
    return {"shop": kind, "owner": owner}, facts, f"{owner} sold {high} {most} but only {low} {least}."


def match(source: random.Random, count: int, unseen: bool) -> Report:
    one, other = names(source, PLACES, 2, unseen)
    scored = [pick(source, (one, other)) for _ in range(count)]
    minutes, players = sorted(several(source, range(2, 91), count)), names(source, PLAYERS, count, unseen)
    facts = [
        (pick(source, GOALS), {"name": player, "team": team, "n": n})
        for player, team, n in zip(players, scored, minutes)
    ]
    ours, theirs = scored.count(one), scored.count(other)
    if ours == theirs:
        result = f"{one} and {other} drew {ours} to {theirs}"
    elif ours > theirs:
        result = f"{one} beat {other} {ours} to {theirs}"
    else:
        result = f"{other} beat {one} {theirs} to {ours}"
    return {"one": one, "other": other}, facts, f"{result} and {players[0]} scored first."


KINDS = {"stations": stations, "shop": shop, "match": match}


def written(day: date, locale: str, style: str) -> str:
    """A day as Babel writes it in a style."""
    from babel.dates import format_date

    return format_date(day, style, locale=locale)


def spelled(number: int) -> str:
    """A number from 0 to 99 in English words."""
    if number < 20:
        return ONES[number]
    tens, ones = divmod(number, 10)
    return TENS[tens - 2] + (f"-{ONES[ones]}" if ones else "")
