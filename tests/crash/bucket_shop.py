"""A pipeline that copies files into a bucket and tells of them in another part of it: what is killed while it writes there.

In: a folder with `in/`, and a file `bucket` with the endpoint and the bucket's name. Some objects are large enough to go in parts.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from datatask import (
    BucketRepository,
    FileRepository,
    InProcessSyncTask,
    LogMetadataRepository,
    Pipeline,
    Session,
    YamlMetadataBucketRepository,
)
from datatask.adapters.store import objects
from tests.object_stores import environment

LARGE_BYTES = 6_000_000
PART_BYTES = 5 * 1024 * 1024
"""The least that S3 takes as a part."""


def content(number: int) -> bytes:
    """Return what the object of a job is to hold."""
    word = b"%d " % number
    return word * (1 if number % 29 else LARGE_BYTES // len(word))


async def copy(job: str, inp: Any, copied: Any) -> None:
    """Write the object of a job."""
    async with inp.open(job, "rb") as stream:
        number = len(await stream.read())
    async with copied.open(job, "wb") as target:
        await target.write(content(number))


async def tell(job: str, copied: Any, told: Any) -> None:
    """Read the object, and tell its size."""
    async with copied.open(job, "rb") as stream:
        await told.dump(job, {"size": len(await stream.read())})


def bucket_shop(folder: Path) -> Pipeline:
    """Return the pipeline over a folder that was laid out."""
    os.environ.update(environment())
    objects.PART_BYTES = PART_BYTES
    endpoint, bucket = (folder / "bucket").read_text().split()
    copying = InProcessSyncTask("copy", LogMetadataRepository("copy.done"), func=copy)
    copied = BucketRepository(f"s3://{bucket}/copied", endpoint=endpoint, name="copied")
    copying.link("inp", FileRepository(folder / "in", name="in"), is_input=True)
    copying.link("copied", copied, is_output=True)
    telling = InProcessSyncTask("tell", LogMetadataRepository("tell.done"), func=tell)
    telling.plug(copying, require_success=True)
    target = YamlMetadataBucketRepository(f"s3://{bucket}/told", endpoint=endpoint, name="told")
    telling.link("told", target, is_output=True)
    return Pipeline([copying, telling], Session(), [], log=folder / "log.db", name="shop")
