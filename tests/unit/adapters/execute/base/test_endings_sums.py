"""Checksums that a target's `cksum` or `sha256sum` printed are those that are computed here."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from datatask.adapters.execute.base import endings


def printed(program: str, content: bytes) -> str:
    done = subprocess.run([program], input=content, capture_output=True, check=True)
    return done.stdout.decode().split()[0]


@pytest.mark.parametrize("program", ["cksum", "sha256sum"])
@pytest.mark.parametrize("size", [0, 1, 255, 256, 70_000])
def test_what_is_printed_fits_these_bytes_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, size: int
) -> None:
    """Of a file, too, and what has been appended since counts for nothing."""
    monkeypatch.setattr(endings, "CHUNK_BYTES", 1000)
    content = random.Random(size).randbytes(size)
    file = tmp_path / "file"
    file.write_bytes(content + b"more")
    told = printed(program, content)
    assert endings.fits(told, content, size)
    assert endings.fits(told, content + b"more", size)
    assert endings.fits(told, file, size)
    if size:
        other = bytes([content[0] ^ 1]) + content[1:]
        file.write_bytes(other)
        assert not endings.fits(told, other, size)
        assert not endings.fits(told, file, size)


def test_without_a_checksum_nothing_is_said_against_any_bytes() -> None:
    assert endings.fits("", b"some", 4)
