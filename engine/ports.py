"""What the engine asks of the world, in its own words.

Four small ports: an `EventLog` remembers, a `Runner` runs, a `Store` keeps values, a `Clock` tells the time.
Adapters implement them; `datatask.testing` holds complete in-memory ones, and each port has one contract
suite under tests/contract. Facts flow in through a `Sink`, one at a time, on the event loop's thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from datatask.schema.definition import Medium, Record
from datatask.schema.events import Batch, Event, Recorded, StopReason
from datatask.schema.messages import AnyRequest, Ended, Fact, Reply, RunSpec, Write

if TYPE_CHECKING:
    from datatask.engine.core.state import State

# --- time -------------------------------------------------------------------------------------------


class Clock(Protocol):
    """Engine time: UTC nanoseconds, taken from the wall once and then advanced monotonically."""

    def now(self) -> int:
        """Return engine time; never less than before."""

    def wall_step(self) -> tuple[int, int] | None:
        """Return (wall before, wall after) when the wall clock jumped since last asked, else None."""

    def call_at(self, at: int, ring: Callable[[], None]) -> Callable[[], None]:
        """Ring on the event loop at engine time `at`, perhaps earlier; return the function that calls it off."""


# --- the log ----------------------------------------------------------------------------------------


class Filters(NamedTuple):
    """Which events to read; an empty tuple does not restrict, several values of a field are alternatives.

    `text` is looked for, letter by letter, in kind, actor, task, repository and job and in the kind's own fields:
    their JSON as it is stored (no blanks, defaults left out), and the text within it as it was before quoting.
    """

    kinds: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    runs: tuple[int, ...] = ()
    actors: tuple[str, ...] = ()
    since: int | None = None
    until: int | None = None
    text: str = ""


EVERYTHING = Filters()


class Checkpoint(NamedTuple):
    """A state as bytes, and what it stands on; a cache, thrown away on any mismatch.

    `event` is the position of the `CheckpointWritten` that vouches for it.
    """

    position: int
    chain: bytes
    fold_version: int
    body: bytes
    event: int = 0


class EventLog(Protocol):
    """An ordered, durable, chained sequence of batches with one writer."""

    url: str
    uuid: str
    pipeline: str
    epoch: int

    @property
    def head(self) -> int:
        """The last durable position; 0 for an empty log."""

    @property
    def next(self) -> int:
        """The position that the next enqueued event will get."""

    @property
    def holds_lease(self) -> bool:
        """Whether this engine may still act on the log; asked right before effects."""

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether states of this engine may be kept: none once a payload was removed, which they may still hold."""

    def enqueue(self, events: Sequence[Event]) -> range:
        """Append one batch (1-10,000 events) and return its positions at once; durable when told.

        A batch of `PayloadRedacted` takes the payloads out that it tells of (`core.redactions.removed` makes it); they
        stand in no batch with other kinds. Batches become durable in the order of the calls. Raises `LeaseLostError`
        under an older epoch, and after a failed append always the error of that append.
        """

    async def append(self, events: Sequence[Event]) -> range:
        """`enqueue`, and return when the batch is durable."""

    def subscribe(
        self, durable: Callable[[int], None], failed: Callable[[BaseException], None] | None = None
    ) -> Callable[[], None]:
        """Call `durable(head)` on the loop whenever the head moved; return the function that ends it."""

    def batches(self, after: int = 0, until: int | None = None) -> AsyncIterator[Batch]:
        """Yield the durable batches behind `after`, in order, up to the one that holds `until`."""

    async def fold(self, state: State) -> State:
        """Fold the durable events behind a state, as fast as the log can, and return the state."""

    def read(
        self, after: int = 0, until: int | None = None, filters: Filters = EVERYTHING
    ) -> AsyncIterator[Recorded]:
        """Yield durable events with after < position <= until that pass the filters."""

    async def fetch(self, positions: Sequence[int]) -> list[Event]:
        """Return the events at these positions, in the order asked; `UnknownNameError` for a missing one.

        They are checked against the chain: `LogDamagedError` where one is not what was written.
        """

    async def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint, atomically; the newest few are kept."""

    async def latest_checkpoint(self, fold_version: int) -> Checkpoint | None:
        """Return the newest checkpoint of this fold version that an event of this log vouches for, or None."""

    async def base_state(self) -> bytes | None:
        """Return the state that the log stands on where its beginning was archived, as bytes, else None."""

    def chain_at(self, position: int) -> bytes:
        """Return the chain hash at a durable batch boundary."""

    @property
    def blobs(self) -> Blobs:
        """The blobs beside the log."""

    @property
    def inbox(self) -> Inbox:
        """Where other processes ask."""

    async def close(self) -> None:
        """Make durable what is enqueued, give the lease back, and end."""


class Blobs(Protocol):
    """Content-addressed bytes: written whole (temporary name, fsync, rename) before an event names them."""

    def put_bytes(self, data: bytes) -> tuple[str, int]:
        """Store bytes durably; return (SHA-256 in hex, size)."""

    def put_file(self, source: Path) -> tuple[str, int]:
        """Store a file's content durably, in constant memory; return (SHA-256 in hex, size)."""

    def new(self) -> Path:
        """Return a fresh path on the same file system for a writer; `adopt` it or unlink it."""

    def adopt(self, path: Path) -> tuple[str, int]:
        """Take a finished file from `new` as a blob, durably; return (SHA-256 in hex, size)."""

    def path(self, digest: str) -> Path:
        """Return where the blob's bytes are; `UnknownNameError` if it is not there."""

    def intact(self, digest: str) -> Path:
        """The same, once the bytes were compared with the digest; `ValueDamagedError` where they are others."""


