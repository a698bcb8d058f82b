"""A process task's runs on SSH targets: from a run that was decided to facts about it.

In: a task's recipe, the engine's runs, the manager's hosts. Out: facts. A run is placed on a host with room, its
folder is uploaded, its start is asked for; how it ended is pushed by the agent, then its output is fetched. What the
agent's words mean for the engine is decided here; what holds on the target's side is in `agent.sh`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import msgspec

from datatask.adapters.execute.base.endings import (
    ended_by_machine,
    judged,
    on_full_disk,
    stopped_ending,
    unstarted_ending,
)
from datatask.adapters.execute.base.machines import Recipe
from datatask.adapters.execute.base.runner import TrackedRun, TrackedRuns
from datatask.adapters.execute.base.shutdowns import NEAR_SECONDS, stopped_from_outside
from datatask.adapters.execute.ssh import agent_messages
from datatask.adapters.execute.ssh.agent_messages import Record, parse
from datatask.adapters.execute.ssh.placement import Hosts
from datatask.adapters.execute.ssh.target import LinkLostError, Target
from datatask.adapters.execute.ssh.transfers import (
    Contents,
    differs,
    drop,
    fetch,
    make_folder,
    upload,
)
from datatask.engine.ports import Sink
from datatask.engine.runtime.services import current
from datatask.schema.events import Ending, ErrorInfo, StopReason
from datatask.schema.messages import Noticed, Printed, RunSpec, printed_of
from datatask.schema.units import SECOND

TICKS = 100  # a second, in what /proc tells; the kernel's USER_HZ, the same on every machine
WAIT_SECONDS = 1.0
_TORN = ErrorInfo(
    type="Lost", message="the machine went down while the end was written: the record is not whole"
)
_GONE = {
    "restarted": "the machine was restarted while it ran",
    "unwatched": "the shell that waited for it was killed and the process is gone; nobody recorded how it ended",
}
_MOMENTARY = {
    "full": "the target's disk is full",
    "busy": "the target has no room for another process",
}


class SSHRun(TrackedRun):
    """A run on a host; `searched` are those that it may be on, `again` is set where one had no room for it."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__(spec)
        self.target: Target | None = None
        self.searched: list[Target] = []
        self.answers: dict[str, str] = {}
        self.grace = 0
        self.asked = self.again = False
        self.outputs: Contents = {}
        self.doubt: asyncio.TimerHandle | None = None

    @property
    def targets(self) -> set[Target]:
        """The hosts that are asked about it."""
        return {target for target in (self.target, *self.searched) if target is not None}


