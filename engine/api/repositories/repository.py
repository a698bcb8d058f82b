"""A repository: a set of jobs with a value each, as users, links and the command line see it.

For its users it is an asynchronous mapping that checks every job id. For the engine it is an expression over
*leaves*, the repositories whose membership the engine keeps: a leaf says what it is (`medium`, `kind`,
`locator`, `record`, `ephemeral`, `store`), anything else says what it is made of (`parts`, `expression`).
The pipeline gives each leaf its id and its `Binding` when it opens and takes the binding back at the end.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Collection
from typing import Any, ClassVar, Literal, overload

from datatask.engine.api.repositories.listing import FAIR, ListedStore, check_names, told_invalid
from datatask.engine.api.streams import AReadStream, AReadText, AWriteStream, AWriteText, Mode, Opening
from datatask.engine.ports import Store
from datatask.engine.run_context import Binding
from datatask.schema.definition import AnyExpr, DerivedDef, FilteredDef, In, Medium, Record
from datatask.schema.errors import (
    FLAG,
    FUNCTION,
    TEXT,
    AlreadyOpenError,
    InvalidValueError,
    NotPossibleError,
    expect,
)
from datatask.schema.messages import Write
from datatask.schema.values import JOB_CHARACTERS, JOB_ENDS, check_job, is_job

Resolve = Callable[["Repository"], str]
Mapping = Callable[[Any], Any] | Callable[[Any], Awaitable[Any]]
Filter = Callable[[str], bool] | Callable[[str], Awaitable[bool]]


class Repository(ABC):
    """A set of jobs with a value each. Subclasses must have `unfiltered_iter`, `info` and `delete`.

    `name` fixes the repository's id for ever, `was` names the id that it had before, `record` says how much
    of its values the log keeps. A subclass that does not call this constructor works with the defaults.
    """

    CHARSET: ClassVar[Collection[str]] = JOB_CHARACTERS
    CHARSET_START_END: ClassVar[Collection[str]] = JOB_ENDS
    """The characters of a job id, and those at its ends; a subclass may allow fewer."""

    medium: Medium = "foreign"
    record: Record = "version"
    ephemeral: bool = False
    name: str | None = None
    was: str | None = None
    _id: str | None = None
    _binding: Binding | None = None

    def __init__(
        self, *, name: str | None = None, was: str | None = None, record: Record | None = None
    ) -> None:
        expect(self, TEXT, optional=True, name=name, was=was)
        self.name = name
        self.was = was
        if record is not None:
            if record not in ("value", "digest", "version"):
                raise InvalidValueError(
                    f"record={record!r} is not a choice", remedy="use 'value', 'digest' or 'version'"
                )
            self.record = record

    def __repr__(self) -> str:
        name = self._id or self.name
        return f"{type(self).__name__}({'' if name is None else repr(name)})"

    # --- for users ------------------------------------------------------------------------------------

    @classmethod
    def is_valid_job_id(cls, job: str) -> bool:
        """Whether `job` may be a job id; a subclass can be stricter than the rule, not laxer."""
        if not is_job(job):
            return False
        if cls.CHARSET is JOB_CHARACTERS and cls.CHARSET_START_END is JOB_ENDS:
            return True
        return all(c in cls.CHARSET for c in job) and all(
            c in cls.CHARSET_START_END for c in (job[0], job[-1])
        )

    async def filter_jobs(self, iterator: AsyncIterable[str]) -> AsyncIterator[str]:
        """Yield the valid job ids of `iterator`; the others are told once each."""
        skipped = 0
        async for job in iterator:
            if is_job(job) and self.is_valid_job_id(job):
                yield job
                continue
            skipped += 1
            told_invalid(repr(self), job if isinstance(job, str) else f"{job!r:.160}")
            if skipped % FAIR == 0:
                await asyncio.sleep(0)
            check_names(skipped, self)

    async def contains(self, item: str) -> bool:
        """Whether the job is a member. By default all members are listed to find out."""
        check_job(item, where=self)
        async for job in self:
            if job == item:
                return True
        return False

    def __aiter__(self) -> AsyncIterator[str]:
        iterator = self.unfiltered_iter()
        if not isinstance(iterator, AsyncIterable):
            if inspect.iscoroutine(iterator):
                iterator.close()
            raise InvalidValueError(
                f"unfiltered_iter returns a {type(iterator).__name__}, no asynchronous iterator",
                where=f"{self!r:.160}",
                remedy="write it as an async function that yields",
            )
        return self.filter_jobs(iterator)

    @abstractmethod
    def unfiltered_iter(self) -> AsyncIterator[str]:
        """Yield all members, and names that are not job ids if the place holds such."""

    @abstractmethod
    async def info(self, job: str) -> Any:
        """Return what templates see for the job: a document, a path, …."""

    @abstractmethod
    async def delete(self, job: str) -> None:
        """Remove the job; absent is fine."""

    async def info_all(self) -> dict[str, Any]:
        """Return `info` for every member."""
        return {job: await self.info(job) async for job in self}

    async def validate(self) -> None:
        """Raise when the repository cannot work as declared; called when the pipeline opens."""
        return

    async def check_input(self, whose: str) -> None:
        """Raise when it cannot be read; called instead of `validate` where nothing in the pipeline fills it.

        `whose` names the link by which it is read, for the message.
        """
        await self.validate()

    def map(
        self,
        func: Mapping,
        filt: Filter | None = None,
        allow_deletes: bool = False,
        *,
        name: str | None = None,
    ) -> MapRepository:
        """Return the same jobs with `func` applied to each info, only those for which `filt(job)` is true."""
        return MapRepository(self, func, filt, allow_deletes, name=name)

    def is_blob(self) -> bool:
        """Whether `open` works: `cat` and `inject` move bytes."""
        return isinstance(self, BlobRepository)

    def is_metadata(self) -> bool:
        """Whether `info` gives documents (and `dump` takes them, where the repository can be written)."""
        return isinstance(self, MetadataRepository)

    # --- for the engine -------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        """What the user made it with, for people to read."""
        return type(self).__name__

    def locator(self) -> str | None:
        """Return kind and canonical place, or None; two objects with one locator are one repository."""
        return None

    @property
    def store(self) -> Store:
        """The port through which the engine lists, writes and watches this leaf."""
        return ListedStore(self)

    def observed(self, job: str, version: str | None) -> Write:
        """Return what the log is to know of a member that was found in the store: that it is there."""
        return Write(repository=self.id, job=job, version=version)

    @property
    def id(self) -> str:
        """The id under which the pipeline knows this leaf."""
        if self._id is None:
            raise InvalidValueError(
                f"{self!r} has no id yet", remedy="link it to a task and open the pipeline"
            )
        return self._id

    @property
    def binding(self) -> Binding | None:
        """The engine of the open pipeline, or None."""
        return self._binding

    def bind(self, id: str, binding: Binding) -> None:
        """Connect with the engine of a pipeline that opens, under the id that it gave."""
        if self._binding is not None and self._binding is not binding:
            raise AlreadyOpenError(
                f"{self!r} belongs to another open pipeline",
                remedy="make one repository object per open pipeline",
            )
        self._id = id
        self._binding = binding

    def unbind(self) -> None:
        """Let go of the engine; the id stays."""
        self._binding = None

    def parts(self) -> list[Repository]:
        """Return the repositories that this one is directly made of."""
        return []

    def leaves(self) -> list[Repository]:
        """Return the leaves that `expression` looks at, each once."""
        return [self]

    def expression(self, resolve: Resolve) -> AnyExpr:
        """Return the membership as a condition over leaves; `resolve` gives a leaf's id."""
        return In(leaf=resolve(self))

    def __getstate__(self) -> dict[str, Any]:
        """A repository that is sent to a worker takes its id along and leaves the engine here."""
        return {key: value for key, value in self.__dict__.items() if key != "_binding"}


