"""Which results are out of date, and why: what a state suspects, held against the contents that the log recorded.

In: a log and its state. Out: `Staleness`, by task the stale results and those of which it is not known; and the `StaleCause`s of one
result: another fingerprint, an input or output with another content, or a stale value that it was made of, back to the root.
A value that was put again as it was makes nothing stale, nor does one that a run of the pipeline changed or removed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
from pyroaring import BitMap

from datatask.adapters.history.images import outdated
from datatask.adapters.history.lineage import digest_of
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.cells import get_at
from datatask.engine.core.staleness import Suspect, filled_by, is_accepted, key_in, look, sources, spread
from datatask.engine.core.state import State
from datatask.engine.core.tasks import TaskState
from datatask.engine.ports import Filters
from datatask.schema import events as e
from datatask.schema.definition import PipelineDef, TaskDef

SLICE = 500
DEPTH_MAX = 100
DIGEST_SHOWN = 12
VERSION = "version"


class Staleness(NamedTuple):
    """By task, the results that are out of date, those of them by themselves, and those of which it is not known."""

    stale: dict[str, BitMap]
    own: dict[str, BitMap]
    unknown: dict[str, BitMap]


class StaleCause(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What makes a result stale: `name` is a component of the code, or a link; `old` and `new` what it was and is.

    `position` is where the change is in the log. With `what` "upstream" the value of the link was made by `task` for `job`, whose
    result is stale for `because`.
    """

    what: str
    name: str
    old: str = ""
    new: str = ""
    position: int | None = None
    task: str = ""
    job: str = ""
    because: tuple[StaleCause, ...] = ()

    @property
    def text(self) -> str:
        """The cause in words."""
        if self.what == "upstream":
            roots = "; ".join(cause.text for cause in self.because)
            return f"{self.name} was made by {self.task} for {self.job}, which is out of date: {roots}"
        change = f": {self.old} -> {self.new}" if self.old or self.new else " is another one"
        where = f" (position {self.position})" if self.position else ""
        return (
            f"{self.what} {self.name}{change}{where}"
            if self.what != "code"
            else f"{self.name}{change}{where}"
        )


class Changed(NamedTuple):
    """A suspect whose content differs: the positions of the value that the run had, and of the one that is there now."""

    suspect: Suspect
    before: int | None
    old: str
    new: str


class Learned(NamedTuple):
    """What a state knows beyond its log: events by position, and the digest that a repository's job has at a version now."""

    events: Mapping[int, e.Event] = {}
    digest: Callable[[str, str, str], str | None] = lambda repository, job, version: None


NOTHING = Learned()


def find_stale(reader: LogReader, state: State, learned: Learned = NOTHING) -> Staleness:
    """Return which results are out of date, of all tasks that do not keep theirs."""
    found = look(state)
    own = {task: BitMap(jobs) for task, jobs in found.code.items()}
    unknown = {task: BitMap(jobs) for task, jobs in found.unknown.items()}
    checks = Checks(reader, state, learned)
    last: dict[tuple[str, int], int] = {}
    for changed in checks.changed(found.suspects):
        suspect = changed.suspect
        own[suspect.task].add(suspect.job)
        if state.accepted:
            key, position = (suspect.task, suspect.job), abs(suspect.position)
            last[key] = max(last.get(key, 0), position)
    for suspect in checks.untold:
        unknown[suspect.task].add(suspect.job)

    for image in outdated(reader, state):
        own[image.task].add(image.job)
        last[image.task, image.job] = max(last.get((image.task, image.job), 0), image.position)

    def changed_at(task: str, job: int) -> int:
        by_code = state.fingerprints[task][-1][0] if job in found.code[task] else 0
        return max(by_code, last.get((task, job), 0))

    stale = spread(state, own, changed_at)
    return Staleness(stale, own, {task: jobs - stale[task] for task, jobs in unknown.items()})


