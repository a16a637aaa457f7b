"""Dates, grids, gaps and windows against Python's calendar and examples by hand; eagerly, in a graph and in tf.data."""

from __future__ import annotations

import datetime

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.transforms import series

DAYS = {"unit": "seconds", "count": 86_400, "phase": 0}
HOURS = {"unit": "seconds", "count": 3600, "phase": 0}
WEEKS = {"unit": "seconds", "count": 7 * 86_400, "phase": 2 * 86_400}  # Saturdays
MONTHS = {"unit": "months", "count": 1, "phase": 0, "day": 1, "seconds": 0}
ENDS = MONTHS | {"day": 31}
QUARTERS = {"unit": "months", "count": 3, "phase": 1, "day": 15, "seconds": 0}
YEARS = {"unit": "months", "count": 12, "phase": 0, "day": 1, "seconds": 0}
NAN = float("nan")


def at(*texts: str) -> np.ndarray:
    return np.array(texts, "datetime64[s]").astype("int64")


@given(st.dates(min_value=datetime.date(2, 1, 1)))
def test_days_and_dates_are_those_of_pythons_calendar(date):
    number = (date - datetime.date(1970, 1, 1)).days
    assert series.days(date.year, date.month, date.day) == number
    assert series.civil(number) == (date.year, date.month, date.day)
    after = date.replace(day=1) + datetime.timedelta(days=31)
    assert series.month_length(date.year, date.month) == (after.replace(day=1) - datetime.timedelta(days=1)).day


def test_tensors_and_arrays_have_the_same_calendar():
    numbers = np.arange(-800_000, 800_000, 977)
    for array, tensor in zip(series.civil(numbers), series.civil(tf.constant(numbers))):
        np.testing.assert_array_equal(array, tensor)
    for frequency in (DAYS, WEEKS, ENDS, QUARTERS, YEARS):
        places = series.position(numbers * 86_400, frequency)
        np.testing.assert_array_equal(places, series.position(tf.constant(numbers * 86_400), frequency))
        moments = series.moment(places, frequency)
        np.testing.assert_array_equal(moments, series.moment(tf.constant(places), frequency))
        np.testing.assert_array_equal(series.position(moments, frequency), places)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2001", "2001-01-01"),
        ("1958-03", "1958-03-01"),
        ("2000-02-29", "2000-02-29"),
        ("2001-12-31T23:59", "2001-12-31T23:59"),
        ("2001-12-31 23:59:58", "2001-12-31T23:59:58"),
        (" 2001-12-31T23:59:58.25Z ", "2001-12-31T23:59:58"),
        ("2001-12-31 23:59Z", "2001-12-31T23:59"),
        ("0033-04-03", "0033-04-03"),
    ],
)
def test_dates_are_read_as_iso_8601_writes_them(text, moment):
    read = tf.function(series.read_dates)
    for found in (series.read_dates(tf.constant([text])), read(tf.constant([text]))):
        assert found[0].numpy() == at(moment) and found[1].numpy() == [True]


def test_an_empty_date_is_no_date():
    moments, given_ = series.read_dates(tf.constant([["", "2001-01-01"], [" ", "1969-12-31"]]))
    np.testing.assert_array_equal(given_, [[False, True], [False, True]])
    np.testing.assert_array_equal(moments[:, 1], at("2001-01-01", "1969-12-31"))


@pytest.mark.parametrize(
    "text", ["31.12.2001", "2001-13-01", "2001-02-29", "2001-1-1", "soon", "2001-01-01T24:00", "2001-00-01", "20010101"]
)
def test_what_is_no_date_is_named(text):
    for read in (series.read_dates, tf.function(series.read_dates)):
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            read(tf.constant(["2001-01-01", text]))
        assert "Expected dates such as 2001-12-31" in str(error.value) and text in str(error.value)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.datetimes(min_value=datetime.datetime(1000, 1, 1)), min_size=1, max_size=5))
def test_dates_come_back_as_they_were_written(stamps):
    moments = np.array([stamp.replace(microsecond=0) for stamp in stamps], "datetime64[s]").astype("int64")
    found, _ = series.read_dates(series.write_dates(tf.constant(moments), HOURS))
    np.testing.assert_array_equal(found, moments)


@pytest.mark.parametrize(
    ("last", "frequency", "dates"),
    [
        ("1999-11-30", DAYS, [b"1999-12-01", b"1999-12-02", b"1999-12-03"]),
        ("2000-02-28T22:00", HOURS, [b"2000-02-28T23:00:00", b"2000-02-29T00:00:00", b"2000-02-29T01:00:00"]),
        ("1958-03-29", WEEKS, [b"1958-04-05", b"1958-04-12", b"1958-04-19"]),
        ("1999-11-01", MONTHS, [b"1999-12-01", b"2000-01-01", b"2000-02-01"]),
        ("2000-01-31", ENDS, [b"2000-02-29", b"2000-03-31", b"2000-04-30"]),
        ("1969-08-15", QUARTERS, [b"1969-11-15", b"1970-02-15", b"1970-05-15"]),
        ("1700-01-01", YEARS, [b"1701-01-01", b"1702-01-01", b"1703-01-01"]),
    ],
)
def test_future_dates_go_on_at_the_frequency(last, frequency, dates):
    following = tf.function(lambda x: series.following(x, 3, frequency, before=2))
    found = following(tf.constant(at(last)))  # (1, 5)
    assert found[0, 1].numpy() == at(last) and found[0, 0].numpy() < at(last)
    assert series.write_dates(found[0, 2:], frequency).numpy().tolist() == dates


