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
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from datatask.adapters import trust
from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.local import folders, owners, spawning
from datatask.adapters.execute.local.engine_connections import SOCKET
from datatask.engine.runtime.closing import in_own_thread
from datatask.engine.runtime.services import current
from datatask.schema.errors import CallerError

logger = logging.getLogger("datatask.processes")

SILENT_SECONDS = 2.0
RETRY_SECONDS = 0.01
RETRY_SECONDS_MAX = 1.0
START_SECONDS_MAX = 30.0
REPLACEMENTS_MAX = 3
"""So many launchers of other situations than ours are replaced; then it is ours that does not hold still."""
_START = (
    "import os, sys; os.closerange(3, 65536); os.chdir('/'); sys.path.append(sys.argv[1]); "
    "from datatask.adapters.execute.local.launcher import main; sys.exit(main(sys.argv[2]))"
)

Message = dict[str, Any]

PASSED = ["PATH", "LANG", "LC_ALL", "TZ", "TMPDIR"]
"""What the launcher gets of our environment; runs get what their task says."""


class Watcher(Protocol):
    """Who is told about a run."""

    def on_message(self, identity: str, message: Message) -> None:
        """Take an answer of the launcher."""

    def on_silence(self, identity: str, message: str) -> None:
        """The launcher cannot be reached, or serves another log."""

    def on_contact(self, identity: str) -> None:
        """The launcher can be reached again."""


class _Asked:
    """One run that somebody watches: the question to repeat after a broken connection."""

    __slots__ = ("question", "silent", "watcher")

    def __init__(self, question: Message, watcher: Watcher) -> None:
        self.question = question
        self.watcher = watcher
        self.silent = False


