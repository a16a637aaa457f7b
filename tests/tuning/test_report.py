"""The report: the random-search line, the importance, and pages that open without a network."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuning import pictures, report
from tuning.report import Search, Trial, best_so_far, expected_best


def made(
    folder: Path, results: list[float | None], *, tuner: str = "random", drawn: int = 10**6, seed: int = 0
) -> Search:
    """A search with these results; the rate decides nothing, the width everything."""
    source = random.Random(seed)
    trials = [
        Trial(
            id=str(i),
            values={"learning_rate": 10 ** source.uniform(-4, -1), "width": i % 7 * 8, "kind": source.choice("ab")},
            ended=True,
            objective=result,
            seconds=1.0,
            run=str(folder),
            error=None if result is not None else "Expected <b>more</b>. Received: less",
            drawn=i < drawn,
        )
        for i, result in enumerate(results)
    ]
    flags = {"tuner": tuner, "model": "mlp", "trials": len(trials), "failures": 3, "budget": None}
    return Search(folder, "fake", flags, trials)


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=5), st.sampled_from([1, -1]))
def test_the_random_line_is_the_mean_over_all_orderings(values, sign):
    best = max if sign > 0 else min
    orders = list(itertools.permutations(values))
    for k, expected in enumerate(expected_best(values, len(values), sign), 1):
        assert expected == pytest.approx(math.fsum(best(order[:k]) for order in orders) / len(orders), abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(1, 40))
def test_the_random_line_never_falls_and_never_passes_the_best(values, count):
    line = expected_best(values, count)
    assert len(line) == count
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(line))
    assert line[-1] <= max(values) + 1e-9
    assert count < len(values) or line[-1] == pytest.approx(max(values))


def test_the_best_so_far_passes_over_failed_trials(tmp_path, fake):
    search = made(tmp_path, [None, 0.3, None, 0.2, 0.5])
    cost, best = best_so_far(search, search.trials)
    assert cost == [1, 2, 3, 4, 5]
    assert math.isnan(best[0]) and best[1:] == [0.3, 0.3, 0.3, 0.5]


def test_the_line_of_a_guided_search_is_said_to_be_an_estimate(tmp_path, fake):
    line, sure, source = report.random_line(made(tmp_path, [0.1, 0.2, 0.3, 0.9, 0.9], tuner="bayesian", drawn=3))
    assert sure == 3 and line[2:] == pytest.approx([0.3, 0.3, 0.3])
    assert "expected from the 3 random trials" in source


def test_importance_finds_what_decides(tmp_path, fake):
    results = [0.5 + 0.01 * (i % 7) for i in range(42)]
    share, score = report.importance(made(tmp_path, results))
    assert next(iter(share)) == "width" and share["width"] > 0.5 > 10 * abs(share["learning_rate"])
    assert score > 0.8


def test_importance_of_noise_is_said_to_mean_nothing(tmp_path, fake):
    source = random.Random(1)
    _, score = report.importance(made(tmp_path, [source.random() for _ in range(20)]))
    assert score < 0.3
    assert "mean nothing" in pictures.trust(-0.1)


def test_too_few_trials_have_no_importance(tmp_path, fake):
    assert report.importance(made(tmp_path, [0.1] * 5)) == "too few trials for an importance: 5 of at least 8"
    assert "same result" in report.importance(made(tmp_path, [0.1] * 9))


def test_axes_place_every_value_between_their_ends(tmp_path, fake):
    search = made(tmp_path, [0.1 * i for i in range(20)])
    for name in search.names:
        values, marks, labels = pictures.axis(search, name)
        assert len(values) == 20 and len(marks) == len(labels)
        assert min(marks) <= min(values) + 1e-9 and max(values) <= max(marks) + 1e-9
    assert pictures.axis(search, "learning_rate")[0][0] == pytest.approx(
        math.log10(search.trials[0].values["learning_rate"])
    )


@pytest.mark.parametrize("results", [[0.4], [0.5 + 0.01 * (i % 7) for i in range(12)] + [None]], ids=["one", "many"])
def test_the_page_opens_without_a_network_and_names_every_trial(tmp_path, fake, results, monkeypatch):
    monkeypatch.setattr(pictures, "best_command", lambda _: "python -m pipelines.fake --epochs '<3>'")
    search = made(tmp_path, results)
    weights = report.importance(search)
    page = pictures.html(search, weights, ["12 trials"], tmp_path / "report.html").read_text()
    assert "plotly" in page and "Parallel coordinates" in page and "Importance" in page
    assert "<script src=" not in page and "<link" not in page
    assert "--epochs &#x27;&lt;3&gt;&#x27;" in page
    assert page.count("<tr>") == len(results) + 1
    assert ("&lt;b&gt;more&lt;/b&gt;" in page) == (None in results)
    png = pictures.png(search, weights, tmp_path / "plots/search.png")
    assert png.read_bytes()[:4] == b"\x89PNG"


def test_a_search_without_a_result_is_no_success(tmp_path, fake):
    with pytest.raises(report.Failure, match="give the search more time"):
        report.check(made(tmp_path, []))
    with pytest.raises(report.Failure, match="2 that failed"):
        report.check(made(tmp_path, [None, None]))
