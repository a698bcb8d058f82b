"""What a test may need of the machine itself: `@pytest.mark.machine("root", "mounts", "groups")`.

In: the name of it. Out: whether it is so; and a file system of a test's own, where file systems can be mounted.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from datatask.adapters.execute.local import cgroups


def mount(path: Path, *options: str) -> None:
    """Mount a file system in memory, or mount it otherwise."""
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options) or "rw", "tmpfs", str(path)]
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def mounted(path: Path, *options: str) -> Iterator[Path]:
    """Mount a file system in memory; unmounted also where something still has a file open."""
    path.mkdir(parents=True, exist_ok=True)
    mount(path, *options)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


_MEASURE = """\
import os, sys
pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
with open(sys.argv[1], "w") as file:
    file.write(str(usage.ru_maxrss * 1024))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def with_peak(to: Path, *command: str) -> list[str]:
    """Return a command that runs another and writes the bytes that this had resident at most.

    A small process starts it: Linux counts the memory of the process that starts one to it.
    """
    return [sys.executable, "-I", "-S", "-c", _MEASURE, str(to), *command]


def open_way_to(path: Path) -> None:
    """Let other users enter a test's folder: pytest makes those above it for one user, one more with several workers."""
    top = Path(tempfile.gettempdir())
    for folder in (path, *path.parents):
        if folder == top or not folder.is_relative_to(top):
            return
        folder.chmod(0o755)


def _is_root() -> bool:
    return os.geteuid() == 0


def _can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            with mounted(Path(folder), "size=1m"):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


def _can_make_groups() -> bool:
    try:
        return cgroups.remove(cgroups.Groups().make(f"tried-{os.getpid()}", 1.0, 1 << 26))
    except OSError:
        return False


_MEANS: dict[str, tuple[str, Callable[[], bool]]] = {
    "root": ("the rights of root", _is_root),
    "mounts": ("file systems that can be mounted", _can_mount),
    "groups": ("control groups that are this user's to write", _can_make_groups),
}


BUSY = """\
#!/usr/bin/python3
import glob, time
while time.process_time() < 0.3: pass
for line in open("/proc/self/cgroup"):
    _, names, path = line.rstrip().split(":", 2)
    for root in ("/sys/fs/cgroup", *glob.glob("/sys/fs/cgroup/*")) if names in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu") else ():
        try:
            print(*[words.split()[1] for words in open(f"{root}{path}/cpu.stat") if words.startswith("nr_throttled ")])
        except OSError:
            pass
"""
"""A script of three tenths of a second of work that prints how often the kernel made its control group wait for its cores."""


def throttled(printed: bytes | None) -> int:
    """Return what BUSY has counted."""
    return max(map(int, (printed or b"").split()))


@functools.cache
def lacking(what: str) -> str:
    """Return what the machine lacks, in words; nothing where it has it."""
    words, has = _MEANS[what]
    return "" if has() else words


def command_of(process: Path) -> bytes:
    """Return a process's command line; nothing for one that is gone or waits to be reaped."""
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""