def test_the_calendar_turns_once_in_a_year_a_week_and_a_day():
    moments = tf.constant(at("1973-01-01", "1973-07-02T12:00", "1973-01-04T12:00", "1973-01-01T06:00")[:, None])
    waves = series.calendar(moments, ["year", "week", "day"]).numpy()[:, 0]  # 1973-01-01 was a Monday
    assert waves.shape == (4, 18)
    np.testing.assert_allclose(waves[0, [0, 1, 6, 7, 12, 13]], [0, 1, 0, 1, 0, 1], atol=1e-5)
    np.testing.assert_allclose(waves[1, :2], [0, -1], atol=1e-5)  # the middle of the year
    np.testing.assert_allclose(waves[2, 6:8], [0, -1], atol=1e-5)  # the middle of the week
    np.testing.assert_allclose(waves[3, 12:16], [1, 0, 0, -1], atol=1e-5)  # a quarter of the day, and twice that
    parts = {1: "year week day", 86_400: "year week", 604_800: "year", 400 * 86_400: ""}
    for count, found in parts.items():
        assert series.calendar_parts({"unit": "seconds", "count": count}) == found.split()
    assert [series.calendar_parts(one) for one in (MONTHS, QUARTERS, YEARS)] == [["year"], ["year"], []]


def test_rows_find_their_place_on_the_grid_whatever_their_order():
    dates = [["2001-03", "2001-01", "", "2001-06"], ["1999-12", "2000-01", "2000-02", "2000-03"]]
    values = np.array([[[3.0], [1], [99], [6]], [[12], [1], [NAN], [3]]], "float32")
    moments, there = series.read_dates(tf.constant(dates))
    for place in (series.on_grid, tf.function(series.on_grid, reduce_retracing=True)):
        found, last = place(moments, there, tf.constant(values), 5, MONTHS)
        np.testing.assert_array_equal(found[..., 0], [[NAN, 3, NAN, NAN, 6], [NAN, 12, 1, NAN, 3]])
        np.testing.assert_array_equal(last, at("2001-06", "2000-03"))
    two, _ = series.on_grid(moments, there, tf.constant(values), 2, MONTHS)  # older rows are left out
    np.testing.assert_array_equal(two[..., 0], [[NAN, 6], [NAN, 3]])


def test_two_rows_on_one_step_and_no_row_at_all_are_errors():
    values = tf.zeros((1, 2, 1))
    for dates, said in ((["2001-01-01", "2001-01-20"], "each date once"), (["", ""], "a date at least")):
        moments, there = series.read_dates(tf.constant([dates]))
        with pytest.raises(tf.errors.InvalidArgumentError, match=said):
            series.on_grid(moments, there, values, 3, MONTHS)


def test_gaps_take_the_value_before_them_and_those_at_the_start_the_first():
    values = np.array([[[NAN], [NAN], [3], [NAN], [NAN], [NAN], [7], [NAN]], [[NAN]] * 8], "float32")
    for fill in (series.fill, tf.function(series.fill)):
        filled, observed = fill(tf.constant(values))
        np.testing.assert_array_equal(filled[..., 0], [[3, 3, 3, 3, 3, 3, 7, 7], [0] * 8])
        np.testing.assert_array_equal(observed[..., 0], [[0, 0, 1, 0, 0, 0, 1, 0], [0] * 8])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(-5, 5)), min_size=7, max_size=7))
def test_filling_equals_a_plain_loop(cells):
    values = np.array([NAN if cell is None else cell for cell in cells], "float32")
    known, last = [cell for cell in cells if cell is not None], None
    wanted = []
    for cell in cells:
        last = cell if cell is not None else last
        wanted.append(last if last is not None else (known[0] if known else 0))
    np.testing.assert_array_equal(series.fill(values[None, :, None])[0][0, :, 0], wanted)


def test_windows_are_stretches_of_the_table_also_in_tf_data():
    rows = np.arange(20).reshape(10, 2)
    wanted = [[[4, 5], [6, 7], [8, 9]], [[0, 1], [2, 3], [4, 5]]]
    np.testing.assert_array_equal(series.windows(tf.constant(rows), tf.constant([2, 0], "int64"), 3), wanted)
    data = tf.data.Dataset.from_tensors(tf.constant([2, 0], "int64")).map(lambda p: series.windows(rows, p, 3))
    np.testing.assert_array_equal(next(iter(data)), wanted)


def test_standardizing_keeps_gaps():
    found = series.standardize(tf.constant([[[10.0, NAN]]]), {"mean": [4.0, 1.0], "std": [3.0, 1.0]})
    np.testing.assert_array_equal(found, [[[2.0, NAN]]])
