"""A function in a pod: it is called with its repositories, and its result travels at the end of the pod's log.

In: the run and the job's values from the engine's repositories, in the pod's environment. Out: a trailer on standard output,
`#datatask-result <identity> <digest> <length>`, base64 of compressed JSON in lines, `#datatask-end`; the engine takes it
off the log and records it. Both are bounded. Repositories with a store of their own are used directly; the pod never
touches the log and decides nothing (`functions.detached`). The second half of this module is shared by both sides.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import inspect
import os
import re
import sys
import time
import zlib
from collections.abc import Mapping
from typing import Any

import msgspec

from datatask.adapters.execute.functions.detached import (
    AwayBinding,
    AwayBlobs,
    Input,
    Message,
    travelling,
    values_of,
)
from datatask.adapters.execute.functions.in_process import with_values
from datatask.adapters.spools import Spool
from datatask.adapters.trust import TRUST
from datatask.engine.api.repositories import Repository
from datatask.engine.api.session import Session
from datatask.engine.run_context import RunContext, current_run
from datatask.engine.runtime.calls import error_detail, error_info
from datatask.schema.errors import CallerError
from datatask.schema.events import ErrorInfo


def is_worker(task: str, job: str) -> bool:
    """Whether this process is in the pod of a run of this job, made by a `KubeFunctionTask`."""
    named = os.environ.get("DATATASK_TASK"), os.environ.get("DATATASK_JOB")
    return "DATATASK_INPUTS" in os.environ and named == (task, job)


def work(task: Any, objects: list[tuple[Repository, str]], session: Session) -> int:
    """Call the task's function for the run of the environment; return the exit code, 1 when it raised."""
    identity = os.environ["DATATASK_RUN"]
    inputs = read_inputs(os.environ["DATATASK_INPUTS"])
    os.environ.setdefault(
        TRUST, "all"
    )  # a pod has no other users, and its volumes are open to all as they come
    spool = Spool()
    try:
        blobs = AwayBlobs(lambda: spool.folder)
        binding = AwayBinding(inputs, os.environ["DATATASK_JOB"], blobs, "a pod")
        for leaf, key in objects:
            leaf.bind(key, binding)
            if leaf.medium == "mirror":
                vars(leaf)["_away"] = True  # its values came along; the dict here is another one
        message = asyncio.run(_done(task, session, blobs))
        return _told(message, identity)
    finally:
        spool.close()


async def _done(task: Any, session: Session, blobs: AwayBlobs) -> Message:
    job, run = os.environ["DATATASK_JOB"], int(os.environ["DATATASK_RUN"].rpartition(".")[2])
    context = RunContext(run, task.name, job, task.conflicts)
    context.defers = False  # the engine may see other inodes of a shared folder, or another mount
    began = time.time_ns()  # noqa: TID251 - the runner's clock
    error: ErrorInfo | None = None
    detail: dict[str, str] | None = None
    try:
        wants_job, names = task.parameters()
        arguments = {name: task.links[name].repo for name in names} | ({"job": job} if wants_job else {})
        async with session:
            current_run.set(context)
            result = with_values(task.func, task.given)(**arguments)
            if inspect.isawaitable(result):
                await result
            writes = await context.settle()
    except BaseException as caught:
        writes = context.fence()
        error = error_info(caught, skip=1)
        detail = error_detail(caught, error)
    ended = time.time_ns()  # noqa: TID251 - the runner's clock
    return Message(error, detail, began, ended, travelling(writes, blobs), context.reads)


def _told(message: Message, identity: str) -> int:
    text = base64.b64encode(zlib.compress(msgspec.json.encode(message)))
    if len(text) > RESULT_BYTES_MAX:
        error = ErrorInfo(
            type="TooLarge",
            message=f"what the function wrote takes {len(text)} bytes, and {RESULT_BYTES_MAX} can travel back; "
            "write large results to a store that the engine and the pod both reach",
        )
        message = Message(error, None, message.started_at, message.ended_at, (), message.reads)
        text = base64.b64encode(zlib.compress(msgspec.json.encode(message)))
    lines = b"\n".join(text[at : at + LINE] for at in range(0, len(text), LINE))
    head = f"\n#datatask-result {identity} {hashlib.sha256(text).hexdigest()} {len(text)}\n".encode()
    if message.error is not None:
        sys.stderr.write(message.error.traceback or f"{message.error.type}: {message.error.message}\n")
    sys.stderr.flush()
    sys.stdout.flush()
    rest = memoryview(head + lines + b"\n#datatask-end\n")
    while rest:
        rest = rest[os.write(1, rest) :]
    return 0 if message.error is None else 1


INPUTS_BYTES_MAX = 96 * 1024
RESULT_BYTES_MAX = 1 << 20
LINE = 4096
_FOUND = re.compile(rb"\n?#datatask-result (\S+) ([0-9a-f]{64}) (\d+)\n([A-Za-z0-9+/=\n]*)#datatask-end\n")


async def inputs_of(repositories: Mapping[str, Repository], job: str, where: str) -> str:
    """Return the job's own values in the repositories that live in the engine, as text; `CallerError` where it is too much."""
    found = await values_of(repositories, job)
    text = base64.b64encode(zlib.compress(msgspec.json.encode(found))).decode()
    if len(text) > INPUTS_BYTES_MAX:
        raise CallerError(
            f"its inputs take {len(text)} bytes, and {INPUTS_BYTES_MAX} can travel to a pod",
            where=where,
            remedy="keep large inputs in a store that the pod reaches by itself",
        )
    return text


def find_result(log_end: bytes, identity: str) -> tuple[Message, int] | None:
    """Return the message at the end of a container's log, and how many bytes it and its frame take; None for none."""
    last: re.Match[bytes] | None = None
    for match in _FOUND.finditer(log_end):
        last = match
    if last is None or last[1].decode("ascii", "replace") != identity:
        return None
    text = last[4].replace(b"\n", b"")
    if len(text) != int(last[3]) or hashlib.sha256(text).hexdigest().encode() != last[2]:
        return None
    plain = zlib.decompressobj().decompress(base64.b64decode(text), RESULT_BYTES_MAX * 64)
    return msgspec.json.decode(plain, type=Message), len(log_end) - last.start()


def read_inputs(text: str) -> dict[str, Input]:
    """Return what `inputs_of` has made a text of."""
    return msgspec.json.decode(zlib.decompress(base64.b64decode(text)), type=dict[str, Input])
