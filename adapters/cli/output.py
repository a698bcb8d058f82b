"""What commands print: one place for JSON, tables, colour and the choice of fields.

Results go to stdout, diagnostics to stderr. With `--json` a result is one JSON document (or one a line where
a command streams). On a terminal tables are drawn and coloured; piped, a table is its cells separated by tabs,
a header first, so that the next program can read it. Rich is imported only when something is drawn.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from datatask.adapters.clock import effort
from datatask.schema.errors import DatataskError, InvalidValueError
from datatask.schema.troubles import printable, shown

if TYPE_CHECKING:
    from rich.console import Console

    from datatask.adapters.cli.settings import Settings

_TIME = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.\d{6}Z$")
_encoder = msgspec.json.Encoder(decimal_format="number")


def error_document(error: DatataskError) -> dict[str, Any]:
    """Return the documented JSON shape of an error."""
    told = {"what": error.what, "where": error.where, "remedy": error.remedy}
    return {"error": {"code": error.code, **{name: printable(text) for name, text in told.items()}}}


def error_line(error: DatataskError) -> str:
    """Return an error as one line."""
    return shown(" ".join(f"datatask: {error}".split()))


def is_terminal(stream: TextIO | None = None) -> bool:
    """Whether the stream (stdout) is a terminal."""
    try:
        return (stream or sys.stdout).isatty()
    except ValueError:
        return False


class Output:
    """Prints results as the settings say."""

    def __init__(self, settings: Settings, *, csv: bool = False) -> None:
        if csv and settings.json:
            raise InvalidValueError("--csv and --json contradict each other", remedy="leave out one of them")
        self._settings = settings
        self.json = settings.json
        self.csv = csv
        plain = csv or settings.json
        self.draws = not plain and is_terminal() and os.environ.get("TERM") != "dumb"

    @property
    def colored(self) -> bool:
        """Whether to use colour: --color, else NO_COLOR, else only on a terminal."""
        if self._settings.color != "auto":
            return self._settings.color == "always"
        return not os.environ.get("NO_COLOR") and is_terminal() and os.environ.get("TERM") != "dumb"

    def document(self, value: Any) -> None:
        """Print one JSON document."""
        self.line(encode(value))

    def line(self, text: str = "") -> None:
        """Print one line."""
        sys.stdout.write(text + "\n")

    def progress(self, text: str) -> None:
        """Print one line at once; a stdout that does not take it is told at the command's end, not in its midst."""
        with suppress(OSError, ValueError):
            self.line(text)
            sys.stdout.flush()

    def say(self, text: str) -> None:
        """Print one line to stderr: what is no part of the result."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def rows(
        self, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, drawn: Sequence[str] = ()
    ) -> None:
        """Print rows with these columns, or those of --fields: JSON list, CSV, drawn table, or tab-separated lines.

        `drawn` are the columns that a terminal is shown when nobody chose any. Only a drawn table is held in memory.
        """
        draws = self.draws or (self.colored and not self.json and not self.csv)
        columns = drawn if drawn and draws and not self._settings.fields else self.chosen(columns)
        if self.json:
            self._list(rows, columns)
        elif draws:
            self._table([[cell(row[name]) for name in columns] for row in rows], columns)
        else:
            self.record(columns)
            for row in rows:
                self.record([row[name] for name in columns])

    def record(self, values: Sequence[Any]) -> None:
        """Print one line of CSV (RFC 4180, but for a plain newline at the end) or of cells separated by tabs."""
        if self.csv:
            self.line(",".join(map(_quoted, values)))
        else:
            self.line("\t".join(cell(value).replace("\t", " ").replace("\n", " ") for value in values))

    def _list(self, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Print a JSON list, row by row."""
        between = "["
        for row in rows:
            effort.said = time.monotonic()
            sys.stdout.write(between + encode({name: row[name] for name in columns}))
            between = ","
        self.line("]" if between == "," else "[]")

    def chosen(self, columns: Sequence[str]) -> Sequence[str]:
        """Return the columns that --fields asks for, all of them when it does not ask."""
        wanted = self._settings.fields
        for name in wanted:
            if name not in columns:
                raise InvalidValueError(
                    f"there is no field {name}", remedy="use --fields with: " + ",".join(columns)
                )
        return wanted or columns

    def _table(self, cells: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in columns:
            table.add_column(name, no_wrap=name != columns[-1])
        for row in cells:
            table.add_row(*(Text(_TIME.sub(r"\1Z", text), style=STYLES.get(text, "")) for text in row))
        self.console().print(table)

    def console(self, *, stderr: bool = False) -> Console:
        """Return a rich console that follows --color and NO_COLOR."""
        from rich.console import Console

        return Console(
            stderr=stderr,
            force_terminal=True if self._settings.color == "always" else None,
            no_color=not self.colored,
            highlight=False,
            soft_wrap=not is_terminal(),
        )


STYLES = {
    "succeeded": "green",
    "running": "cyan",
    "decided": "cyan",
    "failed": "red",
    "timed_out": "red",
    "refused": "red",
    "lost": "yellow",
    "conflicted": "yellow",
    "cancelled": "yellow",
    "ok": "green",
    "paused": "yellow",
}


def encode(value: Any) -> str:
    """Return a value as one line of JSON."""
    try:
        return _encoder.encode(value).decode()
    except UnicodeEncodeError:  # a name that is not UTF-8 is in it
        return _encoder.encode(_printable(value)).decode()


def _printable(value: Any) -> Any:
    match value:
        case str():
            return printable(value)
        case Mapping():
            return {_printable(key): _printable(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_printable(inner) for inner in value]
    return value


def _quoted(value: Any) -> str:
    """Return a value as a CSV field, nothing left out: bytes in hex, documents in JSON, nothing for none."""
    match value:
        case None:
            return ""
        case str():
            text = value
        case bytes():
            text = value.hex()
        case _:
            text = encode(value)
    if any(letter in text for letter in ',"\r\n') or text != text.strip():
        return '"' + text.replace('"', '""') + '"'
    return text


def cell(value: Any) -> str:
    """Return a value as the text of a table's cell."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case str():
            return shown(value)
        case bytes():
            return f"<{len(value)} bytes>"
        case float():
            return f"{value:g}"
        case int():
            return str(value)
    return shown(encode(value))
