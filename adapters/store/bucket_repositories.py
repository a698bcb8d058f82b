"""Repositories in buckets as users write them: by an address, `s3://bucket/prefix`, and over a client of theirs, as in pydatatask.

In: an address or a client, and how keys are made of ids. Out: blob repositories, and repositories of YAML documents. `info` is what
templates see: the address for people (`{{ input }}`, `{{ input.uri }}`), and one that needs no key for some hours (`{{ input.url }}`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from datatask.adapters.store.buckets import Bucket, BucketStore
from datatask.adapters.store.inputs import MissingFileError
from datatask.adapters.store.objects import ObjectBucket
from datatask.adapters.store.places import BUCKETS, check_endpoint, place
from datatask.adapters.store.remote import POLL_SECONDS, RemoteBlobRepository, check_poll
from datatask.adapters.store.s3_clients import ClientBucket
from datatask.adapters.store.yamls import YamlMetadataRepository, yaml_of
from datatask.adapters.yaml_text import load_yaml
from datatask.engine.api.repositories import job_getter
from datatask.engine.api.streams import AReadStream
from datatask.engine.run_context import ABSENT_VERSION
from datatask.schema.definition import Record
from datatask.schema.errors import FUNCTION, TEXT, InvalidValueError, expect
from datatask.schema.messages import Write
from datatask.schema.values import INLINE_BYTES_MAX, encode_value

SIGNED_SECONDS = 12 * 3600.0
"""How long an address in a template may be used; the credentials that signed it may end before."""


class S3BucketInfo:
    """What templates see of an object; as text its `uri`. `url` reads it, and `upload_url` writes it, without a key."""

    def __init__(
        self,
        endpoint: str,
        uri: str,
        bucket: str,
        prefix: str,
        suffix: str,
        *,
        signed: Callable[[str], str] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.uri = uri
        self.bucket = bucket
        self.prefix = prefix
        self.suffix = suffix
        self._signed = signed

    def __str__(self) -> str:
        return self.uri

    def __repr__(self) -> str:
        return f"S3BucketInfo({self.uri!r})"

    @property
    def url(self) -> str:
        """An address to get the object from; signed when it is asked for, and kept nowhere here."""
        return self._sign("GET")

    @property
    def upload_url(self) -> str:
        """An address to put the object to."""
        return self._sign("PUT")

    def _sign(self, method: str) -> str:
        if self._signed is None:
            raise InvalidValueError(
                "this object's address cannot be signed", where=self.uri, remedy="use uri, with a key"
            )
        return self._signed(method)


class _InBucket(RemoteBlobRepository):
    """Objects in a bucket, one per job: what all of these share."""

    bucket: str
    prefix: str
    suffix: str
    mimetype: str
    incluster_endpoint: str | None
    poll_seconds: float = POLL_SECONDS

    def _bucket(self) -> Bucket:
        raise NotImplementedError

    def _own_store(self) -> BucketStore:
        return BucketStore(self._bucket(), self.prefix, self.suffix, self._id or "", self.poll_seconds)

    def object_name(self, job: str) -> str:
        """Return the key of a job's object."""
        return self._own_store().key(job)

    async def validate(self) -> None:
        """Raise where the bucket cannot be listed; over a client one that is not there is made."""
        await self._bucket().check(make=True)

    async def check_input(self, whose: str) -> None:
        """Raise where the bucket cannot be listed."""
        await self._bucket().check(make=False)

    async def _reader(self, job: str) -> AReadStream:
        if (write := self._overlaid(job)) is not None:
            if write.op == "delete":
                raise self._missing(job)
            return await self._overlaid_reader(write)
        position = self._position()
        try:
            stream, version = await self._bucket().open(self.object_name(job))
        except MissingFileError:
            self._note_seen(job, position, ABSENT_VERSION)
            raise self._missing(job) from None
        self._note_seen(job, position, version)
        return stream

    def _missing(self, job: str) -> MissingFileError:
        return MissingFileError(
            f"there is no {job}", where=repr(self), remedy="write it first, or ask contains()"
        )

    def __getstate__(self) -> dict[str, Any]:
        """A client library's connections stay here; a worker makes its own."""
        return {key: value for key, value in super().__getstate__().items() if key != "_made"}


