"""What connects a repository with the engine of an open pipeline, and with the run that is using it.

In come a repository's reads and writes, out go calls to the engine (`Binding`) or, while a run's function
executes, entries in that run's overlay (`RunContext`). The overlay is why a run's outputs, its `done` entry
and its end become visible together: no change in it is reported before the runner hands `settle()` to
the engine as part of `Ended`. The engine side of `Binding` lives in the runtime; workers have their own.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import NamedTuple, Protocol

import msgspec

from datatask.engine.capture import Capture
from datatask.engine.ports import Blobs
from datatask.schema.definition import Conflicts
from datatask.schema.errors import ConflictError, DatataskError, NotOpenError, NotPossibleError
from datatask.schema.messages import Write

READS_MAX = 1_000
"""The number of reads of a run, the first ones, that are remembered for lineage; a run may scan a whole repository."""
SEEN_MAX = 10_000
"""The number of keys read by a run that are remembered one by one; of further ones only the repositories."""
RUN_AGAIN = (
    'nothing: the run ends here and is run again; conflicts="allow" of its task lets the last write win'
)
ABSENT_VERSION = ""
"""Stands for the version of a key that is not there."""

VersionOf = Callable[[str], Awaitable[str | None]]


class ValueRef(NamedTuple):
    """A value as the log has it: a document inline (`value`), or a blob's `digest`; and where it was put."""

    value: msgspec.Raw
    digest: str | None
    size: int | None
    position: int


class Binding(Protocol):
    """What a repository asks of the engine. `contains` and `members` answer from the engine's state."""

    async def put(self, repository_id: str, write: Write) -> None:
        """Record the write, carry it out in the repository's store if it has one, return when durable."""

    async def delete(self, repository_id: str, job: str) -> None:
        """Record the deletion, carry it out in the store, return when durable; absent is fine."""

    def contains(self, repository_id: str, job: str) -> bool:
        """Whether the job is a member."""

    def members(self, repository_id: str) -> list[str]:
        """Return a snapshot of the members."""

    async def value(self, repository_id: str, job: str) -> ValueRef | None:
        """Return the member's value, or None when it is not one."""

    def position(self, repository_id: str) -> int:
        """Return up to which position of the log a read that begins now sees what was written, at least."""

    @property
    def blobs(self) -> Blobs:
        """The blobs beside the log."""


class Seen(NamedTuple):
    """What a run knew of a key: the log's position when it first read it, and the store's version then.

    The version is "" where the key was not there, None where it is not known or there is no store.
    """

    position: int
    version: str | None = None


