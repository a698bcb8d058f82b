"""A log's file opens as it is: in the sqlite3 module, and in a real Datasette, whose pages ask the views over HTTP."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from datatask.schema.tables import VIEW_COLUMNS
from tests.integration.cli_kit import Project

COUNTS = "SELECT state, count(*) AS n FROM runs WHERE task = :task GROUP BY state"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Three jobs that went through two tasks."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.put(a=1, b=2, c=3)
    project.ok("run")
    return project


@contextmanager
def datasette(*arguments: str | Path) -> Iterator[str]:
    """Serve on a free port of the loopback, and give the address."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DATASETTE")}
    process = subprocess.Popen(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "datasette",
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            *arguments,
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        told = []
        for line in process.stderr:
            told.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield found[0]
                break
        else:
            raise AssertionError("".join(told))
    finally:
        process.terminate()
        process.stderr.close()
        process.wait(100)


def fetch(address: str, path: str, **parameters: str) -> Any:
    query = urllib.parse.urlencode({"_shape": "array", **parameters})
    with urllib.request.urlopen(f"{address}/{path}?{query}", timeout=30) as answer:
        return json.load(answer)


def asks(address: str) -> None:
    """Each view has its documented columns, rows can be filtered, and SQL is answered."""
    for view, columns in VIEW_COLUMNS.items():
        rows = fetch(address, f"log/{view}.json", _size="3")
        assert rows, view
        assert list(rows[0]) == list(columns), view
    (ended,) = fetch(address, "log/events.json", kind="RunEnded", job="b", task="double")
    assert json.loads(ended["payload"])["outcome"] == "succeeded"
    assert fetch(address, "log.json", sql=COUNTS, task="double") == [{"state": "succeeded", "n": 3}]


def test_datasette_serves_a_closed_log_as_immutable(project: Project) -> None:
    """Nothing appears beside the file, and not a byte of it changes."""
    before = project.log.read_bytes()
    with datasette("--immutable", project.log) as address:
        asks(address)
    assert project.log.read_bytes() == before
    assert not project.log.with_name("log.db-wal").exists()


def test_datasette_serves_a_log_also_while_an_engine_writes_it(project: Project) -> None:
    """What is appended shows at the next request, and the engine is not disturbed."""
    with project.engine(), datasette(project.log) as address:
        asks(address)
        project.ok("inject", "double.numbers", "fresh", stdin=b"n: 1")
        project.until("fresh", "ls", "double.succeeded")
        assert fetch(address, "log.json", sql=COUNTS, task="double") == [{"state": "succeeded", "n": 4}]
    project.ok("rm", "double", "fresh")
    project.ok("rm", "double.numbers", "fresh")
    assert project.ok("verify").out.endswith(": ok\n")


def test_datasette_serves_a_closed_log_that_may_change(project: Project, tmp_path: Path) -> None:
    """Without --immutable and without an engine."""
    copy = tmp_path / "log.db"
    copy.write_bytes(project.log.read_bytes())
    with datasette(copy) as address:
        rows = fetch(address, "log/runs.json", task="double", job="a")
        assert [row["state"] for row in rows] == ["succeeded"]


@pytest.mark.parametrize("option", ["mode=ro", "immutable=1"])
def test_the_sqlite3_module_reads_every_view(project: Project, option: str) -> None:
    """With no more than the file: no function, collation or extension of ours."""
    with closing(sqlite3.connect(f"file:{project.log}?{option}", uri=True)) as connection:
        for view, columns in VIEW_COLUMNS.items():
            cursor = connection.execute(f"SELECT * FROM {view}")
            assert [column[0] for column in cursor.description] == list(columns)
            assert cursor.fetchall()
        waits = connection.execute("SELECT min(wait) >= 0, min(duration) >= 0 FROM runs").fetchone()
        assert waits == (1, 1)
