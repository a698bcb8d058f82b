"""The beginning of a simulated history: an engine opens an empty log, or goes on from the state of another.

In: a model. Out: the state, its reactor, and the first steps.
"""

from __future__ import annotations

from datatask import __version__
from datatask.adapters.sim.model import Model
from datatask.engine.core.checkpoints import load
from datatask.engine.core.effects import Step
from datatask.engine.core.fold import apply_all
from datatask.engine.core.reactor import Reactor
from datatask.engine.core.state import State
from datatask.schema import events as e

HOST = "simulated"


def opened(model: Model) -> tuple[State, tuple[Reactor, list[Step]]]:
    """Return the state of a log that an engine has just opened, its reactor, and the steps so far."""
    if model.present is not None:
        return _resumed(model, model.present)
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


def _resumed(model: Model, present: bytes) -> tuple[State, tuple[Reactor, list[Step]]]:
    """Return the present state of a log, and a reactor that goes on from it."""
    state = load(present)
    reactor, at = Reactor(state, model.chance), max(model.begin, state.at)
    reactor.go_on(at, model.definition)
    reactor.redo(at)
    return state, (reactor, [Step(state.position + 1, (), ()), *reactor.take()])
