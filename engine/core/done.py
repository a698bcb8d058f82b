"""What a `done` entry says: pydatatask's records, and whether it was a success.

In: the shape that the task declares and the run's ending. Out: the document, with times as UTC datetimes.
The record is written at the end of an episode, beside its last `RunEnded`.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from datatask.schema.definition import DoneShape
from datatask.schema.events import Ending, ErrorInfo, Outcome

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

_RESULTS: dict[Outcome, str] = {
    "succeeded": "success",
    "handed_over": "success",
    "failed": "exception",
    "timed_out": "timeout",
    "cancelled": "cancelled",
    "lost": "lost",
    "refused": "refused",
}
_REASONS: dict[Outcome, str] = {"succeeded": "Succeeded", "handed_over": "Succeeded", "timed_out": "Timeout"}


def done_record(shape: DoneShape, ending: Ending) -> dict[str, Any]:
    """Return the `done` document of an ending; `{}` for the shape "none"."""
    times = {"start_time": _moment(ending.started_at), "end_time": _moment(ending.ended_at)}
    success = ending.outcome in ("succeeded", "handed_over")
    match shape:
        case "function":
            return {"result": _RESULTS[ending.outcome], **_exception(ending), **times, "success": success}
        case "process":
            return {"return_code": ending.exit_code, **times, "success": success, **_trouble(ending)}
        case "pod":
            detail = ending.detail or {}
            reason = _REASONS.get(ending.outcome, "Failed")
            place = {"image": detail.get("image"), "node": detail.get("node")}
            return {"reason": reason, **times, **place, "success": success, **_trouble(ending)}
    return {}


def _moment(nanoseconds: int | None) -> dt.datetime | None:
    if nanoseconds is None:
        return None
    return _EPOCH + dt.timedelta(microseconds=nanoseconds // 1000)


def _exception(ending: Ending) -> dict[str, Any]:
    if ending.error is None:
        return {}
    shown = (ending.detail or {}).get("exception") or _repr(ending.error)
    return {"exception": shown, "traceback": ending.error.traceback.splitlines(keepends=True)}


def _repr(error: ErrorInfo) -> str:
    return f"{error.type}({error.message!r})" if error.message else f"{error.type}()"


def _trouble(ending: Ending) -> dict[str, Any]:
    """Return `timeout` for a timed-out run, and `error` where the exit code does not tell everything."""
    trouble: dict[str, Any] = {"timeout": True} if ending.outcome == "timed_out" else {}
    if ending.error is not None and ending.outcome in ("lost", "refused", "cancelled", "timed_out"):
        trouble["error"] = ending.error.message
    return trouble
