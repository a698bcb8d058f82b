"""Tasks whose runs are calls in a `concurrent.futures` executor: threads, processes, or something else.

In: a plain or async function and the executor, or what makes one. Out: the task; its runs are those of
`executor_runs`. docs/executors.md says what executors of others can do.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from datatask.adapters.execute.functions.executor_runs import ExecutorRunner
from datatask.adapters.execute.functions.in_process import FunctionTask
from datatask.adapters.execute.functions.pools import Made, Pool
from datatask.engine.api.policies import Retry
from datatask.engine.api.repositories import MetadataRepository, Repository
from datatask.engine.ports import Runner
from datatask.schema.definition import Conflicts
from datatask.schema.errors import expect

CONCURRENCY = 32


class ExecutorTask(FunctionTask):
    """A task that runs a function in an executor.

    Links `live` (status, inhibits_start, inhibits_output; deleting from it cancels) and `done` (status,
    inhibits_start, required_for_output). `concurrency` is twice the executor's workers by default, 32 where
    they are not known. An executor made by the given function is shut down with the pipeline.
    """

    def __init__(
        self,
        name: str,
        executor: Made,
        done: MetadataRepository,
        ready: Repository | None = None,
        func: Callable[..., Any] | None = None,
        *,
        disabled: bool = False,
        retry: Retry | None = None,
        timeout: float | dt.timedelta | None = None,
        grace: float | dt.timedelta = 10.0,
        concurrency: int | None = None,
        repeat: bool = False,
        was: str | None = None,
        conflicts: Conflicts = "rerun",
    ) -> None:
        pool = Pool.of(executor)
        if concurrency is None:
            known = pool.slots if isinstance(executor, Executor) else None
            concurrency = CONCURRENCY if known is None else 2 * known
        super().__init__(
            name,
            ready,
            func,
            disabled=disabled,
            retry=retry,
            timeout=timeout,
            grace=grace,
            concurrency=concurrency,
            repeat=repeat,
            was=was,
            conflicts=conflicts,
        )
        expect(self, Repository, done=done)
        self.executor = executor
        self.done = done
        self.link("live", self.live, is_status=True, inhibits_start=True, inhibits_output=True)
        self.link("done", done, is_status=True, inhibits_start=True, required_for_output=True)

    def _make_runner(self) -> Runner:
        return ExecutorRunner(self, self.executor)
