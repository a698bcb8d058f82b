"""A task as the user writes it: links to repositories, a start condition, and how a run is made.

In: constructor parameters, `link` and `plug`. Out: what `declare` turns into the definition, and a `Runner`
that makes runs happen. A task of ours is run by the engine (`EngineTask`): its `launch`, `update` and `cancel`
ask the open pipeline. A subclass with its own `launch` and `update` is opaque: the call of `launch` is its run.
Readiness is `AND(required_for_start) and not OR(inhibits_start)`, unless `ready` overrides it.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from datatask.engine.api.fingerprints import Fingerprint, of_function
from datatask.engine.api.links import Link, ViewRepository
from datatask.engine.api.parameters import Parameter
from datatask.engine.api.policies import Duration, ResourceManager, Retry, kept_bytes, nanoseconds
from datatask.engine.api.repositories import (
    AggregateAndRepository,
    AggregateOrRepository,
    BlockingRepository,
    RelatedItemRepository,
    Repository,
)
from datatask.engine.ports import Runner
from datatask.engine.run_context import current_run
from datatask.engine.runtime.calls import CallRunner
from datatask.schema.definition import (
    VIEW_NAMES,
    Conflicts,
    DoneShape,
    OnChange,
)
from datatask.schema.errors import (
    FLAG,
    TEXT,
    InvalidValueError,
    NotOpenError,
    NotPossibleError,
    expect,
)
from datatask.schema.messages import RunSpec
from datatask.schema.resources import Resources
from datatask.schema.values import check_job, check_name

logger = logging.getLogger("datatask.task")


class MissingFunctionError(InvalidValueError, ValueError):
    """A function task has no function: decorate one with the task, or pass `func=`."""


class LinkNameError(InvalidValueError, NameError):
    """A function's parameter is neither `job` nor the name of a link."""


class TaskEngine(Protocol):
    """What a task asks of the pipeline that is open."""

    async def launch(self, task_name: str, job: str) -> object:
        """Launch the job now, as asked for directly; `RunOpenError` when it has an open run."""

    async def cancel(self, task_name: str, job: str) -> object:
        """Stop the job's open run, or drop it from waiting."""


