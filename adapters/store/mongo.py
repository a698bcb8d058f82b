"""A MongoDB collection as a store: a document per job, by its `_id`.

In: a function that gives a collection of PyMongo's async API, or of motor. Out: the store port. Listings go by `_id` a page at a time;
a version is the digest of the document's BSON, so that no field is added to documents that others read. A write over what a run has read
goes by a condition on the whole document. An answer that was lost is found by reading back: a document equal to ours is ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from datatask.adapters.store.inputs import NotPermittedError
from datatask.adapters.store.mongo_changes import Follower
from datatask.adapters.store.mongo_documents import (
    BESIDE,
    INLINE_MAX,
    Made,
    Note,
    bson,
    content,
    joined,
    made,
    noted,
    parts,
    version_of,
)
from datatask.adapters.store.remote import POLL_SECONDS
from datatask.adapters.store.resuming import Refused, tried
from datatask.engine.api.repositories import told_invalid
from datatask.engine.ports import Change, Listed
from datatask.engine.run_context import ABSENT_VERSION, RUN_AGAIN
from datatask.schema.errors import ConflictError, DatataskError, InvalidValueError, StoreError, TemporaryError
from datatask.schema.messages import Write
from datatask.schema.values import check_job, is_job

T = TypeVar("T")

PAGE = 1_000
_FORBIDDEN = frozenset((13, 18, 8000))
_UNFIT = frozenset((52, 57, 10334, 17280))
"""Codes for documents that a server does not take: names with `$` or `.`, too large."""
_WRONG_NAME = frozenset((73,))
_DUPLICATE = 11000
_LATER = frozenset((6, 7, 24, 43, 50, 89, 91, 112, 189, 202, 262, 9001, 10107, 11600, 11602, 13435, 13436))
"""Codes that a server gives while it starts, ends, elects, or has too much to do; 43 is a listing's cursor that has ended."""


class Unfit(Exception):
    """The server does not take the document as it is."""


def mapped(error: BaseException, where: str) -> BaseException:
    """Return our error for one of PyMongo's; its text, which may hold documents and addresses, is not repeated."""
    if isinstance(error, DatataskError) or type(error).__module__.partition(".")[0] not in (
        "pymongo",
        "bson",
    ):
        return error
    kinds = {kind.__name__ for kind in type(error).__mro__}
    code = getattr(error, "code", None)
    if code in _FORBIDDEN:
        return NotPermittedError(
            f"it is not allowed, so it cannot be told whether it is there (MongoDB's code {code})",
            where=where,
            remedy="look at MONGODB_USERNAME and MONGODB_PASSWORD, and grant readWrite on the database",
        )
    if code in _WRONG_NAME or "InvalidName" in kinds:
        return InvalidValueError(
            "the server takes no collection of that name",
            where=where,
            remedy="write mongodb://host/database.collection",
        )
    if "ConfigurationError" in kinds or "InvalidURI" in kinds:
        return InvalidValueError(
            f"the client cannot be made ({type(error).__name__})",
            where=where,
            remedy="look at the address and the options",
        )
    labelled = getattr(error, "has_error_label", lambda label: False)
    if (
        code in _LATER
        or code == _DUPLICATE  # of two upserts at once: the next try replaces
        or not kinds.isdisjoint(("ConnectionFailure", "WaitQueueTimeoutError", "ExecutionTimeout"))
        or labelled("RetryableWriteError")
        or labelled("TransientTransactionError")
    ):
        said = f"MongoDB's code {code}" if code else type(error).__name__
        return TemporaryError(
            f"it does not answer as it should ({said})", where=where, remedy="it is tried again"
        )
    said = f"MongoDB's code {code}" if code else type(error).__name__
    return StoreError(f"the server refuses it ({said})", where=where, remedy="look at the server's log")


