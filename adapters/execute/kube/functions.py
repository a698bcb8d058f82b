"""Tasks whose runs are calls of a Python function in a pod, by the same script that defines the pipeline.

In: a function (as a decorator or `func=`) and a template whose container runs `SCRIPT launch TASK JOB --sync --force`. Out:
the function's own end and what it wrote, which the pod says at the end of its log (`worker`). `done` tells of the pod,
`func_done` of the function; with only one of them given, that one holds the job back.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, Self

from datatask.adapters.execute.functions.detached import ending_of, writes_of
from datatask.adapters.execute.functions.in_process import Function, parameters_of
from datatask.adapters.execute.kube import worker
from datatask.adapters.execute.kube.manager import PodManager
from datatask.adapters.execute.kube.manifests import Recipe, Result
from datatask.adapters.execute.kube.tasks import KubeTask
from datatask.engine.api.fingerprints import Fingerprint, of_function
from datatask.engine.api.policies import ResourceManager
from datatask.engine.api.repositories import BlobRepository, MetadataRepository, Repository
from datatask.engine.core.run_ends import done_value
from datatask.schema.errors import InvalidValueError
from datatask.schema.events import Ending
from datatask.schema.messages import RunSpec, Write


class KubeFunctionTask(KubeTask):
    """A task that runs a Python function in a pod.

    Its parameters are `job` and names of links. `kube_done` is linked as `done`, `func_done` as `func_done`, `logs` as
    `logs` (each status, inhibits_start, required_for_output). Other parameters are those of `KubeTask`.
    """

    def __init__(
        self,
        name: str,
        podman: Callable[[], PodManager] | PodManager,
        resources: ResourceManager | None,
        template: str | os.PathLike[str],
        logs: BlobRepository | str | int | bool | None = None,
        kube_done: MetadataRepository | None = None,
        func_done: MetadataRepository | None = None,
        env: dict[str, Any] | None = None,
        func: Function | None = None,
        *,
        ready: Repository | None = None,
        **policy: Any,
    ) -> None:
        super().__init__(name, podman, resources, template, logs, kube_done, env=env, ready=ready, **policy)
        self.func = func
        self.func_done = func_done
        if func_done is not None:
            self.link("func_done", func_done, is_status=True, inhibits_start=True, required_for_output=True)
            if kube_done is None:
                self.done_link, self.done_shape = "func_done", "function"

    def __call__(self, func: Function) -> Self:
        """Take the decorated function as the task's body."""
        if not callable(func):
            raise InvalidValueError(f"{func!r:.80} is no function", where=self.name)
        self.func = func
        return self

    def parameters(self) -> tuple[bool, tuple[str, ...]]:
        """Return whether the function takes `job`, and the names of the links that it takes."""
        return parameters_of(self.name, self.func, self.links, self.given)

    def fingerprint(self) -> Fingerprint:
        """Return what the template and the function are."""
        pod = super().fingerprint()
        if self.func is None:
            return pod
        own = of_function(self.func, self.given)
        return Fingerprint(pod.components | own.components, own.unfollowed)

    async def validate(self) -> None:
        """Check the function's parameters against the links, and the template."""
        await super().validate()
        self.parameters()

    def recipe(self) -> Recipe:
        """Return what the runner needs to know."""
        plain = super().recipe()

        async def env(spec: RunSpec) -> Mapping[str, str]:
            _, names = self.parameters()
            given = {name: self.links[name].repo for name in names}
            where = f"{self.name}[{spec.job}]"
            return {
                "DATATASK_INPUTS": await worker.inputs_of(given, spec.job, where),
                "PYTHONUNBUFFERED": "1",
                **{one.variable: one.text for one in self.given.values() if one.value is not None},
            }

        return dataclasses.replace(plain, env=env, result=self._result, finished=self._finished)

    def _result(self, spec: RunSpec, log_end: bytes) -> tuple[Result, int] | None:
        found = worker.find_result(log_end, spec.identity)
        if found is None:
            return None
        message, length = found
        return Result(ending_of(message), writes_of(message)), length

    def _finished(self, spec: RunSpec, ending: Ending) -> tuple[Write, ...]:
        """Return the entry of `func_done`, where `done` is the pod's; otherwise the engine writes it."""
        if self.func_done is None or self.done_link == "func_done" or not spec.meta:
            return ()
        if ending.outcome == "cancelled":
            return ()
        return (Write(repository=self.func_done.id, job=spec.job, value=done_value("function", ending)),)
