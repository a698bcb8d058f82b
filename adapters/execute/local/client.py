"""The engine's end of the launcher's socket: one connection per directory, kept up by itself.

In: what runners ask about runs by identity. Out: the launcher's answers, to the runner that asked. When the
connection breaks, a launcher is started if there is none, and everything that is not settled is asked again:
starts are idempotent by identity, so nothing runs twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.base.runner import Questions
from datatask.adapters.execute.local import spawning
from datatask.adapters.execute.local.engine_connections import SOCKET
from datatask.adapters.execute.local.run_directory import RunDirectory, start_launcher
from datatask.engine.runtime.closing import in_own_thread
from datatask.engine.runtime.services import current
from datatask.schema.errors import CallerError

logger = logging.getLogger("datatask.proc_manager")

SILENT_SECONDS = 2.0
RETRY_SECONDS = 0.01
RETRY_SECONDS_MAX = 1.0
REPLACEMENTS_MAX = 3
"""So many launchers of other situations than ours are replaced; then it is ours that does not hold still."""

Message = dict[str, Any]


class LauncherListener(Protocol):
    """A runner, of whose runs the launcher tells."""

    def on_message(self, identity: str, message: Message) -> None:
        """Take an answer of the launcher."""

    def on_silence(self, identity: str, message: str) -> None:
        """The launcher cannot be reached, or serves another log."""

    def on_contact(self, identity: str) -> None:
        """The launcher can be reached again."""


class LauncherClient(asyncio.Protocol):
    """A connection that survives; `attach` and `detach` count its users."""

    def __init__(self, directory: Path, earlier: Path | None = None) -> None:
        """`earlier` is where an earlier version may have left runs that go on."""
        self.directory = RunDirectory(directory, earlier)
        self.log = ""
        self.epoch = 0
        self._users = 0
        self._questions = Questions[Message, LauncherListener]()
        self._environments: dict[str, Message] = {}
        self._sent_environments: set[str] = set()
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._disconnected: asyncio.Future[None] | None = None
        self._incoming = b""
        self._outgoing: list[bytes] = []
        self._flushing = False
        self._service = f"the connection to the launcher of {directory}"
        self._pause: float | None = None
        self._is_mute = False
        self._replaced = 0
        self._retiring = False
        self._greeted = True
        self._peer = (0, 0)
        self._hung_up: tuple[int, int] | None = None

    # --- for runners ------------------------------------------------------------------------------

    def attach(self) -> None:
        """One more user; the running loop is the client's from now on."""
        if self._users == 0:
            self._loop = asyncio.get_running_loop()
            self._services = current()
        self._users += 1

    async def detach(self) -> None:
        """One user less; with the last one the connection ends, and the launcher goes on alone."""
        self._users -= 1
        if self._users > 0:
            return
        if self._transport is not None:
            self._put({"op": "bye"})
        self._flush()
        if self._connecting is not None:
            self._connecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._connecting
        if self._transport is not None:
            transport, self._transport = self._transport, None
            self._disconnected = self._loop.create_future()
            transport.close()
            await self._disconnected
        self._questions.clear()
        await self.directory.swept()
        self.log = ""
        self.directory.leave()

    def own(self, identity: str, url: str) -> None:
        """Say by a run's identity, and its log's URL, whose runs these are; the first one decides."""
        if not self.log:
            log, epoch, _ = identity.split(".")
            self.directory.choose_for(log, url, identity)
            self.log, self.epoch = log, int(epoch)

    def environment(self, key: str, env: Mapping[str, str] | None) -> None:
        """Keep the environment that starts name by `key`; None is the engine's own, as it is now."""
        umask = os.umask(0o077)
        os.umask(umask)
        variables = dict(os.environ if env is None else env)
        self._environments[key] = {"op": "env", "key": key, "env": variables, "umask": umask}
        self._sent_environments.discard(key)

    def ask(self, identity: str, question: Message, listener: LauncherListener) -> None:
        """Ask about a run, `start` or `settle`; its listener gets every answer until `forget`."""
        self._questions.ask(identity, question, listener)
        if self._transport is not None and not self.directory.is_in_place():
            self._transport.abort()  # its launcher has another folder by now; one in this folder is asked everything
        if not (self._is_earlier and question["op"] == "start"):
            self._put(question)
        elif self._greeted:
            self._start_by_earlier(identity)

    def settle_later(self, identity: str) -> None:
        """The start is confirmed: should the connection break, ask what became of the run."""
        self._questions.change(identity, {"op": "settle", "id": identity})

    def tell(self, message: Message) -> None:
        """Send what is not repeated: stop, sweep."""
        self._put(message)

    def forget(self, identity: str) -> None:
        """The run is over and recorded: drop it here, at the launcher, and on the disk."""
        self._questions.close(identity)
        self._put({"op": "forget", "id": identity})
        self.directory.remove(identity)

    def done(self, identity: str) -> None:
        """The run is over: no more questions about it."""
        self._questions.close(identity)

    # --- the connection ---------------------------------------------------------------------------

    def _put(self, message: Message) -> None:
        key = message.get("env")
        if isinstance(key, str) and key not in self._sent_environments:
            self._sent_environments.add(key)
            self._outgoing.append(_line(self._environments[key]))
        self._outgoing.append(_line(message))
        if self._transport is None:
            self._connect()
        elif not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is not None and self._outgoing:
            self._transport.write(b"".join(self._outgoing))
            self._outgoing.clear()

    def _connect(self) -> None:
        if self._connecting is None:
            self._connecting = self._services.keep(
                self._service, lambda service: self._keep_connecting(), ends=True
            )

    async def _keep_connecting(self) -> None:
        wait, began, launched = RETRY_SECONDS, self._loop.time(), 0.0
        trouble = ""
        while self._transport is None:
            try:
                await self._try_connecting()
                break
            except OSError as error:
                trouble = str(error)
            if self._loop.time() - launched > SILENT_SECONDS:
                launched = self._loop.time()
                try:
                    await asyncio.to_thread(self.directory.prepare)
                    # A new thread has our priority and our cores, those of a pool what ours were once.
                    await in_own_thread(lambda: start_launcher(self.directory.path), "launcher-start")
                except (
                    OSError,
                    CallerError,
                    RuntimeError,
                ) as error:  # RuntimeError: no thread can be started
                    trouble = f"the launcher cannot be started: {error}"
                else:
                    wait = RETRY_SECONDS  # it is there in a moment
            if self._loop.time() - began > SILENT_SECONDS:
                self._silent(f"the launcher of {self.directory} does not answer: {trouble}")
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, RETRY_SECONDS_MAX)
        self._connecting = None

    async def _try_connecting(self) -> None:
        folder = os.open(self.directory.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            path = f"/proc/self/fd/{folder}/{SOCKET}"  # a socket's path may have 107 bytes at most
            await self._loop.sock_connect(sock, path)
            pid = _check_peer(sock)
            self._peer = (pid, proctable.start_time(pid) or 0)
            self.directory.reached(os.fstat(folder))
        except BaseException:
            sock.close()
            raise
        finally:
            os.close(folder)
        await self._loop.create_unix_connection(lambda: self, sock=sock)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello, and ask everything that is open."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._incoming = b""
        self._retiring = False
        self._sent_environments.clear()
        waiting, self._outgoing = self._outgoing, []
        pid = os.getpid()
        start = proctable.start_time(pid) or 0
        hello = {
            "op": "hello",
            "log": self.log,
            "epoch": self.epoch,
            "pid": pid,
            "start": start,
            "home": self.directory.home,
        }
        self._greeted = False
        self._put(hello if self._is_earlier else {**hello, "wanted": spawning.present()})
        asked = {_line(question.text) for _, question in self._questions}
        for _, question in self._questions:
            if not (self._is_earlier and question.text["op"] == "start"):
                self._put(question.text)
        for line in waiting:
            if line not in asked and not line.startswith(b'{"op":"env"'):
                self._outgoing.append(line)

    def data_received(self, data: bytes) -> None:
        """Hand each answer to its listener; should that fail, everything open is asked again over a new connection."""
        try:
            self._answered(data)
        except Exception as error:
            self._pause = self._services.service(self._service).failed(error)
            if self._transport is not None:
                self._transport.abort()

    def _answered(self, data: bytes) -> None:
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        self._greeted = True
        for line in lines:
            message: Message = json.loads(line)
            kind, identity = next(iter(message.items()))
            if kind == "owned":
                self._turned_away(message)
            elif kind == "hello":
                self._in_contact()
                for run, open_question in self._questions if self._is_earlier else ():
                    if open_question.text["op"] == "start":
                        self._start_by_earlier(run)
            elif kind == "swept":
                self.directory.remove(identity)
            elif kind == "unfit":
                self._unfit(identity, message["message"])
            elif (question := self._questions.get(identity)) is not None:
                question.listener.on_message(identity, message)

    def connection_lost(self, error: Exception | None) -> None:
        """Connect again while anything is open."""
        if self._disconnected is not None and not self._disconnected.done():
            self._disconnected.set_result(None)
        if self._transport is not None:
            if not self._greeted:
                self._hung_up = None if self._is_earlier else self._peer
            self._transport = None
            pause, self._pause = self._pause, None
            if pause is not None:
                self._loop.call_later(pause, self._reconnect)
            elif self._users and (self._questions or self._outgoing):
                self._connect()

    @property
    def _is_earlier(self) -> bool:
        """Whether the connected launcher is of an earlier version: the same process hung up on our greeting before.

        One that was killed before it answered hangs up as well, but does not answer again.
        """
        return self._transport is not None and self._peer == self._hung_up

    def _start_by_earlier(self, identity: str) -> None:
        """Have a launcher of an earlier version start a run where its situation is ours; else it makes way once it has no runs."""
        question, (pid, start) = self._questions.get(identity), self._peer
        if question is None or self._transport is None or self._transport.is_closing():
            return
        try:
            differences = spawning.differences(spawning.present(), spawning.present(pid))
        except OSError as error:
            differences = str(error)
        if not differences:
            self._put(question.text)
        elif is_without_runs(pid) and proctable.is_alive(pid, start):
            os.kill(pid, signal.SIGKILL)  # its journal has all that it knows
            self._transport.abort()
        else:
            text = (
                f"the launcher of {self.directory} (pid {pid}) is of an earlier version of datatask and still has runs;"
                f" it is replaced when they have ended, since it would give others its own situation ({differences})"
            )
            question.listener.on_message(identity, {"refused": identity, "temporary": True, "message": text})

    def _turned_away(self, message: Message) -> None:
        """Another log's engine works here: use a directory beside this one, unless runs of ours are in this one."""
        moves = message["copied"] or not self.directory.has_runs_of_ours
        if moves:
            self._move(leave=not message["copied"])
        else:
            self._silent(
                f"{self.directory} is in use by another pipeline's log ({message['owned']}, pid {message['pid']}), and has runs"
                " of this one: they are seen to when that engine ends; give one of the two managers another app name"
            )
        if self._transport is not None:
            transport, self._transport = self._transport, None
            transport.close()
        if self._questions:
            self._loop.call_later(0.0 if moves else RETRY_SECONDS_MAX, self._reconnect)

    def _move(self, *, leave: bool) -> None:
        """Use another directory, and have what is to start there prepared anew; with `leave` not left in this one either."""
        starts = [(name, one.listener) for name, one in self._questions if one.text["op"] == "start"]
        for identity, _ in starts if leave else ():
            self.directory.remove(identity)
        try:
            self.directory.choose(other=True)
        except CallerError as error:
            self._silent(str(error))
            return
        for identity, listener in starts:
            self._questions.close(identity)
            listener.on_message(identity, {"moved": identity})

    def _unfit(self, identity: str, differences: str) -> None:
        """Have a launcher leave that cannot start runs as we would; the next one is ours. It keeps what it has started."""
        question = self._questions.get(identity)
        if self._retiring or question is None:
            return
        if self._replaced < REPLACEMENTS_MAX:
            self._replaced += 1
            self._retiring = True
            self._put({"op": "retire"})
            return
        text = (
            f"the launcher of {self.directory} is not in the situation of this engine ({differences}), and neither is"
            " one that was started for it; leave the engine's limits, priority, cores and groups as they are while it runs"
        )
        question.listener.on_message(identity, {"refused": identity, "temporary": False, "message": text})

    def _reconnect(self) -> None:
        if self._users and self._transport is None:
            self._connect()

    def _silent(self, text: str) -> None:
        if not self._is_mute:
            self._is_mute = True
            logger.warning("%s", text)
        for identity, listener in self._questions.silence(True):
            listener.on_silence(identity, text)

    def _in_contact(self) -> None:
        if self._is_mute:
            self._is_mute = False
            logger.warning("the launcher of %s answers again", self.directory)
        for identity, listener in self._questions.silence(False):
            listener.on_contact(identity)


def _line(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def is_without_runs(pid: int) -> bool:
    """Whether a launcher has no children, and the subreapers above it have none but it."""
    program = proctable.command_line(pid)
    if proctable.children(pid):
        return False
    while (fields := proctable.stat_fields(pid)) is not None:
        parent = int(fields[1])
        if proctable.command_line(parent) != program:
            return True
        if set(proctable.children(parent)) != {pid}:
            return False
        pid = parent
    return False


def _check_peer(sock: socket.socket) -> int:
    """Return the pid of the process that listens at a socket; `PermissionError` where it is not this user's."""
    pid, uid, _ = struct.unpack(
        "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    if uid != os.geteuid():
        raise PermissionError(f"the process at its socket belongs to uid {uid}, not to this user")
    return int(pid)
