"""Documents as YAML: any repository of bytes becomes one of documents, and here is the one on files.

Bytes come in and go out through `open`, documents through `info` and `dump`. Files are UTF-8; a file that does not parse, or
that YAML 1.1 and 1.2 read differently, is the caller's mistake, named with its line (`yaml_text`).
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec

from datatask.adapters.store.files import FileRepository
from datatask.adapters.store.filestore import FileStore
from datatask.adapters.store.inputs import os_errors
from datatask.adapters.yaml_text import dump_yaml, load_yaml
from datatask.engine.api.repositories import MetadataRepository, StoredBlobRepository, job_getter
from datatask.schema.definition import Record
from datatask.schema.errors import PATH, expect
from datatask.schema.messages import Write
from datatask.schema.values import INLINE_BYTES_MAX, check_job, decode_value, encode_value


def yaml_of(value: msgspec.Raw) -> bytes:
    """Return the YAML of a document that comes as JSON, as the engine hands it to a store."""
    return dump_yaml(decode_value(value), "value")


class YamlMetadataRepository(StoredBlobRepository, MetadataRepository):
    """Documents in a repository of bytes: both views of the same values, `open` and `info`/`dump`."""

    @job_getter
    async def info(self, job: str) -> Any:
        """Return the job's document; what happens to an absent job is for the repository of bytes to say."""
        async with self.open(job, "rb") as stream:
            data = await stream.read()
        return await asyncio.to_thread(load_yaml, data, f"{self!r} {job}")

    @job_getter
    async def dump(self, job: str, data: Any) -> None:
        """Make `data` the job's document."""
        check_job(job, where=self)
        text = dump_yaml(data, f"{self!r} {job}")
        if self.record == "value" and len(document := encode_value(data)) <= INLINE_BYTES_MAX:
            await self._put(job, value=msgspec.Raw(document))
        else:
            await self._put(job, data=text)


class YamlMetadataFileRepository(YamlMetadataRepository, FileRepository):
    """A folder with a YAML file per job; `info` of an absent one raises `FileNotFoundError`."""

    def __init__(
        self,
        filename: str | os.PathLike[str],
        extension: str = ".yaml",
        case_insensitive: bool = False,
        *,
        name: str | None = None,
        was: str | None = None,
        record: Record | None = None,
    ) -> None:
        expect(self, PATH, filename=filename)
        super().__init__(filename, extension, case_insensitive, name=name, was=was, record=record)

    def _observed(self, write: Write) -> Write:
        file, path = self._opened_file(write.job)
        with file, os_errors(path):
            document = load_yaml(file.read(), path)
        if self.record == "value" and len(encoded := encode_value(document)) <= INLINE_BYTES_MAX:
            return msgspec.structs.replace(write, value=msgspec.Raw(encoded))
        return super()._observed(write)

    def _own_store(self) -> FileStore:
        return FileStore(self.basedir, self.extension, self.case_insensitive, self._id or "", yaml_of)
