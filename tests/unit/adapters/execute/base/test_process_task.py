"""Tasks that run processes: what is checked."""

from __future__ import annotations

from typing import Any

import pytest

from datatask import (
    STDOUT,
    InProcessMetadataRepository,
    LocalLinuxManager,
    ProcessTask,
    Resources,
)
from datatask.schema.errors import CallerError

Meta = InProcessMetadataRepository


def a_process(**more: Any) -> ProcessTask:
    """Return a process task with all links."""
    return ProcessTask("p", LocalLinuxManager("app"), None, Resources(), Meta(), "true", **more)


async def test_process_tasks_are_checked() -> None:
    """Streams hold bytes, STDOUT needs a stdout, templates compile."""
    with pytest.raises(CallerError, match="without a stdout"):
        await linked(a_process(stderr=STDOUT)).validate()
    with pytest.raises(CallerError, match="stdout repository does not hold bytes"):
        await linked(a_process(stdout=Meta())).validate()
    with pytest.raises(CallerError, match="dict of strings"):
        a_process(environ=["A=1"])


def linked(task: ProcessTask) -> ProcessTask:
    """Return the task with an input."""
    task.link("inp", Meta(), is_input=True)
    return task
