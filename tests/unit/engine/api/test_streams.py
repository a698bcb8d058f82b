"""Streams: text over bytes, copies, and what closing and raising do."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from datatask.adapters.store.inprocess import InProcessBlobRepository
from datatask.engine.api.streams import (
    AReadText,
    AWriteText,
    BytesReader,
    BytesWriter,
    async_copyfile,
    async_copyfile_str,
    roundrobin,
)
from datatask.schema.errors import CallerError

TEXT = "aé€𝄞" * 50


@pytest.mark.parametrize("chunksize", [1, 3, 7, 4096])
@pytest.mark.parametrize("n", [1, 2, 5, 1000])
async def test_text_is_read_in_pieces_that_add_up(chunksize: int, n: int) -> None:
    stream = AReadText(BytesReader(TEXT.encode()), chunksize=chunksize)
    pieces = []
    while piece := await stream.read(n):
        assert len(piece) <= n
        pieces.append(piece)
    assert "".join(pieces) == TEXT


async def test_reading_a_part_and_then_the_rest() -> None:
    stream = AReadText(BytesReader(TEXT.encode()))
    assert (await stream.read(3), await stream.read(), await stream.read(-1)) == (TEXT[:3], TEXT[3:], "")


async def test_text_that_ends_within_a_character_is_an_error() -> None:
    with pytest.raises(UnicodeDecodeError):
        await AReadText(BytesReader("é".encode()[:1])).read()


async def test_bytes_and_text_are_copied_in_blocks() -> None:
    repository = InProcessBlobRepository({"a": TEXT.encode()})
    async with repository.open("a", "rb") as src, repository.open("b", "wb") as dst:
        await async_copyfile(src, dst, 7)
    async with repository.open("a", "r") as text, repository.open("c", "w") as target:
        await async_copyfile_str(text, target, blocksize=7)
    assert repository.data == dict.fromkeys("abc", TEXT.encode())


async def test_a_shorter_value_replaces_the_longer_one_whole() -> None:
    repository = InProcessBlobRepository({"a": b"a long value"})
    async with await repository.open("a", "wb") as stream:
        assert await stream.write(b"short") == 5
    assert repository.data == {"a": b"short"}


async def test_reading_an_absent_job_leaves_it_absent() -> None:
    repository = InProcessBlobRepository()
    async with repository.open("a") as stream:
        assert await stream.read() == ""
    assert repository.data == {}


async def test_a_closed_writer_takes_no_more_and_commits_once() -> None:
    committed: list[bytes] = []

    async def commit(data: bytes) -> None:
        committed.append(data)

    stream = AWriteText(BytesWriter(commit))
    await stream.write("x")
    await stream.close()
    await stream.close()
    with pytest.raises(CallerError, match="closed"):
        await stream.write("y")
    assert committed == [b"x"]


def test_an_unknown_mode_is_refused_at_once() -> None:
    with pytest.raises(CallerError, match="mode"):
        InProcessBlobRepository().open("a", "a")  # type: ignore[arg-type]


async def test_roundrobin_takes_one_of_each_in_turn() -> None:
    async def letters(word: str) -> AsyncIterator[str]:
        for letter in word:
            yield letter

    assert "".join([letter async for letter in roundrobin(map(letters, ["ABC", "D", "EF"]))]) == "ADEBFC"
