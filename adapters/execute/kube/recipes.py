"""What a Kubernetes task tells its runner: how to make a pod of a job, what of it to keep, how long to wait for a start."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from datatask.adapters.execute.kube.manifests import Manifest
from datatask.engine.ports import RunSpec, Write
from datatask.engine.repositories import BlobRepository
from datatask.schema.events import Ending

SECOND = 1_000_000_000


@dataclass(frozen=True)
class Result:
    """What a function in a pod brought back: its ending where it tells one, and what it wrote."""

    ending: Ending | None
    writes: tuple[Write, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """How to make the pods of one task. Times are nanoseconds; None waits for ever."""

    task: str
    manifest: Callable[[RunSpec], Awaitable[Manifest]]
    logs: BlobRepository | None
    start_within: int | None = 300 * SECOND
    schedule_within: int | None = 3600 * SECOND
    env: Callable[[RunSpec], Awaitable[Mapping[str, str]]] | None = None
    result: Callable[[RunSpec, bytes], tuple[Result, int] | None] | None = None
    """Takes the end of a container's log; returns what the function brought back, and how many bytes of it said so."""
    finished: Callable[[RunSpec, Ending], tuple[Write, ...]] | None = None
    handle_timeout: Callable[[Any], Awaitable[None]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Recipe({self.task!r})"
