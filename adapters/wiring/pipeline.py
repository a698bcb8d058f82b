"""A pipeline: tasks, their repositories and quotas, over one log; open it and it runs.

Here engine and adapters meet: the definition is derived from the tasks, the log is found and leased, the state
is folded from its newest checkpoint and the tail, stores are listed, runners recover. In come the user's
objects, out comes an open engine behind a handful of verbs; `verbs` and the command line are made of these.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec

from datatask.adapters.clock import SystemClock
from datatask.adapters.log.locate import MEMORY
from datatask.adapters.wiring import opening
from datatask.adapters.wiring.choosing import Choice
from datatask.adapters.wiring.engine import Engine
from datatask.adapters.wiring.event_loop import limited, refuse_running_loop, run_in_loop
from datatask.adapters.wiring.opening import Location, open_log, this_program, url_of
from datatask.adapters.wiring.rounds import Interrupts, Outcome, Rounds
from datatask.engine.api.declare import Declared, declare, dependants, graph_of
from datatask.engine.api.parameters import Parameter
from datatask.engine.api.policies import Duration, ResourceManager, kept_bytes, nanoseconds
from datatask.engine.api.repositories import DerivedLeaf, Repository, all_leaves
from datatask.engine.api.session import Session
from datatask.engine.api.tasks import Task
from datatask.engine.core.effects import Evaluation
from datatask.engine.core.state import State
from datatask.engine.ports import Clock, EventLog
from datatask.engine.runtime.closing import GRACE_SECONDS, Closing
from datatask.engine.runtime.loop import Runtime
from datatask.engine.runtime.requests import answer, error_of
from datatask.schema import events as e
from datatask.schema import messages as r
from datatask.schema.errors import (
    FLAG,
    FUNCTION,
    TEXT,
    AlreadyOpenError,
    LeaseHeldError,
    TimeLimitError,
    expect,
    expect_one,
    unknown,
)
from datatask.schema.messages import Write
from datatask.schema.units import SECOND
from datatask.schema.values import encode_value

if TYPE_CHECKING:
    from datatask.adapters.log.memory import MemoryLog

logger = logging.getLogger("datatask.pipeline")

Priority = Callable[[str, str], float | Awaitable[float | None] | None]


class Pipeline:
    """Tasks that run on one log. `log` is a path, a URL or an open `EventLog`; it defaults to `.datatask/log.db`
    beside the program's file, or to memory when nothing in the pipeline outlives the process.

    Until it is opened these can be set: `location` (another log), `actor` (`user@host: PROGRAM`) and `reason`, which
    events bear; for a command that opens it for a moment `brief`, not `waits` for another engine's end, and not
    `serves_functions`, which others launch. `logs` is how much is kept of each stream of a run, unless its task says another
    amount: True (1 MiB), "64KiB", bytes, or False for nothing. `cache` is what tasks do that do not say it themselves.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        session: Session,
        resources: Iterable[ResourceManager] = (),
        priority: Priority | None = None,
        *,
        parameters: Iterable[Parameter] = (),
        name: str | None = None,
        log: Location = None,
        durability: Literal["full", "process", "memory"] = "full",
        clock: Clock | None = None,
        seed: int | None = None,
        logs: str | int | bool = True,
        cache: bool = False,
    ) -> None:
        expect(self, Iterable, "pass a list of tasks", tasks=tasks, resources=resources)
        listed = list(tasks)
        for number, task in enumerate(listed):
            expect_one(self, Task, f"tasks[{number}]", task)
        expect(self, Session, session=session)
        expect(self, FLAG, cache=cache)
        self.resources = list(resources)
        for number, quota in enumerate(self.resources):
            expect_one(self, ResourceManager, f"resources[{number}]", quota)
        expect(self, FUNCTION, optional=True, priority=priority)
        expect(self, TEXT, optional=True, name=name)
        expect(self, Iterable, "pass a list of parameters", parameters=parameters)
        self.parameters: dict[str, Parameter] = {}
        for number, parameter in enumerate(listed_parameters := list(parameters)):
            expect_one(self, Parameter, f"parameters[{number}]", parameter)
            self.parameters[parameter.name] = parameter
        self._parameters = listed_parameters
        for task in listed:
            task.given = self.parameters
        self.name = name or "pipeline"
        self._cache = cache
        self._logs = kept_bytes(logs, f"pipeline {self.name}")
        self.tasks: dict[str, Task] = {task.name: task for task in listed}
        self.session = session
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
        self.location = log
        self._clock = clock or SystemClock()
        self._seed = seed
        self._listed = listed
        self._declared: Declared | None = None
        self._opened: Literal["never", "now", "before"] = "never"
        self._memory: MemoryLog | None = None
        self._prepare()

    def _prepare(self) -> None:
        """Make what one opening needs."""
        self.engine = Engine(self.tasks, self._clock, self._seed)
        self._rounds = Rounds(self.engine, self.tasks)

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r}, tasks={list(self.tasks)})"

    def declare(self) -> Declared:
        """Return the definition and the objects behind its names; `CallerError` names what is wrong."""
        if self._declared is None:
            self._declared = declare(
                self._listed,
                name=self.name,
                priority=self.priority,
                parameters=self._parameters,
                logs=self._logs,
                cache=self._cache,
            )
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
        """Return a networkx DiGraph of tasks and repositories, which a notebook draws (networkx must be installed)."""
        from datatask.adapters.wiring.drawn_graph import DrawnGraph

        names = {id(leaf): name for leaf, name in self.declare().objects}

        def named(node: Any) -> str:
            return node.name if isinstance(node, Task) else names.get(id(node), type(node).__name__)

        return DrawnGraph(graph_of(self._listed), named)

    def log_location(self) -> str:
        """Return the URL of the log that opening would use."""
        ephemeral = self.location is None and self.default_log is None and self.declare().ephemeral_only()
        if self.durability == "memory" or ephemeral:
            return MEMORY
        return url_of(self.location, self.default_log)

    @property
    def log(self) -> EventLog | None:
        """The log, once it is open."""
        return self.engine.log

    @property
    def runtime(self) -> Runtime:
        """The engine's loop; `CallerError` unless the pipeline is open."""
        return self.engine.runtime

    @property
    def state(self) -> State:
        """The state of the open engine."""
        return self.engine.runtime.state

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self, *, patience: Callable[[], float | None] = lambda: None) -> None:
        """Take the lease of the log, bring the state up to date, recover what an earlier engine left.

        Once it was closed, or could not be opened, it can be opened again: a log in memory goes on, too, and functions are
        what they are now. `patience` says how many seconds (None: without end) what is asked of the world may
        take, first resources and repositories, then, with the log open, runners and stores; `TimeLimitError` when it takes
        longer. The log itself takes as long as it takes.
        """
        if self._opened == "now":
            raise AlreadyOpenError(
                "the pipeline is open already", remedy="close it first; it can be opened again"
            )
        if self._opened == "before":
            self._declared = None
            self._prepare()
        self.actor = self.actor or this_program()
        declared = self.declare()
        self._opened = "now"
        try:
            async with limited(patience(), _late("the session or a repository")):
                await self.session.open()
                for task in self._listed:
                    await task.validate()
                declared.measure(self._listed)
                for leaf, repository in declared.repositories.items():
                    if leaf not in declared.inputs:
                        await repository.validate()
                await self.check_inputs()
            log = self.location
            if log is None or isinstance(log, str | Path):
                log = await self._open_log()
            state = await self.engine.load(log)
            self.accepted = opening.check(self.name, declared, state, self.accepted, where=log.url)
            async with limited(patience(), _late("an executor or a store")):
                await self.engine.start(self, declared, state)
        except LeaseHeldError:
            await self.session.close()
            self._opened = "before"
            raise
        except BaseException:
            await self._let_go(self.hurry(self.grace_seconds))
            raise

    async def _open_log(self) -> EventLog:
        """Open the log of a place, or go on with that in memory."""
        if self._memory is not None and self._memory.holds_lease:
            self._memory.reopen()
            return self._memory
        log = await open_log(
            self.log_location(),
            pipeline=self.name,
            durable=self.durability != "process",
            now=self._clock.now(),
            brief=self.brief,
            waits=self.waits,
        )
        if log.url == MEMORY:
            from datatask.adapters.log.memory import MemoryLog

            self._memory = log if isinstance(log, MemoryLog) else None
        return log

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

    async def close(self, *, reason: str = "") -> None:
        """End the engine within `grace_seconds`: runners let go, the log says goodbye, the lease is free.

        What does not end in that time is told by name and left behind: the log has it open, and the next engine goes on.
        """
        closing = self.hurry(self.grace_seconds)
        try:
            await self.engine.close(closing, reason=reason)
        finally:
            await self._let_go(closing)

    async def _let_go(self, closing: Closing) -> None:
        """Close the log and the session, whatever was opened."""
        try:
            await closing.step(f"the log {self.log.url}" if self.log is not None else "", self._release())
        finally:
            try:
                await closing.last_step("resources of the session", self.session.close())
            finally:
                self._opened = "before"
                if closing.unfinished:
                    logger.warning("%s", closing)

    async def _release(self) -> None:
        self.engine.release()
        if self.log is not None and self.log is not self.location:
            await self.log.close()

    def interrupt(self, why: str) -> None:
        """End this engine before its work is done: its goodbye, and what it stops, will say so."""
        self.engine.interrupt(self.actor, why)

    def drain(self) -> int:
        """Launch nothing more; `run` returns when what is running has ended.

        What an executor or a host has only queued is handed back, to be begun by the next engine; returns how many.
        """
        return self.engine.drain()

    def abandon(self) -> None:
        """Stop what cannot outlive the engine; its runs are opened anew next time."""
        self.engine.abandon()

    def hurry(self, seconds: float) -> Closing:
        """Begin the time in which the engine is to let go; the one that began first holds."""
        return self.engine.hurry(seconds)

    @property
    def closing(self) -> Closing | None:
        """The time in which it lets go, once that has begun."""
        return self.engine.closing

    @property
    def is_open(self) -> bool:
        """Whether it has been opened, wholly, and is not being closed."""
        return self.engine.is_open

    @property
    def is_closing(self) -> bool:
        """Whether closing has begun."""
        return self.engine.is_closing

    @property
    def is_serving(self) -> bool:
        """Whether a request of others is being carried out."""
        return self.engine.is_serving

    @property
    def is_ending(self) -> bool:
        """Whether runs are open that cannot outlive the engine."""
        return self.engine.is_ending

    @property
    def verified(self) -> int:
        """Up to which position this engine has found its log to be what was written; 0 where it has not begun."""
        return self.engine.verified

    async def run(
        self,
        forever: bool = False,
        timeout: Duration | None = None,
        launch_once: bool = False,
        *,
        tasks: Iterable[Task | str] = (),
        jobs: str | None = None,
        until: Iterable[Task | str] = (),
        limit: int | None = None,
    ) -> Outcome:
        """Work until all is quiet. `TimeLimitError` after `timeout` (seconds, or such as "5m"); the work so far is in the log.

        Only `tasks` (default: all), those that `until` needs, jobs of the set expression `jobs` (repositories, names of jobs,
        `*`, `& | - ^`), and `limit` launches, retries included: each narrows what the others leave.
        """
        choice = Choice(_named(tasks), jobs, _named(until), limit)
        seconds = None if timeout is None else nanoseconds(timeout, "timeout") / SECOND
        return await self._rounds.run(forever, seconds, launch_once, choice)

    async def update(self) -> bool:
        """One round: look at the world, launch what may start; returns whether anything is live or was done."""
        return await self._rounds.round()

    async def update_only_update(self) -> bool:
        """Look at the world, launch nothing; returns whether anything is live or was found."""
        return await self._rounds.round(launch=False)

    async def update_only_launch(self) -> bool:
        """Launch what may start by what is known; returns whether anything is live."""
        return await self._rounds.round(look=False)

    async def gather_ready_jobs(self, task: str | Task) -> list[str]:
        """Return the jobs that wait for a task, the next one first."""
        state = self.runtime.state
        name = task if isinstance(task, str) else task.name
        if name not in state.tasks:
            raise unknown("task", name, state.tasks)
        return [state.jobs[job] for _, _, job in state.tasks[name].queue.entries()]

    def run_sync(self, **options: Any) -> Outcome:
        """Open, `run`, close, from a program without an event loop; a first Ctrl-C drains, a second abandons."""
        refuse_running_loop()
        return run_in_loop(self._run_sync(options))

    async def _run_sync(self, options: dict[str, Any]) -> Outcome:
        with Interrupts(self, logger.warning) as interrupts:
            async with self:
                try:
                    return await self.run(**options)
                except asyncio.CancelledError:
                    interrupts.swallow()
                    return self.outcome()

    def outcome(self) -> Outcome:
        """Return how things stand: failed jobs, and ready jobs that nothing can start, by reason."""
        return self._rounds.outcome()

    async def put(self, repository: Repository | str, job: str, value: Any, *, reason: str = "") -> None:
        """Put a document, text or bytes into a repository (object, id or `task.link`); durable on return."""
        leaf = self.find(repository)
        if isinstance(value, str) and not leaf.is_metadata():
            value = value.encode()
        content: dict[str, Any] = {"data": value}
        if leaf.is_metadata() or not isinstance(value, bytes):
            content = {"value": msgspec.Raw(encode_value(value))}
        await self.engine.values.put(leaf.id, Write(repository=leaf.id, job=job, **content), reason=reason)

    def find(self, repository: Repository | str) -> Repository:
        """Return a repository by object, id or `task.link`; `UnknownNameError` names what there is."""
        return repository if isinstance(repository, Repository) else self.declare().find(repository)

    async def request(self, request: r.AnyRequest) -> r.Reply:
        """Carry out what a person asks; see `datatask.schema.messages`."""
        return await answer(self.runtime, request)

    def subscribe(self, listener: Callable[[e.Batch], None]) -> Callable[[], None]:
        """Call `listener` with every batch once it is durable; return the function that ends it."""
        listeners = self.runtime.listeners
        listeners.append(listener)
        return lambda: listeners.remove(listener) if listener in listeners else None

    async def launch(self, task: str, job: str, *, meta: bool = True, reason: str = "") -> None:
        """Launch a job now, ready or not (`task.launch`); `RunOpenError` when it has an open run."""
        await self._ask(r.LaunchJob, reason, task=task, job=job, force=True, meta=meta)

    async def cancel(self, task: str, job: str, *, reason: str = "") -> None:
        """Cancel a job of a task, running or waiting."""
        await self._ask(r.CancelJobs, reason, task=task, jobs=(job,))

    async def stop_live(self, task: str, job: str, *, reason: str = "") -> None:
        """Stop a job's run and open the job anew: what deleting from `live` means."""
        await self._ask(r.DeleteValues, reason, repository=f"live({task})", jobs=(job,))

    async def _ask(self, kind: Callable[..., r.AnyRequest], reason: str, **content: Any) -> None:
        reply = await self.request(kind(id=str(uuid.uuid4()), actor=self.actor, reason=reason, **content))
        if reply.refusal is not None:
            raise error_of(reply.refusal)

    async def evaluate(self, evaluation: Evaluation) -> object:
        """Return the outcome of the user's code that a decision needs: a priority, a filter, a translation."""
        what = evaluation.key.what
        if what == "priority":
            assert self.priority is not None
            result = self.priority(evaluation.owner, evaluation.job)
            given = await result if inspect.isawaitable(result) else result
            return 0.0 if given is None else float(given)  # the function of a user without an opinion
        leaf = self.declare().repositories[evaluation.owner]
        assert isinstance(leaf, DerivedLeaf)
        return await leaf.evaluate(evaluation.job)


def _named(tasks: Iterable[Task | str]) -> list[str]:
    """Return the names of tasks; a text is one name."""
    listed = [tasks] if isinstance(tasks, str | Task) else list(tasks)
    return [task if isinstance(task, str) else task.name for task in listed]


def _late(what: str) -> TimeLimitError:
    return TimeLimitError(f"{what} did not answer in time", remedy="see `datatask doctor`")
