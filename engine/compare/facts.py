"""The two ends of a comparison: recorded events as another definition would have met them, and differences by task.

In: recorded events, one at a time, and a state under the other definition. `EventMapper` returns what to fold into that
state: the event under the names that the other definition uses, or one without effect where it is about a task, a
repository, a quota or a run that is not there. Recorded definitions have no effect: the other one holds from the first
on. `Findings` takes single differences and returns `Difference`s in a stable order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from datatask.engine.core.expressions import fold
from datatask.engine.core.state import State
from datatask.schema import events as e
from datatask.schema.definition import VIEW_NAMES, All, AnyExpr, In, Not, PipelineDef, Selection, view_id
from datatask.schema.definition import Any as Anyone

What = Literal["ready", "blocked", "launched", "unknown", "only_in"]
Where = Literal["here", "there"]
"""`here`: as recorded; `there`: under the other definition."""

SAMPLE = 10

HEADINGS: dict[tuple[What, Where], str] = {
    ("ready", "there"): "ready under the other definition, and not as recorded",
    ("blocked", "there"): "ready as recorded, and not under the other definition",
    ("launched", "here"): "launched as recorded, where the other definition would not have",
    ("launched", "there"): "launched by the other definition, and not as recorded",
    ("unknown", "there"): "the other definition's own code would have had to answer",
}


@dataclass
class Difference:
    """One kind of difference for one task, or what exists in one definition only.

    `jobs` are all that differed at some batch boundary, each with the first position; `now` those that do at the end.
    """

    task: str | None
    what: What
    where: Where
    first_position: int
    explain: str
    repository: str | None = None
    jobs: dict[str, int] = field(default_factory=dict)
    sample: list[dict[str, Any]] = field(default_factory=list)
    now: set[str] = field(default_factory=set)


class Findings:
    """Differences by task, what and where."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, What, Where], Difference] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(
        self, task: str, what: What, where: Where, job: str, position: int, why: Callable[[], str]
    ) -> Difference:
        """Add a job that differs; `why` is called for the first few only."""
        known = self._found.get((task, what, where))
        if known is None:
            known = Difference(task, what, where, position, HEADINGS[what, where])
            self._found[task, what, where] = known
        if job not in known.jobs:
            known.jobs[job] = position
            if len(known.sample) < SAMPLE:
                known.sample.append({"job": job, "position": position, "explain": why()})
        return known

    def note(self, task: str, what: What, job: str, position: int, why: Callable[[], str] | None) -> None:
        """Note at a batch boundary that a job differs (`why` says how), or (None) does not."""
        known = self._found.get((task, what, "there"))
        if why is None:
            if known is not None:
                known.now.discard(job)
            return
        if known is None or job not in known.jobs:
            known = self.add(task, what, "there", job, position, why)
        known.now.add(job)

    def ordered(self, tasks: Iterable[str]) -> list[Difference]:
        """Return what was found, by task in this order."""
        order = {name: number for number, name in enumerate(tasks)}
        return sorted(
            self._found.values(), key=lambda one: (order.get(one.task or "", -1), one.what, one.where)
        )


Renaming = tuple[str, str, str]
"""("task" or "repository", the old name, the new one), as a pipeline declares it."""

_ON_REPOSITORY = (
    e.RepositorySynced,
    e.RepositoryReset,
    e.ObservationHeld,
    e.RepositoryUnreachable,
    e.ChangesMissed,
    e.ContentHashed,
    e.ValuePut,
    e.ValueDeleted,
    e.StoreWriteIntended,
)
_ON_RUN = (
    e.RunStarted,
    e.RunAdopted,
    e.RunUnreachable,
    e.RunReachable,
    e.RunResized,
    e.StopDecided,
    e.RunEnded,
)
_ON_TASK = (
    e.LaunchDecided,
    e.RetryScheduled,
    e.CancelRequested,
    e.RetryRequested,
    e.ResultAccepted,
    e.TaskPaused,
    e.TaskResumed,
)


