"""An engine while it is open: its log, runtime, listing of stores, inbox and verification, and how they end.

In: an open log, what the pipeline declares, and who opens it. Out: an engine that works until it is drained,
abandoned or closed; closing has one deadline, and what does not keep it is left to the next engine. Which rounds
it works, `rounds` says.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from datatask.adapters.log.kept import KeptWriter
from datatask.adapters.log.locate import locate
from datatask.adapters.wiring import opening
from datatask.adapters.wiring.caching import Caching
from datatask.adapters.wiring.contents import Contents
from datatask.adapters.wiring.engine_services import Printing, Serving, Verification
from datatask.adapters.wiring.event_loop import collect_seldom
from datatask.adapters.wiring.reruns import Reruns, checked_in
from datatask.engine.api.declare import Declared
from datatask.engine.api.tasks import Task, TaskEngine
from datatask.engine.core import checkpoints
from datatask.engine.core.effects import Evaluation
from datatask.engine.core.state import FOLD_VERSION, State
from datatask.engine.core.tasks import OpenRun
from datatask.engine.ports import Checkpoint, Clock, EventLog, hold_back
from datatask.engine.runtime.closing import Closing, in_own_thread
from datatask.engine.runtime.loop import Runtime
from datatask.engine.runtime.observe import Observer
from datatask.engine.runtime.values import Values
from datatask.schema import events as e
from datatask.schema import messages as r
from datatask.schema.definition import PipelineDef
from datatask.schema.errors import NotOpenError
from datatask.schema.version import VERSION

logger = logging.getLogger("datatask.pipeline")

CHECKPOINT_LEAST = 2_000
"""A log that has grown by less since its last checkpoint gets none at the end."""


class Owner(TaskEngine, Protocol):
    """What an engine asks of the pipeline that opens it."""

    actor: str
    reason: str
    accepted: set[str]
    serves_functions: bool

    async def request(self, request: r.AnyRequest) -> r.Reply: ...
    async def evaluate(self, evaluation: Evaluation) -> object: ...


class Engine:
    """What a pipeline opens: `load` folds the log, `start` begins to work, `close` and `release` end it."""

    def __init__(self, tasks: Mapping[str, Task], clock: Clock, seed: int | None) -> None:
        self.log: EventLog | None = None
        self.draining = False
        self.is_closing = False
        self.closing: Closing | None = None
        self._tasks = tasks
        self._clock = clock
        self._seed = seed
        self._runtime: Runtime | None = None
        self._observer: Observer | None = None
        self._serving: Serving | None = None
        self._verification: Verification | None = None
        self._kept: KeptWriter | None = None
        self._printing: Printing | None = None
        self._contents: Contents | None = None
        self._reruns: Reruns | None = None
        self._declared: Declared | None = None
        self._collect_again: Callable[[], None] | None = None
        self._checkpointed = 0
        self._abandoned = False
        self._closed_by = (e.ENGINE, "")

    @property
    def runtime(self) -> Runtime:
        """The loop that decides and acts; `CallerError` unless the engine is open."""
        if self._runtime is None:
            raise NotOpenError("the pipeline is not open", remedy="use it within `async with pipeline:`")
        return self._runtime

    @property
    def observer(self) -> Observer:
        """What lists and watches the stores of an open engine."""
        assert self._observer is not None
        return self._observer

    @property
    def verified(self) -> int:
        """Up to which position the log was found to be what was written; 0 where that has not begun."""
        return 0 if self._verification is None else self._verification.position

    def flush_printed(self) -> None:
        """Have what runs printed so far where commands read it; blocking."""
        if self._kept is not None:
            self._kept.flush()

    @property
    def is_open(self) -> bool:
        """Whether it has been opened, wholly, and is not being closed."""
        return self._serving is not None and not self._serving.ended

    @property
    def is_serving(self) -> bool:
        """Whether a request of others is being carried out."""
        return self.runtime.failure is None and self._serving is not None and self._serving.busy

    @property
    def is_ending(self) -> bool:
        """Whether runs are open that cannot outlive the engine."""
        runtime = self.runtime
        return runtime.failure is None and any(map(self._ends_with_us, runtime.state.open_runs.values()))

    # --- opening ----------------------------------------------------------------------------------

    async def load(self, log: EventLog) -> State:
        """Return the state of a log: its newest checkpoint and what came after."""
        self.log = log
        self._collect_again = collect_seldom()
        state = await load_state(log)
        self._checkpointed = state.position
        return state

    async def start(self, owner: Owner, declared: Declared, state: State) -> None:
        """Record the opening, bind tasks and repositories, list stores, recover runs, and serve the inbox."""
        log = self.log
        assert log is not None
        stores = {
            id: leaf.store
            for id, leaf in declared.repositories.items()
            if leaf.medium in ("mirror", "foreign")
        }
        runtime = self._runtime = Runtime(
            log,
            state,
            self._clock,
            random.Random(self._seed).random,
            runners={task.name: task.runner for task in self._tasks.values()},
            stores=stores,
            evaluate=owner.evaluate,
        )
        runtime.who = r.Who(owner.actor, owner.reason)
        runtime.on_damage = self._stop_for_damage
        runtime.accepted |= dict.fromkeys(owner.accepted, runtime.who)
        opened = self._opened(runtime, log)
        definition = declared.definition if owner.serves_functions else _kept(declared.definition, state)
        runtime.reactor.open(opened, definition, opening.renamed(state, declared, opened.at))
        self.values = Values(runtime)
        self._bind(owner, declared, self.values)
        await runtime.open()
        path = locate(log.url).path
        if path is not None:
            self._kept = KeptWriter(path, log.uuid)
            runtime.keep_printed = self._kept.put
            self._printing = Printing(runtime, self._tasks.values(), self._kept)
        self._contents = Contents(runtime, stores)
        self._contents.open()
        Caching(runtime, self._contents, stores, self._tasks.values()).open()
        self._observer = Observer(runtime, stores, declared.repositories)
        await self._observer.open()
        await runtime.recover()
        await runtime.flushed()
        self._serving = Serving(
            log.inbox, owner.request, runtime.services, lambda request: self._takes(owner, request)
        )
        self._serving.open()
        if path is not None:
            self._verification = Verification(runtime, path)
            if owner.serves_functions:  # a command that only puts something computes nothing again
                check = checked_in(path, state)
                self._reruns = Reruns(runtime, self._contents, check, owner.request)
                self._reruns.open()

    def _opened(self, runtime: Runtime, log: EventLog) -> e.EngineOpened:
        at = runtime.state.at
        return e.EngineOpened(
            at=max(self._clock.now(), at),
            actor=runtime.who.actor,
            reason=runtime.who.reason,
            version=VERSION,
            host=socket.gethostname(),
            pid=os.getpid(),
            boot=_boot_id(),
            epoch=log.epoch,
            last_sign=at,
        )

    def _bind(self, owner: Owner, declared: Declared, values: Values) -> None:
        self._declared = declared
        for leaf, id in declared.objects:
            leaf.bind(id, values)
        for task in self._tasks.values():
            task.bind(owner)
            for view in (task.succeeded, task.failed, task.live):
                view.bind(view.id, values)

    def _takes(self, owner: Owner, request: r.AnyRequest) -> bool:
        """Whether a request of others is for this engine; a function would end with one that does not wait for it."""
        if owner.serves_functions or not isinstance(request, r.LaunchJob):
            return True
        task = self._tasks.get(request.task)
        return task is None or task.outlives

    # --- working ----------------------------------------------------------------------------------

    async def checkpoint(self, least: int) -> None:
        """Write a checkpoint when the log has grown by `least` events since the last one, and all of it is durable."""
        runtime, log = self.runtime, self.log
        assert log is not None
        position = runtime.state.position
        if position - self._checkpointed < least or log.head != position:
            return
        if runtime.failure is not None or runtime.damage is not None:
            return
        body = checkpoints.dump(runtime.state)
        self._checkpointed = position
        written = e.CheckpointWritten(
            at=runtime.now(),
            position=position,
            fold_version=FOLD_VERSION,
            sha256=hashlib.sha256(body).hexdigest(),
        )
        chain = log.chain_at(position)
        event, _ = await runtime.finished(runtime.reactor.tickets.ask([written]))
        await log.checkpoint(Checkpoint(position, chain, FOLD_VERSION, body, event))

    def refuse_damage(self) -> None:
        """Raise the damage of the log, where one was found."""
        if (damage := self.runtime.damage) is not None:
            raise type(damage)(damage.what, where=damage.where, remedy=damage.remedy)

    def _stop_for_damage(self) -> None:
        """Launch nothing on a log that is not what was written: what runs may end, then `run` raises the damage."""
        logger.error("%s; nothing more is launched", self.runtime.damage)
        self.interrupt(self.runtime.who.actor, "the log is damaged")
        self.drain()

    # --- ending -----------------------------------------------------------------------------------

    def interrupt(self, actor: str, why: str) -> None:
        """Say who ends it before its work is done: its goodbye, and what it stops, bear that."""
        self._closed_by = (actor, why)

    def drain(self) -> int:
        """Launch nothing more; hand back what an executor or a host has only queued, and return how many."""
        self.draining = True
        runtime = self.runtime
        runtime.launching = False
        runtime.mode = "drain"
        held = {run for task in self._tasks.values() for run in hold_back(task.runner)}
        self._shut_down(run for run in runtime.state.open_runs.values() if run.run in held)
        return len(held)

    def abandon(self) -> None:
        """Stop what cannot outlive the engine; its runs are opened anew next time."""
        self.drain()
        self._abandoned = True
        self._shut_down(run for run in self.runtime.state.open_runs.values() if self._ends_with_us(run))

    def _shut_down(self, runs: Iterable[OpenRun]) -> None:
        """Stop runs that their jobs are not to pay for: they are opened anew next time."""
        runtime = self.runtime
        actor, why = self._closed_by
        for run in list(runs):
            if run.stopping is None:
                event, effect = runtime.reactor.runs.stop(
                    run, "shutdown", runtime.now(), actor=actor, why=why
                )
                runtime.reactor.tickets.ask([event], [effect])
        runtime.pump()
        runtime.wake()

    async def caught_up(self) -> None:
        """Return when what was asked by now is answered, within a bound."""
        if self._serving is not None:
            await self._serving.caught_up()

    def hurry(self, seconds: float) -> Closing:
        """Begin the time in which it is to let go; the one that began first holds."""
        self.closing = self.closing or Closing(seconds)
        return self.closing

    async def close(self, closing: Closing, *, reason: str) -> None:
        """Stop its services, end the runs that cannot outlive it, and say goodbye in the log."""
        self.is_closing = True
        if self._verification is not None:
            await closing.step("the verification of the log", self._verification.close())
        if self._serving is not None:
            well = self._runtime is not None and self._runtime.failure is None
            await closing.step("the inbox", self._serving.close(well=well))
        if self._observer is not None:
            await closing.step("the listing of stores", self._observer.close())
        if self._reruns is not None:
            self._reruns.close()
        if self._printing is not None:
            await self._printing.close()
        if self._runtime is not None:
            await self._end_runs(self._runtime, closing)
            if self._contents is not None and self._runtime.failure is None:
                await closing.step("the digests of files", self._contents.close())
            actor, why = self._closed_by
            await self._runtime.close(
                closing,
                last=lambda: self.checkpoint(CHECKPOINT_LEAST),
                abandon=self._abandoned,
                reason=reason or why,
                actor=actor,
            )
        if self._kept is not None:
            await closing.step("what runs printed", in_own_thread(self._kept.close, "what runs printed"))

    async def _end_runs(self, runtime: Runtime, closing: Closing) -> None:
        """Stop the runs that cannot outlive the engine, and wait for their ends."""
        if runtime.failure is not None:
            return
        self.abandon()
        if not await closing.step("", self._ended(runtime)):
            going = sum(map(self._ends_with_us, runtime.state.open_runs.values()))
            closing.unfinished[-1] = f"{going} run{'s' * (going != 1)} of this process"

    async def _ended(self, runtime: Runtime) -> None:
        while self.is_ending:
            await runtime.advanced()

    def _ends_with_us(self, run: OpenRun) -> bool:
        task = self._tasks.get(run.task)
        return task is not None and not task.outlives

    def release(self) -> None:
        """Let go of tasks and repositories; they can be bound again."""
        if self._collect_again is not None:
            self._collect_again()
        if self._declared is not None:
            for leaf, _ in self._declared.objects:
                leaf.unbind()
        for task in self._tasks.values():
            task.unbind()
            for view in (task.succeeded, task.failed, task.live):
                view.unbind()


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


async def load_state(log: EventLog) -> State:
    """Return the state at the log's head: the newest checkpoint, and the events behind it."""
    state = None
    found = await log.latest_checkpoint(FOLD_VERSION)
    if found is not None:
        loaded = checkpoints.load(found.body)
        if loaded.position == found.position and loaded.log == log.uuid:
            state = loaded
    if state is None:
        base = await log.base_state()
        state = State() if base is None else checkpoints.load(base)
    return await log.fold(state)


def _kept(definition: PipelineDef, state: State) -> PipelineDef:
    """Return a definition with the recorded values of its parameters: a command that only puts something does not set them."""
    recorded = {one.name: one.value for one in state.definition.parameters}
    before = {task.name: task.fingerprint for task in state.definition.tasks}
    return msgspec.structs.replace(
        definition,
        tasks=tuple(
            msgspec.structs.replace(
                task, fingerprint=_with_values(task.fingerprint, before.get(task.name, {}))
            )
            for task in definition.tasks
        ),
        parameters=tuple(
            msgspec.structs.replace(one, value=recorded.get(one.name, one.value))
            for one in definition.parameters
        ),
    )


def _with_values(fingerprint: dict[str, str], before: dict[str, str]) -> dict[str, str]:
    """Return a fingerprint with the recorded digests of parameters."""
    return {
        name: before.get(name, digest) if name.startswith("parameter ") else digest
        for name, digest in fingerprint.items()
    }
