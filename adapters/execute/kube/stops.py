"""How a run's pod is stopped: the user's code looks at a pod that is out of time, then the pod is deleted, until that is done.

In: a run with the reason and the grace of its stop. Out: a deletion with that grace; the end follows from what the watch tells.
"""

from __future__ import annotations

import asyncio
import logging
import math

from datatask.adapters.execute.kube.cluster import Shared
from datatask.adapters.execute.kube.connection import RefusedError
from datatask.adapters.execute.kube.manifests import Recipe
from datatask.adapters.execute.kube.runs import PodRun, PodRuns
from datatask.engine.runtime.calls import error_info
from datatask.engine.runtime.services import current
from datatask.schema.units import SECOND

logger = logging.getLogger("datatask.pod_manager")

GRACE_SECONDS_MIN = 1
TIMEOUT_HANDLER_SECONDS = 60.0
RETRY_SECONDS = (1.0, 30.0)


class Stopper:
    """Stops the pods of one task."""

    def __init__(self, shared: Shared, recipe: Recipe, runs: PodRuns) -> None:
        self._shared, self._recipe, self._runs = shared, recipe, runs
        self._services = current()

    def stop(self, run: PodRun) -> None:
        """Begin to delete a run's pod, once."""
        if run.stopping is None:
            run.stopping = asyncio.get_running_loop().create_task(self._delete(run))
            self._services.mind(run.stopping, "the stop of a pod")

    async def _delete(self, run: PodRun) -> None:
        if run.reason == "timeout" and self._recipe.handle_timeout is not None:
            await self._handled(run)
        seconds = max(GRACE_SECONDS_MIN, math.ceil(run.grace / SECOND))
        pause = RETRY_SECONDS[0]
        while not run.over:
            try:
                await self._shared.delete(run.name, run.uid, seconds)
                return
            except RefusedError as error:
                self._runs.notice(run, "stopping", error.refusal.reason, error.refusal.words)
                await asyncio.sleep(error.refusal.after_seconds or pause)
                pause = min(pause * 2, RETRY_SECONDS[1])

    async def _handled(self, run: PodRun) -> None:
        """Call the user's handler; what it raises is told and stops nothing."""
        assert self._recipe.handle_timeout is not None
        try:
            async with asyncio.timeout(TIMEOUT_HANDLER_SECONDS):
                await self._recipe.handle_timeout(run.name)
        except Exception as error:
            info = error_info(error)
            logger.warning("%s[%s]: handle_timeout failed: %r", run.spec.task, run.spec.job, error)
            self._runs.notice(run, "stopping", "handle_timeout", f"{info.type}: {info.message}")
