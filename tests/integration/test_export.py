"""`export` and `History.export`: files that other programs open, and that say what the log says."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import sys
from pathlib import Path
from typing import Any

import duckdb
import polars
import pytest

from datatask.adapters.history.export import files
from datatask.adapters.history.export.files import Order, export
from datatask.adapters.history.export.tables import COLUMNS, TABLES, rows
from datatask.adapters.history.export.tables import Wanted as Rows
from datatask.adapters.history.history import History
from datatask.schema.errors import CallerError
from datatask.schema.tables import VIEW_COLUMNS
from tests.integration.cli_kit import Project
from tests.integration.test_cli_lineage import ACROSS
from tests.integration.test_cli_trace import RETRIES

LEFT_OUT = {
    "events": {"time", "salt", "digest", "chain"},
    "runs": {"decided", "started", "ended"},
    "values_now": {"time"},
    "lineage": set(),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A log with attempts, values of other jobs, blobs, a deletion and a retry."""
    project = Project(tmp_path_factory.mktemp("export"), ACROSS)
    for job, n in (("one", 1), ("two", 2), ("none", 0)):
        project.ok("inject", "double.numbers", job, stdin=f"n: {n}".encode())
    project.ok("inject", "double.numbers", "bad", stdin=b"m: 1")
    project.ok("inject", "bill.owner", "ada", stdin=b"one")
    assert project.call("run").code == 1
    project.ok("inject", "total.start", "all", stdin=b"of: [one, two]")
    project.call("run")
    project.ok("rm", "double.parts", "two-1")
    project.ok("retry", "double", "one")
    project.call("run")
    return project


@pytest.fixture
def history(written: Project) -> Any:
    with History(written.log) as history:
        yield history


def _made(history: History, table: str, wanted: Rows = Rows()) -> list[dict[str, Any]]:  # noqa: B008
    return [
        dict(zip(COLUMNS[table], row, strict=True))
        for row in rows(table, history.reader, history.state(), wanted)
    ]


def _sorted(found: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in found)


@pytest.mark.parametrize("table", TABLES)
def test_each_table_is_its_view(history: History, table: str) -> None:
    """Row for row what SQL says, and the columns that docs/log.md lists."""
    assert set(VIEW_COLUMNS[table]) - LEFT_OUT[table] == set(COLUMNS[table])
    columns = ", ".join(COLUMNS[table])
    expected = list(history.query(f"SELECT {columns} FROM {table}"))
    for row in expected:
        if table == "events":
            row["essential"] = bool(row["essential"])
    found = _made(history, table)
    assert found
    assert _sorted(found) == _sorted(expected)


def test_an_earlier_boundary_has_what_was_known_then(written: Project, history: History) -> None:
    """--at: runs that ended later are still running, values that came later are not there."""
    ended = next(row for row in _made(history, "runs") if row["task"] == "total")
    written.ok(
        "export", "then", "--format", "parquet", "--at", str(ended["run"]), "--force"
    )  # the decision alone
    folder = written.folder / "then"
    runs = polars.read_parquet(folder / "runs.parquet")
    assert runs.filter(polars.col("task") == "total")["state"].to_list() == ["decided"]
    values = polars.read_parquet(folder / "values_now.parquet")
    assert "sums" not in values["repository"].to_list()
    assert polars.read_parquet(folder / "events.parquet")["position"].max() == history.position(ended["run"])


def test_parquet_answers_questions_in_duckdb(written: Project) -> None:
    """Types arrive: UTC timestamps, integers, texts; and a join over the tables of one folder."""
    written.ok("export", "history", "--format", "parquet", "--force")
    folder = written.folder / "history"
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.parquet" for name in TABLES)
    with duckdb.connect() as connection:
        types = dict(
            connection.execute(
                f"SELECT column_name, column_type FROM (DESCRIBE FROM '{folder}/runs.parquet')"
            ).fetchall()
        )
        assert types["run"] == "BIGINT"
        assert types["task"] == "VARCHAR"
        assert types["decided_at"].startswith("TIMESTAMP")
        failed = connection.execute(
            f"SELECT job, error FROM '{folder}/runs.parquet' WHERE state = 'failed' AND task = 'double'"
        ).fetchall()
        assert [job for job, _ in failed] == ["bad"]
        from_one = connection.execute(
            f"""SELECT DISTINCT o.repository FROM '{folder}/lineage.parquet' i
                JOIN '{folder}/lineage.parquet' o ON o.run = i.run AND o.direction = 'output'
                WHERE i.direction = 'input' AND i.repository = 'owners' ORDER BY 1"""
        ).fetchall()
        assert from_one == [("bill.done",), ("bills",)]
        seconds = connection.execute(
            f"SELECT min(epoch_ns(ended_at) - epoch_ns(started_at)) / 1e9 FROM '{folder}/runs.parquet'"
        ).fetchone()
        assert seconds is not None
        assert seconds[0] >= 0


