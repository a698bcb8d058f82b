"""What a run's end is tried again for."""

from __future__ import annotations

import pytest

from datatask.adapters.execute.base.endings import exit_ending, stopped_ending
from datatask.engine.core.retry import NextAttempt, NoRetry, after_ending, reasons_of
from datatask.engine.core.tasks import Episode
from datatask.engine.runtime.calls import error_info
from datatask.schema.definition import RetryDef
from datatask.schema.events import Ending, ErrorInfo


def raised(error: Exception) -> Ending:
    """Return the ending of a function that raised."""
    return Ending(outcome="failed", error=error_info(error))


class Flaky(ConnectionError):
    """A user's own exception."""


@pytest.mark.parametrize(
    ("ending", "reasons"),
    [
        (exit_ending(0), []),
        (exit_ending(75), ["exit 75"]),
        (exit_ending(139), ["exit 139", "SIGSEGV"]),
        (exit_ending(-11), ["exit 139", "SIGSEGV"]),
        (exit_ending(-9, "out of memory: the kernel killed"), ["exit 137", "SIGKILL", "out_of_memory"]),
        (exit_ending(1, "out of memory: it says"), ["exit 1"]),
        (stopped_ending("timeout", -9), []),
        (raised(Flaky()), ["error Flaky", "error ConnectionError", "error OSError"]),
        (raised(MemoryError()), ["error MemoryError", "out_of_memory"]),
        (Ending(outcome="failed", exit_code=137, error=ErrorInfo(type="OOMKilled", message="")),
         ["exit 137", "SIGKILL", "error OOMKilled", "out_of_memory"]),
    ],
)  # fmt: skip
def test_reasons_are_those_of_the_ending(ending: Ending, reasons: list[str]) -> None:
    """By code, signal, memory and exception with its base classes."""
    assert reasons_of(ending) == reasons


@pytest.mark.parametrize(("code", "again"), [(75, True), (74, False)])
def test_only_what_is_listed_is_tried_again(code: int, again: bool) -> None:
    """Another exit code ends the episode."""
    retry = RetryDef(attempts=3, on=("exit 75",))
    found = after_ending(retry, Episode(1, 0.0, 1), "failed", 0, 0.5, reasons=reasons_of(exit_ending(code)))
    assert isinstance(found, NextAttempt if again else NoRetry)
