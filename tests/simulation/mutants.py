"""Bugs planted by hand, one at a time: a simulation that does not find them proves nothing.

Each is a context manager that makes the engine wrong in one way while it is entered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from datatask.engine.core import decide as deciding
from datatask.engine.core import fold, run_ends
from datatask.engine.core.quotas import Constraint
from datatask.engine.core.reactor import Reactor
from datatask.engine.core.retry import NextAttempt, NoRetry, verdict_of
from datatask.engine.core.run_book import RunBook
from datatask.engine.core.state import State
from datatask.engine.core.store_sync import StoreSync
from datatask.engine.core.tasks import TaskState
from datatask.engine.runtime.loop import Runtime
from datatask.engine.runtime.performing import Performer
from datatask.schema import events as e
from datatask.schema.messages import Ended

FAR = 1 << 60


@contextmanager
def planted(owner: object, name: str, value: Any) -> Iterator[None]:
    """Put something else in the place of what is right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value)
        yield


@contextmanager
def effects_before_the_disk() -> Iterator[None]:
    """Effects are performed when anything is durable, not when their own batch is."""
    perform = Performer.perform_until
    with planted(Performer, "perform_until", lambda self, head: perform(self, FAR)):
        yield


@contextmanager
def a_fact_applied_twice() -> Iterator[None]:
    """An end that is told again is recorded again."""
    known: dict[int, Any] = {}
    fact = RunBook.fact

    def twice(self: RunBook, told: Any, now: int) -> None:
        run = self._state.open_runs.get(told.run)
        if run is not None:
            known[told.run] = run
        elif isinstance(told, Ended) and told.run in known:
            again = known[told.run]
            self._outbox.emit([self._about(again, e.RunReachable, now)])
            return
        fact(self, told, now)

    with planted(RunBook, "fact", twice):
        yield


@contextmanager
def a_quota_freed_early() -> Iterator[None]:
    """What a run holds is given back when its stop is decided."""
    handler = fold._HANDLERS[e.StopDecided]

    def early(state: State, position: int, event: Any) -> None:
        handler(state, position, event)
        run = state.open_runs[event.run]
        if run.quota is not None:
            state.quotas[run.quota].free(run.resources)
            run.resources = {}

    with pytest.MonkeyPatch.context() as patch:
        handlers: dict[Any, Any] = fold._HANDLERS
        patch.setitem(handlers, e.StopDecided, early)
        yield


@contextmanager
def open_runs_forgotten() -> Iterator[None]:
    """A new engine does not look for the runs of the one before."""
    with planted(RunBook, "recoverable", lambda *_, **__: {}):
        yield


@contextmanager
def no_claim_on_a_launched_job() -> Iterator[None]:
    """The in-flight bit is never set."""
    with planted(State, "set_claim", lambda *_, **__: None):
        yield


@contextmanager
def no_backoff() -> Iterator[None]:
    """A retry is due at once, whatever was drawn."""
    due = TaskState.due
    with planted(TaskState, "due", lambda self, now, most: due(self, FAR, most)):
        yield


@contextmanager
def intents_not_redone() -> Iterator[None]:
    """What was about to be written when the engine died is left."""
    with planted(Reactor, "redo", lambda *_, **__: None):
        yield


@contextmanager
def a_listing_believed_for_its_end() -> Iterator[None]:
    """A listing deletes members that are newer than its beginning, also those that the store has told of since."""
    listed = StoreSync.listed

    def believed(
        self: Any, leaf: str, listing: Any, listed_at: int, began: int, *rest: Any, **more: Any
    ) -> bool:
        return listed(self, leaf, listing, listed_at, FAR, *rest, **{**more, "told": frozenset()})

    with planted(StoreSync, "listed", believed):
        yield


@contextmanager
def a_failed_append_overlooked() -> Iterator[None]:
    """The engine goes on when its log has failed."""
    with planted(Runtime, "fail", lambda *_, **__: None):
        yield


@contextmanager
def a_pause_not_heeded() -> Iterator[None]:
    """Paused tasks launch."""
    closed = deciding.closed

    def open_all_the_same(task: TaskState, unavailable: Any) -> Constraint | None:
        found = closed(task, unavailable)
        return None if found is not None and found.kind == "paused" else found

    with planted(deciding, "closed", open_all_the_same):
        yield


@contextmanager
def a_retry_without_an_end() -> Iterator[None]:
    """The view of a failed run is not told: `RunEnded` says final when a retry follows."""
    after = verdict_of

    def over(*arguments: Any, **options: Any) -> Any:
        told = after(*arguments, **options)
        return NoRetry() if isinstance(told, NextAttempt) and told.budget == "infrastructure" else told

    with planted(run_ends, "verdict_of", over):
        yield


@contextmanager
def stops_not_repeated() -> Iterator[None]:
    """A stop that the engine before decided and did not live to send is not sent."""
    with planted(RunBook, "stop_again", lambda *_, **__: None):
        yield


@contextmanager
def a_late_fact_revives_a_run() -> Iterator[None]:
    """Facts about closed runs start them anew."""
    late = RunBook._late

    def revived(self: Any, fact: Any, now: int) -> None:
        late(self, fact, now)
        self._outbox.emit([e.RunReachable(at=now, task="t0", job="j0", run=fact.run)])

    with planted(RunBook, "_late", revived):
        yield


MUTANTS: list[Callable[[], AbstractContextManager[None]]] = [
    effects_before_the_disk,
    a_fact_applied_twice,
    a_quota_freed_early,
    open_runs_forgotten,
    no_claim_on_a_launched_job,
    no_backoff,
    intents_not_redone,
    a_listing_believed_for_its_end,
    a_failed_append_overlooked,
    a_late_fact_revives_a_run,
    a_pause_not_heeded,
    a_retry_without_an_end,
    stops_not_repeated,
]
