"""Engines and launchers are killed while runs hold cards by name: no two runs ever have one, and all are free at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from datatask import (
    FileRepository,
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
from tests.crash.shop import inputs, lay_out
from tests.crash.test_crashes import told
from tests.effort import by_effort

pytestmark = pytest.mark.long

KILLS, JOBS = by_effort(quick=(8, 60), thorough=(60, 200), soak=(200, 600))
SCRIPT = """#!/bin/sh
exec 9>{folder}/locks/$CUDA_VISIBLE_DEVICES
flock -n 9 || {{ touch {folder}/clash-$CUDA_VISIBLE_DEVICES; exit 9; }}
echo $CUDA_VISIBLE_DEVICES >> {folder}/effects/{{{{ job }}}}
sleep 0.05
"""


def cards(folder: Path) -> Pipeline:
    """Return a pipeline of scripts that lock the card that they were given, and say so when another one has it."""
    box = ResourceManager(Resources.parse(64, "64GiB", gpu=["a", "b", "c"]))
    use = ProcessTask(
        "use",
        LocalLinuxManager("cards", folder / "base"),
        box,
        Resources.parse(1, "1MiB", gpu=1),
        LogMetadataRepository("use.pids"),
        SCRIPT.format(folder=folder),
        stdout=LogBlobRepository("use.stdout"),
        done=LogMetadataRepository("use.done"),
    )
    use.link("inp", FileRepository(folder / "in", name="in"), is_input=True)
    return Pipeline([use], Session(), [box], log=folder / "log.db", name="cards")


@pytest.mark.scaled
def test_kills_give_no_card_to_two(tmp_path: Path) -> None:
    lay_out(tmp_path, JOBS)
    (tmp_path / "locks").mkdir()
    found = told(
        f"__import__('tests.crash.harness').crash.harness.kill_often(Path({str(tmp_path)!r}), {KILLS}, 3, "
        "(0.1, 0.6), __import__('tests.crash.test_identities').crash.test_identities.cards)"
    )
    assert found == "[]"
    assert not list(tmp_path.glob("clash-*"))
    with History(tmp_path / "log.db") as history:
        state = history.state()
        assert not state.open_runs
        assert not any(quota.held for quota in state.quotas.values())
        assert state.leaves["use.done"].count == inputs(tmp_path)
        used = {tuple(run["identities"]["gpu"]) for run in history.runs()}
    assert used == {("a",), ("b",), ("c",)}
    assert {card for path in (tmp_path / "effects").iterdir() for card in path.read_text().split()} == set(
        "abc"
    )