class MetadataRepository(Repository):
    """A repository whose values are documents: plain data, dates and bytes."""

    @abstractmethod
    async def dump(self, job: str, data: Any) -> None:
        """Make `data` the job's value."""


class BlobRepository(Repository):
    """A repository whose values are bytes."""

    @overload
    def open(self, job: str, mode: Literal["r"] = "r") -> Opening[AReadText]: ...
    @overload
    def open(self, job: str, mode: Literal["rb"]) -> Opening[AReadStream]: ...
    @overload
    def open(self, job: str, mode: Literal["w"]) -> Opening[AWriteText]: ...
    @overload
    def open(self, job: str, mode: Literal["wb"]) -> Opening[AWriteStream]: ...
    @abstractmethod
    def open(self, job: str, mode: Mode = "r") -> Opening[Any]:
        """Open the job's value: `async with repo.open(job, "w") as f: await f.write(…)`.

        Leaving the block writes the whole value; a body that raises writes nothing.
        """


class DerivedLeaf(Repository):
    """A leaf that the engine keeps by evaluating user code: `evaluate` is called when its parts change."""

    medium: Medium = "derived"

    @abstractmethod
    def derivation(self, resolve: Resolve) -> DerivedDef:
        """Return what the leaf is derived from."""

    @abstractmethod
    def evaluate(self, job: str) -> Awaitable[bool | str | None]:
        """Return the filter's answer, or the job that `job` translates to (None: to nothing)."""

    @abstractmethod
    def structural_id(self, child_ids: list[str]) -> str:
        """Return an id made of the ids of `parts()`; equal ones of different objects get `#2` and so on."""


