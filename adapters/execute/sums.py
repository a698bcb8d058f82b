"""Checksums of outputs: made on their machine when the process ended, and here of what was fetched.

In: a checksum as `cksum` of POSIX, or `sha256sum` where there is none, prints it, and bytes or a file. Out: whether it is
theirs. POSIX's CRC is not zlib's: its bits go the other way round, and the length follows the content. Blocking.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path

CHUNK_BYTES = 1 << 20
_BEGIN = 0xFFFFFFFF
_SHA256_DIGITS = 64
_TURNED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def fits(printed: str, content: bytes | Path, size: int) -> bool:
    """Whether the first so many bytes have this checksum; true of all where none was made."""
    if not printed:
        return True
    if len(printed) == _SHA256_DIGITS:
        digest = hashlib.sha256()
        for data in _parts(content, size):
            digest.update(data)
        return digest.hexdigest() == printed
    crc = _BEGIN
    for data in _parts(content, size):
        crc = _more(data, crc)
    length = size.to_bytes((size.bit_length() + 7) // 8, "little")
    return f"{_more(length, crc):032b}"[::-1] == f"{int(printed):032b}"


def _parts(content: bytes | Path, size: int) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content[:size]
        return
    with content.open("rb") as file:
        while size and (data := file.read(min(size, CHUNK_BYTES))):
            yield data
            size -= len(data)


def _more(data: bytes, crc: int) -> int:
    return zlib.crc32(data.translate(_TURNED), crc)
