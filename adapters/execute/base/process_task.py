"""Tasks whose runs are processes: a script per job, rendered from a template, run on a machine.

In: a template, repositories for stdin, stdout and stderr, and the manager of the machine (`targets`, `local`, `ssh`), whose
runner is made when the session is open. Out: a `done` entry with the return code and times. The `pids` repository has an
entry while a process runs; the engine writes and removes it with the run's start and end.
"""

from __future__ import annotations

import datetime as dt
import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Unpack

from datatask.adapters.execute.base.machines import STDOUT, Enforce, Recipe, _StderrIsStdout
from datatask.adapters.execute.base.targets import AbstractProcessManager
from datatask.adapters.execute.base.templates import Lazy, Template
from datatask.engine.api.fingerprints import Fingerprint, of_texts
from datatask.engine.api.policies import (
    Duration,
    Policy,
    Requests,
    ResourceManager,
    listed_requests,
    nanoseconds,
)
from datatask.engine.api.repositories import BlobRepository, MetadataRepository, Repository
from datatask.engine.api.tasks import EngineTask
from datatask.engine.ports import Runner, Sink, hold_back
from datatask.schema.definition import DoneShape
from datatask.schema.errors import FUNCTION, PATH, InvalidValueError, NotPossibleError, expect
from datatask.schema.events import StopReason
from datatask.schema.messages import RunSpec
from datatask.schema.resources import Resources


class LateRunner:
    """The runner that `make` returns, from `open` on."""

    def __init__(self, make: Callable[[], Runner]) -> None:
        self._make = make

    async def open(self, sink: Sink) -> None:
        """Make the runner and open it."""
        self._runner = self._make()
        await self._runner.open(sink)

    def start(self, spec: RunSpec) -> None:
        """Have it start a run."""
        self._runner.start(spec)

    def stop(self, run: int, reason: StopReason, grace: int) -> None:
        """Have it stop a run."""
        self._runner.stop(run, reason, grace)

    def hold_back(self) -> Iterable[int]:
        """Have it begin nothing more."""
        return hold_back(self._runner)

    async def recover(self, specs: Iterable[RunSpec]) -> None:
        """Have it account for the runs of an earlier engine."""
        await self._runner.recover(specs)

    def forget(self, run: int) -> None:
        """Have it remove what there is of a run."""
        self._runner.forget(run)

    async def close(self, *, abandon: bool = False) -> None:
        """Have it let go."""
        await self._runner.close(abandon=abandon)


_WINDOW = dt.timedelta(seconds=60)


class ProcessTask(EngineTask):
    """A task that runs a script; the first line names its interpreter, else it is for the shell.

    Links `pids` (status, inhibits_start, inhibits_output), `stdin` (input), `stdout` and `stderr` (outputs)
    and `done` (status, inhibits_start, required_for_output), those that are given. The template sees the
    links' infos, `job` and `task`. `environ` replaces the environment; None is the engine's own. `window` is
    that of the quota's launches; it is a property of the `resource_manager`, and one given here sets it there.
    With `enforce=True` the kernel holds each run to its `job_resources` by control groups (cores, memory);
    `enforce="ulimit"` bounds the memory of each of its processes alone, which every machine can.
    """

    outlives = True
    pids_link = "pids"
    done_shape: DoneShape = "process"

    def __init__(
        self,
        name: str,
        manager: Callable[[], AbstractProcessManager] | AbstractProcessManager,
        resource_manager: ResourceManager | None,
        job_resources: Requests,
        pids: MetadataRepository,
        template: str | os.PathLike[str],
        window: Duration = _WINDOW,
        environ: dict[str, str] | None = None,
        done: MetadataRepository | None = None,
        stdin: BlobRepository | None = None,
        stdout: BlobRepository | None = None,
        stderr: BlobRepository | _StderrIsStdout | None = None,
        ready: Repository | None = None,
        *,
        timeout: Duration | None = None,
        enforce: Enforce = False,
        logs: str | int | bool | None = None,
        **policy: Unpack[Policy],
    ) -> None:
        super().__init__(name, ready, timeout=timeout, logs=logs, **policy)
        expect(self, ResourceManager, optional=True, resource_manager=resource_manager)
        requests = [
            Resources(
                one.cpu,
                one.mem,
                1,
                one.custom,
            )
            for one in listed_requests(job_resources, name)
        ]
        expect(self, PATH, "pass the script's text, or its path", template=template)
        if not isinstance(manager, AbstractProcessManager):
            expect(self, FUNCTION, "pass a process manager, or a function that returns one", manager=manager)
        expect(self, Repository, pids=pids)
        expect(self, Repository, optional=True, done=done, stdin=stdin, stdout=stdout)
        if not isinstance(stderr, _StderrIsStdout):
            expect(self, Repository, "pass a repository, STDOUT or None", optional=True, stderr=stderr)
        _check_environment(name, environ)
        self.template = template
        self.resource_manager = resource_manager
        self.job_resources, self.later_resources = requests[0], tuple(requests[1:])
        self.environ = environ
        self.pids, self.done, self.stdin, self.stdout = pids, done, stdin, stdout
        self.enforce = enforce
        for request in requests:
            _checked(enforce, request, name)
        self.window = nanoseconds(window, "window")
        if resource_manager is not None and window != _WINDOW:
            resource_manager.window = self.window
        self.done_link = None if done is None else "done"
        self._manager = manager
        self._stderr = stderr
        self._template = Template(template, where=name)
        self._link_all()

    def _link_all(self) -> None:
        self.link("pids", self.pids, is_status=True, inhibits_start=True, inhibits_output=True)
        if self.stdin is not None:
            self.link("stdin", self.stdin, is_input=True)
        if self.stdout is not None:
            self.link("stdout", self.stdout, is_output=True)
        if self._stderr is not None and not isinstance(self._stderr, _StderrIsStdout):
            self.link("stderr", self._stderr, is_output=True)
        if self.done is not None:
            self.link("done", self.done, is_status=True, inhibits_start=True, required_for_output=True)

    @property
    def manager(self) -> AbstractProcessManager:
        """The process manager; `CallerError` when it comes from a session that is closed."""
        manager = self._manager
        return manager if isinstance(manager, AbstractProcessManager) else manager()

    @property
    def stderr(self) -> BlobRepository | None:
        """The repository that stderr goes to (stdout's with `STDOUT`), or None when it is thrown away."""
        return self.stdout if isinstance(self._stderr, _StderrIsStdout) else self._stderr

    @property
    def basedir(self) -> Path:
        """The folder on the machine for this task's own files."""
        return self.manager.basedir / self.name

    @property
    def names_job(self) -> bool:  # type: ignore[override]
        """Whether the template uses the name of the job."""
        return self._template.names("job")

    def fingerprint(self) -> Fingerprint:
        """Return what the template and the environment are."""
        found = self._template.fingerprint(self.given)
        environ = (
            of_texts({"environment": repr(sorted((self.environ or {}).items()))}) if self.environ else {}
        )
        return found._replace(components=found.components | environ)

    async def validate(self) -> None:
        """Check the template and the repositories of the streams."""
        await super().validate()
        self._template.compile()
        if self._stderr is STDOUT and self.stdout is None:
            raise InvalidValueError(
                "stderr=STDOUT without a stdout repository", where=self.name, remedy="pass stdout="
            )
        for stream in ("stdin", "stdout", "stderr"):
            if stream in self.links and not self.links[stream].repo.is_blob():
                raise NotPossibleError(f"the {stream} repository does not hold bytes", where=self.name)

    async def render(self, job: str, request: Resources | None = None) -> str:
        """Return the script for a job, or for an attempt at it that takes `request`; infos of links are fetched as the template uses them."""
        scope: dict[str, object] = {name: parameter.value for name, parameter in self.given.items()}
        scope |= {"job": job, "task": self.name, "request": request or self.job_resources}
        for name, link in self.links.items():
            scope[name] = Lazy(functools.partial(link.repo.info, job))
        return await self._template.render(scope, job=job)

    def _make_runner(self) -> Runner:
        return LateRunner(lambda: self.manager.runner(self.recipe()))

    def recipe(self) -> Recipe:
        """Return what the manager's runner needs to know."""

        async def rendered(spec: RunSpec) -> str:
            return await (
                self.render(spec.job, recipe.takes(spec)) if recipe.later else self.render(spec.job)
            )

        streams = self.stdin, self.stdout, self._stderr
        limits = self.job_resources, self.enforce, self.later_resources
        recipe = Recipe(self.name, rendered, *streams, self.environ, *limits)
        return recipe


def _check_environment(task: str, environ: object) -> None:
    """Refuse an environment that no process can have; values are never shown, they may be secret."""
    if environ is None:
        return
    if not isinstance(environ, dict):
        raise InvalidValueError(
            f"environ is a {type(environ).__name__}", where=task, remedy="pass a dict of strings"
        )
    for key, value in environ.items():
        valid = isinstance(key, str) and key and "=" not in key and isinstance(value, str)
        if not valid or "\0" in key or "\0" in value:
            raise InvalidValueError(
                f"variable {key!r:.80} of environ is not a string to a string",
                where=task,
                remedy="use str(value)",
            )


def _checked(enforce: Enforce, amounts: Resources, where: str) -> None:
    if enforce not in (False, True, "ulimit"):
        raise InvalidValueError(
            f"enforce is {enforce!r:.80}", where=where, remedy="pass True (control groups), 'ulimit' or False"
        )
    if enforce and not (amounts.mem or (amounts.cpu and enforce is True)):
        raise InvalidValueError(
            f"enforce={enforce!r} has nothing to hold runs to",
            where=where,
            remedy="give job_resources memory" + (", or cores" if enforce is True else ""),
        )
