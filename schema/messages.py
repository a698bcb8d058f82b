"""Values between the engine and its runners, and between people and the engine.

To a runner: `RunSpec`, a run to start, adopt or stop. From a runner: facts about runs (`Started`, `Ended`, …) and the writes
that a run brings. A person's `Request` goes to a running engine's inbox, or is applied by the command itself; its `id`
makes it exactly-once, as the events that answer it carry it. Content over 64 KiB is put among the blobs first and named
by `digest`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from datatask.schema.definition import Conflicts
from datatask.schema.events import ABSENT, ENGINE, Ending

if TYPE_CHECKING:
    pass


class RunSpec(NamedTuple):
    """One run to start, adopt or stop.

    `identity` is `uuid.epoch.position`: unique in the world, unless a log was copied; `log` is the URL of the log that
    decided it, by which copies are told apart. `logs` is the number of bytes to keep of each of its streams. `identities` are
    its own of each resource that has some, `variables` the same as its environment tells them. `spent` attempts
    came before this one, those not counted that were lost or in conflict.
    """

    run: int
    identity: str
    task: str
    job: str
    episode: int
    attempt: int
    inputs: Mapping[str, int]
    meta: bool = True
    handle: Mapping[str, str | int] | None = None
    log: str = ""
    conflicts: Conflicts = "rerun"
    logs: int = 0
    identities: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    variables: Mapping[str, str] = MappingProxyType({})
    spent: int = 0


class Write(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One change to a repository (by id) that belongs to a run.

    The content is one of: `value` (document JSON), `data` (bytes), `source` (a file that stays until the run
    is forgotten), `digest` with `size` (already a blob). `version` is set when the store has it already.

    Where the run has read what it writes over, `over` is the log's position at that read, and `over_version` the
    version that the store had then ("": the job was not there; None: not known, or there is no store). `conflict`
    says why the store did not take it: it had another version by then.
    """

    repository: str
    job: str
    op: str = "put"
    value: msgspec.Raw = ABSENT
    data: bytes | None = None
    source: Path | None = None
    digest: str | None = None
    size: int | None = None
    version: str | None = None
    over: int | None = None
    over_version: str | None = None
    conflict: str = ""


class Started(NamedTuple):
    """The run exists at its target."""

    run: int
    handle: dict[str, str | int]
    where: str = ""
    started_at: int | None = None


class Adopted(NamedTuple):
    """A run of an earlier engine was found alive and is watched."""

    run: int
    handle: dict[str, str | int]
    where: str = ""


class Unreachable(NamedTuple):
    """The target is silent."""

    run: int
    where: str = ""
    message: str = ""


class Reachable(NamedTuple):
    """The target speaks again."""

    run: int
    where: str = ""


class Resized(NamedTuple):
    """The run takes these amounts now, in billionths, all of them."""

    run: int
    resources: dict[str, int]


class Noticed(NamedTuple):
    """Worth telling, decides nothing (`RunObserved`)."""

    run: int
    phase: str
    reason: str = ""
    message: str = ""
    source_at: int | None = None


class Unusable(NamedTuple):
    """A task's runner takes nothing any more, for a reason that does not pass; what it has not begun is given back."""

    run: int
    task: str
    why: str


class Printed(NamedTuple):
    """What a run printed on a stream: all of its `size` bytes, or the beginning and the end of them."""

    stream: str
    size: int
    head: bytes
    tail: bytes = b""


