"""Results that are out of date: what makes them so, what does not, and how they are computed again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    FileRepository,
    InProcessSyncTask,
    LogMetadataRepository,
    Parameter,
    Pipeline,
    Session,
)
from datatask.adapters.history.stale import Staleness, causes_of, find_stale
from datatask.adapters.history.states import fold
from datatask.adapters.log.reader import LogReader
from datatask.schema.events import RunEnded

SOURCE = """
from helper import SUFFIX


async def first(job, a, b, least):
    async with a.open(job) as source:
        text = await source.read()
    async with b.open(job, "w") as target:
        await target.write(text.lower())


async def second(job, b, c):
    async with b.open(job) as source:
        text = await source.read()
    async with c.open(job, "w") as target:
        await target.write(text + SUFFIX)
"""
HELPER = 'SUFFIX = "!"\n'


class Project:
    """Two tasks in a row over three folders: `a` is read by `one`, `b` by `two`, which writes `c`."""

    def __init__(self, folder: Path, on_change: str = "mark") -> None:
        self.folder, self.on_change = folder, on_change
        self.source, self.helper, self.least = SOURCE, HELPER, 1
        for name in "abc":
            (folder / name).mkdir()

    def write(self, place: str, text: str) -> None:
        """Write a file, such as `a/x`."""
        (self.folder / f"{place}.txt").write_text(text)

    def read(self, place: str) -> str:
        return (self.folder / f"{place}.txt").read_text()

    def pipeline(self) -> Pipeline:
        """Return the pipeline as a process that loads the project now has it."""
        (self.folder / "helper.py").write_text(self.helper)
        path = self.folder / "work.py"
        path.write_text(self.source)
        names: dict[str, Any] = {"__name__": "work"}
        helper: dict[str, Any] = {}
        exec(compile(self.helper, str(self.folder / "helper.py"), "exec"), helper)
        exec(compile(self.source.replace("from helper import SUFFIX", ""), str(path), "exec"), names)
        names["SUFFIX"] = helper["SUFFIX"]
        path.write_text(self.source.replace("from helper import SUFFIX", ""))
        a, b, c = (FileRepository(self.folder / name, ".txt", name=name) for name in "abc")
        options: dict[str, Any] = {"on_change": self.on_change}
        one = InProcessSyncTask("one", LogMetadataRepository("one.done"), func=names["first"], **options)
        one.link("a", a, is_input=True)
        one.link("b", b, is_output=True)
        two = InProcessSyncTask("two", LogMetadataRepository("two.done"), func=names["second"], **options)
        two.plug(one, require_success=True)
        two.link("c", c, is_output=True)
        least = Parameter("least", self.least)
        return Pipeline([one, two], Session(), log=self.folder / "log.db", parameters=[least])

    async def run(self) -> list[str]:
        """Run it until it is quiet; return the runs that this took, in order."""
        before = self.head()
        async with self.pipeline() as pipeline:
            await pipeline.run()
        with LogReader(self.folder / "log.db") as reader:
            ended = [found.event for found in reader.read(before) if isinstance(found.event, RunEnded)]
        assert {event.outcome for event in ended} <= {"succeeded"}
        return [f"{event.task} {event.job}" for event in ended]

    def head(self) -> int:
        path = self.folder / "log.db"
        if not path.exists():
            return 0
        with LogReader(path) as reader:
            return reader.head

    def stale(self) -> list[str]:
        """Return the results that are out of date."""
        with LogReader(self.folder / "log.db") as reader:
            state = fold(reader, reader.head)
            found: Staleness = find_stale(reader, state)
            assert not any(found.unknown.values())
            return [f"{task} {state.jobs[job]}" for task, jobs in found.stale.items() for job in jobs]

    def causes(self, task: str, job: str) -> list[str]:
        """Return why a result is, in words."""
        with LogReader(self.folder / "log.db") as reader:
            return [cause.text for cause in causes_of(reader, fold(reader, reader.head), task, job)]


async def ran(tmp_path: Path) -> Project:
    """Return a project with two jobs that are done."""
    made = Project(tmp_path)
    made.write("a/x", "X")
    made.write("a/y", "Y")
    assert sorted(await made.run()) == ["one x", "one y", "two x", "two y"]
    assert made.stale() == []
    return made


async def test_touching_comments_and_the_same_content_make_nothing_stale(tmp_path: Path) -> None:
    project = await ran(tmp_path)
    for place in ("a/x", "b/x", "c/x"):
        project.write(place, project.read(place))
    os.utime(project.folder / "a" / "y.txt", (1, 1))
    project.source = project.source.replace("    async with a", "    # a comment\n    async with a")
    project.source = project.source.replace(
        "async def second(job, b, c):", 'async def second(job, b, c):\n    """Two."""'
    )
    assert await project.run() == []
    assert project.stale() == []


async def test_a_changed_input_makes_what_came_of_it_stale(tmp_path: Path) -> None:
    project = await ran(tmp_path)
    project.write("a/x", "Z")
    assert await project.run() == []
    assert project.stale() == ["one x", "two x"]
    (cause,) = project.causes("one", "x")
    assert cause.startswith("input a of x: sha256:")
    (cause,) = project.causes("two", "x")
    assert cause.startswith("b was made by one for x, which is out of date: input a of x: sha256:")
    project.write("a/x", "X")
    await project.run()
    assert project.stale() == []


async def test_what_an_engine_has_not_written_yet_is_told_later(tmp_path: Path) -> None:
    """Its state is ahead of the log: with a log of before, nothing of what came since is looked for in it."""
    project = await ran(tmp_path)
    (tmp_path / "before").mkdir()
    for file in project.folder.glob("log.db*"):
        if file.is_file():
            shutil.copy(file, tmp_path / "before")
    project.write("a/x", "Z")
    await project.run()
    with LogReader(project.folder / "log.db") as now, LogReader(tmp_path / "before" / "log.db") as before:
        state = fold(now, now.head)
        assert any(find_stale(now, state).stale.values())
        assert not any(find_stale(before, state).stale.values())


@pytest.mark.parametrize(
    ("edit", "stale", "cause"),
    [
        (("source", "text.lower()", "text.upper()"), ["one x", "one y", "two x", "two y"], "function first (work.py) is another one"),
        (("source", "text + SUFFIX", "SUFFIX + text"), ["two x", "two y"], "function second (work.py) is another one"),
        (("helper", '"!"', '"?"'), ["two x", "two y"], "global SUFFIX is another one"),
        (("least", 1, 2), ["one x", "one y", "two x", "two y"], "parameter least: 1 -> 2"),
    ],
)  # fmt: skip
async def test_changed_code_makes_results_stale(
    tmp_path: Path, edit: tuple[str, Any, Any], stale: list[str], cause: str
) -> None:
    project = await ran(tmp_path)
    name, old, new = edit
    now = getattr(project, name)
    setattr(project, name, now.replace(old, new) if isinstance(now, str) else new)
    await project.run()
    assert project.stale() == stale
    task, job = stale[0].split()
    (text,) = project.causes(task, job)
    assert text.startswith(cause)
    setattr(project, name, now)
    await project.run()
    assert project.stale() == []


async def test_an_output_that_others_change_or_remove_is_stale(tmp_path: Path) -> None:
    project = await ran(tmp_path)
    project.write("c/x", "other")
    (project.folder / "c" / "y.txt").unlink()
    await project.run()
    assert project.stale() == ["two x", "two y"]
    assert project.causes("two", "x")[0].startswith("output c of x: sha256:")
    assert " -> absent " in project.causes("two", "y")[0]


async def test_an_input_that_is_gone_makes_nothing_stale(tmp_path: Path) -> None:
    project = await ran(tmp_path)
    (project.folder / "a" / "x.txt").unlink()
    await project.run()
    assert project.stale() == []


async def test_results_that_are_kept_are_never_told(tmp_path: Path) -> None:
    kept = Project(tmp_path, "keep")
    kept.write("a/x", "X")
    await kept.run()
    kept.write("a/x", "Z")
    kept.source = kept.source.replace("text.lower()", "text.upper()")
    assert await kept.run() == []
    assert kept.stale() == []


async def test_reruns_follow_only_where_the_value_differs(tmp_path: Path) -> None:
    project = Project(tmp_path, "rerun")
    project.write("a/x", "X")
    project.write("a/y", "Y")
    await project.run()
    os.utime(tmp_path / "a" / "y.txt", (1, 1))
    assert await project.run() == []
    project.write("a/x", "Z")
    assert await project.run() == ["one x", "two x"]
    assert project.read("c/x") == "z!"
    project.write("a/x", "z")  # lower case gives the same
    assert await project.run() == ["one x"]
    project.helper = project.helper.replace("!", "?")
    assert sorted(await project.run()) == ["two x", "two y"]
    (tmp_path / "c" / "y.txt").unlink()
    assert await project.run() == ["two y"]
    assert (project.read("c/x"), project.read("c/y")) == ("z?", "y?")
    assert project.stale() == []
    assert await project.run() == []


async def test_an_input_that_changes_while_its_run_goes_on_is_computed_again(tmp_path: Path) -> None:
    project = Project(tmp_path, "rerun")
    project.write("a/x", "X")
    project.source = project.source.replace(
        '    async with b.open(job, "w")',
        "    import asyncio, pathlib\n"
        f"    mark = pathlib.Path({str(tmp_path / 'mark')!r})\n"
        "    if not mark.exists():\n"
        "        mark.touch()\n"
        f"        pathlib.Path({str(tmp_path / 'a' / 'x.txt')!r}).write_text('Z')\n"
        "        await asyncio.sleep(1)\n"
        '    async with b.open(job, "w")',
        1,
    )
    assert (await project.run())[0] == "one x"
    assert project.read("c/x") == "z!"
    assert project.stale() == []
