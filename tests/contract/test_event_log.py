"""What every `EventLog` promises, on each adapter; failure halves included."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from datatask.adapters.log.memory import MemoryLog
from datatask.adapters.log.sqlite import SqliteLog
from datatask.adapters.log.tail import seeded_salts
from datatask.engine.core.redaction import removed
from datatask.engine.core.state import State
from datatask.engine.ports import Checkpoint, EventLog, Filters
from datatask.schema.errors import CallerError, LeaseLostError, LogError, UnknownNameError
from datatask.schema.events import (
    Batch,
    CheckpointWritten,
    Event,
    LaunchDecided,
    LogCreated,
    RunEnded,
    RunStarted,
    UnknownEvent,
    ValuePut,
)
from datatask.schema.messages import PauseTask, Reply, Who
from tests.golden.samples import SAMPLES as EVERY_KIND

NOW = 1_700_000_000_000_000_000
UUID = "0123456789abcdef0123456789abcdef"

Opened = Callable[[], AbstractAsyncContextManager[Any]]
"""Opens a log, which has more than an `EventLog`, for the length of an `async with`."""

SAMPLES = [event for event in EVERY_KIND if type(event).__name__ != "PayloadRedacted"]
"""A redaction is carried out where it is appended: it has tests of its own."""


async def sqlite_log(folder: Path) -> SqliteLog:
    return await SqliteLog.open(
        folder / "log.db",
        pipeline="p",
        clock_now=NOW,
        version="0",
        host="here",
        pid=os.getpid(),
        uuid=UUID,
        salts=seeded_salts(1),
    )


async def memory_log(_: Path) -> MemoryLog:
    return MemoryLog(pipeline="p", clock_now=NOW, seed=1)


@pytest.fixture(params=[memory_log, sqlite_log], ids=["memory", "sqlite"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Give a function that opens the log for the length of an `async with`."""

    @asynccontextmanager
    async def opening() -> AsyncIterator[EventLog]:
        log = await request.param(tmp_path)
        try:
            yield log
        finally:
            await log.close()

    return opening


def put(job: str = "j", *, at: int = NOW, **fields: object) -> ValuePut:
    return ValuePut(at=at, repository="r", job=job, **fields)  # type: ignore[arg-type]


async def all_batches(log: EventLog, after: int = 0, until: int | None = None) -> list[Batch]:
    return [batch async for batch in log.batches(after, until)]


async def positions(log: EventLog, filters: Filters, after: int = 0, until: int | None = None) -> list[int]:
    return [position async for position, _ in log.read(after, until, filters)]


async def test_a_new_log_begins_with_its_creation(opened: Opened) -> None:
    async with opened() as log:
        assert (log.head, log.next, log.epoch, log.pipeline) == (1, 2, 1, "p")
        assert await all_batches(log) == [Batch(1, (LogCreated(at=NOW, log=log.uuid, pipeline="p"),))]


async def test_positions_have_no_gaps_and_follow_the_order_of_the_calls(opened: Opened) -> None:
    async with opened() as log:
        assert log.enqueue([put("a"), put("b")]) == range(2, 4)
        assert log.next == 4
        assert await log.append([put("c")]) == range(4, 5)
        assert log.head == 4
        assert [event.job for event in await log.fetch([4, 2, 3])] == ["c", "a", "b"]


async def test_batches_come_back_whole_and_as_they_were(opened: Opened) -> None:
    async with opened() as log:
        for event in SAMPLES:
            await log.append([event, put("x")])
        batches = await all_batches(log, after=1)
        assert [batch.events for batch in batches] == [(event, put("x")) for event in SAMPLES]
        assert [batch.first for batch in batches] == list(range(2, 2 + 2 * len(SAMPLES), 2))


async def test_batches_go_from_a_boundary_up_to_the_one_that_holds_until(opened: Opened) -> None:
    async with opened() as log:
        await log.append([put("a"), put("b"), put("c")])
        await log.append([put("d"), put("e")])
        assert [batch.first for batch in await all_batches(log, after=1, until=2)] == [2]
        assert [batch.first for batch in await all_batches(log, after=4)] == [5]
        assert [batch.first for batch in await all_batches(log, until=5)] == [1, 2, 5]
        assert await all_batches(log, after=6) == []


