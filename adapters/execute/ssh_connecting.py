"""Connections to SSH targets: what asyncssh is told, and what its refusals mean.

In: a host as a person names it (`user@host:port`, an entry of ~/.ssh/config, or a function that connects). Out: a
connection, or an error in our words. Host keys are verified; what only a person can mend (an unknown host, a key
that is not accepted) is a `CallerError` with the remedy, what may go away by itself a `TemporaryError`. Passwords,
keys, agents and jump hosts are asyncssh's: `options` go to `asyncssh.connect` as they are.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from datatask.schema.errors import CallerError, DatataskError, TemporaryError
from datatask.schema.resources import Resources

try:
    import asyncssh
except ModuleNotFoundError as missing:  # pragma: no cover - the tests have it
    raise CallerError(
        "SSH needs asyncssh, which is not installed", remedy="pip install 'datatask-engine[ssh]'"
    ) from missing

CONNECT_SECONDS = 10.0
_ADDRESS = re.compile(
    r"(?:ssh://)?(?:([^@\s]+)@)?(\[[0-9A-Fa-f:.%]+\]|[^@:\s/\[\]-][^@:\s/\[\]]*)(?::(\d+))?/?"
)
_LABEL = re.compile(r"[^A-Za-z0-9._-]")

Connect = Callable[[], asyncssh.SSHClientConnection | Awaitable[asyncssh.SSHClientConnection]]


@dataclass(frozen=True)
class SSHHost:
    """One machine: `[user@]host[:port]` (or a name of ~/.ssh/config), or a function that returns a connection.

    `quota` is how much may run there at once, by the tasks' `job_resources`; None is no limit. `name` is what the log
    calls it, and its folder on the target; keep it while runs are open. `options` go to `asyncssh.connect`:
    `password`, `client_keys`, `known_hosts`, `tunnel` (a jump host), `config`, …
    """

    address: str | Connect
    quota: Resources | None = None
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # may hold a password

    def __post_init__(self) -> None:
        """Refuse what is no address."""
        if isinstance(self.address, str) and _ADDRESS.fullmatch(self.address) is None:
            raise CallerError(f"{self.address!r} is no SSH address", remedy="write [user@]host[:port]")
        if not isinstance(self.address, str) and not callable(self.address):
            raise CallerError(
                f"ssh is a {type(self.address).__name__}",
                remedy="pass '[user@]host[:port]', an SSHHost, or a function that returns an asyncssh connection",
            )

    @property
    def label(self) -> str:
        """What the host is called in the log and on its own disk."""
        if self.name:
            return _LABEL.sub("_", self.name)
        return _LABEL.sub("_", self._parts()[1].strip("[]")) if isinstance(self.address, str) else "ssh"

    def _parts(self) -> tuple[str | None, str, int | None]:
        assert isinstance(self.address, str)
        match = _ADDRESS.fullmatch(self.address)
        assert match is not None
        user, host, port = match.groups()
        return user, host, int(port) if port else None

    @property
    def is_ours(self) -> bool:
        """Whether we make the connection, and so may end it."""
        return isinstance(self.address, str)

    async def connect(self) -> asyncssh.SSHClientConnection:
        """Return a connection; `CallerError` when only a person can help, `TemporaryError` when time may."""
        if not isinstance(self.address, str):
            return await self._given(self.address)
        user, host, port = self._parts()
        options: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, "login_timeout": CONNECT_SECONDS}
        if user:
            options["username"] = user
        if port:
            options["port"] = port
        options |= self.options
        try:
            return await asyncssh.connect(host.strip("[]"), **options)
        except asyncssh.HostKeyNotVerifiable as error:
            raise await self._unverified(error, options) from error
        except (OSError, asyncssh.Error, ValueError) as error:
            raise mapped(error, self.label) from error

    async def _given(self, connect: Connect) -> asyncssh.SSHClientConnection:
        try:
            given = connect()
            connection = await given if inspect.isawaitable(given) else given
        except (OSError, asyncssh.Error) as error:
            raise mapped(error, self.label) from error
        if connection.is_closed():
            raise TemporaryError(
                "the connection that the pipeline's own function gives is closed",
                where=self.label,
                remedy="pass an address or an SSHHost, or a function that connects anew",
            )
        return connection

    async def _unverified(self, error: Exception, options: Mapping[str, Any]) -> CallerError:
        """Say which key the host shows, and how to trust it."""
        _, host, port = self._parts()
        host, port = host.strip("[]"), options.get("port", port)
        shown, at = "its key", "" if port in (None, 22) else f"-p {port} "
        try:
            asking: dict[str, Any] = {"port": port} if port else {}
            key = await asyncio.wait_for(asyncssh.get_server_host_key(host, **asking), CONNECT_SECONDS)
            if key is not None:
                shown = f"its key {key.get_algorithm()} {key.get_fingerprint()}"
        except (OSError, asyncssh.Error, TimeoutError):
            pass
        if _knows(host, port, options):
            return CallerError(
                f"{shown} is not the one that is known: somebody may listen in, or the host was set up anew",
                where=self.label,
                remedy=f"ask its owner; if the new key is right: ssh-keygen -R {_known_as(host, port)}, then "
                f"ssh-keyscan {at}{host} >> ~/.ssh/known_hosts",
            )
        return CallerError(
            f"the host is not known ({error.reason if isinstance(error, asyncssh.DisconnectError) else error})",
            where=self.label,
            remedy=f"compare {shown} with what its owner says, then trust it: "
            f"ssh-keyscan {at}{host} >> ~/.ssh/known_hosts",
        )


def _known_as(host: str, port: int | None) -> str:
    return host if port in (None, 22) else f"'[{host}]:{port}'"


def _knows(host: str, port: int | None, options: Mapping[str, Any]) -> bool:
    """Whether another key of the host is known."""
    files = options.get("known_hosts", os.path.expanduser("~/.ssh/known_hosts"))
    try:
        known = asyncssh.read_known_hosts(files) if isinstance(files, str) else None
        return known is not None and bool(known.match(host, "", port)[0])
    except (OSError, ValueError):
        return False


def mapped(error: BaseException, where: str) -> DatataskError:
    """Return a foreign error in our words."""
    if isinstance(error, DatataskError):
        return error
    if isinstance(error, asyncssh.PermissionDenied):
        return CallerError(
            f"the server lets nobody in with these keys and passwords: {error.reason}",
            where=where,
            remedy="try `ssh` with the same address; pass client_keys or password in SSHHost's options",
        )
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return CallerError(str(error.reason), where=where, remedy="add the host's key to ~/.ssh/known_hosts")
    if isinstance(error, asyncssh.KeyImportError | asyncssh.KeyEncryptionError | asyncssh.ConfigParseError):
        return CallerError(str(error), where=where, remedy="see the options and ~/.ssh/config")
    if isinstance(error, asyncssh.ChannelOpenError):
        return TemporaryError(
            f"the server opens no more sessions: {error.reason}",
            where=where,
            remedy="three are enough (MaxSessions)",
        )
    if isinstance(error, TimeoutError):
        return TemporaryError("it does not answer", where=where)
    if isinstance(error, asyncssh.Error):
        return TemporaryError(error.reason or type(error).__name__, where=where)
    if isinstance(error, OSError):
        return TemporaryError(error.strerror or str(error) or type(error).__name__, where=where)
    return CallerError(f"{type(error).__name__}: {error}", where=where, remedy="see SSHHost's options")
