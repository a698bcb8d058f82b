"""Performs effects, in order, once their events are durable.

In come the effects of each batch, and the durable position; out go calls of runners, of in-process stores at once and of
foreign stores by lanes (`Followers`), and finished tickets. A run that its runner does not take is refused; any other
effect that raises is our mistake and stops the engine. Each store has a lane of its own with at most `CALLS_MAX` calls
under way; waiting writes are small records without coroutines, as one call may bring a million.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol

from datatask.engine.core.effects import (
    Effect,
    Finished,
    ForgetRun,
    LogStep,
    LookAgain,
    Mirror,
    StartRun,
    StopRun,
    WriteStore,
)
from datatask.engine.core.state import State
from datatask.engine.ports import EventLog, Runner, Store
from datatask.engine.run_context import ABSENT_VERSION, with_content
from datatask.engine.runtime.services import Background
from datatask.engine.runtime.starting import AtHand, Starter
from datatask.schema import events as e
from datatask.schema.errors import (
    ConflictError,
    DatataskError,
    InternalError,
    LeaseLostError,
    LogDamagedError,
    LogError,
    TemporaryError,
    ValueDamagedError,
)
from datatask.schema.messages import Ended, RunSpec, Write

logger = logging.getLogger("datatask.engine")


class Engine(Protocol):
    """The performer's callbacks to the engine."""

    def sink(self, fact: Ended) -> None: ...
    def fail(self, error: BaseException) -> None: ...
    def stop(self, error: BaseException, where: str = "") -> None: ...
    def damaged(self, error: LogDamagedError) -> None: ...


