"""The runs of a launcher: those that it starts, and those that an earlier launcher started.

In: what engines ask; the facts in the journal, processes, the subreapers that are the parents of an earlier launcher's runs.
Out: runs, refusals, the state of a run in words for its engine; of earlier runs their ends, to `Ends`; one whose end was
not observed has vanished. They are not our children: a pidfd reports the end of each. Imports the standard library only.
"""

from __future__ import annotations

import errno
import os
import selectors
import signal
import time
import zlib
from collections.abc import Sequence
from typing import Any

from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.base.shutdowns import of_a_signal, stopped_from_outside
from datatask.adapters.execute.local import cgroups, folders, outputs, subreaper
from datatask.adapters.execute.local.ends import Ends
from datatask.adapters.execute.local.engine_connections import Engine
from datatask.adapters.execute.local.folders import Owners
from datatask.adapters.execute.local.journal import BOUND_SECONDS, Facts, LaunchedRuns
from datatask.adapters.execute.local.outputs import Files
from datatask.adapters.execute.local.process_tree import MARK, AdoptedProcesses, signal_group
from datatask.adapters.execute.local.spawning import Confinement, explained, spawn

TEMPORARY = (errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EDQUOT)


class Starts:
    """Starts runs for engines whose logs may have runs in the directory."""

    def __init__(self, runs: LaunchedRuns, ends: Ends, owners: Owners) -> None:
        self._runs = runs
        self._ends = ends
        self._owners = owners
        self._groups = cgroups.Groups()

    def start(self, engine: Engine, identity: str, wanted: dict[str, Any], *, alone: bool) -> None:
        """Start `{directory}/{log}/{identity}/exe`, once; `alone`: no other run is there."""
        facts = self._runs.facts.get(identity)
        if refusal := self._occupied(engine, identity):
            engine.tell(refusal)
        elif facts is not None and not facts.get("refused", {}).get(
            "temporary"
        ):  # as earlier versions wrote it down
            self.tell_state(engine, identity)
        elif engine.unfit:
            engine.tell({"unfit": identity, "message": engine.unfit})
        elif not alone and (short := self._ends.headroom.short()):
            engine.tell(_refusal(identity, short, temporary=True))
        else:
            self._spawn(engine, identity, **wanted)

    def _occupied(self, engine: Engine, identity: str) -> Facts | None:
        """Return why the log of an engine may start nothing here; None where it may."""
        log, epoch = identity.split(".")[:2]
        claim = {"epoch": int(epoch), "home": engine.home, "engine": [engine.pid, engine.start]}
        try:
            if not (other := self._owners.other(log, claim)):
                return None
        except OSError as error:
            text = explained(error, self._runs.named(self._owners.path(log)))
            return _refusal(identity, text, temporary=True)
        path = self._runs.named(self._owners.path(log))
        text = (
            f"{other} has used {self._runs.named(self._runs.directory)}: go on with that one, give this pipeline's manager"
            f" another app name, or remove {path} if nothing that it did matters any more"
        )
        return _refusal(identity, text, temporary=True) | {"occupied": True}

    def _spawn(
        self,
        engine: Engine,
        identity: str,
        task: str,
        env: str,
        stdin: bool,
        stdout: bool | str,
        stderr: str,
        limits: dict[str, Any] | None = None,
        variables: dict[str, str] | None = None,
    ) -> None:
        folder = self._runs.named(self._runs.folder(identity))
        facts = self._runs.facts[identity] = {"id": identity}
        self._runs.note(identity, task=task, intended=proctable.now(), folder=folder)
        environment, umask = engine.environments[env]
        merged = stderr == "stdout"
        if bounds := _bounds(stdout, stderr):
            self._runs.note(identity, bounds=bounds)
        names = [*(["stdout"] if stdout else []), *(["stderr"] if stderr and not merged else [])]
        files: dict[str, int] = {}
        try:
            if not self._runs.journal.write_out():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._runs.journal.path)
            confinement = None if limits is None else self._confinement(identity, **limits)
            files = outputs.make(folder, names, umask)
            pid = spawn(
                folder,
                {**environment, **(variables or {}), MARK: folder},
                umask,
                stdin,
                files,
                merged,
                confinement,
            )
        except OSError as error:
            outputs.close(files)
            cgroups.remove(facts.pop("groups", []))
            temporary = error.errno in TEMPORARY  # it may be asked for again
            refusal = _refusal(identity, explained(error, folder), temporary=temporary)
            if temporary:
                self._runs.forget(identity)
            else:
                self._runs.note(identity, refused=refusal)
            engine.tell(refusal)
            return
        facts |= {"pid": pid, "start": proctable.start_time(pid) or 0, "began": time.time_ns()}
        facts["files"] = outputs.identities(files)
        self._runs.outputs.begin(identity, files)
        self._runs.journal.add(facts)
        self._ends.began(identity, pid)
        if bounds:
            self._runs.alarms.after(BOUND_SECONDS, lambda: self._runs.bound(identity))
        self.tell_state(engine, identity)

    def _confinement(self, identity: str, how: str, cpu: float, memory: int) -> Confinement:
        """Return what has the kernel enforce a run's limits; `OSError` where it cannot."""
        if how == "ulimit":
            return Confinement(address_space=memory)
        name = f"{identity}.{zlib.crc32(os.fsencode(self._runs.named(self._runs.directory))):08x}"
        groups = self._groups.make(name, cpu, memory)
        self._runs.note(identity, groups=groups, memory=memory)
        return Confinement(groups)

    def tell_state(self, engine: Engine, identity: str) -> None:
        """Tell an engine how a run is by now."""
        facts = self._runs.facts[identity]
        if "refused" in facts:
            engine.tell(facts["refused"])
        elif "barred" in facts:
            engine.tell({"absent": identity, "why": facts.get("why", "")})
        elif "ended" in facts:
            self._ends.tell(engine, identity)
        else:
            known = {key: facts[key] for key in ("pid", "start", "began")}
            engine.tell({"started": identity, "boot": self._runs.boot} | known)


def _bounds(*streams: bool | str) -> dict[str, int]:
    """Return how much is kept of streams that no repository takes, as in `stdout:1048576`."""
    given = (stream.partition(":") for stream in streams if isinstance(stream, str))
    return {name: int(most) for name, _, most in given if most}


def _refusal(identity: str, text: str, *, temporary: bool) -> Facts:
    return {"refused": identity, "temporary": temporary, "message": text}


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

    def load(self, subreapers: Sequence[subreaper.Subreaper] = ()) -> None:
        """Read the journal, and see what became of each run in it."""
        self._runs.facts = self._runs.journal.load()
        for identity, facts in self._runs.facts.items():
            if not {"refused", "barred"} & facts.keys():
                self._take_over(identity, facts, subreapers)

    def _take_over(self, identity: str, facts: Facts, subreapers: Sequence[subreaper.Subreaper]) -> None:
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
            pid = self._find(identity) or self._unnamed(facts.get("intended", 0), subreapers)
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
        if facts.get("bounds"):
            self._runs.bound(facts["id"])
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

    def _unnamed(self, since: int, subreapers: Sequence[subreaper.Subreaper]) -> int | None:
        """Return what the launcher before us was starting as it was killed, if it has ended already.

        A zombie has no arguments to know it by. But a launcher starts one run at a time, at once after it has written
        the intent down, and our subreaper has become its parent.
        """
        known = {facts.get("pid") for facts in self._runs.facts.values()}
        until = since + proctable.ticks(SPAWN_SECONDS_MAX)
        zombies = {
            child.start: pid
            for one in subreapers or (subreaper.Subreaper(os.getppid(), 0),)
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
