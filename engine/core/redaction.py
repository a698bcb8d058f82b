"""What is left of an event whose payload is removed: pure, so that whoever verifies can work it out again.

In: an event, and the position of the `PayloadRedacted` that removes its payload. Out: the event without what people
may have to take back (values, texts of errors, words), and with all that the fold, the decisions and the invariants
need, so that the log replays to the same states. Kinds that hold nothing but this are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from datatask.engine.core.state import State
from datatask.schema import events as e
from datatask.schema.codec import encode
from datatask.schema.errors import NotPossibleError
from datatask.schema.messages import Who

_MARKED = b'{"$redacted":'
"""No document begins like this: a key of its own that begins with `$` is stored in another."""

REDACTED = "redacted"
"""Stands where a text has to be that was removed."""

_replace = msgspec.structs.replace


def left_of(event: e.Event, position: int, by: int) -> e.Event:
    """Return what is left of the event at `position` when the event at position `by` removes its payload.

    `CallerError` where the log needs all of it, or where there is nothing to be removed.
    """
    strip = _STRIPPED.get(type(event))
    if strip is None:
        raise NotPossibleError(
            f"a {_name(event)} cannot be redacted: the log cannot be read without it",
            where=f"position {position}",
            remedy="redact the events that hold the values and the words: "
            "values, intents, ends of runs, evaluations that failed, and what people asked",
        )
    left = strip(event, by)
    if left == event:
        raise NotPossibleError(
            f"this {_name(event)} holds nothing that can be removed",
            where=f"position {position}",
            remedy=f"see `datatask log` for what it holds; names of jobs and tasks stay: {_NEEDED}",
        )
    return left


_NEEDED = "the log cannot be read without them"


def removed(
    state: State, found: Sequence[tuple[int, e.Event]], who: Who, now: int
) -> list[e.PayloadRedacted]:
    """Return the events, the next ones of the log, that remove these events' payloads; `CallerError` where one stays."""
    held = {intent.position for intent in state.intents.values()}
    held |= {intent.position for run in state.open_runs.values() for intent in run.intents.values()}
    events = []
    for by, (position, event) in enumerate(found, state.position + 1):
        if position in held:
            raise NotPossibleError(
                "this intent has not been carried out yet",
                where=f"position {position}",
                remedy="let an engine do what it says, then redact it",
            )
        left = encode(left_of(event, position, by)).payload
        digest = "" if left is None else hashlib.sha256(left).hexdigest()
        events.append(
            e.PayloadRedacted(
                at=now,
                actor=who.actor,
                task=event.task,
                repository=event.repository,
                job=event.job,
                position=position,
                left=digest,
                reason=who.reason,
                request=who.request,
            )
        )
    return events


def marker(by: int) -> msgspec.Raw:
    """Return the JSON that stands for a value that the event at position `by` removed."""
    return msgspec.Raw(_MARKED + b"%d}" % by)


def is_redacted(event: e.ValuePut | e.StoreWriteIntended) -> bool:
    """Whether the event's value was removed."""
    return bytes(event.value).startswith(_MARKED)


def _name(event: e.Event) -> str:
    return event.name if isinstance(event, e.UnknownEvent) else type(event).__name__


def _error(error: e.ErrorInfo | None) -> e.ErrorInfo | None:
    """Return the error with its type alone."""
    return None if error is None else e.ErrorInfo(type=error.type, message=REDACTED)


def _ending(ending: e.Ending | None) -> e.Ending | None:
    return None if ending is None else _replace(ending, error=_error(ending.error), detail=None)


def _value(event: Any, by: int) -> Any:
    """Size, store version and origin stay, and that there was a value if there was one."""
    if is_redacted(event):
        return event
    recorded = bool(event.value) or event.digest is not None
    return _replace(event, value=marker(by) if recorded else e.ABSENT, digest=None, reason="")


def _intent(event: e.StoreWriteIntended, by: int) -> e.Event:
    stripped: e.Event = _replace(_value(event, by), settles=_ending(event.settles))
    return stripped


def _end(event: e.RunEnded, by: int) -> e.Event:
    return _replace(event, error=_error(event.error), detail=None)


def _evaluated(event: e.Evaluated, by: int) -> e.Event:
    """The answer stays: memberships and the order of launches rest on it."""
    return _replace(event, error=None if event.error is None else REDACTED)


def _words(**without: Any) -> Callable[[Any, int], e.Event]:
    """Return the function that takes words out of fields which nothing rests on."""

    def strip(event: Any, by: int) -> e.Event:
        stripped: e.Event = _replace(event, **without)
        return stripped

    return strip


_REASON = _words(reason="")

_STRIPPED: dict[type[e.Event], Callable[[Any, int], e.Event]] = {
    e.ValuePut: _value,
    e.StoreWriteIntended: _intent,
    e.RunEnded: _end,
    e.Evaluated: _evaluated,
    e.ObservationHeld: _words(sample=(), why=""),
    e.RepositoryUnreachable: _words(why=""),
    e.ChangesMissed: _words(sample=()),
    e.RunObserved: _words(message=""),
    e.RunUnreachable: _words(message=""),
    e.LateFact: _words(detail={}),
    e.StopDecided: _words(why=""),
    **dict.fromkeys(
        (
            e.EngineOpened, e.EngineClosed, e.RepositorySynced, e.ValueDeleted, e.LaunchDecided, e.CancelRequested,
            e.RetryRequested, e.ResultAccepted, e.TaskPaused, e.TaskResumed, e.QuotaChanged, e.PipelineDefined, e.Renamed, e.ArchiveCut,
            e.BlobsCollected, e.PayloadRedacted,
        ),
        _REASON,
    ),
}  # fmt: skip
"""Kind -> what is left of it."""