class MapRepository(DerivedLeaf):
    """`func` over each info of `base` and `filt` over its jobs; both may be plain or async functions.

    `info` works for filtered-out jobs too. Deletions reach `base` only with `allow_deletes`.
    """

    def __init__(
        self,
        base: Repository,
        func: Mapping,
        filt: Filter | None = None,
        allow_deletes: bool = False,
        *,
        name: str | None = None,
        was: str | None = None,
    ) -> None:
        super().__init__(name=name, was=was)
        expect(self, Repository, base=base)
        expect(self, FUNCTION, func=func)
        expect(self, FUNCTION, optional=True, filt=filt)
        expect(self, FLAG, allow_deletes=allow_deletes)
        self.base = base
        self.func = func
        self.filter = filt
        self.allow_deletes = allow_deletes

    def __repr__(self) -> str:
        filtered = "" if self.filter is None else f", {_called(self.filter)}"
        return f"MapRepository({self.base!r}, {_called(self.func)}{filtered})"

    async def contains(self, item: str) -> bool:
        """Whether `base` has the job and the filter takes it."""
        check_job(item, where=self)
        return await self.base.contains(item) and await self.evaluate(item)

    async def unfiltered_iter(self) -> AsyncIterator[str]:
        """Yield the jobs of `base` that the filter takes."""
        async for job in self.base:
            if await self.evaluate(job):
                yield job

    async def info(self, job: str) -> Any:
        """Return `func` of the base's info."""
        check_job(job, where=self)
        return await _outcome(self.func(await self.base.info(job)))

    async def info_all(self) -> dict[str, Any]:
        """Return `func` of each info of the jobs that the filter takes."""
        infos = await self.base.info_all()
        return {
            job: await _outcome(self.func(info)) for job, info in infos.items() if await self.evaluate(job)
        }

    async def delete(self, job: str) -> None:
        """Remove the job from `base` when deletions are allowed, else nothing."""
        check_job(job, where=self)
        if self.allow_deletes:
            await self.base.delete(job)

    async def dump(self, job: str, data: Any) -> None:
        """Refuse: a function cannot be run backwards."""
        raise NotPossibleError(
            f"{self!r} cannot be written", where=job, remedy="write to the repository that it maps"
        )

    def is_metadata(self) -> bool:
        """What the function returns can be shown as a document."""
        return True

    async def validate(self) -> None:
        """Validate the base."""
        await self.base.validate()

    async def check_input(self, whose: str) -> None:
        """Check the base."""
        await self.base.check_input(whose)

    def parts(self) -> list[Repository]:
        """Return the base."""
        return [self.base]

    def leaves(self) -> list[Repository]:
        """With a filter the leaf is this one, else those of the base."""
        return self.base.leaves() if self.filter is None else [self]

    def expression(self, resolve: Resolve) -> AnyExpr:
        """With a filter this leaf, else the base's expression."""
        return self.base.expression(resolve) if self.filter is None else In(leaf=resolve(self))

    def derivation(self, resolve: Resolve) -> FilteredDef:
        """Filtered from the base."""
        return FilteredDef(base=self.base.expression(resolve))

    async def evaluate(self, job: str) -> bool:
        """Return what the filter says of the job."""
        return self.filter is None or bool(await _outcome(self.filter(job)))

    def structural_id(self, child_ids: list[str]) -> str:
        """Return `filtered(base,function)`."""
        (base,) = child_ids
        return f"filtered({base},{_called(self.filter)})"


def all_leaves(repository: Repository) -> list[Repository]:
    """Return every leaf below a repository, each once, those that a derived leaf stands on before it."""
    found: dict[int, Repository] = {}
    for part in repository.parts():
        found |= {id(leaf): leaf for leaf in all_leaves(part)}
    if repository.leaves() == [repository]:
        found.setdefault(id(repository), repository)
    return list(found.values())


async def _outcome(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


def _called(function: object) -> str:
    """Return the function's own name, which stays the same from process to process."""
    name = getattr(function, "__qualname__", type(function).__name__)
    return re.sub(r"[^\w.]", "", name.rpartition("<locals>.")[2])
