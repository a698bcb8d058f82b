"""How a run's pod comes to be, and what happens while it does not start.

In: a run, its manifest, the server's refusals. Out: a pod of the run's own, or the reason why there is none. A create
that was not answered is repeated under the same name: 409 then says that it had arrived. What the server cannot take now
is asked for again, later and later, with its words told: a full quota by one run of the task at a time, as soon as a pod
of ours is over. What needs somebody to change the cluster is tried for as long as the user allows; what can never be is
refused at once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping

from datatask.adapters.execute.kube import names
from datatask.adapters.execute.kube.connecting import RefusedError, path_of
from datatask.adapters.execute.kube.logs import PodLogs
from datatask.adapters.execute.kube.manifests import Manifest, stamp, tombstone
from datatask.adapters.execute.kube.pods import Pod, decode_pod_events
from datatask.adapters.execute.kube.recipes import SECOND, Recipe
from datatask.adapters.execute.kube.refusals import Refusal
from datatask.adapters.execute.kube.sharing import Shared
from datatask.adapters.execute.kube.verdicts import Verdict, is_running, trouble
from datatask.engine.ports import Noticed, RunSpec, Sink
from datatask.schema.errors import CallerError
from datatask.schema.events import StopReason

RENDERING = 32
PAUSE_SECONDS = (0.2, 30.0)
DELAYED_SECONDS = 65.0
"""So long a request of an engine that died may take effect yet: the API server ends requests after a minute."""
FORCED_SECONDS = 30.0
"""So long after a forced deletion the node has to tell how the pod ended."""
EVENTS_MAX = 50


class Run:
    """One run between start and forget. `settled`: its containers had succeeded before anybody deleted the pod."""

    __slots__ = (
        "asked",
        "ended",
        "logs",
        "name",
        "noticed",
        "reads",
        "recovering",
        "settled",
        "silent",
        "spec",
        "started",
        "stop",
        "stopping",
        "told",
        "trouble",
        "uid",
        "waiter",
        "work",
    )

    def __init__(self, spec: RunSpec, name: str) -> None:
        self.spec = spec
        self.name = name
        self.uid = ""
        self.work: asyncio.Task[None] | None = None
        self.stopping: asyncio.Task[None] | None = None
        self.stop: tuple[StopReason, int] | None = None
        self.waiter: asyncio.Event | None = None
        self.logs: PodLogs | None = None
        self.reads: dict[str, int] | None = None
        self.trouble: tuple[str, float, asyncio.TimerHandle | None] | None = None
        self.noticed = ""
        self.asked = self.recovering = self.started = self.settled = False
        self.silent = self.ended = self.told = False


class Starting:
    """The half of the runner that makes pods."""

    def __init__(self, shared: Shared, recipe: Recipe) -> None:
        self.shared, self.recipe = shared, recipe
        self.runs: dict[int, Run] = {}
        self.by_name: dict[str, Run] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._full: tuple[str, str] | None = None
        self._sink: Sink
        self._loop: asyncio.AbstractEventLoop

    def _prepare(self) -> None:
        self._rendering = asyncio.Semaphore(RENDERING)
        self._probe = asyncio.Lock()
        self._full = None

    # --- creating ---------------------------------------------------------------------------------

    async def created(self, run: Run) -> Pod:
        """Return the run's pod, created or found; `CallerError` where there can be none."""
        spec = run.spec
        await self.shared.watch.listed.wait()
        other = self.shared.other_owner(spec.identity, spec.log)
        if other:
            raise CallerError(
                f"{other}: two engines would run pods of one application",
                remedy="give each pipeline an app of its own, or remove those pods",
            )
        async with self._rendering:
            manifest = await self._manifest(run)
        return await self._create(run, manifest)

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
            labels=names.labels(app, spec.task, spec.job, spec.identity),
            annotations=names.told(app, spec.task, spec.job, spec.identity, spec.log),
            finalizer=self.shared.finalizer,
            env=env,
        )

    async def _create(self, run: Run, manifest: Manifest) -> Pod:
        held, limited_since, pause = False, 0.0, PAUSE_SECONDS[0]
        try:
            while True:
                if self._full is not None and not held and not run.asked:
                    self.notice(run, "pending", *self._full)
                    await self._probe.acquire()
                    held = True
                if held and self._full is None:
                    self._probe.release()
                    held = False
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
                        return found
                    continue
                run.asked = refusal.code == 0 or refusal.code >= 500
                self.notice(run, "pending", refusal.reason, refusal.words)
                if refusal.again == "never":
                    raise _refused(refusal)
                if refusal.again == "full":
                    self._full = refusal.reason, refusal.words
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
        if pod is not None and (
            names.identity_of(pod) != run.spec.identity or pod.annotation(names.TOMBSTONE)
        ):
            theirs = names.identity_of(pod) or "none of ours"
            raise CallerError(
                f"there is a pod {run.name} already, which is not this run's ({theirs})",
                where=self.shared.namespace,
                remedy="remove it, or give the pipeline an app of its own",
            )
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
                    return None if pod.annotation(names.TOMBSTONE) else pod
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
        labels = names.labels(app, spec.task, spec.job, spec.identity)
        told = names.told(app, spec.task, spec.job, spec.identity, spec.log)
        stone = await self.shared.create(tombstone(run.name, self.shared.namespace, labels, told))
        self.shared.discard_later(stone, DELAYED_SECONDS)

    # --- waiting for a start ----------------------------------------------------------------------

    def wait_for_start(self, run: Run, pod: Pod) -> None:
        """Tell what keeps a pod from starting, and end its run when that lasts for longer than the user allows."""
        forced = (
            pod.metadata.deletion_timestamp is not None and not pod.metadata.deletion_grace_period_seconds
        )
        if forced:
            self._limit(run, "forced", int(FORCED_SECONDS * SECOND))
            return
        if is_running(pod) or pod.status.phase != "Pending" or run.stop is not None:
            self.calm(run)
            return
        found = trouble(pod)
        if found is not None:
            self.notice(run, "pending", _group(found.reason), found.message)
        scheduled = bool(pod.spec.node_name) or (found is not None and found.scheduled)
        if scheduled:
            self._limit(run, "start", self.recipe.start_within)
        elif found is not None:
            self._limit(run, "schedule", self.recipe.schedule_within)

    def _limit(self, run: Run, key: str, nanoseconds: int | None) -> None:
        if run.trouble is not None and run.trouble[0] == key:
            return
        self.calm(run)
        timer = None
        if nanoseconds is not None:
            timer = self._loop.call_later(nanoseconds / SECOND, self._due, run)
        run.trouble = key, time.monotonic(), timer

    def calm(self, run: Run) -> None:
        """Nothing keeps the pod from starting any more."""
        if run.trouble is not None:
            if run.trouble[2] is not None:
                run.trouble[2].cancel()
            run.trouble = None

    def _due(self, run: Run) -> None:
        task = self._loop.create_task(self._overdue(run))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _overdue(self, run: Run) -> None:
        """A pod has not started for too long: end its run with the cluster's words, unless it is still being made ready."""
        pod = self.shared.watch.known.get(run.name)
        if pod is None or run.ended or run.trouble is None:
            return
        key, since, _ = run.trouble
        if key == "forced":
            text = "its pod was deleted by force, and the node has not told how it ended"
            self.over(run, pod, Verdict("lost", None, "Deleted", text), gone=True)
            return
        found = trouble(pod)
        kind, reason, text = await self._last_event(pod)
        if run.ended or run.trouble is None:
            return
        if found is None and kind != "Warning":  # a large image, say
            run.trouble = None
            self.wait_for_start(run, pod)
            return
        words = " — ".join(dict.fromkeys(part for part in (found.message if found else "", text) if part))
        message = f"it did not start within {time.monotonic() - since:.0f} s: {words or pod.status.message}"
        self.over(run, pod, Verdict("refused", None, found.reason if found else reason, message), gone=True)

    async def _last_event(self, pod: Pod) -> tuple[str, str, str]:
        """Return type, reason and text of the last thing that the cluster told of a pod; blank where we may not ask."""
        query: dict[str, str | int] = {"fieldSelector": f"involvedObject.uid={pod.uid}", "limit": EVENTS_MAX}
        path = path_of(self.shared.namespace, kind="events")
        try:
            listed = decode_pod_events(await self.shared.cluster.ask("GET", path, query)).items
        except RefusedError:
            return "", "", ""
        listed.sort(key=lambda event: event.last_timestamp or event.event_time or "")
        warnings = [event for event in listed if event.type == "Warning"]
        if not listed:
            return "", "", ""
        last = (warnings or listed)[-1]
        return last.type, last.reason, last.message

    def over(self, run: Run, pod: Pod, found: Verdict, *, gone: bool = False) -> None:
        """End a run by a verdict on its pod."""
        raise NotImplementedError

    def notice(self, run: Run, phase: str, reason: str, message: str) -> None:
        """Tell what is worth telling of a run, once for each reason in a row."""
        key = f"{phase}:{reason}"
        if key != run.noticed and not run.told:
            run.noticed = key
            self._sink(Noticed(run.spec.run, phase, reason, message[:1000]))


def _group(reason: str) -> str:
    """Return one word for reasons that alternate."""
    return "ErrImagePull" if reason == "ImagePullBackOff" else reason


def _refused(refusal: Refusal, since: str = "") -> CallerError:
    told = f"{refusal.words} ({refusal.reason}{', ' + since if since else ''})"
    return CallerError(f"the cluster refuses the pod: {told}")
