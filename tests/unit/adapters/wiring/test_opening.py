"""What opening a log refuses: a task that has gone, and seems to go on under another name."""

from __future__ import annotations

from pathlib import Path

import pytest

from datatask import InProcessSyncTask, LogMetadataRepository, NotPossibleError, Pipeline, Session


def pipeline(folder: Path, *tasks: str, was: str | None = None) -> tuple[Pipeline, LogMetadataRepository]:
    """Tasks of these names, each over the same input; repositories keep their names whatever the task's is."""
    given, made = LogMetadataRepository("given"), []
    for number, name in enumerate(tasks):
        task = InProcessSyncTask(name, LogMetadataRepository(f"done-{number}"), func=_nothing, was=was)
        task.link("given", given, is_input=True)
        made.append(task)
    return Pipeline(made, Session(), log=folder / "log.db"), given


async def _nothing(job: str) -> None:
    """Do nothing."""


async def worked(folder: Path, *tasks: str) -> None:
    pipe, given = pipeline(folder, *tasks)
    async with pipe:
        await given.dump("a", 1)
        await pipe.run()


async def test_a_task_renamed_without_was_is_refused_where_it_has_history(tmp_path: Path) -> None:
    await worked(tmp_path, "old")
    pipe, _ = pipeline(tmp_path, "new")
    with pytest.raises(
        NotPossibleError, match="no longer has the task old, which has run 1 job; new is new"
    ) as told:
        await pipe.open()
    assert told.value.remedy == "say was='old' on its successor, or that it has none: --accept-loss old"
    renamed, _ = pipeline(tmp_path, "new", was="old")
    async with renamed:
        assert renamed.state.tasks["new"].succeeded.count == 1


async def test_a_loss_that_is_accepted_is_not_asked_for_again(tmp_path: Path) -> None:
    await worked(tmp_path, "old")
    for names in (("new",), ("new", "more")):
        pipe, _ = pipeline(tmp_path, *names)
        pipe.accepted |= {"old"} if names == ("new",) else set()
        async with pipe:
            assert "old" not in [task.name for task in pipe.state.definition.tasks]


async def test_a_task_that_is_removed_or_has_never_run_is_no_rename(tmp_path: Path) -> None:
    await worked(tmp_path, "kept", "gone")
    for names in (("kept",), ("kept", "idle")):
        pipe, _ = pipeline(tmp_path, *names)
        pipe.accepted |= {"done-1"} if len(names) == 1 else set()
        async with pipe:
            assert list(pipe.tasks) == list(names)
