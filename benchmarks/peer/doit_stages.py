"""doit with its SQLite store: a file a job and stage, each depending on the one before."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clock import FOLDER, JOBS, STAGES, report
from doit.cmd_base import ModuleTaskLoader  # type: ignore[import-not-found]
from doit.doit_cmd import DoitMain  # type: ignore[import-not-found]


def path(stage: int, job: int) -> str:
    """Return the file that a stage makes of a job."""
    return f"{FOLDER}/{stage}-{job}"


def touch(targets: list[str]) -> None:
    """Make the file."""
    Path(targets[0]).write_text("{}")


def task_stages() -> Iterator[dict[str, Any]]:
    """Yield one task a stage and job."""
    for stage in range(STAGES):
        for job in range(JOBS):
            told = {"file_dep": [path(stage - 1, job)]} if stage else {"uptodate": [True]}
            yield {"name": f"{stage}-{job}", "actions": [touch], "targets": [path(stage, job)], **told}


def main() -> None:
    """Run them all."""
    config = {"dep_file": f"{FOLDER}/doit.db", "backend": "sqlite3", "verbosity": 0}
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        code = DoitMain(ModuleTaskLoader({"task_stages": task_stages, "DOIT_CONFIG": config})).run(["run"])
    assert code == 0
    report(began, STAGES * JOBS)


if __name__ == "__main__":
    main()
