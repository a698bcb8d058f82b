"""Services and background work of an open engine.

In: coroutines that never return, callbacks of the loop, and tasks that are awaited by the loop alone. Out: a service
that fails is started again after a growing pause, reported once, and once more when it works. One that fails too often
in a row stops the engine by name, and so does a failed task that cannot be started again. `health` is what `doctor` and
`status` report. `Background` counts work under way, evaluates user code for decisions, and has the alarm.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any

from datatask.engine.core.effects import Evaluation
from datatask.engine.ports import Clock
from datatask.engine.runtime.calls import error_info
from datatask.engine.runtime.closing import call_off
from datatask.schema.errors import DatataskError, InternalError, ServiceFailedError
from datatask.schema.messages import ServiceHealth
from datatask.schema.troubles import trouble

logger = logging.getLogger("datatask.engine")

PAUSE_SECONDS = (0.1, 10.0)
FAILURES_MAX = 20
"""The number of failures in a row that stops the engine: two and a half minutes of trying."""
WELL_SECONDS = 60.0
"""A service that lasted this long counts its failures from zero."""

Work = Callable[["Service"], Coroutine[Any, Any, None]]


class Service:
    """One service: whether it works, how often it was started again, and why it failed last."""

    def __init__(self, name: str, fail: Callable[[BaseException], None]) -> None:
        self.name = name
        self._fail = fail
        self._restarts = self._failures = 0
        self._up = True
        self._why = ""
        self._since = time.monotonic()

    def failed(self, error: BaseException, *, again_seconds: float = 0.0) -> float | None:
        """Count and tell a failure; return after how many seconds to try again, None when the engine stops.

        One that is tried again after longer than `WELL_SECONDS`, by `again_seconds`, never stops the engine.
        """
        if time.monotonic() - self._since > WELL_SECONDS:
            self._failures = 0
        self._failures += 1
        self._restarts += 1
        why = _words(error)
        if self._failures > FAILURES_MAX:
            self._up = False
            self._fail(self._given_up(why))
            return None
        pause = again_seconds or min(PAUSE_SECONDS[0] * 2.0 ** (self._failures - 1), PAUSE_SECONDS[1])
        if self._up or why != self._why:
            logger.warning("%s failed: %s; it is started again in %g s", self.name, why, pause)
            logger.debug("%s failed", self.name, exc_info=error)
        self._up, self._why, self._since = False, why, time.monotonic()
        return pause

    def _given_up(self, why: str) -> ServiceFailedError:
        return ServiceFailedError(
            f"{self.name} failed {self._failures} times in a row: {why}",
            remedy="mend what it says, then start the engine again; nothing that was recorded is lost",
        )

    def told_from_thread(self, loop: asyncio.AbstractEventLoop, error: BaseException) -> float | None:
        """The same as `failed`, from a thread that is not the loop's; None also where the loop has ended.

        However late the loop is with its answer: a thread that went on without it would fail more often than is counted.
        """
        answer: Future[float | None] = Future()
        try:
            loop.call_soon_threadsafe(lambda: answer.set_result(self.failed(error)))
        except RuntimeError:
            return None
        while not loop.is_closed():
            try:
                return answer.result(PAUSE_SECONDS[1])
            except TimeoutError:
                continue
        return None

    def works(self) -> None:
        """It does what it is there for (again)."""
        if not self._up:
            self._up = True
            logger.warning("%s works again", self.name)

    def health(self) -> ServiceHealth:
        """Return how it is."""
        return ServiceHealth(
            name=self.name, state="up" if self._up else "down", restarts=self._restarts, why=self._why
        )


class Services:
    """The services of one engine; `fail` stops it."""

    def __init__(self, fail: Callable[[BaseException], None]) -> None:
        self._fail = fail
        self._all: dict[str, Service] = {}

    def service(self, name: str) -> Service:
        """Return the service of this name, for a callback that counts its own failures."""
        if name not in self._all:
            self._all[name] = Service(name, self._fail)
        return self._all[name]

    def keep(self, name: str, work: Work, *, ends: bool = False) -> asyncio.Task[None]:
        """Keep `work` going until the returned task is cancelled; only with `ends` it may end by itself."""
        keeping = self._keep(self.service(name), work, ends)
        return asyncio.get_running_loop().create_task(keeping, name=name)

    async def _keep(self, service: Service, work: Work, ends: bool) -> None:
        while True:
            try:
                await work(service)
                if ends:
                    service.works()
                    return
                error: BaseException = RuntimeError("it ended without an error")
            except (Exception, SystemExit) as caught:
                error = caught
            except asyncio.CancelledError as caught:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                error = caught
            pause = service.failed(error)
            if pause is None:
                return
            await asyncio.sleep(pause)

    def keep_thread(self, name: str, work: Callable[[], None]) -> None:
        """Keep `work` going in a thread of its own until it returns."""
        service, loop = self.service(name), asyncio.get_running_loop()

        def run() -> None:
            while True:
                try:
                    work()
                    return
                except Exception as error:
                    pause = service.told_from_thread(loop, error)
                if pause is None:
                    return
                time.sleep(pause)

        threading.Thread(target=run, name=name, daemon=True).start()

    def mind(self, task: asyncio.Task[Any], what: str) -> None:
        """Stop the engine if this task, which is not awaited, fails."""

        def ended(done: asyncio.Task[Any]) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                self.broken(what, error)

        task.add_done_callback(ended)

    def broken(self, what: str, error: BaseException) -> None:
        """Stop the engine: this failed, and cannot be started again."""
        known = trouble(error, what)
        logger.error("the engine stops: %s failed", what, exc_info=error)
        self._fail(known or InternalError(f"{what} failed: {_words(error)}"))

    def health(self) -> tuple[ServiceHealth, ...]:
        """Return how each service is."""
        return tuple(service.health() for service in self._all.values())


def _words(error: BaseException) -> str:
    if isinstance(error, DatataskError):
        return str(error)
    info = error_info(error)
    return f"{info.type}: {info.message}" if info.message else info.type


_current: ContextVar[Services] = ContextVar("datatask_services")


def enter(services: Services) -> None:
    """Make these the services of what is opened from here on."""
    _current.set(services)


def current() -> Services:
    """Return the services of the engine that is being opened; outside one, such as only tell."""
    found = _current.get(None)
    return Services(lambda error: None) if found is None else found


def hear(loop: asyncio.AbstractEventLoop, services: Services) -> Callable[[], None]:
    """Stop the engine when a callback or task of ours fails unheard on this loop; return the function that ends that.

    What programs do on the same loop is told as before.
    """
    before = loop.get_exception_handler()

    def handler(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Exception) and _is_ours(error):
            services.broken("a part of the engine", error)
        elif before is not None:
            before(loop, context)
        else:
            loop.default_exception_handler(context)

    def let_go() -> None:
        if loop.get_exception_handler() is handler:
            loop.set_exception_handler(before)

    loop.set_exception_handler(handler)
    return let_go


def _is_ours(error: BaseException) -> bool:
    """Whether it was our code that the loop called, by the first frame that is not asyncio's own."""
    trace = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if not module.startswith(("asyncio", "concurrent.")):
            return bool(module.startswith("datatask."))
        trace = trace.tb_next
    return False


