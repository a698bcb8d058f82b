"""The launcher: a small process that starts runs, outlives the engine, and knows how each run ended.

In, over a Unix socket in its directory, one JSON object a line: hello, env, start, stop, settle, sweep, forget, retire, bye. Out,
to the engine whose log the run belongs to: started, refused, unfit, ended, absent. It is the parent of the runs (`starts`,
`ends`), so no exit code is lost when an engine dies; all it knows is in its journal, so that the next launcher goes on when
it is killed (`starts`). With no runs and no engine it ends by itself. Imports the standard library and its siblings only:
it starts in a few hundredths of a second. The engine's side is `client`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.local import spawning, subreaper
from datatask.adapters.execute.local.ends import Ends
from datatask.adapters.execute.local.engine_connections import Engine, Engines
from datatask.adapters.execute.local.folders import Owners
from datatask.adapters.execute.local.journal import LaunchedRuns
from datatask.adapters.execute.local.starts import Starts, Takeover

LOCK = "launcher.lock"
IDLE_SECONDS = 10.0
OPERATIONS_PER_TURN = 16
SYNC_SECONDS_MAX = 5.0
LOOK_SECONDS = 0.5


class Launcher:
    """The process that starts and watches runs of one directory, and the engines that are connected to it."""

    def __init__(self, directory: str, subreapers: Sequence[subreaper.Subreaper] = ()) -> None:
        self.runs = runs = LaunchedRuns(directory)
        self.subreapers = subreapers
        self.situation = spawning.present()
        self.goes_on = True
        self.selector = selectors.DefaultSelector()
        self.engines = Engines(runs.directory, self.selector)
        self.ends = Ends(runs, self.engines)
        self.earlier = Takeover(runs, self.ends, self.selector)
        self.owners = Owners(runs.directory)
        self.starts = Starts(runs, self.ends, self.owners)
        self.idle_since = time.monotonic()

    # --- the loop -------------------------------------------------------------------------------

    def serve(self) -> bool:
        """Take over what an earlier launcher left, then serve until idle; whether another launcher is to go on."""
        wake, signalled = socket.socketpair()
        wake.setblocking(False)
        signalled.setblocking(False)
        self.ends.open(lambda: signalled.send(b"."))
        signal.set_wakeup_fd(signalled.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in subreaper.GOODBYES:
            signal.signal(number, lambda *_: self.ends.shutdown.signalled())
        self.selector.register(wake, selectors.EVENT_READ, "child")
        if self.runs.outputs.cuts.fileno() >= 0:
            self.selector.register(self.runs.outputs.cuts, selectors.EVENT_READ, self.runs.outputs)
        self.engines.listen()
        self.earlier.load(self.subreapers)
        self._watch_keepers()
        while not self._is_idle():
            if not self.goes_on and not self.ends.held and self.runs.journal.write_out():
                self._let_go()
                return True
            pending = any(engine.lines for engine in self.engines)
            for key, mask in self.selector.select(0 if pending else self._patience()):
                self._handle(key, mask)
            self.ends.reap()
            self.earlier.look()
            self.runs.alarms.ring()
            self.ends.tell_all()
            for engine in self.engines:
                self._operate(engine)
            for engine in self.engines:
                self.engines.send(engine)
        self.engines.leave()
        return False

    def _watch_keepers(self) -> None:
        """Notice when a subreaper dies: the next launcher is to have us for one."""
        for one in self.subreapers:
            try:
                self.selector.register(os.pidfd_open(one.pid), selectors.EVENT_READ, "subreaper")
            except OSError:
                pass  # it is gone, or there is no descriptor to hear of its end by
            self.goes_on = self.goes_on and one.is_alive()

    def _let_go(self) -> None:
        """Have nothing open that the next launcher opens; the runs stay our children, what we know is in the journal."""
        for engine in self.engines:
            self.engines.send(engine)
        self.engines.leave()
        self.earlier.watched.leave()
        signal.set_wakeup_fd(-1)
        self.ends.close(SYNC_SECONDS_MAX)
        self.runs.journal.close()

    def hang_up(self) -> None:
        """Have the engines look for the next launcher."""
        for engine in self.engines:
            self.engines.hang_up(engine)
        self.selector.close()

    def _is_idle(self) -> bool:
        if self.runs.children or self.earlier.watched or self.ends:
            self.idle_since = time.monotonic()
            return False
        if self.ends.shutdown.is_under_way:
            return True
        if self.engines:
            self.idle_since = time.monotonic()
        return time.monotonic() - self.idle_since > IDLE_SECONDS

    def _patience(self) -> float:
        return self.runs.alarms.patience(
            LOOK_SECONDS if self.earlier.watched.without_descriptor else IDLE_SECONDS / 4
        )

    def _handle(self, key: selectors.SelectorKey, mask: int) -> None:
        if key.data is self.engines:
            self.engines.accept()
        elif key.data is self.runs.outputs:
            self.runs.outputs.look()
        elif key.data == "child":
            key.fileobj.recv(4096)  # type: ignore[union-attr]
        elif isinstance(key.data, Engine):
            if mask & selectors.EVENT_READ:
                self._receive(key.data)
        elif key.data == "subreaper":
            self.selector.unregister(key.fd)
            self.goes_on = False
        else:
            self.earlier.ended(str(key.data))

    def _receive(self, engine: Engine) -> None:
        if not self.engines.receive(engine) and engine.log:
            if not engine.leaves and not any(b'"bye"' in line for line in engine.lines):
                self.ends.shutdown.engine_died(engine.log)

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
        engine.tell({"hello": os.getpid(), "boot": self.runs.boot})

    def do_bye(self, engine: Engine) -> None:
        """An engine is going to close its connection, and does not die."""
        engine.leaves = True

    def do_retire(self, engine: Engine) -> None:
        """Leave the directory to a launcher in the engine's situation; what runs stays ours until it has ended."""
        self.goes_on = False
        self.subreapers = ()

    def do_env(self, engine: Engine, key: str, env: dict[str, str], umask: int) -> None:
        """An environment that starts refer to by key; it is never written down."""
        engine.environments[key] = (env, umask)

    def do_start(self, engine: Engine, id: str, **wanted: Any) -> None:
        """Start a run, once; its answer is started, refused, unfit, absent or ended."""
        alone = not self.runs.children and not self.earlier.watched
        self.starts.start(engine, id, wanted, alone=alone)

    def do_settle(self, engine: Engine, id: str) -> None:
        """Say what became of a run; one that was never started is barred from ever starting, durably."""
        if id not in self.runs.facts:
            self.earlier.look_for(id)
        self.starts.tell_state(engine, id)

    def do_stop(self, engine: Engine, id: str, grace: float, reason: str) -> None:
        """TERM to the group now, KILL to all it has begun after the grace."""
        self.ends.stop(id, grace, reason)

    def do_sweep(self, engine: Engine, task: str, keep: list[str]) -> None:
        """Remove what earlier engines of this log left of a task and no longer count as open."""
        kept = set(keep)
        for identity, facts in list(self.runs.facts.items()):
            log, _, rest = identity.partition(".")
            old = log == engine.log and int(rest.partition(".")[0]) < engine.epoch
            if old and facts.get("task", task) == task and identity not in kept:
                if "pid" in facts and "ended" not in facts:
                    self.ends.stop(identity, 0.0, "cancelled")
                else:
                    self.do_forget(engine, identity)
                    engine.tell({"swept": identity})

    def do_forget(self, engine: Engine, id: str) -> None:
        """The end is recorded in the log: nothing more will be asked about this run."""
        self.ends.unreported.pop(id, None)
        self.runs.forget(id)


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
    return subreaper.keep(lambda subreapers: _serve(f"/proc/self/fd/{place}", lock, subreapers))


def _serve(directory: str, lock: int, subreapers: Sequence[subreaper.Subreaper]) -> int:
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
    launcher = Launcher(directory, subreapers)
    if not launcher.serve():
        return 0
    if launcher.subreapers:
        launcher.hang_up()
        return subreaper.keep(lambda above: _serve(directory, lock, above), launcher.subreapers)
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
