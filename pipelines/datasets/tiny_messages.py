"""tiny_messages: names and short phrases of Unicode's CLDR in two languages; nothing is downloaded.

The configuration says which two: `tiny_messages/en_de` is English to German, of 14 languages in both directions.
Babel writes `France`, `Galician`, `13 kilometers`, `1,234.50 US dollars` and `Japan, Chile, and Mali` in either
language by its own rules of plural, number and enumeration. About 15,000 examples train: all known names alone, and
phrases of them. A field `group` tells the parts of test apart, and validation is of the first kind:

- `phrases` (1,000): new phrases of known names.
- `names` (about 90): territories and languages in no training example, which can only be guessed where the two
  languages spell alike. (Training has the other names alone too, as the group `known`.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds

LANGUAGES = tuple("ar de en es fr hi it ja ko pl pt ru tr zh".split())
SIZES = {"train": 14_000, "validation": 500, "test": 1_000}  # phrases
NEW_NAMES = 0.1

Words = dict[str, list[str]]  # kind → identifiers


def identifiers(source: str, target: str) -> Words:
    """What both languages have a name for, by kind; currencies of the past and of banks, `(…)`, are left out."""
    from babel import Locale
    from babel.units import format_unit

    one, other = Locale.parse(source), Locale.parse(target)
    found = {kind: sorted(set(getattr(one, kind)) & set(getattr(other, kind))) for kind in ("territories", "languages")}
    both = set(one.currencies) & set(other.currencies)
    found["currencies"] = sorted(code for code in both if "(" not in one.currencies[code] + other.currencies[code])
    units = set(one.unit_display_names) & set(other.unit_display_names)
    found["units"] = sorted(
        unit for unit in units if all(unit not in format_unit(3, unit, locale=locale) for locale in (one, other))
    )
    return found


def phrase(words: Words, source: np.random.Generator) -> tuple[str, Callable[[str], str]]:
    """The kind of a random phrase, and the phrase as a function of a language."""
    from babel import Locale
    from babel.lists import format_list
    from babel.numbers import format_currency
    from babel.units import format_unit

    kind = ("amount", "quantity", "list")[source.integers(3)]
    if kind == "amount":
        code = str(source.choice(words["currencies"]))
        amount = int(source.integers(1, 100)) if source.random() < 0.5 else int(source.integers(100, 1_000_000)) / 100
        return kind, lambda locale: format_currency(amount, code, format_type="name", locale=locale)
    if kind == "quantity":
        unit, number = str(source.choice(words["units"])), int(source.integers(1, 1000))
        return kind, lambda locale: format_unit(number, unit, locale=locale)
    named = ("territories", "languages")[source.integers(2)]
    chosen = [str(key) for key in source.choice(words[named], source.integers(2, 4), replace=False)]
    style: Literal["standard", "or"] = "standard" if source.integers(2) else "or"

    def listed(locale: str) -> str:
        names = getattr(Locale.parse(locale), named)
        return format_list([names[key] for key in chosen], style, locale=locale)

    return kind, listed


class Languages(tfds.core.BuilderConfig):
    """A source and a target language."""

    def __init__(self, source: str, target: str):
        super().__init__(name=f"{source}_{target}", description=f"CLDR's {source} to CLDR's {target}.")
        self.source, self.target = source, target


class TinyMessages(tfds.core.GeneratorBasedBuilder):
    """Names of territories, languages, currencies and units, and phrases of them, in two languages, by Babel."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: dict[str, str] = {"1.0.0": "About 15,000 train, 500 validation, 1,090 test."}  # noqa: RUF012
    BUILDER_CONFIGS = [Languages("en", "de")] + [
        Languages(one, other)
        for one in LANGUAGES
        for other in LANGUAGES
        if one != other and (one, other) != ("en", "de")
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        source, target, text = self.builder_config.source, self.builder_config.target, tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict({source: text(), target: text(), "kind": text(), "group": text()}),
            supervised_keys=(source, target),
            homepage="https://cldr.unicode.org",
            citation="Unicode Consortium. Common Locale Data Repository (CLDR), as Babel carries it.",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        words, random = identifiers(self.builder_config.source, self.builder_config.target), np.random.default_rng(0)
        new: Words = {}
        for kind in ("territories", "languages"):
            mixed = [str(key) for key in random.permutation(words[kind])]
            cut = round(NEW_NAMES * len(mixed))
            new[kind], words[kind] = mixed[:cut], mixed[cut:]
        taken: set[str] = set()
        parts: dict[str, list[dict[str, Any]]] = {}
        for split in ("test", "validation", "train"):
            parts[split] = self.phrases(words, random, SIZES[split], taken)
        known = self.names({kind: words[kind] for kind in new}, "known")
        told = {row[self.builder_config.source] for row in known}  # Nauru is a territory and a language
        parts["train"] += known
        parts["test"] += [row for row in self.names(new, "names") if row[self.builder_config.source] not in told]
        orders = {split: random.permutation(len(rows)) for split, rows in parts.items()}
        return {
            split: self._generate_examples(parts[split], orders[split]) for split in ("train", "validation", "test")
        }

    def phrases(self, words: Words, random: np.random.Generator, count: int, taken: set[str]) -> list[dict[str, Any]]:
        """`count` phrases whose source is not among those taken, which they join."""
        source, target = self.builder_config.source, self.builder_config.target
        rows: list[dict[str, Any]] = []
        while len(rows) < count:
            kind, say = phrase(words, random)
            text = say(source)
            if text not in taken:
                taken.add(text)
                rows.append({source: text, target: say(target), "kind": kind, "group": "phrases"})
        return rows

    def names(self, words: Words, group: str) -> list[dict[str, Any]]:
        """Names alone, each once."""
        from babel import Locale

        source, target = self.builder_config.source, self.builder_config.target
        one, other = Locale.parse(source), Locale.parse(target)
        return [
            {source: getattr(one, kind)[key], target: getattr(other, kind)[key], "kind": kind, "group": group}
            for kind, keys in words.items()
            for key in keys
        ]

    def _generate_examples(self, rows: list[dict[str, Any]], order: np.ndarray) -> Iterator:
        for key, place in enumerate(order):
            yield key, rows[place]
