"""A log's file folded by columns: the plain way's state, and where the file is damaged the plain way's words."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings

from benchmarks.logs import make_log
from datatask.adapters.log import columns
from datatask.adapters.log.columns import Follower
from datatask.adapters.log.reader import LogReader
from datatask.adapters.log.sqlite import SqliteLog
from datatask.engine.core.checkpoints import dump, load
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import State
from datatask.schema.definition import PipelineDef
from datatask.schema.errors import DatataskError
from tests.property.test_bulk import anything
from tests.property.test_state import lives
from tests.property.world import Action, World

WHERE = 600


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "log.db"
    make_log(path, 150, 2)
    return path


@pytest.fixture
def path(written: Path, tmp_path: Path) -> Path:
    """A log of 1,650 events."""
    return Path(shutil.copy(written, tmp_path / "log.db"))


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be many pages, and no range too short for them."""
    monkeypatch.setattr(columns, "SHORT", 0)
    monkeypatch.setattr(columns, "ROWS_MIN", 16)
    monkeypatch.setattr(columns, "ROWS_MAX", 128)


def plain(reader: LogReader, until: int, state: State | None = None) -> State:
    """Fold event by event."""
    state = State() if state is None else state
    for batch in reader.batches(state.position, until):
        apply_all(state, batch.first, batch.events)
    return state


def outcome(work: object, *given: object) -> str:
    """Return what a fold ends with: the state's bytes, or the error in full."""
    try:
        return dump(work(*given)).hex()  # type: ignore[operator]
    except DatataskError as error:
        return f"{type(error).__name__}: {error.what} | {error.where} | {error.remedy}"


def test_by_columns_and_one_by_one_give_the_same_state(path: Path) -> None:
    """From the beginning, in ranges one after another, and from a checkpoint; hardly an event needs the fold itself."""
    with LogReader(path) as reader:
        head = reader.head
        follower, state = Follower(reader), State()
        for until in (190, 191, 850, head):
            end = reader.end_of_batch(until)
            follower.follow(state, end)
            assert dump(state) == dump(plain(reader, end))
        again = load(dump(plain(reader, reader.end_of_batch(1100))))
        assert dump(Follower(reader).follow(again, head)) == dump(state)
        assert follower._bulk is not None
        assert follower._bulk.plain < head // 10


def test_versions_that_read_as_the_present_one_are_columns_too(path: Path) -> None:
    """A log of an earlier version, and one in which both stand, are folded as fast."""
    with closing(sqlite3.connect(path)) as file:
        done = file.execute(
            "UPDATE log SET version = 1 WHERE position > ?"
            " AND kind = (SELECT id FROM names WHERE text = 'RunEnded')",
            (WHERE,),
        )
        assert done.rowcount > 100
        file.commit()
    with LogReader(path) as reader:
        follower, state = Follower(reader), State()
        follower.follow(state, reader.head)
        assert dump(state) == dump(plain(reader, reader.head))
        assert follower._bulk is not None
        assert follower._bulk.plain < reader.head // 10


def test_somebody_else_may_go_on_with_the_state_in_between(path: Path) -> None:
    with LogReader(path) as reader:
        follower, state = Follower(reader), State()
        follower.follow(state, reader.end_of_batch(400))
        plain(reader, reader.end_of_batch(750), state)
        follower.follow(state, reader.head)
        assert dump(state) == dump(plain(reader, reader.head))


DAMAGE = {
    "a missing row": "DELETE FROM log WHERE position = {at}",
    "a missing stretch": "DELETE FROM log WHERE position BETWEEN {at} AND {at} + 400",
    "the rest is missing": "DELETE FROM log WHERE position > {at}",
    "a payload that is no JSON": "UPDATE log SET payload = '{{\"outcome\":' WHERE position = {at}",
    "a payload cut in two lines": "UPDATE log SET payload = payload || char(10) || payload WHERE position = {at}",
    "a payload that is empty": "UPDATE log SET payload = '' WHERE position = {at}",
    "a field of another type": "UPDATE log SET payload = replace(replace(replace(payload, '\"local\"', '7'), ':1,', ':\"x\","
    '\'), \'{{"value"\', \'{{"size":"x","value"\') WHERE position = {at}',
    "a kind nobody knows": "UPDATE log SET kind = (SELECT id FROM names WHERE text = 'engine') WHERE position = {at}",
    "a newer version": "UPDATE log SET version = 9 WHERE position = {at}",
    "a version out of range": "UPDATE log SET version = 70000 WHERE position = {at}",
    "a version below": "UPDATE log SET version = -1 WHERE position = {at}",
    "an actor without a name": "UPDATE log SET actor = 999999 WHERE position = {at}",
    "a task without a name": "UPDATE log SET task = -5 WHERE position = {at}",
    "a job without a name": "UPDATE log SET job = 999999 WHERE position = {at}",
    "a job below": "UPDATE log SET job = -2 WHERE position = {at}",
    "another task's run": "UPDATE log SET run = run - 1 WHERE position = {at}",
    "another run": "UPDATE log SET run = 5 WHERE position = {at}",
    "another task": "UPDATE log SET task = (SELECT id FROM names WHERE text = 'engine') WHERE position = {at}",
    "another repository": "UPDATE log SET repository = task WHERE position = {at}",
    "a task for a repository": "UPDATE log SET repository = job WHERE position = {at}",
    "another job": "UPDATE log SET job = job + 1 WHERE position = {at}",
    "no job": "UPDATE log SET job = NULL WHERE position = {at}",
    "names with a gap": "DELETE FROM names WHERE text = 'job-0000100'",
    "times that go back": "UPDATE log SET at = at - 5000000000 WHERE position BETWEEN {at} AND {at} + 200",
    "a batch without its end": "UPDATE log SET chain = NULL WHERE position > {at}",
}


@pytest.mark.parametrize("kind", ["ValuePut", "LaunchDecided", "RunStarted", "RunEnded", "DecisionRound"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_as_the_plain_way_tells_it(path: Path, damage: str, kind: str) -> None:
    """The same error with the same position, or the same state where the plain way finds nothing wrong."""
    with LogReader(path) as reader:
        head = reader.head
    with closing(sqlite3.connect(path)) as file:
        ((at,),) = file.execute(
            "SELECT min(position) FROM log WHERE position > ? AND kind = (SELECT id FROM names WHERE text = ?)",
            (WHERE, kind),
        )
        file.execute("PRAGMA foreign_keys = OFF")
        file.execute(DAMAGE[damage].format(at=at))
        file.commit()
    with LogReader(path) as reader:
        found, expected = outcome(Follower(reader).follow, State(), head), outcome(plain, reader, head)
    assert found == expected


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@settings(max_examples=15, phases=[Phase.generate])
@given(anything, lives)
def test_any_life_in_a_file_gives_the_state_that_was_lived(
    loop: asyncio.AbstractEventLoop, family: tuple[PipelineDef, list[PipelineDef]], life: list[Action]
) -> None:
    world = World(*family)
    for action in life:
        world.act(action)

    async def lived(folder: str) -> None:
        log = await SqliteLog.open(
            Path(folder) / "log.db",
            pipeline="p",
            clock_now=1,
            version="1",
            host="h",
            pid=1,
            durability="process",
        )
        for batch in world.batches[1:-1]:
            log.enqueue(batch)
        await log.append(world.batches[-1])
        state = await log.fold(State())
        expected = State()
        async for written in log.batches():
            apply_all(expected, written.first, written.events)
        await log.close()
        assert dump(state) == dump(expected)

    with tempfile.TemporaryDirectory() as folder:
        loop.run_until_complete(lived(folder))
