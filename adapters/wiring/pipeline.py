"""A pipeline: tasks, their repositories and quotas, over one log; open it and it runs.

Here engine and adapters meet: the definition is derived from the tasks, the log is found and leased, the state
is folded from its newest checkpoint and the tail, stores are listed, runners recover. In come the user's
objects, out comes an open engine behind a handful of verbs; `verbs` and the command line are made of these.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import logging
import os
import random
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import msgspec

from datatask.adapters.clock import SystemClock
from datatask.adapters.log.locate import default_path, locate
from datatask.adapters.wiring import succession
from datatask.adapters.wiring.actors import this_program
from datatask.adapters.wiring.event_loop import collect_seldom, run_in_loop
from datatask.adapters.wiring.inbox_service import Serving
from datatask.adapters.wiring.interrupts import Interrupts
from datatask.adapters.wiring.verification import Verification
from datatask.engine.api.declare import Declared, declare, dependants, graph_of
from datatask.engine.api.quotas import ResourceManager
from datatask.engine.api.repositories import DerivedLeaf, Repository, all_leaves
from datatask.engine.api.session import Session
from datatask.engine.api.tasks import Task
from datatask.engine.core import checkpoints
from datatask.engine.core.effects import Evaluation
from datatask.engine.core.state import FOLD_VERSION, State
from datatask.engine.core.tasks import OpenRun
from datatask.engine.ports import Checkpoint, Clock, EventLog, hold_back
from datatask.engine.runtime.closing import GRACE_SECONDS, Closing, within
from datatask.engine.runtime.loading import load_state
from datatask.engine.runtime.loop import Runtime
from datatask.engine.runtime.observe import Observer
from datatask.engine.runtime.requests import answer, error_of
from datatask.schema import events as e
from datatask.schema import requests as r
from datatask.schema.errors import (
    FUNCTION,
    TEXT,
    CallerError,
    DatataskError,
    LeaseHeldError,
    TimeLimitError,
    UnknownNameError,
    expect,
    expect_one,
)
from datatask.schema.messages import Write
from datatask.schema.values import encode_value
from datatask.schema.version import VERSION

logger = logging.getLogger("datatask.pipeline")

BUSY_SECONDS = 0.005
OPAQUE_SECONDS = 1.0
CHECKPOINT_EVERY = 50_000
CHECKPOINT_LEAST = 2_000

Priority = Callable[[str, str], float | Awaitable[float | None] | None]
Location = str | Path | EventLog | None


class Outcome(NamedTuple):
    """How a `run` ended: jobs whose last run failed, ready jobs that nothing can start (by reason), and why."""

    failed: int
    stuck: dict[str, int]
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """Return the command line's exit code for it."""
        if self.interrupted:
            return 130
        return 1 if self.failed else 6 if self.stuck else 0