class Task(ABC):
    """The base of all tasks: name, links, policy. Subclasses say what `launch` and `update` do.

    `outlives` says whether its runs go on without the engine.

    `timeout` and `grace` are seconds, timedeltas or texts such as "5m"; `concurrency` limits the open runs of the task;
    `repeat` launches a job again as soon as it is ready again; `was` is the task's former name. With
    `conflicts="rerun"` a run that has read a key, writes it, and finds that another has written it meanwhile is run
    again, whatever `retry` says; with "allow" it overwrites what it has not seen. `on_change` says what becomes of results
    that are out of date: "mark" tells, "rerun" computes them again, "keep" does neither. With
    `cache` a run takes over the outputs of one that had equal inputs and the same code. `logs` is how much is kept of what
    a run prints, such as "1MiB" of each stream; False keeps nothing.
    """

    done_link: str | None = None
    pids_link: str | None = None
    done_shape: DoneShape = "none"
    outlives: bool = False
    has_identities: bool = True
    """Whether its runs can be given identities of resources."""
    synchronous: bool = False
    conflicts: Conflicts = "rerun"
    on_change: OnChange = "mark"
    cache: bool | None = None
    """Whether its runs take over the outputs of equal ones; None: as the pipeline says."""
    logs_bytes: int | None = None
    """How much is kept of each stream of a run; None: as the pipeline says."""
    names_job: bool = False
    """Whether what it executes names the job, so that no two jobs have equal results."""
    metadata: bool = True
    resource_manager: ResourceManager | None = None
    job_resources: Resources | None = None
    """What the first attempt at a job takes."""
    later_resources: tuple[Resources, ...] = ()
    """What the second attempt takes, and so on; the last repeats."""
    program: str = ""
    """The file name of the script that defines the task, where another program runs it, such as `datatask -p FILE`."""
    given: Mapping[str, Parameter] = MappingProxyType({})
    """The parameters of the task's pipeline, by name."""

    def __init__(
        self,
        name: str,
        ready: Repository | None = None,
        disabled: bool = False,
        *,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        grace: Duration = 10.0,
        concurrency: int | None = None,
        repeat: bool = False,
        was: str | None = None,
        conflicts: Conflicts = "rerun",
        on_change: OnChange = "mark",
        cache: bool | None = None,
        logs: str | int | bool | None = None,
    ) -> None:
        expect(self, TEXT, name=name)
        expect(self, TEXT, optional=True, was=was)
        expect(self, Repository, optional=True, ready=ready)
        expect(self, FLAG, disabled=disabled, repeat=repeat)
        expect(self, FLAG, optional=True, cache=cache)
        expect(self, Retry, "pass Retry(attempts=3)", optional=True, retry=retry)
        self.name = check_name(name, "task")
        self.links: dict[str, Link] = {}
        self.disabled = disabled
        self.retry = retry
        self.timeout = timeout
        self.grace = grace
        self.concurrency = concurrency
        self.repeat = repeat
        self.was = was
        self.conflicts = conflicts
        self.on_change = on_change
        self.cache = cache
        self.logs_bytes = None if logs is None else kept_bytes(logs, f"task {name}")
        self._ready = ready
        self._engine: TaskEngine | None = None
        self._runner: Runner | None = None
        self._runner_is_own = False
        self._views = {view: ViewRepository(self, view) for view in VIEW_NAMES}
        for duration, what in ((timeout, "timeout"), (grace, "grace")):
            if duration is not None:
                nanoseconds(duration, f"{what} of task {name}")
        if conflicts not in ("rerun", "allow"):
            raise InvalidValueError(
                f"conflicts={conflicts!r} of task {name} is no choice", remedy="use 'rerun' or 'allow'"
            )
        if on_change not in ("keep", "mark", "rerun"):
            raise InvalidValueError(
                f"on_change={on_change!r} of task {name} is no choice", remedy="use 'keep', 'mark' or 'rerun'"
            )
        if concurrency is not None and (not isinstance(concurrency, int) or concurrency < 1):
            raise InvalidValueError(
                f"concurrency={concurrency!r} of task {name}", remedy="use 1 or more, or None"
            )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    # --- links ------------------------------------------------------------------------------------

    def link(
        self,
        name: str,
        repo: Repository,
        is_input: bool = False,
        is_output: bool = False,
        is_status: bool = False,
        inhibits_start: bool = False,
        required_for_start: bool | None = None,
        inhibits_output: bool = False,
        required_for_output: bool | None = None,
    ) -> None:
        """Link a repository under a name of its own in this task.

        `required_for_start` defaults to `is_input`, `required_for_output` to `is_output`.
        """
        check_name(name, "link")
        if not isinstance(repo, Repository):
            raise InvalidValueError(
                f"link {name} is a {type(repo).__name__}", where=self.name, remedy="link a Repository"
            )
        if name in self.links:
            raise InvalidValueError(
                f"task {self.name} has a link {name} already ({self.links[name].repo!r})",
                remedy="give each link a name of its own; plug(output_links=[...]) leaves some out",
            )
        self.links[name] = Link(
            repo,
            is_input=is_input,
            is_output=is_output,
            is_status=is_status,
            inhibits_start=inhibits_start,
            required_for_start=is_input if required_for_start is None else required_for_start,
            inhibits_output=inhibits_output,
            required_for_output=is_output if required_for_output is None else required_for_output,
        )

    def plug(
        self,
        output: Task,
        output_links: Iterable[str] | None = None,
        meta: bool = True,
        translator: Repository | None = None,
        translate_allow_deletes: bool = False,
        translate_prefetch_lookup: bool = True,
        *,
        require_success: bool = False,
    ) -> None:
        """Link the outputs of `output` as inputs here, under their names.

        With `meta` what inhibits or is required for its output inhibits or is required for the start here, as
        `{output.name}_{link}`. `output_links` lists the outputs to take. With a `translator`, job k here
        stands for the job `await translator.info(k)` there. `require_success` requires that the other task
        succeeded, where otherwise its `done` entry is enough.
        """
        allowed = None if output_links is None else set(output_links)
        if allowed is not None and (unknown := allowed - output.links.keys()):
            raise InvalidValueError(
                f"task {output.name} has no link {', '.join(sorted(unknown))}", where=self.name
            )

        def translated(repo: Repository) -> Repository:
            if translator is None:
                return repo
            return RelatedItemRepository(repo, translator, translate_allow_deletes, translate_prefetch_lookup)

        for name, link in output.links.items():
            inhibits = meta and link.inhibits_output
            required = link.required_for_output if meta else None
            if link.is_output and (allowed is None or name in allowed):
                self.link(
                    name,
                    translated(link.repo),
                    is_input=True,
                    inhibits_start=inhibits,
                    required_for_start=required,
                )
                continue
            required = bool(required) and not link.is_output
            required = required and not (require_success and name == output.done_link)
            if inhibits or required:
                own = f"{output.name}_{name}"
                self.link(own, translated(link.repo), inhibits_start=inhibits, required_for_start=required)
        if require_success:
            self.link(f"{output.name}_succeeded", translated(output.succeeded), required_for_start=True)

    def _linked(self, disposition: str) -> dict[str, Repository]:
        return {name: link.repo for name, link in self.links.items() if getattr(link, disposition)}

    @property
    def input(self) -> dict[str, Repository]:
        """The links that are inputs: name to repository."""
        return self._linked("is_input")

    @property
    def output(self) -> dict[str, Repository]:
        """The links that are outputs: name to repository."""
        return self._linked("is_output")

    @property
    def status(self) -> dict[str, Repository]:
        """The links that hold the task's own bookkeeping: name to repository."""
        return self._linked("is_status")

    @property
    def inhibits_start(self) -> dict[str, Repository]:
        """The links whose members are not launched: name to repository."""
        return self._linked("inhibits_start")

    @property
    def required_for_start(self) -> dict[str, Repository]:
        """The links that a job must be in to be launched: name to repository."""
        return self._linked("required_for_start")

    @property
    def inhibits_output(self) -> dict[str, Repository]:
        """The links whose members are not launched in tasks that this one is plugged into."""
        return self._linked("inhibits_output")

    @property
    def required_for_output(self) -> dict[str, Repository]:
        """The links that a job must be in for tasks that this one is plugged into."""
        return self._linked("required_for_output")

    @property
    def ready(self) -> Repository:
        """The repository whose members are to be launched: the override, else what the links say."""
        if self._ready is not None:
            return self._ready
        required, inhibits = self.required_for_start, self.inhibits_start
        if not required:
            raise InvalidValueError(
                f"no link says which jobs task {self.name} is for",
                remedy="link an input (is_input=True or required_for_start=True), or pass ready=",
            )
        source = AggregateAndRepository(**required)
        return BlockingRepository(source, AggregateOrRepository(**inhibits)) if inhibits else source

    @property
    def succeeded(self) -> ViewRepository:
        """The jobs whose last run succeeded."""
        return self._views["succeeded"]

    @property
    def failed(self) -> ViewRepository:
        """The jobs whose last run ended in any other way."""
        return self._views["failed"]

    @property
    def live(self) -> ViewRepository:
        """The jobs with an open run; deleting one stops it."""
        return self._views["live"]

    # --- running ----------------------------------------------------------------------------------

    kind: str = "Task"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.kind = cls.__name__

    @property
    def opaque(self) -> bool:
        """Whether the engine knows nothing of its runs but the call of `launch`."""
        return True

    def fingerprint(self) -> Fingerprint:
        """Return what the runs of this task execute: results of another fingerprint are out of date."""
        return of_function(type(self).launch, self.given)

    @property
    def runner(self) -> Runner:
        """What makes this task's runs happen: one object until the pipeline is closed, or what was set."""
        if self._runner is None:
            self._runner, self._runner_is_own = self._make_runner(), True
        return self._runner

    @runner.setter
    def runner(self, runner: Runner) -> None:
        self._runner, self._runner_is_own = runner, False

    def _make_runner(self) -> Runner:
        async def launched(spec: RunSpec) -> None:
            await self.launch(spec.job)

        return CallRunner(self.name, launched, outcome="handed_over", contained=False)

    def bind(self, engine: TaskEngine) -> None:
        """Connect with the pipeline that opens."""
        self._engine = engine

    def unbind(self) -> None:
        """Let go of the pipeline that closes; the next one has a runner made anew."""
        self._engine = None
        if self._runner_is_own:
            self._runner = None

    async def validate(self) -> None:
        """Raise when the task is misconfigured; called once, when the pipeline opens."""
        self.ready  # noqa: B018 - raises when nothing says which jobs are ready

    @abstractmethod
    async def update(self) -> bool:
        """Look after what runs; True when anything is live or something happened."""

    @abstractmethod
    async def launch(self, job: str) -> None:
        """Begin to execute the job."""


