"""Logs in files, as the tests of the log open and fill them."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from datatask.adapters.log.sqlite import SqliteLog
from datatask.schema.events import (
    ErrorInfo,
    LaunchDecided,
    RepositoryReset,
    RunEnded,
    RunStarted,
    ValueDeleted,
    ValuePut,
)

NOW = 1_700_000_000_000_000_000


async def opened(path: Path | str, **options: Any) -> SqliteLog:
    return await SqliteLog.open(
        path, pipeline="p", clock_now=NOW, version="0", host="here", pid=os.getpid(), **options
    )


def put(job: str = "j", repository: str = "r", **fields: object) -> ValuePut:
    return ValuePut(at=NOW, repository=repository, job=job, **fields)  # type: ignore[arg-type]


async def fill(path: Path) -> None:
    """Append one run that failed, one that runs, one that is decided, and some values."""
    log = await opened(path)
    await log.append([put("a", value=msgspec.Raw(b'"text"'), reason="x"), put("b", digest="ef" * 32, size=5)])
    inputs = {"input": 2}
    await log.append(
        [LaunchDecided(at=NOW + 10**9, task="t", job="a", episode=1, attempt=1, inputs=inputs)]
    )  # 4
    await log.append([RunStarted(at=NOW + 2 * 10**9, task="t", job="a", run=4, where="node-1")])
    error = ErrorInfo(type="ValueError", message="no")
    await log.append(
        [
            put("a", repository="out", run=4, value=msgspec.Raw(b"[1, 2]")),  # 6
            RunEnded(
                at=NOW + 3 * 10**9, task="t", job="a", run=4, outcome="failed", exit_code=3, error=error
            ),
        ]
    )
    await log.append([LaunchDecided(at=NOW, task="t", job="b", episode=1, attempt=1, priority=2.0)])  # 8
    await log.append([RunStarted(at=NOW, task="t", job="b", run=8)])
    await log.append([LaunchDecided(at=NOW, task="t", job="a", episode=2, attempt=1, origin="forced")])  # 10
    await log.append([ValueDeleted(at=NOW, repository="r", job="b"), put("a", value=msgspec.Raw(b"2"))])  # 12
    await log.append(
        [put("c", "tmp"), RepositoryReset(at=NOW, repository="tmp", incarnation=2), put("d", "tmp")]
    )
    await log.close()


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    """Run one statement and close the file, as the command `sqlite3` does."""
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(sql).fetchall()
