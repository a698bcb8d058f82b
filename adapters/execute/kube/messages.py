"""What travels between the engine and a function in a pod: the job's values there, and what the function did back.

In: repositories of the engine's, and the end of a container's log. Out: a text for the pod's environment, and a `Message`. The
message is a trailer on the container's output: `\\n#datatask-result <identity> <digest> <length>\\n`, base64 of compressed JSON in
lines, and `#datatask-end`. Both are bounded. The pod's side is `worker`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import zlib
from collections.abc import Mapping

import msgspec

from datatask.engine.ports import Write
from datatask.engine.repositories import Repository, all_leaves
from datatask.schema.errors import CallerError
from datatask.schema.events import ABSENT, Ending, ErrorInfo

INPUTS_BYTES_MAX = 96 * 1024
RESULT_BYTES_MAX = 1 << 20
IN_ENGINE = ("native", "mirror", "view")
LINE = 4096
_FOUND = re.compile(rb"\n?#datatask-result (\S+) ([0-9a-f]{64}) (\d+)\n([A-Za-z0-9+/=\n]*)#datatask-end\n")


class Input(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job's value in a repository of the engine's; neither of both: the job is not there. `seen` is the log's position then."""

    value: str | None = None
    data: bytes | None = None
    position: int = 0
    member: bool = False
    seen: int = 0


class Written(msgspec.Struct, frozen=True, omit_defaults=True):
    """A write as it travels; `version` says that its store has it already."""

    repository: str
    job: str
    op: str = "put"
    value: str | None = None
    data: bytes | None = None
    version: str | None = None
    over: int | None = None
    over_version: str | None = None
    conflict: str = ""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a function did."""

    error: ErrorInfo | None = None
    detail: dict[str, str] | None = None
    started_at: int = 0
    ended_at: int = 0
    writes: tuple[Written, ...] = ()
    reads: dict[str, int] = {}


async def inputs_of(repositories: Mapping[str, Repository], job: str, where: str) -> str:
    """Return the job's own values in the repositories that live in the engine, as text; `CallerError` where it is too much."""
    found: dict[str, Input] = {}
    for repository in repositories.values():
        for leaf in all_leaves(repository):
            if leaf.medium in IN_ENGINE and leaf._id is not None and leaf.binding is not None:
                found[leaf._id] = await _input(leaf, job)
    text = base64.b64encode(zlib.compress(msgspec.json.encode(found))).decode()
    if len(text) > INPUTS_BYTES_MAX:
        raise CallerError(
            f"its inputs take {len(text)} bytes, and {INPUTS_BYTES_MAX} can travel to a pod",
            where=where,
            remedy="keep large inputs in a store that the pod reaches by itself",
        )
    return text


async def _input(leaf: Repository, job: str) -> Input:
    binding, key = leaf.binding, leaf.id
    assert binding is not None
    seen = binding.position(key)
    if not binding.contains(key, job):
        return Input(seen=seen)
    ref = None if leaf.medium == "view" else await binding.value(key, job)
    if ref is None:
        return Input(member=True, seen=seen)
    if ref.digest is not None and not ref.value:
        path = await asyncio.to_thread(binding.blobs.intact, ref.digest)
        data = await asyncio.to_thread(path.read_bytes)
        return Input(data=data, position=ref.position, member=True, seen=seen)
    return Input(value=as_text(ref.value), position=ref.position, member=True, seen=seen)


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


def writes_of(message: Message) -> tuple[Write, ...]:
    """Return the writes of a message as a runner tells them."""
    return tuple(
        Write(
            repository=one.repository,
            job=one.job,
            op=one.op,
            value=ABSENT if one.value is None else msgspec.Raw(one.value.encode()),
            data=one.data,
            size=None if one.data is None else len(one.data),
            version=one.version,
            over=one.over,
            over_version=one.over_version,
            conflict=one.conflict,
        )
        for one in message.writes
    )


def ending_of(message: Message) -> Ending:
    """Return the function's own end."""
    return Ending(
        outcome="succeeded" if message.error is None else "failed",
        error=message.error,
        detail=message.detail,
        started_at=message.started_at or None,
        ended_at=message.ended_at or None,
        reads=message.reads or None,
    )


def read_inputs(text: str) -> dict[str, Input]:
    """Return what `inputs_of` has made a text of."""
    return msgspec.json.decode(zlib.decompress(base64.b64decode(text)), type=dict[str, Input])


def as_text(value: msgspec.Raw) -> str | None:
    """Return a document as text, None for none."""
    return bytes(value).decode() if value else None
