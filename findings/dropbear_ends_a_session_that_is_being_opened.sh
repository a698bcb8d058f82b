#!/bin/sh
# dropbear: a session that is being opened is closed when the process of another session ends at that moment.
#
# Versions: dropbear 2022.83 (Debian 12), asyncssh 2.24.1, one connection. Needs root, for a home folder of its own.
# What one would guess: sessions of one connection do not affect each other; "Session request failed" says that the server
# does not offer what was asked for.
# What happens: between the confirmation of a new session and the request for its command, dropbear handles the end of
# another session's process, finds that the new one has no process, and closes it. asyncssh says "Session request
# failed", as it does of a server that has no SFTP. The next attempt succeeds. Where each session is closed before the next one is
# opened, it never happens; OpenSSH does not do it.
# What datatask does: over one connection it opens a session only when no other one is ending.
# Output seen (the second number varies):
#   each closed before the next: 200 of 200 went well
#   one after another at once: 2 went well, then: Session request failed
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
cd "$folder"
for package in dropbear-bin libtomcrypt1 libtommath1; do
    if ! apt-get download -qq "$package" >/dev/null 2>&1; then
        apt-get update -qq && apt-get download -qq "$package" >/dev/null
    fi
done
for package in ./*.deb; do dpkg -x "$package" "$folder/root"; done
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check asyncssh==2.24.1
cat >"$folder/tried.py" <<'PYTHON'
import asyncio
import contextlib
import os
import pathlib
import socket
import subprocess
import sys

import asyncssh

folder = pathlib.Path(sys.argv[1])
root = folder / "root"
libraries = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, (root / "usr/lib").glob("*-linux-gnu*")))}
dropbear, keygen = root / "usr/sbin/dropbear", root / "usr/bin/dropbearkey"


async def refusal(connection, waits):
    """Run `true` up to two hundred times; return how often it went well, and what was said the first time that it did not."""
    for count in range(200):
        try:
            process = await connection.create_process("true")
        except asyncssh.ChannelOpenError as error:
            return count, error.reason
        if waits:
            await process.wait_closed()
    return 200, ""


async def main():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key = asyncssh.generate_private_key("ssh-ed25519")
    home = folder / "home/.ssh"
    home.mkdir(parents=True, mode=0o700)
    (home / "authorized_keys").write_bytes(key.export_public_key())
    accounts = pathlib.Path("/etc/passwd").read_text().splitlines()
    changed = [f"root:x:0:0:root:{home.parent}:/bin/sh" if one.startswith("root:") else one for one in accounts]
    (folder / "passwd").write_text("\n".join(changed) + "\n")
    subprocess.run([keygen, "-t", "ed25519", "-f", folder / "host"], env=libraries, check=True, capture_output=True)
    own = 'mount --bind "$0" /etc/passwd && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", own, folder / "passwd", dropbear]
    command += ["-F", "-E", "-m", "-p", f"127.0.0.1:{port}", "-r", folder / "host", "-P", folder / "pid"]
    server = subprocess.Popen(command, env=libraries, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            await asyncio.sleep(0.1)
        options = {"client_keys": [key], "known_hosts": None, "config": None, "agent_path": None}
        options |= {"username": "root", "server_host_key_algs": ["ssh-ed25519"]}
        async with asyncssh.connect("127.0.0.1", port, **options) as connection:
            version = connection.get_extra_info("server_version")
            waited = await refusal(connection, True)
        async with asyncssh.connect("127.0.0.1", port, **options) as connection:
            at_once = await refusal(connection, False)
    finally:
        server.terminate()
        server.wait()
    assert str(version).endswith("dropbear_2022.83"), version
    assert asyncssh.__version__ == "2.24.1"
    print(f"each closed before the next: {waited[0]} of 200 went well")
    print(f"one after another at once: {at_once[0]} went well, then: {at_once[1]}")
    assert waited == (200, "")
    assert at_once[1] == "Session request failed"


asyncio.run(main())
PYTHON
"$folder/venv/bin/python" "$folder/tried.py" "$folder"
