"""While engines are open Python's collector looks less often, and afterwards as before."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from datatask import InProcessMetadataRepository, InProcessSyncTask, Pipeline, Session
from datatask.adapters.wiring.event_loop import THRESHOLD, collect_seldom
from datatask.testing import MemoryLog


@pytest.fixture(autouse=True)
def threshold(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the thresholds back, whatever a test does; engines that other tests killed are none of these."""
    monkeypatch.setattr("datatask.adapters.wiring.event_loop._open", set())
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


def test_the_last_engine_to_close_puts_the_threshold_back() -> None:
    """Two at once, closed in any order, one of them twice."""
    first, second = collect_seldom(), collect_seldom()
    assert gc.get_threshold() == (THRESHOLD, 10, 10)
    first()
    first()
    assert gc.get_threshold() == (THRESHOLD, 10, 10)
    second()
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize("own", [0, THRESHOLD + 1])
def test_a_program_that_has_set_it_keeps_its_own(own: int) -> None:
    """Off, or less often still."""
    gc.set_threshold(own)
    put_back = collect_seldom()
    assert gc.get_threshold()[0] == own
    put_back()
    assert gc.get_threshold()[0] == own


def test_what_a_program_sets_meanwhile_stays() -> None:
    """It knows better than we do."""
    put_back = collect_seldom()
    gc.set_threshold(900)
    put_back()
    assert gc.get_threshold()[0] == 900


async def test_an_open_pipeline_is_such_an_engine() -> None:
    """From its opening to its closing."""

    async def body(job: str) -> None:
        """Do nothing."""

    task = InProcessSyncTask("task", InProcessMetadataRepository(), func=body)
    task.link("source", InProcessMetadataRepository(), is_input=True)
    async with Pipeline([task], Session(), log=MemoryLog()):
        assert gc.get_threshold()[0] == THRESHOLD
    assert gc.get_threshold()[0] == 700