class Inbox(Protocol):
    """Requests from other processes, durable until answered."""

    blocking: bool
    """Whether these wait for a disk: they are called in threads then, several at once."""

    def pending(self) -> list[AnyRequest]:
        """Return the unanswered requests, oldest first (at most 1,000); cheap when there are none."""

    def answer(self, reply: Reply) -> None:
        """Answer a request, whose events are durable, and remove it from the pending ones."""


# --- runs -------------------------------------------------------------------------------------------


Sink = Callable[[Fact], None]


class Runner(Protocol):
    """Starts runs, watches them, stops them. All facts go to the sink; no method decides anything."""

    async def open(self, sink: Sink) -> None:
        """Get ready; called once before anything else."""

    def start(self, spec: RunSpec) -> None:
        """Start a run; idempotent by identity. Tells `Started`, or `Ended` (`refused`) when it cannot."""

    def stop(self, run: int, reason: StopReason, grace: int) -> None:
        """Begin to stop a run, politely for `grace` nanoseconds; its `Ended` follows. Unknown runs: nothing."""

    async def recover(self, specs: Iterable[RunSpec]) -> None:
        """Account for each run that an earlier engine left open, then return.

        Each gets `Adopted`, `Ended`, or `Unreachable` (and then later one of the others). `lost` needs
        positive evidence of absence, after a tombstone that keeps a delayed start from happening. Where
        the target itself lets a name be started once only, a run that has not begun is begun instead.
        """

    def forget(self, run: int) -> None:
        """The run's end is durable: what was kept for it may go."""

    async def close(self, *, abandon: bool = False) -> None:
        """Let go; with `abandon` without waiting for what runs (what can outlive the engine does)."""


@runtime_checkable
class HoldsBack(Protocol):
    """A runner that queues: what it was to start may not have begun."""

    def hold_back(self) -> Iterable[int]:
        """Begin nothing more, and return the runs that have not begun; each is then stopped."""


class Earlier(NamedTuple):
    """The engines before this one. `is_over`: whether one of theirs decided a run at this position, and its end is in the log.

    `others` are the tasks that other runners have. A copy of a log has the original's name; runs that the original decided
    later are not over.
    """

    log: str
    epoch: int
    others: frozenset[str]
    is_over: Callable[[int], bool]


@runtime_checkable
class Sweeps(Protocol):
    """A runner whose target keeps for ever what nobody lets go of."""

    def sweep(self, earlier: Earlier) -> None:
        """Let go, in the background, of what killed engines have left of this runner's tasks, and of tasks that are gone."""


