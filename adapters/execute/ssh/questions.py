"""What the agent is asked to start: which streams, which interpreter, and a short script along with it.

In: a task's recipe, a rendered script. Out: the lines of a `start`, as agent.sh reads them.
"""

from __future__ import annotations

from datatask.adapters.execute.targets import STDOUT, Recipe

SCRIPT_BYTES_MAX = 4096


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