class NameMap:
    """Names in the log -> names in the other definition, at the position that is being read."""

    def __init__(
        self, definition: PipelineDef, renames: Sequence[e.Recorded] = (), was: Iterable[Renaming] = ()
    ) -> None:
        """Take all `Renamed` of the log, in order, and the renames that the other definition declares."""
        self._known = {
            "task": {task.name for task in definition.tasks},
            "repository": {leaf.id for leaf in definition.repositories},
        }
        self._was = {(what, old): new for what, old, new in was}
        self._renames = list(renames)
        self._position = 0
        self._found: dict[tuple[str, str], str | None] = {}

    def at(self, position: int) -> None:
        """Names are those of this position from here on."""
        self._position = position
        self._found.clear()

    def find(self, what: str, name: str) -> str | None:
        """Return what the other definition calls a recorded task or repository, None where it has none."""
        key = (what, name)
        if key not in self._found:
            self._found[key] = self._find(what, name)
        return self._found[key]

    def _find(self, what: str, name: str) -> str | None:
        line = [name]
        for position, event in self._renames:
            if position > self._position and isinstance(event, e.Renamed):
                if (event.what, event.old) == (what, line[-1]):
                    line.append(event.new)
        for old in reversed(line):
            new = self._was.get((what, old), old)
            if new in self._known[what]:
                return new
        return None

    def selection(self, selection: Selection) -> Selection:
        """Return a recorded selection in the other definition's names; what that does not have keeps its own."""

        def leaf(name: str) -> AnyExpr:
            view, _, task = name.removesuffix(")").partition("(")
            if view in VIEW_NAMES and name.endswith(")"):
                return In(leaf=view_id(self.find("task", task) or task, view))
            return In(leaf=self.find("repository", name) or name)

        tasks = tuple(self.find("task", task) or task for task in selection.tasks)
        jobs = selection.jobs
        if jobs is not None:
            jobs = fold(
                jobs,
                leaf,
                lambda part: Not(of=part),
                lambda parts: All(of=tuple(parts)),
                lambda parts: Anyone(of=tuple(parts)),
            )
        return msgspec.structs.replace(selection, tasks=tasks, jobs=jobs)


class EventMapper:
    """Maps recorded events to those for a state under another definition; `skipped` counts the rest by kind."""

    def __init__(self, definition: PipelineDef, digest: str, names: NameMap) -> None:
        self.definition, self.names = definition, names
        self._digest = digest
        self.defined = False
        self.skipped: Counter[str] = Counter()

    def of(self, state: State, event: e.Event) -> e.Event:
        """Return what to fold at this event's position; an event without effect where it has none there."""
        found = self._of(state, event)
        if found is not None:
            return found
        if not isinstance(event, e.PipelineDefined | e.Renamed):
            self.skipped[type(event).__name__] += 1
        return no_effect(event)

    def _of(self, state: State, event: e.Event) -> e.Event | None:
        if isinstance(event, e.PipelineDefined):
            if self.defined:
                return None
            self.defined = True
            return msgspec.structs.replace(event, definition=self.definition, digest=self._digest)
        if isinstance(event, e.Renamed):
            return None
        if isinstance(event, e.Evaluated):
            return self._evaluated(state, event)
        if isinstance(event, _ON_RUN):
            return event if event.run in state.open_runs else None
        if isinstance(event, _ON_REPOSITORY):
            return self._stored(state, event)
        if isinstance(event, _ON_TASK):
            return self._on_task(state, event)
        if isinstance(event, e.QuotaChanged):
            return event if event.quota in state.quotas else None
        return event

    def _stored(self, state: State, event: e.Event) -> e.Event | None:
        leaf = self.names.find("repository", event.repository or "")
        if leaf not in state.leaves or state.leaves[leaf].definition.derived is not None:
            return None
        return _renamed(event, repository=leaf)

    def _evaluated(self, state: State, event: e.Evaluated) -> e.Event | None:
        if event.what not in ("filter", "translation"):
            return self._on_task(state, event)
        leaf = self.names.find("repository", event.repository or "")
        derived = state.leaves[leaf].derived if leaf in state.leaves else None
        if derived is None or derived.what != event.what:
            return None
        return _renamed(event, repository=leaf)

    def _on_task(self, state: State, event: e.Event) -> e.Event | None:
        name = self.names.find("task", event.task or "")
        if name not in state.tasks:
            return None
        if not isinstance(event, e.LaunchDecided):
            return _renamed(event, task=name)
        task = state.tasks[name]
        episode = task.episodes.get(state.intern(event.job))
        if episode is not None and episode.run:
            return None
        own = task.request(state.intern(event.job))
        return _renamed(event, task=name, **({} if own == event.resources else {"resources": own}))


def no_effect(event: e.Event) -> e.Event:
    """Return an event without effect at the time of this one."""
    return e.UnknownEvent(at=event.at, name="", version=0)


def _renamed(event: e.Event, **fields: Any) -> e.Event:
    changed = {name: value for name, value in fields.items() if getattr(event, name) != value}
    return msgspec.structs.replace(event, **changed) if changed else event
