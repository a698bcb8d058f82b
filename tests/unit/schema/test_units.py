"""Times and amounts as the engine counts them, and as people have them."""

from __future__ import annotations

import datetime as dt

import pytest

from datatask.schema.units import (
    DAY,
    HOUR,
    MINUTE,
    NANO,
    SECOND,
    amount_words,
    duration_words,
    iso,
    moment,
    nanoseconds,
)


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1_700_000_000 * SECOND + 1_999, "2023-11-14T22:13:20.000001Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (DAY + HOUR + MINUTE, "1970-01-02T01:01:00.000000Z"),
    ],
)
def test_a_time_as_text(at: int, text: str) -> None:
    """To the microsecond, rounded down; the text is read back as that microsecond."""
    assert iso(at) == text
    assert nanoseconds(dt.datetime.fromisoformat(text)) == at // 1000 * 1000


def test_no_time() -> None:
    """None stays None."""
    assert (iso(None), moment(None)) == (None, None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4 s"),
        (12.9, "12 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_a_duration_in_words(seconds: float, text: str) -> None:
    """Two units at most, rounded down; below ten seconds a tenth counts."""
    assert duration_words(seconds) == text


@pytest.mark.parametrize(
    ("name", "amount", "text"),
    [
        ("cpu", 1, "1 core"),
        ("cpu", 0.1, "0.1 cores"),
        ("mem", 64 << 20, "64Mi memory"),
        ("mem", 1.5 * (1 << 30), "1.5Gi memory"),
        ("mem", 0, "0 memory"),
        ("hugepages-2Mi", 4 << 20, "4Mi hugepages-2Mi"),
        ("gpu", 2048, "2048 gpu"),
    ],
)
def test_an_amount_in_words(name: str, amount: float, text: str) -> None:
    """Bytes with a binary suffix, cpu as cores, anything else as it is."""
    assert amount_words(name, round(amount * NANO)) == text
