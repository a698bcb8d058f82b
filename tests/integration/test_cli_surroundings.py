"""The command line where its surroundings are not as they should be: one line with what, where and remedy."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from datatask import History
from datatask.schema.errors import CallerError, TimeLimitError
from tests.integration.cli_kit import PIPELINE, Project
from tests.unmeasured import plain_environment


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with a log in which one job is done."""
    return Project.after_a_run(tmp_path)


def _shell(project: Project, line: str, **env: str) -> tuple[int, str, str]:
    """Run a line of sh in which $DT is datatask; return exit code, stdout, stderr."""
    program = f"{sys.executable} -m datatask"
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=project.folder,
        env={**plain_environment(), "DT": program, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("$DT runs >/dev/full", 1, "standard output: the disk is full"),
        ("$DT status --json >/dev/full", 1, "standard output: the disk is full"),
        ("$DT --help >&-", 2, "standard output: it is closed"),
        ("$DT runs --nope --json >/dev/full", 2, "standard output: the disk is full"),
        ("$DT query - <&-", 2, "standard input: it is closed"),
        ("$DT runs 2>&-", 0, ""),
        ("$DT runs --nope 2>/dev/full", 2, ""),
        ("$DT runs --nope <&- >&- 2>&-", 2, ""),
        ("$DT log | true", 0, ""),
        ("mkdir gone && cd gone && rmdir ../gone && $DT status", 2, "gone: the working directory is gone"),
        ("mkdir gone && cd gone && rmdir ../gone && $DT init", 2, "gone: the working directory is gone"),
    ],
)
def test_streams_and_folders_that_are_full_closed_or_gone(
    project: Project, line: str, code: int, says: str
) -> None:
    """What stderr cannot take is dropped; a reader that has seen enough is no error."""
    found, _, told = _shell(project, line)
    assert found == code, told
    assert says in told
    assert told.count("\n") == bool(says), told


def test_work_goes_on_where_its_progress_cannot_be_told(project: Project) -> None:
    """And what could not be told is told at the end."""
    project.put(b=2, c=3)
    code, _, told = _shell(project, "$DT run >/dev/full")
    assert code == 1
    assert told.count("standard output: the disk is full") == 1
    assert project.ok("ls", "double.done").lines == ["a", "b", "c"]


def test_without_a_home_and_a_name(project: Project) -> None:
    """As in a container that runs under a number."""
    line = "unset HOME XDG_CACHE_HOME XDG_STATE_HOME XDG_RUNTIME_DIR USER LOGNAME; $DT run && $DT status && $DT why double a"
    if os.geteuid() == 0:
        for path in (project.folder, *project.folder.rglob("*")):
            os.chown(path, 54321, 54321)
        line = f"setpriv --reuid 54321 --regid 54321 --clear-groups /bin/sh -c '{line}'"
        reachable = all(
            os.stat(above).st_mode & 1
            for above in (
                *project.folder.parents,
                *Path(sys.executable).parents,
                *Path(sys.executable).resolve().parents,
            )
        )
        if not reachable:
            pytest.skip("another user may not enter the folders of this test")
    code, out, told = _shell(project, line)
    assert (code, "datatask:" in told) == (0, False), out + told


