"""A function away from the engine, which it does not need: its job's values go with it, and what it wrote comes back.

In: repositories of the engine's, a run's job, where the function is called. Out: `Input`s that travel, the binding through which
the function sees them there (`AwayBinding`), the `Message` that comes back, and what a runner makes of it. Repositories with a
store of their own are used directly. How all of this travels is the runners' own: pods and Dask's workers.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from datatask.engine.api.repositories import Repository, all_leaves
from datatask.engine.ports import Blobs
from datatask.engine.run_context import ValueRef, current_run
from datatask.schema.errors import NotPossibleError
from datatask.schema.events import ABSENT, Ending, ErrorInfo
from datatask.schema.messages import Printed, Write

IN_ENGINE = ("native", "mirror", "view")


class Input(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job's value in a repository of the engine's; neither of both: the job is not there. `seen` is the log's position then."""

    value: str | None = None
    data: bytes | None = None
    position: int = 0
    member: bool = False
    seen: int = 0


class Written(msgspec.Struct, frozen=True, omit_defaults=True):
    """A write as it travels; `version` says that its store has it already."""

    repository: str
    job: str
    op: str = "put"
    value: str | None = None
    data: bytes | None = None
    version: str | None = None
    over: int | None = None
    over_version: str | None = None
    conflict: str = ""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a function did."""

    error: ErrorInfo | None = None
    detail: dict[str, str] | None = None
    started_at: int = 0
    ended_at: int = 0
    writes: tuple[Written, ...] = ()
    reads: dict[str, int] = {}
    cpu_seconds: float | None = None
    printed: tuple[Printed, ...] = ()


async def values_of(repositories: Mapping[str, Repository], job: str) -> dict[str, Input]:
    """Return the job's own values in the repositories that live in the engine, by repository id."""
    found: dict[str, Input] = {}
    for repository in repositories.values():
        for leaf in all_leaves(repository):
            if leaf.medium in IN_ENGINE and leaf._id is not None and leaf.binding is not None:
                found[leaf._id] = await _input(leaf, job)
    return found


async def _input(leaf: Repository, job: str) -> Input:
    binding, key = leaf.binding, leaf.id
    assert binding is not None
    seen = binding.position(key)
    if not binding.contains(key, job):
        return Input(seen=seen)
    ref = None if leaf.medium == "view" else await binding.value(key, job)
    if ref is None:
        return Input(member=True, seen=seen)
    if ref.digest is not None and not ref.value:
        path = await asyncio.to_thread(binding.blobs.intact, ref.digest)
        data = await asyncio.to_thread(path.read_bytes)
        return Input(data=data, position=ref.position, member=True, seen=seen)
    return Input(value=as_text(ref.value), position=ref.position, member=True, seen=seen)


