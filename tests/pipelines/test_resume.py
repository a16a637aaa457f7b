"""Exact resume: a run that was killed, however often and whenever, ends like one that never was."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines import checkpoints, image_classification, runs
from pipelines.config import Failure, UsageError, command_line

ROOT = Path(__file__).parents[2]

# Everything that is random or has a memory: dropout, augmentation, MixUp, averages, momentum, a schedule.
FLAGS = {
    "model": "convnet",
    "model_args": {"widths": (8, 16), "depth": 1, "dropout": 0.2},
    "limit": 400,
    "epochs": 20,
    "batch_size": 20,
    "augment": ("translate", "rotate", "mixup"),
    "ema": 0.9,
    "patience": 20,
    "steps_per_execution": 5,  # an epoch has 20: checkpoints may fall within it
}


def final(folder: Path) -> dict[str, list[np.ndarray]]:
    """All variables after the last step, and the saved weights."""
    arrays, _ = checkpoints.latest(folder / "checkpoints")
    return arrays | {"saved": list(runs.load(folder).model.get_weights())}


def assert_equal(one: Path, other: Path) -> None:
    left, right = final(one), final(other)
    assert left.keys() == right.keys()
    for group in left:
        assert len(left[group]) == len(right[group]) > 0
        for a, b in zip(left[group], right[group]):
            np.testing.assert_array_equal(a, b, err_msg=group)
    drop = {"seconds"}
    rows = [[{k: v for k, v in r.items() if k not in drop} for r in runs.history(f)] for f in (one, other)]
    assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return image_classification.Config(out=str(tmp_path_factory.mktemp("runs")), **FLAGS)


@pytest.fixture(scope="module")
def undisturbed(config) -> Path:
    return image_classification.main(config)


def is_worked_on_by(pid: int, folder: Path) -> bool:
    return json.loads((folder / "state.json").read_text())["pid"] == pid


def test_a_run_killed_three_times_ends_bit_for_bit_like_one_never_killed(config, undisturbed, tmp_path):
    seed = os.environ.get("KILL_SEED") or str(random.randrange(2**32))
    print(f"kill moments by KILL_SEED={seed}")
    moments = random.Random(seed)
    config = replace(config, out=str(tmp_path))
    share = json.loads((undisturbed / "metrics.json").read_text())["train_seconds"] / 4
    folder: Path | None = None
    for _ in range(3):
        arguments = ["--resume", str(folder)] if folder else shlex.split(command_line(config))
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.image_classification", *arguments],
            cwd=ROOT,
            env=dict(os.environ),
            stdout=subprocess.DEVNULL,
        )
        while process.poll() is None and not any(is_worked_on_by(process.pid, run) for run in runs.find(tmp_path)):
            time.sleep(0.01)
        time.sleep(moments.uniform(0, share))  # from before the first checkpoint on, within an epoch or not
        assert process.poll() is None, "the process ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        folder = runs.find(tmp_path)[0]
        assert runs.state(folder)["state"] == "interrupted"
        assert not (folder / "model.keras").exists()
    with pytest.raises(UsageError, match="interrupted.*--resume"):
        runs.load(folder)
    assert image_classification.main(image_classification.Config(resume=str(folder))) == folder
    assert runs.state(folder)["state"] == "finished"
    assert_equal(undisturbed, folder)


@pytest.mark.slow
def test_a_run_stopped_within_an_epoch_is_continued_within_it(config, undisturbed, tmp_path, monkeypatch):
    class Stop(BaseException):
        pass

    original = checkpoints.ExactResume.on_train_batch_end

    def stop_at_step_31(self, batch, logs=None):
        original(self, batch, logs)
        if self.step >= 30 and self.step % 20:
            self.save()
            self.wait()
            raise Stop("pulled the plug")

    monkeypatch.setattr(checkpoints.ExactResume, "on_train_batch_end", stop_at_step_31)
    # Fewer steps in a call than in an epoch, so that there is a within.
    config = replace(config, out=str(tmp_path), epochs=3, steps_per_execution=5)
    with pytest.raises(Stop):
        image_classification.main(config)
    monkeypatch.undo()
    folder = runs.find(tmp_path)[0]
    assert runs.state(folder) | {"error": "pulled the plug", "state": "failed"} == runs.state(folder)
    assert checkpoints.latest(folder / "checkpoints")[1]["step"] == 30
    image_classification.main(image_classification.Config(resume=str(folder)))
    assert_equal(image_classification.main(config), folder)


def test_two_runs_with_one_seed_are_equal_and_another_seed_differs(config, tmp_path):
    config = replace(config, out=str(tmp_path), epochs=2)
    first, second = image_classification.main(config), image_classification.main(config)
    assert_equal(first, second)
    spec = runs.load(first).spec
    one, other = (image_classification.build_model(replace(config, seed=s), spec).get_weights() for s in (0, 1))
    assert any((a != b).any() for a, b in zip(one, other))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, capsys):
    for step in (1, 2):
        checkpoints.write(tmp_path, step, {"model": [np.full(3, step)]}, {"step": step})
    newest = sorted(tmp_path.glob("*.npz"))[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    assert checkpoints.latest(tmp_path)[1]["step"] == 1
    assert newest.name in capsys.readouterr().out
    for path in tmp_path.glob("*.npz"):
        path.write_bytes(b"not a checkpoint")
    with pytest.raises(Failure, match="2 damaged files"):
        checkpoints.latest(tmp_path)


def test_only_the_newest_checkpoints_are_kept_and_no_part_stays(tmp_path):
    for step in range(5):
        checkpoints.write(tmp_path, step, {"model": [np.zeros(2)]}, {"step": step})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003.npz", "step-00000004.npz"]


def test_resume_refuses_other_flags_other_tasks_and_what_is_no_run(undisturbed, tmp_path):
    with pytest.raises(UsageError, match="keeps its own flags. Received: --epochs"):
        image_classification.main(image_classification.Config(resume=str(undisturbed), epochs=3))
    with pytest.raises(UsageError, match="Expected a run folder"):
        image_classification.main(image_classification.Config(resume=str(tmp_path)))


def test_a_finished_run_is_left_alone(undisturbed, capsys):
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*")}
    image_classification.main(image_classification.Config(resume=str(undisturbed)))
    assert "already finished" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*")}


def test_a_run_that_a_process_works_in_cannot_be_resumed(tmp_path):
    config = image_classification.Config(out=str(tmp_path))
    with runs.start("image_classification", config, {}) as folder:
        with pytest.raises(Failure, match="still running"):
            with runs.start("image_classification", replace(config, resume=str(folder)), {}):
                pass
        assert runs.state(folder)["state"] == "running"
        for name in runs.FINISHED_FILES:
            (folder / name).touch()
    assert runs.state(folder)["state"] == "finished"
