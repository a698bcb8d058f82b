"""The worker's side of an executor: calls the function, and gives what it did as plain values.

In: a pickled function with its repositories, a run and a job. Out: an `Outcome`, or `NotBegun`. In a thread the
repositories are the engine's own, reached through its loop (`ThreadBinding`). In another process repositories that
live in the engine are stand-ins (`remote`) that ask through its gateway, and those with a store of their own work
directly; either way writes are collected in the run's overlay and go back with the outcome.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.functions import remote
from datatask.engine import capture
from datatask.engine.api.repositories import Repository
from datatask.engine.ports import Blobs
from datatask.engine.run_context import Binding, RunContext, ValueRef, current_capture, current_run
from datatask.engine.runtime import closing
from datatask.engine.runtime.calls import error_detail, error_info, printed_by
from datatask.schema.definition import Conflicts
from datatask.schema.events import ErrorInfo
from datatask.schema.messages import Printed, Write

FUNCTIONS_MAX = 64


class Outcome(NamedTuple):
    """What a call came to; times are UTC nanoseconds of the worker's clock."""

    error: ErrorInfo | None
    detail: dict[str, str] | None
    writes: tuple[Write, ...]
    reads: dict[str, int]
    started_at: int
    ended_at: int
    cpu_seconds: float
    printed: tuple[Printed, ...] = ()


class NotBegun(NamedTuple):
    """What a call came to that was never made; `why` is empty where the engine did not permit it."""

    why: str = ""


@dataclass
class Call:
    """A call in progress, and the handle to cancel it from another thread; `begun` is called when it begins."""

    context: RunContext
    gateway: remote.Gateway | None = None
    begun: Callable[[], None] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _loop: asyncio.AbstractEventLoop | None = None
    _task: asyncio.Task[Any] | None = None
    _begun: bool = False
    _outcome: Outcome | None = None
    _taken: Future[Outcome] | None = None
    cancelled: bool = False

    def cancel(self) -> None:
        """Cancel the function if it is async; a plain one goes on."""
        with self._lock:
            self.cancelled = True
            if self._loop is not None and self._task is not None:
                self._loop.call_soon_threadsafe(self._task.cancel)

    def take_back(self) -> Future[Outcome] | None:
        """Keep a call from beginning that an executor was given; return its outcome to be if it has begun already."""
        with self._lock:
            if not self._begun:
                self.cancelled = True
                return None
            self._taken = Future()
            self._taken.set_running_or_notify_cancel()
            if self._outcome is not None:
                self._taken.set_result(self._outcome)
            return self._taken

    def make(self, func: Callable[..., Any], arguments: dict[str, Any]) -> Outcome:
        """Call the function in a fresh event loop and a fresh context; nothing that it does gets out."""
        with self._lock:
            self._begun = True
        if self.begun is not None:
            self.begun()
        outcome = contextvars.Context().run(self._make, func, arguments)
        with self._lock:
            self._outcome = outcome
            if self._taken is not None:
                self._taken.set_result(outcome)
        return outcome

    def _make(self, func: Callable[..., Any], arguments: dict[str, Any]) -> Outcome:
        current_run.set(self.context)
        remote.current.set(self.gateway)
        started, cpu = time.time_ns(), time.thread_time()  # noqa: TID251 - the runner's clock
        error: ErrorInfo | None = None
        detail: dict[str, str] | None = None
        writes: tuple[Write, ...] = ()
        loop, pid = asyncio.new_event_loop(), os.getpid()
        try:
            if self.cancelled:
                raise asyncio.CancelledError
            try:
                result = func(**arguments)
                if inspect.isawaitable(result):
                    self._finish(loop, result)
            finally:
                closing.returned(pid, f"{self.context.task} {self.context.job}")
            writes = loop.run_until_complete(self.context.settle())
        except BaseException as caught:
            writes = self.context.fence()
            caught = self.context.damage or caught
            error = error_info(caught, skip=2)
            detail = error_detail(caught, error)
        finally:
            _close(loop)
        ended, spent = time.time_ns(), time.thread_time() - cpu  # noqa: TID251 - the runner's clock
        printed = printed_by(self.context)
        return Outcome(error, detail, writes, self.context.reads, started, ended, round(spent, 6), printed)

    def _finish(self, loop: asyncio.AbstractEventLoop, result: Awaitable[Any]) -> None:
        with self._lock:  # a cancellation comes before this, and is seen in the first step, or after it
            task = loop.create_task(self._contained(result))
            self._loop, self._task = loop, task
        try:
            failure = loop.run_until_complete(task)
        finally:
            with self._lock:
                self._loop = self._task = None
        if failure is not None:
            raise failure

    async def _contained(self, result: Awaitable[Any]) -> BaseException | None:
        """Return what the function raised: an exit raised inside a task would tear its loop down."""
        try:
            if self.cancelled and inspect.iscoroutine(result):
                result.close()
                return asyncio.CancelledError()
            await result
        except BaseException as error:
            return error
        return None


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def _close(loop: asyncio.AbstractEventLoop) -> None:
    try:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=1.0))
        loop.run_until_complete(loop.shutdown_asyncgens())
    except BaseException:
        pass  # what the function left behind is not worth more than its outcome
    finally:
        loop.close()


