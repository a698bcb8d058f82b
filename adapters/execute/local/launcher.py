"""The launcher: a small process that starts runs, outlives the engine, and knows how each run ended.

In, over a Unix socket in its directory, one JSON object a line: hello, env, start, stop, settle, sweep,
forget, retire, bye. Out, to the engine whose log the run belongs to: started, refused, unfit, ended, absent. It is the parent of
the runs, so exit codes are never lost when an engine dies; all it knows is in its journal, so that when it
is killed itself the next one goes on watching what still runs, and its keeper has kept what ended. Starts are idempotent by identity. With no
runs and no engine it ends by itself. Imports the standard library and its siblings only: it starts in
a few hundredths of a second. The engine's side is `client`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import heapq
import json
import os
import selectors
import signal
import socket
import sys
import time
import zlib
from collections.abc import Sequence
from typing import Any

from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.base.shutdowns import Doubts, of_a_signal, stopped_from_outside
from datatask.adapters.execute.local import cgroups, folders, outputs, owners, spawning, subreaper
from datatask.adapters.execute.local.engine_connections import Engine, Engines
from datatask.adapters.execute.local.journal import Facts, Journal, Syncs
from datatask.adapters.execute.local.outputs import Files, Outputs
from datatask.adapters.execute.local.owners import Owners
from datatask.adapters.execute.local.process_limits import Headroom
from datatask.adapters.execute.local.process_tree import MARK, Families, Strangers, signal_group
from datatask.adapters.execute.local.spawning import Confinement, explained, spawn

LOCK = "launcher.lock"
JOURNAL = "journal"
IDLE_SECONDS = 10.0
OPERATIONS_PER_TURN = 16
SPAWN_SECONDS_MAX = 1.0
TEMPORARY = (errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EDQUOT)
CORE_DUMPED = 0x80
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
REBOOTED = "the machine was restarted while it ran"
TORN = "the machine went down just after it had ended, and its output is not whole"
OF_THE_ORIGINAL = "it runs for the project of which this is a copy, and is left to that one"
SYNC_SECONDS_MAX = 5.0
LOOK_SECONDS = 0.5
NO_PROCESSES = "exit code {}, and a limit (pids.max) kept something here from starting a process meanwhile, perhaps this script"
VANISHED = "the launcher was killed and the process is gone; nobody recorded how it ended"


class Launcher:
    """All runs of one directory, `{directory}/{log}/{identity}/`, and the engines that are connected."""

    def __init__(self, directory: str, keepers: Sequence[subreaper.Keeper] = ()) -> None:
        self.place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.directory = directory = (
            f"/proc/self/fd/{self.place}"  # the same one, however it is called by and by
        )
        self.keepers = keepers
        self.situation = spawning.present()
        self.goes_on = True
        self.doubts = Doubts()
        self.held: dict[str, Facts] = {}
        self.unseen: set[str] = set()
        self.headroom = Headroom()
        self.refusals: dict[str, int] = {}
        self.boot = proctable.boot_id()
        place = os.fstat(self.place)
        self.journal = Journal(os.path.join(directory, JOURNAL), self.boot, [place.st_dev, place.st_ino])
        self.runs: dict[str, Facts] = {}
        self.children: dict[int, str] = {}
        self.alarms: list[tuple[float, str, str]] = []
        self.stopping: set[str] = set()
        self.families = Families()
        self.outputs = Outputs()
        self.owners = Owners(directory)
        self.groups = cgroups.Groups()
        self.oom_kills = 0
        self.untold: dict[str, Facts] = {}
        self.selector = selectors.DefaultSelector()
        self.strangers = Strangers(self.selector)
        self.engines = Engines(directory, self.selector)
        self.idle_since = time.monotonic()

    # --- the loop -------------------------------------------------------------------------------

    def serve(self) -> bool:
        """Take over what an earlier launcher left, then serve until idle; whether another launcher is to go on."""
        wake, signalled = socket.socketpair()
        wake.setblocking(False)
        signalled.setblocking(False)
        self.syncs = Syncs(self.journal, lambda: signalled.send(b"."))
        signal.set_wakeup_fd(signalled.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in subreaper.GOODBYES:
            signal.signal(number, lambda *_: self.doubts.told_to_end())
        self.selector.register(wake, selectors.EVENT_READ, "child")
        if self.outputs.cuts.fileno() >= 0:
            self.selector.register(self.outputs.cuts, selectors.EVENT_READ, self.outputs)
        self.engines.listen()
        self.runs = self.journal.load()
        self._take_over()
        self._watch_keepers()
        while not self._is_idle():
            if not self.goes_on and not self.held and self.journal.write_out():
                self._let_go()
                return True
            pending = any(engine.lines for engine in self.engines)
            for key, mask in self.selector.select(0 if pending else self._patience()):
                self._handle(key, mask)
            self._reap()
            for identity in self.strangers.gone():
                self._stranger_ended(identity)
            self._ring()
            self._tell_ends()
            for engine in self.engines:
                self._operate(engine)
            for engine in self.engines:
                self.engines.send(engine)
        self.engines.leave()
        return False

    def _watch_keepers(self) -> None:
        """Notice when a keeper dies: the next launcher is to have us for one."""
        for one in self.keepers:
            try:
                self.selector.register(os.pidfd_open(one.pid), selectors.EVENT_READ, "keeper")
            except OSError:
                pass  # it is gone, or there is no descriptor to hear of its end by
            self.goes_on = self.goes_on and one.is_alive()

    def _let_go(self) -> None:
        """Have nothing open that the next launcher opens; the runs stay our children, what we know is in the journal."""
        for engine in self.engines:
            self.engines.send(engine)
        self.engines.leave()
        self.strangers.leave()
        signal.set_wakeup_fd(-1)
        self.syncs.end(SYNC_SECONDS_MAX)
        self.journal.close()

    def hang_up(self) -> None:
        """Have the engines look for the next launcher."""
        for engine in self.engines:
            self.engines.hang_up(engine)
        self.selector.close()

    def _is_idle(self) -> bool:
        if self.children or self.strangers or self.untold or self.held:
            self.idle_since = time.monotonic()
            return False
        if self.doubts.is_leaving:
            return True
        if self.engines:
            self.idle_since = time.monotonic()
        return time.monotonic() - self.idle_since > IDLE_SECONDS

    def _patience(self) -> float:
        until = self.alarms[0][0] - time.monotonic() if self.alarms else IDLE_SECONDS
        longest = LOOK_SECONDS if self.strangers.unheard else IDLE_SECONDS / 4
        return max(0.0, min(until, longest))

    def _handle(self, key: selectors.SelectorKey, mask: int) -> None:
        if key.data is self.engines:
            self.engines.accept()
        elif key.data is self.outputs:
            self.outputs.look()
        elif key.data == "child":
            key.fileobj.recv(4096)  # type: ignore[union-attr]
        elif isinstance(key.data, Engine):
            if mask & selectors.EVENT_READ:
                self._receive(key.data)
        elif key.data == "keeper":
            self.selector.unregister(key.fd)
            self.goes_on = False
        else:
            self._stranger_ended(str(key.data))

    def _receive(self, engine: Engine) -> None:
        if not self.engines.receive(engine) and engine.log:
            if not engine.leaves and not any(b'"bye"' in line for line in engine.lines):
                self.doubts.engine_died(engine.log)

    def _operate(self, engine: Engine) -> None:
        lines, engine.lines = (
            engine.lines[:OPERATIONS_PER_TURN],
            engine.lines[OPERATIONS_PER_TURN:],
        )
        try:
            for line in lines:
                message = json.loads(line)
                if not engine.log and message["op"] != "hello":
                    continue  # from an engine that was turned away
                getattr(self, "do_" + message.pop("op"))(engine, **message)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            print(f"launcher: what an engine sent is not understood: {error!r}", file=sys.stderr)
            self.engines.hang_up(engine)

    def _folder(self, identity: str) -> str:
        return os.path.join(self.directory, identity.partition(".")[0], identity)

    def _named(self, path: str) -> str:
        """Return what a path below the directory is called now."""
        return os.readlink(self.directory) + path.removeprefix(self.directory)

    def _mark(self, identity: str) -> str:
        """Return what a run's folder was called when it began, by which its processes are known."""
        return str(self.runs[identity].get("folder") or self._named(self._folder(identity)))

    # --- what an engine asks --------------------------------------------------------------------

    def do_hello(
        self,
        engine: Engine,
        log: str,
        epoch: int,
        pid: int,
        start: int,
        home: list[Any],
        wanted: spawning.Situation | None = None,
    ) -> None:
        """An engine says whose runs it is about; a live engine of another log, or of a copy, keeps the directory."""
        for other in self.engines:
            copied = other.log == log and other.pid != pid and proctable.is_alive(other.pid, other.start)
            if other.log and (other.log != log or copied):
                engine.tell({"owned": other.log, "pid": other.pid, "copied": copied})
                engine.lines.clear()
                return
            if other.log == log and other is not engine and other.epoch < epoch:
                self.engines.hang_up(other)
        if original := self.owners.original(log, home):
            engine.tell({"owned": original, "pid": 0, "copied": True})
            engine.lines.clear()
            return
        with contextlib.suppress(OSError):  # a full disk; what is started is written down for certain
            self.owners.move(log, home)
        engine.log, engine.epoch, engine.home = log, epoch, home
        engine.pid, engine.start = pid, start
        engine.unfit = spawning.differences(wanted, self.situation) if wanted else ""
        engine.tell({"hello": os.getpid(), "boot": self.boot})

    def do_bye(self, engine: Engine) -> None:
        """An engine is going to close its connection, and does not die."""
        engine.leaves = True

    def do_retire(self, engine: Engine) -> None:
        """Leave the directory to a launcher in the engine's situation; what runs stays ours until it has ended."""
        self.goes_on = False
        self.keepers = ()

    def do_env(self, engine: Engine, key: str, env: dict[str, str], umask: int) -> None:
        """An environment that starts refer to by key; it is never written down."""
        engine.environments[key] = (env, umask)

    def do_start(
        self,
        engine: Engine,
        id: str,
        task: str,
        env: str,
        stdin: bool,
        stdout: bool,
        stderr: str,
        limits: dict[str, Any] | None = None,
    ) -> None:
        """Start `{directory}/{log}/{id}/exe`, once; its answer is started, refused, absent or ended."""
        log, epoch = id.split(".")[:2]
        claim = {"epoch": int(epoch), "home": engine.home, "engine": [engine.pid, engine.start]}
        try:
            other = self.owners.other(log, claim)
        except OSError as error:
            self._refuse(engine, id, True, explained(error, self._named(self.owners.path(log))))
            return
        if other:
            text = (
                f"{other} has used {self._named(self.directory)}: go on with that one, give this pipeline's manager another app"
                f" name, or remove {self._named(self.owners.path(log))} if nothing that it did matters any more"
            )
            self._refuse(engine, id, True, text, occupied=True)
            return
        facts = self.runs.get(id)
        if facts is not None and not facts.get("refused", {}).get(
            "temporary"
        ):  # as earlier versions wrote it down
            self._tell_state(engine, id, facts)
            return
        if engine.unfit:
            engine.tell({"unfit": id, "message": engine.unfit})
            return
        if (self.children or self.strangers) and (short := self.headroom.short()):
            self._refuse(engine, id, True, short)
            return
        facts = self.runs[id] = {"id": id, "task": task}
        facts["intended"] = proctable.now()
        folder = facts["folder"] = self._named(self._folder(id))
        self.journal.add(facts)
        variables, umask = engine.environments[env]
        merged = stderr == "stdout"
        names = [*(["stdout"] if stdout else []), *(["stderr"] if stderr and not merged else [])]
        files: dict[str, int] = {}
        try:
            if not self.journal.write_out():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.journal.path)
            confinement = None if limits is None else self._confinement(facts, **limits)
            files = outputs.make(folder, names, umask)
            pid = spawn(folder, {**variables, MARK: folder}, umask, stdin, files, merged, confinement)
        except OSError as error:
            outputs.close(files)
            cgroups.remove(facts.pop("groups", []))
            refusal = {"refused": id, "temporary": False, "message": explained(error, folder)}
            if error.errno in TEMPORARY:  # it may be asked for again
                refusal["temporary"] = True
                del self.runs[id]
                self.journal.add({"id": id, "forgotten": True})
            else:
                facts["refused"] = refusal
                self.journal.add({"id": id, "refused": refusal})
            engine.tell(refusal)
            return
        facts |= {"pid": pid, "start": proctable.start_time(pid) or 0, "began": time.time_ns()}
        facts["files"] = outputs.identities(files)
        self.outputs.begin(id, files)
        self.journal.add(facts)
        if not self.children:
            self.oom_kills = cgroups.oom_kills()
        self.children[pid] = id
        self.refusals[id] = self.headroom.started()
        engine.tell(self._started(facts))

    def _confinement(self, facts: Facts, how: str, cpu: float, memory: int) -> Confinement:
        """Return what has the kernel enforce a run's limits; `OSError` where it cannot."""
        if how == "ulimit":
            return Confinement(address_space=memory)
        name = f"{facts['id']}.{zlib.crc32(os.fsencode(self._named(self.directory))):08x}"
        groups = self.groups.make(name, cpu, memory)
        facts |= {"groups": groups, "memory": memory}
        self.journal.add({"id": facts["id"], "groups": groups, "memory": memory})
        return Confinement(groups)

    def _refuse(
        self, engine: Engine, identity: str, temporary: bool, text: str, *, occupied: bool = False
    ) -> None:
        engine.tell({"refused": identity, "temporary": temporary, "message": text, "occupied": occupied})

    def _started(self, facts: Facts) -> dict[str, Any]:
        return {
            "started": facts["id"],
            "pid": facts["pid"],
            "start": facts["start"],
            "boot": self.boot,
            "began": facts["began"],
        }

    def _tell_state(self, engine: Engine, identity: str, facts: Facts) -> None:
        if "refused" in facts:
            engine.tell(facts["refused"])
        elif "barred" in facts:
            engine.tell({"absent": identity, "why": facts.get("why", "")})
        elif "ended" not in facts:
            engine.tell(self._started(facts))
        elif identity not in self.untold:  # else it is told as soon as the disk has it
            engine.tell(self._end_of(identity, facts["ended"]))

    def _end_of(self, identity: str, message: Facts) -> Facts:
        """Return how a run ended, and where its outputs can be read if need be."""
        return message | {"held": self.outputs.paths(identity)}

    def do_settle(self, engine: Engine, id: str) -> None:
        """Say what became of a run; one that nobody started is barred from ever starting, durably."""
        facts = self.runs.get(id)
        if facts is None:
            pid = proctable.find_by_argument(os.path.join(self._named(self._folder(id)), "exe"))
            facts = self.runs[id] = {"id": id}
            if pid is None or not self._watch_found(facts, pid):
                facts["barred"] = True
                self.journal.add({"id": id, "barred": True})
        self._tell_state(engine, id, facts)

    def do_stop(self, engine: Engine, id: str, grace: float, reason: str) -> None:
        """TERM to the group now, KILL to all it has begun after the grace; one that has ended stays as it is."""
        facts = self.runs.get(id, {})
        if "pid" in facts and "ended" not in facts and proctable.is_alive(facts["pid"], facts["start"]):
            facts["stopped"] = reason
            self.journal.add({"id": id, "stopped": reason})
            self.families.see(id, facts["pid"], self._mark(id))
            if grace > 0 and id not in self.stopping:
                signal_group(facts["pid"], signal.SIGTERM)
            self.stopping.add(id)
            heapq.heappush(self.alarms, (time.monotonic() + grace, "kill", id))

    def do_sweep(self, engine: Engine, task: str, keep: list[str]) -> None:
        """Remove what earlier engines of this log left of a task and no longer count as open."""
        kept = set(keep)
        for identity, facts in list(self.runs.items()):
            log, _, rest = identity.partition(".")
            old = log == engine.log and int(rest.partition(".")[0]) < engine.epoch
            if old and facts.get("task", task) == task and identity not in kept:
                if "pid" in facts and "ended" not in facts:
                    self.do_stop(engine, identity, 0.0, "cancelled")
                else:
                    self.do_forget(engine, identity)
                    engine.tell({"swept": identity})

    def do_forget(self, engine: Engine, id: str) -> None:
        """The end is recorded in the log: nothing more will be asked about this run."""
        self.untold.pop(id, None)
        self.outputs.forget(id)
        if self.runs.pop(id, None) is not None:
            self.journal.add({"id": id, "forgotten": True})
            self.journal.compact(self.runs)

    # --- ends -----------------------------------------------------------------------------------

    def _reap(self) -> None:
        while True:
            try:
                seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if seen is None:
                return
            identity = self.children.pop(seen.si_pid, None)
            if identity is not None:
                signal_group(seen.si_pid, signal.SIGKILL)  # a zombie still, so the pid is its own
                self.journal.add({"id": identity, "status": _wait_status(seen)})  # nobody else is told it
            pid, status, usage = os.wait4(seen.si_pid, 0)
            if identity is not None:
                self.families.clear(identity, pid, self._mark(identity))
                cpu = usage.ru_utime + usage.ru_stime
                self._ended(identity, status, cpu_seconds=round(cpu, 6), rss_bytes_max=usage.ru_maxrss * 1024)

    def _ended(
        self, identity: str, status: int | None, *, why: str = "", machine: bool = False, **usage: float
    ) -> None:
        facts = self.runs[identity]
        self.stopping.discard(identity)
        self.families.forget(identity)
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
            message["files"], message["unknown"] = facts.get("files"), facts.get("unknown", False)
            message["sizes"], message["written"] = self.outputs.end(
                identity, self._folder(identity), facts.get("files")
            )
            message["full"] = bool(message["sizes"]) and not folders.has_room(self._folder(identity))
        if code in KILLED and not message["stopped"] and cgroups.oom_kills() > self.oom_kills:
            message["killed_for_memory"] = True  # in some group of the machine
        before = self.refusals.pop(identity, None)
        if (
            before is not None
            and (code or 0) > 0
            and not message["stopped"]
            and self.headroom.refusals() > before
        ):
            message |= {"code": None, "why": NO_PROCESSES.format(code)}
        if facts.get("groups"):
            self._left(facts, message)
        if seconds := self._doubtful(message):
            self.held[identity] = message
            heapq.heappush(self.alarms, (time.monotonic() + seconds, "doubt", identity))
        else:
            self._record(identity, message)

    def _doubtful(self, message: Facts) -> float:
        """Return for how long an end is held, since it may be the doing of whoever stops the machine or the service."""
        if message["stopped"] or message["why"]:
            return 0.0
        return self.doubts.held_seconds(message["code"])

    def _decide(self, identity: str) -> None:
        """Record an end that was held, as the script's or as nobody's."""
        message = self.held.pop(identity, None)
        if message is None:
            return
        code, log = message["code"], identity.partition(".")[0]
        if self.doubts.is_from_outside(log, code, message["began"], message["at"]):
            message |= {"code": None, "why": stopped_from_outside(code), "machine": True}
        self._record(identity, message)

    def _record(self, identity: str, message: Facts) -> None:
        self.runs[identity]["ended"] = self.untold[identity] = message
        self.journal.add({"id": identity, "ended": message})

    def _left(self, facts: Facts, message: Facts) -> None:
        """Say what the kernel knows of a run's groups, and remove them."""
        groups = facts["groups"]
        peak, kills = cgroups.used(groups)
        if peak is not None:
            message["usage"]["memory_bytes_max"] = peak
        if kills:
            message["why"] = (
                f"out of memory: the kernel killed at the {facts['memory']} bytes of its resources"
            )
        if not cgroups.remove(groups):
            heapq.heappush(self.alarms, (time.monotonic() + 0.05, "groups", "\n".join(groups)))

    def _tell_ends(self) -> None:
        """Tell the ends that the disk has, and have it take those that came meanwhile, as many as there are at once."""
        for identity in self.syncs.done():
            message = self.untold.pop(identity, None)
            if message is not None:
                self.engines.tell(identity.partition(".")[0], self._end_of(identity, message))
        self.syncs.begin(self.untold)

    def _ring(self) -> None:
        while self.alarms and self.alarms[0][0] <= time.monotonic():
            _, what, identity = heapq.heappop(self.alarms)
            if what == "groups":
                if not cgroups.remove(identity.split("\n")):
                    heapq.heappush(self.alarms, (time.monotonic() + 0.2, what, identity))
                continue
            if what == "doubt":
                self._decide(identity)
                continue
            facts = self.runs.get(identity, {"ended": True})
            if what == "status" and identity in self.strangers:
                self._stranger_ended(identity)
            elif what == "kill" and "ended" not in facts:
                if proctable.start_time(facts["pid"]) == facts["start"]:
                    self.families.see(identity, facts["pid"], self._mark(identity))
                    self.families.clear(identity, facts["pid"], self._mark(identity))

    # --- runs of an earlier launcher ------------------------------------------------------------

    def _take_over(self) -> None:
        for identity, facts in self.runs.items():
            if {"refused", "barred"} & facts.keys():
                continue
            if "ended" in facts:
                self._still_ended(identity, facts)
            elif self.journal.boot_before != self.boot:
                self._ended(identity, None, why=REBOOTED)
            elif self.journal.place_before != self.journal.place and owners.is_elsewhere(
                facts, self.journal.place_before
            ):
                self._leave_alone(facts)
            elif "status" in facts:
                self._find_outputs(facts)
                self._ended_unseen(identity, facts["status"])
            elif "pid" not in facts:
                exe = os.path.join(self._named(self._folder(identity)), "exe")
                pid = proctable.find_by_argument(exe) or self._unnamed(facts.get("intended", 0))
                if pid is None or not self._watch_found(facts, pid):
                    self._ended(identity, None, why=VANISHED, machine=True)
            elif self.strangers.watch(identity, facts["pid"], facts["start"]):
                self._find_outputs(facts)
                if not proctable.is_alive(facts["pid"], facts["start"]):
                    self.unseen.add(identity)
            else:
                self._ended(identity, None, why=VANISHED, machine=True)

    def _ended_unseen(self, identity: str, status: int) -> None:
        """Take an end that came with that of the launcher before us: by the same signal, as far as anybody knows."""
        code = os.waitstatus_to_exitcode(status)
        if of_a_signal(code) is not None and "stopped" not in self.runs[identity]:
            self._ended(identity, None, why=stopped_from_outside(code), machine=True)
        else:
            self._ended(identity, status)
            self._decide(identity)

    def _still_ended(self, identity: str, facts: Facts) -> None:
        """A run ended under an earlier launcher: of before a restart of the machine, its outputs have to be as they were."""
        if self.journal.boot_before == self.boot:
            self._find_outputs(facts)
            return
        ended, known = facts["ended"], facts.pop("files", {})
        found = self._find_outputs(facts)  # a device may have another number now
        sizes, _ = self.outputs.end(identity, self._folder(identity), found)
        same = all(known.get(name, file)[1] == file[1] for name, file in found.items())
        if ended.get("sizes", {}) == sizes and same:
            facts["ended"] = {**ended, "files": found}
            self.journal.add(facts)
        else:
            self._ended(identity, None, why=TORN)

    def _find_outputs(self, facts: Facts) -> Files:
        folder = self._folder(facts["id"])
        if facts.get("files") is None:
            facts["unknown"] = True  # which of its streams were to be kept
        files: Files = self.outputs.find(facts["id"], folder, facts.get("pid", 0), facts.get("files"))
        facts["files"] = files
        return files

    def _leave_alone(self, facts: Facts) -> None:
        """The run is that of the project of which this is a copy."""
        identity, task = facts["id"], facts.get("task", "")
        facts.clear()
        facts |= {"id": identity, "task": task, "barred": True, "why": OF_THE_ORIGINAL}
        self.journal.compact(self.runs, at_once=True)

    def _unnamed(self, since: int) -> int | None:
        """Return what the launcher before us was starting as it was killed, if it has ended already.

        A zombie has no arguments to know it by. But a launcher starts one run at a time, at once after it has written
        the intent down, and our keeper has become its parent.
        """
        known = {facts.get("pid") for facts in self.runs.values()}
        until = since + proctable.ticks(SPAWN_SECONDS_MAX)
        zombies = {
            child.start: pid
            for one in self.keepers or (subreaper.Keeper(os.getppid(), 0),)
            for pid, child in proctable.children(one.pid).items()
            if child.is_zombie
            and child.session == pid
            and since <= child.start <= until
            and pid not in known
            and proctable.name(pid) in ("exe", "sh")
        }
        return zombies[min(zombies)] if zombies else None

    def _watch_found(self, facts: Facts, pid: int) -> bool:
        facts |= {"pid": pid, "start": proctable.start_time(pid) or 0, "began": time.time_ns()}
        self._find_outputs(facts)
        self.journal.add(facts)
        return self.strangers.watch(facts["id"], facts["pid"], facts["start"])

    def _stranger_ended(self, identity: str) -> None:
        known, status = self.strangers.status(identity)
        if not known:
            heapq.heappush(self.alarms, (time.monotonic() + 0.05, "status", identity))
            return
        facts = self.runs[identity]
        if proctable.start_time(facts["pid"]) == facts["start"]:
            signal_group(facts["pid"], signal.SIGKILL)
        self.families.clear(identity, facts["pid"], self._mark(identity))
        if status is not None and identity in self.unseen:
            self._ended_unseen(identity, status)
        else:
            vanished = status is None
            self._ended(identity, status, why=VANISHED if vanished else "", machine=vanished)


