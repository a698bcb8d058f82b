"""The engine at work: one event loop that drives the reactor between the log and the world.

In come facts from runners, changes from stores, requests from people and the passing of time; each turn of the
loop hands them to the reactor, appends the batches that it returned, in order, and performs a batch's effects
once the log says that it is durable. All queues are bounded by what the reactor decides; nothing here decides.
A failed append stops everything: what was folded ahead of the disk is not to be trusted any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from datatask.engine.core.effects import (
    Effect,
    Evaluation,
    Finished,
    ForgetRun,
    LookAgain,
    Mirror,
    StartRun,
    StopRun,
    WriteStore,
)
from datatask.engine.core.reactor import Reactor
from datatask.engine.core.state import State
from datatask.engine.ports import Blobs, Clock, EventLog, Runner, Store
from datatask.engine.run_context import ABSENT_VERSION, ValueRef, with_content
from datatask.engine.runtime import process, services
from datatask.engine.runtime.calls import error_info
from datatask.engine.runtime.closing import Closing, call_off
from datatask.engine.runtime.losses import Losses
from datatask.engine.runtime.starting import AtHand, Starter
from datatask.engine.runtime.store_writes import Followers
from datatask.schema import events as e
from datatask.schema.definition import ViewDef
from datatask.schema.errors import (
    ConflictError,
    DatataskError,
    InternalError,
    LeaseLostError,
    LogDamagedError,
    LogError,
    StoreError,
    ValueDamagedError,
)
from datatask.schema.messages import Ended, Fact, RunSpec, Started, Write
from datatask.schema.requests import Who
from datatask.schema.troubles import as_error
from datatask.schema.values import INLINE_BYTES_MAX

logger = logging.getLogger("datatask.engine")

EVALUATIONS_MAX = 64
TURN_FACTS_MAX = 2000
BOUND = 1000
FOLLOWING = "stores"
REFUSED_LOOKS = 2
"""Looks, a second apart, after which a closing engine no longer waits for stores that refuse to be written."""

Evaluate = Callable[[Evaluation], Awaitable[object]]


class Runtime:
    """One engine over one log. Give it runners by task, stores by leaf, and the code that evaluations call."""

    def __init__(
        self,
        log: EventLog,
        state: State,
        clock: Clock,
        chance: Callable[[], float],
        *,
        runners: Mapping[str, Runner],
        stores: Mapping[str, Store],
        evaluate: Evaluate,
    ) -> None:
        self.log = log
        self.state = state
        self.reactor = Reactor(state, chance)
        self.reactor.runs.log = log.url
        self.reactor.runs.deadlines.tells_progress = True
        self.clock = clock
        self.mode: e.Mode = "run"
        self.launching = False
        self.failure: BaseException | None = None
        self.services = services.Services(self.fail)
        self.damage: LogDamagedError | None = None
        self.on_damage: Callable[[], None] = lambda: None
        self.listeners: list[Callable[[e.Batch], None]] = []
        self.accepted: dict[str, Who] = {}
        self.who = Who()
        self.relist: Callable[[str], object] = lambda leaf: None
        self.look_again: Callable[[str, str], Coroutine[Any, Any, None]] = _nobody_looks
        self._runners = runners
        self._stores = stores
        self._evaluate = evaluate
        self._facts: deque[Fact] = deque()
        self._effects: deque[tuple[int, tuple[Effect, ...]]] = deque()
        self._batches: deque[e.Batch] = deque()
        self._tickets: dict[int, asyncio.Future[Finished]] = {}
        self._done_tickets: dict[int, Finished] = {}
        self._at_hand = AtHand()
        self.reactor.outbox.recall = self._at_hand.change
        self._background: set[asyncio.Task[None]] = set()
        self._performed = state.position
        self._recoveries: dict[int, list[asyncio.Task[None]]] = {}
        self.written_count = 0
        self._followers = Followers(
            self._spawn, self._change_store, self._written, lambda leaf, job: self.look_again(leaf, job)
        )
        self._losses = Losses(state)
        self._starter = Starter(
            log,
            state,
            runners,
            at_hand=self._at_hand,
            spawn=self._spawn,
            perform=self._perform,
            refuse=self._refuse,
        )
        self._turning = False
        self._call_off: Callable[[], None] | None = None
        self._wake_at: int | None = None
        self._expected_at: int | None = None
        self._quiet = asyncio.Event()
        self._advanced = asyncio.Event()
        self._unsubscribe: Callable[[], None] | None = None
        self._let_go: Callable[[], None] | None = None

    # --- opening and closing ----------------------------------------------------------------------

    async def open(self) -> None:
        """Begin to listen to the log and the runners; the reactor has been opened by the caller."""
        self._loop = asyncio.get_running_loop()
        process.guard(self._loop)
        services.enter(self.services)
        self._let_go = services.hear(self._loop, self.services)
        self._unsubscribe = self.log.subscribe(self._durable, self.fail)
        for runner in self._distinct():
            await runner.open(self.sink)
        self.pump()

    async def recover(self) -> None:
        """Account for the runs of earlier engines; a task launches nothing before its runner is through."""
        specs = self.reactor.runs.recoverable()
        self.reactor.redo(self.now())
        self.pump()
        by_runner: dict[int, tuple[Runner, list[str]]] = {}
        for task, runner in self._runners.items():
            by_runner.setdefault(id(runner), (runner, []))[1].append(task)
        for task in specs.keys() - self._runners.keys():
            for spec in specs[task]:
                info = e.ErrorInfo(type="TaskRemoved", message=f"the pipeline no longer has the task {task}")
                self.sink(Ended(spec.run, e.Ending(outcome="cancelled", error=info)))
        self.reactor.unavailable.update(self._runners)
        for runner, tasks in by_runner.values():
            mine = [spec for task in tasks for spec in specs.get(task, ())]
            if mine:
                recovery = self._spawn(self._recover(runner, tasks, mine), "runs of before")
                self._recoveries.setdefault(id(runner), []).append(recovery)
            else:
                self.reactor.unavailable.difference_update(tasks)
        self.wake()

    async def _recover(self, runner: Runner, tasks: Sequence[str], specs: Sequence[RunSpec]) -> None:
        await runner.recover(specs)
        self.reactor.unavailable.difference_update(tasks)
        self.reactor.runs.stop_again(spec.run for spec in specs)
        self.pump()
        self.wake()

    async def close(
        self,
        closing: Closing,
        *,
        last: Callable[[], Coroutine[Any, Any, None]],
        abandon: bool = False,
        reason: str = "",
        actor: str = e.ENGINE,
    ) -> None:
        """Let the runners go, do what is `last`, say goodbye in the log, and stop listening; the log is the caller's."""
        self.launching = False
        self._starter.closed = True
        if self._let_go is not None:
            self._let_go()
        await asyncio.gather(
            *(self._close_runner(*named, closing, abandon) for named in self._distinct().items())
        )
        if self.failure is None:
            self.turn()
            await self._settle(closing)
            if await closing.step("the log", self.flushed()):
                await closing.step("a checkpoint", last())
            self.reactor.close(self.now(), reason, actor)
            self.pump()
            await closing.step("the log", self.flushed())
        await call_off(*self._background)
        if self._call_off is not None:
            self._call_off()
        if self._unsubscribe is not None:
            self._unsubscribe()

    async def _close_runner(self, runner: Runner, tasks: str, closing: Closing, abandon: bool) -> None:
        try:
            await closing.step(f"what runs {tasks}", runner.close(abandon=abandon))
        finally:
            for recovery in self._recoveries.pop(id(runner), ()):
                recovery.cancel()  # nobody answers it any more

    async def _settle(self, closing: Closing) -> None:
        """Let what is under way end; what is written to stores and does not end is told by store."""
        if not await closing.step("", self.settled()):
            closing.unfinished.pop()
        if self.failure is None:
            closing.unfinished += self.under_way()

    def under_way(self) -> list[str]:
        """Return what goes on beside the turns: stores that are written to, code of the pipeline, and the like."""
        others = {task.get_name() for task in self._background} - {FOLLOWING}
        return [*self._followers.under_way(), *sorted(others)]

    def _distinct(self) -> dict[Runner, str]:
        """Return the runners, and the names of the tasks that each runs."""
        names: dict[int, tuple[Runner, list[str]]] = {}
        for task, runner in self._runners.items():
            names.setdefault(id(runner), (runner, []))[1].append(task)
        return {runner: ", ".join(tasks) for runner, tasks in names.values()}

    def fail(self, error: BaseException) -> None:
        """Stop for good: nothing that was folded ahead of the disk is believed any more."""
        if self.failure is None:
            self.failure = error
            self.launching = False
            self._effects.clear()
            for future in self._tickets.values():
                if not future.done():
                    future.set_exception(_again(error))
            self._tickets.clear()
        self._quiet.set()
        self._advanced.set()

    def now(self) -> int:
        """Return engine time, never before that of the last event."""
        return max(self.clock.now(), self.state.at)

    # --- the turn ---------------------------------------------------------------------------------

    def sink(self, fact: Fact) -> None:
        """Take a fact from a runner; contents for the log's own blob repositories are stored first."""
        if isinstance(fact, Ended):
            fact = self._judged(fact)
            for write in fact.writes:
                if (write.source is not None or write.data is not None) and self._is_unstored(write):
                    self._spawn(self._store_contents(fact), f"what run {fact.run} brought")
                    return
        self._facts.append(fact)
        self.wake()

    def _judged(self, fact: Ended) -> Ended:
        """Take a failure over a damaged value for what it is: no fault of the job's.

        As with an input: `lost` where it is the log that is damaged, and run when that is sound again; else `refused`.
        """
        error = fact.ending.error
        outcome: e.Outcome
        if error is None or fact.ending.outcome not in ("failed", "refused"):
            return fact
        if error.type == LogDamagedError.__name__ and self.damage is not None:
            outcome = "lost"
        elif error.type == ValueDamagedError.__name__:
            outcome = "refused"
        else:
            return fact
        return fact._replace(ending=msgspec.structs.replace(fact.ending, outcome=outcome))

    def wake(self) -> None:
        """Take a turn soon."""
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self.turn)

    def turn(self) -> None:
        """Hand everything that has come to the reactor, let it decide, and append what it led to."""
        self._turning = False
        if self.failure is not None:
            return
        try:
            self._turn()
        except Exception as error:
            self._stop(error)

    def _turn(self) -> None:
        reactor, facts = self.reactor, self._facts
        now = self.now()
        step = self.clock.wall_step()
        if step is not None:
            reactor.tickets.ask([e.ClockStepped(at=now, wall_before=step[0], wall_after=step[1])])
        left = min(len(facts), TURN_FACTS_MAX)
        while left > 0:
            fact = facts.popleft()
            self._losses.see(fact)
            left -= 1
            following = facts[0] if left else None
            if isinstance(fact, Started) and isinstance(following, Ended) and following.run == fact.run:
                self._losses.see(facts.popleft())
                left -= 1
                reactor.runs.ran(fact, following, now)
            else:
                reactor.runs.fact(fact, now)
        reactor.runs.stop_overdue(now)
        evaluations = reactor.evaluations.due(now, EVALUATIONS_MAX)
        if evaluations:
            self._spawn(self._evaluate_all(evaluations), "filters, translations and priorities")
        launched, wake_at = (
            reactor.decide(now, self.mode, BOUND) if self.launching else (0, reactor.runs.deadlines.next())
        )
        self.pump()
        self._expected_at = wake_at
        retry_at = (
            reactor.evaluations.retry_at()
        )  # of user code that fails: not waited for when all else is quiet
        self._set_timer(min((at for at in (wake_at, retry_at) if at is not None), default=None))
        if facts or launched == BOUND:
            self.wake()
        elif not launched and self.is_quiet():
            self._quiet.set()

    def pump(self) -> None:
        """Append the reactor's steps in order; their effects wait for durability."""
        if self.failure is not None:
            return
        following = self.log.next
        for step in self.reactor.take():
            if step.events:
                self._at_hand.append(step.first, step.events)
                if following != step.first:  # one before it did not get there: nothing may take its place
                    raise InternalError(f"the log is at position {following} for a batch of {step.first}")
                following = self.log.enqueue(step.events).stop
                if self.listeners:
                    self._batches.append(e.Batch(step.first, step.events))
            last = step.first + len(step.events) - 1
            if step.effects:
                self._effects.append((last, step.effects))
        if self._effects and self._effects[0][0] <= self.log.head:
            self._loop.call_soon(self._durable, self.log.head)

    def _durable(self, head: int) -> None:
        """The log is durable up to `head`: perform the effects that rest on it, in order."""
        try:
            self._perform_until(head)
        except Exception as error:
            self._stop(error)
        self._advanced.set()
        self._advanced.clear()
        self.wake()

    def _perform_until(self, head: int) -> None:
        effects = self._effects
        if effects and effects[0][0] <= head and not self.log.holds_lease:
            self.fail(LeaseLostError("another engine has taken the log", where=self.log.url))
        while effects and effects[0][0] <= head:
            last, due = effects.popleft()
            for effect in due:
                try:
                    self._perform(effect)
                except Exception as error:
                    self._failed(effect, error)
            self._performed = last
        self._performed = max(self._performed, head)
        self._starter.flush()
        while self._batches and self._batches[0].last <= head:
            self._tell(self._batches.popleft())

    def _tell(self, batch: e.Batch) -> None:
        for listener in list(self.listeners):
            try:
                listener(batch)
            except Exception:
                logger.exception(
                    "a subscriber failed on the batch at %s; it goes on with the next", batch.first
                )

    def _set_timer(self, wake_at: int | None) -> None:
        if wake_at == self._wake_at and self._call_off is not None:
            return
        if self._call_off is not None:
            self._call_off()
            self._call_off = None
        self._wake_at = wake_at
        if wake_at is not None:
            self._call_off = self.clock.call_at(wake_at, self._alarm)

    def _alarm(self) -> None:
        self._call_off = self._wake_at = None
        self.wake()

    # --- effects ----------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        if self._starter.behind and isinstance(effect, StopRun | ForgetRun):
            if self._starter.waits(effect.run, effect):
                return
        match effect:
            case StartRun(spec=spec):
                self._starter.start(spec)
            case ForgetRun(task=task, run=run):
                if task in self._runners:
                    self._runners[task].forget(run)
            case Mirror(write=write):
                self._mirror(write)
            case WriteStore() | LookAgain():
                self._followers.follow(effect)
            case StopRun(task=task, run=run, reason=reason, grace=grace):
                self._runners[task].stop(run, reason, grace)
            case Finished():
                future = self._tickets.get(
                    effect.ticket
                )  # it stays until it is told: `fail` tells those that stay
                if future is None:
                    self._done_tickets[effect.ticket] = effect
                    return
                if not future.done():
                    future.set_result(effect)
                del self._tickets[effect.ticket]

    def _failed(self, effect: Effect, error: Exception) -> None:
        """A run that its runner would not take is refused; any other effect that raises is our bug."""
        if isinstance(effect, StartRun):
            logger.exception("%s[%s] could not be started", effect.spec.task, effect.spec.job)
            info = e.ErrorInfo(type=type(error).__name__, message=str(error))
            self.sink(Ended(effect.spec.run, e.Ending(outcome="refused", error=info)))
            return
        self._stop(error, type(effect).__name__)

    def _stop(self, error: BaseException, where: str = "") -> None:
        """Stop on what the machine refused, or on a mistake of ours, which is told with its traceback."""
        told = as_error(error, where)
        if isinstance(told, InternalError):
            logger.error("the engine stops: its own code failed", exc_info=error)
        self.fail(told)

    def _refuse(self, spec: RunSpec, error: DatataskError) -> None:
        """End a run whose input is not what was recorded; where it is the log that is damaged, launch no other."""
        if isinstance(error, LogError) and not isinstance(error, LogDamagedError | ValueDamagedError):
            self.fail(error)
            return
        info = e.ErrorInfo(type=type(error).__name__, message=str(error))
        outcome: e.Outcome = "refused"
        if isinstance(error, LogDamagedError):
            outcome = "lost"  # by no fault of the job's: it is run when the log is sound again
            self.damaged(error)
        else:
            logger.error("%s[%s] is not started: %s", spec.task, spec.job, error)
        self.sink(Ended(spec.run, e.Ending(outcome=outcome, error=info)))

    def damaged(self, error: LogDamagedError) -> None:
        """The log is not what was written: launch nothing more; what runs may end, and `on_damage` says so."""
        if self.damage is None:
            self.damage = error
            self.launching = False
            self.on_damage()

    def _mirror(self, write: Write) -> None:
        """Let an in-process store follow at once: its `put` and `delete` never wait."""
        store = self._stores[write.repository]
        change = (
            store.delete(write.job)
            if write.op == "delete"
            else store.put(with_content(write, self.log.blobs))
        )
        try:
            change.send(None)
        except StopIteration:
            return
        raise InternalError(f"the in-process store of {write.repository} waits")

    async def finished(self, ticket: int) -> tuple[int, int]:
        """Wait until all that a ticket stands for is durable; returns (last position, number of events).

        `StoreError` where a store did not take what it was given; what others took is kept.
        """
        if self.failure is not None:
            raise _again(self.failure)
        done = self._done_tickets.pop(ticket, None)
        if done is None:
            future: asyncio.Future[Finished] = self._loop.create_future()
            self._tickets[ticket] = future
            self.pump()
            self.wake()
            done = await future
        if done.failed:
            raise StoreError(f"not written: {done.failed}", remedy="mend the store and put it again")
        return done.position, done.changes

    def _written(self, effect: WriteStore, version: str | None, error: str, conflict: bool) -> None:
        self.written_count += 1
        self.reactor.written(
            effect.write,
            effect.run,
            effect.ticket,
            self.now(),
            version=version,
            error=error,
            conflict=conflict,
        )
        self.pump()
        self.wake()

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
        return await store.put(with_content(write, self.log.blobs))

    def _is_unstored(self, write: Write) -> bool:
        """Whether the content must be taken first: into the log's blobs, or from a file into this process."""
        medium = self.state.leaves[write.repository].definition.medium
        if medium == "native":
            return write.source is not None or write.data is not None
        if medium == "foreign" and write.over is not None:
            return write.data is not None  # so that the intent names it, and recovery can do it again
        return medium == "mirror" and write.source is not None

    async def _store_contents(self, fact: Ended) -> None:
        writes = [await self.stored(write) if self._is_unstored(write) else write for write in fact.writes]
        self._facts.append(fact._replace(writes=tuple(writes)))
        self.wake()

    async def stored(self, write: Write) -> Write:
        """Return the write with its content among the log's blobs, named by digest; or, in-process, as bytes."""
        blobs = self.log.blobs
        if self.state.leaves[write.repository].definition.medium == "mirror":
            assert write.source is not None, "only files are taken into this process"
            data = await asyncio.to_thread(write.source.read_bytes)
            return msgspec.structs.replace(write, source=None, data=data, size=len(data))
        if write.source is not None:
            digest, size = await asyncio.to_thread(blobs.put_file, write.source)
        else:
            digest, size = await asyncio.to_thread(blobs.put_bytes, write.data or b"")
        return msgspec.structs.replace(write, source=None, data=None, digest=digest, size=size)

    async def _evaluate_all(self, evaluations: Sequence[Evaluation]) -> None:
        results = await asyncio.gather(*(self._evaluate_one(evaluation) for evaluation in evaluations))
        self.reactor.evaluations.evaluated(results, self.now())
        self.pump()
        self.wake()

    async def _evaluate_one(self, evaluation: Evaluation) -> tuple[Evaluation, object, str | None]:
        try:
            return evaluation, await self._evaluate(evaluation), None
        except BaseException as error:  # a filter that calls sys.exit() is a filter that fails
            task = asyncio.current_task()
            if isinstance(error, KeyboardInterrupt) or (task is not None and task.cancelling()):
                raise
            info = error_info(error)
            return evaluation, None, f"{info.type}: {info.message}"[:1024]

    def _spawn(self, work: Coroutine[Any, Any, None], doing: str = FOLLOWING) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=doing)
        self._background.add(task)
        task.add_done_callback(self._reaped)
        return task

    def _reaped(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            assert error is not None
            self._stop(error)
        else:
            self.wake()

    # --- waiting ----------------------------------------------------------------------------------

    def is_quiet(self) -> bool:
        """Whether nothing is under way and nothing will happen by itself."""
        state = self.state
        return not (
            self._facts
            or state.open_runs
            or self._effects
            or self._background
            or self._expected_at is not None
            or any(not pending.error for pending in state.pending.values())
        )

    async def quiet(self) -> None:
        """Return when everything is quiet; raise what stopped the engine."""
        if self.failure is None:
            self._quiet.clear()
            self.wake()
            await self._quiet.wait()
        if self.failure is not None:
            raise _again(self.failure)

    async def settled(self) -> None:
        """Return when store writes and evaluations that are under way are over, or only stores are left that refuse to be
        written: then the next engine tries again.
        """
        refused = 0
        while self._background and self.failure is None and refused < REFUSED_LOOKS:
            await asyncio.wait(list(self._background), timeout=1.0)
            self.turn()
            only = all(task.get_name() == FOLLOWING for task in self._background)
            refused = refused + 1 if only and self._followers.is_stuck else 0

    async def advanced(self) -> None:
        """Return when more has become durable and its effects are performed, or the engine has stopped."""
        await self._advanced.wait()

    async def flushed(self) -> None:
        """Return when everything that has been appended is durable and its effects are performed."""
        last = self.state.position  # what comes in the meantime is not waited for: it might never end
        while self.failure is None and (
            self.log.head < last or (self._effects and self._effects[0][0] <= last)
        ):
            await self.advanced()
        if self.failure is not None:
            raise _again(self.failure)

    # --- what repositories ask (the Binding port) -------------------------------------------------

    async def put(self, repository_id: str, write: Write, *, reason: str = "") -> None:
        """Record a write of the program; returns when it is durable and its store has followed."""
        medium = self.state.leaves[repository_id].definition.medium
        large = len(bytes(write.value)) > INLINE_BYTES_MAX
        if medium == "native" and large:
            write = await self.stored(_as_data(write))
        elif medium == "foreign" and large:
            digest, size = await asyncio.to_thread(self.log.blobs.put_bytes, bytes(write.value))
            write = msgspec.structs.replace(write, digest=digest, size=size)
        elif self._is_unstored(write):
            write = await self.stored(write)
        await self.finished(
            self.reactor.tickets.change([write], self.now(), actor=self.who.actor, reason=reason)
        )

    async def delete(self, repository_id: str, job: str) -> None:
        """Record a deletion (from a `live` view: stop the run); returns when it is durable and has been done."""
        rule = self.state.leaves[repository_id].definition.derived
        if isinstance(rule, ViewDef) and rule.view == "live":
            index = self.state.job_index.get(job)
            episode = None if index is None else self.state.tasks[rule.task].episodes.get(index)
            if episode is not None and episode.run:
                event, effect = self.reactor.runs.stop(
                    self.state.open_runs[episode.run], "deleted", self.now(), actor=self.who.actor
                )
                await self.finished(self.reactor.tickets.ask([event], [effect]))
            return
        write = Write(repository=repository_id, job=job, op="delete")
        await self.finished(self.reactor.tickets.change([write], self.now(), actor=self.who.actor))

    def contains(self, repository_id: str, job: str) -> bool:
        return self.state.contains(repository_id, job)

    def position(self, repository_id: str) -> int:
        """Return up to which position a read sees what was written: a dict follows when the log is durable."""
        if self.state.leaves[repository_id].definition.medium == "mirror":
            return self._performed
        return self.state.position

    def members(self, repository_id: str) -> list[str]:
        return self.state.members(repository_id)

    async def value(self, repository_id: str, job: str) -> ValueRef | None:
        state = self.state
        index = state.job_index.get(job)
        leaf = state.leaves[repository_id]
        if index is None or not state.masks[index] & leaf.bit:
            return None
        position = leaf.positions[index]
        put = self._at_hand.values.get(position)
        if put is None:
            while (
                self.log.head < position and self.failure is None
            ):  # folded ahead of the disk, and evicted here
                await asyncio.sleep(0.0005)
            try:
                (event,) = await self.log.fetch([position])
            except LogDamagedError as error:
                self.damaged(error)
                raise
            assert isinstance(event, e.ValuePut)
            put = event
            self._at_hand.add(position, put)
        return ValueRef(put.value, put.digest, put.size, position)

    def forget_values(self, positions: Iterable[int]) -> None:
        """Read these values from the log again when they are asked for."""
        self._at_hand.forget(positions)

    @property
    def blobs(self) -> Blobs:
        return self.log.blobs


async def _nobody_looks(repository: str, job: str) -> None:
    """Stands in for the observer until there is one."""


def _as_data(write: Write) -> Write:
    if write.value:
        return Write(repository=write.repository, job=write.job, data=bytes(write.value))
    return write


def _again(error: BaseException) -> BaseException:
    """Return the error as a fresh exception, so that several waiters do not share one traceback."""
    if isinstance(error, DatataskError):
        return type(error)(error.what, where=error.where, remedy=error.remedy)
    return InternalError(f"the engine has stopped: {error!r}")
