"""Resource managers count."""

from __future__ import annotations

import datetime as dt
import signal
from typing import Any

import pytest

from datatask import (
    ResourceManager,
    Resources,
    Retry,
)
from datatask.engine.api.policies import Duration, nanoseconds
from datatask.schema.errors import InvalidValueError
from datatask.schema.resources import ResourceType
from datatask.schema.units import SECOND


async def test_resource_managers_count_as_before() -> None:
    """For tasks that reserve by themselves; the engine counts its own runs."""
    manager = ResourceManager(Resources.parse("1", "1Gi"), name="box", window=dt.timedelta(minutes=2))
    request = Resources.parse("600m", "1Mi", 1)
    assert await manager.reserve(request) is None
    assert await manager.reserve(request) is ResourceType.CPU
    await manager.relinquish(request)
    assert await manager.reserve(request) is None
    await manager.flush()
    definition = manager.to_def("default")
    assert (definition.name, definition.window) == ("box", 120 * SECOND)
    assert definition.limits == {"cpu": SECOND, "mem": 2**30 * SECOND}


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [(90, 90), ("90", 90), ("5m", 300), ("1h 30m", 5400), ("250ms", 0.25), (dt.timedelta(minutes=5), 300)],
)
def test_a_duration_is_seconds_text_or_a_timedelta(duration: Duration, seconds: float) -> None:
    """All of Python takes what the command line takes."""
    assert nanoseconds(duration, "timeout") == seconds * SECOND
    assert Retry(backoff=(duration, 2.0, duration)).to_def().longest == seconds * SECOND


@pytest.mark.parametrize(
    "bad", ["", "soon", "5 minutes", "-5m", "5m!", -1, True, float("nan"), dt.timedelta(-1)]
)
def test_what_is_no_duration_is_refused_in_one_line(bad: Duration) -> None:
    """With what it is for."""
    with pytest.raises(InvalidValueError, match=r"timeout is .* no duration; use seconds .* '5m'"):
        nanoseconds(bad, "timeout")


def test_what_is_tried_again_is_recorded_by_name() -> None:
    """Exit codes, signals, lack of memory and exceptions, beside outcomes."""
    retry = Retry(3, on=["timed_out", 75, signal.SIGSEGV, "SIGBUS", "out_of_memory", OSError])
    assert retry.to_def().on == (
        "timed_out",
        "exit 75",
        "SIGSEGV",
        "SIGBUS",
        "out_of_memory",
        "error OSError",
    )


@pytest.mark.parametrize("bad", ["failed", ("sometimes",), (0,), (256,), (True,), (int,), 75])
def test_what_cannot_be_tried_again_is_refused(bad: Any) -> None:
    """With all that can be."""
    with pytest.raises(InvalidValueError, match="out_of_memory, exit codes"):
        Retry(on=bad)
