"""tiny_entities: sentences in four languages with tagged persons, countries, cities, languages, sums and dates.

The names are real: Babel's CLDR gives territories, languages, currencies, dates and the cities of time zones, as
English, German, French and Spanish write them. The sentences are generated from a fixed seed, and tagged word by word
in BIO. Words alone do not tell a tag: "Turkish" is a language in "she speaks Turkish" and none in "a Turkish poet",
"May" is a person, a part of a date or a verb, "20" belongs to a sum or is only a number. 6,600 sentences train; a field
`group` tells the parts of test (600 sentences each) apart:

- `seen`: new sentences of names that training has.
- `unseen`: names that training never has, a fifth of each list, so that only the context tells.
- `ambiguous`: Jordan, Georgia, Paris, … as a person, a country or a city, which another sentence tells: "The parliament
  has voted. Nobody knows Jordan as well as my sister." Every third pair of two such sentences is of test alone.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator
from datetime import date, timedelta
from functools import cache

import tensorflow_datasets as tfds

from pipelines.datasets.tiny_reviews import pick

KINDS = ("person", "country", "city", "language", "money", "date")
TAGS = ("O", *(f"{mark}-{kind}" for kind in KINDS for mark in "BI"))
GROUPS = ("seen", "unseen", "ambiguous")
COUNTS = {"train": 6600, "test": 1800}
LOCALES = ("en", "en", "en", "de", "fr", "es")  # of sentences, as often as they stand here
WORD = re.compile(r"\w+(?:['’][^\W\d_]+)*|[^\w\s]")  # what `transforms.text.words` finds in these texts
NOWHERE = ("EU", "EZ", "QO", "UN", "XA", "XB", "ZZ")  # codes of no country
HELD = 5  # a fifth of the names is of the group `unseen`

GIVEN = (
    "Ana Omar Ingrid Pavel Yuki Leila Tomás Greta Kofi Mei Sven Fatima Bruno Nadia Piotr Carla Ravi Elif Marco Zofia "
    "Hugo Aisha Lars Renata Dmitri Paula Kenji Noor Felix Marta Joseph Helga Ivan Lucía Emre Clara Niels Amina Stefan "
    "Rosa"
).split()
FAMILY = (
    "Gil Kovač Okafor Lindqvist Moreau Tanaka O’Neil Ferrari Novak Haddad Müller Santos Petrov Yılmaz Jansen Costa "
    "Weber Dubois Nguyen Rossi Larsen Mensah Fischer Ortega Singh Kowalski Baptiste Iversen Romano Vogel Diallo Sato "
    "Marchetti Horvat Lefèvre Castillo Nakamura Brandt Olsen Peeters"
).split()
BOTH = {  # given names that are something else too
    "country": "Jordan Georgia Chad Israel Kenya Cuba Malta India".split(),
    "city": "Paris Sydney Adelaide Santiago Darwin Denver Regina Phoenix Vienna Lima".split(),
}
WORDS = (
    "Will Mark Rose Grant Bill Hope Grace Frank May April June August Summer Dean Hunter".split()
)  # given names, too

# {person}, {country}, {city}, {language}, {money} and {date} are entities, {of} is the name of a language that is none,
# {word} a word that is a name elsewhere, and {n} a number.
SENTENCES = {
    "en": """
        {person} was born in {city} on {date}.
        {person}, who lives in {city} ({country}), speaks {language} and {language}.
        The ticket from {city} to {city} costs {money}, and {n} people bought it.
        "{language} is easy," said {person}, "but {language} is not."
        A {of} poet from {country} met {person} in {city}.
        Will you pay {money} for {n} pages in {language}?
        On {date}, {person} left {country} for good.
        The {of} minister paid {money} for a {of} rug.
        {person} and {person} have translated the book into {language}.
        In {country}, {n} schools teach {language}; in {country} none does.
        Since {date} the {of} border with {country} has been open.
        My brother ({n} years old) sent {money} to {person}.
        Does {person} know that {city} lies in {country}?
        {word} is a word of {n} letters.
        They flew from {country} to {country} via {city} on {date}.
        Bill the {of} cook {money}!
        Mark page {n} of the {of} book for {person}.
        May {person} stay in {country} for {n} days?
        Grant {person} {money}, please.
        The {of} bread costs {money} in {city}.
        We read {n} letters, written in {language} in {date}.
        {country}, {country} and {country} signed the treaty in {city}.
        He will not go to {city} before {date}.
        She bought a {of} carpet, a {of} lamp and {n} roses.
        {person} told {person}: {money} is too much for {n} days in {city}.
        Dr. {person} teaches {language} at the {of} school.
        From {date} to {date}, {person} worked in {country}.""",
    "de": """
        {person} wohnt seit {date} in {city}.
        Am {date} flog {person} von {city} nach {city}.
        Die Karte kostet {money}, sagte {person}.
        {person} lernt {language} und {language}, aber nicht in {country}.
        In {country} gibt es {n} Schulen, die {language} lehren.
        Mit {n} Freunden fuhr {person} nach {country} ({city}).
        Für {money} kauft man in {city} {n} Bücher.
        „{language} ist schwer“, schrieb {person} am {date}.""",
    "fr": """
        {person} habite à {city} depuis le {date}.
        Le billet pour {city} coûte {money}, dit {person}.
        Le {date}, {person} a quitté {city} pour {city}.
        {person} apprend le {language} avec {n} amis.
        Ce livre de {n} pages, en {language}, vaut {money}.
        « {country} est un beau pays », écrit {person}.
        Il y a {n} écoles à {city} ({country}).
        Qui connaît {person} à {city} ?""",
    "es": """
        {person} vive en {city} desde el {date}.
        El billete de {city} a {city} cuesta {money}.
        ¿Sabe {person} que {city} está en {country}?
        El {date}, {person} salió de {country} con {n} amigos.
        {person} y {person} hablan {language} y {language}.
        En {country} hay {n} escuelas de {language}.
        ¡{money} por {n} libros!, dijo {person} en {city}.
        El libro, en {language}, tiene {n} páginas.""",
}
CLUES = {
    "person": """She is a good singer. My neighbour has bought a dog. The new teacher is tall. He never wears a hat.
        Our aunt likes tea. The pilot was tired. That boy plays chess. Her cousin has a cold.""",
    "country": """The parliament has voted. Its army is small. The king lives abroad. The border is closed. Its flag
        is green. The whole nation is proud. The constitution is old. Its exports grow.""",
    "city": """The underground is late. The mayor opened a bridge. All trams stand still. Its suburbs grow. The town
        hall is white. The airport is far away. Its streets are narrow. The old harbour is full.""",
}
NEUTRAL = """Nobody knows {} as well as my sister. They talked about {} for hours. We all think of {}. This song is
    about {}. {} was in the news again. Everybody wants to see {}. I like {} more than before. You cannot compare that
    with {}. {} has changed a lot. The book begins with {}."""


class TinyEntities(tfds.core.GeneratorBasedBuilder):
    """Generated sentences in four languages with real names, tagged word by word."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: dict[str, str] = {"1.0.0": "6,600 train, 1,800 test in three groups."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "tokens": tfds.features.Sequence(text()),
                    "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=list(TAGS))),
                    "locale": text(),
                    "group": text(),
                }
            ),
            supervised_keys=("tokens", "tags"),
            homepage="https://cldr.unicode.org",
            citation="Unicode Consortium. Common Locale Data Repository (CLDR), as Babel carries it.",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split: str) -> Iterator:
        yield from generated(split)


def generated(split: str) -> Iterator[tuple[int, dict]]:
    """Different sentences; the groups of test in turn, so that every stretch holds as many of each."""
    source, test = random.Random(f"tiny_entities {split}"), split == "test"
    known: set[tuple[str, ...]] = set()
    while len(known) < COUNTS[split]:
        group = GROUPS[len(known) % 3] if test else pick(source, ("seen", "seen", "seen", "ambiguous"))
        locale = "en" if group == "ambiguous" else pick(source, LOCALES)
        tokens, tags = tagged(two_sentences(source, test) if group == "ambiguous" else sentence(source, locale, group))
        if tuple(tokens) not in known:
            key = len(known)
            known.add(tuple(tokens))
            yield key, {"tokens": tokens, "tags": tags, "locale": locale, "group": group if test else "seen"}


Parts = list[tuple[str, str]]  # stretches of a text, each with what it is: a kind, or "" for none


def tagged(parts: Parts) -> tuple[list[str], list[str]]:
    """The words of a text and their tags."""
    tokens: list[str] = []
    tags: list[str] = []
    for text, kind in parts:
        words = WORD.findall(text)
        tokens += words
        tags += [f"{'I' if place else 'B'}-{kind}" if kind else "O" for place in range(len(words))]
    return tokens, tags


def filled(text: str, fill) -> Parts:
    """A text in which `fill` tells what stands in the place of each `{kind}`."""
    pieces = re.split(r"\{(\w*)\}", text)
    return [fill(piece) if place % 2 else (piece, "") for place, piece in enumerate(pieces)]