class Checks:
    """Holds suspects against the log; `untold` are those of which it does not tell."""

    def __init__(self, reader: LogReader, state: State, learned: Learned = NOTHING) -> None:
        self._reader, self._state, self._learned = reader, state, learned
        self._base, self._head = reader.header.base, reader.head
        self.untold: list[Suspect] = []

    def changed(self, suspects: Iterable[Suspect]) -> Iterator[Changed]:
        """Yield those whose contents differ."""
        waiting: list[Suspect] = []
        for suspect in suspects:
            if suspect.what == "input" and suspect.position < 0:
                continue  # without its input nothing can be computed again
            if self._head < abs(suspect.position) not in self._learned.events:
                continue  # an engine at work has decided it, and has not written it yet
            if min(suspect.run, abs(suspect.position)) <= self._base:
                self.untold.append(suspect)
                continue
            waiting.append(suspect)
            if len(waiting) == SLICE:
                yield from self._slice(waiting)
                waiting = []
        yield from self._slice(waiting)

    def _slice(self, suspects: list[Suspect]) -> Iterator[Changed]:
        positions = sorted({at for each in suspects for at in (each.run, abs(each.position))})
        recorded = [position for position in positions if position not in self._learned.events]
        events = dict(self._learned.events) | dict(zip(recorded, self._reader.fetch(recorded), strict=True))
        for suspect in suspects:
            launch, now = events[suspect.run], events[abs(suspect.position)]
            assert isinstance(launch, e.LaunchDecided), "a run's number is the position of its launch"
            found = (
                self._output(suspect, now) if suspect.what == "output" else self._input(suspect, launch, now)
            )
            if found is not None:
                yield found

    def _input(self, suspect: Suspect, launch: e.LaunchDecided, now: e.Event) -> Changed | None:
        job = self._state.jobs[suspect.key]
        read = self._decided_on(suspect, launch, job)
        if now.run == suspect.run:
            return None
        ended = self._end(suspect)  # it may have read another value than it was decided on
        reads = (ended.reads or {}) if ended is not None else {}
        read = reads.get(suspect.leaf if suspect.key == suspect.job else f"{suspect.leaf}/{job}", read)
        if read == suspect.position:
            return None
        before = None if read is None else self._event(read)
        return self._differing(suspect, read, before, now)

    def _decided_on(self, suspect: Suspect, launch: e.LaunchDecided, job: str) -> int | None:
        """Return the position of the value that the launch was decided on."""
        for name, position in launch.inputs.items():
            if name == suspect.link:
                return position
            if name.startswith(f"{suspect.link}."):
                event = self._event(position)
                if event is not None and (event.repository, event.job) == (suspect.leaf, job):
                    return position
        return None

    def _end(self, suspect: Suspect) -> e.RunEnded | None:
        filters = Filters(kinds=("RunEnded",), jobs=(self._state.jobs[suspect.job],))
        for found in self._reader.read(suspect.run, self._state.position, filters):
            if found.event.run == suspect.run and isinstance(found.event, e.RunEnded):
                return found.event
        return None

    def _output(self, suspect: Suspect, now: e.Event) -> Changed | None:
        if now.run is not None:
            return None  # a run of the pipeline did that: consuming and rewriting is its work
        filters = Filters(
            kinds=("ValuePut", "ValueDeleted"),
            repositories=(suspect.leaf,),
            jobs=(self._state.jobs[suspect.key],),
        )
        put = list(self._reader.read(suspect.run, self._state.position, filters))
        own = [one for one in put if one.event.run == suspect.run] or put[
            :1
        ]  # what a process wrote is observed
        if not own or own[-1].position == abs(suspect.position) or not isinstance(own[-1].event, e.ValuePut):
            return None
        return self._differing(suspect, own[-1].position, own[-1].event, now)

    def _differing(
        self, suspect: Suspect, read: int | None, before: e.Event | None, now: e.Event
    ) -> Changed | None:
        if read is not None and before is None:
            self.untold.append(suspect)
            return None
        old, new = self.content(before), self.content(now)
        if old == new:
            return None
        if VERSION in (old.partition(" ")[0], new.partition(" ")[0]) and self._is_unknown(suspect):
            self.untold.append(suspect)  # its run was before contents were hashed
            return None
        if self._was_accepted(suspect, new):
            return None
        return Changed(suspect, read, old, new)

    def _was_accepted(self, suspect: Suspect, content: str) -> bool:
        """Whether the value had this content when the result was accepted."""
        if not is_accepted(self._state, self._state.tasks[suspect.task], suspect.job):
            return False
        at, job = self._state.accepted[suspect.task][suspect.job], self._state.jobs[suspect.key]
        kinds = ("ValuePut", "ValueDeleted")
        filters = Filters(kinds=kinds, repositories=(suspect.leaf,), jobs=(job,))
        then = next((one.event for one in self._reader.read_back(0, at, filters, page_rows=1)), None)
        return self.content(then) == content

    def _is_unknown(self, suspect: Suspect) -> bool:
        """Whether nothing was recorded of the code that a run executed."""
        history = self._state.fingerprints.get(suspect.task, [])
        index = bisect_right(history, (suspect.run, "g"))  # digests are in hex
        return index == 0 or not history[index - 1][1]

    def content(self, event: e.Event | None) -> str:
        """Return what tells a value's content from others: a digest, or the store's version where there is none."""
        if not isinstance(event, e.ValuePut):
            return "absent"
        digest = digest_of(event)
        if digest is None and event.version is not None and event.repository is not None:
            filters = Filters(kinds=("ContentHashed",), repositories=(event.repository,), jobs=(event.job,))
            for found in self._reader.read(until=self._state.position, filters=filters):
                if isinstance(found.event, e.ContentHashed) and found.event.version == event.version:
                    digest = found.event.digest
            digest = digest or self._learned.digest(event.repository, event.job, event.version)
        return f"{VERSION} {event.version}" if digest is None else f"sha256:{digest[:DIGEST_SHOWN]}"

    def _event(self, position: int) -> e.Event | None:
        if position <= self._base or position in self._learned.events:
            return self._learned.events.get(position)
        (event,) = self._reader.fetch([position])
        return event


