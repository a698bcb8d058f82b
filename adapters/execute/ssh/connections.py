"""Connections to SSH targets: what asyncssh is told, and what its refusals mean.

In: a host as a person names it (`user@host:port`, an entry of ~/.ssh/config, or a function that connects). Out: a
connection, or an error in our words. Host keys are verified; what only a person can mend (an unknown host, a key
that is not accepted) is a `CallerError` with the remedy, what may go away by itself a `TemporaryError`. Passwords,
keys, agents and jump hosts are asyncssh's: `options` go to `asyncssh.connect` as they are.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import inspect
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from datatask.schema.errors import (
    CallerError,
    DatataskError,
    InvalidValueError,
    NotInstalledError,
    TemporaryError,
)
from datatask.schema.resources import Resources

try:
    import asyncssh
except ModuleNotFoundError as missing:  # pragma: no cover - the tests have it
    raise NotInstalledError(
        "SSH needs asyncssh, which is not installed", remedy="pip install 'datatask-engine[ssh]'"
    ) from missing

CONNECT_SECONDS = 10.0
CLOSED = "SSH connection closed"
"""Why asyncssh opens no channel over a connection that has broken meanwhile."""
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
            raise InvalidValueError(f"{self.address!r} is no SSH address", remedy="write [user@]host[:port]")
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

    def differs(self, other: SSHHost) -> str:
        """Say in what another description of the same host differs; options by name only, they may hold a password."""
        if self.quota != other.quota:
            return f"the quotas {other.quota or 'no limit'} and {self.quota or 'no limit'}"
        names = {*self.options, *other.options}
        unlike = sorted(name for name in names if self.options.get(name, ...) != other.options.get(name, ...))
        return f"different options: {', '.join(unlike)}" if unlike else "other hosts beside it"

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
        shown = _Shown()
        factory = {"client_factory": lambda: shown} | options
        try:
            return await asyncssh.connect(host.strip("[]"), **factory)
        except asyncssh.HostKeyNotVerifiable as error:
            raise self._unverified(error, shown, options) from error
        except asyncssh.PermissionDenied as error:
            raise await self._denied(error, options) from error
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

    def _resolved(self, options: Mapping[str, Any]) -> asyncssh.SSHClientConnectionOptions | None:
        """Return what the options and ~/.ssh/config come to, for telling; None where they cannot be read."""
        try:
            return asyncssh.SSHClientConnectionOptions(host=self._parts()[1].strip("[]"), **options)
        except (OSError, asyncssh.Error, ValueError, TypeError):
            return None

    async def _denied(self, error: asyncssh.PermissionDenied, options: Mapping[str, Any]) -> CallerError:
        """Say who was turned away, and with which keys."""
        resolved = self._resolved(options)
        user = resolved.username if resolved is not None else "this user"
        return CallerError(
            f"the server lets nobody in as {user} with {await _tried(resolved)}: {error.reason}",
            where=self.label,
            remedy="try `ssh` with the same address; pass client_keys or password in SSHHost's options; a key that has "
            "a passphrase needs passphrase= or an agent (ssh-add)",
        )

    def _unverified(self, error: Exception, shown: _Shown, options: Mapping[str, Any]) -> CallerError:
        """Say which key the host shows, and how to trust it."""
        reason = error.reason if isinstance(error, asyncssh.DisconnectError) else str(error)
        if shown.key is None:  # it was never asked about the host itself
            return InvalidValueError(
                f"a host on the way there is not known, or its key is not the one that is known ({reason})",
                where=self.label,
                remedy="try `ssh` with the same address: it names the jump host and its key; compare and trust it",
            )
        host, port, key = shown.host, shown.port, shown.key
        text = f"its key {key.get_algorithm()} {key.get_fingerprint()}"
        resolved = self._resolved(options)
        behind = resolved is not None and (resolved.tunnel or resolved.proxy_command)
        at = "" if port in (None, 22) else f"-p {port} "
        scan = f"mkdir -p -m 700 ~/.ssh && ssh-keyscan {at}{host} >> ~/.ssh/known_hosts"
        trust = (
            f"run this where {host} can be reached, and add what it prints here: {scan}" if behind else scan
        )
        if _knows(host, port, resolved):
            return CallerError(
                f"{text} is not the one that is known: somebody may listen in, or the host was set up anew",
                where=self.label,
                remedy=f"ask its owner; if the new key is right: ssh-keygen -R {_known_as(host, port)}, then {trust}",
            )
        return InvalidValueError(
            f"the host is not known ({reason})",
            where=self.label,
            remedy=f"compare {text} with what its owner says, then trust it: {trust}",
        )


class _Shown(asyncssh.SSHClient):
    """Remembers the key of a host that is not trusted, as it came over this very connection."""

    def __init__(self) -> None:
        self.host, self.port = "", 0
        self.key: asyncssh.SSHKey | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Trust nobody."""
        self.host, self.port, self.key = host, port, key
        return False


async def _tried(resolved: asyncssh.SSHClientConnectionOptions | None) -> str:
    """Name the keys that were offered, by fingerprint."""
    keys: list[str] = []
    if resolved is not None:
        keys = [_named(pair.public_data, pair.get_comment()) for pair in resolved.client_keys or ()]
        if resolved.agent_path:
            with contextlib.suppress(OSError, asyncssh.Error, ValueError):
                async with asyncssh.connect_agent(resolved.agent_path) as agent:
                    keys += [
                        f"{_named(pair.public_data, pair.get_comment())} of the agent"
                        for pair in await agent.get_keys()
                    ]
    text = f"the key {', '.join(keys)}" if keys else "no key"
    return f"{text} and the password" if resolved is not None and resolved.password else text


def _named(public_data: bytes, comment: str | None) -> str:
    digest = base64.b64encode(hashlib.sha256(public_data).digest()).decode().rstrip("=")
    return f"SHA256:{digest}" + (f" ({comment})" if comment else "")


def _known_as(host: str, port: int | None) -> str:
    return host if port in (None, 22) else f"'[{host}]:{port}'"


def _knows(host: str, port: int | None, resolved: asyncssh.SSHClientConnectionOptions | None) -> bool:
    """Whether another key of the host is known."""
    files: Any = () if resolved is None else resolved.known_hosts
    try:
        if not files:
            files = os.path.expanduser("~/.ssh/known_hosts")
        known = asyncssh.read_known_hosts(files) if isinstance(files, str | list) else None
        return known is not None and bool(known.match(host, "", port)[0])
    except (OSError, ValueError, TypeError):
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
    if isinstance(error, asyncssh.KeyImportError | asyncssh.KeyEncryptionError):
        return CallerError(
            f"a private key cannot be read: {error}",
            where=where,
            remedy="pass its passphrase= in SSHHost's options, or give the key to an agent (ssh-add)",
        )
    if isinstance(error, asyncssh.ConfigParseError):
        return CallerError(str(error), where=where, remedy="see the options and ~/.ssh/config")
    if isinstance(error, asyncssh.ChannelOpenError) and error.reason != CLOSED:
        return TemporaryError(
            f"the server opens no more sessions: {error.reason}",
            where=where,
            remedy="have its sshd_config allow three at least (MaxSessions)",
        )
    if isinstance(error, TimeoutError):
        return TemporaryError("it does not answer", where=where)
    if isinstance(error, asyncssh.Error):
        return TemporaryError(error.reason or type(error).__name__, where=where)
    if isinstance(error, OSError):
        return TemporaryError(error.strerror or str(error) or type(error).__name__, where=where)
    return CallerError(f"{type(error).__name__}: {error}", where=where, remedy="see SSHHost's options")
