"""What users' own tests of pipelines need: a log in memory, time that moves when told, runs that do as told.

pipeline = Pipeline(tasks, Session(), log=memory_log(), clock=(clock := VirtualClock()))
runner = recording(pipeline)
async with pipeline:
    await pipeline.put("resize.photo", "cat", b"...")
    await pipeline.update()
    assert runner.jobs == [("resize", "cat")]
    runner.end("resize", "cat")
"""

from __future__ import annotations

from datatask.adapters.log.memory import MemoryLog
from datatask.adapters.sim.virtual import BEGINNING, RecordingRunner, VirtualClock, recording

__all__ = ["MemoryLog", "RecordingRunner", "VirtualClock", "memory_log", "recording"]


def memory_log(pipeline: str = "pipeline", *, now: int = BEGINNING) -> MemoryLog:
    """Return a new log in memory; it stays readable after the pipeline has closed."""
    return MemoryLog(pipeline=pipeline, clock_now=now, seed=0)
