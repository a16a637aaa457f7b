"""Series from the built-in sets and from CSV files: grid, gaps, columns, splits by time, and what cannot be read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipelines.config import Failure, UsageError
from pipelines.datasets import tiny_series, windows
from pipelines.datasets.rows import Columns, read_csv
from pipelines.datasets.series import describe, read_frame, read_named


def csv(tmp_path, text: str):
    (tmp_path / "data.csv").write_text(text)
    return read_csv(tmp_path / "data.csv")


def months(count: int, start: str = "2000-01") -> list[str]:
    return [str(month) for month in np.datetime64(start) + np.arange(count)]


def table(values, columns: Columns = Columns(), dates=None, **kwargs):  # noqa: B008 (frozen)
    frame = pd.DataFrame({"date": dates or months(len(values)), "x": [str(v) if v is not None else "" for v in values]})
    return read_frame(frame, columns, **kwargs)


def test_tiny_co2_is_monthly_with_five_gaps():
    frame, about, source = read_named("tiny_co2")
    found = read_frame(frame, Columns(time="date", targets=("co2",)), season=about["season"])
    assert (describe(found.frequency), found.season, found.lengths) == ("monthly", 12, (526,))
    assert np.isnan(found.values).sum() == 5 and 310 < np.nanmin(found.values) < np.nanmax(found.values) < 375
    assert str(np.datetime64(int(found.moments[-1]), "s"))[:7] == "2001-12" and "Mauna Loa" in source


def test_tiny_sunspots_is_yearly():
    frame, about, _ = read_named("tiny_sunspots")
    found = read_frame(frame, Columns(time="date"), season=about["season"])
    assert (describe(found.frequency), found.season, found.lengths) == ("yearly", 11, (309,))
    assert found.values[0, 0] == 5 and not np.isnan(found.values).any()


def test_tiny_series_has_the_structure_that_it_claims():
    """Regression on the complete columns finds the effects that generated them."""
    shop = tiny_series.generate(1)
    t = np.arange(1, tiny_series.DAYS)
    week = np.eye(7)[(t + 4) % 7]
    design = np.column_stack([week, t, shop["temperature"][:-1], shop["promotion"][1:]])
    effects, residual, *_ = np.linalg.lstsq(design, shop["demand"][1:], rcond=None)
    np.testing.assert_allclose(effects[-3:], [0.02, 0.8, 6.0], atol=0.25)
    assert abs(np.sqrt(residual[0] / len(t)) - 1) < 0.1
    share = np.polyfit(shop["demand"][:-2], shop["returns"][2:], 1)
    np.testing.assert_allclose(share[0], 0.3, atol=0.02)


def test_tiny_series_comes_as_three_series_with_gaps_and_covariates():
    frame, about, _ = read_named("tiny_series")
    columns = Columns(
        about["time"], tuple(about["targets"]), tuple(about["past"]), tuple(about["known"]), about["series"]
    )
    found = read_frame(frame, columns)
    assert found.names == ("north", "south", "west") and found.lengths == (730,) * 3
    assert found.values.shape == (2190, 3) and found.known.shape == (2190, 1)
    assert np.isnan(found.values[300:307]).all() and describe(found.frequency) == "daily"
    complete = tiny_series.generate(2)["demand"]
    there = ~np.isnan(found.values[found.of(2), 0])
    np.testing.assert_allclose(found.values[found.of(2), 0][there], complete[there], rtol=1e-5)


def test_gaps_and_empty_cells_are_missing_and_stay_on_the_grid(tmp_path):
    frame = csv(tmp_path, "day,x\n2001-01-01,1\n2001-01-02,\n2001-01-05,5\n2001-01-06,6\n2001-01-07,7\n")
    found = read_frame(frame, Columns())
    np.testing.assert_array_equal(found.values[:, 0], [1, np.nan, np.nan, np.nan, 5, 6, 7])
    assert found.columns.time == "day" and found.columns.targets == ("x",) and found.season == 7
    np.testing.assert_array_equal(np.diff(found.moments), 86_400)


def test_long_rows_become_series_and_wide_columns_too():
    long = pd.DataFrame(
        {
            "shop": ["b", "a", "b", "a", "b", "a"],
            "date": ["2001", "2000", "2002", "2001", "2003", "2002"],
            "sold": ["1", "10", "2", "20", "3", "30"],
        }
    )
    found = read_frame(long, Columns(series="shop"))
    assert found.names == ("b", "a") and found.lengths == (3, 3)
    np.testing.assert_array_equal(found.values[:, 0], [1, 2, 3, 10, 20, 30])
    wide = pd.DataFrame({"date": months(3), "a": ["1", "2", "3"], "b": ["4", "5", "6"], "sun": ["0", "1", "0"]})
    channels = read_frame(wide, Columns(known=("sun",)))
    assert channels.values.shape == (3, 2) and channels.names == ("",)
    melted = read_frame(wide, Columns(known=("sun",)), melt=True)
    assert melted.names == ("a", "b") and melted.columns.targets == ("value",)
    np.testing.assert_array_equal(melted.values[:, 0], [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(melted.known[:, 0], [0, 1, 0, 0, 1, 0])


@pytest.mark.parametrize(
    ("dates", "name"),
    [
        (["2001", "2002", "2003", "2005"], "yearly"),
        (["2001-01-31", "2001-02-28", "2001-03-31", "2001-05-31"], "monthly"),
        (["2001-02-15", "2001-05-15", "2001-08-15", "2001-11-15"], "quarterly"),
        (["2001-01-03", "2001-01-10", "2001-01-17", "2001-01-31"], "weekly"),
        (["2001-01-01 00:00", "2001-01-01 01:00", "2001-01-01 02:00", "2001-01-02 02:00"], "hourly"),
        (["0", "900", "1800", "3600"], "every 900 seconds"),
        (["2001-02-27", "2001-02-28", "2001-03-01", "2001-03-02"], "daily"),
    ],
)
def test_the_frequency_is_found_in_the_dates_gaps_or_not(dates, name):
    found = table(range(4), Columns(time="date"), dates=dates)
    assert describe(found.frequency) == name
    assert (~np.isnan(found.values)).sum() == 4


def test_dates_of_other_formats_are_read_by_their_format(tmp_path):
    frame = csv(tmp_path, "when;x\n".replace(";", ",") + "31.01.2001,1\n01.02.2001,2\n02.02.2001,4\n")
    found = read_frame(frame, Columns(), date_format="%d.%m.%Y")
    assert describe(found.frequency) == "daily" and found.lengths == (3,)


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        ("2001,1\n2002,2\n2003,x\n", {"targets": ("x",)}, "'x' in line 4"),
        ("2001,1\n2002,2\nlater,3\n", {"time": "date"}, "'later' in line 4"),
        ("2001,1\n2003,2\n2002,3\n", {}, "in the order of time.*2002.*line 4"),
        ("2001,1\n2002,2\n2002,3\n", {}, "each date once.*--id_column.*2002.*lines 3 and 4"),
        ("2001,5\n2002,5\n2003,5\n", {}, "a target that changes.*5 throughout in 'x'"),
        ("2001,\n2002,\n2003,\n", {"targets": ("x",)}, "no values in 'x'"),
        ("2001-01-01,1\n2001-01-02,2\n2001-01-03,3\n2001-01-04T07:00,4\n", {}, "regular grid, daily.*07:00"),
        ("2001,1\n2002,2\n", {}, "several dates.*Received: 2"),
        ("2001,1\n2002,inf\n2003,2\n", {"targets": ("x",)}, "'inf' in line 3"),
        ("", {}, "Expected rows under the header"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, rows, columns, said):
    with pytest.raises(Failure, match=said):
        read_frame(csv(tmp_path, f"date,x\n{rows}"), Columns(**columns))


def test_unsorted_rows_can_be_sorted_on_request():
    found = table([1, 3, 2], dates=["2001", "2003", "2002"], sort=True)
    np.testing.assert_array_equal(found.values[:, 0], [1, 2, 3])


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"targets": ("slod",)}, "Did you mean 'sold'"),
        ({"time": "dat"}, "Did you mean 'date'"),
        ({"series": "shop"}, r"\(date, sold, note\).*'shop'"),
        ({"targets": ("sold",), "known": ("sold",)}, "one role"),
        ({"time": "date", "past": ("sold",)}, "a column of numbers to forecast"),
    ],
)
def test_columns_that_are_not_there_are_usage_errors(columns, said):
    frame = pd.DataFrame({"date": ["2001", "2002"], "sold": ["1", "2"], "note": ["a", "b"]})
    with pytest.raises(UsageError, match=said):
        read_frame(frame, Columns(**columns))


def test_rows_without_dates_and_files_that_are_not_there_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="a column of dates"):
        read_frame(pd.DataFrame({"a": ["x", "y"], "b": ["1", "2"]}), Columns())
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UsageError, match="CSV file"):
            read_csv(path)
    with pytest.raises(UsageError, match="rows with a date"):
        read_named("tiny_digits")


def test_splits_follow_each_other_in_time_in_every_series():
    long = pd.DataFrame({"id": ["a"] * 40 + ["b"] * 50, "date": months(40) + months(50), "x": map(str, range(90))})
    found = read_frame(long, Columns(series="id"))
    parts, fitted = windows.split(found, 6, 3, 0.1)
    assert fitted.tolist() == [32, 40]
    first = {part: places[places < 40].tolist() for part, places in parts.items()}
    assert first == {"train": list(range(24)), "validation": [26, 27], "test": [30, 31]}
    second = {part: places[places >= 40] - 40 for part, places in parts.items()}
    for part, (low, high) in {"train": (0, 40), "validation": (40, 45), "test": (45, 50)}.items():
        told = second[part][:, None] + 6 + np.arange(3)
        assert told.min() == max(6, low) and told.max() + 1 == high  # no horizon leaves its part or its series


def test_windows_against_a_hand_example():
    parts, fitted = windows.split(table(range(12)), 3, 2, 0.2)
    assert fitted.tolist() == [8]
    assert {part: rows.tolist() for part, rows in parts.items()} == {
        "train": [0, 1, 2, 3],  # the last one has the history 3, 4, 5 and the horizon 6, 7
        "validation": [5],  # the history 5, 6, 7 and the horizon 8, 9
        "test": [7],
    }


def test_windows_with_nothing_to_tell_are_left_out():
    values = [float(i) for i in range(20)]
    values[6:10] = [None] * 4
    parts, _ = windows.split(table(values), 3, 2, 0.1)
    assert parts["train"].tolist() == [0, 1, 2, 8, 9, 10, 11]  # not 3, 4, 5 (horizon), 6, 7 (history)


def test_a_history_that_is_too_short_says_how_much_is_needed():
    with pytest.raises(Failure, match=r"at least 21 steps: 12 of history and 3 .* 3 each .*Received: 14"):
        windows.split(table(range(14)), 12, 3, 0.01)


def test_limits_and_strides_choose_evenly():
    parts = {"train": np.arange(100), "validation": np.arange(40), "test": np.arange(40)}
    found = windows.chosen(parts, 10, 2)
    assert {part: len(rows) for part, rows in found.items()} == {"train": 10, "validation": 8, "test": 8}
    assert found["train"][0] == 0 and found["train"][-1] == 99 and (found["test"] % 2 == 0).all()
    assert windows.chosen(parts, None, 1)["test"].tolist() == list(range(40))


def test_a_frequency_can_be_named_where_the_dates_leave_it_open():
    daily = table(range(4), dates=["2001-01-01", "2001-01-03", "2001-01-05", "2001-01-07"], frequency="daily")
    assert daily.lengths == (7,) and describe(daily.frequency) == "daily"
    with pytest.raises(Failure, match="regular grid, monthly"):
        table(range(3), dates=["2001-01-01", "2001-01-02", "2001-01-03"], frequency="monthly")
