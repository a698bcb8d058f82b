"""The words of `why`: conditions, evaluations, runs and times as people say them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from datatask.engine.core.explanations import User
from datatask.engine.core.state import Pending, PendingKey, State
from datatask.engine.core.tasks import OpenRun
from datatask.schema import definition as d

NANO = 1_000_000_000


def iso(at: int) -> str:
    """Return engine time as ISO-8601 UTC, rounded up to the microsecond."""
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=-(-at // 1000))
    return moment.isoformat().replace("+00:00", "Z")


def units(amount: int) -> float:
    """Return billionths as cores, bytes and units."""
    return amount // NANO if amount % NANO == 0 else amount / NANO


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


def user_of(state: State, run: OpenRun) -> User:
    """Return what a run holds."""
    amounts = {part: units(amount) for part, amount in run.resources.items() if amount}
    about = {"run": run.run, "task": run.task, "job": state.jobs[run.job], "where": run.where}
    return User(**about, since=iso(run.decided_at), amounts=amounts)  # type: ignore[arg-type]


def user_in_words(user: User) -> str:
    """Tell a run and what it holds."""
    amounts = ", ".join(f"{amount:g} {part}" for part, amount in user.amounts.items())
    return f"run {user.run} ({user.task} {user.job}{': ' + amounts if amounts else ''})"