class LauncherClient(asyncio.Protocol):
    """A connection that survives; `attach` and `detach` count its users."""

    def __init__(self, directory: Path, earlier: Path | None = None) -> None:
        """`earlier` is where an earlier version may have left runs that go on."""
        self.directory = self._first = directory
        self._earlier = earlier
        self._avoided: set[str] = set()
        self.log = ""
        self.epoch = 0
        self._home: list[str | int] = ["", 0, 0]
        self._users = 0
        self._asked: dict[str, _Asked] = {}
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
        self._trash: list[Path] = []
        self._is_mute = False
        self._place: os.stat_result | None = None
        self._replaced = 0
        self._retiring = False
        self._greeted = True
        self._is_earlier = False
        self._sweeper: asyncio.Future[None] | None = None

    # --- for runners ------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the directory; `CallerError` where it is not safe. Blocking."""
        prepare_directory(self.directory, group=self._earlier is None)

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
        self._asked.clear()
        if self._sweeper is not None:
            await self._sweeper
        self.log = ""
        self.directory = self._first
        self._avoided.clear()

    def own(self, identity: str, url: str) -> None:
        """Say by a run's identity, and its log's URL, whose runs these are; the first one decides."""
        log, epoch, _ = identity.split(".")
        if self.log:
            return
        self.log, self.epoch = log, int(epoch)
        self._home = _home(url)
        try:
            if self._earlier is not None and (self._earlier / log / identity).is_dir():
                prepare_directory(self._earlier)
                self.directory = self._earlier  # as long as there are such runs
            else:
                self._choose()
        except BaseException:
            self.log = ""  # not decided
            raise

    def _choose(self) -> None:
        """Use the directory that has this log's runs: another log, or a copy, has one beside it."""
        place = Path(owners.place_for(str(self._first), self.log, self._home, self._avoided))
        if place != self.directory:
            prepare_directory(place, group=self._earlier is None)
            self.directory = place

    def environment(self, key: str, env: Mapping[str, str] | None) -> None:
        """Keep the environment that starts name by `key`; None is the engine's own, as it is now."""
        umask = os.umask(0o077)
        os.umask(umask)
        variables = dict(os.environ if env is None else env)
        self._environments[key] = {"op": "env", "key": key, "env": variables, "umask": umask}
        self._sent_environments.discard(key)

    def ask(self, identity: str, question: Message, watcher: Watcher) -> None:
        """Ask about a run, `start` or `settle`; its watcher gets every answer until `forget`."""
        self._asked[identity] = _Asked(question, watcher)
        if self._transport is not None and not self.is_in_place():
            self._transport.abort()  # its launcher has another folder by now; one in this folder is asked everything
        self._put(question)

    def settle_later(self, identity: str) -> None:
        """The start is confirmed: should the connection break, ask what became of the run."""
        asked = self._asked.get(identity)
        if asked is not None:
            asked.question = {"op": "settle", "id": identity}

    def tell(self, message: Message) -> None:
        """Send what is not repeated: stop, sweep."""
        self._put(message)

    def forget(self, identity: str) -> None:
        """The run is over and recorded: drop it here, at the launcher, and on the disk."""
        self._asked.pop(identity, None)
        self._put({"op": "forget", "id": identity})
        self.remove(identity)

    def done(self, identity: str) -> None:
        """The run is over: no more questions about it."""
        self._asked.pop(identity, None)

    def folder(self, identity: str) -> Path:
        """Return the run's folder."""
        return self.directory / identity.partition(".")[0] / identity

    def find(self, identity: str) -> Path:
        """Return the run's folder wherever it is, be it that of a copy or of an earlier version."""
        log = identity.partition(".")[0]
        here = [*owners.places(str(self._first)), *([str(self._earlier)] if self._earlier else [])]
        found = [Path(place) / log / identity for place in here]
        return next((folder for folder in found if folder.is_dir()), self.folder(identity))

    @property
    def is_of_a_copy(self) -> bool:
        """Whether the log is a copy, whose original has the directory that the manager names."""
        return self.directory not in (self._first, self._earlier)

    def is_moved(self) -> bool:
        """Whether the log is gone from where it was, and the directory with it: the project has another name by now."""
        return self._home[1:] != [0, 0] and not os.path.exists(self._home[0]) and not self.is_in_place()

    def is_in_place(self) -> bool:
        """Whether the directory is still the one that the launcher was reached in."""
        try:
            return self._place is None or os.path.samestat(os.stat(self.directory), self._place)
        except OSError:
            return False

    def remove(self, identity: str) -> None:
        """Remove the run's folder, in the background."""
        self._trash.append(self.folder(identity))
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = self._loop.run_in_executor(None, self._sweep)

    def _sweep(self) -> None:
        while self._trash:
            folder = self._trash.pop()
            try:
                folders.remove(str(folder))
            except FileNotFoundError:
                pass
            except OSError as error:
                logger.warning("the folder of a run cannot be removed: %s", error)

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
                    await asyncio.to_thread(self.prepare)
                    # A new thread has our priority and our cores, those of a pool what ours were once.
                    await in_own_thread(lambda: start_launcher(self.directory), "launcher-start")
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
        folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            path = f"/proc/self/fd/{folder}/{SOCKET}"  # a socket's path may have 107 bytes at most
            await self._loop.sock_connect(sock, path)
            _check_peer(sock)
            self._place = os.fstat(folder)
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
            "home": self._home,
        }
        self._greeted = False
        self._put(hello if self._is_earlier else {**hello, "wanted": spawning.present()})
        asked = {_line(one.question) for one in self._asked.values()}
        for one in self._asked.values():
            self._put(one.question)
        for line in waiting:
            if line not in asked and not line.startswith(b'{"op":"env"'):
                self._outgoing.append(line)

    def data_received(self, data: bytes) -> None:
        """Hand each answer to its watcher; should that fail, everything open is asked again over a new connection."""
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
            elif kind == "swept":
                self.remove(identity)
            elif kind == "unfit":
                self._unfit(identity, message["message"])
            elif (asked := self._asked.get(identity)) is not None:
                asked.watcher.on_message(identity, message)

    def connection_lost(self, error: Exception | None) -> None:
        """Connect again while anything is open."""
        if self._disconnected is not None and not self._disconnected.done():
            self._disconnected.set_result(None)
        if self._transport is not None:
            self._transport = None
            if (
                not self._greeted
            ):  # a launcher of an earlier version does not understand all of our first word
                self._is_earlier = not self._is_earlier
            pause, self._pause = self._pause, None
            if pause is not None:
                self._loop.call_later(pause, self._reconnect)
            elif self._users and (self._asked or self._outgoing):
                self._connect()

    def _turned_away(self, message: Message) -> None:
        """Another log's engine works here: use a directory beside this one, unless runs of ours are in this one."""
        place = str(self.directory)
        if not message["copied"] and owners.Owners(place).known(self.log) is not None:
            self._silent(
                f"{place} is in use by another pipeline's log ({message['owned']}, pid {message['pid']}), and has runs of"
                " this one: they are seen to when that engine ends; give one of the two managers another app name"
            )
        else:
            self._avoided.add(place)
            self._move(leave=not message["copied"])
        if self._transport is not None:
            transport, self._transport = self._transport, None
            transport.close()
        if self._asked:
            self._loop.call_later(0.0 if self._avoided else RETRY_SECONDS_MAX, self._reconnect)

    def _move(self, *, leave: bool) -> None:
        """Use another directory, and have what is to start there prepared anew; with `leave` not left in this one either."""
        starts = {name: asked for name, asked in self._asked.items() if asked.question["op"] == "start"}
        for identity in starts if leave else ():
            self.remove(identity)
        try:
            self._choose()
        except CallerError as error:
            self._silent(str(error))
            return
        for identity, asked in starts.items():
            del self._asked[identity]
            asked.watcher.on_message(identity, {"moved": identity})

    def _unfit(self, identity: str, differences: str) -> None:
        """Have a launcher leave that cannot start runs as we would; the next one is ours. It keeps what it has started."""
        asked = self._asked.get(identity)
        if self._retiring or asked is None:
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
        asked.watcher.on_message(identity, {"refused": identity, "temporary": False, "message": text})

    def _reconnect(self) -> None:
        if self._users and self._transport is None:
            self._connect()

    def _silent(self, text: str) -> None:
        if not self._is_mute:
            self._is_mute = True
            logger.warning("%s", text)
        for identity, asked in list(self._asked.items()):
            if not asked.silent:
                asked.silent = True
                asked.watcher.on_silence(identity, text)

    def _in_contact(self) -> None:
        if self._is_mute:
            self._is_mute = False
            logger.warning("the launcher of %s answers again", self.directory)
        for identity, asked in list(self._asked.items()):
            if asked.silent:
                asked.silent = False
                asked.watcher.on_contact(identity)


