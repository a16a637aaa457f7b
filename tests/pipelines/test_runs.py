"""The run folder: what a finished one holds, and the tools that list, compare and prune."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines import image_classification, runs
from pipelines.config import Failure, UsageError


def test_a_finished_run_holds_what_the_contract_says(tiny_run):
    names = {path.name for path in tiny_run.iterdir()}
    assert names >= {"config.json", "spec.json", "metrics.json", "state.json", "history.csv", "model.keras", "card.md"}
    assert {p.name for p in (tiny_run / "plots").iterdir()} == {
        "first_batch.png",
        "curves.png",
        "confusion_matrix.png",
        "most_wrong.png",
    }
    assert any((tiny_run / "logs").iterdir())
    assert not list(tiny_run.rglob("*part*"))
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    assert {"validation", "test", "baseline", "train_seconds", "peak_memory_mb", "versions"} <= metrics.keys()
    assert metrics["baseline"]["majority_accuracy"] < 0.2 < metrics["baseline"]["accuracy"]
    assert len(runs.history(tiny_run)) == 2
    assert f"{metrics['test']['accuracy']:.4f}" in (tiny_run / "card.md").read_text()


def test_what_was_evaluated_is_what_is_saved(tiny_run):
    run = runs.load(tiny_run)
    data = image_classification.load_data(run.config)
    assert run.spec == json.loads(json.dumps(data.spec))
    labels, probabilities = image_classification.predict(run.model, data.test, run.spec)
    assert np.mean(labels == probabilities.argmax(-1)) == pytest.approx(run.metrics["test"]["accuracy"], abs=1e-6)


def test_the_saved_weights_are_the_best_by_validation(tiny_run):
    rows = runs.history(tiny_run)
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    best = max(row["val_accuracy"] for row in rows)
    assert metrics["validation"]["accuracy"] == pytest.approx(best, abs=1e-6)


@pytest.fixture
def folders(tmp_path) -> Path:
    """Runs that never were: three finished ones, a failed and an interrupted one."""
    for i, state in enumerate(["finished", "finished", "finished", "failed", "running"]):
        folder = tmp_path / "image_classification" / f"convnet-{i}"
        folder.mkdir(parents=True)
        runs.write_json(folder / "state.json", {"task": "image_classification", "state": state, "error": "no luck"})
        runs.write_json(folder / "config.json", {"model": "convnet", "seed": i, "out": str(i)})
        if state == "finished":
            parts = {"validation": {"accuracy": 0.5 + i / 10}, "test": {"accuracy": 0.4}, "baseline": {"accuracy": 0.3}}
            runs.write_json(folder / "metrics.json", {"objective": ["accuracy", "max"], **parts})
            rows = [{"epoch": e, "val_loss": 1 / e, "seconds": 2.5, "learning_rate": 0.1} for e in (1, 2)]
            (folder / "history.csv").write_text(
                "\n".join([",".join(rows[0]), *(",".join(map(str, r.values())) for r in rows)])
            )
    return tmp_path


def test_listing_shows_states_and_results(folders):
    shown = runs.list_runs(str(folders), None).splitlines()
    assert len(shown) == 6
    assert sum("finished" in line for line in shown) == 3
    assert sum("interrupted" in line for line in shown) == 1
    assert any("failed" in line and "no luck" in line for line in shown)
    assert any("0.7000" in line and "0.4000" in line and "0.3000" in line for line in shown)


def test_comparing_shows_what_differs_and_draws_the_curves(folders, capsys):
    found = [str(folders / "image_classification" / f"convnet-{i}") for i in (0, 1)]
    runs.main(["compare", *found, "--plot", str(folders / "c.png")])
    shown = capsys.readouterr().out
    assert "--seed" in shown and "--model" not in shown and "--out" not in shown
    assert (folders / "c.png").stat().st_size > 5000


def test_pruning_leaves_the_best_and_what_runs(folders):
    lock = runs.Lock(folders / "image_classification/convnet-4")
    assert lock.take()
    assert {f.name for f in runs.prunable(str(folders), 1)} == {"convnet-0", "convnet-1", "convnet-3"}
    lock.release()
    runs.main(["prune", "--keep", "0", "--yes", "--out", str(folders), "--task", "another"])
    assert len(runs.find(folders)) == 5
    with pytest.raises(UsageError, match="at least 0"):
        runs.main(["prune", "--keep", "-1", "--yes", "--out", str(folders)])
    runs.main(["prune", "--keep", "2", "--yes", "--out", str(folders)])
    assert {f.name for f in runs.find(folders)} == {"convnet-1", "convnet-2"}


def test_a_run_that_starts_while_pruning_is_left_alone(folders, capsys):
    folder = folders / "image_classification/convnet-4"
    lock = runs.Lock(folder)
    assert lock.take()
    runs.delete(folder)
    lock.release()
    assert folder.exists() and "left alone" in capsys.readouterr().out


def test_a_damaged_run_is_listed_as_damaged_and_never_pruned(folders):
    (folders / "image_classification/convnet-3/state.json").write_text("{")
    (folders / "image_classification/convnet-0/metrics.json").write_text("{}")
    states = [line.split()[1] for line in runs.list_runs(str(folders), None).splitlines()[1:]]
    assert sorted(states) == ["damaged", "damaged", "finished", "finished", "interrupted"]
    assert {f.name for f in runs.prunable(str(folders), 0)} == {"convnet-1", "convnet-2", "convnet-4"}


@pytest.mark.parametrize("name", ["config.json", "spec.json", "metrics.json", "model.keras"])
def test_a_damaged_run_folder_is_refused_by_the_name_of_the_file(tiny_run, tmp_path, name):
    copy = shutil.copytree(tiny_run, tmp_path / "copy")
    (copy / name).write_bytes((copy / name).read_bytes()[:20])
    with pytest.raises(Failure, match=name):
        runs.load(copy)


def test_a_failed_run_says_so_and_why(tmp_path):
    config = image_classification.Config(out=str(tmp_path))
    with pytest.raises(RuntimeError), runs.start("image_classification", config, {}) as folder:
        raise RuntimeError("the sky fell")
    assert runs.state(folder)["state"] == "failed"
    with pytest.raises(UsageError, match="failed .the sky fell."):
        runs.load(folder)


def test_no_half_written_folder_passes_for_a_finished_one(tmp_path):
    config = image_classification.Config(out=str(tmp_path))
    with (
        pytest.raises(Failure, match="Expected metrics.json"),
        runs.start("image_classification", config, {}) as folder,
    ):
        pass
    assert runs.state(folder)["state"] == "failed"


@pytest.mark.parametrize("words", [("pipelines",), ("pipelines.runs",), ("pipelines.image_classification", "--help")])
def test_listing_answers_at_once_because_it_imports_nothing_heavy(command, words, tmp_path):
    for name in ("tensorflow", "keras", "tensorflow_datasets", "numpy", "sklearn", "pandas", "matplotlib"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    done = command(*words, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_bare_pipelines_lists_tasks_with_models_and_data(command):
    shown = command("pipelines").stdout
    assert "image_classification: Which one" in shown
    assert all(model in shown for model in image_classification.MODELS)
    assert "tiny_digits" in shown
