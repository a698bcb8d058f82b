"""Rows into files: Parquet, CSV, JSON lines; each file is written under another name and renamed when whole.

In: a place, columns with types, rows. Out: files, how many rows and bytes they have. What cannot be finished leaves
nothing behind. Parquet is pyarrow's, from the extra `parquet`; it is imported when it is needed.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import msgspec

from datatask.adapters.atomic_file import whole
from datatask.adapters.history.export.tables import Row, Type
from datatask.adapters.store.staged import take_over
from datatask.schema.errors import AlreadyThereError, CallerError, InvalidValueError, NotInstalledError
from datatask.schema.units import iso

GROUP_ROWS = 50_000
GROUP_BYTES = 32 * 1024 * 1024
"""A row group of Parquet is written when it has so many rows, or about so many bytes of text."""

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
        raise CallerError(
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
