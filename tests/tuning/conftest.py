"""The fake task, for tests of this process and of processes that they start."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import pipelines
from tuning import pictures, report
from tuning.search import search

FAKE = Path(__file__).parent / "fake"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def fake(monkeypatch):
    """The fake task as `pipelines.fake`, with no calls yet."""
    monkeypatch.syspath_prepend(str(FAKE))
    import fake_task

    monkeypatch.setattr(pipelines, "TASKS", (*pipelines.TASKS, "fake"))
    monkeypatch.setitem(sys.modules, "pipelines.fake", fake_task)
    fake_task.CALLS.clear()
    return fake_task


@pytest.fixture
def environment() -> dict[str, str]:
    """For a process that knows the fake task; its trials need no TensorFlow, which takes seconds to import."""
    return {**os.environ, "KERAS_BACKEND": "numpy", "PYTHONPATH": f"{FAKE}{os.pathsep}{ROOT}", "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def run_search(tmp_path, fake, capsys, monkeypatch):
    """Run a search of the fake task in this process, without pictures: (its folder as loaded, what it printed)."""
    import tuning.trials  # noqa: F401 (its import is not of the time that a search is given)

    monkeypatch.setattr("keras.utils.clear_session", lambda: None)  # half a second, and there is nothing to clear
    monkeypatch.setattr(pictures, "png", lambda *_: None)
    monkeypatch.setattr(pictures, "html", lambda *_: None)
    monkeypatch.setattr(report, "importance", lambda _: "none")

    def call(*words: object, name: str = "s") -> tuple[report.Search, str]:
        capsys.readouterr()
        folder = search(["fake", *map(str, words), "--out", str(tmp_path), "--name", name])
        return report.load(folder), capsys.readouterr().out

    return call