@dataclass
class MongoStore:
    """The store port on a collection; `lent` gives it, on the running loop. `keep` is handed each document that is told."""

    lent: Callable[[], Awaitable[Any]]
    where: str
    repository: str = ""
    poll_seconds: float = POLL_SECONDS
    keep: Callable[[str, str, Any], None] = lambda job, version, document: None
    follower: Follower | None = field(default=None, repr=False)

    async def raw(self) -> Any:
        """Return the collection, whose documents come as bytes."""
        package = bson(self.where)
        codec = package.codec_options.CodecOptions(document_class=package.raw_bson.RawBSONDocument)
        return (await self.lent()).with_options(codec_options=codec)

    async def _beside(self) -> Any:
        return (await self.raw())[BESIDE]

    async def tried(self, call: Callable[[], Awaitable[T]], job: str = "") -> T:
        """Call until it works; every call here may be made twice."""
        return await tried(call, mapped, f"{self.where} {job}".strip())

    # --- reading --------------------------------------------------------------------------------------

    async def list(self) -> AsyncIterator[Listed]:
        """Yield all members, a page at a time. What is no text is no job; it is told by name."""
        if self.follower is not None:
            await self.follower.begun()
        for odd in await self.tried(self._odd):
            told_invalid(self.where, f"{odd!r:.160}")
        async for job, version in self.each(lambda raw: version_of(raw.raw)):
            yield Listed(job, version)

    async def each(self, pick: Callable[[Any], T]) -> AsyncIterator[tuple[str, T]]:
        """Yield each job with what is picked from its stored document; of a page no more than that is kept."""
        last = ""
        while True:
            page = await self.tried(lambda last=last: self._page(last, pick))  # type: ignore[misc]
            for name, picked in page:
                if is_job(name):
                    yield name, picked
                else:
                    told_invalid(self.where, name)
            if len(page) < PAGE:
                return
            last = page[-1][0]

    async def _page(self, last: str, pick: Callable[[Any], T]) -> Sequence[tuple[str, T]]:
        collection = await self.raw()
        found = (
            collection.find({"_id": {"$gt" if last else "$gte": last}})
            .sort("_id", 1)
            .limit(PAGE)
            .batch_size(PAGE)
        )
        return [(str(one["_id"]), pick(one)) async for one in found]

    async def _odd(self) -> Sequence[Any]:
        collection = await self.raw()
        found = collection.find({"_id": {"$not": {"$type": "string"}}}, {"_id": 1}).limit(PAGE)
        return [one["_id"] async for one in found]

    async def found(self, job: str) -> Any:
        """Return a job's document as it is stored, None for none."""

        async def asked() -> Any:
            return await (await self.raw()).find_one({"_id": job})

        return await self.tried(asked, job)

    async def document(self, job: str, codec: Any = None) -> tuple[dict[str, Any] | None, str]:
        """Return a job's document with its `_id`, wherever it stands, and its version; None and `ABSENT_VERSION` for none."""
        for _ in range(3):  # it may be replaced while its parts are read
            raw = await self.found(job)
            if raw is None:
                return None, ABSENT_VERSION
            try:
                return await self.whole(raw, codec), version_of(raw.raw)
            except StoreError as error:
                trouble = error
        raise trouble

    async def whole(self, raw: Any, codec: Any = None) -> dict[str, Any]:
        """Return the document that a stored one stands for."""
        if (note := noted(raw)) is not None:
            job = str(raw["_id"])
            return {"_id": job, **joined(note, await self._parts(job, note), f"{self.where} {job}")}
        package = bson(self.where)
        return dict(package.decode(raw.raw, codec or package.codec_options.CodecOptions(tz_aware=True)))

    async def _parts(self, job: str, note: Note) -> Sequence[bytes]:
        async def asked() -> Sequence[bytes]:
            beside = await self._beside()
            return [bytes(one["data"]) async for one in beside.find(_below(note.prefix)).sort("_id", 1)]

        return await self.tried(asked, job)

    async def version(self, job: str) -> str | None:
        """Return the version of a job's document, or None."""
        raw = await self.found(check_job(job, where=self.where))
        if raw is None:
            return None
        self.keep(job, version := version_of(raw.raw), raw)
        return version

    # --- writing --------------------------------------------------------------------------------------

    async def put(self, write: Write) -> str | None:
        """Write a document whole; `ConflictError` where what is there is not what the run has read."""
        job = check_job(write.job, where=self.where)
        document = await asyncio.to_thread(content, write, self.where)
        new = await asyncio.to_thread(made, document, job, self.where)
        try:
            return await self._put(job, new, write.over_version)
        except Unfit:
            new = await asyncio.to_thread(lambda: made(document, job, self.where, beside=True))
            return await self._put(job, new, write.over_version)
        except Refused as refused:
            was = "was not there" if write.over_version == ABSENT_VERSION else "was another one"
            raise ConflictError(
                f"key {job} of {self.repository} has been {'changed' if refused.version else 'deleted'}"
                f" by another: its document {was} when this run read it",
                where=f"{self.where} {job}",
                remedy=RUN_AGAIN,
            ) from None

    async def _put(self, job: str, new: Made, over: str | None) -> str:
        """Write what goes beside, then the document, then remove what stood beside the one before."""
        for name, data in parts(new):
            await self.tried(lambda name=name, data=data: self._put_part(name, data), job)  # type: ignore[misc]
        try:
            before = await self.tried(lambda: self._replace(job, new, over), job)
        except Refused:
            if new.beside:
                now = noted(await self.found(job))
                await self._sweep(job, "" if now is None else now.prefix)
            raise
        if noted(before) is not None:
            await self._sweep(job, new.prefix)
        return new.version

    async def _put_part(self, name: str, data: bytes) -> None:
        await (await self._beside()).replace_one({"_id": name}, {"_id": name, "data": data}, upsert=True)

    async def _replace(self, job: str, new: Made, over: str | None) -> Any:
        """Make the document what it is to be, and return the one before; a second time finds it done."""
        try:
            return await self._replaced(job, new, over)
        except Exception as error:
            too_large = type(error).__name__ in ("DocumentTooLarge", "InvalidDocument")
            if not new.beside and (too_large or getattr(error, "code", None) in _UNFIT):
                raise Unfit from error
            raise

    async def _replaced(self, job: str, new: Made, over: str | None) -> Any:
        collection, package = await self.raw(), bson(self.where)
        raw, key = package.raw_bson.RawBSONDocument(new.raw), {"_id": job}
        if over is None:
            return await collection.find_one_and_replace(key, raw, upsert=True)
        there = await collection.find_one(key)
        version = "" if there is None else version_of(there.raw)
        if version == new.version:
            return None  # ours: the answer to it was lost
        if version != over:
            raise Refused(None, version or None)
        if there is None:
            try:
                await collection.insert_one(raw)
            except Exception as error:
                if getattr(error, "code", None) != _DUPLICATE:
                    raise
                return await self._replaced(job, new, over)  # ours after all, or another's
            return None
        if len(there.raw) + len(new.raw) < INLINE_MAX:  # a command has the limit of a document
            key["$expr"] = {"$eq": ["$$ROOT", {"$literal": there}]}  # type: ignore[assignment]
        if (await collection.replace_one(key, raw)).matched_count == 0:
            return await self._replaced(job, new, over)
        return there

    async def delete(self, job: str) -> None:
        """Remove a document and what stands beside it; absent is fine."""
        key = {"_id": check_job(job, where=self.where)}

        async def deleted() -> Any:
            return await (await self.raw()).find_one_and_delete(key)

        if noted(await self.tried(deleted, job)) is not None:
            await self._sweep(job, "")

    async def _sweep(self, job: str, but: str) -> None:
        """Remove what stands beside a job, but for what begins with `but`."""

        async def swept() -> None:
            beside = await self._beside()
            names = [one["_id"] async for one in beside.find(_below(f"{job}/"), {"_id": 1})]
            gone = [name for name in names if not (but and name.startswith(but))]
            await beside.delete_many({"_id": {"$in": gone}})

        await self.tried(swept, job)

    # --- the rest of the port -------------------------------------------------------------------------

    def identity(self) -> str:
        """Return the collection's name: a database makes it with its first document, so that another one looks the same."""
        return self.where

    def watch(self, tell: Callable[[Change], None]) -> Callable[[], None] | None:
        """Follow the collection's change stream; a server without any is listed at the interval."""
        self.follower = Follower(self, tell)
        return self.follower


def _below(prefix: str) -> dict[str, Any]:
    return {"_id": {"$gte": prefix, "$lt": prefix[:-1] + "0"}}  # "0" comes right after "/"
