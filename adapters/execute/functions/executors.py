"""Tasks whose runs are calls in a `concurrent.futures` executor: threads, processes, or something else.

In: a plain or async function and the executor, or what makes one. Out: the task; its runs are those of
`executor_runs`, and on a Dask cluster, where they outlive the engine, of `dask.runner`. docs/executors.md says what executors of others can do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, cast

from datatask.adapters.execute.functions.dask.places import check_dask, is_dask
from datatask.adapters.execute.functions.executor_runs import ExecutorRunner
from datatask.adapters.execute.functions.in_process import FunctionTask
from datatask.adapters.execute.functions.making import Made
from datatask.adapters.execute.functions.pools import Pool
from datatask.engine.api.policies import Duration, Requests, ResourceManager, Retry
from datatask.engine.api.repositories import MetadataRepository, Repository
from datatask.engine.ports import Runner
from datatask.schema.definition import Conflicts, OnChange
from datatask.schema.errors import InvalidValueError, expect
from datatask.schema.resources import Resources

CONCURRENCY, DASK_CONCURRENCY = 32, 1000

if TYPE_CHECKING:
    from distributed import Client


class ExecutorTask(FunctionTask):
    """A task that runs a function in an executor.

    Links `live` (status, inhibits_start, inhibits_output; deleting from it cancels) and `done` (status,
    inhibits_start, required_for_output). `concurrency` is twice the executor's workers by default, 32 where
    they are not known, 1,000 on Dask. An executor made by the given function is shut down with the pipeline.
    `dask://HOST:PORT` or a `distributed.Client` names a Dask cluster, on which runs outlive the engine; `resources`
    as a mapping are what a run takes there of its worker's, such as `{"GPU": 1}`; as `Resources`, what it takes of
    its quota, the `resource_manager`.
    """

    def __init__(
        self,
        name: str,
        executor: Made | str | Client,
        done: MetadataRepository,
        ready: Repository | None = None,
        func: Callable[..., Any] | None = None,
        *,
        disabled: bool = False,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        grace: Duration = 10.0,
        concurrency: int | None = None,
        repeat: bool = False,
        was: str | None = None,
        conflicts: Conflicts = "rerun",
        on_change: OnChange = "mark",
        cache: bool | None = None,
        resources: Requests | Mapping[str, float] | None = None,
        resource_manager: ResourceManager | None = None,
        logs: str | int | bool | None = None,
    ) -> None:
        self.outlives = is_dask(executor)
        counted: Requests | None = None
        workers: Mapping[str, float] | None = None
        listed = resources if isinstance(resources, list | tuple) else [resources]
        if any(isinstance(one, Resources) for one in listed):
            counted = cast("Requests", resources)
        else:
            workers = cast("Mapping[str, float] | None", resources)
        if self.outlives:
            check_dask(name, executor, workers)
            concurrency = DASK_CONCURRENCY if concurrency is None else concurrency
        elif workers is not None:
            raise InvalidValueError(
                f"resources={workers!r} of task {name}: only Dask's workers have such",
                remedy="pass Resources.parse('1', '1Gi') and a resource_manager, or name a Dask cluster as executor",
            )
        else:
            pool = Pool.of(cast("Made", executor))
            if concurrency is None:
                known = pool.slots if isinstance(executor, Executor) else None
                concurrency = CONCURRENCY if known is None else 2 * known
        super().__init__(
            name,
            ready,
            func,
            resource_manager,
            counted,
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
        self.executor: Any = executor
        self.resources = workers
        self.done = done
        self.link("live", self.live, is_status=True, inhibits_start=True, inhibits_output=True)
        self.link("done", done, is_status=True, inhibits_start=True, required_for_output=True)

    def _make_runner(self) -> Runner:
        if self.outlives:
            from datatask.adapters.execute.functions.dask.runner import DaskRunner

            return DaskRunner(self, self.executor, self.resources)
        return ExecutorRunner(self, self.executor)
