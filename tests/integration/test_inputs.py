"""Input folders that are not there: refused by name by whatever would work on them, and never made."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from datatask import (
    AggregateOrRepository,
    BlockingRepository,
    CallerError,
    DirectoryRepository,
    FileRepository,
    InProcessSyncTask,
    LogMetadataRepository,
    Pipeline,
    Repository,
    Session,
    YamlMetadataFileRepository,
)
from datatask.adapters.store import watching
from datatask.testing import memory_log
from tests.integration.cli_kit import Project
from tests.integration.store_kit import body, over
from tests.machine import open_way_to

PIPELINE = """
import os
import datatask

texts = datatask.FileRepository(os.environ.get("TEXTS", "texts"), ".txt", name="texts")
outs = datatask.FileRepository("outs/of/it", ".out", name="outs")
more = datatask.FileRepository("outs/of/it", ".more", name="more")
count = datatask.InProcessSyncTask("count", datatask.LogMetadataRepository("done"))
count.link("texts", texts, is_input=True)
count.link("outs", outs, is_output=True)
after = datatask.InProcessSyncTask("after", datatask.LogMetadataRepository("after.done"))
after.link("outs", outs, is_input=True)
after.link("skip", datatask.FileRepository("skip", name="skip"), inhibits_start=True)
extra = datatask.InProcessSyncTask("extra", datatask.LogMetadataRepository("extra.done"))
extra.link("more", more, is_input=True)

@count
async def run_count(job, texts, outs):
    async with outs.open(job, "w") as out:
        await out.write("1")

@after
async def run_after(job):
    pass

@extra
async def run_extra(job):
    pass

pipeline = datatask.Pipeline([count, after, extra], datatask.Session(), [])
if __name__ == "__main__":
    datatask.main(pipeline)
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    return Project(tmp_path, PIPELINE)


WORKS = [
    ("run",),
    ("run", "--forever"),
    ("run", "--dry-run"),
    ("update",),
    ("update", "--dry-run"),
    ("plan",),
    ("-p", "pipeline.py", "status"),
    ("inject", "count.texts", "b"),
    ("inject", "count.texts", "b", "--dry-run"),
]


@pytest.mark.parametrize("call", WORKS, ids=" ".join)
def test_a_mistyped_input_folder_is_refused_with_the_one_that_was_meant(
    call: tuple[str, ...], project: Project
) -> None:
    """By the first command, and by the next as well: nothing is made, no log either."""
    for _ in range(2):
        refused = project.call(*call, stdin=b"x", env={"TEXTS": "txets"})
        assert (refused.code, refused.err.count("\n")) == (2, 1), refused
        assert "txets: the folder of the input count.texts is not there" in refused.err
        assert f"is {project.folder / 'texts'} meant?" in refused.err
        assert not (project.folder / "txets").exists()
        assert not project.log.exists()


def test_output_folders_are_made_and_then_read(project: Project) -> None:
    """Also for another task's input with another suffix; and a folder whose files hold jobs back."""
    project.ok("run")
    assert (project.folder / "outs" / "of" / "it" / "a.out").read_text() == "1"
    assert (project.folder / "skip").is_dir()
    assert "after.outs 1" in project.ok("status").out


def test_an_input_that_is_unmounted_is_refused_and_what_is_known_of_it_stays(project: Project) -> None:
    """Jobs can be paused and cancelled meanwhile."""
    project.ok("run")
    (project.folder / "texts").rename(project.folder / "away")
    refused = project.call("run")
    assert refused.code == 2
    assert "away" not in refused.err, "that is no likely name"
    assert "mount or make it" in refused.err
    project.ok("pause", "count")
    assert not (project.folder / "texts").exists()
    assert project.ok("ls", "count.texts").lines == ["a"]
    (project.folder / "away").rename(project.folder / "texts")
    project.ok("resume", "count")
    project.ok("run")


def test_doctor_tells_it(project: Project) -> None:
    told = project.call("-p", "pipeline.py", "doctor", env={"TEXTS": "txets"})
    assert told.code == 2
    assert "the folder of the input count.texts is not there" in told.out


