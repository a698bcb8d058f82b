"""Who holds a log: the lease's pid and the header's words about it, put together."""

from __future__ import annotations

from pathlib import Path

from datatask.adapters.log.lease import Lease, held, probe
from datatask.adapters.log.reader import LogReader
from datatask.schema.errors import DatataskError, LeaseHeldError


def take_lease(log: Path) -> Lease:
    """Take the lease, or raise `LeaseHeldError` with the holder's host and pid."""
    try:
        return Lease(log)
    except LeaseHeldError as error:
        holder = lease_holder(log)
        if holder is None:
            raise
        raise held(log, holder[0], holder[1]) from error


def lease_holder(log: Path) -> tuple[str, int, int] | None:
    """Return (host, pid, epoch) of the engine that is alive on a log, or None; never takes the lease."""
    pid = probe(log)
    if pid is None:
        return None
    try:
        with LogReader(log) as reader:
            header = reader.header
    except DatataskError:
        return "", pid, 0  # it is being made, or is damaged: whoever opens it will be told
    # A lock from another pid namespace has no pid here; the holder wrote down its own.
    return (header.host, header.pid, header.epoch) if pid in (header.pid, 0) else ("", pid, header.epoch)
