"""What a person asks of an engine, and what it answers.

A command that finds an engine running hands one of these to its inbox; with none running the command opens
the log itself and applies it. `id` makes a request exactly-once: the events that answer it carry it.
Content over 64 KiB is put among the log's blobs first and named by `digest`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from datatask.schema.events import ABSENT, ENGINE


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
