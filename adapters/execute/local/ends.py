"""Ends of runs: reaped, held while a stop may be under way, written, and reported once durable.

In: zombies, wait statuses of runs that are not our children. Out: ends, to the engine whose log the run belongs to. An end
goes into the journal first, so that the next launcher tells it if we do not. Imports the standard library only.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.base.shutdowns import ShutdownEvidence, stopped_from_outside
from datatask.adapters.execute.local import cgroups, folders
from datatask.adapters.execute.local.engine_connections import Engine, Engines
from datatask.adapters.execute.local.journal import Facts, LaunchedRuns, Syncs
from datatask.adapters.execute.local.process_tree import Headroom, ProcessTrees, signal_group

CORE_DUMPED = 0x80
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
GROUPS_SECONDS = (0.05, 0.2)
NO_PROCESSES = "exit code {}, and a limit (pids.max) kept something here from starting a process meanwhile, perhaps this script"


class Ends:
    """Ends of runs on their way to the engines; `held` are those that may be a stop's doing."""

    def __init__(self, runs: LaunchedRuns, engines: Engines) -> None:
        self._runs = runs
        self._engines = engines
        self.headroom = Headroom()
        self.shutdown = ShutdownEvidence()
        self.held: dict[str, Facts] = {}
        self.unreported: dict[str, Facts] = {}
        self._stopping: set[str] = set()
        self._trees = ProcessTrees()
        self._refusals: dict[str, int] = {}
        self._oom_kills = 0

    def __bool__(self) -> bool:
        return bool(self.held or self.unreported)

    def open(self, wake: Callable[[], object]) -> None:
        """Start writing ends; `wake` is called, in a thread, when some are durable."""
        self._syncs = Syncs(self._runs.journal, wake)

    def close(self, seconds: float) -> None:
        """Stop writing ends."""
        self._syncs.end(seconds)

    def began(self, identity: str, pid: int) -> None:
        """Register a run as our child; kills and refused processes from now on may explain its end."""
        if not self._runs.children:
            self._oom_kills = cgroups.oom_kills()
        self._runs.children[pid] = identity
        self._refusals[identity] = self.headroom.started()

    # --- stopping ---------------------------------------------------------------------------------

    def stop(self, identity: str, grace: float, reason: str) -> None:
        """TERM to the group now, KILL to all it has begun after the grace; one that has ended stays as it is."""
        if not self._runs.is_alive(identity):
            return
        self._runs.note(identity, stopped=reason)
        pid = self._runs.facts[identity]["pid"]
        self._trees.see(identity, pid, self._runs.mark(identity))
        if grace > 0 and identity not in self._stopping:
            signal_group(pid, signal.SIGTERM)
        self._stopping.add(identity)
        self._runs.alarms.after(grace, lambda: self._kill(identity))

    def _kill(self, identity: str) -> None:
        facts = self._runs.facts.get(identity, {"ended": True})
        if "ended" not in facts and proctable.start_time(facts["pid"]) == facts["start"]:
            self._trees.see(identity, facts["pid"], self._runs.mark(identity))
            self.clear(identity)

    def clear(self, identity: str) -> None:
        """Kill the processes of a stopped run."""
        self._trees.clear(identity, self._runs.facts[identity]["pid"], self._runs.mark(identity))

    # --- ends -------------------------------------------------------------------------------------

    def reap(self) -> None:
        """Reap our children."""
        while True:
            try:
                seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if seen is None:
                return
            identity = self._runs.children.pop(seen.si_pid, None)
            if identity is not None:
                signal_group(seen.si_pid, signal.SIGKILL)  # a zombie still, so the pid is its own
                self._runs.journal.add({"id": identity, "status": _wait_status(seen)})  # wait tells it once
            _, status, usage = os.wait4(seen.si_pid, 0)
            if identity is not None:
                self.clear(identity)
                cpu = usage.ru_utime + usage.ru_stime
                self.ended(identity, status, cpu_seconds=round(cpu, 6), rss_bytes_max=usage.ru_maxrss * 1024)

    def ended(
        self, identity: str, status: int | None, *, why: str = "", machine: bool = False, **usage: float
    ) -> None:
        """Process the end of a run; without a status its outcome is unknown, and `why` gives the reason."""
        facts = self._runs.facts[identity]
        self._stopping.discard(identity)
        self._trees.forget(identity)
        code = None if status is None else os.waitstatus_to_exitcode(status)
        message: Facts = {
            "ended": identity,
            "code": code,
            "began": facts.get("began"),
            "at": time.time_ns(),
            "stopped": facts.get("stopped"),
            "pid": facts.get("pid"),
            "usage": usage,
            "why": why,
            "machine": machine,
        }
        if status is not None:
            folder = self._runs.folder(identity)
            message["files"], message["unknown"] = facts.get("files"), facts.get("unknown", False)
            message["sizes"], message["written"] = self._runs.outputs.end(
                identity, folder, facts.get("files")
            )
            message["full"] = bool(message["sizes"]) and not folders.has_room(folder)
        if code in KILLED and not message["stopped"] and cgroups.oom_kills() > self._oom_kills:
            message["killed_for_memory"] = True  # in some group of the machine
        before = self._refusals.pop(identity, None)
        if (
            before is not None
            and (code or 0) > 0
            and not message["stopped"]
            and self.headroom.refusals() > before
        ):
            message |= {"code": None, "why": NO_PROCESSES.format(code)}
        if facts.get("groups"):
            self._leave_groups(facts, message)
        if seconds := self._held_seconds(message):
            self.held[identity] = message
            self._runs.alarms.after(seconds, lambda: self.decide(identity))
        else:
            self._record(identity, message)

    def _leave_groups(self, facts: Facts, message: Facts) -> None:
        """Add the kernel's figures of a run's groups, and remove the groups."""
        peak, kills = cgroups.used(facts["groups"])
        if peak is not None:
            message["usage"]["memory_bytes_max"] = peak
        if kills:
            message["why"] = (
                f"out of memory: the kernel killed at the {facts['memory']} bytes of its resources"
            )
        self._remove_groups(facts["groups"], GROUPS_SECONDS[0])

    def _remove_groups(self, groups: list[str], again_seconds: float) -> None:
        if not cgroups.remove(groups):
            self._runs.alarms.after(again_seconds, lambda: self._remove_groups(groups, GROUPS_SECONDS[1]))

    # --- whose doing an end is --------------------------------------------------------------------

    def _held_seconds(self, message: Facts) -> float:
        """Return for how long an end is held, since a stop of the machine or the service may have caused it."""
        if message["stopped"] or message["why"]:
            return 0.0
        return self.shutdown.held_seconds(message["code"])

    def decide(self, identity: str) -> None:
        """Record an end that was held, as the script's or as a stop's."""
        message = self.held.pop(identity, None)
        if message is None:
            return
        code, log = message["code"], identity.partition(".")[0]
        if self.shutdown.is_from_outside(log, code, message["began"], message["at"]):
            message |= {"code": None, "why": stopped_from_outside(code), "machine": True}
        self._record(identity, message)

    def _record(self, identity: str, message: Facts) -> None:
        self.unreported[identity] = message
        self._runs.note(identity, ended=message)

    # --- telling ----------------------------------------------------------------------------------

    def tell(self, engine: Engine, identity: str) -> None:
        """Report a run's end to an engine that asks; one not yet durable is reported as soon as it is."""
        if identity not in self.unreported:
            engine.tell(self._with_outputs(identity, self._runs.facts[identity]["ended"]))

    def tell_all(self) -> None:
        """Report the durable ends, and write those that came meanwhile, all at once."""
        for identity in self._syncs.done():
            message = self.unreported.pop(identity, None)
            if message is not None:
                self._engines.tell(identity.partition(".")[0], self._with_outputs(identity, message))
        self._syncs.begin(self.unreported)

    def _with_outputs(self, identity: str, message: Facts) -> Facts:
        """Return how a run ended, and where its outputs can be read if need be."""
        return message | {"held": self._runs.outputs.paths(identity)}


def _wait_status(seen: os.waitid_result) -> int:
    """Return the status that `wait` will return for a zombie."""
    if seen.si_code == os.CLD_EXITED:
        return seen.si_status << 8
    return seen.si_status | (CORE_DUMPED if seen.si_code == os.CLD_DUMPED else 0)
