"""Whatever is changed in a log is found and located: bytes, rows, order, names, header, blobs, the end; and what is not changed is not."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import datatask
from datatask.adapters.history.states import refold
from datatask.adapters.history.verify.files import SCHEMA, schema_digest
from datatask.adapters.history.verify.verify import LogVerified
from datatask.adapters.log.checkpoints import FileCheckpoints
from datatask.adapters.log.integrity.verify import read_anchors
from datatask.adapters.log.locate import checkpoints_path
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.checkpoints import dump
from datatask.engine.core.state import FOLD_VERSION
from datatask.engine.ports import Checkpoint
from datatask.schema.tables import create_statements
from datatask.schema.troubles import Divergence
from tests.integration.cli_kit import Project

BIG = b"0123456789abcdef" * 5000
COLUMNS = (
    "position", "at", "kind", "version", "essential", "actor", "cause", "task", "repository", "job", "run", "payload",
    "salt", "digest", "chain",
)  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A log with runs of two tasks, a value in a blob, a person's words, and two engines' lives."""
    project = Project(tmp_path_factory.mktemp("original"))
    project.put(a=1, b=2)
    project.ok("run")
    project.ok("inject", "shout.blobs", "big", stdin=BIG)
    project.ok("pause", "shout", "--reason", "lunch")
    return project


@pytest.fixture
def project(original: Project, tmp_path: Path) -> Project:
    """A copy of it, to be changed."""
    copy = Project(tmp_path)
    shutil.copytree(original.log.parent, copy.log.parent)
    return copy


def verify(project: Project) -> LogVerified:
    return datatask.verify(project.log)


