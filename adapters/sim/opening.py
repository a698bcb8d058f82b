"""The beginning of a simulated history: an engine opens an empty log, or goes on from the state of another.

In: a model. Out: the state, its reactor, and the first steps.
"""

from __future__ import annotations

from datatask import __version__
from datatask.adapters.sim.model import Model
from datatask.engine.core.effects import Step
from datatask.engine.core.fold import apply_all
from datatask.engine.core.reactor import Reactor
from datatask.engine.core.state import State
from datatask.schema import events as e

HOST = "simulated"


def opened(model: Model) -> tuple[State, tuple[Reactor, list[Step]]]:
    """Return the state of a log that an engine has just opened, its reactor, and the steps so far."""
    state, begin = State(), model.begin
    created = e.LogCreated(at=begin, log=model.uuid, pipeline=model.definition.name)
    apply_all(state, 1, [created])
    reactor = Reactor(state, model.chance)
    reactor.open(
        e.EngineOpened(at=begin, version=__version__, host=HOST, pid=1, boot=HOST, epoch=1), model.definition
    )
    for leaf in state.leaves.values():
        if leaf.definition.medium == "foreign":
            reactor.listed(leaf.id, [], begin, state.position, begin)
    return state, (reactor, [Step(1, (created,), ()), *reactor.take()])
