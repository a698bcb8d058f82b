"""Which results are stale, by columns of positions, against the same from the events alone, in any life of any pipeline."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap

from datatask.engine.core.expressions import leaves_of
from datatask.engine.core.leaves import LeafState
from datatask.engine.core.staleness import key_in, look, read_by, spread, stored, suspected
from datatask.engine.core.state import State
from datatask.schema import events as e
from datatask.schema.definition import In, PipelineDef, TaskDef
from tests.property.test_state import families, lives
from tests.property.world import Action, World

Result = tuple[str, str]
Suspected = tuple[str, str, str, str, str, int]


class Slow:
    """The answers from a list of events; of the state it takes who has succeeded, and what stands for what."""

    def __init__(self, state: State, events: list[e.Event]) -> None:
        self.state, self.events = state, events
        self.code: set[Result] = set()
        self.unknown: set[Result] = set()
        self.suspects: set[Suspected] = set()
        for task in state.definition.tasks:
            if task.on_change != "keep":
                for job in state.members(state.tasks[task.name].succeeded.id):
                    self._result(task, job)

    def _result(self, task: TaskDef, job: str) -> None:
        run = self._last_run(task.name, job)
        then = self._fingerprint(task.name, run)
        if not run or not then or not task.fingerprint:
            self.unknown.add((task.name, job))
        elif then != task.fingerprint:
            self.code.add((task.name, job))
        if not run:
            return
        for link in task.links:
            if link.is_input:
                for leaf in leaves_of(link.expr):
                    own, key = stored(self.state.leaves[leaf]), self._key(self.state.leaves[leaf], job)
                    if key is not None and (position := self._position(own.id, key)) > run:
                        self.suspects.add((task.name, job, "input", own.id, key, position))
            if link.is_output and isinstance(link.expr, In):
                position = self._position(link.expr.leaf, job)
                done = self._position(task.done, job) if task.done is not None else 0
                if abs(position) > max(run, done):
                    self.suspects.add((task.name, job, "output", link.expr.leaf, job, position))

    def _key(self, leaf: LeafState, job: str) -> str | None:
        key = key_in(leaf, self.state.job_index[job])
        return None if key < 0 else self.state.jobs[key]

    def _last_run(self, task: str, job: str) -> int:
        """Return the last run; 0 also where the task was out of the pipeline since."""
        for position in range(len(self.events), 0, -1):
            event = self.events[position - 1]
            if isinstance(event, e.LaunchDecided) and (event.task, event.job) == (task, job):
                return position
            if (
                isinstance(event, e.PipelineDefined)
                and self._of(event, task) is None
                and not self._open(task, position)
            ):
                return 0
        return 0

    def _open(self, task: str, until: int) -> bool:
        """Whether a run of the task was open at a position."""
        open_runs: set[int] = set()
        for position, event in enumerate(self.events[:until], 1):
            if isinstance(event, e.LaunchDecided) and event.task == task:
                open_runs.add(position)
            if isinstance(event, e.RunEnded):
                open_runs.discard(event.run)
        return bool(open_runs)

    def _fingerprint(self, task: str, run: int) -> dict[str, str]:
        for event in reversed(self.events[:run]):
            if isinstance(event, e.PipelineDefined):
                found = self._of(event, task)
                return {} if found is None else found.fingerprint
        return {}

    def _of(self, event: e.PipelineDefined, task: str) -> TaskDef | None:
        return next((one for one in event.definition.tasks if one.name == task), None)

    def _position(self, leaf: str, job: str) -> int:
        """Return where the value was put, negative where it was removed."""
        found = 0
        for position, event in enumerate(self.events, 1):
            if isinstance(event, e.ValuePut) and (event.repository, event.job) == (leaf, job):
                found = position
            elif (isinstance(event, e.ValueDeleted) and (event.repository, event.job) == (leaf, job)) or (
                isinstance(event, e.RepositoryReset) and event.repository == leaf and found > 0
            ):
                found = -position
        return found

    def spread(self, own: set[Result]) -> set[Result]:
        """Return these results and all that was made of them, one step after the other."""
        stale = set(own)
        while more := set(self._made_of(stale)) - stale:
            stale |= more
        return stale

    def _made_of(self, stale: set[Result]) -> Iterator[Result]:
        for task in self.state.definition.tasks:
            if task.on_change == "keep":
                continue
            for job in self.state.members(self.state.tasks[task.name].succeeded.id):
                for leaf in (leaf for link in task.links if link.is_input for leaf in leaves_of(link.expr)):
                    key = self._key(self.state.leaves[leaf], job)
                    for maker in self.state.definition.tasks:
                        fills = In(leaf=stored(self.state.leaves[leaf]).id) in [
                            link.expr for link in maker.links if link.is_output
                        ]
                        if fills and maker.name != task.name and (maker.name, key) in stale:
                            yield task.name, job


@st.composite
def changing(draw: st.DrawFn) -> tuple[PipelineDef, list[PipelineDef]]:
    """A pipeline and its variants, in which the code of tasks differs, too."""
    first, variants = draw(families())

    def with_code(pipeline: PipelineDef) -> PipelineDef:
        tasks = (
            msgspec.structs.replace(
                task,
                fingerprint=draw(st.sampled_from([{}, {"function f": "0a"}, {"function f": "0b"}])),
                on_change=draw(st.sampled_from(["mark", "mark", "rerun", "keep"])),
            )
            for task in pipeline.tasks
        )
        return msgspec.structs.replace(pipeline, tasks=tuple(tasks))

    return with_code(first), [with_code(variant) for variant in variants]


def named(state: State, found: dict[str, BitMap]) -> set[Result]:
    """Return results by name."""
    return {(task, state.jobs[job]) for task, jobs in found.items() for job in jobs}


@given(changing(), lives)
def test_positions_tell_what_events_tell(
    family: tuple[PipelineDef, list[PipelineDef]], life: list[Action]
) -> None:
    world = World(*family)
    for action in life:
        world.act(action)
    state = world.state
    slow, fast = Slow(state, world.events()), look(state)
    assert named(state, fast.code) == slow.code
    assert named(state, fast.unknown) == slow.unknown
    suspects = {
        (one.task, state.jobs[one.job], one.what, one.leaf, state.jobs[one.key], one.position)
        for one in fast.suspects
    }
    assert suspects == slow.suspects
    own = {task: BitMap(jobs) for task, jobs in fast.code.items()}
    for one in fast.suspects:
        own[one.task].add(one.job)
        assert one.leaf in read_by(state, state.tasks[one.task])
        assert one.job in suspected(state, state.tasks[one.task], one.leaf, one.key)
    assert named(state, spread(state, own)) == slow.spread(named(state, own))
