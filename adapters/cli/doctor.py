"""`doctor`: whether the surroundings are as datatask needs them; looks only, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import click

from datatask.adapters.cli.commands import command
from datatask.adapters.cli.loading import find_reference
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.settings import Settings
from datatask.adapters.log.locate import locate, quarantine_path
from datatask.schema.errors import CallerError, DatataskError, InvalidValueError

ENGINE_SECONDS = 5.0
"""So long an engine may take to answer."""

SQLITE_OLDEST = (3, 38, 0)
FREE_BYTES_MIN = 1 << 30
WATCHES_MIN = 8192
_WATCHES = Path("/proc/sys/fs/inotify/max_user_watches")
_EXTRAS = {"asyncssh": "ssh", "kubernetes_asyncio": "kubernetes", "IPython": "shell"}


class Check(NamedTuple):
    """What was looked at: `ok` is yes, no, or a note that is no trouble."""

    check: str
    ok: str
    what: str
    remedy: str = ""


@command(
    "doctor",
    example="datatask doctor\ndatatask -p pipeline.py doctor --json\ndatatask -p pipeline.py doctor --clean\n"
    "datatask -p pipeline.py doctor --clean --of f024c0260e4b42f7a687eaccfd4307a4",
)
@click.option(
    "--clean", is_flag=True, help="Remove folders and processes of runs that are over, on their machines."
)
@click.option(
    "--of", "of", metavar="LOG", default="", help="With --clean: also those of this log, which is gone."
)
def doctor(settings: Settings, clean: bool, of: str) -> int:
    """Check the surroundings: Python, SQLite, disk, the log and its engine, the pipeline with -p.

    With -p also what killed engines left on the machines where processes run; --clean removes it.

    Exit code 0 when nothing is wrong, 5 when the log is damaged, 2 for anything else.
    """
    checks: list[Check] = []
    code = 0
    for name, look in _LOOKS.items():
        try:
            checks += look(settings)
        except DatataskError as error:
            checks.append(Check(name, "no", error.fact, error.remedy))
            code = max(code, error.exit_code)
    if clean and not settings.names_pipeline:
        raise InvalidValueError(
            "--clean needs the pipeline, which knows the machines", remedy="name it with -p"
        )
    if of and not clean:
        raise InvalidValueError("--of says whose runs to remove", remedy="add --clean")
    if settings.names_pipeline:
        checks += _machines(settings, clean, of)
        checks += _clusters(settings, clean, of)
    output = Output(settings)
    output.rows([check._asdict() for check in checks], Check._fields)
    return code or (2 if any(check.ok == "no" for check in checks) else 0)


def _python(_: Settings) -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= (3, 11)
    yield Check("python", "yes" if ok else "no", version, "" if ok else "use Python 3.11 or newer")


def _sqlite(_: Settings) -> Iterator[Check]:
    ok = sqlite3.sqlite_version_info >= SQLITE_OLDEST
    needed = ".".join(map(str, SQLITE_OLDEST))
    yield Check(
        "sqlite", "yes" if ok else "no", sqlite3.sqlite_version, "" if ok else f"use {needed} or newer"
    )


def _extras(_: Settings) -> Iterator[Check]:
    for module, extra in _EXTRAS.items():
        there = find_spec(module) is not None
        yield Check(module, "yes" if there else "note", "installed" if there else "not installed",
                    "" if there else f"only if you need it: install datatask-engine[{extra}]")  # fmt: skip


def _inotify(_: Settings) -> Iterator[Check]:
    if _WATCHES.exists():
        watches = int(_WATCHES.read_text())
        ok = watches >= WATCHES_MIN
        yield Check("inotify", "yes" if ok else "note", f"{watches} watches",
                    "" if ok else "raise fs.inotify.max_user_watches; folders are listed instead")  # fmt: skip


def _log(settings: Settings) -> Iterator[Check]:
    try:
        url = settings.log_url()
    except CallerError as error:
        yield Check("log", "note", error.what, error.remedy)
        return
    path = locate(url).path
    if path is None:
        yield Check("log", "note", "in memory", "name a file with --log to keep it")
        return
    yield from _folder(path)
    if not path.exists():
        yield Check("log", "note", f"{path} is not there yet", "`datatask run` makes it")
        return
    yield from _content(settings.log_path())


def _folder(path: Path) -> Iterator[Check]:
    from datatask.adapters.log.locate import refuse_network

    there = next(parent for parent in path.parents if parent.exists())
    refuse_network(there)
    writable = os.access(there, os.W_OK)
    yield Check(
        "folder", "yes" if writable else "no", str(there), "" if writable else "make the folder writable"
    )
    if writable:
        yield _locks(there)
    free = shutil.disk_usage(there).free
    ok = free >= FREE_BYTES_MIN
    yield Check("disk", "yes" if ok else "no", f"{free / 1e9:.1f} GB free", "" if ok else "free some space")


_TRIES_TO_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(0)
sys.exit(3)
"""


