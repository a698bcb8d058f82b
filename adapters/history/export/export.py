"""One export: which tables in which format go where, and the doing of it.

In: a reader, a state, an `Order`. Out: what was written. Everything is checked before the first byte is written;
several tables go into a folder, a file each, one table into one file or to stdout.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, NamedTuple, get_args

from datatask.adapters.history import shapes
from datatask.adapters.history.export import tables
from datatask.adapters.history.export.files import (
    SINKS,
    STDOUT,
    Written,
    lines,
    load_arrow,
    refuse,
    stdout,
    written,
)
from datatask.adapters.history.states import collector_off
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.state import State
from datatask.schema.errors import CallerError, InvalidValueError, NotPossibleError, unknown

Format = Literal["parquet", "jsonl", "csv", "openlineage"]
FORMATS: tuple[Format, ...] = get_args(Format)
_SUFFIXES: dict[str, Format] = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}


class Order(NamedTuple):
    """What to write where. No `format`: as the name ends; no `names`: every table of Parquet, else the events."""

    target: str
    format: Format | None = None
    names: tuple[str, ...] = ()
    wanted: tables.Wanted = tables.Wanted()
    force: bool = False


def export(reader: LogReader, state: State, order: Order) -> list[Written]:
    """Write the files, each whole or not at all; `CallerError` before anything is written that cannot be."""
    with collector_off():  # the state is large and lives; what is made here is small and does not
        return _export(reader, state, order, order.format or _guessed(order.target))


def _export(reader: LogReader, state: State, order: Order, form: Format) -> list[Written]:
    if form == "openlineage":
        return [_openlineage(reader, state, order)]
    names = _names(form, order)
    for name in names:
        tables.check(name, order.wanted)
    if form == "parquet":
        load_arrow()
    if len(names) == 1 and not _folder(form, order):
        return [_one(reader, state, order, form, names[0], order.target)]
    if order.target == STDOUT:
        raise InvalidValueError("stdout takes one table", remedy="name it: --table events")
    folder = Path(order.target)
    if folder.exists() and not folder.is_dir():
        raise InvalidValueError(
            "this is no directory", where=str(folder), remedy="name a directory, or one --table"
        )
    paths = [folder / f"{name}.{form}" for name in names]
    made = _make(folder)
    try:
        refuse(paths, order.force)
        return [
            _one(reader, state, order, form, name, str(path)) for name, path in zip(names, paths, strict=True)
        ]
    except BaseException:
        if made and not any(folder.iterdir()):
            folder.rmdir()
        raise


def _make(folder: Path) -> bool:
    """Make the folder; return whether it was not there."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    except OSError as error:
        raise CallerError(
            f"cannot make this directory: {error.strerror}", where=str(folder), remedy="name another"
        ) from error
    return True


def _guessed(target: str) -> Format:
    if target == STDOUT:
        return "jsonl"
    found = _SUFFIXES.get(Path(target).suffix)
    if found is None:
        raise InvalidValueError(
            "the name does not say the format", where=target, remedy=f"use --format {'|'.join(FORMATS)}"
        )
    return found


def _names(form: Format, order: Order) -> tuple[str, ...]:
    for name in order.names:
        if name not in tables.TABLES:
            raise unknown("table", name, tables.TABLES)
    names = tuple(dict.fromkeys(order.names))
    return names or (tables.TABLES if _folder(form, order) else ("events",))


def _folder(form: Format, order: Order) -> bool:
    """Whether all tables are wanted, in a folder: Parquet under a name that is not a Parquet file's."""
    return not order.names and form == "parquet" and Path(order.target).suffix != ".parquet"


@contextmanager
def _opened(target: str, force: bool) -> Iterator[IO[bytes]]:
    if target == STDOUT:
        with stdout() as file:
            yield file
        return
    refuse([Path(target)], force)
    with written(Path(target)) as file:
        yield file


def _one(reader: LogReader, state: State, order: Order, form: Format, name: str, target: str) -> Written:
    if target == STDOUT and form == "parquet" and sys.stdout.isatty():
        raise InvalidValueError("Parquet is no text for a terminal", remedy="name a file, or pipe it")
    with _opened(target, order.force) as file:
        if form == "jsonl" and name == "events":  # as `log --json` has them
            found = tables.recorded(reader, state, order.wanted)
            return Written(target, lines(file, map(shapes.event, found)), _size(target, file))
        sink = SINKS[form](file, tables.COLUMNS[name])
        count = 0
        try:
            for row in tables.rows(name, reader, state, order.wanted):
                sink.write(row)
                count += 1
        finally:
            sink.close()
        return Written(target, count, _size(target, file))


def _openlineage(reader: LogReader, state: State, order: Order) -> Written:
    from datatask.adapters.history.export.openlineage import run_events

    if order.names:
        raise NotPossibleError("OpenLineage has no tables", remedy="leave out --table")
    events = run_events(reader, state, order.wanted)
    with _opened(order.target, order.force) as file:
        return Written(order.target, lines(file, events), _size(order.target, file))


def _size(target: str, file: IO[bytes]) -> int | None:
    return None if target == STDOUT else file.tell()
