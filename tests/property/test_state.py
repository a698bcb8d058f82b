"""The incremental state under random pipelines and random lives: equal to the slow twin, to replay, to checkpoints."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from datatask.engine.core.checkpoints import dump, load
from datatask.engine.core.fold import apply
from datatask.engine.core.state import State
from datatask.schema import events as e
from datatask.schema.definition import PipelineDef
from tests.property.pipelines import pipelines, variants
from tests.property.twin import Twin
from tests.property.twin_difference import difference
from tests.property.world import ACTIONS, Action, World, refold

small = st.integers(0, 15)
FREQUENT = (
    "put",
    "decide",
    "decide",
    "work",
    "work",
    "end",
    "end",
    "flush",
    "sync_all",
    "written",
    "evaluate",
)
verbs = st.one_of(st.sampled_from(ACTIONS), st.sampled_from(FREQUENT))
BEGIN: list[Action] = [("sync_all", 0, 0, 0), ("put_many", 0, 0, 0), ("put_many", 1, 1, 0), ("work", 0, 0, 0)]
lives = st.lists(st.tuples(verbs, small, small, small), min_size=12, max_size=50).map(
    lambda life: BEGIN + life
)


@st.composite
def families(draw: st.DrawFn) -> tuple[PipelineDef, list[PipelineDef]]:
    """A pipeline and what it may become."""
    first = draw(pipelines())
    return first, draw(st.lists(variants(first), max_size=2))


class Watched(World):
    """A world in which the twin follows every batch and is compared after each."""

    def __init__(self, pipeline: PipelineDef, others: list[PipelineDef]) -> None:
        self.twin = Twin()
        super().__init__(pipeline, others)

    def open(self) -> None:
        self.on_open, self.on_batch = self._refold_twin, self._follow
        super().open()

    def _refold_twin(self) -> None:
        self.twin, self.position = Twin(), 0
        for batch in self.batches:
            self._take(batch)
        assert difference(self.twin, self.state) == []

    def _take(self, batch: tuple[e.Event, ...]) -> None:
        for event in batch:
            self.position += 1
            self.twin.apply(self.position, event)

    def _follow(self, state: State, batch: tuple[e.Event, ...]) -> None:
        self._take(batch)
        if self.position == state.position:
            assert difference(self.twin, state) == []


@given(families(), lives)
def test_state_equals_slow_twin(family: tuple[PipelineDef, list[PipelineDef]], life: list[Action]) -> None:
    """After every step, memberships, queues, episodes, counts and usage are what recomputing from scratch gives."""
    world = Watched(*family)
    for action in life:
        world.act(action)


@given(families(), lives, small)
def test_replay_equals_life(
    family: tuple[PipelineDef, list[PipelineDef]], life: list[Action], where: int
) -> None:
    """Folding from empty, and from a checkpoint in the middle, gives the live state bit for bit."""
    world = World(*family)
    for action in life:
        world.act(action)
    live = dump(world.state)
    assert dump(refold(world.batches)) == live
    events = world.events()
    cut = len(events) * where // 15
    middle = load(dump(refold([tuple(events[:cut])])))
    for position, event in enumerate(events[cut:], cut + 1):
        apply(middle, position, event)
    assert dump(middle) == live
