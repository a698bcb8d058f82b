"""What the engine and its runners tell each other, as values.

In, to a runner: `RunSpec`, a run to start, adopt or stop. Out, from a runner: facts about runs (`Started`, `Ended`, …)
and the writes that a run brings. Only values: the core reads and makes them, `engine.ports` says who carries them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from datatask.schema.definition import Conflicts
from datatask.schema.events import ABSENT, Ending

if TYPE_CHECKING:
    pass


class RunSpec(NamedTuple):
    """One run to start, adopt or stop.

    `identity` is `uuid.epoch.position`: unique in the world, unless a log was copied; `log` is the URL of the log that
    decided it, by which copies are told apart.
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


class Noticed(NamedTuple):
    """Worth telling, decides nothing (`RunObserved`)."""

    run: int
    phase: str
    reason: str = ""
    message: str = ""
    source_at: int | None = None


class Ended(NamedTuple):
    """The run is over at its target; `writes` are what it brought, to be recorded with its end."""

    run: int
    ending: Ending
    writes: tuple[Write, ...] = ()


Fact = Started | Adopted | Unreachable | Reachable | Noticed | Ended