class RunContext:
    """One run while its function executes: what it wrote, what it read, and whether it may still write.

    Thread-safe: a function in an executor writes from its own thread while the engine may fence it.
    `reads` maps a repository id (`id/job` for other jobs than the run's) to the position of the value read. What was
    read also goes with the writes (`Write.over`), unless `conflicts` are allowed: so a write over what another has
    changed meanwhile is found out. A key that was read is written at the run's end, whatever its store is, unless
    the run has asked for its path: who knows the path looks there. Where stores are not seen as the engine sees them (in a
    pod) nothing is put off (`defers`). `damage` is what made a value that the run asked for one that cannot be trusted.
    """

    __slots__ = (
        "_fenced",
        "_listed",
        "_lock",
        "_paths",
        "_refused",
        "_seen",
        "_unsettled",
        "_writes",
        "damage",
        "defers",
        "guarded",
        "identities",
        "job",
        "logs",
        "printed",
        "reads",
        "run",
        "task",
    )

    def __init__(self, run: int, task: str, job: str, conflicts: Conflicts = "rerun", logs: int = 0) -> None:
        self.run = run
        self.logs = logs
        self.identities: Mapping[str, tuple[str, ...]] = MappingProxyType({})
        self.task = task
        self.job = job
        self.guarded = conflicts == "rerun"
        self.defers = True
        self.damage: DatataskError | None = None
        self.printed: Capture | None = None
        self.reads: dict[str, int] = {}
        self._seen: dict[tuple[str, str], Seen] = {}
        self._listed: dict[str, int] = {}
        self._paths: dict[tuple[str, str], None] = {}  # an empty set is ten times as large, for each run
        self._fenced = False
        self._refused = ""
        self._writes: dict[tuple[str, str], Write] = {}
        self._unsettled: dict[tuple[str, str], VersionOf] = {}
        self._lock = threading.Lock()

    def capture(self) -> Capture | None:
        """Return what takes up what the function prints; None where nothing is kept, and for a run that has ended."""
        if self.printed is None and self.logs and not self._fenced:
            self.printed = Capture(self.logs)
        return self.printed

    def __repr__(self) -> str:
        return f"RunContext(run={self.run}, task={self.task!r}, job={self.job!r}, writes={len(self._writes)})"

    @property
    def fenced(self) -> bool:
        """Whether the run has ended, so that further writes are refused."""
        return self._fenced

    def fence(self) -> tuple[Write, ...]:
        """Refuse all further writes and return those so far; fencing twice is fine."""
        with self._lock:
            self._fenced = True
            return tuple(self._writes.values())

    def check_open(self) -> None:
        """Raise `CallerError` when the run has ended; called before a foreign store is touched."""
        if self._refused:
            raise ConflictError(self._refused, where=f"{self.task}[{self.job}]", remedy=RUN_AGAIN)
        if self._fenced:
            raise NotPossibleError(
                f"run {self.run} has ended; its later writes are fenced off",
                where=f"{self.task}[{self.job}]",
                remedy="write before the function returns or its time is up",
            )

    def put(self, write: Write) -> None:
        """Add a write; the last one per repository and job counts."""
        self._enter(write, None)

    def put_unsettled(self, write: Write, version_of: VersionOf) -> None:
        """Add a write whose store version is only known in the end, such as a folder that is being filled.

        `settle` asks `version_of(job)`, and drops the write when the answer is None (not a member after all).
        """
        self._enter(write, version_of)

    def delete(self, repository_id: str, job: str, *, version: str | None = None) -> None:
        """Add a deletion; with a `version` (any text) the store has carried it out already."""
        self._enter(Write(repository=repository_id, job=job, op="delete", version=version), None)

    # --- what it has read -------------------------------------------------------------------------

    def note_seen(self, repository_id: str, job: str, position: int, version: str | None = None) -> None:
        """Remember what the run knows of a key, whether it found a value or none; the first read of each counts."""
        if len(self._seen) < SEEN_MAX:
            self._seen.setdefault((repository_id, job), Seen(position, version))
        elif (repository_id, job) not in self._seen:
            self.note_listed(repository_id, position)

    def note_listed(self, repository_id: str, position: int) -> None:
        """Remember that the run has seen which keys there are, and which are not."""
        self._listed.setdefault(repository_id, position)

    def note_stored(self, repository_id: str, job: str, position: int, version: str | None) -> None:
        """Remember that a store has a write of this run: it knows the key as it is now."""
        self._seen[repository_id, job] = Seen(position, version)

    def note_path(self, repository_id: str, job: str) -> None:
        """Remember that the run knows where a key's file is."""
        self._paths[repository_id, job] = None

    def knows_path(self, repository_id: str, job: str) -> bool:
        """Whether the run has asked where a key's file is."""
        return (repository_id, job) in self._paths

    def seen(self, repository_id: str, job: str) -> Seen | None:
        """Return what the run knows of a key that it has read, None where it has not."""
        found = self._seen.get((repository_id, job))
        if found is None and repository_id in self._listed:
            found = Seen(self._listed[repository_id])
        return found

    def refuse(self, write: Write, why: str) -> None:
        """Take a conflict that a store has found: the run is over, whatever its function makes of it."""
        with self._lock:
            key = write.repository, write.job
            self._unsettled.pop(key, None)
            self._writes[key] = Write(
                repository=write.repository,
                job=write.job,
                op=write.op,
                over=write.over or 0,
                over_version=write.over_version,
                conflict=why,
            )
            self._fenced, self._refused = True, why

    # --- what it has written ----------------------------------------------------------------------

    def _enter(self, write: Write, version_of: VersionOf | None) -> None:
        key = write.repository, write.job
        if (self._seen or self._listed) and write.version is None and version_of is None:
            seen = self.seen(*key)
            if seen is not None:
                write = msgspec.structs.replace(write, over=seen.position, over_version=seen.version)
        with self._lock:
            self.check_open()
            self._writes.pop(key, None)  # so that the order is that of the last writes
            self._unsettled.pop(key, None)
            self._writes[key] = write
            if version_of is not None:
                self._unsettled[key] = version_of

    def written(self, repository_id: str, job: str) -> Write | None:
        """Return what this run last did to the job in the repository, or None when it left it alone."""
        return self._writes.get((repository_id, job))

    def written_in(self, repository_id: str) -> dict[str, Write]:
        """Return all that this run did in a repository, by job."""
        with self._lock:
            return {
                job: write for (repository, job), write in self._writes.items() if repository == repository_id
            }

    def writes(self) -> tuple[Write, ...]:
        """Return the writes so far, in order."""
        with self._lock:
            return tuple(self._writes.values())

    async def settle(self) -> tuple[Write, ...]:
        """Fence the run and return its writes, with the store versions that were left open filled in.

        Raises `damage`: a function that goes on without the value has not done what it was to do.
        """
        written = self.fence()
        if self.damage is not None:
            raise self.damage
        if not self._unsettled:
            return written
        settled = []
        for key, write in self._writes.items():
            if (version_of := self._unsettled.get(key)) is None:
                settled.append(write)
            elif (version := await version_of(write.job)) is not None:
                settled.append(msgspec.structs.replace(write, version=version))
        return tuple(settled)

    def note_read(self, repository_id: str, job: str, position: int) -> None:
        """Remember for lineage which value was read; the first read of each counts."""
        if len(self.reads) < READS_MAX:
            self.reads.setdefault(repository_id if job == self.job else f"{repository_id}/{job}", position)


current_run: ContextVar[RunContext | None] = ContextVar("datatask_current_run", default=None)
"""The run whose function is executing in this context; set by the runner around the call."""


def identities(resource: str) -> tuple[str, ...]:
    """Return the identities of a resource that the run of this function has, such as `("2",)` for `gpu`.

    None where its quota lists none, or the run takes none. `NotOpenError` outside of a run.
    """
    run = current_run.get()
    if run is None:
        raise NotOpenError("no run is under way here", remedy="ask in the function of a task")
    return run.identities.get(resource, ())


def current_capture() -> Capture | None:
    """Return what takes up what the function that executes here prints."""
    run = current_run.get()
    return None if run is None else run.capture()


def with_content(write: Write, blobs: Blobs) -> Write:
    """Return a write that a foreign store can take: a blob's digest becomes the file that holds its bytes."""
    if write.op != "put" or write.digest is None or write.value or write.data is not None or write.source:
        return write
    return msgspec.structs.replace(write, source=blobs.intact(write.digest))
