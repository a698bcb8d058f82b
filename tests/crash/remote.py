"""A pipeline whose processes run over SSH on two hosts: the other thing that gets killed.

A script appends a line to `effects/JOB` and prints its input, which reaches it by stdin; another task carries the
output on. The hosts are two names of one sshd, whose folder stands in `server`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datatask import (
    FileRepository,
    InProcessSyncTask,
    LogBlobRepository,
    LogMetadataRepository,
    Pipeline,
    ProcessTask,
    ResourceManager,
    Resources,
    Session,
    SSHLinuxManager,
)
from tests.crash.shop import add
from tests.ssh_kit import Server

SCRIPT = "#!/bin/sh\necho {{ job }} >> {{ effects }}/{{ job }}\nsleep 0.05\ncat\n"


async def on_the_loop(job: str, stdout: Any, told: Any) -> None:
    """Measure the output."""
    async with stdout.open(job, "rb") as stream:
        await told.dump(job, {"n": len(await stream.read())})


def lay_out(folder: Path, jobs: int, server: Server) -> None:
    """Make the folder and the inputs."""
    for name in ("in", "effects", "out"):
        (folder / name).mkdir(parents=True)
    (folder / "server").write_text(f"{server.folder}\n{server.port}\n")
    add(folder, jobs)


def remote(folder: Path) -> Pipeline:
    """Return the pipeline over a folder that was laid out."""
    where, port = (folder / "server").read_text().split()
    server = Server(Path(where), int(port))
    each = Resources.parse(6, "6Gi")
    manager = SSHLinuxManager(
        "shop",
        remote_path=folder / "base",
        hosts=[server.host("one", quota=each), server.host("two", quota=each)],
    )
    assert manager.quota is not None
    quota = ResourceManager(manager.quota)
    given = FileRepository(folder / "in", name="in")
    copied = ProcessTask(
        "copy",
        manager,
        quota,
        Resources.parse(1, "1Gi"),
        LogMetadataRepository("copy.pids"),
        SCRIPT.replace("{{ effects }}", str(folder / "effects")),
        stdin=given,
        stdout=FileRepository(folder / "out", name="out"),
        stderr=LogBlobRepository("copy.stderr"),
        done=LogMetadataRepository("copy.done"),
    )
    told = InProcessSyncTask("tell", LogMetadataRepository("tell.done"), func=on_the_loop)
    told.plug(copied, require_success=True)
    told.link("told", LogMetadataRepository("told"), is_output=True)
    return Pipeline([copied, told], Session(), [quota], log=folder / "log.db", name="shop")