def change(project: Project, *statements: str) -> None:
    """Change the file behind the engine's back."""
    with closing(sqlite3.connect(project.log)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        for statement in "; ".join(statements).split("; "):
            connection.execute(statement)
        connection.commit()


def rows(project: Project, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(project.log)) as connection:
        return connection.execute(sql).fetchall()


def ends(project: Project) -> list[int]:
    return [
        row[0] for row in rows(project, "SELECT position FROM log WHERE chain IS NOT NULL ORDER BY position")
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def keep(project: Project, position: int, *, of: int | None = None) -> None:
    """Leave a checkpoint beside the log, with the state at its position or, falsely, `of` another."""
    with LogReader(project.log) as reader:
        body = dump(refold(reader, of or position))
        checkpoint = Checkpoint(position, reader.chain_at(position), FOLD_VERSION, body)
        FileCheckpoints(checkpoints_path(reader.path), reader.uuid).write(checkpoint)


def test_what_an_engine_wrote_is_clean(project: Project) -> None:
    """Nothing is found, what was checked and what it rests on is told, and not a byte changes."""
    before = contents(project.log.parent)
    found = verify(project)
    assert found.ok, found
    assert any("blobs" in line for line in found.checked)
    assert any("no anchor" in line for line in found.rests_on)
    assert {name: data for name, data in contents(project.log.parent).items() if name in before} == before
    shape = project.ok("verify", "--json").json
    assert (shape["chain"], shape["divergences"]) == ("ok", [])
    assert {"checked", "rests_on"} < shape.keys()


def flipped(value: Any) -> Any:
    """Return the value with one bit or one character changed."""
    match value:
        case None:
            return 1
        case int():
            return value ^ 1
        case str():
            middle = len(value) // 2
            return value[:middle] + ("x" if value[middle : middle + 1] != "x" else "y") + value[middle + 1 :]
        case bytes():
            return bytes([value[0] ^ 1]) + value[1:] if value else b"\1"


def test_a_changed_value_in_any_column_of_any_row_is_found_in_its_batch(project: Project) -> None:
    """For a row of each kind each column is changed by as little as can be."""
    good = project.log.read_bytes()
    boundaries = [0, *ends(project)]
    sample = rows(project, f"SELECT {', '.join(COLUMNS)} FROM log GROUP BY kind, payload IS NULL")
    for row in sample:
        position = row[0]
        first = max(end for end in boundaries if end < position) + 1
        for column, value in zip(COLUMNS, row, strict=True):
            new = -position if column == "position" else flipped(value)
            if column in ("digest", "chain", "payload") and value is None:
                new = b"\1" * 32 if column != "payload" else "{}"
            with closing(sqlite3.connect(project.log)) as connection:
                connection.execute("PRAGMA foreign_keys = OFF")
                connection.execute(f"UPDATE log SET {column} = ? WHERE position = ?", (new, position))
                connection.commit()
            with LogReader(project.log) as reader:
                found = datatask.replay(reader.path, verify=True)
            assert found.broken_at is not None, (column, position)
            assert first <= found.broken_at <= position, (column, position, found)
            project.log.write_bytes(good)


@pytest.mark.parametrize("byte", range(0, 100, 7))
def test_a_changed_byte_of_the_file_is_found(project: Project, byte: int) -> None:
    """Anywhere in the file, at one of a hundred places: told, or refused to be opened by name.

    But for the bytes that SQLite left behind and nobody can read.
    """
    change(project, "VACUUM")
    data = bytearray(project.log.read_bytes())
    said = dumped(project.log)
    used = [place for place, value in enumerate(data) if value and place > 100]
    place = used[len(used) * byte // 100]
    data[place] ^= 0x04
    project.log.write_bytes(data)
    called = project.call("verify")
    assert called.code in (3, 5) or dumped(project.log) == said, (
        bytes(data[place - 20 : place + 20]),
        called,
    )


def dumped(path: Path) -> list[str] | None:
    """Return all that SQLite can read, or None."""
    with closing(sqlite3.connect(path)) as connection:
        try:
            return list(connection.iterdump())
        except (sqlite3.Error, UnicodeDecodeError):
            return None


def test_rows_that_are_missing_or_swapped_are_found_where_they_are(project: Project) -> None:
    good, boundaries = project.log.read_bytes(), ends(project)
    change(project, "DELETE FROM log WHERE position = 9")
    found = verify(project)
    assert found.divergences[0][:4] == (9, "the event", "position 9", "position 10")
    assert found.replayed.broken_at == 9
    project.log.write_bytes(good)
    one, other = boundaries[3], boundaries[4]
    change(project, f"UPDATE log SET position = -1 WHERE position = {one}",
           f"UPDATE log SET position = {one} WHERE position = {other}",
           f"UPDATE log SET position = {other} WHERE position = -1")  # fmt: skip
    assert verify(project).replayed.broken_at in range(boundaries[2] + 1, one + 1)


def test_a_log_is_folded_as_far_as_can_be(project: Project) -> None:
    """What stands before the damage is as it was, and the chain behind it is checked too."""
    last = ends(project)[-1]
    change(
        project, "DELETE FROM log WHERE position = 9", f"UPDATE log SET at = at + 1 WHERE position = {last}"
    )
    found = datatask.replay(project.log, verify=True)
    assert 2 < found.head < 9
    assert {9, last} <= {one.position for one in found.divergences}
    plain = datatask.replay(project.log)
    assert (plain.head, len(plain.divergences)) == (found.head, 1)
    assert project.call("replay").code == 3


def test_a_stored_hash_that_was_changed_alone_is_told_from_changed_events(project: Project) -> None:
    position = ends(project)[4]
    change(project, f"UPDATE log SET chain = zeroblob(32) WHERE position = {position}")
    (found,) = verify(project).divergences
    assert found.what == "the stored hash of the batch, not its events"


def test_a_cut_end_is_found_by_an_anchor_and_by_what_else_remembers_it(
    project: Project, tmp_path: Path
) -> None:
    """The last batch deleted: an anchor tells; so do names that no event uses, and the openings that are counted."""
    file = tmp_path / "anchors.jsonl"
    noted = json.loads(project.ok("log-anchor", file).out)
    assert project.ok("verify", "--anchor", file).code == 0
    boundaries = ends(project)
    change(project, f"DELETE FROM log WHERE position > {boundaries[-2]}")
    cut = project.call("verify", "--anchor", file, "--json")
    assert cut.code == 3
    (found,) = [one for one in cut.json["divergences"] if "noted" in one["what"]]
    assert found["position"] == boundaries[-2] + 1
    assert found["expected"] == f"events up to position {noted['position']}"
    change(project, f"DELETE FROM log WHERE position > {boundaries[2]}")
    told = verify(project)
    assert any("events that use the names" in one.what for one in told.divergences)
    assert any("openings" in line for line in told.rests_on)


def test_a_cut_end_is_found_by_a_checkpoint_of_later(project: Project) -> None:
    """A checkpoint remembers a position that the log does not have any more, or another hash there."""
    boundaries = ends(project)
    keep(project, boundaries[-1])
    assert any("checkpoints" in line for line in verify(project).checked)
    change(project, f"DELETE FROM log WHERE position > {boundaries[1]}")
    assert any("log.db.checkpoints" in one.what for one in verify(project).divergences)


def test_a_rewritten_log_is_found_by_an_anchor_only(project: Project, tmp_path: Path) -> None:
    """Everything computed anew holds by itself, and not against a hash noted before."""
    file = tmp_path / "anchors.jsonl"
    project.ok("log-anchor", file)
    shutil.rmtree(project.log.parent)
    project.put(a=1, b=2)
    project.ok("run")
    assert project.ok("verify").code == 0
    (found,) = datatask.verify(project.log, anchors=read_anchors(file)).divergences
    assert found.what == "the log of the anchor"


def test_every_anchor_of_a_file_is_compared(project: Project, tmp_path: Path) -> None:
    file = tmp_path / "anchors.jsonl"
    with LogReader(project.log) as reader:
        noted = [
            {"log": reader.uuid, "position": position, "chain": reader.chain_at(position).hex(), "at": "t"}
            for position in ends(project)[::4]
        ]
    file.write_text("".join(json.dumps(anchor) + "\n" for anchor in noted))
    anchors = read_anchors(file)
    assert datatask.verify(project.log, anchors=anchors).ok
    wrong = anchors[2].__class__(log=anchors[2].log, position=anchors[2].position, chain="0" * 64, at="t")
    (found,) = datatask.verify(project.log, anchors=[*anchors, wrong]).divergences
    assert (found.position, found.expected) == (wrong.position, "0" * 64)
    file.write_text("{}\n")
    refused = project.call("verify", "--anchor", file)
    assert refused.code == 2
    assert "line 1" in refused.err


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE names SET text = text || 'x' WHERE text = 'double'", "hash of the batch"),
        ("UPDATE names SET id = 999 WHERE text = 'double'", "the text of name"),
        ("INSERT INTO names VALUES (500, 'never used')", "the numbers of names"),
        ("UPDATE meta SET value = 'other' WHERE key = 'pipeline'", "the header's pipeline"),
        ("UPDATE meta SET value = '0' || substr(value, 2) || 'f' WHERE key = 'uuid'", "the header's uuid"),
        ("UPDATE meta SET value = 0 WHERE key = 'format'", "the header's format"),
        ("UPDATE meta SET value = 0 WHERE key = 'may_read'", "the header's may_read"),
        ("UPDATE meta SET value = -3 WHERE key = 'may_write'", "the header's may_write"),
        ("UPDATE meta SET value = 'elsewhere' WHERE key = 'host'", "the header's host"),
        ("UPDATE meta SET value = value + 1 WHERE key = 'pid'", "the header's pid"),
        ("UPDATE meta SET value = 1 WHERE key = 'epoch'", "the header's epoch"),
        ("UPDATE meta SET value = value + 1000000000000 WHERE key = 'started'", "the header's started"),
        ("UPDATE meta SET value = '9.9' WHERE key = 'written_by'", "the header's written_by"),
        ("UPDATE meta SET value = randomblob(32) WHERE key = 'base_chain'", "the hash of the batch 1"),
        ("UPDATE log SET payload = NULL WHERE position = 8", "the salt"),
        ("CREATE TABLE log2 (a); DROP VIEW lineage; CREATE VIEW lineage AS SELECT 1", "the schema's lineage"),
        ("UPDATE log SET essential = 3 WHERE position = 8", "essential"),
    ],
)  # fmt: skip
def test_names_header_and_what_the_chain_does_not_cover(project: Project, statement: str, what: str) -> None:
    change(project, statement)
    assert any(what in one.what for one in verify(project).divergences), verify(project)


def test_a_base_that_nobody_cut_is_refused_by_name(project: Project) -> None:
    change(project, "UPDATE meta SET value = 6 WHERE key = 'base'")
    refused = project.call("verify")
    assert refused.code == 5
    assert "position 6" in refused.err


def test_a_header_of_nonsense_is_refused_by_name(project: Project) -> None:
    change(project, "UPDATE meta SET value = 'many' WHERE key = 'may_read'")
    refused = project.call("verify")
    assert refused.code == 5
    assert "may_read" in refused.err


@pytest.mark.parametrize(("damage", "told"), [("missing", "missing"), ("changed", "other bytes")])
def test_a_blob_that_is_missing_or_changed_is_named_with_the_event_that_refers_to_it(
    project: Project, damage: str, told: str
) -> None:
    files = [path for path in project.log.with_name("log.db.blobs").rglob("*") if path.is_file()]
    blob = max(files, key=lambda path: path.stat().st_size)
    if damage == "missing":
        blob.unlink()
    else:
        blob.write_bytes(b"x" + blob.read_bytes()[1:])
    (found,) = verify(project).divergences
    ((position,),) = rows(project, f"SELECT position FROM log WHERE payload LIKE '%{blob.name}%'")
    assert found.position == position
    assert told in found.recorded
    assert blob.name in found.remedy
    line = project.call("verify").lines[0]
    assert line.startswith(f"{project.log} position {position}: ")


def test_a_checkpoint_of_another_state_is_found(project: Project) -> None:
    """A checkpoint is a cache; one that says something else than the events is told of."""
    keep(project, ends(project)[-1], of=ends(project)[-2])
    assert any("the state in" in one.what for one in verify(project).divergences)


def test_while_an_engine_writes(project: Project) -> None:
    """A log that grows meanwhile is verified up to where it was."""
    with project.engine():
        project.put(**{f"j{number}": number for number in range(30)})
        for _ in range(3):
            assert project.ok("verify").code == 0
            assert project.ok("replay", "--verify").code == 0
        project.until("double.doubled 32", "status")
        assert project.ok("verify").code == 0


@pytest.fixture
def crashed(original: Project) -> Iterator[Path]:
    """A log whose writer was killed: its newest batch is in the write-ahead log, and there is no shared memory."""
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(original.log.parent, folder / "log")
    path = folder / "log" / "log.db"
    child = os.fork()
    if not child:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("UPDATE names SET text = text")
        os._exit(0)
    os.waitpid(child, 0)
    path.with_name("log.db-shm").unlink(missing_ok=True)
    assert path.with_name("log.db-wal").stat().st_size
    yield path
    for place in (folder, folder / "log"):
        place.chmod(0o755)
    shutil.rmtree(folder)


def test_on_a_medium_that_cannot_be_written_with_what_a_crashed_engine_left(crashed: Path) -> None:
    """Every file and folder is read-only, and whoever asks is nobody: all is answered, nothing is changed."""
    folder = crashed.parent
    for path in folder.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    folder.chmod(0o555)
    folder.parent.chmod(0o555)
    before = contents(folder)
    child = os.fork()
    if not child:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            found = datatask.verify(crashed)
            code = 0 if found.ok and datatask.replay(crashed).head == found.replayed.head else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (
            "CREATE TRIGGER t AFTER INSERT ON log BEGIN DELETE FROM names; END",
            "the trigger t on the log's tables",
        ),
        ("PRAGMA application_id = 7", "the file's application_id"),
        ("PRAGMA user_version = 7", "the file's user_version"),
    ],
)
def test_what_is_not_in_the_rows_and_could_do_harm_is_found(
    project: Project, statement: str, expected: str
) -> None:
    with closing(sqlite3.connect(project.log)) as connection:
        connection.execute(statement)
        connection.commit()
    assert [one.what for one in verify(project).divergences] == [expected]


def test_what_others_added_is_told_and_left_alone(project: Project) -> None:
    change(project, "CREATE TABLE notes (x)", "INSERT INTO meta VALUES ('colour', 'red')")
    told = verify(project)
    assert told.ok
    said = " ".join(told.rests_on)
    assert "the header's colour" in said
    assert "notes" in said


def test_the_schema_of_a_new_log_is_known() -> None:
    """Who changes a table or view adds its digest; who reads an older log still knows the older one."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in create_statements():
            connection.execute(statement)
        made = connection.execute(
            "SELECT name, type, tbl_name, coalesce(sql, '') FROM sqlite_master"
        ).fetchall()
    assert {name: schema_digest(*told) in SCHEMA.get(name, ()) for name, *told in made} == dict.fromkeys(
        [name for name, *_ in made], True
    ), {name: schema_digest(*told) for name, *told in made}


def test_a_divergence_is_one_line() -> None:
    assert str(Divergence(0, "SQLite's integrity check", "ok", "row missing", "restore it")) == (
        "SQLite's integrity check: expected ok, recorded row missing; restore it"
    )
    assert str(Divergence(7, "cause", None, 9)) == "position 7: cause: expected nothing, recorded 9"
