"""What `why` answers, as values and in words: `Explanation` is one (task, job), `Group` the waiting jobs of one reason.

The command line's JSON is `Explanation.to_json()`, its text `lines`; a notebook shows `_repr_html_`. Below them the words
for conditions, evaluations, runs and times that the rest of the package shares.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from html import escape
from typing import Any

import msgspec

from datatask.engine.core.state import Pending, PendingKey, State
from datatask.engine.core.tasks import OpenRun
from datatask.schema import definition as d
from datatask.schema.units import EPOCH, NANO, amount_words, in_units


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """One condition on data: a link's, or a part of a custom `ready=` (then `link` is `ready`).

    `since` is the position of the event that made it as it is: the newest of those about its leaves.
    """

    link: str
    repository: str
    needs: str
    is_: str = msgspec.field(name="is")
    since: int | None
    satisfied: bool
    explain: str


class Node(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A condition as a tree: `op` is `and`, `or`, `not` or `in`; `holds` says whether it does for the job.

    An `in` names its repository, since when it is so, and for a derived one `by` (`filter`, `translation`, `view`) with
    what it rests on in `of`; `target` is the job that it stands for, `task` the one that a view is about.
    """

    op: str
    holds: bool
    of: list[Node] = []
    repository: str = ""
    job: str = ""
    since: int | None = None
    by: str = ""
    answer: str = ""
    target: str = ""
    task: str = ""
    explain: str = ""


class RunUsage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An open run, what it uses of a quota (in units), and since when."""

    run: int
    task: str
    job: str
    since: str
    amounts: dict[str, float] = {}
    where: str = ""


class Amount(msgspec.Struct, frozen=True, kw_only=True):
    """One dimension of a quota, in units: how much is needed, in use, and granted in all."""

    needed: float
    used: float
    limit: float


class Blocker(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing other than data that holds the job back.

    `since` is the position of the event that made it so. For a limit: which `quota`, the `amounts` that are lacking, the
    open runs that use them (`runs`, the first 50, and `more`). `until`: the ISO time at which it ends by itself.
    `repository`: which one is not known, or waits for user code.
    """

    what: str
    explain: str
    since: int | None = None
    until: str = ""
    repository: str = ""
    quota: str = ""
    amounts: dict[str, Amount] = {}
    runs: list[RunUsage] = []
    more: int = 0


class CitedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event that an answer cites, as read from the log."""

    position: int
    kind: str
    at: str
    actor: str
    run: int | None
    reason: str = ""


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
    """Why a job runs or does not.

    `ready`: the data conditions hold and no run is open. `launching`: the next round launches it; else something in
    `conditions` or `held_by` says why not. `changes` is the smallest set after which the next round does, in the order
    in which they are to be made; empty where it does anyhow, or where no set was found, which `held_by` then says.
    `tree` is an `and` of one node for each of `conditions`, in the same order. `events` are those cited.
    """

    task: str
    job: str
    ready: bool
    at_position: int
    conditions: list[Condition]
    held_by: list[Blocker]
    changes: list[Change]
    launching: bool = False
    tree: Node = Node(op="and", holds=True)
    events: list[CitedEvent] = []

    def to_json(self) -> dict[str, Any]:
        """Return the documented JSON object as plain data."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        for change in plain["changes"]:
            change.pop("at", None)
        return plain

    def positions(self) -> list[int]:
        """Return the positions that the answer cites, each once, oldest first."""
        cited = {condition.since for condition in self.conditions} | {
            blocker.since for blocker in self.held_by
        }
        cited |= {run.run for blocker in self.held_by for run in blocker.runs}
        nodes = [self.tree]
        while nodes:
            node = nodes.pop()
            cited.add(node.since)
            nodes += node.of
        return sorted(position for position in cited if position)

    def __repr__(self) -> str:
        return "\n".join(lines(self))

    def _repr_html_(self) -> str:
        first, *rest = lines(self)
        body = "\n".join(rest)
        return f"<p><b>{escape(first)}</b></p><pre>{escape(body)}</pre>"


