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
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from datatask.engine.core.effects import Evaluation, WriteStore
from datatask.engine.core.reactor import Reactor
from datatask.engine.core.state import State
from datatask.engine.ports import Clock, EventLog, Reuse, Runner, Store
from datatask.engine.runtime import closing as process
from datatask.engine.runtime import services
from datatask.engine.runtime.closing import Closing
from datatask.engine.runtime.performing import Performer
from datatask.engine.runtime.runners import Losses, Runners, judged
from datatask.engine.runtime.services import STORES, Alarm, Background, Evaluate, evaluate_all
from datatask.engine.runtime.starting import Contents
from datatask.schema import events as e
from datatask.schema.definition import Selection
from datatask.schema.errors import InternalError, LogDamagedError, StoreError
from datatask.schema.messages import Ended, Fact, Printed, Started, Unusable, Who
from datatask.schema.troubles import again, as_error

logger = logging.getLogger("datatask.engine")

EVALUATIONS_MAX = 64
TURN_FACTS_MAX = 2000
BOUND = 1000
REFUSED_LOOKS = 2
"""Looks, a second apart, after which a closing engine no longer waits for stores that refuse to be written."""


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
        self.selection: Selection | None = None
        self.launching = False
        self.failure: BaseException | None = None
        self.services = services.Services(self.fail)
        self.damage: LogDamagedError | None = None
        self.on_damage: Callable[[], None] = lambda: None
        self.keep_printed: Callable[[int, Iterable[Printed]], object] = lambda run, printed: None
        self.accepted: dict[str, Who] = {}
        self.who = Who()
        self.relist: Callable[[str], object] = lambda leaf: None
        self.look_again: Callable[[str, str], Coroutine[Any, Any, None]] = _no_observer
        self.written_count = 0
        self.contents = Contents(log, state)
        self.reactor.outbox.recall = self.contents.at_hand.change
        self._evaluate = evaluate
        self._facts: deque[Fact] = deque()
        self.background = Background(self.wake, self.stop)
        self._runners = Runners(runners, self.background, self._recovered)
        self._performer = Performer(
            self,
            log,
            state,
            runners=runners,
            stores=stores,
            at_hand=self.contents.at_hand,
            background=self.background,
            written=self._written,
            look=lambda leaf, job: self.look_again(leaf, job),
        )
        self.listeners = self._performer.listeners
        self._reuse: Reuse | None = None
        self._losses = Losses(state)
        self._alarm = Alarm(clock, self.wake)
        self._turning = False
        self._expected_at: int | None = None
        self._quiet = asyncio.Event()
        self._advanced = asyncio.Event()
        self._unsubscribe: Callable[[], None] | None = None
        self._let_go: Callable[[], None] | None = None

    def spare(self, reuse: Reuse) -> None:
        """Have runs looked for whose outputs others take over."""
        self._reuse = self._performer.starter.reuse = reuse

    # --- opening and closing ----------------------------------------------------------------------

    async def open(self) -> None:
        """Begin to listen to the log and the runners; the reactor has been opened by the caller."""
        self._loop = asyncio.get_running_loop()
        process.guard(self._loop)
        services.enter(self.services)
        self._let_go = services.hear(self._loop, self.services)
        self._unsubscribe = self.log.subscribe(self._durable, self.fail)
        await self._runners.open(self.sink)
        self.pump()

    async def recover(self) -> None:
        """Account for the runs of earlier engines; a task launches nothing before its runner is through."""
        specs = self.reactor.runs.recoverable()
        self.reactor.redo(self.now())
        self.pump()
        for task in specs.keys() - self._runners.tasks:
            for spec in specs[task]:
                info = e.ErrorInfo(type="TaskRemoved", message=f"the pipeline no longer has the task {task}")
                self.sink(Ended(spec.run, e.Ending(outcome="cancelled", error=info)))
        self.reactor.unavailable |= self._runners.recover(specs, self.state)
        self.wake()

    def _recovered(self, tasks: Iterable[str], runs: Iterable[int]) -> None:
        """A runner is through with the runs of earlier engines: its tasks launch again."""
        self.reactor.unavailable.difference_update(tasks)
        self.reactor.runs.stop_again(runs)
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
        self._performer.starter.closed = True
        if self._let_go is not None:
            self._let_go()
        await self._runners.close(closing, abandon=abandon)
        if self.failure is None:
            self.turn()
            await self._settle(closing)
            if await closing.step("the log", self.flushed()):
                await closing.step("a checkpoint", last())
            self.reactor.close(self.now(), reason, actor)
            self.pump()
            await closing.step("the log", self.flushed())
        await self.background.call_off()
        self._alarm.set(None)
        if self._unsubscribe is not None:
            self._unsubscribe()

    async def _settle(self, closing: Closing) -> None:
        """Let what is under way end; what is written to stores and does not end is named by store."""
        if not await closing.step("", self.settled()):
            closing.unfinished.pop()
        if self.failure is None:
            closing.unfinished += self.under_way()

    def under_way(self) -> list[str]:
        """Return what goes on beside the turns: stores that are written to, code of the pipeline, and the like."""
        return [*self._performer.followers.under_way(), *sorted(self.background.under_way() - {STORES})]

    def fail(self, error: BaseException) -> None:
        """Stop for good: nothing that was folded ahead of the disk is believed any more."""
        if self.failure is None:
            self.failure = error
            self.launching = False
            self._performer.drop(lambda: again(error))
        self._quiet.set()
        self._advanced.set()

    @property
    def performed(self) -> int:
        """Up to which position the log is durable and effects are performed."""
        return self._performer.performed

    def now(self) -> int:
        """Return engine time, never before that of the last event."""
        return max(self.clock.now(), self.state.at)

    # --- the turn ---------------------------------------------------------------------------------

    def sink(self, fact: Fact) -> None:
        """Take a fact from a runner; contents for the log's own blob repositories are stored first.

        A fact that is not taken stops the engine: its runner reports it once, and the next engine looks for the run.
        """
        try:
            if isinstance(fact, Ended):
                if fact.printed:
                    self.keep_printed(fact.run, fact.printed)
                fact = judged(fact, log_damaged=self.damage is not None)
                if self._reuse is not None:
                    fact = self._reuse.ended(fact)
                if any(map(self.contents.is_unstored, fact.writes)):
                    self.background.spawn(self._store_contents(fact), f"the outputs of run {fact.run}")
                    return
            self._facts.append(fact)
            self.wake()
        except BaseException as error:
            self.stop(error, "the report of a run")
            raise

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
            self.stop(error)

    def _turn(self) -> None:
        reactor, facts = self.reactor, self._facts
        now = self.now()
        if (step := self.clock.wall_step()) is not None:
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
            elif isinstance(fact, Unusable):
                self._unusable(fact, now)
            else:
                reactor.runs.fact(fact, now)
        reactor.runs.stop_overdue(now)
        if evaluations := reactor.evaluations.due(now, EVALUATIONS_MAX):
            self.background.spawn(self._evaluated(evaluations), "filters, translations and priorities")
        launched, wake_at = (
            reactor.decide(now, self.mode, BOUND, self.selection)
            if self.launching
            else (0, reactor.runs.deadlines.next())
        )
        if self.selection is not None:
            self.selection = self.selection.after(launched)
        self.pump()
        self._expected_at = wake_at
        retry_at = reactor.evaluations.retry_at()  # of failing user code: `quiet` does not wait for it
        self._alarm.set(min((at for at in (wake_at, retry_at) if at is not None), default=None))
        if facts or launched == BOUND:
            self.wake()
        elif not launched and self.is_quiet():
            self._quiet.set()

    def _unusable(self, fact: Unusable, now: int) -> None:
        """Launch nothing more of a task, and open anew what its runner has not begun."""
        self.reactor.unavailable.add(fact.task)
        for number in self._runners.hold_back(fact.task):
            run = self.state.open_runs.get(number)
            if run is not None and run.stopping is None:
                event, effect = self.reactor.runs.stop(run, "shutdown", now, why=fact.why)
                self.reactor.tickets.ask([event], [effect])

    def pump(self) -> None:
        """Append the reactor's steps in order; their effects wait for durability.

        A step that does not get into the log stops the engine, whoever called: the state has it already.
        """
        if self.failure is not None:
            return
        try:
            following = self.log.next
            for step in self.reactor.take():
                if step.events:
                    self.contents.at_hand.append(step.first, step.events)
                    if following != step.first:  # one before it did not get there: nothing may take its place
                        raise InternalError(f"the log is at position {following} for a batch of {step.first}")
                    following = self.log.enqueue(step.events).stop
                self._performer.queue(step)
            if self._performer.waits(self.log.head):
                self._loop.call_soon(self._durable, self.log.head)
        except BaseException as error:
            self.stop(error)
            raise

    def _durable(self, head: int) -> None:
        """The log is durable up to `head`: perform the effects that rest on it, in order."""
        try:
            self._performer.perform_until(head)
        except Exception as error:
            self.stop(error)
        self._advanced.set()
        self._advanced.clear()
        self.wake()

    # --- what comes back -------------------------------------------------------------------------

    def stop(self, error: BaseException, where: str = "") -> None:
        """Stop on what the machine refused, or on a mistake of ours, which is logged with its traceback."""
        if self.failure is not None:
            return
        if not isinstance(error, Exception):  # an interrupt: the caller reports it
            self.fail(error)
            return
        mapped = as_error(error, where)
        if isinstance(mapped, InternalError):
            logger.error("the engine stops: its own code failed", exc_info=error)
        self.fail(mapped)

    def damaged(self, error: LogDamagedError) -> None:
        """The log is not what was written: launch nothing more; what runs may end, and `on_damage` says so."""
        if self.damage is None:
            self.damage = error
            self.launching = False
            self.on_damage()

    async def _store_contents(self, fact: Ended) -> None:
        writes = [
            await self.contents.stored(write) if self.contents.is_unstored(write) else write
            for write in fact.writes
        ]
        self._facts.append(fact._replace(writes=tuple(writes)))
        self.wake()

    async def finished(self, ticket: int) -> tuple[int, int]:
        """Wait until all that a ticket stands for is durable; returns (last position, number of events).

        `StoreError` where a store did not take what it was given; what others took is kept.
        """
        if self.failure is not None:
            raise again(self.failure)
        ticket_done = self._performer.ticket(ticket)
        if not ticket_done.done():
            self.pump()
            self.wake()
        done = await ticket_done
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

    async def _evaluated(self, evaluations: Sequence[Evaluation]) -> None:
        results = await evaluate_all(self._evaluate, evaluations)
        self.reactor.evaluations.evaluated(results, self.now())
        self.pump()
        self.wake()

    # --- waiting ----------------------------------------------------------------------------------

    def is_quiet(self) -> bool:
        """Whether nothing is under way and nothing will happen by itself."""
        state = self.state
        return not (
            self._facts
            or state.open_runs
            or self._performer
            or self.background
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
            raise again(self.failure)

    async def settled(self) -> None:
        """Return when store writes and evaluations have ended, or only refused writes are left for the next engine."""
        refused = 0
        while self.background and self.failure is None and refused < REFUSED_LOOKS:
            await self.background.some(1.0)
            self.turn()
            only = self.background.under_way() <= {STORES}
            refused = refused + 1 if only and self._performer.followers.is_stuck else 0

    async def advanced(self) -> None:
        """Return when more has become durable and its effects are performed, or the engine has stopped."""
        await self._advanced.wait()

    async def flushed(self) -> None:
        """Return when everything that has been appended is durable and its effects are performed."""
        last = self.state.position  # what comes in the meantime is not waited for: it might never end
        while self.failure is None and (self.log.head < last or self._performer.waits(last)):
            await self.advanced()
        if self.failure is not None:
            raise again(self.failure)


async def _no_observer(repository: str, job: str) -> None:
    """Stands in for the observer until there is one."""