def _locks(folder: Path) -> Check:
    """Try whether a lock of ours keeps another process off: some network and user-space file systems only say so."""
    import fcntl

    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".datatask-doctor-") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            other = subprocess.run([sys.executable, "-c", _TRIES_TO_LOCK, file.name], check=False)
    except OSError as error:
        return Check(
            "locks", "no", f"{folder}: {error.strerror}", "keep the log on a local disk (--log PATH)"
        )
    if other.returncode == 0:
        return Check("locks", "yes", "a locked file keeps other processes off")
    return Check(
        "locks",
        "no",
        f"{folder}: two processes hold the same lock; two engines could write one log",
        "keep the log on a local disk (--log PATH)",
    )


def _content(path: Path) -> Iterator[Check]:
    from datatask.adapters.history.verify.progress import verified
    from datatask.adapters.log.lease import lease_holder
    from datatask.adapters.log.reader import LogReader

    with LogReader(path) as reader:
        head = reader.head
        list(reader.read(max(0, head - 100)))
        mode = path.stat().st_mode & 0o777
        yield Check("log", "yes", f"{path}, head {head}, pipeline {reader.pipeline}")
        private = not mode & 0o077
        yield Check("mode", "yes" if private else "note", f"{mode:o}", "" if private else f"chmod 600 {path}")
        yield Check("verified", "yes", str(verified(reader)))
    holder = lease_holder(path)
    yield from _stores(path)
    yield from _set_aside(path)
    if holder is None:
        yield Check("engine", "yes", "no engine runs")
    else:
        yield from _engine(path, holder[1], holder[0])


def _set_aside(path: Path) -> Iterator[Check]:
    """What engines have found in the inbox and not believed."""
    folder = quarantine_path(path)
    try:
        count = len(os.listdir(folder))
    except OSError:
        return
    if count:
        entries = "1 entry of the inbox was" if count == 1 else f"{count:,} entries of the inbox were"
        yield Check(
            "inbox", "note", f"{entries} set aside in {folder}", "see what put them there, and remove them"
        )


def _engine(path: Path, pid: int, host: str) -> Iterator[Check]:
    """Ask the engine itself: that it holds the lease says only that its process is there."""
    from datatask.adapters.log.inbox_client import take_pulse
    from datatask.adapters.wiring.opening import actor

    pulse = take_pulse(path, actor("datatask doctor"), ENGINE_SECONDS)
    named = f"pid {pid} {host}".rstrip()
    if pulse.answers:
        yield Check("engine", "yes", f"an engine runs and answers: {named}")
    elif pulse.answers is None:
        yield Check("engine", "note", f"an engine runs: {named}; {pulse.why}")
    else:
        yield Check("engine", "no", f"the engine {pulse.why}: {named}",
                    f"see what it says where it was started; if it does not come back: kill {pid}, and start it again")  # fmt: skip
    for service in pulse.services:
        if (trouble := pulse.troubles().get(service.name)) is not None:
            down = service.state == "down"
            yield Check("service", "no" if down else "note", f"{service.name} {trouble}",
                        "mend what it says: it is tried again, until at last the engine stops" if down else "")  # fmt: skip


def _stores(path: Path) -> Iterator[Check]:
    """What the log says of stores whose contents are not believed, or cannot be had."""
    from datatask.adapters.cli.status import troubles
    from datatask.adapters.history.states import fold
    from datatask.adapters.log.reader import LogReader

    with LogReader(path) as reader:
        state = fold(reader, reader.head)
    for name, trouble in troubles(state).items():
        leaf = state.leaves[name]
        if not (leaf.held or leaf.trouble):
            yield Check("store", "note", f"{name} {trouble}", "see `datatask log --kind ChangesMissed`")
            continue
        remedy = "see where its members are" if leaf.held else "see to the store; `datatask run` looks again"
        yield Check("store", "no", f"{name} {trouble}", remedy)


def _pipeline(settings: Settings) -> Iterator[Check]:
    if not settings.names_pipeline:
        reference = find_reference(None)
        found = f"{reference.text} (not loaded)" if reference is not None else "none here"
        yield Check("pipeline", "note", found, "name it with -p to check that it loads")
        return
    pipeline = settings.load_pipeline()
    asyncio.run(pipeline.check_inputs())
    count = len(pipeline.declare().definition.tasks)
    yield Check("pipeline", "yes", f"{pipeline.name}: {count} task{'s' * (count != 1)}")


def _machines(settings: Settings, clean: bool, of: str) -> Iterator[Check]:
    from datatask.adapters.cli.doctor_remains import look_at_hosts

    try:
        for ok, what, remedy in look_at_hosts(settings, clean=clean, of=of):
            yield Check("machines", ok, what, remedy)
    except DatataskError as error:  # without a log nothing has run; other trouble with it has been told
        if clean:
            yield Check("machines", "no", error.fact, error.remedy)


def _clusters(settings: Settings, clean: bool, of: str) -> Iterator[Check]:
    from datatask.adapters.cli.doctor_remains import look_at_clusters

    try:
        for ok, what, remedy in look_at_clusters(settings, clean=clean, of=of):
            yield Check("cluster", ok, what, remedy)
    except DatataskError as error:  # as with machines
        if clean:
            yield Check("cluster", "no", error.fact, error.remedy)


_LOOKS: dict[str, Callable[[Settings], Iterator[Check]] | Any] = {
    "python": _python,
    "sqlite": _sqlite,
    "extras": _extras,
    "inotify": _inotify,
    "pipeline": _pipeline,
    "log": _log,
}
