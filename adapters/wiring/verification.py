"""The verification of an engine's own log, which goes on for as long as the engine does.

In: an open engine over a log in a file. Out: how far the log is known to hold; at the first divergence the engine
launches nothing more (`Runtime.damaged`). The work is done by a process of its own
(`datatask.adapters.history.verify.background`), which begins when an engine has rested for `START_SECONDS` or has used `START_CPU_SECONDS`, rests most
of the time, and is never waited for: a short run is not prolonged by it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from datatask.adapters.history.verify.background import BUSY_CORES, BUSY_EVENTS_PER_SECOND, Told
from datatask.adapters.log.faults import damaged
from datatask.engine.core.state import FOLD_VERSION
from datatask.engine.runtime.loop import Runtime
from datatask.schema.events import CheckpointWritten
from datatask.schema.troubles import Divergence

logger = logging.getLogger("datatask.engine")

START_SECONDS = 5.0
START_CPU_SECONDS = 20.0
"""The start takes up to half a second of CPU: a busy engine has worked forty times as long before."""
PAUSE_SECONDS = 61.0
"""After so long it is tried again: it needs a process, and a machine that has none to give stops no engine."""
MODULE = "datatask.adapters.history.verify.background"
_REMEDY = "see `datatask verify`; restore the log from a backup"


class Verification:
    """The process that verifies one engine's log; `position` is how far it has come, 0 before it has begun."""

    def __init__(self, runtime: Runtime, path: Path, *, start_seconds: float | None = None) -> None:
        self.position = 0
        self._runtime = runtime
        self._path = path
        self._start_seconds = START_SECONDS if start_seconds is None else start_seconds
        self._service = runtime.services.service("the verification of the log")
        self._process: asyncio.subprocess.Process | None = None
        self._task = asyncio.create_task(self._work(), name="the verification of the log")

    async def close(self) -> None:
        """End it where it is."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        await self._is_time()
        while self._runtime.failure is None:
            try:
                if await self._verified():
                    return
                error: Exception = RuntimeError("its process ended by itself")
            except Exception as caught:
                error = caught
            if self._runtime.failure is None:
                self._service.failed(error, again_seconds=PAUSE_SECONDS)
                await asyncio.sleep(PAUSE_SECONDS)

    async def _is_time(self) -> None:
        """Wait until the engine rests, or has worked for long."""
        opened, seconds = time.process_time(), self._start_seconds
        before, position = opened, self._runtime.state.position
        while True:
            await asyncio.sleep(seconds)
            used, head = time.process_time(), self._runtime.state.position
            rested = (
                used - before < BUSY_CORES * seconds and head - position < BUSY_EVENTS_PER_SECOND * seconds
            )
            if rested or used - opened >= START_CPU_SECONDS:
                return
            before, position = used, head

    async def _verified(self) -> bool:
        """Start the process and hear it; return whether it found a divergence, with which it ends."""
        pipe = asyncio.subprocess.PIPE
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", MODULE, str(self._path),
            stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            async for line in process.stdout:
                told = msgspec.json.decode(line, type=Told)
                self._service.works()
                if told.divergence is not None:
                    self._diverged(told.divergence)
                    return True
                if told.changed:
                    logger.warning("%s", told.changed)
                    continue
                self.position = max(self.position, told.verified)  # it begins again, after a day
                if told.digest:
                    await self._answer(process, told)
            return False
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _answer(self, process: asyncio.subprocess.Process, told: Told) -> None:
        """Vouch for a state in the log, and tell by which event."""
        runtime, event = self._runtime, 0
        if runtime.failure is None and runtime.damage is None and runtime.log.keeps_checkpoints:
            note = CheckpointWritten(
                at=runtime.now(),
                position=told.verified,
                fold_version=FOLD_VERSION,
                sha256=told.digest,
                verified=True,
            )
            event, _ = await runtime.finished(runtime.reactor.tickets.ask([note]))
        assert process.stdin is not None
        process.stdin.write(b"%d\n" % event)
        await process.stdin.drain()

    def _diverged(self, found: Divergence) -> None:
        self._runtime.damaged(
            damaged(f"it is not what was written: {found}", self._path, found.position, _REMEDY)
        )