async def test_two_hundred_callers_at_once_each_get_a_place_of_their_own(opened: Opened) -> None:
    async with opened() as log:
        told: list[int] = []
        log.subscribe(told.append)
        ranges = await asyncio.gather(*(log.append([put(f"job-{n}"), put("x")]) for n in range(200)))
        assert sorted(start for start, *_ in ranges) == list(range(2, 402, 2))
        assert log.head == 401
        await asyncio.sleep(0)
        assert told == sorted(told)
        assert told[-1] == 401
        assert len(told) < 200  # a group is told once
        for span, event in zip(ranges, await log.fetch([span.start for span in ranges]), strict=True):
            assert event.job == f"job-{(span.start - 2) // 2}"


async def test_nothing_is_told_from_inside_the_call_and_only_what_is_durable(opened: Opened) -> None:
    async with opened() as log:
        told: list[int] = []
        end = log.subscribe(told.append)
        log.enqueue([put()])
        assert told == []
        await log.append([put()])
        await asyncio.sleep(0)
        assert told[-1] == log.head == 3
        end()
        await log.append([put()])
        await asyncio.sleep(0)
        assert told[-1] == 3


@pytest.mark.parametrize("count", [0, 10_001])
async def test_a_batch_of_the_wrong_size_is_refused_and_takes_no_position(opened: Opened, count: int) -> None:
    async with opened() as log:
        with pytest.raises(CallerError, match="10,000"):
            log.enqueue([put()] * count)
        assert await log.append([put()]) == range(2, 3)


async def test_the_largest_batch_is_appended_whole(opened: Opened) -> None:
    async with opened() as log:
        await log.append([put(f"j{n % 3000}") for n in range(10_000)])
        assert [len(batch.events) for batch in await all_batches(log)] == [1, 10_000]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(), [1, 2, 3, 4, 5]),
        (Filters(kinds=("ValuePut", "RunEnded")), [2, 5]),
        (Filters(tasks=("t",)), [3, 4, 5]),
        (Filters(repositories=("r",)), [2]),
        (Filters(jobs=("a", "nobody")), [3, 4, 5]),
        (Filters(jobs=("nobody",)), []),
        (Filters(runs=(3,)), [3, 4, 5]),
        (Filters(actors=("zoe",)), [2]),
        (Filters(since=NOW + 2, until=NOW + 3), [3, 4]),
        (Filters(text='"é'), [2]),
        (Filters(text="node-1"), [4]),
        (Filters(text="zo"), [2]),
        (Filters(text="alueP"), [2]),
        (Filters(text='"value":'), [2]),
        (Filters(kinds=("RunEnded",), jobs=("b",)), []),
    ],
)
async def test_filters(opened: Opened, filters: Filters, expected: list[int]) -> None:
    async with opened() as log:
        await log.append([put("b", at=NOW + 1, actor="zoe", value=msgspec.Raw(b'"\\"\xc3\xa9"'))])
        await log.append(
            [
                LaunchDecided(at=NOW + 2, task="t", job="a", episode=1, attempt=1),
                RunStarted(at=NOW + 3, task="t", job="a", run=3, where="node-1"),
                RunEnded(at=NOW + 4, task="t", job="a", run=3, outcome="succeeded"),
            ]
        )
        assert await positions(log, filters) == expected
        assert await positions(log, filters, after=2, until=4) == [p for p in expected if 2 < p <= 4]


async def test_a_launch_decision_comes_back_without_the_run_that_it_is(opened: Opened) -> None:
    async with opened() as log:
        event = LaunchDecided(at=NOW, task="t", job="a", episode=1, attempt=1)
        await log.append([event])
        assert await log.fetch([2]) == [event]


async def test_fetching_what_is_not_there_names_the_position(opened: Opened) -> None:
    async with opened() as log:
        assert await log.fetch([]) == []
        assert await log.fetch([1, 1]) == [await first(log)] * 2
        with pytest.raises(UnknownNameError, match="position 9"):
            await log.fetch([1, 9])


async def first(log: EventLog) -> Event:
    (event,) = await log.fetch([1])
    return event


async def test_an_unknown_event_is_carried_and_chained(opened: Opened) -> None:
    async with opened() as log:
        event = UnknownEvent(at=NOW, name="FutureThing", version=3, payload=b'{"a":1}')
        await log.append([event])
        assert await log.fetch([2]) == [event]
        assert len(log.chain_at(2)) == 32


