"""The tags of an image as a set of jobs: over a client of the user's, as in pydatatask, or by its address.

In: a function that gives a docker_registry_client_async client, whose logins and certificates are used, with domain and repository; or
`docker://host/name`. Out: the tags as jobs, and their names for templates. Images are pushed by what runs; nothing is written here.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from datatask.adapters.store.places import place
from datatask.adapters.store.registry import Registry
from datatask.adapters.store.registry_access import login
from datatask.adapters.store.remote import POLL_SECONDS, RemoteRepository, check_poll
from datatask.engine.api.repositories import job_getter, told_invalid
from datatask.engine.ports import Change, Listed
from datatask.schema.definition import Record
from datatask.schema.errors import FUNCTION, TEXT, InvalidValueError, TemporaryError, expect
from datatask.schema.messages import Write
from datatask.schema.values import check_job, is_job

T = TypeVar("T")

PUSHED = "-"
"""The version of every tag: asking for the digest of each would be a request per tag."""
PAGES_MAX = 1_000_000
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:\d{1,5})?|\[[0-9A-Fa-f:]+\](:\d{1,5})?")
_NAME = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")


@dataclass(frozen=True)
class TagStore:
    """The store port on the tags of an image."""

    lent: Callable[[], Awaitable[Registry]]
    where: str
    poll_seconds: float = POLL_SECONDS

    async def _call(self, call: Callable[[Registry], T]) -> T:
        registry = await self.lent()
        return await asyncio.to_thread(call, registry)

    async def list(self) -> AsyncIterator[Listed]:
        """Yield all tags, page by page; raises where a page cannot be had."""
        url = ""
        for _ in range(PAGES_MAX):
            tags, url = await self._call(partial(Registry.page, url=url))
            for tag in tags:
                if is_job(tag):
                    yield Listed(tag, PUSHED)
                else:
                    told_invalid(self.where, tag)
            if not url:
                return
        raise TemporaryError(
            f"more than {PAGES_MAX} pages of tags", where=self.where, remedy="it is tried again"
        )

    async def version(self, job: str) -> str | None:
        """Return the version of a tag, or None."""
        check_job(job, where=self.where)
        return PUSHED if await self._call(lambda registry: registry.has(job)) else None

    async def put(self, write: Write) -> str | None:
        """Refuse: an image is no value."""
        raise InvalidValueError(
            "images are pushed by what runs, not written",
            where=f"{self.where} {check_job(write.job, where=self.where)}",
            remedy="push {{ image.withdomain }} in the task's template",
        )

    async def delete(self, job: str) -> None:
        """Take a tag away, and no other one; absent is fine."""
        check_job(job, where=self.where)
        await self._call(lambda registry: registry.delete(job))

    def identity(self) -> str:
        """Return the image's name: a registry makes it with its first tag."""
        return self.where

    def watch(self, tell: Callable[[Change], None]) -> Callable[[], None] | None:
        """A registry tells nothing; it is listed."""
        return None


class DockerRepository(RemoteRepository):
    """The tags of an image in a registry, listed every `poll_seconds`; a tag that is pushed again is no news.

    `DockerRepository(registry, domain, repository)` with a function that gives the client, or `DockerRepository("docker://host/name")`
    with the logins of `docker login`. Loopback addresses are spoken to without TLS, as Docker does.
    """

    def __init__(
        self,
        registry: Callable[[], Any] | str,
        domain: str | None = None,
        repository: str | None = None,
        *,
        poll_seconds: float = POLL_SECONDS,
        name: str | None = None,
        was: str | None = None,
        record: Record | None = None,
    ) -> None:
        super().__init__(name=name, was=was, record=record)
        kind = type(self).__name__
        expect(self, TEXT, optional=True, domain=domain, repository=repository)
        if isinstance(registry, str):
            at = place(registry, ("docker",), kind)
            if domain is not None or repository is not None:
                raise InvalidValueError(
                    "the address names the domain and the repository",
                    where=kind,
                    remedy="leave out domain and repository",
                )
            domain, repository = at.host, at.path
        else:
            expect(
                self,
                FUNCTION,
                "pass a function that gives a client, or docker://host/name",
                registry=registry,
            )
        if not _HOST.fullmatch(domain or ""):
            raise InvalidValueError(
                f"domain is {domain!r:.80}, which is no host", where=kind, remedy="write host or host:port"
            )
        if not _NAME.fullmatch(repository or ""):
            raise InvalidValueError(
                f"repository is {repository!r:.80}, which is no image's name",
                where=kind,
                remedy="use small letters, digits, '.', '_', '-' and '/', without a tag",
            )
        self._registry = registry
        self.domain, self.repository = str(domain), str(repository)
        self.poll_seconds = check_poll(poll_seconds, self)
        self._made: Registry | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}('docker://{self.domain}/{self.repository}')"

    def locator(self) -> str:
        """Return kind and address."""
        return f"{self.kind}:docker://{self.domain}/{self.repository}"

    @property
    def registry(self) -> Any:
        """The client that the function gives, as in pydatatask."""
        return self._registry() if callable(self._registry) else None

    async def _lend(self) -> Registry:
        if self._made is None:
            client = self.registry
            client = await client if inspect.isawaitable(client) else client
            if client is None:
                self._made = Registry(self.domain, self.repository, login=lambda: login(self.domain))
            else:
                known, context = await _login_of(client, self.domain), _tls_of(client)
                protocol = str(getattr(client, "DEFAULT_PROTOCOL", ""))
                self._made = Registry(
                    self.domain, self.repository, login=lambda: known, protocol=protocol, context=context
                )
        return self._made

    def _own_store(self) -> TagStore:
        return TagStore(self._lend, f"docker://{self.domain}/{self.repository}", self.poll_seconds)

    async def validate(self) -> None:
        """Raise where the tags may not be listed; a registry that is away is tried again later."""
        try:
            await asyncio.to_thread((await self._lend()).page)
        except TemporaryError:
            return

    async def check_input(self, whose: str) -> None:
        """Raise where the tags may not be listed."""
        await self.validate()

    @job_getter
    async def info(self, job: str) -> dict[str, str]:
        """Return the image's names: `withdomain` and `withoutdomain`."""
        check_job(job, where=self)
        name = f"{self.repository}:{job}"
        return {"withdomain": f"{self.domain}/{name}", "withoutdomain": name}

    def __getstate__(self) -> dict[str, Any]:
        """Tokens stay here."""
        return {**super().__getstate__(), "_made": None}


async def _login_of(client: Any, domain: str) -> str:
    """Return the login that a client of docker_registry_client_async has for a domain."""
    ask = getattr(client, "_get_credentials", None)
    if ask is not None:
        return str(await ask(endpoint=domain) or "")
    known = getattr(client, "credentials", None) or {}
    return next((str(found) for pattern, found in known.items() if pattern.fullmatch(domain)), "")


def _tls_of(client: Any) -> ssl.SSLContext | None:
    context = getattr(client, "tcp_connector_kwargs", {}).get("ssl") or getattr(client, "ssl", None)
    return context if isinstance(context, ssl.SSLContext) else None