def test_a_script_ends_with_two(project: Project) -> None:
    """As `datatask.main(pipeline)`, the way of pydatatask's users."""
    done = subprocess.run(
        [sys.executable, "pipeline.py", "run"],
        cwd=project.folder,
        env={**os.environ, "TEXTS": "txets"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "is not there; is" in done.stderr


async def refusal(path: Path) -> str:
    """Return what is said of an input folder, whatever kind of repository reads it."""
    said = set()
    for kind in (FileRepository, YamlMetadataFileRepository, DirectoryRepository):
        for repository in (kind(path), kind(path).map(lambda info: info)):
            with pytest.raises(CallerError) as caught:
                await over(repository).open()
            said.add(str(caught.value))
    (one,) = said
    return one


async def test_what_else_may_stand_there(tmp_path: Path) -> None:
    (tmp_path / "Data" / "in").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    assert f"is {tmp_path / 'Data' / 'in'} meant?" in await refusal(tmp_path / "data" / "in")
    assert f"is {tmp_path / 'Data' / 'in'} meant?" in await refusal(tmp_path / "Data" / "ins")
    assert "meant" not in await refusal(tmp_path / "quite" / "different")
    assert f"{tmp_path / 'file'}: the input task.inp is not a folder" in await refusal(tmp_path / "file")
    assert f"{tmp_path / 'file'}: the input task.inp is not a folder" in await refusal(
        tmp_path / "file" / "in"
    )
    assert f"a link to {tmp_path / 'nowhere'}, which is not there" in await refusal(tmp_path / "link")
    assert "a link in a circle" in await refusal(tmp_path / "ring")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Data", "file", "link", "ring"]


@pytest.mark.machine("root")
async def test_a_folder_that_may_not_be_read_is_refused_and_one_that_may_not_be_written_is_not(
    tmp_path: Path,
) -> None:
    """As another user than root."""
    assert watching.__name__  # loaded while Python's own folders can be read
    path = tmp_path / "in"
    path.mkdir()
    (path / "a").touch()
    open_way_to(tmp_path)

    async def ends(mode: int) -> str:
        path.chmod(mode)
        os.seteuid(65534)
        try:
            async with over(FileRepository(path, name="in")) as pipeline:
                return " ".join(pipeline.state.members("in"))
        except CallerError as error:
            return str(error)
        finally:
            os.seteuid(0)

    assert await ends(0o555) == "a"
    assert "the folder of the input task.inp cannot be read" in await ends(0o300)
    assert "the folder of the input task.inp cannot be read" in await ends(0o444)


async def test_an_input_folder_that_is_made_later_is_watched_then(tmp_path: Path) -> None:
    """Where the pipeline was opened without needing it, or it vanished meanwhile."""
    pipeline = over(FileRepository(tmp_path / "in", name="in"))
    pipeline.needed = ()
    async with pipeline, asyncio.timeout(100):
        assert pipeline.engine.observer.unwatched() == ["in"]
        (tmp_path / "in").mkdir()
        while pipeline.engine.observer.unwatched():
            await asyncio.sleep(0.01)
        (tmp_path / "in" / "a").touch()
        while pipeline.state.members("in") != ["a"]:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("links", "ready", "refused"),
    [
        ({"a": "required"}, "", "task.a"),
        ({"a": "input output"}, "", ""),
        ({"log": "input", "a": "inhibits"}, "", ""),
        ({"log": "input", "a": ""}, "", ""),
        ({"log": "input"}, "a", "task.ready"),
        ({"log": "input"}, "blocked", ""),
        ({"either": "input"}, "", "task.either"),
        ({"filtered": "input"}, "", "task.filtered"),
    ],
)
async def test_what_is_an_input(links: dict[str, str], ready: str, refused: str, tmp_path: Path) -> None:
    """What a job has to be in, by links or `ready=`, and no task fills; the rest is made."""
    log, a = LogMetadataRepository("log"), FileRepository(tmp_path / "a", name="a")
    repositories: dict[str, Repository] = {
        "a": a,
        "log": log,
        "blocked": BlockingRepository(log, a),
        "either": AggregateOrRepository(log=log, a=a),
        "filtered": a.map(lambda info: info, filt=lambda job: True),
    }
    flags = {
        "input": "is_input",
        "output": "is_output",
        "required": "required_for_start",
        "inhibits": "inhibits_start",
    }
    task = InProcessSyncTask(
        "task", LogMetadataRepository("done"), func=body, ready=repositories[ready] if ready else None
    )
    for name, roles in links.items():
        task.link(name, repositories[name], **{flags[role]: True for role in roles.split()})
    pipeline = Pipeline([task], Session(), log=memory_log())
    if refused:
        with pytest.raises(CallerError, match=f"the folder of the input {refused} is not there"):
            await pipeline.open()
    else:
        async with pipeline:
            assert (tmp_path / "a").is_dir()