def printed_of(stream: str, content: bytes | Path, most: int) -> tuple[Printed, ...]:
    """Return what is kept of a stream's content, bytes or a file: `most` bytes of it; nothing of an empty one."""
    if isinstance(content, bytes):
        size = len(content)
        parts = (content,) if size <= most else (content[: most // 2], content[size - most // 2 :])
    else:
        with open(content, "rb", buffering=0) as file:
            size = file.seek(0, 2)
            file.seek(0)
            parts = (file.read(most),) if size <= most else (file.read(most // 2),)
            if size > most:
                file.seek(size - most // 2)
                parts += (file.read(most // 2),)
    return (Printed(stream, size, *parts),) if size and most else ()


class Ended(NamedTuple):
    """The run is over at its target; `writes` are what it brought, to be recorded with its end.

    `printed` is what is kept of its streams; it is no part of the record.
    """

    run: int
    ending: Ending
    writes: tuple[Write, ...] = ()
    printed: tuple[Printed, ...] = ()


Fact = Started | Adopted | Unreachable | Reachable | Resized | Noticed | Unusable | Ended


class Who(NamedTuple):
    """Who is behind an event, why, and the id of the request that it answers."""

    actor: str = ENGINE
    reason: str = ""
    request: str | None = None


class Item(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One value to put: a document (`value`, JSON) or bytes (`digest` of a stored blob, with its `size`)."""

    job: str
    value: msgspec.Raw = ABSENT
    digest: str | None = None
    size: int | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="ask", tag=str):
    """Who asks (`user@host: command`), why, and under which id."""

    id: str
    actor: str
    reason: str = ""


class PutValues(Request, frozen=True, kw_only=True):
    """Put values into a repository (by id)."""

    repository: str
    items: tuple[Item, ...]


class DeleteValues(Request, frozen=True, kw_only=True):
    """Delete jobs from a repository (by id); from a `live(TASK)` view: stop their runs."""

    repository: str
    jobs: tuple[str, ...]


class LaunchJob(Request, frozen=True, kw_only=True):
    """Launch one job now: `force` although it is not ready, `over_quota` although it does not fit."""

    task: str
    job: str
    force: bool = False
    over_quota: bool = False
    meta: bool = True


class CancelJobs(Request, frozen=True, kw_only=True):
    """Cancel jobs of a task, running or waiting."""

    task: str
    jobs: tuple[str, ...]


class RetryJobs(Request, frozen=True, kw_only=True):
    """Open a new episode for jobs of a task whose last one has ended."""

    task: str
    jobs: tuple[str, ...]


class AcceptResults(Request, frozen=True, kw_only=True):
    """Take results of a task as up to date, as they were at the position `seen`, or take that back (`withdrawn`)."""

    task: str
    jobs: tuple[str, ...]
    seen: int
    withdrawn: bool = False


class PauseTask(Request, frozen=True, kw_only=True):
    """Launch no more of a task."""

    task: str


class ResumeTask(Request, frozen=True, kw_only=True):
    """Launch again."""

    task: str


class ChangeQuota(Request, frozen=True, kw_only=True):
    """Set a quota's limits (billionths)."""

    quota: str
    limits: dict[str, int]
    launches: int | None = None


class AcceptLoss(Request, frozen=True, kw_only=True):
    """Believe that the members of a held repository are gone."""

    repository: str


class Redact(Request, frozen=True, kw_only=True):
    """Remove the payloads of events that are durable."""

    positions: tuple[int, ...]


class Ping(Request, frozen=True, kw_only=True):
    """Give a sign of life, and tell how the engine's services are; nothing is recorded."""


AnyRequest = (
    PutValues
    | DeleteValues
    | LaunchJob
    | CancelJobs
    | RetryJobs
    | AcceptResults
    | PauseTask
    | ResumeTask
    | ChangeQuota
    | AcceptLoss
    | Redact
    | Ping
)


class Refusal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a request was refused: the parts of a `DatataskError`."""

    code: str
    what: str
    where: str = ""
    remedy: str = ""
    exit_code: int = 2


class ServiceHealth(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one of the engine's services is: `up` or `down`, how often it was started again, and why it failed last."""

    name: str
    state: Literal["up", "down"] = "up"
    restarts: int = 0
    why: str = ""


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The engine's answer: the last position that the request led to (None: nothing to do), or a refusal.

    To a `Ping` it is the head, and how the services are.
    """

    id: str
    position: int | None = None
    count: int = 0
    refusal: Refusal | None = None
    services: tuple[ServiceHealth, ...] = ()
