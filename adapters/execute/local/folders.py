"""Folders of runs on this machine, made, filled and removed many times a second, and the owners of the directory they are in.

In: paths, bytes; an engine's log, epoch and the place of its file. Out: folders, or an `OSError`; whether another copy of the log
starts runs here (copies share uuid and epochs, so their runs would share identities; a renamed log is known by its file's
device and inode), and a directory for it beside this one. ext4 puts new files beside those of their folder and searches past
recently freed inodes at each creation; so folders are spread over the file system (`spread_below`). Blocking.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import shutil
import struct
from collections.abc import Container
from pathlib import Path
from typing import Any

from datatask.adapters.execute.base import proctable
from datatask.schema.errors import CallerError

CHUNK_BYTES = 1 << 20


class LocalPlace:
    """One run's folder here."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def read(self, name: str, offset: int) -> bytes:
        """Return what `stdout` or `stderr` has from an offset on, at most 1 MiB; nothing where it is not there (yet)."""
        try:
            with (self._folder / name).open("rb") as file:
                file.seek(offset)
                return file.read(CHUNK_BYTES)
        except FileNotFoundError:
            return b""

    async def enter(self) -> int:
        """Open a shell in the folder, on the terminal if there is one; return its exit code."""
        try:
            shell = await asyncio.create_subprocess_exec(
                os.environ.get("SHELL", "/bin/sh"), cwd=self._folder / "cwd"
            )
        except OSError as error:
            raise CallerError(f"{error.strerror}: {error.filename}", where=str(self._folder)) from error
        return await shell.wait()

    async def close(self) -> None:
        """Nothing is held."""


_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602
_TOP_OF_TREES = 0x00020000
"""FS_IOC_GETFLAGS, FS_IOC_SETFLAGS and FS_TOPDIR_FL of linux/fs.h; `chattr +T`."""
ROOM_BYTES = 4096


def spread_below(folder: str) -> None:
    """Make the folder, and have what is made in it lie far apart where the file system can; ext4 and ext3 can.

    With some thousand runs a minute, making a run's folder and files takes 0.4 ms instead of 1.5 or more.
    """
    os.makedirs(folder, 0o700, exist_ok=True)
    os.chmod(folder, 0o700)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = bytearray(8)
        fcntl.ioctl(fd, _GET_FLAGS, flags)
        struct.pack_into("I", flags, 0, struct.unpack_from("I", flags)[0] | _TOP_OF_TREES)
        fcntl.ioctl(fd, _SET_FLAGS, flags)
    except OSError:
        pass  # another file system
    finally:
        os.close(fd)


def make(folder: str) -> None:
    """Make a run's folder with its `cwd`, unless they are there; of mode 0700 whatever the umask is."""
    try:
        _private(folder)
    except FileNotFoundError:
        spread_below(os.path.dirname(folder))
        _private(folder)
    _private(folder + "/cwd")


