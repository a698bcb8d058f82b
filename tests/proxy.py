"""An HTTP proxy between a client and a server on loopback, which fails by a script.

In: the server's port, and `script(method, path, number)`, which says what becomes of a request: None passes it on, `Answer` answers it
in the server's place, `LOSE` passes it on and closes without the answer, `Cut` sends the answer's first bytes only, `Wait` delays it.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LOSE = "lose"


@dataclass(frozen=True)
class Answer:
    """Status and S3's code for it; the server does not hear of the request."""

    status: int
    code: str = ""


@dataclass(frozen=True)
class Cut:
    """The answer ends after so many bytes of its body."""

    after: int


@dataclass(frozen=True)
class Wait:
    """The answer comes late; `seconds`, or until the proxy ends."""

    seconds: float


Script = Callable[[str, str, int], Any]


@dataclass
class Proxy:
    """A proxy that runs; the script may be changed at any time."""

    port: int
    script: Script = lambda method, path, number: None
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of each request."""
    struck: int = 0
    """How many requests something was done to."""
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy
    upstream: int

    def log_message(self, *arguments: Any) -> None:
        """Nothing is printed."""

    def _serve(self) -> None:
        proxy, body = self.proxy, self._body()
        proxy.asked.append((self.command, self.path))
        action = proxy.script(self.command, self.path, len(proxy.asked))
        proxy.struck += action is not None
        if isinstance(action, Answer):
            text = f"<Error><Code>{action.code}</Code></Error>".encode() if self.command != "HEAD" else b""
            self._send(action.status, [("Content-Type", "application/xml")], text, len(text))
            return
        if isinstance(action, Wait):
            proxy.over.wait(action.seconds)
        server = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=120)
        try:
            server.request(self.command, self.path, body, dict(self.headers.items()))
            answer = server.getresponse()
            data = answer.read()
        finally:
            server.close()
        if action == LOSE:
            self._close()
            return
        headers = [one for one in answer.getheaders() if one[0].lower() not in _OURS]
        size = int(answer.headers.get("Content-Length") or len(data)) if self.command == "HEAD" else len(data)
        if isinstance(action, Cut):
            data = data[: action.after]
        self._send(answer.status, headers, data, size)
        if isinstance(action, Cut):
            self._close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        del self.headers["Transfer-Encoding"]
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        del self.headers["Content-Length"]
        body = b"".join(parts)
        self.headers["Content-Length"] = str(len(body))
        return body

    def _send(self, status: int, headers: list[tuple[str, str]], data: bytes, size: int) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(data)

    def _close(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


_OURS = {"content-length", "transfer-encoding", "connection", "keep-alive"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        """Without a look for the host's name, which takes seconds where no name server answers."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is none of the proxy's business."""


@contextlib.contextmanager
def between(upstream: int, script: Script | None = None) -> Iterator[Proxy]:
    """Run a proxy before a server's port."""
    handler = type("Handler", (_Handler,), {"upstream": upstream})
    server = _Server(("127.0.0.1", 0), handler)
    proxy = Proxy(server.server_address[1])
    if script is not None:
        proxy.script = script
    handler.proxy = proxy  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def sometimes(share: float, *actions: Any, only: Callable[[str, str], bool] | None = None) -> Script:
    """Strike this share of the requests, evenly and always the same ones, with the actions in turn."""
    count = 0
    lock = threading.Lock()

    def script(method: str, path: str, number: int) -> Any:
        nonlocal count
        if only is not None and not only(method, path):
            return None
        with lock:
            count += 1
            before, after = int((count - 1) * share), int(count * share)
        return actions[after % len(actions)] if after > before else None

    return script
