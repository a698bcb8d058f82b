"""Where the time of jobs went, in random lives: every nanosecond has one cause, the one that a slow look at each state gives."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from datatask.engine.core.cells import get_at
from datatask.engine.core.define import start_condition
from datatask.engine.core.expressions import holds
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import PendingKey, State
from datatask.engine.core.tasks import TaskState
from datatask.engine.waits.intervals import CAUSES, Episode
from datatask.engine.waits.ledger import Ledger
from datatask.schema import definition as d
from datatask.schema import events as e
from datatask.schema.definition import PipelineDef
from datatask.schema.units import DAY
from tests.property.test_state import BEGIN, families, small
from tests.property.world import ACTIONS, Action, World

HINDERED = (
    "pause", "pause", "delete", "delete", "put", "wait", "crash", "quota", "decide", "list", "evaluate", "retry", "end", "work",
)  # fmt: skip
"""What makes jobs wait, more often than in other lives."""
lives = st.lists(
    st.tuples(st.one_of(st.sampled_from(ACTIONS), st.sampled_from(HINDERED)), small, small, small),
    min_size=30, max_size=90,
).map(lambda life: BEGIN + life)  # fmt: skip

Batches = list[tuple[e.Event, ...]]
Span = tuple[int, int, str]


def lived(family: tuple[PipelineDef, list[PipelineDef]], life: list[Action]) -> Batches:
    """Return the log of a life in which a second passes between actions, more often than not."""
    world = World(*family)
    for number, action in enumerate(life):
        world.now += (number % 3) * 700_000_001
        world.act(action)
    return world.batches


def followed(batches: Batches, job: str | None = None, **asked: object) -> list[Episode]:
    """Return the episodes that the incremental way finds."""
    found: list[Episode] = []
    waits = Ledger(State(), found.append, job=job, **asked)  # type: ignore[arg-type]
    for batch in batches:
        waits.take(e.Batch(waits.state.position + 1, batch))
    waits.finish()
    return found


# --- the slow twin ----------------------------------------------------------------------------------


class Look(NamedTuple):
    """What there is to know of a (task, job) at one boundary."""

    stage: str
    number: int
    at_hand: bool
    where: frozenset[str]
    done: bool
    due: int
    causes: tuple[str, ...]
    not_before: int


class Slow:
    """Looks at every (task, job) at every batch boundary, and decides from the state alone."""

    def __init__(self) -> None:
        self.state = State()
        self.constraints: dict[str, str] = {}
        self.over: set[int] = set()
        self.looks: dict[tuple[TaskState, str], Look] = {}
        self.open: dict[tuple[TaskState, str], tuple[int, list[Span]]] = {}
        self.names: dict[TaskState, str] = {}
        self.done: list[tuple[str, str, int, list[Span]]] = []

    def take(self, batch: tuple[e.Event, ...]) -> None:
        state, before, boundary = self.state, self.state.at, self.state.position
        dead = (
            state.engine is not None
            and not state.closed
            and any(isinstance(x, e.EngineOpened) for x in batch)
        )
        for event in batch:
            if isinstance(event, e.EngineOpened):
                self.constraints = {}
            if isinstance(event, e.DecisionRound):
                self.constraints = dict(event.constraints)
            if (
                isinstance(event, e.StoreWriteIntended)
                and event.settles is not None
                and event.run is not None
            ):
                self.over.add(event.run)
        self._spend(before, batch[-1].at, dead)
        apply_all(state, state.position + 1, batch)
        self._compare(boundary)

    def _spend(self, start: int, end: int, dead: bool) -> None:
        for key, (_, spans) in self.open.items():
            look = self.looks[key]
            if dead:
                spans.append((start, end, "engine down"))
                continue
            cut = min(max(look.not_before, start), end)
            spans.append((start, cut, _first(look.causes, True)))
            spans.append((cut, end, _first(look.causes, False)))

    def _compare(self, boundary: int) -> None:
        state, old = self.state, self.looks
        names = {task: name for name, task in state.tasks.items()}
        self.looks = {(task, job): self._look(task, job) for task in names for job in state.jobs}
        for key in [key for key in self.open if key not in self.looks]:
            self._close(key)
        self.names = names
        for key, now in self.looks.items():
            was = old.get(key)
            if now.stage == "none" or (now.stage == "lacking" and not now.at_hand):
                self._close(key)
                continue
            stays = False
            if key in self.open and was is not None and was.stage != "lacking":
                if now.stage == "lacking" or now.number != was.number:
                    stays = was.stage != "run"
                    self._close(key)
            if key not in self.open:
                new = (
                    was is None
                    or bool(now.where - was.where)
                    or (was.done and not now.done)
                    or now.due > boundary
                )
                if now.stage != "lacking" or stays or new:
                    self.open[key] = (state.at, [])

    def _close(self, key: tuple[TaskState, str]) -> None:
        if key in self.open:
            start, spans = self.open.pop(key)
            self.done.append((self.names[key[0]], key[1], start, spans))

    def finish(self) -> list[tuple[str, str, int, int, list[Span]]]:
        closed = [(name, job, start, spans) for name, job, start, spans in self.done]
        for key in list(self.open):
            self._close(key)
        return [
            (name, job, start, spans[-1][1] if spans else start, merged(spans))
            for name, job, start, spans in [*closed, *self.done[len(closed) :]]
        ]

    # --- one look ---------------------------------------------------------------------------------

    def _look(self, task: TaskState, job: str) -> Look:
        state, index = self.state, self.state.job_index[job]
        mask = state.masks[index]
        definition = task.definition
        current = definition in state.definition.tasks
        expr = start_condition(definition) if current else d.Any(of=())
        members = frozenset(leaf.id for leaf in state.leaves.values() if mask & leaf.bit)
        own = {link.expr.leaf for link in definition.links if link.is_status and link.inhibits_start}  # type: ignore[union-attr]
        own |= {definition.done} if definition.done else set()
        wanted = [name for name, want in _signed(expr, True) if want]
        for link in definition.links:
            wanted += [name for name, want in _signed(link.expr, True) if want and link.is_input and current]
        wanted = [
            name for name in wanted if name not in {d.view_id(definition.name, view) for view in d.VIEW_NAMES}
        ]
        sources = frozenset(below for name in wanted for below in self._below(name))
        done = current and bool(members & own)
        episode = task.episodes.get(index)
        stage, causes, not_before = "lacking", [], 0
        if episode is not None and episode.run:
            run = state.open_runs[episode.run]
            stage = "run"
            causes = ["collecting" if run.run in self.over else "running" if run.started_at else "adapter"]
        elif episode is not None or index in task.queue:
            stage = "line"
            if episode is not None and (episode.not_before or 0) > state.at:
                not_before = episode.not_before or 0
                causes.append("backoff")
            if task.paused or definition.disabled:
                causes.append("pause")
            causes.append(_bound(self.constraints.get(definition.name, "")))
        elif index in task.awaiting:
            stage, causes = "line", ["evaluation"]
        elif mask & task.claim or holds(expr, members):
            stage = "none"
        else:
            causes = self._lacking(expr, index, members, True) or ["upstream"]
        if stage != "run" and any(not leaf.synced for leaf in task.reads):
            causes.append("observing")
        if state.engine is None or state.closed:
            causes.append("engine down")
        return Look(
            stage=stage,
            number=get_at(task.episode_count, index),
            at_hand=not done and any(self._likely(name, index, members) for name in wanted),
            where=members & sources,
            done=done,
            due=max((self._due(name, index) for name in wanted), default=0),
            causes=tuple(causes),
            not_before=not_before,
        )

    def _rule(self, name: str) -> tuple[d.AnyExpr, str] | None:
        match self.state.leaves[name].definition.derived:
            case d.TranslatedDef(translator=expr):
                return expr, "translation"
            case d.FilteredDef(base=expr):
                return expr, "filter"
        return None

    def _below(self, name: str) -> list[str]:
        rule = self._rule(name)
        found = [name]
        for below, want in _signed(rule[0], True) if rule is not None else ():
            found += self._below(below) if want else []
        return found

    def _due(self, name: str, job: int) -> int:
        rule = self._rule(name)
        pending = self.state.pending.get(PendingKey(rule[1], name, job)) if rule is not None else None
        return pending.position if pending is not None else 0

    def _likely(self, name: str, job: int, members: frozenset[str]) -> bool:
        rule = self._rule(name)
        if name in members or rule is None:
            return name in members
        derived = self.state.leaves[name].derived
        assert derived is not None
        if self._due(name, job) or job in derived.forward:
            return True
        if holds(rule[0], members):
            return False
        return any(want and self._likely(below, job, members) for below, want in _signed(rule[0], True))

    def _lacking(self, expr: d.AnyExpr, job: int, members: frozenset[str], wanted: bool) -> list[str]:
        match expr:
            case d.In(leaf=name):
                if not wanted:
                    return ["inhibitor"]
                rule, derived = self._rule(name), self.state.leaves[name].derived
                if rule is None or derived is None:
                    return ["upstream"]
                if self._due(name, job):
                    return ["evaluation"]
                if job in derived.forward or holds(rule[0], members):
                    return ["upstream"]
                return self._lacking(rule[0], job, members, True)
            case d.Not(of=part):
                return self._lacking(part, job, members, not wanted)
            case d.All(of=parts) | d.Any(of=parts):
                wrong = [part for part in parts if holds(part, members) is not wanted]
                return [cause for part in wrong for cause in self._lacking(part, job, members, wanted)]


UNCHOSEN = "unchosen"
"""A pause by a run that chose other jobs: it counts where nothing else is in the way."""


def _signed(expr: d.AnyExpr, wanted: bool) -> list[tuple[str, bool]]:
    match expr:
        case d.In(leaf=name):
            return [(name, wanted)]
        case d.Not(of=part):
            return _signed(part, not wanted)
        case d.All(of=parts) | d.Any(of=parts):
            return [pair for part in parts for pair in _signed(part, wanted)]


def _bound(constraint: str) -> str:
    kind = constraint.partition(":")[0]
    known = {
        "rate": "rate",
        "quota": "quota",
        "infeasible": "quota",
        "concurrency": "quota",
        "adapter": "adapter",
        "unselected": UNCHOSEN,
        "limit": UNCHOSEN,
    }
    return known.get(kind, "priority")


def _first(causes: tuple[str, ...], backing_off: bool) -> str:
    def rank(cause: str) -> int:
        return CAUSES.index("priority" if cause == UNCHOSEN else cause)

    found = min((cause for cause in causes if backing_off or cause != "backoff"), key=rank)
    return "pause" if found == UNCHOSEN else found


def merged(spans: list[Span]) -> list[Span]:
    """Return the spans without empty ones, those of one cause that follow on each other as one."""
    found: list[Span] = []
    for start, end, cause in spans:
        if end > start:
            if found and found[-1][1] == start and found[-1][2] == cause:
                start = found.pop()[0]
            found.append((start, end, cause))
    return found


# --- the tests --------------------------------------------------------------------------------------


@given(families(), lives)
def test_every_nanosecond_has_the_cause_that_the_slow_twin_gives_it(
    family: tuple[PipelineDef, list[PipelineDef]], life: list[Action]
) -> None:
    """The same episodes with the same causes; intervals cover them without gap or overlap; sums come to the same."""
    batches = lived(family, life)
    twin = Slow()
    for batch in batches:
        twin.take(batch)
    times = {position: event.at for position, event in enumerate((x for batch in batches for x in batch), 1)}
    alone = [episode for job in twin.state.jobs for episode in followed(batches, job)]
    for episode in alone:
        _covers(episode, times)
    spans = [
        (
            one.task,
            one.job,
            one.start,
            one.end,
            merged([(part.start, part.end, part.cause) for part in one.intervals]),
        )
        for one in alone
        if one.end > one.start
    ]
    assert sorted(spans) == sorted(one for one in twin.finish() if one[3] > one[2])
    together = followed(batches)
    bare = sorted(one._replace(intervals=[], sums={}) for one in alone)
    assert sorted(one._replace(sums={}) for one in together) == bare
    known = {(one.task, one.job, one.began, one.ended): one.sums for one in alone}
    assert all(one.sums == known[one.task, one.job, one.began, one.ended] for one in together)


def _covers(episode: Episode, times: dict[int, int]) -> None:
    """One interval begins where the one before ends, at an event of that time; together they are the episode."""
    assert times[episode.began] == episode.start
    assert episode.open or times[episode.ended or 0] == episode.end
    where = episode.start
    sums: Counter[tuple[str, int, str]] = Counter()
    for one in episode.intervals:
        assert one.start == where < one.end
        assert (one.task, one.job, one.episode) == episode[:3]
        assert times[one.began] <= one.start
        assert one.cause in CAUSES
        sums[one.cause, 0, ""] += one.nanoseconds
        where = one.end
    assert where == episode.end
    assert sums == episode.sums


@given(families(), lives, small)
def test_days_hosts_and_a_later_beginning_only_tell_the_sums_apart(
    family: tuple[PipelineDef, list[PipelineDef]], life: list[Action], where: int
) -> None:
    """By day and host the sums per cause stay; each day's are those of its part of the intervals; `since` cuts off."""
    shift = DAY - 30_000_000_000  # midnight lies in the middle of the life
    batches = [
        tuple(event.__class__(**{**_fields(event), "at": event.at + shift}) for event in batch)
        for batch in lived(family, life)
    ]
    whole = followed(batches)
    split = followed(batches, by_day=True, by_host=True)
    assert [episode[:9] for episode in whole] == [episode[:9] for episode in split]
    for one, other in zip(whole, split, strict=True):
        plain: Counter[tuple[str, int, str]] = Counter()
        for (cause, _, _), share in other.sums.items():
            plain[cause, 0, ""] += share
        assert plain == Counter(one.sums)
    since = batches[len(batches) * where // 15 - 1][-1].at + where
    later = followed(batches, since=since)
    kept = [one for one in whole if one.end > since]
    assert [(one.task, one.job, max(one.start, since), one.end) for one in kept] == [
        one_[:2] + one_[3:5] for one_ in later
    ]
    assert all(sum(one.sums.values()) == one.end - one.start for one in later)


def _fields(event: e.Event) -> dict[str, Any]:
    return {name: getattr(event, name) for name in event.__struct_fields__}