class BucketRepository(_InBucket):
    """Objects below an address, such as `s3://bucket/prefix`: the job's is `prefix/<job><suffix>`.

    Also `az://container/prefix`. Credentials come from the environment and the cloud's own chain. `endpoint` is for stores that
    only speak S3. What lies in folders below is not looked at. The bucket is listed every `poll_seconds`.
    """

    def __init__(
        self,
        url: str,
        suffix: str = "",
        mimetype: str = "application/octet-stream",
        incluster_endpoint: str | None = None,
        *,
        endpoint: str | None = None,
        poll_seconds: float = POLL_SECONDS,
        name: str | None = None,
        was: str | None = None,
        record: Record | None = None,
    ) -> None:
        super().__init__(name=name, was=was, record=record)
        kind = type(self).__name__
        self.place = place(url, BUCKETS, kind)
        expect(self, TEXT, "write the ending of the keys, such as '.txt'", suffix=suffix, mimetype=mimetype)
        expect(self, TEXT, optional=True, incluster_endpoint=incluster_endpoint, endpoint=endpoint)
        if "/" in suffix:
            raise InvalidValueError(
                f"suffix is {suffix!r:.80}, which is a path",
                where=kind,
                remedy="put folders into the address",
            )
        for name_of, given in {"endpoint": endpoint, "incluster_endpoint": incluster_endpoint}.items():
            if given is not None:
                check_endpoint(name_of, given, kind)
        self.bucket = self.place.host
        self.prefix = f"{self.place.path}/" if self.place.path else ""
        self.suffix = suffix
        self.mimetype = mimetype
        self.endpoint = endpoint
        self.incluster_endpoint = incluster_endpoint
        self.poll_seconds = check_poll(poll_seconds, self)

    def __repr__(self) -> str:
        suffix = f", {self.suffix!r}" if self.suffix else ""
        return f"{type(self).__name__}({str(self.place)!r}{suffix})"

    def locator(self) -> str:
        """Return kind, address and suffix."""
        return f"{self.kind}:{self.endpoint or ''}{self.place}/*{self.suffix}"

    def _bucket(self) -> ObjectBucket:
        made = self.__dict__.get("_made")
        if made is None:
            made = self._made = ObjectBucket(self.place, endpoint=self.endpoint, mimetype=self.mimetype)
        return made

    @job_getter
    async def info(self, job: str) -> Any:
        """Return where the object is, or would be: `uri`, `endpoint`, and addresses that need no key."""
        return self._info(job)

    def _info(self, job: str) -> S3BucketInfo:
        key, bucket = self.object_name(job), self._bucket()
        endpoint = self.incluster_endpoint or self.endpoint or ""

        def signed(method: str) -> str:
            store = bucket.made(endpoint=self.incluster_endpoint) if self.incluster_endpoint else None
            return bucket.signed(key, SIGNED_SECONDS, method=method, store=store)

        uri = f"{bucket.where}/{key}"
        return S3BucketInfo(endpoint, uri, self.bucket, self.prefix, self.suffix, signed=signed)

    def _observed(self, write: Write) -> Write:
        data, version = self._bucket().get_now(self.object_name(write.job))
        return write if write.version not in (None, version) else self._recorded(write, data)

    def _recorded(self, write: Write, data: bytes) -> Write:
        digest = hashlib.sha256(data).hexdigest()
        return msgspec.structs.replace(write, digest=digest, size=len(data))


