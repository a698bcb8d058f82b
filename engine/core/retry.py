"""What follows from an ending: is the job tried again, when, and is the episode over?

Pure. `chance` is a number in [0, 1) drawn outside; the resulting `not_before` is recorded, so replay needs no
chance. Trouble of the infrastructure (`lost`) and conflicts between runs (`conflicted`) have budgets of their own and
do not use up the user's. A lost run that the machine ended (`MACHINE`: a drained node, a stopped service) uses up none.

What a `done` entry says: pydatatask's records, and whether it was a success.

In: the shape that the task declares and the run's ending. Out: the document, with times as UTC datetimes.
The record is written at the end of an episode, beside its last `RunEnded`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import msgspec

from datatask.engine.core.tasks import Episode, OpenRun
from datatask.schema.definition import DoneShape, RetryDef
from datatask.schema.events import MACHINE, Budget, Ending, EngineOpened, ErrorInfo, Outcome, RunEnded
from datatask.schema.units import EPOCH, MINUTE, SECOND, moment

INFRASTRUCTURE_FIRST = SECOND // 10
INFRASTRUCTURE_LONGEST = 5 * MINUTE
CONFLICT_FIRST = SECOND // 100
CONFLICT_LONGEST = 30 * SECOND
CONFLICTS_MAX = 1000
"""A job that was in conflict so often in one episode is given up: its runs are in conflict with themselves, by another way."""
MACHINE_LONGEST = MINUTE
MACHINES_MAX = 1000
"""A job that was lost so often in one episode is given up even where the machine ended it."""
THROTTLED = "throttled"


class Again(NamedTuple):
    """Try again, not before this engine time, as this attempt, out of this budget, of which so much is spent then."""

    not_before: int
    attempt: int
    budget: Budget
    spent: int = 0


class Over(NamedTuple):
    """The episode is over; `exhausted` names the budget that ran out, if one did."""

    exhausted: Budget | Literal[""] = ""
    attempts: int = 0


def after_ending(
    retry: RetryDef,
    episode: Episode,
    outcome: str,
    now: int,
    chance: float,
    *,
    stopped: bool = False,
    progress: bool = False,
    machine: bool = False,
) -> Again | Over:
    """Return what follows when the episode's current run ended with `outcome`.

    `progress` says that it made some, `machine` that it was lost by the machine's own doing.
    """
    attempt = episode.attempt
    if outcome == "lost":
        lost = 0 if progress else episode.lost_in_a_row
        if machine:
            if stopped or episode.infrastructure >= MACHINES_MAX:
                return Over("" if stopped else "machine", attempt)
            before = 0 if progress else episode.infrastructure
            wait = backoff(INFRASTRUCTURE_FIRST, 3.0, MACHINE_LONGEST, before, 0.1, chance)
            return Again(now + wait, attempt + 1, "machine", lost)
        if stopped or lost >= retry.infrastructure_attempts:
            return Over("" if stopped else "infrastructure", attempt)
        wait = backoff(INFRASTRUCTURE_FIRST, 3.0, INFRASTRUCTURE_LONGEST, lost, 0.1, chance)
        return Again(now + wait, attempt + 1, "infrastructure", lost + 1)
    if outcome == "conflicted":
        if stopped or episode.conflicts >= CONFLICTS_MAX:
            return Over("" if stopped else "conflict", attempt)
        wait = backoff(CONFLICT_FIRST, 2.0, CONFLICT_LONGEST, episode.conflicts, 1.0, chance)
        return Again(now + wait, attempt + 1, "conflict", episode.conflicts + 1)
    if outcome not in retry.on:
        return Over()
    spent = attempt - episode.infrastructure - episode.conflicts
    if spent >= retry.attempts:
        return Over("user" if retry.attempts > 1 else "", attempt)
    wait = backoff(retry.first, retry.factor, retry.longest, spent - 1, retry.jitter, chance)
    return Again(now + wait, attempt + 1, "user")


def by_machine(ending: Ending | RunEnded) -> bool:
    """Whether it is the machine's own doing that a run was lost."""
    return ending.outcome == "lost" and MACHINE in (ending.detail or {})


def made_progress(retry: RetryDef, run: OpenRun, engine: EngineOpened | None, now: int) -> bool:
    """Whether a run had been up for long enough before it was lost, by what the log tells of its time.

    What happened to it while no engine was there is not known: a run of an earlier engine that was not found alive
    again counts until that engine's last sign of life. So an engine leaves a sign when it comes to that (`runs`).
    """
    if retry.progress is None or run.started_at is None:
        return False
    until = now
    if engine is not None and engine.epoch not in (run.epoch, run.adopted):
        until = engine.last_sign or 0
    return until - run.started_at >= retry.progress


def backoff(first: int, factor: float, longest: int, failures: int, jitter: float, chance: float) -> int:
    """Return the wait in nanoseconds after `failures` earlier ones, spread by +-jitter."""
    exponent = min(failures, 64)
    plain = min(float(longest), first * factor**exponent)
    return max(0, int(plain * (1 + jitter * (2 * chance - 1))))


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
