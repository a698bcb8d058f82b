"""pydatatask's verbs as functions: names, parameters and text as scripts know them."""

from __future__ import annotations

import io
from importlib import import_module
from pathlib import Path
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


async def test_update_returns_when_functions_of_this_process_have_ended() -> None:
    """Scripts look at the outputs after one round."""
    pipeline = make(3)
    done = pipeline.tasks["task"].links["done"].repo
    async with pipeline:
        assert await datatask.update(pipeline)
        assert sorted([job async for job in done]) == ["0", "1", "2"]


async def test_a_synchronous_launch_returns_when_the_stores_have_followed(tmp_path: Path) -> None:
    """The state is ahead of the disk, and what a script reads next is behind it."""
    done = datatask.InProcessMetadataRepository()
    task = datatask.InProcessSyncTask("task", done)
    task.link("given", datatask.InProcessMetadataRepository(), is_input=True)

    @task
    async def nothing(job: str) -> None: ...

    async with datatask.Pipeline([task], datatask.Session(), [], log=tmp_path / "log.db") as pipeline:
        for number in range(20):
            assert await datatask.launch(pipeline, "task", f"j{number}", sync=True, force=True)
            assert f"j{number}" in done.data


async def test_underscores_stand_for_the_hyphens_of_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    """pydatatask's set expressions were Python: `a_b.src` for a task `a-b`."""
    task = datatask.InProcessSyncTask("a-b", datatask.InProcessMetadataRepository())
    task.link("src", datatask.InProcessMetadataRepository({"x": 1, "y": 2}), is_input=True)

    @task
    async def nothing(job: str) -> None: ...

    async with datatask.Pipeline([task], datatask.Session(), []) as pipeline:
        await datatask.list_data(pipeline, ["a_b.src", "-", "a-b.done"])
    assert capsys.readouterr().out == "x\ny\n"


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_a_priority_of_none_is_zero(asynchronous: bool) -> None:
    """pydatatask said `priority(...) or 0`."""

    def plain(task: str, job: str) -> float | None:
        return 5 if job == "2" else None

    async def awaited(task: str, job: str) -> float | None:
        return plain(task, job)

    pipeline = make(3)
    pipeline.priority = awaited if asynchronous else plain
    launched: list[str | None] = []
    async with pipeline:
        stop = pipeline.subscribe(
            lambda batch: launched.extend(e.job for e in batch.events if type(e).__name__ == "LaunchDecided")
        )
        assert (await datatask.run(pipeline, timeout=60)).exit_code == 0
        stop()
    assert launched == ["2", "0", "1"]


def test_the_names_of_pydatatasks_modules() -> None:
    """`pydatatask.task.Task`, and `from pydatatask.main import run`."""
    for module, name in (("task", "STDOUT"), ("repository", "Repository"), ("session", "Session")):
        assert getattr(getattr(datatask, module), name) is getattr(datatask, name)
        assert getattr(import_module(f"datatask.{module}"), name) is getattr(datatask, name)
    assert import_module("datatask.main").run is datatask.run
    assert callable(datatask.main)
    assert callable(datatask.testing.memory_log)
    with pytest.raises(AttributeError):
        datatask.nothing  # noqa: B018


def test_a_subclass_may_narrow_the_characters_of_job_ids() -> None:
    """The class attributes that pydatatask documents; they cannot widen the rule."""

    class Digits(datatask.InProcessMetadataRepository):
        CHARSET = CHARSET_START_END = "0123456789/"

    assert Digits.is_valid_job_id("12")
    assert not Digits.is_valid_job_id("a1")
    assert not Digits.is_valid_job_id("1/2")
    assert "z" in datatask.Repository.CHARSET
