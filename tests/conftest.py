"""Shared by all tests: a cache of prepared data of their own, commands in processes of their own, one tiny run."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")
# Not the cache of whoever runs the tests: what passes here passes on a fresh machine. Workers share their parent's.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["TFDS_DATA_DIR"] = tempfile.mkdtemp(prefix="tfds-")

TINY = {
    "model": "convnet",
    "model_args": {"widths": (8, 16), "depth": 1},
    "limit": 200,
    "epochs": 2,
    "batch_size": 20,
    "augment": (),
}


# Files of minutes begin first, so that with several workers none of them is what all the others wait for at the end.
LONG = ("test_contract.py", "test_resume.py", "test_builders.py", "test_processes.py", "test_docs.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="module", autouse=True)
def swept() -> None:
    """Frees what the file before left behind, while it is little: in a long process one sweep of all takes a minute."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m ...` from the root of the project, as a user does, and return what it said."""

    def call(*words: object, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *map(str, words)],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return call


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder of image_classification, small and trained for two epochs. Not to be changed: copy it."""
    from pipelines import image_classification

    out = tmp_path_factory.mktemp("runs")
    return image_classification.main(image_classification.Config(out=str(out), **TINY))
