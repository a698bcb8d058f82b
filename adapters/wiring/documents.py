"""What the log records of a value that a listing found: for in-process documents the value, if it can be stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from datatask.engine.ports import Write
from datatask.engine.repositories import Repository
from datatask.schema.errors import CallerError
from datatask.schema.values import INLINE_BYTES_MAX, encode_value

Contents = Callable[[str, str | None], Write]


def contents_of(repositories: Mapping[str, Repository]) -> dict[str, Contents]:
    """Return, for the in-process documents among the leaves, the function that reads one as a `Write`."""
    return {
        leaf_id: _reader(leaf_id, repository)
        for leaf_id, repository in repositories.items()
        if repository.medium == "mirror" and repository.record == "value" and repository.is_metadata()
    }


def _reader(leaf_id: str, repository: Any) -> Contents:
    def read(job: str, version: str | None) -> Write:
        try:
            value = encode_value(repository.data.get(job))
        except CallerError:
            return Write(repository=leaf_id, job=job, version=version)
        if len(value) > INLINE_BYTES_MAX:
            return Write(repository=leaf_id, job=job, version=version, size=len(value))
        return Write(repository=leaf_id, job=job, version=version, value=msgspec.Raw(value))

    return read