def _wait_status(seen: os.waitid_result) -> int:
    """Return what `wait` is going to return for a zombie."""
    if seen.si_code == os.CLD_EXITED:
        return seen.si_status << 8
    return seen.si_status | (CORE_DUMPED if seen.si_code == os.CLD_DUMPED else 0)


def main(directory: str) -> int:
    """Serve the directory in a process of its own, unless another launcher does."""
    if os.fork():
        os._exit(0)  # the engine waits for this one, so that nothing of it is left behind
    os.umask(0o077)
    lock = os.open(os.path.join(directory, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return subreaper.keep(lambda keepers: _serve(f"/proc/self/fd/{place}", lock, keepers))


def _serve(directory: str, lock: int, keepers: Sequence[subreaper.Keeper]) -> int:
    """Serve; where that is over before the runs are, be what keeps them: of the next launcher, or beside it."""
    _close_all_but(lock, int(os.path.basename(directory)))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return subreaper.RETIRED  # the launcher before us has left the directory to another one
    proctable.adopt_orphans()  # so that they do not pile up as zombies where pid 1 reaps none
    pid = str(os.getpid()).encode()
    os.pwrite(lock, pid, 0)  # never empty: who reads it may be about to signal what it names
    os.ftruncate(lock, len(pid))
    launcher = Launcher(directory, keepers)
    if not launcher.serve():
        return 0
    if launcher.keepers:
        launcher.hang_up()
        return subreaper.keep(lambda above: _serve(directory, lock, above), launcher.keepers)
    fcntl.flock(lock, fcntl.LOCK_UN)
    launcher.hang_up()
    subreaper.linger()
    return 0


def _close_all_but(*kept: int) -> None:
    """Let go of what a launcher before us had open as it forked us: it has it still."""
    for name in os.listdir("/proc/self/fd"):
        if (fd := int(name)) > 2 and fd not in kept:
            with contextlib.suppress(OSError):  # that of the listing is closed already
                os.close(fd)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