class S3BucketRepository(_InBucket):
    """Objects in a bucket, through a client that `client()` gives, as in pydatatask: the job's is `prefix + job + suffix`.

    The client is aiobotocore's, made by a session's resource. The log has versions of the objects, not what is in them.
    """

    def __init__(
        self,
        client: Callable[[], Any],
        bucket: str,
        prefix: str = "",
        suffix: str = "",
        mimetype: str = "application/octet-stream",
        incluster_endpoint: str | None = None,
        *,
        poll_seconds: float = POLL_SECONDS,
        name: str | None = None,
        was: str | None = None,
    ) -> None:
        super().__init__(name=name, was=was)
        kind = type(self).__name__
        expect(self, FUNCTION, "pass the function that gives the client, a session's resource", client=client)
        expect(self, TEXT, bucket=bucket, prefix=prefix, suffix=suffix, mimetype=mimetype)
        expect(self, TEXT, optional=True, incluster_endpoint=incluster_endpoint)
        place(f"s3://{bucket}", BUCKETS, kind)
        if incluster_endpoint is not None:
            check_endpoint("incluster_endpoint", incluster_endpoint, kind)
        self._client = client
        self.bucket, self.prefix, self.suffix = bucket, prefix, suffix
        self.mimetype = mimetype
        self.incluster_endpoint = incluster_endpoint
        self.poll_seconds = check_poll(poll_seconds, self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({f's3://{self.bucket}/{self.prefix}*{self.suffix}'!r})"

    @property
    def client(self) -> Any:
        """The client, as long as the session that made it is open."""
        return self._client()

    def locator(self) -> str:
        """Return kind, bucket, prefix and suffix."""
        return f"{self.kind}:s3://{self.bucket}/{self.prefix}*{self.suffix}"

    def _bucket(self) -> ClientBucket:
        return ClientBucket(self._client, self.bucket, self.mimetype)

    async def _info(self, job: str) -> S3BucketInfo:
        key, bucket = self.object_name(job), self._bucket()
        signed = {method: await bucket.signed(key, SIGNED_SECONDS, method) for method in ("GET", "PUT")}
        endpoint = self.incluster_endpoint or str(self.client.meta.endpoint_url)
        uri = f"{bucket.where}/{key}"
        return S3BucketInfo(endpoint, uri, self.bucket, self.prefix, self.suffix, signed=signed.__getitem__)

    @job_getter
    async def info(self, job: str) -> Any:
        """Return where the object is, or would be."""
        return await self._info(job)


class YamlMetadataS3Repository(YamlMetadataRepository, S3BucketRepository):
    """YAML documents in a bucket, through a client; `info` of an absent one is `{}`, as in pydatatask."""

    def __init__(
        self,
        client: Callable[[], Any],
        bucket: str,
        prefix: str,
        suffix: str = ".yaml",
        mimetype: str = "text/yaml",
        *,
        poll_seconds: float = POLL_SECONDS,
        name: str | None = None,
        was: str | None = None,
    ) -> None:
        super().__init__(
            client, bucket, prefix, suffix, mimetype, poll_seconds=poll_seconds, name=name, was=was
        )

    def _own_store(self) -> BucketStore:
        return dataclasses.replace(super()._own_store(), encode=yaml_of)

    def _encoded(self, write: Write) -> bytes:
        return yaml_of(write.value)

    @job_getter
    async def info(self, job: str) -> Any:
        """Return the job's document, `{}` where there is none."""
        try:
            return await super().info(job)
        except MissingFileError:
            return {}


class YamlMetadataBucketRepository(YamlMetadataRepository, BucketRepository):
    """YAML documents below an address, such as `s3://bucket/prefix`; `info` of an absent one raises `FileNotFoundError`."""

    def __init__(
        self,
        url: str,
        suffix: str = ".yaml",
        mimetype: str = "text/yaml",
        incluster_endpoint: str | None = None,
        *,
        endpoint: str | None = None,
        poll_seconds: float = POLL_SECONDS,
        name: str | None = None,
        was: str | None = None,
        record: Record | None = None,
    ) -> None:
        super().__init__(
            url,
            suffix,
            mimetype,
            incluster_endpoint,
            endpoint=endpoint,
            poll_seconds=poll_seconds,
            name=name,
            was=was,
            record=record,
        )

    def _own_store(self) -> BucketStore:
        return dataclasses.replace(super()._own_store(), encode=yaml_of)

    def _encoded(self, write: Write) -> bytes:
        return yaml_of(write.value)

    def _recorded(self, write: Write, data: bytes) -> Write:
        document = load_yaml(data, f"{self!r} {write.job}")
        if self.record == "value" and len(encoded := encode_value(document)) <= INLINE_BYTES_MAX:
            return msgspec.structs.replace(write, value=msgspec.Raw(encoded))
        return super()._recorded(write, data)
