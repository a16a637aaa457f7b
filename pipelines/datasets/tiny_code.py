"""tiny_code: the modules of the running Python's standard library, a document each; nothing is downloaded.

How does a program go on? A document is the text of a module, without tests; `name` is its path. The tables of
`encodings` and the help texts of `pydoc_data` are left out: they are no programs, and near copies of each other. Whole
modules are held out: every tenth, by a checksum of its path, is in the test split, so nothing of it was seen in
training. Real text, of the Python that runs: other versions of Python have other modules. The version of the data set
is therefore that of Python, `tiny_code:3.11.7`, and figures compare within one version only.
"""

from __future__ import annotations

import sys
import sysconfig
import tokenize
import zlib
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

TEST_SHARE = 10  # one in so many
LEAST = 100  # modules; a Python with fewer has no library as source files
# Tests, what was installed beside the library, tables, and what differs from one build of Python to another.
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}
GENERATED = ("_sysconfigdata", "config-")


class TinyCode(tfds.core.GeneratorBasedBuilder):
    """The modules of Python's standard library."""

    VERSION = tfds.core.Version(".".join(map(str, sys.version_info[:3])))

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict({"text": tfds.features.Text(), "name": tfds.features.Text()}),
            homepage="https://docs.python.org/3/library/",
            license="Python Software Foundation License",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        found = modules(Path(sysconfig.get_path("stdlib")))
        if len(found) < LEAST:
            raise FileNotFoundError(f"Expected Python's library as source files. Received: {len(found)} modules")
        parts: dict[str, list[tuple[int, str]]] = {"train": [], "test": []}
        for name in found:
            number = zlib.crc32(name.encode())
            parts["train" if number % TEST_SHARE else "test"].append((number, name))
        return {split: self._generate_examples(sorted(part), found) for split, part in parts.items()}

    def _generate_examples(self, part: list[tuple[int, str]], texts: dict[str, str]) -> Iterator:
        """In the order of the checksums: every stretch of a split is a fair sample."""
        for key, (_, name) in enumerate(part):
            yield key, {"text": texts[name], "name": name}


def modules(library: Path) -> dict[str, str]:
    """The text of every module by its path; of equal texts one is kept, and empty ones are not."""
    found: dict[str, str] = {}
    seen = set()
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        if LEFT_OUT & set(parts) or parts[0].startswith(GENERATED):
            continue
        try:
            with tokenize.open(path) as file:
                text = file.read()
        except (SyntaxError, UnicodeDecodeError):
            continue  # in an encoding that it does not name
        if text.strip() and text not in seen:
            seen.add(text)
            found["/".join(parts)] = text
    return found
