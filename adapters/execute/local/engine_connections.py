"""The engines that are connected to a launcher: their questions, a line each, and the answers.

In: bytes of a Unix socket in the launcher's directory. Out: lines that are whole; messages go out as fast as an engine takes
them, and a slow one holds up no other. The meaning of lines is `launcher`'s. Imports the standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import time
from collections.abc import Iterator
from typing import Any

SOCKET = "launcher.sock"
RECEIVED_BYTES_MAX = 1 << 18
ACCEPT_SECONDS = 0.05


class Engine:
    """One of them: what it sent and is not yet handled, what it is yet to be sent."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.incoming = b""
        self.lines: list[bytes] = []
        self.outgoing = bytearray()
        self.log = ""
        self.epoch = 0
        self.pid = 0
        self.start = 0
        self.home: list[Any] = ["", 0, 0]
        self.unfit = ""
        self.leaves = False
        self.environments: dict[str, tuple[dict[str, str], int]] = {}

    def tell(self, message: dict[str, Any]) -> None:
        """Queue a message; it goes out at the end of the turn."""
        self.outgoing += json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Engines:
    """All of them, and the socket that they come in by, in a selector whose keys have them as data."""

    def __init__(self, directory: str, selector: selectors.BaseSelector) -> None:
        self._path = os.path.join(directory, SOCKET)
        self._selector = selector
        self._connected: set[Engine] = set()

    def __iter__(self) -> Iterator[Engine]:
        return iter(tuple(self._connected))

    def __bool__(self) -> bool:
        return bool(self._connected)

    def listen(self) -> None:
        """Wait for engines from now on; the selector tells the coming of one with these as data."""
        directory, name = os.path.split(self._path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        os.chdir(directory)  # a socket's path may have 107 bytes at most; a relative one always fits
        try:
            os.unlink(name)
        except FileNotFoundError:
            pass
        listener.bind(name)
        os.chdir("/")
        listener.listen(16)
        listener.setblocking(False)
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ, self)

    def leave(self) -> None:
        """Let no engine in any more."""
        self._selector.unregister(self._listener)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):  # removed with the directory
            os.unlink(self._path)

    def accept(self) -> None:
        """Let one in; where there is no descriptor for it, it waits."""
        try:
            sock, _ = self._listener.accept()
        except OSError:
            time.sleep(ACCEPT_SECONDS)
            return
        sock.setblocking(False)
        engine = Engine(sock)
        self._connected.add(engine)
        self._selector.register(sock, selectors.EVENT_READ, engine)

    def receive(self, engine: Engine) -> bool:
        """Take what there is; whether the engine is there: one that has closed its end is gone."""
        try:
            data = engine.socket.recv(RECEIVED_BYTES_MAX)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if not data:
            self.hang_up(engine)
            return False
        *lines, engine.incoming = (engine.incoming + data).split(b"\n")
        engine.lines += lines
        return True

    def send(self, engine: Engine) -> None:
        """Send to one as much as it takes."""
        if engine not in self._connected:
            return
        try:
            while engine.outgoing:
                del engine.outgoing[: engine.socket.send(engine.outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            self.hang_up(engine)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if engine.outgoing else 0)
        if self._selector.get_key(engine.socket).events != events:
            self._selector.modify(engine.socket, events, engine)

    def hang_up(self, engine: Engine) -> None:
        """Have nothing more to do with one."""
        if engine in self._connected:
            self._connected.discard(engine)
            self._selector.unregister(engine.socket)
            engine.socket.close()

    def tell(self, log: str, message: dict[str, Any]) -> None:
        """Tell the engine of a log, if it is there."""
        for engine in self._connected:
            if engine.log == log:
                engine.tell(message)
