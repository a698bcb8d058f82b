"""A bucket through obstore: S3 and what speaks like it, and Azure Blob Storage.

In: an address (`Place`); credentials from the environment and the cloud's own chain. Out: the `Bucket` port. obstore is imported when
the bucket is first used. Its listings end at a key that it cannot name (`a//b`, `..`), and give `a/` as `a`: S3 is listed by pages
that it signs and we read (`s3_requests`). Others are listed with a delimiter, which leaves such keys out, but for those right below the prefix.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from datatask.adapters.store.buckets import Entry
from datatask.adapters.store.inputs import NotPermittedError
from datatask.adapters.store.outcomes import NO_BUCKET, outcome
from datatask.adapters.store.places import Place, library
from datatask.adapters.store.resuming import LastingError, Refused, ResumingReader, changed, tried
from datatask.adapters.store.s3_requests import S3Requests
from datatask.engine.api.streams import AReadStream
from datatask.schema.errors import DatataskError, StoreError

T = TypeVar("T")

CHUNK_BYTES = 1024 * 1024
PART_BYTES = 8 * 1024 * 1024
PARTS_AT_ONCE = 4
RETRY: dict[str, Any] = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}
TIMEOUTS: dict[str, Any] = {"timeout": "60s", "connect_timeout": "10s"}
TOKEN = "datatask-write"

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,80})</Code>")
_NOWHERE = ".datatask-check"
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


class ObjectBucket:
    """A bucket by its address; `endpoint` is where a store that is not the cloud's own listens."""

    def __init__(self, place: Place, *, endpoint: str | None = None, mimetype: str = "") -> None:
        self.place = place
        self.where = f"{place.scheme}://{place.host}"
        self.endpoint = endpoint
        self._mimetype = mimetype

    # --- obstore --------------------------------------------------------------------------------------

    @cached_property
    def _obstore(self) -> Any:
        return library("obstore", "s3", self.where)

    @cached_property
    def store(self) -> Any:
        """obstore's store of the bucket, made when it is first used."""
        return self.made()

    def made(self, **options: Any) -> Any:
        """Make a store of obstore's; `options` are its own."""
        stores = library("obstore.store", "s3", self.where)
        endpoint = options.get("endpoint") or self.endpoint or _from_environment(self.place.scheme)
        if self.endpoint:
            options.setdefault("endpoint", self.endpoint)
        if options.get("endpoint") is None and self.place.scheme == "s3" and endpoint:
            options["endpoint"] = endpoint
        kind = {"s3": stores.S3Store, "az": stores.AzureStore}[self.place.scheme]
        client = {**TIMEOUTS, "allow_http": str(endpoint).startswith("http://")}
        try:
            return kind(self.place.host, client_options=client, retry_config=RETRY, **options)
        except Exception as error:
            raise self.mapped(error, self.where) from None

    def signed(self, key: str, seconds: float, *, method: str = "GET", store: Any = None) -> str:
        """Return an address that whoever has it may use for a while, without a key. It is nowhere kept."""
        store = self.store if store is None else store
        try:
            return str(self._obstore.sign(store, method, key, timedelta(seconds=seconds)))
        except Exception as error:
            raise self.mapped(error, f"{self.where}/{key}") from None

    def mapped(self, error: BaseException, where: str) -> BaseException:
        """Return our error for one of obstore's; its text is not repeated."""
        foreign = isinstance(error, FileNotFoundError) or type(error).__module__.startswith("obstore")
        if isinstance(error, DatataskError) or not foreign:
            return error
        text = str(error)
        status, code = _STATUS.search(text), _CODE.search(text)
        if type(error).__name__ == "InvalidPathError":
            return LastingError(
                f"it has a key that cannot be listed: {text.splitlines()[0][:200]}",
                where=where,
                remedy="remove that key; nothing is taken for deleted meanwhile",
            )
        if status is not None:
            return outcome(int(status[1]), code[1] if code else "", where)
        if isinstance(error, FileNotFoundError):
            return outcome(404, code[1] if code else "", where)
        kinds = {"PermissionDeniedError": 403, "UnauthenticatedError": 401}
        if (kind := kinds.get(type(error).__name__)) is not None:
            return outcome(kind, code[1] if code else "", where)
        return outcome(None, "", where, f"it does not answer as it should ({_cause(text)})")

    async def _tried(self, where: str, call: Callable[[], Awaitable[T]]) -> T:
        return await tried(call, self.mapped, where)

    # --- the port -------------------------------------------------------------------------------------

    async def pages(self, prefix: str) -> AsyncIterator[list[Entry]]:
        """Yield the objects right below a prefix."""
        if self.place.scheme == "s3":
            pages = S3Requests(self)
            token: str | None = ""
            while token is not None:
                entries, token = await self._tried(
                    self.where,
                    lambda token=token: pages.page(prefix, token),  # type: ignore[misc]
                )
                yield entries
            return

        async def listed() -> Any:
            return await self._obstore.list_with_delimiter_async(self.store, prefix.rstrip("/") or None)

        found = await self._tried(f"{self.where}/{prefix}", listed)
        yield [Entry(one["path"], _version(one)) for one in found["objects"]]

    async def head(self, key: str) -> str | None:
        """Return the version; where a HEAD, which has no body, does not say why not, the object is asked for by name."""
        where = f"{self.where}/{key}"

        async def headed() -> str | None:
            try:
                return _version(await self._obstore.head_async(self.store, key))
            except FileNotFoundError:
                return await self._absent(key)
            except Exception as error:
                if "status code: 400" not in str(error):
                    raise
                return await self._absent(key)

        return await self._tried(where, headed)

    async def _absent(self, key: str) -> str | None:
        """Return None where the object is surely not there, and the bucket is."""
        try:
            found = await self._obstore.get_async(self.store, key)
        except FileNotFoundError as error:
            if _is_bucket_gone(error):
                raise
            if _CODE.search(str(error)) is None:  # Azure's answer does not say what it is that is not there
                await self._obstore.list_with_delimiter_async(self.store, _NOWHERE)
            return None
        return _version(found.meta)

    async def open(self, key: str) -> tuple[AReadStream, str]:
        """Open an object; what is cut is gone on with, as long as it is the same object."""
        where = f"{self.where}/{key}"
        found = await self._tried(where, lambda: self._obstore.get_async(self.store, key))
        etag, size = found.meta["e_tag"], int(found.meta["size"])

        async def rest(at: int) -> AsyncIterator[bytes]:
            options = {"range": (at, size), "if_match": etag}
            try:
                left = await self._obstore.get_async(self.store, key, options=options)
            except Exception as error:
                if type(error).__name__ == "PreconditionError":
                    raise changed(where) from None
                raise
            return aiter(left.stream(min_chunk_size=CHUNK_BYTES))

        chunks = aiter(found.stream(min_chunk_size=CHUNK_BYTES))
        return ResumingReader(where, size, chunks, rest, self.mapped), _version(found.meta)

    def get_now(self, key: str) -> tuple[bytes, str]:
        """Return an object's bytes and version; blocking."""
        try:
            found = self._obstore.get(self.store, key)
            return bytes(found.bytes()), _version(found.meta)
        except Exception as error:
            raise self.mapped(error, f"{self.where}/{key}") from None

    async def put(self, key: str, content: bytes | Path, *, token: str, over: str | None) -> str:
        """Write an object; a condition goes with it where it fits into one request, and is looked at right before.

        Servers that only speak S3 may not know conditions, and ignore them.
        """
        where = f"{self.where}/{key}"
        large = isinstance(content, Path) and content.stat().st_size > PART_BYTES
        if over is not None and (now := await self.head(key) or "") != over:
            raise Refused(await self._token(key), now or None)
        options: dict[str, Any] = {
            "use_multipart": large,
            "chunk_size": PART_BYTES,
            "max_concurrency": PARTS_AT_ONCE,
        }
        if over is not None and not large:
            options["mode"] = "create" if not over else {"e_tag": f'"{over}"'}
        attributes: dict[str, Any] = {_attribute(self.place.scheme): token}
        if self._mimetype:
            attributes["Content-Type"] = self._mimetype
        if isinstance(content, Path) and not large:
            content = await asyncio.to_thread(content.read_bytes)

        async def written() -> str:
            try:
                done = await self._obstore.put_async(
                    self.store, key, content, attributes=attributes, **options
                )
            except Exception as error:
                if type(error).__name__ in ("AlreadyExistsError", "PreconditionError") or (
                    over and isinstance(error, FileNotFoundError) and not _is_bucket_gone(error)
                ):
                    there = await self._there(key)
                    raise Refused(*there) from None
                raise
            return str(done["e_tag"] or "").strip('"') or await self.head(key) or ""

        if not large:
            return await self._tried(where, written)
        await self._forget_uploads(key)  # of an engine that was killed
        try:
            return await self._tried(where, written)
        except BaseException:
            with contextlib.suppress(Exception):
                await asyncio.shield(asyncio.ensure_future(self._forget_uploads(key)))
            raise

    async def _forget_uploads(self, key: str) -> None:
        """Throw away what failed uploads of an object have left, where store and rights allow; Azure does so by itself."""
        if self.place.scheme == "s3":
            requests = S3Requests(self)
            with contextlib.suppress(StoreError, NotPermittedError):
                await self._tried(f"{self.where}/{key}", lambda: requests.forget_uploads(key))

    async def _there(self, key: str) -> tuple[str | None, str | None]:
        """Return the token and the version of what is there now."""
        try:
            found = await self._obstore.get_async(self.store, key)
        except FileNotFoundError:
            return None, None
        return found.attributes.get(_attribute(self.place.scheme)), _version(found.meta)

    async def _token(self, key: str) -> str | None:
        return (await self._tried(f"{self.where}/{key}", lambda: self._there(key)))[0]

    async def delete(self, key: str) -> None:
        """Remove an object; absent is fine, a bucket that is not there is not."""

        async def deleted() -> None:
            try:
                await self._obstore.delete_async(self.store, key)
            except FileNotFoundError as error:
                if _is_bucket_gone(error):
                    raise
                await self._absent(key)

        await self._tried(f"{self.where}/{key}", deleted)

    async def check(self, *, make: bool) -> None:
        """Raise where the bucket cannot be listed; it is not made."""
        if self.place.scheme == "s3":
            await self._tried(self.where, lambda: S3Requests(self).page("", "", 1))
            return
        await self._tried(self.where, lambda: self._obstore.list_with_delimiter_async(self.store, _NOWHERE))


def _attribute(scheme: str) -> str:
    """Return the name of the token's attribute: Azure's are identifiers."""
    return TOKEN.replace("-", "_") if scheme == "az" else TOKEN


def _version(meta: Any) -> str:
    return str(meta["e_tag"] or "").strip('"') or str(meta["version"] or meta["last_modified"])


def _is_bucket_gone(error: BaseException) -> bool:
    code = _CODE.search(str(error))
    return code is not None and code[1] in NO_BUCKET


def _cause(text: str) -> str:
    """Return the last of the causes that obstore names, which is the one that people know."""
    known = ("timed out", "connection closed", "Connection refused", "dns error", "end of file", "credential")
    return next((cause for cause in known if cause.lower() in text.lower()), "the connection failed")


def _from_environment(scheme: str) -> str:
    names = {"s3": _ENDPOINTS, "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")}[scheme]
    return next((os.environ[name] for name in names if os.environ.get(name)), "")
