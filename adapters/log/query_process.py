"""One SELECT over a log, in a process of its own that the kernel holds to its time, memory and disk.

In: a log's path, SQL, parameters and limits. Out: the answer, whose rows lie in an unnamed temporary file and are read
one at a time, or the error that says which limit was reached. SQLite looks at the clock between two steps of its machine,
and one step may make a value of a gigabyte; so the limits are rlimits and an alarm, which nothing in the process can put
off. Blocking.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from datatask.adapters.log.log_file import Parameters, stream
from datatask.adapters.log.reader import LogReader
from datatask.schema import errors
from datatask.schema.errors import (
    CallerError,
    DatataskError,
    InvalidValueError,
    NotPossibleError,
    TimeLimitError,
)
from datatask.schema.troubles import as_error

MEMORY_BYTES = 1 << 30
DISK_BYTES = 4 << 30
"""The most bytes of each of SQLite's temporary files, and of the answer."""

GRACE_SECONDS = 1.0
"""SQLite is interrupted first; only after this long it is killed."""

_LENGTH = struct.Struct(">I")
_START = "from datatask.adapters.log.query_process import answer; answer()"
_CHANGE = "ask for less, or allow more with {0}"


class Limits(NamedTuple):
    """What a query may take."""

    seconds: float
    memory_bytes: int = MEMORY_BYTES
    rows_max: int | None = None


class Request(msgspec.Struct):
    """What the process is asked."""

    path: str
    sql: str
    parameters: Any
    seconds: float
    memory_bytes: int
    rows_max: int | None


class Answered(NamedTuple):
    """An answer; `rows` may be read once."""

    columns: tuple[str, ...]
    rows: Iterator[tuple[Any, ...]]
    more: bool


def ask(path: Path, sql: str, parameters: Parameters, limits: Limits) -> Answered:
    """Return the answer to one SELECT; `TimeLimitError`, or `CallerError` for another limit, or as `LogReader.query`."""
    request = Request(str(path), sql, parameters, *limits)
    kept = tempfile.TemporaryFile()  # noqa: SIM115 - closed when its rows have been read
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START],
            stdin=subprocess.PIPE, stdout=kept, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            _, output = process.communicate(msgspec.msgpack.encode(request))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        columns, more = _ended(process.returncode, output, limits)
    except BaseException:
        kept.close()
        raise
    return Answered(columns, _rows(kept), more)


def _ended(code: int, output: bytes, limits: Limits) -> tuple[tuple[str, ...], bool]:
    """Return columns and whether there is more, or raise what ended the process."""
    with suppress(ValueError):
        said = json.loads(output.splitlines()[-1]) if output.strip() else {}
        if "columns" in said:
            return tuple(said["columns"]), said["more"]
        if "error" in said:
            raise _error(said["error"])
    if code in (-signal.SIGALRM, -signal.SIGXCPU):
        raise time_error(limits.seconds)
    if b"MemoryError" in output or code in (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT):
        raise memory_error(limits.memory_bytes)
    text = " ".join(output.decode(errors="replace").split())[-300:]
    raise NotPossibleError(
        f"the query's process ended with {code}: {text}", where="SQL", remedy="see what it says"
    )


def time_error(seconds: float) -> TimeLimitError:
    """Return the error for a query that took too long."""
    return TimeLimitError(
        f"the query took more than {seconds:g} s", where="SQL", remedy=_CHANGE.format("--timeout")
    )


def memory_error(most: int) -> CallerError:
    """Return the error for a query that needs too much memory."""
    return InvalidValueError(
        f"the query needs more than {most >> 20:,} MiB of memory",
        where="SQL",
        remedy=_CHANGE.format("--memory"),
    )


def _error(shape: dict[str, str]) -> DatataskError:
    kind = getattr(errors, shape["kind"], CallerError)
    return kind(shape["what"], where=shape["where"], remedy=shape["remedy"])


def _rows(kept: BinaryIO | Any) -> Iterator[tuple[Any, ...]]:
    decode = msgspec.msgpack.Decoder(tuple[Any, ...]).decode
    with kept as file:
        file.seek(0)
        while head := file.read(_LENGTH.size):
            yield decode(file.read(_LENGTH.unpack(head)[0]))


# --- in the process ---------------------------------------------------------------------------------


def answer() -> None:
    """Be the process: the request comes on stdin, rows go to stdout, and how it ended to stderr."""
    request = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Request)
    _confine(request)
    try:
        columns, more = _answered(request)
        outcome: dict[str, Any] = {"columns": columns, "more": more}
    except MemoryError:
        outcome = {"error": _shape(memory_error(request.memory_bytes))}
    except BaseException as error:
        outcome = {"error": _shape(as_error(error, "SQL"))}
    os.write(2, json.dumps(outcome).encode() + b"\n")
    os._exit(0)


def _confine(request: Request) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write that fails says so
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if _PROC else 0
    for what, most in (
        (resource.RLIMIT_AS, used + request.memory_bytes),
        (resource.RLIMIT_FSIZE, DISK_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(ValueError, OSError):  # what is allowed already may be less
            hard = resource.getrlimit(what)[1]
            resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    signal.setitimer(signal.ITIMER_REAL, request.seconds + GRACE_SECONDS)


_PROC = os.path.exists("/proc/self/statm")


def _answered(request: Request) -> tuple[list[str], bool]:
    encode = msgspec.msgpack.Encoder().encode
    out = open(1, "wb", closefd=False)  # noqa: SIM115
    with LogReader(request.path) as reader:

        def again() -> None:
            out.flush()
            out.seek(0)
            out.truncate()

        def take(row: tuple[Any, ...]) -> None:
            data = encode(row)
            out.write(_LENGTH.pack(len(data)) + data)

        columns, more = stream(
            reader.file,
            request.sql, request.parameters, begin=again, take=take, timeout_seconds=request.seconds,
            rows_max=request.rows_max,
        )  # fmt: skip
    out.flush()
    return list(columns), more


def _shape(error: DatataskError) -> dict[str, str]:
    return {"kind": type(error).__name__, "what": error.what, "where": error.where, "remedy": error.remedy}
