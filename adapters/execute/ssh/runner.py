"""A process task's runs on SSH targets: from a run that was decided to facts about it.

In: a task's recipe, the engine's runs, the manager's hosts. Out: facts. A run is placed on a host with room, its
folder is uploaded, its start is asked for; how it ended is pushed by the agent, then its output is fetched. What the
agent's words mean for the engine is decided here; what holds on the target's side is in `agent.sh`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from datatask.adapters.execute.base.endings import (
    ended_by_machine,
    judged,
    on_full_disk,
    stopped_ending,
    unstarted_ending,
)
from datatask.adapters.execute.base.machines import Recipe
from datatask.adapters.execute.base.pressure import Pressure, is_momentary
from datatask.adapters.execute.base.shutdowns import NEAR_SECONDS, stopped_from_outside
from datatask.adapters.execute.ssh import agent_messages
from datatask.adapters.execute.ssh.agent_messages import Record, parse
from datatask.adapters.execute.ssh.contact import LinkLostError, Target
from datatask.adapters.execute.ssh.placing import Hosts
from datatask.adapters.execute.ssh.transfers import (
    Contents,
    differs,
    drop,
    fetch,
    make_folder,
    upload,
    writes,
)
from datatask.engine.ports import Sink
from datatask.engine.run_context import RunContext, current_run
from datatask.engine.runtime.calls import error_info
from datatask.engine.runtime.services import current
from datatask.schema.errors import TemporaryError
from datatask.schema.events import Ending, ErrorInfo, StopReason
from datatask.schema.messages import Adopted, Ended, Noticed, Reachable, RunSpec, Started, Unreachable
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


class _Open:
    """One run between start and forget."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.target: Target | None = None
        self.searched: list[Target] = []
        self.answers: dict[str, str] = {}
        self.work: asyncio.Task[None] | None = None
        self.asked = False
        self.recovering = False
        self.stop: tuple[StopReason, int] | None = None
        self.reads: dict[str, int] | None = None
        self.started = False
        self.silent = False
        self.ended = False
        self.told = False
        self.outputs: Contents = {}
        self.again = False
        self.doubt: asyncio.TimerHandle | None = None


