"""Sessions over one connection: commands that any login shell hands to /bin/sh, and SFTP.

In: a connection, a script for a POSIX shell. Out: a command line that means the same to every login shell (sh, fish, tcsh,
nushell, …); an SFTP client; or one line that says what the server lacks, with the remedy for that server.
"""

from __future__ import annotations

import asyncio
import contextlib
import re

import asyncssh

from datatask.adapters.execute.ssh.connections import mapped
from datatask.schema.errors import TemporaryError

SETUP_SECONDS = 20.0
SHELL = "/bin/sh"
_UNLIKE = re.compile(r"['\\!]|[^ -~]")
"""What login shells read differently between single quotes."""


def command(script: str) -> str:
    """Return the command line on which any login shell has /bin/sh run a script of one line or more.

    Between single quotes all shells read plain text alike. Other text is spelt in octal, which /bin/sh reads back.
    """
    if _UNLIKE.search(script):
        spelt = "".join(
            chr(byte) if chr(byte).isascii() and chr(byte).isalnum() else f"\\0{byte:03o}"
            for byte in script.encode()
        )
        script = f'eval "$(printf %b "{spelt}")"'
    return f"exec {SHELL} -c '{script}'"


async def open_sftp(connection: asyncssh.SSHClientConnection, label: str) -> asyncssh.SFTPClient:
    """Return an SFTP client; a server that opens a session but has no SFTP behind it is told apart."""
    try:
        async with asyncio.timeout(SETUP_SECONDS):
            return await connection.start_sftp_client()
    except (EOFError, asyncssh.SFTPError, TimeoutError) as error:
        if connection.is_closed():
            raise
        # What the Subsystem line names is not there (sshd says yes and ends), or a shell's start files print something.
        what = "is silent" if isinstance(error, TimeoutError) else f"ends at once ({_reason(error)})"
        raise TemporaryError(
            f"the server's SFTP {what}",
            where=label,
            remedy=f"{_sftp_remedy(connection)}; let start files as ~/.bashrc print nothing",
        ) from error
    except asyncssh.ChannelOpenError as error:
        if error.code == asyncssh.OPEN_REQUEST_SESSION_FAILED and not connection.is_closed():
            raise TemporaryError(
                "the server offers no SFTP", where=label, remedy=_sftp_remedy(connection)
            ) from error
        raise


def _sftp_remedy(connection: asyncssh.SSHClientConnection) -> str:
    if "dropbear" in str(connection.get_extra_info("server_version")):
        return "install sftp-server beside its dropbear (Debian: openssh-sftp-server)"
    return "have its sshd_config say: Subsystem sftp internal-sftp"


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, asyncssh.SFTPError) else "nothing came"


async def check_sessions(connection: asyncssh.SSHClientConnection, label: str) -> None:
    """Open what runs need, all at once: SFTP and two shells; `TemporaryError` where the server does not let us."""
    try:
        async with asyncio.timeout(SETUP_SECONDS):
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(await open_sftp(connection, label))
                for _ in range(2):
                    await stack.enter_async_context(await connection.create_process(command("read line")))
    except (OSError, asyncssh.Error, TimeoutError) as error:
        raise mapped(error, label) from error


async def let_go(connection: asyncssh.SSHClientConnection, *, ours: bool) -> None:
    """End a connection that is ours, without waiting for an answer for long."""
    if not ours:
        return
    connection.close()
    try:
        async with asyncio.timeout(2.0):
            await connection.wait_closed()
    except (TimeoutError, OSError, asyncssh.Error):
        connection.abort()
