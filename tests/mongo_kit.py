"""A server that speaks MongoDB, for tests, on loopback: SecantusDB, on WiredTiger, with a replica set of one and its change streams.

In: options. Out: a `Mongo`, which looks at collections with PyMongo's other API, behind the product's back. MongoDB's own server is in no
registry that can be reached; what this one cannot show is in docs/decisions/0036-remote-documents-and-images.md.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from tests.object_stores import UP_SECONDS, free_port
from tests.servers import SharedServer

PROGRAM = "secantusd-py"


@dataclass
class Mongo:
    """A running server."""

    port: int
    process: subprocess.Popen[Any]

    name: str = PROGRAM

    @contextlib.contextmanager
    def client(self) -> Iterator[MongoClient[dict[str, Any]]]:
        client: MongoClient[dict[str, Any]] = MongoClient(
            "127.0.0.1", self.port, serverSelectionTimeoutMS=10_000
        )
        with client:
            yield client

    def collection(self) -> str:
        """Return the name of a collection that nobody else has, as `database.collection`."""
        return f"tests.c{uuid4().hex[:20]}"

    def address(self, name: str, port: int | None = None) -> str:
        return f"mongodb://127.0.0.1:{port or self.port}/{name}"

    def names(self, name: str) -> list[Any]:
        """Return the `_id` of every document."""
        database, _, collection = name.partition(".")
        with self.client() as client:
            return [one["_id"] for one in client[database][collection].find({}, {"_id": 1})]

    def get(self, name: str, job: str) -> Any:
        database, _, collection = name.partition(".")
        with self.client() as client:
            return client[database][collection].find_one({"_id": job})

    def put(self, name: str, job: Any, document: dict[str, Any]) -> None:
        database, _, collection = name.partition(".")
        with self.client() as client:
            client[database][collection].replace_one({"_id": job}, document, upsert=True)

    def delete(self, name: str, job: Any) -> None:
        database, _, collection = name.partition(".")
        with self.client() as client:
            client[database][collection].delete_one({"_id": job})

    def drop(self, name: str) -> None:
        database, _, collection = name.partition(".")
        with self.client() as client:
            client[database].drop_collection(collection)


@contextlib.contextmanager
def running(folder: Path, *options: str, port: int = 0) -> Iterator[Mongo]:
    """Start a server and end it."""
    for _ in range(3):  # another process may take the port in between
        server = Mongo(port or free_port(), None)  # type: ignore[arg-type]
        command = [shutil.which(PROGRAM) or PROGRAM, "--host", "127.0.0.1", "--port", str(server.port)]
        command += ["--storage-path", str(folder / "data"), "--log-level", "ERROR", "--cache-size", "64M"]
        with (folder / "log").open("ab") as log:
            server.process = SharedServer(
                [*command, *options], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        if _is_up(server):
            break
        server.process.kill()
        server.process.wait()
    else:
        raise RuntimeError((folder / "log").read_text()[-2000:])
    try:
        yield server
    finally:
        server.process.terminate()  # it writes what it has
        try:
            server.process.wait(UP_SECONDS)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()


def _is_up(server: Mongo) -> bool:
    until = time.monotonic() + UP_SECONDS
    while time.monotonic() < until and server.process.poll() is None:
        client: MongoClient[Any] = MongoClient("127.0.0.1", server.port, serverSelectionTimeoutMS=1_000)
        with client, contextlib.suppress(PyMongoError):
            client.admin.command("ping")
            return True
    return False