class SSHRunner:
    """One task's runs, over the targets that all of a manager's tasks share."""

    def __init__(self, hosts: Hosts, recipe: Recipe) -> None:
        self._hosts = hosts
        self._recipe = recipe
        self._runs: dict[int, _Open] = {}
        self._by_identity: dict[str, _Open] = {}
        self._accounted = asyncio.Event()
        self._swept: set[str] = set()

    async def open(self, sink: Sink) -> None:
        """Connect; a target that does not answer now is waited for, one that turns us away is an error."""
        self._sink = sink
        self._pressure = Pressure(self._recipe.task, sink)
        self._loop = asyncio.get_running_loop()
        self._services = current()
        await self._hosts.attach(self._recipe)

    def _take(self, spec: RunSpec) -> _Open:
        run = _Open(spec)
        self._runs[spec.run] = self._by_identity[spec.identity] = run
        self._hosts.own(spec.identity, spec.log)
        return run

    def _sweep(self, keep: list[str]) -> None:
        for target in self._hosts.targets:
            if target.label not in self._swept:
                self._swept.add(target.label)
                target.sweep(self._recipe.task, keep)

    # --- starting ---------------------------------------------------------------------------------

    def start(self, spec: RunSpec) -> None:
        """Render, place, upload, and ask the target to start it; once per identity."""
        if spec.run not in self._runs:
            run = self._take(spec)
            self._pressure.admit(spec.run, lambda: self._begin(run))

    def _begin(self, run: _Open) -> None:
        run.work = self._loop.create_task(self._prepare(run))
        self._services.mind(run.work, "the start of a run over SSH")

    def _refused_for_now(self, run: _Open, why: str) -> None:
        """Nothing was begun: it is begun again when there may be room, on whatever host then has some."""
        run.asked = False
        if run.target is not None:
            run.target.done(run.spec.identity)
        if run.stop is not None:
            self._end(run, stopped_ending(run.stop[0]))
        else:
            self._pressure.refused(run.spec.run, lambda: self._begin(run), why)

    async def _prepare(self, run: _Open) -> None:
        spec = run.spec
        context = RunContext(spec.run, spec.task, spec.job)
        current_run.set(context)
        try:
            script = (await self._recipe.render(spec)).encode()
            await self._deliver(run, script)
        except asyncio.CancelledError:
            return
        except Exception as error:
            if is_momentary(error):
                run.work = None
                self._refused_for_now(run, error_info(error).message)
                return
            if isinstance(error, TemporaryError | OSError):
                self._end(run, Ending(outcome="lost", error=error_info(error), where=self._where(run)))
                return
            info = error_info(error)
            told = ErrorInfo(type=info.type, message=f"{spec.task}[{spec.job}]: {info.message}")
            self._end(run, Ending(outcome="refused", error=told, where=self._where(run)))
            return
        finally:
            run.work = None
        if run.told:
            return
        run.reads = context.reads or None
        run.asked = True
        assert run.target is not None
        self._sweep([])
        variables = self._hosts.variables(self._recipe)
        question = agent_messages.start(
            self._recipe, run.target.name(spec.identity), variables, script, again=run.again
        )
        run.target.watch(spec.identity, self, question)

    async def _deliver(self, run: _Open, script: bytes) -> None:
        """Find a host with room that answers, and upload what the start does not bring along.

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
                run.target = await self._hosts.place(identity, self._recipe.resources)
                run.target.watch(identity, self)
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    await run.target.up()
                if agent_messages.travels(self._recipe, script):
                    await make_folder(run.target, identity)
                else:
                    await upload(run.target, identity, script, self._recipe.stdin, job)
                return
            except TimeoutError:
                continue  # another host may answer now
            except LinkLostError:
                await asyncio.sleep(0.05)

    def _where(self, run: _Open) -> str:
        return "" if run.target is None else run.target.label

    def stop(self, run: int, reason: StopReason, grace: int) -> None:
        """TERM to the run's process group, KILL to its session after the grace."""
        open_run = self._runs.get(run)
        if open_run is None or open_run.told or open_run.ended:
            return
        open_run.stop = reason, grace
        if open_run.asked and open_run.target is not None:
            open_run.target.stop(open_run.spec.identity, grace / SECOND, reason)
        elif not open_run.recovering:
            self._pressure.withdraw(run)
            if open_run.work is not None:
                open_run.work.cancel()
            self._end(open_run, stopped_ending(reason))

    def hold_back(self) -> Iterable[int]:
        """Return the runs that no target has been asked to start: they wait for room, or for one that answers."""
        return [
            id for id, run in self._runs.items() if not (run.asked or run.recovering or run.told or run.ended)
        ]

    # --- recovering -------------------------------------------------------------------------------

    async def recover(self, specs: Iterable[RunSpec]) -> None:
        """Ask the targets about each run; what nobody started is barred from starting and lost."""
        listed = list(specs)
        self._sweep([spec.identity for spec in listed])
        for spec in listed:
            run = self._take(spec)
            run.recovering = True
            host = (spec.handle or {}).get("host")
            known = [target for target in self._hosts.targets if target.label == host]
            if host is not None and not known:
                self._silence(run, str(host), f"{host}, where it runs, is none of this manager's hosts")
                continue
            run.searched = known or list(self._hosts.targets)
            for target in run.searched:
                target.watch(spec.identity, self, f"settle {target.name(spec.identity)}")
            if len(run.searched) == 1:
                self._found(run, run.searched[0])
        while any(run.recovering and not run.silent for run in self._runs.values()):
            self._accounted.clear()
            await self._accounted.wait()

    def _found(self, run: _Open, target: Target) -> None:
        """The run is on this target, or nowhere."""
        if run.target is None:
            run.target = target
            run.asked = True
            self._hosts.occupy(run.spec.identity, target, self._recipe.resources)
            if run.stop is not None:
                target.stop(run.spec.identity, run.stop[1] / SECOND, run.stop[0])

    def _account(self, run: _Open) -> None:
        run.recovering = False
        self._accounted.set()

    # --- what a target says -----------------------------------------------------------------------

    def on_answer(self, target: Target, words: list[str]) -> None:
        """Turn the agent's answer into a fact."""
        run = self._by_identity.get(words[1])
        if run is None or run.told or run.ended:
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
                    self._end(run, Ending(outcome="lost", error=_TORN))
            case ["refused", _, *why]:
                self._refused(run, why)
            case ["absent" | "elsewhere", *_]:
                self._absent(run, target, words[0])
            case ["vanished", _, why]:
                self._found(run, target)
                error = ErrorInfo(type="Lost", message=_GONE[why])
                stopped = run.stop is not None and why == "unwatched"
                ending = (
                    stopped_ending(run.stop[0])
                    if stopped and run.stop
                    else Ending(outcome="lost", error=error)
                )
                self._end(run, ending)
            case ["blocked", *_]:
                self._silence(run, target.label, f"{target.label}: nothing can be written there")

    def _absent(self, run: _Open, target: Target, answer: str) -> None:
        run.answers[target.label] = answer
        if len(run.answers) < len(run.searched) and run.target is None:
            return
        if "elsewhere" in run.answers.values():
            text = "it was started under another name of its host; name the host as before (SSHHost(name=…))"
            self._silence(run, target.label, text)
        elif run.stop is not None:
            self._end(run, stopped_ending(run.stop[0]))
        else:
            self._end(run, unstarted_ending())

    def _refused(self, run: _Open, why: list[str]) -> None:
        if why[0] in _MOMENTARY:
            run.again = True
            self._refused_for_now(run, f"{self._where(run)}: {_MOMENTARY[why[0]]}")
            return
        text = {
            "interpreter": f"the interpreter {' '.join(why[1:])} of the script's first line cannot be run",
            "enforce": f"enforce=True is not possible on {self._where(run)}: {' '.join(why[1:])};"
            " log in as root or in a delegated group there, or pass enforce='ulimit'",
        }.get(why[0], " ".join(why[1:]))
        error = ErrorInfo(type="Refused", message=f"it could not be started: {text}")
        self._end(run, Ending(outcome="refused", error=error))

    def _started(self, run: _Open, target: Target, pid: str, start: str, boot: str) -> None:
        target.settle_later(run.spec.identity)
        known, run.started = run.started, True
        self._pressure.accepted(run.spec.run)
        handle: dict[str, str | int] = {
            "host": target.label,
            "pid": int(pid),
            "start": int(start),
            "boot": boot,
        }
        if run.recovering:
            self._account(run)
            self._sink(Adopted(run.spec.run, handle, target.label))
        elif not known:
            self._sink(Started(run.spec.run, handle, target.label, _at(target, int(start) / TICKS)))

    def _ended(self, run: _Open, target: Target, record: Record) -> None:
        """Take an end; one by a signal only when it is clear that the target was not being stopped."""
        if run.doubt is not None:
            return
        if run.stop is None and record.is_in_doubt:
            run.doubt = self._loop.call_later(NEAR_SECONDS, self._decided, run, target, record)
        else:
            self._decided(run, target, record)

    def _decided(self, run: _Open, target: Target, record: Record) -> None:
        if run.told:
            return
        if not run.started and not run.recovering and record.code is not None:
            self._started(run, target, record.pid, record.start, record.boot)
        run.ended = True
        resources = self._recipe.resources
        ending = record.ending(
            run.stop[0] if run.stop is not None else None, int(resources.mem) if resources is not None else 0
        )
        same = record.boot == target.boot
        if run.stop is None and record.is_in_doubt and record.code is not None:
            if not same or target.was_lost_near(_at(target, record.at)):
                ending = ended_by_machine("stopped", stopped_from_outside(record.code))
        if record.full:
            ending = on_full_disk(ending)
        told = Ending(
            outcome=ending.outcome,
            exit_code=ending.exit_code,
            error=ending.error,
            started_at=_at(target, int(record.start) / TICKS) if same else None,
            ended_at=_at(target, record.at) if same else time.time_ns(),  # noqa: TID251 - the runner's clock
            usage={"cpu_seconds": record.cpu_seconds}
            | ({} if record.peak is None else {"memory_bytes_max": record.peak}),
            reads=run.reads,
            where=target.label,
            detail=ending.detail,
        )
        wanted = self._recipe.outputs
        if not wanted or told.outcome == "lost":
            self._end(run, told)
            return
        full = {name: record.sizes[name] for name in wanted if name in record.sizes}
        wrong = {name: words for name, words in record.wrong.items() if name in wanted}
        told = judged(told, wrong, full)
        if told.outcome == "lost":
            self._end(run, told)
            return
        run.outputs.update((name, b"") for name in wanted if name not in full and name not in wrong)
        if full:
            run.work = self._loop.create_task(self._collect(run, target, told, full, record.sums))
            self._services.mind(run.work, "the collecting of a run's output over SSH")
        else:
            self._end(run, told)

    async def _collect(
        self, run: _Open, target: Target, ending: Ending, sizes: dict[str, int], sums: dict[str, str]
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
        if ending.outcome in ("succeeded", "failed") and (told := check):
            ending = Ending(outcome="lost", error=ErrorInfo(type="Lost", message=told))
            drop(run.outputs)
            run.outputs.clear()
        self._end(run, ending)

    def _end(self, run: _Open, ending: Ending) -> None:
        if run.told:
            return
        run.told = True
        self._pressure.accepted(run.spec.run)
        self._pressure.freed()
        self._account(run)
        for target in {run.target, *run.searched} - {None}:
            assert target is not None
            target.done(run.spec.identity)
        self._hosts.release(run.spec.identity)
        if ending.ended_at is None:
            ending = Ending(
                outcome=ending.outcome,
                exit_code=ending.exit_code,
                error=ending.error,
                ended_at=time.time_ns(),  # noqa: TID251 - the runner's clock
                reads=run.reads,
                where=self._where(run),
                detail=ending.detail,
            )
        self._sink(Ended(run.spec.run, ending, writes(self._recipe, run.spec.job, run.outputs)))

    # --- silence ----------------------------------------------------------------------------------

    def _silence(self, run: _Open, where: str, message: str) -> None:
        if not run.silent:
            run.silent = True
            self._accounted.set()
            self._sink(Unreachable(run.spec.run, where, message[:1000]))

    def on_silence(self, target: Target, identity: str, message: str) -> None:
        """Say that the run cannot be watched."""
        run = self._by_identity.get(identity)
        if run is not None and not run.told and run.target in (None, target):
            self._silence(run, target.label, message)

    def on_contact(self, target: Target, identity: str) -> None:
        """Say that it can be watched again."""
        run = self._by_identity.get(identity)
        if run is not None and not run.told and run.silent and run.target in (None, target):
            run.silent = False
            self._sink(Reachable(run.spec.run, target.label))

    # --- letting go -------------------------------------------------------------------------------

    def forget(self, run: int) -> None:
        """Remove the run's folder, and what was fetched from it."""
        open_run = self._runs.pop(run, None)
        if open_run is None:
            return
        self._by_identity.pop(open_run.spec.identity, None)
        for target in {open_run.target, *open_run.searched} - {None}:
            assert target is not None
            target.forget(open_run.spec.identity)
        drop(open_run.outputs)

    async def close(self, *, abandon: bool = False) -> None:
        """Let go: what is not handed to a target yet is never started, what runs goes on."""
        self._pressure.close()
        for run in self._runs.values():
            if run.doubt is not None:
                run.doubt.cancel()
        working = [run.work for run in self._runs.values() if run.work is not None]
        for task in working:
            task.cancel()
        if working:
            await asyncio.wait(working, timeout=5.0)
        self._runs.clear()
        self._by_identity.clear()
        await self._hosts.detach()


def _at(target: Target, uptime: float) -> int:
    """Return a time of the target, in seconds since it booted, by our clock."""
    return target.booted_at() + int(uptime * SECOND)
