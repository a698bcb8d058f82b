"""How a run's pod comes to be, and what happens while it does not start.

In: a run, its manifest, the server's refusals. Out: a pod of the run's own, or the reason why there is none. A create
that was not answered is repeated under the same name: 409 then says that it had arrived. What the server cannot take now
is asked for again, later and later, with its words told: a full quota by one run of the task at a time, as soon as a pod
of ours is over. What needs somebody to change the cluster is tried for as long as the user allows; what can never be is
refused at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping

from datatask.adapters.execute.base.pressure import OCCUPIED
from datatask.adapters.execute.kube import pods
from datatask.adapters.execute.kube.cluster import Shared
from datatask.adapters.execute.kube.connection import Refusal, RefusedError
from datatask.adapters.execute.kube.manifests import Manifest, Recipe, stamp, tombstone
from datatask.adapters.execute.kube.pods import Pod
from datatask.adapters.execute.kube.slow_starts import Run, Waiting
from datatask.schema.errors import AlreadyThereError, CallerError
from datatask.schema.units import SECOND

logger = logging.getLogger("datatask.kube")

_APART = "give each pipeline an app of its own, or remove those pods"
RENDERING = 32
PAUSE_SECONDS = (0.2, 30.0)
DELAYED_SECONDS = 65.0
"""So long a request of an engine that died may take effect yet: the API server ends requests after a minute."""


class Starting(Waiting):
    """The part of the runner that makes pods."""

    def __init__(self, shared: Shared, recipe: Recipe) -> None:
        super().__init__(shared, recipe)
        self._full: tuple[str, str, str] | None = None
        self._others_told = False

    def _prepare(self) -> None:
        self._rendering = asyncio.Semaphore(RENDERING)
        self._probe = asyncio.Lock()
        self._full = None

    # --- creating ---------------------------------------------------------------------------------

    async def created(self, run: Run) -> Pod:
        """Return the run's pod, created or found; `CallerError` where there can be none."""
        await self.shared.watch.listed.wait()
        await self._alone(run)
        async with self._rendering:
            manifest = await self._manifest(run)
        return await self._create(run, manifest)

    async def _alone(self, run: Run) -> None:
        """Raise `CallerError` where another log has pods here under this application; wait for a later state of this one."""
        pause = PAUSE_SECONDS[0]
        while other := self.shared.other_owner(run.spec.identity, run.spec.log):
            text, remedy = f"{other}: two engines would run pods of one application", _APART
            if not self.shared.others_are_later:
                raise CallerError(text, remedy=remedy)
            text += f"; its runs wait until those pods are over: {remedy}"
            if not self._others_told:
                self._others_told = True
                logger.warning("%s: %s", run.spec.task, text)
            self.notice(run, "pending", OCCUPIED, text)
            await self._pause(run, pause)
            pause = min(pause * 2, PAUSE_SECONDS[1])
        self._others_told = False

    async def _manifest(self, run: Run) -> Manifest:
        spec, app = run.spec, self.shared.app
        manifest = await self.recipe.manifest(spec)
        env: Mapping[str, str] = {
            "DATATASK_RUN": spec.identity,
            "DATATASK_TASK": spec.task,
            "DATATASK_JOB": spec.job,
        }
        if self.recipe.env is not None:
            env = {**env, **await self.recipe.env(spec)}
        return stamp(
            manifest,
            name=run.name,
            namespace=self.shared.namespace,
            labels=pods.labels(app, spec.task, spec.job, spec.identity),
            annotations=pods.told(app, spec.task, spec.job, spec.identity, spec.log),
            finalizer=self.shared.finalizer,
            env=env,
        )

    async def _create(self, run: Run, manifest: Manifest) -> Pod:
        held, limited_since, pause = False, 0.0, PAUSE_SECONDS[0]
        try:
            while True:
                if self._full is not None and not held and not run.asked:
                    reason, words, other = self._full
                    self.notice(run, "pending", reason, words.replace(other, run.name))
                    await self._probe.acquire()
                    held = True
                if held and self._full is None:
                    self._probe.release()
                    held = False
                if (
                    run.uid
                ):  # the watch has seen it: only the answer was lost, another pod would run the job again
                    return self._seen(run)
                if run.stop is not None:
                    return await self._unwanted(run)
                run.asked = True
                try:
                    pod = await self.shared.create(manifest)
                except RefusedError as error:
                    refusal = error.refusal
                else:
                    self._full = None
                    return pod
                if refusal.again == "exists":
                    found = await self._existing(run)
                    if found is not None:
                        return found  # else what had the name has gone since: the next create may have it
                    self.notice(run, "pending", refusal.reason, refusal.words)
                    await self._pause(run, min(pause, 1.0))
                    pause = min(pause * 2, PAUSE_SECONDS[1])
                    continue
                run.asked = refusal.code == 0 or refusal.code >= 500
                if run.asked:
                    run.unanswered = time.monotonic()
                self.notice(run, "pending", refusal.reason, refusal.words)
                if refusal.again == "never":
                    raise _refused(refusal)
                if refusal.again == "full":
                    self._full = refusal.reason, refusal.words, run.name
                    if held:
                        await self.shared.room(pause)
                elif refusal.again == "limited":
                    limited_since = limited_since or time.monotonic()
                    self._check_limit(refusal, time.monotonic() - limited_since)
                    await self._pause(run, refusal.after_seconds or pause)
                else:
                    await self._pause(run, refusal.after_seconds or min(pause, 1.0))
                pause = min(pause * 2, PAUSE_SECONDS[1])
        finally:
            if held:
                self._probe.release()

    async def _pause(self, run: Run, seconds: float) -> None:
        """Wait, unless the run is stopped meanwhile."""
        run.waiter = asyncio.Event()
        try:
            async with asyncio.timeout(seconds * random.uniform(0.8, 1.2)):
                await run.waiter.wait()
        except TimeoutError:
            return
        finally:
            run.waiter = None

    def _check_limit(self, refusal: Refusal, seconds: float) -> None:
        limit = self.recipe.start_within
        if limit is not None and seconds > limit / SECOND:
            raise _refused(refusal, f"for {seconds:.0f} s")

    async def _existing(self, run: Run) -> Pod | None:
        """Return the pod that has the run's name; it is ours, or something is badly wrong."""
        try:
            pod = await self.shared.get(run.name)
        except RefusedError as error:
            await self._pause(run, error.refusal.after_seconds or PAUSE_SECONDS[0])
            return None
        if pod is not None and (pods.identity_of(pod) != run.spec.identity or pod.annotation(pods.TOMBSTONE)):
            theirs = pods.identity_of(pod) or "none of ours"
            raise AlreadyThereError(
                f"there is a pod {run.name} already, which is not this run's ({theirs})",
                where=self.shared.namespace,
                remedy="remove it, or give the pipeline an app of its own",
            )
        return pod

    def _seen(self, run: Run) -> Pod:
        """Return the pod that the watch has told of; where it is over and gone already, starting is over too."""
        pod = self.shared.watch.known.get(run.name)
        if pod is None or pod.uid != run.uid:
            raise asyncio.CancelledError
        return pod

    async def _unwanted(self, run: Run) -> Pod:
        """The run was stopped before it was known whether it has a pod."""
        pod = await self._existing(run) if run.asked else None
        if pod is not None:
            return pod
        if run.asked:
            self.shared.discard_name(run.name)
        assert run.stop is not None
        self._loop.call_soon(self.stopped_early, run)
        raise asyncio.CancelledError

    def stopped_early(self, run: Run) -> None:
        """End a run that was stopped before it had a pod."""
        raise NotImplementedError

    # --- finding ----------------------------------------------------------------------------------

    async def found(self, run: Run) -> Pod | None:
        """Return the pod of a run of an earlier engine, or None when there is none and never will be."""
        pause, refused = PAUSE_SECONDS[0], False
        while True:
            try:
                pod = await self.shared.get(run.name)
                if pod is not None:
                    return None if pod.annotation(pods.TOMBSTONE) else pod
                if run.uid or refused:
                    return None  # it was there, or its time is over
                await self._bury(run)
                return None
            except RefusedError as error:
                refusal = error.refusal
                if refusal.again in ("full", "limited", "never") and refusal.code not in (401,):
                    self.notice(
                        run, "recovering", refusal.reason, f"its name cannot be taken: {refusal.words}"
                    )
                    refused = True  # then nothing that was on its way arrives any more after a while
                    await asyncio.sleep(DELAYED_SECONDS)
                elif refusal.again != "exists":
                    await asyncio.sleep(refusal.after_seconds or pause)
                    pause = min(pause * 2, 5.0)

    async def _bury(self, run: Run) -> None:
        """Take the run's name, for as long as a start that was delayed could still arrive."""
        spec, app = run.spec, self.shared.app
        labels = pods.labels(app, spec.task, spec.job, spec.identity)
        told = pods.told(app, spec.task, spec.job, spec.identity, spec.log)
        stone = await self.shared.create(tombstone(run.name, self.shared.namespace, labels, told))
        self.shared.discard_later(stone, DELAYED_SECONDS)


def _refused(refusal: Refusal, since: str = "") -> CallerError:
    told = f"{refusal.words} ({refusal.reason}{', ' + since if since else ''})"
    return CallerError(f"the cluster refuses the pod: {told}")
