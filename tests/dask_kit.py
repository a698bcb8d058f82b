"""A real Dask cluster on loopback for tests: a scheduler and workers, each a process of its own that can be killed.

All are forked from one process that has loaded Dask, since loading it takes seconds.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 120

TRIES = 5


class Nursery:
    """The process that the others are forked from."""

    def __init__(self) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.dask_kit"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=clean,
        )
        atexit.register(self.close)

    def fork(self, *words: str) -> int:
        """Have a process forked that does what the words say; return its pid once it works."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for _ in range(TRIES):  # on a busy machine a worker gives up on its scheduler
            self._process.stdin.write(" ".join(words) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            if answer.strip().isdigit():
                return int(answer)
        raise AssertionError(f"no {words[0]}: {answer}")

    def close(self) -> None:
        """End it, and with it all that were forked from it."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.wait()


@functools.cache
def nursery() -> Nursery:
    """Return this process's nursery."""
    return Nursery()


class Dask:
    """A scheduler and its workers."""

    def __init__(self, workers: int = 2, *, threads: int = 2, bare: bool = False) -> None:
        self.port = free_port()
        self.scheduler = 0
        self.workers: dict[str, int] = {}
        self._threads = threads
        self._bare = "bare" if bare else "whole"
        self.start_scheduler()
        for number in range(workers):
            self.start_worker(f"w{number}")

    @property
    def url(self) -> str:
        """What a task takes as its executor."""
        return f"dask://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        """What Dask's own client takes."""
        return f"tcp://127.0.0.1:{self.port}"

    def start_scheduler(self) -> None:
        """Start a scheduler, perhaps where one was before."""
        self.scheduler = nursery().fork("scheduler", str(self.port))

    def start_worker(self, name: str, resources: str = "-") -> None:
        """Start a worker; `resources` is `NAME=AMOUNT`."""
        words = ("worker", self.address, name, str(self._threads), self._bare, resources)
        self.workers[name] = nursery().fork(*words)

    def kill_scheduler(self) -> None:
        """Kill it."""
        _kill(self.scheduler)

    def kill_worker(self, name: str) -> None:
        """Kill a worker."""
        _kill(self.workers.pop(name))

    def left(self) -> tuple[list[str], list[str]]:
        """Return the keys and the locks that the scheduler has."""
        found: tuple[list[str], list[str]] = self._ask(_left)
        return found

    def clear(self) -> None:
        """Have the scheduler forget all, as if nobody had been here."""
        self._ask(_clear)

    def _ask(self, what: Callable[..., Any]) -> Any:
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            return client.run_on_scheduler(what)

    def close(self) -> None:
        """Kill all."""
        for name in list(self.workers):
            self.kill_worker(name)
        self.kill_scheduler()


def _left(dask_scheduler: Any) -> tuple[list[str], list[str]]:
    return list(dask_scheduler.tasks), list(dask_scheduler.extensions["multi_locks"].requests)


def _clear(dask_scheduler: Any) -> None:
    for name in [name for name in dask_scheduler.clients if name.startswith("published-")]:
        dask_scheduler.remove_client(name)
    locks = dask_scheduler.extensions["multi_locks"]
    for key in list(locks.requests):
        locks.release(id=key)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 100
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:  # the nursery reaps it
        time.sleep(0.01)


@functools.cache
def shared() -> Dask:
    """Return a cluster that the tests of this process share, and leave as it was."""
    cluster = Dask()
    atexit.register(cluster.close)
    return cluster


def free_port() -> int:
    """Return a port that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- in the nursery -----------------------------------------------------------------------------------


def _serve(words: list[str], told: int) -> None:
    from distributed import Scheduler, Worker

    logging.disable(logging.CRITICAL)

    async def scheduler(port: str) -> None:
        async with Scheduler(host="127.0.0.1", port=int(port), dashboard=False) as server:
            os.write(told, b"+")
            await server.finished()

    async def worker(address: str, name: str, threads: str, bare: str, resources: str) -> None:
        if bare == "bare":
            _forget_package()
        given = dict([resources.split("=")]) if "=" in resources else {}
        with tempfile.TemporaryDirectory() as folder:
            async with Worker(
                address,
                name=name,
                nthreads=int(threads),
                resources={key: float(amount) for key, amount in given.items()},
                dashboard=False,
                local_directory=folder,
            ) as server:
                os.write(told, b"+")
                await server.finished()

    asyncio.run(scheduler(*words[1:]) if words[0] == "scheduler" else worker(*words[1:]))


def _forget_package() -> None:
    """Make this process one in which our package is not installed."""

    class Absent:
        def find_spec(self, name: str, *_: object) -> None:
            if name.partition(".")[0] == "datatask":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Absent())
    for name in [name for name in sys.modules if name.partition(".")[0] in ("datatask", "tests")]:
        del sys.modules[name]
    import importlib.metadata

    known = importlib.metadata.version

    def version(distribution_name: str) -> str:
        if distribution_name == "datatask-engine":
            raise importlib.metadata.PackageNotFoundError(distribution_name)
        return known(distribution_name)

    importlib.metadata.version = version


def _main() -> None:
    import distributed  # noqa: F401 - for the forked ones

    import datatask.adapters.execute.functions.dask.worker  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    children = []
    for line in sys.stdin:
        reads, writes = os.pipe()
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(reads)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(null, 1)
            with suppress(BaseException):
                _serve(line.split(), writes)
            os._exit(1)
        os.close(writes)
        children.append(pid)
        works = os.read(reads, 1)
        os.close(reads)
        print(pid if works else "it has ended", flush=True)
    for pid in children:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _main()
