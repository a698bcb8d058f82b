"""What `why` answers, as values, and the words in which it does.

`Explanation` is one (task, job), `Group` the waiting jobs of a task that wait for the same. The JSON of the
command line is `Explanation.to_json()`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import msgspec

from datatask.engine.core.state import Pending, PendingKey, State
from datatask.engine.core.tasks import OpenRun
from datatask.schema import definition as d

NANO = 1_000_000_000


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """One condition on data: a link's, or a part of a custom `ready=` (then `link` is `ready`)."""

    link: str
    repository: str
    needs: str
    is_: str = msgspec.field(name="is")
    since: int | None
    satisfied: bool
    explain: str


class Hold(msgspec.Struct, frozen=True):
    """One thing other than data that holds the job back."""

    what: str
    explain: str


class Change(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing to do; which fields are there depends on `op`. Amounts are billionths, times ISO-8601 UTC."""

    op: str
    repository: str = ""
    task: str = ""
    job: str = ""
    quota: str = ""
    limits: dict[str, int] = {}
    launches: int | None = None
    concurrency: int | None = None
    run: int | None = None
    until: str = ""
    at: int | None = None
    outcome: str = ""
    explain: str = ""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """`ready`: the data conditions hold and no run is open. An empty `held_by` then means: with the next round."""

    task: str
    job: str
    ready: bool
    at_position: int
    conditions: list[Condition]
    held_by: list[Hold]
    changes: list[Change]

    def to_json(self) -> dict[str, Any]:
        """Return the documented JSON object as plain data."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        for change in plain["changes"]:
            change.pop("at", None)
        return plain


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Waiting jobs of a task that wait for the same: how many, and a few of them."""

    what: str
    explain: str
    count: int
    sample: list[str]


# --- words ------------------------------------------------------------------------------------------


def iso(at: int) -> str:
    """Return engine time as ISO-8601 UTC, rounded up to the microsecond."""
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=-(-at // 1000))
    return moment.isoformat().replace("+00:00", "Z")


def in_words(expr: d.AnyExpr) -> str:
    """Return a condition as a person would say it."""
    match expr:
        case d.In(leaf=leaf):
            return leaf
        case d.Not(of=part):
            return f"not {in_words(part)}"
        case d.All(of=parts):
            return "(" + " and ".join(map(in_words, parts)) + ")" if parts else "everything"
        case d.Any(of=parts):
            return "(" + " or ".join(map(in_words, parts)) + ")" if parts else "nothing"


def parts_of(expr: d.AnyExpr) -> Iterator[d.AnyExpr]:
    """Yield the conditions that must all hold."""
    if isinstance(expr, d.All):
        for part in expr.of:
            yield from parts_of(part)
    elif isinstance(expr, d.Not) and isinstance(expr.of, d.Any):
        for part in expr.of.of:
            yield from parts_of(d.Not(of=part))
    elif isinstance(expr, d.Not) and isinstance(expr.of, d.Not):
        yield from parts_of(expr.of.of)
    else:
        yield expr


def subject(part: d.AnyExpr) -> d.AnyExpr:
    """Return what a condition is about, whether it needs it or its absence."""
    return part.of if isinstance(part, d.Not) else part


def needs(part: d.AnyExpr) -> str:
    """Return `present` or `absent`."""
    return "absent" if isinstance(part, d.Not) else "present"


def link_of(task: d.TaskDef, part: d.AnyExpr) -> str:
    """Return the link that a condition stems from, or `ready` for a part of a custom one."""
    bare, absent = subject(part), isinstance(part, d.Not)
    for link in task.links:
        if link.expr == bare and (link.inhibits_start if absent else link.required_for_start):
            return link.name
    return next((link.name for link in task.links if link.expr == bare), "ready")


def pending_in_words(key: PendingKey, why: Pending) -> str:
    """Tell of an evaluation that is due."""
    text = f"the {key.what} of {key.owner} is to be evaluated (since position {why.position})"
    return f"{text}: {why.error}; again at {iso(why.retry_at)}" if why.error else text


def run_in_words(state: State, run: OpenRun) -> str:
    """Tell a run and what it holds."""
    amounts = ", ".join(f"{amount / NANO:g} {part}" for part, amount in run.resources.items())
    return f"run {run.run} ({run.task} {state.jobs[run.job]}{': ' + amounts if amounts else ''})"
