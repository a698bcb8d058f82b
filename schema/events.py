"""The facts that a log holds: past tense, frozen, for ever.

One struct a kind; the class name is the stable name stored in the log. All share the envelope of `Event`;
a kind's own fields follow and are what the `payload` column holds. Positions are not in here: the log
gives them, in the order of appending. Times are UTC nanoseconds of engine time, except where a field says
that it is another clock's. A change to a stored field, and a new word that it may hold, means a new `VERSION` and an
upcaster in `codec`: a reader that does not know it says that the log is newer, and not that it is damaged.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import msgspec

from datatask.schema.definition import PipelineDef, Selection
from datatask.schema.values import storable

Outcome = Literal[
    "succeeded", "failed", "timed_out", "cancelled", "lost", "refused", "handed_over", "conflicted"
]
Budget = Literal["user", "infrastructure", "conflict", "machine"]
"""What an attempt is paid from: the user's attempts, those for lost runs, those for runs that were in conflict; a run that
the machine ended uses up none of them."""
MACHINE = "machine"
"""The key in the `detail` of a lost run's ending that says: the machine, the node or the service was being stopped, or the
engine before it had begun. Its value tells which of them in a word."""
IMAGES = "images"
"""The key in the `detail` of a pod's ending for its images by digest, as the kubelet reported them: `NAME=ID`, separated by blanks."""
REUSED = "reused"
"""The key in the `detail` of a succeeded run's ending that says: nothing was executed, the outputs are those of this run."""
CONTENT = "content"
"""The key in the `detail` of a succeeded run's ending for the digest of what it executed and of its inputs: runs of a task with
equal ones may take over each other's outputs."""
ValueOrigin = Literal["written", "observed", "injected", "derived"]
LaunchOrigin = Literal["derived", "forced", "direct"]
StopReason = Literal["timeout", "cancelled", "deleted", "shutdown"]
EvaluatedWhat = Literal["priority", "filter", "translation", "resources", "ready", "usage"]
Mode = Literal["run", "update", "launch-once", "drain"]

ENGINE = "engine"
"""The actor of events that no person asked for."""

ABSENT = msgspec.Raw()
"""No value recorded: false, as an empty `Raw` is."""


class Event(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag=str, gc=False
):
    """The envelope: when, who, which earlier event led here, and what the event is about.

    The collector leaves events alone: what they hold never leads back to them.
    """

    VERSION: ClassVar[int] = 1
    ESSENTIAL: ClassVar[bool] = True

    at: int
    actor: str = ENGINE
    cause: int | None = None
    task: str | None = None
    repository: str | None = None
    job: str | None = None
    run: int | None = None


class RunEvent(Event, frozen=True, kw_only=True):
    """What is about one run."""

    task: str
    job: str
    run: int


class TaskJobEvent(Event, frozen=True, kw_only=True):
    """What is about one job in one task."""

    task: str
    job: str


class RepositoryEvent(Event, frozen=True, kw_only=True):
    """What is about one repository."""

    repository: str


class ValueEvent(Event, frozen=True, kw_only=True):
    """What is about one job's value in one repository."""

    repository: str
    job: str


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong in a run: the exception's type, its base classes, text and trace, or the target's words."""

    type: str
    message: str
    traceback: str = ""
    bases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Keep the text storable: it comes from anywhere."""
        for field in ("type", "message", "traceback"):
            text = getattr(self, field)
            if not text.isascii():
                msgspec.structs.force_setattr(self, field, storable(text))


