"""Repositories in another process: stand-ins that ask the engine through its gateway.

In: operations on repositories whose values live in the engine (in the log, in its memory, in its views), from
a worker process. Out: the engine's answers, over an authenticated Unix socket in a private folder. A run's
writes stay in its overlay; bytes over 1 MiB are put into the folder and named by path. A second connection brings
the ends of calls. When the engine is dead, a process that works for it alone ends, any other one drops its calls.
The engine's side is `gateway`.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from datatask.engine.api.repositories import BlobRepository, MetadataRepository, Repository, all_leaves
from datatask.engine.api.streams import (
    AReadText,
    AWriteText,
    BytesReader,
    BytesWriter,
    Mode,
    Opening,
    check_mode,
)
from datatask.engine.ports import Blobs
from datatask.engine.run_context import RunContext, ValueRef, current_run
from datatask.schema.errors import CallerError, LogDamagedError, NotPossibleError, ValueDamagedError
from datatask.schema.messages import Write
from datatask.schema.values import check_job, decode_value, encode_value

SPOOLED_BYTES = 1024 * 1024


class Address(NamedTuple):
    """Where the engine listens, the key that lets in, and its pid."""

    folder: str
    key: bytes
    pid: int


Permit = Literal["ours", "shared", "no"]
"""The engine's answer to a call that begins: in a process of its own, in one that serves others too, or not at all."""
Stop = Literal["cancel", "drop"]
"""How a call is to end: a cancelled one may clean up, the writes of a dropped one are refused too."""
Stops = Callable[["Gateway", int | None, Stop], None]
"""Ends the call of a run; None for all of an engine."""

engine_loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
"""The event loops of the engines in this process."""


class Gateway:
    """A worker's connections to one engine; requests are answered one at a time."""

    def __init__(self, address: Address, stops: Stops) -> None:
        self.pid = os.getpid()
        self.address = address
        self.stops = stops
        self._ours = False
        self._lock = threading.Lock()
        self._requests = self._connect("requests")
        self._life = self._connect("life")
        threading.Thread(target=self._watch, name="datatask-engine-watch", daemon=True).start()

    def _connect(self, role: str) -> Connection:
        connection = Client(str(Path(self.address.folder) / "socket"), "AF_UNIX", authkey=self.address.key)
        connection.send((role, os.getpid()))
        connection.recv()
        return connection

    def _watch(self) -> None:
        try:
            while (asked := self._life.recv()) is not None:
                self.stops(self, *asked)
        except (EOFError, OSError):
            if self._ours:
                os._exit(1)  # the engine died: what this worker still did would be done twice
        self.stops(self, None, "drop")
        self.close()

    def close(self) -> None:
        """Let go."""
        _gateways.pop((self.address, os.getpid()), None)
        self._requests.close()
        self._life.close()

    def begin(self, run: int, thread: int, alone: bool) -> bool:
        """Ask whether a call may begin in a thread of this process, which does nothing else meanwhile if it is `alone`."""
        permit: Permit = self.ask("begin", run, os.getpid(), thread, alone)
        self._ours = self._ours or permit == "ours"
        return permit != "no"

    def ask(self, verb: str, *arguments: Any) -> Any:
        """Return the engine's answer, or raise what it raised."""
        with self._lock:
            self._requests.send((verb, *arguments))
            failed, answer = self._requests.recv()
        if failed:
            raise answer
        return answer


_gateways: dict[tuple[Address, int], Gateway] = {}
_connecting = threading.Lock()
_last: list[Gateway] = []
current: ContextVar[Gateway | None] = ContextVar("datatask_gateway", default=None)
"""The gateway of the call that this context belongs to: several engines may share a process."""


def connect(address: Address, stops: Stops) -> Gateway:
    """Return this process's gateway to the engine at this address; raises `OSError` where it cannot be reached."""
    with _connecting:
        key = address, os.getpid()  # a forked worker has its parent's table, and must not use it
        gateway = _gateways.get(key)
        if gateway is None:
            gateway = _gateways[key] = Gateway(address, stops)
        _last[:] = [gateway]
        return gateway


def _gateway() -> Gateway:
    gateway = current.get() or (_last[0] if _last else None)  # threads of a function's own have no context
    if gateway is None:
        raise NotPossibleError("this repository lives in an engine that is not reachable from here")
    if gateway.pid != os.getpid():  # a function has forked: two processes must not speak on one connection
        return connect(gateway.address, gateway.stops)
    return gateway


# --- stand-ins ----------------------------------------------------------------------------------------


