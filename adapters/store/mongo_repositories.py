"""Repositories of documents in MongoDB: over a collection of the user's, as in pydatatask, or by its address.

In: a function that gives a collection of motor or of PyMongo's async API, or `mongodb://host/database.collection`. Out: `info` and `dump`.
What a run writes is there with its end. The client of an address is made for each event loop, and closed with it.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import os
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec

from datatask.adapters.store.mongo import MongoStore, mapped
from datatask.adapters.store.mongo_documents import bson, checked, content, noted
from datatask.adapters.store.places import Place, library, place
from datatask.adapters.store.remote import POLL_SECONDS, RemoteRepository, check_poll
from datatask.engine.api.repositories import MetadataRepository, job_getter
from datatask.engine.run_context import current_run
from datatask.schema.definition import Record
from datatask.schema.errors import FUNCTION, TEXT, InvalidValueError, expect
from datatask.schema.messages import Write
from datatask.schema.values import INLINE_BYTES_MAX, check_job, encode_value

SHAPE = "mongodb://host/database.collection"
FRESH_MAX = 100
"""How many documents that the server has just told are kept for the log to record."""
OPTIONS: dict[str, Any] = {
    "serverSelectionTimeoutMS": 5_000,
    "connectTimeoutMS": 10_000,
    "socketTimeoutMS": 60_000,
}
_lent: dict[tuple[int, Place], tuple[Any, AsyncGenerator[None]]] = {}


async def _client(where: Place) -> Any:
    """Return the running loop's client for an address; who gets in is said by the environment."""
    loop = asyncio.get_running_loop()
    key = id(loop), where._replace(path="")
    if key not in _lent:
        kind = library("pymongo", "mongodb", str(where)).AsyncMongoClient
        user = where.user or os.environ.get("MONGODB_USERNAME", "")
        credentials = {
            "username": user,
            "password": os.environ.get("MONGODB_PASSWORD"),
            "authSource": os.environ.get("MONGODB_AUTH_SOURCE", "admin"),
        }
        try:
            client = kind(f"mongodb://{where.host}/", **OPTIONS, **(credentials if user else {}))
        except Exception as error:
            raise mapped(error, str(where)) from None

        async def kept() -> AsyncGenerator[None]:
            """A loop that ends closes its generators, and the client with this one."""
            try:
                yield
            finally:
                _lent.pop(key, None)
                await client.close()

        keeper = kept()
        _lent[key] = client, keeper
        await anext(keeper)
    return _lent[key][0]


