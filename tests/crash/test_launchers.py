"""A launcher that is killed again and again, while it starts and reaps as fast as it can, loses no run and doubles none."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    InProcessMetadataRepository,
    LocalLinuxManager,
    LogBlobRepository,
    LogMetadataRepository,
    Pipeline,
    ProcessTask,
    ResourceManager,
    Resources,
    Session,
)
from datatask.adapters.history.history import History
from tests.crash.harness import effects, kill_launchers
from tests.effort import by_effort

JOBS, KILLS_MIN, KILLS_MAX = by_effort(quick=(300, 2, 10), thorough=(2000, 10, 60), soak=(2000, 10, 60))
SCRIPT = "#!/bin/sh\necho x >> {effects}/{{{{ job }}}}\nexit 3\n"


@pytest.mark.scaled
async def test_launchers_killed_at_full_speed_change_nothing(tmp_path: Path) -> None:
    """Scripts end within milliseconds: before their pid is written down, before anybody waits, before their end is."""
    (tmp_path / "effects").mkdir()
    quota = ResourceManager(Resources.parse(16, "16Gi"))
    task = ProcessTask(
        "short",
        LocalLinuxManager("app", tmp_path / "base"),
        quota,
        Resources.parse(1, "1Mi"),
        LogMetadataRepository("pids"),
        SCRIPT.format(effects=tmp_path / "effects"),
        stdout=LogBlobRepository("out"),
    )
    jobs: dict[str, Any] = {f"j{number}": {} for number in range(JOBS)}
    task.link("given", InProcessMetadataRepository(jobs), is_input=True)
    over, seeded = threading.Event(), random.Random(5)

    def kill_often() -> None:
        begun = 0
        for _ in range(KILLS_MAX):
            if over.wait(seeded.uniform(0.05, 0.4)):
                break
            # On a busy machine a launcher takes longer than that to begin: most of them are let begin something.
            patient = seeded.random() > 0.1
            while patient and not over.wait(0.02):
                if (count := len(os.listdir(tmp_path / "effects"))) > begun:
                    begun = count
                    break
            kill_launchers(tmp_path)

    killer = threading.Thread(target=kill_often)
    async with Pipeline([task], Session(), [quota], log=tmp_path / "log.db") as pipeline:
        killer.start()
        try:
            await pipeline.run(timeout=250)
        finally:
            over.set()
            killer.join()
    assert len((tmp_path / "launcher-kills").read_text().splitlines()) >= KILLS_MIN
    assert effects(tmp_path) == dict.fromkeys(jobs, 1)
    with History(tmp_path / "log.db") as history:
        ends = Counter((run["state"], run["exit_code"]) for run in history.runs())
    assert ends["failed", 3] == JOBS
    assert set(ends) <= {("failed", 3), ("lost", None)}, "what was not started yet is lost, and tried again"
