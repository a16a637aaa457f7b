"""A search: which points it tries, that it ends and continues as it should, and what it says."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

import pytest

from pipelines import runs
from pipelines.config import Failure, UsageError, parse
from tuning import report
from tuning.search import TUNERS, main, search

QUICK = ("--vary", "learning_rate", "dropout", "layers", "optimizer")


def points(found) -> list[dict]:
    return [trial.values for trial in found.trials]


def test_a_trial_is_a_run_of_the_pipeline(run_search, fake):
    found, said = run_search("--trials", 3, "--epochs", 2)
    assert len(fake.CALLS) == 3
    for trial in found.trials:
        run = runs.load(trial.run, model=False)
        assert run.folder.parent == found.folder / "runs/fake"
        assert trial.objective == fake.score(run.config) == run.metrics["validation"]["accuracy"]
        assert run.config.epochs == 2 and run.config.learning_rate == pytest.approx(trial.values["learning_rate"], 1e-3)
        assert len(run.config.model_args["hidden_dims"]) == trial.values["layers"]
    assert found.best.objective == max(trial.objective for trial in found.trials)
    assert f"best run: {found.best.run}" in said


def test_the_command_to_paste_is_the_best_configuration(run_search, fake):
    import shlex

    found, said = run_search("--trials", 4, "--budget", "1h", "--nap", 0.01)
    line = next(line for line in said.splitlines() if line.startswith("train it again: "))
    program, words = line.split("pipelines.fake ")
    assert program == "train it again: python -m "
    pasted = parse(fake.Config, shlex.split(words))
    assert pasted.out == "runs" and pasted.budget is None and pasted.nap == 0.01
    assert fake.score(pasted) == found.best.objective


def test_flags_that_are_given_are_not_searched(run_search, fake):
    found, _ = run_search("--trials", 6, "--learning_rate", 0.003, "--model_args", "dropout=0.1", "--optimizer", "lion")
    assert not {"learning_rate", "dropout", "optimizer"} & set(found.names)
    for config in fake.CALLS:
        assert config.learning_rate == 0.003 and config.optimizer == "lion" and config.model_args["dropout"] == 0.1
    assert len({len(config.model_args["hidden_dims"]) for config in fake.CALLS}) > 1


def test_what_is_not_varied_keeps_the_pipelines_default(run_search, fake):
    run_search("--trials", 4, "--vary", "dropout=0.1,0.2,0.4,0.5")
    default = fake.Config()
    assert sorted(config.model_args["dropout"] for config in fake.CALLS) == [0.1, 0.2, 0.4, 0.5]
    for config in fake.CALLS:
        assert config.model_args.keys() == {"dropout"}
        assert (config.learning_rate, config.optimizer) == (default.learning_rate, default.optimizer)


def test_a_grid_visits_every_point_once(run_search):
    words = ("--tuner", "grid", "--vary", "layers=1,2,3", "optimizer", "dropout=0.0,0.5", "--trials", 100)
    found, said = run_search(*words)
    assert len(points(found)) == len({str(p) for p in points(found)}) == 3 * 4 * 2
    assert "the grid has 24 points" in said and "the space holds no more" in said


def test_a_grid_that_is_too_large_is_visited_all_over(run_search):
    found, _ = run_search("--tuner", "grid", "--trials", 12, *QUICK)
    for name in found.names:
        assert len({point[name] for point in points(found)}) >= 3, name


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_search_that_was_stopped_tries_what_it_would_have_tried(run_search, fake, tuner):
    words = ("--tuner", tuner, "--trials", 9, *QUICK)
    whole, _ = run_search(*words, name="whole")
    fake.CALLS.clear()
    with pytest.raises(KeyboardInterrupt):
        run_search(*words, "--trouble", "stop:6", name="stopped")
    before = list(fake.CALLS)
    fake.CALLS.extend([None] * 10)  # the call that stops is past
    stopped, said = run_search(*words, "--trouble", "stop:6", name="stopped")
    assert points(stopped) == points(whole)
    assert len(before) == 6 and len(fake.CALLS) == 6 + 10 + 4
    assert "5 of 9 trials are done" in said
    assert all(trial.objective for trial in stopped.trials)


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_kill_between_two_files_repeats_nothing(run_search, fake, tuner, tmp_path, monkeypatch):
    words = ("--tuner", tuner, "--trials", 5, *QUICK)
    real, state = fake.main, tmp_path / "s/oracle.json"

    def keep(config):
        if len(fake.CALLS) == 2:
            shutil.copy(state, tmp_path / "then.json")  # the third trial is under way
        if len(fake.CALLS) == 3:
            raise KeyboardInterrupt
        return real(config)

    monkeypatch.setattr(fake, "main", keep)
    with pytest.raises(KeyboardInterrupt):
        run_search(*words)
    monkeypatch.setattr(fake, "main", real)
    shutil.copy(tmp_path / "then.json", state)  # as if killed after trial.json of the third, before oracle.json
    found, _ = run_search(*words)
    assert len(fake.CALLS) == 5 and len(found.finished) == 5


def test_a_finished_search_only_reports(run_search, fake):
    first, said = run_search("--trials", 3)
    again, repeated = run_search("--trials", 3)
    assert len(fake.CALLS) == 3 and points(first) == points(again)
    assert said.splitlines()[-6:] == repeated.splitlines()[-6:]
    more, _ = run_search("--trials", 5)
    assert points(more)[:3] == points(first) and len(more.finished) == 5


def test_another_command_in_the_same_folder_is_refused(run_search):
    run_search("--trials", 2)
    with pytest.raises(UsageError, match=r"there epochs is 9; another search takes another --name. Received: 4"):
        run_search("--trials", 2, "--epochs", 4)


def test_bayesian_search_comes_closer_than_random_search(run_search):
    words = ("--trials", 15, "--vary", "learning_rate", "dropout")
    best, missed = 0.95 - 0.2 / 9, {"bayesian": 0.0, "random": 0.0}
    for seed in range(2):
        for tuner in missed:
            found, _ = run_search("--tuner", tuner, "--seed", seed, *words, name=f"{tuner}{seed}")
            missed[tuner] += best - found.best.objective
            assert [trial.drawn for trial in found.trials] == [True] * 5 + [tuner == "random"] * 10
    assert missed["bayesian"] < missed["random"] / 3, missed


def test_a_comparison_with_random_search_is_run_and_drawn(run_search, fake):
    words = ("--tuner", "bayesian", "--trials", 5, "--vary", "learning_rate", "dropout", "--compare_random")
    found, said = run_search(*words)
    assert len(fake.CALLS) == 10 and len(found.trials) == 5
    rivals = report.load(found.folder / "random")
    assert all(trial.drawn for trial in rivals.trials)
    line, sure, source = report.random_line(found)
    assert len(line) == sure == 5 and source == "random search, 5 trials of its own"
    assert line[-1] == pytest.approx(rivals.best.objective)
    assert said.splitlines()[-3].startswith(f"best run: {found.folder / 'runs'}")
    run_search(*words)
    assert len(fake.CALLS) == 10


def test_a_bayesian_search_does_not_repeat_itself(run_search):
    found, _ = run_search("--tuner", "bayesian", "--trials", 9, "--vary", "optimizer", "layers=1,2,3")
    assert len({str(point) for point in points(found)}) == 9


def test_hyperband_gives_the_better_third_more_epochs(run_search, fake):
    _, said = run_search("--tuner", "hyperband", "--trials", 2, *QUICK)
    assert "note: no trial gets all 9 epochs before trial 13" in said
    fake.CALLS.clear()
    found, said = run_search("--tuner", "hyperband", "--trials", 17, *QUICK, name="enough")
    assert "note" not in said
    epochs = [trial.values["epochs"] for trial in found.trials]
    assert epochs[:13] == [1] * 9 + [3] * 3 + [9], epochs
    assert [config.epochs for config in fake.CALLS] == epochs
    plain = [{k: v for k, v in point.items() if k != "epochs"} for point in points(found)]
    better = sorted(found.trials[:9], key=lambda trial: -trial.objective)[:3]
    assert all(plain[found.trials.index(trial)] in plain[9:12] for trial in better)
    assert found.trials[0].cost == pytest.approx(1 / 9)


def test_an_infeasible_point_is_a_failed_trial_and_not_the_end(run_search):
    found, said = run_search("--trials", 8, "--trouble", "wide", "--failures", 8)
    failed = [trial for trial in found.trials if trial.error]
    assert failed and found.finished and len(failed) + len(found.finished) == 8
    assert all(trial.values["layers"] > 2 and "at most 2 layers" in trial.error for trial in failed)
    assert said.count("failed: Expected at most 2 layers for so small an image. Received: more") >= len(failed)


def test_a_bayesian_search_leaves_the_points_that_fail(run_search):
    words = ("--tuner", "bayesian", "--trials", 21, "--trouble", "wide", "--failures", 21)
    found, _ = run_search(*words, "--vary", "learning_rate", "layers")
    failed = [bool(trial.error) for trial in found.trials]
    assert any(failed[:7]) and sum(failed[7:]) <= 3, failed


def test_too_many_failures_in_a_row_end_the_search(run_search, fake):
    with pytest.raises(Failure, match="3 that failed, the last: Expected a crash"):
        run_search("--trials", 10, "--trouble", "crash")
    assert len(fake.CALLS) == 3


def test_an_error_of_usage_in_every_trial_is_the_users(run_search):
    with pytest.raises(UsageError, match="Expected better data. Received: none"):
        run_search("--trials", 5, "--trouble", "usage", "--failures", 2)


def test_a_result_that_is_no_number_fails(run_search):
    with pytest.raises(Failure, match="Expected a number as accuracy. Received: nan"):
        run_search("--trials", 5, "--trouble", "nan", "--failures", 1)


def test_the_budget_ends_the_search_and_limits_the_last_trial(run_search, fake):
    found, said = run_search("--trials", 50, "--nap", 0.4, "--budget", "2s")
    assert 1 <= len(found.trials) <= 6
    assert all(config.budget in ("1s", "2s") for config in fake.CALLS)
    assert "of 50 within 2s" in said
    again, _ = run_search("--trials", 50, "--nap", 0.4, "--budget", "2s")
    assert len(again.trials) == len(found.trials)


def test_a_run_that_cannot_be_continued_is_trained_anew(run_search, fake, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        real = fake.score
        monkeypatch.setattr(fake, "score", lambda config: (_ for _ in ()).throw(KeyboardInterrupt))
        run_search("--trials", 1)
    monkeypatch.setattr(fake, "score", real)
    (folder,) = (tmp_path / "s/runs/fake").glob("mlp-*")
    (folder / "spec.json").write_text("{broken")
    found, _ = run_search("--trials", 1)
    assert len(found.finished) == 1 and found.best.run != str(folder)
    assert "cannot be continued and is trained anew" in (found.folder / "trial_0/output.log").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fkae"], "Did you mean 'fake'"),
        (["fake", "--model", "mpl"], "Did you mean 'mlp'"),
        (["fake", "--tuner", "gird"], "Did you mean 'grid'"),
        (["fake", "--trials", "0"], "--trials of at least 1"),
        (["fake", "--workers", "0"], "--workers of at least 1"),
        (["fake", "--trails", "3"], "Did you mean '--trials'"),
        (["fake", "--resume", "x"], "the same command continues a search"),
        (["fake", "--tuner", "hyperband", "--steps", "3"], "Expected --epochs for hyperband"),
        (["fake", "--vary", "lerning_rate"], "Did you mean 'learning_rate'"),
        (["fake", "--vary", "dropout=a,b"], "with values like 0.0"),
        (["fake", "--vary", "dropout=0.1,0.1"], "with different values"),
        (["fake", "--vary", "optimizer=adam,adamm"], "Did you mean 'adam'"),
        (["fake", "--vary", "dropout", "--model_args", "dropout=0.1"], "--vary with hyperparameters of this search"),
    ],
)
def test_a_wrong_command_is_an_error_of_usage(words, message, fake, tmp_path):
    with pytest.raises(UsageError, match=message):
        main([*words, *(["--out", str(tmp_path)] if len(words) > 1 else [])])
    assert not fake.CALLS


def test_two_processes_do_not_work_on_one_search(tmp_path, fake):
    (tmp_path / "s").mkdir()
    held = runs.Lock(tmp_path / "s")
    assert held.take()
    with pytest.raises(Failure, match="which is running"):
        search(["fake", "--out", str(tmp_path), "--name", "s"])
    held.release()


def test_help_is_quick_and_imports_no_tensorflow():
    words = ["-X", "importtime", "-m", "tuning.search", "image_classification", "--help"]
    begin = time.monotonic()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0 and "--tuner" in done.stdout and "--learning_rate" in done.stdout
    assert "tensorflow" not in done.stderr and "keras" not in done.stderr
    assert time.monotonic() - begin < 5  # under a second on a machine with nothing else to do
