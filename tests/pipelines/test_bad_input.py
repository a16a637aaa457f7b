"""Bad input: one clear line, the right exit code, no traceback, and nothing half-written that passes for a run."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import pipelines
from pipelines import runs
from pipelines.config import run_cli

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cli(capfd, tmp_path):
    """Run the pipeline's command line in this process: its exit code and what it said on stderr."""

    def call(*words: object) -> tuple[int, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_cli(pipelines.get("image_classification"), [*map(str, words), "--out", str(tmp_path / "runs")])
        said = "\n".join(line for line in capfd.readouterr().err.splitlines() if "absl" not in line)
        return stopped.value.code, said

    return call


def pictures(folder: Path, count: int, side: int = 8) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("L", (side, side), i).save(folder / f"{i}.png")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "resnte"], "Did you mean 'resnet'?"),
        (["--bach_size", "3"], "Did you mean '--batch_size'?"),
        (["--dataset", "tiny_digit"], "Did you mean 'tiny_digits'?"),
        (["--model_args", "widhts=8,8"], "Did you mean 'widths'?"),
        (["--model_args", "depth=zero"], "Received: "),
        (["--model", "resnet", "--size", "51"], "one of 20, 56, 110, 18"),
        (["--augment", "flipp"], "Did you mean 'flip'?"),
        (["--model", "vgg", "--size", "16"], "at least 32"),
        (["--steps_per_execution", "7"], "Expected --steps_per_execution to divide"),
        (["--resume", "nowhere"], "Expected a run folder"),
        (["--pretrained", "nowhere.h5"], "nowhere.h5"),
    ],
    ids=lambda x: "_".join(x) if isinstance(x, list) else None,
)
def test_usage_errors_exit_with_2_and_leave_no_run(cli, words, said, tmp_path):
    code, shown = cli(*words)
    assert said in shown
    assert (code, shown.count("error:"), "Traceback" in shown) == (2, 1, False), shown
    assert len(shown.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_folders_without_pictures_or_with_one_class_say_what_was_found(cli, tmp_path):
    (tmp_path / "empty").mkdir()
    pictures(tmp_path / "one/cats", 5)
    for name in ("missing", "empty", "one"):
        code, shown = cli("--data_dir", tmp_path / name)
        assert code in (1, 2) and "Expected" in shown and "Received" in shown, shown
        assert "Traceback" not in shown
    assert "cats" in shown
    assert not (tmp_path / "runs").exists()


def test_damaged_pictures_are_named_and_left_out_on_request(cli, tmp_path):
    for name in ("cats", "dogs"):
        pictures(tmp_path / "pets" / name, 20)
    (tmp_path / "pets/dogs/broken.png").write_bytes(b"\x89PNG not at all")
    code, shown = cli("--data_dir", tmp_path / "pets", "--epochs", 1)
    assert code == 1 and "broken.png" in shown and "--skip_bad" in shown
    assert not (tmp_path / "runs").exists()
    with pytest.warns(UserWarning, match=r"left out 1 of 41 .*broken\.png"):
        code, shown = cli("--data_dir", tmp_path / "pets", "--epochs", 1, "--skip_bad", "--batch_size", 8)
    assert code == 0
    assert runs.is_finished(runs.find(tmp_path / "runs")[0])


def test_a_catalogue_name_without_a_network_names_the_stand_in(cli, monkeypatch):
    monkeypatch.setattr("pipelines.datasets.catalogue.answers", lambda address: False)
    code, shown = cli("--dataset", "cmaterdb")
    assert code == 1 and "tiny_digits" in shown and len(shown.splitlines()) == 1, shown


def test_a_damaged_checkpoint_ends_a_resume_and_keeps_the_folder(cli, tmp_path, monkeypatch):
    from pipelines import training

    def power_cut(*args, **kwargs):
        raise RuntimeError("power cut")

    monkeypatch.setattr(training, "fit", power_cut)
    code, shown = cli("--limit", 100)
    assert (code, "power cut" in shown) == (1, True)
    folder = runs.find(tmp_path / "runs")[0]
    assert runs.state(folder)["error"] == "power cut"
    monkeypatch.undo()
    (folder / "checkpoints/step-00000001.npz").write_bytes(b"no archive")
    with pytest.raises(SystemExit):
        run_cli(pipelines.get("image_classification"), ["--resume", str(folder)])
    assert "1 damaged files" in runs.state(folder)["error"]


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_line_and_leaves_nothing_that_passes_for_finished(tmp_path):
    """The limit is on the size of a file: the system answers as on a full disk, with another number."""

    def small_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    words = ["--limit", "100", "--epochs", "2", "--model_args", "widths=16,32", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.image_classification", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=small_disk,
        timeout=200,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "error: " in done.stderr and "[Errno 27] File too large" in done.stderr
    assert "Traceback" not in done.stderr
    folder = runs.find(tmp_path)[0]
    assert runs.state(folder)["state"] == "failed"
    assert not (folder / "model.keras").exists()
