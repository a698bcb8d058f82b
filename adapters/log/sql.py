"""The SQL of users: one SELECT over the log's tables and views, answered within bounds, changing nothing.

In: the log's file, a statement with its parameters, and how long and how much. Out: rows, each handed over as it comes, or all
of them in an `Answer`; `CallerError` for what is no SELECT. `query_process` does it in a process of its own, where memory and
time are bounded by the kernel.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from datatask.adapters.log.faults import mapped
from datatask.adapters.log.log_file import LogFile
from datatask.schema.errors import CallerError, InvalidValueError, NotPossibleError

_STEPS_PER_LOOK = 20_000
"""SQLite's virtual machine steps between two looks at the clock: about a millisecond."""

_READING = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
_ACTIONS = {
    getattr(sqlite3, f"SQLITE_{action}"): action.replace("_", " ")
    for action in (
        "INSERT", "UPDATE", "DELETE", "ATTACH", "DETACH", "PRAGMA", "TRANSACTION", "SAVEPOINT", "REINDEX", "ANALYZE",
        "CREATE_TABLE", "CREATE_TEMP_TABLE", "CREATE_VIEW", "CREATE_TEMP_VIEW", "CREATE_INDEX", "CREATE_TRIGGER",
        "CREATE_VTABLE", "FUNCTION", "DROP_TABLE", "DROP_VIEW", "DROP_INDEX", "DROP_TRIGGER", "ALTER_TABLE",
    )
}  # fmt: skip
_VIRTUAL = "SELECT 0 FROM json_each('[]'), json_tree('[]')"
"""Makes SQLite set up its own virtual tables, which it does by what looks like a write to whoever authorizes."""

_PRAGMAS = {"table_info", "table_xinfo", "index_list", "index_info", "table_list", "database_list"}

_OUTSIDE = {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer"}
"""Functions that reach beyond the log, where a build of SQLite has them."""

_SELECT = "one SELECT; see docs/log.md for the views"

VALUE_BYTES_MAX = 64 << 20
ANSWER_BYTES_MAX = 1 << 30

Parameters = Sequence[Any] | Mapping[str, Any]


class Answer(NamedTuple):
    """The answer to a query; `more` says that rows were left off."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    more: bool


def stream(
    file: LogFile,
    sql: str,
    parameters: Parameters = (),
    *,
    begin: Callable[[], None],
    take: Callable[[tuple[Any, ...]], None],
    timeout_seconds: float,
    rows_max: int | None = None,
) -> tuple[tuple[str, ...], bool]:
    """Answer one SELECT, each row handed to `take`; return the columns, and whether rows were left off.

    `begin` is called before the first row, and once more where what was taken is void, as the log changed.
    """

    def answer(connection: sqlite3.Connection) -> tuple[tuple[str, ...], bool]:
        begin()
        with _bounded(connection, file.path, time.monotonic() + timeout_seconds):
            cursor = connection.execute(sql, parameters)
            if cursor.description is None:
                raise NotPossibleError("this statement answers nothing", where="SQL", remedy="use a SELECT")
            columns = tuple(column[0] for column in cursor.description)
            for number, row in enumerate(cursor):
                if number == rows_max:
                    return columns, True
                take(row)
            return columns, False

    return file.apart(answer)


@contextmanager
def _bounded(connection: sqlite3.Connection, path: Path, deadline: float) -> Iterator[None]:
    """Let a statement only read, and only until the deadline; what SQLite says of it is mapped."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX)
    connection.execute(_VIRTUAL)
    refused: list[str] = []

    def authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        verdict = _authorize(action, first, second)
        if verdict != sqlite3.SQLITE_OK:
            refused.append(_ACTIONS.get(action, "this"))
        return verdict

    connection.set_authorizer(authorize)
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_PER_LOOK)
    try:
        yield
    except (sqlite3.Error, sqlite3.Warning) as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        if refused:
            what = f"{refused[0]} is refused: a log is only read here"
            raise NotPossibleError(what, where="SQL", remedy=_SELECT) from error
        if code in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_AUTH):
            raise CallerError(f"{error}", where="SQL", remedy=_SELECT) from error
        if code == sqlite3.SQLITE_TOOBIG or isinstance(error, sqlite3.DataError):
            what = f"one value has more than {VALUE_BYTES_MAX >> 20:,} MiB"
            raise InvalidValueError(what, where="SQL", remedy="ask for less") from error
        with mapped(path):
            raise


def _authorize(action: int, first: str | None, second: str | None) -> int:
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _OUTSIDE:
        return sqlite3.SQLITE_DENY
    if action in _READING or (action == sqlite3.SQLITE_PRAGMA and first in _PRAGMAS):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY
