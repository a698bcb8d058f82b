"""Tasks whose runs are calls of an async Python function on the engine's own event loop.

In: the function (as a decorator or `func=`) and the task's links. Each parameter is `job`, the name of a
link, or a `Parameter` of the pipeline, and gets the job id, the link's repository, or the value. What the function writes is held in its run's overlay and
becomes visible with the run's end. `ExecutorTask` in `executors` is the same for threads and processes.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, Self

from datatask.engine.api.fingerprints import Fingerprint, of_function
from datatask.engine.api.parameters import Parameter
from datatask.engine.api.policies import Duration, Requests, ResourceManager, Retry, listed_requests
from datatask.engine.api.repositories import MetadataRepository, Repository
from datatask.engine.api.tasks import EngineTask, LinkNameError, MissingFunctionError
from datatask.engine.ports import Runner
from datatask.engine.runtime.calls import CallRunner
from datatask.schema.definition import CONCURRENCY_IN_PROCESS, Conflicts, DoneShape, OnChange
from datatask.schema.errors import FUNCTION, InvalidValueError, expect
from datatask.schema.messages import RunSpec

Function = Callable[..., Any]


def is_async(func: Function) -> bool:
    """Whether calling `func` gives something to await, as far as can be told without calling it."""
    plain = inspect.unwrap(func)
    return inspect.iscoroutinefunction(plain) or inspect.iscoroutinefunction(getattr(plain, "__call__", None))  # noqa: B004


def with_values(func: Function, given: Mapping[str, Parameter]) -> Function:
    """Return the function with the values of the pipeline's parameters that it names."""
    values = {name: given[name].value for name in inspect.signature(func).parameters if name in given}
    return partial(func, **values) if values else func


def parameters_of(
    task: str, func: Function | None, links: Iterable[str], given: Collection[str] = ()
) -> tuple[bool, tuple[str, ...]]:
    """Return whether a task's function takes `job`, and the names of the links that it takes; `given` are other names.

    `MissingFunctionError` (a ValueError) without a function, `LinkNameError` (a NameError) for any other parameter.
    """
    if func is None:
        raise MissingFunctionError(
            f"task {task} has no function", remedy="decorate a function with the task, or pass func="
        )
    wants_job, wanted = False, []
    for parameter in inspect.signature(func).parameters.values():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and parameter.name == "job":
            wants_job = True
        elif named and parameter.name in links:
            wanted.append(parameter.name)
        elif named and parameter.name in given:
            continue
        else:
            raise LinkNameError(
                f"parameter {parameter.name} of the function of task {task} is not a link",
                remedy=f"name parameters 'job' or one of: {', '.join([*links, *given]) or '(no links)'}",
            )
    return wants_job, tuple(wanted)


class FunctionTask(EngineTask):
    """What tasks made of a Python function share: the function, its parameters, and `done`."""

    done_link = "done"
    done_shape: DoneShape = "function"

    def __init__(
        self,
        name: str,
        ready: Repository | None,
        func: Function | None,
        resource_manager: ResourceManager | None,
        resources: Requests | None,
        **policy: Any,
    ) -> None:
        super().__init__(name, ready, **policy)
        expect(self, FUNCTION, optional=True, func=func)
        expect(self, ResourceManager, optional=True, resource_manager=resource_manager)
        requests = None if resources is None else listed_requests(resources, name, "resources")
        if resources is not None and resource_manager is None:
            raise InvalidValueError(
                f"resources={resources} of task {name} are counted by no quota",
                remedy="pass resource_manager=ResourceManager(Resources.parse('4', '8Gi')) too",
            )
        self.func = func
        self.resource_manager = resource_manager
        if requests is not None:
            self.job_resources, self.later_resources = requests[0], requests[1:]

    def __call__(self, func: Function) -> Self:
        """Take the decorated function as the task's body."""
        if not callable(func):
            raise InvalidValueError(f"{func!r:.80} is no function", where=self.name)
        self.func = func
        return self

    def parameters(self) -> tuple[bool, tuple[str, ...]]:
        """Return whether the function takes `job`, and the names of the links that it takes.

        `MissingFunctionError` (a ValueError) without a function, `LinkNameError` (a NameError) for any other
        parameter.
        """
        return parameters_of(self.name, self.func, self.links, self.given)

    def fingerprint(self) -> Fingerprint:
        """Return what the function is, with all of the project that it uses."""
        if self.opaque or self.func is None:
            return super().fingerprint()
        return of_function(self.func, self.given)

    @property
    def called(self) -> Function:
        """The function, with the parameters of the pipeline that it names; there is one, `parameters` has seen it."""
        assert self.func is not None, "parameters() raises where there is none"
        return with_values(self.func, self.given)

    async def validate(self) -> None:
        """Check the function's parameters against the links."""
        await super().validate()
        self.parameters()


class InProcessSyncTask(FunctionTask):
    """A task that runs an async function on the event loop; 15 at a time unless `concurrency` says otherwise.

    Links `done` (status, inhibits_start, required_for_output): one entry per job with result, times, success.
    A run takes `resources` of its quota, the `resource_manager`; of a list the second attempt takes the second, the last repeats.
    """

    synchronous = True

    def __init__(
        self,
        name: str,
        done: MetadataRepository,
        ready: Repository | None = None,
        func: Callable[..., Awaitable[Any]] | None = None,
        *,
        disabled: bool = False,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        grace: Duration = 10.0,
        concurrency: int | None = CONCURRENCY_IN_PROCESS,
        repeat: bool = False,
        was: str | None = None,
        conflicts: Conflicts = "rerun",
        on_change: OnChange = "mark",
        cache: bool | None = None,
        resource_manager: ResourceManager | None = None,
        resources: Requests | None = None,
        logs: str | int | bool | None = None,
    ) -> None:
        super().__init__(
            name,
            ready,
            func,
            resource_manager,
            resources,
            disabled=disabled,
            retry=retry,
            timeout=timeout,
            grace=grace,
            concurrency=concurrency,
            repeat=repeat,
            was=was,
            conflicts=conflicts,
            on_change=on_change,
            cache=cache,
            logs=logs,
        )
        expect(self, Repository, done=done)
        self.done = done
        self.link("done", done, is_status=True, inhibits_start=True, required_for_output=True)

    async def validate(self) -> None:
        """Check that there is an async function whose parameters are `job` and links."""
        await super().validate()
        if self.func is not None and not is_async(self.func):
            raise InvalidValueError(
                f"the function of task {self.name} is not async and would block the event loop",
                remedy="write `async def`, or use an ExecutorTask, which takes plain functions too",
            )

    def _make_runner(self) -> Runner:
        arguments: dict[str, Any] | None = None
        wants_job = False
        func: Function

        async def called(spec: RunSpec) -> None:
            nonlocal arguments, wants_job, func
            if arguments is None:
                wants_job, names = self.parameters()
                arguments, func = {name: self.links[name].repo for name in names}, self.called
            result = func(job=spec.job, **arguments) if wants_job else func(**arguments)
            if not inspect.isawaitable(result):
                raise InvalidValueError(
                    f"the function returned a {type(result).__name__}, nothing to await", where=self.name
                )
            await result

        return CallRunner(self.name, called, where="in-process")
