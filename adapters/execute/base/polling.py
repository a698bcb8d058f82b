"""Processes on any machine that `AbstractProcessManager`'s verbs reach: asked about once a second, in one call.

In: a manager of the user's own, a task's recipe, runs. Out: facts. A run's folder is
`{basedir}/{task}/{identity}/`. The process claims it (`claim/`) and writes its pid and its parent's there, with start
times and the boot id where there is a /proc, before it becomes the user's program, so that a later engine finds it, and so that a
claim by recovery keeps a delayed start from happening. It waits for that program, with the outputs open, and writes down how long they are and their checksums (`sizes`);
they are fetched into local files, and count if they are these. These verbs can kill and not ask politely: a stop is a kill.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from datatask.adapters.execute.base.endings import (
    cut,
    ended_by_machine,
    exchanged,
    exit_ending,
    judged,
    on_full_disk,
    stopped_ending,
    unstarted_ending,
)
from datatask.adapters.execute.base.machines import STDOUT, Machine, Recipe
from datatask.adapters.execute.base.runner import TrackedRun, TrackedRuns
from datatask.adapters.execute.base.shutdowns import hit_us_too, stopped_from_outside
from datatask.adapters.execute.sums import fits
from datatask.adapters.spools import Spool
from datatask.engine.api.streams import BLOCK_BYTES
from datatask.engine.ports import Sink
from datatask.engine.runtime.services import Service, current
from datatask.schema.events import Ending, ErrorInfo, StopReason
from datatask.schema.messages import RunSpec

logger = logging.getLogger("datatask.processes")

POLL_SECONDS = 1.0
SETTLE_SECONDS = 2.0
REMOVAL_SECONDS = 5.0
CODE_POLLS_MAX = 5
SIZES_BYTES = 400
POLLS_PER_LOOK = 10
"""A live pid is looked at more closely every so many polls: it may be another process's by now."""
CLAIM = """
run=$1 kept=$2
mkdir "$run/claim" || exit 125
{ read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null
for pid in $$ $PPID; do
    stat=
    { read -r stat </proc/$pid/stat; } 2>/dev/null
    set -- ${stat##*) }
    echo "$pid ${20-} ${boot-}"
done >"$run/pid.new" && mv "$run/pid.new" "$run/pid"
exec 5<&0 6>&1 7>&2
if [ "$(head -c 2 "$run/exe")" = "#!" ]; then "$run/exe" <&5 5<&- 6>&- 7>&- & else /bin/sh "$run/exe" <&5 5<&- 6>&- 7>&- & fi
echo $! >"$run/program"
wait $!
code=$?
{
    for name in $kept; do # one whose name leads elsewhere by now is copied from the descriptor
        case $name in stdout) held=6 ;; *) held=7 ;; esac
        [ -e "/proc/self/fd/$held" ] || continue
        [ "$run/$name" -ef "/proc/self/fd/$held" ] || { rm -rf "$run/$name"; cat "/proc/self/fd/$held" >"$run/$name" || continue; }
        while read -r key number; do [ "$key" != pos: ] || written=$number; done <"/proc/self/fdinfo/$held"
        set -- $(ls -lnd "$run/$name") && size=${5:-0}
        set -- $(cksum <"$run/$name" || sha256sum <"$run/$name")
        case ${2-} in '' | -) ;; *) size=$2 ;; esac
        echo "$name $size $written ${1-}"
    done
    printf '%4096s' '' >"$run/room" || echo full
    rm -f "$run/room"
    echo .
} 1<>"$run/sizes" 2>/dev/null # there is room for it since the start
exit $code
"""