# --- threads ------------------------------------------------------------------------------------------


class ThreadBinding:
    """An engine's binding, for a thread that is not its loop's."""

    def __init__(self, binding: Binding, loop: asyncio.AbstractEventLoop) -> None:
        self._binding = binding
        self._loop = loop

    async def put(self, repository_id: str, write: Write) -> None:
        """As the engine's."""
        await self._elsewhere(self._binding.put(repository_id, write))

    async def delete(self, repository_id: str, job: str) -> None:
        """As the engine's."""
        await self._elsewhere(self._binding.delete(repository_id, job))

    def contains(self, repository_id: str, job: str) -> bool:
        """As the engine's; blocks this thread until the loop has answered."""
        return bool(self._answer(lambda: self._binding.contains(repository_id, job)))

    def members(self, repository_id: str) -> list[str]:
        """As the engine's; blocks this thread until the loop has answered."""
        members: list[str] = self._answer(lambda: self._binding.members(repository_id))
        return members

    async def value(self, repository_id: str, job: str) -> ValueRef | None:
        """As the engine's."""
        value: ValueRef | None = await self._elsewhere(self._binding.value(repository_id, job))
        return value

    def position(self, repository_id: str) -> int:
        """As the engine's: a number that only grows, and is taken before what it is about is read."""
        return self._binding.position(repository_id)

    @property
    def blobs(self) -> Blobs:
        """As the engine's: files, which any thread can use."""
        return self._binding.blobs

    async def _elsewhere(self, work: Any) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_awaited(work), self._loop))

    def _answer(self, ask: Callable[[], Any]) -> Any:
        async def asked() -> Any:
            return ask()

        return asyncio.run_coroutine_threadsafe(asked(), self._loop).result()


def for_thread(repository: Repository, loop: asyncio.AbstractEventLoop) -> Repository:
    """Return the repository bound through the engine's loop: a copy where it, or a part of it, is bound."""
    parts = {name: _part_for_thread(value, loop) for name, value in vars(repository).items()}
    changed = {name: value for name, value in parts.items() if value is not vars(repository)[name]}
    binding = repository.binding
    if binding is None and not changed:
        return repository
    copied: Repository = object.__new__(type(repository))  # shares what `copy` would leave behind
    vars(copied).update(vars(repository), **changed)
    if binding is not None:
        vars(copied)["_binding"] = ThreadBinding(binding, loop)
    return copied


def _part_for_thread(value: Any, loop: asyncio.AbstractEventLoop) -> Any:
    if isinstance(value, Repository):
        return for_thread(value, loop)
    if type(value) is dict and any(isinstance(item, Repository) for item in value.values()):
        return {key: _part_for_thread(item, loop) for key, item in value.items()}
    return value


# --- other processes ----------------------------------------------------------------------------------


class Parcel(NamedTuple):
    """What is sent to a worker for one run; `function` is the same bytes for all runs of a task."""

    function: bytes
    digest: str
    wants_job: bool
    run: int
    task: str
    job: str
    gateway: remote.Address
    conflicts: Conflicts = "rerun"
    logs: int = 0
    identities: Mapping[str, tuple[str, ...]] = {}
    variables: Mapping[str, str] = {}