def _line(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _home(url: str) -> list[str | int]:
    """Return where a log is: its path, and the device and inode of its file; zeros for one that has none."""
    path = url.partition("://")[2].removeprefix("/")
    try:
        status = os.stat(path)
    except OSError:
        return [path, 0, 0]
    return [path, status.st_dev, status.st_ino]


def _check_peer(sock: socket.socket) -> None:
    """Raise `PermissionError` where it is not a process of this user that answers at a socket."""
    _, uid, _ = struct.unpack(
        "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    if uid != os.geteuid():
        raise PermissionError(f"the process at its socket belongs to uid {uid}, not to this user")


def prepare_directory(directory: Path, *, group: bool = True) -> None:
    """Make the directory, for our user alone; `CallerError` when others may write it, or one above it.

    With `group` those who own the folders above, and groups that may write them, are trusted: the pipeline is theirs to
    change, which names a place beside it.
    """
    try:
        trust.check_above(directory, group=group)
        try:
            trust.check_found(directory, "folder")
        except FileNotFoundError:
            trust.make_private(directory)
        trust.check_own(directory)
    except OSError as error:
        raise CallerError(
            f"{directory} cannot be made: {error.strerror}",
            remedy="pass another local_path, or set XDG_STATE_HOME",
        ) from error


def start_launcher(directory: Path) -> None:
    """Start a launcher, detached; one that finds another at work ends at once. Blocks for a moment."""
    root = Path(__file__).parents[4]
    env = {key: os.environ[key] for key in PASSED if key in os.environ}
    with open(directory / "launcher.log", "ab", opener=trust.private) as log:
        pid = os.posix_spawn(  # no pipe, as subprocess has: a fork in another thread would keep it open for ever
            sys.executable,
            [sys.executable, "-I", "-S", "-c", _START, str(root), str(directory)],
            env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
    _wait(pid, START_SECONDS_MAX)


def _wait(pid: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"it did not begin to serve in {seconds:g} s")
        time.sleep(0.002)
    if code := os.waitstatus_to_exitcode(ended[1]):
        raise ChildProcessError(f"it ended with exit code {code}; see launcher.log")
