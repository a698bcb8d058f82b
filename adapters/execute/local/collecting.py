"""What a run on this machine has written: proved to be what its process wrote, before its end is believed.

In: how a run ended, as the launcher tells it, and the run's folder. Out: the files to collect, and the ending, which is no
success where an output is not whole. One that lost its name is copied from the launcher's descriptor. Blocking.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from datatask.adapters.execute.local import folders
from datatask.adapters.execute.local.outputs import status_of
from datatask.schema.events import Ending, ErrorInfo, Outcome

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


def judged(ending: Ending, wrong: Mapping[str, str], found: Iterable[str]) -> Ending:
    """Return the ending in the light of what is wrong with outputs: a success is `lost` without one, `failed` with a part of it."""
    if not wrong:
        return ending
    words = "; ".join(wrong.values())
    if ending.outcome != "succeeded":
        error = ending.error or ErrorInfo(type="Output", message="")
        told = ErrorInfo(type=error.type, message=f"{error.message}; {words}".removeprefix("; "))
        return msgspec.structs.replace(ending, error=told)
    outcome: Outcome = "failed" if wrong.keys() <= set(found) else "lost"
    return msgspec.structs.replace(ending, outcome=outcome, error=ErrorInfo(type="Output", message=words))
