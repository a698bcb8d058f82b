"""What a log says, for commands that only read, and what the stores would add to it now.

In: the settings and a WHEN, or a pipeline. Out: a reader, and the state at a batch boundary, from the newest checkpoint before it and
the events after; or a copy of the state under the pipeline's present definition, which after `look` knows what a listing of the
stores finds and user code says of it (`plan`, and pipelines without a log yet). Nothing is written; SQLAlchemy stays out.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from datatask.adapters.cli.foreseen import Foreseen
from datatask.adapters.cli.settings import Settings
from datatask.adapters.cli.terminal import raise_if_interrupted
from datatask.adapters.clock import SystemClock, effort
from datatask.adapters.history.moments import When, position_of
from datatask.adapters.history.states import fold
from datatask.adapters.log.locate import locate
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.cells import get_at
from datatask.engine.core.define import define
from datatask.engine.core.effects import Evaluation
from datatask.engine.core.fold import apply
from datatask.engine.core.leaves import version_hash
from datatask.engine.core.state import State
from datatask.engine.ports import Store
from datatask.schema import definition as d
from datatask.schema import events as e
from datatask.schema.errors import NoLogError, OtherPipelineError, TemporaryError
from datatask.schema.units import SECOND, iso
from datatask.schema.values import encode_value

if TYPE_CHECKING:
    from datatask.adapters.wiring.pipeline import Pipeline


LISTING_SECONDS = 60.0
"""A store that has not told its members by then is silent: `run` can wait for it beside its work, this cannot."""


class Recorded(NamedTuple):
    """A state, and the log that it was folded from."""

    reader: LogReader
    state: State

    def about(self) -> dict[str, object]:
        """Return the `log` part of documented shapes: where, how far, as of when."""
        return {"url": self.reader.url, "head": self.state.position, "at": iso(self.state.at or None)}


@contextmanager
def opened(settings: Settings, *, events: bool = False) -> Iterator[LogReader]:
    """Open the log for reading; who answers from its `events` tells on stderr where some were archived."""
    path = settings.log_path()
    if settings.with_archives:
        from datatask.adapters.log.maintenance.restored import WholeReader

        with WholeReader(path) as reader:
            yield reader
        return
    with LogReader(path) as reader:
        if events and (base := reader.header.base):
            told = f"events up to {base} were archived: what only they say is missing here, --with-archives reads them"
            sys.stderr.write(f"note: {told}\n")
        yield reader


@contextmanager
def recorded(settings: Settings, when: When | None = None, *, events: bool = False) -> Iterator[Recorded]:
    """Open the log and fold it up to `when` (the head); `events` as for `opened`."""
    with opened(settings, events=events) as reader:
        yield Recorded(reader, fold(reader, position_of(reader, when)))


def changed(reader: LogReader, head: int, seconds: float) -> bool:
    """Wait until the head has moved or the time is over; return whether it has moved."""
    deadline = time.monotonic() + seconds
    with effort.idle():
        while _head(reader) == head:
            raise_if_interrupted()
            if time.monotonic() >= deadline:
                return False
            time.sleep(min(0.1, seconds))
    return True


def _head(reader: LogReader) -> int:
    refresh = getattr(reader, "refresh", None)
    if refresh is not None:  # a copy with the archives
        refresh()
    return reader.head


class Seen(NamedTuple):
    """A state, the `log` part of documented shapes, the log, or None where there is none yet, and whether it is of the past."""

    state: State
    about: dict[str, Any]
    reader: LogReader | None
    past: bool = False


@contextmanager
def seen(settings: Settings, when: When | None = None) -> Iterator[Seen]:
    """Open the log and fold it up to `when`; where -p names a pipeline without a log, look at its stores."""
    path = locate(settings.log_url()).path
    if not settings.names_pipeline or (path is not None and path.exists()):
        with recorded(settings, when) as log:
            yield Seen(log.state, log.about(), log.reader, when is not None)
        return
    if when is not None:
        raise NoLogError(
            "there is no log yet, and so no past", where=settings.log_url(), remedy="leave out --at"
        )
    pipeline = settings.load_pipeline()
    state = declared_state(pipeline)
    from datatask.adapters.wiring.event_loop import run_in_loop  # asyncio takes long to import

    run_in_loop(look(pipeline, state, SystemClock().now()))
    yield Seen(state, {"url": settings.log_url(), "head": 0, "at": None}, None)


def declared_state(pipeline: Pipeline) -> State:
    """Return a state in which the pipeline is defined and nothing has happened."""
    from datatask.engine.core.define import define

    state = State()
    define(state, pipeline.declare().definition, 0)
    return state


def recorded_state(
    pipeline: Pipeline, losses: Iterable[str] | None = None
) -> tuple[State, d.PipelineDef | None]:
    """Return the recorded state under the pipeline's present definition, and the recorded definition.

    With `losses` what opening the pipeline would refuse, unless it is among them, is refused.
    """
    definition = pipeline.declare().definition
    path = locate(pipeline.log_location()).path
    if path is None or not path.exists():
        return declared_state(pipeline), None
    with LogReader(path) as reader:
        state = fold(reader, reader.head)
    if state.pipeline != pipeline.name:
        raise OtherPipelineError(
            f"the log belongs to the pipeline {state.pipeline!r}, not to {pipeline.name!r}",
            where=str(path),
            remedy="give each pipeline a log of its own, or the same name=",
        )
    if losses is not None:
        from datatask.adapters.wiring import opening

        declared = pipeline.declare()
        opening.check(pipeline.name, declared, state, losses, where=locate(pipeline.log_location()).url)
        for renamed in opening.renamed(state, declared, state.at):
            _apply(state, renamed)
    recorded = state.definition if state.defined_at else None
    if recorded is None or recorded.digest() != definition.digest():
        define(state, definition, max(state.position, 1))
    return state, recorded


async def look(pipeline: Pipeline, state: State, now: int) -> dict[int, e.Event]:
    """Let the copy learn what the stores hold, and what user code says of it; an input that is not there is refused.

    Returns the values that it learned of, as events by position.
    """
    from datatask.engine.runtime.closing import within

    declared = pipeline.declare()
    learned: dict[int, e.Event] = {}
    bound = Foreseen(state, locate(pipeline.log_location()).path)
    await pipeline.check_inputs()
    await pipeline.session.open()
    try:
        for task in pipeline.tasks.values():
            await task.validate()
        bound.bind(declared.objects, pipeline.tasks.values())
        for leaf in state.definition.repositories:
            if leaf.medium in ("foreign", "mirror"):
                store = declared.repositories[leaf.id].store
                try:
                    listed = await within(LISTING_SECONDS, _listing(store))
                except TimeoutError:
                    raise TemporaryError(
                        f"its listing did not end within {LISTING_SECONDS:g} s",
                        where=leaf.id,
                        remedy="see to the store",
                    ) from None
                except TemporaryError:
                    if state.leaves[leaf.id].count:
                        raise
                    listed = {}  # a folder that the first run will make
                _learn(state, leaf.id, listed, now, learned)
        while await _evaluate(pipeline, state, now):
            pass
    finally:
        bound.unbind()
        await pipeline.session.close()
    return learned


async def _listing(store: Store) -> dict[str, str | None]:
    return {found.job: found.version async for found in store.list()}


def _learn(
    state: State, leaf: str, listed: Mapping[str, str | None], now: int, learned: dict[int, e.Event]
) -> None:
    known, own = set(state.members(leaf)), state.leaves[leaf]
    put = [
        job
        for job, version in listed.items()
        if job not in known
        or (own.versioned and get_at(own.versions, state.job_index[job]) != version_hash(version))
    ]
    found: list[e.Event] = [
        e.ValuePut(at=now, repository=leaf, job=job, version=listed[job], origin="observed") for job in put
    ]
    found += [
        e.ValueDeleted(at=now, repository=leaf, job=job, origin="observed") for job in known - listed.keys()
    ]
    for event in found:
        learned[state.position + 1] = event
        _apply(state, event)
    _apply(state, e.RepositorySynced(at=now, repository=leaf, listed_at=now, members=len(listed)))


async def _evaluate(pipeline: Pipeline, state: State, now: int) -> bool:
    """Evaluate what is pending; return whether anything was, so that what follows from it is seen too."""
    found = [(key, why) for key, why in state.pending.items() if not why.error]
    for key, why in found:
        job = state.jobs[key.job]
        on_leaf = key.what in ("filter", "translation")
        about: dict[str, Any] = {"repository" if on_leaf else "task": key.owner}
        try:
            value = await pipeline.evaluate(Evaluation(key, key.owner, job, why.position))
        except Exception as error:  # user code may raise anything; here as in a run it holds the job
            outcome: dict[str, Any] = {
                "error": f"{type(error).__name__}: {error}"[:1024],
                "retry_at": now + SECOND,
            }
        else:
            outcome = {"value": msgspec.Raw(encode_value(value))}
        evaluated = e.Evaluated(at=now, what=key.what, job=job, inputs=(why.position,), **about, **outcome)  # type: ignore[arg-type]
        _apply(state, evaluated)
    return bool(found)


def _apply(state: State, event: e.Event) -> None:
    apply(state, state.position + 1, event)