class AwayBlobs:
    """The log's blobs as a run sees them: what it writes, and what came with it."""

    def __init__(self, folder: Callable[[], Path]) -> None:
        self._made = folder  # most runs need none
        self._count = 0

    @property
    def _folder(self) -> Path:
        return self._made()

    def put_bytes(self, data: bytes) -> tuple[str, int]:
        """Keep bytes; return (SHA-256 in hex, size)."""
        digest = hashlib.sha256(data).hexdigest()
        (self._folder / digest).write_bytes(data)
        return digest, len(data)

    def put_file(self, source: Path) -> tuple[str, int]:
        """Keep a file's content."""
        return self.put_bytes(source.read_bytes())

    def new(self) -> Path:
        """Return a fresh path."""
        self._count += 1
        return self._folder / f"new-{self._count}"

    def adopt(self, path: Path) -> tuple[str, int]:
        """Take a finished file."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        path.rename(self._folder / digest)
        return digest, (self._folder / digest).stat().st_size

    def path(self, digest: str) -> Path:
        """Return where the bytes are."""
        return self._folder / digest

    def intact(self, digest: str) -> Path:
        """Return where the bytes are, which came with the run or were written by it."""
        return self.path(digest)


class AwayBinding:
    """What repositories ask of the engine, answered by what the run was given."""

    def __init__(self, inputs: Mapping[str, Input], job: str, blobs: AwayBlobs, place: str) -> None:
        self._inputs, self._job, self._blobs, self._place = inputs, job, blobs, place

    async def put(self, repository_id: str, write: Write) -> None:
        """Outside a run a worker writes nothing."""
        raise NotPossibleError(
            "a function away from the engine writes within its run only", where=repository_id
        )

    async def delete(self, repository_id: str, job: str) -> None:
        """Outside a run a worker deletes nothing."""
        raise NotPossibleError(
            "a function away from the engine deletes within its run only", where=repository_id
        )

    def _input(self, repository_id: str, job: str) -> Input:
        found = self._inputs.get(repository_id)
        if found is None or job != self._job:
            raise NotPossibleError(
                f"{repository_id} lives in the engine: {self._place} has the values of its own job, {self._job}, in the function's links",
                where=job,
                remedy=f"use a repository with a store that {self._place} reaches",
            )
        return found

    def contains(self, repository_id: str, job: str) -> bool:
        """Whether the run's own job is a member."""
        return self._input(repository_id, job).member

    def members(self, repository_id: str) -> list[str]:
        """They are not known here."""
        self._input(repository_id, "")
        return []

    async def value(self, repository_id: str, job: str) -> ValueRef | None:
        """Return the job's value as it came with the run."""
        found = self._input(repository_id, job)
        if not found.member:
            return None
        if found.data is not None:
            digest, size = self._blobs.put_bytes(found.data)
            return ValueRef(ABSENT, digest, size, found.position)
        return ValueRef(
            ABSENT if found.value is None else msgspec.Raw(found.value.encode()), None, None, found.position
        )

    def position(self, repository_id: str) -> int:
        """Return how far the log had come when the run's inputs were taken, or its launch was decided."""
        found = self._inputs.get(repository_id)
        run = current_run.get()
        return found.seen if found is not None else 0 if run is None else run.run

    @property
    def blobs(self) -> Any:
        """The blobs of this run."""
        return self._blobs


_: type[Blobs] = AwayBlobs


def travelling(writes: Iterable[Write], blobs: AwayBlobs) -> tuple[Written, ...]:
    """Return writes as they travel: with the bytes that are in files here."""
    return tuple(_travelling(write, blobs) for write in writes)


def _travelling(write: Write, blobs: AwayBlobs) -> Written:
    data = write.data
    if (
        write.version is None
        and data is None
        and not write.value
        and write.op == "put"
        and not write.conflict
    ):
        source = write.source or (None if write.digest is None else blobs.path(write.digest))
        data = None if source is None else source.read_bytes()
    seen = (write.over, write.over_version, write.conflict)
    return Written(write.repository, write.job, write.op, as_text(write.value), data, write.version, *seen)


def writes_of(message: Message) -> tuple[Write, ...]:
    """Return the writes of a message as a runner tells them."""
    return tuple(
        Write(
            repository=one.repository,
            job=one.job,
            op=one.op,
            value=ABSENT if one.value is None else msgspec.Raw(one.value.encode()),
            data=one.data,
            size=None if one.data is None else len(one.data),
            version=one.version,
            over=one.over,
            over_version=one.over_version,
            conflict=one.conflict,
        )
        for one in message.writes
    )


def ending_of(message: Message) -> Ending:
    """Return the function's own end."""
    return Ending(
        outcome="succeeded" if message.error is None else "failed",
        error=message.error,
        detail=message.detail,
        started_at=message.started_at or None,
        ended_at=message.ended_at or None,
        reads=message.reads or None,
        usage=None if message.cpu_seconds is None else {"cpu_seconds": message.cpu_seconds},
    )


def as_text(value: msgspec.Raw) -> str | None:
    """Return a document as text, None for none."""
    return bytes(value).decode() if value else None