def test_parquet_answers_questions_in_polars(written: Project, history: History) -> None:
    """Nanoseconds are kept, texts are texts, unknown is null, and the file is compressed by dictionary."""
    import pyarrow.parquet

    written.ok("export", "runs.parquet", "--table", "runs", "--force")
    frame = polars.read_parquet(written.folder / "runs.parquet")
    assert frame.schema["decided_at"] == polars.Datetime("ns", "UTC")
    assert frame.schema["state"] == polars.String
    by_task = dict(frame.group_by("task").len().iter_rows())
    assert by_task["total"] == 1
    row = _made(history, "runs")[0]
    at = frame.filter(polars.col("run") == row["run"])["decided_at"].dt.epoch("ns").item()
    assert at == row["decided_at"]
    group = pyarrow.parquet.ParquetFile(written.folder / "runs.parquet").metadata.row_group(0)
    names = {group.column(index).path_in_schema: group.column(index) for index in range(group.num_columns)}
    assert "RLE_DICTIONARY" in names["task"].encodings
    assert names["task"].compression == "ZSTD"


def test_json_lines_are_those_of_log(written: Project) -> None:
    """A line an event, as `log --json` prints it, also to stdout, with the same filters."""
    written.ok("export", "events.jsonl", "--force")
    assert (written.folder / "events.jsonl").read_text() == written.ok("log", "--json").out
    filters = ("--task", "double", "--kind", "RunEnded", "--grep", "KeyError", "--since", "3")
    assert written.ok("export", "-", *filters).out == written.ok("log", "--json", *filters).out


def test_csv_has_a_header_and_iso_times(written: Project, history: History) -> None:
    """Standard CSV: quoted where it must be, nothing for what is unknown."""
    text = written.ok("export", "-", "--format", "csv", "--table", "runs").out
    found = list(csv.DictReader(io.StringIO(text)))
    assert [row["run"] for row in found] == [str(row["run"]) for row in _made(history, "runs")]
    assert dt.datetime.fromisoformat(found[0]["decided_at"]).tzinfo is not None
    assert found[0]["exit_code"] == ""


@pytest.mark.parametrize(
    ("table", "filters", "expected"),
    [
        ("runs", ("--task", "bill"), {"ada"}),
        ("runs", ("--job", "two", "--job", "all"), {"two", "all"}),
        ("values_now", ("--repository", "parts"), {"one-0", "two-0"}),
        ("lineage", ("--repository", "bills"), {"ada"}),
        ("events", ("--kind", "ValueDeleted", "--repository", "parts"), {"two-1"}),
    ],
)
def test_filters_apply_to_what_a_table_has(
    written: Project, table: str, filters: tuple[str, ...], expected: set[str]
) -> None:
    """Rows of other tasks, jobs and repositories stay out."""
    lines = written.ok("export", "-", "--format", "jsonl", "--table", table, *filters).lines
    assert {json.loads(line)["job"] for line in lines} == expected


def test_since_and_until_are_about_when_it_was_recorded(written: Project, history: History) -> None:
    """Runs decided in a span of positions; their ends are told although they lie behind it."""
    runs = _made(history, "runs")
    first = min(row["run"] for row in runs)
    lines = written.ok("export", "-", "--table", "runs", "--until", str(first)).lines
    assert [json.loads(line)["run"] for line in lines] == [first]
    assert json.loads(lines[0])["ended_at"] is not None
    later = written.ok("export", "-", "--table", "runs", "--since", str(first + 1)).lines
    assert len(later) == len(runs) - 1


