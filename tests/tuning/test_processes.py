"""Searches in processes of their own, as a user starts them: killed, shared by workers, and on the real pipeline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import runs
from tuning import report


def start(environment: dict[str, str], out: Path, *words: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "tuning.search", "fake", "--out", str(out), "--name", "s", *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def begun(out: Path) -> list[list[str]]:
    """What the fake pipeline notes when a training begins: run, process, whether it is a continuation."""
    path = out / "s/runs/begun.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def alive(pid: str) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_killed_search_goes_on_where_it_was(tmp_path, environment):
    words = ("--trials", 3, "--trouble", "hang")  # the second training goes on until it is killed
    first = start(environment, tmp_path, *words)
    until(lambda: len(begun(tmp_path)) == 2)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    again = start(environment, tmp_path, *words)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert "continuing" in said and "1 of 3 trials are done" in said
    lines = begun(tmp_path)
    assert [line[2] for line in lines] == ["False", "False", "True", "False"]
    assert lines[1][0] == lines[2][0], "the run under way is continued in its folder"
    assert len({line[0] for line in lines}) == 3
    assert len(report.load(tmp_path / "s").finished) == 3
    assert "Traceback" not in said


def test_workers_share_a_search_outlive_a_death_and_end_with_their_parent(tmp_path, environment):
    words = ("--trials", 8, "--nap", 0.8, "--workers", 2, "--tuner", "bayesian", "--trouble", "die")
    first = start(environment, tmp_path, *words)
    until(
        lambda: len({pid for _, pid, _ in begun(tmp_path)}) == 3
    )  # two workers, and the one that took a dead one's place
    first.send_signal(signal.SIGKILL)
    said, _ = first.communicate()
    assert "died of signal 9 in trial" in said and "it is started again" in said
    assert "worker1 | trial" in said and "worker2 | trial" in said
    workers = {pid for _, pid, _ in begun(tmp_path)}
    until(lambda: not any(alive(pid) for pid in workers), 20)
    again = start(environment, tmp_path, *words)
    said, _ = again.communicate(timeout=150)
    assert again.returncode == 0, said
    found = report.load(tmp_path / "s")
    assert len(found.finished) == 8 and not any(trial.error for trial in found.trials)
    assert len({trial.run for trial in found.trials}) == 8
    assert {trial.drawn for trial in found.trials} == {True, False}
    fresh = [run for run, _, continued in begun(tmp_path) if continued == "False"]
    assert sorted(fresh) == sorted(Path(trial.run).name for trial in found.trials), "no trial was begun twice"
    assert not any(alive(pid) for _, pid, _ in begun(tmp_path))


def test_an_error_of_a_worker_is_one_line(tmp_path, environment):
    done = start(environment, tmp_path, "--workers", 2, "--vary", "lerning_rate")
    said, _ = done.communicate(timeout=120)
    assert done.returncode == 2
    assert said.strip().splitlines()[-1].startswith("error: Expected --vary with hyperparameters of this search")
    assert said.count("error: ") == 1 and "Traceback" not in said


@pytest.mark.slow
def test_a_real_search_from_the_command_line(tmp_path, command):
    words = "image_classification --model mlp --trials 2 --epochs 1 --limit 100 --vary learning_rate width augment"
    done = command("tuning.search", *words.split(), "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "WARNING" not in done.stderr
    found = report.load(tmp_path / "image_classification-mlp-random")
    assert len(found.finished) == 2
    assert "best run: " in done.stdout and "train it again: python -m pipelines.image_classification" in done.stdout
    for trial in found.trials:
        run = runs.load(trial.run, model=False)
        assert trial.objective == run.metrics["validation"]["accuracy"]
        assert run.config.model_args == {"hidden_dims": [trial.values["width"], trial.values["width"] // 2]}
    assert (found.folder / "report.html").stat().st_size > 1e6
    assert (found.folder / "plots/search.png").exists()
    assert os.listdir(found.folder / "runs") == ["image_classification"]
