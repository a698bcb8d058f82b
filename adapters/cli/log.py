"""`log`, `export` and `query`: the events, filtered and followed, as files for other programs, or by SQL.

`log` streams page by page in bounded memory; with `--follow` it goes on, across engines, until it is interrupted or its reader has
gone. Filters of one kind are alternatives; those of different kinds must all hold. `query` reads the documented views within limits of
time and memory, and never writes.
"""

from __future__ import annotations

import re
import select as polling
import sys
from typing import Any

import click
import msgspec

from datatask.adapters.cli.commands import WHEN, Span, command, selecting_events
from datatask.adapters.cli.output import Output, encode
from datatask.adapters.cli.recorded import changed, opened, recorded
from datatask.adapters.cli.settings import Settings
from datatask.adapters.cli.terminal import note_interrupts
from datatask.adapters.history import events, shapes
from datatask.adapters.history.export.files import FORMATS, STDOUT, Format, Order, Written, export
from datatask.adapters.history.export.tables import TABLES, Wanted
from datatask.adapters.history.moments import When
from datatask.adapters.history.waits import refuse_unknown
from datatask.adapters.log.query_process import Answered, Limits, ask
from datatask.adapters.log.reader import LogReader
from datatask.engine.ports import Filters
from datatask.schema.errors import InvalidValueError, TemporaryError
from datatask.schema.events import Recorded
from datatask.schema.resources import parse_size
from datatask.schema.troubles import shown

EVENT_FIELDS = ("position", "at", "kind", "actor", "cause", "task", "repository", "job", "run", "data")
FOLLOW_SECONDS = 1.0
DATA_WIDTH = 160


@command(
    "log",
    example="datatask log --job cat --kind RunEnded\ndatatask log --since -1h --grep timeout --json\n"
    "datatask log --actor anna --last 20\ndatatask log --caused-by 4711\ndatatask log --follow",
)
@click.option("--csv", is_flag=True, help="Print CSV, a header first.")
@click.option("--follow", is_flag=True, help="Go on with what is appended, until interrupted.")
@click.option("--reverse", is_flag=True, help="The newest first.")
@click.option("--last", "--limit", type=click.IntRange(1), metavar="N", help="Only the last N.")
@click.option("--causes-of", type=click.IntRange(1), metavar="POSITION",
              help="Only what led to this event, however indirectly.")  # fmt: skip
@click.option("--caused-by", type=click.IntRange(1), metavar="POSITION",
              help="Only what followed from this event, however indirectly.")  # fmt: skip
@click.option("--regex", is_flag=True, help="TEXT is a regular expression (Python's).")
@click.option("-i", "--ignore-case", is_flag=True, help="Let TEXT match in upper and lower case.")
@selecting_events
def log(
    settings: Settings,
    filters: Filters,
    since: When | None,
    until: When | None,
    ignore_case: bool,
    regex: bool,
    caused_by: int | None,
    causes_of: int | None,
    last: int | None,
    reverse: bool,
    follow: bool,
    csv: bool,
) -> None:
    """Print the log's events, oldest first.

    One event a line: position, time, kind, then what it is about. With --json one object a line.
    """
    if follow and (reverse or caused_by is not None or causes_of is not None):
        raise InvalidValueError(
            "--follow goes on with what comes: it has no end to begin at",
            remedy="leave out --reverse, --caused-by and --causes-of, or --follow",
        )
    pattern = _pattern(filters.text, ignore_case, regex)
    if pattern:
        filters = filters._replace(text="")
    selection = events.Selection(filters, since, until, pattern, caused_by, causes_of, last, reverse)
    printer = _Printer(Output(settings, csv=csv))
    with opened(settings, events=True) as reader:
        if not follow:  # what comes later may have names that are not there yet
            refuse_unknown(reader, filters.tasks, filters.jobs, filters.repositories)
            for found in events.select(reader, selection):
                printer(found)
            return
        note_interrupts()
        for found in events.follow(reader, selection, _Waiting(reader, until), until and until.last_at):
            printer(found)