class Pipeline:
    """Tasks that run on one log. `log` is a path, a URL or an open `EventLog`; it defaults to `.datatask/log.db`
    beside the program's file, or to memory when nothing in the pipeline outlives the process; until the pipeline
    is opened, `location` can be set to another place, and `actor` and `reason` to who opens it and why: what this
    program does to the pipeline bears that actor, `user@host: PROGRAM` unless it says otherwise. A command that opens it for a
    moment sets `brief`; it unsets `waits` where it asks another one that has the log rather than wait for its end, and
    `serves_functions` where it does not wait for functions that others launch.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        session: Session,
        resources: Iterable[ResourceManager] = (),
        priority: Priority | None = None,
        *,
        name: str | None = None,
        log: Location = None,
        durability: Literal["full", "process", "memory"] = "full",
        clock: Clock | None = None,
        seed: int | None = None,
    ) -> None:
        expect(self, Iterable, "pass a list of tasks", tasks=tasks, resources=resources)
        listed = list(tasks)
        for number, task in enumerate(listed):
            expect_one(self, Task, f"tasks[{number}]", task)
        expect(self, Session, session=session)
        resources = list(resources)
        for number, quota in enumerate(resources):
            expect_one(self, ResourceManager, f"resources[{number}]", quota)
        expect(self, FUNCTION, optional=True, priority=priority)
        expect(self, TEXT, optional=True, name=name)
        self.name = name or "pipeline"
        self.tasks: dict[str, Task] = {task.name: task for task in listed}
        self.session = session
        self.resources = list(resources)
        self.priority = priority
        self.durability = durability
        self.default_log: Path | None = None
        self.accepted: set[str] = set()
        self.needed: Collection[Repository | str] | None = None
        self.brief = False
        self.waits = True
        self.serves_functions = True
        self.actor = ""
        self.reason = ""
        self.grace_seconds = GRACE_SECONDS
        self.log: EventLog | None = None
        self._listed = listed
        self.location = log
        self._clock = clock or SystemClock()
        self._seed = seed
        self._runtime: Runtime | None = None
        self._declared: Declared | None = None
        self._observer: Observer | None = None
        self._serving: Serving | None = None
        self._opaque: list[Task] = []
        self._checkpointed = 0
        self._used = False
        self._collect_again: Callable[[], None] | None = None
        self._verification: Verification | None = None
        self._draining = False
        self._abandoned = False
        self.is_closing = False
        self._closed_by = (e.ENGINE, "")
        self._closing: Closing | None = None

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r}, tasks={list(self.tasks)})"

    # --- what it is -------------------------------------------------------------------------------

    def declare(self) -> Declared:
        """Return the definition and the objects behind its names; `CallerError` names what is wrong."""
        if self._declared is None:
            self._declared = declare(self._listed, name=self.name, priority=self.priority)
        return self._declared

    def settings(self, synchronous: bool = False, metadata: bool = True) -> None:
        """Set for all tasks whether `launch` runs in this process, and whether `done` entries are written."""
        for task in self._listed:
            task.synchronous = synchronous
            task.metadata = metadata

    def dependants(self, node: Task | Repository, recursive: bool) -> list[Task | Repository]:
        """Return the node and what lies downstream of it: its direct successors, or everything reachable."""
        return dependants(self._listed, node, recursive)

    def graph(self) -> Any:
        """Return a networkx DiGraph of tasks and repositories (networkx must be installed)."""
        return graph_of(self._listed)

    def log_location(self) -> str:
        """Return the URL of the log that opening would use."""
        if self.durability == "memory":
            return locate("memory:").url
        if isinstance(self.location, str | Path):
            return locate(self.location).url
        if self.location is not None:
            return self.location.url
        if self.default_log is None and self.declare().ephemeral_only():
            return locate("memory:").url
        return locate(self.default_log or default_path(program())).url

    @property
    def runtime(self) -> Runtime:
        """The engine; `CallerError` unless the pipeline is open."""
        if self._runtime is None:
            raise CallerError("the pipeline is not open", remedy="use it within `async with pipeline:`")
        return self._runtime

    @property
    def state(self) -> State:
        """The state of the open engine."""
        return self.runtime.state

    # --- opening and closing ----------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self, *, patience: Callable[[], float | None] = lambda: None) -> None:
        """Take the lease of the log, bring the state up to date, recover what an earlier engine left.

        After `LeaseHeldError` the pipeline can be opened again. `patience` says how many seconds (None: without end) what
        is asked of the world may take, first resources and repositories, then, with the log open, runners and stores;
        `TimeLimitError` when it takes longer. The log itself takes as long as it takes.
        """
        if self._used:
            raise CallerError("Pipeline is already used", remedy="make a new Pipeline to open it again")
        self._used = True
        self.actor = self.actor or this_program()
        declared = self.declare()
        try:
            async with _limited(patience(), "the session or a repository"):
                await self.session.open()
                await self._validate(declared)
            self.log = await self._open_log()
            state = await self._load(declared, self.log)
            async with _limited(patience(), "what runs, or a store,"):
                await self._start(declared, self.log, state)
        except LeaseHeldError:
            await self.session.close()
            self.session.renew()
            self._used = False
            raise
        except BaseException:
            await self._let_go(self.hurry(self.grace_seconds))
            raise

    async def _validate(self, declared: Declared) -> None:
        for task in self._listed:
            await task.validate()
        for leaf, repository in declared.repositories.items():
            if leaf not in declared.inputs:
                await repository.validate()
        await self.check_inputs()

    async def check_inputs(self) -> None:
        """Raise `CallerError` where a repository that nothing in the pipeline fills is not there; only look.

        `needed` restricts this to some of them: who only asks for something to be changed does not need all.
        """
        declared = self.declare()
        needed: Collection[str] = declared.inputs
        if self.needed is not None:
            ids = {id(leaf): name for leaf, name in declared.objects}
            needed = {ids[id(leaf)] for name in self.needed for leaf in all_leaves(self.find(name))}
        for leaf, link in declared.inputs.items():
            if leaf in needed:
                await declared.repositories[leaf].check_input(link)

    async def _open_log(self) -> EventLog:
        if self.location is not None and not isinstance(self.location, str | Path):
            return self.location
        url = self.log_location()
        if locate(url).path is None:
            from datatask.adapters.log.memory import MemoryLog

            return MemoryLog(pipeline=self.name, clock_now=self._clock.now())
        from datatask.adapters.log.sqlite import SqliteLog

        return await SqliteLog.open(
            url,
            pipeline=self.name,
            durability="process" if self.durability == "process" else "full",
            clock_now=self._clock.now(),
            version=VERSION,
            host=socket.gethostname(),
            pid=os.getpid(),
            brief=self.brief,
            waits=self.waits,
        )

    async def _load(self, declared: Declared, log: EventLog) -> State:
        self._collect_again = collect_seldom()
        state = await load_state(log)
        self._checkpointed = state.position
        if state.pipeline != self.name:
            raise CallerError(
                f"the log belongs to the pipeline {state.pipeline!r}, not to {self.name!r}",
                where=log.url,
                remedy="give each pipeline a log of its own (log=), or the same name=",
            )
        self.accepted = succession.accepted(self.accepted, state, declared)
        succession.check(state, declared, self.accepted, where=log.url)
        return state

    async def _start(self, declared: Declared, log: EventLog, state: State) -> None:
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
            runners={task.name: task.runner for task in self._listed},
            stores=stores,
            evaluate=self.evaluate,
        )
        runtime.who = r.Who(self.actor, self.reason)
        runtime.on_damage = self._stop_for_damage
        runtime.accepted |= dict.fromkeys(self.accepted, runtime.who)
        opened = self._opened(state, log)
        runtime.reactor.open(opened, declared.definition, succession.renamed(state, declared, opened.at))
        for leaf, id in declared.objects:
            leaf.bind(id, runtime)
        for task in self._listed:
            task.bind(self)
            for view in (task.succeeded, task.failed, task.live):
                view.bind(view.id, runtime)
        await runtime.open()
        self._opaque = [task for task in self._listed if task.opaque]
        self._observer = Observer(runtime, stores, declared.repositories)
        await self._observer.open()
        await runtime.recover()
        await runtime.flushed()
        self._serving = Serving(log.inbox, self.request, runtime.services, self._takes)
        self._serving.open()
        path = locate(log.url).path
        if path is not None:
            self._verification = Verification(runtime, path)

    def _takes(self, request: r.AnyRequest) -> bool:
        """Whether a request of others is for this engine; a function would end with one that does not wait for it."""
        if self.serves_functions or not isinstance(request, r.LaunchJob):
            return True
        task = self.tasks.get(request.task)
        return task is None or task.outlives

    def _opened(self, state: State, log: EventLog) -> e.EngineOpened:
        return e.EngineOpened(
            at=max(self._clock.now(), state.at),
            actor=self.actor,
            reason=self.reason,
            version=VERSION,
            host=socket.gethostname(),
            pid=os.getpid(),
            boot=_boot_id(),
            epoch=log.epoch,
            last_sign=state.at,
        )

    async def close(self, *, reason: str = "") -> None:
        """End the engine within `grace_seconds`: runners let go, the log says goodbye, the lease is free.

        What does not end in that time is told by name and left behind: the log has it open, and the next engine goes on.
        """
        closing = self.hurry(self.grace_seconds)
        self.is_closing = True
        try:
            if self._verification is not None:
                await closing.step("the verification of the log", self._verification.close())
            if self._serving is not None:
                well = self._runtime is not None and self._runtime.failure is None
                await closing.step("the inbox", self._serving.close(well=well))
            if self._observer is not None:
                await closing.step("the listing of stores", self._observer.close())
            if self._runtime is not None:
                await self._end_runs(self._runtime, closing)
                actor, why = self._closed_by
                await self._runtime.close(
                    closing,
                    last=lambda: self._checkpoint(CHECKPOINT_LEAST),
                    abandon=self._abandoned,
                    reason=reason or why,
                    actor=actor,
                )
        finally:
            await self._let_go(closing)

    def hurry(self, seconds: float) -> Closing:
        """Begin the time in which the engine is to let go; the one that began first holds."""
        self._closing = self._closing or Closing(seconds)
        return self._closing

    @property
    def closing(self) -> Closing | None:
        """The time in which it lets go, once that has begun."""
        return self._closing

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
        return self.runtime.failure is None and any(map(self._ends_with_us, self.state.open_runs.values()))

    async def _let_go(self, closing: Closing) -> None:
        """Close the log and the session, whatever was opened."""
        try:
            await closing.step(f"the log {self.log.url}" if self.log is not None else "", self._release())
        finally:
            try:
                await closing.last_step("resources of the session", self.session.close())
            finally:
                if closing.unfinished:
                    logger.warning("%s", closing)

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
        task = self.tasks.get(run.task)
        return task is not None and not task.outlives

    async def _release(self) -> None:
        if self._collect_again is not None:
            self._collect_again()
        if self._declared is not None:
            for leaf, _ in self._declared.objects:
                leaf.unbind()
        for task in self._listed:
            task.unbind()
            for view in (task.succeeded, task.failed, task.live):
                view.unbind()
        if self.log is not None and self.log is not self.location:
            await self.log.close()

    async def _checkpoint(self, least: int) -> None:
        runtime, log = self.runtime, self.log
        assert log is not None
        position = runtime.state.position
        if position - self._checkpointed < least or log.head != position:
            return
        if runtime.failure is not None or runtime.damage is not None:
            return
        body = checkpoints.dump(runtime.state)
        self._checkpointed = position
        told = e.CheckpointWritten(
            at=runtime.now(),
            position=position,
            fold_version=FOLD_VERSION,
            sha256=hashlib.sha256(body).hexdigest(),
        )
        chain = log.chain_at(position)
        event, _ = await runtime.finished(runtime.reactor.ask([told]))
        await log.checkpoint(Checkpoint(position, chain, FOLD_VERSION, body, event))

    # --- running ----------------------------------------------------------------------------------

    async def run(
        self,
        forever: bool = False,
        timeout: float | None = None,
        launch_once: bool = False,
    ) -> Outcome:
        """Work until all is quiet. `TimeLimitError` after `timeout` seconds; the work so far is in the log."""
        work = self._run(forever, launch_once)
        if timeout is None:
            return await work
        try:
            return await within(timeout, work)
        except TimeoutError as error:
            if isinstance(error, DatataskError):
                raise
            self.runtime.launching = False
            self._refuse_damage()
            raise TimeLimitError(
                f"not quiet after {timeout:g} s", remedy="run again: it goes on where it was"
            ) from None

    async def _run(self, forever: bool, launch_once: bool) -> Outcome:
        runtime = self.runtime
        assert self._observer is not None
        runtime.launching = not self._draining
        runtime.mode = "launch-once" if launch_once else "run"
        await self._observer.sync(self._observer.unwatched())
        if launch_once and runtime.launching:
            runtime.turn()
            runtime.launching = False
        try:
            while True:
                live = await self._update_opaque()
                await runtime.quiet() if not live else await asyncio.sleep(OPAQUE_SECONDS)
                await self._checkpoint(CHECKPOINT_EVERY)
                busy = self._observer.busy and not self._draining
                if live or busy or not runtime.is_quiet():
                    await asyncio.sleep(BUSY_SECONDS)
                    continue
                if self._draining or not forever:
                    before = runtime.state.position
                    live = await self._update_opaque()
                    await self._observer.sync(self._observer.unwatched())
                    while self._observer.busy and not self._draining and runtime.failure is None:
                        await asyncio.sleep(BUSY_SECONDS)
                    if not live and runtime.state.position == before and runtime.is_quiet():
                        self._refuse_damage()
                        return self.outcome()
                else:
                    await self._next_event()
        finally:
            runtime.launching = False
            runtime.mode = "run"

    async def _next_event(self) -> None:
        """Wait until something is appended, with a look at the quiet now and then."""
        runtime = self.runtime
        before = runtime.state.position
        for _ in range(20):
            await asyncio.sleep(0.05)
            if runtime.state.position != before or self._draining or runtime.failure is not None:
                return
        await self._checkpoint(CHECKPOINT_EVERY)

    async def _update_opaque(self) -> bool:
        live = False
        for task in self._opaque:
            live = await task.update() or live
        return live

    async def update(self) -> bool:
        """One round: look at the world, launch what may start; returns whether anything is live or was done."""
        return await self._round()

    async def _round(self, *, look: bool = True, launch: bool = True) -> bool:
        runtime = self.runtime
        assert self._observer is not None
        before = runtime.state.position
        live = False
        if look:
            live = await self._update_opaque()
            await self._observer.sync(self._observer.unwatched())
        runtime.mode = "update"
        self._launch_now(launch)
        if look and self._observer.awaited():  # a slow store holds up no task but those that read it
            await self._observer.known()
            self._launch_now(launch)
        await runtime.flushed()
        await asyncio.sleep(0)
        self._refuse_damage()
        return live or bool(runtime.state.open_runs) or runtime.state.position != before

    def _launch_now(self, launch: bool) -> None:
        runtime = self.runtime
        runtime.launching = launch and not self._draining
        runtime.turn()
        runtime.launching = False

    async def update_only_update(self) -> bool:
        """Look at the world, launch nothing; returns whether anything is live or was found."""
        return await self._round(launch=False)

    async def update_only_launch(self) -> bool:
        """Launch what may start by what is known; returns whether anything is live."""
        return await self._round(look=False)

    async def gather_ready_jobs(self, task: str | Task) -> list[str]:
        """Return the jobs that wait for a task, the next one first."""
        state = self.runtime.state
        name = task if isinstance(task, str) else task.name
        if name not in state.tasks:
            raise UnknownNameError(f"there is no task {name}", remedy="use one of: " + ", ".join(state.tasks))
        return [state.jobs[job] for _, _, job in state.tasks[name].queue.entries()]

    def run_sync(self, **options: Any) -> Outcome:
        """Open, `run`, close, from a program without an event loop; a first Ctrl-C drains, a second abandons."""
        if _loop_is_running():
            raise CallerError(
                "run_sync was called while an event loop is running (a notebook has one)",
                remedy="write `async with pipeline: await pipeline.run()`",
            )
        return run_in_loop(self._run_sync(options))

    async def _run_sync(self, options: dict[str, Any]) -> Outcome:
        with Interrupts(self, logger.warning) as interrupts:
            async with self:
                try:
                    return await self.run(**options)
                except asyncio.CancelledError:
                    interrupts.swallow()
                    return self.outcome()

    def interrupt(self, why: str) -> None:
        """Somebody ends this engine before its work is done: its goodbye, and what it stops, will say so."""
        self._closed_by = (self.actor, why)

    def _stop_for_damage(self) -> None:
        """Launch nothing on a log that is not what was written: what runs may end, then `run` raises the damage."""
        logger.error("%s; nothing more is launched", self.runtime.damage)
        self.interrupt("the log is damaged")
        self.drain()

    @property
    def verified(self) -> int:
        """Up to which position this engine has found its log to be what was written; 0 where it has not begun."""
        return 0 if self._verification is None else self._verification.position

    def _refuse_damage(self) -> None:
        if (damage := self.runtime.damage) is not None:
            raise type(damage)(damage.what, where=damage.where, remedy=damage.remedy)

    def drain(self) -> int:
        """Launch nothing more; `run` returns when what is running has ended.

        What an executor or a host has only queued is handed back, to be begun by the next engine; returns how many.
        """
        self._draining = True
        runtime = self.runtime
        runtime.launching = False
        runtime.mode = "drain"
        held = {run for task in self._listed for run in hold_back(task.runner)}
        self._shut_down(run for run in runtime.state.open_runs.values() if run.run in held)
        return len(held)

    def _shut_down(self, runs: Iterable[OpenRun]) -> None:
        """Stop runs that their jobs are not to pay for: they are opened anew next time."""
        runtime = self.runtime
        actor, why = self._closed_by
        for run in list(runs):
            if run.stopping is None:
                event, effect = runtime.reactor.stop(run, "shutdown", runtime.now(), actor=actor, why=why)
                runtime.reactor.ask([event], [effect])
        runtime.pump()
        runtime.wake()

    def abandon(self) -> None:
        """Stop what cannot outlive the engine; its runs are opened anew next time."""
        self.drain()
        self._abandoned = True
        self._shut_down(run for run in self.state.open_runs.values() if self._ends_with_us(run))

    def outcome(self) -> Outcome:
        """Return how things stand: failed jobs, and ready jobs that nothing can start, by reason."""
        state = self.state
        stuck: dict[str, int] = {}
        for task in state.tasks.values():
            waiting = len(task.queue) + len(task.awaiting)
            if waiting and not self._draining:
                reason = f"{task.name}: {task.constraint or 'evaluation'}"
                stuck[reason] = waiting
        if not self._draining:
            for key, pending in state.pending.items():
                if pending.error and key.what in ("filter", "translation"):
                    reason = f"{key.owner}: its {key.what} raises {pending.error:.200}"
                    stuck[reason] = stuck.get(reason, 0) + 1
        failed = sum(task.failed.count for task in state.tasks.values())
        return Outcome(failed, stuck, self._draining)

    # --- values, requests, events -----------------------------------------------------------------

    async def put(self, repository: Repository | str, job: str, value: Any, *, reason: str = "") -> None:
        """Put a document, text or bytes into a repository (object, id or `task.link`); durable on return."""
        leaf = self.find(repository)
        if isinstance(value, str) and not leaf.is_metadata():
            value = value.encode()
        content: dict[str, Any]
        if isinstance(value, bytes) and not leaf.is_metadata():
            content = {"data": value}
        else:
            content = {"value": msgspec.Raw(encode_value(value))}
        await self.runtime.put(leaf.id, Write(repository=leaf.id, job=job, **content), reason=reason)

    def find(self, repository: Repository | str) -> Repository:
        """Return a repository by object, id or `task.link`; `UnknownNameError` names what there is."""
        if isinstance(repository, Repository):
            return repository
        declared = self.declare()
        task, _, link = repository.rpartition(".")
        found = declared.links.get((task, link)) or declared.repositories.get(repository)
        if found is None:
            names = [f"{task}.{link}" for task, link in declared.links]
            raise UnknownNameError(
                f"there is no repository {repository}", remedy="use one of: " + ", ".join(names[:20])
            )
        return found

    async def request(self, request: r.AnyRequest) -> r.Reply:
        """Carry out what a person asks; see `datatask.schema.requests`."""
        return await answer(self.runtime, request)

    def subscribe(self, listener: Callable[[e.Batch], None]) -> Callable[[], None]:
        """Call `listener` with every batch once it is durable; return the function that ends it."""
        listeners = self.runtime.listeners
        listeners.append(listener)
        return lambda: listeners.remove(listener) if listener in listeners else None

    async def launch(self, task: str, job: str, *, meta: bool = True, reason: str = "") -> None:
        """Launch a job now, ready or not (`task.launch`); `RunOpenError` when it has an open run."""
        who = self._who(reason)
        await self._ask(r.LaunchJob(**who, task=task, job=job, force=True, meta=meta))

    async def cancel(self, task: str, job: str, *, reason: str = "") -> None:
        """Cancel a job of a task, running or waiting."""
        await self._ask(r.CancelJobs(**self._who(reason), task=task, jobs=(job,)))

    async def stop_live(self, task: str, job: str, *, reason: str = "") -> None:
        """Stop a job's run and open the job anew: what deleting from `live` means."""
        await self._ask(r.DeleteValues(**self._who(reason), repository=f"live({task})", jobs=(job,)))

    def _who(self, reason: str) -> dict[str, Any]:
        """Return the fields that every request of this program has."""
        return {"id": str(uuid.uuid4()), "actor": self.actor, "reason": reason}

    async def _ask(self, request: r.AnyRequest) -> None:
        reply = await self.request(request)
        if reply.refusal is not None:
            raise error_of(reply.refusal)

    async def evaluate(self, evaluation: Evaluation) -> object:
        """Return the outcome of the user's code that a decision needs: a priority, a filter, a translation."""
        what = evaluation.key.what
        if what == "priority":
            assert self.priority is not None
            result = self.priority(evaluation.owner, evaluation.job)
            given = await result if inspect.isawaitable(result) else result
            return (
                0.0 if given is None else float(given)
            )  # None is what a function without an opinion returns
        leaf = self.declare().repositories[evaluation.owner]
        assert isinstance(leaf, DerivedLeaf)
        return await leaf.evaluate(evaluation.job)


@contextlib.asynccontextmanager
async def _limited(seconds: float | None, what: str) -> AsyncIterator[None]:
    """Raise `TimeLimitError` about `what` when the body takes longer."""
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise TimeLimitError(f"{what} did not answer in time", remedy="see `datatask doctor`") from None


def program() -> Path:
    """Return the file of the running program, or the working directory in an interactive session."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    return Path(file) if file is not None else Path.cwd()


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
