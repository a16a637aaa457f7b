"""Reads `tokenizers/`, which make_tokenizers.py makes: the strings, the folders, and the reference's answers."""

import functools
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "tokenizers"
KINDS = {  # the folder of tokenizer.json -> model_type; the older files are in a folder that ends in _old
    "bert_uncased": "bert",
    "bert_cased": "bert",
    "bert_added": "bert",
    "gpt2": "gpt2",
    "gpt2_added": "gpt2",
    "roberta": "roberta",
    "t5": "t5",
    "xlnet": "xlnet",
    "llama": "llama",
    "llama_legacy": "llama",
    "llama3": "llama",
}
OLD = {f"{name}_old": kind for name, kind in KINDS.items() if name != "llama3"}


@functools.cache
def texts() -> list[str]:
    """The 500 strings."""
    found = json.loads((HERE / "strings.json").read_text())
    return [one if isinstance(one, str) else one[0] * one[1] for one in found]


@functools.cache
def folders() -> Path:
    """Where the folders are unpacked."""
    root = Path(tempfile.mkdtemp(prefix="tokenizers-"))
    with tarfile.open(HERE / "golden.tar.xz") as file:
        file.extractall(root, filter="data")
    return root


@functools.cache
def answers(name: str) -> dict[str, Any]:
    """The reference's answers of a folder."""
    return json.loads((folders() / "answers" / name / "answers.json").read_text())
