"""An engine of fakes, and each kind of repository over it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from datatask.adapters.store.files import FileRepository
from datatask.adapters.store.inprocess import (
    InProcessBlobRepository,
    InProcessMetadataRepository,
    LogBlobRepository,
    LogMetadataRepository,
)
from datatask.adapters.store.yamls import YamlMetadataFileRepository
from datatask.engine.api.repositories import MetadataRepository, Repository
from datatask.engine.run_context import RunContext, ValueRef, current_run, with_content
from datatask.schema.errors import UnknownNameError
from datatask.schema.messages import Write


class FakeBlobs:
    """Content-addressed bytes in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._count = 0

    def put_bytes(self, data: bytes) -> tuple[str, int]:
        digest = hashlib.sha256(data).hexdigest()
        (self._folder / digest).write_bytes(data)
        return digest, len(data)

    def put_file(self, source: Path) -> tuple[str, int]:
        return self.put_bytes(source.read_bytes())

    def new(self) -> Path:
        self._count += 1
        return self._folder / f"new{self._count}"

    def adopt(self, path: Path) -> tuple[str, int]:
        named = self.put_bytes(path.read_bytes())
        path.unlink()
        return named

    def path(self, digest: str) -> Path:
        if not (self._folder / digest).exists():
            raise UnknownNameError(f"no blob {digest}")
        return self._folder / digest

    intact = path

    def stray(self) -> list[str]:
        return [path.name for path in self._folder.iterdir() if path.name.startswith("new")]


class FakeEngine:
    """A `Binding` that remembers what was asked, in order, before the store follows."""

    def __init__(self, folder: Path) -> None:
        self.blobs = FakeBlobs(folder)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.values: dict[tuple[str, str], ValueRef] = {}

    def open(self, **repositories: Repository) -> None:
        for id, repository in repositories.items():
            repository.bind(id, self)
            self.repositories[id] = repository

    async def put(self, repository_id: str, write: Write) -> None:
        assert write.repository == repository_id
        self.asked.append(("put", repository_id, write.job))
        digest, size = write.digest, write.size
        self.values[repository_id, write.job] = ValueRef(write.value, digest, size, len(self.asked))
        if self.repositories[repository_id].medium != "native":
            await self.repositories[repository_id].store.put(with_content(write, self.blobs))

    async def delete(self, repository_id: str, job: str) -> None:
        self.asked.append(("delete", repository_id, job))
        self.values.pop((repository_id, job), None)
        if self.repositories[repository_id].medium != "native":
            await self.repositories[repository_id].store.delete(job)

    def contains(self, repository_id: str, job: str) -> bool:
        return (repository_id, job) in self.values

    def position(self, repository_id: str) -> int:
        return len(self.asked)

    def members(self, repository_id: str) -> list[str]:
        return [job for id, job in self.values if id == repository_id]

    async def value(self, repository_id: str, job: str) -> ValueRef | None:
        return self.values.get((repository_id, job))

    async def settle(self, run: RunContext) -> tuple[Write, ...]:
        """End a run as the engine does: all its writes at once, what the store has already is only noted."""
        writes = await run.settle()
        for write in writes:
            if write.version is not None:
                self.values[write.repository, write.job] = ValueRef(write.value, write.digest, write.size, 1)
            elif write.op == "put":
                await self.put(write.repository, write)
            else:
                await self.delete(write.repository, write.job)
        return writes


@contextlib.contextmanager
def running(run: RunContext) -> Iterator[RunContext]:
    token = current_run.set(run)
    try:
        yield run
    finally:
        current_run.reset(token)


def a_run(job: str = "a") -> RunContext:
    return RunContext(7, "task", job)


@dataclass
class Case:
    """A repository under test, and how to write to it and read from it whatever its kind."""

    repository: Any

    async def write(self, job: str, text: str) -> None:
        if isinstance(self.repository, MetadataRepository):
            await self.repository.dump(job, {"text": text})
        else:
            async with self.repository.open(job, "w") as stream:
                await stream.write(text)

    async def read(self, job: str) -> str | None:
        if not await self.repository.contains(job):
            return None
        if isinstance(self.repository, MetadataRepository):
            return str((await self.repository.info(job))["text"])
        async with self.repository.open(job, "r") as stream:
            return str(await stream.read())

    async def members(self) -> list[str]:
        return sorted([job async for job in self.repository])


KINDS: dict[str, Any] = {
    "log documents": lambda path: LogMetadataRepository("r"),
    "log bytes": lambda path: LogBlobRepository("r"),
    "documents in process": lambda path: InProcessMetadataRepository(),
    "bytes in process": lambda path: InProcessBlobRepository(),
    "files": lambda path: FileRepository(path / "files", ".txt"),
    "yaml": lambda path: YamlMetadataFileRepository(path / "yamls"),
    "yaml, recorded": lambda path: YamlMetadataFileRepository(path / "yamls", record="value"),
}


async def made(kind: str, path: Path, engine: FakeEngine | None = None) -> Case:
    repository = KINDS[kind](path)
    await repository.validate()
    if engine is not None:
        engine.open(r=repository)
    return Case(repository)


every_kind = pytest.mark.parametrize("kind", KINDS)
