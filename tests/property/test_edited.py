"""After any edits, `on_change="rerun"` until quiet gives the values that a run from nothing gives."""

from __future__ import annotations

import pytest
from pyroaring import BitMap

from datatask.adapters.history.stale import Checks
from datatask.engine.core import staleness
from datatask.engine.core.staleness import Suspect
from datatask.schema import events as e
from tests.effort import by_effort
from tests.property.edited import Edited

HISTORIES = by_effort(quick=300, thorough=10_000, soak=200_000)
MUTANT_HISTORIES = 400


def wrong(seed: int) -> list[str]:
    life = Edited(seed)
    life.live()
    return life.wrong()


@pytest.mark.scaled
def test_a_pipeline_that_was_edited_ends_where_one_from_nothing_does() -> None:
    found = {seed: why for seed in range(HISTORIES) if (why := wrong(seed))}
    assert found == {}


def test_the_histories_have_what_they_are_to_have() -> None:
    """Edits meet open runs, equal results stop what follows, and engines are killed."""
    lives = [Edited(seed) for seed in range(100)]
    for life in lives:
        life.live()
    assert sum(life.runs for life in lives) > 400
    kinds = {type(event).__name__ for life in lives for event in life.log.events}
    assert {"RetryRequested", "ValueDeleted", "EngineClosed", "RetryScheduled"} <= kinds


_real_input = Checks._input


def _decided_on_is_read(self: Checks, suspect: Suspect, launch: e.LaunchDecided, now: e.Event) -> object:
    """Believe that a run has read what it was decided on, though the value may have changed between."""
    read = self._decided_on(suspect, launch, self._state.jobs[suspect.key])
    if read is not None and self.content(self._event(read)) == self.content(now):
        return None
    return _real_input(self, suspect, launch, now)


def _outputs_are_kept(self: Checks, suspect: object, now: object) -> None:
    """Believe that nobody changes outputs."""


@pytest.mark.parametrize(
    ("name", "mutant"), [("_input", _decided_on_is_read), ("_output", _outputs_are_kept)]
)
def test_a_planted_mistake_is_found(name: str, mutant: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checks, name, mutant)
    assert any(wrong(seed) for seed in range(MUTANT_HISTORIES))


def test_a_change_of_code_that_is_not_seen_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = staleness.look

    def blind(*arguments: object) -> staleness.Look:
        found = real(*arguments)  # type: ignore[arg-type]
        return found._replace(code={task: BitMap() for task in found.code})

    monkeypatch.setattr("datatask.adapters.wiring.reruns.look", blind)
    assert any(wrong(seed) for seed in range(MUTANT_HISTORIES))
