"""What a process task gives to the machine of its runs, the verbs that reach any machine, and a run's folder there.

In: a task's script, input, environment and limits, as a `Recipe`. Out: processes and files, by a `Machine`'s verbs. The shell
in `CLAIM` claims the folder (`claim/`) and writes its pid and its parent's, with start times and boot id where there is a
/proc, before it starts the user's program: a later engine finds the process, and recovery's own claim bars a delayed start.
It waits for the program with the outputs open and records their lengths and checksums (`sizes`), which fetched files must have.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

from datatask.adapters.execute.base.endings import cut, exchanged, fits
from datatask.engine.api.repositories import BlobRepository
from datatask.engine.api.streams import BLOCK_BYTES
from datatask.schema.messages import RunSpec, Write
from datatask.schema.resources import Resources


class _StderrIsStdout:
    """The type of `STDOUT`."""

    def __repr__(self) -> str:
        return "STDOUT"


STDOUT = _StderrIsStdout()
"""Given as a process task's `stderr`: both streams, interleaved, go to the stdout repository."""


Enforce = Literal[False, True, "ulimit"]
"""Whether a run's resources are enforced, by control groups (True), or by a shell's `ulimit` on each process's memory."""


@dataclass(frozen=True)
class Recipe:
    """How to make the runs of one process task."""

    task: str
    render: Callable[[RunSpec], Awaitable[str]]
    stdin: BlobRepository | None
    stdout: BlobRepository | None
    stderr: BlobRepository | _StderrIsStdout | None
    environ: Mapping[str, str] | None
    resources: Resources | None = None
    enforce: Enforce = False
    later: tuple[Resources, ...] = ()

    def takes(self, spec: RunSpec) -> Resources | None:
        """Return what a run takes: of tasks that say so, more when others have failed before."""
        return (
            self.later[min(spec.spent, len(self.later)) - 1] if self.later and spec.spent else self.resources
        )

    def __repr__(self) -> str:
        return f"Recipe({self.task!r})"  # the environment may hold secrets

    @property
    def outputs(self) -> dict[str, BlobRepository]:
        """What keeps a run's outputs, by stream."""
        found = {"stdout": self.stdout, "stderr": self.stderr}
        return {name: repo for name, repo in found.items() if isinstance(repo, BlobRepository)}

    def writes(self, job: str, contents: Mapping[str, bytes | Path | None]) -> tuple[Write, ...]:
        """Return what goes into the repositories, of what a run's streams contain."""
        found = []
        for name, repository in self.outputs.items():
            content = contents.get(name)
            if isinstance(content, bytes):
                found.append(Write(repository=repository.id, job=job, data=content, size=len(content)))
            elif content is not None:
                found.append(Write(repository=repository.id, job=job, source=content))
        return tuple(found)


class Machine(ABC):
    """Start, watch and kill processes on a machine, and reach its files. Pids are decimal strings."""

    @property
    @abstractmethod
    def basedir(self) -> Path:
        """The folder on the machine that is this application's own."""

    @abstractmethod
    async def get_live_pids(self, hint: set[str]) -> set[str]:
        """Return the pids that are alive, at least those of `hint`."""

    @abstractmethod
    async def spawn(
        self,
        args: list[str],
        environ: dict[str, str] | None,
        cwd: str,
        return_code: str,
        stdin: str | None,
        stdout: str | None,
        stderr: str | _StderrIsStdout | None,
    ) -> str:
        """Start a process that outlives us, in a session of its own; its exit code goes to the file `return_code`."""

    @abstractmethod
    async def kill(self, pid: str) -> None:
        """Kill the process and its session; a dead one is fine."""

    @abstractmethod
    def open(self, path: Path, mode: Literal["r", "rb", "w", "wb"]) -> AbstractAsyncContextManager[Any]:
        """Open a file on the machine."""

    @abstractmethod
    async def mkdir(self, path: Path) -> None:
        """Make a folder and those above it; existing is fine."""

    @abstractmethod
    async def rmtree(self, path: Path) -> None:
        """Remove a folder with all that is in it; absent is fine."""


logger = logging.getLogger("datatask.proc_manager")

SIZES_BYTES = 400
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


