"""The demonstration runs from data to compared answers, and does not hide answers that disagree."""

from __future__ import annotations

import shutil
import socket

import numpy as np
import pytest

from pipelines import runs
from serving import demo

TRUTH = np.array(["a", "b", "b", "a"])
SURE = np.float32([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]])


@pytest.mark.slow  # a minute of processes; test_docs walks the same road by the README's commands
def test_the_whole_road_in_one_command(command, tmp_path):
    done = command("serving.demo", "--limit", 150, "--out", tmp_path / "my runs", "--exported", tmp_path / "exported")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    for step in ("-m pipelines.image_classification", "-m serving.export", "-m serving.server", "-m serving.client"):
        assert f"$ python {step}" in done.stdout
    assert "All answers agree" in done.stdout
    (folder,) = runs.find(tmp_path / "my runs")
    assert runs.is_finished(folder)
    assert len(list((folder / "pictures").iterdir())) == demo.SHOWN
    for name in ("served", "curves", "confusion_matrix", "most_wrong", "first_batch"):
        assert (folder / "plots" / f"{name}.png").stat().st_size > 5000
        assert f"{folder / 'plots' / name}.png" in done.stdout
    assert (tmp_path / "exported/image_classification/1/signature.json").exists()
    if shutil.which("curl"):
        assert '"predictions"' in done.stdout  # the curl line was run


def test_answers_that_fit_together_are_accepted():
    assert demo.disagreements(TRUTH, (TRUTH, SURE), (TRUTH, SURE), 1.0) == []


def test_answers_that_disagree_are_told():
    other = np.array(["a", "b", "a", "a"])
    assert "1 pictures" in demo.disagreements(TRUTH, (TRUTH, SURE), (other, SURE), 1.0)[0]
    assert "differ by" in demo.disagreements(TRUTH, (TRUTH, SURE), (TRUTH, SURE + np.float32(1e-4)), 1.0)[0]
    assert "differ by" in demo.disagreements(TRUTH, (TRUTH, SURE), (TRUTH, SURE * np.nan), 1.0)[0]
    assert "75.0000%" in demo.disagreements(TRUTH, (other, SURE), (other, SURE), 1.0)[0]


def test_the_table_marks_a_wrong_answer_and_only_that():
    found = np.array(["a", "b", "a", "a"])
    lines = demo.table(list("wxyz"), TRUTH, (found, SURE), (found, SURE)).splitlines()[1:]
    assert ["wrong" in line for line in lines] == [False, False, True, False]
    assert "b (80.0%)" in lines[1]


def test_a_port_in_use_is_not_taken():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        taken = other.getsockname()[1]
        assert demo.port(taken) not in (0, taken)


def test_a_command_that_fails_stops_the_demonstration():
    with pytest.raises(Exception, match="Expected this command to succeed: python -m serving.export nowhere"):
        demo.run("-m", "serving.export", "nowhere")
