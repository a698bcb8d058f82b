"""Resources that live as long as the pipeline is open: connections, clients, pools.

`@session.resource` takes an async generator with one `yield` and returns a function without parameters that
gives the yielded value while the session is open. Resources open in the order of their definition and close
in the reverse order; when one fails to open, those that are open already are closed again.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar, cast

from datatask.schema.errors import AlreadyOpenError, CallerError, InvalidValueError, NotOpenError

Resource = TypeVar("Resource")
Generator = AsyncGenerator[Any, None]

log = logging.getLogger("datatask.session")
_UNOPENED: Any = object()


class Session:
    """A set of named resources, opened by the pipeline or with `async with`; once closed, it can be opened again."""

    def __init__(self) -> None:
        self._makers: dict[str, Callable[[], AsyncIterator[Any]]] = {}
        self._values: dict[str, Any] = {}
        self._opened: list[tuple[str, Generator]] = []
        self._is_open = False

    def resource(self, maker: Callable[[], AsyncIterator[Resource]]) -> Callable[[], Resource]:
        """Register an async generator function; return the accessor of what it yields.

        `CallerError` when another resource has the function's name, or the session is open already.
        """
        name = maker.__name__
        if name in self._makers:
            raise InvalidValueError(
                f"two resources of this session are named {name}",
                remedy="give one of the functions another name",
            )
        if self._is_open:
            raise InvalidValueError(
                f"resource {name} comes too late", remedy="define resources before opening"
            )
        self._makers[name] = maker

        def accessor() -> Resource:
            value = self._values.get(name, _UNOPENED)
            if value is _UNOPENED:
                raise NotOpenError(
                    f"Session is not open: resource {name} has no value",
                    remedy="use it inside `async with pipeline` (or `async with session`)",
                )
            return cast(Resource, value)

        accessor.__name__ = name
        accessor.__doc__ = maker.__doc__
        return accessor

    async def open(self) -> None:
        """Open all resources in order; on an error close what is open and raise it."""
        if self._is_open:
            raise AlreadyOpenError(
                "the session is open already", remedy="close it first; it can be opened again"
            )
        self._is_open = True
        try:
            for name, maker in self._makers.items():
                generator = cast(Generator, maker())
                self._values[name] = await _first(name, generator)
                self._opened.append((name, generator))
        except BaseException:
            await self._close_all(quiet=True)
            raise

    async def close(self) -> None:
        """Close all resources, the last opened first; every one is closed, the first error is raised."""
        await self._close_all(quiet=False)

    async def _close_all(self, *, quiet: bool) -> None:
        first: BaseException | None = None
        self._is_open = False
        while self._opened:
            name, generator = self._opened.pop()
            self._values.pop(name, None)
            try:
                await _finish(name, generator)
            except Exception as error:
                log.error("closing resource %s failed", name, exc_info=error)
                first = first or error
        if first is not None and not quiet:
            raise first

    async def __aenter__(self) -> Session:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _first(name: str, generator: Any) -> Any:
    if not isinstance(generator, AsyncIterator):
        if isinstance(generator, Coroutine):
            generator.close()  # it was made to be awaited, and is not
        raise InvalidValueError(
            f"resource {name} is no async generator, but gives a {type(generator).__name__}",
            remedy="write `async def` with one `yield`, and no decorator between it and @session.resource",
        )
    try:
        return await anext(generator)
    except StopAsyncIteration:
        raise _wrong_yields(name, "no value") from None


async def _finish(name: str, generator: Generator) -> None:
    try:
        await anext(generator)
    except StopAsyncIteration:
        return
    await generator.aclose()
    raise _wrong_yields(name, "more than one value")


def _wrong_yields(name: str, what: str) -> CallerError:
    return InvalidValueError(
        f"resource {name} yields {what}", remedy="yield exactly once: what comes after is the closing"
    )
