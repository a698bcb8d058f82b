"""Runs that an earlier launcher started: what became of each, and watching those that go on.

In: the facts in the journal, processes, the keepers that are their parents now. Out: their ends, to `Ends`; one whose end
was not seen by anybody has vanished. Not our children, they are heard of through a pidfd each. Imports the standard library only.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Sequence

from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.base.shutdowns import of_a_signal, stopped_from_outside
from datatask.adapters.execute.local import folders, subreaper
from datatask.adapters.execute.local.ends import Ends
from datatask.adapters.execute.local.journal import Facts, LaunchedRuns
from datatask.adapters.execute.local.outputs import Files
from datatask.adapters.execute.local.process_tree import AdoptedProcesses, signal_group

SPAWN_SECONDS_MAX = 1.0
STATUS_SECONDS = 0.05
REBOOTED = "the machine was restarted while it ran"
TORN = "the machine went down just after it had ended, and its output is not whole"
OF_THE_ORIGINAL = "it runs for the project of which this is a copy, and is left to that one"
VANISHED = "the launcher was killed and the process is gone; nobody recorded how it ended"


class Takeover:
    """Runs that are not our children."""

    def __init__(self, runs: LaunchedRuns, ends: Ends, selector: selectors.BaseSelector) -> None:
        self._runs = runs
        self._ends = ends
        self._unseen: set[str] = set()
        self.watched = AdoptedProcesses(selector)

    def load(self, keepers: Sequence[subreaper.Keeper] = ()) -> None:
        """Read the journal, and see what became of each run in it."""
        self._runs.facts = self._runs.journal.load()
        for identity, facts in self._runs.facts.items():
            if not {"refused", "barred"} & facts.keys():
                self._take_over(identity, facts, keepers)

    def _take_over(self, identity: str, facts: Facts, keepers: Sequence[subreaper.Keeper]) -> None:
        journal = self._runs.journal
        if "ended" in facts:
            self._still_ended(identity, facts)
        elif journal.boot_before != self._runs.boot:
            self._ends.ended(identity, None, why=REBOOTED)
        elif journal.place_before != journal.place and folders.is_elsewhere(facts, journal.place_before):
            self._leave_alone(facts)
        elif "status" in facts:
            self._find_outputs(facts)
            self._ended_unseen(identity, facts["status"])
        elif "pid" not in facts:
            pid = self._find(identity) or self._unnamed(facts.get("intended", 0), keepers)
            if pid is None or not self._watch_found(facts, pid):
                self._ends.ended(identity, None, why=VANISHED, machine=True)
        elif self.watched.watch(identity, facts["pid"], facts["start"]):
            self._find_outputs(facts)
            if not proctable.is_alive(facts["pid"], facts["start"]):
                self._unseen.add(identity)
        else:
            self._ends.ended(identity, None, why=VANISHED, machine=True)

    def look_for(self, identity: str) -> None:
        """Find the process of a run that nothing is known of; where there is none, bar it from ever starting, durably."""
        facts = self._runs.facts[identity] = {"id": identity}
        pid = self._find(identity)
        if pid is None or not self._watch_found(facts, pid):
            self._runs.note(identity, barred=True)

    def _find(self, identity: str) -> int | None:
        return proctable.find_by_argument(os.path.join(self._runs.named(self._runs.folder(identity)), "exe"))

    def _watch_found(self, facts: Facts, pid: int) -> bool:
        facts |= {"pid": pid, "start": proctable.start_time(pid) or 0, "began": time.time_ns()}
        self._find_outputs(facts)
        self._runs.journal.add(facts)
        return self.watched.watch(facts["id"], facts["pid"], facts["start"])

    def _find_outputs(self, facts: Facts) -> Files:
        folder = self._runs.folder(facts["id"])
        if facts.get("files") is None:
            facts["unknown"] = True  # which of its streams were to be kept
        files = self._runs.outputs.find(facts["id"], folder, facts.get("pid", 0), facts.get("files"))
        facts["files"] = files
        return files

    # --- what is known of before ------------------------------------------------------------------

    def _still_ended(self, identity: str, facts: Facts) -> None:
        """A run ended under an earlier launcher: of before a restart of the machine, its outputs have to be as they were."""
        if self._runs.journal.boot_before == self._runs.boot:
            self._find_outputs(facts)
            return
        ended, known = facts["ended"], facts.pop("files", {})
        found = self._find_outputs(facts)  # a device may have another number now
        sizes, _ = self._runs.outputs.end(identity, self._runs.folder(identity), found)
        same = all(known.get(name, file)[1] == file[1] for name, file in found.items())
        if ended.get("sizes", {}) == sizes and same:
            facts["ended"] = {**ended, "files": found}
            self._runs.journal.add(facts)
        else:
            self._ends.ended(identity, None, why=TORN)

    def _leave_alone(self, facts: Facts) -> None:
        """The run is that of the project of which this is a copy."""
        identity, task = facts["id"], facts.get("task", "")
        facts.clear()
        facts |= {"id": identity, "task": task, "barred": True, "why": OF_THE_ORIGINAL}
        self._runs.journal.compact(self._runs.facts, at_once=True)

    def _unnamed(self, since: int, keepers: Sequence[subreaper.Keeper]) -> int | None:
        """Return what the launcher before us was starting as it was killed, if it has ended already.

        A zombie has no arguments to know it by. But a launcher starts one run at a time, at once after it has written
        the intent down, and our keeper has become its parent.
        """
        known = {facts.get("pid") for facts in self._runs.facts.values()}
        until = since + proctable.ticks(SPAWN_SECONDS_MAX)
        zombies = {
            child.start: pid
            for one in keepers or (subreaper.Keeper(os.getppid(), 0),)
            for pid, child in proctable.children(one.pid).items()
            if child.is_zombie
            and child.session == pid
            and since <= child.start <= until
            and pid not in known
            and proctable.name(pid) in ("exe", "sh")
        }
        return zombies[min(zombies)] if zombies else None

    # --- ends -------------------------------------------------------------------------------------

    def look(self) -> None:
        """Notice the ends of those for which there was no descriptor."""
        for identity in self.watched.gone():
            self.ended(identity)

    def ended(self, identity: str) -> None:
        """The process of a run has ended; how, the kernel may tell in a moment."""
        known, status = self.watched.status(identity)
        if not known:
            self._runs.alarms.after(STATUS_SECONDS, lambda: self._ended_meanwhile(identity))
            return
        facts = self._runs.facts[identity]
        if proctable.start_time(facts["pid"]) == facts["start"]:
            signal_group(facts["pid"], signal.SIGKILL)
        self._ends.clear(identity)
        if status is not None and identity in self._unseen:
            self._ended_unseen(identity, status)
        else:
            vanished = status is None
            self._ends.ended(identity, status, why=VANISHED if vanished else "", machine=vanished)

    def _ended_meanwhile(self, identity: str) -> None:
        if identity in self.watched:
            self.ended(identity)

    def _ended_unseen(self, identity: str, status: int) -> None:
        """Take an end that came with that of the launcher before us: by the same signal, as far as anybody knows."""
        code = os.waitstatus_to_exitcode(status)
        if of_a_signal(code) is not None and "stopped" not in self._runs.facts[identity]:
            self._ends.ended(identity, None, why=stopped_from_outside(code), machine=True)
        else:
            self._ends.ended(identity, status)
            self._ends.decide(identity)
