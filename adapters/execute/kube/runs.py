"""What a task's runner knows of each of its pods, from the start of a run to when it is forgotten.

In: a run of the engine's. Out: a `PodRun` with the pod's name, which follows from the run's identity. The parts of the runner
(starts, recovery, slow starts, stops, collecting) share these, and `TrackedRuns`, which tells facts.
"""

from __future__ import annotations

import asyncio
import time

from datatask.adapters.execute.base.pressure import NO_ROOM
from datatask.adapters.execute.base.runner import NOTICE_MAX, Executes, TrackedRun, TrackedRuns
from datatask.adapters.execute.kube.logs import PodLogs
from datatask.adapters.execute.kube.pods import Pod, identity_of
from datatask.engine.ports import Sink
from datatask.schema.messages import Fact, Noticed, RunSpec
from datatask.schema.resources import Resources

DELAYED_SECONDS = 65.0
"""So long a request without an answer may take effect yet: the API server ends requests after a minute."""


class PodRun(TrackedRun):
    """One run. `asked`: a create is under way, or its answer is not known; `unanswered`: since when there may be one.

    `settled`: its containers had succeeded before its deletion was asked for; `stopped`: they had not. `grace` is that of its stop, in nanoseconds.
    """

    def __init__(self, spec: RunSpec, name: str) -> None:
        super().__init__(spec)
        self.name = name
        self.uid = ""
        self.grace = 0
        self.asked = self.settled = self.stopped = False
        self.unanswered: float | None = None
        self.waiter: asyncio.Event | None = None
        self.stopping: asyncio.Task[None] | None = None
        self.collecting: asyncio.Task[None] | None = None
        self.limit: tuple[str, float, asyncio.TimerHandle | None] | None = None
        self.logs: PodLogs | None = None
        self.takes: Resources | None = None

    def owns(self, pod: Pod) -> bool:
        """Whether a pod is the run's own: of its identity, and the one that was confirmed where one was."""
        return identity_of(pod) == self.spec.identity and self.uid in ("", pod.uid)

    def doubt_seconds(self) -> float:
        """Return for how long a create without an answer may still arrive; 0 or less: no longer."""
        return 0.0 if self.unanswered is None else self.unanswered + DELAYED_SECONDS - time.monotonic()

    def is_doubtful(self) -> bool:
        """Whether a pod of this run's may be there, or come yet, although the server has confirmed none."""
        return self.asked or self.doubt_seconds() > 0


class PodRuns(TrackedRuns[PodRun]):
    """The runs of one task; each notice names the run's own pod, also where the words are those about another one's."""

    def __init__(self, task: str, runner: Executes[PodRun], sink: Sink) -> None:
        super().__init__(task, runner, self._named)
        self._told = sink
        self._refused = ""

    def no_room(self, run: PodRun, why: str, reason: str = NO_ROOM) -> None:
        """Begin a run later, since the cluster refuses its pod for the moment."""
        self._refused = run.name
        super().no_room(run, why, reason)

    def _named(self, fact: Fact) -> None:
        if isinstance(fact, Noticed) and (run := self.get(fact.run)) is not None:
            message = fact.message.replace(self._refused, run.name) if self._refused else fact.message
            if run.name not in message:
                message = f"pod {run.name}: {message}"[:NOTICE_MAX]
            fact = fact._replace(message=message)
        self._told(fact)
