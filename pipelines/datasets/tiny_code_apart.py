"""tiny_code_apart: `tiny_code` without the functions that `tiny_snippets` is tested on; nothing is downloaded.

What is code that was read before worth for code that was not? Whoever pretrains on `tiny_code` and then fine-tunes on
`tiny_snippets` has read the test texts, if without their labels. Here every function is left out, of all modules, that
by its checksum would be in the test split of `tiny_snippets`: a fifth of them. Splits, modules and version are those of
`tiny_code`.
"""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow_datasets as tfds

from pipelines.datasets import tiny_snippets
from pipelines.datasets.tiny_code import TinyCode


class TinyCodeApart(TinyCode):
    """The modules of Python's standard library, without a fifth of their functions."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict({"text": tfds.features.Text(), "name": tfds.features.Text()}),
            homepage="https://docs.python.org/3/library/",
            license="Python Software Foundation License",
            disable_shuffling=True,
        )

    def _generate_examples(self, part: list[tuple[int, str]], texts: dict[str, str]) -> Iterator:
        for key, example in super()._generate_examples(part, texts):
            yield key, {**example, "text": without_tested(example["text"])}


def without_tested(text: str) -> str:
    """A program without the functions of the test split of `tiny_snippets`; nothing of what is no program."""
    lines = text.splitlines()
    gone: set[int] = set()
    try:
        for node, snippet in tiny_snippets.defined(text):
            if tiny_snippets.is_tested(snippet):
                first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
                gone |= set(range(first - 1, node.end_lineno or node.lineno))
    except SyntaxError:
        return ""
    return "\n".join(line for number, line in enumerate(lines) if number not in gone) + "\n"