def _private(folder: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
        os.chmod(folder, 0o700)


def write(path: str, mode: int, data: bytes) -> None:
    """Write a file anew, of this mode whatever the umask is."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def has_room(folder: str) -> bool:
    """Whether the disk takes another block. On a full one a script may have written less than it wanted, and not have looked."""
    path = folder + "/room"
    try:
        write(path, 0o600, bytes(ROOM_BYTES))
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
    return True


def remove(folder: str) -> None:
    """Remove a run's folder; most hold only what we put there, which goes faster than walking it."""
    try:
        os.rmdir(folder + "/cwd")
        for name in os.listdir(folder):
            os.unlink(f"{folder}/{name}")
        os.rmdir(folder)
    except OSError:
        shutil.rmtree(folder)


Claim = dict[str, Any]
Home = list[Any]
"""Where a log is: the path, device and inode of its file."""

PLACES_MAX = 1000
OWNER = ".owner"


def places(directory: str) -> list[str]:
    """Return the directories of an application that are there: the one named, and those of copies."""
    parent, name = os.path.split(directory)
    try:
        names = [one for one in os.listdir(parent or ".") if _number(one, name)]
    except FileNotFoundError:
        return []
    return [os.path.join(parent, one) for one in sorted(names, key=lambda one: _number(one, name))]


def place_for(directory: str, log: str, home: Home, avoid: Container[str] = ()) -> str:
    """Return the directory for a log's runs: that which has them already, else the first that no other log has.

    What a log had that is gone from where it was goes to the copy that asks first: it is that log, moved.
    """
    for place in places(directory):
        known = Owners(place).known(log)
        if known is not None and is_same(known["home"], home) and place not in avoid:
            return place
    for number in range(1, PLACES_MAX):
        place = directory if number == 1 else f"{directory}~{number}"
        if place not in avoid and not Owners(place).others(log, home):
            return place
    return directory


def is_same(known: Home, home: Home) -> bool:
    """Whether two homes are of one log: the same file, whatever it is called; or of one name, as when a log is compacted."""
    return known[1:] == home[1:] != [0, 0] or known[0] == home[0]


def _number(name: str, application: str) -> int:
    """Return which of an application's directories this is, 1 being its first; 0 for another name."""
    first, mark, number = name.rpartition("~")
    if name == application:
        return 1
    return int(number) if mark and first == application and number.isdecimal() else 0


class Owners:
    """`{directory}/{log}.owner`: the engine that started runs last."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._sure: dict[str, Claim] = {}

    def path(self, log: str) -> str:
        """Return where it is written down; a person may remove the file."""
        return os.path.join(self._directory, f"{log}{OWNER}")

    def other(self, log: str, claim: Claim) -> str:
        """Return which other copy of the log starts runs here, else remember this one; `OSError` from the disk.

        `claim` has `epoch`, `home` (path, device and inode of the log's file) and `engine`. A log whose file is gone
        from where it was has moved.
        """
        if self._sure.get(log) == claim:
            return ""
        known = self.known(log)
        if known is not None and known != claim:
            if original := self.original(log, claim["home"]):
                return f"the log {original}, of which this is a copy,"
            if claim["epoch"] <= known["epoch"]:
                return "a later state of this log"
        self._write(log, claim)
        self._sure[log] = claim
        return ""

    def others(self, log: str, home: Home) -> bool:
        """Whether there is another log, or another copy of this one, whose runs are here, and that is still there."""
        try:
            logs = [name[: -len(OWNER)] for name in os.listdir(self._directory) if name.endswith(OWNER)]
        except FileNotFoundError:
            return False
        homes = [known["home"] for one in logs if (known := self.known(one)) is not None]
        return any(not is_same(known, home) and _is_file(known[0], known[1:]) for known in homes)

    def original(self, log: str, home: Home) -> str:
        """Return the file of the log whose runs are here, if it is there and `home` is that of a copy."""
        known = self.known(log)
        if known is None or is_same(known["home"], home) or not _is_file(known["home"][0], known["home"][1:]):
            return ""
        return str(known["home"][0])

    def move(self, log: str, home: Home) -> None:
        """Note where a log is by now; nothing was started since."""
        known = self.known(log)
        if known is None:
            self._write(log, {"epoch": 0, "home": home, "engine": []})
        elif known["home"] != home:
            self._write(log, {**known, "home": home})

    def _write(self, log: str, claim: Claim) -> None:
        with open(self.path(log) + ".new", "w") as file:
            json.dump(claim, file)
        os.rename(self.path(log) + ".new", self.path(log))

    def home(self, log: str) -> str:
        """Return the file of a log, where it is still the one whose runs were started here."""
        known = self.known(log)
        if known is None or not _is_file(known["home"][0], known["home"][1:]):
            return ""
        return str(known["home"][0])

    def known(self, log: str) -> Claim | None:
        """Return the claim of the engine that started runs last; None where there was none."""
        try:
            with open(self.path(log), "rb") as file:
                known: Claim = json.load(file)
                return known
        except (OSError, ValueError):
            return None


def is_elsewhere(facts: dict[str, Any], place: list[int]) -> bool:
    """Whether a run goes on in another directory than ours, whose journal this is a copy of: `place`, device and inode.

    That of a copied project, however it is called by now, is told from one that was copied away and removed: of this
    what its processes have open is deleted.
    """
    began = str(facts.get("folder", ""))
    if _is_file(os.path.dirname(os.path.dirname(began)), place):
        return True
    pid = facts.get("pid")
    if pid is None or proctable.start_time(pid) != facts.get("start"):
        return False
    opened = [_target(f"/proc/{pid}/{name}") for name in ("cwd", "fd/1", "fd/2", "fd/0")]
    inside = [path for path in opened if f"/{facts['id']}/" in path]
    return not any(path.endswith(" (deleted)") for path in inside)


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _is_file(path: str, file: list[int]) -> bool:
    """Whether the file or folder with this device and inode is still at the path."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return [status.st_dev, status.st_ino] == file
