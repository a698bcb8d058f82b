"""The lines that the agent of a target reads and writes.

In: a task's recipe, a rendered script, an environment; the agent's words after `ended ID`. Out: a `start`, a `variables`, as
agent.sh reads them; a `Record` of an end and its `Ending`, or None for one that is torn. Nothing here knows of runs or links.
"""

from __future__ import annotations

import re
import shlex
import signal
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from datatask.adapters.execute.base.endings import OUT_OF_MEMORY_PERHAPS, cut, exit_ending, stopped_ending
from datatask.adapters.execute.base.machines import STDOUT, Recipe
from datatask.adapters.execute.base.shutdowns import of_a_signal
from datatask.schema.errors import InvalidValueError
from datatask.schema.events import Ending, ErrorInfo, StopReason

SCRIPT_BYTES_MAX = 4096
PERIOD_MICROSECONDS = 100_000
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def travels(recipe: Recipe, script: bytes) -> bool:
    """Whether a script is short enough to be sent with its start, which a shell reads byte by byte; else it is uploaded."""
    return recipe.stdin is None and len(script) <= SCRIPT_BYTES_MAX and b"\0" not in script


def start(recipe: Recipe, name: str, variables: str, script: bytes, *, again: bool = False) -> str:
    """Return the start of a run by its name on the target; `variables` sets its environment there.

    With `again` it begins although it was barred, since its start was refused.
    """
    lines: list[str] = []
    if travels(recipe, script):
        lines = script.decode().removesuffix("\n").split("\n")
    marks = {
        "i": recipe.stdin is not None,
        "o": recipe.stdout is not None,
        "e": recipe.stderr is not None and recipe.stderr is not STDOUT,
        "m": recipe.stderr is STDOUT,
        "c": recipe.enforce is True and recipe.resources is not None,
        "a": again,
        "n": bool(lines) and not script.endswith(b"\n"),
    }
    streams = "-" + "".join(mark for mark, there in marks.items() if there)
    words = ["start", name, recipe.task, variables, streams, str(len(lines))]
    return "\n".join([" ".join(words), *_interpreter(script), *lines])


def _interpreter(script: bytes) -> tuple[str, str]:
    """Return the interpreter with its argument as the kernel reads them; none for a program."""
    first, _, _ = script.partition(b"\n")
    if first.startswith(b"#!"):
        interpreter, _, argument = first[2:].decode(errors="replace").strip().partition(" ")
        return interpreter, argument.strip()
    return ("" if script.startswith(b"\x7fELF") else "/bin/sh"), ""


def environment(
    where: str, key: str, environ: Mapping[str, str] | None, memory: int, cpu: float | None
) -> str:
    """Return the definition of the environment that starts name by `key`; `InvalidValueError` for what a shell cannot set.

    None is that of the login there. `memory` bounds the bytes of each process, 0 being no bound; with `cpu`, a
    number of cores, control groups bound both for all of the run together.
    """
    for name in environ or ():
        if _VARIABLE.fullmatch(name) is None:
            raise InvalidValueError(
                f"a shell cannot set the variable {name!r:.80}",
                where=where,
                remedy="use letters, digits and _ in the names of environ",
            )
    said = [f"export {name}={shlex.quote(value)}" for name, value in (environ or {}).items()]
    if environ is not None:
        said.insert(0, "unset $names")
    if cpu is not None:
        quota = round(cpu * PERIOD_MICROSECONDS)
        said.insert(0, f'confine {quota} {memory} || {{ : >"$run/unconfined"; exit 125; }}')
    elif memory:
        said.append(f"ulimit -v {-(-memory // 1024)} || exit 125")
    text = "\n".join(said)
    return f"variables {key} {text.count(chr(10)) + 1}\n{text}"


class OwnVariables(NamedTuple):
    """A function of the agent that sets a run's environment, and its definition where it is not there already."""

    name: str
    definition: str = ""


def own_variables(task: str, variables: Mapping[str, str]) -> OwnVariables:
    """Return what sets the environment of a task by its function, and these variables; runs with the same ones share it."""
    if not variables:
        return OwnVariables(task)
    said = [task, *(f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items()))]
    key = f"own_{zlib.crc32(chr(10).join(said).encode()):08x}"
    text = "\n".join(said)
    return OwnVariables(f"variables_{key}", f"variables {key} {text.count(chr(10)) + 1}\n{text}")


