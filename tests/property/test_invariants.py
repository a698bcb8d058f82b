"""Whatever life a pipeline has, its log keeps the invariants, and its rounds can be decided again."""

from __future__ import annotations

from hypothesis import given

from datatask.engine.audit.consistency import check, rederive
from datatask.engine.audit.invariants import Checker
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import State
from datatask.schema import events as e
from datatask.schema.definition import PipelineDef
from tests.property.test_state import families, lives
from tests.property.world import Action, World


@given(families(), lives)
def test_log_keeps_invariants(family: tuple[PipelineDef, list[PipelineDef]], life: list[Action]) -> None:
    """At every batch: no run twice, one end each, decisions admissible and derivable again, views consistent."""
    world = World(*family)
    for action in life:
        world.act(action)
    state, checker = State(), Checker()
    for batch in world.batches:
        assert checker.before(state, batch) == []
        if isinstance(batch[0], e.DecisionRound):
            assert rederive(state, batch[0], batch[1:]) == []  # type: ignore[arg-type]
        apply_all(state, state.position + 1, batch)
        assert checker.after(state) == []
        assert check(state) == []
