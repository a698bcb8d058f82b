"""Which Dask scheduler is meant: by `dask://HOST:PORT`, or by a client that is connected to it. Loads nothing of Dask's.

In: what users give as `executor`. Out: a `Place`; an error says what to give. The engine makes a connection of its own to it, so
that it does not matter what else the client is used for, in which thread, and when it is closed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, NamedTuple

from datatask.schema.errors import InvalidValueError, NotInstalledError

SCHEME = "dask://"


class Place(NamedTuple):
    """A scheduler, and how to get in."""

    address: str
    security: Any = None


def is_dask(executor: object) -> bool:
    """Whether this names a Dask cluster."""
    if isinstance(executor, str):
        return executor.startswith(SCHEME)
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(executor).__mro__}
    return ("distributed", "Client") in kinds


def check_dask(task: str, executor: Any, resources: Any) -> None:
    """Refuse an address that names no scheduler, and resources that are no amounts."""
    if isinstance(executor, str):
        _host_and_port(executor)
    if resources is not None and not (
        isinstance(resources, Mapping)
        and all(
            isinstance(name, str) and isinstance(amount, int | float) for name, amount in resources.items()
        )
    ):
        raise InvalidValueError(
            f"resources={resources!r} of task {task}", remedy='give amounts by name, such as {"GPU": 1}'
        )


def place_of(executor: Any) -> Place:
    """Return which scheduler is meant; `InvalidValueError` where that cannot be known, `NotInstalledError` without Dask."""
    if importlib.util.find_spec("distributed") is None:
        raise NotInstalledError(
            "Dask needs distributed, which is not installed", remedy="pip install 'datatask-engine[dask]'"
        )
    if isinstance(executor, str):
        return Place(f"tcp://{_host_and_port(executor)}")
    if executor.scheduler is None:
        raise InvalidValueError(
            f"the Client is {executor.status}", remedy="pass one that is connected, or dask://HOST:PORT"
        )
    return Place(executor.scheduler.address, executor.security)


def _host_and_port(executor: str) -> str:
    address = executor.removeprefix(SCHEME).rstrip("/")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InvalidValueError(
            f"{executor!r} names no scheduler", remedy="use dask://HOST:PORT, such as dask://localhost:8786"
        )
    return address