STORES = "stores"
"""What is done to stores; told by store (`Followers.under_way`), not by task."""

Evaluate = Callable[[Evaluation], Awaitable[object]]


class Background:
    """The tasks of one engine. `ended` is called when one has ended, `failed` with the error of one that raised."""

    def __init__(self, ended: Callable[[], None], failed: Callable[[BaseException], None]) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = ended
        self._failed = failed

    def __bool__(self) -> bool:
        """Whether anything is under way."""
        return bool(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, None], doing: str = STORES) -> asyncio.Task[None]:
        """Begin something that the engine waits for before it ends."""
        task = asyncio.create_task(work, name=doing)
        self._tasks.add(task)
        task.add_done_callback(self._reaped)
        return task

    def _reaped(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)
        else:
            self._ended()

    def under_way(self) -> set[str]:
        """Return what is done."""
        return {task.get_name() for task in self._tasks}

    async def some(self, seconds: float) -> None:
        """Wait until all of it has ended, for `seconds` at most."""
        await asyncio.wait(list(self._tasks), timeout=seconds)

    async def call_off(self) -> None:
        """Cancel what is under way, and wait for its end."""
        await call_off(*self._tasks)


class Alarm:
    """Rings once, at the engine time set last."""

    def __init__(self, clock: Clock, ring: Callable[[], None]) -> None:
        self._clock = clock
        self._ring = ring
        self._at: int | None = None
        self._call_off: Callable[[], None] | None = None

    def set(self, at: int | None) -> None:
        """Ring at this time instead; with None, not at all."""
        if at == self._at:
            return
        if self._call_off is not None:
            self._call_off()
        self._at, self._call_off = at, None if at is None else self._clock.call_at(at, self._rings)

    def _rings(self) -> None:
        self._at = self._call_off = None
        self._ring()


async def evaluate_all(
    evaluate: Evaluate, evaluations: Sequence[Evaluation]
) -> list[tuple[Evaluation, object, str | None]]:
    """Evaluate user code, all at once; return each with its value, and the error of one that raised in words."""
    return await asyncio.gather(*(_evaluate_one(evaluate, evaluation) for evaluation in evaluations))


async def _evaluate_one(evaluate: Evaluate, evaluation: Evaluation) -> tuple[Evaluation, object, str | None]:
    try:
        return evaluation, await evaluate(evaluation), None
    except BaseException as error:  # a filter that calls sys.exit() is a filter that fails
        task = asyncio.current_task()
        if isinstance(error, KeyboardInterrupt) or (task is not None and task.cancelling()):
            raise
        info = error_info(error)
        return evaluation, None, f"{info.type}: {info.message}"[:1024]