class PolledRun(TrackedRun):
    """A run that is asked about; `refused`: the machine had no room for it, yet it may have begun."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__(spec)
        self.pid = ""
        self.codeless = self.polls = self.started_at = 0
        self.refused = False
        self.fetched: list[Path] = []


class PollingRunner:
    """One task's runs on a machine that can only be asked."""

    def __init__(self, manager: Machine, recipe: Recipe, poll_seconds: float = POLL_SECONDS) -> None:
        self._manager = manager
        self._recipe = recipe
        self._poll_seconds = poll_seconds
        self._tasks: set[asyncio.Task[None]] = set()
        self._removals: set[asyncio.Task[None]] = set()
        self._where = type(manager).__name__
        self._spool = Spool()

    async def open(self, sink: Sink) -> None:
        """Begin to ask."""
        self._services = current()
        self._runs = TrackedRuns[PolledRun](self._recipe.task, self, sink)
        self._tasks.add(self._services.keep(f"the asking of {self._where}", self._poll_for_ever))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._services.mind(task, f"what is done with a run by {self._where}")

    def _folder(self, spec: RunSpec) -> Path:
        return self._manager.basedir / self._recipe.task / spec.identity

    # --- starting and stopping --------------------------------------------------------------------

    def start(self, spec: RunSpec) -> None:
        """Prepare the folder and start the process, once per identity."""
        if spec.run not in self._runs:
            self._runs.start(PolledRun(spec))

    def begin(self, run: PolledRun) -> None:
        """Begin a run."""
        self._runs.prepare(run, self._start)

    def let_go(self, run: PolledRun) -> None:
        """Look whether a run that was refused has begun all the same, before it is begun again."""
        run.refused = True

    def where(self, run: PolledRun) -> str:
        """Return what kind of machine it is."""
        return self._where

    def hold_back(self) -> Iterable[int]:
        """Return the runs that the machine has no room for."""
        return self._runs.pressure.waiting()

    async def _start(self, run: PolledRun) -> None:
        spec = run.spec
        script = await self._recipe.render(spec)
        await self._prepare(spec, script)
        if run.reason is not None:
            self._runs.end(run, stopped_ending(run.reason))
            return
        if run.refused and await self._read(self._folder(spec) / "pid"):
            run.recovering = True
            await self._adopt(run)
            return
        await self._launch(run)
        run.started_at = time.time_ns()  # noqa: TID251 - the runner's clock
        self._tell_start(run)
        if run.reason is not None:
            await self._kill(run)

    def _tell_start(self, run: PolledRun) -> None:
        self._runs.started(run, {"pid": run.pid, "folder": str(self._folder(run.spec))})

    async def _prepare(self, spec: RunSpec, script: str) -> None:
        folder = self._folder(spec)
        await self._manager.mkdir(folder / "cwd")
        await self._write(folder / "exe", script.encode())
        await self._write(folder / "sizes", b" " * SIZES_BYTES)
        if self._recipe.stdin is not None:
            async with (
                self._recipe.stdin.open(spec.job, "rb") as source,
                self._manager.open(folder / "stdin", "wb") as target,
            ):
                while data := await source.read(BLOCK_BYTES):
                    await target.write(data)

    async def _launch(self, run: PolledRun) -> None:
        recipe, folder = self._recipe, self._folder(run.spec)
        stderr = None if recipe.stderr is None else str(folder / "stderr")
        run.pid = _text(
            await self._manager.spawn(
                [
                    "/bin/sh",
                    "-c",
                    f'chmod +x "$1/exe"; {CLAIM}',
                    "run",
                    str(folder),
                    " ".join(self._recipe.outputs),
                ],
                None if recipe.environ is None else dict(recipe.environ),
                str(folder / "cwd"),
                str(folder / "return_code"),
                str(folder / "stdin") if recipe.stdin is not None else None,
                str(folder / "stdout") if recipe.stdout is not None else None,
                STDOUT if recipe.stderr is STDOUT else stderr,
            )
        )

    async def _write(self, path: Path, data: bytes) -> None:
        async with self._manager.open(path, "wb") as file:
            await file.write(data)

    async def _read(self, path: PurePath) -> str | None:
        try:
            async with self._manager.open(Path(path), "rb") as file:
                data: bytes = await file.read()
        except FileNotFoundError:
            return None
        return data.decode(errors="replace").strip()

    def stop(self, run: int, reason: StopReason, grace: int) -> None:
        """Kill the process."""
        found = self._runs.get(run)
        if found is not None and found.reason is None:
            found.reason = reason
            if self._runs.pressure.withdraw(run):
                self._runs.end(found, stopped_ending(reason))
            elif found.pid:
                self._spawn(self._kill(found))

    async def _kill(self, run: PolledRun) -> None:
        try:
            if await self._is_ours(run):
                program = await self._read(self._folder(run.spec) / "program")
                await self._manager.kill(run.pid)
                if program and program in map(_text, await self._manager.get_live_pids({program})):
                    await self._manager.kill(program)  # by verbs that kill no session
        except Exception as error:
            logger.warning("%s[%s] cannot be killed: %s", run.spec.task, run.spec.job, error)

    # --- asking -----------------------------------------------------------------------------------

    async def _poll_for_ever(self, service: Service) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            await self._poll()
            service.works()

    async def _poll(self) -> None:
        watched = [run for run in self._runs if run.pid and not run.ended]
        if not watched:
            return
        try:
            alive = {_text(pid) for pid in await self._manager.get_live_pids({run.pid for run in watched})}
            for run in watched:
                self._runs.reachable(run)
                run.polls += 1
                if run.pid not in alive:
                    await self._gone(run)
                elif run.polls % POLLS_PER_LOOK == 0 and not await self._is_ours(run):
                    run.codeless = CODE_POLLS_MAX
                    await self._gone(run)
        except Exception as error:
            for run in watched:
                self._runs.unreachable(run, str(error))

    async def _is_ours(self, run: PolledRun) -> bool:
        """Whether the process with the run's pid is the run's, as far as its machine's /proc can be read."""
        claim = await self._read(self._folder(run.spec) / "pid") or ""
        known = [
            words for line in claim.splitlines() if len(words := line.split()) == 3 and words[0] == run.pid
        ]
        if not known:
            return True
        try:
            stat = await self._read(PurePath(f"/proc/{run.pid}/stat"))
            boot = await self._read(PurePath("/proc/sys/kernel/random/boot_id"))
        except Exception:
            return True
        return stat is None or [stat.rpartition(")")[2].split()[19], boot] == known[0][1:]

    async def _gone(self, run: PolledRun) -> None:
        folder = self._folder(run.spec)
        code = await self._read(folder / "return_code")
        noted = await self._noted(run.spec)
        if not code:
            run.codeless += 1
            if run.codeless < CODE_POLLS_MAX and run.reason is None:
                return
            why = "; the disk of its outputs was full when it ended" if "full" in (noted or ()) else ""
            lost = ErrorInfo(type="Lost", message="the process is gone and left no exit code" + why)
            ending = Ending(outcome="lost", error=lost) if run.reason is None else stopped_ending(run.reason)
        elif run.reason is not None:
            ending = stopped_ending(run.reason, int(code))
        elif hit_us_too(int(code), run.started_at, time.time_ns()):  # noqa: TID251 - the runner's clock
            ending = ended_by_machine("stopped", stopped_from_outside(int(code)))
        else:
            ending = exit_ending(int(code))
        if ending.outcome == "lost":
            self._runs.end(run, ending)
            return
        if noted is None:
            ending = judged(ending, {"": "how long its outputs were was not written down when it ended"}, ())
        elif "full" in noted:
            ending = on_full_disk(ending)
        found, wrong = await self._fetch(run, noted or {})
        ending = judged(ending, wrong, found)
        writes = () if ending.outcome == "lost" else self._recipe.writes(run.spec.job, found)
        self._runs.end(run, ending, writes)

    async def _noted(self, spec: RunSpec) -> dict[str, list[str]] | None:
        """Return what the shell that waited has written down of the outputs, by first word; None where that is not whole."""
        *lines, dot = (await self._read(self._folder(spec) / "sizes") or "").splitlines() or [""]
        return {words[0]: words[1:] for line in lines if (words := line.split())} if dot == "." else None

    async def _fetch(
        self, run: PolledRun, noted: Mapping[str, list[str]]
    ) -> tuple[dict[str, Path], dict[str, str]]:
        """Return the outputs, and what is wrong with those of which not all is there."""
        found: dict[str, Path] = {}
        wrong: dict[str, str] = {}
        for name in self._recipe.outputs:
            target = self._spool.path(f"{run.spec.identity}.{name}")
            run.fetched.append(target)
            told = [*noted.get(name, ("0", "0")), ""]
            size, written, printed = int(told[0]), int(told[1]), told[2]
            try:
                there = await self._download(self._folder(run.spec) / name, target)
            except FileNotFoundError:
                wrong[name] = f"its {name} was removed, and nothing is left of it"
                continue
            if there < size:
                wrong[name] = f"its {name} had {size} bytes when it ended and now has {there}"
                continue
            if not await asyncio.to_thread(fits, printed, target, size):
                wrong[name] = exchanged(name)
                continue
            found[name] = target
            if written > size:
                wrong[name] = cut(name, written, size)
        return found, wrong

    async def _download(self, path: Path, target: Path) -> int:
        """Fetch a file; return how long it is."""
        async with self._manager.open(path, "rb") as source:
            with target.open("wb") as file:
                while data := await source.read(BLOCK_BYTES):
                    file.write(data)
                return file.tell()

    # --- other engines ----------------------------------------------------------------------------

    async def recover(self, specs: Iterable[RunSpec]) -> None:
        """Find each run's process by the pid in its folder; what never claimed its folder never will."""
        await self._recover([self._runs.recover(PolledRun(spec)) for spec in specs])

    async def _recover(self, runs: list[PolledRun]) -> None:
        try:
            for run in runs:
                await self._manager.mkdir(self._folder(run.spec) / "claim")
            if any(run.spec.handle is None for run in runs):
                await asyncio.sleep(SETTLE_SECONDS)
            for run in runs:
                await self._adopt(run)
        except Exception as error:
            for run in runs:
                if not run.pid and not run.ended:
                    self._runs.unreachable(run, str(error))
                    self._spawn(self._recover_later(run))

    async def _recover_later(self, run: PolledRun) -> None:
        await asyncio.sleep(10 * self._poll_seconds)
        await self._recover([run])

    async def _adopt(self, run: PolledRun) -> None:
        folder = self._folder(run.spec)
        pid = await self._read(folder / "pid")
        if not pid:
            self._runs.end(run, unstarted_ending())
            return
        handle = run.spec.handle or {}
        run.pid = str(handle.get("pid") or pid.split()[0])
        over = await self._read(folder / "return_code")  # then its pid may be somebody else's
        alive = {_text(one) for one in await self._manager.get_live_pids({run.pid})}
        if not over and run.pid in alive and await self._is_ours(run):
            self._tell_start(run)
        else:
            run.codeless = CODE_POLLS_MAX
            await self._gone(run)

    def forget(self, run: int) -> None:
        """Remove the run's folder and what was fetched from it."""
        if (found := self._runs.forget(run)) is not None:
            for path in found.fetched:
                path.unlink(missing_ok=True)
            removal = asyncio.create_task(self._remove(found.spec))
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)

    async def _remove(self, spec: RunSpec) -> None:
        try:
            await self._manager.rmtree(self._folder(spec))
        except Exception as error:
            logger.warning("the folder of a run cannot be removed: %s", error)

    async def close(self, *, abandon: bool = False) -> None:
        """Stop asking; what runs goes on. Folders of runs that are over still go, in a bounded time."""
        if self._removals:
            await asyncio.wait(self._removals, timeout=REMOVAL_SECONDS)
        await self._runs.close()
        tasks = [*self._tasks, *self._removals]
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
        self._spool.close()


def _text(pid: object) -> str:
    """Return a pid as text; managers written for pydatatask give bytes, too."""
    return pid.decode() if isinstance(pid, bytes) else str(pid)