class Performer:
    """The effects of one engine that wait for durable events, and the tickets that wait for effects."""

    def __init__(
        self,
        engine: Engine,
        log: EventLog,
        state: State,
        *,
        runners: Mapping[str, Runner],
        stores: Mapping[str, Store],
        at_hand: AtHand,
        background: Background,
        written: Written,
        look: Look,
    ) -> None:
        self._engine = engine
        self._log = log
        self._runners = runners
        self._stores = stores
        self._effects: deque[tuple[int, tuple[Effect, ...]]] = deque()
        self.listeners: list[Callable[[e.Batch], None]] = []
        self._batches: deque[e.Batch] = deque()
        self._tickets: dict[int, asyncio.Future[Finished]] = {}
        self._done: dict[int, Finished] = {}
        self.performed = state.position
        """The position up to which effects are performed."""
        self.followers = Followers(background.spawn, self._change_store, written, look)
        self.starter = Starter(
            log,
            state,
            runners,
            at_hand=at_hand,
            spawn=background.spawn,
            perform=self._perform,
            refuse=self._refuse,
            sink=engine.sink,
        )

    def __bool__(self) -> bool:
        """Whether effects wait."""
        return bool(self._effects)

    def waits(self, position: int) -> bool:
        """Whether effects of events up to a position wait."""
        return bool(self._effects) and self._effects[0][0] <= position

    def queue(self, step: LogStep) -> None:
        """Queue a step: its effects, and its batch for listeners, once the log is durable up to its end."""
        if step.events and self.listeners:
            self._batches.append(e.Batch(step.first, step.events))
        if step.effects:
            self._effects.append((step.first + len(step.events) - 1, step.effects))

    def drop(self, error: Callable[[], BaseException]) -> None:
        """Stop performing; waiters for tickets get an error."""
        self._effects.clear()
        for future in self._tickets.values():
            if not future.done():
                future.set_exception(error())
        self._tickets.clear()

    def ticket(self, number: int) -> asyncio.Future[Finished]:
        """Return a future for the end of a ticket."""
        future: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()
        done = self._done.pop(number, None)
        if done is not None:
            future.set_result(done)
        else:
            self._tickets[number] = future
        return future

    def perform_until(self, head: int) -> None:
        """Perform the effects of events up to `head`."""
        effects = self._effects
        if self.waits(head) and not self._log.holds_lease:
            self._engine.fail(LeaseLostError("another engine has taken the log", where=self._log.url))
        while effects and effects[0][0] <= head:
            last, due = effects.popleft()
            for effect in due:
                try:
                    self._perform(effect)
                except Exception as error:
                    self._failed(effect, error)
            self.performed = last
        self.performed = max(self.performed, head)
        self.starter.flush()
        while self._batches and self._batches[0].last <= head:
            self._tell(self._batches.popleft())

    def _tell(self, batch: e.Batch) -> None:
        for listener in list(self.listeners):
            try:
                listener(batch)
            except Exception:
                logger.exception(
                    "a subscriber failed on the batch at %s; it continues with the next", batch.first
                )

    def _perform(self, effect: Effect) -> None:
        if self.starter.behind and isinstance(effect, StopRun | ForgetRun):
            if self.starter.waits(effect.run, effect):
                return
        match effect:
            case StartRun(spec=spec):
                self.starter.start(spec)
            case ForgetRun(task=task, run=run):
                if task in self._runners:
                    self._runners[task].forget(run)
            case Mirror(write=write):
                self._mirror(write)
            case WriteStore() | LookAgain():
                self.followers.follow(effect)
            case StopRun(task=task, run=run, reason=reason, grace=grace):
                self._runners[task].stop(run, reason, grace)
            case Finished():
                future = self._tickets.get(
                    effect.ticket
                )  # it stays until it is told: `drop` tells those that stay
                if future is None:
                    self._done[effect.ticket] = effect
                    return
                if not future.done():
                    future.set_result(effect)
                del self._tickets[effect.ticket]

    def _failed(self, effect: Effect, error: Exception) -> None:
        """Refuse a run that its runner rejects; an error of any other effect is our bug."""
        if isinstance(effect, StartRun):
            logger.exception("%s[%s] could not be started", effect.spec.task, effect.spec.job)
            info = e.ErrorInfo(type=type(error).__name__, message=str(error))
            self._engine.sink(Ended(effect.spec.run, e.Ending(outcome="refused", error=info)))
            return
        self._engine.stop(error, type(effect).__name__)

    def _refuse(self, spec: RunSpec, error: DatataskError) -> None:
        """End a run whose input is not what was recorded; where it is the log that is damaged, launch no other."""
        if isinstance(error, LogError) and not isinstance(error, LogDamagedError | ValueDamagedError):
            self._engine.fail(error)
            return
        info = e.ErrorInfo(type=type(error).__name__, message=str(error))
        outcome: e.Outcome = "refused"
        if isinstance(error, LogDamagedError):
            outcome = "lost"  # by no fault of the job's: it is run when the log is sound again
            self._engine.damaged(error)
        else:
            logger.error("%s[%s] is not started: %s", spec.task, spec.job, error)
        self._engine.sink(Ended(spec.run, e.Ending(outcome=outcome, error=info)))

    def _mirror(self, write: Write) -> None:
        """Write to an in-process store at once: its `put` and `delete` never wait."""
        store = self._stores[write.repository]
        change = (
            store.delete(write.job)
            if write.op == "delete"
            else store.put(with_content(write, self._log.blobs))
        )
        try:
            change.send(None)
        except StopIteration:
            return
        raise InternalError(f"the in-process store of {write.repository} waits")

    async def _change_store(self, write: Write) -> str | None:
        store = self._stores[write.repository]
        if write.op == "delete":
            if write.over_version is not None:
                now = await store.version(write.job) or ABSENT_VERSION
                if now not in (write.over_version, ABSENT_VERSION):
                    raise ConflictError(
                        f"key {write.job} of {write.repository} has been changed by another after this run had read it"
                    )
            await store.delete(write.job)
            return None
        return await store.put(with_content(write, self._log.blobs))


CALLS_MAX = 32
RETRY_SECONDS = 0.1
RETRY_SECONDS_MAX = 30.0

