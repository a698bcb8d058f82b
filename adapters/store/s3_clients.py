"""A bucket through a client that the user hands over, as in pydatatask: an aiobotocore client, made and closed by a session of theirs.

In: a function that gives the client, and a bucket's name. Out: the `Bucket` port. Nothing of aiobotocore is imported: its errors are known
by where they are defined. Large objects go up in parts, and nothing of them stays where one fails.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from datatask.adapters.store.buckets import Entry
from datatask.adapters.store.outcomes import NO_BUCKET, outcome
from datatask.adapters.store.resuming import Refused, ResumingReader, changed, tried
from datatask.engine.api.streams import AReadStream
from datatask.schema.errors import DatataskError

T = TypeVar("T")

TOKEN = "datatask-write"
PAGE = 1_000
CHUNK_BYTES = 1024 * 1024
PART_BYTES = 8 * 1024 * 1024
PARTS_AT_ONCE = 4
_LIBRARIES = ("aiobotocore", "botocore", "aiohttp", "httpx", "urllib3")


class ClientBucket:
    """A bucket by its name, through `client()`."""

    def __init__(self, client: Callable[[], Any], bucket: str, mimetype: str = "") -> None:
        self._client = client
        self._name = bucket
        self._mimetype = mimetype
        self.where = f"s3://{bucket}"

    def mapped(self, error: BaseException, where: str) -> BaseException:
        """Return our error for one of the client's."""
        module = type(error).__module__.partition(".")[0]
        if isinstance(error, DatataskError) or not (module in _LIBRARIES or isinstance(error, OSError)):
            return error
        answer = getattr(error, "response", None)
        if isinstance(answer, dict):
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return outcome(status, _code(error), where)
        if type(error).__name__ in (
            "NoCredentialsError",
            "PartialCredentialsError",
            "CredentialRetrievalError",
        ):
            return outcome(401, "", where)
        return outcome(None, "", where, f"it does not answer as it should ({type(error).__name__})")

    async def _tried(self, where: str, call: Callable[[], Awaitable[T]]) -> T:
        return await tried(call, self.mapped, where)

    def _named(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._name, "Key": key}

    # --- the port -------------------------------------------------------------------------------------

    async def pages(self, prefix: str) -> AsyncIterator[list[Entry]]:
        """Yield the objects right below a prefix, which need not end with `/`."""
        more: dict[str, Any] = {}
        while more is not None:

            async def page(more: dict[str, Any] = more) -> Any:
                return await self._client().list_objects_v2(
                    Bucket=self._name, Prefix=prefix, Delimiter="/", MaxKeys=PAGE, **more
                )

            found = await self._tried(self.where, page)
            yield [Entry(one["Key"], one["ETag"].strip('"')) for one in found.get("Contents", ())]
            if not found.get("IsTruncated"):
                return
            more = {"ContinuationToken": found["NextContinuationToken"]}

    async def head(self, key: str) -> str | None:
        """Return the version; where a HEAD, which has no body, does not say why not, the object is asked for by name."""

        async def headed() -> str | None:
            try:
                return _version(await self._client().head_object(**self._named(key)))
            except Exception as error:
                if _status(error) not in (400, 404):
                    raise
            return (await self._there(key))[1]

        return await self._tried(f"{self.where}/{key}", headed)

    async def _there(self, key: str) -> tuple[str | None, str | None]:
        """Return the token and the version of what is there now."""
        try:
            found = await self._client().get_object(**self._named(key))
        except Exception as error:
            if _status(error) == 404 and _code(error) not in NO_BUCKET:
                return None, None
            raise
        found["Body"].close()
        return found.get("Metadata", {}).get(TOKEN), _version(found)

    async def open(self, key: str) -> tuple[AReadStream, str]:
        """Open an object; what is cut is gone on with, as long as it is the same object."""
        where = f"{self.where}/{key}"
        found = await self._tried(where, lambda: self._client().get_object(**self._named(key)))

        async def rest(at: int) -> AsyncIterator[bytes]:
            try:
                left = await self._client().get_object(
                    **self._named(key), Range=f"bytes={at}-", IfMatch=found["ETag"]
                )
            except Exception as error:
                if _status(error) == 412:
                    raise changed(where) from None
                raise
            return _chunks(left["Body"])

        reader = ResumingReader(where, found["ContentLength"], _chunks(found["Body"]), rest, self.mapped)
        return reader, _version(found)

    async def put(self, key: str, content: bytes | Path, *, token: str, over: str | None) -> str:
        """Write an object; a condition goes with it where client and size allow, and is looked at right before."""
        where = f"{self.where}/{key}"
        if over is not None and (now := await self.head(key) or "") != over:
            raise Refused(*(await self._tried(where, lambda: self._there(key)) if now else (None, None)))
        options: dict[str, Any] = {**self._named(key), "Metadata": {TOKEN: token}}
        if self._mimetype:
            options["ContentType"] = self._mimetype
        if isinstance(content, Path) and content.stat().st_size > PART_BYTES:
            return await self._in_parts(key, content, options)
        body = await asyncio.to_thread(content.read_bytes) if isinstance(content, Path) else content
        if over is not None and _knows_conditions(self._client()):
            options |= {"IfMatch": f'"{over}"'} if over else {"IfNoneMatch": "*"}

        async def written() -> str:
            try:
                return _version(await self._client().put_object(**options, Body=body))
            except Exception as error:
                gone = over and _status(error) == 404 and _code(error) not in NO_BUCKET
                if _status(error) in (409, 412) or gone:
                    raise Refused(*await self._there(key)) from None
                raise

        return await self._tried(where, written)

    async def _in_parts(self, key: str, content: Path, options: dict[str, Any]) -> str:
        """Write a large object; where anything fails, what has been sent of it is thrown away."""
        where = f"{self.where}/{key}"
        begun = await self._tried(where, lambda: self._client().create_multipart_upload(**options))
        named = {**self._named(key), "UploadId": begun["UploadId"]}
        try:
            with content.open("rb") as file:
                size, turns = content.stat().st_size, asyncio.Semaphore(PARTS_AT_ONCE)

                async def part(number: int) -> dict[str, Any]:
                    async with turns:
                        file.seek((number - 1) * PART_BYTES)
                        data = file.read(PART_BYTES)
                        done = await self._tried(
                            where,
                            lambda: self._client().upload_part(**named, PartNumber=number, Body=data),
                        )
                        return {"PartNumber": number, "ETag": done["ETag"]}

                async with asyncio.TaskGroup() as group:
                    parts = [group.create_task(part(n + 1)) for n in range(-(-size // PART_BYTES))]
            upload = {"Parts": [one.result() for one in parts]}
            done = await self._tried(
                where, lambda: self._client().complete_multipart_upload(**named, MultipartUpload=upload)
            )
            return _version(done)
        except BaseException as error:
            abort = asyncio.ensure_future(self._client().abort_multipart_upload(**named))
            with contextlib.suppress(Exception):
                await asyncio.shield(abort)
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from None
            raise

    async def delete(self, key: str) -> None:
        """Remove an object; absent is fine."""
        await self._tried(f"{self.where}/{key}", lambda: self._client().delete_object(**self._named(key)))

    async def check(self, *, make: bool) -> None:
        """Raise where the bucket cannot be listed; with `make` one that is not there is made."""

        async def listed() -> None:
            try:
                await self._client().list_objects_v2(Bucket=self._name, MaxKeys=1)
            except Exception as error:
                if not make or _code(error) not in NO_BUCKET:
                    raise
                region = self._client().meta.region_name
                place = {} if region in (None, "us-east-1", "aws-global") else {"LocationConstraint": region}
                options = {"CreateBucketConfiguration": place} if place else {}
                await self._client().create_bucket(Bucket=self._name, **options)

        await self._tried(self.where, listed)

    async def signed(self, key: str, seconds: float, method: str) -> str:
        """Return an address that needs no key for a while."""
        verb = {"GET": "get_object", "PUT": "put_object"}[method]
        return str(
            await self._client().generate_presigned_url(verb, Params=self._named(key), ExpiresIn=int(seconds))
        )


async def _chunks(body: Any) -> AsyncIterator[bytes]:
    try:
        while data := await body.read(CHUNK_BYTES):
            yield data
    finally:
        body.close()


def _status(error: BaseException) -> int | None:
    answer = getattr(error, "response", None)
    return answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None


def _code(error: BaseException) -> str:
    answer = getattr(error, "response", None)
    code = str(answer.get("Error", {}).get("Code", "")) if isinstance(answer, dict) else ""
    return "" if code.isdigit() else code[:80]


def _version(answer: Any) -> str:
    return str(answer["ETag"]).strip('"')


def _knows_conditions(client: Any) -> bool:
    """Whether the client's botocore is new enough to send conditions."""
    try:
        shape = client.meta.service_model.operation_model("PutObject").input_shape
        return "IfMatch" in shape.members
    except AttributeError:
        return False
