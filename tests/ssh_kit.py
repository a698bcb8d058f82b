"""A real OpenSSH sshd, or dropbear, on loopback, and a proxy in front of it that delays, cuts and swallows.

In: a folder. Out: a server with keys of its own, a home folder of its own, MaxSessions at its default; and hosts that
point there. No agent, no ~/.ssh of whoever runs the tests.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

from datatask import Resources, SSHHost
from tests.servers import SharedServer

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or "/usr/sbin/sshd"
DROPBEAR = (
    shutil.which("dropbear", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or "/usr/sbin/dropbear"
)
START_SECONDS = 100.0

CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
LogLevel ERROR
Subsystem sftp internal-sftp
SetEnv HOME={folder}/home{more}
"""


class Server:
    """An sshd that is running."""

    def __init__(self, folder: Path, port: int, pid: int = 0) -> None:
        self.folder = folder
        self.port = port
        self.home = folder / "home"
        self.pid = pid

    def host(
        self, name: str = "target", *, port: int = 0, quota: Resources | None = None, **options: Any
    ) -> SSHHost:
        """Return the server as a manager's host; through a proxy when `port` is that of one."""
        known: dict[str, Any] = {
            "client_keys": [str(self.folder / "user_key")],
            "known_hosts": str(self.folder / "known_hosts"),
            "agent_path": None,
            "config": None,
        }
        return SSHHost(f"127.0.0.1:{port or self.port}", quota, name, known | options)

    def trust(self, port: int) -> None:
        """Make the host's key known under another port too."""
        key = (self.folder / "host_key.pub").read_text()
        with (self.folder / "known_hosts").open("a") as file:
            file.write(f"[127.0.0.1]:{port} {key}")

    def drop(self) -> None:
        """Kill the connections that are there, not the server: each has a process of its own."""
        for pid in children(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)


def children(pid: int) -> list[int]:
    """Return the pids of a process's children."""
    found = []
    for name in os.listdir("/proc"):  # a glob looks at each entry itself, and one may be gone by then
        with contextlib.suppress(OSError, ValueError):
            if Path(f"/proc/{int(name)}/stat").read_text().rpartition(")")[2].split()[1] == str(pid):
                found.append(int(name))
    return found


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def serving(
    folder: Path,
    more: str = "",
    port: int = 0,
    *,
    first: str = "",
    over: Mapping[str, Path] = {},
    program: str = "sshd",
    shell: str = "",
    start: type[subprocess.Popen[Any]] = subprocess.Popen,
) -> Iterator[Server]:
    """Run an sshd, or a dropbear; a second one in the same folder has the same keys, home, and when given the same port.

    `first` are lines of sshd's configuration before all others, `more` is more for its SetEnv; `shell` is the login shell.
    `over` has files by the path at which the server and what it starts see them. That, another shell and dropbear need root.
    """
    _make_home(folder)
    port = port or free_port()
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd separates privileges; Debian's unit makes it
    if program == "sshd":
        (folder / "sshd_config").write_text(first + CONFIG.format(port=port, folder=folder, more=more))
        command = [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
    else:
        command = [
            DROPBEAR,
            "-F",
            "-E",
            "-m",
            "-p",
            f"127.0.0.1:{port}",
            "-r",
            str(folder / "host_key.dropbear"),
        ]
        command += ["-P", str(folder / "dropbear.pid")]
    if shell or program != "sshd":
        over = {"/etc/passwd": _accounts(folder, shell)} | dict(over)
    if shell and Path("/etc/shells").exists():  # dropbear lets in nobody whose shell is not one of these
        shells = folder / "shells"
        shells.write_text(Path("/etc/shells").read_text() + shell + "\n")
        over = {"/etc/shells": shells} | dict(over)
    if over:
        own = 'while [ "$1" != -- ]; do mount --bind "$2" "$1" && shift 2 || exit; done; shift; exec "$@"'
        words = [word for path, file in over.items() for word in (path, str(file))]
        command = ["unshare", "--mount", "sh", "-c", own, "sh", *words, "--", *command]
    with (folder / "sshd.log").open("ab") as log:
        process = start(command, stderr=log)
    server = Server(folder, port, process.pid)
    server.trust(port)
    try:
        _wait(server, process)
        yield server
    finally:
        server.drop()
        process.terminate()
        process.wait()


def _make_home(folder: Path) -> None:
    """Make keys, and a home folder that they open."""
    (folder / "home/.ssh").mkdir(parents=True, exist_ok=True, mode=0o700)
    if (folder / "host_key").exists():
        return
    for name in ("host_key", "user_key"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(folder / name)]
        subprocess.run(make, check=True)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    shutil.copy(folder / "user_key.pub", folder / "home/.ssh/authorized_keys")
    if shutil.which("dropbearconvert") is not None:
        key = folder / "host_key"
        convert = ["dropbearconvert", "openssh", "dropbear", str(key), f"{key}.dropbear"]
        subprocess.run(convert, check=True, capture_output=True)


def _accounts(folder: Path, shell: str) -> Path:
    """Write /etc/passwd with this user's home in the folder, and with a login shell."""
    me, lines = pwd.getpwuid(os.geteuid()).pw_name, []
    for line in Path("/etc/passwd").read_text().splitlines():
        words = line.split(":")
        if words[0] == me:
            words[5:] = [str(folder / "home"), shell or words[6]]
        lines.append(":".join(words) + "\n")
    (folder / "passwd").write_text("".join(lines))
    return folder / "passwd"


_shared: dict[str, Server] = {}
_programs = ["sshd"]


def server() -> Server:
    """Return a server that all tests of this process share; it ends with the process. One that died is replaced."""
    program = _programs[-1]
    if program not in _shared or not _lives(_shared[program].pid):
        stack, owner = contextlib.ExitStack(), os.getpid()
        atexit.register(
            lambda: stack.close() if os.getpid() == owner else None
        )  # not in a fork of this process
        folder = Path(tempfile.mkdtemp(prefix="datatask-sshd-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        _shared[program] = stack.enter_context(serving(folder, program=program, start=SharedServer))
    return _shared[program]


@contextlib.contextmanager
def shared(program: str) -> Iterator[None]:
    """While the block lasts, the shared server is this program."""
    _programs.append(program)
    try:
        yield
    finally:
        _programs.pop()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", server.port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError((server.folder / "sshd.log").read_text()) from None
            time.sleep(0.02)


class Proxy:
    """Forwards to a port; `delay` seconds each way, `cut` ends all connections, `silent` swallows what passes."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.delay = 0.0
        self.silent = False
        self.refusing = False
        self.cut_after: int | None = None
        self.forwarded = 0
        self.accepted = 0
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """End all connections at once."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection."""
        self.accepted += 1
        if self.refusing:
            writer.transport.abort()
            return
        try:
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, upstream}
        self._writers |= pair
        await asyncio.gather(self._pump(reader, upstream), self._pump(upstream_reader, writer))
        self._writers -= pair

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                if self.delay:
                    await asyncio.sleep(self.delay)
                if self.silent:
                    continue
                self.forwarded += len(data)
                if self.cut_after is not None and self.forwarded > self.cut_after:
                    self.cut_after = None
                    self.cut()
                    return
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def proxied(server: Server) -> AsyncIterator[Proxy]:
    """Run a proxy in front of a server."""
    proxy = Proxy(server.port)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(proxy.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    proxy.port = listener.sockets[0].getsockname()[1]
    server.trust(proxy.port)
    try:
        yield proxy
    finally:
        listener.close()
        proxy.cut()
        if tasks:
            await asyncio.wait(tasks, timeout=5)
        await listener.wait_closed()