def hold_back(runner: object) -> Iterable[int]:
    """Have a runner hold back what has not begun; one that does not queue has nothing of that kind."""
    return runner.hold_back() if isinstance(runner, HoldsBack) else ()


# --- values -----------------------------------------------------------------------------------------


class Listed(NamedTuple):
    """One member of a store, with the store's version of its value."""

    job: str
    version: str | None


class Appeared(NamedTuple):
    """The world put a job into a store, or changed its value."""

    repository: str
    job: str
    version: str | None


class Vanished(NamedTuple):
    """The world deleted a job from a store."""

    repository: str
    job: str


class Doubtful(NamedTuple):
    """The change feed has a gap (overflow, reconnect): the store must be listed again.

    `lost`: perhaps in another place than before; what is told of it then waits for the listing.
    """

    repository: str
    why: str
    lost: bool = False


Change = Appeared | Vanished | Doubtful


class Found(NamedTuple):
    """A close look at one job of a store: its version, None where it is no member.

    `finished`: it is not being written at present. `told`: the store tells its changes when it is watched, all of them or (`known`
    is false, where it is not known who writes it) only that it comes and goes.
    """

    job: str
    version: str | None
    finished: bool
    told: bool
    known: bool = True


class Store(Protocol):
    """A foreign home of values. Methods raise `TemporaryError` when it may work later."""

    def list(self) -> AsyncIterator[Listed]:
        """Yield all members; raises rather than yield a part. Invalid ids are told once and left out."""

    async def put(self, write: Write) -> str | None:
        """Write a value whole or not at all, durably; return the store's version of it."""

    async def delete(self, job: str) -> None:
        """Remove a job; absent is fine."""

    async def version(self, job: str) -> str | None:
        """Return the store's version of a member now, or None when it is not a member."""

    def identity(self) -> str:
        """Return what tells this store's root from another one mounted at the same place."""

    def watch(self, tell: Callable[[Change], None]) -> Callable[[], None] | None:
        """Tell changes as they happen until the returned function is called; None: this store cannot."""


class Hashed(NamedTuple):
    """The SHA-256, in hex, of what a store's value held at a version."""

    version: str
    digest: str


@runtime_checkable
class Hashable(Protocol):
    """A store that can hash its values; its methods here wait for a disk."""

    def version_now(self, job: str) -> str | None:
        """Return the version of a member now, or None."""

    def hash_now(self, job: str) -> Hashed | None:
        """Return the digest of a member's content; None for no member, and for one that changes meanwhile."""

    def existing(self, job: str) -> Path | None:
        """Return the file that holds a member's value, or None."""


class Reuse(Protocol):
    """What spares runs: it finds the outputs of an equal one before a run is begun."""

    def may(self, task: str) -> bool:
        """Whether runs of a task are to be looked for."""

    async def look(self, spec: RunSpec) -> Ended | None:
        """Return the end of a run that takes over the outputs of an equal one, or None: it is to be begun."""

    def ended(self, fact: Ended) -> Ended:
        """Return the end of a run that was begun, with what later ones are to know of it."""


class Observable(Protocol):
    """A repository whose store is watched: what the log is to know of a member that was found there."""

    record: Record
    medium: Medium

    def observed(self, job: str, version: str | None) -> Write:
        """Return the member as the log records it; may read its value."""


@runtime_checkable
class Comparable(Store, Protocol):
    """A store that can be looked through a slice at a time, while it changes; all its methods here may wait for a disk."""

    tells_versions: bool
    """That a member's change is told when it is watched, not only that it is one."""

    def names(self) -> Sequence[str]:
        """Return the names of all entries that may be members'."""

    def versions(self, names: Sequence[str]) -> Sequence[Listed]:
        """Return the members among these."""

    def inspect(self, job: str) -> Found:
        """Look closely at one job."""

    def being_written(self, jobs: Sequence[str]) -> set[str]:
        """Return those of these jobs that are still being written: when that ends they have changed."""