class ClaimedFolder:
    """The folder of one run."""

    def __init__(self, machine: Machine, path: Path) -> None:
        self.path = path
        self._machine = machine

    def __str__(self) -> str:
        return str(self.path)

    # --- starting ---------------------------------------------------------------------------------

    async def make(self, recipe: Recipe, job: str, script: str) -> None:
        """Make the folder, with the script and its input."""
        await self._machine.mkdir(self.path / "cwd")
        await self._write("exe", script.encode())
        await self._write("sizes", b" " * SIZES_BYTES)
        if recipe.stdin is not None:
            async with (
                recipe.stdin.open(job, "rb") as source,
                self._machine.open(self.path / "stdin", "wb") as target,
            ):
                while data := await source.read(BLOCK_BYTES):
                    await target.write(data)

    async def launch(self, recipe: Recipe, variables: Mapping[str, str]) -> str:
        """Start the process with these variables beside its environment; return its pid."""
        own = "".join(f"export {name}={shlex.quote(value)}; " for name, value in variables.items())
        stderr = None if recipe.stderr is None else str(self.path / "stderr")
        return _text(
            await self._machine.spawn(
                [
                    "/bin/sh",
                    "-c",
                    f'{own}chmod +x "$1/exe"; {CLAIM}',
                    "run",
                    str(self.path),
                    " ".join(recipe.outputs),
                ],
                None if recipe.environ is None else dict(recipe.environ),
                str(self.path / "cwd"),
                str(self.path / "return_code"),
                str(self.path / "stdin") if recipe.stdin is not None else None,
                str(self.path / "stdout") if recipe.stdout is not None else None,
                STDOUT if recipe.stderr is STDOUT else stderr,
            )
        )

    async def bar(self) -> None:
        """Keep a start that was delayed from happening."""
        await self._machine.mkdir(self.path / "claim")

    async def remove(self) -> None:
        """Remove the folder with all that is in it."""
        try:
            await self._machine.rmtree(self.path)
        except Exception as error:
            logger.warning("the folder of a run cannot be removed: %s", error)

    async def _write(self, name: str, data: bytes) -> None:
        async with self._machine.open(self.path / name, "wb") as file:
            await file.write(data)

    async def _read(self, path: PurePath) -> str | None:
        try:
            async with self._machine.open(Path(path), "rb") as file:
                data: bytes = await file.read()
        except FileNotFoundError:
            return None
        return data.decode(errors="replace").strip()

    # --- the process ------------------------------------------------------------------------------

    async def pid(self) -> str:
        """Return the pid of the process that has claimed the folder; none where there is no such process."""
        words = (await self._read(self.path / "pid") or "").split()
        return words[0] if words else ""

    async def exit_code(self) -> str | None:
        """Return how the process has ended, as far as that is written down."""
        return await self._read(self.path / "return_code")

    async def is_alive(self, pid: str) -> bool:
        """Whether a pid is that of a living process, the run's."""
        return pid in await live_pids(self._machine, {pid}) and await self.is_ours(pid)

    async def is_ours(self, pid: str) -> bool:
        """Whether the process with the run's pid is the run's, as far as its machine's /proc can be read."""
        claim = await self._read(self.path / "pid") or ""
        known = [words for line in claim.splitlines() if len(words := line.split()) == 3 and words[0] == pid]
        if not known:
            return True
        try:
            stat = await self._read(PurePath(f"/proc/{pid}/stat"))
            boot = await self._read(PurePath("/proc/sys/kernel/random/boot_id"))
        except Exception:
            return True
        return stat is None or [stat.rpartition(")")[2].split()[19], boot] == known[0][1:]

    async def kill(self, pid: str) -> None:
        """Kill the process, if it is the run's."""
        if await self.is_ours(pid):
            program = await self._read(self.path / "program")
            await self._machine.kill(pid)
            if program and program in await live_pids(self._machine, {program}):
                await self._machine.kill(program)  # by verbs that kill no session

    # --- outputs ----------------------------------------------------------------------------------

    async def noted(self) -> dict[str, list[str]] | None:
        """Return what the shell has written down of the outputs, by first word; None where that is not whole."""
        *lines, dot = (await self._read(self.path / "sizes") or "").splitlines() or [""]
        return {words[0]: words[1:] for line in lines if (words := line.split())} if dot == "." else None

    async def fetch(
        self, noted: Mapping[str, list[str]], targets: Mapping[str, Path]
    ) -> tuple[dict[str, Path], dict[str, str]]:
        """Fetch outputs into files; return those, and what is wrong with those of which not all is there."""
        found: dict[str, Path] = {}
        wrong: dict[str, str] = {}
        for name, target in targets.items():
            words = [*noted.get(name, ("0", "0")), ""]
            size, written, printed = int(words[0]), int(words[1]), words[2]
            try:
                there = await self._download(name, target)
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

    async def _download(self, name: str, target: Path) -> int:
        """Fetch a file; return how long it is."""
        async with self._machine.open(self.path / name, "rb") as source:
            with target.open("wb") as file:
                while data := await source.read(BLOCK_BYTES):
                    file.write(data)
                return file.tell()


async def live_pids(machine: Machine, pids: set[str]) -> set[str]:
    """Return those of the pids that are alive, as text."""
    return {_text(pid) for pid in await machine.get_live_pids(pids)}


def _text(pid: object) -> str:
    """Return a pid as text; managers written for pydatatask give bytes, too."""
    return pid.decode() if isinstance(pid, bytes) else str(pid)