def test_what_is_there_is_not_written_over(written: Project, tmp_path: Path) -> None:
    """Without --force a file stays as it is, also where only one of several is there."""
    target = tmp_path / "events.csv"
    target.write_text("mine")
    refused = written.call("export", target)
    assert refused.code == 2
    assert "there already; use --force" in refused.err
    assert target.read_text() == "mine"
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "lineage.parquet").write_text("mine")
    assert written.call("export", folder, "--format", "parquet").code == 2
    assert [path.name for path in folder.iterdir()] == ["lineage.parquet"]
    written.ok("export", target, "--force")
    assert target.read_text().startswith("position,at,kind")


def test_an_export_that_fails_leaves_nothing(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file appears when it is whole: a failure in the middle leaves neither it nor a part, nor a new folder."""

    def broken(self: object, row: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Table, "write", broken)
    target = tmp_path / "events.csv"
    target.write_text("mine")
    with pytest.raises(CallerError, match="No space left"):
        export(history.reader, history.state(), Order(str(target), force=True))
    with pytest.raises(CallerError, match="No space left"):
        export(
            history.reader,
            history.state(),
            Order(str(tmp_path / "new"), format="csv", names=("events", "runs")),
        )
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("events.csv", "mine")]


def test_parquet_without_its_extra_is_one_clear_line(
    written: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the extra, and nothing was made."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = written.call("export", tmp_path / "all", "--format", "parquet")
    assert result.code == 2
    assert "pip install 'datatask-engine[parquet]'" in result.err
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("x.txt",), "the name does not say the format"),
        (("-", "--format", "csv", "--table", "runs", "--table", "events"), "stdout takes one table"),
        (("-", "--table", "runs", "--kind", "RunEnded"), "--kind does not filter the table runs"),
        (("-", "--kind", "RunEndet"), "there is no kind of event RunEndet; use one of: RunEnded"),
        (("-", "--format", "openlineage", "--table", "runs"), "OpenLineage has no tables"),
        (("-", "--format", "openlineage", "--grep", "x"), "--grep does not filter OpenLineage events"),
        (("none/x.csv",), "there is no such directory"),
        (("none/x", "--format", "parquet"), "cannot make this directory"),
        (("-", "--at", "99999"), "beyond the head"),
    ],
)
def test_a_wrong_call_is_told(written: Project, arguments: tuple[str, ...], words: str) -> None:
    """One line on stderr, exit code 2, nothing on stdout."""
    result = written.call("export", *arguments)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result
    assert words in result.err


def test_what_was_written_is_told(written: Project) -> None:
    """A line a file; with --json its rows and bytes, and the position that they stand for."""
    told = written.ok("export", "values.parquet", "--table", "values_now", "--force", "--json").json
    (file,) = told["files"]
    assert file["bytes"] == (written.folder / "values.parquet").stat().st_size
    assert file["rows"] == len(polars.read_parquet(written.folder / "values.parquet"))
    assert written.ok("export", "values.parquet", "--table", "values_now", "--force").out == (
        f"values.parquet: {file['rows']} rows\n"
    )


def test_row_groups_are_bounded(history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held is written as soon as it is many rows, so that memory does not follow the log."""
    import pyarrow.parquet

    monkeypatch.setattr(files, "GROUP_ROWS", 10)
    export(history.reader, history.state(), Order(str(tmp_path / "e.parquet"), names=("events",)))
    file = pyarrow.parquet.ParquetFile(tmp_path / "e.parquet")
    assert file.metadata.num_rows == history.head
    assert file.metadata.num_row_groups == -(-history.head // 10)


def test_as_a_function(history: History, tmp_path: Path) -> None:
    """`History.export` writes the same and says what."""
    (file,) = history.export(tmp_path / "runs.csv", tables=["runs"])
    assert file.rows == len(_made(history, "runs"))
    frame = polars.read_csv(tmp_path / "runs.csv")
    assert set(frame["task"]) == {"double", "bill", "total"}
    with pytest.raises(CallerError, match="there already"):
        history.export(tmp_path / "runs.csv")


def test_attempts_are_rows(tmp_path: Path) -> None:
    """Each attempt is a run of its own, those in the retry's wait too."""
    project = Project(tmp_path, RETRIES)
    project.ok("inject", "double.numbers", "good", stdin=b"n: 1")
    project.call("run")
    lines = [json.loads(line) for line in project.ok("export", "-", "--table", "runs").lines]
    assert [(line["attempt"], line["state"]) for line in lines] == [(1, "failed"), (2, "succeeded")]
