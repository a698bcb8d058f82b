"""Changes in folders, told as they happen.

In come the kernel's notices, out go `Appeared`, `Vanished` and, wherever notices may have been lost (the
queue overflowed, the folder went away or came back), `Doubtful`, upon which the engine lists. A file that
others write in place counts when it is closed; a link, and whatever is renamed into the folder, at once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from inotify_simple import Event, flags

from datatask.adapters.store.inotify import LEFT, LOST, FolderWatcher, Handler, is_remote
from datatask.engine.ports import Appeared, Change, Doubtful, Vanished
from datatask.schema.errors import DatataskError

logger = logging.getLogger("datatask.repository")

SUBFOLDERS_MAX = 4_096
RETRY_SECONDS = 1.0
DEGRADED_SECONDS = 5.0

_warned: set[str] = set()


class Watchable(Protocol):
    """A store on a folder, as far as watching needs it."""

    @property
    def basedir(self) -> Path: ...
    @property
    def repository(self) -> str: ...
    @property
    def case_insensitive(self) -> bool: ...
    @property
    def looks_within(self) -> bool:
        """Whether what is in an entry that is a folder decides if it is a member."""

    def job_of(self, name: str) -> str | None: ...
    def member(self, path: Path) -> str | None: ...
    def version_now(self, job: str) -> str | None: ...
    def touched(self, path: Path) -> bool: ...
    def unfinished(self, path: Path) -> bool: ...


def watch_folder(store: Watchable, tell: Callable[[Change], None]) -> Callable[[], None] | None:
    """Tell the changes of a folder until the returned function is called; None where inotify cannot."""
    if is_remote(store.basedir):
        return None
    watch: FolderWatch | None = None
    try:
        watch = FolderWatch(FolderWatcher.of(asyncio.get_running_loop()), store, tell)
        watch.start()
    except (OSError, RuntimeError) as error:  # RuntimeError: no loop runs, or too many subfolders
        if watch is not None:
            watch.cancel()
        if not isinstance(error, FileNotFoundError):  # else its listing says so
            _warn_once(
                f"Changes in {store.basedir} are found by listing it, not told: {error}{_remedy(error)}"
            )
        return None
    return watch


def _warn_once(text: str) -> None:
    if text not in _warned and len(_warned) < 1_000:
        _warned.add(text)
        logger.warning("%s", text)


def _remedy(error: BaseException) -> str:
    limited = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EMFILE)
    return "; raise fs.inotify.max_user_watches or max_user_instances" if limited else ""


class FolderWatch:
    """One store's folder, watched for one listener; survives that the folder goes away and comes back."""

    def __init__(self, watcher: FolderWatcher, store: Watchable, tell: Callable[[Change], None]) -> None:
        self._watcher = watcher
        self._store = store
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._root: int | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._inner: dict[str, tuple[int, Handler]] = {}
        self._filled: set[str] = set()
        self._within = store.looks_within
        watcher.enter(self)

    def start(self) -> None:
        """Begin. Raises `OSError` where the folder or its subfolders cannot be watched."""
        self._root = self._watcher.add(self._store.basedir, self._on_event)
        if self._within:
            self._watch_all_within()

    @property
    def deaf(self) -> bool:
        """Whether the folder was lost and is not watched again yet: until then it has to be listed."""
        return self._root is None

    def __call__(self) -> None:
        """End; twice is fine."""
        self.cancel()

    def cancel(self) -> None:
        """End; twice is fine."""
        for timer in self._timers.values():
            timer.cancel()
        for name in list(self._inner):
            self._leave(name)
        self._drop_root()
        self._watcher.leave(self)

    def overflowed(self) -> None:
        """The kernel dropped notices, perhaps that of another folder in this one's place: watch what is there now."""
        self.renew()
        if self._within and self._root is not None:
            self._try(self._watch_all_within)
        self._doubt("the notification queue overflowed")

    def renew(self) -> bool:
        """Watch the folder that is there now; whether it is the same as before, which a mount or a rename above may change."""
        if (root := self._root) is None:
            return False
        try:
            self._root = self._watcher.add(self._store.basedir, self._on_event)
        except OSError:
            self._lost()
            return False
        self._watcher.remove(root, self._on_event)
        if self._root != root:
            self._lost()
            return False
        return True

    # --- the folder itself ----------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if event.mask & LOST:
            self._lost()
            return
        if not event.name or (job := self._store.job_of(event.name)) is None:
            return
        if event.mask & LEFT:
            self._left(event.name, job)
        elif event.mask & flags.ATTRIB:
            if self._store.touched(self._store.basedir / event.name):
                self._look(job)
        elif not (event.mask & flags.CREATE and self._store.unfinished(self._store.basedir / event.name)):
            if self._within:
                self._try(lambda: self._watch_within(event.name))
            self._look(job)

    def _left(self, name: str, job: str) -> None:
        self._leave(name)
        if self._within or self._store.case_insensitive:
            self._look(job, gone=not self._within)  # another spelling of the extension may be left
        else:
            self._tell(Vanished(self._store.repository, job))

    def _look(self, job: str, *, gone: bool = False) -> None:
        """Tell what the job's entry is now; one that is no member only when it may have been one."""
        try:
            version = self._store.version_now(job)
        except DatataskError as error:
            self._doubt(str(error))
            return
        if version is not None:
            if self._within and job in self._filled:
                return  # that it holds something was told when it began to
            if self._within:
                self._filled.add(job)
            self._tell(Appeared(self._store.repository, job, version))
        elif gone or job in self._filled:
            self._filled.discard(job)
            self._tell(Vanished(self._store.repository, job))

    def _doubt(self, why: str, *, lost: bool = False) -> None:
        self._tell(Doubtful(self._store.repository, why, lost))

    def _lost(self) -> None:
        if self._root is None:
            return  # several notices tell of one loss
        self._drop_root()
        for name in list(self._inner):
            self._leave(name)
        self._doubt("the folder was removed, renamed or unmounted", lost=True)
        self._return()

    def _drop_root(self) -> None:
        if self._root is not None:
            root, self._root = self._root, None
            self._watcher.remove(root, self._on_event)

    def _return(self) -> None:
        try:
            if is_remote(self._store.basedir):
                raise RuntimeError("it is on a file system that other machines change")
            self.start()
        except FileNotFoundError:
            self._drop_root()
            self._later("return", RETRY_SECONDS, self._return)
        except (OSError, RuntimeError) as error:
            self._drop_root()
            self._doubt(f"the folder cannot be watched: {error}")
            self._later("return", DEGRADED_SECONDS, self._return)
        else:
            self._doubt("the folder is there again", lost=True)

    def _later(self, what: str, seconds: float, action: Callable[[], None]) -> None:
        self._timers[what] = self._loop.call_later(seconds, action)

    # --- folders within, where empty ones do not count ---------------------------------------------------

    def _watch_all_within(self) -> None:
        self._filled.clear()
        with os.scandir(self._store.basedir) as entries:
            names = {entry.name for entry in entries}
        for name in self._inner.keys() - names:
            self._leave(name)
        for name in names:
            if (job := self._store.job_of(name)) is not None:
                self._watch_within(name)
                if self._store.member(self._store.basedir / name) is not None:
                    self._filled.add(job)

    def _watch_within(self, name: str) -> None:
        path, job = self._store.basedir / name, self._store.job_of(name)
        if job is None or not path.is_dir():
            return
        if name not in self._inner and len(self._inner) >= SUBFOLDERS_MAX:
            raise RuntimeError(f"more than {SUBFOLDERS_MAX} subfolders")

        def on_event(event: Event) -> None:
            if event.mask & LOST:
                self._leave(name)
            self._look(job)

        fresh = (
            self._watcher.add(path, on_event),
            on_event,
        )  # before the old one is left: mostly it is the same
        self._leave(name)
        self._inner[name] = fresh

    def _leave(self, name: str) -> None:
        if (inner := self._inner.pop(name, None)) is not None:
            self._watcher.remove(*inner)

    def _try(self, watch: Callable[[], None]) -> None:
        try:
            watch()
        except FileNotFoundError:
            return  # gone again: its notice follows
        except (OSError, RuntimeError) as error:
            _warn_once(
                f"Changes within {self._store.basedir} are found by listing it: {error}{_remedy(error)}"
            )
            self._degraded()

    def _degraded(self) -> None:
        """Some folders are not watched any more: have everything listed, now and again and again."""
        if (timer := self._timers.get("degraded")) is None or timer.when() <= self._loop.time():
            self._doubt("not all folders can be watched")
            self._later("degraded", DEGRADED_SECONDS, self._degraded)
