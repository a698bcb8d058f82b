"""The engine's side of what worker processes ask: repositories by id, and which process does which run.

In: requests of `remote` over a Unix socket in a private folder (0700), let in by a key. Out: answers, made on
the engine's event loop, and what becomes of the processes. The connections are served by threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import logging
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

import cloudpickle

from datatask.adapters.execute.functions import remote
from datatask.adapters.spools import Spool
from datatask.engine.api.gathered import Gathered
from datatask.engine.api.repositories import Repository
from datatask.engine.runtime.services import Services
from datatask.schema.errors import DatataskError, InvalidValueError, NotPossibleError

logger = logging.getLogger("datatask.task")

DIRECTORY_MAX = 60
BACKLOG = 64
IN_ENGINE = ("native", "mirror", "view")

Begins = Callable[[int, int, int, bool], remote.Permit]
Gone = Callable[[int], None]


class EngineGateway:
    """Serves the worker processes of one executor.

    `begins(run, pid, thread, alone)` says on the loop whether a call may begin; `gone(pid)` hears there that a process let go.
    """

    def __init__(self, begins: Begins, gone: Gone, services: Services) -> None:
        self._begins, self._gone = begins, gone
        self._loop = asyncio.get_running_loop()
        remote.engine_loops.add(self._loop)
        long = len(tempfile.gettempdir()) > DIRECTORY_MAX  # a socket's path may have 107 bytes at most
        self._spool = Spool("/tmp" if long else None)
        folder = str(self._spool.folder)
        (Path(folder) / "spool").mkdir(mode=0o700)
        self.address = remote.Address(folder, secrets.token_bytes(32), os.getpid())
        self._leaves: dict[str, Repository] = {}
        self._lives: dict[int, Connection] = {}
        self._open = True
        # multiprocessing's Listener fails at the program's end when the folder is removed before it was closed
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(f"{folder}/socket")
        self._socket.listen(BACKLOG)
        services.keep_thread("the gateway of worker processes", self._accept)

    def add(self, leaf: Repository) -> str:
        """Make a repository reachable; return its key."""
        key = leaf._id if leaf._id is not None else f"#{id(leaf)}"
        self._leaves.setdefault(key, leaf)
        return key

    def reaches(self, pid: int) -> bool:
        """Whether a worker process is there."""
        return pid in self._lives

    def stop(self, run: int, pid: int, how: remote.Stop) -> None:
        """Ask the worker process to end a call."""
        life = self._lives.get(pid)
        if life is not None:
            try:
                life.send((run, how))
            except OSError:
                self._lives.pop(pid, None)

    def close(self) -> None:
        """Say goodbye to the workers, which then drop their calls and live on, and remove the folder."""
        self._open = False
        for life in list(self._lives.values()):
            try:
                life.send(None)
            except OSError:
                continue
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as knock:
            knock.connect(str(Path(self.address.folder) / "socket"))  # so that the accepting thread looks up
        self._socket.close()
        self._spool.close()

    def _accept(self) -> None:
        while self._open:
            try:
                accepted, _ = self._socket.accept()
            except OSError:
                if self._open:
                    raise
                return
            connection = Connection(accepted.detach())
            threading.Thread(
                target=self._admit, args=(connection,), name="datatask-worker", daemon=True
            ).start()

    def _admit(self, connection: Connection) -> None:
        """Let in who has the key; one that says nothing holds up no other."""
        try:
            deliver_challenge(connection, self.address.key)
            answer_challenge(connection, self.address.key)
            role, pid = connection.recv()
            if role == "life":
                self._lives[pid] = connection
            connection.send(True)
        except (AuthenticationError, EOFError, OSError):
            connection.close()
            if self._open:
                logger.warning("a process without the key knocked at %s", self.address.folder)
            return
        if role != "life":
            self._serve(connection, pid)

    def _serve(self, connection: Connection, pid: int) -> None:
        with connection:
            while True:
                try:
                    verb, *arguments = connection.recv()
                    try:
                        answer = (False, self._ask_loop(self._answer(verb, *arguments)).result())
                    except Exception as error:
                        answer = (True, _sendable(error))
                    connection.send(answer)
                except (EOFError, OSError):
                    break
        if self._open:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._let_go, pid)

    def _ask_loop(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # the loop is closed
            work.close()
            raise

    def _let_go(self, pid: int) -> None:
        self._lives.pop(pid, None)
        self._gone(pid)

    async def _answer(self, verb: str, *arguments: Any) -> Any:
        if verb == "begin":
            return self._begins(*arguments)
        key, *rest = arguments
        leaf: Any = self._leaves[key]
        if verb in ("contains", "info", "read", "members"):
            position = 0 if leaf.binding is None else leaf.binding.position(leaf.id)
            return position, await self._read(leaf, verb, *rest)
        if verb == "write":
            async with leaf.open(rest[0], "wb") as stream:
                await stream.write(rest[1])
            return None
        if verb in ("delete", "dump"):
            return await getattr(leaf, verb)(*rest)
        raise InvalidValueError(f"{verb!r} is not understood")

    async def _read(self, leaf: Any, verb: str, *rest: Any) -> Any:
        if verb == "members":
            return [job async for job in leaf]
        if verb == "read":
            async with leaf.open(rest[0], "rb") as stream:
                return await stream.read()
        return await getattr(leaf, verb)(*rest)


def _sendable(error: Exception) -> Exception:
    plain = isinstance(error, DatataskError | LookupError | OSError | ValueError | TypeError)
    return error if plain else RuntimeError(f"{type(error).__name__}: {error}")


class _Packer(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles by value what plain pickle cannot, and repositories that live in the engine as stand-ins."""

    def __init__(self, file: io.BytesIO, gateway: EngineGateway) -> None:
        super().__init__(file)
        self._gateway = gateway

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Gathered) or (isinstance(obj, Repository) and obj.medium in IN_ENGINE):
            key = self._gateway.add(obj)
            kind = "metadata" if obj.is_metadata() else "blob" if obj.is_blob() else ""
            return remote.stand_in, (key, repr(obj), kind, obj._id is not None)
        return super().reducer_override(obj)


def pack(func: Callable[..., Any], arguments: dict[str, Any], gateway: EngineGateway) -> tuple[bytes, str]:
    """Return the function and its repositories as bytes for a worker, and their digest."""
    file = io.BytesIO()
    try:
        _Packer(file, gateway).dump((func, arguments))
    except Exception as error:
        raise NotPossibleError(
            f"the function or one of its repositories cannot be sent to another process: {error}",
            remedy="use a ThreadPoolExecutor, or do not refer to open files, locks or connections",
        ) from error
    data = file.getvalue()
    return data, hashlib.sha256(data).hexdigest()
