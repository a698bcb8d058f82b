"""Whether the rows of a log are of the types that its tables declare.

In: a path, when reading the log failed on something that no log should hold. Out: the error that names the position, or
None. SQLite holds a STRICT table to its types as it writes, not as it reads; a check of each row that is read would cost
more than reading it, so it is made afterwards. `verify` tells the same by the chain where it gets that far.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Column, Integer, LargeBinary, Table, Text

from datatask.adapters.log.faults import damaged
from datatask.adapters.log.reader import LogReader
from datatask.schema.errors import LogDamagedError
from datatask.schema.tables import log, names

SECONDS_MAX = 10.0
_TYPES: dict[object, str] = {Integer: "integer", Text: "text", LargeBinary: "blob"}


def wrong_row(path: Path) -> LogDamagedError | None:
    """Return the error for the first row that holds a value of another type than its column's; `LogError` as any reader."""
    with LogReader(path) as reader:
        for table in (log, names):
            columns = [column for column in table.columns if type(column.type) in _TYPES]
            odd = reader.query(_first_odd(table, columns), timeout_seconds=SECONDS_MAX, rows_max=1).rows
            if odd:
                key, *kinds = odd[0]
                found = zip(columns, kinds, strict=True)
                column, kind = next((one, kind) for one, kind in found if kind not in _allowed(one))
                position = key if table is log and isinstance(key, int) else None
                of = "" if position is not None else f" of {table.name} {key!r:.80}"
                wanted = _allowed(column)[0]
                return damaged(f"the column {column.name}{of} holds {kind}, not {wanted}", path, position)
    return None


def _allowed(column: Column[object]) -> tuple[str, ...]:
    kind = _TYPES[type(column.type)]
    return (kind, "null") if column.nullable else (kind,)


def _first_odd(table: Table, columns: list[Column[object]]) -> str:
    key = next(iter(table.primary_key)).name
    kinds = [f"typeof({column.name})" for column in columns]
    tests = [
        f"{kind} NOT IN ({', '.join(map(repr, _allowed(column)))})"
        for column, kind in zip(columns, kinds, strict=True)
    ]
    return f"SELECT {key}, {', '.join(kinds)} FROM {table.name} WHERE {' OR '.join(tests)} ORDER BY rowid LIMIT 1"