def sentence(source: random.Random, locale: str, group: str) -> Parts:
    """A sentence of a language with names of a group."""
    text = pick(source, SENTENCES[locale].strip().splitlines()).strip()
    return filled(text, lambda kind: (name(source, kind, locale, group == "unseen"), kind if kind in KINDS else ""))


def two_sentences(source: random.Random, test: bool) -> Parts:
    """A sentence that tells what a name stands for, and one that does not."""
    while True:
        other = pick(source, tuple(BOTH))
        kind = pick(source, ("person", other))
        clue, neutral = int(source.random() * 8), int(source.random() * 10)
        if ((clue + neutral) % 3 == 0) == test:
            break
    word = pick(source, BOTH[other])
    first, second = sentences(CLUES[kind])[clue], sentences(NEUTRAL)[neutral]
    return [(f"{first} ", ""), *filled(second, lambda _: (word, kind))]


def sentences(text: str) -> list[str]:
    return [f"{one}." for one in " ".join(text.split()).rstrip(".").split(". ")]


def name(source: random.Random, kind: str, locale: str, unseen: bool) -> str:
    """What stands in the place of a kind of word."""
    if kind == "n":
        return str(2 + int(source.random() * 2000 ** source.random()))
    if kind == "word":
        return pick(source, WORDS)
    if kind == "person":
        return person(source, unseen)
    if kind == "money":
        return money(source, locale, unseen)
    if kind == "date":
        return day(source, locale)
    found = part(names("language" if kind == "of" else kind, locale), unseen)
    if not unseen and kind in BOTH and locale == "en" and source.random() < 0.1:
        return pick(source, [one for one in BOTH[kind] if one in found])
    return pick(source, found)


@cache
def part(found: tuple[str, ...], unseen: bool) -> list[str]:
    """The names that only test has, or the others, to which all that are something else too belong."""
    shared = {*BOTH["country"], *BOTH["city"]}
    held = {one: zlib.crc32(" ".join(WORD.findall(one)).encode()) % HELD == 0 for one in found}
    return [one for one in found if (held[one] and one not in shared) == unseen]


def person(source: random.Random, unseen: bool) -> str:
    """A given name, a family name, or both."""
    given = (
        part(tuple(GIVEN), unseen) if unseen else [*part(tuple(GIVEN), unseen), *WORDS, *BOTH["country"], *BOTH["city"]]
    )
    first, last = pick(source, given), pick(source, part(tuple(FAMILY), unseen))
    forms = (f"{first} {last}", f"{first} {last}", first, last, f"{first[0]}. {last}", f"{first} {first[0]}. {last}")
    return pick(source, forms)


def money(source: random.Random, locale: str, unseen: bool) -> str:
    """A sum as a language writes it: by sign, by code or by name."""
    from babel.numbers import format_currency

    currency = pick(source, part(currencies(), unseen))
    amount = round(10 ** (source.random() * 5), 2)
    amount = float(int(amount)) if source.random() < 0.5 else amount
    style = pick(source, ("standard", "name", "code"))
    if style == "code":
        return format_currency(amount, currency, "#,##0.## ¤¤", locale=locale, currency_digits=False)
    return format_currency(amount, currency, locale=locale, format_type=style)


def day(source: random.Random, locale: str) -> str:
    """A date as a language writes it."""
    from babel.dates import format_date

    chosen = date(1900, 1, 1) + timedelta(int(source.random() * 50_000))
    style = pick(source, ("medium", "long", "long", "full", "MMMM y", "y", "MMMM"))
    return format_date(chosen, style, locale=locale)


@cache
def names(kind: str, locale: str) -> tuple[str, ...]:
    """All countries, cities or languages as a language calls them, in the order of their codes."""
    from babel import Locale
    from babel.core import get_global

    if kind == "city":
        zones = [zone for zone in sorted(get_global("zone_territories")) if "/" in zone and not zone.startswith("Etc/")]
        return tuple(zone.rpartition("/")[2].replace("_", " ") for zone in zones)
    group = "territories" if kind == "country" else "languages"
    known, found = (dict(getattr(Locale(one), group)) for one in ("en", locale))
    codes = sorted(code for code in known if len(code) == 2 and code.isalpha())
    return tuple(str(found.get(code, known[code])) for code in codes if code not in NOWHERE)


@cache
def currencies() -> tuple[str, ...]:
    """Codes of currencies that are in use."""
    from babel import Locale

    english: dict = dict(Locale("en").currencies)
    return tuple(sorted(code for code in english if "(" not in english[code] and not code.startswith("X")))
