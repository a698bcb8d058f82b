"""States and events in the shapes of docs/cli.md, the sets of jobs behind their numbers, and `Table`s of rows.

In: a state, an event or rows. Out: plain values for JSON. A `Table` is a sequence of dicts, so `json.dumps(list(table))`,
`pandas.DataFrame(table)` and `polars.DataFrame(table)` take it as it is; notebooks show it as a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any, overload

import msgspec
from pyroaring import BitMap

from datatask.engine.core.expressions import jobs_where, set_text
from datatask.engine.core.state import State
from datatask.engine.core.tasks import TaskState
from datatask.schema import definition as d
from datatask.schema.codec import encode
from datatask.schema.errors import unknown
from datatask.schema.events import ABSENT, ENVELOPE, Event, Recorded, UnknownEvent
from datatask.schema.units import in_units, iso

KINDS = (
    "is_input",
    "is_output",
    "is_status",
    "inhibits_start",
    "required_for_start",
    "inhibits_output",
    "required_for_output",
)


# --- sets of jobs -----------------------------------------------------------------------------------


def members(state: State, expr: d.AnyExpr) -> BitMap:
    """Return the jobs for which a condition holds (shared: do not change it)."""
    everyone = BitMap(range(len(state.jobs)))
    return jobs_where(expr, lambda leaf: state.leaves[leaf].members(state.masks), everyone)


def waiting(task: TaskState) -> BitMap:
    """Return the jobs that are ready and wait to be launched."""
    queued = BitMap(job for _, _, job in task.queue.entries())
    return queued | BitMap(task.awaiting)


def set_names(state: State) -> dict[str, d.AnyExpr | str]:
    """Return what set expressions can name: links, repositories, views; a task's name stands for its ready jobs."""
    found: dict[str, d.AnyExpr | str] = {leaf: d.In(leaf=leaf) for leaf in state.leaves}
    for task in state.tasks.values():
        for view in d.VIEW_NAMES:
            found[f"{task.name}.{view}"] = d.In(leaf=d.view_id(task.name, view))
        found[f"{task.name}.ready"] = task.name
        for link in task.definition.links:
            found[f"{task.name}.{link.name}"] = link.expr
    for task in state.tasks.values():  # pydatatask's expressions say `a_b` for a task named `a-b`
        for link in task.definition.links:
            found.setdefault(f"{task.name.replace('-', '_')}.{link.name}", link.expr)
    return found


def named_set(state: State, known: dict[str, d.AnyExpr | str], name: str) -> BitMap:
    """Return the set that a name stands for."""
    meaning = known.get(name)
    if meaning is None:
        raise unknown("", name, known)
    return waiting(state.tasks[meaning]) if isinstance(meaning, str) else members(state, meaning)


def job_names(state: State, jobs: Iterable[int]) -> list[str]:
    """Return the jobs' ids, sorted."""
    return sorted(state.jobs[job] for job in jobs)


def find_task(state: State, name: str) -> TaskState:
    """Return a task of the state, or say which ones there are."""
    task = state.tasks.get(name)
    if task is None:
        raise unknown("task", name, state.tasks)
    return task


def find_link(state: State, name: str) -> d.AnyExpr:
    """Return the membership of a `task.link` or of a repository id."""
    meaning = set_names(state).get(name)
    if meaning is None or isinstance(meaning, str):
        links = [known for known, expr in set_names(state).items() if not isinstance(expr, str)]
        raise unknown("repository", name, links)
    return meaning


def takes_documents(definition: d.RepositoryDef) -> bool:
    """Whether a repository of this kind holds documents, as far as its kind tells."""
    return "Metadata" in definition.kind


# --- status -----------------------------------------------------------------------------------------


def shown_links(task: d.TaskDef, all_links: bool = True) -> list[d.LinkDef]:
    """Return the links in the order of status: inputs, status, the rest; those without a role only with `all`."""
    links = sorted(task.links, key=lambda link: 0 if link.is_input else 1 if link.is_status else 2)
    return [link for link in links if all_links or link.is_input or link.is_output or link.is_status]


def status(state: State, all_links: bool = True) -> dict[str, Any]:
    """Return `tasks` and `quotas` of the status shape."""
    current = {task.name for task in state.definition.tasks}
    return {
        "tasks": {
            task.name: _task(state, task, all_links) for task in state.tasks.values() if task.name in current
        },
        "quotas": {
            name: {"used": units(quota.used), "limit": units(quota.limits) | _launches(quota.launches)}
            for name, quota in state.quotas.items()
        },
    }


def _task(state: State, task: TaskState, all_links: bool) -> dict[str, Any]:
    return {
        "ready": len(task.queue) + len(task.awaiting),
        "live": task.open_runs,
        "succeeded": task.succeeded.count,
        "failed": task.failed.count,
        "paused": bool(task.paused),
        "links": {
            link.name: {
                "repository": set_text(link.expr),
                "count": len(members(state, link.expr)),
                "kinds": [kind for kind in KINDS if getattr(link, kind)],
            }
            for link in shown_links(task.definition, all_links)
        },
    }


