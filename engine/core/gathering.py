"""Jobs gathered into groups: which group a job belongs to, and which groups are complete.

In: a job, whether it is expected, and whether it is through. Out: the jobs that stand for groups and come to be members of
the gathered leaf, or cease to be. A change costs O(1), whatever the number of jobs; the completion of a group copies a bitmap.
A group whose late jobs count (`late="again"`) is complete anew under a new name, `KEY.2`, so that what was made of it
before stays what it is.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from pyroaring import BitMap

from datatask.engine.core.cells import get_at, put_at
from datatask.schema.definition import GatheredDef
from datatask.schema.units import NANO
from datatask.schema.values import JOB_LENGTH_MAX, is_job

EARLIER_MAX = 4
"""The number of earlier completions of a group whose members are kept."""
APART = 0
"""The number of the group of those that are in none: jobs that wait for a key, or for a batch. Its `late` are groups that it holds up."""

Change = tuple[int, bool]
"""A job that stands for a group, and whether it is a member now."""


class Names(Protocol):
    """What is asked of the state."""

    jobs: list[str]

    def intern(self, job: str) -> int:
        """Return the job's integer."""


@dataclass(slots=True, eq=False)
class Group:
    """The jobs of a group: `late` came when it was complete, `gathered` were through when it was completed."""

    key: str
    job: int = 0
    number: int = 1
    complete: bool = False
    members: BitMap = field(default_factory=BitMap)
    through: BitMap = field(default_factory=BitMap)
    late: BitMap | None = None
    gathered: BitMap | None = None
    earlier: list[tuple[int, BitMap]] = field(default_factory=list)

    def copy(self) -> Group:
        """Return one that can be changed by itself."""
        late = None if self.late is None else self.late.copy()
        members, through = self.members.copy(), self.through.copy()
        return Group(
            self.key,
            self.job,
            self.number,
            self.complete,
            members,
            through,
            late,
            self.gathered,
            [*self.earlier],
        )

    @property
    def missing(self) -> BitMap:
        """The expected jobs that are not through."""
        return self.members - self.through


