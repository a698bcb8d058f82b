"""`query`: one SELECT over the documented views, with a time limit; never a write."""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec

from datatask.adapters.cli.options import command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import opened
from datatask.adapters.cli.settings import Settings
from datatask.schema.errors import CallerError


@command(
    "query",
    example='datatask query "SELECT task, state, count(*) FROM runs GROUP BY task, state"\n'
    'datatask query --param job=cat "SELECT time, kind, actor FROM events WHERE job = :job"\n'
    "datatask query --csv - < report.sql > report.csv",
)
@click.argument("sql", metavar="SQL|-")
@click.option("--csv", is_flag=True, help="Print CSV, a header first.")
@click.option("--timeout", type=click.FloatRange(min=0.001), default=60.0, show_default=True, metavar="S",
              help="Give up after this many seconds (exit code 7).")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most this many rows.")
@click.option("--param", multiple=True, metavar="NAME=VALUE",
              help="What :NAME in the SQL stands for: a number, null, true, false, else text.")  # fmt: skip
def query(
    settings: Settings, sql: str, param: tuple[str, ...], limit: int | None, timeout: float, csv: bool
) -> None:
    """Ask the log one SELECT, given here or, with -, on stdin.

    The views are events, runs, values_now and lineage; docs/log.md lists their columns. With --json:
    {"columns": […], "rows": [[…], …], "more": bool}.
    """
    output = Output(settings, csv=csv)
    parameters = dict(_parameter(text) for text in param)
    if sql == "-":
        sql = sys.stdin.read()
    if not sql.strip():
        raise CallerError("there is no SQL", remedy="give a SELECT, or - and the SELECT on stdin")
    with opened(settings, events=True) as reader:
        answer = reader.query(sql, parameters, timeout_seconds=timeout, rows_max=limit)
    if output.json:
        rows = [[_plain(value) for value in row] for row in answer.rows]
        output.document({"columns": answer.columns, "rows": rows, "more": answer.more})
        return
    columns = [
        name if name not in answer.columns[:i] else f"{name}:{i + 1}" for i, name in enumerate(answer.columns)
    ]
    output.rows((dict(zip(columns, row, strict=True)) for row in answer.rows), columns)
    if answer.more:
        output.say(f"more rows than --limit {limit}")


def _parameter(text: str) -> tuple[str, Any]:
    """Return name and value of `NAME=VALUE`; a value in JSON's quotes is text whatever it looks like."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise CallerError(f"{text!r:.80} is no NAME=VALUE", where="--param", remedy="write --param job=cat")
    try:
        found = msgspec.json.decode(value)
    except msgspec.DecodeError:
        return name, value
    return name, found if not isinstance(found, dict | list) else value


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value
