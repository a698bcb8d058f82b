"""A program that runs commands of datatask, and has one line of its code raise what a machine may raise there.

In: requests, one JSON object a line. Out: one answer a line. A command runs in a child that is forked from this process,
where everything is imported already: `main()` and the interpreter's own end, as from a shell. Without a `point` the
lines that were executed are counted; with one, that line raises, at its n-th execution, the exception that it names. A command
that is to `begin` goes on beside those that follow, until a request ends it by a signal.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import json
import os
import pkgutil
import select
import signal
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

SECONDS_MAX = 60.0


def errors() -> dict[str, Callable[[], BaseException]]:
    """Return what is raised, by name."""
    return {
        "disk full": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        "disk failed": lambda: OSError(errno.EIO, os.strerror(errno.EIO), "/somewhere/a file"),
        "not permitted": lambda: PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/somewhere"),
        "too many files": lambda: OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        "not there": lambda: FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/somewhere"),
        "no process": lambda: BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)),
        "not to be decoded": lambda: UnicodeDecodeError("utf-8", b"M\xe4rz", 1, 2, "invalid continuation byte"),
        "not to be encoded": lambda: UnicodeEncodeError("utf-8", "M\udce4rz", 1, 2, "surrogates not allowed"),
        "memory": MemoryError,
        "interrupt": KeyboardInterrupt,
    }  # fmt: skip


class Tracer:
    """Counts the lines of our own files that are executed, or raises at one of them."""

    def __init__(self, home: str, point: dict[str, Any] | None) -> None:
        self.home = home
        self.counts: dict[tuple[str, int], int] = {}
        self.interrupts: set[tuple[str, int]] = set()
        self.point = point
        self.aim = None if point is None else (point["file"], point["line"])
        self.left = 0 if point is None else point["hit"]
        self.main = threading.main_thread().ident

    def on(self) -> None:
        """Begin, in every thread."""
        threading.settrace(self.call)
        sys.settrace(self.call)

    def call(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Trace the frames of our own files."""
        name = frame.f_code.co_filename
        if not name.startswith(self.home):
            return None
        return self.line if self.aim is None or name == self.aim[0] else None

    def line(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Take one line."""
        if event == "line":
            at = (frame.f_code.co_filename, frame.f_lineno)
            if self.aim is None:
                self.counts[at] = self.counts.get(at, 0) + 1
                if threading.get_ident() == self.main:
                    self.interrupts.add(at)
            elif at == self.aim and self.point is not None:
                self.left -= 1
                if self.left == 0:
                    name, self.point = self.point["error"], None
                    if name != "interrupt" or threading.get_ident() == self.main:
                        raise errors()[name]()
        return self.line


def _serve() -> dict[str, Any] | None:
    """Answer requests for ever; in a forked child, return the request."""
    while line := sys.__stdin__.buffer.readline():  # type: ignore[union-attr]
        request: dict[str, Any] = json.loads(line)
        sys.stdout.flush()
        if "end" in request:
            os.kill(request["end"], request["signal"])
            print(json.dumps({"code": _wait(request["end"])}), flush=True)
            continue
        pid = os.fork()
        if not pid:
            return request
        print(json.dumps({"code": pid if request.get("begin") else _wait(pid)}), flush=True)
    return None


def _wait(pid: int) -> int | str:
    watched = os.pidfd_open(pid)
    try:
        ended = select.select([watched], [], [], SECONDS_MAX)[0]
    finally:
        os.close(watched)
    if not ended:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status) if ended else "hangs"


def _act(request: dict[str, Any]) -> None:
    """Be the command that is asked for."""
    os.setsid()
    os.chdir(request["folder"])
    for number, name in enumerate(request["streams"]):
        opened = os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    import datatask
    from datatask.adapters.cli.main import invoke, main

    sys.path.insert(0, request["folder"])
    if "checks" in request:
        for words in request["checks"]:
            code = invoke(words)
            print(f"\n--- exit {code}", flush=True)
            os.lseek(0, 0, os.SEEK_SET)
            sys.stdin = open(0, closefd=False)  # noqa: SIM115
        os._exit(0)  # the interpreter's end, which nothing looks at here, takes as long as ten commands
    sys.argv = ["datatask", *request["argv"]]
    tracer = Tracer(str(Path(str(datatask.__file__)).parent), request.get("point"))
    if not request.get("begin"):
        tracer.on()
    try:
        main()
    except BaseException as error:
        if request.get("counts"):
            sys.settrace(None)
            threading.settrace(None)
            told = [[*at, count, at in tracer.interrupts] for at, count in tracer.counts.items()]
            Path(request["counts"]).write_text(json.dumps(told))
        if request.get("whole"):
            raise
        _end(error)


def _end(error: BaseException) -> None:
    """End as the interpreter does, all but the taking apart of modules, which takes as long as five commands."""
    if not isinstance(error, SystemExit):
        sys.excepthook(type(error), error, error.__traceback__)
    code = 1 if not isinstance(error, SystemExit) else error.code
    error.__traceback__ = error.__context__ = error.__cause__ = None
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.settrace(None)
    gc.collect()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _import_all() -> None:
    """Import what commands import when they are called: a child that is forked has it at once."""
    import datatask
    from datatask import adapters

    for name in datatask.__all__:
        getattr(datatask, name)
    for found in pkgutil.walk_packages(adapters.__path__, "datatask.adapters."):
        if not found.name.endswith((".launcher", ".keeper", ".worker")):  # programs of their own
            with contextlib.suppress(ImportError):
                import_module(found.name)


if __name__ == "__main__":
    _import_all()
    gc.collect()
    gc.freeze()  # what is imported is the same in every child, and not to be searched when one ends
    asked = _serve()
    if asked is not None:
        _act(asked)
