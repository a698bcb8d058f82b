"""Which image a pod's run had, by digest, and what its name last resolved to.

In: ends of runs, with what the kubelet reported (`IMAGES` in their `detail`). Out: by task the results whose image is another one by
now, with name, both digests, and the position at which the later one was first seen. A run of which no digest was reported has its
image by name alone, which its template has. Digests are known by running: what a registry has meanwhile is not asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from datatask.adapters.log.reader import LogReader
from datatask.engine.core.cells import get_at
from datatask.engine.core.state import State
from datatask.schema.events import IMAGES

_ENDS = f"""
SELECT run, position, json_extract(payload, '$.detail.{IMAGES}') FROM log
WHERE kind = (SELECT id FROM names WHERE text = 'RunEnded') AND position <= ?
  AND task IN (SELECT id FROM names WHERE text IN (SELECT value FROM json_each(?)))
  AND json_extract(payload, '$.detail.{IMAGES}') IS NOT NULL
ORDER BY position
"""
SECONDS = 600.0


class Outdated(NamedTuple):
    """A result whose image was another one: it had `old` under `name`, which has been `new` since `position`."""

    task: str
    job: int
    name: str
    old: str
    new: str
    position: int


def images_in(text: str) -> dict[str, str]:
    """Return digests by image, of what stands in an ending's `detail`."""
    pairs = (part.split("=", 1) for part in text.split() if "=" in part)
    return {name: digest for name, digest in pairs if digest}


def outdated(reader: LogReader, state: State) -> Iterator[Outdated]:
    """Yield the results of pods whose images have been others since."""
    tasks = [
        task
        for task in state.definition.tasks
        if task.done_shape == "pod" and task.on_change != "keep" and task.name in state.tasks
    ]
    if not tasks:
        return
    from msgspec.json import encode

    named = encode([task.name for task in tasks]).decode()
    rows = reader.query(_ENDS, (state.position, named), timeout_seconds=SECONDS).rows
    by_run: dict[int, dict[str, str]] = {}
    now: dict[str, tuple[str, int]] = {}
    for run, position, text in rows:
        by_run[run] = images_in(text)
        for name, digest in by_run[run].items():
            if now.get(name, ("", 0))[0] != digest:
                now[name] = digest, position
    for definition in tasks:
        task = state.tasks[definition.name]
        for job in task.succeeded.members(state.masks):
            for name, digest in by_run.get(get_at(task.last_run, job), {}).items():
                if now[name][0] != digest:
                    yield Outdated(definition.name, job, name, digest, *now[name])
