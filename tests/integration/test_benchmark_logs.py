"""The logs that benchmarks are run on are what an engine would have written."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.logs import make_log
from datatask.adapters.log.integrity.verify import verify_chain
from datatask.adapters.log.reader import LogReader
from datatask.engine.audit import consistency, invariants
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import State
from datatask.schema import events as e
from datatask.schema.codec import encode


@pytest.mark.parametrize(("jobs", "stages"), [(1, 1), (650, 3)])
def test_their_chain_holds_and_their_rounds_derive_again(tmp_path: Path, jobs: int, stages: int) -> None:
    head = make_log(tmp_path / "log.db", jobs, stages)
    state, checker, wrong = State(), invariants.Checker(), []
    with LogReader(tmp_path / "log.db") as reader:
        assert reader.head == head
        assert verify_chain(reader) is None
        for batch in reader.batches():
            wrong += checker.before(state, batch.events)
            if isinstance(batch.events[0], e.DecisionRound):
                wrong += consistency.rederive(state, batch.events[0], batch.events[1:])  # type: ignore[arg-type]
            apply_all(state, batch.first, batch.events)
            wrong += checker.after(state)
    assert wrong + consistency.check(state) == []
    assert [task.succeeded.count for task in state.tasks.values()] == [jobs] * stages
    assert jobs * (1 + 5 * stages) < head < jobs * (1 + 5 * stages) + 20


def test_their_payloads_are_those_of_the_codec(tmp_path: Path) -> None:
    make_log(tmp_path / "log.db", 5)
    with LogReader(tmp_path / "log.db") as reader:
        for stored, row in reader.rows():
            (event,) = reader.fetch([stored[0]])
            assert encode(event).payload == row.payload
