"""What a `done` entry says: pydatatask's records, and whether it was a success.

In: the shape that the task declares and the run's ending. Out: the document, with times as UTC datetimes.
The record is written at the end of an episode, beside its last `RunEnded`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec

from datatask.schema.definition import DoneShape
from datatask.schema.events import Ending, ErrorInfo, Outcome
from datatask.schema.units import EPOCH, moment

_encode = msgspec.json.Encoder().encode

_RESULTS: dict[Outcome, str] = {
    "succeeded": "success",
    "handed_over": "success",
    "failed": "exception",
    "timed_out": "timeout",
    "cancelled": "cancelled",
    "lost": "lost",
    "refused": "refused",
    "conflicted": "conflicted",
}
_REASONS: dict[Outcome, str] = {"succeeded": "Succeeded", "handed_over": "Succeeded", "timed_out": "Timeout"}


def done_record(shape: DoneShape, ending: Ending) -> dict[str, Any]:
    """Return the `done` document of an ending; `{}` for the shape "none"."""
    return _record(shape, ending, moment)


def done_value(shape: DoneShape, ending: Ending) -> msgspec.Raw:
    """Return the same document as it is stored: what `encode_value` makes of it, at a third of the price."""
    return msgspec.Raw(_encode(_record(shape, ending, _stored_moment)))


def _record(shape: DoneShape, ending: Ending, moment: Callable[[int | None], object]) -> dict[str, Any]:
    times = {"start_time": moment(ending.started_at), "end_time": moment(ending.ended_at)}
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


def _stored_moment(nanoseconds: int | None) -> dict[str, str] | None:
    """Return a moment as `schema.values` stores a datetime."""
    if nanoseconds is None:
        return None
    seconds, microseconds = divmod(nanoseconds // 1000, 1_000_000)
    return {"$datetime": f"{_second(seconds)}{f'.{microseconds:06}' if microseconds else ''}+00:00"}


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    """Return a second in ISO 8601, without its zone; the runs of one second share it."""
    return (EPOCH + dt.timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()


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
    if ending.error is not None and ending.outcome in (
        "lost",
        "refused",
        "cancelled",
        "timed_out",
        "conflicted",
    ):
        trouble["error"] = ending.error.message
    return trouble
