"""A function in a pod: it is called with its repositories, and its result travels at the end of the pod's log.

In: the run and the job's values from the engine's repositories, in the pod's environment. Out: a trailer on standard output,
`#datatask-result <identity> <digest> <length>`, base64 of compressed JSON in lines, `#datatask-end`; the engine takes it
off the log and records it. Both are bounded. Repositories with a store of their own are used directly; the pod never
touches the log and decides nothing. The second half of this module is shared by both sides.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import inspect
import os
import re
import sys
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from datatask.adapters.spools import Spool
from datatask.adapters.trust import TRUST
from datatask.engine.api.repositories import Repository, all_leaves
from datatask.engine.api.session import Session
from datatask.engine.ports import Blobs
from datatask.engine.run_context import RunContext, ValueRef, current_run
from datatask.engine.runtime.calls import error_detail, error_info
from datatask.schema.errors import CallerError, NotPossibleError
from datatask.schema.events import ABSENT, Ending, ErrorInfo
from datatask.schema.messages import Write


def is_worker(task: str, job: str) -> bool:
    """Whether this process is in the pod of a run of this job, made by a `KubeFunctionTask`."""
    named = os.environ.get("DATATASK_TASK"), os.environ.get("DATATASK_JOB")
    return "DATATASK_INPUTS" in os.environ and named == (task, job)


def work(task: Any, objects: list[tuple[Repository, str]], session: Session) -> int:
    """Call the task's function for the run of the environment; return the exit code, 1 when it raised."""
    identity = os.environ["DATATASK_RUN"]
    inputs = read_inputs(os.environ["DATATASK_INPUTS"])
    os.environ.setdefault(
        TRUST, "all"
    )  # a pod has no other users, and its volumes are open to all as they come
    spool = Spool()
    try:
        blobs = PodBlobs(spool.folder)
        binding = PodBinding(inputs, os.environ["DATATASK_JOB"], blobs)
        for leaf, key in objects:
            leaf.bind(key, binding)
            if leaf.medium == "mirror":
                vars(leaf)["_away"] = True  # its values came along; the dict here is another one
        message = asyncio.run(_done(task, session, blobs))
        return _told(message, identity)
    finally:
        spool.close()


async def _done(task: Any, session: Session, blobs: PodBlobs) -> Message:
    job, run = os.environ["DATATASK_JOB"], int(os.environ["DATATASK_RUN"].rpartition(".")[2])
    context = RunContext(run, task.name, job, task.conflicts)
    context.defers = False  # the engine may see other inodes of a shared folder, or another mount
    began = time.time_ns()  # noqa: TID251 - the runner's clock
    error: ErrorInfo | None = None
    detail: dict[str, str] | None = None
    try:
        wants_job, names = task.parameters()
        arguments = {name: task.links[name].repo for name in names} | ({"job": job} if wants_job else {})
        async with session:
            current_run.set(context)
            result = task.func(**arguments)
            if inspect.isawaitable(result):
                await result
            writes = await context.settle()
    except BaseException as caught:
        writes = context.fence()
        error = error_info(caught, skip=1)
        detail = error_detail(caught, error)
    ended = time.time_ns()  # noqa: TID251 - the runner's clock
    travelling = tuple(_travelling(write, blobs) for write in writes)
    return Message(error, detail, began, ended, travelling, context.reads)


def _told(message: Message, identity: str) -> int:
    text = base64.b64encode(zlib.compress(msgspec.json.encode(message)))
    if len(text) > RESULT_BYTES_MAX:
        error = ErrorInfo(
            type="TooLarge",
            message=f"what the function wrote takes {len(text)} bytes, and {RESULT_BYTES_MAX} can travel back; "
            "write large results to a store that the engine and the pod both reach",
        )
        message = Message(error, None, message.started_at, message.ended_at, (), message.reads)
        text = base64.b64encode(zlib.compress(msgspec.json.encode(message)))
    lines = b"\n".join(text[at : at + LINE] for at in range(0, len(text), LINE))
    head = f"\n#datatask-result {identity} {hashlib.sha256(text).hexdigest()} {len(text)}\n".encode()
    if message.error is not None:
        sys.stderr.write(message.error.traceback or f"{message.error.type}: {message.error.message}\n")
    sys.stderr.flush()
    sys.stdout.flush()
    rest = memoryview(head + lines + b"\n#datatask-end\n")
    while rest:
        rest = rest[os.write(1, rest) :]
    return 0 if message.error is None else 1


