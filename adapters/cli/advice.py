"""What to type after `why`: its changes as one command line that works as printed, and before it where waiting is enough.

In: an `Explanation`, the state that it is about, and where commands work. Out: lines of text. Where no command makes one of
the changes (a value, a filter, an edit of the pipeline's file), there is no line with commands.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from decimal import Decimal

from datatask.adapters.cli.loading import CANDIDATE, find_reference
from datatask.adapters.cli.settings import Settings, near
from datatask.adapters.clock import SystemClock
from datatask.engine.core.state import State
from datatask.engine.explain.explanations import Change, Explanation
from datatask.schema.units import NANO, SECOND, duration_words, in_bytes, nanoseconds

_WAITS = ("wait_for", "wait_until")
_SUFFIXES = ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki")
RUNS_SHOWN = 3

Words = list[str] | None


def advice(settings: Settings, state: State, found: Explanation) -> Iterator[str]:
    """Yield a line with what to wait for, where that is enough, and one with the commands for the changes."""
    if (waiting := _waiting(found)) is not None:
        yield f"wait: {waiting}"
    changes = sorted((each for each in found.changes if each.op not in _WAITS), key=_is_run)
    commands = [_command(settings, state, found, change) for change in changes]
    if commands and None not in commands:
        yield f"type: {' && '.join(dict.fromkeys(one for one in commands if one is not None))}"


def _is_run(change: Change) -> bool:
    """Whether its command is `run`, which comes last: it works until all is done."""
    return change.op in ("start_engine", "accept_loss")


def _waiting(found: Explanation) -> str | None:
    """Return what is to be waited for, where all that holds the job back ends by itself."""
    if not found.ready or not found.held_by or found.launching:
        return None
    ends: list[str] = []
    for blocker in found.held_by:
        fits = all(amount.needed <= amount.limit for amount in blocker.amounts.values())
        if blocker.until:
            ends.append(_in_time(blocker.until))
        elif blocker.runs and blocker.amounts and fits:
            ends.append(_when_ended(found, [run.run for run in blocker.runs], blocker.more))
        elif blocker.what != "engine":
            return None
    if not ends:
        return None
    idle = any(blocker.what == "engine" for blocker in found.held_by)
    return f"{' and '.join(dict.fromkeys(ends))}{', with an engine running' if idle else ''}"


def _in_time(until: str) -> str:
    seconds = (nanoseconds(dt.datetime.fromisoformat(until)) - SystemClock().now()) / SECOND
    return f"until {until}" if seconds <= 0 else f"{duration_words(seconds)}, until {until}"


def _when_ended(found: Explanation, runs: list[int], more: int) -> str:
    shown = ", ".join(map(str, runs[:RUNS_SHOWN]))
    if len(runs) + more == 1:
        return f"until run {shown} ends"
    rest = len(runs) + more - RUNS_SHOWN
    return f"until enough of the runs {shown}{f' and {rest} more' if rest > 0 else ''} have ended"


def _command(settings: Settings, state: State, found: Explanation, change: Change) -> str | None:
    """Return the command line for a change; None where there is none."""
    make = _COMMANDS.get(change.op)
    words = None if make is None else make(state, found, change)
    if words is None:
        return None
    named = _pipeline(settings)
    return None if named is None else settings.command(*named, *words)


def _pipeline(settings: Settings) -> Words:
    """Return the option that names the pipeline; nothing where it is found here, None where it is not known."""
    if settings.pipeline:
        return ["-p", settings.pipeline]
    beside = settings.log_path().parent.parent / CANDIDATE
    if settings.log is not None and beside.is_file():
        return ["-p", near(beside)]
    return None if find_reference(None) is None else []


def _delete(state: State, found: Explanation, change: Change) -> Words:
    task = state.tasks.get(found.task)
    if task is not None and change.job == found.job and change.repository == task.definition.done:
        return ["retry", found.task, found.job]
    return ["rm", change.repository, change.job]


def _quota(state: State, found: Explanation, change: Change) -> Words:
    quota = state.quotas.get(change.quota)
    if quota is None:
        return None
    limits = [
        f"{name}={_figure(name, amount)}"
        for name, amount in change.limits.items()
        if amount != quota.limits.get(name)
    ]
    launches = [f"launches={change.launches}"] if change.launches not in (None, quota.launches) else []
    return ["quota", change.quota, *limits, *launches]


def _figure(name: str, amount: int) -> str:
    """Return an amount so that the command takes exactly that."""
    whole, rest = divmod(amount, NANO)
    if rest:
        return format((Decimal(amount) / NANO).normalize(), "f")
    for power, suffix in zip(range(len(_SUFFIXES), 0, -1), _SUFFIXES, strict=True):
        if in_bytes(name) and whole and whole % 1024**power == 0:
            return f"{whole // 1024**power}{suffix}"
    return str(whole)


_COMMANDS: dict[str, Callable[[State, Explanation, Change], Words]] = {
    "delete": _delete,
    "retry": lambda state, found, change: ["retry", change.task, change.job],
    "resume": lambda state, found, change: ["resume", change.task],
    "accept_loss": lambda state, found, change: ["run", "--accept-loss", change.repository],
    "raise_quota": _quota,
    "start_engine": lambda state, found, change: ["run"],
    "end_run": lambda state, found, change: ["cancel", change.task, change.job],
}
