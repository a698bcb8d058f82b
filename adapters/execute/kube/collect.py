"""How a run ends: from its pod's verdict and its logs to the one fact that tells of it.

In: a pod that is over. Out: `Ended`, with times, node and image, the logs of all containers, and what a function in the pod
brought back. The logs are read to their end first; a pod whose log is to be kept, and is not whole, is no success but `lost`.
What was stopped by us ends by the reason of the stop, unless it had ended before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import msgspec

from datatask.adapters.execute.base.endings import judged, stopped_ending
from datatask.adapters.execute.kube.cluster import Shared
from datatask.adapters.execute.kube.lines import Lines
from datatask.adapters.execute.kube.logs import PodLogs
from datatask.adapters.execute.kube.manifests import Recipe, Result
from datatask.adapters.execute.kube.pods import Pod
from datatask.adapters.execute.kube.runs import PodRun, PodRuns
from datatask.adapters.execute.kube.verdicts import SUCCEEDED, Verdict, evicted, images_of, times
from datatask.engine.runtime.calls import error_info
from datatask.engine.runtime.services import current
from datatask.schema.events import IMAGES, MACHINE, Ending, ErrorInfo
from datatask.schema.messages import Printed, Write, printed_of

logger = logging.getLogger("datatask.pod_manager")

RESULT_BYTES_MAX = 2 << 20


class Collector:
    """Ends the runs of one task whose pods are over."""

    def __init__(self, shared: Shared, recipe: Recipe, runs: PodRuns) -> None:
        self._shared, self._recipe, self._runs = shared, recipe, runs
        self._services = current()

    def see(self, run: PodRun, pod: Pod) -> None:
        """The pod has changed: its logs are read while it runs, where they are wanted."""
        if run.logs is None and (self._recipe.logs is not None or self._recipe.result is not None):
            run.logs = PodLogs(self._shared.logs)
        if run.logs is not None:
            run.logs.see(pod)

    def over(self, run: PodRun, pod: Pod, found: Verdict, gone: bool = False) -> None:
        """The pod is over: its logs are read to their end, unless it is `gone`, then the run ends."""
        if run.over:
            return
        run.over = True
        run.collecting = asyncio.get_running_loop().create_task(self._collect(run, pod, found, gone))
        self._services.mind(run.collecting, "the collecting of a pod's end")

    async def _collect(self, run: PodRun, pod: Pod, found: Verdict, gone: bool) -> None:
        if found.reason == "Deleted" and run.settled:
            found = SUCCEEDED
        if run.logs is None and run.spec.logs:
            run.logs = PodLogs(self._shared.logs)  # read after the pod has ended: no log is followed
        if run.logs is not None and not gone:
            await run.logs.read_to_end(pod)
        if found.outcome == "succeeded" and (why := await self._shared.evictions.of(pod.uid)) is not None:
            found = evicted(why, 0)
        ended_well = found.exit_code == 0 and found.outcome in ("lost", "failed")
        if ended_well and self._recipe.stopped_pods == "accept" and run.reason is None:
            found = SUCCEEDED
        ending = self._judged(run, pod, found)
        run.noticed = ""
        self._finish(run, ending)

    def _judged(self, run: PodRun, pod: Pod, found: Verdict) -> Ending:
        began, ended = times(pod)
        where = pod.spec.node_name or self._shared.where
        detail = {"pod": pod.name or run.name, "node": pod.spec.node_name}
        mains = pod.spec.containers or []
        if mains:
            detail["image"] = mains[0].image
            detail[IMAGES] = images_of(pod)
        outcome, error, code = found.outcome, None, found.exit_code
        if found.reason == "Deleted" and run.reason is not None:
            stopped = stopped_ending(run.reason, _plain(code))
            outcome, error, code = stopped.outcome, stopped.error, stopped.exit_code
        elif outcome != "succeeded":
            error = ErrorInfo(type=found.reason, message=found.message)
            detail[MACHINE] = found.machine
        return Ending(
            outcome=outcome,
            exit_code=code,
            error=error,
            started_at=began,
            ended_at=ended or time.time_ns(),  # noqa: TID251 - the runner's clock
            reads=run.reads,
            where=where,
            detail={key: value for key, value in detail.items() if value},
        )

    def _finish(self, run: PodRun, ending: Ending) -> None:
        """All is here: what a function brought back, and the logs.

        Those of a cancelled run are dropped: their entry would say that the job is done with.
        """
        writes: list[Write] = []
        printed: tuple[Printed, ...] = ()
        logs = run.logs
        wrong: dict[str, str] = {}
        if logs is not None and logs.missing:
            self._runs.notice(run, "collecting", "logs", logs.missing)
            wrong = {"logs": logs.missing} if self._recipe.logs is not None else {}
        try:
            if self._recipe.result is not None and logs is not None:
                ending, brought = self._result(run, ending, logs)
                writes += brought
            ending = judged(ending, wrong, ())
            if ending.outcome == "lost":  # it is run again, and writes anew what no store has
                writes = [write for write in writes if write.version is not None]
            content = b"" if logs is None else logs.content()
            printed = printed_of("stdout", content, run.spec.logs)
            kept = self._recipe.logs is not None and ending.outcome != "cancelled"
            if kept and self._recipe.logs is not None and logs is not None:
                made: dict[str, Any] = {"source": content}
                if isinstance(content, bytes):
                    made = {"data": content, "size": len(content)}
                writes.append(Write(repository=self._recipe.logs.id, job=run.spec.job, **made))
            if self._recipe.finished is not None:
                writes += self._recipe.finished(run.spec, ending)
        except Exception as error:
            logger.exception("%s[%s]: what its pod brought cannot be read", run.spec.task, run.spec.job)
            ending = Ending(outcome="lost", error=error_info(error))
            writes = []
        self._runs.end(run, ending, tuple(writes), printed)

    def _result(self, run: PodRun, ending: Ending, logs: PodLogs) -> tuple[Ending, tuple[Write, ...]]:
        """Take what a function wrote at the end of its container's log, in the last attempt, and its own word on how it ended."""
        for lines in logs.earlier():
            self._taken(run, lines)
        for lines in logs.last():
            if (result := self._taken(run, lines)) is not None:
                return self._merged(ending, result)
        if ending.outcome == "succeeded":
            text = "its pod succeeded without a result: the function did not run, or its log was lost"
            error = ErrorInfo(type="NoResult", message=text)
            return _replaced(ending, outcome="failed", error=error), ()
        return ending, ()

    def _taken(self, run: PodRun, lines: Lines) -> Result | None:
        """Take what a function wrote off the end of a log."""
        assert self._recipe.result is not None
        found = self._recipe.result(run.spec, lines.tail(RESULT_BYTES_MAX))
        if found is None:
            return None
        lines.take_back(lines.size - found[1])
        return found[0]

    def _merged(self, ending: Ending, result: Result) -> tuple[Ending, tuple[Write, ...]]:
        own = result.ending
        if own is None or ending.outcome not in ("succeeded", "failed"):
            return ending, ()
        if own.outcome == ending.outcome or own.outcome == "failed":
            merged = _replaced(
                ending,
                outcome=own.outcome,
                error=own.error,
                detail=(ending.detail or {}) | (own.detail or {}),
            )
            return merged, result.writes
        return ending, ()


def _plain(code: int | None) -> int | None:
    """Return an exit code, or minus a signal's number."""
    return 128 - code if code is not None and 128 < code <= 192 else code


def _replaced(ending: Ending, **fields: Any) -> Ending:
    return msgspec.structs.replace(ending, **fields)
