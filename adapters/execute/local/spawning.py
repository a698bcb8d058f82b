"""How a run's program is executed: in its folder, in a session of its own, confined where that is asked.

In: a folder with `exe` and `cwd`, an environment, the descriptors of the streams that are kept, its confinement. Out: a pid, or
an `OSError` and its words. A process inherits limits, priorities, cores, rights and groups from the launcher: its situation,
as plain values. Most of it can be given up and never be taken back (a hard limit, a priority, a group), so no launcher
changes its own; an engine in another situation has another launcher. Imports the standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import resource
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Confinement(NamedTuple):
    """What holds a run: control groups that it enters, bytes of address space for each of its processes; 0 is no limit."""

    groups: Sequence[str] = ()
    address_space: int = 0


def spawn(
    folder: str,
    env: dict[str, str],
    umask: int,
    stdin: bool,
    outputs: Mapping[str, int],
    merged: bool,
    confinement: Confinement | None = None,
) -> int:
    """Start the run's program in a session of its own and return its pid; `OSError` when it cannot be executed.

    `outputs` are descriptors to write stdout and stderr by; with `merged` stderr goes where stdout does. It gets our working
    directory and umask, so those are set first; nothing else here depends on them.
    """
    exe = os.path.join(folder, "exe")
    streams: list[str | int] = [
        os.path.join(folder, "stdin") if stdin else os.devnull,
        outputs.get("stdout", os.devnull),
    ]
    streams.append(streams[1] if merged else outputs.get("stderr", os.devnull))
    start = _start if confinement is None else functools.partial(_start_confined, confinement)
    ours = os.umask(umask)
    try:
        os.chdir(os.path.join(folder, "cwd"))
        try:
            return start([exe], env, streams)
        except OSError as error:
            if error.errno != errno.ENOEXEC or _first_line(exe).startswith(b"#!"):
                raise  # an interpreter that is no program of this machine is not to be replaced by a shell
            return start(["/bin/sh", exe], env, streams)
    finally:
        os.chdir("/")
        os.umask(ours)


def _flags(number: int) -> int:
    return os.O_WRONLY if number else os.O_RDONLY


def _start(command: list[str], env: dict[str, str], streams: list[str | int]) -> int:
    """Start it; `posix_spawn` takes half the time of `subprocess`."""
    actions: list[tuple[Any, ...]] = [
        (os.POSIX_SPAWN_DUP2, stream, number)
        if isinstance(stream, int)
        else (os.POSIX_SPAWN_OPEN, number, stream, _flags(number), 0)
        for number, stream in enumerate(streams)
    ]
    signals = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD]
    return os.posix_spawn(
        command[0], command, env, file_actions=actions, setsid=True, setsigmask=[], setsigdef=signals
    )


def _start_confined(
    confinement: Confinement, command: list[str], env: dict[str, str], streams: list[str | int]
) -> int:
    """Start it in its confinement, which it enters by itself before it executes anything.

    A shell that did so would itself interpret a program that the kernel cannot execute.
    """
    reading, telling = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    files: list[int] = []

    def enter() -> None:
        where = "ulimit"
        try:
            for group in confinement.groups:
                where = os.path.join(group, "cgroup.procs")
                procs = os.open(where, os.O_WRONLY)
                os.write(procs, b"0")
                os.close(procs)
            if confinement.address_space:
                _, most = resource.getrlimit(resource.RLIMIT_AS)
                least = min(confinement.address_space, most if most >= 0 else confinement.address_space)
                resource.setrlimit(resource.RLIMIT_AS, (least, least))
        except OSError as error:
            os.write(telling, f"{error.strerror}: {where}".encode())
            raise

    try:
        for number, stream in enumerate(streams):
            files.append(os.dup(stream) if isinstance(stream, int) else os.open(stream, _flags(number)))
        process = subprocess.Popen(
            command,
            env=env,
            stdin=files[0],
            stdout=files[1],
            stderr=files[-1],
            start_new_session=True,
            close_fds=False,  # none of ours is inherited, and the launcher's lock is held until it is a program
            preexec_fn=enter,
        )
    except subprocess.SubprocessError as error:
        raise OSError(f"its resources cannot be enforced: {_told(reading) or error}") from error
    finally:
        for file in (*files, reading, telling):
            os.close(file)
    process.returncode = 0  # the launcher waits for it: `subprocess` is not to
    return process.pid


def _told(pipe: int) -> str:
    """Return what was written into a pipe so far; a child that lacks the memory for a word says none."""
    try:
        return os.read(pipe, 4096).decode()
    except BlockingIOError:
        return ""


def _first_line(exe: str) -> bytes:
    with open(exe, "rb") as file:
        return file.readline(256)


def explained(error: OSError, folder: str) -> str:
    """Return the refusal in words; a missing interpreter looks to the kernel like a missing script."""
    if error.errno is None:
        return str(error)
    exe = os.path.join(folder, "exe")
    try:
        first = _first_line(exe)
    except OSError:
        return f"{error.strerror}: {error.filename or exe}"
    if first.startswith(b"#!") and error.errno in (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR):
        interpreter = first[2:].decode(errors="replace").split() or ["(none)"]
        return f"{error.strerror}: the interpreter {interpreter[0]} of the script's first line cannot be run"
    return f"{error.strerror}: {error.filename or exe}"


Situation = dict[str, Any]

_LIMITS = {name[7:].lower(): getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
_IOPRIO_GET = {"x86_64": 252, "aarch64": 31, "riscv64": 31}
_IOPRIO_WHO_PROCESS = 1
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "user", "uts")
_RIGHTS = ("CapInh", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
_WORDS_MAX = 200


def present(pid: int = 0) -> Situation:
    """Return that of a process, by default of the calling thread; `OSError` where it may not be seen."""
    found: Situation = {
        f"limit of {name}": list(resource.prlimit(pid, what)) for name, what in _LIMITS.items()
    }
    proc = f"/proc/{pid or 'self'}"
    status = dict(line.split(":", 1) for line in _read(f"{proc}/status").splitlines() if ":" in line)
    found |= {
        "nice": os.getpriority(os.PRIO_PROCESS, pid),
        "priority of input and output": _ioprio(pid),
        "scheduling": [os.sched_getscheduler(pid), os.sched_getparam(pid).sched_priority],
        "cores": sorted(os.sched_getaffinity(pid)),
        "user": _numbers(status, "Uid")[:3],
        "group": _numbers(status, "Gid")[:3],
        "groups": sorted(_numbers(status, "Groups")),
        "oom_score_adj": _read(f"{proc}/oom_score_adj").strip(),
        "control groups": sorted(line.partition(":")[2] for line in _read(f"{proc}/cgroup").splitlines()),
        "root": _of_file(f"{proc}/root"),
    }
    found |= {f"{name} namespace": _link(f"{proc}/ns/{name}") for name in _NAMESPACES}
    return found | {name: status.get(name, "").strip() for name in _RIGHTS}


def _numbers(status: Mapping[str, str], name: str) -> list[int]:
    return [int(number) for number in status.get(name, "").split()]


def differences(wanted: Situation, ours: Situation) -> str:
    """Return what is not as wanted, in words; nothing where all is."""
    names = [name for name in wanted if wanted[name] != ours.get(name)]
    return "; ".join(f"{name}: {_words(ours.get(name))} instead of {_words(wanted[name])}" for name in names)


def _words(value: object) -> str:
    text = str(value)
    return text if len(text) <= _WORDS_MAX else text[: _WORDS_MAX - 1] + "…"


def _ioprio(pid: int = 0) -> int:
    """Return class and level as the kernel packs them; 0 is none, and where we do not know how to ask."""
    number = _IOPRIO_GET.get(platform.machine())
    if number is None:
        return 0
    try:
        return max(0, int(ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PROCESS, pid)))
    except (OSError, AttributeError):
        return 0


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _of_file(path: str) -> list[int]:
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_dev, status.st_ino]
