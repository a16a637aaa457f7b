"""Time series as tensors, the same way in training and in the served graph: dates, calendar, grid, gaps, windows.

A moment is a whole number of seconds since 1970-01-01 (before it: below 0), in the proleptic Gregorian calendar without
time zones. A frequency is a small dictionary that goes into `spec.json`: `{"unit": "seconds", "count": 86400, "phase":
0}` for days, `{"unit": "months", "count": 3, "phase": 0, "day": 1, "seconds": 0}` for quarters. Its grid is numbered:
`position` gives the number of a moment and `moment` the moment of a number, so that the dates of a forecast are
computed where it is made. Both, and the calendar below them, use operators alone and take arrays and tensors alike.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

DAY = 86_400
ERA = 5 * 146_097 * DAY  # 2,000 years of seconds
HARMONICS = 3
PATTERNS = (  # a year, a month, a day, an hour and minute, seconds: every one may end the date
    r"[0-9]{4}",
    r"[0-9]{4}-[0-9]{2}",
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}",
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}Z?",
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?Z?",
)


def floored(values: Any, size: int) -> Any:
    """values // size of seconds after the year -30, by dividing no number below 0, which ONNX rounds towards 0."""
    many = -(-ERA // size)
    return (values + many * size) // size - many


def days(year: Any, month: Any, day: Any) -> Any:
    """Days since 1970-01-01 of a date of the Gregorian calendar.

    Reference: Explanatory Supplement to the Astronomical Almanac (1992), section 12.95, with floored division.
    """
    early = (14 - month) // 12  # 1 in January and February
    y, m = year + 4800 - early, month + 12 * early - 3
    return day + (153 * m + 2) // 5 + 365 * y + y // 4 - y // 100 + y // 400 - 32045 - 2440588


def civil(day_number: Any) -> tuple[Any, Any, Any]:
    """Year, month and day of days since 1970-01-01.

    Reference: Richards, in Explanatory Supplement to the Astronomical Almanac (3rd ed. 2013), section 15.11.3.
    """
    julian = day_number + 2440588
    f = julian + 1401 + (((4 * julian + 274277) // 146097) * 3) // 4 - 38
    e = 4 * f + 3
    h = 5 * ((e % 1461) // 4) + 2
    day = (h % 153) // 5 + 1
    month = (h // 153 + 2) % 12 + 1
    return e // 1461 - 4716 + (14 - month) // 12, month, day


def month_length(year: Any, month: Any) -> Any:
    """Days of a month."""
    return days(year + month // 12, month % 12 + 1, 1) - days(year, month, 1)


def position(moments: Any, frequency: dict[str, Any]) -> Any:
    """The number on the grid of each moment, floored."""
    if frequency["unit"] == "seconds":
        return floored(moments - frequency["phase"], frequency["count"])
    year, month, _ = civil(floored(moments, DAY))
    return (12 * year + month - 1 - frequency["phase"]) // frequency["count"]


def moment(number: Any, frequency: dict[str, Any]) -> Any:
    """The moment of each number of the grid; a day that a month lacks becomes the last one of that month."""
    if frequency["unit"] == "seconds":
        return number * frequency["count"] + frequency["phase"]
    months = number * frequency["count"] + frequency["phase"]
    year, month = months // 12, months % 12 + 1
    longer = frequency["day"] - month_length(year, month)
    over = (longer + abs(longer)) // 2  # max(0, longer), for arrays and tensors
    return days(year, month, frequency["day"] - over) * DAY + frequency["seconds"]


def following(last: Any, horizon: int, frequency: dict[str, Any], *, before: int = 0) -> Any:
    """The moments of the grid around the last known ones: `before` up to and with `last`, then `horizon`.

    Args:
        last: int64 (b,).
        horizon: how many to come.
        frequency: of the series.
        before: how many, ending with `last`.

    Returns:
        int64 (b, before + horizon)
    """
    number = position(last, frequency)[:, None] + tf.range(1 - before, horizon + 1, dtype="int64")  # (b, t + h)
    return moment(number, frequency)


def calendar_parts(frequency: dict[str, Any]) -> list[str]:
    """Which cycles of the calendar a series of this frequency can see: of the year, the week, the day."""
    if frequency["unit"] == "months":
        return ["year"] if frequency["count"] < 12 else []
    parts = ["year"] if frequency["count"] < 180 * DAY else []
    parts += ["week"] if frequency["count"] < 7 * DAY else []
    return parts + (["day"] if frequency["count"] < DAY else [])


def calendar(moments: Any, parts: list[str]) -> Any:
    """Where in the year, the week and the day each moment is, as three pairs of sine and cosine for each.

    Args:
        moments: int64 (b, t).
        parts: of `calendar_parts`.

    Returns:
        float32 (b, t, 6 · len(parts))
    """
    day_number = floored(moments, DAY)
    second = moments - day_number * DAY
    year, _, _ = civil(day_number)
    start = days(year, 1, 1)
    length = days(year + 1, 1, 1) - start
    shares = {
        "year": (tf.cast((day_number - start) * DAY + second, "float32")) / tf.cast(length * DAY, "float32"),
        "week": tf.cast((day_number + 3) % 7 * DAY + second, "float32") / (7 * DAY),  # 1970-01-01 was a Thursday
        "day": tf.cast(second, "float32") / DAY,
    }
    waves = []
    for part in parts:
        for harmonic in range(1, HARMONICS + 1):
            angle = 2 * math.pi * harmonic * shares[part]
            waves += [tf.sin(angle), tf.cos(angle)]
    return tf.stack(waves, -1)  # (b, t, k)


def read_dates(texts: Any) -> tuple[Any, Any]:
    """Moments of dates written as ISO 8601 does: 2001, 2001-12, 2001-12-31, 2001-12-31T23:59, 2001-12-31 23:59:59.

    Args:
        texts: strings of any shape; an empty one stands for no date.

    Returns:
        int64 moments of the same shape, and where there is a date.

    Raises:
        tf.errors.InvalidArgumentError: a text is no such date, or names a day that does not exist; by the graph.
    """
    given = tf.not_equal(tf.strings.strip(texts), "")
    text = tf.where(given, tf.strings.strip(texts), "1970")
    pattern = "|".join(f"({one})" for one in PATTERNS)
    known = tf.strings.regex_full_match(text, pattern)
    full = tf.where(known, text, "1970")
    for size, rest in ((4, "-01-01T00:00:00"), (7, "-01T00:00:00"), (10, "T00:00:00")):
        full = tf.where(tf.strings.length(full) == size, tf.strings.join([full, rest]), full)
    full = tf.strings.regex_replace(full, r"^(.{10}).([0-9]{2}:[0-9]{2})Z?$", r"\1T\2:00")

    def number(place: int, size: int) -> Any:
        return tf.strings.to_number(tf.strings.substr(full, place, size), "int64")

    year, month, day = number(0, 4), number(5, 2), number(8, 2)
    hour, minute, second = number(11, 2), number(14, 2), number(17, 2)
    real = (month >= 1) & (month <= 12) & (day >= 1) & (hour < 24) & (minute < 60) & (second < 60) & (year >= 1)
    real &= day <= month_length(year, tf.clip_by_value(month, 1, 12))
    wrong = tf.boolean_mask(texts, ~(known & real))
    expected = "Expected dates such as 2001-12-31 or 2001-12-31T23:59:00. Received:"
    tf.debugging.Assert(tf.equal(tf.size(wrong), 0), [expected, wrong], summarize=3)
    return days(year, month, day) * DAY + hour * 3600 + minute * 60 + second, given


def write_dates(moments: Any, frequency: dict[str, Any]) -> Any:
    """ISO 8601 strings of moments: dates where the grid has whole days or months, else with the time."""
    day_number = floored(moments, DAY)
    second = moments - day_number * DAY

    def digits(values: Any, width: int) -> Any:
        return tf.strings.as_string(values, width=width, fill="0")

    year, month, day = civil(day_number)
    date = tf.strings.join([digits(year, 4), digits(month, 2), digits(day, 2)], "-")
    if frequency["unit"] == "months" or frequency["count"] % DAY == 0:
        return date
    time = tf.strings.join([digits(second // 3600, 2), digits(second // 60 % 60, 2), digits(second % 60, 2)], ":")
    return tf.strings.join([date, time], "T")


def on_grid(moments: Any, given: Any, values: Any, length: int, frequency: dict[str, Any]) -> tuple[Any, Any]:
    """Rows in any order, with gaps, as the last `length` steps of the grid; what no row tells is NaN.

    Args:
        moments: int64 (b, r).
        given: which rows there are, bool (b, r).
        values: float32 (b, r, c); NaN where a value is missing.
        length: steps of the window, t.
        frequency: of the series.

    Returns:
        float32 (b, t, c) that ends with the last date of each example, and that date, int64 (b,).

    Raises:
        tf.errors.InvalidArgumentError: no row, or two rows on one step; by the graph.
    """
    number = tf.where(given, position(moments, frequency), tf.int64.min)  # (b, r)
    last = tf.reduce_max(number, 1)  # (b,)
    place = tf.where(given, length - 1 + number - last[:, None], -1)
    lands = tf.one_hot(place, length)  # (b, r, t); zero where a row is before the window
    there = tf.logical_not(tf.math.is_nan(values))
    taken = tf.reduce_max(tf.reduce_sum(lands, 1))
    tf.debugging.Assert(tf.reduce_all(tf.reduce_any(given, 1)), ["Expected a date at least. Received: none"])
    tf.debugging.Assert(taken < 1.5, ["Expected each date once. Received: two rows on one step of the grid"])
    total = tf.einsum("brt,brc->btc", lands, tf.where(there, values, tf.zeros_like(values)))
    count = tf.einsum("brt,brc->btc", lands, tf.cast(there, "float32"))
    return tf.where(count > 0.5, total, float("nan")), moment(last, frequency)


def fill(values: Any) -> tuple[Any, Any]:
    """Missing values replaced by what was known before them, those at the start by the first that is known.

    Within the window alone: nothing comes from after its end. Where nothing is known there are zeros.

    Args:
        values: float32 (b, t, c); NaN where missing. t must be static.

    Returns:
        float32 (b, t, c) without NaN, and 1 where a value was there, else 0.
    """
    there = tf.logical_not(tf.math.is_nan(values))
    filled, known = _carried(tf.where(there, values, tf.zeros_like(values)), there, +1)
    filled, _ = _carried(filled, known, -1)
    return filled, tf.cast(there, "float32")


def _carried(values: Any, known: Any, direction: int) -> tuple[Any, Any]:
    """Known values carried over the unknown ones that follow (+1) or precede them (-1), in steps that double."""
    length, reach = values.shape[1], 1
    while reach < length:
        pad = [[0, 0], [reach, 0] if direction > 0 else [0, reach], [0, 0]]
        part = slice(None, -reach) if direction > 0 else slice(reach, None)
        from_there, known_there = tf.pad(values[:, part], pad), tf.pad(known[:, part], pad)
        values = tf.where(known, values, from_there)
        known = known | known_there
        reach *= 2
    return values, known


def windows(rows: Any, places: Any, length: int) -> Any:
    """Stretches of a long table.

    Args:
        rows: (n, …).
        places: int64 (b,), the first row of each window.
        length: rows of a window.

    Returns:
        (b, length, …)
    """
    return tf.gather(rows, places[:, None] + tf.range(length, dtype="int64"))


def standardize(values: Any, statistics: dict[str, list[float]]) -> Any:
    """(values - mean) / std by channel; NaN stays NaN."""
    return (values - tf.constant(statistics["mean"], "float32")) / tf.constant(statistics["std"], "float32")
