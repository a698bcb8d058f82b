"""`log`, `runs` and `query`: what happened, as the log has it.

Events and rows stream out page by page in bounded memory; with `--follow` the log goes on until it is
interrupted. Filters of one kind are alternatives, those of different kinds must all hold.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from datatask.adapters.cli.options import JOB, WHEN, command
from datatask.adapters.cli.output import Output, cell, encode, shown
from datatask.adapters.cli.recorded import changed, opened
from datatask.adapters.cli.settings import Settings
from datatask.adapters.history import shapes
from datatask.adapters.history.names import unknown
from datatask.adapters.history.when import When, iso, position_of
from datatask.adapters.log.reader import LogReader
from datatask.engine.ports import Filters
from datatask.schema.errors import UnknownNameError
from datatask.schema.events import KINDS, Recorded

EVENT_FIELDS = ("position", "at", "kind", "actor", "cause", "task", "repository", "job", "run", "data")
RUN_FIELDS = (
    "run",
    "task",
    "job",
    "attempt",
    "state",
    "decided_at",
    "started_at",
    "ended_at",
    "where",
    "exit_code",
    "error",
)
DRAWN_FIELDS = ("run", "task", "job", "state", "started_at", "error")
STATES = (
    "decided",
    "running",
    "succeeded",
    "failed",
    "timed_out",
    "cancelled",
    "lost",
    "refused",
    "handed_over",
)
FOLLOW_SECONDS = 1.0
QUERY_SECONDS = 3600.0
DATA_WIDTH = 160


@command(
    "log",
    example="datatask log --job cat --kind RunEnded\ndatatask log --since -1h --grep timeout --json\n"
    "datatask log --follow",
)
@click.option("--follow", is_flag=True, help="Go on with what is appended, until interrupted.")
@click.option("--grep", "text", default="", metavar="TEXT", help="Only events that hold this text.")
@click.option("--until", type=WHEN, metavar="WHEN", help="Only up to a position, time or age.")
@click.option("--since", type=WHEN, metavar="WHEN", help="Only from a position, time or age on.")
@click.option("--actor", multiple=True, help="Only what this one caused (`engine`, or `user@host: command`).")
@click.option("--run", type=click.IntRange(1), multiple=True, metavar="RUN", help="Only this run.")
@click.option("--kind", multiple=True, metavar="KIND", help="Only this kind of event.")
@click.option("--repository", multiple=True, metavar="REPO", help="Only this repository (id).")
@click.option("--job", type=JOB, multiple=True, help="Only this job.")
@click.option("--task", multiple=True, metavar="TASK", help="Only this task.")
def log(
    settings: Settings,
    task: tuple[str, ...],
    job: tuple[str, ...],
    repository: tuple[str, ...],
    kind: tuple[str, ...],
    run: tuple[int, ...],
    actor: tuple[str, ...],
    since: When | None,
    until: When | None,
    text: str,
    follow: bool,
) -> None:
    """Print the log's events, oldest first.

    One event a line: position, time, kind, then what it is about. With --json one object a line.
    """
    for name in kind:
        if name not in KINDS:
            raise _unknown("kind of event", name, list(KINDS))
    filters = Filters(
        kind, task, repository, job, run, actor, since and since.at, until and until.last_at, text
    )
    output = Output(settings)
    fields = output.chosen(EVENT_FIELDS)
    chosen = fields != EVENT_FIELDS
    with opened(settings) as reader:
        after = max(0, since.position - 1) if since is not None and since.position else 0
        last = until.position if until is not None else None
        for found in _events(reader, after, last, filters, follow):
            shape = shapes.event(found)
            if output.json:
                output.line(encode({name: shape[name] for name in fields}))
            else:
                output.line("\t".join(_cells(shape, fields)) if chosen else _line(found, shape))
            if follow:
                sys.stdout.flush()


def _events(
    reader: LogReader, after: int, last: int | None, filters: Filters, follow: bool
) -> Iterator[Recorded]:
    while True:
        head = reader.head
        yield from reader.read(after, head if last is None else min(head, last), filters)
        after = head
        if not follow or (last is not None and after >= last):
            return
        while not changed(reader, head, FOLLOW_SECONDS):
            sys.stdout.flush()
        time.sleep(0.01)


def _line(found: Recorded, shape: dict[str, Any]) -> str:
    about = [
        f"{name}={shape[name]}" for name in ("task", "repository", "job", "run") if shape[name] is not None
    ]
    if shape["actor"] != "engine":
        about.append(f"by {shape['actor']}")
    data = shapes.brief(found.event)
    if len(data) > DATA_WIDTH:
        data = data[:DATA_WIDTH] + "…"
    return shown(
        " ".join([f"{shape['position']:>6}", shape["at"], f"{shape['kind']:<16}", *about, data]).rstrip()
    )


def _cells(shape: dict[str, Any], fields: tuple[str, ...] | Any) -> list[str]:
    return [cell(shape[name]).replace("\t", " ").replace("\n", " ") for name in fields]


@command(
    "runs",
    example="datatask runs --state failed\ndatatask runs --task resize --since -1d --json",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the last N.")
@click.option("--until", type=WHEN, metavar="WHEN", help="Only those decided up to then.")
@click.option("--since", type=WHEN, metavar="WHEN", help="Only those decided since then.")
@click.option("--state", multiple=True, type=click.Choice(STATES), help="Only runs in this state.")
@click.option("--job", type=JOB, multiple=True, help="Only this job.")
@click.option("--task", multiple=True, metavar="TASK", help="Only this task.")
def runs(
    settings: Settings,
    task: tuple[str, ...],
    job: tuple[str, ...],
    state: tuple[str, ...],
    since: When | None,
    until: When | None,
    limit: int | None,
) -> None:
    """List runs, oldest first: each attempt at a job, and how it ended."""
    where: list[str] = ["1"]
    values: list[str | int] = []
    for column, wanted in (("task", task), ("job", job), ("state", state)):
        if wanted:
            where.append(f"{column} IN ({', '.join('?' * len(wanted))})")
            values += list(wanted)
    with opened(settings) as reader:
        if since is not None:
            where.append("run >= ?" if since.at is None else "decided_at >= ?")
            values.append((since.position if since.at is None else since.at) or 0)
        if until is not None:
            where.append("run <= ?")
            values.append(position_of(reader, until))
        sql = (
            "SELECT run, task, job, attempt, state, decided_at, started_at, ended_at, where_, exit_code, error"
            f" FROM runs WHERE {' AND '.join(where)} ORDER BY run DESC"
        )
        if limit is not None:
            sql += f" LIMIT {limit}"
        found = reader.query(sql, values, timeout_seconds=QUERY_SECONDS).rows
    Output(settings).rows([_run(row) for row in reversed(found)], RUN_FIELDS, drawn=DRAWN_FIELDS)


def _run(row: tuple[Any, ...]) -> dict[str, Any]:
    shape = dict(zip(RUN_FIELDS, row, strict=True))
    for name in ("decided_at", "started_at", "ended_at"):
        shape[name] = iso(shape[name])
    return shape


@command(
    "query",
    example='datatask query "SELECT task, state, count(*) FROM runs GROUP BY task, state"\n'
    "datatask query --json \"SELECT * FROM values_now WHERE repository = 'out'\"",
)
@click.argument("sql")
@click.option("--timeout", type=click.FloatRange(min=0.001), default=60.0, show_default=True, metavar="S",
              help="Give up after this many seconds (exit code 7).")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most this many rows.")
def query(settings: Settings, sql: str, limit: int | None, timeout: float) -> None:
    """Ask the log one SELECT.

    The views are events, runs, values_now and lineage; docs/log.md lists their columns. With --json:
    {"columns": […], "rows": [[…], …], "more": bool}.
    """
    with opened(settings) as reader:
        answer = reader.query(sql, timeout_seconds=timeout, rows_max=limit)
    output = Output(settings)
    if output.json:
        rows = [[_plain(value) for value in row] for row in answer.rows]
        output.document({"columns": answer.columns, "rows": rows, "more": answer.more})
        return
    columns = [
        name if name not in answer.columns[:i] else f"{name}:{i + 1}" for i, name in enumerate(answer.columns)
    ]
    output.rows([dict(zip(columns, row, strict=True)) for row in answer.rows], columns)
    if answer.more:
        output.say(f"more rows than --limit {limit}")


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def _unknown(what: str, name: str, known: list[str]) -> UnknownNameError:
    return UnknownNameError(f"there is no {what} {name}", remedy=unknown(name, known).remedy)
