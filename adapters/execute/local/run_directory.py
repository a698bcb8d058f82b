"""The directory of a log's runs, and the start of its launcher.

In: the manager's directory, a log's uuid and URL, identities of runs. Out: the directory that the manager names, or one
beside it where another log uses that; a launcher that serves it. Folders of ended runs are removed in the background. It is
safe to use (`trust`), or refused with a `CallerError`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from pathlib import Path

from datatask.adapters import trust
from datatask.adapters.execute.local import folders
from datatask.schema.errors import CallerError

logger = logging.getLogger("datatask.proc_manager")


class RunDirectory:
    """`{directory}/{log}/{identity}/` for each run; `path` is the directory, `home` the log's path, device and inode."""

    def __init__(self, named: Path, earlier: Path | None = None) -> None:
        """`earlier` is where an earlier version may have left runs that go on."""
        self.path = self._named = named
        self.home: folders.Home = ["", 0, 0]
        self._log = ""
        self._earlier = earlier
        self._avoided: set[str] = set()
        self._reached: os.stat_result | None = None
        self._trash: list[Path] = []
        self._sweeper: asyncio.Future[None] | None = None

    def __str__(self) -> str:
        return str(self.path)

    def prepare(self) -> None:
        """Make the directory; `CallerError` where it is not safe. Blocking."""
        prepare_directory(self.path, group=self._earlier is None)

    def choose_for(self, log: str, url: str, identity: str) -> None:
        """Use the directory that has the log's runs, this one among them."""
        self._log, self.home = log, _home(url)
        if self._earlier is not None and (self._earlier / log / identity).is_dir():
            prepare_directory(self._earlier)
            self.path = self._earlier  # as long as there are such runs
        else:
            self.choose()

    def choose(self, *, other: bool = False) -> None:
        """Use the directory that has the log's runs; with `other` one that is not this."""
        if other:
            self._avoided.add(str(self.path))
        place = Path(folders.place_for(str(self._named), self._log, self.home, self._avoided))
        if place != self.path:
            prepare_directory(place, group=self._earlier is None)
            self.path = place

    def leave(self) -> None:
        """Use the one that the manager names."""
        self.path = self._named
        self._avoided.clear()

    def folder(self, identity: str) -> Path:
        """Return a run's folder."""
        return self.path / identity.partition(".")[0] / identity

    def find(self, identity: str) -> Path:
        """Return the run's folder wherever it is, be it that of a copy or of an earlier version."""
        log = identity.partition(".")[0]
        here = [*folders.places(str(self._named)), *([str(self._earlier)] if self._earlier else [])]
        found = [Path(place) / log / identity for place in here]
        return next((folder for folder in found if folder.is_dir()), self.folder(identity))

    # --- whether it is still there ----------------------------------------------------------------

    @property
    def is_of_a_copy(self) -> bool:
        """Whether the log is a copy, whose original has the directory that the manager names."""
        return self.path not in (self._named, self._earlier)

    @property
    def has_runs_of_ours(self) -> bool:
        """Whether runs of the log were ever started here."""
        return folders.Owners(str(self.path)).known(self._log) is not None

    def reached(self, status: os.stat_result) -> None:
        """The launcher was reached in the directory of this status."""
        self._reached = status

    def is_moved(self) -> bool:
        """Whether the log is gone from where it was, and the directory with it: the project has another name by now."""
        return self.home[1:] != [0, 0] and not os.path.exists(self.home[0]) and not self.is_in_place()

    def is_in_place(self) -> bool:
        """Whether the directory is still the one that the launcher was reached in."""
        try:
            return self._reached is None or os.path.samestat(os.stat(self.path), self._reached)
        except OSError:
            return False

    # --- removing ---------------------------------------------------------------------------------

    def remove(self, identity: str) -> None:
        """Remove the run's folder, in the background."""
        self._trash.append(self.folder(identity))
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.get_running_loop().run_in_executor(None, self._sweep)

    def _sweep(self) -> None:
        while self._trash:
            folder = self._trash.pop()
            try:
                folders.remove(str(folder))
            except FileNotFoundError:
                pass
            except OSError as error:
                logger.warning("the folder of a run cannot be removed: %s", error)

    async def swept(self) -> None:
        """Wait until the folders that are to go have gone."""
        if self._sweeper is not None:
            await self._sweeper


def _home(url: str) -> folders.Home:
    """Return where a log is: its path, and the device and inode of its file; zeros for one that has none."""
    path = url.partition("://")[2].removeprefix("/")
    try:
        status = os.stat(path)
    except OSError:
        return [path, 0, 0]
    return [path, status.st_dev, status.st_ino]


def prepare_directory(directory: Path, *, group: bool = True) -> None:
    """Make the directory, for our user alone; `CallerError` when others may write it, or one above it.

    With `group` those who own the folders above, and groups that may write them, are trusted: the pipeline is theirs to
    change, which names a place beside it.
    """
    try:
        trust.check_above(directory, group=group)
        try:
            trust.check_found(directory, "folder")
        except FileNotFoundError:
            trust.make_private(directory)
        trust.check_own(directory)
    except OSError as error:
        raise CallerError(
            f"{directory} cannot be made: {error.strerror}",
            remedy="pass another local_path, or set XDG_STATE_HOME",
        ) from error


START_SECONDS_MAX = 30.0
_START = (
    "import os, sys; os.closerange(3, 65536); os.chdir('/'); sys.path.append(sys.argv[1]); "
    "from datatask.adapters.execute.local.launcher import main; sys.exit(main(sys.argv[2]))"
)
PASSED = ["PATH", "LANG", "LC_ALL", "TZ", "TMPDIR"]
"""What the launcher gets of our environment; runs get what their task says."""


def start_launcher(directory: Path) -> None:
    """Start a launcher, detached; one that finds another at work ends at once. Blocks for a moment."""
    root = Path(__file__).parents[4]
    env = {key: os.environ[key] for key in PASSED if key in os.environ}
    with open(directory / "launcher.log", "ab", opener=trust.private) as log:
        pid = os.posix_spawn(  # no pipe, as subprocess has: a fork in another thread would keep it open for ever
            sys.executable,
            [sys.executable, "-I", "-S", "-c", _START, str(root), str(directory)],
            env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
    _wait(pid, START_SECONDS_MAX)


def _wait(pid: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"it did not begin to serve in {seconds:g} s")
        time.sleep(0.002)
    if code := os.waitstatus_to_exitcode(ended[1]):
        raise ChildProcessError(f"it ended with exit code {code}; see launcher.log")
