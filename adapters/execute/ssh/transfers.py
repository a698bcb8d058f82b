"""Files to and from a target, over the one SFTP channel that all runs share; requests of many runs are in flight at once.

In: a target, a run's folder, its script and input; the sizes and checksums that were recorded with its end. Out: the folder
there; later its outputs here, measured against the end: bytes or a spooled file, None where there is none; then the writes.
A link that breaks raises `LinkLostError`: an upload begins anew, which is harmless as its run is started only afterwards; a
download waits for the next link, as long as it takes, and goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import asyncssh

from datatask.adapters.execute.base.endings import exchanged, fits
from datatask.adapters.execute.ssh.link import Link
from datatask.adapters.execute.ssh.target import LinkLostError, Target
from datatask.adapters.spools import Spool
from datatask.engine.api.repositories import BlobRepository
from datatask.engine.api.streams import BLOCK_BYTES
from datatask.schema.errors import CallerError, TemporaryError

__all__ = ["CallerError", "LocalDiskError", "download", "upload"]


DISK_WAIT_SECONDS = 5.0
LINK_WAIT_SECONDS = 0.05

Contents = dict[str, bytes | Path | None]


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

    It was not on the disk when the machine went down; or another process has removed, exchanged or written it since.
    """
    for name, size in sizes.items():
        content = contents[name]
        if content is None or (there := _size(content)) < size:
            return f"its {name} had {size} bytes when it ended and now has {0 if content is None else there}"
        if not fits(sums.get(name, ""), content, size):
            return exchanged(name)
    return ""


def drop(contents: Contents) -> None:
    """Remove what was fetched into files."""
    for content in contents.values():
        if isinstance(content, Path):
            content.unlink(missing_ok=True)


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


INLINE_BYTES_MAX = 64 * 1024
CHUNK_BYTES = 2 * 1024 * 1024


@contextlib.contextmanager
def _mapping(target: Target, link: Link, what: str) -> Iterator[None]:
    """Tell a broken link from what the target refuses."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (asyncssh.Error, OSError) as error:
        if what == "the download" and isinstance(error, asyncssh.SFTPNoSuchFile):
            raise FileNotFoundError(error.reason) from error
        broken = isinstance(error, asyncssh.SFTPConnectionLost | asyncssh.SFTPNoConnection)
        if link.lost.done() or broken or not isinstance(error, asyncssh.SFTPError):
            link.lose()
            raise LinkLostError(str(error)) from error
        raise TemporaryError(f"{what} failed: {error.reason}", where=target.label) from error


async def make_folder(target: Target, identity: str) -> None:
    """Make the run's folder with `cwd/`; its start brings the script along. Raises as `upload`."""
    link = await target.up()
    folder = target.folder(identity)
    with _mapping(target, link, "making its folder"):
        async with _room(target, link.sftp, folder):
            await _make(link.sftp, folder)


async def upload(
    target: Target, identity: str, script: bytes, stdin: BlobRepository | None, job: str
) -> None:
    """Make the run's folder with `exe`, `cwd/` and `stdin`. Raises `LinkLostError`, or `TemporaryError` if refused."""
    async with target.uploads:
        link = await target.up()
        folder, sftp = target.folder(identity), link.sftp
        with _mapping(target, link, "the upload"):
            async with _room(target, sftp, folder):
                await _make(sftp, folder)
                await _put(sftp, f"{folder}/exe", script)
                if stdin is not None:
                    async with (
                        stdin.open(job, "rb") as source,
                        _created(sftp, f"{folder}/stdin", 0o600) as file,
                    ):
                        while data := await source.read(BLOCK_BYTES):
                            await file.write(data)


@contextlib.asynccontextmanager
async def _room(target: Target, sftp: asyncssh.SFTPClient, folder: str) -> AsyncIterator[None]:
    """Tell a full disk from other failures."""
    try:
        yield
    except (asyncssh.SFTPFailure, asyncssh.SFTPNoSpaceOnFilesystem) as error:
        if await _is_full(sftp, folder):
            raise TemporaryError("its disk is full", where=target.label, remedy="free some space") from error
        raise


async def _make(sftp: asyncssh.SFTPClient, folder: str) -> None:
    """Make the two folders, in one round trip: a server does what it is asked in order."""
    private, paths = asyncssh.SFTPAttrs(permissions=0o700), (folder, f"{folder}/cwd")
    made = await asyncio.gather(*(sftp.mkdir(path, private) for path in paths), return_exceptions=True)
    for path, error in zip(paths, made, strict=True):
        if isinstance(error, asyncssh.SFTPError) and not isinstance(error, asyncssh.SFTPConnectionLost):
            if await sftp.isdir(path):  # version 3 of the protocol has no code of its own for "it is there"
                continue
        if error is not None:
            raise error


def _created(sftp: asyncssh.SFTPClient, path: str, mode: int) -> asyncssh.SFTPClientFile:
    return sftp.open(path, "wb", asyncssh.SFTPAttrs(permissions=mode))  # type: ignore[return-value]


async def _put(sftp: asyncssh.SFTPClient, path: str, data: bytes) -> None:
    async with _created(sftp, path, 0o700) as file:
        await file.write(data)


async def _is_full(sftp: asyncssh.SFTPClient, folder: str) -> bool:
    try:
        status = await sftp.statvfs(os.path.dirname(folder))
    except (asyncssh.Error, OSError):
        return False
    return status.bavail == 0 or status.favail == 0


async def download(target: Target, identity: str, name: str, spool: Spool) -> bytes | Path:
    """Return an output's bytes, or the local file that they are in when there are many.

    Over a new link a file that was begun is gone on with. Raises `OSError` when it cannot be kept here.
    """
    local = f"{identity}.{name}"
    kept = spool.path(local) if spool.has(local) else None
    async with target.downloads:
        link = await target.up()
        with _mapping(target, link, "the download"):
            async with link.sftp.open(f"{target.folder(identity)}/{name}", "rb") as source:
                if kept is None:
                    data = _bytes(await source.read(INLINE_BYTES_MAX))
                    if len(data) < INLINE_BYTES_MAX:
                        return data
                    kept = spool.path(local)
                await _copy(source, kept)
    return kept


async def _copy(source: asyncssh.SFTPClientFile, path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        offset = os.fstat(fd).st_size
        while data := _bytes(await source.read(CHUNK_BYTES, offset)):
            _write(fd, data)
            offset += len(data)
    finally:
        os.close(fd)


def _bytes(data: bytes | str) -> bytes:
    assert isinstance(data, bytes)
    return data


def _write(fd: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError as error:
        raise LocalDiskError(error.errno, error.strerror) from error


class LocalDiskError(Exception):
    """An output cannot be kept here; asyncssh has errors of its own for what the target cannot."""


async def is_file(sftp: asyncssh.SFTPClient, path: str) -> bool:
    """Whether there is a plain file."""
    with contextlib.suppress(asyncssh.SFTPError):
        return stat.S_ISREG((await sftp.lstat(path)).permissions or 0)
    return False
