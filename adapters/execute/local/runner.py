"""A process task's runs on this machine: from a run that was decided to facts about it.

In: a task's recipe, the engine's runs, the launcher's answers. Out: facts. A run is the program `exe` in its own folder
`{local_path}/{app}/{log}/{identity}/` with `cwd/`, `stdin`, `stdout`, `stderr`; it has a session of its own.
What a run leaves in its process group is killed when its main process ends. If the launcher is killed, runs
go on and the next launcher watches them; if its keeper is killed too, how one ended that ended unwatched, or
on a kernel before 6.15, is not known, and it counts as lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path

from datatask.adapters.execute.base.endings import (
    OUT_OF_MEMORY_PERHAPS,
    UNSTARTED,
    ended_by_machine,
    exit_ending,
    judged,
    on_full_disk,
    stopped_ending,
    unstarted_ending,
)
from datatask.adapters.execute.base.machines import STDOUT, Recipe
from datatask.adapters.execute.base.pressure import NO_ROOM, OCCUPIED, Pressure, is_momentary
from datatask.adapters.execute.base.shutdowns import hit_us_too, stopped_from_outside
from datatask.adapters.execute.local import collect, folders
from datatask.adapters.execute.local.client import LauncherClient, Message
from datatask.engine.api.streams import BLOCK_BYTES
from datatask.engine.ports import Sink
from datatask.engine.run_context import RunContext, current_run
from datatask.engine.runtime.calls import error_info
from datatask.engine.runtime.services import current
from datatask.schema.errors import TemporaryError
from datatask.schema.events import Ending, ErrorInfo, StopReason
from datatask.schema.messages import Adopted, Ended, Reachable, RunSpec, Started, Unreachable, Write
from datatask.schema.units import SECOND

WHERE = "local"
OF_THE_ORIGINAL = "if it was started, it was for the log of which this is a copy"


class _Open:
    """One run between start and forget."""

    __slots__ = ("collecting", "preparing", "reads", "spec", "started", "stop", "told")

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.preparing: asyncio.Task[None] | None = None
        self.collecting: asyncio.Task[None] | None = None
        self.stop: Message | None = None
        self.reads: dict[str, int] | None = None
        self.started = False
        self.told = False


class LocalRunner:
    """One task's runs, over the launcher that all of a manager's tasks share."""

    def __init__(self, client: LauncherClient, recipe: Recipe) -> None:
        self._client = client
        self._recipe = recipe
        self._runs: dict[int, _Open] = {}
        self._by_identity: dict[str, _Open] = {}
        self._recovering: set[str] = set()
        self._answered = asyncio.Event()
        self._swept = False

    async def open(self, sink: Sink) -> None:
        """Make the directory; the launcher is started with the first run."""
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._services = current()
        await asyncio.to_thread(self._client.prepare)
        self._client.attach()
        self._client.environment(self._recipe.task, self._recipe.environ)
        self._pressure = Pressure(self._recipe.task, sink)

    def _take(self, spec: RunSpec) -> _Open:
        run = _Open(spec)
        self._runs[spec.run] = self._by_identity[spec.identity] = run
        return run

    def _sweep(self, keep: list[str]) -> None:
        if not self._swept:
            self._swept = True
            self._client.tell({"op": "sweep", "task": self._recipe.task, "keep": keep})

    def start(self, spec: RunSpec) -> None:
        """Render, make the folder, and ask the launcher to start it; once per identity."""
        if spec.run not in self._runs:
            run = self._take(spec)
            self._pressure.admit(spec.run, lambda: self._begin(run))

    def _begin(self, run: _Open) -> None:
        run.preparing = self._loop.create_task(self._prepare(run))
        self._services.mind(run.preparing, "the start of a local run")

    def _refused_for_now(self, run: _Open, why: str, reason: str = NO_ROOM) -> None:
        """Nothing was begun: it is begun again when there may be room."""
        self._client.done(run.spec.identity)
        if run.stop is not None:
            self._end(run, stopped_ending(run.stop["reason"]))
        else:
            self._pressure.refused(run.spec.run, lambda: self._begin(run), why, reason)

    def hold_back(self) -> Iterable[int]:
        """Return the runs that the machine has no room for."""
        return self._pressure.waiting()

    async def _prepare(self, run: _Open) -> None:
        spec, recipe = run.spec, self._recipe
        context = RunContext(spec.run, spec.task, spec.job)
        current_run.set(context)
        try:
            self._client.own(spec.identity, spec.log)
            script = await recipe.render(spec)
            folder = str(self._client.folder(spec.identity))
            folders.make(folder)
            folders.write(folder + "/exe", 0o700, script.encode())
            if recipe.stdin is not None:
                folders.write(folder + "/stdin", 0o600, b"")
                async with recipe.stdin.open(spec.job, "rb") as source:
                    with open(folder + "/stdin", "wb") as file:
                        while data := await source.read(BLOCK_BYTES):
                            file.write(data)
        except asyncio.CancelledError:
            return
        except (TemporaryError, OSError, MemoryError, RuntimeError) as error:
            if is_momentary(error):
                run.preparing = None
                self._refused_for_now(run, error_info(error).message)
            elif isinstance(error, TemporaryError | OSError):
                self._end(run, Ending(outcome="lost", error=error_info(error), where=WHERE))
            else:
                self._refused(run, error)
            return
        except Exception as error:
            self._refused(run, error)
            return
        finally:
            run.preparing = None
        if run.told:
            return
        run.reads = context.reads or None
        self._sweep([])
        self._client.ask(spec.identity, self._question(spec), self)

    def _refused(self, run: _Open, error: BaseException) -> None:
        info = error_info(error)
        told = ErrorInfo(type=info.type, message=f"{run.spec.task}[{run.spec.job}]: {info.message}")
        self._end(run, Ending(outcome="refused", error=told, where=WHERE))

    def _question(self, spec: RunSpec) -> Message:
        recipe = self._recipe
        merged = recipe.stderr is STDOUT
        question: Message = {
            "op": "start",
            "id": spec.identity,
            "task": recipe.task,
            "env": recipe.task,
            "stdin": recipe.stdin is not None,
            "stdout": recipe.stdout is not None,
            "stderr": "stdout" if merged else "stderr" if recipe.stderr is not None else "",
        }
        amounts = recipe.resources
        if recipe.enforce and amounts is not None:
            how = "groups" if recipe.enforce is True else "ulimit"
            question["limits"] = {"how": how, "cpu": float(amounts.cpu), "memory": int(amounts.mem)}
        return question

    def stop(self, run: int, reason: StopReason, grace: int) -> None:
        """TERM to the run's process group, KILL to its session after the grace."""
        open_run = self._runs.get(run)
        if open_run is None or open_run.told or open_run.collecting is not None:
            return
        if self._pressure.withdraw(run) or open_run.preparing is not None:
            if open_run.preparing is not None:
                open_run.preparing.cancel()
            self._end(open_run, stopped_ending(reason))
            return
        open_run.stop = {
            "op": "stop",
            "id": open_run.spec.identity,
            "grace": grace / SECOND,
            "reason": reason,
        }
        self._client.tell(open_run.stop)

    async def recover(self, specs: Iterable[RunSpec]) -> None:
        """Ask the launcher about each run; what nobody started is barred from starting and lost."""
        listed = list(specs)
        for spec in listed:
            self._client.own(spec.identity, spec.log)
            self._take(spec)
            self._recovering.add(spec.identity)
            self._client.ask(spec.identity, {"op": "settle", "id": spec.identity}, self)
        self._sweep([spec.identity for spec in listed])
        while self._recovering:
            self._answered.clear()
            await self._answered.wait()

    def forget(self, run: int) -> None:
        """Remove the run's folder and record."""
        open_run = self._runs.pop(run, None)
        if open_run is not None:
            self._by_identity.pop(open_run.spec.identity, None)
            self._client.forget(open_run.spec.identity)

    async def close(self, *, abandon: bool = False) -> None:
        """Let go: what is not handed to the launcher yet is never started, what runs goes on."""
        working = [
            task
            for run in self._runs.values()
            for task in (run.preparing, run.collecting)
            if task is not None
        ]
        self._pressure.close()
        for task in working:
            task.cancel()
        if working:
            await asyncio.wait(working, timeout=5.0)
        self._runs.clear()
        self._by_identity.clear()
        await self._client.detach()

    # --- what the launcher says -------------------------------------------------------------------

    def on_message(self, identity: str, message: Message) -> None:
        """Turn the launcher's answer into a fact."""
        run = self._by_identity.get(identity)
        if run is None or run.told or run.collecting is not None:
            return
        if "started" in message:
            self._started(run, message)
        elif "ended" in message:
            self._ended(run, message)
        elif "refused" in message and message["temporary"]:
            self._refused_for_now(run, message["message"], OCCUPIED if message.get("occupied") else NO_ROOM)
        elif "refused" in message:
            error = ErrorInfo(type="Refused", message=f"it could not be started: {message['message']}")
            self._end(run, Ending(outcome="refused", error=error, where=WHERE))
        elif "moved" in message:
            self._begin(run)
        elif "absent" in message:
            why = message.get("why") or (OF_THE_ORIGINAL if self._client.is_of_a_copy else UNSTARTED)
            self._end(run, unstarted_ending(why))

    def _started(self, run: _Open, message: Message) -> None:
        handle = {key: message[key] for key in ("pid", "start", "boot")}
        self._client.settle_later(run.spec.identity)
        if run.stop is not None:  # it may have been lost with a launcher
            self._client.tell(run.stop)
        known, run.started = run.started, True
        self._pressure.accepted(run.spec.run)
        if run.spec.identity in self._recovering:
            self._recovered(run)
            self._sink(Adopted(run.spec.run, handle, WHERE))
        elif not known:
            self._sink(Started(run.spec.run, handle, WHERE, message["began"]))

    def _recovered(self, run: _Open) -> None:
        self._recovering.discard(run.spec.identity)
        self._answered.set()

    def _ended(self, run: _Open, message: Message) -> None:
        reason, code = message["stopped"], message["code"]
        began, usage = message["began"], message["usage"] or None
        if reason is not None:
            ending = stopped_ending(reason, code)
        elif code is None and not message.get("machine"):
            ending = Ending(outcome="lost", error=ErrorInfo(type="Lost", message=message["why"]))
        elif code is None or hit_us_too(code, began, message["at"]):
            why = message["why"] if code is None else stopped_from_outside(code)
            ending = ended_by_machine("stopped", why)
        else:
            perhaps = OUT_OF_MEMORY_PERHAPS if message.get("killed_for_memory") else ""
            ending = exit_ending(code, message["why"] or perhaps)
        if message.get("full"):
            ending = on_full_disk(ending)
        told = Ending(
            outcome=ending.outcome,
            exit_code=ending.exit_code,
            error=ending.error,
            started_at=began,
            ended_at=message["at"],
            usage=usage,
            reads=run.reads,
            where=WHERE,
            detail=ending.detail,
        )
        if told.outcome == "lost":
            self._end(run, told)
        else:
            self._collect(run, told, message)

    def _collect(self, run: _Open, ending: Ending, message: Message) -> None:
        """End the run with its outputs, once they are proved to be those that its process wrote."""
        identity, names = run.spec.identity, self._recipe.outputs
        outputs = collect.outputs_of(message, self._client.folder(identity), names)
        wrong = collect.wrong_of(message, names)
        if all(output.is_there() for output in outputs.values()):
            self._collected(run, ending, {name: output.path for name, output in outputs.items()}, wrong)
        elif self._client.is_moved():
            self.on_silence(
                identity, f"{self._client.directory} was moved with its project; the next `run` there goes on"
            )
        else:
            run.collecting = self._loop.create_task(self._rescue(run, ending, outputs, wrong))
            self._services.mind(run.collecting, "the collecting of a local run's output")

    async def _rescue(
        self, run: _Open, ending: Ending, outputs: dict[str, collect.Output], wrong: dict[str, str]
    ) -> None:
        found, missing = await asyncio.to_thread(collect.collect, outputs)
        self._collected(run, ending, found, wrong | missing)

    def _collected(self, run: _Open, ending: Ending, found: dict[str, Path], wrong: dict[str, str]) -> None:
        repositories = self._recipe.outputs
        ending = judged(ending, wrong, found)
        writes = [
            Write(repository=repositories[name].id, job=run.spec.job, source=path)
            for name, path in found.items()
        ]
        self._end(run, ending, tuple(writes) if ending.outcome != "lost" else ())

    def _end(self, run: _Open, ending: Ending, writes: tuple[Write, ...] = ()) -> None:
        if run.told:
            return
        run.told = True
        self._pressure.accepted(run.spec.run)
        self._pressure.freed()
        self._recovered(run)
        self._client.done(run.spec.identity)
        if ending.ended_at is None:
            ending = Ending(
                outcome=ending.outcome,
                error=ending.error,
                ended_at=time.time_ns(),  # noqa: TID251 - the runner's clock
                reads=run.reads,
                where=WHERE,
                detail=ending.detail,
            )
        self._sink(Ended(run.spec.run, ending, writes))

    def on_silence(self, identity: str, message: str) -> None:
        """Say that the run cannot be watched."""
        run = self._by_identity.get(identity)
        if run is not None and not run.told:
            self._recovered(run)
            self._sink(Unreachable(run.spec.run, WHERE, message))

    def on_contact(self, identity: str) -> None:
        """Say that it can be watched again."""
        run = self._by_identity.get(identity)
        if run is not None and not run.told:
            self._sink(Reachable(run.spec.run, WHERE))
