"""How a run's program is executed: in its folder, in a session of its own, confined where that is asked.

In: a folder with `exe` and `cwd`, an environment, which streams are kept. Out: a pid, or an `OSError` and its words.
Imports the standard library only.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import Any

UNCONFINED = 125
IN_GROUPS = 'for group; do echo 0 2>../unconfined >"$group/cgroup.procs" || exit 125; done; exec "$0"'
UNDER_ULIMIT = 'ulimit -v "$1" 2>../unconfined || exit 125; exec "$0"'
"""What a run's first process does before it becomes the program, `$0`, in the run's `cwd`."""


def _first_line(exe: str) -> bytes:
    with open(exe, "rb") as file:
        return file.readline(256)


def check_program(exe: str) -> None:
    """Raise what executing a script would, for one that something else executes first: its interpreter is missing."""
    first = _first_line(exe)
    if first.startswith(b"#!"):
        interpreter = (first[2:].split() or [b""])[0]
        if not os.access(interpreter, os.X_OK):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), exe)


def spawn(
    folder: str,
    env: dict[str, str],
    umask: int,
    stdin: bool,
    stdout: bool,
    stderr: str,
    before: list[str],
) -> int:
    """Start the run's program in a session of its own and return its pid; OSError when it cannot be executed.

    `before` is the command that executes it, where it is not executed at once.

    `posix_spawn` takes half the time of `subprocess`. It gives the child our working directory and umask, so
    those are set first; nothing else here depends on them.
    """
    exe = os.path.join(folder, "exe")
    out = os.path.join(folder, "stdout") if stdout else os.devnull
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.path.join(folder, "stdin") if stdin else os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, out, flags, 0o666),
    ]
    if stderr == "stdout":
        actions.append((os.POSIX_SPAWN_DUP2, 1, 2))
    else:
        err = os.path.join(folder, stderr) if stderr else os.devnull
        actions.append((os.POSIX_SPAWN_OPEN, 2, err, flags, 0o666))
    signals = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD]
    how: dict[str, Any] = {"file_actions": actions, "setsid": True, "setsigmask": [], "setsigdef": signals}
    ours = os.umask(umask)
    try:
        os.chdir(os.path.join(folder, "cwd"))
        try:
            if before:
                shell, option, script, *arguments = before
                return os.posix_spawn(shell, [shell, option, script, exe, *arguments], env, **how)
            return os.posix_spawn(exe, [exe], env, **how)
        except OSError as error:
            if error.errno != errno.ENOEXEC or _first_line(exe).startswith(b"#!"):
                raise  # an interpreter that is no program of this machine is not to be replaced by a shell
            return os.posix_spawn("/bin/sh", ["/bin/sh", exe], env, **how)
    finally:
        os.chdir("/")
        os.umask(ours)


def explained(error: OSError, folder: str) -> str:
    """Return the refusal in words; a missing interpreter looks to the kernel like a missing script."""
    exe = os.path.join(folder, "exe")
    try:
        first = _first_line(exe)
    except OSError:
        return f"{error.strerror}: {error.filename or exe}"
    if first.startswith(b"#!") and error.errno in (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR):
        interpreter = first[2:].decode(errors="replace").split() or ["(none)"]
        return f"{error.strerror}: the interpreter {interpreter[0]} of the script's first line cannot be run"
    return f"{error.strerror}: {error.filename or exe}"
