"""What a log says about itself before any event is read: the `meta` table as a value, and whether we may use it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from datatask.adapters.log.faults import damaged
from datatask.schema.errors import FutureLogError, OtherPipelineError
from datatask.schema.version import FORMAT, META_KEYS


class Header(NamedTuple):
    """One field a key of `META_KEYS`."""

    format: int
    may_read: int
    may_write: int
    written_by: str
    uuid: str
    pipeline: str
    epoch: int
    host: str
    pid: int
    started: int
    base: int
    base_chain: bytes


_KINDS = get_type_hints(Header)


def parse_header(rows: Iterable[Sequence[Any]], path: Path) -> Header:
    """Return the header in these rows of `meta`; refuse a log that only newer versions can read."""
    found = {key: value for key, value in rows if key in META_KEYS}
    missing = META_KEYS.keys() - found.keys()
    for key, value in found.items():
        if type(value) is not _KINDS[key]:
            raise damaged(f"the header's {key} is {value!r:.50}, no {_KINDS[key].__name__}", path)
    if "may_read" not in missing and found["may_read"] > FORMAT:
        raise _future(found["may_read"], path, "read")
    if missing:
        raise damaged(f"the header lacks {', '.join(sorted(missing))}", path)
    return Header(**found)


def check_may_write(header: Header, pipeline: str, path: Path) -> None:
    """Raise unless an engine of this version, for this pipeline, may append to the log."""
    if header.may_write > FORMAT:
        raise _future(header.may_write, path, "append to")
    if header.pipeline != pipeline:
        raise OtherPipelineError(
            f"this log belongs to the pipeline {header.pipeline!r}, not to {pipeline!r}",
            where=str(path),
            remedy="name another log (--log), or give the pipeline its old name",
        )


def _future(needed: int, path: Path, verb: str) -> FutureLogError:
    return FutureLogError(
        f"to {verb} this log takes storage format {needed}, this version knows {FORMAT}",
        where=str(path),
        remedy="use the datatask version that wrote it, or a newer one",
    )
