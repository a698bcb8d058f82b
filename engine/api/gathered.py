"""Jobs gathered: `Gathered` has a job for all jobs of a task, for each group of them, or for each batch, once it is complete.

In: a task or a repository, how groups are made, and what makes one complete. Out: a repository to link as an input; its
`info` are the values of the gathered jobs. The engine keeps it by counting, from the definition in the log; only a key
that user code tells is evaluated, and its answer logged.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, get_args

from datatask.engine.api.repositories import AggregateAndRepository, DerivedLeaf, Repository
from datatask.engine.api.repositories.repository import Resolve
from datatask.engine.api.tasks import Task
from datatask.schema import definition as d
from datatask.schema.errors import FLAG, TEXT, InvalidValueError, NotPossibleError, UnknownNameError, expect
from datatask.schema.units import NANO
from datatask.schema.values import check_job, is_job

Key = str | Repository | Callable[[str], str] | Callable[[str], Awaitable[str]]
WHICH = ("ended", "succeeded")


class Gathered(DerivedLeaf):
    """A job for each complete group of the jobs `of` a task or a repository; its `info` are their values.

    Of a task the jobs are gathered that "ended" (`which`), or those that "succeeded": one that has failed is then not waited
    for, unless there is a `share`. A group is complete when all its expected jobs are through, or a `share` of them (0.9), or
    a `count`. Of a repository its members are through, and those of `expected` are waited for.

    Without `by` all are one group, named `job`. `by` gives each job a key, which names its group: a regular expression,
    searched for in the job's name (its first parenthesis is the key); a repository whose `info` is the key, such as
    `samples.map(lambda value: value["sample"])`; or a function of the job. `batch` makes groups of so many in the order in
    which they are through; with `rest`, what is left when none is expected any more is the last one.

    A job that joins a complete group is late. With `late="again"` the group is no member until that job is through too,
    and comes again as `KEY.2`, then `KEY.3`; with "ignore" it stays as it was. `values` is where `info` finds the values:
    by default the output of the task, if it has one, or the repository; without, `info` is a list of the jobs.
    """

    def __init__(
        self,
        of: Task | Repository,
        which: str = "ended",
        *,
        expected: Repository | None = None,
        share: float | None = None,
        count: int | None = None,
        by: Key | None = None,
        batch: int | None = None,
        rest: bool | None = None,
        late: d.Late = "again",
        values: Repository | None = None,
        job: str | None = None,
        name: str | None = None,
        was: str | None = None,
    ) -> None:
        super().__init__(name=name, was=was)
        if not isinstance(of, Task | Repository):
            raise self._wrong(f"of={of!r:.80} is a {type(of).__name__}", "gather a Task or a Repository")
        expect(self, Repository, optional=True, expected=expected, values=values)
        expect(self, FLAG, optional=True, rest=rest)
        expect(self, TEXT, optional=True, job=job)
        self.of, self.which = of, which
        self.share, self.count, self.by, self.batch, self.late = share, count, by, batch, late
        self.expected = expected
        self._check()
        waits = isinstance(of, Task) or expected is not None
        if not waits and count is None and batch is None:
            raise self._wrong(
                "nothing says when all members of a repository are there", "pass expected=, count= or batch="
            )
        if rest and not waits:
            raise self._wrong(
                "rest=True of a repository: nobody knows whether more will come",
                "pass expected=, or leave it out",
            )
        self.rest = waits if rest is None else rest
        self.values = values if values is not None or isinstance(of, Task) else of
        self.job = check_job(job or ("all" if batch is None else "batch"), where=self)
        self._pattern = ""
        if isinstance(by, str):
            self._pattern = self._checked_pattern(by)

    def __repr__(self) -> str:
        return f"<{self.name or self._id or 'gathered ' + (self.of.name if isinstance(self.of, Task) else repr(self.of))}>"

    # --- what is asked for ------------------------------------------------------------------------

    def _wrong(self, what: str, remedy: str) -> InvalidValueError:
        return InvalidValueError(what, where=f"Gathered {self.name or ''}".strip(), remedy=remedy)

    def _check(self) -> None:
        if self.which not in WHICH:
            raise self._wrong(f"which={self.which!r} is no choice", "use 'ended' or 'succeeded'")
        if self.which != "ended" and not isinstance(self.of, Task):
            raise self._wrong(
                f"which={self.which!r} of a repository: only tasks succeed",
                "gather the task, or task.succeeded",
            )
        if self.late not in get_args(d.Late):
            raise self._wrong(f"late={self.late!r} is no choice", "use 'again' or 'ignore'")
        for what, number in (("count", self.count), ("batch", self.batch)):
            if number is not None and (type(number) is not int or number < 1):
                raise self._wrong(f"{what}={number!r}", "use a whole number, 1 or more")
        share = self.share
        if share is not None and (type(share) not in (int, float) or not 0 < share <= 1 or math.isnan(share)):
            raise self._wrong(f"share={share!r}", "use a number above 0, and 1 at most: 0.9 is nine of ten")
        given = [
            name for name, value in (("share", share), ("count", self.count), ("batch", self.batch)) if value
        ]
        if len(given) > 1:
            raise self._wrong(f"{' and '.join(given)} together", "use one of them")
        if self.batch is not None and self.by is not None:
            raise self._wrong("batch and by together", "use one of them")
        if self.by is not None and not (isinstance(self.by, str | Repository) or callable(self.by)):
            raise self._wrong(
                f"by is a {type(self.by).__name__}", "pass a pattern, a repository, or a function of the job"
            )

    def _checked_pattern(self, pattern: str) -> str:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise self._wrong(
                f"by={pattern!r} is no regular expression: {error}", r"use one such as r'^(\w+)-'"
            ) from error
        if compiled.groups > 1:
            raise self._wrong(
                f"by={pattern!r} has {compiled.groups} groups", "put the key into one pair of parentheses"
            )
        return pattern

    async def validate(self) -> None:
        """Raise where the task that is gathered says nothing of its jobs."""
        self._told()

    async def check_input(self, whose: str) -> None:
        """As `validate`: its parts are checked by themselves."""
        await self.validate()

    def _told(self) -> Repository:
        """Return the repository of the jobs that are waited for."""
        if self.expected is not None:
            return self.expected
        if isinstance(self.of, Repository):
            return self.of
        required = self.of.required_for_start
        if self.of._ready is not None:
            return self.of._ready
        if not required:
            raise self._wrong(
                f"no link says which jobs task {self.of.name} is for",
                "link an input to it, or pass expected=",
            )
        return AggregateAndRepository(**required)

    def _held_back(self) -> list[Repository]:
        """Return what keeps jobs from the task for good: stored repositories that inhibit it, but for its own."""
        if not isinstance(self.of, Task) or self.of._ready is not None or self.expected is not None:
            return []
        links = self.of.links.values()
        return [
            link.repo
            for link in links
            if link.inhibits_start and not link.is_status and link.repo.medium not in ("view", "derived")
        ]

    def _valued(self) -> Repository | None:
        if self.values is None and isinstance(self.of, Task) and len(self.of.output) == 1:
            (self.values,) = self.of.output.values()
        return self.values

    # --- for users --------------------------------------------------------------------------------

    async def contains(self, item: str) -> bool:
        """Whether the group that the job stands for is complete."""
        check_job(item, where=self)
        return self._binding is not None and self._binding.contains(self.id, item)

    async def unfiltered_iter(self) -> AsyncIterator[str]:
        """Yield the jobs that stand for complete groups; none while no pipeline is open."""
        for job in self._binding.members(self.id) if self._binding is not None else ():
            yield job

    async def jobs(self, job: str) -> list[str]:
        """Return the jobs that were gathered for this one, in the order of their first appearance."""
        check_job(job, where=self)
        return [] if self._binding is None else self._binding.members(d.group_id(self.id, job))

    async def info(self, job: str) -> Any:
        """Return the gathered jobs' values by job; or the list of the jobs, where nothing says where values are.

        The value of a job that has none is None.
        """
        gathered, values = await self.jobs(job), self._valued()
        if values is None:
            return gathered
        found: dict[str, Any] = {}
        for each in gathered:
            found[each] = await values.info(each) if await values.contains(each) else None
        return found

    async def delete(self, job: str) -> None:
        """Refuse: which groups are complete follows from what happened."""
        raise NotPossibleError(
            f"{self!r} follows from what is gathered", where=job, remedy="delete what it is gathered from"
        )

    def is_metadata(self) -> bool:
        """What is gathered can be shown as a document."""
        return True

    # --- for the engine ---------------------------------------------------------------------------

    def parts(self) -> list[Repository]:
        """Return what it looks at, and where its values are."""
        found = [self._told(), *self._held_back()]
        found += [self.of.succeeded, self.of.failed] if isinstance(self.of, Task) else [self.of]
        found += [] if not isinstance(self.by, Repository) else [self.by]
        values = self._valued()
        return found if values is None else [*found, values]

    def derivation(self, resolve: Resolve) -> d.GatheredDef:
        """Gathered from those that are expected, and those that are through."""
        expected = self._told().expression(resolve)
        held_back = tuple(d.Not(of=one.expression(resolve)) for one in self._held_back())
        if isinstance(self.of, Task):
            succeeded, failed = self.of.succeeded.expression(resolve), self.of.failed.expression(resolve)
            through = succeeded if self.which == "succeeded" else d.Any(of=(succeeded, failed))
            expected = d.All(of=(expected, *(d.Any(of=(one, through)) for one in held_back)))
            if self.which == "succeeded" and self.share is None:
                expected = d.All(of=(expected, d.Not(of=failed)))
        else:
            through = self.of.expression(resolve)
        return d.GatheredDef(
            base=through,
            translator=expected,
            key=self._grouped_by(),
            job=self.job,
            pattern=self._pattern,
            keys=self.by.expression(resolve) if isinstance(self.by, Repository) else None,
            size=self.batch or 0,
            rest=self.batch is not None and self.rest,
            share=None if self.share is None else round(self.share * NANO),
            count=self.count,
            late=self.late,
        )

    def _grouped_by(self) -> d.GroupedBy:
        if self.batch is not None:
            return "batch"
        return "all" if self.by is None else "name" if isinstance(self.by, str) else "asked"

    async def evaluate(self, job: str) -> str:
        """Return the key of a job as user code tells it; one line where it has none."""
        if isinstance(self.by, Repository):
            if not await self.by.contains(job):
                raise UnknownNameError(
                    f"{job} has no key: it is not in {self.by!r}", where=repr(self), remedy="put it there"
                )
            key = await self._asked(job, self.by.info)
        else:
            assert callable(self.by), "only keys that user code tells are evaluated"
            key = await self._asked(job, self.by)
        if not is_job(key):
            raise self._wrong(
                f"the key of {job} is {key!r:.80}, which cannot name a job",
                "make it 1-128 letters, digits, '.', '_' or '-', with a letter or digit at both ends",
            )
        return str(key)

    async def _asked(self, job: str, ask: Callable[[str], Any]) -> Any:
        try:
            key = ask(job)
            return await key if inspect.isawaitable(key) else key
        except LookupError as error:
            raise UnknownNameError(
                f"{job} has no key: {type(error).__name__} {error}",
                where=repr(self),
                remedy="give its value what `by` reads, or let `by` return a name for those without",
            ) from error

    def structural_id(self, child_ids: list[str]) -> str:
        """Return `gathered(task)` or `gathered(repository)`, with what tells it from others."""
        place = 1 + len(self._held_back())
        of = self.of.name if isinstance(self.of, Task) else child_ids[place]
        return f"gathered({of})"