def _travelling(write: Write, blobs: PodBlobs) -> Written:
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


class PodBlobs:
    """The log's blobs as a run sees them: what it writes, and what came with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

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


class PodBinding:
    """What repositories ask of the engine, answered by what the run was given."""

    def __init__(self, inputs: Mapping[str, Input], job: str, blobs: PodBlobs) -> None:
        self._inputs, self._job, self._blobs = inputs, job, blobs

    async def put(self, repository_id: str, write: Write) -> None:
        """Outside a run a worker writes nothing."""
        raise NotPossibleError("a function in a pod writes within its run only", where=repository_id)

    async def delete(self, repository_id: str, job: str) -> None:
        """Outside a run a worker deletes nothing."""
        raise NotPossibleError("a function in a pod deletes within its run only", where=repository_id)

    def _input(self, repository_id: str, job: str) -> Input:
        found = self._inputs.get(repository_id)
        if found is None or job != self._job:
            raise NotPossibleError(
                f"{repository_id} lives in the engine: a pod has the values of its own job, {self._job}, in the function's links",
                where=job,
                remedy="use a repository with a store that the pod reaches",
            )
        return found

    def contains(self, repository_id: str, job: str) -> bool:
        """Whether the run's own job is a member."""
        return self._input(repository_id, job).member

    def members(self, repository_id: str) -> list[str]:
        """A pod does not know them."""
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


_: type[Blobs] = PodBlobs


INPUTS_BYTES_MAX = 96 * 1024
RESULT_BYTES_MAX = 1 << 20
IN_ENGINE = ("native", "mirror", "view")
LINE = 4096
_FOUND = re.compile(rb"\n?#datatask-result (\S+) ([0-9a-f]{64}) (\d+)\n([A-Za-z0-9+/=\n]*)#datatask-end\n")


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


async def inputs_of(repositories: Mapping[str, Repository], job: str, where: str) -> str:
    """Return the job's own values in the repositories that live in the engine, as text; `CallerError` where it is too much."""
    found: dict[str, Input] = {}
    for repository in repositories.values():
        for leaf in all_leaves(repository):
            if leaf.medium in IN_ENGINE and leaf._id is not None and leaf.binding is not None:
                found[leaf._id] = await _input(leaf, job)
    text = base64.b64encode(zlib.compress(msgspec.json.encode(found))).decode()
    if len(text) > INPUTS_BYTES_MAX:
        raise CallerError(
            f"its inputs take {len(text)} bytes, and {INPUTS_BYTES_MAX} can travel to a pod",
            where=where,
            remedy="keep large inputs in a store that the pod reaches by itself",
        )
    return text


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


def find_result(log_end: bytes, identity: str) -> tuple[Message, int] | None:
    """Return the message at the end of a container's log, and how many bytes it and its frame take; None for none."""
    last: re.Match[bytes] | None = None
    for match in _FOUND.finditer(log_end):
        last = match
    if last is None or last[1].decode("ascii", "replace") != identity:
        return None
    text = last[4].replace(b"\n", b"")
    if len(text) != int(last[3]) or hashlib.sha256(text).hexdigest().encode() != last[2]:
        return None
    plain = zlib.decompressobj().decompress(base64.b64decode(text), RESULT_BYTES_MAX * 64)
    return msgspec.json.decode(plain, type=Message), len(log_end) - last.start()


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
    )


def read_inputs(text: str) -> dict[str, Input]:
    """Return what `inputs_of` has made a text of."""
    return msgspec.json.decode(zlib.decompress(base64.b64decode(text)), type=dict[str, Input])


def as_text(value: msgspec.Raw) -> str | None:
    """Return a document as text, None for none."""
    return bytes(value).decode() if value else None
