"""Compiled modules are kept, also where they may not be written beside their sources (PYTHONDONTWRITEBYTECODE).

The tests start hundreds of processes; each would compile the same modules, for longer than it then works. Nor do the
processes that run the tests rewrite their assertions each for itself: two do that before, a half each.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.unmeasured import plain_environment

_TESTS = Path(__file__).parent
_FOLDER = _TESTS.parent / ".pytest_cache" / "bytecode"
_FILES_MIN = 60
"""So many files are compiled before: fewer take less time than to begin does."""


def keep() -> None:
    """Have this process and those that it starts keep what they compile."""
    if sys.dont_write_bytecode and sys.pycache_prefix is None:
        sys.dont_write_bytecode = False
        sys.pycache_prefix = str(_FOLDER)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(_FOLDER)


def prepare() -> None:
    """Compile the tests where many have changed, or all are new."""
    files = [path for path in sorted(_TESTS.rglob("test_*.py")) if not _is_compiled(path)]
    if len(files) >= _FILES_MIN:
        collect = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
        halves = [
            subprocess.Popen(
                [*collect, *files[half::2]], env=plain_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                cwd=_TESTS.parent,
            )
            for half in (0, 1)
        ]  # fmt: skip
        for process in halves:
            process.wait()  # what goes wrong is told when the tests are collected


def clear() -> None:
    """Remove what was compiled from temporary folders: it is of no use to another run."""
    shutil.rmtree(_FOLDER / Path(tempfile.gettempdir()).relative_to("/"), ignore_errors=True)


def _is_compiled(path: Path) -> bool:
    folder = Path(importlib.util.cache_from_source(str(path))).parent
    written = path.stat().st_mtime
    return any(kept.stat().st_mtime >= written for kept in folder.glob(f"{path.stem}.*-pytest-*.pyc"))
