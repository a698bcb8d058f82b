"""What Linux says about processes: who is alive, since when, in which session, and how it ended.

A process is identified by pid, start time (field 22 of /proc/PID/stat, in clock ticks since boot) and the
boot id: a pid alone is used again. Imports the standard library only, because the launcher starts with it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

_PIDFD_GET_INFO = 0xC040FF0B
_PR_SET_CHILD_SUBREAPER = 36
_PIDFD_INFO_EXIT = 8
_PIDFD_INFO_SIZE = 64
_PIDFD_EXIT_OFFSET = 60


def boot_id() -> str:
    """Return the id of this boot of the machine (of the namespace's clock, where there is no boot id)."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return "unknown"


def stat_fields(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the third one (state) on, or None when there is no process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except ValueError:
        return None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # who cannot look has not seen that there is none
        return None


def start_time(pid: int) -> int | None:
    """Return when the process began, in ticks since boot, or None when there is no process."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields else None


def now() -> int:
    """Return what the start time of a process is that begins now."""
    return ticks(time.clock_gettime(time.CLOCK_BOOTTIME))


def ticks(seconds: float) -> int:
    """Return seconds in the unit of start times."""
    return int(seconds * os.sysconf("SC_CLK_TCK"))


def name(pid: int) -> str:
    """Return the name of a process, the first 15 bytes of its program's or script's; a zombie has it still."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""


def is_alive(pid: int, start: int) -> bool:
    """Whether the process with this pid and start time exists and is no zombie."""
    fields = stat_fields(pid)
    return fields is not None and int(fields[19]) == start and fields[0] not in "ZX"


def pids() -> Iterator[int]:
    """Yield the pids that exist."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name)


def pids_in_session(session: int) -> list[int]:
    """Return the pids whose session is that of the leader `session`, zombies left out."""
    found = []
    for pid in pids():
        fields = stat_fields(pid)
        if fields and int(fields[3]) == session and fields[0] not in "ZX":
            found.append(pid)
    return found


def threads_of(user: int) -> int:
    """Return how many threads the processes of a user have."""
    count = 0
    for pid in pids():
        try:
            if os.stat(f"/proc/{pid}").st_uid == user:
                count += int((stat_fields(pid) or ["0"] * 18)[17])
        except OSError:
            continue
    return count


class Child(NamedTuple):
    """A child of some process: whether it has ended and is not waited for yet, which session it is in."""

    start: int
    is_zombie: bool
    session: int


def children(parent: int) -> dict[int, Child]:
    """Return the children of a process by pid."""
    found = {}
    for pid in pids():
        fields = stat_fields(pid)
        if fields and int(fields[1]) == parent:
            found[pid] = Child(int(fields[19]), fields[0] == "Z", int(fields[3]))
    return found


def command_line(pid: int) -> bytes:
    """Return the arguments of a process, each with a zero byte behind it; a zombie has none."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def find_by_argument(path: str) -> int | None:
    """Return the pid of the session leader that has `path` among its arguments: a run whose record is missing."""
    wanted = os.fsencode(path)
    for pid in pids():
        arguments = command_line(pid).split(b"\0")
        fields = stat_fields(pid) if wanted in arguments else None
        if fields and int(fields[3]) == pid:
            return pid
    return None


def family(leader: int, mark: str) -> set[int]:
    """Return the pids that a run has begun, zombies left out: what is in its session, what descends from there.

    Also who has `mark` (`NAME=value`) in the environment that it was started with, wherever it went since.
    """
    parents: dict[int, int] = {}
    found = set()
    wanted = b"\0" + os.fsencode(mark) + b"\0"
    for pid in pids():
        fields = stat_fields(pid)
        if not fields or fields[0] in "ZX":
            continue
        parents[pid] = int(fields[1])
        if int(fields[3]) == leader or pid == leader or wanted in b"\0" + _environment(pid):
            found.add(pid)
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= more
    return found


def marked(name: str) -> dict[str, list[int]]:
    """Return the pids of the living that have this variable in the environment they were started with, by its value."""
    found: dict[str, list[int]] = {}
    wanted = b"\0" + os.fsencode(name) + b"="
    for pid in sorted(pids()):
        _, here, rest = (b"\0" + _environment(pid)).partition(wanted)
        if here:
            found.setdefault(os.fsdecode(rest.partition(b"\0")[0]), []).append(pid)
    return found


def _environment(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""


def kill_session(session: int, number: int = signal.SIGKILL) -> None:
    """Signal the process group of the leader, then whatever else is in its session."""
    try:
        os.killpg(session, number)
    except (ProcessLookupError, PermissionError):
        pass
    for pid in pids_in_session(session):
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def adopt_orphans() -> bool:
    """Become the parent of whatever our descendants leave behind; whether the kernel can."""
    import ctypes

    try:
        return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def status_of_stranger(pid: int, start: int, pidfd: int) -> int | None:
    """Return the wait status of an ended process that is not our child, or None while it is not known.

    A zombie shows it in /proc/PID/stat; once reaped, kernels from 6.15 on tell it through a pidfd that was
    opened before.
    """
    fields = stat_fields(pid)
    if fields and int(fields[19]) == start:
        return int(fields[49]) if fields[0] == "Z" and len(fields) > 49 else None
    buffer = bytearray(_PIDFD_INFO_SIZE)
    struct.pack_into("Q", buffer, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    if not struct.unpack_from("Q", buffer)[0] & _PIDFD_INFO_EXIT:
        return None
    return int(struct.unpack_from("i", buffer, _PIDFD_EXIT_OFFSET)[0])
