"""Done records: what is stored at the end of a run."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from datatask.engine.core.run_ends import done_record, done_value
from datatask.schema.events import Ending, ErrorInfo
from datatask.schema.units import SECOND
from datatask.schema.values import encode_value

ERROR = ErrorInfo(type="ValueError", message="no", traceback="one\ntwo\n")
START, END = SECOND, 2 * SECOND + 1500
TIMES = {
    "start_time": dt.datetime(1970, 1, 1, 0, 0, 1, tzinfo=dt.UTC),
    "end_time": dt.datetime(1970, 1, 1, 0, 0, 2, 1, tzinfo=dt.UTC),
}


@pytest.mark.parametrize(
    ("shape", "ending", "record"),
    [
        ("function", {"outcome": "succeeded"}, {"result": "success", "success": True}),
        (
            "function",
            {"outcome": "failed", "error": ERROR},
            {
                "result": "exception",
                "exception": "ValueError('no')",
                "traceback": ["one\n", "two\n"],
                "success": False,
            },
        ),
        ("function", {"outcome": "timed_out"}, {"result": "timeout", "success": False}),
        ("function", {"outcome": "cancelled"}, {"result": "cancelled", "success": False}),
        ("function", {"outcome": "lost"}, {"result": "lost", "success": False}),
        ("process", {"outcome": "succeeded", "exit_code": 0}, {"return_code": 0, "success": True}),
        (
            "process",
            {"outcome": "failed", "exit_code": 3, "error": ERROR},
            {"return_code": 3, "success": False},
        ),
        (
            "process",
            {"outcome": "timed_out", "exit_code": 143, "error": ERROR},
            {"return_code": 143, "success": False, "timeout": True, "error": "no"},
        ),
        (
            "process",
            {"outcome": "refused", "error": ERROR},
            {"return_code": None, "success": False, "error": "no"},
        ),
        (
            "pod",
            {"outcome": "timed_out", "detail": {"image": "i", "node": "n"}},
            {"reason": "Timeout", "image": "i", "node": "n", "success": False, "timeout": True},
        ),
    ],
)
def test_done_records(shape: Any, ending: dict[str, Any], record: dict[str, Any]) -> None:
    """pydatatask's keys, and `success`; times are UTC datetimes."""
    made = done_record(shape, Ending(started_at=START, ended_at=END, **ending))
    assert made == record | TIMES


@pytest.mark.parametrize("shape", ["function", "process", "pod", "none"])
@pytest.mark.parametrize("started_at", [None, START, START + 1_000, START + 999_999_999])
@pytest.mark.parametrize("outcome", ["succeeded", "failed", "timed_out", "lost"])
def test_what_is_stored_of_a_done_record_is_the_record(
    shape: Any, started_at: int | None, outcome: Any
) -> None:
    """Byte for byte what any other document becomes."""
    error = None if outcome == "succeeded" else ErrorInfo(type="E", message="\udcff no", traceback="a\nb")
    ending = Ending(outcome=outcome, exit_code=3, error=error, started_at=started_at, ended_at=END)
    assert bytes(done_value(shape, ending)) == encode_value(done_record(shape, ending))


def test_a_done_record_has_the_exceptions_own_repr() -> None:
    """Where type and text do not give it."""
    ending = Ending(outcome="failed", error=ERROR, detail={"exception": "ValueError('no', 2)"})
    assert done_record("function", ending)["exception"] == "ValueError('no', 2)"
    assert done_record("none", ending) == {}