@pytest.mark.parametrize(
    ("name", "content", "where", "remedy"),
    [
        ("l.csv", b"job,n\na,M\xe4rz\n", "l.csv:2: this is not UTF-8 (byte 0xe4 at 4)", "-f LATIN1"),
        ("head.csv", b"job,M\xe4rz\na,1\n", "head.csv:1: this is not UTF-8", "-f LATIN1"),
        ("far.csv", b"job,n\n" + b"a,1\n" * 5000 + b"b,\xe4\n", "far.csv:5002: this is not UTF-8", "-f LATIN1"),
        ("wide.csv", "job,n\na,1\n".encode("utf-16"), "wide.csv:1: this is not UTF-8", "-f UTF-16"),
        ("l.jsonl", b'{"job": "a", "n": "M\xe4rz"}\n', "l.jsonl:1: this is not UTF-8", "-f LATIN1"),
    ],
)  # fmt: skip
def test_text_in_another_encoding_is_told_by_its_line(
    project: Project, name: str, content: bytes, where: str, remedy: str
) -> None:
    """Nothing of the file is injected."""
    (project.folder / name).write_bytes(content)
    result = project.call("inject", "double.numbers", "--from", name)
    assert (result.code, result.out) == (2, "")
    assert where in result.err
    assert remedy in result.err


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """A folder with such a name is refused in one line, wherever it is named."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xe4rz"))
    folder.mkdir()
    project = Project(folder)
    for arguments in (["run"], ["status"], ["--log", str(folder / "log.db"), "status"], ["init", "--json"]):
        code, out, told = _shell(project, "$DT " + " ".join(arguments))
        assert code in (0, 2), told
        assert "internal" not in out + told
        assert (out + told).count("\n") == 1 or code == 0, told


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("at", "'x'", "the column at holds text, not integer"),
        ("at", "x'00'", "the column at holds blob, not integer"),
        ("kind", "'x'", "the column kind holds text, not integer"),
        ("version", "NULL", "the column version holds null, not integer"),
        ("job", "'x'", "the column job holds text, not integer"),
    ],
)
def test_a_row_of_a_wrong_type_is_damage_with_its_position(
    project: Project, column: str, value: str, says: str
) -> None:
    """SQLite holds a STRICT table to its types as it writes, not as it reads."""
    with closing(sqlite3.connect(project.log)) as database:
        database.execute("PRAGMA writable_schema = ON")
        database.execute(
            "UPDATE sqlite_schema SET sql = replace(replace(sql, 'STRICT', ''), 'NOT NULL', '') WHERE type = 'table'"
        )
        database.commit()
        database.execute("PRAGMA schema_version = 1000")
    with closing(sqlite3.connect(project.log)) as database:
        database.execute(f"UPDATE log SET {column} = {value} WHERE position = 6")
        database.commit()
    for arguments in (["status"], ["log"], ["why", "double", "a"], ["run"], ["pause", "double"]):
        result = project.call(*arguments)
        assert result.code == 5, result
        assert f"log.db position 6: {says}" in result.err
        assert result.err.count("\n") == 1, result.err


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"
SOME = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 400)"


@pytest.mark.parametrize(
    ("sql", "code", "says"),
    [
        (f"{ENDLESS} SELECT count(*) FROM c", 7, "the query took too long"),
        (f"{ENDLESS} SELECT x FROM c ORDER BY random()", 7, "the query took too long"),
        (f"{ENDLESS} SELECT x FROM c", 7, "the query took too long"),
        ("SELECT zeroblob(1000000000)", 2, "one value has more than 64 MiB"),
        ("SELECT hex(randomblob(60000000))", 2, "more than 32 MiB of memory"),
        ("SELECT replace(hex(zeroblob(999999)), '0', hex(zeroblob(16)))", 2, "more than 32 MiB of memory"),
        (f"{SOME} SELECT json_group_array(hex(zeroblob(80000))) FROM c", 2, "more than 32 MiB of memory"),
        ("ATTACH 'x.db' AS x", 2, "ATTACH is refused"),
        ("VACUUM INTO 'x.db'", 2, "ATTACH is refused"),
        ("PRAGMA writable_schema = 1", 2, "PRAGMA is refused"),
        ("SELECT load_extension('x')", 2, "FUNCTION is refused"),
        ("CREATE TEMP TABLE t (a)", 2, " is refused: a log is only read"),
    ],
)
def test_a_query_is_held_to_its_limits_and_says_which_was_reached(
    project: Project, sql: str, code: int, says: str
) -> None:
    """By the kernel, in a process of its own: one step of SQLite may take any time and memory."""
    before = project.log.read_bytes()
    seconds = (
        "1" if code == 7 else "100"
    )  # however busy the machine is, it is the other limit that is reached
    result = project.call("query", "--timeout", seconds, "--memory", "32Mi", sql)
    assert (result.code, result.out) == (code, ""), result
    assert says in result.err
    assert result.err.count("\n") == 1
    assert project.log.read_bytes() == before
    assert not (project.folder / "x.db").exists()


def test_rows_of_a_query_are_not_held_in_memory(project: Project) -> None:
    """The answer is far larger than what the query's process may have."""
    sql = f"{SOME} SELECT x, hex(zeroblob(100000)) FROM c"
    result = project.call("query", "--memory", "32Mi", "--json", sql)
    assert result.code == 0, result.err
    assert [row[0] for row in result.json["rows"]] == list(range(1, 401))
    assert len(result.out) > 80_000_000


def test_a_query_of_the_library_has_limits_too(project: Project) -> None:
    """In the caller's process: the length of one value, and the time."""
    history = History(project.log)
    with pytest.raises(CallerError, match="one value has more than 64 MiB"):
        history.query("SELECT zeroblob(100000000)")
    with pytest.raises(TimeLimitError):
        history.query(f"{ENDLESS} SELECT count(*) FROM c", timeout_seconds=0.1)


@pytest.mark.parametrize(("before", "after"), [("{}['x']", "pass"), ("pass", "json.loads('{')")])
def test_what_a_resource_raises_is_the_pipelines_own_affair(tmp_path: Path, before: str, after: str) -> None:
    """It is told with the line in the pipeline's file, also where a library raised it."""
    resource = (
        f"\n@session.resource\nasync def client():\n    import json\n    {before}\n    yield 1\n    {after}\n"
    )
    text = PIPELINE.replace("session = datatask.Session()\n", "session = datatask.Session()\n" + resource)
    project = Project(tmp_path, text)
    ended = project.call("run")
    error = "KeyError: 'x'" if before != "pass" else "JSONDecodeError: Expecting"
    assert ended.code == 2
    told = ended.err.splitlines()[-1]
    assert f"datatask: {tmp_path / 'pipeline.py'}:" in told
    assert error in told
    assert "mend the pipeline, or what it needs" in told
