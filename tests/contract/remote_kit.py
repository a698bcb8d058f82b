"""Repositories that are elsewhere, each over a real server: another backend joins the suite with an entry in `BACKENDS`.

In: the server, as `tests.object_stores` starts it. Out: a `Remote`: the repository, and a way to look at its store and to put things
there behind the product's back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from datatask.adapters.store.bucket_repositories import (
    BucketRepository,
    S3BucketRepository,
    YamlMetadataBucketRepository,
    YamlMetadataS3Repository,
)
from datatask.adapters.store.mongo_repositories import MongoMetadataRepository
from datatask.adapters.yaml_text import load_yaml
from tests.contract.repository_kit import Case
from tests.object_stores import LazyClient, Service


@dataclass
class Remote(Case):
    """A repository under test. `names` and `plant` see the store as others do; `vanish` takes it away as a whole."""

    names: Callable[[], list[Any]]
    plant: Callable[[Any, bytes], None]
    vanish: Callable[[], None]
    name_of: Callable[[str], str]
    odd: tuple[Any, ...]
    content: Callable[[int], dict[str, Any]]
    again: Callable[[], Any]
    """Another object for the same place, as another process has it."""
    on_demand: bool = False
    """Whether the store makes the place with its first value, so that one that is gone is an empty one."""


@dataclass(frozen=True)
class Backend:
    """How a remote repository is made. `services` are the servers that it is tried on."""

    make: Callable[[Any], Remote]
    services: tuple[str, ...]


ODD = (
    "p/",
    "p/a/",
    "p/a/b",
    "p/x%20y",
    "p/ü",
    "p/b c",
    "p/.hidden",
    "p/-x",
    "p/x.",
    "top",
)
ODDER = ("p/./s", "p/../r", "p/a//b", "p//q", "p/a/../b", "p/ctl\x01x", "p/" + "x" * 129)
"""Names that a bucket may have, and that are no members."""


def _odd(service: Service, suffix: str) -> tuple[str, ...]:
    names = ODD if service.name == "s3rver" else (*ODD, *ODDER)  # it refuses some, or cannot list them itself
    return (*(name if name.endswith("/") else name + suffix for name in names), f"p/good{suffix}/")


def _by_address(kind: type[Any], service: Service, suffix: str, content: Callable[[int], Any]) -> Remote:
    bucket = service.bucket()
    return _in_a_bucket(
        lambda: kind(f"s3://{bucket}/p", suffix, endpoint=service.endpoint), bucket, service, suffix, content
    )


def _by_client(kind: type[Any], service: Service, suffix: str, content: Callable[[int], Any]) -> Remote:
    bucket, client = service.bucket(), LazyClient(service.endpoint)
    return _in_a_bucket(lambda: kind(client, bucket, "p/", suffix), bucket, service, suffix, content)


def _in_a_bucket(
    again: Callable[[], Any], bucket: str, service: Service, suffix: str, content: Callable[[int], Any]
) -> Remote:
    client = service.client()

    def vanish() -> None:
        for key in service.keys(bucket):
            client.delete_object(Bucket=bucket, Key=key)
        client.delete_bucket(Bucket=bucket)

    return Remote(
        again(),
        names=lambda: service.keys(bucket),
        plant=lambda name, data: client.put_object(Bucket=bucket, Key=name, Body=data) and None,
        vanish=vanish,
        name_of=lambda job: f"p/{job}{suffix}",
        odd=_odd(service, suffix),
        content=content,
        again=again,
    )


def _in_a_container(kind: type[Any], service: Service, suffix: str, content: Callable[[int], Any]) -> Remote:
    container = service.container()

    def again() -> Any:
        return kind(f"az://{container.container_name}/p", suffix, endpoint=service.endpoint)

    return Remote(
        again(),
        names=lambda: list(container.list_blob_names()),
        plant=lambda name, data: container.upload_blob(name, data, overwrite=True) and None,
        vanish=container.delete_container,
        name_of=lambda job: f"p/{job}{suffix}",
        odd=(f"p/a/b{suffix}", f"p/x%20y{suffix}", f"p/ü{suffix}", f"p/b c{suffix}", f"p/a//b{suffix}"),
        content=content,
        again=again,
    )


def documents(n: int) -> dict[str, Any]:
    import msgspec

    from datatask.schema.values import encode_value

    return {"value": msgspec.Raw(encode_value({"n": n}))}


def blobs(n: int) -> dict[str, Any]:
    return {"data": b"%d" % n}


ODD_IDS: tuple[Any, ...] = ("", "a/b", "b c", "..", "ü", "x" * 129, "x.", 5, 2.5, b"a", None, True)


def _in_mongo(server: Any) -> Remote:
    name = server.collection()

    def again() -> Any:
        return MongoMetadataRepository(server.address(name))

    return Remote(
        again(),
        names=lambda: server.names(name),
        plant=lambda job, data: server.put(name, job, load_yaml(data, "")),
        vanish=lambda: server.drop(name),
        name_of=lambda job: job,
        odd=ODD_IDS,
        content=documents,
        again=again,
        on_demand=True,
    )


S3 = ("moto", "s3rver")
BACKENDS = {
    "bytes in a container": Backend(
        lambda s: _in_a_container(BucketRepository, s, "", blobs), ("azurite-blob",)
    ),
    "yaml in a container": Backend(
        lambda s: _in_a_container(YamlMetadataBucketRepository, s, ".yaml", documents), ("azurite-blob",)
    ),
    "bytes by a client": Backend(lambda s: _by_client(S3BucketRepository, s, "", blobs), S3),
    "yaml by a client": Backend(lambda s: _by_client(YamlMetadataS3Repository, s, ".yaml", documents), S3),
    "bytes in a bucket": Backend(lambda s: _by_address(BucketRepository, s, "", blobs), S3),
    "yaml in a bucket": Backend(
        lambda s: _by_address(YamlMetadataBucketRepository, s, ".yaml", documents), S3
    ),
    "documents in MongoDB": Backend(_in_mongo, ("secantusd-py",)),
}
BLOBS = [kind for kind in BACKENDS if kind.startswith(("bytes", "yaml"))]


def _marked(kind: str, service: str) -> Any:
    marks = [] if service == "moto" else [pytest.mark.server(service)]
    return pytest.param(BACKENDS[kind].make, service, marks=marks, id=f"{kind}, {service}")


def _each(kinds: Iterable[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("make", "server"), [_marked(kind, name) for kind in kinds for name in BACKENDS[kind].services]
    )


every_backend = _each(BACKENDS)
every_blob_backend = _each(BLOBS)