class Ending(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """How a run ended; times are the runner's clock, amounts what it used, in its own units."""

    outcome: Outcome
    exit_code: int | None = None
    error: ErrorInfo | None = None
    started_at: int | None = None
    ended_at: int | None = None
    usage: dict[str, float] | None = None
    reads: dict[str, int] | None = None
    where: str = ""
    detail: dict[str, str] | None = None


# --- the log itself ---------------------------------------------------------------------------------


class LogCreated(Event, frozen=True, kw_only=True):
    """Position 1: whose log this is. `uuid.epoch.position` is a run's identity in the world."""

    log: str
    pipeline: str


class EngineOpened(Event, frozen=True, kw_only=True):
    """An engine took the lease; `last_sign` is the `at` of the last event before."""

    VERSION = 2
    version: str
    host: str
    pid: int
    boot: str
    epoch: int
    last_sign: int | None = None
    reason: str = ""


class EngineClosed(Event, frozen=True, kw_only=True):
    """The engine gave the lease back; one without is an engine that died."""

    epoch: int
    reason: str = ""


class ClockStepped(Event, frozen=True, kw_only=True):
    """The wall clock jumped against the monotonic one; engine time went on without a jump."""

    wall_before: int
    wall_after: int


class LogUpgraded(Event, frozen=True, kw_only=True):
    """The storage format was raised."""

    format_before: int
    format_after: int
    version: str


class ArchiveCut(Event, frozen=True, kw_only=True):
    """Everything up to `until` lives in an archive; `state` is the digest of the state stored as its base."""

    VERSION = 2

    until: int
    archive: str
    digest: str
    state: str
    reason: str = ""


class BlobsCollected(Event, frozen=True, kw_only=True):
    """Blobs were removed: those that nothing names, with `kept` current also those that only past values name."""

    VERSION = 2
    ESSENTIAL = False
    count: int
    size: int
    kept: Literal["all", "current"] = "all"
    reason: str = ""


class CheckpointWritten(Event, frozen=True, kw_only=True):
    """The state behind the event at `position` is kept beside the log, as bytes with this SHA-256 (hex).

    `verified`: it was arrived at by checking all events up to there, and not only by folding them.
    """

    VERSION = 1
    ESSENTIAL = False
    position: int
    fold_version: int
    sha256: str
    verified: bool = False


class PayloadRedacted(Event, frozen=True, kw_only=True):
    """The payload at `position` was removed; its digest stays in the chain.

    `left` is the SHA-256 (hex) of what stands in its place, which the chain so holds too; empty where nothing does.
    """

    VERSION = 2
    position: int
    left: str = ""
    reason: str = ""
    request: str | None = None


# --- the definition ---------------------------------------------------------------------------------


class PipelineDefined(Event, frozen=True, kw_only=True):
    """The definition in force from here on."""

    VERSION = 8
    definition: PipelineDef
    digest: str
    decider: int
    reason: str = ""


class Renamed(Event, frozen=True, kw_only=True):
    """A task or repository goes on under another name (`was:` in the definition)."""

    VERSION = 2
    what: Literal["task", "repository"]
    old: str
    new: str
    reason: str = ""


# --- repositories -----------------------------------------------------------------------------------


class RepositorySynced(RepositoryEvent, frozen=True, kw_only=True):
    """The store's contents are known to this engine; the listing began at `listed_at`.

    `root` tells this store from another one at the same place (a folder's device and inode); empty where nothing does.
    With an `actor` other than the engine a person said that a loss is to be believed (`reason`, `request`).
    """

    VERSION = 3
    listed_at: int
    members: int
    root: str = ""
    reason: str = ""
    request: str | None = None


class RepositoryReset(RepositoryEvent, frozen=True, kw_only=True):
    """An ephemeral store started anew, empty."""

    incarnation: int


class ObservationHeld(RepositoryEvent, frozen=True, kw_only=True):
    """An implausible number of members vanished at once: the loss waits for a person's confirmation."""

    vanished: int
    members: int
    sample: tuple[str, ...] = ()
    why: str = ""


class RepositoryUnreachable(RepositoryEvent, frozen=True, kw_only=True):
    """The store has not let itself be listed: `why` tells of the first failure, or of how long it takes.

    Nothing is concluded from it: what was known stays. The next `RepositorySynced` ends it.
    """

    ESSENTIAL = False
    why: str


class ChangesMissed(RepositoryEvent, frozen=True, kw_only=True):
    """A comparison of all of a store found changes that it had not told, and that are recorded before this."""

    ESSENTIAL = False
    missed: int
    sample: tuple[str, ...] = ()


class ContentHashed(ValueEvent, frozen=True, kw_only=True):
    """What the value of a foreign store held at this version of the store's: its SHA-256, in hex."""

    ESSENTIAL = False
    version: str
    digest: str


class ValuePut(ValueEvent, frozen=True, kw_only=True):
    """A job entered a repository, or its value changed.

    `value` is the document's JSON, `digest` (SHA-256, hex) names a blob; `version` is the store's own
    (etag; inode, mtime, size). With neither, only membership is recorded.
    """

    value: msgspec.Raw = ABSENT
    digest: str | None = None
    size: int | None = None
    version: str | None = None
    origin: ValueOrigin = "written"
    reason: str = ""
    request: str | None = None


class ValueDeleted(ValueEvent, frozen=True, kw_only=True):
    """A job left a repository."""

    origin: ValueOrigin = "written"
    version: str | None = None
    reason: str = ""
    request: str | None = None


class StoreWriteIntended(ValueEvent, frozen=True, kw_only=True):
    """The engine is about to change a foreign store; recovery redoes it.

    The last intent of a run's end carries `settles`, the ending that is recorded when all are done.
    """

    VERSION = 2
    op: Literal["put", "delete"]
    value: msgspec.Raw = ABSENT
    digest: str | None = None
    size: int | None = None
    settles: Ending | None = None
    reason: str = ""
    request: str | None = None


# --- decisions and what they rest on ----------------------------------------------------------------


class Evaluated(Event, frozen=True, kw_only=True):
    """The outcome of user code that a decision needs; `value` is its JSON, `retry_at` set on an error."""

    job: str
    what: EvaluatedWhat
    inputs: tuple[int, ...] = ()
    value: msgspec.Raw = ABSENT
    error: str | None = None
    retry_at: int | None = None
    volatile: bool = False


class DecisionRound(Event, frozen=True, kw_only=True):
    """A round of `decide`: its inputs, and per task what held it back; its decisions follow it.

    `mode` and `selection` are what the engine was asked for: how to work, and what of the pipeline (None: all of it).
    """

    VERSION = 2
    state: int
    now: int
    bound: int
    mode: Mode
    decider: int
    decisions: int
    unavailable: tuple[str, ...] = ()
    constraints: dict[str, str] = {}
    selection: Selection | None = None


class LaunchDecided(TaskJobEvent, frozen=True, kw_only=True):
    """A run came into being; its id is this event's position.

    `identities` are its own among the resources that have some, until it ends.
    """

    VERSION = 2
    episode: int
    attempt: int
    origin: LaunchOrigin = "derived"
    resources: dict[str, int] = {}
    priority: int | float = 0
    inputs: dict[str, int] = {}
    meta: bool = True
    over_quota: bool = False
    reason: str = ""
    request: str | None = None
    identities: dict[str, tuple[str, ...]] = {}


class StopDecided(RunEvent, frozen=True, kw_only=True):
    """A run is to be stopped, politely for `grace` nanoseconds."""

    reason: StopReason
    grace: int = 0
    why: str = ""
    request: str | None = None


class RetryScheduled(RunEvent, frozen=True, kw_only=True):
    """The episode goes on with another attempt, not before `not_before`.

    `spent` tells how much of the budget is used up with it: lost runs since the last that made progress, or all
    conflicts of the episode; 0 for the user's attempts, which are counted by `attempt`. A run that the machine ended uses
    up nothing: `spent` are the lost ones before it that still count.
    """

    VERSION = 3
    not_before: int
    attempt: int
    budget: Budget = "user"
    spent: int = 0


class RetriesExhausted(RunEvent, frozen=True, kw_only=True):
    """The policy grants no further attempt."""

    VERSION = 2
    attempts: int
    budget: Budget = "user"


# --- runs -------------------------------------------------------------------------------------------


class RunStarted(RunEvent, frozen=True, kw_only=True):
    """The runner confirmed the start; `handle` identifies the run at its target."""

    handle: dict[str, str | int] = {}
    where: str = ""
    started_at: int | None = None


class RunAdopted(RunEvent, frozen=True, kw_only=True):
    """A run of an engine that is gone was found alive and is watched again."""

    handle: dict[str, str | int] = {}
    where: str = ""


class RunResized(RunEvent, frozen=True, kw_only=True):
    """A run takes other amounts than were decided, in billionths: its target adds to them, or it was resized there."""

    resources: dict[str, int] = {}


class RunUnreachable(RunEvent, frozen=True, kw_only=True):
    """Nothing is heard of the target; the run stays open and holds its quota."""

    where: str = ""
    message: str = ""


class RunReachable(RunEvent, frozen=True, kw_only=True):
    """The target speaks again."""

    where: str = ""


class RunObserved(RunEvent, frozen=True, kw_only=True):
    """Something worth telling about a run that decides nothing."""

    ESSENTIAL = False
    phase: str
    reason: str = ""
    message: str = ""
    source_at: int | None = None


class RunEnded(RunEvent, frozen=True, kw_only=True):
    """The one ending of a run."""

    VERSION = 2
    outcome: Outcome
    exit_code: int | None = None
    error: ErrorInfo | None = None
    started_at: int | None = None
    ended_at: int | None = None
    usage: dict[str, float] | None = None
    reads: dict[str, int] | None = None
    where: str = ""
    detail: dict[str, str] | None = None
    final: bool = True


class LateFact(Event, frozen=True, kw_only=True):
    """Something was told about a run that has ended: kept, and without effect."""

    ESSENTIAL = False
    run: int
    fact: str
    detail: dict[str, Any] = {}


# --- what people ask --------------------------------------------------------------------------------


class CancelRequested(TaskJobEvent, frozen=True, kw_only=True):
    """A person asked to cancel a job in a task, running or waiting."""

    reason: str = ""
    request: str | None = None


class RetryRequested(TaskJobEvent, frozen=True, kw_only=True):
    """A person asked for a new episode of a job that has ended."""

    reason: str = ""
    request: str | None = None


class ResultAccepted(TaskJobEvent, frozen=True, kw_only=True):
    """A person looked at a job's result, as of the position `seen`, and takes it as up to date, or takes that back (`withdrawn`)."""

    seen: int
    withdrawn: bool = False
    reason: str = ""
    request: str | None = None


class TaskPaused(Event, frozen=True, kw_only=True):
    """No launches of this task until resumed; what runs goes on."""

    task: str
    reason: str = ""
    request: str | None = None


class TaskResumed(Event, frozen=True, kw_only=True):
    """Launches of this task are allowed again."""

    task: str
    reason: str = ""
    request: str | None = None


class QuotaChanged(Event, frozen=True, kw_only=True):
    """The limits of a quota from here on (billionths)."""

    quota: str
    limits: dict[str, int]
    launches: int | None = None
    reason: str = ""
    request: str | None = None


class UnknownEvent(Event, frozen=True, kw_only=True, tag=False):
    """An event of a kind that this version does not know and need not: carried, chained, shown raw."""

    ESSENTIAL = False
    name: str
    version: int
    payload: bytes = b""


_BASES = (Event, RunEvent, TaskJobEvent, RepositoryEvent, ValueEvent, UnknownEvent)
KINDS: dict[str, type[Event]] = {
    name: kind
    for name, kind in list(globals().items())
    if isinstance(kind, type) and issubclass(kind, Event) and kind not in _BASES
}
"""Every kind that is stored, by its name."""
ENVELOPE: tuple[str, ...] = Event.__struct_fields__


class Recorded(NamedTuple):
    """An event with the position that the log gave it."""

    position: int
    event: Event


class Batch(NamedTuple):
    """Events that were appended together; `first` is the position of the first one."""

    first: int
    events: tuple[Event, ...]

    @property
    def last(self) -> int:
        """The position of the last event: the boundary at which readers look."""
        return self.first + len(self.events) - 1