class MongoMetadataRepository(RemoteRepository, MetadataRepository):
    """A document per job in a collection; `info` of an absent one is `{}`, and each has its job as `_id`.

    `collection` is a function that gives a collection, or an address. Documents above 15 MiB, and what BSON cannot hold, stand beside, in
    `<collection>.datatask_beside`. Where the server has no change streams it is listed every `poll_seconds`.
    """

    def __init__(
        self,
        collection: Callable[[], Any] | str,
        subcollection: str | None = None,
        *,
        poll_seconds: float = POLL_SECONDS,
        name: str | None = None,
        was: str | None = None,
        record: Record | None = None,
    ) -> None:
        super().__init__(name=name, was=was, record=record)
        kind = type(self).__name__
        expect(self, TEXT, optional=True, subcollection=subcollection)
        self.place: Place | None = None
        if isinstance(collection, str):
            self.place = place(collection, ("mongodb",), kind)
            self._names(kind)
        else:
            expect(
                self, FUNCTION, f"pass a function that gives a collection, or {SHAPE}", collection=collection
            )
        self._collection = collection
        self._subcollection = subcollection
        self.poll_seconds = check_poll(poll_seconds, self)
        self._fresh: OrderedDict[str, tuple[str, Any]] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None

    def _names(self, kind: str) -> tuple[str, str]:
        """Return the names of the database and of the collection that the address has."""
        assert self.place is not None
        database, _, collection = self.place.path.partition(".")
        wrong = not database or not collection or len(database) > 63 or collection.startswith("system.")
        if wrong or any(letter in ' /\\"$*<>:|?\0' for letter in self.place.path) or ".." in collection:
            raise InvalidValueError(
                f"url is {str(self.place)!r:.120}: it does not name a database and a collection",
                where=kind,
                remedy=f"write {SHAPE}",
            )
        return database, collection

    def __repr__(self) -> str:
        of = repr(str(self.place)) if self.place else f"{self._id or self.name or '…'}"
        sub = f", {self._subcollection!r}" if self._subcollection else ""
        return f"{type(self).__name__}({of}{sub})"

    def locator(self) -> str | None:
        """Return kind and address; what a function gives is known when it is called."""
        if self.place is None:
            return None
        return f"{self.kind}:{self.place}" + (f".{self._subcollection}" if self._subcollection else "")

    @property
    def collection(self) -> Any:
        """The collection that the function gives, as in pydatatask."""
        if self.place is not None or not callable(self._collection):
            raise InvalidValueError(
                "the collection of an address is the engine's own", where=repr(self), remedy="pass a function"
            )
        found = self._collection()
        return found if self._subcollection is None else found[self._subcollection]

    async def _lend(self) -> Any:
        self._loop = asyncio.get_running_loop()
        if self.place is None:
            found = self.collection
            return await found if inspect.isawaitable(found) else found
        database, collection = self._names(type(self).__name__)
        found = (await _client(self.place))[database][collection]
        return found if self._subcollection is None else found[self._subcollection]

    def _own_store(self) -> MongoStore:
        where = str(self.place) if self.place else repr(self)
        if self.place and self._subcollection:
            where += f".{self._subcollection}"
        return MongoStore(self._lend, where, self._id or "", self.poll_seconds, self._keep)

    async def validate(self) -> None:
        """Raise where the collection may not be read, or the server does not know us."""
        store = self._own_store()

        async def asked() -> None:
            await (await store.raw()).find_one({}, {"_id": 1})

        await store.tried(asked)

    async def check_input(self, whose: str) -> None:
        """Raise where the collection may not be read."""
        await self.validate()

    # --- documents ------------------------------------------------------------------------------------

    @job_getter
    async def info(self, job: str) -> Any:
        """Return the job's document with its `_id`, `{}` for none."""
        check_job(job, where=self)
        if (write := self._overlaid(job)) is not None:
            if write.op == "delete":
                return {}
            if write.digest is not None:
                path = await asyncio.to_thread(self._engine().blobs.intact, write.digest)
                write = msgspec.structs.replace(write, source=path)
            return {"_id": job, **await asyncio.to_thread(content, write, repr(self))}
        position = self._position()
        document, version = await self._own_store().document(job, await self._codec())
        self._note_seen(job, position, version)
        return document or {}

    async def _codec(self) -> Any:
        """Return how values are read: as the user's collection has it, times with their zone where it is ours."""
        return None if self.place is not None else (await self._lend()).codec_options

    async def info_all(self) -> dict[str, Any]:
        """Return all documents by their jobs."""
        if current_run.get() is not None:
            return await super().info_all()
        store, codec = self._own_store(), await self._codec()
        return {job: await store.whole(raw, codec) async for job, raw in store.each(lambda raw: raw)}

    @job_getter
    async def dump(self, job: str, data: Any) -> None:
        """Make `data`, a dict, the job's document."""
        check_job(job, where=self)
        document = checked(data, job, repr(self))
        text = encode_value(document)
        if len(text) <= INLINE_BYTES_MAX:
            await self._put(job, value=msgspec.Raw(text))
        else:
            await self._put(job, data=text)

    # --- what the log is to know ----------------------------------------------------------------------

    def _keep(self, job: str, version: str, document: Any) -> None:
        if self.record == "version":
            return
        self._fresh[job] = version, document
        self._fresh.move_to_end(job)
        if len(self._fresh) > FRESH_MAX:
            self._fresh.popitem(last=False)

    def _observed(self, write: Write) -> Write:
        """Add the document: one that has just been told is at hand; others are asked for, from a thread."""
        version, raw = self._fresh.pop(write.job, (None, None))
        store, loop = self._own_store(), self._loop
        if raw is None or version != write.version:
            if loop is None or _is_running(loop):
                return write
            raw = asyncio.run_coroutine_threadsafe(store.found(write.job), loop).result()
            if raw is None:
                return write
        if loop is not None and not _is_running(loop):
            document = asyncio.run_coroutine_threadsafe(store.whole(raw), loop).result()
        elif noted(raw) is not None:
            return write  # it stands beside, and is large
        else:
            document = dict(bson(store.where).decode(raw.raw))
        encoded = encode_value(checked(document, write.job, repr(self)))
        if self.record == "value" and len(encoded) <= INLINE_BYTES_MAX:
            return msgspec.structs.replace(write, value=msgspec.Raw(encoded))
        return msgspec.structs.replace(write, digest=hashlib.sha256(encoded).hexdigest(), size=len(encoded))

    def __getstate__(self) -> dict[str, Any]:
        """A loop stays here; a worker has its own, and its own client."""
        return {**super().__getstate__(), "_loop": None, "_fresh": OrderedDict()}


def _is_running(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this is the loop's own thread, which must not wait for it."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