def _launches(launches: int | None) -> dict[str, float]:
    return {} if launches is None else {"launches": launches}


def units(amounts: dict[str, int]) -> dict[str, float]:
    """Return amounts in cores, bytes and units instead of billionths."""
    return {name: in_units(amount) for name, amount in sorted(amounts.items())}


# --- events -----------------------------------------------------------------------------------------


def event(recorded: Recorded) -> dict[str, Any]:
    """Return an event in the shape of `log`; `data` has the kind's own fields, defaults too."""
    position, what = recorded
    kind = what.name if isinstance(what, UnknownEvent) else type(what).__name__
    return {
        "position": position,
        "at": iso(what.at),
        "kind": kind,
        "actor": what.actor,
        "cause": what.cause,
        "task": what.task,
        "repository": what.repository,
        "job": what.job,
        "run": position if kind == "LaunchDecided" else what.run,
        "data": data(what),
    }


def data(what: Event) -> dict[str, Any] | msgspec.Raw:
    """Return an event's own fields; an unknown event's as they are stored."""
    if isinstance(what, UnknownEvent):
        return msgspec.Raw(what.payload) if what.payload else {}
    own = {name: getattr(what, name) for name in what.__struct_fields__ if name not in ENVELOPE}
    return {
        name: None if value == ABSENT and isinstance(value, msgspec.Raw) else value
        for name, value in own.items()
    }


def brief(what: Event) -> str:
    """Return an event's own fields as stored: JSON without the defaults, the empty string for none."""
    return (encode(what).payload or b"").decode()


SHOWN_ROWS = 60


class Table(Sequence[dict[str, Any]]):
    """Rows as dicts, all with the same `columns`, in this order."""

    def __init__(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Take the columns' names, and rows of one value for each."""
        self.columns = tuple(columns)
        self._rows = [dict(zip(self.columns, row, strict=True)) for row in rows]

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Table: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | Table:
        if isinstance(index, slice):
            return Table(self.columns, (tuple(row.values()) for row in self._rows[index]))
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Table):
            return self.columns == other.columns and self._rows == other._rows
        return self._rows == other

    __hash__ = None  # type: ignore[assignment]

    def column(self, name: str) -> list[Any]:
        """Return the values of one column; `KeyError` where there is none."""
        if name not in self.columns:
            raise KeyError(name)
        return [row[name] for row in self._rows]

    def __repr__(self) -> str:
        shown = [[_cell(value) for value in row.values()] for row in self._rows[:SHOWN_ROWS]]
        widths = [
            max([len(name), *(len(row[index]) for row in shown)]) for index, name in enumerate(self.columns)
        ]
        lines = [self.columns, *shown]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([*text, *self._rest()])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(_cell(value))}</td>" for value in row.values()) + "</tr>"
            for row in self._rows[:SHOWN_ROWS]
        )
        rest = "".join(f"<p>{line}</p>" for line in self._rest())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"

    def _rest(self) -> list[str]:
        more = len(self._rows) - SHOWN_ROWS
        return [f"… and {more} more rows"] if more > 0 else []


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


class Status(dict[str, Any]):
    """The counts of a log, as plain dicts for programs; for people tables of tasks, links and quotas."""

    def tables(self) -> dict[str, Table]:
        """Return tasks, links and quotas as rows, those of which there are any."""
        counts = ("ready", "live", "succeeded", "failed", "paused")
        tasks = self["tasks"].items()
        found = {
            "tasks": Table(
                ("task", *counts), ((name, *(task[one] for one in counts)) for name, task in tasks)
            ),
            "links": Table(
                ("link", "repository", "count"),
                (
                    (f"{name}.{link}", shape["repository"], shape["count"])
                    for name, task in tasks
                    for link, shape in task["links"].items()
                ),
            ),
            "quotas": Table(
                ("quota", "resource", "used", "limit"),
                (
                    (name, part, quota["used"].get(part, 0), quota["limit"].get(part, 0))
                    for name, quota in self["quotas"].items()
                    for part in sorted({*quota["used"], *quota["limit"]})
                ),
            ),
        }
        return {name: table for name, table in found.items() if len(table)}

    def __repr__(self) -> str:
        return "\n\n".join([self._about(), *(repr(table) for table in self.tables().values())])

    def _about(self) -> str:
        return f"{self['log']['url']} at {self['log']['head']}, {self['log']['at']}"

    def _repr_html_(self) -> str:
        shown = "".join(table._repr_html_() for table in self.tables().values())
        return f"<p>{escape(self._about())}</p>{shown}"