class SSHRunner:
    """One task's runs, over the targets that all of a manager's tasks share."""

    def __init__(self, hosts: Hosts, recipe: Recipe) -> None:
        self._hosts = hosts
        self._recipe = recipe
        self._swept: set[str] = set()

    async def open(self, sink: Sink) -> None:
        """Connect; a target that does not answer now is waited for, one that turns us away is an error."""
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._services = current()
        self._runs = TrackedRuns[SSHRun](self._recipe.task, self, sink)
        await self._hosts.attach(self._recipe)

    def _made(self, spec: RunSpec) -> SSHRun:
        self._hosts.own(spec.identity, spec.log)
        return SSHRun(spec)

    def _sweep(self, keep: list[str]) -> None:
        for target in self._hosts.targets:
            if target.label not in self._swept:
                self._swept.add(target.label)
                target.sweep(self._recipe.task, keep)

    # --- starting ---------------------------------------------------------------------------------

    def start(self, spec: RunSpec) -> None:
        """Render, place, upload, and ask the target to start it; once per identity."""
        if spec.run not in self._runs:
            self._runs.start(self._made(spec))

    def begin(self, run: SSHRun) -> None:
        """Begin a run, on whatever host has room."""
        self._runs.prepare(run, self._prepare)

    def let_go(self, run: SSHRun) -> None:
        """Ask the hosts nothing more about a run; its room is free when it has ended."""
        run.asked = False
        for target in run.targets:
            target.done(run.spec.identity)
        if run.ended:
            self._hosts.release(run.spec.identity)

    def where(self, run: SSHRun) -> str:
        """Return the run's host."""
        return "" if run.target is None else run.target.label

    async def _prepare(self, run: SSHRun) -> None:
        script = (await self._recipe.render(run.spec)).encode()
        target = await self._deliver(run, script)
        if run.ended:
            return
        run.asked = True
        self._sweep([])
        name, variables = target.name(run.spec.identity), self._hosts.variables(self._recipe, run.spec.spent)
        own = agent_messages.own_variables(variables, run.spec.variables)
        question = agent_messages.start(self._recipe, name, own.name, script, again=run.again)
        if own.definition:
            question = f"{own.definition}\n{question}"
        target.watch(run.spec.identity, self, question)

    async def _deliver(self, run: SSHRun, script: bytes) -> Target:
        """Return a host with room that answers; upload what the start does not bring along.

        While the run has not been asked for, it may go to another host.
        """
        identity, job = run.spec.identity, run.spec.job
        while True:
            if run.target is not None and run.again:
                run.target.watch(identity, self)
            if run.target is None or (
                not run.again and not run.target.is_up and self._hosts.others_up(run.target)
            ):
                if run.target is not None:
                    run.target.done(identity)
                    self._hosts.release(identity)
                run.target = await self._hosts.place(identity, self._recipe.takes(run.spec))
                run.target.watch(identity, self)
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    await run.target.up()
                if agent_messages.travels(self._recipe, script):
                    await make_folder(run.target, identity)
                else:
                    await upload(run.target, identity, script, self._recipe.stdin, job)
                return run.target
            except TimeoutError:
                continue  # another host may answer now
            except LinkLostError:
                await asyncio.sleep(0.05)

    def stop(self, run: int, reason: StopReason, grace: int) -> None:
        """TERM to the run's process group, KILL to its session after the grace."""
        found = self._runs.get(run)
        if found is None or found.over:
            return
        found.reason, found.grace = reason, grace
        if found.asked:
            self._stop(found)
        elif not found.recovering:
            self._runs.pressure.withdraw(run)
            if found.work is not None:
                found.work.cancel()
            self._runs.end(found, stopped_ending(reason))

    def _stop(self, run: SSHRun) -> None:
        if run.target is not None and run.reason is not None:
            run.target.stop(run.spec.identity, run.grace / SECOND, run.reason)

    def hold_back(self) -> Iterable[int]:
        """Return the runs that no target has been asked to start: they wait for room, or for one that answers."""
        return [run.spec.run for run in self._runs if not (run.asked or run.recovering or run.over)]

    # --- recovering -------------------------------------------------------------------------------

    async def recover(self, specs: Iterable[RunSpec]) -> None:
        """Ask the targets about each run; one that none has started is barred from starting and lost."""
        listed = list(specs)
        self._sweep([spec.identity for spec in listed])
        for spec in listed:
            run = self._runs.recover(self._made(spec))
            host = (spec.handle or {}).get("host")
            known = [target for target in self._hosts.targets if target.label == host]
            if host is not None and not known:
                text = f"{host}, where it runs, is none of this manager's hosts"
                self._runs.unreachable(run, text, str(host))
                continue
            run.searched = known or list(self._hosts.targets)
            for target in run.searched:
                target.watch(spec.identity, self, f"settle {target.name(spec.identity)}")
            if len(run.searched) == 1:
                self._found(run, run.searched[0])
        await self._runs.accounted()

    def _found(self, run: SSHRun, target: Target) -> None:
        """The run is on this target, or nowhere."""
        if run.target is None:
            run.target = target
            run.asked = True
            self._hosts.occupy(run.spec.identity, target, self._recipe.takes(run.spec))
            self._stop(run)

    # --- what a target says -----------------------------------------------------------------------

    def on_answer(self, target: Target, words: list[str]) -> None:
        """Turn the agent's answer into a fact."""
        run = self._runs.named(words[1])
        if run is None or run.over:
            return
        match words:
            case ["started" | "running", _, pid, start, boot]:
                self._found(run, target)
                self._started(run, target, pid, start, boot)
            case ["ended", _, *facts]:
                self._found(run, target)
                if (record := parse(facts)) is not None:
                    self._ended(run, target, record)
                else:
                    self._runs.end(run, Ending(outcome="lost", error=_TORN))
            case ["refused", _, *why]:
                self._refused(run, why)
            case ["absent" | "elsewhere", *_]:
                self._absent(run, target, words[0])
            case ["vanished", _, why]:
                self._found(run, target)
                ending = Ending(outcome="lost", error=ErrorInfo(type="Lost", message=_GONE[why]))
                if run.reason is not None and why == "unwatched":
                    ending = stopped_ending(run.reason)
                self._runs.end(run, ending)
            case ["blocked", *_]:
                self._runs.unreachable(run, f"{target.label}: nothing can be written there", target.label)

    def _absent(self, run: SSHRun, target: Target, answer: str) -> None:
        run.answers[target.label] = answer
        if len(run.answers) < len(run.searched) and run.target is None:
            return
        if "elsewhere" in run.answers.values():
            text = "it was started under another name of its host; name the host as before (SSHHost(name=…))"
            self._runs.unreachable(run, text, target.label)
        elif run.reason is not None:
            self._runs.end(run, stopped_ending(run.reason))
        else:
            self._runs.end(run, unstarted_ending())

    def _refused(self, run: SSHRun, why: list[str]) -> None:
        if why[0] in _MOMENTARY:
            run.again = True
            self._runs.no_room(run, f"{self.where(run)}: {_MOMENTARY[why[0]]}")
            return
        text = {
            "interpreter": f"the interpreter {' '.join(why[1:])} of the script's first line cannot be run",
            "enforce": f"enforce=True is not possible on {self.where(run)}: {' '.join(why[1:])};"
            " log in as root or in a delegated group there, or pass enforce='ulimit'",
        }.get(why[0], " ".join(why[1:]))
        error = ErrorInfo(type="Refused", message=f"it could not be started: {text}")
        self._runs.end(run, Ending(outcome="refused", error=error))

    def _started(self, run: SSHRun, target: Target, pid: str, start: str, boot: str) -> None:
        target.settle_later(run.spec.identity)
        handle: dict[str, str | int] = {
            "host": target.label,
            "pid": int(pid),
            "start": int(start),
            "boot": boot,
        }
        self._runs.started(run, handle, _at(target, int(start) / TICKS))

    def _ended(self, run: SSHRun, target: Target, record: Record) -> None:
        """Take an end; one by a signal only when it is clear that the target was not being stopped."""
        if run.doubt is not None:
            return
        if run.reason is None and record.is_in_doubt:
            run.doubt = self._loop.call_later(NEAR_SECONDS, self._decided, run, target, record)
        else:
            self._decided(run, target, record)

    def _decided(self, run: SSHRun, target: Target, record: Record) -> None:
        if run.ended:
            return
        if not run.started and not run.recovering and record.code is not None:
            self._started(run, target, record.pid, record.start, record.boot)
        run.over = True
        resources = self._recipe.takes(run.spec)
        ending = record.ending(run.reason, int(resources.mem) if resources is not None else 0)
        same = record.boot == target.boot
        if run.reason is None and record.is_in_doubt and record.code is not None:
            if not same or target.was_lost_near(_at(target, record.at)):
                ending = ended_by_machine("stopped", stopped_from_outside(record.code))
        if record.full:
            ending = on_full_disk(ending)
        ending = msgspec.structs.replace(
            ending,
            started_at=_at(target, int(record.start) / TICKS) if same else None,
            ended_at=_at(target, record.at) if same else time.time_ns(),  # noqa: TID251 - the runner's clock
            usage={"cpu_seconds": record.cpu_seconds}
            | ({} if record.peak is None else {"memory_bytes_max": record.peak}),
            reads=run.reads,
            where=target.label,
        )
        wanted = self._recipe.outputs
        if not wanted or ending.outcome == "lost":
            self._runs.end(run, ending)
            return
        full = {name: record.sizes[name] for name in wanted if name in record.sizes}
        wrong = {name: words for name, words in record.wrong.items() if name in wanted}
        ending = judged(ending, wrong, full)
        if ending.outcome == "lost":
            self._runs.end(run, ending)
            return
        run.outputs.update((name, b"") for name in wanted if name not in full and name not in wrong)
        if full:
            run.work = self._loop.create_task(self._collect(run, target, ending, full, record.sums))
            self._services.mind(run.work, "the collecting of a run's output over SSH")
        else:
            self._end(run, ending)

    async def _collect(
        self, run: SSHRun, target: Target, ending: Ending, sizes: dict[str, int], sums: dict[str, str]
    ) -> None:
        """Fetch the outputs and end the run with them; one whose output is not whole any more is lost."""

        def notice(text: str) -> None:
            self._sink(Noticed(run.spec.run, "collecting", "output", text[:1000]))

        await fetch(target, run.spec.identity, sizes, run.outputs, self._hosts.spool, notice)
        small = all(isinstance(run.outputs[name], bytes) for name in sizes)
        check = differs(run.outputs, sizes, sums) if small else ""
        if not small:
            check = await asyncio.to_thread(differs, run.outputs, sizes, sums)
        run.work = None
        if ending.outcome in ("succeeded", "failed") and check:
            ending = Ending(outcome="lost", error=ErrorInfo(type="Lost", message=check))
            drop(run.outputs)
            run.outputs.clear()
        self._end(run, ending)

    def _end(self, run: SSHRun, ending: Ending) -> None:
        """End a run with its outputs; what is kept of its streams is of those that are fetched."""
        printed: tuple[Printed, ...] = ()
        for name, content in run.outputs.items():
            if content is not None:
                printed += printed_of(name, content, run.spec.logs)
        self._runs.end(run, ending, self._recipe.writes(run.spec.job, run.outputs), printed)

    # --- silence ----------------------------------------------------------------------------------

    def on_silence(self, target: Target, identity: str, message: str) -> None:
        """Say that the run cannot be watched."""
        run = self._runs.named(identity)
        if run is not None and run.target in (None, target):
            self._runs.unreachable(run, message, target.label)

    def on_contact(self, target: Target, identity: str) -> None:
        """Say that it can be watched again."""
        run = self._runs.named(identity)
        if run is not None and run.target in (None, target):
            self._runs.reachable(run, target.label)

    # --- letting go -------------------------------------------------------------------------------

    def forget(self, run: int) -> None:
        """Remove the run's folder, and what was fetched from it."""
        if (found := self._runs.forget(run)) is not None:
            for target in found.targets:
                target.forget(found.spec.identity)
            drop(found.outputs)

    async def close(self, *, abandon: bool = False) -> None:
        """Let go: what is not handed to a target yet is never started, what runs goes on."""
        for run in self._runs:
            if run.doubt is not None:
                run.doubt.cancel()
        await self._runs.close()
        await self._hosts.detach()


def _at(target: Target, uptime: float) -> int:
    """Return a time of the target, in seconds since it booted, by our clock."""
    return target.booted_at() + int(uptime * SECOND)
