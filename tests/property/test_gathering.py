"""Gathered jobs: the groups that are kept change by change are those that all of the history says, worked out from scratch."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from datatask.engine.core.checkpoints import dump, load
from datatask.engine.core.fold import apply, apply_all
from datatask.engine.core.gathering import APART, Group
from datatask.engine.core.state import State
from datatask.engine.explain.overlay import Overlay
from datatask.schema import events as e
from datatask.schema.definition import (
    GatheredDef,
    GroupedBy,
    In,
    Late,
    LinkDef,
    PipelineDef,
    RepositoryDef,
    TaskDef,
)
from datatask.schema.units import NANO
from datatask.schema.values import encode_value

JOBS = ("a-1", "a-2", "a-3", "b-1", "b-2", "c")
PATTERN = r"^(\w)-"
KEYS = ("g", "h", None)

Step = tuple[str, str, str | None]
"""A repository and whether a job is put there or deleted, or the answer "key"; the job; the key."""

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["+told", "+told", "-told", "+done", "+done", "-done", "key"]),
        st.sampled_from(JOBS),
        st.sampled_from(KEYS),
    ),
    max_size=25,
)


@st.composite
def rules(draw: st.DrawFn) -> GatheredDef:
    """Any rule over two repositories."""
    key: GroupedBy = draw(st.sampled_from(["all", "name", "asked", "batch"]))
    late: Late = draw(st.sampled_from(["again", "ignore"]))
    share, count = draw(
        st.sampled_from([(None, None), (None, None), (NANO // 2, None), (NANO, None), (None, 1), (None, 3)])
    )
    if key == "batch":
        share = count = None
    return GatheredDef(
        base=In(leaf="done"),
        translator=In(leaf="told"),
        key=key,
        pattern=PATTERN if key == "name" else "",
        size=draw(st.integers(1, 3)) if key == "batch" else 0,
        rest=draw(st.booleans()),
        share=share,
        count=count,
        late=late,
    )


def events_of(rule: GatheredDef, steps: list[Step]) -> list[e.Event]:
    """Return a history in which a task waits for what is gathered."""
    names = ("told", "done", "u.done")
    stored = [RepositoryDef(id=name, kind="test", medium="native") for name in names]
    gathered = RepositoryDef(id="g", kind="Gathered", medium="derived", derived=rule)
    link = LinkDef(name="g", expr=In(leaf="g"), is_input=True, required_for_start=True)
    task = TaskDef(name="u", kind="test", ready=In(leaf="g"), links=(link,), done="u.done")
    definition = PipelineDef(repositories=(*stored, gathered), tasks=(task,))
    found: list[e.Event] = [e.PipelineDefined(at=0, definition=definition, digest="", decider=1)]
    for what, job, key in steps:
        if what == "key":
            answer = e.Evaluated(
                at=0, what="translation", repository="g", job=job, value=msgspec.Raw(encode_value(key))
            )
            found.append(answer)
        elif what[0] == "+":
            found.append(e.ValuePut(at=0, repository=what[1:], job=job))
        else:
            found.append(e.ValueDeleted(at=0, repository=what[1:], job=job))
    return found


@dataclass
class Slow:
    """The twin: sets of names, each group looked at whole after each step."""

    rule: GatheredDef
    told: list[str] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    keys: dict[str, str] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    shut: dict[str, set[str]] = field(default_factory=dict)
    """By key: those that an ignoring group does not take."""
    complete: dict[str, set[str]] = field(default_factory=dict)
    late: dict[str, set[str]] = field(default_factory=dict)
    number: dict[str, int] = field(default_factory=dict)

    def step(self, what: str, job: str, key: str | None) -> None:
        """Take one step."""
        before = {name: self.of(name) for name in self.groups()}
        if what == "key":
            if job not in self.asked:
                return
            self.asked.discard(job)
            self.keys.pop(job, None)
            if key is not None:
                self.keys[job] = key
        elif what == "+told" and job not in self.told:
            self.told.append(job)
            if self.rule.key == "asked":
                self.asked.add(job)
        elif what == "-told" and job in self.told:
            self.told.remove(job)
            self.asked.discard(job)
            self.keys.pop(job, None)
            for others in self.shut.values():
                others.discard(job)
        elif what == "+done":
            self.done.add(job)
        elif what == "-done":
            self.done.discard(job)
        for name in self.groups():
            for fresh in self.of(name) - before.get(name, set()):
                self._comes(name, fresh)
        for name in sorted({*self.groups(), *self.complete}):
            self._look(name)

    def _comes(self, name: str, job: str) -> None:
        if name in self.complete and self.rule.late == "ignore":
            self.shut.setdefault(name, set()).add(job)
            return
        if self.number.get(name):
            self.late.setdefault(name, set()).add(job)
        if self.complete.pop(name, None) is not None:
            self.number[name] += 1

    def _look(self, name: str) -> None:
        members = self.of(name)
        through = members & self.done
        late = self.late.get(name, set()) & members
        share = NANO if self.rule.share is None else self.rule.share
        enough = len(through) * NANO >= share * len(members)
        if self.rule.count is not None:
            enough = len(through) >= self.rule.count
        holds = bool(members) and enough and late <= through
        if name in self.complete:
            if self.rule.late == "ignore":
                holds = bool(members)
            if not holds:
                del self.complete[name]
                if self.rule.late == "again":
                    self.number[name] += 1
                else:
                    self.number.pop(name)
        elif holds and not self.asked:
            self.complete[name] = through
            self.late.pop(name, None)
            self.number.setdefault(name, 1)

    def groups(self) -> set[str]:
        """Return the keys that there are."""
        return {key for job in self.told if (key := self._key(job)) is not None}

    def _key(self, job: str) -> str | None:
        if self.rule.key == "all":
            return "all"
        if self.rule.key == "name":
            return job[0] if job[1:2] == "-" else None
        return self.keys.get(job)

    def of(self, name: str) -> set[str]:
        """Return the members of a group."""
        return {job for job in self.told if self._key(job) == name} - self.shut.get(name, set())

    def jobs(self) -> dict[str, set[str]]:
        """Return the jobs that stand for complete groups, and who was gathered."""
        return {
            name if self.number[name] == 1 else f"{name}.{self.number[name]}": gathered
            for name, gathered in self.complete.items()
        }


def shown(state: State) -> dict[str, set[str]]:
    """Return the jobs that stand for complete groups, and who was gathered."""
    return {job: set(state.members(f"group(g/{job})")) for job in state.members("g")}


@given(rule=rules().filter(lambda rule: rule.key != "batch"), steps=STEPS)
def test_groups_are_those_of_the_twin(rule: GatheredDef, steps: list[Step]) -> None:
    state, slow = State(), Slow(rule)
    history = events_of(rule, steps)
    apply(state, 1, history[0])
    for position, (event, step) in enumerate(zip(history[1:], steps, strict=True), 2):
        apply(state, position, event)
        slow.step(*step)
        assert shown(state) == slow.jobs()
        assert set(state.members("g")) == {
            state.jobs[job] for _, _, job in state.tasks["u"].queue.entries()
        }, "each complete group waits for the task, and no other"


@given(rule=rules().filter(lambda rule: rule.key == "batch"), steps=STEPS)
def test_batches_are_full_and_take_each_job_once(rule: GatheredDef, steps: list[Step]) -> None:
    state, known = State(), dict[str, set[str]]()
    for position, event in enumerate(events_of(rule, steps), 1):
        apply(state, position, event)
        batches = shown(state)
        assert {name: batches[name] for name in known} == known, "a batch stays what it is"
        taken = [job for members in batches.values() for job in members]
        assert len(taken) == len(set(taken))
        assert all(members and len(members) <= rule.size for members in batches.values())
        assert rule.rest or all(len(members) == rule.size for members in batches.values())
        known = batches
        told, done = set(state.members("told")), set(state.members("done"))
        if rule.rest and told <= done and rule.late == "again":
            assert told <= set(taken), "what is left is a batch when nobody is expected"


@given(rule=rules(), steps=STEPS, where=st.integers(0, 25))
def test_a_checkpoint_and_what_if_leave_it_as_it_is(rule: GatheredDef, steps: list[Step], where: int) -> None:
    state, history = State(), events_of(rule, steps)
    where = min(where + 1, len(history))
    apply_all(state, 1, history[:where])
    kept, body = load(dump(state)), dump(state)
    assert dump(kept) == body
    overlay = Overlay(state)
    apply_all(overlay.state, where + 1, history[where:])
    tried = {group.key: (group.complete, group.job) for group in groups(overlay.state)}
    overlay.reset()
    assert dump(state) == body, "trying changes nothing"
    for each in (kept, state):
        apply_all(each, where + 1, history[where:])
    assert dump(kept) == dump(state)
    assert {group.key: (group.complete, group.job) for group in groups(state)} == tried


@given(rule=rules(), steps=STEPS)
def test_a_rule_that_comes_later_finds_nobody_late(rule: GatheredDef, steps: list[Step]) -> None:
    history = events_of(rule, [step for step in steps if step[0] != "key"])
    first = history[0]
    assert isinstance(first, e.PipelineDefined)
    stored = first.definition.repositories[:3]
    before = msgspec.structs.replace(
        first, definition=msgspec.structs.replace(first.definition, repositories=stored, tasks=())
    )
    state = State()
    apply_all(state, 1, [before, *history[1:], first])
    told, done = set(state.members("told")), set(state.members("done"))
    assert all(group.number == 1 for group in groups(state))
    assert sorted(job for group in groups(state) for job in group.members) == sorted(
        state.job_index[job] for job in told if rule.key == "all" or (rule.key == "name" and "-" in job)
    ) or rule.key in ("asked", "batch")
    if rule.key == "all" and told and rule.share is None and rule.count is None:
        assert shown(state) == ({"all": told} if told <= done else {})


def groups(state: State) -> list[Group]:
    """Return the groups of what is gathered."""
    derived = state.leaves["g"].derived
    assert derived is not None
    assert derived.gathering is not None
    return [group for number, group in derived.gathering.groups.items() if number != APART]