@contextmanager
def with_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a call that has its process to itself."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


_functions: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {}
_calls: dict[tuple[remote.Address, int], Call] = {}  # several engines may share a process


def stay_with(
    pid: int, start: int, initializer: Callable[..., object] | None, arguments: tuple[Any, ...]
) -> None:
    """Make a worker process one of its own, that ends with the engine's, also while it waits for its first call.

    A forked one has the engine's signal handling with the engine's wake-up pipe: a SIGTERM that ends this worker would
    stop the engine. Ctrl-C goes to all of a terminal's processes, and is for the engine to act on.
    """
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(pid, start), name="datatask-engine-watch", daemon=True).start()
    if initializer is not None:
        initializer(*arguments)


def _end_with(pid: int, start: int) -> None:
    try:
        engine = os.pidfd_open(pid)
    except ProcessLookupError:
        os._exit(1)
    except (OSError, AttributeError):
        return  # a system without: a worker that has had a call ends with its connection
    if proctable.start_time(pid) == start:
        watch = select.poll()
        watch.register(engine, select.POLLIN)
        if not any(event & select.POLLIN for _, event in watch.poll()):
            return  # a function has closed what is not its own
    os._exit(1)


def work(parcel: Parcel) -> Outcome | NotBegun:
    """Do one run in this process, whichever it is; module-level, so that any pickle finds it."""
    loop, thread = asyncio._get_running_loop(), threading.get_ident()
    if loop is None:
        return _work(parcel, thread, _is_alone())
    if loop in remote.engine_loops:
        return NotBegun("the executor runs functions on the engine's event loop; use InProcessSyncTask")
    done: Future[Outcome | NotBegun] = Future()  # a function may run a loop of its own in another thread only

    def elsewhere() -> None:
        try:
            done.set_result(_work(parcel, thread, False))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=elsewhere, name=f"datatask-{parcel.task}").start()
    return done.result()


def _is_alone() -> bool:
    """Whether this process does nothing but this call; that of MPI ends its whole job when it ends."""
    return threading.current_thread() is threading.main_thread() and "mpi4py.MPI" not in sys.modules


def _work(parcel: Parcel, thread: int, alone: bool) -> Outcome | NotBegun:
    try:
        gateway = remote.connect(parcel.gateway, _stop)
    except OSError as error:
        return NotBegun(
            f"its worker on {socket.gethostname()} does not reach the engine, which answers on its own machine only ({error})"
        )
    call = Call(RunContext(parcel.run, parcel.task, parcel.job, parcel.conflicts, parcel.logs), gateway)
    call.context.identities = parcel.identities
    _calls[parcel.gateway, parcel.run] = call
    capture.begin(current_capture)
    try:
        if not gateway.begin(parcel.run, thread, alone):
            return NotBegun()
        try:
            func, arguments = _unpacked(parcel)
        except Exception as error:
            now = time.time_ns()  # noqa: TID251 - the runner's clock
            return Outcome(error_info(error, skip=1), None, (), {}, now, now, 0.0)
        with with_variables(parcel.variables if alone else {}):
            return call.make(func, {"job": parcel.job, **arguments} if parcel.wants_job else arguments)
    finally:
        del _calls[parcel.gateway, parcel.run]
        capture.end()


def _stop(gateway: remote.Gateway, run: int | None, how: remote.Stop) -> None:
    """End a call, or all of this engine."""
    for (address, number), call in list(_calls.items()):
        if address == gateway.address and number == (number if run is None else run):
            call.cancel()
            if how == "drop":
                call.context.fence()


def _unpacked(parcel: Parcel) -> tuple[Callable[..., Any], dict[str, Any]]:
    found = _functions.get(parcel.digest)
    if found is None:
        if len(_functions) >= FUNCTIONS_MAX:
            _functions.clear()
        found = _functions[parcel.digest] = pickle.loads(parcel.function)
        for argument in found[1].values():
            remote.bind(argument)
    return found
