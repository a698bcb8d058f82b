"""Repositories in buckets, and the store port on one: an object per job, `prefix` + id + `suffix`.

In: the bucket as `Bucket` has it (one adapter per client library). Out: listings a page at a time, ETags as versions, whole values.
Ids are letters, digits, `.`, `_`, `-`, so that a key stands for one id or for none; other keys below the prefix (folder markers,
`a//b`, `..`) are told by name once and never become jobs, what lies in folders below is not looked at. A write over what a run
has read goes by a condition that the store checks; one that seems refused is read back by its token before that is believed.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from datatask.adapters.store.remote import POLL_SECONDS
from datatask.adapters.store.resuming import Refused
from datatask.engine.api.repositories import told_invalid
from datatask.engine.api.streams import AReadStream
from datatask.engine.ports import Change, Listed
from datatask.engine.run_context import ABSENT_VERSION, RUN_AGAIN
from datatask.schema.errors import ConflictError, InvalidValueError
from datatask.schema.messages import Write
from datatask.schema.values import check_job, is_job


class Entry(NamedTuple):
    """An object in a listing; `version` is its ETag without quotes."""

    key: str
    version: str


class Bucket(Protocol):
    """A bucket through one client library. Methods raise our errors (`outcomes`); `where` names it in messages."""

    where: str

    def pages(self, prefix: str) -> AsyncIterator[list[Entry]]:
        """Yield the objects whose keys begin with `prefix` and have no `/` after it; folders below are not looked into."""

    async def head(self, key: str) -> str | None:
        """Return an object's version, None where it is surely not there."""

    async def open(self, key: str) -> tuple[AReadStream, str]:
        """Return a stream over an object that goes on after a cut, and its version; `MissingFileError` for none."""

    async def put(self, key: str, content: bytes | Path, *, token: str, over: str | None) -> str:
        """Write an object whole, or in parts of which nothing stays when it fails; return its version.

        `over` is the version that is to be there ("" for none, None for whatever): `Refused` where it is not.
        """

    async def delete(self, key: str) -> None:
        """Remove an object; absent is fine."""

    async def check(self, *, make: bool) -> None:
        """Raise where the bucket is not there or cannot be listed; with `make` it is made where the library can."""


@dataclass(frozen=True)
class BucketStore:
    """The store port on a part of a bucket; `encode` turns a document into bytes, where documents are kept."""

    bucket: Bucket
    prefix: str = ""
    suffix: str = ""
    repository: str = ""
    poll_seconds: float = POLL_SECONDS
    encode: Callable[[msgspec.Raw], bytes] | None = None

    # --- names ----------------------------------------------------------------------------------------

    def key(self, job: str) -> str:
        """Return the key of a job's object."""
        return self.prefix + check_job(job, where=self.place) + self.suffix

    def job_of(self, key: str) -> str | None:
        """Return the job that a key stands for; None for others, which are told once where they look like members."""
        if not (key.startswith(self.prefix) and key.endswith(self.suffix)):
            return None
        job = key[len(self.prefix) : len(key) - len(self.suffix)]
        if is_job(job):
            return job
        if key != self.prefix:
            told_invalid(self.place, key)
        return None

    @property
    def place(self) -> str:
        """The part of the bucket, for messages."""
        return f"{self.bucket.where}/{self.prefix}*{self.suffix}"

    # --- the port -------------------------------------------------------------------------------------

    async def list(self) -> AsyncIterator[Listed]:
        """Yield all members, page by page; raises where a page cannot be had."""
        async for page in self.bucket.pages(self.prefix):
            for key, version in page:
                if (job := self.job_of(key)) is not None:
                    yield Listed(job, version)

    async def version(self, job: str) -> str | None:
        """Return the object's ETag, or None."""
        return await self.bucket.head(self.key(job))

    async def put(self, write: Write) -> str | None:
        """Write the object; `ConflictError` where it is not the one that the run has read."""
        key = self.key(write.job)
        content: bytes | Path = write.source if write.source is not None else self._bytes(write)
        token = await asyncio.to_thread(_token, write, content)
        try:
            return await self.bucket.put(key, content, token=token, over=write.over_version)
        except Refused as refused:
            if refused.token == token and refused.version:
                return refused.version  # it is ours: the answer to it was lost
            was = "was not there" if write.over_version == ABSENT_VERSION else "was another one"
            raise ConflictError(
                f"key {write.job} of {self.repository} has been {'changed' if refused.version else 'deleted'}"
                f" by another: its object {was} when this run read it",
                where=f"{self.bucket.where}/{key}",
                remedy=RUN_AGAIN,
            ) from None

    def _bytes(self, write: Write) -> bytes:
        if write.data is not None:
            return write.data
        if not write.value:
            return b""
        if self.encode is None:
            raise InvalidValueError(
                "a blob repository takes bytes, not a document",
                where=f"{self.place} {write.job}",
                remedy="use a repository of documents, such as YamlMetadataBucketRepository",
            )
        return self.encode(write.value)

    async def delete(self, job: str) -> None:
        """Remove the object; absent is fine."""
        await self.bucket.delete(self.key(job))

    def identity(self) -> str:
        """Return the bucket's name: one that was made anew looks the same, and its losses are held as a whole."""
        return self.bucket.where

    def watch(self, tell: Callable[[Change], None]) -> Callable[[], None] | None:
        """A bucket tells nothing; it is listed."""
        return None


def _token(write: Write, content: bytes | Path) -> str:
    """Return what tells this write from any other one, also when it is tried again: what is written, and over what."""
    digest = write.digest
    if digest is None and isinstance(content, Path):
        with content.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    elif digest is None:
        digest = hashlib.sha256(content if isinstance(content, bytes) else b"").hexdigest()
    return hashlib.sha256(f"{digest} {write.over_version}".encode()).hexdigest()[:32]
