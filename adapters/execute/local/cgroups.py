"""Control groups for runs whose resources are enforced: made before a run starts, asked when it ends, then removed.

In: a run's name, unique on the machine, and how many cores and bytes of memory it may use. Out: the folders of its groups, whose
`cgroup.procs` the run enters before it executes anything, and afterwards what it used at most and whether the kernel
killed for lack of memory. Version 2 of the interface where it has the controllers, else version 1. Groups are made in
the nearest group above our own that is ours to write: as root anywhere, else where systemd has delegated one. Imports
the standard library only. Source: the kernel's admin-guide/cgroup-v2 and cgroup-v1.
"""

from __future__ import annotations

import os
import signal
from typing import NamedTuple

PERIOD_US = 100_000
OURS = "datatask"


class Used(NamedTuple):
    """What a group has used: bytes of memory at most, None where the kernel does not say; kills for lack of it."""

    memory_max: int | None
    oom_kills: int


class Groups:
    """Where groups can be made on this machine, found at the first use."""

    def __init__(self, mounts: str = "/proc/self/mountinfo", ours: str = "/proc/self/cgroup") -> None:
        self._mounts = mounts
        self._ours = ours

    def make(self, name: str, cpu: float, memory: int) -> list[str]:
        """Make the groups of a run, 0 being no limit; `OSError` says what is missing, and nothing is left of it."""
        wanted = [controller for controller, amount in (("cpu", cpu), ("memory", memory)) if amount]
        roots, hierarchies = self._mounted()
        made: list[str] = []
        try:
            if unified := self._unified(roots, wanted):
                made.append(_folder(unified, name))
                _limit_unified(made[0], cpu, memory)
                return made
            for controller in wanted:
                home = self._writable(hierarchies.get(controller), self._own(controller), (controller,))
                made.append(_folder(home, name))
                _limit_alone(made[-1], controller, cpu, memory)
        except OSError:
            remove(made)
            raise
        return made

    def _mounted(self) -> tuple[list[str], dict[str, str]]:
        """Return the mount points of version 2, and those of version 1 by controller."""
        unified, alone = [], {}
        with open(self._mounts) as file:
            for line in file:
                before, _, after = line.partition(" - ")
                kind, _, options = after.split(None, 2)
                point = before.split()[4]
                if kind == "cgroup2":
                    unified.append(point)
                elif kind == "cgroup":
                    alone.update(dict.fromkeys(options.split()[-1].split(","), point))
        return unified, alone

    def _own(self, controller: str) -> str:
        """Return the path of our own group in a hierarchy; version 2's has no name."""
        with open(self._ours) as file:
            for line in file:
                _, names, path = line.rstrip("\n").split(":", 2)
                if controller in names.split(",") or controller == names:
                    return path
        return "/"

    def _unified(self, roots: list[str], wanted: list[str]) -> str | None:
        for root in roots:
            with open(os.path.join(root, "cgroup.controllers")) as file:
                if set(wanted) <= set(file.read().split()):
                    return self._writable(root, self._own(""), tuple(wanted), unified=True)
        return None

    def _writable(
        self, root: str | None, own: str, controllers: tuple[str, ...], *, unified: bool = False
    ) -> str:
        """Return our group below the nearest one that is ours to write, from our own upwards."""
        if root is None:
            raise OSError(f"this kernel has no control groups for {' and '.join(controllers)}")
        parts = [part for part in own.split("/") if part and part != ".."]
        while True:
            above = os.path.join(root, *parts)
            if os.access(above, os.W_OK | os.X_OK) and os.access(f"{above}/cgroup.procs", os.W_OK):
                try:
                    return _delegated(above, controllers) if unified else _made(os.path.join(above, OURS))
                except OSError:
                    if not parts:
                        raise
            if not parts:
                break
            parts.pop()
        raise OSError(
            f"no control group above {os.path.join(root, own.lstrip('/'))} is this user's to write: run the engine"
            " under `systemd-run --user --scope -p Delegate=yes`, as root, or with enforce='ulimit'"
        )


def _made(folder: str) -> str:
    try:
        os.mkdir(folder, 0o755)
    except FileExistsError:
        pass
    return folder


def _folder(home: str, name: str) -> str:
    return _made(os.path.join(home, name))


def _delegated(above: str, controllers: tuple[str, ...]) -> str:
    """Return our group in a version 2 group that hands the controllers down, and have ours do so too."""
    with open(f"{above}/cgroup.subtree_control") as file:
        if missing := set(controllers) - set(file.read().split()):
            raise OSError(f"{above} does not hand {' and '.join(sorted(missing))} down to the groups in it")
    home = _made(os.path.join(above, OURS))
    _set(home, "cgroup.subtree_control", " ".join(f"+{name}" for name in controllers))
    return home


def _limit_unified(group: str, cpu: float, memory: int) -> None:
    if cpu:
        _set(group, "cpu.max", f"{round(cpu * PERIOD_US)} {PERIOD_US}")
    if memory:
        _set(group, "memory.max", str(memory))
        _set(group, "memory.swap.max", "0", where_there_is=True)
        _set(group, "memory.oom.group", "1", where_there_is=True)


def _limit_alone(group: str, controller: str, cpu: float, memory: int) -> None:
    if controller == "cpu":
        _set(group, "cpu.cfs_period_us", str(PERIOD_US))
        _set(group, "cpu.cfs_quota_us", str(round(cpu * PERIOD_US)))
    else:
        _set(group, "memory.limit_in_bytes", str(memory))
        _set(group, "memory.memsw.limit_in_bytes", str(memory), where_there_is=True)


def _set(group: str, name: str, value: str, *, where_there_is: bool = False) -> None:
    path = os.path.join(group, name)
    try:
        with open(path, "w") as file:
            file.write(value)
    except FileNotFoundError:
        if not where_there_is:
            raise
    except OSError as error:
        raise OSError(error.errno, f"{value} is refused", path) from error


def used(groups: list[str]) -> Used:
    """Return what the run in these groups has used."""
    most, kills = None, 0
    for group in groups:
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            if (text := _read(group, name)).strip().isdigit():
                most = int(text)
        for name in ("memory.events", "memory.oom_control"):
            for line in _read(group, name).splitlines():
                if line.startswith("oom_kill "):
                    kills += int(line.split()[1])
    return Used(most, kills)


def left(top: str = "/sys/fs/cgroup") -> dict[str, list[str]]:
    """Return the groups of runs that are there, by the name of the run, wherever on this machine they were made."""
    found: dict[str, list[str]] = {}
    for folder, names, _ in os.walk(top):
        if os.path.basename(folder) == OURS:
            for name in names:
                found.setdefault(name, []).append(os.path.join(folder, name))
    return found


def oom_kills(file: str = "/proc/vmstat") -> int:
    """Return how many processes the kernel has killed for lack of memory since the machine started, in any group."""
    for line in _read(*os.path.split(file)).splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


def _read(group: str, name: str) -> str:
    try:
        with open(os.path.join(group, name)) as file:
            return file.read()
    except OSError:
        return ""


def remove(groups: list[str]) -> bool:
    """Kill what is left in these groups and remove them; whether they are gone: the killed take a moment to leave."""
    gone = True
    for group in groups:
        for pid in _read(group, "cgroup.procs").split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        try:
            os.rmdir(group)
        except FileNotFoundError:
            pass
        except OSError:
            gone = False
    return gone
