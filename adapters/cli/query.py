"""`query`: one SELECT over the documented views, within limits of time and memory; never a write."""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec

from datatask.adapters.cli.options import command
from datatask.adapters.cli.output import Output, encode
from datatask.adapters.cli.recorded import opened
from datatask.adapters.cli.settings import Settings
from datatask.adapters.log.query_process import Answered, Limits, ask
from datatask.schema.errors import InvalidValueError
from datatask.schema.resources import parse_quantity

MEMORY_MIN = 16 << 20


def AMOUNT(text: str) -> int:
    """Bytes: a number, or with K, M, G, Ki, Mi, Gi; 16 MiB at least."""
    most = int(parse_quantity(text))
    if most < MEMORY_MIN:
        raise InvalidValueError(f"{text} is too little", where="--memory", remedy="16Mi is the least")
    return most


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
@click.option("--memory", type=AMOUNT, default="1Gi", show_default=True, metavar="BYTES",
              help="Give up when it needs more memory than this.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most this many rows.")
@click.option("--param", multiple=True, metavar="NAME=VALUE",
              help="What :NAME in the SQL stands for: a number, null, true, false, else text.")  # fmt: skip
def query(
    settings: Settings, sql: str, param: tuple[str, ...], limit: int | None, memory: int, timeout: float, csv: bool
) -> None:  # fmt: skip
    """Ask the log one SELECT, given here or, with -, on stdin.

    The views are events, runs, values_now and lineage; docs/log.md lists their columns. With --json:
    {"columns": […], "rows": [[…], …], "more": bool}.
    """
    output = Output(settings, csv=csv)
    parameters = dict(_parameter(text) for text in param)
    if sql == "-":
        sql = sys.stdin.read()
    if not sql.strip():
        raise InvalidValueError("there is no SQL", remedy="give a SELECT, or - and the SELECT on stdin")
    with opened(settings, events=True) as reader:
        path = reader.path
    answer = ask(path, sql, parameters, Limits(timeout, memory, limit))
    if output.json:
        _document(answer)
        return
    columns = [
        name if name not in answer.columns[:i] else f"{name}:{i + 1}" for i, name in enumerate(answer.columns)
    ]
    output.rows((dict(zip(columns, row, strict=True)) for row in answer.rows), columns)
    if answer.more:
        output.say(f"more rows than --limit {limit}")


def _document(answer: Answered) -> None:
    """Print the JSON document, row by row."""
    write = sys.stdout.write
    write(f'{{"columns":{encode(answer.columns)},"rows":[')
    between = ""
    for row in answer.rows:
        write(between + encode([_plain(value) for value in row]))
        between = ","
    write(f'],"more":{encode(answer.more)}}}\n')


def _parameter(text: str) -> tuple[str, Any]:
    """Return name and value of `NAME=VALUE`; a value in JSON's quotes is text whatever it looks like."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InvalidValueError(
            f"{text!r:.80} is no NAME=VALUE", where="--param", remedy="write --param job=cat"
        )
    try:
        found = msgspec.json.decode(value)
    except msgspec.DecodeError:
        return name, value
    return name, found if not isinstance(found, dict | list) else value


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value
