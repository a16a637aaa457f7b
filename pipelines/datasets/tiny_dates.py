"""tiny_dates: dates as 31 languages write them in five styles, and the same day as ISO 8601; nothing is downloaded.

Babel writes them by the rules of Unicode's CLDR: `9.3.07`, `Freitag, 9. März 2007`, `2007年3月9日`, all to
`2007-03-09`. The days are those of 1950 to 2049, so that a year of two digits has one reading, and English all in
digits, which puts the month first, is left out: no text has two readings. 20,000 examples train; the days of
validation (1,000 examples) and test are in no training example. A field `group` tells the parts of test apart:

- `days` (2,000): unseen days, in languages and styles that training has together.
- `styles` (500): a style in a language that training has in other styles only, such as the full style of German.
- `locale` (500): Galician, of which training has nothing, but its relatives Portuguese, Spanish and Catalan.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta

import numpy as np
import tensorflow_datasets as tfds

LOCALES = tuple("en de nl sv da fi et lt fr es ca it pt ro pl cs hr hu ru uk bg el tr id vi he ar hi ja zh ko".split())
STYLES = ("short", "medium", "long", "full", "weekday")  # the last is `Fri, Mar 9, 2007`
LEFT_OUT = {("en", "short")}  # 3/9/07 is March here and September in the others
UNSEEN_STYLES = (
    ("de", "full"), ("es", "long"), ("pl", "medium"), ("pt", "full"),
    ("ru", "weekday"), ("el", "full"), ("tr", "long"), ("zh", "full"),
)  # fmt: skip
UNSEEN_LOCALE = "gl"
FIRST, DAYS = date(1950, 1, 1), 36_525
SIZES = {"train": 20_000, "validation": 1_000, "days": 2_000, "styles": 500, "locale": 500}
GROUPS = ("days", "styles", "locale")


def written(day: date, locale: str, style: str) -> str:
    """A day as a language writes it in a style."""
    from babel.dates import format_date, format_skeleton

    if style == "weekday":
        return format_skeleton("yMMMEd", day, fuzzy=False, locale=locale)
    return format_date(day, style, locale=locale)


class TinyDates(tfds.core.GeneratorBasedBuilder):
    """Dates in 31 languages and five styles with the same day in ISO 8601, by Babel; unseen days test."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: dict[str, str] = {"1.0.0": "20,000 train, 1,000 validation, 3,000 test in three groups."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {"date": text(), "iso": text(), "locale": text(), "style": text(), "group": text()}
            ),
            supervised_keys=("date", "iso"),
            homepage="https://cldr.unicode.org",
            citation="Unicode Consortium. Common Locale Data Repository (CLDR), as Babel carries it.",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        days = np.random.default_rng(0).permutation(DAYS)
        parts = {"train": days[: DAYS * 8 // 10], "validation": days[DAYS * 8 // 10 : DAYS * 9 // 10]}
        parts["test"] = days[DAYS * 9 // 10 :]
        return {split: self._generate_examples(split, part) for split, part in parts.items()}

    def _generate_examples(self, split: str, days: np.ndarray) -> Iterator:
        """In rounds through groups, languages and styles: every stretch of a split holds its share of each."""
        every = [(locale, style) for locale in LOCALES for style in STYLES]
        seen = [pair for pair in every if pair not in LEFT_OUT and pair not in UNSEEN_STYLES]
        seen = [seen[i] for i in np.random.default_rng(0).permutation(len(seen))]
        pairs = {"days": seen, "styles": UNSEEN_STYLES, "locale": [(UNSEEN_LOCALE, style) for style in STYLES]}
        sizes = {group: SIZES[group] for group in GROUPS} if split == "test" else {"days": SIZES[split]}
        places = [(place / size, group, place) for group, size in sizes.items() for place in range(size)]
        source = np.random.default_rng(len(days) + SIZES.get(split, 0))
        for key, (_, group, place) in enumerate(sorted(places)):
            locale, style = pairs[group][place % len(pairs[group])]
            day = FIRST + timedelta(int(source.choice(days)))
            text = written(day, locale, style)
            yield key, {"date": text, "iso": day.isoformat(), "locale": locale, "style": style, "group": group}
