"""Compiled modules are kept, also where they may not be written beside their sources (PYTHONDONTWRITEBYTECODE).

The tests start hundreds of processes; each would compile the same modules, for longer than it then works.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

_FOLDER = Path(__file__).parents[1] / ".pytest_cache" / "bytecode"


def keep() -> None:
    """Have this process and those that it starts keep what they compile."""
    if sys.dont_write_bytecode and sys.pycache_prefix is None:
        sys.dont_write_bytecode = False
        sys.pycache_prefix = str(_FOLDER)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(_FOLDER)


def clear() -> None:
    """Remove what was compiled from temporary folders: it is of no use to another run."""
    shutil.rmtree(_FOLDER / Path(tempfile.gettempdir()).relative_to("/"), ignore_errors=True)
