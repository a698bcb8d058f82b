"""Which blobs a log names: by its events, its archives and the requests that wait for an engine.

In: a reader and the folders beside the log. Out: digests. Archives and requests are searched for whatever looks like
a SHA-256, whatever their form: a blob too many is kept, never one too few. For backup, `log-compact` and `redact`.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Set
from pathlib import Path

import msgspec

from datatask.adapters.log.faults import damaged, mapped
from datatask.adapters.log.locate import archives_path, inbox_path
from datatask.adapters.log.reader import LogReader

_DIGEST = re.compile(rb"[0-9a-f]{64}")
_SPAN = re.compile(r"(\d+)-(\d+)\D.*")
_PAGE = 50_000
_CHUNK = 1 << 20


class _Named(msgspec.Struct):
    digest: str | None = None


_decode = msgspec.json.Decoder(_Named).decode


def archives_of(path: Path) -> dict[Path, tuple[int, int] | None]:
    """Return what lies in a log's folder of archives, with the first and last position that a name tells."""
    folder = archives_path(path)
    if not folder.is_dir():
        return {}
    with mapped(folder):
        files = sorted(file for file in folder.rglob("*") if file.is_file())
    found = {file: _SPAN.fullmatch(file.name) for file in files}
    return {file: None if told is None else (int(told[1]), int(told[2])) for file, told in found.items()}


def named_by_events(reader: LogReader, *, only: Set[int] | None = None) -> set[str]:
    """Return the digests that values and intents name, of all or `only` of those at some positions."""
    return {digest for position, digest in _naming(reader) if only is None or position in only}


def _naming(reader: LogReader) -> Iterator[tuple[int, str]]:
    ((first, last),) = reader.query("SELECT min(position), max(position) FROM log").rows
    after = (first or 1) - 1  # values that are still there may be kept from before a cut
    last = last or 0
    while after < last:
        end = min(after + _PAGE, last)
        answer = reader.query(
            "SELECT position, payload FROM log WHERE position > ? AND position <= ? AND kind IN"
            " (SELECT id FROM names WHERE text IN ('ValuePut', 'StoreWriteIntended'))"
            " AND instr(payload, '\"digest\":')",
            (after, end),
            timeout_seconds=600.0,
        )
        for position, payload in answer.rows:
            try:
                digest = _decode(payload).digest
            except msgspec.DecodeError as error:
                raise damaged(f"the payload does not decode: {error}", reader.path, position) from error
            if digest is not None:
                yield position, digest
        after = end


def named_by_files(path: Path, *, archives: bool = True) -> set[str]:
    """Return everything in the log's archives and in requests that wait which could be a blob's digest."""
    inbox = inbox_path(path)
    requests = sorted(inbox.glob("*.json")) if inbox.is_dir() else []
    found: set[str] = set()
    for file in [*(archives_of(path) if archives else ()), *requests]:
        found |= _digests_in(file)
    return found


def _digests_in(file: Path) -> set[str]:
    found: set[str] = set()
    rest = b""
    try:
        with open(file, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(file, "rb") if packed else open(file, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                text = rest + chunk
                found.update(match.decode() for match in _DIGEST.findall(text))
                rest = text[-128:]
    except FileNotFoundError:
        return set()  # a request that was answered just now
    except (zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise damaged(f"the archive cannot be read: {error}", file) from error
    return found
