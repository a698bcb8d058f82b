"""The file of a log as other programs read it: its tables, views, values and who may read it."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from datatask.adapters.log.reader import LogReader
from datatask.schema.messages import Reply
from datatask.schema.tables import VIEW_COLUMNS
from tests.integration.sqlite_kit import fill, opened, rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


async def test_the_views_have_their_documented_columns_and_nothing_else(path: Path) -> None:
    await (await opened(path)).close()
    documentation = (Path(__file__).parents[2] / "docs" / "log.md").read_text()
    with sqlite3.connect(path) as connection:
        for view, columns in VIEW_COLUMNS.items():
            described = connection.execute(f"SELECT * FROM {view}").description
            assert [column[0] for column in described] == list(columns)
            section = documentation.split(f"### `{view}`")[1].split("\n#")[0]
            for column, meaning in columns.items():
                assert f"| `{column}` | {meaning} |" in section


async def test_events_read_with_plain_sqlite3(path: Path) -> None:
    await fill(path)
    assert rows(
        path, "SELECT position, time, kind, actor, task, repository, job, run FROM events WHERE job = 'b'"
    ) == [
        (3, "2023-11-14T22:13:20.000000Z", "ValuePut", "engine", None, "r", "b", None),
        (8, "2023-11-14T22:13:20.000000Z", "LaunchDecided", "engine", "t", None, "b", 8),
        (9, "2023-11-14T22:13:20.000000Z", "RunStarted", "engine", "t", None, "b", 8),
        (11, "2023-11-14T22:13:20.000000Z", "ValueDeleted", "engine", None, "r", "b", None),
    ]
    assert rows(
        path, "SELECT json_extract(payload, '$.value'), chain, digest FROM events WHERE position = 2"
    ) == [("text", None, None)]
    with LogReader(path) as reader:
        assert rows(path, "SELECT chain, digest FROM events WHERE position = 3") == [
            (reader.chain_at(3).hex(), None)
        ]


async def test_runs_with_plain_sqlite3(path: Path) -> None:
    await fill(path)
    columns = (
        "run, task, job, episode, attempt, origin, state, where_, exit_code, error_type, error, priority"
    )
    assert rows(path, f"SELECT {columns} FROM runs ORDER BY run") == [
        (4, "t", "a", 1, 1, "derived", "failed", "node-1", 3, "ValueError", "no", None),
        (8, "t", "b", 1, 1, "derived", "running", None, None, None, None, 2.0),
        (10, "t", "a", 2, 1, "forced", "decided", None, None, None, None, None),
    ]
    seconds = "(started_at - decided_at) / 1e9, (ended_at - started_at) / 1e9"
    assert rows(path, f"SELECT {seconds}, ended, end_position FROM runs WHERE run = 4") == [
        (1.0, 1.0, "2023-11-14T22:13:23.000000Z", 7)
    ]


async def test_values_now_and_lineage_with_plain_sqlite3(path: Path) -> None:
    await fill(path)
    columns = "repository, job, position, value, digest, size, run"
    assert rows(path, f"SELECT {columns} FROM values_now ORDER BY position") == [
        ("out", "a", 6, "[1,2]", None, None, 4),
        ("r", "a", 12, "2", None, None, None),
        ("tmp", "d", 15, None, None, None, None),
    ]
    assert rows(path, "SELECT run, task, job, direction, link, repository, position FROM lineage") == [
        (4, "t", "a", "input", "input", "r", 2),
        (4, "t", "a", "output", None, "out", 6),
    ]


async def test_all_files_are_for_the_owner_only(path: Path) -> None:
    log = await opened(path)
    log.blobs.put_bytes(b"x")
    log.inbox.answer(Reply(id="x"))
    for folder, _, names in os.walk(path.parent):
        for name in names:
            assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o600, name
    await log.close()


async def test_the_log_has_one_secondary_index_and_strict_tables(path: Path) -> None:
    await (await opened(path)).close()
    assert rows(path, "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = 'log'") == [
        ("log_job_position",)
    ]
    assert rows(path, "SELECT name FROM pragma_table_list WHERE strict ORDER BY name") == [
        ("base",),
        ("log",),
        ("meta",),
        ("names",),
    ]
