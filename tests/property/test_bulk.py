"""Folding by columns: bit for bit what folding event by event gives, in any life, however it is cut into pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from datatask.engine.core.checkpoints import dump, load
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import State
from datatask.engine.replay.bulk import Bulk
from datatask.engine.replay.transitions import COLUMNAR, Meaning, Page
from datatask.schema import codec
from datatask.schema import events as e
from datatask.schema.definition import PipelineDef
from tests.property.test_state import families, lives, small
from tests.property.world import Action, World, refold


class Columns:
    """Events as pages, and what stands behind the numbers in them."""

    def __init__(self, events: Sequence[e.Event]) -> None:
        self.events = events
        self.numbers: dict[str | None, int] = {None: 0}
        self.names: dict[int, str | None] = {}
        self.meanings: dict[int, Meaning | None] = {}
        self.keys: dict[Meaning | None, int] = {}

    def _number(self, text: str | None) -> int:
        number = self.numbers.setdefault(text, len(self.numbers))
        self.names[number] = text
        return number

    def _key(self, event: e.Event) -> int:
        kind = type(event).__name__
        meaning = Meaning(kind, event.task, event.repository) if kind in COLUMNAR else None
        key = self.keys.setdefault(meaning, len(self.keys))
        self.meanings[key] = meaning
        return key

    def page(self, first: int, last: int) -> Page:
        """Return the events first..last as a page."""
        events = self.events[first - 1 : last]
        lines: dict[str, list[str]] = {kind: [] for kind in COLUMNAR}
        for event in events:
            if type(event).__name__ in COLUMNAR:
                lines[type(event).__name__].append((codec.encode(event).payload or b"{}").decode())
        return Page(
            first,
            [self._key(event) for event in events],
            [self._number(event.job) for event in events],
            [event.run or 0 for event in events],
            [event.at for event in events],
            {kind: codec.own_fields(kind, f"[{','.join(those)}]") for kind, those in lines.items()},
        )

    def meaning(self, key: int) -> Meaning | None:
        return self.meanings[key]

    def texts(self, numbers: Sequence[int]) -> Mapping[int, str]:
        return {number: self.names[number] or "" for number in numbers}

    def event(self, position: int) -> e.Event:
        return self.events[position - 1]


def in_bulk(state: State, events: Sequence[e.Event], sizes: Sequence[int]) -> Bulk:
    """Fold what is behind the state in pages of these sizes, over and over."""
    bulk, source, turn = Bulk(state), Columns(events), 0
    while state.position < len(events):
        first = state.position + 1
        bulk.fold(source.page(first, min(len(events), first + sizes[turn % len(sizes)] - 1)), source)
        turn += 1
        if turn % 7 == 0:
            bulk.settle()
    bulk.settle()
    return bulk


@st.composite
def plain_families(draw: st.DrawFn) -> tuple[PipelineDef, list[PipelineDef]]:
    """Families without derived leaves and, mostly, without priorities: there nearly every event has a step."""
    pipeline, others = draw(families())
    return _underived(pipeline), [_underived(other) for other in others]


def _underived(pipeline: PipelineDef) -> PipelineDef:
    repositories = tuple(
        msgspec.structs.replace(one, medium="native", derived=None) for one in pipeline.repositories
    )
    tasks = tuple(msgspec.structs.replace(task, priority=False) for task in pipeline.tasks[:2])
    return msgspec.structs.replace(pipeline, repositories=repositories, tasks=(*tasks, *pipeline.tasks[2:]))


anything = st.one_of(families(), plain_families(), plain_families())
sizes = st.lists(st.integers(1, 60), min_size=1, max_size=4)


@given(anything, lives, sizes)
def test_bulk_equals_the_fold(
    family: tuple[PipelineDef, list[PipelineDef]], life: list[Action], page_sizes: list[int]
) -> None:
    """From an empty state, in pages of any size."""
    world = World(*family)
    for action in life:
        world.act(action)
    state = State()
    in_bulk(state, world.events(), page_sizes)
    assert dump(state) == dump(refold(world.batches))


@given(anything, lives, sizes, small)
def test_bulk_goes_on_from_any_state(
    family: tuple[PipelineDef, list[PipelineDef]], life: list[Action], page_sizes: list[int], where: int
) -> None:
    """From a checkpoint, then folded in bulk, then plainly: the parts may be done either way."""
    world = World(*family)
    for action in life:
        world.act(action)
    events = world.events()
    cuts = sorted((len(events) * where // 15, len(events) * 12 // 15))
    state = State()
    apply_all(state, 1, events[: cuts[0]])
    state = load(dump(state))
    in_bulk(state, events[: cuts[1]], page_sizes)
    apply_all(state, state.position + 1, events[state.position :])
    assert dump(state) == dump(refold(world.batches))