async def test_the_chain_has_a_hash_at_batch_boundaries_only(opened: Opened) -> None:
    async with opened() as log:
        await log.append([put("a"), put("b")])
        hashes = {log.chain_at(position) for position in (0, 1, 3)}
        assert len(hashes) == 3
        with pytest.raises(UnknownNameError, match="position 2"):
            log.chain_at(2)


async def test_both_adapters_compute_the_same_chain(tmp_path: Path) -> None:
    """Same uuid, same salts, same events: same hash."""
    memory, sqlite = await memory_log(tmp_path), await sqlite_log(tmp_path)
    memory.uuid = sqlite.uuid
    memory._batches[:] = [Batch(1, (await first(sqlite),))]
    for log in (memory, sqlite):
        await log.append([put("a", value=msgspec.Raw(b"1")), put("b")])
        await log.append(SAMPLES)
    assert memory.chain_at(3) == sqlite.chain_at(3)
    assert memory.chain_at(memory.head) == sqlite.chain_at(sqlite.head)
    await sqlite.close()


async def kept(log: EventLog, body: bytes) -> None:
    """Keep a checkpoint at the head, and say so in the log."""
    head = log.head
    told = CheckpointWritten(at=NOW, position=head, fold_version=1, sha256=hashlib.sha256(body).hexdigest())
    (event,) = await log.append([told])
    await log.checkpoint(Checkpoint(head, log.chain_at(head), 1, body, event))


async def test_the_newest_checkpoint_that_stands_on_this_chain_is_found(opened: Opened) -> None:
    async with opened() as log:
        assert await log.latest_checkpoint(1) is None
        for _ in range(5):
            await log.append([put()])
            await kept(log, b"state %d" % log.head)
        newest = await log.latest_checkpoint(1)
        assert newest == Checkpoint(10, log.chain_at(10), 1, b"state 10", 11)
        assert await log.latest_checkpoint(2) is None
        await log.append([put()])
        await log.checkpoint(Checkpoint(12, bytes(32), 1, b"of another log"))
        assert await log.latest_checkpoint(1) == newest


async def test_blobs_are_content_addressed(opened: Opened, tmp_path: Path) -> None:
    async with opened() as log:
        digest, size = log.blobs.put_bytes(b"hello")
        assert size == 5
        assert log.blobs.path(digest).read_bytes() == b"hello"
        source = tmp_path / "source"
        source.write_bytes(b"hello")
        assert log.blobs.put_file(source) == (digest, 5)
        fresh = log.blobs.new()
        fresh.write_bytes(b"other")
        other, _ = log.blobs.adopt(fresh)
        assert not fresh.exists()
        assert log.blobs.path(other).read_bytes() == b"other"
        for unknown in ("0" * 64, "../../etc/passwd"):
            with pytest.raises(UnknownNameError):
                log.blobs.path(unknown)


async def test_an_answered_request_is_pending_no_more(opened: Opened) -> None:
    async with opened() as log:
        assert log.inbox.pending() == []
        log.inbox.answer(Reply(id="nobody-asked"))
        assert log.inbox.pending() == []


async def test_close_makes_durable_what_is_enqueued_and_nothing_follows(opened: Opened) -> None:
    async with opened() as log:
        waiting = asyncio.ensure_future(log.append([put("a")]))
        await asyncio.sleep(0)
        log.enqueue([put("b")])
        await log.close()
        await log.close()
        assert log.head == 3
        assert await waiting == range(2, 3)
        with pytest.raises(CallerError, match="closed"):
            log.enqueue([put()])


async def test_a_caller_that_gave_up_waiting_takes_nothing_back(opened: Opened) -> None:
    async with opened() as log:
        task = asyncio.ensure_future(log.append([put("a")]))
        await asyncio.sleep(0)
        task.cancel()
        assert await log.append([put("b")]) == range(3, 4)
        assert [event.job for event in await log.fetch([2, 3])] == ["a", "b"]


