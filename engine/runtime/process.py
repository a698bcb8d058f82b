"""The engine's own process, while functions of others run in it: copies of it leave, and a broken one says so.

In: forks, and ends of functions. Out: nothing, or the end of a process. A function that forks and returns would have
the copy go on as a second engine, with the first one's files: the copy ends as soon as it is back in an event loop or
in the call. A function that closes files that are not its own takes the loop's with them: an engine that would wait
for ever ends at once, in one line, and the next one goes on from the log.
"""

from __future__ import annotations

import asyncio
import os
import signal
import weakref

from datatask.engine.run_context import current_run

BROKEN = 70
"""The exit code of an engine whose files were closed."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_File = tuple[int, int, int]
"""Descriptor, device and inode."""

_engines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[_File]] = weakref.WeakKeyDictionary()
_forking: asyncio.AbstractEventLoop | None = None
_mask: set[int | signal.Signals] | None = None


def guard(loop: asyncio.AbstractEventLoop) -> None:
    """Look after the files of this loop, which an engine runs on, until it is closed."""
    _engines[loop] = [
        file for name in ("_selector", "_ssock", "_csock") if (file := _file(loop, name)) is not None
    ]


def returned(pid: int, who: str) -> None:
    """A function is back that began in process `pid`: end the process if it is a copy, or cannot go on."""
    if os.getpid() != pid:
        os._exit(0)
    for loop, files in tuple(_engines.items()):
        if not loop.is_closed() and not all(map(_is_open, files)):
            told = (
                f"datatask: a function closed files that are not its own, probably {who}: the engine cannot go on;"
                " start it again\n"
            )
            os.write(2, told.encode(errors="replace"))
            os._exit(BROKEN)


def _file(loop: asyncio.AbstractEventLoop, name: str) -> _File | None:
    """Return a file that a loop waits with; None in a loop that is made otherwise."""
    try:
        fd = getattr(loop, name).fileno()
        status = os.fstat(fd)
    except (AttributeError, OSError, ValueError):
        return None
    return fd, status.st_dev, status.st_ino


def _is_open(file: _File) -> bool:
    """Whether the descriptor still stands for that file: another thread may have been given its number meanwhile."""
    try:
        status = os.fstat(file[0])
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == file[1:]


def _before_fork() -> None:
    global _forking, _mask
    _mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS) if _engines else None
    _forking = asyncio._get_running_loop() if current_run.get() is not None else None


def _in_parent() -> None:
    if _mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask)


def _in_child() -> None:
    if _mask is not None:
        # The engine's wake-up pipe is the child's too: a signal to the child would be acted on by the engine.
        if signal.set_wakeup_fd(-1) != -1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask)
    ready = getattr(_forking, "_ready", None)
    if _forking is not None and ready is not None:
        ready.appendleft(asyncio.Handle(os._exit, (0,), _forking))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
