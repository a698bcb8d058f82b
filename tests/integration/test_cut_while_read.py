"""A log is cut between two pages of somebody who reads it: they are answered as before, or told; never of damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datatask import verify
from datatask.adapters.history.replay import replayed
from datatask.adapters.history.states import fold, refold
from datatask.adapters.history.verify.verify import verify_log
from datatask.adapters.log import columns, queries
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.checkpoints import fingerprint
from datatask.schema.errors import DatataskError, TemporaryError, UnknownNameError
from tests.integration import test_archives
from tests.integration.archive_kit import cut_at

log = test_archives.log
_cache = test_archives._cache


class CutReader(LogReader):
    """A reader under whose eyes the log is cut at `at`, right before its `after`-th look at the file."""

    def __init__(self, place: Path, at: int, after: int) -> None:
        super().__init__(place)
        self._looks, self._at, self._when = 0, at, after
        self.cut = False

    def _ask(self, query: queries.Query) -> list[tuple[Any, ...]]:
        # Looks at the header are those that find out about the cut.
        if query.sql != queries.META and hasattr(self, "_when"):
            self._looks += 1
            if self._looks >= self._when and not self.cut:
                self.cut = True
                cut_at(self.path, self._at)
        return super()._ask(query)


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "PAGE_ROWS", 30)
    monkeypatch.setattr(columns, "ROWS_MAX", 20)
    monkeypatch.setattr(columns, "ROWS_MIN", 10)
    monkeypatch.setattr(columns, "SHORT", 50)


LOOKS = (2, 4, 7, 11)


@pytest.mark.parametrize("after", LOOKS)
@pytest.mark.parametrize(
    "answer",
    [
        lambda reader, head: fingerprint(fold(reader, head)),
        lambda reader, head: fingerprint(refold(reader, head)),
        lambda reader, head: fingerprint(replayed(reader, head).state),
        lambda reader, head: fingerprint(replayed(reader, head, verify=True).state),
        lambda reader, head: verify_log(reader).ok and verify(reader.path).ok,
    ],
)
def test_a_state_and_a_verdict_are_as_without_the_cut(
    log: Path, answer: Callable[[LogReader, int], Any], after: int
) -> None:
    with LogReader(log) as reader:
        head = reader.head
        expected = answer(reader, head)
    with CutReader(log, 150, after) as cut:
        assert answer(cut, head) == expected
        assert cut.cut or after > 2


@pytest.mark.parametrize("after", LOOKS)
def test_a_state_that_is_archived_meanwhile_is_named_as_that(log: Path, after: int) -> None:
    with CutReader(log, 150, after) as cut:
        until = cut.end_of_batch(100)
        told = _told(lambda: fold(cut, until).position)
    assert told == until or (isinstance(told, UnknownNameError) and "--with-archives" in told.remedy)


@pytest.mark.parametrize("after", LOOKS)
@pytest.mark.parametrize(
    "ask",
    [
        lambda reader: [found.position for found in reader.read()],
        lambda reader: [found.position for found in reader.read_back()],
        lambda reader: [batch.first for batch in reader.batches()],
    ],
)
def test_who_reads_events_gets_all_or_is_told(
    log: Path, ask: Callable[[LogReader], list[int]], after: int
) -> None:
    with LogReader(log) as reader:
        expected = ask(reader)
    with CutReader(log, 150, after) as cut:
        told = _told(lambda: ask(cut))
    assert told == expected or (isinstance(told, TemporaryError) and "archived just now" in told.what)


def _told(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except DatataskError as error:
        return error
