"""A proxy between a client and a server of MongoDB's protocol, which loses answers by a script, cuts, and holds back.

In: the server's port, and `lose(command, number)`, which says whether the answer to a command is lost: the server has carried it out, and
the connection ends without a word. Out: the port where clients connect. `shut` lets nobody through until it is unset.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import bson

MESSAGE = 2013
KEPT_ALIVE = frozenset(("hello", "ismaster", "isMaster", "ping", "endSessions", "buildInfo"))


@dataclass
class TcpProxy:
    """A proxy that runs."""

    upstream: int
    lose: Callable[[str, int], bool] = lambda command, number: False
    port: int = 0
    lost: int = 0
    commands: int = 0
    shut: threading.Event = field(default_factory=threading.Event)
    _open: set[socket.socket] = field(default_factory=set)

    def cut(self) -> None:
        """End every connection."""
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def serve(self, client: socket.socket) -> None:
        """Pass messages on, in turn, until either side ends or an answer is lost."""
        if self.shut.is_set():
            client.close()
            return
        server = socket.create_connection(("127.0.0.1", self.upstream))
        both = {client, server}
        self._open |= both
        try:
            with contextlib.suppress(OSError):
                while request := _message(client):
                    server.sendall(request)
                    command = _command(request)
                    answer = _message(server)
                    if command not in KEPT_ALIVE:
                        self.commands += 1
                        if self.lose(command, self.commands):
                            self.lost += 1
                            return
                    if not answer:
                        return
                    client.sendall(answer)
        finally:
            self._open -= both
            client.close()
            server.close()


def _message(source: socket.socket) -> bytes:
    """Return the next message whole, nothing at the end."""
    head = _exactly(source, 4)
    return head + _exactly(source, struct.unpack("<i", head)[0] - 4) if len(head) == 4 else b""


def _exactly(source: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        more = source.recv(min(65_536, size - len(found)))
        if not more:
            return b""
        found += more
    return bytes(found)


def _command(message: bytes) -> str:
    """Return the name of a message's command."""
    if struct.unpack("<i", message[12:16])[0] != MESSAGE:
        return "hello"
    size = struct.unpack("<i", message[21:25])[0]
    return str(next(iter(bson.decode(message[21 : 21 + size]))))


@contextlib.contextmanager
def between(upstream: int) -> Iterator[TcpProxy]:
    """Run a proxy before a server's port."""
    proxy = TcpProxy(upstream)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy.port = listener.getsockname()[1]

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=proxy.serve, args=(client,), daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield proxy
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            proxy.cut()