class RemoteRepository(Repository):
    """Stands for a repository of the engine; `key` is its id, `shown` its text, `bound` whether it has an id."""

    medium = "native"

    def __init__(self, key: str, shown: str, bound: bool) -> None:
        super().__init__()
        self._id = key
        self._shown = shown
        self._bound = bound

    def __repr__(self) -> str:
        return self._shown

    def _run(self) -> RunContext | None:
        return current_run.get() if self._bound else None

    def _overlaid(self, job: str) -> Write | None:
        run = self._run()
        return None if run is None else run.written(self.id, job)

    def _ask(self, verb: str, job: str) -> Any:
        """Return the engine's answer about a job; the run has seen the key then, whatever was there."""
        run = self._run()
        try:
            position, answer = _gateway().ask(verb, self.id, job)
        except (LogDamagedError, ValueDamagedError) as error:
            if run is not None:
                run.damage = error
            raise
        if run is not None and run.guarded:
            run.note_seen(self.id, job, position)
        return answer

    async def contains(self, item: str) -> bool:
        """As the run sees it."""
        check_job(item, where=self)
        if (write := self._overlaid(item)) is not None:
            return write.op == "put"
        return bool(self._ask("contains", item))

    async def unfiltered_iter(self) -> AsyncIterator[str]:
        """Yield the members, as the run sees them."""
        run = self._run()
        written = {} if run is None else run.written_in(self.id)
        position, members = _gateway().ask("members", self.id)
        if run is not None and run.guarded:
            run.note_listed(self.id, position)
        for job in members:
            if job not in written:
                yield job
        for job, write in written.items():
            if write.op == "put":
                yield job

    async def info(self, job: str) -> Any:
        """As the run sees it."""
        check_job(job, where=self)
        write = self._overlaid(job)
        if write is not None:
            return decode_value(write.value) if write.op == "put" and write.value else None
        return self._ask("info", job)

    async def delete(self, job: str) -> None:
        """Note the deletion in the run's overlay."""
        check_job(job, where=self)
        run = self._run()
        if run is None:
            _gateway().ask("delete", self.id, job)
        else:
            run.delete(self.id, job)


class RemoteMetadata(RemoteRepository, MetadataRepository):
    """Stands for a repository of documents."""

    async def dump(self, job: str, data: Any) -> None:
        """Note the document in the run's overlay."""
        check_job(job, where=self)
        run = self._run()
        if run is None:
            _gateway().ask("dump", self.id, job, data)
        else:
            run.put(Write(repository=self.id, job=job, value=msgspec.Raw(encode_value(data))))


class RemoteBlob(RemoteRepository, BlobRepository):
    """Stands for a repository of bytes."""

    def open(self, job: str, mode: Mode = "r") -> Opening[Any]:
        """Open the job's bytes, as the run sees them; written ones are noted when the stream closes."""
        check_job(job, where=self)
        check_mode(mode)

        async def opened() -> Any:
            if mode.startswith("r"):
                reader = BytesReader(self._read(job))
                return reader if mode == "rb" else AReadText(reader)

            async def commit(data: bytes) -> None:
                self._write(job, data)

            writer = BytesWriter(commit)
            return writer if mode == "wb" else AWriteText(writer)

        return Opening(opened)

    def _read(self, job: str) -> bytes:
        write = self._overlaid(job)
        if write is None:
            return bytes(self._ask("read", job))
        if write.data is not None:
            return write.data
        if write.source is None:
            raise FileNotFoundError(f"{self!r} has no {job}")
        return write.source.read_bytes()

    def _write(self, job: str, data: bytes) -> None:
        run = self._run()
        if run is None:
            _gateway().ask("write", self.id, job, data)
        elif len(data) <= SPOOLED_BYTES:
            run.put(Write(repository=self.id, job=job, data=data, size=len(data)))
        else:
            fd, path = tempfile.mkstemp(prefix=f"{run.run}-", dir=Path(_gateway().address.folder) / "spool")
            with open(fd, "wb") as file:
                file.write(data)
            run.put(Write(repository=self.id, job=job, source=Path(path), size=len(data)))


def stand_in(key: str, shown: str, kind: str, bound: bool) -> RemoteRepository:
    """Return a stand-in: what a repository of the engine is unpickled as."""
    kinds = {"metadata": RemoteMetadata, "blob": RemoteBlob}
    return kinds.get(kind, RemoteRepository)(key, shown, bound)


class WorkerBinding:
    """The binding of repositories whose stores a worker reaches by itself: their writes are noted by the run."""

    async def put(self, repository_id: str, write: Write) -> None:
        """Outside a run a worker writes nothing."""
        raise NotPossibleError("a worker writes within a run only", where=repository_id)

    async def delete(self, repository_id: str, job: str) -> None:
        """Outside a run a worker deletes nothing."""
        raise NotPossibleError("a worker deletes within a run only", where=repository_id)

    def contains(self, repository_id: str, job: str) -> bool:
        """Ask the engine."""
        return bool(_gateway().ask("contains", repository_id, job)[1])

    def members(self, repository_id: str) -> list[str]:
        """Ask the engine."""
        return list(_gateway().ask("members", repository_id)[1])

    async def value(self, repository_id: str, job: str) -> ValueRef | None:
        """A worker reads such values from their store."""
        raise NotPossibleError("a worker reads this repository from its store", where=repository_id)

    def position(self, repository_id: str) -> int:
        """Return the position at which the run was decided: of a store, its versions tell the rest."""
        run = current_run.get()
        return 0 if run is None else run.run

    @property
    def blobs(self) -> Blobs:
        """The log's blobs are the engine's alone."""
        raise CallerError("the log's blobs are not reachable from a worker")


def bind(argument: object) -> None:
    """Connect the repositories of an argument that have stores of their own."""
    if isinstance(argument, Repository):
        for leaf in all_leaves(argument):
            if leaf._id is not None and not isinstance(leaf, RemoteRepository):
                leaf._binding = WorkerBinding()
