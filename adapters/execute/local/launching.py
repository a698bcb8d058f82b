"""Starting a launcher: a process of its own, with little of the engine's in it.

In: the directory. Out: a launcher that serves it, or another one that did already. Blocks for a moment, until it does.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from datatask.adapters import trust

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
