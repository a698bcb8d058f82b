"""Object stores for tests, on loopback: real servers of several makes, each started once a session and ended by its process id.

In: the name of a server. Out: a `Service`, which makes a fresh bucket for each test and puts keys into it behind the product's back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.servers import SharedServer

KEY = "S3RVER"
"""Key and secret: those that s3rver has; moto takes any."""
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's account, which is in its manual."""
UP_SECONDS = 120.0


@dataclass
class Service:
    """A running server."""

    name: str
    endpoint: str
    process: subprocess.Popen[Any] | None

    def client(self) -> Any:
        """A client of another make than the product's, to look at what is there."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=KEY,
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 1}, s3={"addressing_style": "path"}),
        )

    def container(self) -> Any:
        """Make a container of Azure's that is nobody else's, as a client of another make has it."""
        from azure.storage.blob import BlobServiceClient

        service = BlobServiceClient(
            self.endpoint, credential={"account_name": AZURE_ACCOUNT, "account_key": AZURE_KEY}
        )
        return service.create_container(f"t-{uuid4().hex[:20]}")

    def bucket(self) -> str:
        """Make a bucket that is nobody else's."""
        name = f"t-{uuid4().hex[:20]}"
        self.client().create_bucket(Bucket=name)
        return name

    def keys(self, bucket: str) -> list[str]:
        """Return all keys that the bucket has."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [one["Key"] for page in pages for one in page.get("Contents", ())]


_held: set[asyncio.Task[None]] = set()


class LazyClient:
    """An aiobotocore client of the running loop, made when it is first used and closed when the loop ends."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._made: tuple[Any, asyncio.Future[Any], asyncio.Task[None]] | None = None

    def __call__(self) -> LazyClient:
        return self

    @property
    def meta(self) -> Any:
        return Service("", self.endpoint, None).client().meta

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        async def call(**arguments: Any) -> Any:
            return await getattr(await self._client(), name)(**arguments)

        return call

    def __reduce__(self) -> Any:
        return LazyClient, (self.endpoint,)

    async def _client(self) -> Any:
        loop = asyncio.get_running_loop()
        if self._made is None or self._made[0] is not loop:
            ready = loop.create_future()
            task = loop.create_task(self._hold(ready))
            _held.add(task)  # the loop itself does not hold it
            task.add_done_callback(_held.discard)
            self._made = loop, ready, task
        return await self._made[1]

    async def _hold(self, ready: asyncio.Future[Any]) -> None:
        from aiobotocore.session import get_session
        from botocore.config import Config

        config = Config(retries={"max_attempts": 0}, s3={"addressing_style": "path"}, read_timeout=20)
        async with get_session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=KEY,
            region_name="us-east-1",
            config=config,
        ) as client:
            ready.set_result(client)
            await loop_end()


async def loop_end() -> None:
    """Wait until the loop ends, which cancels this."""
    await asyncio.get_running_loop().create_future()


def environment() -> dict[str, str]:
    """What a process needs to be let in."""
    return {
        **{"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": KEY, "AWS_REGION": "us-east-1"},
        **{"AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY},
    }


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def _command(name: str, port: int, folder: Path) -> list[str]:
    if name == "moto":
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    program = shutil.which(name) or name
    if name == "azurite-blob":
        options = ["--blobPort", str(port), "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
        return [program, "--inMemoryPersistence", *options]
    return [program, "-d", str(folder), "-a", "127.0.0.1", "-p", str(port), "--silent"]


@contextlib.contextmanager
def running(name: str, folder: Path) -> Iterator[Any]:
    """Start a server and end it."""
    if name == "secantusd-py":
        from tests import mongo_kit

        with mongo_kit.running(folder) as mongo:
            yield mongo
        return
    for _ in range(3):  # another process may take the port in between
        port = free_port()
        with (folder / f"{name}.log").open("ab") as log:
            process = SharedServer(
                _command(name, port, folder),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                # s3rver's tokens are made with what OpenSSL 3 calls legacy
                env={**os.environ, "NODE_OPTIONS": "--openssl-legacy-provider"},
            )
        if _is_up(process, port):
            break
        process.kill()
        process.wait()
    else:
        raise RuntimeError((folder / f"{name}.log").read_text()[-2000:])
    try:
        path = f"/{AZURE_ACCOUNT}" if name == "azurite-blob" else ""
        yield Service(name, f"http://127.0.0.1:{port}{path}", process)
    finally:
        process.kill()
        process.wait()


def _is_up(process: subprocess.Popen[Any], port: int) -> bool:
    until = time.monotonic() + UP_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).close()
        except urllib.error.HTTPError as error:
            error.close()
            return True
        except OSError:
            time.sleep(0.1)
        else:
            return True
    return False
