"""A small pipeline and a reactor on it, driven by hand: the world is the test itself."""

from __future__ import annotations

from typing import Any

import msgspec

from datatask.engine.core.effects import Effect, StartRun, WriteStore
from datatask.engine.core.fold import apply, apply_all
from datatask.engine.core.reactor import Reactor
from datatask.engine.core.state import State
from datatask.schema import events as e
from datatask.schema.definition import (
    All,
    AnyExpr,
    In,
    LinkDef,
    Medium,
    Not,
    PipelineDef,
    QuotaDef,
    RepositoryDef,
    TaskDef,
)
from datatask.schema.messages import Ended, RunSpec, Started, Write
from datatask.schema.units import SECOND

T0 = 1000 * SECOND
VALUE = msgspec.Raw(b'{"n":1}')


def leaf(name: str) -> In:
    """The condition of being in a leaf."""
    return In(leaf=name)


def repository(name: str, medium: Medium = "native", **more: Any) -> RepositoryDef:
    """A repository of this id."""
    return RepositoryDef(id=name, kind="test", medium=medium, **more)


def task(
    name: str, source: str, target: str | None = None, *, ready: AnyExpr | None = None, **more: Any
) -> TaskDef:
    """A task that reads `source`, writes `target` and marks `done-NAME`."""
    done = f"done-{name}"
    links = [
        LinkDef(name="input", expr=leaf(source), is_input=True, required_for_start=True),
        LinkDef(name="done", expr=leaf(done), is_status=True, inhibits_start=True),
    ]
    if target is not None:
        links.append(LinkDef(name="output", expr=leaf(target), is_output=True))
    condition = ready or All(of=(leaf(source), Not(of=leaf(done))))
    more.setdefault("done", done)
    return TaskDef(name=name, kind="test", ready=condition, links=tuple(links), **more)


def pipeline(
    *tasks: TaskDef, quotas: tuple[QuotaDef, ...] = (), media: dict[str, Medium] | None = None,
    repositories: tuple[RepositoryDef, ...] = (),
) -> PipelineDef:  # fmt: skip
    """A pipeline that declares what its tasks use; `media` says which leaves are not native."""
    names = dict.fromkeys(
        part.leaf for one in tasks for link in one.links if isinstance(part := link.expr, In)
    )
    own = {one.id for one in repositories}
    declared = tuple(
        repository(name, (media or {}).get(name, "native"))
        for name in names
        if "(" not in name and name not in own
    )
    return PipelineDef(repositories=(*declared, *repositories), tasks=tasks, quotas=quotas)


class Desk:
    """A reactor, the log it has led to, and its effects so far; time is `now`, chance is always in the middle."""

    def __init__(
        self, definition: PipelineDef, events: list[e.Event] | None = None, *, later: int = 0
    ) -> None:
        self.definition = definition
        self.events: list[e.Event] = list(events or [e.LogCreated(at=T0, log="u", pipeline="p")])
        self.batches: list[tuple[e.Event, ...]] = []
        self.effects: list[Effect] = []
        self.now = max(T0, self.events[-1].at) + later
        self.state = State()
        apply_all(self.state, 1, self.events)
        epoch = self.state.engine.epoch + 1 if self.state.engine is not None else 1
        self.reactor = Reactor(self.state, lambda: 0.5)
        self.reactor.open(
            e.EngineOpened(
                at=self.now,
                version="1",
                host="h",
                pid=1,
                boot="b",
                epoch=epoch,
                last_sign=self.state.at if events else None,
            ),
            definition,
        )
        self.take()

    def take(self) -> list[e.Event]:
        """Take the reactor's steps; return the events that are new."""
        fresh: list[e.Event] = []
        for step in self.reactor.take():
            fresh += step.events
            self.effects += step.effects
            if step.events:
                self.batches.append(step.events)
        self.events += fresh
        return fresh

    def put(self, name: str, *jobs: str) -> list[e.Event]:
        """Put values."""
        self.reactor.tickets.change([Write(repository=name, job=job, value=VALUE) for job in jobs], self.now)
        return self.take()

    def delete(self, name: str, *jobs: str) -> list[e.Event]:
        """Delete values."""
        self.reactor.tickets.change([Write(repository=name, job=job, op="delete") for job in jobs], self.now)
        return self.take()

    def decide(self, **more: Any) -> list[e.LaunchDecided]:
        """Decide a round; return its launches."""
        self.reactor.decide(self.now, "run", **more)
        return [event for event in self.take() if isinstance(event, e.LaunchDecided)]

    def launched(self, **more: Any) -> list[str]:
        """Decide a round; return `task:job` of its launches."""
        return [f"{event.task}:{event.job}" for event in self.decide(**more)]

    def started(self, run: int) -> list[e.Event]:
        """The run has started."""
        self.reactor.runs.fact(Started(run, {"pid": 1}, "here"), self.now)
        return self.take()

    def ended(self, run: int, outcome: e.Outcome = "succeeded", *writes: Write) -> list[e.Event]:
        """The run is over at its target."""
        self.reactor.runs.fact(Ended(run, e.Ending(outcome=outcome), writes), self.now)
        return self.take()

    def ask(self, *events: e.Event) -> list[e.Event]:
        """A person asked."""
        self.reactor.tickets.ask(events)
        return self.take()

    def specs(self) -> list[RunSpec]:
        """Return the runs that were to be started so far."""
        return [effect.spec for effect in self.effects if isinstance(effect, StartRun)]

    def store_writes(self) -> list[WriteStore]:
        """Return what foreign stores were to do so far, and forget it."""
        found = [effect for effect in self.effects if isinstance(effect, WriteStore)]
        self.effects = [effect for effect in self.effects if not isinstance(effect, WriteStore)]
        return found

    def wrote(
        self, effect: WriteStore, version: str | None = "v1", error: str = "", *, conflict: bool = False
    ) -> list[e.Event]:
        """The store has followed, or refused."""
        self.reactor.written(
            effect.write,
            effect.run,
            effect.ticket,
            self.now,
            version=version,
            error=error,
            conflict=conflict,
        )
        return self.take()

    def sync(self, name: str, *listing: tuple[str, str]) -> list[e.Event]:
        """A complete listing of a store: (job, version)."""
        writes = [Write(repository=name, job=job, version=version) for job, version in listing]
        self.reactor.stores.listed(name, writes, self.now, self.state.position, self.now)
        return self.take()

    def crashed(self, durable: int | None = None, *, later: int = 0) -> Desk:
        """Return a new engine, so much later, on the first `durable` events (all of them when not said)."""
        return Desk(self.definition, self.events[:durable], later=later)


def kinds(events: list[e.Event]) -> list[str]:
    """Return the kinds of events."""
    return [type(event).__name__ for event in events]


def folded(events: list[e.Event]) -> State:
    """Return the state that these events give."""
    state = State()
    for position, event in enumerate(events, 1):
        apply(state, position, event)
    return state


def running(desk: Desk, *jobs: str) -> list[int]:
    """Put jobs into `a`, launch them, and return the runs."""
    desk.put("a", *jobs)
    desk.decide()
    runs = [spec.run for spec in desk.specs()][-len(jobs) :]
    for run in runs:
        desk.started(run)
    return runs
