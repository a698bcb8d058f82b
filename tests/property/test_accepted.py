"""Results that people accept, in lives of edits: what is stale is what the values and the order of changes say."""

from __future__ import annotations

from typing import NamedTuple, cast

import msgspec
import pytest

from datatask.adapters.history.stale import find_stale
from datatask.adapters.log.reader import LogReader
from datatask.engine.core import staleness
from datatask.schema import events as e
from datatask.schema import messages as r
from datatask.schema.definition import PipelineDef
from datatask.schema.messages import RunSpec, Write
from tests.effort import by_effort
from tests.property.edited import Edited

HISTORIES = by_effort(quick=200, thorough=4_000, soak=50_000)
Result = tuple[str, str]


class Basis(NamedTuple):
    """What a result rests on: the position, the code, and the values of inputs and output; of a run, or as accepted."""

    position: int
    code: dict[str, str]
    values: dict[str, int | None]


class Accepting(Edited):
    """A life in which nothing is run again by itself, and people accept results, or no more."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.made: dict[Result, Basis] = {}
        self.accepted: dict[Result, Basis] = {}
        self.seen: dict[Result, Basis] = {}

    def definition(self) -> PipelineDef:
        found = super().definition()
        tasks = tuple(msgspec.structs.replace(task, on_change="mark") for task in found.tasks)
        return msgspec.structs.replace(found, tasks=tasks)

    def _end(self, spec: RunSpec, ending: e.Ending, writes: tuple[Write, ...]) -> None:
        super()._end(spec, ending, writes)
        if ending.outcome == "succeeded":
            values: dict[str, int | None] = {
                name: self._put(position) for name, position in (ending.reads or {}).items()
            }
            values |= {write.repository: _number(write.value) for write in writes}
            self.made[spec.task, spec.job] = Basis(spec.run, self._code(spec.task), values)
            self.accepted.pop((spec.task, spec.job), None)

    def _put(self, position: int) -> int:
        event = self.log.events[position - 1]
        assert isinstance(event, e.ValuePut)
        return _number(event.value)

    def _code(self, name: str) -> dict[str, str]:
        return next(task.fingerprint for task in self.state.definition.tasks if task.name == name)

    def results(self) -> list[Result]:
        """Return the last runs that succeeded."""
        state = self.state
        return [
            (name, job)
            for name, task in state.tasks.items()
            for job in sorted(state.members(task.succeeded.id))
        ]

    def look(self) -> None:
        """Remember what there is: it is accepted later, and may have changed by then."""
        self.seen = {
            (task, job): Basis(
                self.log.head,
                self._code(task),
                {name: self.value(name, job) for name in self.made[task, job].values},
            )
            for task, job in self.results()
        }

    def accept(self) -> None:
        """Accept a result as it was seen, or take that back."""
        found = [
            one
            for one in self.results()
            if one in self.seen and self.seen[one].position > self.made[one].position
        ]
        if not found:
            return
        task, job = self.random.choice(found)
        withdrawn = (task, job) in self.accepted and self.random.random() < 0.4
        seen = self.seen[task, job]
        request = r.AcceptResults(
            id=f"{self.log.head}",
            actor="ada",
            task=task,
            jobs=(job,),
            seen=seen.position,
            withdrawn=withdrawn,
        )
        with pytest.raises(StopIteration) as done:
            self._ask(cast("r.RetryJobs", request)).send(None)
        assert done.value.value.refusal is None
        if withdrawn:
            del self.accepted[task, job]
        else:
            self.accepted[task, job] = seen

    def live(self) -> None:
        for _ in range(self.random.randint(2, 4)):
            self.open()
            for _ in range(self.random.randint(1, 5)):
                self.random.choice(
                    (self.put_input, self.change_output, self.look, self.accept, self.accept)
                )()
                self.work(self.random.choice((0, 1, 5, 100)))
            self.close(killed=self.random.random() < 0.3)
            self.change_code()
        self.open()
        self.work()

    # --- what is to be found ----------------------------------------------------------------------

    def causes(self, result: Result) -> list[int]:
        """Return the positions of the changes that make a result stale by itself."""
        task, job = result
        accepted = self.accepted.get(result)
        bases = [self.made[result], *([accepted] if accepted else [])]
        found = []
        if self._code(task) != bases[-1].code:
            found.append(self.state.fingerprints[task][-1][0])
        for name in bases[0].values:
            now = self.value(name, job)
            if now not in [basis.values[name] for basis in bases] and (
                now is not None or name == f"o{task[1:]}"
            ):
                found.append(abs(self._position(name, job)))
        return found

    def newest(self, result: Result) -> int:
        """Return the last change that a result is stale for, itself or by what it is made of; 0 for none."""
        task, job = result
        found = self.causes(result)
        stage = next(stage for stage in self.stages if stage.name == task)
        makers = [maker.name for maker in self.stages if maker.output in stage.inputs]
        found += [self.newest((maker, job)) for maker in makers if (maker, job) in self.results()]
        newest = max(found, default=0)
        accepted = self.accepted.get(result)
        return 0 if accepted and newest <= accepted.position else newest

    def wrong(self) -> list[str]:
        found = find_stale(cast("LogReader", self.log), self.state).stale
        told = {(task, self.state.jobs[job]) for task, jobs in found.items() for job in jobs}
        expected = {result for result in self.results() if self.newest(result)}
        return [f"{one} {'is' if one in told else 'is not'} told as stale" for one in told ^ expected]


def _number(value: msgspec.Raw | None) -> int:
    assert value is not None
    return int(msgspec.json.decode(value))


def wrong(seed: int) -> list[str]:
    life = Accepting(seed)
    life.live()
    return life.wrong()


@pytest.mark.scaled
def test_what_was_accepted_is_stale_for_later_changes_alone() -> None:
    found = {seed: why for seed in range(HISTORIES) if (why := wrong(seed))}
    assert found == {}


@pytest.mark.parametrize("name", ["is_accepted", "_accepted"])
def test_an_acceptance_that_is_not_seen_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = getattr(staleness, name)
    monkeypatch.setattr(staleness, name, lambda *arguments: real(*arguments) * 0)
    assert any(wrong(seed) for seed in range(1500))


def test_an_acceptance_that_holds_for_ever_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staleness._Newest, "change", lambda *arguments: 0)
    assert any(wrong(seed) for seed in range(1500))