Change = Callable[[Write], Awaitable[str | None]]
"""Changes a store and returns the version that it has now; None for a deletion."""

Written = Callable[[WriteStore, str | None, str, bool], None]
"""Hears of a write that is done: the effect, the store's version, why it failed or "", and whether as a conflict."""

Look = Callable[[str, str], Coroutine[Any, Any, None]]
"""Looks at a job in a repository again, and reports what is there now."""


class Followers:
    """The lanes of one engine's foreign stores. `spawn` runs a coroutine that the engine will wait for."""

    def __init__(
        self,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        change: Change,
        written: Written,
        look: Look,
    ) -> None:
        self._spawn = spawn
        self._change = change
        self._written = written
        self._look = look
        self._lanes: dict[str, _Lane] = {}

    def follow(self, work: WriteStore | LookAgain) -> None:
        """Queue this write, and return at once."""
        repository, job = _place(work)
        lane = self._lanes.get(repository)
        if lane is None:
            lane = self._lanes[repository] = _Lane()
        lane.waiting.append((job, work))
        if lane.hands < CALLS_MAX:
            lane.hands += 1
            self._spawn(self._work(repository, lane))

    @property
    def is_stuck(self) -> bool:
        """Whether every call that is under way waits for a store that has refused it, to be tried again."""
        return bool(self._lanes) and all(lane.pausing == lane.hands for lane in self._lanes.values())

    def under_way(self) -> list[str]:
        """Return the stores that are being written to, each with how much waits for it and its last trouble."""
        return [lane.words(repository) for repository, lane in self._lanes.items()]

    async def _work(self, repository: str, lane: _Lane) -> None:
        """Take from a lane until it is empty; what concerns a job that another hand is at goes to that hand."""
        while lane.waiting:
            job, work = lane.waiting.popleft()
            if job in lane.at:
                lane.at[job].append(work)
                continue
            lane.at[job] = behind = deque([work])
            while behind:
                await self._do(behind[0], lane)
                behind.popleft()
            del lane.at[job]
        lane.hands -= 1
        if not lane.hands:
            self._lanes.pop(repository)

    async def _do(self, work: WriteStore | LookAgain, lane: _Lane) -> None:
        if isinstance(work, LookAgain):
            await self._look(work.repository, work.job)
            return
        write, wait = work.write, RETRY_SECONDS
        version, error, conflict = None, "", False
        while True:
            try:
                version = await self._change(write)
                break
            except TemporaryError as trouble:
                lane.trouble = str(trouble)
                logger.warning("%s[%s] cannot be written yet: %s", write.repository, write.job, trouble)
                lane.pausing += 1
                try:
                    await asyncio.sleep(wait)
                finally:
                    lane.pausing -= 1
                wait = min(2 * wait, RETRY_SECONDS_MAX)
            except ConflictError as trouble:
                error, conflict = trouble.what, True
                break
            except (Exception, SystemExit, asyncio.CancelledError) as trouble:  # of the store's own making
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                error = str(trouble) or type(trouble).__name__
                logger.error("%s[%s] cannot be written: %s", write.repository, write.job, trouble)
                break
        self._written(work, version, error, conflict)


class _Lane:
    """What waits for one store, how many hands are at it, and the jobs that they are at with what follows there."""

    __slots__ = ("at", "hands", "pausing", "trouble", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[str, WriteStore | LookAgain]] = deque()
        self.hands = self.pausing = 0
        self.at: dict[str, deque[WriteStore | LookAgain]] = {}
        self.trouble = ""

    def words(self, repository: str) -> str:
        """Return what is under way here, for people."""
        count = len(self.waiting) + sum(map(len, self.at.values()))
        why = f" ({self.trouble})" if self.trouble else ""
        return f"the store of {repository}: {count} write{'s' * (count != 1)}{why}"


def _place(work: WriteStore | LookAgain) -> tuple[str, str]:
    """Return the repository and the job that the work is at."""
    at = work if isinstance(work, LookAgain) else work.write
    return at.repository, at.job
