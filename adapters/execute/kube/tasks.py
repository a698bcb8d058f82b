"""Tasks whose runs are pods: a manifest per job, rendered from a template.

In: a template of a Pod manifest, the manager of the cluster, repositories for logs and `done`. Out: a `done` entry with
reason, times, image and node, and the logs of all containers. What a pod takes, for the quota, is read from the
template's requests; where these depend on the job the task says the most (`job_resources`), and a pod that asks for more
than that is refused.
"""

from __future__ import annotations

import datetime as dt
import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Unpack, get_args

from datatask.adapters.execute.base.process_task import LateRunner
from datatask.adapters.execute.base.templates import Lazy, Template
from datatask.adapters.execute.kube import pods as names
from datatask.adapters.execute.kube.amounts import most, resources_of, taken
from datatask.adapters.execute.kube.connection import RefusedError
from datatask.adapters.execute.kube.manager import PodManager
from datatask.adapters.execute.kube.manifests import Manifest, Recipe, StoppedPods, parse_manifest
from datatask.adapters.execute.kube.pods import as_pod
from datatask.adapters.execute.kube.preview import MARK, Unknown, requests_of, sketch
from datatask.adapters.execute.kube.runner import KubeRunner
from datatask.engine.api.fingerprints import Fingerprint, of_texts
from datatask.engine.api.links import ViewRepository
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
from datatask.engine.ports import Runner, Sink
from datatask.schema.definition import DoneShape
from datatask.schema.errors import CallerError, InvalidValueError, NotPossibleError
from datatask.schema.messages import RunSpec
from datatask.schema.resources import Resources

logger = logging.getLogger("datatask.pod_manager")

_WINDOW = dt.timedelta(seconds=60)
GRACE_SECONDS = 30.0


class LiveKubeRepository(ViewRepository):
    """The jobs of a Kubernetes task with an open run; deleting one deletes its pod, and the job becomes ready anew."""

    def __init__(self, task: KubeTask) -> None:
        super().__init__(task, "live")
        self._kube = task

    async def pods(self) -> list[Any]:
        """Return the task's pods, as kubernetes_asyncio's V1Pod: of open runs, and those that are about to go."""
        return await self._kube.podman.query(task=self._kube.name)


