"""Folders under a storm of changes and a queue that is too small for them: what the state holds in the end is what is there."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from datatask import (
    DirectoryRepository,
    FileRepository,
    InProcessSyncTask,
    LogMetadataRepository,
    Pipeline,
    Session,
    YamlMetadataFileRepository,
)
from datatask.adapters.store import inotify
from datatask.engine.core.cells import get_at
from datatask.engine.core.leaves import version_hash
from datatask.engine.runtime import comparing
from datatask.schema import messages as r
from datatask.testing import memory_log, recording

ROUNDS_MAX = 200
QUEUE = Path("/proc/sys/fs/inotify/max_queued_events")
JOBS = 12


async def body(job: str) -> None:
    """Do nothing."""


class Nobody:
    """Keeps the watcher of a loop."""

    def overflowed(self) -> None:
        """Do nothing."""


@contextmanager
def small_queue(events: int) -> Iterator[None]:
    """Have the watcher of this loop made with a small queue; for others it is so for a moment only."""
    with open(Path(tempfile.gettempdir()) / f"datatask-test-queue-{os.getuid()}", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = QUEUE.read_text()
        QUEUE.write_text(str(events))
        try:
            watcher = inotify.FolderWatcher.of(asyncio.get_running_loop())
        finally:
            QUEUE.write_text(before)
    nobody = Nobody()
    watcher.enter(nobody)
    try:
        yield
    finally:
        watcher.leave(nobody)


class Storm:
    """Changes by chance in two folders of files and one of folders."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder
        self.chance = chance
        for name in ("one", "two", "trees", "outside"):
            (folder / name).mkdir()
        (folder / "outside" / "target").touch()

    def change(self) -> None:
        """Make one change; what cannot be done is left."""
        doing = self.chance.choice(
            [
                self.write,
                self.write,
                self.rewrite,
                self.drop,
                self.rename,
                self.swap,
                self.link,
                self.grow,
                self.replace,
            ]
        )
        try:
            doing()
        except (FileNotFoundError, FileExistsError, IsADirectoryError):
            return

    def entry(self) -> Path:
        """Return a place of a file, there or not."""
        job, kind = self.chance.randrange(JOBS), self.chance.choice((".txt", ".yaml", ".other"))
        return self.folder / self.chance.choice(("one", "two")) / f"j{job}{kind}"

    def write(self) -> None:
        entry = self.entry()
        if not entry.is_symlink():  # a link's target changes in silence
            entry.write_text(str(self.chance.random()))

    def rewrite(self) -> None:
        staged = self.folder / "outside" / "staged"
        staged.write_text("n: 1")
        staged.rename(self.entry())

    def drop(self) -> None:
        self.entry().unlink()

    def rename(self) -> None:
        self.entry().rename(self.entry())

    def swap(self) -> None:
        away = self.folder / "outside" / "away"
        entry = self.entry()
        entry.rename(away)
        away.rename(self.entry())

    def link(self) -> None:
        self.entry().symlink_to(self.folder / "outside" / "target")

    def grow(self) -> None:
        """Make, fill, empty or remove a folder of a job."""
        tree = self.folder / "trees" / f"j{self.chance.randrange(JOBS)}"
        if self.chance.random() < 0.3:
            shutil.rmtree(tree)
        else:
            tree.mkdir(exist_ok=True)
            (tree / "file").touch() if self.chance.random() < 0.7 else (tree / "file").unlink()

    def replace(self) -> None:
        """Put a folder with the same files in the place of another."""
        if self.chance.random() < 0.9:
            return
        name = self.chance.choice(("one", "two", "trees"))
        copy, old = self.folder / "outside" / "copy", self.folder / "outside" / "old"
        shutil.copytree(self.folder / name, copy, symlinks=True)
        (self.folder / name).rename(old)
        copy.rename(self.folder / name)
        shutil.rmtree(old)


@pytest.mark.machine("root")
@pytest.mark.parametrize("seed", range(8))
async def test_after_any_storm_the_state_is_what_is_there(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By notices and listings alone: no comparison helps."""
    if not os.access(QUEUE, os.W_OK):
        pytest.skip("the kernel's queue cannot be made small here")
    monkeypatch.setattr(comparing, "PAUSE_SECONDS", 3600.0)
    chance = random.Random(seed)
    storm = Storm(tmp_path, chance)
    repositories = [
        FileRepository(tmp_path / "one", ".txt", name="texts"),
        FileRepository(tmp_path / "one", ".other", name="others"),
        YamlMetadataFileRepository(tmp_path / "one", name="documents"),
        FileRepository(tmp_path / "two", ".txt", True, name="two"),
        DirectoryRepository(tmp_path / "trees", name="trees"),
        DirectoryRepository(tmp_path / "trees", name="filled", discard_empty=True),
    ]
    task = InProcessSyncTask("task", LogMetadataRepository("done"), func=body)
    for repository in repositories:
        task.link(f"l{repository.name}", repository, is_input=True)
    pipeline = Pipeline([task], Session(), log=memory_log())
    recording(pipeline, "succeeded")
    with small_queue(chance.choice((2, 5, 20, 100))):
        opening = asyncio.create_task(pipeline.open())
        for _ in range(chance.randrange(60)):
            for _ in range(chance.randrange(20)):
                storm.change()
            await asyncio.sleep(chance.choice((0, 0, 0.001, 0.003)))
        await opening
        for _ in range(60):
            for _ in range(chance.randrange(20)):
                storm.change()
            await asyncio.sleep(chance.choice((0, 0, 0.001, 0.003)))
        try:
            await pipeline.run(timeout=100)  # in the moment after the last change
            state = pipeline.state
            for _ in range(
                ROUNDS_MAX
            ):  # another root, and some are gone; or it was replaced while it was listed
                doubtful = [leaf for leaf in state.leaves.values() if leaf.held or leaf.trouble]
                if not doubtful:
                    break
                for leaf in doubtful:
                    if leaf.held:
                        await pipeline.request(r.AcceptLoss(id=leaf.id, actor="tester", repository=leaf.id))
                await asyncio.sleep(0.05)
                await pipeline.run(timeout=100)
            for repository in repositories:
                there = {listed.job: listed.version async for listed in repository.store.list()}
                assert not state.leaves[repository.id].held
                assert sorted(state.members(repository.id)) == sorted(there), repository
                if not isinstance(repository, DirectoryRepository):
                    known = state.leaves[repository.id].versions
                    for job, version in there.items():
                        assert get_at(known, state.job_index[job]) == version_hash(version), job
        finally:
            await pipeline.close()
