"""A process task's runs on this machine: from a decided run to facts about it.

In: a task's recipe, the engine's runs, the launcher's answers. Out: facts, and outputs that are proved to be what the process
wrote; one that lost its name is copied from the launcher's descriptor. A run is the program `exe` in its own folder
`{local_path}/{app}/{log}/{identity}/` with `cwd/`, `stdin`, `stdout`, `stderr`, and has its own session. The rest of its
process group is killed when its main process ends. Runs outlive a killed launcher: the next one watches them. Without its
subreaper, or on a kernel before 6.15, an end that was not watched is unknown: the run counts as lost.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from datatask.adapters.execute.base.endings import (
    OUT_OF_MEMORY_PERHAPS,
    UNSTARTED,
    cut,
    ended_by_machine,
    exit_ending,
    judged,
    on_full_disk,
    stopped_ending,
    unstarted_ending,
)
from datatask.adapters.execute.base.machines import STDOUT, Recipe
from datatask.adapters.execute.base.pressure import NO_ROOM, OCCUPIED
from datatask.adapters.execute.base.runner import TrackedRun, TrackedRuns
from datatask.adapters.execute.base.shutdowns import hit_us_too, stopped_from_outside
from datatask.adapters.execute.local import folders
from datatask.adapters.execute.local.client import LauncherClient, Message
from datatask.adapters.execute.local.outputs import STREAMS, status_of
from datatask.engine.api.streams import BLOCK_BYTES
from datatask.engine.ports import Sink
from datatask.engine.runtime.services import current
from datatask.schema.events import Ending, ErrorInfo, StopReason
from datatask.schema.messages import Printed, RunSpec, printed_of
from datatask.schema.units import SECOND

WHERE = "local"
OF_THE_ORIGINAL = "if it was started, it was for the log of which this is a copy"


class LocalRun(TrackedRun):
    """A run on this machine; `grace` is that of its stop, in nanoseconds."""

    grace = 0


class LocalRunner:
    """One task's runs, over the launcher that all of a manager's tasks share."""

    def __init__(self, client: LauncherClient, recipe: Recipe) -> None:
        self._client = client
        self._recipe = recipe
        self._swept = False

    async def open(self, sink: Sink) -> None:
        """Make the directory; the launcher is started with the first run."""
        self._services = current()
        await asyncio.to_thread(self._client.directory.prepare)
        self._client.attach()
        self._client.environment(self._recipe.task, self._recipe.environ)
        self._runs = TrackedRuns[LocalRun](self._recipe.task, self, sink)

    def _sweep(self, keep: list[str]) -> None:
        if not self._swept:
            self._swept = True
            self._client.tell({"op": "sweep", "task": self._recipe.task, "keep": keep})

    # --- starting and stopping --------------------------------------------------------------------

    def start(self, spec: RunSpec) -> None:
        """Render, make the folder, and ask the launcher to start it; once per identity."""
        if spec.run not in self._runs:
            self._runs.start(LocalRun(spec))

    def begin(self, run: LocalRun) -> None:
        """Begin a run."""
        self._runs.prepare(run, self._prepare)

    def let_go(self, run: LocalRun) -> None:
        """Ask the launcher nothing more about a run."""
        self._client.done(run.spec.identity)

    def where(self, run: LocalRun) -> str:
        """Return what this machine is called."""
        return WHERE

    def hold_back(self) -> Iterable[int]:
        """Return the runs that the machine has no room for."""
        return self._runs.pressure.waiting()

    async def _prepare(self, run: LocalRun) -> None:
        spec, recipe = run.spec, self._recipe
        self._client.own(spec.identity, spec.log)
        script = await recipe.render(spec)
        folder = str(self._client.directory.folder(spec.identity))
        folders.make(folder)
        folders.write(folder + "/exe", 0o700, script.encode())
        if recipe.stdin is not None:
            folders.write(folder + "/stdin", 0o600, b"")
            async with recipe.stdin.open(spec.job, "rb") as source:
                with open(folder + "/stdin", "wb") as file:
                    while data := await source.read(BLOCK_BYTES):
                        file.write(data)
        if not run.ended:
            self._sweep([])
            self._client.ask(spec.identity, self._question(spec), self)

    def _question(self, spec: RunSpec) -> Message:
        recipe = self._recipe
        merged = recipe.stderr is STDOUT
        bound = f":{spec.logs}" if spec.logs else ""
        question: Message = {
            "op": "start",
            "id": spec.identity,
            "task": recipe.task,
            "env": recipe.task,
            "stdin": recipe.stdin is not None,
            "stdout": recipe.stdout is not None or (f"stdout{bound}" if bound else False),
            "stderr": "stdout"
            if merged
            else "stderr"
            if recipe.stderr is not None
            else bound and f"stderr{bound}",
        }
        if spec.variables:  # a launcher of an earlier version knows no such word, and none is said in vain
            question["variables"] = dict(spec.variables)
        amounts = recipe.takes(spec)
        if recipe.enforce and amounts is not None:
            how = "groups" if recipe.enforce is True else "ulimit"
            question["limits"] = {"how": how, "cpu": float(amounts.cpu), "memory": int(amounts.mem)}
        return question

    def stop(self, run: int, reason: StopReason, grace: int) -> None:
        """TERM to the run's process group, KILL to its session after the grace."""
        found = self._runs.get(run)
        if found is None or found.over:
            return
        found.reason, found.grace = reason, grace
        if self._runs.pressure.withdraw(run) or found.work is not None:
            if found.work is not None:
                found.work.cancel()
            self._runs.end(found, stopped_ending(reason))
        else:
            self._tell_stop(found)

    def _tell_stop(self, run: LocalRun) -> None:
        grace = run.grace / SECOND
        self._client.tell({"op": "stop", "id": run.spec.identity, "grace": grace, "reason": run.reason})

    async def recover(self, specs: Iterable[RunSpec]) -> None:
        """Ask the launcher about each run; one that it has not started is barred from starting and lost."""
        listed = list(specs)
        for spec in listed:
            self._client.own(spec.identity, spec.log)
            self._runs.recover(LocalRun(spec))
            self._client.ask(spec.identity, {"op": "settle", "id": spec.identity}, self)
        self._sweep([spec.identity for spec in listed])
        await self._runs.accounted()

    def forget(self, run: int) -> None:
        """Remove the run's folder and record."""
        if (found := self._runs.forget(run)) is not None:
            self._client.forget(found.spec.identity)

    async def close(self, *, abandon: bool = False) -> None:
        """Let go: what is not handed to the launcher yet is never started, what runs goes on."""
        await self._runs.close()
        await self._client.detach()

    # --- what the launcher says -------------------------------------------------------------------

    def on_message(self, identity: str, message: Message) -> None:
        """Turn the launcher's answer into a fact."""
        run = self._runs.named(identity)
        if run is None or run.over:
            return
        if "started" in message:
            self._client.settle_later(identity)
            if run.reason is not None:  # it may have been lost with a launcher
                self._tell_stop(run)
            handle = {key: message[key] for key in ("pid", "start", "boot")}
            self._runs.started(run, handle, message["began"])
        elif "ended" in message:
            self._ended(run, message)
        elif "refused" in message and message["temporary"]:
            self._runs.no_room(run, message["message"], OCCUPIED if message.get("occupied") else NO_ROOM)
        elif "refused" in message:
            error = ErrorInfo(type="Refused", message=f"it could not be started: {message['message']}")
            self._runs.end(run, Ending(outcome="refused", error=error))
        elif "moved" in message:
            self.begin(run)
        elif "absent" in message:
            why = message.get("why") or (
                OF_THE_ORIGINAL if self._client.directory.is_of_a_copy else UNSTARTED
            )
            self._runs.end(run, unstarted_ending(why))

    def _ended(self, run: LocalRun, message: Message) -> None:
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
        if message.get("full") and self._recipe.outputs:
            ending = on_full_disk(ending)
        ending = msgspec.structs.replace(
            ending, started_at=began, ended_at=message["at"], usage=usage, reads=run.reads, where=WHERE
        )
        if ending.outcome == "lost":
            self._runs.end(run, ending, (), self._printed(run))
        else:
            self._collect(run, ending, message)

    def _collect(self, run: LocalRun, ending: Ending, message: Message) -> None:
        """End the run with its outputs, once they are proved to be those that its process wrote."""
        identity, names = run.spec.identity, self._recipe.outputs
        outputs = outputs_of(message, self._client.directory.folder(identity), names)
        wrong = wrong_of(message, names)
        if all(output.is_there() for output in outputs.values()):
            self._collected(run, ending, {name: output.path for name, output in outputs.items()}, wrong)
        elif self._client.directory.is_moved():
            self.on_silence(
                identity, f"{self._client.directory} was moved with its project; the next `run` there goes on"
            )
        else:
            run.over = True
            run.work = asyncio.get_running_loop().create_task(self._rescue(run, ending, outputs, wrong))
            self._services.mind(run.work, "the collecting of a local run's output")

    async def _rescue(
        self, run: LocalRun, ending: Ending, outputs: dict[str, Output], wrong: dict[str, str]
    ) -> None:
        found, missing = await asyncio.to_thread(collect, outputs)
        self._collected(run, ending, found, wrong | missing)

    def _collected(
        self, run: LocalRun, ending: Ending, found: dict[str, Path], wrong: dict[str, str]
    ) -> None:
        ending = judged(ending, wrong, found)
        writes = () if ending.outcome == "lost" else self._recipe.writes(run.spec.job, found)
        self._runs.end(run, ending, writes, self._printed(run))

    def _printed(self, run: LocalRun) -> tuple[Printed, ...]:
        """Return what the run's process printed, as far as it is kept; a file that is gone printed nothing.

        The launcher may have cut the middle of a file that no repository stores: the size of the file is then the number of bytes printed.
        """
        found: tuple[Printed, ...] = ()
        for name in STREAMS if run.spec.logs else ():
            with suppress(OSError):
                path = self._client.directory.folder(run.spec.identity) / name
                if os.stat(path).st_size:  # most print nothing, which costs no more than this
                    found += printed_of(name, path, run.spec.logs)
        return found

    def on_silence(self, identity: str, message: str) -> None:
        """Say that the run cannot be watched."""
        if (run := self._runs.named(identity)) is not None:
            self._runs.unreachable(run, message)

    def on_contact(self, identity: str) -> None:
        """Say that it can be watched again."""
        if (run := self._runs.named(identity)) is not None:
            self._runs.reachable(run)