class Gathering:
    """The groups of one gathered leaf, by number; `by_job` finds a group by a job that stands or stood for it."""

    def __init__(self, rule: GatheredDef) -> None:
        self.care = 0
        """The bits of the leaves from which user code reads keys."""
        self.define(rule)
        self.clear()

    def define(self, rule: GatheredDef) -> None:
        """Take a rule; what follows from another one than before, `State.gather_anew` works out."""
        self.rule = rule
        self.pattern = re.compile(rule.pattern) if rule.key == "name" else None

    def clear(self) -> None:
        """Forget all groups."""
        self.groups: dict[int, Group] = {APART: Group("")}
        self.numbers: dict[str, int] = {}
        self.by_job: dict[int, int] = {}
        self.group_of: array[int] = array("I")

    def reads(self, before: int, after: int) -> bool:
        """Whether these masks differ in what keys are read from."""
        return (before ^ after) & self.care != 0

    # --- changes ----------------------------------------------------------------------------------

    def update(self, names: Names, job: int, expected: bool, through: bool) -> list[Change]:
        """Take note of what a job is now."""
        if self.rule.key == "batch":
            return self._batched(names, job, expected, through)
        number = get_at(self.group_of, job)
        if number:
            return self._changed(names, number, job, expected, through)
        if not expected:
            return self._keyed(names, job)
        key = self.key_of(names.jobs[job])
        if key is None:
            self.groups[APART].members.add(job)
            return []
        return self._join(names, key, job, through)

    def assign(self, names: Names, job: int, key: str | None, expected: bool, through: bool) -> list[Change]:
        """Take note of a job's key; None where it has none."""
        number = get_at(self.group_of, job)
        if number and self.groups[number].key == key:
            return self._keyed(names, job)
        changes = self._changed(names, number, job, False, False) if number else []
        if expected and key is not None:
            changes += self._join(names, key, job, through)
        return changes + self._keyed(names, job)

    def ask(self, job: int) -> None:
        """A job's key is asked for: what may belong to any group holds all of them up."""
        self.groups[APART].members.add(job)

    def key_of(self, name: str) -> str | None:
        """Return the key that a job has by its name, None where there is none, or none yet."""
        if self.rule.key == "all":
            return self.rule.job
        found = self.pattern.search(name) if self.pattern is not None else None
        key = found[1 if found.re.groups else 0] if found is not None else None
        return key if key and is_job(key) else None

    def _keyed(self, names: Names, job: int) -> list[Change]:
        """A job does not wait for a key any more: when none does, the groups that were held up are looked at."""
        apart = self.groups[APART]
        if job not in apart.members:
            return []
        apart.members.discard(job)
        held = apart.late
        if not held or apart.members:
            return []
        apart.late = None
        return [change for number in held for change in self._settle(names, number)]

    def _join(self, names: Names, key: str, job: int, through: bool) -> list[Change]:
        number = self.numbers.get(key)
        if number is None:
            number = self._opened(names, key)
        group, changes = self.groups[number], list[Change]()
        if group.complete:
            if self.rule.late == "ignore":
                return []
            changes = self._reopen(names, number, group)
        if group.gathered is not None:
            group.late = group.late or BitMap()
            group.late.add(job)
        put_at(self.group_of, job, number)
        group.members.add(job)
        if through:
            group.through.add(job)
        return changes + self._settle(names, number)

    def _changed(self, names: Names, number: int, job: int, expected: bool, through: bool) -> list[Change]:
        group = self.groups[number]
        if not expected:
            put_at(self.group_of, job, 0)
            group.members.discard(job)
            group.through.discard(job)
            if group.late is not None:
                group.late.discard(job)
        elif through:
            group.through.add(job)
        else:
            group.through.discard(job)
        return self._settle(names, number)

    def _settle(self, names: Names, number: int) -> list[Change]:
        """Return what follows for a group: whether it is complete may have changed."""
        group, held = self.groups[number], self.groups[APART]
        if group.complete and self.rule.late == "ignore":
            complete = len(group.members) > 0
        else:
            complete = self.lacking(group) == 0
        if complete and not group.complete and self.rule.key == "asked" and held.members:
            held.late = held.late or BitMap()
            held.late.add(number)
            return []
        if complete is group.complete:
            return []
        return self._complete(group) if complete else self._reopen(names, number, group)

    def _complete(self, group: Group) -> list[Change]:
        group.complete, group.late, group.gathered = True, None, group.through.copy()
        return [(group.job, True)]

    def _reopen(self, names: Names, number: int, group: Group) -> list[Change]:
        old, group.complete = group.job, False
        assert group.gathered is not None, "it was complete"
        if self.rule.late == "again":
            group.earlier.append((old, group.gathered))
            if len(group.earlier) > EARLIER_MAX:
                self.by_job.pop(group.earlier.pop(0)[0], None)
            self._name(names, number, group, group.number + 1)
        else:
            group.gathered = None
        return [(old, False)]

    def lacking(self, group: Group) -> int:
        """Return how many jobs a group waits for at least; 0 where it has all that it needs."""
        expected, through = len(group.members), len(group.through)
        needed = expected
        if self.rule.count is not None:
            needed = self.rule.count
        elif self.rule.share is not None:
            needed = -(-self.rule.share * expected // NANO)
        late = 0 if not group.late else len(group.late - group.through)
        return max(needed - through, late, 0 if expected else 1)

    # --- batches ----------------------------------------------------------------------------------

    def _batched(self, names: Names, job: int, expected: bool, through: bool) -> list[Change]:
        number, apart = get_at(self.group_of, job), self.groups[APART]
        if number:
            group = self.groups[number]
            if through or group.complete:
                return []
            put_at(self.group_of, job, 0)
            group.members.discard(job)
            group.through.discard(job)
        if expected and not through:
            apart.members.add(job)
        else:
            apart.members.discard(job)
        last = len(self.groups) - 1
        if through:
            if last == APART or self.groups[last].complete:
                if apart.complete and self.rule.late == "ignore":
                    return []
                last = self._opened(names, f"{self.rule.job}-{last + 1}")
            put_at(self.group_of, job, last)
            self.groups[last].members.add(job)
            self.groups[last].through.add(job)
        group = self.groups[last]
        if last == APART or group.complete or not group.members:
            return []
        if len(group.members) == self.rule.size:
            return self._complete(group)
        if self.rule.rest and not apart.members:
            apart.complete = True
            return self._complete(group)
        return []

    # --- names ------------------------------------------------------------------------------------

    def _opened(self, names: Names, key: str) -> int:
        number = self.numbers[key] = len(self.groups)
        group = self.groups[number] = Group(key)
        self._name(names, number, group, 1)
        return number

    def _name(self, names: Names, number: int, group: Group, attempt: int) -> None:
        """Give a group a job that stands for no other one."""
        while True:
            end = "" if attempt == 1 else f".{attempt}"
            job = names.intern(group.key[: JOB_LENGTH_MAX - len(end)] + end)
            if job not in self.by_job:
                break
            attempt += 1
        group.job, group.number = job, attempt
        self.by_job[job] = number

    # --- questions --------------------------------------------------------------------------------

    def standing_for(self, job: int) -> Iterator[int]:
        """Yield the job that stands for the group of a job."""
        number = get_at(self.group_of, job)
        if number:
            yield self.groups[number].job

    def of_job(self, job: int) -> Group | None:
        """Return the group that a job stands for now."""
        number = self.by_job.get(job)
        group = None if number is None else self.groups[number]
        return group if group is not None and group.job == job else None

    def gathered(self, job: int) -> BitMap:
        """Return the jobs that were through when the group of this job was complete; while it is not, those that are."""
        number = self.by_job.get(job)
        if number is None:
            return BitMap()
        group = self.groups[number]
        if group.job != job:
            return dict(group.earlier).get(job, BitMap())
        return group.gathered if group.complete and group.gathered is not None else group.through

    def complete(self) -> Iterator[int]:
        """Yield the jobs that stand for complete groups."""
        return (group.job for number, group in self.groups.items() if number != APART and group.complete)

    def waiting(self) -> Iterator[Group]:
        """Yield the groups that are not complete."""
        return (group for number, group in self.groups.items() if number != APART and not group.complete)
