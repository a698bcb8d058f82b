"""A run in a Dask worker: it begins once in the world, whatever Dask does, and its outcome goes back as bytes.

In: a `Parcel` that is pickled so that loading it does the run: Dask gets bytes and `pickle.loads`, so neither its scheduler nor a
worker without this package has to load anything of ours before it is that worker's turn. Out: a `Reply`. Dask calls a function
again when its worker dies, also when only the result went with it; a lock at the scheduler, taken before the function is called
and kept until the run's end is durable, tells the second call from the first.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from datatask.adapters.execute.functions.detached import (
    AwayBinding,
    AwayBlobs,
    Input,
    Message,
    travelling,
)
from datatask.adapters.execute.functions.workers import Call, with_variables
from datatask.adapters.spools import Spool
from datatask.engine import capture
from datatask.engine.api.repositories import Repository, all_leaves
from datatask.engine.run_context import RunContext, current_capture
from datatask.engine.runtime.calls import error_detail, error_info
from datatask.schema.definition import Conflicts
from datatask.schema.events import ErrorInfo

CLAIM_SECONDS = 60.0
RESULT_BYTES_MAX = 64 << 20
TELL_SECONDS, IDLE_SECONDS = 0.05, 60.0


class Parcel(NamedTuple):
    """What is sent for one run; `key` is its name at the scheduler, `code` the pickled function with its repositories."""

    key: str
    topic: str
    run: int
    task: str
    job: str
    conflicts: Conflicts
    wants_job: bool
    code: bytes
    inputs: bytes
    logs: int = 0
    identities: Mapping[str, tuple[str, ...]] = {}
    variables: Mapping[str, str] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Do the run where this is loaded."""
        return work, tuple(self)


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """What comes back: the message, or none where the function had been begun before and was not called again."""

    worker: str
    message: Message | None = None


def decoded(data: bytes) -> Reply:
    """Return the reply that `work` has encoded."""
    return msgspec.msgpack.decode(data, type=Reply)


@dataclass(eq=False)
class _Running:
    """A run that is being done; `tell` says once that it has begun, unless it is over by then."""

    call: Call
    began: float
    tell: Callable[[], None]
    told: bool = False


_running: dict[str, _Running] = {}
_unpickled = threading.local()  # of each thread, since a run's repositories are bound to the run
_telling: list[threading.Thread] = []


def claimed(key: str) -> dict[str, Any]:
    """Return the arguments of the scheduler's `multi_lock_acquire` and by which a run is taken, at once or not at all."""
    return {"locks": [key], "id": key, "timeout": 0, "num_locks": 1}


def work(*fields: Any) -> bytes:
    """Do the run, unless it has been begun before; return the encoded `Reply`."""
    from distributed import get_worker

    parcel, worker = Parcel(*fields), get_worker()
    name = str(worker.name)
    try:
        asked = worker.scheduler.multi_lock_acquire(**claimed(parcel.key))
        first = asyncio.run_coroutine_threadsafe(asked, worker.loop.asyncio_loop).result(CLAIM_SECONDS)
    except AssertionError:  # the scheduler's word for a lock that its holder asks for again
        first = False
    if not first:
        return msgspec.msgpack.encode(Reply(name))
    call = Call(RunContext(parcel.run, parcel.task, parcel.job, parcel.conflicts, parcel.logs))
    call.context.identities = parcel.identities
    event = {"key": parcel.key, "name": name, "address": worker.address}  # Dask puts in "worker" by itself
    _running[parcel.key] = _Running(call, time.monotonic(), lambda: worker.log_event(parcel.topic, event))
    _tell_of_begun()
    capture.begin(current_capture)
    try:
        with with_variables(parcel.variables if worker.state.nthreads == 1 else {}):
            return msgspec.msgpack.encode(Reply(name, _done(parcel, call)))
    finally:
        del _running[parcel.key]
        capture.end()


def _tell_of_begun() -> None:
    """Have a thread say which runs have begun, those that are over at once excepted: their replies say it."""
    if not _telling or not _telling[0].is_alive():
        _telling[:] = [threading.Thread(target=_keep_telling, name="datatask-begun", daemon=True)]
        _telling[0].start()


def _keep_telling() -> None:
    idle = 0.0
    while idle < IDLE_SECONDS:
        time.sleep(TELL_SECONDS)
        idle = 0.0 if _running else idle + TELL_SECONDS
        old = time.monotonic() - TELL_SECONDS
        for running in list(_running.values()):
            if not running.told and running.began < old:
                running.told = True
                with suppress(Exception):  # a worker that is closing
                    running.tell()


def _function(code: bytes) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return this thread's copy of a function and its repositories."""
    if getattr(_unpickled, "code", None) != code:
        _unpickled.made = pickle.loads(code)
        _unpickled.code = code
    made: tuple[Callable[..., Any], dict[str, Any]] = _unpickled.made
    return made


def _done(parcel: Parcel, call: Call) -> Message:
    began = time.time_ns()  # noqa: TID251 - the runner's clock
    call.context.defers = False  # the engine may see other inodes of a shared folder, or another mount
    spool = Spool()
    blobs = AwayBlobs(lambda: spool.folder)
    try:
        func, arguments = _function(parcel.code)
        inputs = msgspec.msgpack.decode(parcel.inputs, type=dict[str, Input])
        _bind(arguments, AwayBinding(inputs, parcel.job, blobs, "a Dask worker"))
        outcome = call.make(func, {"job": parcel.job, **arguments} if parcel.wants_job else arguments)
        message = Message(
            outcome.error,
            outcome.detail,
            outcome.started_at,
            outcome.ended_at,
            travelling(outcome.writes, blobs),
            outcome.reads,
            outcome.cpu_seconds,
            outcome.printed,
        )
    except Exception as caught:
        error = error_info(caught)
        ended = time.time_ns()  # noqa: TID251 - the runner's clock
        return Message(error, error_detail(caught, error), began, ended)
    finally:
        spool.close()
    size = sum(len(write.data or b"") + len(write.value or "") for write in message.writes)
    if size > RESULT_BYTES_MAX:
        text = (
            f"what the function wrote takes {size} bytes, and {RESULT_BYTES_MAX} can travel back; "
            "write large results to a store that the engine and the workers both reach"
        )
        error = ErrorInfo(type="TooLarge", message=text)
        return Message(error, None, message.started_at, message.ended_at, (), message.reads)
    return message


def _bind(arguments: Mapping[str, Repository], binding: AwayBinding) -> None:
    for argument in arguments.values():
        for leaf in all_leaves(argument):
            if leaf._id is not None:
                leaf.unbind()
                leaf.bind(leaf._id, binding)


# --- what the engine asks of the worker's process, on its loop ----------------------------------------


def begun(keys: list[str], dask_worker: Any) -> tuple[str, list[str]]:
    """Return this worker's name, and which of these runs are being done here."""
    return str(dask_worker.name), [key for key in keys if key in _running]


def cancel(key: str) -> None:
    """Cancel the function if it is async; a plain one goes on."""
    if (running := _running.get(key)) is not None:
        running.call.cancel()


def fence(key: str) -> None:
    """Refuse what the function writes from now on."""
    if (running := _running.get(key)) is not None:
        running.call.context.fence()
