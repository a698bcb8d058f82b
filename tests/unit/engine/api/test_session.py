"""Sessions: open in order, close in reverse, and say what is wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from datatask import (
    Session,
)
from datatask.schema.errors import CallerError


async def test_a_session_opens_in_order_and_closes_in_reverse() -> None:
    """Accessors give the values while it is open."""
    said: list[str] = []
    session = Session()

    @session.resource
    async def one() -> AsyncIterator[int]:
        said.append("open one")
        yield 1
        said.append("close one")

    @session.resource
    async def two() -> AsyncIterator[int]:
        said.append(f"open two, one is {one()}")
        yield 2
        said.append("close two")

    with pytest.raises(CallerError, match="Session is not open"):
        one()
    async with session:
        assert (one(), two()) == (1, 2)
    assert said == ["open one", "open two, one is 1", "close two", "close one"]
    with pytest.raises(CallerError):
        one()
    async with session:
        with pytest.raises(CallerError, match="open already"):
            await session.open()
    assert said[4:] == said[:4]


async def test_a_session_unwinds_when_a_resource_fails() -> None:
    """What was open is closed; the error is the failing one's."""
    said: list[str] = []
    session = Session()

    @session.resource
    async def good() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            said.append("closed")

    @session.resource
    async def bad() -> AsyncIterator[int]:
        raise OSError("no connection")
        yield 2

    with pytest.raises(OSError, match="no connection"):
        await session.open()
    assert said == ["closed"]


async def test_a_session_names_what_is_wrong_with_a_resource() -> None:
    """Two of one name, none or two yields."""

    async def twice() -> AsyncIterator[int]:
        yield 1
        yield 2

    async def never() -> AsyncIterator[int]:
        for number in range(0):
            yield number

    session = Session()
    session.resource(never)
    with pytest.raises(CallerError, match="no value"):
        await session.open()
    session = Session()
    session.resource(twice)
    with pytest.raises(CallerError, match="two resources of this session are named twice"):
        session.resource(twice)
    await session.open()
    with pytest.raises(CallerError, match="more than one value"):
        await session.close()


async def test_a_resource_that_is_no_async_generator_is_refused_by_name() -> None:
    async def connection() -> int:
        return 1

    for maker, given in ((connection, "coroutine"), (asynccontextmanager(aiter_once), "ContextManager")):
        session = Session()
        session.resource(maker)  # type: ignore[arg-type]
        with pytest.raises(CallerError, match=f"resource {maker.__name__} is no async generator.*{given}"):
            await session.open()


async def aiter_once() -> AsyncIterator[int]:
    yield 1