class Group(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Waiting jobs of a task with one reason: how many, and a few of them."""

    what: str
    explain: str
    count: int
    sample: list[str]
    until: str = ""


# --- as text ----------------------------------------------------------------------------------------

_OPS = {
    "put": "put {job} into {repository}",
    "delete": "delete {job} from {repository}",
    "set_filter": "let the filter of {repository} answer {outcome} for {job}",
    "set_translation": "let {job} stand for {outcome} in {repository}",
    "wait_for": "wait until the run of {task} for {job} has {outcome}",
    "evaluate": "let the priority of {task} answer for {job}",
    "retry": "ask to retry {job} in {task}",
    "resume": "resume {task}",
    "enable": "enable {task} in the pipeline",
    "recover": "bring back the runner of {task}",
    "observe": "have {repository} listed",
    "accept_loss": "accept the loss in {repository}, or bring back what vanished",
    "raise_quota": "raise {quota} to {amounts}",
    "raise_concurrency": "let {task} run {concurrency} at once",
    "raise_priority": "let {job} come first in {task}",
    "wait_until": "wait until {until}",
    "start_engine": "start the engine",
    "run": "let the run end that is under way, and run {task}",
    "end_run": "end run {run} ({task} {job})",
}


_RUNNING = {"live": "wait until {task} runs {job}", "not live": "wait until {task} no longer runs {job}"}


def change_text(change: Change) -> str:
    """Return what is to be done, in words."""
    fields = {name: getattr(change, name) for name in change.__struct_fields__}
    amounts = [amount_words(part, amount) for part, amount in change.limits.items()]
    amounts += [f"{change.launches} launches in its window"] if change.launches is not None else []
    pattern = _OPS[change.op]
    if change.op == "wait_for" and change.run is not None:
        pattern = "wait until run {run} ({task} {job}) has ended"
    elif change.outcome in _RUNNING:
        pattern = _RUNNING[change.outcome]
    text = pattern.format(**fields, amounts=", ".join(amounts))
    return f"{text} ({change.explain})" if change.explain else text


def verdict(found: Explanation) -> str:
    """Return the state of the job in a few words."""
    if any(blocker.what == "live" for blocker in found.held_by):
        return "is running"
    if found.launching:
        return "is ready, and will be launched"
    return "is ready, and held back" if found.ready else "is not ready"


def lines(found: Explanation, *history: str) -> list[str]:
    """Return the answer as lines of text; `history` are lines about the job's past runs."""
    cited = {event.position: event for event in found.events}
    text = [f"{found.task} {found.job}: {verdict(found)}"]
    for condition, node in zip(found.conditions, found.tree.of, strict=True):
        mark = "ok " if condition.satisfied else "NOT"
        since = f", since {cite(condition.since, cited)}" if condition.since else ""
        text.append(
            f"  {mark} {condition.link}: needs {condition.needs} in {condition.repository}, is {condition.is_}{since}"
        )
        text += _tree(node, cited, "      ")
    for blocker in found.held_by:
        event = cited.get(blocker.since or 0) if blocker.what != "engine" else None
        source = "" if event is None else f" — {_event_text(event)}"
        text.append(f"  held by {blocker.what}: {blocker.explain}{source}")
    text += [f"  {line}" for line in history]
    if found.changes:
        text.append("  to let it run: " + "; ".join(map(change_text, found.changes)))
    return text


def cite(position: int, cited: dict[int, CitedEvent]) -> str:
    """Return a position, with the event there where it is known."""
    event = cited.get(position)
    return f"position {position}" if event is None else f"position {position} ({_event_text(event)})"


def _event_text(event: CitedEvent) -> str:
    run = f", run {event.run}" if event.run is not None else ""
    reason = f": {event.reason}" if event.reason else ""
    return f"{event.kind} by {event.actor} at {event.at}{run}{reason}"


def _tree(node: Node, cited: dict[int, CitedEvent], indent: str) -> Iterator[str]:
    """Yield the parts of a condition; nothing for a plain repository and its absence."""
    plain = node.of[0] if node.op == "not" else node
    if plain.op == "in" and not plain.explain:
        return
    for part in [node] if plain.op == "in" else plain.of:
        yield from _branch(part, cited, indent)


def _branch(node: Node, cited: dict[int, CitedEvent], indent: str) -> Iterator[str]:
    mark = "ok " if node.holds else "NOT"
    wanted, plain = ("not in", node.of[0]) if node.op == "not" else ("in", node)
    if plain.op == "in":
        about = f"{plain.job} " if plain.job else ""
        since = f", since {cite(plain.since, cited)}" if plain.since else ""
        rule = f": {plain.explain}" if plain.explain else ""
        yield f"{indent}{mark} {about}{wanted} {plain.repository}{since}{rule}"
    else:
        words = {"and": "all of these", "or": "any of these"}[plain.op]
        yield f"{indent}{mark} {'not ' if node.op == 'not' else ''}{words}"
    for part in plain.of:
        yield from _branch(part, cited, indent + "  ")


# --- words ------------------------------------------------------------------------------------------


def iso_up(at: int) -> str:
    """Return engine time as ISO-8601 UTC, rounded up to the microsecond: at that time it has come."""
    return (EPOCH + dt.timedelta(microseconds=-(-at // 1000))).isoformat().replace("+00:00", "Z")


def subject(part: d.AnyExpr) -> d.AnyExpr:
    """Return a condition without its negation."""
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


def pending_text(key: PendingKey, why: Pending) -> str:
    """Return an evaluation that is due, in words."""
    text = f"the {key.what} of {key.owner} is to be evaluated (since position {why.position})"
    return f"{text}: {why.error}; again at {iso_up(why.retry_at)}" if why.error else text


def usage_of(state: State, run: OpenRun) -> RunUsage:
    """Return what a run uses."""
    amounts = {part: in_units(amount) for part, amount in run.resources.items() if amount}
    about = {"run": run.run, "task": run.task, "job": state.jobs[run.job], "where": run.where}
    return RunUsage(**about, since=iso_up(run.decided_at), amounts=amounts)  # type: ignore[arg-type]


def usage_text(usage: RunUsage) -> str:
    """Return a run and what it uses, in words."""
    amounts = ", ".join(amount_words(part, round(amount * NANO)) for part, amount in usage.amounts.items())
    return f"run {usage.run} ({usage.task} {usage.job}{': ' + amounts if amounts else ''})"
