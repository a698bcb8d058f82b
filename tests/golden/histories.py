"""Small logs as this version writes them, for every later version to read: `python -m tests.golden.histories`.

Each folder under logs/ holds a log with its sidecars and `answers.json`: what this version answers to the questions
of `tests.golden.answers`. A log that is there is never written again; the lives below are kept to say what is in them.
Names of hosts, people and processes are invented, so that nothing of a real machine is in a file that stays.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
import socket
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from datatask import (
    InProcessSyncTask,
    LocalLinuxManager,
    LogBlobRepository,
    LogMetadataRepository,
    MapRepository,
    Pipeline,
    ProcessTask,
    RelatedItemRepository,
    ResourceManager,
    Resources,
    Retry,
    Session,
    YamlMetadataFileRepository,
)
from datatask.schema import messages as r

FOLDER = Path(__file__).parent / "logs"
PERSON = "ada@lab: datatask"
SECONDS = 60


class Asking:
    """Requests of an invented person, with ids that count up."""

    def __init__(self, pipe: Pipeline) -> None:
        self.pipe = pipe
        self.number = 0

    async def __call__(self, request: type[r.Request], verb: str, reason: str, **fields: Any) -> None:
        self.number += 1
        id = f"00000000-0000-4000-8000-{self.number:012d}"
        asked = request(id=id, actor=f"{PERSON} {verb}", reason=reason, **fields)
        reply = await self.pipe.request(asked)  # type: ignore[arg-type]
        assert reply.refusal is None, reply


def stages(log: Path) -> Pipeline:
    """Return three stages: a filter, a priority, a quota with a window, retries, and a translation at the end."""
    attempts: dict[str, int] = {}
    source = LogMetadataRepository("photos")
    owners = LogMetadataRepository("owners")
    sizes = LogMetadataRepository("sizes")
    wide = MapRepository(source, lambda info: info, filt=lambda job: not job.endswith("-tiny"), name="wide")

    measure = InProcessSyncTask("measure", LogMetadataRepository("measure.done"), retry=Retry(2, 0.01))
    measure.link("photo", wide, is_input=True)
    measure.link("size", sizes, is_output=True)

    @measure
    async def _measure(job: str, photo: Any, size: Any) -> None:
        attempts[job] = attempts.get(job, 0) + 1
        if job == "p3" or (job == "p2" and attempts[job] == 1):
            raise ValueError(f"{job} is upside down")
        await size.dump(job, (await photo.info(job))["w"] * 2)

    resize = InProcessSyncTask("resize", LogMetadataRepository("resize.done"))
    resize.link("size", sizes, is_input=True)
    thumbs = LogBlobRepository("thumbs")
    resize.link("thumb", thumbs, is_output=True)

    @resize
    async def _resize(job: str, size: Any, thumb: Any) -> None:
        async with await thumb.open(job, "wb") as stream:
            await stream.write(b"x" * (await size.info(job)))

    tell = InProcessSyncTask("tell", LogMetadataRepository("tell.done"))
    tell.link("photo", source, is_input=True)
    tell.link("thumb", RelatedItemRepository(thumbs, owners, name="thumb_of"), required_for_start=True)

    @tell
    async def _tell(job: str, photo: Any) -> None:
        return None

    def priority(task: str, job: str) -> float:
        return float(job[1:2])

    return Pipeline([measure, resize, tell], Session(), [], priority, log=log, name="photos")


async def write_stages(folder: Path) -> None:
    """A run with a failure, a retry and a success; then a person pauses, injects, retries, cancels and deletes."""
    async with stages(folder / "log.db") as pipe:
        ask = Asking(pipe)
        for job, width in (("p1", 10), ("p2", 20), ("p3", 30), ("p4-tiny", 1)):
            await pipe.put("photos", job, {"w": width})
        await pipe.put("owners", "p1", "p2")
        await pipe.run(timeout=SECONDS)
        await ask(r.PauseTask, "pause resize", "the disk is nearly full", task="resize")
        item = r.Item(job="p5", value=b'{"w":50}')  # type: ignore[arg-type]
        await ask(r.PutValues, "inject photos p5", "sent by mail", repository="photos", items=(item,))
        await ask(r.RetryJobs, "retry measure p3", "turned by hand", task="measure", jobs=("p3",))
        await pipe.run(timeout=SECONDS)
        await ask(r.CancelJobs, "cancel resize p5", "not wanted", task="resize", jobs=("p5",))
        await ask(r.ResumeTask, "resume resize", "", task="resize")
        await ask(r.DeleteValues, "rm photos p4-tiny", "too small", repository="photos", jobs=("p4-tiny",))
        await pipe.run(timeout=SECONDS)


def shop(folder: Path, log: Path) -> Pipeline:
    """Return two processes over YAML files that an engine may leave running."""
    session = Session()

    @session.resource
    async def manager() -> Any:
        yield LocalLinuxManager("shop", folder / "base")

    quota = ResourceManager(Resources.parse(1, "1Gi", launches=100), name="desk", window=3600)
    orders = YamlMetadataFileRepository(folder / "orders", name="orders")
    bills = YamlMetadataFileRepository(folder / "bills", name="bills")
    bill = ProcessTask(
        "bill",
        manager,
        quota,
        Resources.parse(1, "1Gi"),
        LogMetadataRepository("bill.pids"),
        "#!/bin/sh\nsleep {{ order.seconds }}\ntest {{ order.good }} = yes\necho billed\n",
        stdout=LogBlobRepository("bill.stdout"),
        done=LogMetadataRepository("bill.done"),
    )
    bill.link("order", orders, is_input=True)
    sent = InProcessSyncTask("send", LogMetadataRepository("send.done"))
    sent.link("billed", bill.succeeded, required_for_start=True)
    sent.link("bill", bills, is_output=True)

    @sent
    async def _send(job: str, bill: Any) -> None:
        await bill.dump(job, {"sent": True})

    return Pipeline([bill, sent], session, [quota], log=log, name="shop")


async def write_crashed(folder: Path) -> None:
    """An engine that dies with a process running, one that adopts it, and a log left as the second one's death left it."""
    place = Path("/var/tmp/shop")  # a path that says nothing: it is in the definition
    shutil.rmtree(place, ignore_errors=True)
    try:
        (place / "orders").mkdir(parents=True)
        (place / "bills").mkdir()
        for job, seconds, good in (("o1", 0, "yes"), ("o2", 0, "no"), ("o3", 1, "yes")):
            (place / "orders" / f"{job}.yaml").write_text(f"seconds: {seconds}\ngood: '{good}'\n")
        for lifetime in (0.7, 0.8):
            child = os.fork()
            if not child:
                asyncio.run(_until_killed(place, folder / "log.db", lifetime))
            await asyncio.to_thread(os.waitpid, child, 0)
    finally:
        shutil.rmtree(place)


