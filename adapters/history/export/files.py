"""An export: which tables go where in which format, and the writing of Parquet, CSV and JSON lines.

In: a reader, a state and an `Order`, checked before the first byte is written. Out: the files, each renamed into
place when it is complete, with their rows and bytes. Several tables go into a folder, one table into a file or to
stdout. Parquet needs pyarrow (the extra `parquet`), which is imported when it is used.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol, get_args

import msgspec

from datatask.adapters.history import shapes
from datatask.adapters.history.export import tables
from datatask.adapters.history.export.tables import Row, Type
from datatask.adapters.history.states import collector_off
from datatask.adapters.log.reader import LogReader
from datatask.adapters.spools import whole
from datatask.adapters.store.staged import take_over
from datatask.engine.core.state import State
from datatask.schema.errors import (
    AlreadyThereError,
    InvalidValueError,
    NotInstalledError,
    NotPossibleError,
    unknown,
)
from datatask.schema.units import iso

GROUP_ROWS = 50_000
GROUP_BYTES = 32 * 1024 * 1024
"""A row group of Parquet is written at this number of rows, or about this number of bytes of text."""

LONG = frozenset({"payload", "value", "error"})
"""The columns whose texts are counted for that: no other can be long."""

STDOUT = "-"
_encoder = msgspec.json.Encoder()


class Sink(Protocol):
    """Takes rows, and is closed when there are no more."""

    def write(self, row: Row) -> None:
        """Take a row."""

    def close(self) -> None:
        """Write what is still held."""


class Written(NamedTuple):
    """A file that was written, or `-`."""

    path: str
    rows: int
    bytes: int | None


class Lines:
    """JSON lines: an object a row, times as ISO 8601."""

    def __init__(self, file: IO[bytes], columns: Mapping[str, Type]) -> None:
        self._file = file
        self._names = tuple(columns)
        self._times = [index for index, kind in enumerate(columns.values()) if kind == "time"]

    def write(self, row: Row) -> None:
        """Take a row."""
        cells = list(row)
        for index in self._times:
            cells[index] = iso(cells[index])
        self._file.write(_encoder.encode(dict(zip(self._names, cells, strict=True))) + b"\n")

    def close(self) -> None:
        """Nothing is held."""


def lines(file: IO[bytes], documents: Iterable[object]) -> int:
    """Write JSON lines, an object a line; return how many."""
    count = 0
    for count, document in enumerate(documents, 1):  # noqa: B007
        file.write(_encoder.encode(document) + b"\n")
    return count


class Table:
    """CSV with a header: times as ISO 8601, nothing for what is unknown."""

    def __init__(self, file: IO[bytes], columns: Mapping[str, Type]) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=False)
        self._writer = csv.writer(self._text)
        self._times = [index for index, kind in enumerate(columns.values()) if kind == "time"]
        self._writer.writerow(columns)

    def write(self, row: Row) -> None:
        """Take a row."""
        cells = list(row)
        for index in self._times:
            cells[index] = iso(cells[index])
        self._writer.writerow(cells)

    def close(self) -> None:
        """Write what is buffered; the file itself is whoever opened it's."""
        self._text.flush()
        self._text.detach()


class Parquet:
    """Parquet: UTC timestamps in nanoseconds, texts by dictionary, compressed by zstd."""

    def __init__(self, file: IO[bytes], columns: Mapping[str, Type]) -> None:
        arrow, parquet = load_arrow()
        types = {
            "integer": arrow.int64(),
            "number": arrow.float64(),
            "text": arrow.string(),
            "time": arrow.timestamp("ns", tz="UTC"),
            "flag": arrow.bool_(),
        }
        self._arrow = arrow
        self._schema = arrow.schema([(name, types[kind]) for name, kind in columns.items()])
        self._long = [index for index, name in enumerate(columns) if name in LONG]
        self._writer = parquet.ParquetWriter(
            file, self._schema, compression="zstd", use_dictionary=True, version="2.6"
        )
        self._rows: list[Row] = []
        self._bytes = 0

    def write(self, row: Row) -> None:
        """Take a row."""
        self._rows.append(row)
        for index in self._long:
            text = row[index]
            if text is not None:
                self._bytes += len(text)
        if len(self._rows) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write the last row group and the footer."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if not self._rows:
            return
        arrays = [
            self._arrow.array(cells, type=field.type)
            for cells, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)
        ]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        self._rows, self._bytes = [], 0


def load_arrow() -> tuple[Any, Any]:
    """Return pyarrow and its Parquet module, or say which extra has them."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise NotInstalledError(
            "Parquet needs pyarrow, which is not installed",
            remedy="pip install 'datatask-engine[parquet]', or use --format jsonl",
        ) from None
    return pyarrow, pyarrow.parquet


SINKS: dict[str, Callable[[IO[bytes], Mapping[str, Type]], Sink]] = {
    "parquet": Parquet,
    "jsonl": Lines,
    "csv": Table,
}


# --- places -------------------------------------------------------------------------------------------


def refuse(paths: Sequence[Path], force: bool) -> None:
    """Raise `CallerError` where something is there already, or could not be written."""
    for path in paths:
        if path.is_dir():
            raise AlreadyThereError("this is a directory", where=str(path), remedy="name a file")
        if path.exists() and not force:
            raise AlreadyThereError(
                "this file is there already", where=str(path), remedy="use --force, or another name"
            )
        if not path.parent.is_dir():
            raise InvalidValueError(
                "there is no such directory", where=str(path.parent), remedy="make it first"
            )


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name when all of it is on disk, and not otherwise."""
    hidden = f".{path.name}.{os.getpid()}.part"
    with (
        _mapped(path),
        whole(path, durable=True, fresh=hidden, finish=lambda fresh: take_over(fresh, path)) as file,
    ):
        yield file


def write_marked(path: Path, text: str, *, mark: str, what: str) -> None:
    """Write a text that begins with `mark`, over no file that does not; `CallerError` where that cannot be."""
    with _mapped(path), suppress(FileNotFoundError), path.open("rb") as file:
        if file.read(len(mark)) != mark.encode():
            raise InvalidValueError(f"this file is no {what}", where=str(path), remedy="name another file")
    with written(path) as file:
        file.write(text.encode())


@contextmanager
def _mapped(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NotPossibleError(
            f"cannot write: {error.strerror or error}",
            where=str(path),
            remedy="see the disk, or name another place",
        ) from error


@contextmanager
def stdout() -> Iterator[IO[bytes]]:
    """Give stdout as it is: bytes, not closed afterwards."""
    sys.stdout.flush()
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


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
        raise NotPossibleError(
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