KEPT = ".kept"


class Output(NamedTuple):
    """One output: its name in the folder, and the device, inode and size that it had at the end; where it can be read, too."""

    path: Path
    file: list[int] | None
    size: int
    held: str

    def is_there(self) -> bool:
        """Whether the file of this name is the one that the process wrote, and none of it is missing."""
        status = status_of(str(self.path))
        if status is None:
            return False
        return self.file in (None, [status.st_dev, status.st_ino]) and status.st_size >= self.size

    def copied(self) -> Path:
        """Return a copy of what the launcher still has open; `OSError` where that is not all of it."""
        target = self.path.with_name(self.path.name + KEPT)
        if not self.held:
            raise OSError(f"its {self.path.name} was removed, exchanged or cut after it had ended")
        folders.make(str(target.parent))
        folders.write(str(target), 0o600, b"")
        with open(self.held, "rb") as source, open(target, "r+b") as file:
            if (there := os.fstat(source.fileno()).st_size) < self.size:
                raise OSError(f"its {self.path.name} had {self.size} bytes when it ended and now has {there}")
            shutil.copyfileobj(source, file, 1 << 20)
        return target


def outputs_of(message: Mapping[str, Any], folder: Path, names: Iterable[str]) -> dict[str, Output]:
    """Return the outputs of these names that a run had at its end."""
    sizes, files, held = message.get("sizes") or {}, message.get("files") or {}, message.get("held") or {}
    return {
        name: Output(folder / name, files.get(name), sizes[name], held.get(name, ""))
        for name in names
        if name in sizes
    }


def wrong_of(message: Mapping[str, Any], names: Collection[str]) -> dict[str, str]:
    """Say what became of outputs of these names while the run went on."""
    sizes, written = message.get("sizes") or {}, message.get("written") or {}
    gone = {
        name: f"its {name} was removed or exchanged while it ran, and nothing is left of it"
        for name in (names if message.get("unknown") else message.get("files") or {})
        if name in names and name not in sizes
    }
    return gone | {name: cut(name, count, sizes[name]) for name, count in written.items() if name in names}


def collect(outputs: Mapping[str, Output]) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the files to collect, and what is wrong with those that are not to be had."""
    found: dict[str, Path] = {}
    wrong: dict[str, str] = {}
    for name, output in outputs.items():
        try:
            found[name] = output.path if output.is_there() else output.copied()
        except OSError as error:
            wrong[name] = f"its {name} cannot be collected: {error}" if error.errno else str(error)
    return found, wrong