def _pattern(text: str, ignore_case: bool, regex: bool) -> re.Pattern[str] | None:
    """Return what to search for where plain text will not do."""
    if not text:
        if ignore_case or regex:
            raise InvalidValueError("--ignore-case and --regex are about --grep", remedy="say --grep TEXT")
        return None
    if not (ignore_case or regex):
        return None
    try:
        return re.compile(text if regex else re.escape(text), re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        raise InvalidValueError(
            f"{text!r:.80} is no regular expression: {error}", where="--grep", remedy="leave out --regex"
        ) from error


class _Waiting:
    """Waits for the log to grow; says that it is over when nobody reads any more, or `until` has passed."""

    def __init__(self, reader: LogReader, until: When | None) -> None:
        self._reader = reader
        self._until = until.last_at if until is not None else None
        self._over = False

    def __call__(self, head: int) -> bool:
        from datatask.adapters.clock import SystemClock

        sys.stdout.flush()
        clock = SystemClock()
        while not self._over:
            # Looked at once more after the time is over: what was appended in time is still to be shown.
            self._over = self._until is not None and clock.now() > self._until
            try:
                if changed(self._reader, head, 0.05 if self._over else FOLLOW_SECONDS):
                    return True
            except TemporaryError:
                continue
            if _nobody_reads():
                return False
        return False


def _nobody_reads() -> bool:
    """Whether the other end of the pipe that stdout is has been closed."""
    try:
        poll = polling.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & polling.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):
        return False  # no file, or a system without poll: the next line tells


class _Printer:
    """Prints events one by one: as JSON, as chosen fields, as CSV, or as a line for people."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._fields = output.chosen(EVENT_FIELDS)
        self._records = output.csv or self._fields != EVENT_FIELDS
        if output.csv:
            output.record(self._fields)

    def __call__(self, found: Recorded) -> None:
        output, shape = self._output, shapes.event(found)
        if output.json:
            output.line(encode({name: shape[name] for name in self._fields}))
        elif self._records:
            output.record([shape[name] for name in self._fields])
        else:
            output.line(_line(found, shape))


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


@command(
    "export",
    example="datatask export history --format parquet\ndatatask export runs.parquet --table runs --since -7d\n"
    "datatask export events.jsonl --task resize\ndatatask export - --format openlineage",
)
@click.argument("target")
@click.option("--format", "form", type=click.Choice(FORMATS), help="How; by default as TARGET ends.")
@click.option("--table", "names", multiple=True, type=click.Choice(TABLES), help="Which; may be repeated.")
@click.option("--force", is_flag=True, help="Write over what is there.")
@click.option("--at", type=WHEN, metavar="WHEN", help="As of a position, an ISO time or an age such as -2h.")
@selecting_events
def export_(
    settings: Settings,
    target: str,
    form: Format | None,
    names: tuple[str, ...],
    force: bool,
    at: When | None,
    filters: Filters,
    since: When | None,
    until: When | None,
) -> None:
    """Write the log as files: Parquet, CSV, JSON lines, OpenLineage.

    TARGET is a file, a directory (Parquet of all tables, or several tables), or - for stdout.
    """
    order = Order(target, form, names, Wanted(filters, since, until), force)
    output = Output(settings)
    with recorded(settings, at, events=True) as log:
        written = export(log.reader, log.state, order)
        position = log.state.position
    if target != STDOUT:
        _tell(output, written, position)


def _tell(output: Output, written: list[Written], position: int) -> None:
    if output.json:
        output.document({"position": position, "files": [file._asdict() for file in written]})
        return
    for file in written:
        output.line(f"{file.path}: {file.rows} rows")


MEMORY_MIN = 16 << 20


def AMOUNT(text: str) -> int:
    """Bytes: a number, or such as 512MB, 1GiB, 1Gi; 16 MiB at least."""
    most = int(parse_size(text))
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
@click.option("--timeout", type=Span(min=0.001), default=60.0, show_default=True, metavar="S",
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