async def test_after_a_failed_append_every_call_fails_with_that_error(opened: Opened, tmp_path: Path) -> None:
    async with opened() as log:
        errors: list[BaseException] = []
        log.subscribe(lambda head: None, errors.append)
        await log.append([put("a")])
        if isinstance(log, MemoryLog):
            log._hold = True
            waiting = asyncio.ensure_future(log.append([put("b")]))
            await asyncio.sleep(0)
            log.fail(LogError("the disk is full"))
        else:
            with sqlite3.connect(tmp_path / "log.db") as other:
                other.execute("ALTER TABLE log RENAME TO elsewhere")
            waiting = asyncio.ensure_future(log.append([put("b")]))
        with pytest.raises(LogError) as caught:
            await waiting
        assert errors == [caught.value]
        for _ in range(2):
            with pytest.raises(LogError) as again:
                log.enqueue([put("c")])
            assert again.value is caught.value
        assert log.head == 2


async def test_sqlite_an_append_under_an_older_epoch_writes_nothing(tmp_path: Path) -> None:
    log = await sqlite_log(tmp_path)
    with sqlite3.connect(tmp_path / "log.db") as other:
        other.execute("UPDATE meta SET value = value + 1 WHERE key = 'epoch'")
    for events in ([put("a")], [put()] * 3000):
        with pytest.raises(LeaseLostError, match="epoch"):
            await log.append(events)
    assert not log.holds_lease
    await log.close()
    with sqlite3.connect(tmp_path / "log.db") as other:
        assert other.execute("SELECT count(*) FROM log").fetchone() == (1,)
        assert other.execute("SELECT count(*) FROM names WHERE text = 'a'").fetchone() == (0,)


async def test_sqlite_what_was_appended_is_there_when_opened_again(tmp_path: Path) -> None:
    log = await sqlite_log(tmp_path)
    await log.append([put("a"), put("b")])
    head = log.chain_at(3)
    await log.close()
    again = await sqlite_log(tmp_path)
    assert (again.head, again.epoch, again.uuid, again.chain_at(3)) == (3, 2, log.uuid, head)
    await again.append([put("b"), put("c")])
    assert [event.job for event in await again.fetch([2, 3, 4, 5])] == ["a", "b", "b", "c"]
    await again.close()


async def test_memory_what_is_held_is_durable_when_released_and_lost_in_a_crash() -> None:
    log = MemoryLog(seed=1, hold=True)
    told: list[int] = []
    log.subscribe(told.append)
    waiting = asyncio.ensure_future(log.append([put("a"), put("b")]))
    log.enqueue([put("z")])
    await asyncio.sleep(0)
    assert (log.head, log.next, log.pending) == (1, 5, 3)
    assert [batch.first for batch in await all_batches(log)] == [1]
    log.release(until=2)
    await asyncio.sleep(0)
    assert log.head == told[-1] == log.next - 1 - log.pending
    log.release()
    assert await waiting in (range(2, 4), range(3, 5))
    log.enqueue([put("lost")])
    log.crash()
    assert (log.head, log.next) == (4, 5)
    assert MemoryLog(seed=1).uuid == log.uuid


async def test_memory_requests_are_asked_and_answered_in_order() -> None:
    log = MemoryLog()
    for number in range(3):
        log.inbox.ask(PauseTask(id=f"{number}", actor="ada", task="t"))
    assert [request.id for request in log.inbox.pending()] == ["0", "1", "2"]
    log.inbox.answer(Reply(id="1", position=2))
    assert [request.id for request in log.inbox.pending()] == ["0", "2"]
    assert log.inbox.replies["1"].position == 2


async def test_a_batch_of_redactions_takes_payloads_out_and_leaves_the_chain(
    opened: Callable[[], AbstractAsyncContextManager[EventLog]],
) -> None:
    """What is left is read from then on, by position and in batches; the hashes are what they were."""
    async with opened() as log:
        await log.append([put("a", value=msgspec.Raw(b'"secret"'), size=8), put("b")])
        chain = log.chain_at(3)
        state = State()
        state.position = 3
        found = list(zip([2], await log.fetch([2]), strict=True))
        await log.append(removed(state, found, Who("ada@lab: datatask redact"), NOW))
        (left,) = await log.fetch([2])
        assert isinstance(left, ValuePut)
        assert (bytes(left.value), left.size) == (b'{"$redacted":4}', 8)
        batches = [batch async for batch in log.batches(1)]
        assert batches[0].events[0] == left
        assert [type(event).__name__ for event in batches[1].events] == ["PayloadRedacted"]
        assert log.chain_at(3) == chain
        with pytest.raises(CallerError, match="nothing that can be removed"):
            removed(state, [(2, left)], Who(), NOW)
