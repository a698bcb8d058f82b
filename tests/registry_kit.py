"""Image registries for tests, on loopback: Debian's docker-registry, and one of ours that pages and asks for tokens as others do.

In: settings. Out: a `RealRegistry` (which pushes and looks behind the product's back), or a `Paging` (whose tags and habits a test sets).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import shutil
import socketserver
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from tests.object_stores import UP_SECONDS, free_port
from tests.servers import SharedServer

PROGRAM = "docker-registry"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
USER, PASSWORD = "me", "hunter2"


@dataclass
class RealRegistry:
    """Debian's docker-registry, which runs."""

    port: int
    process: subprocess.Popen[Any]
    login: str = ""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def image(self) -> str:
        """Return the name of an image that nobody else has."""
        return f"t/{uuid4().hex[:20]}"

    def _ask(self, method: str, path: str, body: bytes | None = None, kind: str = "") -> Any:
        url = path if path.startswith("http") else f"http://{self.host}/v2/{path}"
        headers = {"Content-Type": kind or "application/octet-stream", "Accept": MANIFEST}
        if self.login:
            headers["Authorization"] = f"Basic {self.login}"
        with urllib.request.urlopen(
            urllib.request.Request(url, body, headers, method=method), timeout=60
        ) as answer:
            return answer.headers, answer.read()

    def push(self, image: str, *tags: str, content: str = "x") -> str:
        """Push one image under tags; return its digest."""
        config = json.dumps({"content": content}).encode()
        digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
        headers, _ = self._ask("POST", f"{image}/blobs/uploads/", b"")
        self._ask("PUT", f"{headers['Location']}&digest={digest}", config)
        described = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest}
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": []}
        body = json.dumps({**manifest, "config": {**described, "size": len(config)}}).encode()
        for tag in tags:
            self._ask("PUT", f"{image}/manifests/{tag}", body, MANIFEST)
        return f"sha256:{hashlib.sha256(body).hexdigest()}"

    def tags(self, image: str) -> Any:
        """Return what the registry says of the tags: null where it has none left."""
        return json.loads(self._ask("GET", f"{image}/tags/list")[1])["tags"]

    def digest(self, image: str, tag: str) -> str | None:
        try:
            return str(self._ask("HEAD", f"{image}/manifests/{tag}")[0]["Docker-Content-Digest"])
        except urllib.error.HTTPError as error:
            error.close()
            return None


@contextlib.contextmanager
def running(folder: Path, *, deletes: bool = True, login: bool = False) -> Iterator[RealRegistry]:
    """Start docker-registry and end it."""
    for _ in range(3):  # another process may take the port in between
        port = free_port()
        settings: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(folder)}, "delete": {"enabled": deletes}},
            "http": {"addr": f"127.0.0.1:{port}"},
        }
        if login:
            import bcrypt

            (folder / "htpasswd").write_bytes(
                f"{USER}:".encode() + bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)) + b"\n"
            )
            settings["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
        (folder / "config.yml").write_text(json.dumps(settings))
        command = [shutil.which(PROGRAM) or PROGRAM, "serve", str(folder / "config.yml")]
        with (folder / "log").open("ab") as log:
            process = SharedServer(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        if _is_up(process, port):
            break
        process.kill()
        process.wait()
    else:
        raise RuntimeError((folder / "log").read_text()[-2000:])
    try:
        known = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode() if login else ""
        yield RealRegistry(port, process, known)
    finally:
        process.kill()
        process.wait()


def _is_up(process: subprocess.Popen[Any], port: int) -> bool:
    until = time.monotonic() + UP_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=10).close()
        except urllib.error.HTTPError as error:
            error.close()
            return True
        except OSError:
            time.sleep(0.05)
        else:
            return True
    return False


@dataclass
class Paging:
    """A registry that pages by `Link`, as large ones do; its listings may need tokens that serve `uses` requests."""

    tags: list[str] | None
    size: int = 100
    uses: int = 0
    """How many requests a token is good for; 0: no token is asked for."""
    deletes_tags: bool = True
    port: int = 0
    given: list[str] = field(default_factory=list)
    """The scopes of the tokens that were given."""
    left: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    manifests: dict[str, bytes] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: Paging

    def log_message(self, *arguments: Any) -> None:
        """Nothing is printed."""

    def _answer(self, status: int, document: Any = None, **headers: str) -> None:
        body = b"" if document is None else json.dumps(document).encode()
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _serve(self) -> None:
        registry, parts = self.registry, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        registry.asked.append(f"{self.command} {self.path}")
        if parts.path == "/token":
            token = uuid4().hex
            registry.given.append(parse_qs(parts.query)["scope"][0])
            registry.left[token] = registry.uses
            self._answer(200, {"token": token})
            return
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if registry.uses and registry.left.get(token, 0) <= 0:
            scope = (
                "repository:image:pull"
                if self.command in ("GET", "HEAD")
                else "repository:image:pull,push,delete"
            )
            said = f'Bearer realm="http://{registry.host}/token",service="s",scope="{scope}"'
            self._answer(401, {"errors": [{"code": "UNAUTHORIZED"}]}, WWW_Authenticate=said)
            return
        if registry.uses:
            registry.left[token] -= 1
        if parts.path.endswith("/tags/list"):
            self._list(parts.query)
        else:
            self._change(parts.path, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _list(self, query: str) -> None:
        registry = self.registry
        if registry.tags is None:
            self._answer(200, {"name": "image", "tags": None})
            return
        at = int(parse_qs(query).get("token", ["0"])[0])
        page, end = registry.tags[at : at + registry.size], at + registry.size
        more = end < len(registry.tags)
        # a token in the address, more parameters, no quotes: whoever makes the address anew gets it wrong
        link = f'</v2/image/tags/list?token={end}&n={registry.size}&last=%2Fodd>; title="a, b"; rel=next'
        self._answer(200, {"name": "image", "tags": page}, **({"Link": link} if more else {}))

    def _change(self, path: str, body: bytes) -> None:
        registry, reference = self.registry, path.rpartition("/")[2]
        tags = registry.tags = registry.tags or []
        match self.command:
            case "HEAD":
                self._answer(200 if reference in tags or reference in registry.manifests else 404)
            case "POST":
                self._answer(202, None, Location="/v2/image/blobs/uploads/1?_state=x")
            case "PUT" if "/manifests/" in path:
                registry.manifests[f"sha256:{hashlib.sha256(body).hexdigest()}"] = reference.encode()
                self._answer(201)
            case "PUT":
                self._answer(201)
            case "DELETE" if reference in tags and registry.deletes_tags:
                tags.remove(reference)
                self._answer(202)
            case "DELETE" if reference in registry.manifests:
                tag = registry.manifests.pop(reference).decode()
                if tag in tags:
                    tags.remove(tag)
                self._answer(202)
            case _:
                self._answer(405, {"errors": [{"code": "UNSUPPORTED"}]})


@contextlib.contextmanager
def paging(registry: Paging) -> Iterator[Paging]:
    """Run a registry that pages."""
    server = socketserver.ThreadingTCPServer(
        ("127.0.0.1", 0), type("Handler", (_Handler,), {"registry": registry})
    )
    server.daemon_threads = True
    registry.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
