"""Addresses of stores that are elsewhere, read in one place: `s3://`, `az://`, `mongodb://`, `docker://`.

In: an address as text. Out: a `Place`: scheme, host, path. An address with a password, or with anything else that is secret or
unknown in it, is refused, and no message repeats it: credentials come from the environment and from the cloud's own chain.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple
from urllib.parse import urlsplit

from datatask.schema.errors import TEXT, InvalidValueError, NotInstalledError, expect

_HIDDEN = re.compile(r"(?<=//)[^/@]*@|[?#].*$")
_SHAPES = {
    "s3": "s3://bucket/prefix",
    "az": "az://container/prefix",
    "mongodb": "mongodb://host/database.collection",
    "docker": "docker://host/name",
}
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}[A-Za-z0-9]")
BUCKETS = ("s3", "az")
_ODD = frozenset(("", ".", ".."))


class Place(NamedTuple):
    """Where a store is. `path` has no `/` at its ends; `user` is a name without a password, or empty."""

    scheme: str
    host: str
    path: str = ""
    user: str = ""

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        return f"{self.scheme}://{user}{self.host}" + (f"/{self.path}" if self.path else "")


def shown(url: str) -> str:
    """Return an address as messages may show it: without user, password and query."""
    return _HIDDEN.sub("", url)


def place(url: str, schemes: Sequence[str], whose: str) -> Place:
    """Read an address with one of `schemes`; `InvalidValueError` where it is none, `whose` names the class for it."""
    expect(whose, TEXT, url=url)
    shapes = " or ".join(_SHAPES[scheme] for scheme in schemes)

    def refused(what: str, remedy: str = f"write {shapes}") -> InvalidValueError:
        return InvalidValueError(f"url is {shown(url)!r:.120}: {what}", where=whose, remedy=remedy)

    try:
        parts = urlsplit(url)
        secret = parts.password is not None
    except ValueError:
        raise refused("the address cannot be read") from None
    if secret:
        raise refused(
            "the address has a password in it",
            "take it out: credentials come from the environment; and change it, as others may have seen it",
        )
    if parts.scheme not in schemes:
        raise refused("the address is of another kind")
    if parts.query or parts.fragment:
        raise refused(
            "the address has a query", "pass options by name; credentials come from the environment"
        )
    if not parts.netloc:
        raise refused("the address names no host")
    path = parts.path.strip("/")
    if path and not _ODD.isdisjoint(path.split("/")):
        raise refused("the path has an empty part, '.' or '..' in it")
    host, user = parts.netloc.rpartition("@")[2], parts.username or ""
    if parts.scheme in BUCKETS and (user or not _BUCKET.fullmatch(host)):
        raise refused("there is no bucket of that name", f"write {shapes}, letters, digits, '-' and '.'")
    return Place(parts.scheme, host, path, user)


def check_endpoint(name: str, url: str, whose: str) -> None:
    """Refuse what is no web address, and one with a user, a password or a query in it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.username or parts.query:
        raise InvalidValueError(
            f"{name} is {shown(url)!r:.120}, not a plain web address",
            where=whose,
            remedy="write http://host:port or https://host; credentials come from the environment",
        )


def library(name: str, extra: str, why: str) -> ModuleType:
    """Import a third-party package when it is first used; `NotInstalledError` names the extra that brings it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotInstalledError(
            f"{why} needs the package {name.partition('.')[0]}",
            remedy=f"pip install 'datatask-engine[{extra}]'",
        ) from error
