"""What a process inherits from the one that starts it, beyond its environment: limits, priorities, cores, rights, groups.

In: this very process. Out: its situation as plain values, and in words what is different in another one. A launcher gives
its own to the scripts that it starts; an engine in another situation has another launcher start them. Most of it can be
given up and never be taken back (a hard limit, a priority, a group), so no launcher changes its own. Imports the standard
library only.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
from typing import Any

Situation = dict[str, Any]

_LIMITS = {name[7:].lower(): getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
_IOPRIO_GET = {"x86_64": 252, "aarch64": 31, "riscv64": 31}
_IOPRIO_WHO_PROCESS = 1
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "user", "uts")
_RIGHTS = ("CapInh", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
_WORDS_MAX = 200


def present() -> Situation:
    """Return that of the calling thread."""
    found: Situation = {f"limit of {name}": list(resource.getrlimit(what)) for name, what in _LIMITS.items()}
    found |= {
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "priority of input and output": _ioprio(),
        "scheduling": [os.sched_getscheduler(0), os.sched_getparam(0).sched_priority],
        "cores": sorted(os.sched_getaffinity(0)),
        "user": list(os.getresuid()),
        "group": list(os.getresgid()),
        "groups": sorted(os.getgroups()),
        "oom_score_adj": _read("/proc/self/oom_score_adj").strip(),
        "control groups": sorted(line.partition(":")[2] for line in _read("/proc/self/cgroup").splitlines()),
        "root": _of_file("/proc/self/root"),
    }
    found |= {f"{name} namespace": _link(f"/proc/self/ns/{name}") for name in _NAMESPACES}
    status = dict(line.split(":", 1) for line in _read("/proc/self/status").splitlines() if ":" in line)
    return found | {name: status.get(name, "").strip() for name in _RIGHTS}


def differences(wanted: Situation, ours: Situation) -> str:
    """Return what is not as wanted, in words; nothing where all is."""
    names = [name for name in wanted if wanted[name] != ours.get(name)]
    return "; ".join(f"{name}: {_words(ours.get(name))} instead of {_words(wanted[name])}" for name in names)


def _words(value: object) -> str:
    text = str(value)
    return text if len(text) <= _WORDS_MAX else text[: _WORDS_MAX - 1] + "…"


def _ioprio() -> int:
    """Return class and level as the kernel packs them; 0 is none, and where we do not know how to ask."""
    number = _IOPRIO_GET.get(platform.machine())
    if number is None:
        return 0
    try:
        return max(0, int(ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PROCESS, 0)))
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