async def _until_killed(place: Path, log: Path, seconds: float) -> None:
    asyncio.get_running_loop().call_later(seconds, os._exit, 9)
    async with shop(place, log) as pipe:
        limits = dict(pipe.state.quotas["desk"].limits)
        await Asking(pipe)(
            r.ChangeQuota, "quota desk", "it is night", quota="desk", limits=limits, launches=50
        )
        await pipe.run(forever=True)


async def write_archived(folder: Path) -> None:
    """A log whose beginning was moved into an archive, and of which payloads were removed, there and in what was carried."""
    from datatask.adapters.history.maintenance import redact
    from datatask.adapters.history.states import fold
    from datatask.adapters.log.maintenance.cut import Who, cut
    from datatask.adapters.log.reader import LogReader

    path = folder / "log.db"
    await write_stages(folder)
    with LogReader(path) as reader:
        state = fold(reader, reader.end_of_batch(60))
    cut(path, state, Who(f"{PERSON} log-archive", "the disk is small", state.at + 3600 * 10**9, "0.1.0"))
    with LogReader(path) as reader:
        asked = "SELECT position FROM values_now WHERE repository = 'photos' AND job = 'p1'"
        ((photo,),) = reader.query(asked).rows
    redact(path, [photo], actor=f"{PERSON} redact", reason="p1 does not want to be seen")
    shutil.rmtree(folder / "log.db.checkpoints", ignore_errors=True)


LIVES: dict[str, Callable[[Path], Coroutine[Any, Any, None]]] = {
    "stages": write_stages,
    "crashed": write_crashed,
    "archived": write_archived,
}


def main() -> None:
    """Write the logs that are missing, and their answers."""
    from tests.golden.answers import write

    os.environ["TZ"] = "UTC"
    socket.gethostname = lambda: "lab"
    getpass.getuser = lambda: "ada"
    traceback.format_exception = lambda *_, **__: ["Traceback (most recent call last):\n", "  …\n"]
    for name, life in LIVES.items():
        folder = FOLDER / name
        if folder.exists():
            continue
        folder.mkdir(parents=True)
        try:
            asyncio.run(life(folder))
            write(folder)
            for rest in ("log.db-lease", "log.db-shm"):
                (folder / rest).unlink(missing_ok=True)
        except BaseException:
            shutil.rmtree(folder)
            raise


if __name__ == "__main__":
    main()
