"""One connection to one target, with its three channels: the agent that obeys, the one that watches, and SFTP.

In: a connection, the ground that was prepared there, whose runs these are. Out: a `Link` that sends commands and hands on
answers, line by line, until it is lost. However many runs there are, these are all the sessions that sshd has to allow.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shlex
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import asyncssh

from datatask.adapters.execute.ssh import sessions
from datatask.adapters.execute.ssh.connections import mapped
from datatask.adapters.execute.ssh.ground import Ground, Identity, check_owner
from datatask.adapters.execute.ssh.sessions import SETUP_SECONDS, let_go, open_sftp
from datatask.schema.errors import TemporaryError

LINE_BYTES_MAX = 1 << 20


class _Lines(asyncssh.SSHClientSession[bytes]):
    """A channel whose output is lines."""

    def __init__(self, take: Callable[[list[str]], None], lost: Callable[[], None]) -> None:
        self._take = take
        self._lost = lost
        self._rest = b""
        self.errors = b""

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if datatype is not None:
            self.errors = (self.errors + data)[-2000:]
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES_MAX:
            self._lost()
        for line in lines:
            self._take(line.decode("utf-8", "replace").split(" "))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()


class Link:
    """An agent at work; `lost` is done when it can no longer be talked to."""

    def __init__(
        self, connection: asyncssh.SSHClientConnection, ground: Ground, take: Callable[[list[str]], None]
    ) -> None:
        self.connection = connection
        self.ground = ground
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sftp: asyncssh.SFTPClient
        self._take = take
        self._hello: dict[str, asyncio.Future[None]] = {}
        self._channels: list[tuple[asyncssh.SSHClientChannel[bytes], _Lines]] = []

    async def open(self, mine: Identity, label: str) -> None:
        """Start the agents and SFTP; the watcher first, so that no end falls between the two."""
        ground = self.ground
        check_owner(ground.owner, mine, label)
        try:
            async with asyncio.timeout(SETUP_SECONDS):
                self.sftp = await open_sftp(self.connection, label)
                token = f"{mine.token}.{secrets.token_hex(4)}"  # the agents of a link that was lost are not wanted
                words = [ground.folder, mine.log, str(mine.epoch), token]
                await self._start("control", [*words, quote("\0".join(mine.home), safe="")])
                await self._start("watch", words)
        except (OSError, asyncssh.Error, TimeoutError) as error:
            message = b" ".join(lines.errors for _, lines in self._channels).decode(errors="replace").strip()
            raise (TemporaryError(message, where=label) if message else mapped(error, label)) from error

    async def _start(self, mode: str, words: list[str]) -> None:
        said = self._hello[f"{mode}s" if mode == "control" else "watching"] = self._future()
        agent = " ".join(map(shlex.quote, [self.ground.agent, mode, *words]))
        lines = _Lines(self._answered, self.lose)
        channel, _ = await self.connection.create_session(
            lambda: lines, sessions.command(f"exec {sessions.SHELL} {agent}"), encoding=None
        )
        self._channels.append((channel, lines))
        await asyncio.wait({said, self.lost}, return_when=asyncio.FIRST_COMPLETED)
        if not said.done():
            raise asyncssh.ConnectionLost("the agent ended at once")

    def _future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    def _answered(self, words: list[str]) -> None:
        hello = self._hello.pop(words[0], None)
        if hello is not None:
            hello.set_result(None)
        else:
            self._take(words)

    def send(self, text: str) -> None:
        """Send commands to the agent."""
        channel = self._channels[0][0]
        with contextlib.suppress(OSError):
            if not channel.is_closing():
                channel.write(text.encode())

    def lose(self) -> None:
        """Count the link as lost."""
        if not self.lost.done():
            self.lost.set_result(None)

    async def close(self, *, ours: bool, politely: bool) -> None:
        """End the channels, and the connection when it is ours; politely: what was sent is still done."""
        self.lose()
        waits: list[Any] = []
        for channel, _ in self._channels:
            if politely and channel is self._channels[0][0]:
                channel.write_eof()
            else:
                channel.close()
            waits.append(channel.wait_closed())
        with contextlib.suppress(TimeoutError, OSError, asyncssh.Error):
            async with asyncio.timeout(5.0 if politely else 0.2):
                await asyncio.gather(*waits)
        await let_go(self.connection, ours=ours)
        if hasattr(self, "sftp"):
            self.sftp.exit()