class KubeTask(EngineTask):
    """A task that runs a pod.

    Links `live` (status, inhibits_start, inhibits_output), `logs` and `done` (status, inhibits_start,
    required_for_output), those that are given. The template sees the task's attributes, the links' infos, `env`, `job`,
    `task` and `argv0`. `window` is that of the quota's launches. `timeout` counts from when a container runs; then
    `handle_timeout` is called, and the pod is deleted with `grace`. A pod that cannot start (image, configuration, refused by
    the cluster) is given up after `start_within`, one that no node can take after `schedule_within`; None waits for ever. `stopped_pods` says what a
    pod is that others stopped and that ended with exit code 0: "retry" runs its job again, "accept" takes it as a success.
    """

    outlives = True
    has_identities = False
    done_shape: DoneShape = "pod"

    def __init__(
        self,
        name: str,
        podman: Callable[[], PodManager] | PodManager,
        resources: ResourceManager | None,
        template: str | os.PathLike[str],
        logs: BlobRepository | str | int | bool | None,
        done: MetadataRepository | None,
        window: Duration = _WINDOW,
        timeout: Duration | None = None,
        env: dict[str, Any] | None = None,
        ready: Repository | None = None,
        *,
        job_resources: Requests | None = None,
        start_within: Duration | None = 300.0,
        schedule_within: Duration | None = 3600.0,
        stopped_pods: StoppedPods = "retry",
        **policy: Unpack[Policy],
    ) -> None:
        policy.setdefault("grace", GRACE_SECONDS)
        repository = logs if isinstance(logs, BlobRepository) else None
        kept = None if logs is repository else logs
        super().__init__(name, ready, timeout=timeout, logs=kept, **policy)  # type: ignore[arg-type]
        self.template = template
        self.resources = self.resource_manager = resources
        self.logs, self.done = repository, done
        self.env = dict(env or {})
        self.window = nanoseconds(window, "window")
        if resources is not None and window != _WINDOW:
            resources.window = self.window
        self.start_within = _optional(start_within, "start_within")
        self.schedule_within = _optional(schedule_within, "schedule_within")
        self.done_link = None if done is None else "done"
        if stopped_pods not in get_args(StoppedPods):
            raise InvalidValueError(
                f"stopped_pods is {stopped_pods!r:.80}", where=name, remedy="use 'retry' or 'accept'"
            )
        self.stopped_pods = stopped_pods
        self._podman = podman
        self._template = Template(template, where=name)
        asked = () if job_resources is None else listed_requests(job_resources, name)
        self._requests = tuple(Resources(one.cpu, one.mem, 1, one.custom) for one in asked)
        self.later_resources = self._requests[1:]
        self._sketched: Resources | None = None
        self._overheads: dict[str, dict[str, str]] = {}
        self._views["live"] = self._live = LiveKubeRepository(self)
        self.link("live", self.live, is_status=True, inhibits_start=True, inhibits_output=True)
        if repository is not None:
            self.link("logs", repository, is_status=True, inhibits_start=True, required_for_output=True)
        if done is not None:
            self.link("done", done, is_status=True, inhibits_start=True, required_for_output=True)

    @property
    def live(self) -> LiveKubeRepository:
        """The jobs with an open run, and their pods; deleting one stops it."""
        return self._live

    @property
    def podman(self) -> PodManager:
        """The pod manager; `CallerError` when it comes from a session that is not open."""
        given = self._podman
        return given if isinstance(given, PodManager) else given()

    # --- what a pod is ----------------------------------------------------------------------------

    def _scope(self) -> dict[str, Any]:
        """Return what a template sees but for the job: attributes below links below `env`."""
        own = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        return {
            **own,
            **dict.fromkeys(self.links),
            **{name: parameter.value for name, parameter in self.given.items()},
            **self.env,
            "task": self.name,
            "argv0": self.program or Path(sys.argv[0]).name,
        }

    @property
    def job_resources(self) -> Resources | None:  # type: ignore[override]
        """What each pod takes: as given, else the requests of the template; None without a quota."""
        if self.resource_manager is None:
            return None
        if self._requests:
            return self._requests[0]
        if self._sketched is None:
            sketched = self._sketch()
            self._sketched = requests_of(sketched and self._with_overhead(sketched), self.name)
        return self._sketched

    def _request(self, spent: int) -> Resources | None:
        """Return the largest request of the pod of an attempt, after this number of spent attempts."""
        return self._requests[min(spent, len(self._requests) - 1)] if self._requests else self.job_resources

    def _with_overhead(self, manifest: Manifest) -> Manifest:
        """Return the manifest with the overhead that the server will write into it, as far as that is known."""
        spec = manifest["spec"]
        overhead = self._overheads.get(str(spec.get("runtimeClassName")))
        return {**manifest, "spec": {"overhead": overhead, **spec}} if overhead else manifest

    async def _ask_overhead(self) -> None:
        """Ask what the template's RuntimeClass adds to each pod, which only the cluster knows."""
        sketched = self._sketch()
        spec = {} if sketched is None else sketched["spec"]
        name = spec.get("runtimeClassName")
        if not isinstance(name, str) or MARK in name or "overhead" in spec or name in self._overheads:
            return
        try:
            self._overheads[name] = await self.podman.overhead(name)
        except RefusedError as error:
            logger.warning(
                "%s: what RuntimeClass %s adds to each pod is not known, and counts only once a pod is there: %s",
                *(self.name, name, error.refusal.words),
            )
        self._sketched = None

    def _sketch(self) -> Manifest | None:
        scope = self._scope()
        scope.setdefault("request", self._request(0) if self._requests else None)
        scope |= {name: Unknown() for name in self.links if name not in self.env}
        return sketch(self._template, scope, self.name)

    @property
    def names_job(self) -> bool:  # type: ignore[override]
        """Whether the template uses the name of the job."""
        return self._template.names("job")

    def fingerprint(self) -> Fingerprint:
        """Return what the template is, and the texts and numbers of `env`."""
        found = self._template.fingerprint(self.given)
        plain = {name: value for name, value in self.env.items() if isinstance(value, str | int | float)}
        return found._replace(
            components=found.components
            | of_texts({f"env {name}": repr(value) for name, value in plain.items()})
        )

    async def validate(self) -> None:
        """Check the template, what its pods take, and that the logs' repository holds bytes."""
        await super().validate()
        self._sketch()
        if self.resource_manager is not None and not self._requests:
            await self._ask_overhead()
        self.job_resources  # noqa: B018 - raises where the requests are missing
        if self.logs is not None and not self.logs.is_blob():
            raise NotPossibleError("the logs repository does not hold bytes", where=self.name)

    async def build(self, job: str, spent: int = 0) -> Manifest:
        """Return the manifest of a job's pod, as the template makes it; infos of links are fetched as it uses them.

        `spent` attempts at the job came before, which matters where `job_resources` lists what each takes.
        """
        scope: dict[str, Any] = self._scope()
        scope.setdefault("request", self._request(spent) if self._requests else None)
        for name, link in self.links.items():
            if name not in self.env:
                scope[name] = Lazy(functools.partial(link.repo.info, job))
        where = f"{self.name}[{job}]"
        manifest = parse_manifest(await self._template.render({**scope, "job": job}, job=job), where)
        granted = self._request(spent)
        if granted is not None:
            _check_within(resources_of(self._with_overhead(manifest), where), granted, where)
        return manifest

    # --- running ----------------------------------------------------------------------------------

    def _make_runner(self) -> Runner:
        return _PodRunner(self)

    def recipe(self) -> Recipe:
        """Return what the runner needs to know."""

        async def made(spec: RunSpec) -> Manifest:
            return await (self.build(spec.job, spec.spent) if self.later_resources else self.build(spec.job))

        overridden = type(self).handle_timeout is not KubeTask.handle_timeout
        return Recipe(
            self.name,
            made,
            self.logs,
            start_within=self.start_within,
            schedule_within=self.schedule_within,
            handle_timeout=self._handle_timeout if overridden else None,
            stopped_pods=self.stopped_pods,
            takes=None if self.resource_manager is None else self._taken,
        )

    def _taken(self, pod: names.Pod, spec: RunSpec) -> Resources:
        """Return what a run's pod takes; where the task says the most, at least that."""
        found, asked = taken(pod), self._request(spec.spent) if self._requests else None
        return found if asked is None else most(found, asked)

    async def _handle_timeout(self, name: str) -> None:
        podman = self.podman
        await self.handle_timeout(await podman.v1.read_namespaced_pod(name, podman.namespace))

    async def handle_timeout(self, pod: Any) -> None:
        """Override this to look into a pod (a V1Pod) whose time is up, before it is deleted; a minute at most."""

    async def delete(self, pod: Any) -> None:
        """Stop the run of a pod, without marking the job as done: it becomes ready anew."""
        found = as_pod(pod)
        if found.annotation(names.TASK) != self.name:
            raise CallerError(f"pod {found.name} is not of task {self.name}", where=self.podman.namespace)
        await self.live.delete(found.annotation(names.JOB))


class _PodRunner(LateRunner):
    """The runner over the task's manager, which it lets go of at the end."""

    def __init__(self, task: KubeTask) -> None:
        super().__init__(lambda: KubeRunner(task.podman.shared, task.recipe()))
        self._task = task

    async def open(self, sink: Sink) -> None:
        self._podman = self._task.podman
        await super().open(sink)

    async def close(self, *, abandon: bool = False) -> None:
        await super().close(abandon=abandon)
        await self._podman.close()


def _optional(duration: Duration | None, what: str) -> int | None:
    return None if duration is None else nanoseconds(duration, what)


def _check_within(asked: Resources, granted: Resources, where: str) -> None:
    """Refuse a pod that takes more than the quota was asked for."""
    pairs: Mapping[str, tuple[Any, Any]] = {
        "cpu": (asked.cpu, granted.cpu),
        "memory": (asked.mem, granted.mem),
        **{name: (amount, granted.custom.get(name, 0)) for name, amount in asked.custom.items()},
    }
    for name, (amount, limit) in pairs.items():
        if amount > limit:
            raise CallerError(
                f"its pod asks for {amount:f} {name}, the task's job_resources are {limit:f}",
                where=where,
                remedy="raise job_resources=, the most that one pod of the task takes",
            )
