"""tiny_snippets: functions of the running Python's standard library, labelled by topic; nothing is downloaded.

What is a piece of source code about: asyncio, e-mail, networks, numbers, …? The topics are groups of modules, `TOPICS`.
A snippet is a function or method of 3 to 40 lines without its docstring; no two are equal. Every fifth, by a checksum
of its text, is in the test split, so most modules are in both. Real text, of the Python that runs: other versions of
Python have other functions. The version of the data set is therefore that of Python, `tiny_snippets:3.11.7`, and
figures compare within one version only.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
import textwrap
import tokenize
import zlib
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

TOPICS = {  # modules and packages; those that a version of Python lacks are left out
    "asyncio": "asyncio",
    "code": "ast bdb code codeop dis importlib inspect pdb pickletools pkgutil profile tokenize traceback",
    "command_line": "argparse cmd configparser getopt gettext logging optparse",
    "email": "email mailbox mailcap",
    "files": "bz2 filecmp fileinput genericpath glob gzip lzma ntpath os pathlib posixpath shutil tarfile zipfile",
    "markup": "html plistlib xml",
    "network": "ftplib http imaplib nntplib poplib smtplib socket socketserver ssl telnetlib urllib wsgiref xmlrpc",
    "numbers": "_pydatetime _pydecimal calendar datetime fractions ipaddress random statistics",
    "processes": "concurrent multiprocessing queue sched subprocess threading",
    "testing": "doctest unittest",
}
LINES = (3, 40)
TEST_SHARE = 5  # one in so many


class TinySnippets(tfds.core.GeneratorBasedBuilder):
    """Functions of Python's standard library, labelled by topic."""

    VERSION = tfds.core.Version(".".join(map(str, sys.version_info[:3])))

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=list(TOPICS))}
            ),
            supervised_keys=("text", "label"),
            homepage="https://docs.python.org/3/library/",
            license="Python Software Foundation License",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        found = snippets(Path(sysconfig.get_path("stdlib")))
        if len(set(found.values())) < len(TOPICS):
            missing = ", ".join(sorted(set(TOPICS) - set(found.values())))
            raise FileNotFoundError(f"Expected Python's library as source files. Received: none on {missing}")
        parts: dict[str, list[tuple[int, str]]] = {"train": [], "test": []}
        for text in found:
            parts["test" if is_tested(text) else "train"].append((zlib.crc32(text.encode()), text))
        return {split: self._generate_examples(sorted(part), found) for split, part in parts.items()}

    def _generate_examples(self, part: list[tuple[int, str]], labels: dict[str, str]) -> Iterator:
        """In the order of the checksums: every stretch of a split is a fair sample."""
        for key, (_, text) in enumerate(part):
            yield key, {"text": text, "label": labels[text]}


def snippets(library: Path) -> dict[str, str]:
    """The text of every snippet, and its topic; what two topics share is left out."""
    found: dict[str, str] = {}
    shared = set()
    for topic, names in TOPICS.items():
        for name in names.split():
            package = library / name
            files = sorted(package.rglob("*.py")) if package.is_dir() else [library / f"{name}.py"]
            for path in files:
                if path.is_file() and not {"test", "tests"} & set(path.relative_to(library).parts):
                    for text in functions(path):
                        shared |= {text} if found.setdefault(text, topic) != topic else set()
    return {text: topic for text, topic in found.items() if text not in shared}


def is_tested(text: str) -> bool:
    """Whether a snippet is in the test split."""
    return zlib.crc32(text.encode()) % TEST_SHARE == 0


def functions(path: Path) -> Iterator[str]:
    """The functions and methods of a file that are not inside of another function, without docstrings."""
    with tokenize.open(path) as file:
        source = file.read()
    for _, text in defined(source):
        yield text


def defined(source: str) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """The functions of a program as `functions` gives them, each after its node."""
    lines = source.splitlines()
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                kept = list(range(node.lineno - 1, node.end_lineno or node.lineno))
                if ast.get_docstring(node) is not None:
                    doc = node.body[0]
                    kept = [i for i in kept if not doc.lineno - 1 <= i < (doc.end_lineno or doc.lineno)]
                if LINES[0] <= len(kept) <= LINES[1]:
                    yield node, textwrap.dedent("\n".join(lines[i] for i in kept))
            else:
                waiting.append(node)
