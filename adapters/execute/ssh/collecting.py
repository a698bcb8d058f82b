"""What a run that ended on a target has written: fetched, measured against its end, and handed to its repositories.

In: a task's recipe, a run's target, the sizes and checksums that were recorded with its end. Out: the contents by stream, bytes or a
spooled file, None where there is none; then the writes. A link that breaks is waited for, as long as it takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datatask.adapters.execute.endings import exchanged
from datatask.adapters.execute.ssh.target import LinkLostError, Target
from datatask.adapters.execute.ssh.transfers import LocalDiskError, download
from datatask.adapters.execute.sums import fits
from datatask.adapters.execute.targets import Recipe, _StderrIsStdout
from datatask.adapters.spools import Spool
from datatask.engine.ports import Write
from datatask.schema.errors import TemporaryError

DISK_WAIT_SECONDS = 5.0
LINK_WAIT_SECONDS = 0.05

Contents = dict[str, bytes | Path | None]


def kept(recipe: Recipe) -> list[str]:
    """Return the streams that have a repository."""
    return [
        name
        for name, repo in (("stdout", recipe.stdout), ("stderr", recipe.stderr))
        if repo is not None and not isinstance(repo, _StderrIsStdout)
    ]


async def fetch(
    target: Target,
    identity: str,
    names: Mapping[str, int],
    contents: Contents,
    spool: Spool,
    notice: Callable[[str], None],
) -> None:
    """Add the streams to `contents` as they arrive; `notice` is told why that takes longer."""
    while missing := [name for name in names if name not in contents]:
        try:
            contents[missing[0]] = await download(target, identity, missing[0], spool)
        except FileNotFoundError:
            contents[missing[0]] = None
        except LinkLostError:
            await asyncio.sleep(LINK_WAIT_SECONDS)
        except (LocalDiskError, TemporaryError) as error:
            notice(str(error))
            await asyncio.sleep(DISK_WAIT_SECONDS)


def differs(contents: Contents, sizes: Mapping[str, int], sums: Mapping[str, str]) -> str:
    """Say which stream is not what the run's process had written when it ended: shorter, or another one. Blocking.

    It was not on the disk when the machine went down; or somebody has removed, exchanged or written it since.
    """
    for name, size in sizes.items():
        content = contents[name]
        if content is None or (there := _size(content)) < size:
            return f"its {name} had {size} bytes when it ended and now has {0 if content is None else there}"
        if not fits(sums.get(name, ""), content, size):
            return exchanged(name)
    return ""


def writes(recipe: Recipe, job: str, contents: Contents) -> tuple[Write, ...]:
    """Return what goes into the repositories."""
    found = []
    for name in kept(recipe):
        if (content := contents.get(name)) is None:
            continue
        where: dict[str, Any] = {"source": content}
        if isinstance(content, bytes):
            where = {"data": content, "size": len(content)}
        found.append(Write(repository=getattr(recipe, name).id, job=job, **where))
    return tuple(found)


def drop(contents: Contents) -> None:
    """Remove what was fetched into files."""
    for content in contents.values():
        if isinstance(content, Path):
            content.unlink(missing_ok=True)


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