# --- the causes of one result -------------------------------------------------------------------------


def causes_of(reader: LogReader, state: State, task: str, job: str) -> tuple[StaleCause, ...]:
    """Return what makes the result of a job stale; empty for one that is fresh, unknown or none."""
    index = state.job_index.get(job)
    if index is None or task not in state.tasks:
        return ()
    return Causes(reader, state, find_stale(reader, state)).of(state.tasks[task], index)


class Causes:
    """Tells what makes single results stale."""

    def __init__(self, reader: LogReader, state: State, found: Staleness) -> None:
        self._reader, self._state, self._found = reader, state, found
        self._fills = filled_by(state)

    def of(self, task: TaskState, job: int, depth: int = 0) -> tuple[StaleCause, ...]:
        """Return the causes of a job's result, back to the root; empty for one that is not stale."""
        if job not in self._found.stale.get(task.name, BitMap()):
            return ()
        if job in self._found.own[task.name]:
            return (*self._code(task, job), *self._values(task, job), *self._images(task, job))
        return tuple(self._upstream(task, job, depth + 1)) if depth < DEPTH_MAX else ()

    def _code(self, task: TaskState, job: int) -> Iterator[StaleCause]:
        state, run = self._state, get_at(task.last_run, job)
        filters = Filters(kinds=("PipelineDefined",))
        then = next((one.event for one in self._reader.read_back(0, run, filters, page_rows=1)), None)
        if not isinstance(then, e.PipelineDefined):
            return
        for name, old, new in code_changes(then.definition, state.definition, task.name):
            yield StaleCause(what="code", name=name, old=old, new=new, position=state.defined_at)

    def _values(self, task: TaskState, job: int) -> Iterator[StaleCause]:
        suspects = [one for one in look(self._state, [task.name]).suspects if one.job == job]
        for changed in Checks(self._reader, self._state).changed(suspects):
            suspect = changed.suspect
            about = f"{suspect.link} of {self._state.jobs[suspect.key]}"
            yield StaleCause(
                what=suspect.what,
                name=about,
                old=changed.old,
                new=changed.new,
                position=abs(suspect.position),
            )

    def _images(self, task: TaskState, job: int) -> Iterator[StaleCause]:
        for one in outdated(self._reader, self._state):
            if (one.task, one.job) == (task.name, job):
                about = {"old": one.old, "new": one.new, "position": one.position}
                yield StaleCause(what="image", name=one.name, **about)  # type: ignore[arg-type]

    def _upstream(self, task: TaskState, job: int, depth: int) -> Iterator[StaleCause]:
        state = self._state
        for maker, link, leaf in sources(state, task, self._fills):
            key = key_in(leaf, job)
            if key >= 0 and key in self._found.stale[maker]:
                because = self.of(state.tasks[maker], key, depth)
                yield StaleCause(what="upstream", name=link, task=maker, job=state.jobs[key], because=because)


def code_changes(before: PipelineDef, now: PipelineDef, task: str) -> Iterator[tuple[str, str, str]]:
    """Yield the components of a task's code that differ: their names, and of parameters both values as text."""
    old, new = _task_in(before, task), _task_in(now, task)
    if old is None or new is None or not old.fingerprint:
        return
    for name in sorted(old.fingerprint.keys() | new.fingerprint.keys()):
        if old.fingerprint.get(name) != new.fingerprint.get(name):
            what, _, rest = name.partition(" ")
            is_parameter = what == "parameter"
            yield name, *((_parameter(before, rest), _parameter(now, rest)) if is_parameter else ("", ""))


def _parameter(definition: PipelineDef, name: str) -> str:
    return next((str(one.value) for one in definition.parameters if one.name == name), "none")


def _task_in(definition: PipelineDef, name: str) -> TaskDef | None:
    return next((task for task in definition.tasks if task.name == name), None)


def counts(found: Staleness) -> dict[str, dict[str, int]]:
    """Return, by task, how many results are stale and of how many it is not known."""
    return {
        task: {"stale": len(jobs), "unknown": len(found.unknown.get(task, BitMap()))}
        for task, jobs in found.stale.items()
    }


def stale_lines(found: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """Return a sentence for each task that has stale results."""
    return {
        task: f"has {amount['stale']} result{'s' * (amount['stale'] != 1)} out of date: `datatask ls 'stale({task})'` lists, `datatask why {task} JOB` explains"
        for task, amount in found.items()
        if amount["stale"]
    }


def shape(causes: Iterable[StaleCause]) -> list[dict[str, Any]]:
    """Return causes as plain values."""
    return [msgspec.to_builtins(cause) for cause in causes]
