"""How a run's pod comes to be, and what becomes of the server's refusals.

In: a run. Out: a pod of the run's own, or the end of the run with the reason why there is none. A start is idempotent by the
pod's fixed name alone: a create that was not answered is repeated, and 409 then says that it had arrived. A full quota is
told before the name is looked at; so a refusal is believed only when no pod of that name is there. What the server cannot take
now is asked for again, later and later: a full quota by one run of the task at a time, as soon as a pod of ours is over.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping

from datatask.adapters.execute.base.endings import stopped_ending
from datatask.adapters.execute.base.pressure import OCCUPIED
from datatask.adapters.execute.kube import pods
from datatask.adapters.execute.kube.cluster import Shared
from datatask.adapters.execute.kube.connection import Refusal, RefusedError
from datatask.adapters.execute.kube.manifests import Manifest, Recipe, stamp
from datatask.adapters.execute.kube.pods import Pod
from datatask.adapters.execute.kube.runs import PodRun, PodRuns
from datatask.schema.errors import AlreadyThereError, CallerError
from datatask.schema.units import SECOND

logger = logging.getLogger("datatask.pod_manager")

_APART = "give each pipeline an app of its own, or remove those pods"
RENDERING = 32
PAUSE_SECONDS = (0.2, 30.0)
BUSY_SECONDS_MAX = 1.0


class Starter:
    """Makes the pods of one task; `confirmed` is called with each that the server has."""

    def __init__(
        self, shared: Shared, recipe: Recipe, runs: PodRuns, confirmed: Callable[[PodRun, Pod], None]
    ) -> None:
        self._shared, self._recipe, self._runs = shared, recipe, runs
        self._confirmed = confirmed
        self._rendering = asyncio.Semaphore(RENDERING)

    async def start(self, run: PodRun) -> None:
        """Render and create a run's pod, or find it; `CallerError` where there can be none."""
        await self._shared.watch.listed.wait()
        if self._is_occupied(run):
            return
        async with self._rendering:
            manifest = await self._manifest(run)
        pod = await self._create(run, manifest)
        if pod is not None:
            self._confirmed(run, pod)

    def _is_occupied(self, run: PodRun) -> bool:
        """Have a run wait while a later state of its log has pods here; `CallerError` where another log has."""
        other = self._shared.other_owner(run.spec.identity, run.spec.log)
        if not other:
            return False
        text = f"{other}: two engines would run pods of one application"
        if not self._shared.others_are_later:
            raise CallerError(text, remedy=_APART)
        text += f"; its runs wait until those pods are over: {_APART}"
        self._runs.no_room(run, text, OCCUPIED)
        return True

    async def _manifest(self, run: PodRun) -> Manifest:
        spec, app = run.spec, self._shared.app
        manifest = await self._recipe.manifest(spec)
        env: Mapping[str, str] = {
            "DATATASK_RUN": spec.identity,
            "DATATASK_TASK": spec.task,
            "DATATASK_JOB": spec.job,
        }
        if self._recipe.env is not None:
            env = {**env, **await self._recipe.env(spec)}
        return stamp(
            manifest,
            name=run.name,
            namespace=self._shared.namespace,
            labels=pods.labels(app, spec.task, spec.job, spec.identity),
            annotations=pods.told(app, spec.task, spec.job, spec.identity, spec.log),
            finalizer=self._shared.finalizer,
            env=env,
        )

    async def _create(self, run: PodRun, manifest: Manifest) -> Pod | None:
        """Return the run's pod; None where the run waits for room, or has ended."""
        limited_since, pause = 0.0, PAUSE_SECONDS[0]
        while True:
            if run.uid:  # the watch has seen it: only the answer was lost
                return self._seen(run)
            if run.reason is not None:
                return await self._unwanted(run)
            may_be_there, run.asked = run.is_doubtful(), True
            try:
                return await self._shared.create(manifest)
            except RefusedError as error:
                refusal = error.refusal
            if refusal.code == 0 or refusal.code >= 500:
                run.unanswered = time.monotonic()
            elif refusal.again == "busy":
                run.asked = may_be_there
            else:
                if refusal.again == "exists" or may_be_there:
                    found = await self._existing(run)
                    if found is not None:
                        return found  # else what had the name has gone since: the next create may have it
                run.asked = False
            if refusal.again == "full":
                self._runs.no_room(run, refusal.words, refusal.reason)
                return None
            self._runs.notice(run, "pending", refusal.reason, refusal.words)
            if refusal.again == "never":
                raise _refused(refusal)
            if refusal.again == "limited":
                limited_since = limited_since or time.monotonic()
                self._check_limit(refusal, time.monotonic() - limited_since)
                await self._pause(run, refusal.after_seconds or pause)
            else:
                await self._pause(run, refusal.after_seconds or min(pause, BUSY_SECONDS_MAX))
            pause = min(pause * 2, PAUSE_SECONDS[1])

    async def _pause(self, run: PodRun, seconds: float) -> None:
        """Wait, unless the run is stopped meanwhile, or the watch tells of its pod."""
        run.waiter = asyncio.Event()
        try:
            async with asyncio.timeout(seconds * random.uniform(0.8, 1.2)):
                await run.waiter.wait()
        except TimeoutError:
            return
        finally:
            run.waiter = None

    def _check_limit(self, refusal: Refusal, seconds: float) -> None:
        limit = self._recipe.start_within
        if limit is not None and seconds > limit / SECOND:
            raise _refused(refusal, f"for {seconds:.0f} s")

    async def _existing(self, run: PodRun) -> Pod | None:
        """Return the pod that has the run's name, None where there is none; it is ours, or something is badly wrong."""
        began, pause = time.monotonic(), PAUSE_SECONDS[0]
        while not run.uid:
            try:
                pod = await self._shared.get(run.name)
            except RefusedError as error:
                if run.reason is not None:
                    return None
                self._check_limit(error.refusal, time.monotonic() - began)
                await self._pause(run, error.refusal.after_seconds or pause)
                pause = min(pause * 2, PAUSE_SECONDS[1])
                continue
            if pod is not None and pod.annotation(pods.TOMBSTONE):
                self._shared.discard(pod)
                return None
            if pod is not None and pods.identity_of(pod) != run.spec.identity:
                theirs = pods.identity_of(pod) or "none of ours"
                raise AlreadyThereError(
                    f"there is a pod {run.name} already, which is not this run's ({theirs})",
                    where=self._shared.namespace,
                    remedy="remove it, or give the pipeline an app of its own",
                )
            return pod
        return self._seen(run)

    def _seen(self, run: PodRun) -> Pod:
        """Return the pod that the watch has told of; where it is over and gone already, starting is over too."""
        pod = self._shared.watch.known.get(run.name)
        if pod is None or pod.uid != run.uid:
            raise asyncio.CancelledError
        return pod

    async def _unwanted(self, run: PodRun) -> Pod | None:
        """The run was stopped before it was known whether it has a pod: return it, or end the run."""
        pod = await self._existing(run) if run.asked else None
        if pod is None:
            assert run.reason is not None
            self._runs.end(run, stopped_ending(run.reason))
        return pod


def _refused(refusal: Refusal, since: str = "") -> CallerError:
    told = f"{refusal.words} ({refusal.reason}{', ' + since if since else ''})"
    return CallerError(f"the cluster refuses the pod: {told}")
