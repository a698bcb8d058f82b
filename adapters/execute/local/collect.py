"""What a run on this machine has written: proved to be what its process wrote, before its end is believed.

In: how a run ended, as the launcher tells it, and the run's folder. Out: the files to collect, and what is wrong with those
that are not to be had. One that lost its name is copied from the launcher's descriptor. Blocking.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datatask.adapters.execute.base.endings import cut
from datatask.adapters.execute.local import folders
from datatask.adapters.execute.local.outputs import status_of

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
