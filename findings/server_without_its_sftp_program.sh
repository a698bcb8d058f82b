#!/bin/sh
# asyncssh: an SFTP that the server promises and does not have is told as a lost connection, and the connection is there.
#
# Versions: asyncssh 2.24.1 with the sshd of OpenSSH (9.2 and later tried). Needs an installed sshd; it listens on a free port of loopback.
# What one would guess: `start_sftp_client` raises ChannelOpenError where a server cannot serve SFTP, and SFTPConnectionLost where the
# connection is lost; so the first is for a person and the second is worth another connection.
# What happens: ChannelOpenError comes where sshd_config has no Subsystem line. Where the line names a program that is not there, sshd
# accepts the request and starts a shell that ends at once: asyncssh raises SFTPConnectionLost, "0 bytes read on a total of 4 expected
# bytes". The connection goes on, and a program that connects anew after it does so for ever.
# What datatask does: it asks the connection; where that is there, one line names the Subsystem line. tests/integration/test_ssh_ways_in.py holds it.
# Output seen:
#   without the line: ChannelOpenError: Session request failed
#   without the program: SFTPConnectionLost: 0 bytes read on a total of 4 expected bytes
#   the same connection then runs a command: there
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
sshd=$(PATH="$PATH:/usr/sbin:/sbin" command -v sshd)
ssh-keygen -q -t ed25519 -N '' -f "$folder/key"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check asyncssh==2.24.1
[ -d /run/sshd ] || mkdir -p /run/sshd
cat >"$folder/tried.py" <<'PYTHON'
import asyncio
import contextlib
import pathlib
import socket
import subprocess
import sys

import asyncssh

folder, sshd = pathlib.Path(sys.argv[1]), sys.argv[2]


async def error_with(line):
    """Return what `start_sftp_client` raises at a server with this line, and what a command then says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key = folder / "key"
    config = f"Port {port}\nListenAddress 127.0.0.1\nHostKey {key}\nAuthorizedKeysFile {key}.pub\nPidFile none\n"
    (folder / "config").write_text(f"{config}StrictModes no\nUsePAM no\n{line}\n")
    server = subprocess.Popen([sshd, "-D", "-f", folder / "config"])
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            await asyncio.sleep(0.1)
        options = {"client_keys": [str(key)], "known_hosts": None, "config": None, "agent_path": None}
        async with asyncssh.connect("127.0.0.1", port, **options) as connection:
            try:
                await connection.start_sftp_client()
            except Exception as error:
                done = await connection.run("echo there")
                return error, done.stdout.strip()
    finally:
        server.terminate()
        server.wait()


async def main():
    assert asyncssh.__version__ == "2.24.1"
    without_line, _ = await error_with("")
    without_program, said = await error_with("Subsystem sftp /no/such/program")
    print(f"without the line: {type(without_line).__name__}: {without_line}")
    print(f"without the program: {type(without_program).__name__}: {without_program}")
    print(f"the same connection then runs a command: {said}")
    assert isinstance(without_line, asyncssh.ChannelOpenError)
    assert isinstance(without_program, asyncssh.SFTPConnectionLost)
    assert said == "there"


asyncio.run(main())
PYTHON
"$folder/venv/bin/python" "$folder/tried.py" "$folder" "$sshd"
