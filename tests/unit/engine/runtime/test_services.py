"""Services of an engine: started again and told, or the engine stops by name."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import threading
from types import FrameType
from typing import Any

import pytest

from datatask.adapters.log.inbox import check_id
from datatask.engine.runtime import services as module
from datatask.engine.runtime.closing import call_off, in_own_thread
from datatask.engine.runtime.services import FAILURES_MAX, Service, Services, current, enter, hear
from datatask.schema.errors import InternalError, ServiceFailedError, SystemTroubleError, TemporaryError
from tests.run_kit import until


@pytest.fixture
def failures() -> list[BaseException]:
    return []


@pytest.fixture
def services(failures: list[BaseException], monkeypatch: pytest.MonkeyPatch) -> Services:
    monkeypatch.setattr(module, "PAUSE_SECONDS", (0.0001, 0.001))
    return Services(failures.append)


async def test_one_that_fails_is_started_again_told_once_and_told_when_it_works(
    services: Services, failures: list[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []

    async def work(service: Service) -> None:
        tries.append(len(tries))
        if len(tries) < 4:
            raise OSError("no room")
        service.works()
        await asyncio.Event().wait()

    task = services.keep("the ear", work)
    await until(lambda: len(tries) == 4)
    task.cancel()
    await asyncio.wait([task])
    assert [record.message for record in caplog.records] == [
        "the ear failed: OSError: no room; it is started again in 0.0001 s",
        "the ear works again",
    ]
    (health,) = services.health()
    assert (health.state, health.restarts, health.why) == ("up", 3, "OSError: no room")
    assert failures == []


@pytest.mark.parametrize("trouble", [SystemExit(3), asyncio.CancelledError(), MemoryError(), None])
async def test_one_that_fails_too_often_stops_the_engine_by_name(
    services: Services, failures: list[BaseException], trouble: BaseException | None
) -> None:
    async def work(service: Service) -> None:
        if trouble is not None:
            raise trouble

    await services.keep("the ear", work)
    (error,) = failures
    assert isinstance(error, ServiceFailedError)
    assert error.exit_code == 70
    assert f"the ear failed {FAILURES_MAX + 1} times in a row" in str(error)
    assert services.health()[0].state == "down"


async def test_one_that_may_end_ends(services: Services, failures: list[BaseException]) -> None:
    async def work(service: Service) -> None:
        return None

    await services.keep("the errand", work, ends=True)
    assert failures == []


async def test_failures_are_counted_anew_after_it_lasted(
    services: Services, failures: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WELL_SECONDS", -1.0)
    tries: list[int] = []

    async def work(service: Service) -> None:
        tries.append(1)
        if len(tries) > 3 * FAILURES_MAX:
            await asyncio.Event().wait()
        raise OSError

    task = services.keep("the ear", work)
    await until(lambda: len(tries) > 3 * FAILURES_MAX)
    task.cancel()
    assert failures == []


async def test_a_thread_that_fails_is_started_again_and_stops_the_engine_too(
    services: Services, failures: list[BaseException]
) -> None:
    """Each failure is counted before the next try, also where the loop is late with its answer."""
    tries: list[int] = []

    def work() -> None:
        tries.append(1)
        raise ValueError("nonsense")

    services.keep_thread("the gate", work)
    threading.Event().wait(0.02)  # the loop is busy
    await until(lambda: failures)
    assert len(tries) == FAILURES_MAX + 1
    assert "the gate failed" in str(failures[0])


async def test_a_task_that_is_minded_stops_the_engine(
    services: Services, failures: list[BaseException]
) -> None:
    async def work() -> None:
        raise KeyError("x")

    task = asyncio.create_task(work())
    services.mind(task, "the errand")
    await asyncio.wait([task])
    await until(lambda: failures)
    assert isinstance(failures[0], InternalError)
    assert "the errand failed: KeyError" in str(failures[0])


async def test_what_the_machine_refuses_an_errand_is_told_in_its_words(
    services: Services, failures: list[BaseException]
) -> None:
    async def errand() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    task = asyncio.create_task(errand())
    services.mind(task, "the errand")
    await asyncio.wait([task])
    await until(lambda: failures)
    assert isinstance(failures[0], SystemTroubleError)
    assert str(failures[0]).startswith("the errand: the disk is full (")
    assert "free some space" in str(failures[0])


async def test_what_fails_unheard_stops_the_engine_only_where_it_is_ours(
    services: Services, failures: list[BaseException]
) -> None:
    loop = asyncio.get_running_loop()
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda loop, context: told.append(context))
    let_go = hear(loop, services)
    loop.call_soon(lambda: 1 / 0)  # a program's
    await until(lambda: told)
    assert failures == []
    loop.call_soon(check_id, "no id")  # ours
    await until(lambda: failures)
    assert len(told) == 1
    let_go()
    assert loop.get_exception_handler() is not None
    loop.set_exception_handler(None)


def test_outside_an_engine_there_are_services_that_only_tell(caplog: pytest.LogCaptureFixture) -> None:
    assert current().service("x").failed(OSError("y")) == module.PAUSE_SECONDS[0]
    assert "x failed" in caplog.text


async def test_what_is_opened_from_here_on_has_these(services: Services) -> None:
    enter(services)
    assert current() is services


async def test_what_a_task_that_was_left_behind_raises_at_last_is_no_failure() -> None:
    loop, heard = asyncio.get_running_loop(), list[Any]()
    loop.set_exception_handler(lambda loop, context: heard.append(context))
    go_on = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await go_on.wait()
            raise ValueError("late") from None

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    assert not await call_off(task, seconds=0.01)
    go_on.set()
    await asyncio.wait([task])
    del task
    gc.collect()
    await asyncio.sleep(0)
    assert heard == []


async def test_a_thread_that_ends_without_a_word_is_not_waited_for_without_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def line(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            raise MemoryError
        return line

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        return line if frame.f_code.co_qualname.startswith("in_own_thread.") else None

    monkeypatch.setattr(threading, "excepthook", lambda told: None)
    threading.settrace(trace)
    try:
        with pytest.raises(TemporaryError, match="a look: its thread ended without a result"):
            await asyncio.wait_for(in_own_thread(lambda: 1, "a look"), 100)
    finally:
        threading.settrace(None)
    assert await in_own_thread(lambda: 1, "a look") == 1
