"""A run's folder on this machine, for a person who looks into it while it runs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from datatask.schema.errors import CallerError

CHUNK_BYTES = 1 << 20


class LocalPlace:
    """One run's folder here."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def read(self, name: str, offset: int) -> bytes:
        """Return what `stdout` or `stderr` has from an offset on, at most 1 MiB; nothing where it is not there (yet)."""
        try:
            with (self._folder / name).open("rb") as file:
                file.seek(offset)
                return file.read(CHUNK_BYTES)
        except FileNotFoundError:
            return b""

    async def enter(self) -> int:
        """Open a shell in the folder, on the terminal if there is one; return its exit code."""
        try:
            shell = await asyncio.create_subprocess_exec(
                os.environ.get("SHELL", "/bin/sh"), cwd=self._folder / "cwd"
            )
        except OSError as error:
            raise CallerError(f"{error.strerror}: {error.filename}", where=str(self._folder)) from error
        return await shell.wait()

    async def close(self) -> None:
        """Nothing is held."""
