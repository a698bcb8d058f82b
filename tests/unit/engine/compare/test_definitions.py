"""One log under two definitions, by hand."""

from __future__ import annotations

from datatask.engine.compare.definitions import Comparison
from datatask.schema import events as e
from datatask.schema.messages import Ended
from tests.unit.core_kit import Desk, pipeline, task


def test_a_forced_run_whose_condition_does_not_hold_makes_no_difference() -> None:
    """The engine tries it no more, although the machine ended it: the same definition finds nothing else."""
    desk = Desk(pipeline(task("t", "a")))
    desk.reactor.launch(e.LaunchDecided(at=0, task="t", job="x", episode=0, attempt=0, origin="forced"))
    desk.take()
    (run,) = desk.state.open_runs
    desk.started(run)
    desk.reactor.runs.fact(Ended(run, e.Ending(outcome="lost", detail={e.MACHINE: "stopped"})), desk.now)
    (end,) = (event for event in desk.take() if isinstance(event, e.RunEnded))
    assert end.final
    comparison = Comparison(desk.definition)
    comparison.take(e.Batch(1, (desk.events[0],)))
    first = 2
    for events in desk.batches:
        comparison.take(e.Batch(first, events))
        first += len(events)
    assert comparison.differences() == []
