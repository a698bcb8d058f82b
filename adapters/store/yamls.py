"""Documents as YAML: any repository of bytes becomes one of documents, and here is the one on files.

Bytes come in and go out through `open`, documents through `info` and `dump`. The C parser is used where it is
present. Files are UTF-8; a file that does not parse is the caller's mistake, named with its line.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec
import yaml

from datatask.adapters.store.files import FileRepository
from datatask.adapters.store.filestore import FileStore
from datatask.adapters.store.inputs import os_errors
from datatask.engine.api.repositories import MetadataRepository, StoredBlobRepository, job_getter
from datatask.schema.definition import Record
from datatask.schema.errors import PATH, InvalidValueError, NotPossibleError, expect
from datatask.schema.messages import Write
from datatask.schema.values import INLINE_BYTES_MAX, check_job, decode_value, encode_value

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def load_yaml(data: bytes, where: str) -> Any:
    """Return the document in `data`; `CallerError` names `where`, line and column of what does not parse."""
    try:
        return yaml.load(data, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise InvalidValueError(
            f"not YAML: {error.problem}", where=place, remedy="mend the document"
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidValueError(f"not YAML: {error}", where=where, remedy="mend the document") from error


def dump_yaml(document: Any, where: str) -> bytes:
    """Return the YAML of a document; `CallerError` names what YAML cannot hold."""
    try:
        text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    except yaml.representer.RepresenterError as error:
        raise NotPossibleError(
            f"{error.args[-1]!r:.160} cannot be written as YAML", where=where, remedy="store plain data"
        ) from error
    return str(text).encode()


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
