"""pydatatask's verbs as functions: names, parameters and text as scripts know them."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

import datatask


def make(count: int = 100) -> datatask.Pipeline:
    """The pipeline of pydatatask's own first test."""
    repo0 = datatask.InProcessMetadataRepository({str(number): number for number in range(count)})
    repo1 = datatask.InProcessMetadataRepository()
    task = datatask.InProcessSyncTask("task", datatask.InProcessMetadataRepository())
    task.link("repo0", repo0, is_input=True)
    task.link("repo1", repo1, is_output=True)

    @task
    async def copy(job: str, repo0: datatask.Repository, repo1: datatask.InProcessMetadataRepository) -> None:
        await repo1.dump(job, await repo0.info(job))

    return datatask.Pipeline([task], datatask.Session(), [])


async def test_status_and_trace_are_pydatatasks_text(capsys: pytest.CaptureFixture[str]) -> None:
    """To the letter, in an open pipeline."""
    pipeline = make()
    async with pipeline:
        await datatask.run(pipeline, forever=False, launch_once=False, timeout=60)
        await datatask.delete_data(pipeline, "task.repo1", False, ["0"])
        assert capsys.readouterr().out == "0 InProcessMetadataRepository(99 jobs)\n"
        await datatask.print_status(pipeline, all_repos=False)
        assert capsys.readouterr().out == "task\ntask.repo0 100\ntask.done 100\ntask.repo1 99\n\n"
        await datatask.print_trace(pipeline, all_repos=False, jobs=["0", "1"])
        assert capsys.readouterr().out == "task\ntask.repo0 0 1\ntask.done 0 1\ntask.repo1 1\n\n"
        await datatask.list_data(pipeline, ["task.repo0", "-", "task.repo1"])
        assert capsys.readouterr().out == "0\n"
    await datatask.print_status(pipeline, False)
    assert capsys.readouterr().out == "task\ntask.repo0 100\ntask.done 100\ntask.repo1 99\n\n"


async def test_values_go_in_and_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stdin holds is parsed as YAML; what comes out is YAML."""
    pipeline = make(1)
    async with pipeline:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"- 1\n- two\n")))
        await datatask.inject_data(pipeline, "task.repo0", "new")
        await datatask.cat_data(pipeline, "task.repo0", "new")
        assert capsys.readouterr().out == "- 1\n- two\n"
        with pytest.raises(datatask.UnknownNameError, match=r"task\.repo1"):
            await datatask.cat_data(pipeline, "task.repo2", "new")


async def test_launch_checks_readiness_unless_forced(caplog: pytest.LogCaptureFixture) -> None:
    """And with sync the run has ended when it returns."""
    pipeline = make(1)
    async with pipeline:
        assert await datatask.launch(pipeline, "task", "0", sync=True, meta=True, force=False)
        assert pipeline.state.contains("succeeded(task)", "0")
        assert not await datatask.launch(pipeline, "task", "0", sync=True, meta=True, force=False)
        assert "Task is not ready to launch - use -f to force" in caplog.text
        assert await datatask.launch(pipeline, "task", "other", sync=True, meta=True, force=True)
        assert pipeline.tasks["task"].done.data["other"]["result"] == "success"  # type: ignore[attr-defined]


async def test_deleting_a_task_deletes_all_that_it_fills(capsys: pytest.CaptureFixture[str]) -> None:
    """Output first, `done` last; `__all__` is every job."""
    pipeline = make(2)
    async with pipeline:
        await datatask.run(pipeline)
        await datatask.delete_data(pipeline, "task", False, ["1"])
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1", "1"]
        assert pipeline.state.members("task.done") == ["0"]
        await datatask.delete_data(pipeline, "task.repo0", True, ["__all__"])
        assert [pipeline.state.members(f"task.{link}") for link in ("repo0", "repo1", "done")] == [[], [], []]
        assert await datatask.update(pipeline) in (True, False)