class EngineTask(Task):
    """A task whose runs the engine makes, watches and stops through its runner."""

    _own: ClassVar[tuple[str, str]] = ("launch", "update")

    @property
    def opaque(self) -> bool:
        """Only a subclass that brings its own `launch` or `update` is."""
        return any(getattr(type(self), verb) is not getattr(EngineTask, verb) for verb in self._own)

    @property
    def runner(self) -> Runner:
        """The runner of the task's kind, or, for an overridden `launch`, that of opaque tasks."""
        if self._runner is None:
            made = Task._make_runner(self) if self.opaque else self._make_runner()
            self._runner, self._runner_is_own = made, True
        return self._runner

    @runner.setter
    def runner(self, runner: Runner) -> None:
        self._runner, self._runner_is_own = runner, False

    @abstractmethod
    def _make_runner(self) -> Runner:
        """Return the runner of this kind of task."""

    def _open_engine(self) -> TaskEngine:
        if self._engine is None:
            raise NotOpenError(
                f"task {self.name} is not in an open pipeline", remedy="use `async with pipeline:`"
            )
        return self._engine

    async def update(self) -> bool:
        """Whether any run is open; the engine does the rest by itself."""
        self._open_engine()
        return bool([job async for job in self.live])

    async def launch(self, job: str) -> None:
        """Decide, durably, to run this job now; `RunOpenError` when it has an open run."""
        run = current_run.get()
        if self.opaque and run is not None and (run.task, run.job) == (self.name, job):
            raise NotPossibleError(
                f"the launch of {self.name} calls that of {EngineTask.__name__} for its own run",
                where=job,
                remedy="do the whole work in the overridden launch, or do not override it",
            )
        await self._open_engine().launch(self.name, check_job(job, where=self.name))

    async def cancel(self, job: str) -> None:
        """Stop the job's run, or do nothing when it has none."""
        await self._open_engine().cancel(self.name, check_job(job, where=self.name))