SIGNALS_MAX = 64
UNSTARTED = "unstarted"
_WORDS = re.compile(
    r"(?P<pid>\d+) (?P<start>\d+) (?P<boot>\S+) (?P<at>\d+(\.\d+)?) (?P<code>\d+|unstarted) (?P<reason>-|\w+)"
    r" -(?P<noted>\S*) (?P<user>\d+m\d+([.,]\d+)?s) (?P<system>\d+m\d+([.,]\d+)?s)",
    re.ASCII,
)
_NOTED = re.compile(r"((?:stdout|stderr)(?:_written|_gone)?|peak|oom|killed|full)=(\d+),", re.ASCII)
_SUM = re.compile(r"(stdout|stderr)_sum=([0-9a-f]+),", re.ASCII)
_STREAMS = ("stdout", "stderr")


class Record(NamedTuple):
    """An end as the target wrote it down.

    `pid`, `start` (ticks since boot) and `boot` are the process; `at` is when it ended, in seconds since boot. `code`
    is an exit code, minus a signal's number, or None for one that never became the user's program. `reason` is that
    of a stop, if there was one. `sizes` has the bytes of each output that is not empty or was cut, `sums` their checksums, `wrong` what is wrong with one, `full` whether the disk was. `peak` is the memory used at
    most, in bytes, and `oom` whether the kernel killed in the run's own groups (True), perhaps it (None), or not.
    """

    pid: str
    start: str
    boot: str
    at: float
    code: int | None
    reason: StopReason | None
    sizes: dict[str, int]
    peak: int | None
    oom: bool | None
    cpu_seconds: float
    wrong: dict[str, str] = {}
    sums: dict[str, str] = {}
    full: bool = False

    @property
    def is_in_doubt(self) -> bool:
        """Whether it ended by a signal that a stop of the whole machine sends, as far as anybody knows."""
        if self.code is None or self.reason is not None or self.oom:
            return False
        return of_a_signal(self.code) is not None

    def ending(self, stop: StopReason | None, memory: int) -> Ending:
        """Return the ending, of a run that was to be stopped for `stop` or was not, with `memory` bytes of resources."""
        if self.code is None:
            message = "it could not be started: its streams, its folder or its control group are not usable"
            return Ending(outcome="lost", error=ErrorInfo(type="Refused", message=message))
        if self.reason is not None:
            return stopped_ending(self.reason, self.code)
        if stop is not None and self.code in (-signal.SIGTERM, -signal.SIGKILL):
            return stopped_ending(stop, self.code)  # the disk was too full to note the reason there
        if self.oom:
            why = f"out of memory: the kernel killed at the {memory} bytes of its resources"
        else:
            why = "" if self.oom is False else OUT_OF_MEMORY_PERHAPS
        return exit_ending(self.code, why)


def parse(words: Sequence[str]) -> Record | None:
    """Return what a record says; None for one that is not whole."""
    found = _WORDS.fullmatch(" ".join(words))
    if found is None:
        return None
    noted = [(name, int(number)) for name, number in _NOTED.findall(found["noted"])]
    most = dict(sorted(noted))  # of two groups that tell a peak, the larger one
    code, reason = found["code"], found["reason"]
    return Record(
        pid=found["pid"],
        start=found["start"],
        boot=found["boot"],
        at=float(found["at"]),
        code=None if code == UNSTARTED else plain(code),
        reason=None if reason == "-" else cast(StopReason, reason),
        sizes=_sizes(most),
        peak=most.get("peak"),
        oom=True if most.get("oom") else None if most.get("killed") else False,
        cpu_seconds=round(seconds(found["user"]) + seconds(found["system"]), 6),
        wrong=_wrong(most),
        sums=dict(_SUM.findall(found["noted"])),
        full=bool(most.get("full")),
    )


def _sizes(noted: Mapping[str, int]) -> dict[str, int]:
    there = {name for name in _STREAMS if name in noted or f"{name}_written" in noted}
    return {name: noted.get(name, 0) for name in _STREAMS if name in there and f"{name}_gone" not in noted}


def _wrong(noted: Mapping[str, int]) -> dict[str, str]:
    wrong = {}
    for name in _STREAMS:
        if f"{name}_gone" in noted:
            wrong[name] = f"its {name} was removed or exchanged while it ran, and cannot be written anew"
        elif (written := noted.get(f"{name}_written")) is not None:
            wrong[name] = cut(name, written, noted.get(name, 0))
    return wrong


def plain(code: str) -> int:
    """Return an exit code, or minus a signal's number: a shell tells a killed process as 128 and more."""
    number = int(code)
    return 128 - number if 128 < number <= 128 + SIGNALS_MAX else number


def seconds(text: str) -> float:
    """Return what a shell's `times` means: `1m2.5s` is 62.5; some write a comma."""
    minutes, _, rest = text.removesuffix("s").partition("m")
    return int(minutes) * 60 + float(rest.replace(",", "."))
