"""Times and amounts as the engine counts them, and as people and files have them.

Times are UTC nanoseconds and durations nanoseconds, amounts are billionths; both are integers, so that sums are exact.
"""

from __future__ import annotations

import datetime as dt
import re

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
NANO = 1_000_000_000
"""One core, byte or unit in the billionths in which amounts are counted."""

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def in_units(amount: int) -> float:
    """Return billionths as cores, bytes and units."""
    return amount // NANO if amount % NANO == 0 else amount / NANO


def moment(at: int | None) -> dt.datetime | None:
    """Return UTC nanoseconds as a time, to the microsecond; None for None."""
    return None if at is None else EPOCH + dt.timedelta(microseconds=at // 1000)


def nanoseconds(time: dt.datetime) -> int:
    """Return an aware time as UTC nanoseconds."""
    passed = time - EPOCH
    return (passed.days * 86_400 + passed.seconds) * SECOND + passed.microseconds * 1000


def iso(at: int | None) -> str | None:
    """Return UTC nanoseconds as ISO 8601 to the microsecond, None for None."""
    time = moment(at)
    return None if time is None else f"{time.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


_SPAN = re.compile(r"(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(ms|s|m|h|d|w)?", re.ASCII)
UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def parse_span(text: str) -> float | None:
    """Return a length of time such as `90`, `1.5h` or `1h 30m` in seconds; None when it is none. Bare numbers are seconds."""
    rest, seconds = text.strip(), 0.0
    bare = False
    while rest and not bare:
        part = _SPAN.match(rest)
        if part is None:
            return None
        bare = part[2] is None
        seconds += float(part[1]) * UNIT_SECONDS[part[2] or "s"]
        rest = rest[part.end() :].lstrip()
    return None if rest or not text.strip() else seconds


def duration_words(seconds: float) -> str:
    """Return a duration for people: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for size, unit, smaller, smaller_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {smaller_unit}" if rest else "")
    return f"{whole} s"


def amount_words(name: str, amount: int) -> str:
    """Return billionths of a resource for people: `1.5 cores`, `64Mi memory`, `2 gpu`."""
    shown = amount_figure(name, amount)
    if name == "cpu":
        return f"{shown} core" if amount == NANO else f"{shown} cores"
    return f"{shown} {'memory' if name == 'mem' else name}"


def in_bytes(name: str) -> bool:
    """Whether amounts of a resource are bytes."""
    return name in ("mem", "memory") or name.startswith("hugepages-") or "storage" in name


def amount_figure(name: str, amount: int) -> str:
    """Return the figure alone; that of bytes has a binary suffix."""
    size = in_units(amount)
    if not in_bytes(name):
        return f"{size:g}"
    suffixes = iter(("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"))
    suffix = next(suffixes)
    while abs(size) >= 1024 and suffix != "Ei":
        size, suffix = size / 1024, next(suffixes)
    return f"{size:.4g}{suffix}"
